"""Bindings of a queue that others made, which a migration has to make again.

RabbitMQ deletes a queue's bindings with the queue. AMQP 0-9-1 has no method that lists them; only
the management API does (RabbitMQ documentation, "HTTP API Reference"). Its JSON does not tell the
types of a binding's arguments: whole numbers are bound again as the shortest type that holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from workqueue.transports.rabbitmq.ladder import DUE, delivery_key
from workqueue.transports.rabbitmq.link import Link
from workqueue.transports.rabbitmq.management import Management
from workqueue.transports.rabbitmq.survey import exists
from workqueue.transports.rabbitmq.topology import EXCHANGE


@dataclass(frozen=True, slots=True)
class Binding:
    """What the exchange `source` routes to a queue."""

    source: str
    key: str
    arguments: dict[str, Any]

    def bind(self, link: Link, queue: str) -> None:
        channel = link.channel()
        channel.queue_bind(queue, self.source, self.key, arguments=self.arguments)
        channel.close()

    def unbind(self, link: Link, queue: str) -> None:
        """A binding or a queue that is not there is no error to RabbitMQ."""
        channel = link.channel()
        channel.queue_unbind(queue, self.source, self.key, arguments=self.arguments)
        channel.close()


def bindings_of_others(
    link: Link, management: Management, queue: str, *stand_ins: str
) -> list[Binding]:
    """Those of `queue`, and those that `stand_ins` have in its place, without ours.

    Raises ConnectionLost or AccessRefused if the management API cannot be asked.
    """
    found: list[Binding] = []
    for name in (queue, *stand_ins):
        if exists(link, name):
            path = f"queues/{management.vhost}/{quote(name, safe='')}/bindings"
            listed = management.objects(path)
            found += [each for each in others(listed, queue) if each not in found]
    return found


def others(listed: list[dict[str, Any]], queue: str) -> Iterator[Binding]:
    """Of the bindings that the API listed, those that neither RabbitMQ nor we made for `queue`."""
    ours = {(EXCHANGE, queue), (DUE, delivery_key(queue))}
    for row in listed:
        source, key = row.get("source", ""), row.get("routing_key", "")
        if source and (source, key) not in ours:  # that of the default exchange has no source
            yield Binding(source, key, row.get("arguments") or {})
