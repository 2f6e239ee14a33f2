"""In child processes, one per slot: what a job does to its process, it does to itself alone.

A child that crashes, is killed or runs out of memory is the failed attempt of the one job that it
ran, and is replaced. Children are started afresh, not forked: a forked child would hold the
broker's connection open after the worker was killed, and keep its messages from going to others.

A child is given a few milliseconds of jobs at once, and its next job while it still runs one. What
it has not begun can be taken back at any time (see `child` about tokens): when it is held up by a
long job, when it dies, and when the worker asks.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Literal

import msgspec

from workqueue.codec import encodable
from workqueue.errors import HandlerNotFound
from workqueue.logs import log
from workqueue.message import Delivery
from workqueue.middleware import Middleware, check_none_wraps
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.child import (
    LOSE,
    READY,
    STOP,
    UNUSABLE,
    Inbox,
    Page,
    Report,
    Setup,
    Task,
    head,
    token,
)
from workqueue.runners.guard import Guard, inherited, open_pidfd, signals_held, starting
from workqueue.runners.handler import Handler, described, name_of
from workqueue.runners.runner import STOP_STATUSES, Ending, Failure, Verdict, timed_out
from workqueue.runners.watchdog import signal_session
from workqueue.transports.bell import Bell

PAUSE_AFTER_CRASH = 1.0
"""Seconds before a child that died before it was ready is replaced."""

CLEANUP_TIME = 2.0
"""Seconds between asking a child to stop and killing it."""

LOST_NOTICE = 1.0
"""Seconds in which a handler that was told of its loss may finish by itself."""


RELOAD_LOOK = 0.5
"""Seconds between looks at the handler's files."""

RUN_TIME = 0.005
"""Seconds of work that a child is given at once."""

LONGEST_RUN = 100

HELD_UP = 0.02
"""Seconds without a word after which what a child has not begun is given to another."""


class Slot(msgspec.Struct, eq=False):
    """A child process and its jobs, oldest first, which it began in this order."""

    process: subprocess.Popen[bytes]
    jobs: socket.socket
    control: socket.socket
    tokens: tuple[int, int]
    page: Page
    end: int | None = None
    ready: bool = False
    given: deque[tuple[int, Delivery]] = msgspec.field(default_factory=deque)
    number: int = 0
    heard_at: float = 0.0
    held_up: bool = False
    timeout: float | None = None
    stopping: bool = False
    late: bool = False
    stale: bool = False
    writing: bool = False
    inbox: Inbox = msgspec.field(default_factory=Inbox)
    outbox: bytearray = msgspec.field(default_factory=bytearray)

    @property
    def delivery(self) -> Delivery | None:
        """What it runs, unless that is done and not reported yet."""
        return self.given[0][1] if self.given else None


class Alarm(msgspec.Struct, frozen=True):
    """What is to happen at a time of the monotonic clock: to a child, if it still runs the same
    job, or, without one, the launch of another. `late` says that the job's time is over."""

    at: float
    slot: Slot | None = None
    delivery: Delivery | None = None
    late: bool = False


Word = Literal["run", "recall", "lose", "stop", "close"]


class ProcessRunner:
    """`handler` is a function that can be imported, or its name, "module:function".

    One thread owns the children; the worker's thread only posts orders to it. With
    `finish_lost`, a job whose message was taken away is told, but not stopped. With `reload`,
    children are replaced when the files of the handler change, each after the job it runs.
    """

    def __init__(
        self,
        handler: Handler | str,
        *,
        finish_lost: bool = False,
        reload: bool = False,
        middleware: Sequence[Middleware | str] = (),
    ) -> None:
        self.middleware = names_of(middleware)
        self.handler = handler if isinstance(handler, str) else name_of(handler)
        self.finish_lost = finish_lost
        self.reload = reload
        self.thread: threading.Thread | None = None

    # -- the worker's side

    def start(self, slots: int, ring: Callable[[], None]) -> None:
        if not encodable(self.handler):
            raise HandlerNotFound(f"there is no handler {self.handler!a}: that is not UTF-8")
        self.ring = ring
        self.orders: deque[tuple[Word, Delivery | None, float | None]] = deque()
        self.ended: deque[Ending] = deque()
        self.slots: list[Slot] = []
        self.backlog: deque[tuple[Delivery, float | None]] = deque()
        self.alarms: list[Alarm] = []
        self.stopping = False
        self.news = False
        self.mean = 0.0
        self.encoder = msgspec.msgpack.Encoder(enc_hook=str)
        self.decoder = msgspec.msgpack.Decoder(Report)
        self.options: Mapping[str, TaskOptions] = {}
        self.retry: RetryPolicy | None = None
        self.files: dict[str, float] = {}
        self.vacant = 0
        self.unusable: HandlerNotFound | None = None
        self.failure = Failure()
        self.started = threading.Event()
        self.launch_all(slots)
        self.thread = threading.Thread(target=self.serve, name="workqueue-children", daemon=True)
        self.thread.start()
        self.wait_for_first()

    def launch_all(self, slots: int) -> None:
        """The children and what it takes to own them. Raises ConfigError, and leaves nothing."""
        with starting(), ExitStack() as started:
            self.bell = Bell()
            started.callback(self.bell.close)
            self.guard = Guard()
            started.callback(self.guard.close)
            self.selector = selectors.DefaultSelector()
            self.selector.register(self.bell, selectors.EVENT_READ)
            started.callback(self.end_all)
            for _ in range(slots):
                self.slots.append(self.launch())
            started.pop_all()

    def wait_for_first(self) -> None:
        """One child has imported the handler: it can be done. Raises HandlerNotFound."""
        self.started.wait()
        if problem := self.unusable or self.failure.error:
            self.close()
            raise problem

    def order(
        self, word: Word, delivery: Delivery | None = None, timeout: float | None = None
    ) -> None:
        self.orders.append((word, delivery, timeout))
        self.bell.ring()

    def run(self, delivery: Delivery, timeout: float | None = None) -> None:
        self.order("run", delivery, timeout)

    def recall(self) -> None:
        self.order("recall")

    def endings(self) -> list[Ending]:
        self.failure.raise_once()
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
        if self.failure:
            ended += self.forgotten()
        if self.unusable and not ended:
            raise self.unusable
        return ended

    def forgotten(self) -> list[Ending]:
        """What was given to a runner whose thread has died, and has no ending."""
        given = [delivery for slot in self.slots for _, delivery in slot.given]
        given += [delivery for delivery, _ in self.backlog]
        given += [delivery for _, delivery, _ in self.orders if delivery is not None]
        for slot in self.slots:
            slot.given.clear()
        self.backlog.clear()
        self.orders.clear()
        return [Ending(delivery, Verdict.STOPPED) for delivery in dict.fromkeys(given)]

    def lose(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in reversed(deliveries):  # what runs comes last, or the next would begin
            self.order("lose", delivery)

    def stop(self) -> None:
        self.order("stop")

    def close(self) -> None:
        if self.thread is None:
            return
        thread, self.thread = self.thread, None
        self.order("close")
        thread.join()
        if self.failure:
            with suppress(Exception):
                self.end_all()
        self.guard.close()
        self.bell.close()

    # -- the thread that owns the children

    def serve(self) -> None:
        """With its last guard: without it nothing would run any more, and nobody would know."""
        try:
            self.own_children()
        except BaseException as error:  # noqa: BLE001
            self.failure.set(f"the thread that owns the child processes died: {described(error)}")
            self.started.set()
            self.ring()

    def own_children(self) -> None:
        while True:
            for key, events in self.selector.select(self.patience()):
                if key.fileobj is self.bell:
                    self.bell.answer()
                else:
                    self.attend(key.data, events)
            while self.orders:
                word, delivery, timeout = self.orders.popleft()
                if word == "close":
                    self.end_all()
                    return
                self.obey(word, delivery, timeout)
            self.sound_alarms()
            if self.reload and self.files_changed():
                self.replace_children()
            self.relieve()
            self.assign()
            if self.news:
                self.news = False
                self.ring()

    def patience(self) -> float | None:
        now = time.monotonic()
        waits = [alarm.at - now for alarm in self.alarms]
        waits += [slot.heard_at + HELD_UP - now for slot in self.slots if len(slot.given) > 1]
        if self.reload:
            waits.append(RELOAD_LOOK)
        return max(0.0, min(waits)) if waits else None

    def obey(self, word: Word, delivery: Delivery | None, timeout: float | None) -> None:
        match word:
            case "run":
                assert delivery is not None
                self.backlog.append((delivery, timeout))
            case "recall":
                self.take_all_back()
                self.end_backlog(Verdict.UNTOUCHED)
            case "lose":
                self.tell_of_loss(delivery)
            case "stop":
                self.stopping = True
                self.take_all_back()
                self.end_backlog(Verdict.STOPPED)
                for slot in self.slots:
                    if slot.given:
                        self.interrupt(slot)

    def end_backlog(self, verdict: Verdict) -> None:
        for waiting, _ in self.backlog:
            self.end(Ending(waiting, verdict))
        self.backlog.clear()

    # -- giving jobs to children, and taking them back

    def assign(self) -> None:
        """Jobs that wait go to children that are idle, and then to those that soon will be."""
        if not self.backlog:
            return
        now = time.monotonic()
        ready = [slot for slot in self.slots if slot.ready and not (slot.stopping or slot.stale)]
        for slot in ready:
            if self.backlog and not slot.given:
                self.give(slot, 1)
        if not all(slot.ready for slot in self.slots):
            return  # what is next is for those that are about to start
        run = max(2, min(LONGEST_RUN, int(RUN_TIME / self.mean) if self.mean else 2))
        for index, slot in enumerate(ready):
            soon = len(slot.given) <= run // 2 and now - slot.heard_at < HELD_UP
            if self.backlog and soon and not slot.held_up:
                share = -(-len(self.backlog) // (len(ready) - index))
                self.give(slot, min(run - len(slot.given), share))

    def give(self, slot: Slot, count: int) -> None:
        """The next jobs of the backlog; one with a timeout comes alone, so that it is known when
        it begins."""
        tokens, frames = bytearray(), bytearray()
        while self.backlog and count and slot.timeout is None:
            delivery, timeout = self.backlog[0]
            if timeout is not None and slot.given:
                break
            self.backlog.popleft()
            frame = self.frame(slot.number + 1, delivery)
            if frame is None:
                continue
            if timeout is not None:
                slot.timeout = timeout
                self.alarms.append(Alarm(time.monotonic() + timeout, slot, delivery, late=True))
            if not slot.given:
                slot.heard_at = time.monotonic()
            slot.number += 1
            slot.given.append((slot.number, delivery))
            tokens += token.pack(slot.number)
            frames += frame
            count -= 1
        if frames:
            os.write(slot.tokens[1], tokens)  # first: without its token no job is begun
            self.send(slot, frames)

    def frame(self, number: int, delivery: Delivery) -> bytes | None:
        """A job as a child reads it. None if it cannot be written, and so never be run here."""
        message, came_back = delivery.message, delivery.redelivered
        task = Task(number, message, delivery.queue, delivery.attempt, came_back)
        try:
            return framed(self.encoder.encode(task))
        except Exception as error:  # noqa: BLE001 - headers come from anybody
            told = f"it cannot be given to a child process: {described(error)}"
            self.end(Ending(delivery, Verdict.REJECTED, told))
            return None

    def relieve(self) -> None:
        """Whoever is held up by a long job keeps others waiting no more."""
        now = time.monotonic()
        for slot in reversed(self.slots):
            if len(slot.given) > 1 and now - slot.heard_at >= HELD_UP:
                slot.held_up = True
                self.take_back(slot)

    def take_all_back(self) -> None:
        for slot in reversed(self.slots):
            self.take_back(slot)

    def take_back(self, slot: Slot) -> None:
        """What it has not begun returns to the head of the backlog."""
        count = self.untouched(slot)
        self.listen(slot)  # a failure is reported before the next job is begun
        self.put_back(slot, count)

    def untouched(self, slot: Slot) -> int:
        """How many of its jobs it has not begun, and now never will."""
        with suppress(BlockingIOError):
            return len(os.read(slot.tokens[0], token.size * (LONGEST_RUN + 1))) // token.size
        return 0

    def put_back(self, slot: Slot, count: int) -> None:
        """The last `count` of its jobs; of the others all are done but the last."""
        for _ in range(count):
            _, delivery = slot.given.pop()
            self.backlog.appendleft((delivery, slot.timeout))
            self.alarms = [alarm for alarm in self.alarms if alarm.delivery is not delivery]
        if not slot.given:
            slot.timeout = None
        while len(slot.given) > 1:
            self.end(Ending(slot.given.popleft()[1], Verdict.DONE))

    # -- one child

    def launch(self) -> Slot:
        with ExitStack() as ours, ExitStack() as childs:
            jobs, childs_jobs = socket.socketpair()
            ours.enter_context(jobs)
            childs.enter_context(childs_jobs)
            control, childs_control = socket.socketpair()
            ours.enter_context(control)
            childs.enter_context(childs_control)
            tokens = os.pipe()
            for descriptor in tokens:
                ours.callback(os.close, descriptor)
            os.set_blocking(tokens[0], False)
            shared = childs.enter_context(new_page())
            page = Page(shared.fileno())
            ours.callback(page.close)
            process = self.new_process(
                [childs_jobs.fileno(), childs_control.fileno(), tokens[0], shared.fileno()]
            )
            ours.pop_all()
        self.guard.watch(process.pid)
        jobs.setblocking(False)
        slot = Slot(process, jobs, control, tokens, page)
        self.selector.register(jobs, selectors.EVENT_READ, slot)
        setup = Setup(handler=self.handler, path=sys.path, middleware=self.middleware)
        self.send(slot, framed(self.encoder.encode(setup)))
        return slot

    def new_process(self, descriptors: Sequence[int]) -> subprocess.Popen[bytes]:
        with signals_held():
            return subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-c",
                    "from workqueue.runners.child import main; main()",
                    *map(str, descriptors),
                ],
                stdin=subprocess.DEVNULL,
                stdout=inherited(1),
                stderr=inherited(2),
                pass_fds=descriptors,
                start_new_session=True,
                env=self.guard.environment(),
            )

    def launch_another(self) -> None:
        """In place of one that is gone; a little later, if the system is short of something."""
        try:
            self.slots.append(self.launch())
        except OSError as error:
            log.error("no child process can be started: %s", error.strerror)
            self.alarms.append(Alarm(time.monotonic() + PAUSE_AFTER_CRASH))

    def send(self, slot: Slot, frames: bytes | bytearray) -> None:
        slot.outbox += frames
        self.flush(slot)

    def flush(self, slot: Slot) -> None:
        """Write what the child takes now; the rest when it takes more."""
        try:
            while slot.outbox:
                del slot.outbox[: slot.jobs.send(slot.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            slot.outbox.clear()  # it is dead or dying; the end of its socket will say so
        if slot.writing != bool(slot.outbox):
            slot.writing = bool(slot.outbox)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if slot.writing else 0)
            self.selector.modify(slot.jobs, events, slot)

    def attend(self, slot: Slot, events: int) -> None:
        if slot.end is not None:
            self.bury(slot)
            return
        if events & selectors.EVENT_WRITE:
            self.flush(slot)
        if events & selectors.EVENT_READ and not self.listen(slot):
            self.await_end(slot)

    def await_end(self, slot: Slot) -> None:
        """Its socket has ended, and as a rule the child with it. But a handler that has closed all
        descriptors may still be at work, and how it ends will be on the page."""
        slot.end = open_pidfd(slot.process.pid)
        if slot.end is None:
            self.bury(slot)
            return
        slot.stale, slot.writing = True, False
        slot.outbox.clear()
        self.selector.unregister(slot.jobs)
        self.selector.register(slot.end, selectors.EVENT_READ, slot)
        self.take_back(slot)

    def listen(self, slot: Slot) -> bool:
        """Hear all that it has said; False at the end of its socket."""
        while True:
            try:
                data = slot.jobs.recv(1 << 18)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            slot.inbox.feed(data)
            while (frame := slot.inbox.frame()) is not None:
                self.hear(slot, self.decoder.decode(frame))

    def hear(self, slot: Slot, report: Report) -> None:
        if report.verdict == READY:
            self.welcome(slot, report)
        elif report.verdict == UNUSABLE and self.reload and self.started.is_set():
            log.error("%s; waiting for the next change", report.reason)
        elif report.verdict == UNUSABLE:
            self.give_up(report.reason, hint=report.error)
        elif slot.given and slot.given[0][0] == report.number:  # else it is known already
            self.finish(slot, slot.given.popleft()[1], report)
            slot.heard_at = time.monotonic()
            slot.held_up = False
            slot.timeout = None
            if report.seconds is not None:
                self.mean += (report.seconds - self.mean) / 20
            if slot.stopping or slot.stale:
                # A signal may still be on its way: this child runs nothing any more.
                slot.stopping = True
                signal_session(slot.process.pid, signal.SIGKILL)

    def welcome(self, slot: Slot, report: Report) -> None:
        """A child is ready; the first one lets `start` return."""
        slot.ready = True
        self.files = {file: modified(file) for file in report.files}
        self.options = report.options
        try:
            self.retry = pickle.loads(report.retry)  # noqa: S301 - from our own child
        except Exception as error:  # noqa: BLE001 - it runs code of the user's
            told = f"the retry policy of {self.handler} cannot be used here: {described(error)}"
            self.give_up(told, hint="Its strategies must be importable by the worker too.")
        self.started.set()

    def finish(self, slot: Slot, delivery: Delivery, report: Report) -> None:
        """The job's ending: what the handler did, unless we stopped it before it was done."""
        verdict = Verdict(report.verdict)
        if verdict is not Verdict.STOPPED:
            told = report.reason, report.error, report.delay, report.seconds, report.signalled
            self.end(Ending(delivery, verdict, *told))
        elif slot.late and slot.timeout is not None:
            self.end(timed_out(delivery, slot.timeout, report.error))
        else:
            self.end(Ending(delivery, verdict))

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)
        self.news = True

    def bury(self, slot: Slot) -> None:
        """A child is gone: that was the failed attempt of its job, and a new child takes over.

        What it was given and had not begun goes to others.
        """
        self.put_back(slot, self.untouched(slot))
        self.selector.unregister(slot.jobs if slot.end is None else slot.end)
        self.slots.remove(slot)
        self.alarms = [alarm for alarm in self.alarms if alarm.slot is not slot]
        status = self.finish_off(slot)
        if slot.delivery is not None:
            self.finish(slot, slot.delivery, self.last_words(slot, status))
        slot.page.close()
        if self.stopping or self.unusable:
            return
        if slot.ready or slot.stopping:
            self.launch_another()
        elif self.started.is_set() and self.reload:
            self.vacant += 1  # until its files change, another would fail as well
        elif self.started.is_set():
            log.error("a new child process %s before it was ready", how_it_died(status))
            self.alarms.append(Alarm(time.monotonic() + PAUSE_AFTER_CRASH))
        else:
            self.give_up(f"importing {self.handler} ended its process: it {how_it_died(status)}")

    def last_words(self, slot: Slot, status: int) -> Report:
        """How the job of a dead child ended: as it noted on its page, or with it."""
        number, _ = slot.given[0]
        with suppress(msgspec.DecodeError):
            report = self.decoder.decode(slot.page.read())
            if report.number == number:
                return report
        if slot.stopping:
            return Report(Verdict.STOPPED.value)
        told = f"its process {how_it_died(status)}"
        signalled = status in STOP_STATUSES
        return Report(Verdict.FAILED.value, reason=told, signalled=signalled)

    def finish_off(self, slot: Slot) -> int:
        """Whatever is left of a child and what it started is killed; its exit status."""
        signal_session(slot.process.pid, signal.SIGKILL)
        slot.process.kill()  # without /proc, or a descriptor to read it, no session is found
        status = slot.process.wait()
        slot.jobs.close()
        slot.control.close()
        if slot.end is not None:
            os.close(slot.end)
        os.close(slot.tokens[0])
        os.close(slot.tokens[1])
        self.guard.release(slot.process.pid)
        return status

    def give_up(self, why: str, hint: str = "") -> None:
        self.unusable = HandlerNotFound(why, hint=hint)
        self.started.set()
        self.ring()

    # -- reloading

    def files_changed(self) -> bool:
        changed = [file for file, seen in self.files.items() if modified(file) != seen]
        self.files.update({file: modified(file) for file in changed})
        if changed:
            log.warning("%s changed: restarting the children", ", ".join(changed))
        return bool(changed)

    def replace_children(self) -> None:
        """Idle ones at once, busy ones after their job."""
        for slot in self.slots:
            self.take_back(slot)
            slot.stale = True
            if not slot.given:
                slot.ready = slot.stopping = True
                signal_session(slot.process.pid, signal.SIGKILL)
        vacant, self.vacant = self.vacant, 0
        for _ in range(vacant):
            self.launch_another()

    # -- stopping what runs

    def tell_of_loss(self, delivery: Delivery | None) -> None:
        for slot in self.slots:
            if any(given is delivery for _, given in slot.given):
                self.take_back(slot)
        for waiting in [entry for entry in self.backlog if entry[0] is delivery]:
            self.backlog.remove(waiting)
            self.end(Ending(waiting[0], Verdict.STOPPED))
        for slot in self.slots:
            if slot.delivery is delivery:
                with suppress(OSError):
                    slot.control.send(LOSE)
                if not self.finish_lost:
                    self.alarms.append(Alarm(time.monotonic() + LOST_NOTICE, slot, delivery))

    def interrupt(self, slot: Slot) -> None:
        """Ask it to stop; the second alarm kills it."""
        self.take_back(slot)
        slot.stopping = True
        with suppress(OSError):
            slot.control.send(STOP)
        signal_session(slot.process.pid, signal.SIGTERM, leader_too=False)
        self.alarms.append(Alarm(time.monotonic() + CLEANUP_TIME, slot, slot.delivery))

    def sound_alarms(self) -> None:
        now = time.monotonic()
        due = [alarm for alarm in self.alarms if alarm.at <= now]
        self.alarms = [alarm for alarm in self.alarms if alarm.at > now]
        for alarm in due:
            if alarm.slot is None:
                self.launch_another()
            elif alarm.slot.delivery is not alarm.delivery:
                continue
            elif alarm.slot.stopping and not alarm.late:
                signal_session(alarm.slot.process.pid, signal.SIGKILL)
            elif not alarm.slot.stopping:
                alarm.slot.late = alarm.late
                self.interrupt(alarm.slot)

    def end_all(self) -> None:
        for slot in self.slots:
            self.finish_off(slot)
            slot.page.close()
        self.slots.clear()
        self.selector.close()


def new_page() -> IO[bytes]:
    """A file of memory, where the system has such, for a child's page."""
    if hasattr(os, "memfd_create"):
        file: IO[bytes] = os.fdopen(os.memfd_create("workqueue-page"), "r+b", buffering=0)
    else:
        import tempfile

        file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - it is returned
    file.truncate(Page.SIZE)
    return file


def names_of(middleware: Sequence[Middleware | str]) -> list[str]:
    """What the children load; an object of this process cannot be where their handlers are."""
    check_none_wraps(
        (one for one in middleware if not isinstance(one, str)), "those of child processes"
    )
    return [one for one in middleware if isinstance(one, str)]


def framed(payload: bytes) -> bytes:
    return head.pack(len(payload)) + payload


def modified(file: str) -> float:
    try:
        return Path(file).stat().st_mtime
    except OSError:
        return 0.0


def how_it_died(status: int) -> str:
    """The exit status of a process, as a reason."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-status}{name}"
