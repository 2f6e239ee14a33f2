"""What of the ladder is there already, and making the rest of it when it is first needed."""

from __future__ import annotations

import time
from collections.abc import Callable

from workqueue.errors import QueueNotFound
from workqueue.forks import Lock
from workqueue.message import DEFAULT_PRIORITY, Message
from workqueue.transports.rabbitmq.ladder import (
    DUE,
    UNDELIVERABLE,
    Level,
    delivery_key,
    first_level,
    routing_key,
    undeliverable_arguments,
)
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.survey import NOT_FOUND, declare

TRUSTED = 5.0
"""Seconds for which a queue that was there is taken to be there still."""


class Delays:
    """The ladders of one virtual host, as far as one transport knows them. Thread-safe.

    `settle` is called after queues were made, and returns when they can be trusted.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self.settle = settle
        self.lock = Lock()
        self.tops: dict[str, int] = {}
        self.bound: dict[str, float] = {}

    def way(self, link: Link, queue: str, message: Message) -> tuple[str, str]:
        """Exchange and routing key that bring `message` to `queue` after its delay.

        Makes sure that there is such a way; raises QueueNotFound if there is no such queue.
        """
        high = link.abilities.high_priorities_block and message.priority > DEFAULT_PRIORITY
        level = first_level(message.delay, high=high)
        with self.lock:
            if level.number > self.tops.get(level.prefix, -1):
                self.build(link, level)
            if time.monotonic() - self.bound.get(queue, -TRUSTED) >= TRUSTED:
                self.bind(link, queue)
        return level.name, routing_key(message.delay, queue)

    def forget_queue(self, queue: str) -> None:
        """It was deleted, and its binding with it."""
        with self.lock:
            self.bound.pop(queue, None)

    def forget(self) -> None:
        """Something was not there: trust nothing that was seen before."""
        with self.lock:
            self.tops.clear()
            self.bound.clear()

    def build(self, link: Link, top: Level) -> None:
        """All levels up to `top`, from the lowest, so that none leads nowhere."""
        if not self.is_built(link, top):
            self.build_end(link)
            for number in range(top.number + 1):
                self.build_level(link, Level(top.prefix, number))
            self.settle()
        self.tops[top.prefix] = top.number

    def is_built(self, link: Link, top: Level) -> bool:
        """Its exchange is what is made last."""
        channel = link.channel()
        try:
            channel.exchange_declare(top.name, "topic", passive=True)
        except ChannelClosed as closed:
            if closed.code != NOT_FOUND:
                raise
            return False
        channel.close()
        return True

    def build_end(self, link: Link) -> None:
        """Where all ways end, and what becomes of those that lead nowhere any more."""
        declare(link, UNDELIVERABLE, undeliverable_arguments())
        channel = link.channel()
        channel.exchange_declare(UNDELIVERABLE, "fanout", durable=True, auto_delete=False)
        channel.queue_bind(UNDELIVERABLE, UNDELIVERABLE)
        alternate = {"alternate-exchange": UNDELIVERABLE}
        channel.exchange_declare(DUE, "topic", durable=True, auto_delete=False, arguments=alternate)
        channel.close()

    def build_level(self, link: Link, level: Level) -> None:
        declare(link, level.name, level.arguments)
        channel = link.channel()
        channel.exchange_declare(level.name, "topic", durable=True, auto_delete=False)
        channel.queue_bind(level.name, level.name, level.waits)
        channel.exchange_bind(level.next, level.name, level.passes)
        channel.close()

    def bind(self, link: Link, queue: str) -> None:
        channel = link.channel()
        try:
            channel.queue_bind(queue, DUE, delivery_key(queue))
        except ChannelClosed as closed:
            if closed.code == NOT_FOUND:
                raise QueueNotFound(queue) from closed
            raise
        channel.close()
        self.bound[queue] = time.monotonic()
