"""The worker's end of its watchdog, and how processes are started that none can outlive it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from workqueue.errors import ConfigError
from workqueue.logs import log
from workqueue.runners import watchdog
from workqueue.runners.runner import STOP_SIGNALS
from workqueue.runners.watchdog import KILLING_TIME, MARK, ORDERLY

PAUSE = 1.0
"""Seconds before another watchdog is started in place of one that was killed."""


class Guard:
    """A running watchdog, and what it has to know. Thread-safe.

    One that is killed is replaced within a second or so, and that is said.
    """

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.lock = threading.Lock()
        self.children: set[int] = set()
        self.closed = threading.Event()
        self.process = self.launch()
        self.thread = threading.Thread(
            target=self.replace_killed, name="workqueue-guard", daemon=True
        )
        self.thread.start()

    def launch(self) -> subprocess.Popen[bytes]:
        with signals_held():
            return subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog.__file__, self.mark],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=inherited(2),
                start_new_session=True,
                cwd="/",
            )

    def environment(self) -> dict[str, str]:
        """What children must be started with."""
        return {**os.environ, MARK: self.mark}

    def watch(self, pid: int) -> None:
        """`pid` leads a session to be ended with the worker."""
        with self.lock:
            self.children.add(pid)
            self.tell(f"+{pid}\n")

    def release(self, pid: int) -> None:
        """`pid` has ended, and all it started."""
        with self.lock:
            self.children.discard(pid)
            self.tell(f"-{pid}\n")

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(OSError):  # it was killed: the next one is told of all
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()

    def replace_killed(self) -> None:
        """In a thread of its own, for as long as the worker runs."""
        while True:
            self.process.wait()
            if self.closed.wait(PAUSE):
                return
            log.warning("the watchdog of this worker was killed: starting another")
            try:
                process = self.launch()
            except OSError as error:
                log.error("no watchdog could be started: %s", error.strerror)
                continue
            with self.lock:
                before, self.process = self.process, process
                assert before.stdin is not None
                with suppress(OSError):  # what could not be written to it
                    before.stdin.close()
                self.tell("".join(f"+{pid}\n" for pid in self.children))

    def close(self) -> None:
        """The worker ends in order: what is still watched is killed, what a command that ended
        well left in the background is not."""
        self.closed.set()
        with self.lock:
            self.tell(f"{ORDERLY}\n")
            assert self.process.stdin is not None
            with suppress(OSError):
                self.process.stdin.close()
        self.thread.join(KILLING_TIME + 1)


# -- starting processes ------------------------------------------------------------------------


@contextmanager
def starting() -> Iterator[None]:
    """Raise ConfigError where the system lets no more processes, threads or files be made."""
    fill_standard_descriptors()
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"no process can be started: {error.strerror}",
            hint="See the limits of this shell: ulimit -a",
        ) from error


@contextmanager
def signals_held() -> Iterator[None]:
    """What is started inside does not see a stop signal until it has let it through itself: a
    signal to all processes of a service would end it before it could say what it does with it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fill_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that this process was started without (`>&-`).

    Else the next socket would get the number, and be what a handler prints to.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:  # another thread was faster
                os.close(opened)


def inherited(number: int) -> int | None:
    """What a child gets as standard output or error: ours, unless that is something else under
    its number, such as a file of the application, or the null device that SQLite opens to read."""
    writable = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    return None if writable and os.get_inheritable(number) else subprocess.DEVNULL


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends; None where there are none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None
