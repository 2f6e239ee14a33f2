"""What a server may say before it lets us in, and with which numbers it may go on."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from struct import pack
from typing import Any

import pytest

from tests.fuzz import openings
from tests.fuzz.openings import close, method, nested, open_link, open_ok, server, start, tune
from workqueue.errors import AccessRefused, ConnectionLost
from workqueue.transports.rabbitmq import opening, wire
from workqueue.transports.rabbitmq.address import parse
from workqueue.transports.rabbitmq.link import Link, Wire
from workqueue.transports.rabbitmq.opening import LARGEST_FRAME, Opening, frame_size
from workqueue.transports.rabbitmq.wire import WireError

FLOOD = 60 << 20
MEMORY = 8 << 20
"""Bytes: of what a hostile server sends, and of what it may make us hold."""


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_openings(seed: int) -> None:
    """They open, or end with an error of ours; some of each."""
    report = openings.fuzz(seed, executions=400)
    assert report.opened > 40
    assert report.refused["ConnectionLost"] > 100


def test_the_fuzzer_sees_what_is_not_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Wire, inbound: wire.Inbound) -> None:
        self.on_inbound_method(inbound.channel, inbound.method, inbound.arguments, None)

    monkeypatch.setattr(Wire, "hand_to_amqp", careless)
    with pytest.raises((RecursionError, TypeError, AttributeError, LookupError, ValueError)):
        openings.fuzz(1, executions=2_000)


def refused(stream: bytes, *, flood: bytes = b"") -> str:
    """What is said about a server that says `stream`, and `flood` until FLOOD bytes are sent."""

    def speak(connection: socket.socket) -> None:
        connection.sendall(stream)
        for _ in range(FLOOD // len(flood) if flood else 0):
            connection.sendall(flood)

    tracemalloc.start()
    try:
        with server(speak) as port, pytest.raises(ConnectionLost) as raised:
            open_link(port)
        _, held = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < MEMORY
    return str(raised.value)


ENDLESS_FRAME = wire.frame_head.pack(wire.METHOD, 0, FLOOD)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(ENDLESS_FRAME, id="at once"),
        pytest.param(start() + ENDLESS_FRAME, id="after its greeting"),
        pytest.param(start() + tune(frame=0xFFFFFFFF) + ENDLESS_FRAME, id="as agreed"),
        pytest.param(start() + tune(frame=0) + ENDLESS_FRAME, id="without limit"),
    ],
)
def test_a_frame_without_end(stream: bytes) -> None:
    """Is not waited for, whatever the server says it may send."""
    assert "a frame of" in refused(stream, flood=bytes(1 << 16))


def test_greetings_without_end() -> None:
    """Heartbeats and methods that mean nothing: so much, and no more."""
    assert "before it let us in" in refused(b"", flood=wire.encode_frame(wire.HEARTBEAT, 0, b""))


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        (start() + start(), "tune was due"),
        (start() + tune() + tune(), "open_ok was due"),
        (tune(), "start was due"),
        (start() + method(10, 20, wire.longstr(b"?")), "tune was due"),
        (start() + tune() + method(20, 11, b"\0\0\0\0", channel=1), "on channel 1 before"),
        (start() + tune(frame=100), "frame_max of 100"),
        (start(nested(10_000)), "not AMQP"),
        (start(mechanisms=b"KERBEROS"), "mechanism"),
        (start(wire.encode_table({"capabilities": "none"})), "not AMQP"),
        (method(10, 10, b""), "not AMQP"),
    ],
)
def test_methods_out_of_place(stream: bytes, told: str) -> None:
    """One at a time, in their order, with arguments that can be read."""
    assert told in refused(stream)


def test_a_server_that_refuses_the_login() -> None:
    with server(openings.speaker(start() + close())) as port, pytest.raises(AccessRefused):
        open_link(port)


def test_a_greeting_that_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps nobody waiting for longer than all of it may take."""
    monkeypatch.setattr(opening, "LONGEST", 0.3)

    def speak(connection: socket.socket) -> None:
        while True:
            connection.sendall(wire.encode_frame(wire.HEARTBEAT, 0, b""))
            time.sleep(0.02)

    with server(speak) as port, pytest.raises(ConnectionLost, match="no end of its greeting"):
        open_link(port)


@pytest.mark.parametrize("version", ["9" * 5000 + ".1", "", "4", "\x1b[2J", "4.3.6" * 50])
def test_versions_that_are_none(version: str) -> None:
    """They are older than all; and the link opens."""
    greeting = start(wire.encode_table({"version": version}))
    done = threading.Event()

    def speak(connection: socket.socket) -> None:
        connection.sendall(greeting + tune() + open_ok())
        done.wait(20)

    with server(speak) as port:
        link = Link(parse(f"amqp://guest:guest@127.0.0.1:{port}/"), "test")
        assert isinstance(link.abilities.version, tuple)
        done.set()
        link.close(0.1)


@pytest.mark.parametrize(
    ("offered", "agreed"), [(0, 0), (4096, 4096), (131_072, 131_072), (0xFFFFFFFF, LARGEST_FRAME)]
)
def test_frame_sizes(offered: int, agreed: int) -> None:
    assert frame_size(offered) == agreed


def test_nothing_of_the_opening_once_it_is_open() -> None:
    opened = Opening()
    for number in (10, 30, 41):
        opened.said(0, (10, number))
    opened.said(0, (10, 60))
    opened.said(3, (60, 60))
    opened.received(1 << 40)
    for number in (10, 20, 30, 41):
        with pytest.raises(WireError, match="of an open connection"):
            opened.said(0, (10, number))


def test_bodies_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """On however many channels, and in however small pieces: held up to a bound of ours."""
    monkeypatch.setattr(wire, "MOST_HELD", 100_000)
    deliver = b"\0\x3c\0\x3c\x01t" + bytes(9) + b"\0\0"
    head = pack(">HHQH", 60, 0, 1 << 20, 0)

    def feed(size: int) -> Any:
        reader = wire.FrameReader()
        for channel in range(1, 10_000):
            for kind, payload in ((1, deliver), (2, head), (3, bytes(size))):
                reader.feed(wire.encode_frame(kind, channel, payload), 4096)

    for size in (1, 4000):
        with pytest.raises(WireError, match="do not end"):
            feed(size)


def test_what_ended_is_held_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_HELD", 100_000)
    deliver = b"\0\x3c\0\x3c\x01t" + bytes(9) + b"\0\0"
    reader = wire.FrameReader()
    for _ in range(100):
        for kind, payload in ((1, deliver), (2, pack(">HHQH", 60, 0, 8000, 0)), (3, bytes(4000))):
            reader.feed(wire.encode_frame(kind, 1, payload), 4096)
        reader.feed(wire.encode_frame(3, 1, bytes(4000)), 4096)
    assert len(reader.ready) == 100
    assert reader.held == 0
