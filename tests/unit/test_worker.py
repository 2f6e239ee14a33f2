"""Working: nothing that was taken is lost, whatever fails, and nothing runs that must not."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.doubles import stored, stored_ids
from workqueue import (
    AccessRefused,
    Broker,
    ConfigError,
    ConnectionLost,
    ConsumerLost,
    Delivery,
    HandlerNotFound,
    Job,
    Message,
    Producer,
    Queue,
    QueueMismatch,
    Reject,
    StorageDamaged,
    StorageError,
    Tally,
    TransportFault,
    Worker,
    worker,
)
from workqueue.errors import DeliveriesLost
from workqueue.message import new_id
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.coroutine import AsyncRunner
from workqueue.runners.runner import Ending, Verdict
from workqueue.runners.thread import ThreadRunner
from workqueue.testing import Fault, FaultyTransport, eventually
from workqueue.transport import Ack, Outcome
from workqueue.transports.copies import ERROR, FAILURES, ORIGIN, REASON
from workqueue.transports.memory import MemoryConsumer, MemoryTransport, Store

ENOUGH = 20.0
"""Seconds: longer than anything here takes on any machine."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue counts as empty, and a thread as unwilling, after less time than in production."""
    monkeypatch.setattr(worker, "IDLE_BEFORE_EMPTY", 0.15)
    monkeypatch.setattr(worker, "STOPPING_TIME", 0.5)


def queue_on(transport: Any, **options: Any) -> Queue:
    """Retries come at once, so that no test waits for them."""
    return Broker(transport).queue("jobs", retry=RetryPolicy(first=0), **options)


def filled(transport: MemoryTransport, count: int) -> list[str]:
    """`count` messages are in the queue; their ids."""
    producer = Producer(queue_on(transport))
    return [producer.send(n) for n in range(count)]


def done(transport: MemoryTransport) -> bool:
    """nothing is ready, out or dead"""
    stats = transport.stats("jobs")
    return (stats.ready, stats.in_flight, stats.dead) == (0, 0, 0)


@contextmanager
def running(worker_: Worker, **options: Any) -> Iterator[list[Tally]]:
    """A worker at work in a thread, stopped at the end; its tally is there then."""
    tallies: list[Tally] = []
    thread = threading.Thread(target=lambda: tallies.append(worker_.run(**options)))
    thread.start()
    try:
        eventually(lambda: worker_.shift is not None, what="the beginning of the shift")
        yield tallies
    finally:
        worker_.stop()
        thread.join(ENOUGH)
        assert not thread.is_alive(), "the worker does not end"


class Gate:
    """A handler that waits to be let through; `inside` is who waits."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.inside: list[Job[Any]] = []

    def __call__(self, job: Job[Any]) -> None:
        self.inside.append(job)
        assert self.open.wait(ENOUGH)


# -- the ordinary course -----------------------------------------------------------------------


def test_each_message_is_handled_once_and_gone() -> None:
    """With what its sender gave."""
    transport = MemoryTransport()
    ids = filled(transport, 20)
    seen: list[tuple[str | None, Any]] = []
    tally = Worker(queue_on(transport), lambda job: seen.append((job.id, job.payload))).run(
        until_empty=True
    )
    assert seen == list(zip(ids, range(20), strict=True))
    assert tally == Tally(done=20)
    assert tally.settled == 20
    assert done(transport)


def test_what_a_handler_sees() -> None:
    """The payload, and everything about the message that a sender said."""
    transport = MemoryTransport()
    id_ = Producer(queue_on(transport)).send(
        {"n": 1}, type="t", headers={"h": 1}, priority=7, correlation_id="c", reply_to="r"
    )
    jobs: list[Job[Any]] = []
    Worker(queue_on(transport), jobs.append).run(until_empty=True)
    (job,) = jobs
    assert (job.payload, job.body, job.content_type) == ({"n": 1}, b'{"n":1}', "application/json")
    assert (job.id, job.queue, job.attempt, job.redelivered) == (id_, "jobs", 1, False)
    assert (job.type, job.headers, job.priority) == ("t", {"h": 1}, 7)
    assert (job.correlation_id, job.reply_to) == ("c", "r")
    assert job.sent_at
    assert not job.lost


def test_a_missing_queue_is_made() -> None:
    """A worker may be there before the first sender."""
    transport = MemoryTransport()
    assert Worker(queue_on(transport), print).run(until_empty=True) == Tally()
    assert transport.queues() == ["jobs", "jobs.dead"]


def test_a_message_is_acknowledged_after_the_work() -> None:
    """While the handler runs it is in flight, and the broker still has it."""
    transport = MemoryTransport()
    filled(transport, 1)
    gate = Gate()
    with running(Worker(queue_on(transport), gate)):
        eventually(lambda: gate.inside)
        assert transport.stats("jobs").in_flight == 1
        gate.open.set()
        eventually(lambda: done(transport))


def test_as_many_at_once_as_there_are_slots() -> None:
    """And never more, however many wait."""
    transport = MemoryTransport()
    filled(transport, 12)
    together = threading.Barrier(3)
    lock = threading.Lock()
    now, most = 0, 0

    def handle(job: Job[Any]) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(ENOUGH)
        with lock:
            now -= 1

    assert Worker(queue_on(transport), handle, concurrency=3).run(until_empty=True).done == 12
    assert most == 3


def test_a_worker_takes_no_more_than_it_can_start() -> None:
    """What it could not begin is left for others."""
    transport = MemoryTransport()
    filled(transport, 10)
    gate = Gate()
    with running(Worker(queue_on(transport), gate, concurrency=2)):
        eventually(lambda: len(gate.inside) == 2)
        stats = transport.stats("jobs")
        assert (stats.in_flight, stats.ready) == (2, 8)
        gate.open.set()


def test_a_worker_can_run_again() -> None:
    """After its shift, another."""
    transport = MemoryTransport()
    worker_ = Worker(queue_on(transport), print)
    for _ in range(2):
        filled(transport, 1)
        assert worker_.run(until_empty=True).done == 1


# -- until when --------------------------------------------------------------------------------


def test_until_empty_waits_for_what_runs() -> None:
    """A task that takes longer than the queue is empty, and what it sends in the end."""
    transport = MemoryTransport()
    queue = queue_on(transport)
    Producer(queue).send(2)

    def handle(job: Job[int]) -> None:
        time.sleep(worker.IDLE_BEFORE_EMPTY * 2)
        if job.payload:
            Producer(queue).send(job.payload - 1)

    assert Worker(queue, handle).run(until_empty=True).done == 3


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("failing", [False, True])
def test_max_messages(concurrency: int, failing: bool) -> None:
    """So many are run, with or without success, and no more are taken."""
    transport = MemoryTransport()
    filled(transport, 10)
    runs: list[int] = []

    def handle(job: Job[int]) -> None:
        runs.append(job.payload)
        if failing:
            raise ValueError

    tally = Worker(queue_on(transport), handle, concurrency=concurrency).run(max_messages=3)
    assert len(runs) == 3
    assert tally.settled == 3
    stats = transport.stats("jobs")
    assert (stats.ready, stats.in_flight) == (10 if failing else 7, 0)


# -- how runs end ------------------------------------------------------------------------------


def test_five_attempts_and_then_the_dead_letters() -> None:
    """With the reason and the end of the traceback, from the handler on down."""
    transport = MemoryTransport()
    (id_,) = filled(transport, 1)
    attempts: list[int] = []

    def handle(job: Job[Any]) -> None:
        attempts.append(job.attempt)
        raise LookupError("no such user\nsecond line")

    tally = Worker(queue_on(transport), handle).run(until_empty=True)
    assert attempts == [1, 2, 3, 4, 5]
    assert tally == Tally(retried=4, dead=1)
    assert stored(transport.store, "jobs") == []
    (letter,) = stored(transport.store, "jobs.dead")
    assert letter.id == id_
    assert letter.body == b"0"
    assert letter.headers[FAILURES] == 5
    assert letter.headers[REASON] == "LookupError: no such user"
    assert letter.headers[ORIGIN] == "jobs"
    assert letter.headers[ERROR].rstrip().endswith("LookupError: no such user\nsecond line")
    assert "raise LookupError" in letter.headers[ERROR]
    assert "runners/handler.py" not in letter.headers[ERROR]


@pytest.mark.parametrize("most", [1, 2])
def test_as_many_attempts_as_are_allowed(most: int) -> None:
    """One is no second chance."""
    transport = MemoryTransport()
    filled(transport, 1)
    policy = RetryPolicy(max_attempts=most, first=0)
    tally = Worker(queue_on(transport), lambda job: 1 / 0, retry=policy).run(until_empty=True)
    assert tally == Tally(retried=most - 1, dead=1)


def test_success_after_failures() -> None:
    """The third try is the charm: done, and no dead letter."""
    transport = MemoryTransport()
    filled(transport, 1)

    def handle(job: Job[Any]) -> None:
        if job.attempt < 3:
            raise ValueError

    assert Worker(queue_on(transport), handle).run(until_empty=True) == Tally(done=1, retried=2)
    assert done(transport)


def test_reject_is_never_retried() -> None:
    """In the dead letters at once, with the handler's own reason."""
    transport = MemoryTransport()
    filled(transport, 1)
    attempts: list[int] = []

    def handle(job: Job[Any]) -> None:
        attempts.append(job.attempt)
        raise Reject("address is not one")

    assert Worker(queue_on(transport), handle).run(until_empty=True) == Tally(dead=1)
    assert attempts == [1]
    (letter,) = stored(transport.store, "jobs.dead")
    assert letter.headers[REASON] == "address is not one"
    assert ERROR not in letter.headers


@pytest.mark.parametrize(
    "message",
    [
        Message(body=b"{", content_type="application/json"),
        Message(body=b"\xff", content_type="text/plain"),
        Message(body=b"x", content_type="application/x-python-serialize"),
        Message(body=b"x", content_encoding="gzip"),
    ],
)
def test_a_body_that_is_not_what_it_claims(message: Message) -> None:
    """Dead at once with what is wrong; the handler does not see it, and the next one is fine."""
    transport = MemoryTransport()
    transport.declare(queue_on(transport).spec)
    transport.publisher().publish("jobs", [message], 1)
    ids = filled(transport, 1)
    seen: list[str | None] = []
    tally = Worker(queue_on(transport), lambda job: seen.append(job.id)).run(until_empty=True)
    assert tally == Tally(done=1, dead=1)
    assert seen == ids
    (letter,) = stored(transport.store, "jobs.dead")
    assert letter.id
    assert letter.headers[REASON]


@pytest.mark.parametrize(
    "error", [SystemExit(0), SystemExit("bye"), AssertionError(), StopIteration()]
)
def test_odd_ways_to_fail(error: BaseException) -> None:
    """Each is a failed attempt, and none ends the worker."""
    transport = MemoryTransport()
    filled(transport, 1)

    def handle(job: Job[int]) -> None:
        if job.attempt == 1:
            raise error

    assert Worker(queue_on(transport), handle).run(until_empty=True) == Tally(done=1, retried=1)


class Remarking(MemoryTransport):
    """Hands its deliveries out as `remark` has them, once for each."""

    def __init__(self, **remark: Any) -> None:
        super().__init__()
        self.remark = remark

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        transport = self

        class Consumer(MemoryConsumer):
            def take(self, limit: int) -> list[Delivery]:
                taken = []
                for delivery in super().take(limit):
                    remarked = replace(delivery, **transport.remark)
                    self.out[remarked] = self.out.pop(delivery)
                    taken.append(remarked)
                return taken

        return Consumer(self.store, queue, prefetch)


@pytest.mark.parametrize(
    ("remark", "reason"),
    [
        ({"unreadable": "the headers cannot be read"}, "the headers cannot be read"),
        ({"deaths": 21}, "21 workers were lost while they had it"),
    ],
)
def test_what_must_not_be_tried(remark: dict[str, Any], reason: str) -> None:
    """It is set aside without being run."""
    transport = Remarking(**remark)
    filled(transport, 2)
    seen: list[Any] = []
    assert Worker(queue_on(transport), seen.append).run(until_empty=True) == Tally(dead=2)
    assert seen == []
    assert {m.headers[REASON] for m in stored(transport.store, "jobs.dead")} == {reason}


def test_twenty_deaths_are_borne() -> None:
    """A task that was there when twenty workers went may not have been the cause."""
    transport = Remarking(deaths=20)
    filled(transport, 1)
    assert Worker(queue_on(transport), print).run(until_empty=True).done == 1


# -- acknowledged early ------------------------------------------------------------------------


def test_ack_early_is_at_most_once() -> None:
    """Gone before it runs; a failure is no second attempt and no dead letter."""
    transport = MemoryTransport()
    filled(transport, 2)
    found: list[bool] = []

    def handle(job: Job[Any]) -> None:
        found.append(transport.stats("jobs").in_flight == 0)
        raise ValueError

    Worker(queue_on(transport), handle, ack="early").run(until_empty=True)
    assert found == [True, True]
    assert done(transport)


def test_ack_early_hands_nothing_back() -> None:
    """What was acknowledged cannot be."""
    transport = MemoryTransport()
    filled(transport, 2)
    gate = Gate()
    worker_ = Worker(queue_on(transport), gate, ack="early")
    with running(worker_) as tallies:
        eventually(lambda: gate.inside)
        worker_.stop(now=True)
        eventually(lambda: tallies)
    gate.open.set()
    assert tallies[0].handed_back == 0
    assert len(stored(transport.store, "jobs")) == 1


# -- stopping ----------------------------------------------------------------------------------


def test_stop_finishes_what_runs_and_begins_nothing() -> None:
    """What waits stays where it is, ready for others, and untouched."""
    transport = MemoryTransport()
    filled(transport, 5)
    gate = Gate()
    worker_ = Worker(queue_on(transport), gate, concurrency=2)
    with running(worker_) as tallies:
        eventually(lambda: len(gate.inside) == 2)
        worker_.stop()
        worker_.stop()
        eventually(lambda: worker_.shift and worker_.shift.draining_since)
        assert tallies == []
        gate.open.set()
        eventually(lambda: tallies, what="the end of the shift")
    assert tallies == [Tally(done=2)]
    assert len(gate.inside) == 2
    stats = transport.stats("jobs")
    assert (stats.ready, stats.in_flight, stats.consumers) == (3, 0, 0)


def test_a_draining_worker_settles_failures_too() -> None:
    """A task that fails during the drain is retried by others."""
    transport = MemoryTransport()
    filled(transport, 1)
    begun, go = threading.Event(), threading.Event()

    def handle(job: Job[Any]) -> None:
        begun.set()
        assert go.wait(ENOUGH)
        raise ValueError

    worker_ = Worker(queue_on(transport), handle)
    with running(worker_) as tallies:
        assert begun.wait(ENOUGH)
        worker_.stop()
        go.set()
        eventually(lambda: tallies)
    assert tallies == [Tally(retried=1)]
    (message,) = stored(transport.store, "jobs")
    assert message.headers[FAILURES] == 1


@pytest.mark.parametrize("willing", [True, False])
def test_stop_now_hands_back_what_runs(willing: bool) -> None:
    """Also a task whose handler noticed and returned: nobody knows whether it was done."""
    transport = MemoryTransport()
    ids = filled(transport, 2)
    begun, end = threading.Event(), threading.Event()

    def handle(job: Job[Any]) -> None:
        begun.set()
        if willing:
            assert job.lost.wait(ENOUGH)
        else:
            end.wait(ENOUGH)

    worker_ = Worker(queue_on(transport), handle)
    with running(worker_) as tallies:
        assert begun.wait(ENOUGH)
        worker_.stop(now=True)
        eventually(lambda: tallies)
    end.set()
    assert tallies == [Tally(handed_back=1)]
    assert sorted(stored_ids(transport.store, "jobs")) == sorted(ids)
    seen: list[tuple[int, bool]] = []
    Worker(queue_on(transport), lambda job: seen.append((job.attempt, job.redelivered))).run(
        until_empty=True
    )
    assert sorted(seen) == [(1, False), (1, True)]


def test_grace_comes_to_an_end() -> None:
    """What still runs when it is over is told, and handed back."""
    transport = MemoryTransport()
    filled(transport, 1)
    begun = threading.Event()
    told: list[bool] = []

    def handle(job: Job[Any]) -> None:
        begun.set()
        told.append(job.lost.wait(ENOUGH))

    worker_ = Worker(queue_on(transport), handle, grace=0.2)
    with running(worker_) as tallies:
        assert begun.wait(ENOUGH)
        worker_.stop()
        eventually(lambda: tallies)
    assert tallies == [Tally(handed_back=1)]
    eventually(lambda: told == [True], what="the handler to hear of it")
    assert len(stored(transport.store, "jobs")) == 1


def test_stopping_a_worker_that_looks_for_its_broker() -> None:
    """It does not wait for the next try."""
    with running(Worker(queue_on(Opening(*[ConnectionLost("nobody answers")] * 1_000)), print)):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    """The first one finishes what runs; afterwards signals are whose they were before."""
    transport = MemoryTransport()
    filled(transport, 3)
    before = signal.getsignal(number)

    def handle(job: Job[Any]) -> None:
        os.kill(os.getpid(), number)

    tally = Worker(queue_on(transport), handle).run()
    assert (tally.done, tally.forced) == (1, None)
    assert len(stored(transport.store, "jobs")) == 2
    assert signal.getsignal(number) is before


def test_a_second_signal_stops_now() -> None:
    """And the tally says which it was."""
    transport = MemoryTransport()
    filled(transport, 3)

    def handle(job: Job[Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        shift = worker_.shift
        eventually(lambda: shift and shift.stops, what="the first signal")
        os.kill(os.getpid(), signal.SIGINT)
        assert job.lost.wait(ENOUGH)

    worker_ = Worker(queue_on(transport), handle)
    tally = worker_.run()
    assert (tally.handed_back, tally.forced) == (1, signal.SIGINT)
    assert len(stored(transport.store, "jobs")) == 3


# -- what fails under a worker -----------------------------------------------------------------


def work_through(transport: FaultyTransport, memory: MemoryTransport, ids: list[str]) -> None:
    """Every task is handled, and again only if it says that it was lent before."""
    handled: list[tuple[str | None, bool]] = []
    lock = threading.Lock()

    def handle(job: Job[Any]) -> None:
        with lock:
            handled.append((job.id, job.redelivered))

    Worker(queue_on(transport), handle, concurrency=2).run(until_empty=True)
    # A task that was lost may end after its worker.
    eventually(lambda: {id_ for id_, _ in handled} == set(ids), what="every task handled")
    unflagged = Counter(id_ for id_, redelivered in handled if not redelivered)
    assert all(count == 1 for count in unflagged.values())
    assert done(memory)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", [1, 2, 3, 4])
@pytest.mark.parametrize("call", ["declare", "consumer", "receive", "settle", "pause"])
def test_each_call_may_fail_once(call: str, nth: int, after: bool) -> None:
    """Nothing is lost, nothing stays behind, and what is done twice is flagged."""
    memory = MemoryTransport()
    ids = filled(memory, 6)
    transport = FaultyTransport(memory, Fault(call, nth, after=after))
    work_through(transport, memory, ids)


def test_many_calls_may_fail() -> None:
    """The same, with a cut in every third turn."""
    memory = MemoryTransport()
    ids = filled(memory, 10)
    faults = [Fault("receive", nth) for nth in range(3, 12, 3)]
    faults += [Fault("settle", nth, after=nth % 2 == 0) for nth in range(1, 6, 2)]
    work_through(FaultyTransport(memory, *faults), memory, ids)


class Losing(MemoryTransport):
    """A broker that takes single deliveries back when `take_back` is set, once: all but the first
    `spared`."""

    spared = 0

    def __init__(self) -> None:
        super().__init__()
        self.take_back = threading.Event()
        self.settled: list[Delivery] = []

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        return LosingConsumer(self, queue, prefetch)


class LosingConsumer(MemoryConsumer):
    def __init__(self, transport: Losing, queue: str, prefetch: int) -> None:
        super().__init__(transport.store, queue, prefetch)
        self.transport = transport

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        if self.transport.take_back.is_set():
            self.transport.take_back.clear()
            with self.store.changed:
                lost = list(self.out)[self.transport.spared :]
                for delivery in lost:
                    self.give_back(self.out.pop(delivery))
            raise DeliveriesLost("too slow", lost)
        return super().receive(limit, min(timeout, 0.05))

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        super().settle(outcomes)
        self.transport.settled += [outcome.delivery for outcome in outcomes]


def test_a_lost_delivery() -> None:
    """Its handler is told, its ending settles nothing, and the task is done by another run."""
    transport = Losing()
    filled(transport, 1)
    told: list[bool] = []
    lost: list[Any] = []

    def handle(job: Job[Any]) -> None:
        if not job.redelivered:
            transport.take_back.set()
            told.append(job.lost.wait(ENOUGH))
            lost.append(job.lost)

    tally = Worker(queue_on(transport), handle, concurrency=2).run(until_empty=True)
    eventually(lambda: lost, what="the end of the lost run, for which no worker waits")
    assert told == [True]
    assert bool(lost[0]) is True
    assert tally == Tally(done=1, lost=1)
    assert [delivery.redelivered for delivery in transport.settled] == [True]
    assert done(transport)


def test_a_lost_task_keeps_its_slot() -> None:
    """While its thread still runs, nothing else is begun in its place."""
    transport = Losing()
    filled(transport, 1)
    gate = Gate()
    with running(Worker(queue_on(transport), gate)):
        eventually(lambda: gate.inside)
        transport.take_back.set()
        eventually(lambda: gate.inside[0].lost)
        assert transport.stats("jobs").ready == 1
        gate.open.set()
        eventually(lambda: done(transport))
    assert len(gate.inside) == 2


def test_what_runs_is_not_lost_with_what_waits() -> None:
    """Although as many are lost as there are slots: the slot has a task that is still ours."""
    transport = Losing()
    transport.spared = 1
    ids = filled(transport, 3)
    gate = Gate()
    with running(Worker(queue_on(transport), gate, prefetch=3)) as tallies:
        eventually(lambda: gate.inside and transport.stats("jobs").in_flight == 3)
        transport.take_back.set()
        eventually(lambda: not transport.take_back.is_set())
        gate.open.set()
        eventually(lambda: done(transport))
    assert sorted(str(job.id) for job in gate.inside) == sorted(ids), "each once"
    assert tallies == [Tally(done=3, lost=2)]


@pytest.mark.parametrize("prefetch", [None, 3])
def test_lost_tasks_keep_nothing_from_others(prefetch: int | None) -> None:
    """A worker whose slots are all taken by what it lost holds nothing that it cannot begin."""
    transport = Losing()
    filled(transport, 1)
    gate = Gate()
    with running(Worker(queue_on(transport), gate, prefetch=prefetch)):
        eventually(lambda: gate.inside)
        transport.take_back.set()
        eventually(lambda: gate.inside[0].lost)
        eventually(lambda: transport.stats("jobs").consumers == 0, what="it to consume no more")
        filled(transport, 2)
        assert Worker(queue_on(transport), print).run(until_empty=True).done == 3
        gate.open.set()
        filled(transport, 1)
        eventually(lambda: done(transport))
    assert len(gate.inside) == 2


def test_a_delivery_lost_while_all_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not handed back a second time, and the worker ends as it was told to."""
    monkeypatch.setattr(worker, "STOPPING_TIME", ENOUGH)
    transport = Losing()
    filled(transport, 1)
    begun = threading.Event()

    def handle(job: Job[Any]) -> None:
        begun.set()
        assert job.lost.wait(ENOUGH)
        transport.take_back.set()
        eventually(lambda: not transport.take_back.is_set(), what="the broker to take it back")

    worker_ = Worker(queue_on(transport), handle)
    with running(worker_) as tallies:
        assert begun.wait(ENOUGH)
        worker_.stop(now=True)
        eventually(lambda: tallies, what="the end of the shift")
    assert tallies == [Tally(lost=1)]
    assert len(stored(transport.store, "jobs")) == 1


def test_a_lost_consumer_loses_what_ran() -> None:
    """The handlers are told, and what they did settles nothing on the next consumer."""
    transport = Opening()
    filled(transport, 1)
    told: list[bool] = []

    def handle(job: Job[Any]) -> None:
        if not job.redelivered:
            transport.opened[0].close()
            told.append(job.lost.wait(ENOUGH))

    tally = Worker(queue_on(transport), handle).run(until_empty=True)
    assert told == [True]
    assert tally == Tally(done=1, lost=1)
    assert done(transport)


# -- connecting --------------------------------------------------------------------------------


class Opening(MemoryTransport):
    """Its consumers fail to open as `errors` say, and may be cut off when they are open."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()
        self.errors = deque(errors)
        self.opened: list[MemoryConsumer] = []

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        if self.errors:
            raise self.errors.popleft()
        self.opened.append(super().consumer(queue, prefetch))
        return self.opened[-1]


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """What the worker has said that contains a word."""
    caplog.set_level(logging.INFO, "workqueue.worker")
    return lambda word: [message for message in caplog.messages if word in message]


def test_a_broker_that_is_not_there_yet(told: Callable[[str], list[str]]) -> None:
    """It is waited for, and each wait is said, with the reason and how long."""
    transport = Opening(ConnectionLost("nobody answers"), ConsumerLost("gone at once"))
    filled(transport, 1)
    assert Worker(queue_on(transport), print).run(until_empty=True).done == 1
    first, second = told("trying again in")
    assert "nobody answers" in first
    assert "gone at once" in second


@pytest.mark.parametrize(
    "error", [AccessRefused("not you"), StorageError("disk full"), ConfigError("no such thing")]
)
def test_what_cannot_get_better_ends_a_worker_at_its_start(error: Exception) -> None:
    """At once, as it is."""
    transport = Declining(error)
    began = time.monotonic()
    with pytest.raises(type(error), match=str(error)):
        Worker(queue_on(transport), print).run()
    assert time.monotonic() - began < ENOUGH


class Declining(MemoryTransport):
    """Refuses whoever comes."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def declare(self, *_arguments: Any, **_options: Any) -> bool:
        raise self.error


def test_a_queue_with_other_parameters_ends_a_worker() -> None:
    """It would work on something else than it was told to."""
    transport = MemoryTransport()
    queue_on(transport, max_length=5).declare()
    with pytest.raises(QueueMismatch):
        Worker(queue_on(transport, max_length=6), print).run()


@pytest.mark.parametrize("error", [AccessRefused("not you"), StorageError("disk full")])
def test_a_worker_that_was_let_in_once_goes_on_trying(
    error: Exception, told: Callable[[str], list[str]]
) -> None:
    """Passwords are changed and disks are freed: it says so, and waits until it is told to stop."""
    transport = Opening()
    with running(Worker(queue_on(transport), print)) as tallies:
        consumer = eventually(lambda: transport.opened)[0]
        transport.errors.extend([error] * 1_000)
        consumer.close()
        consumer.wake()
        line, *_ = eventually(lambda: told("trying again in"))
        assert str(error) in line
        assert tallies == []
    assert tallies == [Tally()]


class Useless(MemoryTransport):
    """Its consumers can be opened, and are lost as soon as they are used."""

    def __init__(self, cause: StorageError) -> None:
        super().__init__()
        self.cause = cause
        self.opened: list[MemoryConsumer] = []

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        self.opened.append(UselessConsumer(self.store, queue, prefetch, self.cause))
        return self.opened[-1]


class UselessConsumer(MemoryConsumer):
    def __init__(self, store: Store, queue: str, prefetch: int, cause: StorageError) -> None:
        super().__init__(store, queue, prefetch)
        self.cause = cause

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        raise ConsumerLost(str(self.cause)) from self.cause


def test_a_damaged_file_ends_a_worker(told: Callable[[str], list[str]]) -> None:
    """It does not mend itself, so another consumer would be lost to the same damage, for ever."""
    transport = Useless(StorageDamaged("jobs.db: damaged"))
    with pytest.raises(StorageDamaged, match=r"jobs\.db: damaged"):
        Worker(queue_on(transport), print).run()
    assert len(transport.opened) == 1
    assert transport.stats("jobs").consumers == 0
    assert told("damaged") == []  # by us: whoever called is told


def test_damage_found_on_opening_again_ends_a_worker() -> None:
    """Though it was let in once."""
    transport = Opening()
    filled(transport, 1)

    def handle(_job: Job[Any]) -> None:
        transport.errors.append(StorageDamaged("jobs.db: damaged"))
        transport.opened[0].close()

    with pytest.raises(StorageDamaged, match=r"jobs\.db: damaged"):
        Worker(queue_on(transport), handle).run()


def test_consumers_that_are_lost_at_once_are_not_opened_without_a_pause() -> None:
    """What can be opened and not used: a file on a disk that fails, for one."""
    transport = Useless(StorageError("the disk failed"))
    with running(Worker(queue_on(transport), print)):
        eventually(lambda: len(transport.opened) >= 3)
        time.sleep(0.5)
        assert len(transport.opened) < 10


def test_consumers_may_be_lost_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of them, each after a rest that is no longer than the longest."""
    shift = worker.Shift(
        Worker(queue_on(MemoryTransport()), print), until_empty=False, max_messages=1
    )
    rests: list[float] = []
    monkeypatch.setattr(shift, "nap", rests.append)
    for _ in range(3_000):
        shift.opened_at = time.monotonic()
        shift.rest()
    assert worker.LONGEST_REST / 2 < max(rests) <= worker.LONGEST_REST


class Slow(MemoryConsumer):
    """What it settles takes a while to be settled, as a copy that waits to be confirmed."""

    settled_at = math.inf
    looks = 0
    longest_wait = 0.0

    @property
    def unsettled(self) -> int:
        return super().unsettled + (time.monotonic() < self.settled_at + 0.5)

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        self.looks += 1
        if 0 < self.settled_at < math.inf:
            self.longest_wait = max(self.longest_wait, timeout)
        return super().receive(limit, timeout)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.settled_at = time.monotonic()
        super().settle(outcomes)


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_that_leaves_waits_in_peace(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """Until all is settled, and no longer: without a turn of the loop for each microsecond, nor
    one that waits for more messages."""
    transport = MemoryTransport()
    consumer: list[Slow] = []

    def open_consumer(queue: str, prefetch: int) -> Slow:
        consumer.append(Slow(transport.store, queue, prefetch))
        consumer[0].settled_at = -math.inf
        return consumer[0]

    monkeypatch.setattr(transport, "consumer", open_consumer)
    filled(transport, 1)

    def handle(_job: Job[Any]) -> None:
        if fails:
            raise ValueError

    Worker(queue_on(transport), handle).run(max_messages=1)
    assert consumer[0].settled_at > 0
    assert consumer[0].looks < 100
    assert consumer[0].longest_wait < worker.TURN


def test_a_refused_worker_does_not_hammer(told: Callable[[str], list[str]]) -> None:
    """Five seconds at least between two tries with a password that is wrong."""
    shift = worker.Shift(
        Worker(queue_on(MemoryTransport()), print), until_empty=False, max_messages=1
    )

    class State:
        attempt_number = 1

        class outcome:  # noqa: N801 - tenacity's own names
            @staticmethod
            def exception() -> Exception:
                return AccessRefused("not you")

    assert shift.wait_before_next(State) >= 5.0


def test_a_deleted_queue_is_made_again(told: Callable[[str], list[str]]) -> None:
    """Whoever still sends to it expects it to be worked on."""
    transport = Opening()
    seen: list[Any] = []
    with running(Worker(queue_on(transport), lambda job: seen.append(job.payload))):
        eventually(lambda: transport.opened)
        transport.delete("jobs")
        eventually(lambda: len(transport.opened) == 2)
        assert told("was deleted: making it again")
        Producer(queue_on(transport)).send("after")
        eventually(lambda: seen == ["after"])


class Impatient(MemoryTransport):
    """As a queue on RabbitMQ whose maker gave it an acknowledgement timeout of 90 seconds."""

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        return ImpatientConsumer(self.store, queue, prefetch)


class ImpatientConsumer(MemoryConsumer):
    takes_back_after = 90.0


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({}, True),
        ({"timeout": 90}, True),
        ({"timeout": 89}, False),
        ({"ack": "early"}, False),
        ({"timeout": 30, "prefetch": 6, "concurrency": 2}, True),  # the sixth waits for two
        ({"timeout": 30, "prefetch": 4, "concurrency": 2}, False),
        ({"timeout": 1, "prefetch": 0}, True),
    ],
)
def test_a_broker_that_takes_tasks_back(
    options: dict[str, Any], warned: bool, told: Callable[[str], list[str]]
) -> None:
    """It is said, once, where tasks may be held for so long."""
    worker_ = Worker(queue_on(Impatient()), nothing, runner="async", **options)
    worker_.run(until_empty=True)
    assert len(told("acknowledgement timeout of 90 s")) == warned


async def nothing(_job: Job[Any]) -> None:
    """As a coroutine, which can be stopped: it may have a timeout."""


@pytest.mark.parametrize(("timeouts", "warned"), [((30, 89), False), ((30, 90), True)])
def test_each_task_may_have_a_timeout_of_its_own(
    timeouts: tuple[float, float], warned: bool, told: Callable[[str], list[str]]
) -> None:
    """The longest of them counts."""
    runner = AsyncRunner(nothing)
    runner.options = {str(n): TaskOptions(timeout=timeout) for n, timeout in enumerate(timeouts)}
    Worker(queue_on(Impatient()), runner=runner).run(until_empty=True)
    assert len(told("acknowledgement timeout of 90 s")) == warned


def test_a_connection_is_not_shared_with_senders() -> None:
    """A worker closes its own consumer in the end, and nothing else."""
    transport = Opening()
    filled(transport, 1)
    Worker(queue_on(transport), print).run(until_empty=True)
    assert [consumer.closed for consumer in transport.opened] == [True]
    filled(transport, 1)


# -- runners and arguments ---------------------------------------------------------------------


class Doomed(ThreadRunner):
    """A runner that can run nothing any more once it was given a task."""

    def endings(self) -> list[Ending]:
        if self.running:
            raise HandlerNotFound("the handler is gone")
        return []


def test_a_handler_that_is_gone_ends_the_worker() -> None:
    """What was taken goes back at once."""
    transport = MemoryTransport()
    ids = filled(transport, 1)
    gate = Gate()
    with pytest.raises(HandlerNotFound, match="is gone"):
        Worker(queue_on(transport), runner=Doomed(gate)).run()
    gate.open.set()
    assert stored_ids(transport.store, "jobs") == ids
    assert transport.stats("jobs").consumers == 0


def test_a_runner_that_cannot_start_leaves_the_queue_alone() -> None:
    """HandlerNotFound comes before anything is taken."""
    transport = Opening()
    filled(transport, 1)

    class Missing(ThreadRunner):
        def start(self, slots: int, ring: Callable[[], None]) -> None:
            raise HandlerNotFound("no such module")

    told: list[str] = []
    with pytest.raises(HandlerNotFound):
        Worker(queue_on(transport), runner=Missing(print)).run(ready=lambda: told.append("ready"))
    assert transport.opened == []
    assert told == []


def test_whoever_asks_is_told_once_the_handler_can_be_used() -> None:
    """Though there is no broker yet: that may take long, and is said apart."""
    transport = Opening(ConnectionLost("nobody answers"))
    told: list[int] = []
    with running(
        Worker(queue_on(transport), print), ready=lambda: told.append(len(transport.errors))
    ):
        eventually(lambda: transport.opened)
    assert told == [1]


@pytest.mark.parametrize(
    ("verdict", "attempt", "outcome"),
    [
        (Verdict.DONE, 1, "Ack"),
        (Verdict.DONE, 9, "Ack"),
        (Verdict.STOPPED, 1, "Requeue"),
        (Verdict.STOPPED, 9, "Requeue"),
        (Verdict.REJECTED, 1, "Reject"),
        (Verdict.FAILED, 1, "Retry"),
        (Verdict.FAILED, 4, "Retry"),
        (Verdict.FAILED, 5, "Reject"),
        (Verdict.FAILED, 9, "Reject"),
    ],
)
def test_every_ending_has_an_outcome(verdict: Verdict, attempt: int, outcome: str) -> None:
    """Being stopped is not the task's fault; the fifth failure is the last."""
    delivery = Delivery(message=Message(body=b"", id=new_id()), queue="jobs", attempt=attempt)
    judged = worker.judge(Ending(delivery, verdict, "why", "traceback"), RetryPolicy(first=0))
    assert type(judged).__name__ == outcome
    assert judged.delivery is delivery
    assert getattr(judged, "reason", "why") == "why"
    assert not isinstance(judged, Ack) or verdict is Verdict.DONE


@pytest.mark.parametrize(
    ("given", "prefetch"), [(None, None), (0, 0), (1, 3), (3, 3), (10, 10)], ids=str
)
def test_prefetch_is_at_least_a_message_per_slot(given: int | None, prefetch: int | None) -> None:
    """0 is unlimited, and none is one per slot."""
    assert (
        Worker(queue_on(MemoryTransport()), print, concurrency=3, prefetch=given).prefetch
        == prefetch
    )


@pytest.mark.parametrize(
    ("handler", "options"),
    [
        (print, {"concurrency": 0}),
        (print, {"timeout": 0.0}),
        (print, {"middleware": ["nobody"]}),
        (print, {"prefetch": -1}),
        (print, {"runner": "greenlet"}),
        (None, {}),
        (7, {}),
        (print, {"runner": "async"}),
        ("no_colon", {}),
        ("json:no_such_function", {}),
        (lambda job: None, {"runner": "process"}),
    ],
)
def test_workers_that_cannot_be(handler: Any, options: dict[str, Any]) -> None:
    """ConfigError when they are made, not when they run."""
    with pytest.raises(ConfigError):
        Worker(queue_on(MemoryTransport()), handler, **options)


# -- holding more than runs --------------------------------------------------------------------


class Stumble:
    """A handler that is quick, until the job with the number `at` waits to be let through."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.open = threading.Event()
        self.seen: list[int] = []

    def __call__(self, job: Job[int]) -> None:
        self.seen.append(job.payload)
        if job.payload == self.at:
            assert self.open.wait(ENOUGH)

    @property
    def stumbled(self) -> bool:
        return self.at in self.seen


class CountingRunner(ThreadRunner):
    """Counts how often what has not begun was asked back."""

    recalls = 0

    def recall(self) -> None:
        self.recalls += 1
        super().recall()


def test_short_tasks_are_held_in_advance() -> None:
    """The worker finds out by itself that it may, once the machine lets them be short."""
    transport = MemoryTransport()
    sent: list[str] = []
    worker_ = Worker(queue_on(transport), lambda job: None)

    def more_are_held() -> bool:
        """more are held than run"""
        sent.extend(filled(transport, 300))
        shift = worker_.shift
        return bool(shift and shift.pace and shift.pace.held > 8)

    with running(worker_) as tallies:
        eventually(more_are_held, within=ENOUGH)
        eventually(lambda: done(transport), within=ENOUGH)
    [tally] = tallies
    assert tally.done == len(sent)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_what_waits_behind_a_long_task_is_handed_back(concurrency: int) -> None:
    """Others can have it at once; in the end each was handled once, at its first attempt."""
    transport = MemoryTransport()
    filled(transport, 300)
    handle = Stumble(at=200)
    gates = [handle.open]
    if concurrency > 1:  # all slots are held up
        block = threading.Event()
        gates.append(block)
        quick = handle.__call__

        def call(job: Job[int]) -> None:
            quick(job)
            if 200 < job.payload < 200 + concurrency:
                assert block.wait(ENOUGH)

    else:
        call = handle
    with running(Worker(queue_on(transport), call, concurrency=concurrency)) as tallies:
        eventually(lambda: handle.stumbled, within=ENOUGH)
        as_few_as_run = (concurrency, 300 - 200 - concurrency)

        def handed_back() -> bool:
            """all but what runs is ready"""
            stats = transport.stats("jobs")
            return (stats.in_flight, stats.ready) == as_few_as_run

        eventually(handed_back, within=ENOUGH)
        for gate in gates:
            gate.set()
        eventually(lambda: done(transport), within=ENOUGH)
    assert sorted(handle.seen) == list(range(300))
    [tally] = tallies
    assert (tally.done, tally.retried, tally.dead) == (300, 0, 0)


def test_with_a_number_what_was_taken_is_kept() -> None:
    """`prefetch` is what may be out, and nothing goes back before the end."""
    transport = MemoryTransport()
    filled(transport, 20)
    gate = Gate()
    runner = CountingRunner(gate)
    with running(Worker(queue_on(transport), runner=runner, prefetch=5)) as tallies:
        eventually(lambda: transport.stats("jobs").in_flight == 5)
        eventually(lambda: len(gate.inside) == 1)
        assert runner.recalls == 0
        worker_tally = tallies
        threading.Timer(0.2, gate.open.set).start()
        eventually(lambda: done(transport), within=ENOUGH)
    assert worker_tally[0] == Tally(done=20)


def test_a_stopping_worker_hands_back_what_it_has_not_begun() -> None:
    """While what runs goes on."""
    transport = MemoryTransport()
    filled(transport, 10)
    gate = Gate()
    worker_ = Worker(queue_on(transport), gate, concurrency=2, prefetch=8)
    with running(worker_) as tallies:
        eventually(lambda: len(gate.inside) == 2)
        eventually(lambda: transport.stats("jobs").in_flight == 8)
        worker_.stop()
        eventually(lambda: transport.stats("jobs").in_flight == 2)
        assert transport.stats("jobs").ready == 8
        gate.open.set()
    assert tallies == [Tally(done=2, handed_back=6)]


def test_a_lost_consumer_loses_what_waits_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Only what was begun may be done twice; the rest is simply handled."""
    transport = Opening()
    ids = filled(transport, 6)
    seen: list[str | None] = []

    def handle(job: Job[Any]) -> None:
        seen.append(job.id)
        if not job.redelivered:
            transport.opened[0].close()
            assert job.lost.wait(ENOUGH)

    Worker(queue_on(transport), handle, prefetch=6).run(until_empty=True)
    assert Counter(seen) == Counter([ids[0], *ids])
    assert done(transport)


@pytest.mark.parametrize("prefetch", [None, 0, 50])
def test_max_messages_are_run_although_more_could_be_held(prefetch: int | None) -> None:
    """So many and no more, and what was held besides is there for others."""
    transport = MemoryTransport()
    filled(transport, 300)
    seen: list[int] = []
    worker_ = Worker(queue_on(transport), lambda job: seen.append(job.payload), prefetch=prefetch)
    assert worker_.run(max_messages=250).done == 250
    assert seen == list(range(250))
    stats = transport.stats("jobs")
    assert (stats.ready, stats.in_flight) == (50, 0)


# -- a driver is not believed ------------------------------------------------------------------


class Misbehaving(MemoryTransport):
    """Memory, whose consumers return what `rewrite` makes of what was received."""

    def __init__(self, rewrite: Callable[[MemoryConsumer, list[Delivery]], Any]) -> None:
        super().__init__()
        self.rewrite = rewrite
        self.timeouts: list[float] = []

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        consumer = super().consumer(queue, prefetch)
        receive = consumer.receive

        def rewritten(limit: int, timeout: float) -> Any:
            self.timeouts.append(timeout)
            return self.rewrite(consumer, receive(limit, timeout))

        consumer.receive = rewritten  # type: ignore[method-assign]
        return consumer


def one_more(consumer: MemoryConsumer, received: list[Delivery]) -> list[Delivery]:
    """`limit + 1`, where there is one more."""
    consumer.prefetch = 0
    return [*received, *consumer.take(1)] if received else received


def the_same_twice(consumer: MemoryConsumer, received: list[Delivery]) -> list[Delivery]:
    return [next(iter(consumer.out))] if consumer.out else received


def of_another_queue(consumer: MemoryConsumer, received: list[Delivery]) -> list[Delivery]:
    return [replace(delivery, queue="other") for delivery in received]


def nothing_at_all(consumer: MemoryConsumer, received: list[Delivery]) -> None:
    return None


def a_tuple(consumer: MemoryConsumer, received: list[Delivery]) -> tuple[Delivery, ...]:
    return tuple(received)


@pytest.mark.parametrize(
    ("rewrite", "told"),
    [
        (one_more, "handed out 3 deliveries where 2 were asked for"),
        (the_same_twice, "out already"),
        (of_another_queue, "of the queue other to a worker of jobs"),
        (nothing_at_all, "returned NoneType"),
        (a_tuple, "returned tuple"),
    ],
)
def test_a_driver_that_hands_out_wrongly_ends_the_worker(
    rewrite: Callable[[MemoryConsumer, list[Delivery]], Any], told: str
) -> None:
    """Loudly, naming the driver; nothing is lost: what it held goes back."""
    transport = Misbehaving(rewrite)
    ids = filled(transport, 3)
    begun = threading.Event()
    worker_ = Worker(queue_on(transport), lambda job: begun.wait(0.2), concurrency=2)
    with pytest.raises(TransportFault, match=told) as caught:
        worker_.run(until_empty=True)
    assert "workqueue.transports.memory.MemoryConsumer" in str(caught.value)
    assert stored_ids(transport.store, "jobs") == ids
    assert transport.stats("jobs").in_flight == 0


def test_a_driver_at_fault_is_not_tried_again() -> None:
    """It is the same after the next connection: the error is not one that may get better."""
    transport = Misbehaving(one_more)
    filled(transport, 2)
    worker_ = Worker(queue_on(transport), lambda job: None)
    shift = worker.Shift(worker_, until_empty=True, max_messages=None)
    shift.let_in = True
    assert not shift.may_get_better(TransportFault("no"))


def test_a_consumer_is_called_at_least_every_second() -> None:
    """Also while all slots are busy: a driver may rest on it to keep its hold on what is out."""
    transport = Misbehaving(lambda _consumer, received: received)
    filled(transport, 1)
    Worker(queue_on(transport), lambda job: time.sleep(0.3)).run(until_empty=True)
    assert transport.timeouts
    assert max(transport.timeouts) <= 1.0
