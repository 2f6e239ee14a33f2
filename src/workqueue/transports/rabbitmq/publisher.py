"""Sends to RabbitMQ: confirmed, mandatory, persistent, and many at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from workqueue.errors import (
    BrokerBlocked,
    ConnectionLost,
    NotSent,
    QueueNotFound,
    Refused,
    TooLarge,
    Unconfirmed,
    Unroutable,
)
from workqueue.loggers import logger
from workqueue.message import DEFAULT_PRIORITY, Message
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.address import Address
from workqueue.transports.rabbitmq.confirms import Confirms
from workqueue.transports.rabbitmq.delays import Delays
from workqueue.transports.rabbitmq.link import ChannelClosed, Link, translated
from workqueue.transports.rabbitmq.priorities import Priorities
from workqueue.transports.rabbitmq.topology import EXCHANGE

log = logger("rabbitmq")

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

IDLE = 10.0
"""Seconds after which a connection must prove that it is alive before it is trusted."""

PROOF_TIMEOUT = 3.0

JUST_USED = 0.01
"""Seconds in which a channel that was used is not looked at before it is used again. What happened
to it meanwhile shows when the confirm does not come; a sender in a loop is spared the look."""


class RabbitMQPublisher:
    """See `workqueue.transport.Publisher`. A connection of its own, without heartbeats: every
    publish waits for its confirm anyway, and an idle sender need not wake up for them."""

    def __init__(
        self,
        address: Address,
        delays: Delays,
        priorities: Priorities | None = None,
        *,
        exchange: str = EXCHANGE,
        role: str = "sender",
    ) -> None:
        self.exchange = exchange
        self.delays = delays
        self.priorities = priorities
        self.size_limit = LARGEST
        self.blocked = False
        self.closed = False
        self.link = Link(address, role, on_blocked=self.on_blocked, on_unblocked=self.on_unblocked)
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
        self.writers: dict[str, wire.PublishWriter] = {}
        self.begun = 0
        self.gathered: list[bytes] = []
        self.gathered_size = 0
        self.closing: ChannelClosed | None = None
        self.used = time.monotonic()

    # -- what the broker says

    def on_method(self, inbound: wire.Inbound) -> None:
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
        log.warning("RabbitMQ takes messages again")

    # -- what we say

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self.make_sure()
        confirms = self.confirms
        self.begun = 0
        try:
            with translated():
                self.write_all(queue, messages, deadline)
                self.make_room(deadline, WINDOW)
        except (ConnectionLost, Stalled) as error:
            cause = self.cause_of_silence(error)
            confirms.give_up(cause)
            confirms.failures += [(message, cause) for message in messages[self.begun :]]
            self.close()
        if self.closing:
            self.account_for_closing(confirms, messages[self.begun :])
        confirms.close()
        self.used = time.monotonic()
        self.report(confirms, len(messages))

    def write_all(self, queue: str, messages: Sequence[Message], deadline: float) -> None:
        """All are on their way, or on record as failures, unless the broker closes the channel;
        `begun` says how many were looked at."""
        writer = self.writer(queue)
        room = 0
        for message in messages:
            large = len(message.body) >= LARGE
            if large or not room or self.blocked:
                room = self.make_room(deadline, WINDOW if large else MORE)
            if self.closing:
                return
            frames = self.encode(queue, message, writer)
            self.begun += 1
            if frames is None:
                continue
            self.confirms.published(message)
            self.gathered.append(frames)
            self.gathered_size += len(frames)
            room = self.make_room(deadline, WINDOW) if large else room - 1
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
            self.close()
            raise ConnectionLost(str(error)) from error

    def prove_alive(self) -> None:
        """A round trip: a connection cut by something in between looks open until then."""
        self.link.wire.call_timeout, usual = PROOF_TIMEOUT, self.link.wire.call_timeout
        try:
            self.channel.basic_qos(0, 1, False)
        finally:
            self.link.wire.call_timeout = usual

    def encode(self, queue: str, message: Message, writer: wire.PublishWriter) -> bytes | None:
        """The frames, or None and a failure on record."""
        try:
            if len(message.body) > self.size_limit:
                raise wire.TooLong(too_large(len(message.body), self.size_limit))
            if self.priorities and message.priority != DEFAULT_PRIORITY:
                self.priorities.look(self.link, queue)
            if message.delay > 0:
                exchange, key = self.delays.way(self.link, queue, message)
                frame_max: int = self.link.wire.frame_max
                return wire.encode_publish(self.number, exchange, key, message, frame_max)
            return writer.frames(message)
        except QueueNotFound as error:
            self.confirms.failures.append((message, Unroutable(str(error))))
        except ChannelClosed as error:
            self.confirms.failures.append((message, Refused(f"it cannot wait: {error.text}")))
        except wire.TooLong as error:
            self.confirms.failures.append((message, TooLarge(str(error))))
        except wire.WireError as error:
            self.confirms.failures.append((message, Refused(str(error))))
        return None

    def writer(self, queue: str) -> wire.PublishWriter:
        if queue not in self.writers:
            self.writers[queue] = wire.PublishWriter(
                self.number, self.exchange, queue, self.link.wire.frame_max
            )
        return self.writers[queue]

    def flush(self, deadline: float) -> None:
        data, self.gathered, self.gathered_size = b"".join(self.gathered), [], 0
        if data and not self.closing:
            self.link.wire.write(data, timeout=deadline - time.monotonic())

    def take_what_is_there(self) -> None:
        if self.link.wire.wait_readable(0):
            self.link.wire.read()

    def make_room(self, deadline: float, room: int) -> int:
        """Write, and wait until `room` more messages may be on their way, or the channel is closed;
        how many may be. Not while blocked.

        Raises Stalled when the deadline passes.
        """
        while (WINDOW - self.confirms.open < room or self.blocked) and not self.closing:
            if not self.blocked:
                self.flush(deadline)
            left = deadline - time.monotonic()
            if left <= 0:
                raise Stalled
            if self.link.wire.wait_readable(min(left, 1.0)):
                self.link.wire.read()
        return WINDOW - self.confirms.open

    # -- what became of it

    def cause_of_silence(self, error: Exception) -> Unconfirmed:
        if self.blocked:
            return BrokerBlocked("RabbitMQ takes no messages for now (memory or disk alarm)")
        if isinstance(error, Stalled):
            return Unconfirmed("RabbitMQ did not confirm it in time")
        return Unconfirmed(str(error))

    def account_for_closing(self, confirms: Confirms, unsent: Sequence[Message]) -> None:
        """The broker closed the channel: say what that means for each message still open."""
        assert self.closing is not None
        open_messages = [*confirms.open_messages(), *unsent]
        size, limit = sizes_in(self.closing.text)
        if limit:
            self.size_limit = limit
        for message in open_messages:
            confirms.failures.append((message, self.cause_of_closing(message, size, limit)))

    def cause_of_closing(self, message: Message, size: int, limit: int) -> NotSent:
        assert self.closing is not None
        if size and len(message.body) == size:
            return TooLarge(too_large(size, limit))
        if self.closing.code == 404:  # the exchange is not there, so neither is our queue
            self.delays.forget()
            return Unroutable(self.closing.text)
        if self.closing.code == 403:
            return Refused(self.closing.text)
        return Unconfirmed(f"RabbitMQ closed the channel: {self.closing.text}")

    def report(self, confirms: Confirms, total: int) -> None:
        failures, confirms.failures = confirms.failures, []
        if failures:
            raise NotSent(str(failures[0][1]), failures=failures, sent=total - len(failures))

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.link.close()


class Stalled(Exception):
    """No confirm in time."""


def too_large(size: int, limit: int) -> str:
    return f"{size:,} bytes, and the broker takes {limit:,} (its max_message_size)"


def sizes_in(text: str) -> tuple[int, int]:
    """Size and limit from RabbitMQ's refusal, or zeros.

    4.x says "message size 17825792 is larger than configured max size 16777216"; 3.x says
    "message size 200B is larger than max size 100B".
    """
    match = re.search(r"message size (\d+)\D* is larger than .*?max size (\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)
