"""A look at a queue in which one message lies that its broker cannot deliver."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from workqueue import Broker, Queue
from workqueue.careful import STEPS, CarefulConsumer, Undeliverable
from workqueue.errors import BrokerFailed, ConsumerLost
from workqueue.message import Delivery, Message
from workqueue.transport import Ack
from workqueue.transports.copies import DEAD_AT, ORIGIN, REASON
from workqueue.transports.memory import MemoryConsumer, MemoryTransport, Store

POISON = b"poison"


class Fragile(MemoryTransport):
    """It fails over one message, and puts what it takes back in any order."""

    failures = 0

    def consumer(self, queue: str, prefetch: int) -> FragileConsumer:
        return FragileConsumer(self.store, queue, prefetch, self)


class FragileConsumer(MemoryConsumer):
    def __init__(self, store: Store, queue: str, prefetch: int, transport: Fragile) -> None:
        super().__init__(store, queue, prefetch)
        self.transport = transport

    def take(self, limit: int) -> list[Delivery]:
        """As RabbitMQ lends, up to the prefetch, whether that is asked for or not."""
        taken = super().take(1_000_000)
        if any(delivery.message.body == POISON for delivery in taken):
            self.transport.failures += 1
            self.fail()
        return taken

    def fail(self) -> None:
        returned = list(self.out.values())
        random.shuffle(returned)
        for place, entry in enumerate(returned):
            entry.rank = (-1_000, self.transport.failures * 1_000 + place)
        self.close()
        raise ConsumerLost("the broker failed") from BrokerFailed("the broker failed")


@pytest.fixture
def queue() -> Iterator[Queue]:
    with Broker(Fragile()) as broker:
        queue = broker.queue("jobs")
        queue.declare()
        yield queue


def bury(queue: Queue, *bodies: bytes) -> None:
    headers = {DEAD_AT: 1.0, REASON: "no good", ORIGIN: "jobs"}
    publisher = queue.transport.publisher()
    messages = [Message(body=body, id=body.decode(), headers=headers) for body in bodies]
    publisher.publish("jobs.dead", messages, 5.0)
    publisher.close()


def names(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


@pytest.mark.parametrize("seed", range(5))
def test_each_letter_is_seen_once(queue: Queue, seed: int) -> None:
    """Those before it, and after each failure those that come before it then; then it is said."""
    random.seed(seed)
    bury(queue, *names(20), POISON, *names(20, 20))
    seen: list[str | None] = []
    with pytest.raises(Undeliverable) as told:
        seen.extend(letter.id for letter in queue.dead.letters())
    assert len(seen) == len(set(seen))
    assert len(seen) > 0
    assert isinstance(queue.transport, Fragile)
    assert queue.transport.failures <= len(STEPS) + 1, "each counts, somewhere"
    assert told.value.command.startswith("workqueue ")
    assert queue.stats().dead == 41


@pytest.mark.parametrize("seed", range(5))
def test_letters_are_brought_back_once(queue: Queue, seed: int) -> None:
    """None is lost, and none comes twice."""
    random.seed(seed)
    bury(queue, *names(20), POISON, *names(20, 20))
    with pytest.raises(Undeliverable):
        queue.dead.requeue()
    back = [delivery.message.body for delivery in queue.transport.peek("jobs", 100)]
    left = [delivery.message.body for delivery in queue.transport.peek("jobs.dead", 100)]
    assert len(back) > 0
    assert sorted([*back, *left]) == sorted([*names(40), POISON])


def test_at_the_head_nothing_else_is_seen(queue: Queue) -> None:
    """The command that is told drops it, with what is behind it, once that is confirmed."""
    bury(queue, POISON)
    with pytest.raises(Undeliverable) as told:
        list(queue.dead.letters())
    assert (told.value.before, told.value.command) == (0, "workqueue purge jobs.dead")


def test_what_the_broker_forgot_is_acknowledged_again(queue: Queue) -> None:
    """It failed after letters were brought back, and before it knew: they are not brought back
    once more."""
    bury(queue, *names(3))
    consumer = CarefulConsumer(queue.transport, "jobs.dead", 3)
    received = consumer.receive(10, 1.0)
    assert len(received) == 3
    inner = consumer.consumer
    assert isinstance(inner, FragileConsumer)
    inner.settle = forget  # type: ignore[method-assign]
    consumer.settle([Ack(delivery) for delivery in received])
    assert queue.stats().dead == 3
    while queue.stats().dead or consumer.consumer is None:
        assert consumer.receive(10, 0.1) == []
    consumer.close()
    assert queue.stats().dead == 0


def forget(outcomes: object) -> None:
    raise ConsumerLost("the broker failed") from BrokerFailed("the broker failed")


def test_other_losses_are_none_of_its_business(queue: Queue) -> None:
    consumer = CarefulConsumer(queue.transport, "jobs.dead", 3)
    assert consumer.receive(1, 0.0) == []
    queue.transport.delete("jobs.dead")
    with pytest.raises(ConsumerLost):
        consumer.receive(1, 0.0)
