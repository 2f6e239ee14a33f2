"""What can go wrong, by what happened.

    WorkqueueError
    ├── ConfigError               what was asked for cannot be: a URL, an option, a name
    │   ├── UnknownScheme         no installed transport serves this URL
    │   ├── HandlerNotFound       the handler cannot be imported, or cannot run where it should
    │   ├── QueueMismatch         the queue exists with other parameters
    │   └── Unsupported           this transport, or this version of the broker, cannot do that
    ├── BadPayload                a payload that cannot be encoded, a body that is not what it says
    ├── AccessRefused             wrong password, virtual host, certificate or permission
    ├── ConnectionLost            the broker cannot be reached, or the connection to it is gone
    │   ├── QueueMigrating        the queue is being rebuilt: soon it can be used again
    │   └── BrokerFailed          the broker hung up over an error of its own
    ├── ConsumerLost              this consumer is finished; a new one may go on
    ├── DeliveriesLost            the broker took single deliveries back; the consumer goes on
    ├── QueueNotFound             there is no such queue
    ├── RunnerFailed              a part of the worker has died: a slot, the event loop, …
    ├── LookCutShort              there are more messages than could be looked at
    ├── StorageError              the embedded file cannot be used: read-only, full, locked
    │   └── StorageDamaged        it is damaged, or no database: waiting does not mend it
    ├── TransportFault            a transport broke its contract: a mistake in its driver
    └── NotSent                   messages that were not placed, each with its cause:
        ├── Unroutable            no queue took it
        ├── QueueFull             the queue has reached its bound
        ├── TooLarge              the broker takes no message of this size
        ├── Refused               the broker refused it and gave another reason
        └── Unconfirmed           its fate is unknown: it may have been stored
            └── BrokerBlocked     the broker takes no messages for now (memory or disk alarm)

Two more are not errors but words a handler says about its task:

    RetryLater(delay)             not now: once more after so many seconds; not a failure
    Reject(reason)                never: set it aside in the dead-letter queue
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from workqueue.message import Delivery, Message


class WorkqueueError(Exception):
    """Root of every error this package raises on purpose.

    `hint`, where there is one, is what the user can do about it, in one line; `command` what to
    type next.
    """

    hint: str = ""
    command: str = ""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class ConfigError(WorkqueueError):
    """What was asked for cannot be: a URL, an option, a name."""


class UnknownScheme(ConfigError):
    """No installed transport serves this URL."""


class HandlerNotFound(ConfigError):
    """The handler cannot be imported, or cannot run where it was asked to run."""


class QueueMismatch(ConfigError):
    """The queue exists with other parameters.

    `queue` is its name; `differences` maps each differing parameter to `(wanted, existing)`,
    None standing for "not set".
    """

    hint = "Leave the options out to take the queue as it is, or migrate it."

    def __init__(
        self, queue: str, differences: dict[str, tuple[object, object]], *, hint: str = ""
    ) -> None:
        told = "; ".join(
            f"{name} is {show(existing)}, {asked_for(wanted)}"
            for name, (wanted, existing) in differences.items()
        )
        super().__init__(f"queue {queue} exists with other parameters: {told}", hint=hint)
        self.queue = queue
        self.differences = differences


class Unsupported(ConfigError):
    """This transport, or this version of the broker, cannot do what was asked."""


class BadPayload(WorkqueueError):
    """A payload that cannot be encoded, or a body that is not what it claims to be."""


class AccessRefused(WorkqueueError):
    """The broker said no: wrong password, virtual host, certificate or permission.

    Asking again cannot help, so nothing retries it, except a worker that was once let in.
    """


class ConnectionLost(WorkqueueError):
    """The broker cannot be reached, or the connection to it is gone."""


class QueueMigrating(ConnectionLost):
    """The queue is being rebuilt with other parameters: soon it can be used again."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue} is being migrated")
        self.queue = queue


class BrokerFailed(ConnectionLost):
    """The broker hung up over an error of its own, perhaps at a message that it cannot deliver."""


class ConsumerLost(WorkqueueError):
    """This consumer is finished: its connection, channel or queue is gone.

    What it held goes to others. Open a new consumer to go on.
    """


class DeliveriesLost(WorkqueueError):
    """The broker took back these deliveries, for instance after its acknowledgement timeout.

    They can no longer be settled. The consumer itself goes on.
    """

    def __init__(self, message: str, deliveries: Sequence[Delivery]) -> None:
        super().__init__(message)
        self.deliveries = list(deliveries)


class QueueNotFound(WorkqueueError):
    """There is no such queue."""

    def __init__(self, queue: str) -> None:
        super().__init__(f"queue {queue} does not exist")
        self.queue = queue


class RunnerFailed(WorkqueueError):
    """A thread on which the worker's tasks depend has died: of a slot, of the event loop, or the
    one that owns the child processes.

    The worker takes no more, hands back what that thread ran, finishes what others run, and ends.
    """

    hint = "Start the worker again. If it happens once more, please report it."


class LookCutShort(WorkqueueError):
    """A look at a queue ended before it had seen all: there are messages that did not come.

    `seen` were looked at, of about `there`; `deliveries` are those, where the look returns any.
    """

    hint = "The broker is slow, or somebody else holds them: look again later."

    def __init__(
        self, queue: str, seen: int, there: int, deliveries: Sequence[Delivery] = ()
    ) -> None:
        super().__init__(f"queue {queue}: {seen:,} messages of about {there:,} were seen")
        self.queue = queue
        self.seen = seen
        self.there = there
        self.deliveries = list(deliveries)


class StorageError(WorkqueueError):
    """The embedded file cannot be used: missing folder, read-only, full, locked."""


class StorageDamaged(StorageError):
    """The embedded file is damaged, or is no database.

    Waiting does not mend it, so not even a worker that was once let in goes on trying.
    """


class TransportFault(WorkqueueError):
    """A transport did what `workqueue.transport` forbids: a mistake in its driver, not in the use
    of it. The text names the class and what it did. Trying again does not mend it.
    """

    hint = "Report it to the authors of the transport."
    command = "workqueue plugins"


class NotSent(WorkqueueError):
    """Messages that were not placed.

    `failures` pairs each message with its cause, itself one of the subclasses below; `sent` is
    how many of the same call were placed. A message whose cause is `Unconfirmed` may have been
    stored: sending it again under its id can make a duplicate, not sending it can lose it.
    """

    def __init__(
        self,
        message: str,
        *,
        failures: Sequence[tuple[Message, NotSent]] = (),
        sent: int = 0,
        hint: str = "",
    ) -> None:
        super().__init__(message, hint=hint)
        self.failures = list(failures)
        self.sent = sent


class Unroutable(NotSent):
    """No queue took the message: the one it was meant for does not exist."""


class QueueFull(NotSent):
    """The queue has reached its bound (`max_length`) and refuses more."""


class TooLarge(NotSent):
    """The broker takes no message of this size."""


class Refused(NotSent):
    """The broker refused the message and gave another reason."""


class Unconfirmed(NotSent):
    """The broker did not say in time that it keeps the message: its fate is unknown."""


class BrokerBlocked(Unconfirmed):
    """The broker takes no messages for now: it is short of memory or disk."""


class RetryLater(Exception):
    """Not now: hand the task out again after `delay` seconds. Not a failure, and not an attempt.

    A delay below 0.1 s, or a negative one, is 0.1 s; one above 30 days is 30 days. Raises
    ValueError for what is no finite number, which in a handler is a failed attempt.
    """

    def __init__(self, delay: float) -> None:
        self.delay = seconds_of(delay)
        super().__init__(f"again in {self.delay:g} s")


def seconds_of(delay: object) -> float:
    """`delay` as a finite number. Raises ValueError for anything else."""
    try:
        seconds = math.nan if isinstance(delay, str | bytes) else float(delay)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"RetryLater needs a number of seconds, not {delay!r}")
    return seconds


class Reject(Exception):
    """Never: set the task aside in the dead-letter queue with `reason`, without retrying."""

    def __init__(self, reason: str = "rejected by the handler") -> None:
        super().__init__(reason)
        self.reason = reason


def show(value: object) -> str:
    """A parameter's value as a user reads it."""
    match value:
        case None:
            return "not set"
        case float():
            return str(int(value)) if value.is_integer() else str(value)
    return str(value)


def asked_for(wanted: object) -> str:
    return "and was not asked for" if wanted is None else f"not {show(wanted)}"


def class_name(thing: object) -> str:
    """`module.Class`, by which the authors of a plugin are found."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def account_fault(error: NotSent, given: Collection[int]) -> str:
    """How a driver's account of a failed call is wrong; "" if it is whole.

    `given` are the identities of the messages that the driver was given. Each must be named among
    the failures, as the very object, or be counted in `sent`: what is not known to have failed
    would be taken for placed.
    """
    try:
        named = [id(message) for message, _ in error.failures]
        foreign = [cause for _, cause in error.failures if not isinstance(cause, NotSent)]
    except (TypeError, ValueError):
        return "gave failures that are not pairs of a message and its cause"
    if foreign:
        return f"gave a cause of failure that is no NotSent: {foreign[0]!r}"
    if not set(named) <= set(given):
        return "named a failed message that it was not given, such as a copy of one"
    if len(set(named)) < len(named):
        return "named a failed message twice"
    if len(named) + error.sent != len(given):
        accounted = f"{len(named)} failed and {error.sent} sent"
        return f"accounted for {accounted}, and was given {len(given)}"
    return ""
