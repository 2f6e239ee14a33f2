"""The management API, where something else answers on its port."""

from __future__ import annotations

import re
import socket
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from tests.fuzz.openings import server
from workqueue.errors import ConnectionLost
from workqueue.transport import QueueStats
from workqueue.transports.rabbitmq import management
from workqueue.transports.rabbitmq.address import Source
from workqueue.transports.rabbitmq.management import Management
from workqueue.transports.rabbitmq.verdicts import allows

STATS = QueueStats(ready=0, in_flight=None, delayed=None, dead=0, consumers=0, oldest=None)


def answer(body: bytes, head: str = "200 OK", more: str = "") -> bytes:
    length = f"Content-Length: {len(body)}\r\nConnection: close\r\n"
    return f"HTTP/1.1 {head}\r\n{more}{length}\r\n".encode() + body


def asked(said: Callable[[socket.socket], None], ask: Callable[[Management], Any]) -> Any:
    source = Source(lambda: "amqp://guest:guest@127.0.0.1:1/", lambda: None)
    with server(said) as port:
        return ask(Management(f"http://127.0.0.1:{port}", source))


def saying(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


QUESTIONS: list[Callable[[Management], Any]] = [
    lambda api: api.queues(),
    lambda api: api.complete("q", STATS),
    lambda api: api.alarms(),
]

ODD = [b"", b"null", b"1", b'"x"', b"[1]", b"[[]]", b'[{"name":1}]', b"[" * 100_000, b"\xff", b"{"]


@pytest.mark.parametrize("body", ODD)
def test_answers_that_are_none(body: bytes) -> None:
    """Are said to be none."""
    for question in QUESTIONS:
        with pytest.raises(ConnectionLost, match="management API"):
            asked(saying(answer(body)), question)


@pytest.mark.parametrize("value", [b"1", b'"x"', b"[]", b"null", b"1e400", b"true"])
def test_fields_of_other_types(value: bytes) -> None:
    """Are an answer without them, or none at all."""
    fields = (
        *("name", "messages_unacknowledged", "messages_ready", "messages_delayed"),
        *("head_message_timestamp", "message_stats", "alarms", "messages"),
    )
    for field in fields:
        body = b'{"%b":%b}' % (field.encode(), value)
        for data in (body, b"[%b]" % body):
            for question in QUESTIONS:
                with suppress(ConnectionLost):
                    asked(saying(answer(data)), question)


def test_no_redirection_is_followed() -> None:
    """The other host would be asked, and believed."""
    visits: list[bytes] = []

    def other(connection: socket.socket) -> None:
        visits.append(connection.recv(1000))
        connection.sendall(answer(b"[]"))

    with server(other) as port:
        for status in ("301 x", "302 x", "303 x", "307 x", "308 x"):
            told = answer(b"", status, f"Location: http://127.0.0.1:{port}/\r\n")
            with pytest.raises(ConnectionLost, match=f"answers {status[:3]}"):
                asked(saying(told), Management.queues)
    assert not visits


def test_an_answer_without_end() -> None:
    """Is read up to a bound of ours."""

    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            connection.sendall(b'"x",' * 10_000)

    tracemalloc.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(management, "LARGEST_ANSWER", 1 << 20)
            with pytest.raises(ConnectionLost, match=re.escape(f"more than {1 << 20} bytes")):
                asked(endless, Management.queues)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_an_answer_that_trickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "LONGEST", 0.3)

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n[")
        while True:
            connection.sendall(b" ")
            time.sleep(0.01)

    with pytest.raises(ConnectionLost, match="no end of its answer"):
        asked(trickle, Management.queues)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(a|aa)" * 30 + "$", "a?" * 40 + "b", ".*.*.*.*b", "(.*a){20}", "a" * 5000],
)
def test_patterns_that_take_long(pattern: str) -> None:
    """Are not tried: Python could not be interrupted in it."""
    began = time.process_time()
    assert allows(pattern, "a" * 250)
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (".*", True),
        ("^jobs", True),
        ("^(mail|jobs)(\\.dead)?$", True),
        ("^mail.*", False),
        ("", False),
    ],
)
def test_patterns_as_people_write_them(pattern: str, *, allowed: bool) -> None:
    assert allows(pattern, "jobs") is allowed
