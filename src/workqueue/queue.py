"""A name and options on a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workqueue.dead import DeadLetters
from workqueue.retry import RetryPolicy
from workqueue.transport import DEAD_SUFFIX, QueueSpec, QueueStats, Transport

if TYPE_CHECKING:
    from workqueue.broker import Broker


class Queue:
    """A queue on a broker; `Broker.queue` makes it. Thread-safe; holds no connection."""

    def __init__(self, broker: Broker, spec: QueueSpec, retry: RetryPolicy) -> None:
        self.broker = broker
        self.spec = spec
        self.retry = retry

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def transport(self) -> Transport:
        return self.broker.transport

    def declare(self) -> bool:
        """The queue and its dead-letter queue exist; True if this call made them.

        Raises QueueMismatch if it exists with other parameters than were asked for.
        """
        return self.transport.declare(self.spec)

    def stats(self) -> QueueStats:
        """How much is where. Raises QueueNotFound."""
        return self.transport.stats(self.name)

    def purge(self) -> int:
        """Drop what is ready; how many that were. Raises QueueNotFound."""
        return self.transport.purge(self.name)

    @property
    def dead(self) -> DeadLetters:
        """What was set aside: to list, bring back or drop."""
        return DeadLetters(self.transport, self.name)

    def delete(self, *, dead_letters: bool = False) -> None:
        """The queue is gone, and with `dead_letters` its dead-letter queue as well."""
        self.transport.delete(self.name)
        if dead_letters:
            self.transport.delete(self.name + DEAD_SUFFIX)

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"
