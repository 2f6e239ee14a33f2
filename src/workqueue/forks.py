"""What a forked child must not take over from its parent, made anew in one place.

fork() copies a lock that another thread holds, but not the thread: in the child nobody would ever
release it. So each lock that an object or a module keeps longer than for one call is one of
these. The data behind it must be usable at any moment: its holder may have been in the middle.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any

renewals: set[weakref.WeakMethod[Callable[[], None]]] = set()


def renew_after_fork(renew: Callable[[], None]) -> None:
    """Call the method `renew` in each forked child, before anything else runs there, for as long
    as its object exists. It must neither block nor raise."""
    renewals.add(weakref.WeakMethod(renew, renewals.discard))


def renew_all() -> None:
    for reference in list(renewals):
        if (renew := reference()) is not None:
            renew()


os.register_at_fork(after_in_child=renew_all)


class Lock:
    """A `threading.Lock` that is open in a forked child, whoever held it in the parent."""

    make: Callable[[], Any] = staticmethod(threading.Lock)

    def __init__(self) -> None:
        self.renew()
        renew_after_fork(self.renew)

    def renew(self) -> None:
        self.lock = self.make()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.lock.release()


class RLock(Lock):
    """The same of a `threading.RLock`, which its holder may take once more."""

    make = staticmethod(threading.RLock)


class Condition(threading.Condition):
    """A `threading.Condition` that is open in a forked child, where nobody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        renew_after_fork(self.renew)

    def renew(self) -> None:
        super().__init__()
