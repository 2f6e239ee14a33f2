"""What travels: values that do not change, and ids that sort by time."""

from __future__ import annotations

import threading
import time
import uuid

import pytest

from workqueue.message import DEFAULT_PRIORITY, Delivery, Lost, Message, new_id, new_ids


def test_ids_are_uuids_of_version_seven() -> None:
    """As RFC 9562 has them, in their canonical form."""
    for _ in range(1_000):
        text = new_id()
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)


def test_ids_tell_their_time() -> None:
    """The first 48 bits are milliseconds since 1970."""
    before = time.time_ns() // 1_000_000
    milliseconds = uuid.UUID(new_id()).int >> 80
    assert before <= milliseconds <= time.time_ns() // 1_000_000


def test_ids_sort_by_time() -> None:
    """One made in a later millisecond sorts behind, as text."""
    earlier = new_id()
    made = time.time_ns() // 1_000_000
    while time.time_ns() // 1_000_000 <= made:
        pass
    assert earlier < new_id()


def test_ids_are_unique() -> None:
    """Also those that four threads make at once."""
    made: list[list[str]] = [[] for _ in range(4)]

    def make(mine: list[str]) -> None:
        mine += [new_id() for _ in range(5_000)]

    threads = [threading.Thread(target=make, args=(mine,)) for mine in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = [id_ for mine in made for id_ in mine]
    assert len(everything) == len(set(everything)) == 20_000


def test_ids_of_one_series_are_in_order() -> None:
    """All of the millisecond in which it began, all valid, and none like another series'."""
    before = time.time_ns() // 1_000_000
    series, other = new_ids(), new_ids()
    made = [next(series) for _ in range(3_000)]
    after = time.time_ns() // 1_000_000
    assert made == sorted(set(made))
    parsed = [uuid.UUID(text) for text in made]
    assert {(one.version, one.variant) for one in parsed} == {(7, uuid.RFC_4122)}
    assert all(before <= one.int >> 80 <= after for one in parsed)
    assert len({one.int >> 80 for one in parsed}) == 1
    assert not {text[:23] for text in made} & {next(other)[:23]}


def test_messages_do_not_change() -> None:
    """Nobody alters what another still holds."""
    message = Message(body=b"x")
    with pytest.raises(AttributeError):
        message.body = b"y"  # type: ignore[misc]
    assert (message.priority, message.headers, message.id) == (DEFAULT_PRIORITY, {}, None)
    assert Message(body=b"x").headers is not message.headers


def test_messages_compare_by_what_they_say() -> None:
    """Two that say the same are equal."""
    assert Message(body=b"x", id="1") == Message(body=b"x", id="1")
    assert Message(body=b"x", id="1") != Message(body=b"x", id="2")


def test_deliveries_are_each_their_own() -> None:
    """The same message lent twice is two deliveries: settling one is not settling the other."""
    message = Message(body=b"x", headers={"not": "hashable"})
    first, second = (Delivery(message=message, queue="q") for _ in range(2))
    assert first != second
    assert len({first, second}) == 2


def test_lost_is_false_until_it_is_told() -> None:
    """It reads as a word in an `if`, and its wait ends when it turns true."""
    lost = Lost()
    assert not lost
    assert lost.wait(0.01) is False
    threading.Timer(0.05, lost.set).start()
    assert lost.wait(10) is True
    assert lost
