"""Looks at the queues that one sender publishes to, on the channel that it publishes on.

A message that no queue takes comes back to its sender, and RabbitMQ says so ("mandatory"). That is
no proof that its own queue took it: an alternate exchange takes what would come back, and so does
another queue that is bound with the same key. So the sender looks: before its first message to a
queue on a channel, and from then on once a second, just ahead of its next message. The later looks
wait for no answer. Where one fails, RabbitMQ closes the channel and takes nothing that was
published on it after the look.

Source: RabbitMQ documentation, "Alternate exchanges", "Publishers" (section "Unroutable message
handling").
"""

from __future__ import annotations

import time
from enum import Enum

import amqp

from workqueue.errors import AccessRefused, ConfigError, QueueNotFound
from workqueue.transports.rabbitmq.gate import (
    GATE_SUFFIX,
    LONGEST_NAME,
    gate_is_open,
    has_marker,
    open_gate,
)
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.survey import (
    ACCESS_REFUSED,
    NOT_FOUND,
    PRECONDITION_FAILED,
    check_type,
    exchange_exists,
    exists,
    find_type,
    not_allowed,
)
from workqueue.transports.rabbitmq.topology import EXCHANGE

LOOK_AGAIN = 1.0
"""Seconds between two looks at a queue that is sent to."""


class Known(Enum):
    """How much of a queue a sender could look at; it looks again at no more than that."""

    BOUND = "the queue is there, is not being migrated, and is bound to our exchange"
    THERE = "the queue is there; whether it is bound shows only when a message comes back"
    MIGRATING = "another queue takes its messages for now"
    UNKNOWN = "the user may not look"


class Destinations:
    """The queues of one sender. For one channel of it: `channel`, and never another."""

    def __init__(self, link: Link, channel: amqp.Channel) -> None:
        self.link = link
        self.channel = channel
        self.known: dict[str, Known] = {}
        self.looked_at: dict[str, float] = {}
        self.unbound: set[str] = set()

    def look(self, queue: str) -> None:
        """Make sure that `queue` is there and gets what is sent to it, as far as that can be known.

        Raises QueueNotFound; ConfigError for an exclusive queue and for one that is no work queue.
        """
        now = time.monotonic()
        if now - self.looked_at.get(queue, -LOOK_AGAIN) < LOOK_AGAIN:
            return
        if self.known.get(queue, Known.MIGRATING) is Known.MIGRATING:
            self.known[queue] = Known.BOUND if self.glance(queue) else self.look_closely(queue)
        else:
            self.look_again(queue)
        self.looked_at[queue] = now

    def glance(self, queue: str) -> bool:
        """Whether all is well, in one round trip; if not, for whatever reason, it is looked at
        closely. A queue that has a gate was declared by us, who looked at its type."""
        if len(queue.encode()) > LONGEST_NAME:
            return False
        channel = self.link.channel()
        try:
            channel.queue_declare(queue, passive=True, nowait=True)
            channel.exchange_declare(queue + GATE_SUFFIX, "fanout", passive=True, nowait=True)
            channel.queue_bind(queue, EXCHANGE, queue, nowait=True)
            channel.exchange_declare(EXCHANGE, "direct", durable=True, auto_delete=False)
        except ChannelClosed:
            return False
        channel.close()
        return True

    def look_closely(self, queue: str) -> Known:
        try:
            there = exists(self.link, queue)
        except AccessRefused:
            return Known.UNKNOWN
        gate = gate_is_open(self.link, queue)
        if not gate and has_marker(self.link, queue):
            return Known.MIGRATING
        if not there:
            raise QueueNotFound(queue)
        if not gate:
            check_type(queue, find_type(self.link, queue))
        bound = self.bind(queue)
        if bound:  # who may not even bind may not ask what the exchange is like
            check_exchange(self.link, there=True)
            if not gate:
                open_gate(self.link, queue)
        # Not bound again and again without a gate: nothing would stop it when a migration begins.
        return Known.BOUND if bound and gate else Known.THERE

    def bind(self, queue: str) -> bool:
        """Whether this user may. AMQP has no question for a binding; to bind again is none."""
        channel = self.link.channel()
        try:
            channel.queue_bind(queue, EXCHANGE, queue)
        except ChannelClosed as closed:
            refused = closed.code == ACCESS_REFUSED
            if closed.code == NOT_FOUND or (refused and not exchange_exists(self.link, EXCHANGE)):
                raise QueueNotFound(queue) from closed  # not that one, perhaps, but `declare` looks
            if not refused:
                raise
            self.unbound.add(queue)
            return False
        channel.close()
        return True

    def look_again(self, queue: str) -> None:
        """The order matters: a queue whose gate is closed must not be bound."""
        known = self.known[queue]
        if known is Known.UNKNOWN:
            return
        if known is Known.BOUND:
            gate = queue + GATE_SUFFIX
            self.channel.exchange_declare(gate, "fanout", passive=True, nowait=True)
        self.channel.queue_declare(queue, passive=True, nowait=True)
        if known is Known.BOUND:
            self.channel.queue_bind(queue, EXCHANGE, queue, nowait=True)

    def explain_return(self, queue: str) -> AccessRefused | None:
        """Why a message for `queue` came back, where only a permission can mend it."""
        if queue not in self.unbound:
            return None
        problem = f"queue {queue} is not bound to the exchange {EXCHANGE}"
        return not_allowed(self.link, problem, f"write {queue}", f"read {EXCHANGE}")


def ensure_exchange(link: Link) -> None:
    """Our exchange is there, and direct. Raises ConfigError for another one of its name."""
    check_exchange(link, there=exchange_exists(link, EXCHANGE))


def check_exchange(link: Link, *, there: bool) -> None:
    """The same, where it was just seen whether the exchange is `there`."""
    channel = link.channel()
    try:
        channel.exchange_declare(EXCHANGE, "direct", durable=True, auto_delete=False)
    except ChannelClosed as closed:
        if closed.code == ACCESS_REFUSED and there:
            return  # what it is like, only those may ask who may make it
        if closed.code == ACCESS_REFUSED:
            problem = f"exchange {EXCHANGE} does not exist"
            raise not_allowed(link, problem, f"configure {EXCHANGE}") from closed
        if closed.code != PRECONDITION_FAILED:
            raise
        error = ConfigError(
            f"the exchange {EXCHANGE} was made in another way: {closed.text}",
            hint="workqueue needs a durable direct exchange of this name.",
        )
        error.command = "rabbitmqctl list_exchanges name type durable arguments"
        raise error from closed
    channel.close()
