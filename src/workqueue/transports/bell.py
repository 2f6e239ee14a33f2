"""A bell: any thread rings it, and the one that sleeps in `poll` on its descriptor wakes."""

from __future__ import annotations

import os

from workqueue.forks import RLock, renew_after_fork


class Bell:
    """Rung once or many times, it is answered once. Ringing is cheap, and safe after closing.

    A handler of signals may ring it, which runs in the midst of whatever the main thread does, and
    so while that answers: hence a lock that its holder may take once more.
    """

    def __init__(self) -> None:
        self.lock = RLock()
        renew_after_fork(self, Bell.leave_to_parent)
        self.rung = False
        self.reader, self.writer = os.pipe()

    def fileno(self) -> int:
        """Readable while the bell is rung."""
        return self.reader

    def ring(self) -> None:
        with self.lock:
            if not self.rung and self.writer >= 0:
                self.rung = True
                os.write(self.writer, b"!")

    def answer(self) -> bool:
        """Whether it was rung since the last answer."""
        with self.lock:
            if not self.rung:
                return False
            self.rung = False
            os.read(self.reader, 1)
            return True

    def leave_to_parent(self) -> None:
        """In a forked child: ringing must not wake the parent, whose bell was not rung."""
        for descriptor in (self.reader, self.writer):
            if descriptor >= 0:
                os.close(descriptor)
        self.reader = self.writer = -1
        self.rung = False

    def close(self) -> None:
        with self.lock:
            reader, writer = self.reader, self.writer
            self.reader = self.writer = -1
            self.rung = False
            if writer >= 0:
                os.close(writer)
                os.close(reader)
