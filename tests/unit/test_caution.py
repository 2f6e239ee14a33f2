"""One message over which the broker fails, and how a worker gets past it."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue import Broker, Job, Worker
from workqueue.caution import FORGOTTEN_AFTER, LONG_REST, MOST_FAILURES, SHORT_REST, Caution
from workqueue.errors import BrokerFailed, ConsumerLost
from workqueue.message import Delivery, Message
from workqueue.transports.memory import MemoryConsumer, MemoryTransport, Store


def test_one_failure_has_any_cause() -> None:
    """Two in a minute are a pattern, and then all that may be near the message come alone."""
    caution = Caution()
    caution.failed(8, 100.0)
    assert not caution.one_at_a_time
    caution.failed(8, 100.0 + 2 * FORGOTTEN_AFTER)
    assert not caution.one_at_a_time
    caution.failed(8, 101.0 + 2 * FORGOTTEN_AFTER)
    assert caution.one_at_a_time
    assert [caution.came(1) for _ in range(8)] == [False] * 7 + [True]
    assert not caution.one_at_a_time
    assert not caution.came(5)


def test_at_the_head_it_takes_short_rests_and_then_long_ones() -> None:
    """A queue with a limit sets it aside soon; another never does, and is asked seldom."""
    caution = Caution()
    for _ in range(2):
        caution.failed(1, 1.0)
    for _ in range(MOST_FAILURES):
        caution.failed(1, 2.0)
        assert caution.rest == SHORT_REST
    caution.failed(1, 3.0)
    assert caution.rest == LONG_REST
    assert caution.came(1)
    assert caution.at_head == 0


LIMIT = 20


class Poisoned(MemoryTransport):
    """It loses each consumer to which it lends the message `poison`, and counts a failed delivery
    for all that it had lent there: what has too many is set aside."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[bytes, int] = {}
        self.opened = 0

    def consumer(self, queue: str, prefetch: int) -> PoisonedConsumer:
        self.opened += 1
        return PoisonedConsumer(self.store, queue, prefetch, self.counts)


class PoisonedConsumer(MemoryConsumer):
    def __init__(self, store: Store, queue: str, prefetch: int, counts: dict[bytes, int]) -> None:
        super().__init__(store, queue, prefetch)
        self.counts = counts

    def take(self, limit: int) -> list[Delivery]:
        """As RabbitMQ does, up to the prefetch, whether it is asked for or not."""
        taken = super().take(self.prefetch)
        for delivery in taken if any(d.message.body == b"poison" for d in taken) else ():
            count = self.counts[delivery.message.body] = (
                self.counts.get(delivery.message.body, 0) + 1
            )
            if count > LIMIT:
                self.store.bury(delivery, "delivery_limit", "")
                del self.out[delivery]
        if any(delivery.message.body == b"poison" for delivery in taken):
            self.close()
            raise ConsumerLost("the broker failed") from BrokerFailed("the broker failed")
        return taken


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workqueue.caution.SHORT_REST", 0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("prefetch", [None, 10])
def test_a_worker_gets_past_it(prefetch: int | None) -> None:
    """The others are done, and none was counted more than twice with it: then it came alone."""
    transport = Poisoned()
    queue = Broker(transport).queue("q")
    queue.declare()
    done: list[bytes] = []
    bodies = [b"%d" % n for n in range(5)]
    publisher = transport.publisher()
    poisoned = [*bodies[:3], b"poison", *bodies[3:]]
    publisher.publish("q", [Message(body=body) for body in poisoned], 1.0)

    def handle(job: Job[Any]) -> None:
        done.append(job.body)

    Worker(queue, handle, concurrency=4, prefetch=prefetch).run(until_empty=True)
    assert set(done) == set(bodies)
    assert transport.counts.pop(b"poison") == LIMIT + 1
    assert max(transport.counts.values()) <= 2
    assert [d.message.body for d in transport.peek("q.dead", 10)] == [b"poison"]
