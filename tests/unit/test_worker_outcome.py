"""A task's outcome is what its handler did: nothing before or after it changes or loses it, and a
part of the worker that dies is said, and ends it."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.doubles import stored, stored_ids
from workqueue import (
    Broker,
    Delivery,
    Job,
    Message,
    Middleware,
    Producer,
    Queue,
    RetryLater,
    RunnerFailed,
    Tally,
    Worker,
    worker,
)
from workqueue.cli.main import exit_code
from workqueue.health import Health, state_of
from workqueue.retry import RetryPolicy
from workqueue.runners import thread
from workqueue.runners.command import CommandRunner
from workqueue.runners.coroutine import AsyncRunner
from workqueue.runners.process import ProcessRunner
from workqueue.runners.runner import Ending, Runner, Verdict
from workqueue.runners.thread import ThreadRunner
from workqueue.testing import eventually
from workqueue.transport import Retry
from workqueue.transports.copies import REASON
from workqueue.transports.memory import MemoryTransport

ENOUGH = 20.0
"""Seconds: longer than anything here takes on any machine."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "IDLE_BEFORE_EMPTY", 0.15)
    monkeypatch.setattr(worker, "STOPPING_TIME", 0.5)


def queue_on(transport: MemoryTransport, **options: Any) -> Queue:
    options.setdefault("retry", RetryPolicy(first=0))
    return Broker(transport).queue("jobs", **options)


def filled(transport: MemoryTransport, count: int) -> list[str]:
    producer = Producer(queue_on(transport))
    return [producer.send(n) for n in range(count)]


# -- what surrounds a task ---------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise AttributeError


@pytest.mark.parametrize("error", [Unprintable("text"), KeyboardInterrupt()])
@pytest.mark.parametrize("runner", ["thread", "async"])
def test_many_that_raise_what_cannot_be_shown(error: BaseException, runner: Any) -> None:
    """Each is a dead letter with a reason, all others are done, and all slots live."""
    transport = MemoryTransport()
    filled(transport, 400)

    def handle(job: Job[int]) -> None:
        if job.payload % 20 == 0:
            raise error

    async def handle_async(job: Job[int]) -> None:
        handle(job)

    worker_ = Worker(
        queue_on(transport, retry=RetryPolicy(max_attempts=1)),
        handle if runner == "thread" else handle_async,
        runner=runner,
        concurrency=8,
    )
    tally = worker_.run(until_empty=True)
    assert (tally.done, tally.dead, tally.retried) == (380, 20, 0)
    reasons = {letter.headers[REASON] for letter in stored(transport.store, "jobs.dead")}
    (reason,) = reasons
    assert type(error).__name__ in reason


class Meddling(Middleware):
    """It raises wherever it is told of something."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def begun(self, *_: object) -> None:
        raise self.error

    settled = lost = stopped = begun


@pytest.mark.parametrize("error", [LookupError(), SystemExit(), KeyboardInterrupt()])
def test_middleware_that_is_told_changes_nothing(error: BaseException) -> None:
    transport = MemoryTransport()
    filled(transport, 3)
    tally = Worker(queue_on(transport), print, middleware=[Meddling(error)]).run(until_empty=True)
    assert tally == Tally(done=3)


@pytest.fixture
def broken_log() -> Iterator[None]:
    """A handler of the application's own, which raises for each line."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit

    handler = Broken(logging.DEBUG)
    logger = logging.getLogger("workqueue.worker")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.mark.usefixtures("broken_log")
def test_a_log_that_raises_changes_nothing() -> None:
    """Though a line is logged for each task, and for each failure."""
    transport = MemoryTransport()
    filled(transport, 20)

    def handle(job: Job[int]) -> None:
        if job.payload % 2 and job.attempt == 1:
            raise LookupError

    assert Worker(queue_on(transport), handle).run(until_empty=True) == Tally(done=20, retried=10)


class Raising:
    """A strategy of tenacity's kind."""

    def __call__(self, state: object) -> Any:
        raise LookupError("no such column")


@pytest.mark.parametrize("policy", [{"wait": Raising()}, {"stop": Raising()}])
def test_a_retry_policy_that_raises(policy: Any) -> None:
    """The usual one is followed instead, and the worker goes on."""
    transport = MemoryTransport()
    filled(transport, 1)

    def handle(job: Job[int]) -> None:
        if job.attempt == 1:
            raise LookupError

    tally = Worker(queue_on(transport, retry=RetryPolicy(**policy)), handle).run(until_empty=True)
    assert tally == Tally(done=1, retried=1)


@pytest.mark.parametrize("delay", [math.nan, -1.0, 0.0, -math.inf])
def test_what_is_put_off_is_never_back_at_once(delay: float) -> None:
    """Else it would run again as fast as it could."""
    delivery = Delivery(message=Message(body=b""), queue="jobs")
    outcome = worker.judge(Ending(delivery, Verdict.LATER, delay=delay), RetryPolicy())
    assert isinstance(outcome, Retry)
    assert outcome.delay == worker.SOONEST_LATER


def test_each_task_has_its_own_context() -> None:
    """What one sets in a context variable, the next does not find."""
    from contextvars import ContextVar

    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    transport = MemoryTransport()
    filled(transport, 3)
    seen: list[str] = []

    def handle(job: Job[int]) -> None:
        seen.append(tenant.get())
        tenant.set("ada")

    Worker(queue_on(transport), handle).run(until_empty=True)
    assert seen == ["nobody"] * 3


def test_what_is_done_before_a_stop_is_done() -> None:
    """Also if the worker has not looked at it when all must stop."""
    runner = ThreadRunner(lambda job: None)
    rung = threading.Event()
    runner.start(1, rung.set)
    delivery = Delivery(message=Message(body=b""), queue="jobs")
    runner.run(delivery)
    assert rung.wait(ENOUGH)
    runner.stop()
    assert [ending.verdict for ending in runner.endings()] == [Verdict.DONE]
    runner.close()


# -- neighbours on a loop ----------------------------------------------------------------------


def test_tasks_on_a_loop_survive_each_other() -> None:
    """One stops the loop, one lets a task of its own exit, one cancels all: theirs have failed or
    are done, each other one is done, and none is forgotten."""
    transport = MemoryTransport()
    filled(transport, 40)

    async def exit_soon() -> None:
        raise SystemExit

    kept: list[object] = []

    async def handle(job: Job[int]) -> None:
        loop = asyncio.get_running_loop()
        if job.payload == 10:
            loop.stop()
        elif job.payload == 20:
            kept.append(loop.create_task(exit_soon()))
        elif job.payload == 30 and job.attempt == 1:
            for task in asyncio.all_tasks():
                task.cancel()
        await asyncio.sleep(0.001)

    tally = Worker(queue_on(transport), handle, runner="async", concurrency=4).run(until_empty=True)
    assert tally.done == 40
    assert 1 <= tally.retried <= 4


# -- parts that die ----------------------------------------------------------------------------


def dying_thread(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A slot dies of its first task that is to."""
    real = thread.handle

    def die(handler: Any, delivery: Delivery, *more: Any) -> Ending:
        if delivery.message.body == b"0":
            raise MemoryError
        return real(handler, delivery, *more)

    monkeypatch.setattr(thread, "handle", die)
    return ThreadRunner(lambda job: time.sleep(0.01))


def dying_loop(monkeypatch: pytest.MonkeyPatch) -> Runner:
    async def handle(job: Job[int]) -> None:
        if job.payload == 0:
            asyncio.get_running_loop().set_task_factory(lambda *_, **__: 1 / 0)  # type: ignore[arg-type]

    return AsyncRunner(handle)


def dying_turn(monkeypatch: pytest.MonkeyPatch) -> Runner:
    async def handle(job: Job[int]) -> None:
        asyncio.get_running_loop()._run_once = lambda: 1 / 0  # type: ignore[attr-defined]
        await asyncio.sleep(0.01)

    return AsyncRunner(handle)


def dying_owner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    def die(runner: ProcessRunner) -> None:
        if runner.backlog:
            raise MemoryError

    monkeypatch.setattr(ProcessRunner, "assign", die)
    return ProcessRunner("tests.unit.runners.handlers:obey")


def dying_command(monkeypatch: pytest.MonkeyPatch) -> Runner:
    def die(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(CommandRunner, "feed", die)
    return CommandRunner(["sleep", "600"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    "dying", [dying_thread, dying_loop, dying_turn, dying_owner, dying_command]
)
def test_a_part_of_the_runner_that_dies(
    dying: Callable[[pytest.MonkeyPatch], Runner],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said, ends the worker at once with 70, and nothing is lost, failed or still out."""
    transport = MemoryTransport()
    ids = filled(transport, 12)
    runner = dying(monkeypatch)
    worker_ = Worker(queue_on(transport), runner=runner, concurrency=2, grace=ENOUGH)
    began = time.monotonic()
    with pytest.raises(RunnerFailed, match="died: ") as caught:
        worker_.run(until_empty=True)
    assert time.monotonic() - began < ENOUGH
    assert exit_code(caught.value) == 70
    assert str(caught.value) in caplog.text
    assert not state_of(worker_)["alive"]
    stats = transport.stats("jobs")
    assert stats.in_flight == stats.consumers == stats.dead == 0
    assert worker_.shift
    assert len(stored(transport.store, "jobs")) == 12 - worker_.shift.tally.done
    assert ids[0] in stored_ids(transport.store, "jobs") or dying is dying_loop


def test_others_finish_when_a_slot_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    """And meanwhile the worker is not alive to a supervisor, and takes no more."""
    transport = MemoryTransport()
    filled(transport, 5)
    inside, go_on = threading.Event(), threading.Event()
    runner = dying_thread(monkeypatch)

    def handle(job: Job[int]) -> None:
        inside.set()
        assert go_on.wait(ENOUGH)

    runner.handler = handle  # type: ignore[attr-defined]
    worker_ = Worker(queue_on(transport), runner=runner, concurrency=2, middleware=[Health(0)])
    errors: list[BaseException] = []

    def work() -> None:
        try:
            worker_.run()
        except RunnerFailed as error:
            errors.append(error)

    working = threading.Thread(target=work)
    working.start()
    assert inside.wait(ENOUGH)
    eventually(lambda: not state_of(worker_)["alive"], within=ENOUGH)
    go_on.set()
    working.join(ENOUGH)
    assert len(errors) == 1
    assert worker_.shift
    assert worker_.shift.tally.done == 1
    assert len(stored(transport.store, "jobs")) == 4


# -- signals -----------------------------------------------------------------------------------


class Told(ThreadRunner):
    """Its tasks end as the test says: as what a signal may have caused."""

    def endings(self) -> list[Ending]:
        return [
            Ending(ending.delivery, Verdict.FAILED, "killed", signalled=True)
            for ending in super().endings()
        ]


def test_a_failure_by_a_signal_to_all_is_handed_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the worker is stopping soon after."""
    monkeypatch.setattr(worker, "SIGNAL_NOTICE", ENOUGH)
    transport = MemoryTransport()
    ids = filled(transport, 2)
    runner = Told(lambda job: None)
    worker_ = Worker(queue_on(transport), runner=runner, retry=RetryPolicy(max_attempts=1))
    threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    assert worker_.run() == Tally(handed_back=1)
    assert sorted(stored_ids(transport.store, "jobs")) == sorted(ids)


def test_a_failure_by_a_signal_to_itself_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the worker is not stopping a second later."""
    monkeypatch.setattr(worker, "SIGNAL_NOTICE", 0.2)
    transport = MemoryTransport()
    filled(transport, 2)
    runner = Told(lambda job: None)
    worker_ = Worker(queue_on(transport), runner=runner, retry=RetryPolicy(max_attempts=1))
    assert worker_.run(until_empty=True) == Tally(dead=2)


def test_a_signal_that_comes_twice_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timeout(1) sends it; and SIGHUP is never the second one."""
    monkeypatch.setattr(worker, "ECHO", ENOUGH)
    transport = MemoryTransport()
    filled(transport, 3)

    def handle(job: Job[Any]) -> None:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
            time.sleep(0.05)  # the main thread heeds it

    tally = Worker(queue_on(transport), handle).run()
    assert (tally.done, tally.handed_back, tally.forced) == (1, 0, None)


def test_a_terminal_that_is_closed_drains() -> None:
    """Unless the application has its own use for that signal."""
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    transport = MemoryTransport()
    filled(transport, 3)
    tally = Worker(queue_on(transport), lambda job: os.kill(os.getpid(), signal.SIGHUP)).run()
    assert tally.done == 1
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    seen: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: seen.append(number))
    try:
        worker_ = Worker(queue_on(transport), lambda job: os.kill(os.getpid(), signal.SIGHUP))
        assert worker_.run(until_empty=True).done == 2
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert seen


# -- a stop that comes early, and an end that never comes --------------------------------------


@pytest.mark.parametrize("now", [False, True])
def test_a_stop_before_the_run_is_remembered(now: bool) -> None:
    """It takes nothing and returns; the next run works, also after a stop that came too late."""
    transport = MemoryTransport()
    filled(transport, 2)
    worker_ = Worker(queue_on(transport), print)
    worker_.stop(now=now)
    assert worker_.run() == Tally()
    assert len(stored(transport.store, "jobs")) == 2
    worker_.stop()
    assert worker_.run(until_empty=True) == Tally(done=2)


def test_until_empty_waits_for_what_comes_back_soon() -> None:
    transport = MemoryTransport()
    filled(transport, 2)
    times: list[int] = []

    def handle(job: Job[int]) -> None:
        times.append(job.payload)
        if times.count(job.payload) < 3:
            raise RetryLater(0.4)

    assert Worker(queue_on(transport), handle).run(until_empty=True) == Tally(done=2, retried=4)


def test_until_empty_leaves_what_comes_back_late(caplog: pytest.LogCaptureFixture) -> None:
    """And says when that is."""
    transport = MemoryTransport()
    filled(transport, 2)

    def handle(job: Job[int]) -> None:
        if job.payload == 0:
            raise RetryLater(3_600)

    assert Worker(queue_on(transport), handle).run(until_empty=True) == Tally(done=1, retried=1)
    assert "the last one comes back in 36" in caplog.text


@pytest.mark.parametrize("delay", [0.1, 0.3])
def test_until_empty_ends_though_a_task_is_always_put_off(
    monkeypatch: pytest.MonkeyPatch, delay: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Not before its time: tasks of others are done meanwhile."""
    monkeypatch.setattr(worker, "LATER_PATIENCE", 1.0)
    transport = MemoryTransport()
    filled(transport, 3)

    def handle(job: Job[int]) -> None:
        if job.payload < 2:
            raise RetryLater(delay)

    tally = Worker(queue_on(transport), handle).run(until_empty=True)
    assert tally.done == 1
    assert tally.retried > 4
    assert "tasks behind that their handlers put off" in caplog.text
