"""What a runner is: deliveries in, endings out."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Protocol

from msgspec import Struct

from workqueue.errors import RunnerFailed
from workqueue.message import Delivery
from workqueue.retry import RetryPolicy, TaskOptions

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks a process to end: from a supervisor, a terminal, and one that is closed."""

STOP_STATUSES = frozenset(
    status for number in STOP_SIGNALS for status in (-int(number), 128 + int(number))
)
"""Exit statuses of what has died of one, also as shells and programs that clean up report it."""


class Verdict(Enum):
    """How a run ended, as far as the runner can tell."""

    DONE = "done"
    FAILED = "failed"
    AGAIN = "again"
    LATER = "later"
    REJECTED = "rejected"
    STOPPED = "stopped"
    UNTOUCHED = "untouched"


class Ending(Struct, frozen=True):
    """One run is over. `reason` is one line; `error` the end of a traceback or of stderr.

    AGAIN is a failure that is tried again however many there were. LATER is none: the handler
    asked for another time, `delay` seconds from now. STOPPED means that it was cut short by us:
    not the task's fault, and not an attempt. UNTOUCHED was never begun. `seconds` is how long the
    handler had it, where the runner knows.

    `signalled` says of a failure that a stop signal may be its cause, which the runner did not
    send: supervisors signal all processes of a service at once.
    """

    delivery: Delivery
    verdict: Verdict
    reason: str = ""
    error: str = ""
    delay: float = 0.0
    seconds: float | None = None
    signalled: bool = False


def timed_out(delivery: Delivery, timeout: float, error: str = "") -> Ending:
    """The ending of a run that took too long; `error` is where it was, if that is known."""
    return Ending(delivery, Verdict.FAILED, f"timed out after {timeout:g} s", error)


class Failure:
    """That a thread of a runner has died, which is raised once."""

    def __init__(self) -> None:
        self.error: RunnerFailed | None = None
        self.raised = False

    def __bool__(self) -> bool:
        return self.error is not None

    def set(self, what: str) -> None:
        self.error = RunnerFailed(what)

    def raise_once(self) -> None:
        if self.error is not None and not self.raised:
            self.raised = True
            raise self.error


class Runner(Protocol):
    """Runs jobs in slots. All methods are called by the worker's thread alone."""

    @property
    def options(self) -> Mapping[str, TaskOptions]:
        """What the handler's tasks ask for, by their type; known once it is started."""
        ...

    @property
    def retry(self) -> RetryPolicy | None:
        """What the handler's queue wants for all of them, if it is one, or a task of one."""
        ...

    def start(self, slots: int, ring: Callable[[], None]) -> None:
        """Ready to run `slots` jobs at once; `ring` is to be called, from any thread, whenever
        one has ended. Raises HandlerNotFound."""
        ...

    def run(self, delivery: Delivery, timeout: float | None = None) -> None:
        """Start it as soon as a slot is free, after what was given before. Does not wait.

        After running for `timeout` seconds it is stopped, with all that it started, and has
        failed. Raises Unsupported, before anything is run, where nothing can be stopped.
        """
        ...

    def recall(self) -> None:
        """What was given and has not begun ends as UNTOUCHED, soon."""
        ...

    def endings(self) -> list[Ending]:
        """What has ended since the last call.

        Raises HandlerNotFound if nothing can run any more, because the handler that was there at
        first can no longer be imported. Raises RunnerFailed, once, if a thread has died on which
        tasks depend: nothing is to be given to it any more, what it ran ends as STOPPED, and other
        tasks may go on.
        """
        ...

    def lose(self, deliveries: Sequence[Delivery]) -> None:
        """The broker took these away: tell their handlers, and stop them where that can be done.

        They still have an ending each, which nobody settles.
        """
        ...

    def stop(self) -> None:
        """Stop all that runs, now; endings follow where something can be stopped at all."""
        ...

    def close(self) -> None:
        """Nothing runs and nothing is left behind; safe to call twice."""
        ...
