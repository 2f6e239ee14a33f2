"""An AMQP 1.0 client that can do one thing: send a message that AMQP 0-9-1 has no words for.

As few frames as that takes, written by hand (OASIS AMQP 1.0, parts 1, 2, 3 and 5): there is no
client of that protocol among the tests' dependencies.
"""

from __future__ import annotations

import socket
import struct
import uuid
from urllib.parse import quote

from tests.integration.broker import Broker, Vhost

NULL, TRUE, FALSE = b"\x40", b"\x41", b"\x42"

OPEN, BEGIN, ATTACH, TRANSFER, DISPOSITION, CLOSE = 0x10, 0x11, 0x12, 0x14, 0x15, 0x18
SOURCE, TARGET = 0x28, 0x29
SASL_INIT, SASL_OUTCOME = 0x41, 0x44
HEADER, PROPERTIES, APPLICATION_PROPERTIES, DATA = 0x70, 0x73, 0x74, 0x75


def text(value: str) -> bytes:
    return b"\xa1" + bytes((len(value.encode()),)) + value.encode()


def symbol(value: str) -> bytes:
    return b"\xa3" + bytes((len(value),)) + value.encode()


def binary(value: bytes) -> bytes:
    return b"\xa0" + bytes((len(value),)) + value


def uint(value: int) -> bytes:
    return b"\x70" + struct.pack(">I", value)


def described(code: int, value: bytes) -> bytes:
    return b"\x00\x53" + bytes((code,)) + value


def compound(kind: bytes, items: list[bytes]) -> bytes:
    inner = b"".join(items)
    return kind + struct.pack(">II", len(inner) + 4, len(items)) + inner


def composite(code: int, *fields: bytes) -> bytes:
    return described(code, compound(b"\xd0", list(fields)))


class Amqp10Sender:
    """Connected to a virtual host, and to one queue of it."""

    def __init__(self, broker: Broker, vhost: Vhost, queue: str) -> None:
        self.socket = socket.create_connection(broker.address, timeout=10)
        self.sent = 0
        self.greet(b"AMQP\x03\x01\x00\x00")
        login = binary(b"\0guest\0guest")
        self.write(composite(SASL_INIT, symbol("PLAIN"), login), kind=1)
        self.wait_for(SASL_OUTCOME)
        self.greet(b"AMQP\x00\x01\x00\x00")
        self.write(composite(OPEN, text("tests"), text(f"vhost:{vhost.name}")))
        self.wait_for(OPEN)
        self.write(composite(BEGIN, NULL, uint(0), uint(100), uint(100)))
        self.wait_for(BEGIN)
        target = composite(TARGET, text(f"/queues/{quote(queue, safe='')}"))
        link = (text("link"), uint(0), FALSE, NULL, NULL, composite(SOURCE), target)
        self.write(composite(ATTACH, *link, NULL, NULL, uint(0)))
        self.wait_for(ATTACH)

    def send(self, body: bytes, *, reply_to: str = "", **properties: bytes) -> None:
        """Returns when the broker has it. `properties` of the application are encoded values."""
        tag = self.sent
        self.sent += 1
        items = [part for name, value in properties.items() for part in (text(name), value)]
        message = [composite(HEADER, TRUE)]
        if reply_to:
            message.append(composite(PROPERTIES, NULL, NULL, NULL, NULL, text(reply_to)))
        if items:
            message.append(described(APPLICATION_PROPERTIES, compound(b"\xd1", items)))
        message.append(described(DATA, binary(body)))
        delivery = (uint(0), uint(tag), binary(b"%d" % tag), uint(0), FALSE)
        self.write(composite(TRANSFER, *delivery) + b"".join(message))
        self.wait_for(DISPOSITION)

    def close(self) -> None:
        self.write(composite(CLOSE))
        self.socket.close()

    def greet(self, header: bytes) -> None:
        self.socket.sendall(header)
        assert self.read(8) == header

    def write(self, body: bytes, kind: int = 0) -> None:
        self.socket.sendall(struct.pack(">IBBH", len(body) + 8, 2, kind, 0) + body)

    def wait_for(self, code: int) -> None:
        """Until a frame with this performative comes."""
        while True:
            (size,) = struct.unpack(">I", self.read(4))
            frame = self.read(size - 4)
            if frame[4:7] == bytes((0x00, 0x53, code)):
                return
            assert frame[4:7] != bytes((0x00, 0x53, CLOSE)), frame

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            assert more, "the broker hung up"
            data += more
        return data


def unspeakable() -> bytes:
    """A value of a type that AMQP 0-9-1 does not have."""
    return b"\x98" + uuid.uuid4().bytes
