"""What became dangerous or useless while it waited: suspects, expired messages, other times."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from msgspec.structs import replace

from workqueue import Broker, Job, Producer
from workqueue import worker as worker_module
from workqueue.errors import RetryLater
from workqueue.message import EXPIRES_AT, Delivery
from workqueue.queue import Queue
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.runner import Ending, Verdict
from workqueue.runners.thread import ThreadRunner
from workqueue.testing import eventually
from workqueue.transport import Retry
from workqueue.transports import memory
from workqueue.transports.copies import REASON
from workqueue.transports.memory import MemoryTransport
from workqueue.worker import Tally, Worker

ENOUGH = 20.0


@pytest.fixture
def queue() -> Queue:
    return Broker(MemoryTransport()).queue("jobs", retry=RetryPolicy(first=0))


@pytest.fixture
def deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages tell by a header how many workers were lost with them."""
    lend = memory.lend

    def lend_with_deaths(entry: Any, queue: str) -> Delivery:
        return replace(lend(entry, queue), deaths=entry.message.headers.get("deaths", 0))

    monkeypatch.setattr(memory, "lend", lend_with_deaths)


class Watch:
    """A handler that sees who runs beside whom. Innocents wait until two of them have met."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.met = threading.Event()
        self.running: set[str] = set()
        self.beside: dict[str, set[str]] = {}
        self.order: list[str] = []

    def __call__(self, job: Job[Any]) -> None:
        with self.lock:
            self.running.add(job.payload)
            for name in self.running:
                self.beside.setdefault(name, set()).update(self.running)
            self.order.append(job.payload)
            if len(self.running) > 1:
                self.met.set()
        if "innocent" in job.payload:
            assert self.met.wait(ENOUGH)
        time.sleep(0.02)
        with self.lock:
            self.running.remove(job.payload)


@pytest.mark.usefixtures("deaths")
def test_suspects_run_alone(queue: Queue) -> None:
    """Nothing runs beside one; the others still run beside each other."""
    producer = Producer(queue)
    for number in range(12):
        suspect = number % 3 == 1
        name = f"{'suspect' if suspect else 'innocent'} {number}"
        producer.send(name, headers={"deaths": 2 if suspect else 1})
    watch = Watch()
    tally = Worker(queue, watch, concurrency=4).run(until_empty=True)
    assert tally == Tally(done=12)
    for name, others in watch.beside.items():
        assert others == {name} or not any("suspect" in other for other in others)
    assert any(len(others) > 1 for others in watch.beside.values())


@pytest.mark.usefixtures("deaths")
def test_suspects_come_in_no_order(queue: Queue) -> None:
    """So that those who share a culprit's fate get their turn before it, sooner or later."""
    orders = set()
    for _ in range(8):
        producer = Producer(queue)
        for number in range(4):
            producer.send(number, headers={"deaths": 5})
        order: list[int] = []
        Worker(queue, lambda job, order=order: order.append(job.payload), concurrency=4).run(  # type: ignore[misc]
            max_messages=4
        )
        assert sorted(order) == [0, 1, 2, 3]
        orders.add(tuple(order))
    assert len(orders) > 1


@pytest.mark.usefixtures("deaths")
def test_a_suspect_that_lasts_keeps_nobody_waiting(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may only have been in two workers that were stopped, and take hours."""
    monkeypatch.setattr(worker_module, "PROBATION", 0.2)
    Producer(queue).send("long", headers={"deaths": 2})
    release, done = threading.Event(), []

    def handle(job: Job[Any]) -> None:
        if job.payload == "long":
            release.wait(ENOUGH)
        done.append(job.payload)

    worker = Worker(queue, handle, concurrency=2)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        eventually(lambda: queue.stats().in_flight == 1)
        Producer(queue).send("short")
        eventually(lambda: done == ["short"])
    finally:
        release.set()
        worker.stop()
        thread.join(ENOUGH)
    assert done == ["short", "long"]


@pytest.mark.usefixtures("deaths")
def test_suspects_that_wait_are_handed_back(queue: Queue) -> None:
    """A worker that is told to stop begins none of them."""
    producer = Producer(queue)
    for number in range(3):
        producer.send(number, headers={"deaths": 3})
    started, release = threading.Event(), threading.Event()

    def handle(job: Job[Any]) -> None:
        started.set()
        release.wait(ENOUGH)

    worker = Worker(queue, handle, concurrency=3)
    tallies: list[Tally] = []
    thread = threading.Thread(target=lambda: tallies.append(worker.run()))
    thread.start()
    assert started.wait(ENOUGH)
    eventually(lambda: len(worker.shift.suspects if worker.shift else ()) == 2)
    worker.stop()
    eventually(lambda: queue.stats().ready == 2)
    release.set()
    thread.join(ENOUGH)
    assert tallies == [Tally(done=1, handed_back=2)]


@pytest.mark.usefixtures("deaths")
def test_too_many_deaths(queue: Queue) -> None:
    """Set aside without being tried, with the reason; but whoever works on dead letters gets it."""
    Producer(queue).send("x", headers={"deaths": 21})
    tally = Worker(queue, print).run(until_empty=True)
    assert tally == Tally(dead=1)
    [letter] = queue.transport.peek("jobs.dead", 5)
    assert letter.message.headers[REASON] == "21 workers were lost while they had it"
    seen: list[Any] = []
    dead = queue.broker.queue("jobs.dead")
    Worker(dead, lambda job: seen.append(job.payload)).run(until_empty=True)
    assert seen == ["x"]


def test_what_has_expired_is_not_run(queue: Queue) -> None:
    """By the time in its header, whatever the broker has made of it."""
    producer = Producer(queue)
    producer.send("old", headers={EXPIRES_AT: time.time() - 1})
    producer.send("good", headers={EXPIRES_AT: time.time() + 1000})
    producer.send("strange", headers={EXPIRES_AT: "soon"})
    seen: list[Any] = []
    tally = Worker(queue, lambda job: seen.append(job.payload)).run(until_empty=True)
    assert tally == Tally(done=2, dead=1)
    assert seen == ["good", "strange"]
    assert queue.transport.peek("jobs.dead", 5)[0].message.headers[REASON] == "expired"


def test_another_time_is_no_failure(queue: Queue) -> None:
    """Asked for as often as a handler likes; each time at the same attempt."""
    Producer(queue).send("x")
    attempts: list[int] = []

    def handle(job: Job[Any]) -> None:
        attempts.append(job.attempt)
        if len(attempts) < 8:
            raise RetryLater(0.01)

    tally = Worker(queue, handle).run(until_empty=True)
    assert tally == Tally(done=1, retried=7)
    assert attempts == [1] * 8


def test_until_empty_waits_for_its_own_retries(queue: Queue) -> None:
    """A queue is not empty while something that this worker has put off is to come back."""
    Producer(queue).send("x")

    def handle(job: Job[Any]) -> None:
        if job.attempt == 1:
            raise LookupError("not yet")

    policy = RetryPolicy(first=2.5, longest=2.5)
    assert Worker(queue, handle, retry=policy).run(until_empty=True) == Tally(done=1, retried=1)


def test_what_a_task_asks_for_goes_before_what_the_worker_says(queue: Queue) -> None:
    """By the message's type."""

    producer = Producer(queue)
    producer.send("x", type="fragile")
    producer.send("y", type="other")
    runner = ThreadRunner(lambda job: 1 / 0)
    runner.options = {"fragile": TaskOptions(max_attempts=1)}
    policy = RetryPolicy(max_attempts=3, first=0)
    tally = Worker(queue, runner=runner, retry=policy).run(until_empty=True)
    assert tally == Tally(retried=2, dead=2)


@pytest.mark.parametrize("attempt", [1, 5, 50])
def test_again_however_often_that_was(attempt: int) -> None:
    """A command's EX_TEMPFAIL: on record as a failure, but never the last one."""
    from workqueue.message import Message

    delivery = Delivery(message=Message(body=b""), queue="jobs", attempt=attempt)
    judged = worker_module.judge(Ending(delivery, Verdict.AGAIN, "busy"), RetryPolicy())
    assert isinstance(judged, Retry)
    assert judged.failed
    assert 0 < judged.delay <= 600
