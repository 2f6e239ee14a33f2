"""Looks at the ladder before it is used, and makes what of it is missing.

Each part can be deleted by itself: a queue, an exchange, a binding. A message that was put on a
ladder with a missing step is held up there, and its sender does not hear of it. So all parts are
looked at before each batch of delayed messages, in one go; and every few seconds they are declared
and bound again, which notices other arguments and restores single bindings.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import amqp

from workqueue.errors import AccessRefused, ConfigError, QueueNotFound
from workqueue.forks import Lock
from workqueue.message import DEFAULT_PRIORITY, Message
from workqueue.transports.rabbitmq import survey
from workqueue.transports.rabbitmq.gate import (
    GATE_SUFFIX,
    LONGEST_NAME,
    gate_is_open,
    has_marker,
)
from workqueue.transports.rabbitmq.ladder import (
    DUE,
    Level,
    Part,
    delivery_key,
    first_level,
    parts,
    routing_key,
)
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.survey import (
    ACCESS_REFUSED,
    NOT_FOUND,
    exchange_exists,
    exists,
    not_allowed,
    permission_in,
)

COMPARED = 1.0
"""Seconds for which arguments and bindings of the ladder are taken to be as they were. To compare
them costs RabbitMQ 4.3 up to 20 ms, and to look whether all is there 1 ms."""


GATE_AGAIN = 5.0
"""Seconds between two looks whether a queue without a gate is being migrated."""


class Looks:
    """How one sender looks at the ladder; `levels` are what it has seen since its batch began: the
    highest number by prefix. `refused` is why there is no way, by the name of the level. The
    channel is kept: to open one takes longer than to look."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.levels: dict[str, int] = {}
        self.refused: dict[str, AccessRefused | ConfigError | ChannelClosed] = {}
        self.channel: amqp.Channel | None = None

    def begin(self) -> None:
        """A batch."""
        self.levels.clear()
        self.refused.clear()

    def open(self) -> amqp.Channel:
        if self.channel is None:
            self.channel = self.link.channel()
        return self.channel


class Delays:
    """The ladders of one virtual host, as far as one transport knows them. Thread-safe.

    `settle` is called after queues were made, and returns when they can be trusted.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self.settle = settle
        self.lock = Lock()
        self.compared: dict[str, tuple[int, float]] = {}
        self.bound: set[str] = set()
        self.without_gate: dict[str, float] = {}
        self.may_look = True
        self.may_compare = True

    def way(self, queue: str, message: Message, looks: Looks) -> tuple[str, str]:
        """Exchange and routing key that bring `message` to `queue` after its delay.

        Makes sure that there is such a way, once for a batch. Raises QueueNotFound if there is no
        such queue; AccessRefused, ConfigError or ChannelClosed where no way can be made.
        """
        high = looks.link.abilities.high_priorities_block and message.priority > DEFAULT_PRIORITY
        level = first_level(message.delay, high=high)
        if refused := looks.refused.get(level.name):
            raise refused.with_traceback(None)
        if level.number > looks.levels.get(level.prefix, -1):
            try:
                with self.lock:
                    self.make_sure(looks, level, queue)
            except (AccessRefused, ConfigError, ChannelClosed) as error:
                looks.refused[level.name] = error
                raise
            looks.levels[level.prefix] = level.number
        return level.name, routing_key(message.delay, queue)

    def forget(self) -> None:
        """A message found no way: compare everything before the next one."""
        self.compared.clear()

    def make_sure(self, looks: Looks, top: Level, queue: str) -> None:
        """All levels up to `top` are there, and what is due for `queue` gets there."""
        link = looks.link
        well = self.glance(looks, top, queue)
        whole = well or self.is_there(link, top)
        made_queue = not whole and self.make_missing(link, top)
        if not whole or self.is_time_to_compare(top):
            self.compare(link, top, needed=not whole)
            self.compared[top.prefix] = (top.number, time.monotonic())
        if made_queue:
            self.settle()
        if not well:
            self.bind(link, queue)
        if not whole:
            self.bind_others(link, queue)
        self.bound.add(queue)

    def glance(self, looks: Looks, top: Level, queue: str) -> bool:
        """Whether all is well, in one round trip, and `queue` is bound. False also where that takes
        a closer look: at a queue that is being migrated, or has no gate."""
        if queue in self.without_gate or len(queue.encode()) > LONGEST_NAME:
            return False
        try:
            channel = looks.open()
            for part in parts(top) if self.may_look else ():
                look(channel, part)
            channel.exchange_declare(queue + GATE_SUFFIX, "fanout", passive=True, nowait=True)
            channel.queue_bind(queue, DUE, delivery_key(queue))
        except ChannelClosed:
            looks.channel = None
            return False
        return True

    def is_time_to_compare(self, top: Level) -> bool:
        number, at = self.compared.get(top.prefix, (-1, -COMPARED))
        return top.number > number or time.monotonic() - at >= COMPARED

    def is_there(self, link: Link, top: Level) -> bool:
        """Whether no queue and no exchange is missing, in one round trip. True also where this
        user may not know."""
        if not self.may_look:
            return True
        channel = link.channel()
        try:
            for part in parts(top):
                look(channel, part)
            answer(channel)
        except ChannelClosed as closed:
            if closed.code not in (NOT_FOUND, ACCESS_REFUSED):
                raise
            self.may_look = closed.code != ACCESS_REFUSED
            return not self.may_look
        channel.close()
        return True

    def make_missing(self, link: Link, top: Level) -> bool:
        """From the lowest level, so that none leads nowhere. Whether a queue was made."""
        missing = [part for part in parts(top) if not is_there(link, part)]
        for part in missing:
            channel = link.channel()
            try:
                declare(channel, part)
                answer(channel)
            except ChannelClosed as closed:
                if closed.code == ACCESS_REFUSED:
                    problem = f"{part.name} does not exist, which delays need"
                    needed = permission_in(closed.text, "configure", part.name)
                    raise not_allowed(link, problem, needed) from closed
                raise
            channel.close()
        return any(part.is_queue for part in missing)

    def compare(self, link: Link, top: Level, *, needed: bool) -> None:
        """Declare and bind everything, in one round trip: no change where all is well.

        Raises ConfigError for a part that was made with other arguments. A user who may not do
        this takes the ladder as it is, unless it is `needed`.
        """
        if not (needed or self.may_compare):
            return
        channel = link.channel()
        try:
            for part in parts(top):
                declare(channel, part)
                bind(channel, part)
            answer(channel)
        except ChannelClosed as closed:
            match closed.code:
                case survey.PRECONDITION_FAILED if "inequivalent arg" in closed.text:
                    raise made_otherwise(closed.text) from closed
                case survey.ACCESS_REFUSED if needed:
                    lacking = permission_in(closed.text, "write", DUE)
                    raise not_allowed(link, "a part of the delays is missing", lacking) from closed
                case survey.ACCESS_REFUSED:
                    self.may_compare = False
                case survey.NOT_FOUND:
                    self.compared.clear()  # deleted since the look: the next batch looks again
                case _:
                    raise
            return
        channel.close()

    def bind(self, link: Link, queue: str) -> None:
        """What is due for `queue` gets there. Not while it is migrated: another queue is bound.

        Raises QueueNotFound; AccessRefused, because a message that is due for a queue that is not
        bound would be put where nobody looks.
        """
        if self.is_migrating(link, queue):
            return
        channel = link.channel()
        try:
            channel.queue_bind(queue, DUE, delivery_key(queue))
        except ChannelClosed as closed:
            if closed.code == NOT_FOUND:
                raise QueueNotFound(queue) from closed
            if closed.code == ACCESS_REFUSED:
                problem = f"queue {queue} cannot be bound to {DUE}, where delays end"
                raise not_allowed(link, problem, f"write {queue}", f"read {DUE}") from closed
            raise
        channel.close()

    def bind_others(self, link: Link, queue: str) -> None:
        """The exchange where delays end may be a new one, without the bindings that it had: those
        of queues that messages were delayed for here are put back."""
        for name in self.bound - {queue}:
            try:
                self.bind(link, name)
            except (QueueNotFound, AccessRefused):
                self.bound.discard(name)

    def is_migrating(self, link: Link, queue: str) -> bool:
        """Asked each time where that is no error in the broker's log: where there is a gate."""
        if time.monotonic() - self.without_gate.get(queue, -GATE_AGAIN) < GATE_AGAIN:
            return False
        self.without_gate.pop(queue, None)
        if gate_is_open(link, queue):
            return False
        self.without_gate[queue] = time.monotonic()
        return has_marker(link, queue)


def is_there(link: Link, part: Part) -> bool:
    """True also where this user may not know, for an exchange."""
    return exists(link, part.name) if part.is_queue else exchange_exists(link, part.name)


def look(channel: amqp.Channel, part: Part) -> None:
    """Declare it passively, without waiting for the answer, as the two below: see `answer`."""
    if part.is_queue:
        channel.queue_declare(part.name, passive=True, nowait=True)
    else:
        channel.exchange_declare(part.name, part.kind, passive=True, nowait=True)


def declare(channel: amqp.Channel, part: Part) -> None:
    flags = {"durable": True, "auto_delete": False, "nowait": True}
    if part.is_queue:
        channel.queue_declare(part.name, arguments=part.arguments, **flags)
    else:
        channel.exchange_declare(part.name, part.kind, arguments=part.arguments, **flags)


def bind(channel: amqp.Channel, part: Part) -> None:
    for binding in part.bindings:
        join = channel.queue_bind if binding.to_queue else channel.exchange_bind
        join(binding.target, binding.source, binding.key, nowait=True)


def answer(channel: amqp.Channel) -> None:
    """Wait until the broker has done all that was asked on `channel`; ChannelClosed if it refused.

    Not by closing it: that would cross with the broker's own closing after a refusal.
    """
    channel.basic_qos(0, 0, False)


def made_otherwise(refusal: str) -> ConfigError:
    error = ConfigError(
        f"a part of the delays was made with other arguments than workqueue gives it: {refusal}",
        hint="Delete it when nothing waits in it: the next delayed message makes it again.",
    )
    error.command = "workqueue doctor --management-url http://user:password@host:15672"
    return error
