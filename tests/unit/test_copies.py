"""The copies that a Retry or a Reject makes: what they keep, what they add, what they leave out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.dead import as_new
from workqueue.message import EXPIRES_AT, Delivery, Message
from workqueue.transports.copies import (
    DEAD_AT,
    DEATHS,
    DIRECT_REPLY_TO,
    ERROR,
    FAILURES,
    ORIGIN,
    REASON,
    WORKER,
    as_lent,
    attempt_of,
    bare_copy,
    dead_copy,
    retry_copy,
    survivor_copy,
    without_brokers_own,
)

MESSAGE = Message(
    body=b"x",
    id="the-id",
    content_type="text/plain",
    content_encoding="utf-8",
    type="t",
    headers={"tenant": "ada", "deep": {"n": [1]}},
    priority=7,
    correlation_id="c",
    reply_to="r",
    app_id="a",
    sent_at=1.0,
)


def lent(attempt: int = 1, message: Message = MESSAGE) -> Delivery:
    return Delivery(message=message, queue="jobs", attempt=attempt)


def properties(message: Message) -> dict[str, Any]:
    names = ["body", "id", "content_type", "content_encoding", "type", "priority"]
    names += ["correlation_id", "reply_to", "app_id", "sent_at"]
    return {name: getattr(message, name) for name in names}


def test_a_retry_is_the_message_with_one_more_failure() -> None:
    """All else is as it was, and the original is not touched."""
    copy = retry_copy(lent(attempt=3))
    assert properties(copy) == properties(MESSAGE)
    assert copy.headers == {**MESSAGE.headers, FAILURES: 3}
    assert FAILURES not in MESSAGE.headers


def test_attempts_go_up_by_one() -> None:
    """Copy of copy of copy."""
    message = MESSAGE
    for attempt in range(1, 6):
        assert attempt_of(message.headers) == attempt
        message = retry_copy(lent(attempt, message))


@pytest.mark.parametrize("written", [0, -1, 10**6, 2**70, "3", 2.0, None, [1], b"1", {"n": 1}])
def test_nonsense_counts_as_no_failure(written: object) -> None:
    """Headers come from anybody."""
    assert attempt_of({FAILURES: written}) == 1


def test_a_dead_letter_says_why_when_and_where() -> None:
    """Beside the message as it was, and its attempts."""
    copy = dead_copy(lent(attempt=5), "no such user", "Traceback…", at=1700.5)
    assert properties(copy) == properties(MESSAGE)
    assert copy.headers == {
        **MESSAGE.headers,
        FAILURES: 5,
        REASON: "no such user",
        ERROR: "Traceback…",
        DEAD_AT: 1700.5,
        ORIGIN: "jobs",
    }


def test_a_dead_letter_without_an_error_has_no_old_one() -> None:
    """One that was sent again and died otherwise does not show its first death."""
    message = Message(body=b"", headers={ERROR: "old", REASON: "old", ORIGIN: "old"})
    headers = dead_copy(lent(message=message), "new", "", at=1.0).headers
    assert ERROR not in headers
    assert (headers[REASON], headers[ORIGIN]) == ("new", "jobs")


def test_long_reasons_are_cut() -> None:
    """The beginning of a reason and the end of an error; headers must fit a frame."""
    copy = dead_copy(lent(), "r" * 5_000 + "!", "e" * 50_000 + "!", at=1.0)
    assert len(copy.headers[REASON]) == 1_000
    assert len(copy.headers[ERROR]) == 8_000
    assert copy.headers[ERROR].endswith("!")


@pytest.mark.parametrize(
    "name",
    [
        "x-death",
        "x-delivery-count",
        "x-acquired-count",
        "x-first-death-queue",
        "x-first-death-reason",
        "x-first-death-exchange",
        "x-last-death-queue",
    ],
)
def test_what_the_broker_wrote_is_left_out(name: str) -> None:
    """In a copy it would be stale, or taken for a dead-letter cycle and dropped."""
    message = Message(body=b"", headers={name: "stale", "x-tenant": "ada"})
    for copy in (retry_copy(lent(message=message)), dead_copy(lent(message=message), "r", "", 1.0)):
        assert name not in copy.headers
        assert copy.headers["x-tenant"] == "ada"


def test_a_nameless_message_is_named() -> None:
    """Once, in its copy."""
    nameless = Message(body=b"")
    assert retry_copy(lent(message=nameless)).id
    assert dead_copy(lent(message=nameless), "r", "", 1.0).id


def test_a_bare_copy_keeps_our_own_headers() -> None:
    """For when the foreign ones do not fit: the death and its reason are still there."""
    dead = dead_copy(lent(), "why", "", at=1.0)
    assert set(bare_copy(dead).headers) == {FAILURES, REASON, DEAD_AT, ORIGIN}
    assert properties(bare_copy(dead)) == properties(MESSAGE)


@given(headers=st.dictionaries(st.text(max_size=20), st.integers(), max_size=5))
def test_all_other_headers_stay(headers: dict[str, int]) -> None:
    """Whatever they are called."""
    kept = without_brokers_own({**headers, "x-death": 1})
    assert kept == {name: value for name, value in headers.items() if name in kept}
    assert "x-death" not in kept
    assert kept is not headers


# -- what was brought back -------------------------------------------------------------------------


def dead(queue: str = "jobs", **more: Any) -> Message:
    """A dead letter of that queue, after five attempts."""
    message = Message(body=b"x", id="the-id", headers={"tenant": "ada", EXPIRES_AT: 1.0, **more})
    delivery = Delivery(message=message, queue=queue, attempt=5)
    return dead_copy(delivery, "why", "Traceback", at=1700.5, worker="host:1")


def broker_dead(*queues: str, **more: Any) -> Message:
    """A message that RabbitMQ set aside from these queues, the last one first."""
    deaths = [{"queue": queue, "reason": "rejected", "count": 1} for queue in queues]
    return Message(body=b"x", id="the-id", headers={"tenant": "ada", "x-death": deaths, **more})


@pytest.mark.parametrize("queue", ["jobs", "others"])
@pytest.mark.parametrize(
    "message",
    [
        pytest.param(dead(), id="our dead letter"),
        pytest.param(dead(DEATHS=7), id="after deaths of workers"),
        pytest.param(broker_dead("jobs", **{FAILURES: 3, DEATHS: 21}), id="the broker's"),
        pytest.param(broker_dead("jobs.dead", "jobs", **{FAILURES: 3}), id="by a policy"),
        pytest.param(broker_dead("jobs.dead", **dict(dead().headers)), id="ours, by a policy"),
        pytest.param(Message(body=b"x", headers={REASON: 7, FAILURES: 3}), id="an odd reason"),
    ],
)
def test_what_was_brought_back_has_no_past(message: Message, queue: str) -> None:
    """To whichever queue, and whoever set it aside: its attempts begin anew, and it is not late."""
    lent_again = as_lent(message, queue)
    assert attempt_of(lent_again.headers) == 1
    ours = {FAILURES, DEATHS, REASON, ERROR, DEAD_AT, ORIGIN, WORKER, EXPIRES_AT}
    assert not ours & lent_again.headers.keys()
    assert lent_again.headers.get("tenant") == message.headers.get("tenant")
    again = retry_copy(Delivery(message=lent_again, queue=queue, attempt=1))
    assert as_lent(again, queue) is again
    assert attempt_of(again.headers) == 2


@pytest.mark.parametrize(
    ("message", "queue"),
    [
        pytest.param(dead(), "jobs.dead", id="where it lies"),
        pytest.param(dead(), "collected.dead", id="where somebody collects them"),
        pytest.param(dead("jobs.dead"), "jobs.dead.dead", id="dead among the dead"),
        pytest.param(broker_dead("jobs"), "jobs.dead", id="the broker's"),
        pytest.param(broker_dead("other", **{FAILURES: 2}), "jobs.dead", id="of another queue"),
        pytest.param(retry_copy(lent(attempt=3)), "jobs", id="a retry"),
        pytest.param(survivor_copy(lent()), "jobs", id="a survivor"),
        pytest.param(MESSAGE, "jobs", id="a message"),
        pytest.param(Message(body=b"x", headers={"x-death": "nonsense"}), "jobs", id="nonsense"),
    ],
)
def test_what_is_where_it_belongs_keeps_its_past(message: Message, queue: str) -> None:
    """And costs nothing."""
    assert as_lent(message, queue) is message


def test_from_the_dead_of_the_dead() -> None:
    """A dead-letter queue is a queue like any other: what died there and is back begins anew."""
    assert attempt_of(as_lent(dead("jobs.dead"), "jobs.dead").headers) == 1


def test_an_address_that_nobody_can_answer_to_is_left_out() -> None:
    """RabbitMQ would refuse the copy for it; the address of a reply queue stays."""
    for address, kept in (
        (DIRECT_REPLY_TO, None),
        (DIRECT_REPLY_TO + ".g1", DIRECT_REPLY_TO + ".g1"),
    ):
        message = Message(body=b"", reply_to=address)
        assert retry_copy(lent(message=message)).reply_to == kept
        assert dead_copy(lent(message=message), "r", "", 1.0).reply_to == kept
        assert survivor_copy(lent(message=message)).reply_to == kept
        assert as_new(message).reply_to == kept
