"""What a message must leave behind so that RabbitMQ takes it once more, byte by byte."""

from __future__ import annotations

import struct

import pytest

from workqueue.message import Message
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.bindings import Binding, others
from workqueue.transports.rabbitmq.ladder import DUE, delivery_key
from workqueue.transports.rabbitmq.mover import bare_properties, movable
from workqueue.transports.rabbitmq.topology import EXCHANGE

USER_ID, REPLY_TO, HEADERS, APP_ID = 0x0010, 0x0200, 0x2000, 0x0008


def text(value: str) -> bytes:
    return bytes((len(value),)) + value.encode()


def table(*entries: bytes) -> bytes:
    return wire.longstr(b"".join(entries))


def properties(flags: int, *parts: bytes) -> bytes:
    return struct.pack(">H", flags) + b"".join(parts)


ODD = text("odd") + b"x" + wire.longstr(b"\x02CC\x03BCC\xff") + text("deep") + b"F" + table()
CC = text("CC") + b"A" + wire.longstr(b"S" + wire.longstr(b"audit"))
BCC = text("BCC") + b"S" + wire.longstr(b"no array")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (properties(0), properties(0), ""),
        (
            properties(USER_ID | APP_ID, text("eve"), text("app")),
            properties(APP_ID, text("app")),
            "user_id",
        ),
        (properties(USER_ID, text("me")), properties(USER_ID, text("me")), ""),
        (
            properties(REPLY_TO | USER_ID, text("amq.rabbitmq.reply-to"), text("me")),
            properties(USER_ID, text("me")),
            "reply_to",
        ),
        (
            properties(REPLY_TO, text("amq.rabbitmq.reply-to.g1.x")),
            properties(REPLY_TO, text("amq.rabbitmq.reply-to.g1.x")),
            "",
        ),
        (
            properties(HEADERS | APP_ID, table(ODD, CC, BCC, ODD), text("app")),
            properties(
                HEADERS | APP_ID,
                table(ODD, text("workqueue-cc") + CC[3:], text("workqueue-bcc") + BCC[4:], ODD),
                text("app"),
            ),
            "CC or BCC",
        ),
        (properties(HEADERS, table(ODD)), properties(HEADERS, table(ODD)), ""),
        (
            properties(HEADERS, table(text("cc") + b"V")),
            properties(HEADERS, table(text("cc") + b"V")),
            "",
        ),
        (
            properties(HEADERS, table(text("x-delivery-count") + b"l" + bytes(8), ODD)),
            properties(HEADERS, table(ODD)),
            "",
        ),
    ],
)
def test_movable(before: bytes, after: bytes, told: str) -> None:
    moved, changes = movable(before, 1_000, "me")
    assert moved == after
    assert bool(changes) == bool(told)
    assert all(told in change for change in changes)


@pytest.mark.parametrize(
    "broken",
    [
        properties(USER_ID),
        properties(USER_ID, b"\x09eve"),
        properties(HEADERS, b"\x00\x00\x00\x09\x02CC"),
        properties(HEADERS, table(b"\x02CCS\x00\x00\xff\xff")),
        properties(HEADERS, table(b"\x02CC?")),
        properties(HEADERS, table(b"\x02CC")),
    ],
)
def test_what_is_cut_short_is_left_as_it_is(broken: bytes) -> None:
    assert movable(broken, 1_000, "me") == (broken, [])


def test_bare_properties_keep_what_makes_it_the_same_task() -> None:
    message = Message(
        body=b"x",
        id="a",
        type="welcome",
        content_type="text/plain",
        priority=7,
        correlation_id="c",
        reply_to="amq.rabbitmq.reply-to",
        sent_at=1.0,
        headers={"CC": ["audit"], "workqueue-failures": 2, "when": object()},
    )
    read, unreadable = wire.decode_properties(bare_properties(message), b"x")
    assert unreadable is None
    assert read == Message(
        body=b"x",
        id="a",
        type="welcome",
        content_type="text/plain",
        priority=7,
        correlation_id="c",
        sent_at=1.0,
        headers={"workqueue-failures": 2},
    )


def test_whose_bindings_are_made_again() -> None:
    rows = [
        {"source": "", "routing_key": "q", "arguments": {}},
        {"source": EXCHANGE, "routing_key": "q", "arguments": {}},
        {"source": DUE, "routing_key": delivery_key("q"), "arguments": {}},
        {"source": EXCHANGE, "routing_key": "another name", "arguments": {}},
        {"source": "amq.topic", "routing_key": "a.#", "arguments": {}},
        {"source": "amq.headers", "routing_key": "", "arguments": {"x-match": "all"}},
    ]
    assert list(others(rows, "q")) == [
        Binding(EXCHANGE, "another name", {}),
        Binding("amq.topic", "a.#", {}),
        Binding("amq.headers", "", {"x-match": "all"}),
    ]
