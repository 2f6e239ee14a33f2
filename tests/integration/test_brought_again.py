"""What becomes of messages that are published again, by our copies or by other people's tools: each
is in its one place, whole as far as it can be, and what was brought back begins anew."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import amqp
import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient, headers
from workqueue import Job, Producer, RetryPolicy, Worker, connect
from workqueue.broker import Broker as OurBroker
from workqueue.message import Message
from workqueue.testing import eventually
from workqueue.transport import QueueSpec, QueueType
from workqueue.transports.rabbitmq import driver

@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is killed here, so its new queues need not be waited for."""
    monkeypatch.setattr(driver, "SETTLING", 0)


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


@pytest.fixture
def ours(vhost: Vhost) -> Iterator[OurBroker]:
    with connect(vhost.url) as ours:
        yield ours


@pytest.fixture(params=["quorum", "classic"])
def type_(request: pytest.FixtureRequest) -> QueueType:
    chosen: QueueType = request.param
    return chosen


class Failing:
    """A handler that fails as often as it is asked, and keeps what it saw."""

    def __init__(self, times: int = 1_000_000) -> None:
        self.times = times
        self.jobs: list[Job[Any]] = []

    def __call__(self, job: Job[Any]) -> None:
        self.jobs.append(job)
        if len(self.jobs) <= self.times:
            raise ValueError("as asked")

    @property
    def attempts(self) -> list[int]:
        return [job.attempt for job in self.jobs]


def fail_all(ours: OurBroker, queue: str = "q", max_attempts: int = 2) -> Failing:
    handler = Failing()
    policy = RetryPolicy(max_attempts=max_attempts, first=0.0, longest=0.0)
    Worker(ours.queue(queue), handler, retry=policy).run(until_empty=True)
    return handler


# -- headers that RabbitMQ obeys -------------------------------------------------------------------


def test_copies_go_to_their_one_place(
    ours: OurBroker, client: ForeignClient, type_: QueueType
) -> None:
    """A message that names another queue in CC: neither its retries nor its dead letter go there,
    nor its requeue; and whoever handles it sees CC as it was."""
    ours.transport.declare(QueueSpec(name="q", type=type_))
    client.declare("audit")
    table = {"CC": ["audit"], "cc": ["audit"], "tenant": "ada"}
    client.send("q", "x", application_headers=table)
    client.channel.queue_purge("audit")
    queue = ours.queue("q")
    for _ in range(2):
        handler = fail_all(ours)
        assert handler.attempts == [1, 2]
        for job in handler.jobs:
            assert {name: job.headers[name] for name in table} == table
        [letter] = queue.dead.letters()
        assert letter.message.headers == table
        assert len(queue.dead.requeue()) == 1
        [waiting] = ours.transport.peek("q", 10)
        assert waiting.message.headers == table
    assert client.get("audit") is None


def test_a_dead_letter_finds_no_other_place(ours: OurBroker, client: ForeignClient) -> None:
    """With q.dead gone, a copy that went to the queue in CC would count as safe."""
    ours.transport.declare(QueueSpec(name="q"))
    client.declare("audit")
    client.send("q", "x", application_headers={"CC": ["audit"]})
    client.channel.queue_purge("audit")
    client.channel.queue_delete("q.dead")
    fail_all(ours)
    [letter] = ours.queue("q").dead.letters()
    assert (letter.message.body, letter.attempt) == (b"x", 2)
    assert client.get("audit") is None


def test_a_migration_moves_to_one_place(ours: OurBroker, client: ForeignClient) -> None:
    """Also what names other queues, or a user that is not ours."""
    ours.transport.declare(QueueSpec(name="q", type="classic"))
    client.declare("audit")
    client.send("q", "x", application_headers={"n": -7, "CC": ["audit"], "t": {"CC": 1}})
    client.channel.queue_purge("audit")
    assert ours.transport.migrate(QueueSpec(name="q", type="quorum"), lambda _: None) == 1
    [moved] = ours.transport.peek("q", 10)
    assert moved.message.headers == {"n": -7, "CC": ["audit"], "t": {"CC": 1}}
    assert client.get("audit") is None


def test_what_we_send_goes_to_one_place(ours: OurBroker, client: ForeignClient) -> None:
    """A sender's own CC and BCC are headers like any other, as they are without RabbitMQ; also
    while it waits, and in a form that RabbitMQ would refuse."""
    queue = ours.queue("q")
    queue.declare()
    client.declare("audit")
    table = {"CC": ["audit"], "BCC": "audit"}
    with Producer(queue) as producer:
        producer.send("x", headers=table)
        producer.send("x", headers=table, delay=0.1)
    handler = Failing(times=0)
    Worker(queue, handler).run(max_messages=2)
    assert [dict(job.headers) for job in handler.jobs] == [table, table]
    assert client.get("audit") is None


# -- what can be read can be said again ------------------------------------------------------------


def value(letter: bytes, raw: bytes) -> bytes:
    return letter + raw


ODD_VALUES = {
    b"1960": b"T" + struct.pack(">q", -315_619_200),
    b"year 1": b"T" + struct.pack(">q", -62_135_596_800),
    b"before": b"T" + struct.pack(">q", -(2**62)),
    b"ms": b"T" + struct.pack(">q", 1_700_000_000_000),
    b"int8": b"b" + struct.pack(">b", -7),
    b"uint8": b"B" + struct.pack(">B", 250),
    b"int16": b"s" + struct.pack(">h", -300),
    b"uint16": b"u" + struct.pack(">H", 65_535),
    b"uint32": b"i" + struct.pack(">I", 2**32 - 1),
    b"int64": b"l" + struct.pack(">q", -(2**63)),
    b"float": b"f" + struct.pack(">f", 0.1),
    b"double": b"d" + struct.pack(">d", 1e300),
    b"decimal": b"D\x02" + struct.pack(">i", -12_345),
    b"void": b"V",
    b"bytes": b"x" + struct.pack(">I", 2) + b"\xff\0",
    b"not UTF-8": b"S" + struct.pack(">I", 2) + b"\xff\xfe",
    b"": b"t\x01",
    b"n" * 255: b"t\0",
    b"\xff" * 200: b"S" + struct.pack(">I", 1) + b"v",
    b"table": b"F" + struct.pack(">I", 6) + b"\x01a" + b"A" + struct.pack(">I", 0)[:3],
}
