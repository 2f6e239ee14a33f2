"""RabbitMQ keeps every promise of the seam, with quorum queues and with classic ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from tests.integration.broker import Broker, Vhost
from workqueue.message import Delivery, Message
from workqueue.testing import CheckedTransport, TransportSuite, eventually, transport_machine
from workqueue.transport import Ack, QueueSpec
from workqueue.transports.rabbitmq import driver
from workqueue.transports.rabbitmq.driver import RabbitMQTransport

pytestmark = pytest.mark.rabbitmq("3.10", "4.0", "4.3")


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is killed here, so its new queues need not be waited for."""
    monkeypatch.setattr(driver, "SETTLING", 0)


BEFORE_4_3 = ("3.10", "4.0")

NOT_ON_QUORUM = {
    "test_higher_priorities_come_first": "quorum queues have two levels, on 3.10 none",
    "test_closing_is_no_death": "quorum queues count what is handed back as they count deaths",
}
"""Promises that quorum queues do not make before RabbitMQ 4.3. Source: RabbitMQ documentation,
"Quorum queues", sections "Priorities" and "Poison message handling"."""


class TestQuorum(TransportSuite):
    not_before_4_3: ClassVar[dict[str, str]] = NOT_ON_QUORUM

    @pytest.fixture(autouse=True)
    def declined_by_version(self, request: pytest.FixtureRequest, broker: Broker) -> None:
        reason = self.not_before_4_3.get(request.node.originalname)
        if reason and broker.series in BEFORE_4_3:
            pytest.skip(f"RabbitMQ {broker.series} declines it: {reason}")

    @pytest.fixture
    def transport(self, vhost: Vhost) -> Iterator[RabbitMQTransport]:
        transport = RabbitMQTransport(vhost.url)
        yield transport
        transport.close()

    @pytest.fixture
    def url(self, vhost: Vhost) -> str:
        return vhost.url


class TestClassic(TestQuorum):
    """On a transport that is checked at every call besides."""

    not_before_4_3: ClassVar[dict[str, str]] = {}

    @pytest.fixture
    def transport(self, vhost: Vhost) -> Iterator[CheckedTransport]:
        transport = CheckedTransport(RabbitMQTransport(vhost.url))
        yield transport
        transport.close()
        assert transport.faults == []

    def spec(self, name: str, **options: Any) -> QueueSpec:
        return QueueSpec(name=name, type="classic", **options)


@pytest.mark.timeout(300)
def test_random_orders_of_calls(vhost: Vhost) -> None:
    """What was sent is ready, out, dead or done, and only one, whatever is called when."""
    machine = transport_machine(lambda: RabbitMQTransport(vhost.url), examples=6, steps=20)
    machine("runTest").debug()


@pytest.mark.timing
@pytest.mark.usefixtures("no_settling")
def test_room_is_used_at_once(vhost: Vhost) -> None:
    """Who holds less than before, and has settled all of it, is given the next one without a
    pause: the quickest of five times shows it on a slow machine, too."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"x") for _ in range(40)], 10.0)
    publisher.close()
    waits = []
    consumer = transport.consumer("q", 1)
    for _ in range(5):
        consumer.hold(5)
        held: list[Delivery] = []
        eventually(lambda held=held: len(held) == 5 or held.extend(consumer.receive(5, 0.1)))
        consumer.hold(1)
        consumer.settle([Ack(delivery) for delivery in held])
        began = time.monotonic()
        [delivery] = consumer.receive(1, 10.0)
        waits.append(time.monotonic() - began)
        consumer.settle([Ack(delivery)])
    assert len(consumer.lanes) <= 3, "channels that are not needed any more are used again"
    consumer.close()
    assert min(waits) < 0.8
