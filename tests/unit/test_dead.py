"""Dead letters: looked at, brought back, dropped; over a transport that may be cut at any call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec.structs import replace

from workqueue import Broker, Job, Message, Queue, Reject, RetryPolicy, Worker
from workqueue.errors import NotSent, QueueFull, WorkqueueError
from workqueue.testing import FaultyTransport
from workqueue.testing.faulty import Fault
from workqueue.transports.copies import DEAD_AT, ORIGIN, REASON, this_worker
from workqueue.transports.memory import MemoryPublisher, MemoryTransport

FUTURE = 4e9
"""Seconds since 1970: told by a machine whose clock is wrong."""


@pytest.fixture
def queue() -> Iterator[Queue]:
    with Broker(MemoryTransport()) as broker:
        queue = broker.queue("jobs", retry=RetryPolicy(max_attempts=1))
        queue.declare()
        yield queue


def bury(queue: Queue, *ids: str, dead_at: float = 1.0, reason: str = "no good") -> None:
    headers = {DEAD_AT: dead_at, REASON: reason, ORIGIN: queue.name}
    messages = [Message(body=name.encode(), id=name, headers=headers) for name in ids]
    publisher = queue.transport.publisher()
    publisher.publish(queue.dead.name, messages, 5.0)
    publisher.close()


def refuse(job: Job[Any]) -> None:
    raise Reject("no good")


def found(queue: Queue, **which: Any) -> list[str | None]:
    return [letter.id for letter in queue.dead.letters(**which)]


def test_what_is_known_of_an_end(queue: Queue) -> None:
    """When and where; and nothing of it travels when the letter is sent again."""
    queue.producer.send("x", id="a", headers={"tenant": 7})
    Worker(queue, refuse).run(until_empty=True)
    [letter] = queue.dead.letters()
    assert (letter.id, letter.queue, letter.reason) == ("a", "jobs", "no good")
    assert letter.worker == this_worker()
    assert letter.dead_at is not None
    assert letter.message.sent_at is not None
    assert letter.dead_at >= letter.message.sent_at
    assert letter.message.headers == {"tenant": 7}
    assert queue.dead.requeue() == ["a"]
    [back] = queue.transport.peek("jobs", 10)
    assert dict(back.message.headers) == {"tenant": 7}


def test_an_id_may_have_died_twice(queue: Queue) -> None:
    """A message may run twice, and die twice: neither letter hides another."""
    bury(queue, "a", "a", "b")
    assert found(queue, ids=["a", "b"]) == ["a", "a", "b"]
    assert found(queue, ids=["b"]) == ["b"]
    assert queue.dead.drop(ids=["a"]) == ["a", "a"]
    assert found(queue) == ["b"]


def test_a_wrong_clock_hides_nothing(queue: Queue) -> None:
    bury(queue, "a", dead_at=FUTURE)
    assert found(queue) == ["a"]
    assert queue.dead.requeue() == ["a"]
    assert queue.stats().ready == 1
    bury(queue, "b", dead_at=FUTURE)
    assert queue.dead.drop() == ["b"]


def test_what_dies_again_meanwhile_is_for_another_time(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else bringing back what dies at once would never end."""
    ids = [f"m{number}" for number in range(300)]
    bury(queue, *ids)
    send = queue.dead.send

    def send_and_fail(dead: Any, publisher: Any, name: str, letters: Any) -> Any:
        failures = send(publisher, name, letters)
        Worker(queue, refuse, concurrency=50).run(max_messages=len(letters))
        return failures

    monkeypatch.setattr(type(queue.dead), "send", send_and_fail)
    assert sorted(queue.dead.requeue(), key=str) == sorted(ids)
    assert queue.stats().dead == 300


def test_a_queue_without_dead_letters_of_its_own(queue: Queue) -> None:
    """As a dead-letter queue is one."""
    dead = queue.broker.queue("jobs.dead")
    assert found(dead) == []
    assert dead.dead.requeue() == []
    assert dead.dead.drop() == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["publisher", "publish", "consumer", "receive", "settle"])
@pytest.mark.parametrize("nth", [1, 2])
def test_never_fewer_than_before(queue: Queue, call: str, nth: int, after: bool) -> None:
    """Bringing back is cut at each call in turn: each letter is here, or there, or both."""
    ids = [f"m{number}" for number in range(250)]
    bury(queue, *ids)
    faulty = FaultyTransport(queue.transport, Fault(call, nth, after))
    try:
        Broker(faulty).queue("jobs").dead.requeue()
    except WorkqueueError:
        assert faulty.used[call] >= nth
    there = [delivery.message.id for delivery in queue.transport.peek("jobs", 1000)]
    here = found(queue)
    assert set(there) | set(here) == set(ids)
    queue.dead.requeue()
    assert queue.stats().dead == 0
    assert {d.message.id for d in queue.transport.peek("jobs", 1000)} == set(ids)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("delivery_limit", "workers were lost while they had it, more often than the queue allows"),
        ("expired", "expired"),
        ("maxlen", "the queue was full"),
        ("rejected", "rejected by another client"),
        ("something new", "something new"),
    ],
)
def test_what_the_broker_set_aside(queue: Queue, reason: str, told: str) -> None:
    """Shown as ours are; sent again without the broker's headers, which would count as a cycle."""
    died_at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    death = {"queue": "jobs", "reason": reason, "count": 1, "time": died_at}
    headers = {"x-death": [death], "x-first-death-queue": "jobs", "tenant": 7}
    publisher = queue.transport.publisher()
    publisher.publish("jobs.dead", [Message(body=b"x", id="a", headers=headers)], 5.0)
    publisher.close()
    [letter] = queue.dead.letters(error=told)
    assert (letter.queue, letter.reason, letter.worker) == ("jobs", told, None)
    assert letter.dead_at == died_at.timestamp()
    assert letter.message.headers == {"tenant": 7}


def test_a_letter_stays_unless_its_driver_accounts_for_it(queue: Queue) -> None:
    """A driver that names equal copies of what was refused does not make a letter vanish."""

    class NamesCopies(MemoryPublisher):
        def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
            failures = [(replace(message), QueueFull("full")) for message in messages]
            raise NotSent("full", failures=failures)

    bury(queue, "a", "b")
    store = queue.transport.store  # type: ignore[attr-defined]
    queue.transport.publisher = lambda: NamesCopies(store)  # type: ignore[method-assign]
    with pytest.raises(NotSent, match="at fault"):
        queue.dead.requeue()
    assert found(queue) == ["a", "b"]
