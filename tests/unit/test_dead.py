"""Dead letters: looked at, brought back, dropped; over a transport that may be cut at any call."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from msgspec.structs import replace

from workqueue import Broker, Job, Message, Queue, Reject, RetryPolicy, Worker, connect, dead
from workqueue.errors import LookCutShort, NotSent, QueueFull, WorkqueueError
from workqueue.testing import FaultyTransport
from workqueue.testing.faulty import Fault
from workqueue.transport import Transport
from workqueue.transports.copies import DEAD_AT, FAILURES, ORIGIN, REASON, this_worker
from workqueue.transports.memory import MemoryPublisher, MemoryTransport

FUTURE = 4e9
"""Seconds since 1970: told by a machine whose clock is wrong."""


@pytest.fixture
def queue() -> Iterator[Queue]:
    with Broker(MemoryTransport()) as broker:
        queue = broker.queue("jobs", retry=RetryPolicy(max_attempts=1))
        queue.declare()
        yield queue


def only(transport: Any, most: int, *counts: int) -> Any:
    """The transport with consumers that fall silent after `most`, and counts that were made up."""
    told = iter(counts)
    stats, open_consumer = transport.stats, transport.consumer

    def count(name: str) -> Any:
        return dataclasses.replace(stats(name), ready=next(told))

    def consumer(name: str, prefetch: int) -> Any:
        opened = open_consumer(name, prefetch)
        receive, came = opened.receive, 0

        def receive_some(limit: int, timeout: float) -> Any:
            nonlocal came
            deliveries = receive(min(limit, most - came), min(timeout, 0.01))
            came += len(deliveries)
            return deliveries

        opened.receive = receive_some
        return opened

    transport.stats, transport.consumer = count, consumer
    return transport


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

    def send_and_fail(letters_of: Any, publisher: Any, name: str, letters: Any) -> Any:
        failures = send(publisher, name, letters)
        Worker(queue, refuse, concurrency=50).run(max_messages=len(letters))
        return failures

    monkeypatch.setattr(type(queue.dead), "send", send_and_fail)
    assert sorted(queue.dead.requeue(), key=str) == sorted(ids)
    assert queue.stats().dead == 300


@pytest.mark.parametrize("call", ["letters", "each_requeued", "each_dropped"])
def test_a_look_that_ends_too_soon_says_so(
    queue: Queue, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After what it saw: a broker that falls silent has not said that there is no more."""
    monkeypatch.setattr(dead, "QUIET", 0.02)
    monkeypatch.setattr(dead, "SLOW", 0.1)
    bury(queue, *(f"m{number}" for number in range(10)))
    only(queue.transport, 4, 10, *[6] * 1000)
    seen: list[Any] = []
    with pytest.raises(LookCutShort, match="4 messages of about 10") as cut:
        seen.extend(getattr(queue.dead, call)())
    assert (len(seen), cut.value.seen, cut.value.there) == (4, 4, 10)


def test_what_others_took_meanwhile_is_not_missed(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There were ten, and four came: nothing is left, so four is all."""
    monkeypatch.setattr(dead, "QUIET", 0.02)
    bury(queue, *(f"m{number}" for number in range(4)))
    only(queue.transport, 4, 10, 0)
    assert len(found(queue)) == 4


def test_letters_are_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that were looked at and left, neither by us nor by the consumer that holds them."""
    monkeypatch.setattr(dead, "BATCH", 50)
    alive: WeakSet[Any] = WeakSet()
    with connect(f"sqlite:///{tmp_path}/jobs.db") as broker:
        queue = broker.queue("jobs")
        queue.declare()
        bury(queue, *(f"m{number}" for number in range(1000)))
        open_consumer = broker.transport.consumer

        def consumer(name: str, prefetch: int) -> Any:
            opened = open_consumer(name, prefetch)
            receive = opened.receive
            opened.receive = lambda *given: [alive.add(d) or d for d in receive(*given)]  # type: ignore[method-assign,func-returns-value]
            return opened

        monkeypatch.setattr(broker.transport, "consumer", consumer)
        most = 0
        for number, letter in enumerate(queue.dead.letters()):
            assert letter.id == f"m{number}"
            most = max(most, len(alive))
        assert number == 999
        assert most <= 150
        assert queue.dead.drop(ids=["m999"]) == ["m999"]
        assert most <= 150
        assert queue.stats().dead == 999


def test_a_queue_without_dead_letters_of_its_own(queue: Queue) -> None:
    """As a dead-letter queue is one."""
    letters = queue.broker.queue("jobs.dead")
    assert found(letters) == []
    assert letters.dead.requeue() == []
    assert letters.dead.drop() == []


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", ["publisher", "publish", "consumer", "receive", "settle"])
@pytest.mark.parametrize("nth", [1, 2])
def test_never_fewer_than_before(queue: Queue, call: str, nth: int, after: bool) -> None:
    """Bringing back is cut at each call in turn: each letter is here, or there, or both."""
    ids = [f"m{number}" for number in range(2 * dead.BATCH - 50)]
    bury(queue, *ids)
    faulty = FaultyTransport(queue.transport, Fault(call, nth, after))
    try:
        Broker(faulty).queue("jobs").dead.requeue()
    except WorkqueueError:
        assert faulty.used[call] >= nth
    there = [delivery.message.id for delivery in queue.transport.peek("jobs", 2000)]
    here = found(queue)
    assert set(there) | set(here) == set(ids)
    queue.dead.requeue()
    assert queue.stats().dead == 0
    assert {d.message.id for d in queue.transport.peek("jobs", 2000)} == set(ids)


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


@pytest.mark.parametrize("scheme", ["memory", "sqlite"])
def test_what_somebody_moved_back_begins_anew(scheme: str, tmp_path: Path) -> None:
    """Without our help: read from the dead letters as it lies there, and sent to the queue."""
    url = f"sqlite:///{tmp_path}/jobs.db" if scheme == "sqlite" else "memory://"
    attempts: list[int] = []

    def fail(job: Job[Any]) -> None:
        attempts.append(job.attempt)
        raise ValueError(f"attempt {job.attempt} of {len(attempts)}")

    with connect(url) as broker:
        queue = broker.queue("jobs", retry=RetryPolicy(max_attempts=2, first=0.0))
        queue.declare()
        queue.producer.send("x", headers={"tenant": 7}, ttl=3_600)
        for runs in (2, 4):
            Worker(queue, fail).run(until_empty=True)
            assert attempts == [1, 2] * (runs // 2)
            [letter] = queue.dead.letters()
            assert (letter.attempt, letter.reason) == (2, f"ValueError: attempt 2 of {runs}")
            move(broker.transport, "jobs.dead", "jobs")
        [back] = broker.transport.peek("jobs", 1)
        assert (back.attempt, dict(back.message.headers)) == (1, {"tenant": 7})


def move(transport: Transport, source: str, target: str) -> None:
    moved = [delivery.message for delivery in transport.peek(source, 100)]
    with closing(transport.publisher()) as publisher:
        publisher.publish(target, moved, 5.0)
    transport.purge(source)


def test_the_broker_has_the_last_word(queue: Queue) -> None:
    """A letter that was moved back and then set aside by RabbitMQ has both records: ours is of the
    life before."""
    bury(queue, "a", reason="the old one")
    [old] = queue.transport.peek("jobs.dead", 1)
    queue.transport.purge("jobs.dead")
    death = {"queue": "jobs", "reason": "expired", "time": datetime(2026, 1, 1, tzinfo=UTC)}
    headers = {**old.message.headers, "x-death": [death], FAILURES: 5}
    with closing(queue.transport.publisher()) as publisher:
        publisher.publish("jobs.dead", [Message(body=b"x", id="a", headers=headers)], 5.0)
    [letter] = queue.dead.letters()
    assert (letter.reason, letter.attempt, letter.queue) == ("expired", 1, "jobs")
    assert letter.dead_at == datetime(2026, 1, 1, tzinfo=UTC).timestamp()


def test_what_happened_among_dead_letters_is_no_end(queue: Queue) -> None:
    """A policy moved it from one dead-letter queue to another: why it died is what we wrote."""
    bury(queue, "a", reason="no such user")
    [old] = queue.transport.peek("jobs.dead", 1)
    death = {"queue": "elsewhere.dead", "reason": "expired"}
    moved = replace(old.message, headers={**old.message.headers, "x-death": [death]})
    queue.transport.purge("jobs.dead")
    with closing(queue.transport.publisher()) as publisher:
        publisher.publish("jobs.dead", [moved], 5.0)
    [letter] = queue.dead.letters()
    assert letter.reason == "no such user"


def test_what_expired_while_its_queue_was_migrated(queue: Queue) -> None:
    """RabbitMQ names the queue that held it meanwhile; it goes back to the one it was sent to."""
    died_at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    death = {"queue": "jobs.moving", "reason": "expired", "count": 1, "time": died_at}
    publisher = queue.transport.publisher()
    publisher.publish("jobs.dead", [Message(body=b"x", id="a", headers={"x-death": [death]})], 5.0)
    publisher.close()
    [letter] = queue.dead.letters()
    assert (letter.queue, letter.reason) == ("jobs", "expired")
    assert queue.dead.requeue() == ["a"]


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
