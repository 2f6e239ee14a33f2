"""What a tortured sender writes down, and what it sends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from workqueue.cli.torture.handler import FOLDER
from workqueue.cli.torture.ledger import Entry, Ledger, read
from workqueue.cli.torture.sender import Bookkeeper, Sender, due_by_now, last_sent, make_message
from workqueue.errors import ConnectionLost, NotSent, QueueFull, Unconfirmed
from workqueue.message import Message

MESSAGES = [Message(body=b"x", id=name) for name in "abc"]


def entries(tmp_path: Path, outcome: Exception | None) -> dict[str, list[str]]:
    """What is noted for each message, when sending them ends so."""

    def hand_over(messages: Sequence[Message]) -> None:
        if outcome:
            raise outcome

    ledger = Ledger(tmp_path / "sender-0.ledger")
    with pytest.raises(type(outcome)) if outcome else nullcontext():
        Bookkeeper(ledger).send("q", MESSAGES, hand_over)
    found: dict[str, list[str]] = {}
    for entry in read(tmp_path / "sender-0.ledger"):
        found.setdefault(entry.id, []).append(entry.event)
    return found


def test_all_confirmed(tmp_path: Path) -> None:
    assert entries(tmp_path, None) == {name: ["sent", "confirmed"] for name in "abc"}


def test_each_as_its_cause_says(tmp_path: Path) -> None:
    causes = [(MESSAGES[0], QueueFull("full")), (MESSAGES[2], Unconfirmed("who knows"))]
    assert entries(tmp_path, NotSent("two", failures=causes, sent=1)) == {
        "a": ["sent", "refused"],
        "b": ["sent", "confirmed"],
        "c": ["sent", "unknown"],
    }


def test_no_broker_at_all(tmp_path: Path) -> None:
    assert entries(tmp_path, ConnectionLost("nobody")) == {
        name: ["sent", "refused"] for name in "abc"
    }


def test_the_same_message_for_the_same_numbers() -> None:
    first, second = make_message(7, 1, 5), make_message(7, 1, 5)
    assert (first.body, first.type, first.delay) == (second.body, second.type, second.delay)
    assert make_message(8, 1, 5).body != first.body or make_message(8, 1, 6).body != first.body


def test_messages_of_all_kinds() -> None:
    made = [make_message(7, 0, n) for n in range(3_000)]
    kinds = {"work", "slow", "fail", "fail-once", "crash-once"}
    assert {message.type for message in made} == kinds
    assert {0, 140_000} <= {len(message.body) for message in made}
    assert any(message.delay for message in made)


def test_evenly_over_the_time_there_is() -> None:
    assert due_by_now(100, began=0.0, until=1.0) == 100
    assert due_by_now(100, began=9e9, until=9e9 + 10) <= 1


def test_a_share_is_sent_once_over_two_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second goes on where the first one's ledger ends; each try is on record."""
    monkeypatch.setenv("WORKQUEUE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    monkeypatch.setenv(FOLDER, str(tmp_path))
    path = tmp_path / "sender-0.ledger"
    for end in (4, 10):
        begun = last_sent(path)
        messages = (make_message(7, 0, n) for n in range(begun, end))
        Sender("q", Ledger(path)).send_all(messages, end - begun, until=0.0)
    found: dict[str, list[Entry]] = {}
    for entry in read(path):
        found.setdefault(entry.event, []).append(entry)
    for event in ("sent", "confirmed"):
        assert [entry.id for entry in found[event]] == [f"7-0-{n}" for n in range(10)]
    # The queue was missing at first: what was tried then was tried again.
    assert {entry.id for entry in found["tried"]} == {f"7-0-{n}" for n in range(10)}
    assert len(found["tried"]) > 10
    assert {entry.process for entry in found["sent"]} == {os.getpid()}
