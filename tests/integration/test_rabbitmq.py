"""RabbitMQ keeps every promise of the seam, with quorum queues and with classic ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.broker import Vhost
from workqueue.testing import TransportSuite, transport_machine
from workqueue.transport import QueueSpec
from workqueue.transports.rabbitmq import driver
from workqueue.transports.rabbitmq.driver import RabbitMQTransport

pytestmark = pytest.mark.rabbitmq("3.10", "4.0", "4.3")


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is killed here, so its new queues need not be waited for."""
    monkeypatch.setattr(driver, "SETTLING", 0)


class TestQuorum(TransportSuite):
    @pytest.fixture
    def transport(self, vhost: Vhost) -> Iterator[RabbitMQTransport]:
        transport = RabbitMQTransport(vhost.url)
        yield transport
        transport.close()


class TestClassic(TestQuorum):
    def spec(self, name: str, **options: Any) -> QueueSpec:
        return QueueSpec(name=name, type="classic", **options)


@pytest.mark.timeout(300)
def test_random_orders_of_calls(vhost: Vhost) -> None:
    """What was sent is ready, out, dead or done, and only one, whatever is called when."""
    machine = transport_machine(lambda: RabbitMQTransport(vhost.url), examples=6, steps=20)
    machine("runTest").debug()
