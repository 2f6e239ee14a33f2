"""What a worker makes of a broker that does not take the outcomes of its tasks."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from workqueue import Broker, Job, Producer, Reject, Worker
from workqueue import worker as workers
from workqueue.deadline import left
from workqueue.health import state_of
from workqueue.message import Delivery, Message
from workqueue.progress import Progress
from workqueue.queue import Queue
from workqueue.testing import eventually
from workqueue.transport import Outcome
from workqueue.transport import Reject as Rejected
from workqueue.transports.memory import MemoryConsumer, MemoryTransport
from workqueue.worker import Shift


class Owing(MemoryConsumer):
    """Sets no message aside until `pace` seconds after the one before, the first never if that is
    None; meanwhile it owes that."""

    pace: float | None = None
    at_the_end = 0

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.owed = [*self.owes(), *(one for one in outcomes if isinstance(one, Rejected))]
        super().settle([one for one in outcomes if not isinstance(one, Rejected)])

    def owes(self) -> list[Outcome]:
        return getattr(self, "owed", [])

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        paid_at = getattr(self, "paid_at", 0.0)
        if self.pace is not None and self.owes() and time.monotonic() - paid_at >= self.pace:
            self.paid_at = time.monotonic()
            super().settle([self.owed.pop(0)])
        return super().receive(limit, timeout)

    def close(self) -> None:
        """As drivers do, it places what it still can; here, `at_the_end` of them."""
        for one in self.owes()[: self.at_the_end]:
            super().settle([one])
            self.owed.remove(one)
        super().close()

    @property
    def unsettled(self) -> int:
        return len(self.owes()) if self.closed else super().unsettled

    @property
    def hindered(self) -> str | None:
        return "full" if self.owes() else None


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    transport = MemoryTransport()
    monkeypatch.setattr(transport, "consumer", lambda *asked: Owing(transport.store, *asked))
    return Broker(transport).queue("jobs")


def refuse(_job: Job) -> None:
    raise Reject("no")


def started(worker: Worker, until_empty: bool = False) -> threading.Thread:
    thread = threading.Thread(target=lambda: worker.run(until_empty=until_empty))
    thread.start()
    return thread


def test_not_ready_while_nothing_can_be_taken(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ready again afterwards."""
    Producer(queue).send("x")
    worker = Worker(queue, refuse)
    thread = started(worker)
    eventually(lambda: worker.shift and worker.shift.tally.dead and not state_of(worker)["ready"])
    monkeypatch.setattr(Owing, "pace", 0.0)
    eventually(lambda: state_of(worker)["ready"])
    worker.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("end", ["stop", "now", "until empty"])
def test_it_ends_in_time_without_them(
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    end: str,
) -> None:
    monkeypatch.setattr(workers, "FINISHING_TIME", 0.3)
    monkeypatch.setattr(workers, "UNPLACED_TIME", 0.3)
    Producer(queue).send("x")
    worker = Worker(queue, refuse)
    thread = started(worker, until_empty=end == "until empty")
    eventually(lambda: worker.shift and worker.shift.tally.dead)
    if end != "until empty":
        worker.stop(now=end == "now")
    thread.join(20)
    assert not thread.is_alive()
    assert worker.shift is not None
    assert worker.shift.tally.unplaced == 1
    given_up = "the copies of 1 tasks cannot be placed: full" in caplog.text
    assert given_up is (end == "until empty")


def test_until_empty_waits_for_a_retry_that_the_consumer_keeps(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the broker cannot keep it until its time: nothing is stuck before that has come."""
    monkeypatch.setattr(workers, "UNPLACED_TIME", 0.2)
    ripe_at = time.monotonic() + 1.5

    def due_in(consumer: Owing) -> float | None:
        return max(0.0, ripe_at - time.monotonic()) or None

    monkeypatch.setattr(Owing, "due_in", property(due_in), raising=False)
    Producer(queue).send("x")
    tally = Worker(queue, refuse).run(until_empty=True)
    assert time.monotonic() > ripe_at + 0.2
    assert tally.unplaced == 1  # in this test it cannot be placed then, either
    assert "giving up" in caplog.text


@pytest.mark.parametrize(
    ("stop", "unplaced"),
    [
        pytest.param(lambda worker: worker.stop(), range(1), id="it waits for all"),
        pytest.param(lambda worker: worker.stop(now=True), range(1, 30), id="but not if pressed"),
    ],
)
def test_it_waits_as_long_as_they_become_fewer(
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[Worker], None],
    unplaced: range,
) -> None:
    monkeypatch.setattr(workers, "FINISHING_TIME", 1.0)
    for number in range(30):
        Producer(queue).send(str(number))
    worker = Worker(queue, refuse, prefetch=0)
    thread = started(worker)
    eventually(lambda: worker.shift and worker.shift.tally.dead == 30)
    monkeypatch.setattr(Owing, "pace", 0.1)
    stop(worker)
    thread.join(30)
    assert not thread.is_alive()
    assert worker.shift is not None
    assert worker.shift.tally.unplaced in unplaced


def test_a_broker_that_takes_long_keeps_its_time_to_answer(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose grace is over, and whose copies still become fewer, gives each call time: one
    that had none would lose the consumer, and the tasks would run again."""
    monkeypatch.setattr(workers, "FINISHING_TIME", 0.5)
    times: list[float] = []
    plain = Owing.receive

    def receive(self: Owing, limit: int, timeout: float) -> list[Delivery]:
        if worker.shift and worker.shift.draining_since is not None:
            times.append(left())
        return plain(self, limit, timeout)

    monkeypatch.setattr(Owing, "receive", receive)
    for number in range(10):
        Producer(queue).send(str(number))
    worker = Worker(queue, refuse, prefetch=0, grace=0.1)
    thread = started(worker)
    eventually(lambda: worker.shift and worker.shift.tally.dead == 10)
    monkeypatch.setattr(Owing, "pace", 0.2)
    worker.stop()
    thread.join(30)
    assert worker.shift is not None
    assert worker.shift.tally.unplaced == 0
    assert min(times[1:]) == math.inf  # the first turn began before


@pytest.mark.parametrize("stops", [0, 1, 2])
@pytest.mark.parametrize("runs", [True, False])
def test_an_answer_has_its_time(queue: Queue, stops: int, runs: bool) -> None:
    """However long ago the worker was told to stop; and no longer than it may go on."""
    shift = Shift(Worker(queue, refuse, grace=10.0), until_empty=False, max_messages=None)
    shift.stops = stops
    if runs:
        shift.running[Delivery(message=Message(body=b""), queue="jobs")] = 0.0
    assert shift.time_left() == (10.0 + workers.FINISHING_TIME if stops else math.inf)
    if stops:
        shift.draining_since = time.monotonic() - 1_000.0
        bounded = runs or stops > 1
        assert shift.time_left() == (workers.FINISHING_TIME if bounded else math.inf)


def test_what_is_owed_when_the_consumer_is_lost_is_counted(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the worker ends: nobody else will say that those tasks run again."""
    monkeypatch.setattr(workers, "FINISHING_TIME", 60.0)
    for number in range(3):
        Producer(queue).send(str(number))
    worker = Worker(queue, refuse, prefetch=0)
    thread = started(worker)
    eventually(lambda: worker.shift and worker.shift.tally.dead == 3)
    worker.stop()
    shift = worker.shift
    assert shift is not None
    eventually(lambda: shift.draining_since is not None)
    assert shift.consumer is not None
    shift.consumer.close()
    thread.join(20)
    assert not thread.is_alive()
    assert (shift.tally.unplaced, shift.tally.lost) == (3, 0)


def test_what_was_placed_while_it_closed_is_not_reported(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Owing, "at_the_end", 2)
    monkeypatch.setattr(workers, "FINISHING_TIME", 0.3)
    for number in range(3):
        Producer(queue).send(str(number))
    worker = Worker(queue, refuse, prefetch=0)
    thread = started(worker)
    eventually(lambda: worker.shift and worker.shift.tally.dead == 3)
    worker.stop(now=True)
    thread.join(20)
    assert not thread.is_alive()
    assert worker.shift is not None
    assert worker.shift.tally.unplaced == 1


def test_progress() -> None:
    """A wait goes on while anything changes."""
    progress = Progress(5.0)
    assert all(progress.goes_on(100 - n, now=4.0 * n) for n in range(100))
    assert progress.goes_on(1, now=4.0 * 99 + 4.9)
    assert not progress.goes_on(1, now=4.0 * 99 + 5.1)
