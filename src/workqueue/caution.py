"""How a worker gets past a message over which its broker fails."""

from __future__ import annotations

NARROWS_AFTER = 2
"""Failures of the broker until deliveries are taken one at a time: one alone may have any cause."""

FORGOTTEN_AFTER = 60.0
"""Seconds without a failure after which the next one is the first again."""

SHORT_REST, LONG_REST = 0.5, 10.0
"""Seconds, at most, between two consumers while the broker fails at the same message."""

MOST_FAILURES = 30
"""Failures at one message after which the broker is not expected to set it aside any more. A
quorum queue of ours does so after its delivery limit of 20."""


class Caution:
    """How many deliveries a worker may hold at once, by how its broker failed.

    RabbitMQ closes the connection when it is to deliver a message that AMQP 0-9-1 cannot express,
    as AMQP 1.0 clients can send them. What else was lent on that connection goes back, too, and a
    quorum queue counts a failed delivery for all of it. Taken one at a time, the message is the
    only one for which it counts, until it is set aside.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.failed_at = 0.0
        self.left = 0
        self.at_head = 0

    @property
    def one_at_a_time(self) -> bool:
        return self.left > 0

    @property
    def rest(self) -> float:
        """Seconds, at most, until the next consumer is opened."""
        return SHORT_REST if self.at_head <= MOST_FAILURES else LONG_REST

    def failed(self, held: int, now: float) -> None:
        """The broker failed while at most `held` deliveries were out or on their way: one of the
        first as many messages is the one. With one delivery at a time it is the next in the queue.
        """
        if self.one_at_a_time:
            self.at_head += 1
            return
        self.failures = self.failures + 1 if now - self.failed_at < FORGOTTEN_AFTER else 1
        self.failed_at = now
        if self.failures >= NARROWS_AFTER:
            self.failures = 0
            self.left = max(held, 1)

    def came(self, count: int) -> bool:
        """So many deliveries were handed out. Whether as many as before may be held from now on."""
        if not self.one_at_a_time or not count:
            return False
        self.at_head = 0
        self.left = max(0, self.left - count)
        return not self.one_at_a_time
