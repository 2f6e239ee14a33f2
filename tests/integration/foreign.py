"""Messages as other programs send them, some of them by no rule at all."""

from __future__ import annotations

import struct
from typing import Any

import amqp

from tests.integration.broker import Broker, Vhost


class ForeignClient:
    """Another AMQP client: py-amqp by itself, with frames written by hand where it would refuse."""

    def __init__(self, broker: Broker, vhost: Vhost, user: str = "guest") -> None:
        host, port = broker.address
        self.connection = amqp.Connection(
            host=f"{host}:{port}",
            userid=user,
            password=user,
            virtual_host=vhost.name,
            confirm_publish=True,
        )
        self.connection.connect()
        self.channel = self.connection.channel()
        self.channel.confirm_select()

    def declare(self, queue: str, **arguments: Any) -> None:
        names = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.channel.queue_declare(queue, durable=True, auto_delete=False, arguments=names)

    def send(self, queue: str, body: bytes | str, **properties: Any) -> None:
        self.channel.basic_publish(
            amqp.Message(body, **properties), routing_key=queue, confirm_timeout=10
        )

    def send_raw(self, queue: str, properties: bytes, body: bytes) -> None:
        """`properties` are flags and values as they go on the wire."""
        name = queue.encode()
        number = self.channel.channel_id
        method = struct.pack(">HHHB", 60, 40, 0, 0) + bytes((len(name),)) + name + b"\0"
        header = struct.pack(">HHQ", 60, 0, len(body)) + properties
        for kind, payload in ((1, method), (2, header), (3, body)):
            if payload:
                frame = struct.pack(">BHI", kind, number, len(payload)) + payload + b"\xce"
                self.connection.transport.write(frame)
        self.channel.wait(amqp.spec.Basic.Ack, timeout=10)

    def get(self, queue: str) -> Any:
        return self.channel.basic_get(queue)

    def close(self) -> None:
        self.connection.close()


def longstr(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def headers(table: bytes) -> bytes:
    """Properties that are headers alone."""
    return struct.pack(">H", 0x2000) + longstr(table)


def millisecond_timestamp() -> bytes:
    """A header of the type timestamp, in milliseconds as many clients have it."""
    return headers(b"\x04when" + b"T" + struct.pack(">Q", 1_700_000_000_000))


def nested(depth: int) -> bytes:
    """Tables within tables."""
    table = b""
    for _ in range(depth):
        table = b"\x01x" + b"F" + longstr(table)
    return headers(table)


def content_type(raw: bytes) -> bytes:
    return struct.pack(">H", 0x8000) + bytes((len(raw),)) + raw
