"""Whatever a message holds, it is handled or set aside, and the next good one is handled."""

from __future__ import annotations

import json
import math
import random
import time
from contextlib import closing
from itertools import count
from struct import pack
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workqueue import Job, Producer, RetryPolicy, Worker, connect
from workqueue.cli.envelope import letter_record, read_envelope, record_of
from workqueue.cli.output import to_json
from workqueue.codec import JSON, decode
from workqueue.dead import OURS
from workqueue.errors import BadPayload, ConfigError
from workqueue.message import EXPIRES_AT, Delivery, Message, visible
from workqueue.testing import eventually
from workqueue.transport import DEAD_SUFFIX, QueueSpec
from workqueue.transports.copies import bare_copy, dead_copy, retry_copy, survivor_copy
from workqueue.transports.rabbitmq import wire

FRAME_MAX = 131_072

odd_texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["\0", "\x1b[2J", "\u202e", "a" * 300, "\udc80", "", "%s{}\\"]),
)
odd_numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -1, 2**63, 2**64, math.nan, math.inf, -math.inf, True]),
)
odd_values = st.recursive(
    st.none() | odd_texts | odd_numbers | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=8,
)
odd_headers = st.dictionaries(
    st.one_of(st.sampled_from(sorted(OURS)), st.just("x-death"), st.just("compression"), odd_texts),
    odd_values,
    max_size=5,
)
odd_bodies = st.one_of(
    st.binary(max_size=50),
    odd_values.map(lambda value: json.dumps(value, default=str).encode("utf-8", "replace")),
    st.sampled_from(
        [
            b"[" * 100_000,
            b'{"a":' * 50_000,
            b"9" * 5_000,
            b"-" + b"1" * 400 + b"e999999",
            b"NaN",
            b"Infinity",
            b'"\\ud800"',
            b"\xff\xfe",
            b"\x80\x04\x95",
            b"",
        ]
    ),
)
odd_types = st.one_of(
    st.none(),
    odd_texts,
    st.sampled_from(
        [
            JSON,
            "application/x+json",
            "text/plain; charset=utf-16",
            "text/plain; charset=punycode",
            "text/plain; charset=idna",
            "text/plain; charset=zlib",
            "text/plain; charset=../../x",
            "text/plain; charset=\0",
            "application/x-python-serialize",
            "application/x-yaml",
            ";;;=",
        ]
    ),
)
odd_messages = st.builds(
    Message,
    body=odd_bodies,
    id=st.none() | odd_texts,
    content_type=odd_types,
    content_encoding=st.none() | odd_texts | st.sampled_from(["gzip", "utf-8"]),
    type=st.none() | odd_texts,
    headers=odd_headers,
    priority=st.integers(-(2**70), 2**70),
    correlation_id=st.none() | odd_texts,
    reply_to=st.none() | odd_texts,
    app_id=st.none() | odd_texts,
    sent_at=st.none() | st.floats(),
)

stores = count()


@given(messages=st.lists(odd_messages, min_size=1, max_size=10), failing=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_workers_survive_all_of_it(messages: list[Message], failing: bool) -> None:
    """Past all that our own producer would refuse; and dead letters can be looked at."""

    def handle(job: Job[Any]) -> None:
        if failing and job.body != b"good":
            raise ValueError(f"no: {job.headers}")
        handled.append(job.body)

    handled: list[bytes] = []
    good = Message(body=b"good")
    with connect(f"memory://hostile-{next(stores)}") as broker:
        queue = broker.queue("q")
        queue.declare()
        with closing(broker.transport.publisher()) as publisher:
            publisher.publish("q", [*messages, good], 1.0)
        worker = Worker(queue, handle, retry=RetryPolicy(max_attempts=1))
        tally = worker.run(max_messages=len(messages) + 1)
        assert tally.done + tally.dead == len(messages) + 1
        assert handled.count(b"good") >= 1
        for delivery in broker.transport.peek("q" + DEAD_SUFFIX, 100):
            assert delivery.message.headers["workqueue-reason"]
        for letter in queue.dead.letters(limit=tally.dead or 1):
            line = to_json(letter_record(letter))
            assert line.isprintable() or all(visible(char) == char for char in line)
            json.loads(line)


@given(body=odd_bodies, content_type=odd_types, headers=odd_headers)
@settings(deadline=None)
def test_bodies(body: bytes, content_type: str | None, headers: dict[str, Any]) -> None:
    """Are decoded, or BadPayload says why not."""
    try:
        payload = decode(body, content_type, None, headers)
    except BadPayload:
        return
    assert payload == payload or isinstance(payload, float | list | dict)


def test_numbers_that_are_none() -> None:
    for body in (b"NaN", b"Infinity", b"-Infinity", b"[1e999]", b"9" * 5_000):
        with pytest.raises(BadPayload):
            decode(body, JSON)


@given(message=odd_messages)
@settings(deadline=None)
def test_lines_for_envelopes(message: Message) -> None:
    """What is shown is one line of plain JSON, and what is read of it is refused or sendable."""
    line = to_json(record_of(message))
    assert "\n" not in line
    try:
        read_envelope(line.encode())
    except BadPayload:
        pass


# -- as it comes from RabbitMQ -----------------------------------------------------------------

raw_texts = st.binary(max_size=60) | st.sampled_from([b"\xff" * 255, b"\x1b\xc3" * 127])


@st.composite
def raw_properties(draw: st.DrawFn) -> bytes:
    """All properties, with texts that need not be UTF-8 and numbers of any size."""

    def text() -> bytes:
        raw = draw(raw_texts)
        return bytes((len(raw),)) + raw

    table = b"".join(
        text() + b"S" + pack(">I", len(raw)) + raw
        for raw in draw(st.lists(st.binary(max_size=60_000), max_size=3))
    )[:120_000]
    headers = pack(">I", len(table)) + table
    numbers = draw(st.binary(min_size=10, max_size=10))
    before = text() + text() + headers + numbers[:2] + text() + text() + text()
    return pack(">H", 0xFFFC) + before + text() + numbers[2:] + text() + text() + text() + text()


@given(properties=raw_properties())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_can_be_received_can_be_set_aside(properties: bytes) -> None:
    """What is not UTF-8 comes out longer than it went in, and a copy must fit all the same."""
    message, unreadable = wire.decode_properties(properties, b"")
    delivery = Delivery(message=message, queue="q", attempt=3, unreadable=unreadable)
    for copy in (
        retry_copy(delivery),
        dead_copy(delivery, "reason" * 99, "error" * 9_999, time.time()),
        survivor_copy(delivery),
    ):
        try:
            wire.encode_publish(1, "", "q", copy, FRAME_MAX)
        except wire.WireError:
            bare = bare_copy(copy)
            wire.encode_publish(1, "", "q", bare, FRAME_MAX)
            assert bare.headers.keys() >= {name for name in copy.headers if name in OURS} - {
                name
                for name, value in copy.headers.items()
                if not isinstance(value, str | int | float)
            }


def test_our_own_headers_may_be_forged() -> None:
    """One that bears the name of ours, and is large, goes when there is no room for it."""
    message = Message(
        body=b"", headers={"workqueue-error": "x" * 130_000, "workqueue-evil": "y" * 99_000}
    )
    bare = bare_copy(retry_copy(Delivery(message=message, queue="q")))
    assert len(wire.encode_publish(1, "", "q", bare, FRAME_MAX)) < 20_000
    assert bare.headers["workqueue-failures"] == 1


# -- names and clocks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "amq.topic", "a\nb", "a\x1bb", "a\u202eb", "x" * 251, "ü" * 126, "\udc80"]
)
def test_names_that_no_queue_can_have(name: str) -> None:
    """Are refused here, before a broker sees them."""
    with pytest.raises(ConfigError):
        QueueSpec(name=name)


@pytest.mark.parametrize("name", ["x" * 250, "ü" * 125, "a b", "x.dead", "amq", "$(id)"])
def test_names_that_queues_can_have(name: str) -> None:
    assert QueueSpec(name=name).name == name


def test_a_clock_that_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hours, back and forth: nothing that waits or times out goes by it."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + random.uniform(-1e5, 1e5))
    handled: list[str] = []
    with connect("memory://") as broker, Producer(broker.queue("q"), timeout=5) as producer:
        for n in range(50):
            producer.send(f"task {n}")
        worker = Worker(broker.queue("q"), lambda job: handled.append(job.payload), concurrency=4)
        tally = worker.run(until_empty=True)
        assert tally.done == 50
    assert sorted(handled) == sorted(f"task {n}" for n in range(50))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "soon", None, [], 2**62, True])
def test_a_forged_time_to_live(value: object) -> None:
    """It may let a message die, and no more."""
    handled: list[str] = []
    with connect(f"memory://ttl-{next(stores)}") as broker:
        queue = broker.queue("q")
        queue.declare()
        with closing(broker.transport.publisher()) as publisher:
            message = Message(body=b"x", headers={EXPIRES_AT: value})
            publisher.publish("q", [message], 1.0)
        tally = Worker(queue, lambda job: handled.append(job.payload)).run(max_messages=1)
        assert tally.done + tally.dead == 1
        eventually(lambda: queue.stats().ready == 0)
