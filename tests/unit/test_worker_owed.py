"""What a worker makes of a broker that does not take the outcomes of its tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import pytest

from workqueue import Broker, Job, Producer, Reject, Worker
from workqueue import worker as workers
from workqueue.health import state_of
from workqueue.message import Delivery
from workqueue.progress import Progress
from workqueue.queue import Queue
from workqueue.testing import eventually
from workqueue.transport import Outcome
from workqueue.transport import Reject as Rejected
from workqueue.transports.memory import MemoryConsumer, MemoryTransport


class Owing(MemoryConsumer):
    """Sets no message aside until `pace` seconds after the one before, the first never if that is
    None; meanwhile it owes that."""

    pace: float | None = None

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


def test_progress() -> None:
    """A wait goes on while anything changes."""
    progress = Progress(5.0)
    assert all(progress.goes_on(100 - n, now=4.0 * n) for n in range(100))
    assert progress.goes_on(1, now=4.0 * 99 + 4.9)
    assert not progress.goes_on(1, now=4.0 * 99 + 5.1)
