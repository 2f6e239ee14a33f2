"""Looking through a queue in which a message lies that its broker cannot deliver."""

from __future__ import annotations

import shlex
from array import array
from collections import Counter
from collections.abc import Sequence

from workqueue.errors import BrokerFailed, ConsumerLost
from workqueue.message import Delivery, Message
from workqueue.transport import DEAD_SUFFIX, Ack, Consumer, Outcome, Transport
from workqueue.transports.copies import without_brokers_own

STEPS = (64, 8, 1, 8, 1)
"""Messages by which more are asked for at a time, after each failure of the broker. Few failures:
each may count as a failed delivery for all that is lent, and queues of others have limits."""


class Undeliverable(ConsumerLost):
    """The broker fails at one message of a queue, and what is behind it cannot be seen. `before`
    are the messages that it delivers before it."""

    def __init__(self, queue: str, before: int, failure: BrokerFailed) -> None:
        super().__init__(
            f"one message of {queue} cannot be delivered, nor what is behind it: {failure}",
            hint=failure.hint,
        )
        self.before = before
        self.command = f"workqueue purge {shlex.quote(queue)}"
        if before:
            work = queue.removesuffix(DEAD_SUFFIX)
            self.command = f"workqueue dead requeue {shlex.quote(work)} --all --limit {before}"


class CarefulConsumer:
    """A consumer of `queue` that goes on after its broker failed at a message, up to that message.

    After a failure it begins again, in smaller steps, until the next message is known to be the
    one. What was lent comes back, in any order, so there may be others before it the next time.
    `receive` gives each once, and raises Undeliverable at the end. What was received before a
    failure cannot be settled after it.

    Once the broker has failed, it is given no room for another message before it has heard what was
    settled: failing again, it would forget that.
    """

    def __init__(self, transport: Transport, queue: str, prefetch: int) -> None:
        self.transport = transport
        self.queue = queue
        self.prefetch = prefetch
        self.consumer: Consumer | None = None
        self.steps = iter(STEPS)
        self.step = 0
        self.lent = 0
        # Numbers of eight bytes, since all of a long queue may be noted: see `identity`.
        self.given = array("q")
        self.gone = array("q")
        self.kept_again: Counter[int] = Counter()
        self.gone_again: Counter[int] = Counter()

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        try:
            if self.consumer is None:
                self.consumer = self.transport.consumer(self.queue, self.prefetch)
            if self.step and self.lent >= self.prefetch:
                self.prefetch = self.lent + self.step
                self.consumer.hold(self.prefetch)
            received = self.consumer.receive(limit, timeout)
            self.lent += len(received)
            forgotten = [delivery for delivery in received if take(self.gone_again, delivery)]
            if forgotten:
                # What else came comes again, too, and is given then.
                self.settle_in_order([Ack(delivery) for delivery in forgotten])
                return []
        except (BrokerFailed, ConsumerLost) as error:
            self.ask_for_less(error)
            return []
        fresh = [delivery for delivery in received if not take(self.kept_again, delivery)]
        self.given.extend(identity(delivery.message) for delivery in fresh)
        return fresh

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """If the broker fails meanwhile and gives back what was acknowledged, that is acknowledged
        again."""
        assert self.consumer is not None
        self.gone.extend(identity(outcome.delivery.message) for outcome in outcomes)
        self.lent -= len(outcomes)
        try:
            if self.step:
                self.settle_in_order(outcomes)
            else:
                self.consumer.settle(outcomes)
        except ConsumerLost as error:
            self.ask_for_less(error)

    def settle_in_order(self, outcomes: Sequence[Outcome]) -> None:
        """Nothing more is taken, and a consumer that closes is heard to its end."""
        assert self.consumer is not None
        self.consumer.pause()
        self.consumer.settle(outcomes)
        self.begin_again()

    def begin_again(self) -> None:
        self.close()
        self.prefetch = self.step
        self.lent = 0
        self.gone_again = Counter(self.gone)
        self.kept_again = Counter(self.given) - self.gone_again

    def ask_for_less(self, error: BrokerFailed | ConsumerLost) -> None:
        """Raises what was raised if it is not the broker's failure."""
        failure = error if isinstance(error, BrokerFailed) else error.__cause__
        if not isinstance(failure, BrokerFailed):
            raise error
        before = self.lent
        at_head = self.step == 1 and not before
        self.step = 0 if at_head else next(self.steps, 0)
        self.begin_again()
        if not self.step:
            raise Undeliverable(self.queue, before, failure) from failure

    def close(self) -> None:
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            consumer.close()


def take(expected: Counter[int], delivery: Delivery) -> bool:
    """Whether it is one of those that are expected to come again; then there is one less."""
    if not expected:
        return False
    key = identity(delivery.message)
    known = expected[key] > 0
    expected[key] -= known
    return known


def identity(message: Message) -> int:
    """What tells a message from others when it comes again. Two that are alike count as two."""
    headers = without_brokers_own(message.headers)
    try:
        past = hash(frozenset(headers.items()))
    except TypeError:  # a header that is a list or a table
        past = hash(repr(headers))
    return hash((message.id, message.type, message.sent_at, message.body, past))
