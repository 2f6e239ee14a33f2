"""One connection to RabbitMQ, used by one thread.

kombu connects, py-amqp speaks everything that is said once: handshake, channels, declarations,
QoS, consumers, heartbeats, closing. Reads and writes are ours, without blocking: many frames a
read, many a write, and nothing waits for ever. What py-amqp would do behind our back is headed
off here: it reopens a channel that the broker closed, without its consumer, and its delivery tags
begin at one again, so that a late acknowledgement would drop somebody else's message.
"""

from __future__ import annotations

import os
import random
import select
import socket
import ssl
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from struct import error as StructError  # noqa: N812 - the exception's only name is "error"
from types import TracebackType
from typing import Any

import amqp
import kombu
from amqp import sasl
from amqp.method_framing import frame_writer
from amqp.spec import Channel as ChannelMethods
from kombu.transport import pyamqp

from workqueue import __version__
from workqueue.deadline import left, within
from workqueue.errors import (
    AccessRefused,
    BrokerFailed,
    ConfigError,
    ConnectionLost,
    WorkqueueError,
)
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.address import Address
from workqueue.transports.rabbitmq.dial import DialledTCP, DialledTLS, tls_context
from workqueue.transports.rabbitmq.opening import Opening, frame_size
from workqueue.transports.rabbitmq.topology import Abilities, parse_version

CONNECT_TIMEOUT = 5.0
CALL_TIMEOUT = 15.0
"""Seconds. How long the broker may take for the answer to a method."""

SEND_TIMEOUT = 30.0
"""Seconds. How long a write may take."""

FIRST_READ = 32 * 1024
"""Bytes. Often a single confirm: for a large read, Python has the kernel map and unmap memory,
which takes a quarter of the time that sending one message takes."""

READ_SIZE = 256 * 1024
MOST_READS = 16
"""Reads in a row before what was read is looked at."""

TCP_USER_TIMEOUT = 40_000
"""Milliseconds. py-amqp's own 1,000 would have the kernel cut a connection that a memory alarm
merely holds up: flooded, it died after 1.3 s instead of waiting."""


class ChannelClosed(Exception):
    """The broker closed a channel: `code` and `text` are its own."""

    def __init__(self, channel: int, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.channel = channel
        self.code = code
        self.text = text


class Writes:
    """What py-amqp's frame writer writes to."""

    def __init__(self, write: Callable[[bytes | memoryview], None]) -> None:
        self.write = write


Tap = Callable[[wire.Inbound], None]
"""Takes the deliveries, returns, confirms and closing of one channel in py-amqp's place."""

TAPPED = frozenset(
    {wire.DELIVER, wire.RETURN, wire.ACK, wire.NACK, wire.CANCEL, wire.CHANNEL_CLOSE}
)


class Wire(pyamqp.Connection):
    """py-amqp's connection over our own reads and writes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(frame_writer=self.make_frame_writer, **options)
        self.reader = wire.FrameReader()
        self.opening = Opening()
        self.taps: dict[int, Tap] = {}
        self.dispatching = False
        self.poller = select.poll()
        self.call_timeout = CALL_TIMEOUT
        self.silent = False

    def make_frame_writer(self, connection: Wire, transport: Any) -> Callable[..., None]:
        """Called by py-amqp once there is a socket: from here on it never blocks."""
        transport.sock.setblocking(False)
        self.poller.register(transport.sock, select.POLLIN)
        open_wires.add(self)
        writer: Callable[..., None] = frame_writer(connection, Writes(self.write))
        return writer

    def connect(self, callback: Any = None) -> Any:
        try:
            return super().connect(callback)
        except BaseException:
            self.collect()
            raise

    @property
    def socket(self) -> Any:
        """The open socket. py-amqp's own property would connect again if there is none."""
        transport = self._transport
        if transport is None or transport.sock is None:
            raise ConnectionResetError("the connection is closed")
        return transport.sock

    def Transport(self, host: str, *_timeouts: object, **options: Any) -> Any:  # noqa: N802
        """What py-amqp connects with (the name is its own)."""
        ssl, settings = self.ssl, options["socket_settings"]
        kind = DialledTLS if ssl else DialledTCP
        return kind(host, ssl=ssl, socket_settings=settings)

    # -- reading

    def drain_events(self, timeout: float | None = None) -> None:
        """What py-amqp calls while it waits for an answer."""
        if not self.wait_readable(left(self.call_timeout if timeout is None else timeout)):
            self.silent = True
            raise TimeoutError("RabbitMQ does not answer")
        self.read()

    def wait_readable(self, timeout: float, bell: int | None = None) -> bool:
        """Whether the socket became readable, within `timeout` seconds or until `bell` is."""
        if self.reader.ready or self.pending():
            return True
        patience = max(0.0, timeout) * 1000
        if bell is None:
            return bool(self.poller.poll(patience))
        self.poller.register(bell, select.POLLIN)
        try:
            happened = self.poller.poll(patience)
        finally:
            self.poller.unregister(bell)
        return any(fd != bell for fd, _ in happened)

    def pending(self) -> bool:
        """Bytes that TLS has decrypted and the kernel no longer shows."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0

    def read(self) -> None:
        """Take what the socket has, without waiting, and hand on all methods it completes."""
        for turn in range(MOST_READS):
            size = READ_SIZE if turn else FIRST_READ
            try:
                data = self.socket.recv(size)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            if not data:
                self.dispatch()
                raise ConnectionResetError("RabbitMQ closed the connection")
            self.opening.received(len(data))
            before = self.reader.frames
            self.reader.feed(data, self.frame_max)
            self.bytes_recv += self.reader.frames - before
            if len(data) < size and not self.pending():
                break
        self.dispatch()

    def dispatch(self) -> None:
        """In the order of arrival, also when a handler ends up reading more."""
        ready, taps = self.reader.ready, self.taps
        while ready:
            inbound = ready.popleft()
            tap = taps.get(inbound.channel)
            if tap is None:
                self.opening.said(inbound.channel, inbound.method)
            self.dispatching = True
            try:
                if tap and inbound.method in TAPPED:
                    tap(inbound)
                elif inbound.method == wire.CHANNEL_CLOSE:
                    self.close_channel(inbound)
                elif self.channels is not None and inbound.channel in self.channels:
                    self.hand_to_amqp(inbound)
            finally:
                self.dispatching = False

    def hand_to_amqp(self, inbound: wire.Inbound) -> None:
        """py-amqp reads the arguments, and fails in many ways where they are none."""
        try:
            self.on_inbound_method(inbound.channel, inbound.method, inbound.arguments, None)
        except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise wire.WireError(f"method {inbound.method}: {error!r}") from error
        except ValueError as error:
            if isinstance(error, wire.WireError):
                raise
            raise wire.WireError(f"method {inbound.method}: {error!r}") from error

    def _on_tune(
        self, channel_max: int, frame_max: int, server_heartbeat: int, argsig: str = "BlB"
    ) -> None:
        """py-amqp would agree to whatever the server offers."""
        super()._on_tune(channel_max, frame_size(frame_max), server_heartbeat, argsig)

    def close_channel(self, inbound: wire.Inbound) -> None:
        """Agree to the closing, forget the channel, and say why it was closed."""
        self.forget_channel(inbound.channel)
        code, text = wire.decode_refusal(inbound.arguments)
        raise ChannelClosed(inbound.channel, code, text)

    def forget_channel(self, number: int) -> None:
        self.taps.pop(number, None)
        channel = self.channels.get(number) if self.channels else None
        if channel is not None:
            channel.send_method(ChannelMethods.CloseOk)
            channel.collect()

    # -- writing

    def write(self, data: bytes | memoryview, timeout: float = SEND_TIMEOUT) -> None:
        """All of it, reading meanwhile, so that two full pipes cannot wait for each other.

        Raises TimeoutError if that takes more than `timeout` seconds, or the deadline's.
        """
        view = memoryview(data)
        deadline = time.monotonic() + left(timeout)
        while view:
            try:
                view = view[self.socket.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self.wait_until_writable(deadline)
            except ssl.SSLWantReadError:
                self.wait_readable(deadline - time.monotonic())
            if view and time.monotonic() > deadline:
                self.silent = True
                raise TimeoutError("RabbitMQ takes no more bytes")
        if data:
            self.bytes_sent += 1

    def wait_until_writable(self, deadline: float) -> None:
        sock = self.socket
        events = select.POLLOUT if self.dispatching else select.POLLIN | select.POLLOUT
        self.poller.modify(sock, events)
        try:
            happened = self.poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            self.poller.modify(sock, select.POLLIN)
        if any(event & select.POLLIN for _, event in happened):
            self.read()


class WireTransport(pyamqp.Transport):
    """kombu's AMQP transport with our connection in it."""

    Connection = Wire


class Link:
    """An open connection: channels, the server's abilities, and errors that are ours.

    Raises ConnectionLost if none of the address's hosts answers, AccessRefused if one of them
    refuses the login, the virtual host or the certificate. For one thread, of one process.
    """

    def __init__(
        self,
        address: Address,
        role: str,
        *,
        heartbeat: float = 0.0,
        on_blocked: Callable[[], None] | None = None,
        on_unblocked: Callable[[], None] | None = None,
    ) -> None:
        self.pid = os.getpid()
        options = {
            "client_properties": {
                "product": "workqueue",
                "version": __version__,
                "connection_name": f"workqueue {role}, {self.pid} on {socket.gethostname()}",
            },
            "socket_settings": {socket.TCP_USER_TIMEOUT: TCP_USER_TIMEOUT}
            if hasattr(socket, "TCP_USER_TIMEOUT")
            else {},
            "on_blocked": lambda _reason: on_blocked() if on_blocked else None,
            "on_unblocked": on_unblocked,
        }
        self.wire = connect(address, heartbeat, options)
        self.abilities = Abilities(parse_version(self.wire.server_properties.get("version")))
        self.ticked = time.monotonic()

    @property
    def version(self) -> str:
        return str(self.wire.server_properties.get("version", "of unknown version"))

    def channel(self) -> amqp.Channel:
        """A new channel. The broker closing it by an error raises ChannelClosed where one waits.

        Raises ConfigError if it allows no more.
        """
        try:
            return self.wire.channel()
        except amqp.ResourceError as error:
            if len(self.wire.channels or ()) <= self.most_channels:
                raise
            raise ConfigError(
                f"RabbitMQ's channel_max is {self.most_channels}: a connection needs more channels",
                hint="Set a higher channel_max in rabbitmq.conf.",
            ) from error

    @property
    def most_channels(self) -> int:
        return int(self.wire.channel_max)

    def tick(self) -> None:
        """Heartbeats, ours and theirs. To be called about once a second; cheap in between."""
        now = time.monotonic()
        if now - self.ticked >= 1.0:
            self.ticked = now
            self.wire.heartbeat_tick()

    def close(self, timeout: float = 2.0) -> None:
        """Say good-bye if the broker listens, hang up in any case; safe to call twice.

        All of it takes `timeout` seconds at most. With 0 the broker is not told, nor is one that
        let us wait in vain before.
        """
        if self.pid != os.getpid():
            return  # the parent's connection: a farewell from here would end it for the parent
        self.wire.taps.clear()
        with suppress(Exception), within(timeout):  # whatever a dying connection raises, it is over
            if timeout > 0 and not self.wire.silent:
                self.wire.close()
        with suppress(Exception):
            self.wire.collect()


def connect(address: Address, heartbeat: float, options: dict[str, Any]) -> Wire:
    """The first host that answers, in random order, so that clients spread over a cluster.

    Each may take CONNECT_TIMEOUT in all, or its share of what the deadline leaves, if that is less.
    """
    lost: ConnectionLost | None = None
    context = tls_context(address) if address.tls else None
    for number, (host, port) in enumerate(random.sample(address.hosts, len(address.hosts))):
        if address.external:
            by_password = sasl.PLAIN(address.user, address.password)
            options["authentication"] = (sasl.EXTERNAL(), by_password)
        client = kombu.Connection(
            hostname=host,
            port=port,
            userid=address.user,
            password=address.password,
            virtual_host=address.vhost,
            ssl=context and {"context": context, "server_hostname": address.certified_name(host)},
            heartbeat=heartbeat,
            connect_timeout=CONNECT_TIMEOUT,
            transport=WireTransport,
            transport_options=dict(options),
        )
        try:
            share = left() / (len(address.hosts) - number)
            with translated(f"RabbitMQ at {host}:{port}"), within(min(CONNECT_TIMEOUT, share)):
                wire: Wire = client.transport.establish_connection()
                return wire
        except ConnectionLost as error:
            lost = error
    assert lost is not None
    raise lost


open_wires: weakref.WeakSet[Wire] = weakref.WeakSet()


def close_descriptor(opened: Wire) -> None:
    transport = opened._transport  # the property would connect again
    if transport is not None and transport.sock is not None:
        with suppress(OSError):
            os.close(transport.sock.detach())


def close_inherited() -> None:
    """In a forked child: were it to keep its parent's connections open, the broker would not notice
    the parent's death for as long as the child lives, and give its messages to nobody."""
    for inherited in list(open_wires):
        close_descriptor(inherited)


os.register_at_fork(after_in_child=close_inherited)


NAME_THE_AUTHORITY = "Name the authority that signed it: amqps://host/?cacertfile=/path/to/ca.pem"
NAME_THE_HOST = "Write the host as its certificate does, or add ?server_name_indication=NAME"
CERTIFICATE_HINTS = {
    10: "The broker's certificate must be renewed.",
    18: NAME_THE_AUTHORITY,
    19: NAME_THE_AUTHORITY,
    20: NAME_THE_AUTHORITY,
    21: NAME_THE_AUTHORITY,
    62: NAME_THE_HOST,
    64: NAME_THE_HOST,
}
"""By OpenSSL's codes of verification (openssl-verification-options)."""

SHOW_A_CERTIFICATE = (
    "The broker may want a certificate of yours: amqps://host/?certfile=FILE&keyfile=FILE"
)
SHOW_ANOTHER = "That is about your certificate: it must be of an authority that the broker trusts."
ALERT_HINTS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": SHOW_A_CERTIFICATE,
    "SSLV3_ALERT_HANDSHAKE_FAILURE": SHOW_A_CERTIFICATE,
    "TLSV1_ALERT_UNKNOWN_CA": SHOW_ANOTHER,
    "TLSV1_ALERT_ACCESS_DENIED": SHOW_ANOTHER,
    "SSLV3_ALERT_BAD_CERTIFICATE": SHOW_ANOTHER,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": SHOW_ANOTHER,
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": SHOW_ANOTHER,
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "Your certificate was revoked: name another one.",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "Your certificate must be renewed.",
}
"""By OpenSSL's names of what the broker answers (RFC 8446, section 6.2)."""

NAME_THE_USER = (
    "The certificate names the user, who must exist in RabbitMQ; or log in with user:password@"
)


CANNOT_DELIVER = (
    "It does so at a message that AMQP 0-9-1 cannot express: an AMQP 1.0 client sent it with a"
    " uuid, a char or a decimal in its application properties or annotations."
)


class Translation:
    """Every foreign error becomes one of ours here, and nowhere else.

    ChannelClosed passes: what it means depends on what was asked. A class, because every publish
    passes through one, and a generator's takes several times as long.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and (ours := translation(error, self.where)):
            raise ours from error


def translated(where: str = "RabbitMQ") -> Translation:
    """What happens within, in our terms; `where` is who it happened with."""
    return Translation(where)


def translation(error: BaseException, where: str) -> WorkqueueError | None:
    """Ours for `error`; None if it is one, or nothing that a broker or a network does."""
    match error:
        case WorkqueueError() | ChannelClosed():
            return None
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return ConnectionLost(f"the connection to {where} was cut")
        case ssl.SSLError():
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            hint = CERTIFICATE_HINTS.get(getattr(error, "verify_code", 0), "")
            hint = hint or ALERT_HINTS.get(error.reason or "", "")
            return AccessRefused(f"{where}: TLS failed: {reason}", hint=hint)
        case amqp.AccessRefused() | amqp.NotAllowed():
            text = str(error.reply_text)
            if "limit" in text:  # too many connections: another try may succeed
                return ConnectionLost(f"{where}: {text}")
            hint = NAME_THE_USER if "EXTERNAL" in text else ""
            return AccessRefused(f"{where} refuses: {text}", hint=hint)
        case socket.gaierror():
            return ConnectionLost(f"cannot reach {where}: {error.strerror}")
        case OSError():
            return ConnectionLost(f"cannot reach {where}: {error.strerror or error}")
        case amqp.InternalError():
            told = f"{where} failed and closed the connection: {error.code} INTERNAL_ERROR"
            return BrokerFailed(told, hint=CANNOT_DELIVER)
        case amqp.AMQPError():
            return ConnectionLost(f"{where} closed the connection: {error}")
        case wire.WireError() | StructError():
            return ConnectionLost(f"{where} sent what is not AMQP: {error}")
        case _:
            return None
