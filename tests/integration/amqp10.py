"""A sender that speaks AMQP 1.0: what it puts into a queue, AMQP 0-9-1 may have to refuse.

As much of the protocol as sending takes (OASIS AMQP 1.0, parts 1 to 3 and 5).
"""

from __future__ import annotations

import socket
import struct
from urllib.parse import unquote, urlsplit

NULL, FALSE = b"\x40", b"\x42"
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION = 0x10, 0x11, 0x12, 0x13, 0x14, 0x15
SASL_MECHANISMS, SASL_INIT, SASL_OUTCOME = 0x40, 0x41, 0x44
SOURCE, TARGET, PROPERTIES, DATA = 0x28, 0x29, 0x73, 0x75


def uint(number: int) -> bytes:
    return b"\x70" + struct.pack(">I", number)


def text(value: str) -> bytes:
    return b"\xb1" + struct.pack(">I", len(value.encode())) + value.encode()


def symbol(value: str) -> bytes:
    return b"\xa3" + bytes([len(value)]) + value.encode()


def binary(value: bytes) -> bytes:
    return b"\xb0" + struct.pack(">I", len(value)) + value


def described(code: int, *fields: bytes) -> bytes:
    """A list, as all that the protocol itself says is."""
    inner = struct.pack(">I", len(fields)) + b"".join(fields)
    return b"\x00\x53" + bytes([code]) + b"\xd0" + struct.pack(">I", len(inner)) + inner


class Sender10:
    """Sends to one queue of the broker at `url` (an amqp:// URL with user, password and vhost)."""

    def __init__(self, url: str, queue: str) -> None:
        parts = urlsplit(url)
        self.socket = socket.create_connection((parts.hostname, parts.port or 5672), timeout=10)
        self.sent = 0
        self.greet(b"AMQP\x03\x01\x00\x00")
        self.expect(SASL_MECHANISMS)
        login = f"\0{parts.username}\0{parts.password}".encode()
        self.say(SASL_INIT, symbol("PLAIN"), binary(login), kind=1)
        self.expect(SASL_OUTCOME)
        self.greet(b"AMQP\x00\x01\x00\x00")
        self.say(OPEN, text("test"), text("vhost:" + unquote(parts.path[1:])))
        self.expect(OPEN)
        self.say(BEGIN, NULL, uint(0), uint(100), uint(100))
        self.expect(BEGIN)
        target = described(TARGET, text(f"/queues/{queue}"))
        ends = described(SOURCE), target
        self.say(ATTACH, text("l"), uint(0), FALSE, NULL, NULL, *ends, NULL, NULL, uint(0))
        self.expect(FLOW)

    def greet(self, header: bytes) -> None:
        self.socket.sendall(header)
        assert self.read(8) == header

    def send(self, body: bytes, **properties: str) -> None:
        """Confirmed. `properties` are those with a text for a value, by their names with _."""
        names = ("message_id", "user_id", "to", "subject", "reply_to", "correlation_id")
        fields = [text(properties[name]) if name in properties else NULL for name in names]
        section = described(PROPERTIES, *fields) + b"\x00\x53" + bytes([DATA]) + binary(body)
        tag = binary(b"%d" % self.sent)
        self.say(TRANSFER, uint(0), uint(self.sent), tag, uint(0), FALSE, payload=section)
        self.sent += 1
        self.expect(DISPOSITION)

    def say(self, code: int, *fields: bytes, kind: int = 0, payload: bytes = b"") -> None:
        body = described(code, *fields) + payload
        self.socket.sendall(struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body)

    def expect(self, code: int) -> None:
        """Read until the broker says `code`."""
        while True:
            (size,) = struct.unpack(">I", self.read(4))
            frame = self.read(size - 4)
            if len(frame) > 6 and frame[4:6] == b"\x00\x53" and frame[6] == code:
                return

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the broker hung up"
            data += more
        return data

    def close(self) -> None:
        self.socket.close()
