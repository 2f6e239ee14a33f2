"""Looks at queues longer than RabbitMQ lends to one consumer: all of it is seen, in its order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Vhost
from tests.integration.programs import PATIENCE, Desk
from workqueue.dead import DeadLetters
from workqueue.message import Delivery, Message
from workqueue.testing import eventually
from workqueue.transport import Ack, QueueSpec
from workqueue.transports.copies import ORIGIN, REASON
from workqueue.transports.rabbitmq.driver import RabbitMQTransport
from workqueue.transports.rabbitmq.survey import declare

pytestmark = [pytest.mark.rabbitmq("3.10", "4.0", "4.3"), pytest.mark.timeout(180)]

MANY = 6_500
"""More than three consumers without a prefetch are lent of a quorum queue."""


@pytest.fixture(params=["quorum", "classic"])
def transport(vhost: Vhost, request: pytest.FixtureRequest) -> Iterator[RabbitMQTransport]:
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q", type=request.param))
    yield transport
    transport.close()


def fill(transport: RabbitMQTransport, queue: str) -> list[str]:
    ids = [f"m{number:05}" for number in range(MANY)]
    publisher = transport.publisher()
    headers = {REASON: "no good", ORIGIN: "q"}
    last = {REASON: "quite another end", ORIGIN: "q"}
    publisher.publish(
        queue,
        [Message(body=b"x", id=id_, headers=last if id_ == ids[-1] else headers) for id_ in ids],
        PATIENCE,
    )
    publisher.close()
    return ids


def test_an_unlimited_consumer_has_no_limit(transport: RabbitMQTransport) -> None:
    """Nor does it forget what it was lent: the last one can be acknowledged, the rest goes back."""
    ids = fill(transport, "q")
    consumer = transport.consumer("q", 0)
    held: list[Delivery] = []

    def all_held() -> bool:
        held.extend(consumer.receive(500, 0.2))
        return len(held) == MANY

    eventually(all_held, within=PATIENCE)
    assert [delivery.message.id for delivery in held] == ids
    assert consumer.unsettled == MANY
    consumer.settle([Ack(held[-1]), Ack(held[0])])
    assert consumer.unsettled == MANY - 2
    consumer.close()
    eventually(lambda: transport.stats("q").ready == MANY - 2, within=PATIENCE)


def test_a_peek_sees_as_many_as_it_was_asked_for(transport: RabbitMQTransport) -> None:
    ids = fill(transport, "q")
    assert [delivery.message.id for delivery in transport.peek("q", MANY)] == ids
    eventually(lambda: transport.stats("q").ready == MANY, within=PATIENCE)
    assert len(transport.peek("q", 2 * MANY)) == MANY


def test_all_dead_letters_are_seen(
    transport: RabbitMQTransport, vhost: Vhost, tmp_path: Path
) -> None:
    """Listed twice, found by id and by error at the end, brought back and dropped."""
    ids = fill(transport, "q.dead")
    dead = DeadLetters(transport, "q")
    assert [letter.id for letter in dead.letters()] == ids
    assert {letter.id for letter in dead.letters()} == set(ids)
    assert [letter.id for letter in dead.letters(ids=[ids[-1]])] == ids[-1:]
    desk = Desk(tmp_path, vhost.url)
    assert len(desk.run("dead", "list", "q", "--json").out.splitlines()) == MANY
    assert desk.run("dead", "requeue", "q", "--error", "another end").code == 0
    assert desk.run("dead", "drop", "q", ids[-2], "--yes").code == 0
    assert transport.stats("q").ready == 1
    eventually(lambda: transport.stats("q").dead == MANY - 2, within=PATIENCE)
    assert len(dead.requeue()) == MANY - 2
    assert transport.stats("q").ready == MANY - 1
    assert transport.stats("q").dead == 0
    desk.close()


def test_looking_at_a_classic_queue_of_dead_letters_changes_nothing(vhost: Vhost) -> None:
    """One that others made: what was looked at before is neither copied nor moved to its end."""
    transport = RabbitMQTransport(vhost.url)
    with transport.link("test") as link:
        declare(link, "q.dead", {"x-queue-type": "classic"})
    transport.declare(QueueSpec(name="q"))
    ids = fill(transport, "q.dead")
    dead = DeadLetters(transport, "q")
    for _ in range(3):
        assert [letter.id for letter in dead.letters()] == ids
        eventually(lambda: transport.stats("q").dead == MANY, within=PATIENCE)
    transport.close()
