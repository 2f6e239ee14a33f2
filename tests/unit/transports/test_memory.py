"""The memory transport keeps every promise: it is the reference."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from workqueue.message import Message, new_id
from workqueue.testing import TransportSuite, transport_machine
from workqueue.transport import QueueSpec
from workqueue.transports.memory import MemoryTransport


class TestMemory(TransportSuite):
    @pytest.fixture
    def transport(self) -> Iterator[MemoryTransport]:
        transport = MemoryTransport()
        yield transport
        transport.close()


TestMachine = transport_machine(MemoryTransport)


def test_a_paused_consumer_sleeps_through_what_becomes_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not for it."""
    transport = MemoryTransport()
    transport.declare(QueueSpec(name="q"))
    consumer = transport.consumer("q", 1)
    consumer.pause()
    transport.publisher().publish("q", [Message(body=b"x", id=new_id(), delay=0.01)], 1.0)
    looks: list[int] = []
    take = consumer.take
    monkeypatch.setattr(consumer, "take", lambda limit: looks.append(limit) or take(limit))
    assert consumer.receive(1, 0.5) == []
    assert len(looks) < 20
    consumer.close()


def test_messages_without_a_time_are_not_looked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each that is taken, all others would be: nothing for more than a few thousand."""
    looks: list[int] = []

    usual = heapq.heapify

    def heapify(entries: list[int]) -> None:
        looks.append(len(entries))
        usual(entries)

    monkeypatch.setattr("workqueue.transports.memory.heapq.heapify", heapify)
    transport = MemoryTransport()
    transport.declare(QueueSpec(name="q"))
    messages = [Message(body=b"x", id=new_id()) for _ in range(3)]
    transport.publisher().publish("q", messages, 1.0)
    consumer = transport.consumer("q", 0)
    assert len(consumer.receive(1, 1.0)) == 1
    assert not looks
    transport.publisher().publish("q", [replace(messages[0], id=new_id(), ttl=60.0)], 1.0)
    assert len(consumer.receive(10, 1.0)) == 3
    assert looks
    consumer.close()


def test_what_came_back_expires_all_the_same() -> None:
    """Also where nothing else in the queue has a time."""
    now = [1000.0]
    transport = MemoryTransport(clock=lambda: now[0])
    transport.declare(QueueSpec(name="q"))
    mortal = Message(body=b"x", id=new_id(), ttl=60.0)
    transport.publisher().publish("q", [mortal], 1.0)
    first = transport.consumer("q", 1)
    assert len(first.receive(1, 1.0)) == 1
    assert transport.stats("q").ready == 0
    first.close()
    now[0] += 61
    second = transport.consumer("q", 1)
    assert second.receive(1, 0.0) == []
    assert transport.stats("q").dead == 1
    second.close()
