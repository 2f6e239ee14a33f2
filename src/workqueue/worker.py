"""Working: receive → run → judge → settle, until told to stop.

One thread owns the connection and does nothing else, so that heartbeats go on while a task runs
for hours. Jobs run elsewhere (see `runners`) and ring when they end; whatever ended since the last
turn is settled in one batch.
"""

from __future__ import annotations

import logging
import math
import random
import signal
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from types import FrameType
from typing import Any, Literal

from msgspec.structs import replace

from workqueue.caution import Caution
from workqueue.deadline import within
from workqueue.errors import (
    AccessRefused,
    BrokerFailed,
    ConfigError,
    ConnectionLost,
    ConsumerLost,
    DeliveriesLost,
    QueueNotFound,
    RunnerFailed,
    StorageDamaged,
    StorageError,
    TransportFault,
    Unsupported,
    class_name,
)
from workqueue.forks import Condition, RLock
from workqueue.logs import log
from workqueue.message import EXPIRES_AT, LONGEST_DELAY, Delivery, seconds_since, visible
from workqueue.middleware import Middleware, check_none_wraps, load_middleware
from workqueue.prefetch import LONGEST_WAIT, Pace
from workqueue.progress import Progress
from workqueue.queue import Queue
from workqueue.retry import RetryPolicy, TaskOptions, check_timeout
from workqueue.runners.handler import Handler
from workqueue.runners.process import ProcessRunner
from workqueue.runners.runner import Ending, Runner, Verdict
from workqueue.runners.thread import NO_TIMEOUT, ThreadRunner
from workqueue.transport import (
    DEAD_SUFFIX,
    Ack,
    Consumer,
    Defers,
    Hindered,
    Outcome,
    Reject,
    Requeue,
    Retry,
    TakesBack,
)

MOST_DEATHS = 20
"""Times a message may take a whole worker with it before it is set aside."""

SUSPECT_DEATHS = 2
"""Times a worker was lost with a message until it is a suspect, which runs alone."""

PROBATION = 30.0
"""Seconds after which a suspect that still runs no longer keeps others waiting: what ends its
worker does so at once, and what merely was in a worker that ended may take hours."""

SOONEST_LATER = 0.1
"""Seconds. A handler that asks for no delay at all would be asked again at once, for ever."""

IDLE_BEFORE_EMPTY = 1.0
"""Seconds without an arrival after which a queue counts as empty: brokers' counts lag and lie."""

LATER_PATIENCE = 120.0
"""Seconds that a worker that runs until its queue is empty goes on, or waits, for tasks that their
handlers put off again and again, while no other task has ended."""

STOPPING_TIME = 3.0
"""Seconds for the runner to stop what it can, once all must stop now."""

FINISHING_TIME = 5.0
"""Seconds in which none of the last copies was confirmed, until a drained worker leaves."""

UNPLACED_TIME = 30.0
"""Seconds in which nothing was finished, until a worker that ends by itself gives up the copies
that the broker does not take."""

TURN = 1.0
"""Seconds. The longest wait in one turn."""

SHORT_LIFE = 1.0
"""Seconds. A consumer that was lost sooner was as good as never open."""

LONGEST_REST = 10.0
"""Seconds between two consumers, where each was lost as soon as it was open."""

LOOK_EVERY = 0.02
"""Seconds between looks at how long what has not begun is waiting already."""

MOST_AT_ONCE = 1_000
"""Deliveries taken in one turn where their number is unlimited."""

SIGNAL_NOTICE = 1.0
"""Seconds after which a failure is judged that a stop signal may have caused. Whoever signals all
processes of a service (systemd does, by default) signals the worker too, but not always first."""

ECHO = 0.1
"""Seconds in which a signal that comes twice counts once: timeout(1) signals its command and then
the group of its command, and wrappers pass on what the terminal has sent to all."""


NOTHING_ASKED = TaskOptions()


@dataclass(slots=True)
class Tally:
    """What became of the deliveries of one run. `forced` is the signal that ended it at once;
    `unplaced` are of those that were retried or dead, but the broker did not take their copies:
    they run again, as the same attempt."""

    done: int = 0
    retried: int = 0
    dead: int = 0
    handed_back: int = 0
    lost: int = 0
    unplaced: int = 0
    forced: int | None = None

    @property
    def settled(self) -> int:
        return self.done + self.retried + self.dead


class Worker:
    """Works on one queue with `concurrency` slots.

    `handler` is a function of a Job: returning is done, raising is a failed attempt, raising
    Reject sets the task aside, and RetryLater puts it off. Or it is a task, or a queue for all its
    tasks, which is also what runs if there is none. With the runner "thread" it is called in this
    process; with "process" in child processes, which import it by name; with "async" all are
    coroutines of one event loop; or give a Runner of your own.

    A task that failed is tried again as `retry` says (see RetryPolicy; else as the handler's queue
    does, or this one), and then set aside in the dead-letter queue. One that runs longer than
    `timeout` seconds is stopped, and has failed. `grace` (seconds) is how long what runs may go on
    after the first `stop`. With `ack` "early" a task is acknowledged before it runs: at most once,
    instead of at least once. `middleware` are objects, or names of plugins.

    `prefetch` is how many deliveries may be out at this worker, running or not. By default it is
    found out: one per slot while tasks are long, which shares work fairly, and with short ones up
    to 50 ms of work besides; what waits behind a task that turns out long is handed back within
    about 100 ms (see `prefetch`). A number fixes it, at one per slot or more, and then what was
    taken is kept; 0 is unlimited.
    """

    def __init__(
        self,
        queue: Queue,
        handler: Handler | str | None = None,
        *,
        concurrency: int = 1,
        runner: Literal["thread", "process", "async"] | Runner = "thread",
        prefetch: int | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
        grace: float = 30.0,
        ack: Literal["late", "early"] = "late",
        middleware: Sequence[Middleware | str] = (),
    ) -> None:
        if concurrency < 1:
            raise ConfigError(f"concurrency {concurrency}: a worker needs a slot")
        check_timeout(timeout)
        if prefetch is not None and prefetch < 0:
            raise ConfigError(f"prefetch {prefetch}: 0 is unlimited, less makes no sense")
        self.queue = queue
        self.concurrency = concurrency
        self.middleware = load_middleware(middleware)
        if isinstance(runner, str):
            if handler is None:
                handler = own_tasks(queue)
            runner = make_runner(handler, runner, middleware, self.middleware)
        self.runner = runner
        if prefetch is None and ack == "early":
            prefetch = concurrency  # what is acknowledged cannot be handed back
        self.prefetch = prefetch and max(prefetch, concurrency)
        self.retry = retry
        self.timeout = timeout
        self.grace = grace
        self.ack = ack
        self.shift: Shift | None = None
        self.lock = RLock()  # `stop` may be called by a signal handler, in the middle of `run`
        self.stops = 0

    def run(
        self,
        *,
        until_empty: bool = False,
        max_messages: int | None = None,
        ready: Callable[[], None] | None = None,
    ) -> Tally:
        """Work until `stop` is called, SIGTERM or Ctrl-C comes (if this is the main thread),
        `max_messages` were run, or, with `until_empty`, the queue has been empty for a second.
        That waits for retries, and for what handlers put off with RetryLater if it comes back
        within two minutes of the last task that ended otherwise; a later one is left, and said.

        Then no more is taken, what runs is finished, what was not begun goes back. Connection
        losses are survived, for ever; raises only what cannot get better: AccessRefused,
        ConfigError and StorageError at the start, HandlerNotFound, StorageDamaged, TransportFault.

        `ready` is called once, when the handler can be used, before the queue is connected to.
        """
        shift = Shift(self, until_empty=until_empty, max_messages=max_messages)
        with self.lock:
            self.shift = shift  # from here on it is this one that is told to stop
            if self.stops:
                shift.stop(now=self.stops > 1)
            self.stops = 0
        with shift.heeding_signals():
            return shift.work(ready)

    def stop(self, *, now: bool = False) -> None:
        """Begin to drain; with `now`, stop what runs and hand it back. From any thread.

        Before the first `run` it is remembered: that one takes nothing and returns. After a run
        has ended it does nothing.
        """
        with self.lock:
            shift = self.shift
            if shift is None:
                self.stops = max(self.stops, 2 if now else 1)
        if shift is not None:
            shift.stop(now=now)


def own_tasks(queue: Queue) -> Queue:
    if not queue.tasks:
        raise ConfigError("a worker needs a handler, or a queue with tasks of its own")
    return queue


def make_runner(
    handler: Handler | str,
    runner: str,
    names: Sequence[Middleware | str],
    middleware: Sequence[Middleware],
) -> Runner:
    """`names` are `middleware` as it was given: child processes load it for themselves."""
    if runner == "process":
        return ProcessRunner(handler, middleware=names)
    if isinstance(handler, str):
        from workqueue.runners.handler import load_handler

        handler = load_handler(handler)
    if runner == "async":
        from workqueue.runners.coroutine import AsyncRunner

        check_none_wraps(middleware, "an event loop")
        return AsyncRunner(handler)
    if runner != "thread":
        raise ConfigError(f"runner {runner!r}: choose thread, process or async")
    return ThreadRunner(handler, middleware=middleware)


class Shift:
    """One run of a worker, from the first connection to the last acknowledgement."""

    def __init__(self, worker: Worker, *, until_empty: bool, max_messages: int | None) -> None:
        self.worker = worker
        self.queue = worker.queue
        self.runner = worker.runner
        self.until_empty = until_empty
        self.max_messages = max_messages
        self.tally = Tally()
        self.consumer: Consumer | None = None
        self.full: Consumer | None = None
        self.let_in = False
        self.holding = 0
        self.pace = Pace(self.worker.concurrency) if worker.prefetch is None else None
        self.running: dict[Delivery, float] = {}
        self.lost: set[Delivery] = set()
        self.suspects: list[Delivery] = []
        self.on_probation: Delivery | None = None
        self.recalled_at = 0.0
        self.clock = 1.0
        self.waits = 0.0
        self.taken = 0
        self.last_arrival = time.monotonic()
        self.put_off = 0.0
        self.put_off_later = 0.0
        self.next_retry = 0.0
        self.next_later = 0.0
        self.put_off_at = self.progressed_at = time.monotonic()
        self.opened_at = 0.0
        self.short_lived = 0
        self.caution = Caution()
        self.warned_of: float | None = None
        self.turned_at = time.monotonic()
        self.talkative = log.isEnabledFor(logging.DEBUG)
        # Each look at a dead letter counts as a death on some brokers.
        self.on_dead_letters = self.queue.name.endswith(DEAD_SUFFIX)
        self.stops = 0
        self.invite_at: float | None = None
        self.failure: RunnerFailed | None = None
        self.doubtful: list[tuple[float, Ending]] = []
        self.draining_since: float | None = None
        self.finishing = Progress(FINISHING_TIME)
        self.placing = Progress(UNPLACED_TIME)
        self.alarm = Condition()  # a signal may ring it while we have its lock

    # -- told from outside

    def stop(self, *, now: bool = False) -> None:
        self.stops = 2 if now else max(self.stops, 1)
        self.ring()

    def ring(self) -> None:
        """Something happened: end whatever wait there is."""
        with self.alarm:
            self.alarm.notify_all()
        consumer = self.consumer
        if consumer is not None:
            consumer.wake()

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """The first SIGTERM or Ctrl-C drains, the second stops now. SIGHUP, of a terminal that was
        closed, drains as well, unless the application ignores or handles it. Main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        last: dict[int, float] = {}

        def heed(number: int, _frame: FrameType | None) -> None:
            now = time.monotonic()
            echo = number == signal.SIGHUP or now - last.get(number, -ECHO) < ECHO
            last[number] = now
            self.heed(number, again=bool(self.stops) and not echo)

        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, heed) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def heed(self, number: int, *, again: bool) -> None:
        """A stop signal has come, for the first time or `again`."""
        if not self.stops:
            self.invite_at = time.monotonic() + ECHO
        if again:
            self.tally.forced = number
        self.stop(now=again)

    # -- the whole shift

    def work(self, ready: Callable[[], None] | None = None) -> Tally:
        for middleware in self.worker.middleware:
            middleware.started(self.worker)
        try:
            self.runner.start(self.worker.concurrency, self.ring)
            self.check_timeouts()
            if ready is not None:
                ready()
            while not self.finished():
                self.keep_time()
                try:
                    if self.consumer is not None:
                        with within(self.time_left()):
                            self.turn(self.consumer)
                    elif self.all_slots_lost():
                        self.nap(LOOK_EVERY)
                    else:
                        self.consumer = self.connect()
                except ConsumerLost as error:
                    self.lose_all(error)
            if self.failure:
                raise self.failure
            return self.tally
        finally:
            self.leave()

    def time_left(self) -> float:
        """Seconds that the broker may take for the answers of one turn. Once told to stop: until
        all must have ended, but never so few that a broker that does answer would seem to be gone.
        While only copies are on their way, each call has the time that it usually has: a consumer
        that is lost then runs their tasks again."""
        finishing = self.draining_since is not None and not self.running
        if not self.stops or (finishing and self.stops == 1):
            return math.inf
        waited = time.monotonic() - self.draining_since if self.draining_since else 0.0
        return max(FINISHING_TIME, self.worker.grace + FINISHING_TIME - waited)

    def keep_time(self) -> None:
        """`clock` is the time as this thread saw it pass: on a machine with too much to do it is
        the machine that is late, and not the tasks."""
        before, self.turned_at = self.turned_at, time.monotonic()
        self.clock += min(self.turned_at - before, self.waits + LOOK_EVERY)

    def check_timeouts(self) -> None:
        """Before anything is taken: Unsupported where a timeout could not be kept."""
        wanted = [self.worker.timeout, *(asked.timeout for asked in self.runner.options.values())]
        if isinstance(self.runner, ThreadRunner) and any(wanted):
            raise Unsupported(NO_TIMEOUT, hint="Use runner='process', which can.")

    def finished(self) -> bool:
        if self.stops and self.consumer is None:
            return True  # never connected, or the connection is gone: nothing to hand back
        if self.draining_since is not None:
            return self.nothing_left() or not self.finishing_goes_on(self.draining_since)
        return False

    def finishing_goes_on(self, since: float) -> bool:
        """Tasks have their grace. Then copies may still be on their way to where they belong: that
        may last as long as more and more of them arrive, but not after a second signal."""
        now = time.monotonic()
        if self.running or self.consumer is None:
            return now - since <= self.worker.grace + FINISHING_TIME
        left = 0 if self.stops > 1 else self.consumer.unsettled
        return self.finishing.goes_on(left, now)

    def nothing_left(self) -> bool:
        return not self.running and self.consumer is not None and not self.consumer.unsettled

    def turn(self, consumer: Consumer) -> None:
        """Settle what has ended, take what can be started, begin it."""
        self.heed_stops(consumer)
        self.settle(consumer)
        self.keep_pace(consumer)
        self.waits = self.patience()
        received = self.receive(consumer, self.room(), self.waits)
        for delivery in received:
            self.begin(consumer, delivery)
        self.take_heart(consumer, len(received))
        self.begin_suspect(consumer)
        self.take_no_more(consumer)
        self.expect_retries(consumer)
        if received or consumer.unsettled:
            self.last_arrival = time.monotonic()  # what is not settled may keep more from coming
        if self.stops:
            return
        in_vain = self.only_put_off() or self.cannot_be_emptied(consumer)
        if in_vain or (not received and (self.empty() or self.enough())):
            self.stop()

    def receive(self, consumer: Consumer, limit: int, patience: float) -> list[Delivery]:
        try:
            received = consumer.receive(limit, patience)
            if received or received is None:
                self.check_received(consumer, received, limit)
            return received
        except DeliveriesLost as lost:
            log.warning("%s; %d tasks may be done twice", lost, len(lost.deliveries))
            self.lose(lost.deliveries)
            if self.all_slots_lost() and not self.running and self.draining_since is None:
                raise ConsumerLost(f"{lost}, and no slot is free") from lost
            return []

    def check_received(self, consumer: Consumer, received: object, limit: int) -> None:
        """A mistake of the driver ends the worker: its deliveries go to others, and nothing of
        what it handed out wrongly is begun."""
        if fault := fault_in(received, limit, self.queue.name, self.running):
            raise TransportFault(f"the transport is at fault: {class_name(consumer)} {fault}")

    def room(self) -> int:
        """How many more can be started now."""
        if self.draining_since is not None or self.suspects or self.suspect_runs():
            return 0
        free = self.most() - len(self.running) - len(self.lost)
        if self.max_messages is not None:
            free = min(free, self.max_messages - self.taken)
        return max(free, 0)

    def most(self) -> int:
        """How many deliveries may be out, begun or not."""
        if self.caution.one_at_a_time:
            return 1 + len(self.lost)  # lost tasks may go on for hours, in slots of their own
        if self.pace is not None:
            return self.pace.held
        return self.worker.prefetch or len(self.running) + MOST_AT_ONCE

    def patience(self) -> float:
        if self.doubtful:
            return LOOK_EVERY
        if self.suspect_may_begin() or (self.enough() and self.draining_since is None):
            return 0.0
        if self.until_empty and not self.running:
            return min(TURN, max(0.01, self.last_arrival + IDLE_BEFORE_EMPTY - time.monotonic()))
        if self.draining_since is not None:
            return 0.1
        if self.pace is not None and len(self.running) > self.worker.concurrency:
            return LOOK_EVERY
        return TURN

    # -- holding more than runs

    def keep_pace(self, consumer: Consumer) -> None:
        """Hold as many deliveries as suit the tasks, and none behind a task that turns out long."""
        pace = self.pace
        if pace is None or self.draining_since is not None or self.all_taken():
            return
        if self.suspects and pace.held > self.worker.concurrency:
            pace.shrink()  # what is held beside one of them shares its fate
            self.hold(consumer)
        elif self.longest_wait() > LONGEST_WAIT:
            self.recalled_at = self.clock
            if pace.held > self.worker.concurrency:
                pace.shrink()
                self.hold(consumer)  # before anything goes back, or it might come here again
            self.runner.recall()
        else:
            pace.changed(self.clock)
            self.hold(consumer)

    def hold(self, consumer: Consumer) -> None:
        """As many as `prefetch` says now, if that is another number."""
        if (prefetch := self.prefetch()) != self.holding:
            self.holding = prefetch
            consumer.hold(prefetch)

    def prefetch(self) -> int:
        """How many deliveries may be out. Where that is found out, a lost task that still has its
        slot counts: what is held for that slot, no idle worker could begin."""
        if self.caution.one_at_a_time:
            return 1
        if self.pace is None:
            return self.worker.prefetch or 0
        return max(1, self.pace.held - len(self.lost))

    def all_slots_lost(self) -> bool:
        """Whether tasks that are others' by now, and cannot be stopped, have all slots."""
        return len(self.lost) >= self.worker.concurrency

    def longest_wait(self) -> float:
        """How long the oldest of what has not begun has been here. Jobs are begun in the order in
        which they came: it is the first after as many as there are slots."""
        oldest = islice(self.running.values(), self.worker.concurrency, None)
        return self.clock - max(next(oldest, self.clock), self.recalled_at)

    def expect_retries(self, consumer: Consumer) -> None:
        """From when the broker has what was put off, its delay counts, and a hundredth more."""
        if consumer.unsettled or not (self.put_off or self.put_off_later):
            return
        now = time.monotonic()
        self.next_retry = max(self.next_retry, now + self.put_off * 1.01)
        self.next_later = max(self.next_later, now + self.put_off_later * 1.01)
        self.put_off = self.put_off_later = 0.0

    def empty(self) -> bool:
        """Nothing arrived for a while, nothing of ours can still come back, and the broker does
        not contradict."""
        idle = time.monotonic() - self.last_arrival
        if not self.until_empty or idle < IDLE_BEFORE_EMPTY or not self.nothing_left():
            return False
        now = time.monotonic()
        if now < self.next_retry + IDLE_BEFORE_EMPTY:
            return False
        waits = now < self.next_later + IDLE_BEFORE_EMPTY
        if waits and worth_waiting(self.next_later, self.progressed_at):
            return False
        self.last_arrival = now
        try:
            stats = self.queue.stats()
        except StorageDamaged:
            raise
        except (ConnectionLost, QueueNotFound, StorageError):
            return False
        # No consumers, while we are one: a queue that does not answer, as after a broker's start.
        is_empty = not stats.ready and stats.consumers != 0
        if is_empty and waits:
            self.say_what_waits()
        return is_empty

    def only_put_off(self) -> bool:
        """Whether handlers have put off all that came for so long that the worker leaves it: it
        would never find its queue empty. A task that runs long is another matter."""
        if not self.until_empty or worth_waiting(self.put_off_at, self.progressed_at):
            return False
        if self.longest_run() > LATER_PATIENCE / 2:
            return False
        self.say_what_waits()
        return True

    def longest_run(self) -> float:
        """For how long the oldest of what runs has been here."""
        return self.clock - next(iter(self.running.values()), self.clock)

    def say_what_waits(self) -> None:
        log.warning(
            "leaving tasks behind that their handlers put off (RetryLater): the last one comes "
            "back in %.0f s, and no other task has ended for %.0f s",
            max(0.0, self.next_later - time.monotonic()),
            time.monotonic() - self.progressed_at,
        )

    def cannot_be_emptied(self, consumer: Consumer) -> bool:
        """Whether `until_empty` waits in vain, for copies that the broker does not take."""
        left = len(self.running), consumer.unsettled
        if self.placing.goes_on(left, time.monotonic()) or not self.until_empty or self.running:
            return False
        if not consumer.unsettled or self.stops:
            return False
        if isinstance(consumer, Defers) and consumer.due_in is not None:
            self.placing = Progress(UNPLACED_TIME)  # from when its time has come
            return False
        why = consumer.hindered if isinstance(consumer, Hindered) else None
        log.error(
            "giving up after %g s: the copies of %d tasks cannot be placed%s",
            UNPLACED_TIME,
            consumer.unsettled,
            f": {why}" if why else "",
        )
        return True

    def take_no_more(self, consumer: Consumer) -> None:
        """Once all were taken that are to be run, the consumer keeps no others from others."""
        if self.all_taken() and self.full is not consumer:
            self.full = consumer
            consumer.pause()

    def all_taken(self) -> bool:
        return self.max_messages is not None and self.taken >= self.max_messages

    def enough(self) -> bool:
        return self.all_taken() and not self.suspects and not self.running

    # -- one delivery

    def begin(self, consumer: Consumer, delivery: Delivery) -> None:
        self.taken += 1
        if refusal := self.refusal(delivery):
            consumer.settle([self.record(refusal)])
        elif delivery.deaths >= SUSPECT_DEATHS and not self.on_dead_letters:
            self.suspects.append(delivery)
        else:
            self.run(consumer, delivery)

    def refusal(self, delivery: Delivery) -> Reject | None:
        """What must not even be tried. Whoever works on dead letters knows what they are."""
        if delivery.unreadable:
            return Reject(delivery, delivery.unreadable)
        if self.on_dead_letters:
            return None
        if delivery.deaths > MOST_DEATHS:
            return Reject(delivery, f"{delivery.deaths} workers were lost while they had it")
        headers = delivery.message.headers
        expires_at = headers.get(EXPIRES_AT) if headers else None
        if isinstance(expires_at, int | float) and expires_at <= time.time():
            return Reject(delivery, "expired")
        return None

    def run(self, consumer: Consumer, delivery: Delivery) -> None:
        if self.worker.ack == "early":
            consumer.settle([Ack(delivery)])
        self.hand_over(delivery)
        if self.worker.middleware:
            self.tell("begun", delivery)

    def hand_over(self, delivery: Delivery) -> None:
        self.running[delivery] = self.clock
        timeout = self.asked_by(delivery).timeout
        self.runner.run(delivery, self.worker.timeout if timeout is None else timeout)

    def asked_by(self, delivery: Delivery) -> TaskOptions:
        options = self.runner.options
        return options.get(delivery.message.type or "", NOTHING_ASKED) if options else NOTHING_ASKED

    def begin_suspect(self, consumer: Consumer) -> None:
        """One of them, once nothing else runs. At random: if it is the one that ends us, the
        others have another chance to come before it next time."""
        if self.suspect_may_begin():
            delivery = self.suspects.pop(random.randrange(len(self.suspects)))
            log.warning(
                "task %s was in %d workers that were lost: it runs alone",
                name(delivery),
                delivery.deaths,
            )
            self.on_probation = delivery
            self.run(consumer, delivery)

    def suspect_may_begin(self) -> bool:
        idle = not self.running and not self.lost and self.draining_since is None
        return bool(self.suspects) and idle

    def suspect_runs(self) -> bool:
        """Whether one runs, and not yet so long that it counts as innocent."""
        began = self.running.get(self.on_probation) if self.on_probation else None
        return began is not None and self.clock - began < PROBATION

    def settle(self, consumer: Consumer) -> None:
        """Whatever has ended since the last turn, in one batch."""
        endings = self.endings()
        if not endings:
            return
        outcomes: list[Outcome] = []
        handed_back: list[Outcome] = []
        self.last_arrival = time.monotonic()
        for ending in endings:
            delivery = ending.delivery
            began = self.running.pop(delivery, None)
            if began is None:
                self.forget_lost(ending)
            elif ending.verdict is not Verdict.UNTOUCHED:
                outcomes.append(self.outcome(ending, self.clock - began))
            elif self.keeps(delivery):
                self.hand_over(delivery)
            else:
                handed_back.append(Requeue(delivery))
        if handed_back:
            self.count_handed_back(handed_back)
        if (outcomes or handed_back) and self.worker.ack == "late":
            consumer.settle([*outcomes, *handed_back])

    def endings(self) -> list[Ending]:
        """What the runner has to say. If a part of it has died, the worker takes no more, lets the
        other tasks finish, and ends."""
        try:
            ended = self.runner.endings()
        except RunnerFailed as failure:
            ended = []
            if self.failure is None:
                self.failure = failure
                log.error("%s: the worker ends", failure)
                self.stop()
        if not self.doubtful and not any(ending.signalled for ending in ended):
            return ended
        return self.without_doubt(ended)

    def without_doubt(self, ended: list[Ending]) -> list[Ending]:
        """Those that can be judged. A task that failed because all processes of the service were
        signalled is handed back; whether they were is known when the worker is signalled too."""
        now = time.monotonic()
        self.doubtful += [(now + SIGNAL_NOTICE, ending) for ending in ended if ending.signalled]
        known = [ending for ending in ended if not ending.signalled]
        if self.stops:
            known += [replace(ending, verdict=Verdict.STOPPED) for _, ending in self.doubtful]
            self.doubtful.clear()
        else:
            known += [ending for at, ending in self.doubtful if at <= now]
            self.doubtful = [(at, ending) for at, ending in self.doubtful if at > now]
        return known

    def outcome(self, ending: Ending, seconds: float) -> Outcome:
        """What becomes of it, counted, and told to whoever wants to know."""
        if ending.verdict is Verdict.DONE:
            outcome = self.record(Ack(ending.delivery))
        else:
            outcome = self.record(self.judged(ending))
        if ending.seconds is not None:
            seconds = ending.seconds
        if self.pace is not None:
            self.pace.measure(seconds, len(ending.delivery.message.body), self.clock)
        if self.worker.middleware:
            self.tell("settled", outcome, seconds)
        return outcome

    def count_handed_back(self, outcomes: list[Outcome]) -> None:
        """They were never begun, and are as good as never taken."""
        self.taken -= len(outcomes)
        self.tally.handed_back += len(outcomes)
        log.info("%d tasks that were not begun handed back", len(outcomes))
        for outcome in outcomes:
            self.tell("settled", outcome, 0.0)

    def keeps(self, delivery: Delivery) -> bool:
        """Whether it is not handed back once more: where hand-backs are counted as deaths, it came
        back too often already, and would soon run alone or be set aside."""
        kept = delivery.deaths > 0 or self.all_taken()
        return kept and self.draining_since is None

    def forget_lost(self, ending: Ending) -> None:
        self.lost.discard(ending.delivery)
        if ending.verdict is not Verdict.UNTOUCHED:
            log.warning("task %s may be done twice: it was lost", name(ending.delivery))

    def judged(self, ending: Ending) -> Outcome:
        """By the policy of the task; by the usual one if a strategy of the user's own raises."""
        try:
            return judge(ending, self.policy(ending.delivery))
        except Exception:  # noqa: BLE001 - strategies may be code of the user's
            log.exception("a retry policy failed: the usual one is followed")
            return judge(ending, RetryPolicy())

    def policy(self, delivery: Delivery) -> RetryPolicy:
        usual = self.worker.retry or self.runner.retry or self.queue.retry
        return self.asked_by(delivery).policy(usual)

    def record(self, outcome: Outcome) -> Outcome:
        """Count it, and say what went wrong."""
        delivery = outcome.delivery
        match outcome:
            case Ack() | Reject() | Retry(failed=True):
                self.progressed_at = self.turned_at
        match outcome:
            case Ack():
                self.tally.done += 1
                if self.talkative:
                    log.debug("task %s done", name(delivery))
            case Retry(_, reason, delay, failed):
                self.tally.retried += 1
                if failed:
                    self.put_off = max(self.put_off, delay)
                else:
                    self.put_off_later = max(self.put_off_later, delay)
                    self.put_off_at = self.turned_at
                told = f"failed, attempt {delivery.attempt}: {reason}" if failed else "waits"
                log.warning("task %s %s; again in %.1f s", name(delivery), told, delay)
            case Reject(_, reason):
                self.tally.dead += 1
                log.error("task %s set aside: %s", name(delivery), visible(reason))
            case Requeue():
                self.tally.handed_back += 1
                log.info("task %s handed back", name(delivery))
        return outcome

    # -- stopping

    def invite_second_signal(self) -> None:
        """Say that once more stops now, when it would: not while it would count as an echo."""
        if self.invite_at is not None and time.monotonic() >= self.invite_at:
            self.invite_at = None
            if self.running and self.stops == 1:
                log.info("finishing %d tasks; once more to stop now", len(self.running))

    def heed_stops(self, consumer: Consumer) -> None:
        self.invite_second_signal()
        if self.stops and self.draining_since is None:
            self.draining_since = time.monotonic()
            consumer.pause()
            self.runner.recall()
            if self.suspects:
                consumer.settle([self.record(Requeue(delivery)) for delivery in self.suspects])
                self.suspects.clear()
        if self.draining_since is None or not self.running:
            return
        if self.stops > 1 or time.monotonic() - self.draining_since >= self.worker.grace:
            self.cut_short(consumer)

    def cut_short(self, consumer: Consumer) -> None:
        """Stop what runs and hand it back, as far as it can be stopped."""
        self.runner.stop()
        deadline = time.monotonic() + STOPPING_TIME
        while self.running and time.monotonic() < deadline:
            self.receive(consumer, 0, 0.1)
            self.settle(consumer)
        if self.worker.ack == "late":
            consumer.settle([self.record(Requeue(delivery)) for delivery in self.running])
        self.running.clear()

    def leave(self) -> None:
        consumer, self.consumer = self.consumer, None
        try:
            if consumer is not None:
                consumer.close()  # it may still make some of them final
                if self.draining_since is not None:
                    self.tally.unplaced += consumer.unsettled
        finally:
            self.runner.close()
            self.tell("stopped")

    def tell(self, what: Literal["begun", "settled", "lost", "stopped"], *news: Any) -> None:
        """Plugins are told, and do no harm."""
        for middleware in self.worker.middleware:
            try:
                getattr(middleware, what)(*news)
            except BaseException:  # noqa: BLE001 - a sys.exit of theirs would undo what was done
                log.exception("middleware %s failed", type(middleware).__name__)

    # -- connections

    def connect(self) -> Consumer | None:
        """A consumer on the queue, however long that takes; None if told to stop meanwhile."""
        from tenacity import Retrying, retry_if_exception

        attempts = Retrying(
            retry=retry_if_exception(self.may_get_better),
            wait=self.wait_before_next,
            sleep=self.nap,
            before_sleep=self.say_that_it_waits,
            stop=lambda _state: bool(self.stops),
            reraise=True,
        )
        try:
            consumer = attempts(self.open_consumer)
        except Exception as error:
            if self.stops and self.may_get_better(error):
                return None
            raise
        self.opened_at = self.last_arrival = self.progressed_at = time.monotonic()
        self.warn_of_timeout(consumer)
        return consumer

    def open_consumer(self) -> Consumer:
        if not self.let_in and self.queue.declare():
            log.info("made queue %s", self.queue.name)
        if self.pace is not None:
            self.pace.shrink()  # for a new consumer from the slots upwards again
        self.holding = self.prefetch()
        try:
            consumer = self.queue.transport.consumer(self.queue.name, self.holding)
        except QueueNotFound:
            # Deleted under us. Whoever still sends to it expects it to be worked on.
            log.warning("queue %s was deleted: making it again", self.queue.name)
            self.queue.declare()
            consumer = self.queue.transport.consumer(self.queue.name, self.holding)
        self.let_in = True
        return consumer

    def warn_of_timeout(self, consumer: Consumer) -> None:
        """Say it, once, if tasks may be held longer than the broker waits for them."""
        limit = consumer.takes_back_after if isinstance(consumer, TakesBack) else None
        if limit is None or limit == self.warned_of or self.on_dead_letters:
            return
        if self.longest_hold() >= limit:
            self.warned_of = limit
            log.warning(
                "queue %s was made with an acknowledgement timeout of %g s: longer tasks are taken "
                "away and given to others",
                self.queue.name,
                limit,
            )

    def longest_hold(self) -> float:
        """Seconds until a delivery is settled, at most: it may wait behind others that were taken
        with it, unless what waits too long is handed back."""
        if self.worker.ack == "early":
            return 0.0
        usual = self.worker.timeout
        asked = [options.timeout or usual for options in self.runner.options.values()] or [usual]
        longest = max(math.inf if timeout is None else timeout for timeout in asked)
        if self.pace is not None:
            return longest
        held = self.worker.prefetch
        return longest * (math.ceil(held / self.worker.concurrency) if held else math.inf)

    def may_get_better(self, error: BaseException) -> bool:
        """A worker that was let in once goes on trying: passwords are changed, disks are freed.
        A damaged file is not mended by waiting."""
        if isinstance(error, ConnectionLost | ConsumerLost):
            return True
        if isinstance(error, StorageDamaged):
            return False
        return self.let_in and isinstance(
            error, AccessRefused | ConfigError | StorageError | QueueNotFound
        )

    def wait_before_next(self, state: Any) -> float:
        from tenacity import wait_random_exponential

        refused = isinstance(state.outcome.exception(), AccessRefused)
        wait = wait_random_exponential(multiplier=0.5, max=30.0)(state)
        return 5.0 + wait if refused else max(wait, 0.1)  # never all workers at once

    def say_that_it_waits(self, state: Any) -> None:
        problem, pause = state.outcome.exception(), state.next_action.sleep
        log.warning("%s; trying again in %.1f s", problem, pause)
        if isinstance(problem, BrokerFailed):
            self.be_careful(problem)

    def nap(self, seconds: float) -> None:
        """Sleep, unless told to stop. Whoever waits for a broker is alive."""
        deadline = time.monotonic() + seconds
        while not self.stops and (left := deadline - time.monotonic()) > 0:
            self.keep_time()
            with self.alarm:
                if not self.stops:
                    self.alarm.wait(min(left, TURN))  # a signal may ring just before we listen
            self.forget_ended()

    def lose_all(self, error: ConsumerLost) -> None:
        damage = error.__cause__ if isinstance(error.__cause__, StorageDamaged) else None
        if self.running or not damage:  # else it is raised, and said, below
            log.warning("%s; %d running tasks may be done twice", error, len(self.running))
        self.tell("lost", error)
        self.lose(list(self.running))
        self.suspects.clear()
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.close()
            if self.stops:
                self.tally.unplaced += consumer.unsettled
        if damage:
            raise damage
        if isinstance(error.__cause__, BrokerFailed):
            self.be_careful(error.__cause__)
        self.rest()

    def be_careful(self, failure: BrokerFailed) -> None:
        """The broker failed, perhaps at a message: find out at which one."""
        was_careful = self.caution.one_at_a_time
        self.caution.failed(self.holding or MOST_AT_ONCE, time.monotonic())
        if self.caution.at_head == 2:
            log.error(
                "queue %s: the broker cannot deliver the next message of this queue. %s "
                "A queue with a delivery limit sets it aside after so many deliveries; in any "
                "other it stays in the way until it is purged",
                self.queue.name,
                failure.hint,
            )
        elif self.caution.one_at_a_time and not was_careful:
            log.warning(
                "queue %s: perhaps it is one of its messages: the next %d are taken one at a time",
                self.queue.name,
                self.caution.left,
            )

    def take_heart(self, consumer: Consumer, received: int) -> None:
        """Hold as much as before, once so many deliveries came one at a time that the message at
        which the broker failed is not among the next ones any more, or once the broker has not
        failed for long."""
        if received and self.caution.at_head:
            log.warning("queue %s: the broker delivers again", self.queue.name)
        if self.caution.came(received, time.monotonic()):
            log.warning("queue %s: no longer taken one at a time", self.queue.name)
            self.hold(consumer)

    def rest(self) -> None:
        """Before another consumer is opened, if the last ones were lost as soon as they were open:
        what opens and then fails would be opened again a hundred times a second."""
        lasted = time.monotonic() - self.opened_at
        self.short_lived = self.short_lived + 1 if lasted < SHORT_LIFE else 0
        if self.caution.at_head:
            self.nap(random.uniform(0.1, self.caution.rest))
        elif self.short_lived > 1:
            longest = 0.1 * 2 ** min(self.short_lived, 10)  # an unbounded power ends as an error
            self.nap(random.uniform(0.1, min(LONGEST_REST, longest)))

    def lose(self, deliveries: list[Delivery]) -> None:
        """They are others' now. Their handlers are told, and their endings settle nothing."""
        self.suspects = [delivery for delivery in self.suspects if delivery not in deliveries]
        lost = [delivery for delivery in deliveries if self.running.pop(delivery, None)]
        self.lost.update(lost)
        self.tally.lost += len(lost)
        self.runner.lose(lost)

    def forget_ended(self) -> None:
        """While there is no connection, lost tasks go on ending."""
        for ending in self.endings():
            self.running.pop(ending.delivery, None)
            self.lost.discard(ending.delivery)


def fault_in(received: object, limit: int, queue: str, running: Container[Delivery]) -> str:
    """What is wrong with the deliveries that a driver returned; "" if nothing is.

    More than were asked for could not be started; one that is out already would be settled twice;
    one of another queue would get that queue's task done by this one's handler.
    """
    if not isinstance(received, list):
        return f"returned {type(received).__name__} instead of a list of deliveries"
    if len(received) > limit:
        return f"handed out {len(received)} deliveries where {limit} were asked for"
    if len(set(received)) < len(received) or any(one in running for one in received):
        return "handed out a delivery that is out already"
    for delivery in received:
        if delivery.queue != queue:
            return f"handed out a delivery of the queue {delivery.queue} to a worker of {queue}"
    return ""


def worth_waiting(until: float, progressed_at: float) -> bool:
    """Whether a worker that runs until its queue is empty waits until then for what was put off,
    if the last task that was not put off ended at `progressed_at`."""
    return until <= progressed_at + LATER_PATIENCE


def judge(ending: Ending, policy: RetryPolicy) -> Outcome:
    """Every way in which a run can end becomes one of four outcomes, here."""
    delivery, reason = ending.delivery, ending.reason
    claimed = seconds_since(delivery.message.sent_at, time.time()) or 0.0
    age = max(claimed, policy.least_age(delivery.attempt))
    match ending.verdict:
        case Verdict.DONE:
            return Ack(delivery)
        case Verdict.STOPPED | Verdict.UNTOUCHED:
            return Requeue(delivery)
        case Verdict.REJECTED:
            return Reject(delivery, reason, ending.error)
        case Verdict.LATER:
            delay = min(max(SOONEST_LATER, ending.delay), LONGEST_DELAY)  # the soonest for NaN
            return Retry(delivery, reason, delay, failed=False)
        case Verdict.AGAIN:
            return Retry(delivery, reason, policy.pause(delivery.attempt, age))
        case Verdict.FAILED:
            pause = policy.delay(delivery.attempt, age)
            if pause is None:
                return Reject(delivery, reason, ending.error)
            return Retry(delivery, reason, pause)


def name(delivery: Delivery) -> str:
    return visible(delivery.message.id or "without id")
