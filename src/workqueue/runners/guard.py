"""The worker's end of its watchdog: starts children so that none can outlive it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress

from workqueue.runners import watchdog
from workqueue.runners.watchdog import KILLING_TIME, MARK, ORDERLY


class Guard:
    """A running watchdog, and what it has to know. Thread-safe."""

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{os.urandom(6).hex()}"
        self.lock = threading.Lock()
        self.children: set[int] = set()
        self.process = self.launch()

    def launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", watchdog.__file__, self.mark],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
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
        try:
            self.process.stdin.write(line.encode())
            self.process.stdin.flush()
        except OSError:  # somebody killed it: another one takes over
            self.process.wait()
            self.process = self.launch()
            assert self.process.stdin is not None
            with suppress(OSError):
                self.process.stdin.write("".join(f"+{pid}\n" for pid in self.children).encode())
                self.process.stdin.flush()

    def close(self) -> None:
        """The worker ends in order: what is still watched is killed, what a command that ended
        well left in the background is not."""
        with self.lock:
            self.tell(f"{ORDERLY}\n")
            assert self.process.stdin is not None
            with suppress(OSError):
                self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(KILLING_TIME + 1)
