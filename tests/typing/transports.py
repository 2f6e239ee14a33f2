"""What stands for a transport is one: mypy and pyright compare each method with the Protocol's."""

from __future__ import annotations

from workqueue.testing import CheckedTransport, FaultyTransport
from workqueue.transport import Consumer, Publisher, Transport
from workqueue.transports.memory import MemoryTransport
from workqueue.transports.rabbitmq.driver import RabbitMQTransport
from workqueue.transports.sqlite import SQLiteTransport


def transports() -> list[Transport]:
    inner = MemoryTransport()
    return [
        inner,
        SQLiteTransport("sqlite:///jobs.db"),
        RabbitMQTransport("amqp://localhost"),
        FaultyTransport(inner),
        CheckedTransport(inner),
    ]


def parts() -> tuple[list[Publisher], list[Consumer]]:
    faulty, checked = FaultyTransport(MemoryTransport()), CheckedTransport(MemoryTransport())
    return (
        [faulty.publisher(), checked.publisher()],
        [faulty.consumer("q", 1), checked.consumer("q", 1)],
    )
