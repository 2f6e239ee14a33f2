"""Sends to RabbitMQ: confirmed, mandatory, persistent, and many at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import amqp

from workqueue.deadline import Deadline, left, within
from workqueue.errors import (
    AccessRefused,
    BrokerBlocked,
    ConfigError,
    ConnectionLost,
    NotSent,
    QueueNotFound,
    Refused,
    TooLarge,
    Unconfirmed,
    Unroutable,
    common_reason,
)
from workqueue.loggers import logger
from workqueue.logs import CarefulLog
from workqueue.message import DEFAULT_PRIORITY, Message, visible
from workqueue.transports.copies import DIRECT_REPLY_TO
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.address import Address
from workqueue.transports.rabbitmq.causes import CannotWait, Forbidden, Interrupted
from workqueue.transports.rabbitmq.confirms import Confirms
from workqueue.transports.rabbitmq.delays import Delays, Looks
from workqueue.transports.rabbitmq.destinations import Destinations
from workqueue.transports.rabbitmq.link import ChannelClosed, Link, translated
from workqueue.transports.rabbitmq.priorities import Priorities
from workqueue.transports.rabbitmq.survey import (
    ACCESS_REFUSED,
    LOCKED,
    NOT_FOUND,
    not_allowed,
    permission_in,
)
from workqueue.transports.rabbitmq.topology import EXCHANGE

log = CarefulLog(logger("rabbitmq"))

WINDOW = 2_000
"""Messages on their way without a confirm. Enough to keep a quorum queue busy; waiting for each
one costs a factor of twenty."""

MORE = WINDOW // 4
"""Messages that must have room in a full window before more are written: few large writes."""

WRITE_SIZE = 64 * 1024
"""Bytes gathered before they are written."""

LARGE = 4 * 1024 * 1024
"""Bytes. A message that may be over the broker's limit travels alone: the broker answers one that
is too large by closing the channel, and with it the fate of all others on it would be unknown."""

LARGEST = 512 * 1024 * 1024
"""Bytes. No RabbitMQ can be configured to take more."""

LONGEST_LINE = 200
"""Characters of a list of names in the log."""

IDLE = 10.0
"""Seconds after which a connection must prove that it is alive before it is trusted."""

PROOF_TIMEOUT = 3.0
"""Seconds, or half of what the caller has, if that is less: a new connection must still be had."""

FAREWELL = 0.5
"""Seconds for the broker to agree that the connection is closed."""

FRAME_ERROR = 501

JUST_USED = 0.01
"""Seconds in which a channel that was used is not looked at before it is used again. What happened
to it meanwhile shows when the confirm does not come; a sender in a loop is spared the look."""


class RabbitMQPublisher:
    """See `workqueue.transport.Publisher`. A connection of its own, without heartbeats: every
    publish waits for its confirm anyway, and an idle sender need not wake up for them.

    A `patient` one counts the timeout of a publish from when RabbitMQ last confirmed anything, and
    not while it is blocked: to hang up and send again would store everything twice. `abandoned` may
    be set by another thread, and ends the wait of a publish within a second.

    With `whole`, a message is sent as it is or not at all. Without, which is for copies of received
    messages, headers that AMQP cannot express or that fit into no frame are left out, with a line
    in the log.
    """

    def __init__(
        self,
        address: Address,
        delays: Delays,
        priorities: Priorities | None = None,
        *,
        exchange: str = EXCHANGE,
        role: str = "sender",
        whole: bool = True,
    ) -> None:
        self.exchange = exchange
        self.whole = whole
        self.delays = delays
        self.priorities = priorities
        self.size_limit = LARGEST
        self.blocked = False
        self.closed = False
        self.patient = False
        self.abandoned = False
        self.heard_at = time.monotonic()
        self.link = Link(address, role, on_blocked=self.on_blocked, on_unblocked=self.on_unblocked)
        self.looks = Looks(self.link)
        try:
            self.open_channel()
        except BaseException:
            self.link.close()
            raise

    def open_channel(self) -> None:
        """In confirm mode. A closed channel is never used again; the next one counts from one."""
        with translated():
            self.channel = self.link.channel()
            self.confirms = Confirms()
            self.channel.confirm_select()
            self.number: int = self.channel.channel_id
            self.link.wire.taps[self.number] = self.on_method
        self.destinations = Destinations(self.link, self.channel)
        self.writers: dict[str, wire.PublishWriter] = {}
        self.begun = 0
        self.gathered: list[bytes] = []
        self.gathered_size = 0
        self.closing: ChannelClosed | None = None
        self.used = time.monotonic()

    # -- what the broker says

    def on_method(self, inbound: wire.Inbound) -> None:
        self.heard_at = time.monotonic()
        match inbound.method:
            case wire.ACK:
                self.confirms.on_ack(*wire.decode_settled(inbound.arguments))
            case wire.NACK:
                self.confirms.on_nack(*wire.decode_settled(inbound.arguments))
            case wire.RETURN:
                assert inbound.message is not None
                _, text = wire.decode_refusal(inbound.arguments)
                self.confirms.on_return(inbound.message.id, text)
            case wire.CHANNEL_CLOSE:
                self.link.wire.forget_channel(inbound.channel)
                self.closing = ChannelClosed(
                    inbound.channel, *wire.decode_refusal(inbound.arguments)
                )

    def on_blocked(self) -> None:
        self.blocked = True
        log.warning("RabbitMQ takes no messages for now (memory or disk alarm): waiting")

    def on_unblocked(self) -> None:
        self.blocked = False
        self.heard_at = time.monotonic()
        log.warning("RabbitMQ takes messages again")

    # -- what we say

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        self.patience = timeout
        with within(timeout) as deadline:
            self.publish_within(queue, messages, deadline)

    def publish_within(self, queue: str, messages: Sequence[Message], deadline: Deadline) -> None:
        self.make_sure()
        confirms = self.confirms
        self.begun = 0
        self.heard_at = time.monotonic()
        try:
            with translated():
                self.look(queue)
                self.write_all(queue, messages, deadline)
                self.make_room(deadline, WINDOW)
        except QueueNotFound as error:
            confirms.failures += [(message, Unroutable(str(error))) for message in messages]
        except (ConnectionLost, Stalled) as error:
            cause = self.cause_of_silence(error)
            confirms.give_up(cause)
            confirms.failures += [(message, cause) for message in messages[self.begun :]]
            self.abandon()
        if self.closing:
            self.account_for_closing(confirms, messages[self.begun :])
        confirms.close()
        self.used = time.monotonic()
        self.report(queue, confirms, len(messages))

    def look(self, queue: str) -> None:
        """Before anything is written to `queue`. Raises QueueNotFound, or ConfigError.

        The default exchange needs no look: it has no alternate, and gives a message to no queue
        but the one of that name.
        """
        self.looks.begin()
        if self.exchange:
            self.destinations.look(queue)

    def write_all(self, queue: str, messages: Sequence[Message], deadline: Deadline) -> None:
        """All are on their way, or on record as failures, unless the broker closes the channel;
        `begun` says how many were looked at."""
        writer = self.writer(queue)
        room = 0
        for message in messages:
            alone = travels_alone(message)
            if alone or not room or self.blocked:
                room = self.make_room(deadline, WINDOW if alone else MORE)
            if self.closing:
                return
            frames = self.encode(queue, message, writer)
            self.begun += 1
            if frames is None:
                continue
            self.confirms.published(message)
            self.gathered.append(frames)
            self.gathered_size += len(frames)
            room = self.make_room(deadline, WINDOW) if alone else room - 1
            if self.gathered_size >= WRITE_SIZE:
                self.flush(deadline)
                self.take_what_is_there()

    def make_sure(self) -> None:
        """There is a channel, and a connection that lives. Raises ConnectionLost."""
        if self.closed:
            raise ConnectionLost("this sender's connection is closed")
        idle = time.monotonic() - self.used
        if idle < JUST_USED and not self.closing:
            return
        try:
            with translated():
                self.take_what_is_there()
                if self.closing:
                    self.open_channel()
                elif idle > IDLE:
                    self.prove_alive()
        except (ConnectionLost, ChannelClosed) as error:
            self.abandon()
            raise ConnectionLost(str(error)) from error

    def prove_alive(self) -> None:
        """A round trip: a connection cut by something in between looks open until then."""
        with within(min(PROOF_TIMEOUT, left() / 2)):
            self.channel.basic_qos(0, 1, False)

    def encode(self, queue: str, message: Message, writer: wire.PublishWriter) -> bytes | None:
        """The frames, or None and a failure on record."""
        try:
            if len(message.body) > self.size_limit:
                raise wire.TooLong(too_large(len(message.body), self.size_limit))
            if self.priorities and message.priority != DEFAULT_PRIORITY:
                self.priorities.look(self.link, queue)
            if message.delay > 0:
                exchange, key = self.delays.way(queue, message, self.looks)
                frame_max: int = self.link.wire.frame_max
                writer = wire.PublishWriter(self.number, exchange, key, frame_max)
            return self.frames(message, writer)
        except QueueNotFound as error:
            self.confirms.failures.append((message, Unroutable(str(error))))
        except ChannelClosed as error:
            self.confirms.failures.append((message, CannotWait(f"it cannot wait: {error.text}")))
        except (AccessRefused, ConfigError) as error:
            # Alone: others on their way with it may be somebody else's.
            waits = message.delay > 0
            refused = CannotWait(f"it cannot wait: {error}") if waits else Refused(str(error))
            refused.__cause__ = error
            self.confirms.failures.append((message, refused))
        except wire.TooLong as error:
            self.confirms.failures.append((message, TooLarge(str(error))))
        except wire.WireError as error:
            self.confirms.failures.append((message, Refused(str(error))))
        return None

    def frames(self, message: Message, writer: wire.PublishWriter) -> bytes:
        try:
            return writer.frames(message)
        except wire.WireError:
            if self.whole:
                raise
        fitted, left_out = wire.fitted(message, writer.frame_max)
        if left_out:
            log.warning(
                "task %s: its copy goes without %d headers, which AMQP cannot say or which do not "
                "fit into a frame: %s",
                visible(message.id or "without id"),
                len(left_out),
                visible(", ".join(left_out)[:LONGEST_LINE]),
            )
        return writer.frames(fitted)

    def writer(self, queue: str) -> wire.PublishWriter:
        if queue not in self.writers:
            self.writers[queue] = wire.PublishWriter(
                self.number, self.exchange, queue, self.link.wire.frame_max
            )
        return self.writers[queue]

    def flush(self, deadline: Deadline) -> None:
        data, self.gathered, self.gathered_size = b"".join(self.gathered), [], 0
        if data and not self.closing:
            self.link.wire.write(data, timeout=self.time_left(deadline))

    def take_what_is_there(self) -> None:
        if self.link.wire.wait_readable(0):
            self.link.wire.read()

    def make_room(self, deadline: Deadline, room: int) -> int:
        """Write, and wait until `room` more messages may be on their way, or the channel is closed;
        how many may be. Not while blocked.

        Raises Stalled when the deadline passes.
        """
        while (WINDOW - self.confirms.open < room or self.blocked) and not self.closing:
            if not self.blocked:
                self.flush(deadline)
            if not self.time_left(deadline):
                raise Stalled
            if self.link.wire.wait_readable(min(self.time_left(deadline), 1.0)):
                self.link.wire.read()
        return WINDOW - self.confirms.open

    def time_left(self, deadline: Deadline) -> float:
        """Seconds until a publish gives up. A patient one moves its deadline, for all waits."""
        if self.abandoned:
            return 0.0
        if self.patient:
            if self.blocked:
                self.heard_at = time.monotonic()
            deadline.at = max(deadline.at, self.heard_at + self.patience)
        return deadline.left()

    # -- what became of it

    def cause_of_silence(self, error: Exception) -> Unconfirmed:
        if self.blocked:
            return BrokerBlocked("RabbitMQ takes no messages for now (memory or disk alarm)")
        if isinstance(error, Stalled):
            return Unconfirmed("RabbitMQ did not confirm it in time")
        if blames_a_message(error.__cause__):
            return Interrupted(str(error))
        return Unconfirmed(str(error))

    def account_for_closing(self, confirms: Confirms, unsent: Sequence[Message]) -> None:
        """The broker closed the channel: say what that means for each message still open."""
        assert self.closing is not None
        open_messages = [*confirms.open_messages(), *unsent]
        size, limit = sizes_in(self.closing.text)
        if limit:
            self.size_limit = limit
        on_the_way = confirms.open
        for message in open_messages:
            # What was never written is not at fault; of several, nobody knows which one is.
            alone = on_the_way == 1 and message is open_messages[0]
            cause = self.cause_of_closing(message, size, limit, alone=alone)
            confirms.failures.append((message, cause))

    def cause_of_closing(self, message: Message, size: int, limit: int, *, alone: bool) -> NotSent:
        assert self.closing is not None
        if size and len(message.body) == size:
            return TooLarge(too_large(size, limit))
        if self.closing.code == NOT_FOUND:  # an exchange, or the queue that was looked at
            return Unroutable(self.closing.text)
        if self.closing.code == ACCESS_REFUSED:
            return Forbidden(self.closing.text)
        if alone or self.closing.code == LOCKED:
            return Refused(self.closing.text)
        return Interrupted(f"RabbitMQ closed the channel: {self.closing.text}")

    def report(self, queue: str, confirms: Confirms, total: int) -> None:
        failures, confirms.failures = confirms.failures, []
        if failures:
            if any(isinstance(cause, Unroutable) for _, cause in failures):
                self.delays.forget()
            if len(failures) == total and (refused := self.lacking(queue, failures[0][1])):
                raise refused
            if self.exchange and len(failures) == total and (reason := common_reason(failures)):
                raise reason  # a copy has its cause instead
            raise NotSent(str(failures[0][1]), failures=failures, sent=total - len(failures))

    def lacking(self, queue: str, cause: NotSent) -> AccessRefused | None:
        """Why nothing was sent, where a permission is missing. A copy has its cause instead."""
        if isinstance(cause, Unroutable):
            return self.destinations.explain_return(queue)
        if self.exchange and self.closing and self.closing.code == ACCESS_REFUSED:
            needed = permission_in(self.closing.text, "write", self.exchange)
            return not_allowed(self.link, f"RabbitMQ refuses messages for {queue}", needed)
        return None

    def abandon(self) -> None:
        """Hang up on a broker that does not answer, without waiting for it once more."""
        self.closed = True
        self.link.close(timeout=0)

    def close(self) -> None:
        """All that was published is settled by now: the farewell may be short."""
        if not self.closed:
            self.closed = True
            self.link.close(timeout=FAREWELL)


class Stalled(Exception):
    """No confirm in time."""


def travels_alone(message: Message) -> bool:
    """Whether RabbitMQ may answer this message by closing the channel: what else is on its way
    would be refused for it, and nobody could say what became of that.

    It does so with one over its max_message_size, and with one that asks for answers without a
    queue, which only a consumer of such answers may (RabbitMQ documentation, "Direct Reply-to").
    """
    return len(message.body) >= LARGE or message.reply_to == DIRECT_REPLY_TO


def blames_a_message(error: BaseException | None) -> bool:
    """Whether RabbitMQ closed the connection for what was sent on it: AMQP's codes of hard errors,
    but not that of a broker that is being stopped (320) or of a person who closed it."""
    return isinstance(error, amqp.AMQPError) and (error.reply_code or 0) >= FRAME_ERROR


def too_large(size: int, limit: int) -> str:
    return f"{size:,} bytes, and the broker takes {limit:,} (its max_message_size)"


def sizes_in(text: str) -> tuple[int, int]:
    """Size and limit from RabbitMQ's refusal, or zeros.

    4.x says "message size 17825792 is larger than configured max size 16777216"; 3.x says
    "message size 200B is larger than max size 100B".
    """
    match = re.search(r"message size (\d+)\D* is larger than .*?max size (\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
