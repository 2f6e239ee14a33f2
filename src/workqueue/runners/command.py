"""As a command, started for each message: the body on stdin, the outcome as the exit status.

    0       done
    65      never: to the dead-letter queue (EX_DATAERR)
    75      again, however often that was (EX_TEMPFAIL)
    other   a failed attempt, and so is being killed or timing out

A command that dies of a stop signal while the worker is stopping is handed back: systemd, for one,
signals all processes of a service at once.

No shell is involved, and nothing of the message becomes part of the command line.
"""

from __future__ import annotations

import errno
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from workqueue.errors import HandlerNotFound
from workqueue.logs import log
from workqueue.message import Delivery
from workqueue.retry import TaskOptions
from workqueue.runners.guard import Guard, inherited, open_pidfd, starting
from workqueue.runners.handler import described, one_line
from workqueue.runners.process import CLEANUP_TIME, how_it_died
from workqueue.runners.runner import STOP_STATUSES, Ending, Failure, Verdict, timed_out
from workqueue.runners.thread import start_slots
from workqueue.runners.watchdog import signal_session

EX_DATAERR = 65
EX_TEMPFAIL = 75

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
"""Of descriptors, processes or memory."""

SHORTAGE_PAUSE = 5.0
"""Seconds until a command is tried again that did not start for one of these."""

KEPT_STDERR = 4096
"""Bytes of the end of stderr that become the reason of a failure."""

PIPE_HOLDS = 65536
"""Bytes that a pipe takes without anybody reading (Linux, pipe(7)); larger bodies need a thread."""

LAST_WORDS = 0.2
"""Seconds for what a command has written to arrive after its end. What it left running in the
background may hold stderr open for ever."""

LOOK_EVERY = 0.02
"""Seconds between looks at a command where the kernel cannot tell of its end."""

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM})
"""What keeps any command from being started for a while: no fault of the message, no attempt."""

SHORTAGE_DELAY = 5.0
"""Seconds until such a message is handed out again."""


class CommandRunner:
    """Runs `argv` for each message, in one thread per slot.

    The command gets `WORKQUEUE_ID`, `WORKQUEUE_QUEUE`, `WORKQUEUE_ATTEMPT` and
    `WORKQUEUE_HEADERS` (JSON), and of the worker's own environment everything but the names in
    `withheld`. With `finish_lost`, a command whose message was taken away is not stopped.
    """

    def __init__(
        self, argv: Sequence[str], *, finish_lost: bool = False, withheld: Sequence[str] = ()
    ) -> None:
        if not argv:
            raise HandlerNotFound("--exec needs a command")
        self.argv = list(argv)
        self.finish_lost = finish_lost
        self.withheld = frozenset(withheld)
        self.threads: list[threading.Thread] = []

    @property
    def retry(self) -> None:
        """A command belongs to no queue."""

    @property
    def options(self) -> Mapping[str, TaskOptions]:
        return {}

    def start(self, slots: int, ring: Callable[[], None]) -> None:
        if shutil.which(self.argv[0]) is None:
            raise HandlerNotFound(f"there is no command {self.argv[0]}, or it cannot be executed")
        self.ring = ring
        self.waiting: queue.SimpleQueue[Delivery | None] = queue.SimpleQueue()
        self.ended: deque[Ending] = deque()
        self.lock = threading.Lock()
        self.running: dict[Delivery, subprocess.Popen[bytes]] = {}
        self.stopped: dict[Delivery, float] = {}
        self.timeouts: dict[Delivery, float] = {}
        self.stopping = False
        self.failure = Failure()
        with starting():
            self.guard = Guard()
        self.environment = {
            name: value
            for name, value in self.guard.environment().items()
            if name not in self.withheld
        }
        self.threads = start_slots(slots, self.work)

    def run(self, delivery: Delivery, timeout: float | None = None) -> None:
        if timeout is not None:
            self.timeouts[delivery] = timeout
        self.waiting.put(delivery)

    def recall(self) -> None:
        try:
            while (delivery := self.waiting.get_nowait()) is not None:
                self.timeouts.pop(delivery, None)
                self.end(Ending(delivery, Verdict.UNTOUCHED))
        except queue.Empty:
            pass

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)
        self.ring()

    def endings(self) -> list[Ending]:
        self.failure.raise_once()
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
            self.stopped.pop(ended[-1].delivery, None)
        return ended

    def lose(self, deliveries: Sequence[Delivery]) -> None:
        if not self.finish_lost:
            self.interrupt(deliveries)

    def stop(self) -> None:
        with self.lock:  # what is just being started is among those that run then
            self.stopping = True
        self.interrupt(list(self.running))

    def interrupt(self, deliveries: Sequence[Delivery]) -> None:
        """Ask them to stop; their threads kill them if they do not."""
        with self.lock:
            for delivery in deliveries:
                if delivery not in self.stopped:
                    self.stopped[delivery] = time.monotonic() + CLEANUP_TIME
                    if delivery in self.running:
                        signal_session(self.running[delivery].pid, signal.SIGTERM)

    def close(self) -> None:
        if not self.threads:
            return
        threads, self.threads = self.threads, []
        with self.lock:
            self.stopping = True
            for process in self.running.values():
                signal_session(process.pid, signal.SIGKILL)
        for _ in threads:
            self.waiting.put(None)
        for thread in threads:
            thread.join(CLEANUP_TIME)
        self.guard.close()

    # -- in a slot's thread

    def work(self) -> None:
        """The thread of a slot, with its last guard."""
        running: list[Delivery] = []
        try:
            self.serve(running)
        except BaseException as error:  # noqa: BLE001 - in silence it would look like a long task
            self.failure.set(f"the thread of a slot died: {described(error)}")
            for delivery in running:
                self.end(Ending(delivery, Verdict.STOPPED))
            self.ring()

    def serve(self, running: list[Delivery]) -> None:
        """`running` is what was begun and has no ending yet."""
        while (delivery := self.waiting.get()) is not None:
            running.append(delivery)
            began = time.monotonic()
            ending = self.run_one(delivery)
            running.clear()
            self.end(replace(ending, seconds=time.monotonic() - began))

    def run_one(self, delivery: Delivery) -> Ending:
        timeout = self.timeouts.pop(delivery, None)
        process = self.launch(delivery)
        if isinstance(process, Ending):
            return process
        stderr, expired = Tail(), False
        late = None if timeout is None else time.monotonic() + timeout
        try:
            self.feed(process, delivery.message.body)
            expired = self.watch(process, delivery, stderr, late)
        finally:
            with self.lock:
                del self.running[delivery]
                interrupted = self.stopped.pop(delivery, None) is not None
            if interrupted or process.poll() is None:
                signal_session(process.pid, signal.SIGKILL)  # what it left behind
            self.guard.release(process.pid)
        if timeout is not None and expired:
            return timed_out(delivery, timeout, stderr.text())
        if interrupted:
            return Ending(delivery, Verdict.STOPPED)
        return judge_status(delivery, process.returncode, stderr.text())

    def launch(self, delivery: Delivery) -> subprocess.Popen[bytes] | Ending:
        """The started command, or how it ended without ever starting."""
        with self.lock:
            if self.stopping or delivery in self.stopped:
                self.stopped.pop(delivery, None)
                return Ending(delivery, Verdict.STOPPED)
            try:
                process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.PIPE,
                    stdout=inherited(1),
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    start_new_session=True,
                    env={**self.environment, **variables(delivery)},
                )
            except (ValueError, TypeError, RecursionError) as error:
                # A NUL byte, which no environment can hold, or headers that JSON cannot.
                told = f"it cannot be given to a command: {described(error)}"
                return Ending(delivery, Verdict.REJECTED, told)
            except OSError as error:
                return not_started(delivery, error)
            self.running[delivery] = process
            self.guard.watch(process.pid)
            return process

    def feed(self, process: subprocess.Popen[bytes], body: bytes) -> None:
        """The body on stdin. A command need not read it."""
        if len(body) <= PIPE_HOLDS:
            write_body(process, body)
        else:
            threading.Thread(target=write_body, args=(process, body), daemon=True).start()

    def watch(
        self,
        process: subprocess.Popen[bytes],
        delivery: Delivery,
        stderr: Tail,
        late: float | None,
    ) -> bool:
        """Until it has ended; its stderr goes to ours, and the end of it is kept.

        True if it was still running at the time `late`, and was stopped for that.
        """
        expired = False
        assert process.stderr is not None
        source = process.stderr.fileno()
        os.set_blocking(source, False)
        poller = select.poll()
        poller.register(source, select.POLLIN)
        end = open_pidfd(process.pid)
        if end is not None:
            poller.register(end, select.POLLIN)
        try:
            while process.poll() is None:
                if not stderr.ended and stderr.take(source):
                    poller.unregister(source)
                poller.poll(self.patience(delivery, known_end=end is not None, late=late))
                is_late = late is not None and time.monotonic() >= late
                if is_late and process.poll() is None and delivery not in self.stopped:
                    expired, late = True, None
                    self.interrupt([delivery])
        finally:
            if end is not None:
                os.close(end)
        deadline = time.monotonic() + LAST_WORDS
        while not stderr.ended and not stderr.take(source) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        process.stderr.close()
        return expired

    def patience(self, delivery: Delivery, *, known_end: bool, late: float | None) -> float:
        """Milliseconds to sleep; a command that was asked to stop is killed in time."""
        kill_at = self.stopped.get(delivery)
        if kill_at is not None and kill_at <= time.monotonic():
            signal_session(self.running[delivery].pid, signal.SIGKILL)
        if not known_end or kill_at is not None:
            return LOOK_EVERY * 1000
        return 1000.0 if late is None else max(0.0, min(1.0, late - time.monotonic())) * 1000


class Tail:
    """Passes stderr on, and keeps its end."""

    def __init__(self) -> None:
        self.kept = b""
        self.ended = False

    def take(self, source: int) -> bool:
        """Take what is there; whether that was the end of it."""
        while not self.ended:
            try:
                data = os.read(source, 65536)
            except BlockingIOError:
                return False
            self.ended = not data
            self.kept = (self.kept + data)[-KEPT_STDERR:]
            with suppress(Exception):  # it may be closed, missing, or any object
                sys.stderr.buffer.write(data)
                sys.stderr.buffer.flush()
        return True

    def text(self) -> str:
        return self.kept.decode("utf-8", "backslashreplace")


def not_started(delivery: Delivery, error: OSError) -> Ending:
    """The ending of a command that the system did not start."""
    told = f"the command did not start: {error.strerror}"
    if error.errno in SHORTAGES:  # no fault of the task's
        log.error("%s; trying again in %g s", told, SHORTAGE_PAUSE)
        return Ending(delivery, Verdict.LATER, told, delay=SHORTAGE_PAUSE)
    # Too large for an environment (the headers): no other try can succeed.
    verdict = Verdict.REJECTED if error.errno == errno.E2BIG else Verdict.FAILED
    return Ending(delivery, verdict, told)


def judge_status(delivery: Delivery, status: int, stderr: str) -> Ending:
    """What an exit status says; the last line of stderr tells why."""
    if status == 0:
        return Ending(delivery, Verdict.DONE)
    lines = [line for line in stderr.splitlines() if line.strip()]
    told = f": {one_line(lines[-1])}" if lines else ""
    reason = f"the command {how_it_died(status)}{told}"
    verdict = {EX_DATAERR: Verdict.REJECTED, EX_TEMPFAIL: Verdict.AGAIN}.get(status, Verdict.FAILED)
    signalled = status in STOP_STATUSES
    return Ending(delivery, verdict, one_line(reason), stderr, signalled=signalled)


def variables(delivery: Delivery) -> Mapping[str, str]:
    message = delivery.message
    return {
        "WORKQUEUE_ID": message.id or "",
        "WORKQUEUE_QUEUE": delivery.queue,
        "WORKQUEUE_ATTEMPT": str(delivery.attempt),
        "WORKQUEUE_HEADERS": json.dumps(dict(message.headers), default=str),
    }


def write_body(process: subprocess.Popen[bytes], body: bytes) -> None:
    """All of it, unless the command ends or closes its stdin before."""
    assert process.stdin is not None
    rest = memoryview(body)
    with suppress(OSError, ValueError):
        while rest:
            rest = rest[process.stdin.write(rest) or 0 :]
    with suppress(OSError):
        process.stdin.close()
