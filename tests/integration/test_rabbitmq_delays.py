"""Waiting in RabbitMQ: through kills and stalls, past queues that are gone; and migration."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import amqp
import pytest
from msgspec.structs import replace

from tests.integration import foreign
from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import PATIENCE, Desk
from workqueue import Broker as Remote
from workqueue import ConsumerLost, Producer, QueueMigrating, Unsupported
from workqueue.message import Message, new_id
from workqueue.testing import eventually
from workqueue.transport import Ack, Consumer, QueueSpec, Retry
from workqueue.transports.copies import without_brokers_own
from workqueue.transports.rabbitmq import copier, driver, migration
from workqueue.transports.rabbitmq.driver import RabbitMQTransport
from workqueue.transports.rabbitmq.ladder import UNDELIVERABLE
from workqueue.transports.rabbitmq.mover import Mover


@pytest.fixture
def desk(tmp_path: Path, broker: Broker, vhost: Vhost) -> Iterator[Desk]:
    desk = Desk(tmp_path, vhost.url, {"WORKQUEUE_MANAGEMENT_URL": broker.management_url})
    yield desk
    desk.close()


@pytest.fixture
def transport(broker: Broker, vhost: Vhost) -> Iterator[RabbitMQTransport]:
    transport = RabbitMQTransport(vhost.url, management_url=broker.management_url)
    yield transport
    transport.close()


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no broker is killed, new queues need not be waited for, nor silence for long."""
    monkeypatch.setattr(driver, "SETTLING", 0)
    monkeypatch.setattr(migration, "QUIET", 0.3)


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


def message(body: bytes, delay: float = 0.0) -> Message:
    return Message(body=body, id=new_id(), delay=delay)


def send(transport: RabbitMQTransport, queue: str, *messages: Message) -> None:
    publisher = transport.publisher()
    publisher.publish(queue, messages, PATIENCE)
    publisher.close()


def as_sent(message: Message) -> Message:
    """Without what RabbitMQ has counted since."""
    return replace(message, headers=without_brokers_own(message.headers))


def take(consumer: Consumer, count: int) -> list[bytes]:
    """The bodies of so many, acknowledged."""
    taken: list[bytes] = []
    deadline = time.monotonic() + PATIENCE
    while len(taken) < count:
        assert time.monotonic() < deadline, f"{len(taken)} of {count} arrived"
        got = consumer.receive(count - len(taken), 0.2)
        consumer.settle([Ack(delivery) for delivery in got])
        taken += [delivery.message.body for delivery in got]
    return taken


# -- delays ------------------------------------------------------------------------------------


def test_a_delay_survives_the_broker(transport: RabbitMQTransport, broker: Broker) -> None:
    """Killed and started while messages wait: they come, and not early. Of those whose time comes
    while the broker is down, any may be first."""
    transport.declare(QueueSpec(name="q"))
    sent_at = time.time()
    send(transport, "q", message(b"late", 12.0), message(b"later", 13.0))
    broker.kill()
    broker.start()
    consumer = transport.consumer("q", 1)
    assert sorted(take(consumer, 2)) == [b"late", b"later"]
    assert time.time() - sent_at >= 13.0
    consumer.close()


@pytest.mark.usefixtures("no_settling")
def test_what_is_due_for_a_queue_that_is_gone(transport: RabbitMQTransport) -> None:
    """Holds up nobody, and is not lost either."""
    for name in ("here", "gone"):
        transport.declare(QueueSpec(name=name))
    send(transport, "gone", *(message(b"%d" % n, 6.0) for n in range(100)))
    transport.delete("gone")
    send(transport, "here", message(b"x", 6.2))
    consumer = transport.consumer("here", 1)
    assert take(consumer, 1) == [b"x"]
    consumer.close()
    eventually(lambda: transport.stats(UNDELIVERABLE).ready == 100, within=PATIENCE)


@pytest.mark.usefixtures("no_settling")
def test_stalled_retries_hold_up_nothing(
    transport: RabbitMQTransport, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 retries wait for their confirms while publishers are blocked; acknowledgements and
    deliveries go on, and so does the consumer."""
    # A copy that is given up may have been made all the same: longer than any alarm here.
    monkeypatch.setattr(copier, "CONFIRM_TIMEOUT", PATIENCE)
    transport.declare(QueueSpec(name="q"))
    send(transport, "q", message(b"warm", 0.2), *(message(b"%d" % n) for n in range(1_200)))
    consumer = transport.consumer("q", 0)
    first = []
    while len(first) < 1_000:
        first += consumer.receive(1_000 - len(first), 1.0)
    broker.set_memory_alarm()
    consumer.settle([Retry(delivery, "no luck", 1.0) for delivery in first])
    assert len(take(consumer, 200)) == 200
    assert consumer.unsettled >= 1_000
    consumer.receive(0, 0.1)
    broker.clear_memory_alarm()

    def settled() -> bool:
        consumer.receive(0, 0.05)
        return consumer.unsettled == 0

    eventually(settled, within=PATIENCE, what="the copies to be confirmed")
    assert len(set(take(consumer, 1_000))) == 1_000
    consumer.close()


@pytest.mark.usefixtures("no_settling")
def test_a_deleted_level_is_made_again(transport: RabbitMQTransport, client: ForeignClient) -> None:
    """By whoever meets its absence."""
    transport.declare(QueueSpec(name="q"))
    with connect_producer(transport) as producer:
        producer.send("a", delay=0.2)
        client.channel.exchange_delete("workqueue.delay.1")
        producer.send("b", delay=0.2)
    consumer = transport.consumer("q", 1)
    assert sorted(take(consumer, 2)) == [b"a", b"b"]
    consumer.close()


def connect_producer(transport: RabbitMQTransport) -> Producer:
    return Producer(Remote(transport).queue("q"))


# -- migration ---------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("wanted", ["classic", "quorum"])
def test_migration_under_load(desk: Desk, wanted: str) -> None:
    """A sender sends and a worker works all the while; the migration is killed in the middle
    once. Everything that was sent is handled, nothing waits in the queues in between."""
    other = "classic" if wanted == "quorum" else "quorum"
    assert desk.run("declare", "q", "--type", other).code == 0
    bodies = [f"sleep 0 {n}" for n in range(6_000)]
    desk.send("q", *bodies[:3_000])
    worker = desk.work("q", "-c", "2", "--prefetch", "50")
    sender = desk.start("send", "q", "-", stdin="".join(f"{body}\n" for body in bodies[3_000:]))
    migrate = ("migrate", "q", "--type", wanted, "--yes")
    killed = desk.start(*migrate)
    desk.until(lambda: killed.says("waits in q.moving"), "the fence")
    killed.kill()
    result = desk.start(*migrate).wait(2 * PATIENCE)
    assert result.code == 0, result.err
    assert sender.wait().code == 0
    # Seldom, as it reads the whole journal.
    done = "all to be done"
    eventually(lambda: set(desk.bodies("done")) == set(bodies), within=PATIENCE, every=1, what=done)
    worker.kill()
    assert desk.run("declare", "q", "--type", wanted).code == 0
    assert desk.run("status", "q.moving").code == 1
    assert desk.run("status", "q.migrating").code == 1


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_settling")
def test_a_migration_that_was_killed_anywhere_goes_on(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step in turn."""
    transport.declare(QueueSpec(name="q"))
    send(transport, "q", *(message(b"%d" % n) for n in range(50)), message(b"due", 6.0))
    steps = ["fence", "empty", "drop", "move", "bring_back"]
    limits = iter(range(1_000, 2_000))
    for step in steps:
        for before in (True, False):
            wanted = QueueSpec(name="q", max_length=next(limits))
            with monkeypatch.context() as patch:
                patch.setattr(migration.Migration, step, dying(step, before=before))
                with pytest.raises(Killed):
                    transport.migrate(wanted, lambda _: None)
            transport.migrate(wanted, lambda _: None)
            assert transport.declare(wanted) is False
            assert transport.stats("q").ready in (50, 51)
    consumer = transport.consumer("q", 0)
    assert set(take(consumer, 51)) == {*(b"%d" % n for n in range(50)), b"due"}
    consumer.close()


class Killed(BaseException):
    """As if the process had ended here."""


def dying(step: str, *, before: bool):  # type: ignore[no-untyped-def]
    """`step` of a migration, which ends its process before or after it is done."""
    whole = getattr(migration.Migration, step)

    def die(self, *arguments, **options):  # type: ignore[no-untyped-def]
        if not before:
            whole(self, *arguments, **options)
        raise Killed

    return die


@pytest.mark.usefixtures("no_settling")
def test_our_own_wait_meanwhile(transport: RabbitMQTransport) -> None:
    """Whoever declares or works finds out; whoever works already finishes and leaves."""
    transport.declare(QueueSpec(name="q"))
    send(transport, "q", message(b"a"), message(b"b"))
    consumer = transport.consumer("q", 1)
    [running] = consumer.receive(1, PATIENCE)
    said: list[str] = []
    wanted = QueueSpec(name="q", max_length=9)
    migrating = threading.Thread(target=transport.migrate, args=(wanted, said.append))
    migrating.start()

    def noticed() -> bool:
        consumer.receive(0, 0.05)
        return consumer.probe.found

    eventually(noticed, within=PATIENCE)
    with pytest.raises(QueueMigrating):
        transport.consumer("q", 1)
    with pytest.raises(QueueMigrating):
        transport.declare(QueueSpec(name="q"))
    send(transport, "q", message(b"c"))
    consumer.settle([Ack(running)])
    with pytest.raises(ConsumerLost, match="queue q is being migrated"):
        for _ in range(100):
            consumer.receive(1, 0.1)
    migrating.join(PATIENCE)
    fresh = transport.consumer("q", 1)
    assert sorted(take(fresh, 2)) == [b"b", b"c"]
    fresh.close()


@pytest.mark.usefixtures("no_settling")
def test_strangers_are_noticed(transport: RabbitMQTransport, client: ForeignClient) -> None:
    """Who sends past us cannot be held off: it is said, and nothing is deleted."""
    transport.declare(QueueSpec(name="q"))
    stop = threading.Event()

    def keep_sending() -> None:
        while not stop.is_set():
            # Past its waiting for a confirm: who waits may be silent for long enough to be missed.
            amqp.Channel.basic_publish(client.channel, amqp.Message(b"x"), routing_key="q")
            time.sleep(0.02)

    stranger = threading.Thread(target=keep_sending)
    stranger.start()
    try:
        with pytest.raises(Unsupported, match="past the exchange workqueue"):
            transport.migrate(QueueSpec(name="q", max_length=999), lambda _: None)
    finally:
        stop.set()
        stranger.join()
    transport.migrate(QueueSpec(name="q", max_length=999), lambda _: None)


@pytest.mark.usefixtures("no_settling")
def test_moving_keeps_every_byte(transport: RabbitMQTransport, client: ForeignClient) -> None:
    """Of properties, too, that we could neither read nor say."""
    for name in ("a", "b"):
        transport.declare(QueueSpec(name=name))
    client.send_raw("a", foreign.millisecond_timestamp(), b"milliseconds")
    client.send_raw("a", foreign.content_type(b"\xff\xfe"), b"odd type")
    client.send_raw("a", foreign.nested(3000), b"deep")
    client.send("a", b"", expiration="100000", user_id="guest")
    client.send("a", b"x" * 300_000, application_headers={"n": 1}, priority=200)
    before = transport.peek("a", 20)
    with transport.link("test") as link:
        mover = Mover(link, "a", "b", user="guest")
        assert mover.move(2.0) == len(before)
        mover.close()
    after = transport.peek("b", 20)
    assert [as_sent(d.message) for d in after] == [as_sent(d.message) for d in before]
    assert [d.unreadable for d in after] == [d.unreadable for d in before]
    assert any(d.unreadable for d in after)
