"""Migration of what is not as it should be: nothing vanishes, and no queue stays shut."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import amqp
import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import PATIENCE
from workqueue import ConnectionLost, Unsupported
from workqueue.cli.torture.proxy import Proxy
from workqueue.dead import DeadLetters
from workqueue.errors import AccessRefused, ConfigError, WorkqueueError
from workqueue.message import Message
from workqueue.testing import eventually
from workqueue.transport import Ack, QueueSpec
from workqueue.transports.rabbitmq import driver, migration, mover
from workqueue.transports.rabbitmq.driver import RabbitMQTransport
from workqueue.transports.rabbitmq.mover import Immovable, Mover

pytestmark = pytest.mark.timeout(180)

CHANGED = QueueSpec(name="q", max_length=999)


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is killed here, so new queues need not be waited for, nor silence for long."""
    monkeypatch.setattr(driver, "SETTLING", 0)
    monkeypatch.setattr(migration, "QUIET", 0.3)
    monkeypatch.setattr(migration, "LOOK_AGAIN", 0.1)


@pytest.fixture
def transport(broker: Broker, vhost: Vhost) -> RabbitMQTransport:
    transport = RabbitMQTransport(vhost.url, management_url=broker.management_url)
    transport.declare(QueueSpec(name="q"))
    return transport


@pytest.fixture
def stranger(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    """Another user than the one who migrates."""
    broker.manage("PUT", "users/stranger", {"password": "stranger", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.manage("PUT", f"permissions/{vhost.name}/stranger", everything)
    client = ForeignClient(broker, vhost, "stranger")
    yield client
    client.close()
    broker.manage("DELETE", "users/stranger")


def send(transport: RabbitMQTransport, *messages: Message) -> None:
    publisher = transport.publisher()
    publisher.publish("q", messages, PATIENCE)
    publisher.close()


def bodies(transport: RabbitMQTransport) -> list[bytes]:
    return sorted(delivery.message.body for delivery in transport.peek("q", 1000))


def names(broker: Broker, vhost: Vhost) -> set[str]:
    return {queue["name"] for queue in broker.manage("GET", f"queues/{vhost.name}?columns=name")}


# -- nothing vanishes --------------------------------------------------------------------------


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
def test_what_expires_while_it_is_held_is_a_dead_letter(transport: RabbitMQTransport) -> None:
    """Of its own ttl, while a worker keeps the migration waiting; and it can be requeued."""
    send(transport, Message(body=b"long"))
    consumer = transport.consumer("q", 1)
    [running] = eventually(lambda: consumer.receive(1, 1.0), within=PATIENCE)
    said: list[str] = []
    moving = threading.Thread(target=transport.migrate, args=(CHANGED, said.append))
    moving.start()
    eventually(lambda: any("waits in q.moving" in line for line in said), within=PATIENCE)
    send(transport, *(Message(body=b"short", id=f"m{n}", ttl=0.5) for n in range(5)))

    def all_expired() -> bool:
        consumer.receive(0, 0.05)
        return transport.stats("q").dead == 5

    eventually(all_expired, within=PATIENCE, what="five dead letters")
    consumer.settle([Ack(running)])
    consumer.close()
    moving.join(PATIENCE)
    assert not moving.is_alive()
    dead = DeadLetters(transport, "q")
    assert {(letter.queue, letter.reason) for letter in dead.letters()} == {("q", "expired")}
    assert len(dead.requeue()) == 5
    assert bodies(transport) == [b"short"] * 5


def test_the_bindings_of_others_are_made_again(
    transport: RabbitMQTransport, stranger: ForeignClient
) -> None:
    """By topic, by header, of an exchange that lives as long as its bindings."""
    channel = stranger.channel
    channel.queue_bind("q", "amq.topic", "orders.#")
    channel.queue_bind("q", "amq.headers", arguments={"x-match": "all", "n": 1})
    channel.exchange_declare("passing", "fanout", auto_delete=True)
    channel.queue_bind("q", "passing")
    transport.migrate(CHANGED, lambda _: None)
    publish = amqp.Channel.basic_publish_confirm
    publish(channel, amqp.Message("topic"), "amq.topic", "orders.new")
    publish(channel, amqp.Message("header", application_headers={"n": 1}), "amq.headers", "")
    publish(channel, amqp.Message("fanout"), "passing", "")
    assert bodies(transport) == [b"fanout", b"header", b"topic"]


@pytest.mark.parametrize("step", ["empty", "drop", "make", "bring_back"])
def test_the_bindings_of_others_outlive_a_kill(
    transport: RabbitMQTransport,
    stranger: ForeignClient,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stranger.channel.queue_bind("q", "amq.topic", "orders.#")
    with monkeypatch.context() as patch:
        patch.setattr(migration.Migration, step, failing(step, Killed()))
        with pytest.raises(Killed):
            transport.migrate(CHANGED, lambda _: None)
    stranger.channel.basic_publish_confirm(amqp.Message("x"), "amq.topic", "orders.new")
    transport.migrate(CHANGED, lambda _: None)
    assert bodies(transport) == [b"x"]
    stranger.channel.basic_publish_confirm(amqp.Message("y"), "amq.topic", "orders.new")
    assert bodies(transport) == [b"x", b"y"]


def test_without_the_management_api_bindings_are_asked_about(
    vhost: Vhost, stranger: ForeignClient, transport: RabbitMQTransport
) -> None:
    """Refused before anything was done; with force it is the user who says that there are none."""
    blind = RabbitMQTransport(vhost.url)
    stranger.channel.queue_bind("q", "amq.topic", "orders.#")
    with pytest.raises(Unsupported, match="other exchanges may send to queue q") as refused:
        blind.migrate(CHANGED, lambda _: None)
    assert "--management-url" in refused.value.hint
    assert "--force" in refused.value.hint
    assert blind.declare(QueueSpec(name="q")) is False
    stranger.channel.basic_publish_confirm(amqp.Message("x"), "amq.topic", "orders.new")
    assert bodies(blind) == [b"x"]
    blind.migrate(CHANGED, lambda _: None, force=True)
    assert bodies(blind) == [b"x"]
    blind.migrate(CHANGED, lambda _: None)  # nothing to do, so nothing to ask


# -- what cannot be moved as it is -------------------------------------------------------------


def test_what_rabbitmq_would_refuse_or_obey_is_moved_without_it(
    transport: RabbitMQTransport, stranger: ForeignClient, broker: Broker, vhost: Vhost
) -> None:
    """It is said, the rest of the message stays, and copies go to no other queue."""
    stranger.declare("audit")
    stranger.send("q", b"foreign", user_id="stranger", message_id="a", app_id="x")
    stranger.send("q", b"copied", application_headers={"CC": ["audit"], "n": 1}, message_id="b")
    stranger.channel.queue_purge("audit")
    said: list[str] = []
    transport.migrate(CHANGED, said.append)
    assert bodies(transport) == [b"copied", b"foreign"]
    assert any("without its user_id" in line for line in said)
    assert transport.stats("audit").ready == 0
    assert names(broker, vhost) == {"q", "q.dead", "audit"}


def test_one_message_that_is_refused_is_found_among_others(
    transport: RabbitMQTransport, stranger: ForeignClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a reason that we do not know beforehand: it is moved without its headers."""
    monkeypatch.setattr(mover, "movable", lambda properties, *_: (properties, []))
    send(transport, *(Message(body=b"a%02d" % n) for n in range(30)))
    stranger.send("q", b"foreign", user_id="stranger", application_headers={"n": 1})
    send(transport, *(Message(body=b"b%02d" % n) for n in range(30)))
    said: list[str] = []
    transport.migrate(CHANGED, said.append)
    expected = {*(b"a%02d" % n for n in range(30)), b"foreign", *(b"b%02d" % n for n in range(30))}
    assert set(bodies(transport)) == expected
    assert any("because RabbitMQ refused" in line for line in said)


def test_a_message_that_cannot_be_moved_at_all_leaves_the_queue_as_it_was(
    transport: RabbitMQTransport,
    stranger: ForeignClient,
    monkeypatch: pytest.MonkeyPatch,
    broker: Broker,
    vhost: Vhost,
) -> None:
    send(transport, *(Message(body=b"a%02d" % n) for n in range(30)))
    stranger.send("q", b"foreign", user_id="stranger", message_id="bad")
    with monkeypatch.context() as patch:
        patch.setattr(mover, "movable", lambda properties, *_: (properties, []))
        refused = b"\x00\x10\x08stranger"
        patch.setattr(mover, "bare_properties", lambda _: refused)
        with pytest.raises(Immovable, match="message bad of q"):
            transport.migrate(CHANGED, lambda _: None)
    assert set(bodies(transport)) == {*(b"a%02d" % n for n in range(30)), b"foreign"}
    assert_usable(transport, broker, vhost)
    transport.migrate(CHANGED, lambda _: None)
    assert transport.declare(CHANGED) is False


def assert_usable(transport: RabbitMQTransport, broker: Broker, vhost: Vhost) -> None:
    assert transport.declare(QueueSpec(name="q")) is False
    send(transport, Message(body=b"after"))
    assert b"after" in bodies(transport)
    assert names(broker, vhost) >= {"q", "q.dead"}
    assert not names(broker, vhost) & {"q.moving", "q.migrating"}


# -- what stops it in the middle ---------------------------------------------------------------


class Killed(BaseException):
    """As if the process had ended here."""


def failing(step: str, error: BaseException) -> Callable[..., Any]:
    """`step` of a migration, which fails at its end, the first time."""
    whole = getattr(migration.Migration, step)
    failed: list[bool] = []

    def fail(self: Any, *arguments: Any, **options: Any) -> Any:
        result = whole(self, *arguments, **options)
        if failed:
            return result
        failed.append(True)
        raise error

    return fail


@pytest.mark.parametrize("step", ["fence", "wait_for_workers", "move", "empty", "drop", "make"])
@pytest.mark.parametrize(
    "error", [ConnectionLost("the connection was cut"), KeyboardInterrupt()], ids=["cut", "ctrl-c"]
)
def test_a_failure_leaves_it_usable_or_goes_on(
    transport: RabbitMQTransport,
    step: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only after the queue was deleted it takes another call."""
    send(transport, *(Message(body=b"%02d" % n) for n in range(20)))
    with monkeypatch.context() as patch:
        patch.setattr(migration.Migration, step, failing(step, error))
        with pytest.raises(type(error)):
            transport.migrate(CHANGED, lambda _: None)
    if step != "drop":
        assert transport.declare(QueueSpec(name="q")) is False
        assert transport.stats("q").ready == 20
    transport.migrate(CHANGED, lambda _: None)
    assert transport.declare(CHANGED) is False
    assert bodies(transport) == [b"%02d" % n for n in range(20)]


def test_without_room_for_its_queues_nothing_is_changed(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost
) -> None:
    """The virtual host's limit lets one more be made, and two are needed."""
    send(transport, Message(body=b"x"))
    limits = f"vhost-limits/{vhost.name}/max-queues"
    for most in (2, 3):
        broker.manage("PUT", limits, {"value": most})
        with pytest.raises(WorkqueueError, match="limit"):
            transport.migrate(CHANGED, lambda _: None)
        assert_usable(transport, broker, vhost)
    broker.manage("DELETE", limits)
    transport.migrate(CHANGED, lambda _: None)
    assert transport.declare(CHANGED) is False


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("configure", r"^(?!.*\.moving$).*"),
        ("configure", r"^(?!.*\.migrating$).*"),
        ("configure", r"^(?!.*\.open$).*"),
        ("write", r"^(?!q\.moving$).*"),
        ("read", r"^(?!q\.moving$).*"),
        ("write", r"^(?!amq\.default$).*"),
    ],
)
def test_missing_permissions_leave_it_as_it_was(
    broker: Broker, vhost: Vhost, stranger: ForeignClient, kind: str, pattern: str
) -> None:
    url = vhost.url.replace("guest:guest", "stranger:stranger")
    mine = RabbitMQTransport(vhost.url, management_url=broker.management_url)
    mine.declare(QueueSpec(name="q"))
    send(mine, Message(body=b"x"))
    allowed = {"configure": ".*", "write": ".*", "read": ".*", kind: pattern}
    broker.manage("PUT", f"permissions/{vhost.name}/stranger", allowed)
    theirs = RabbitMQTransport(url, management_url=broker.management_url)
    with pytest.raises((AccessRefused, ConfigError, ConnectionLost)):
        theirs.migrate(CHANGED, lambda _: None)
    assert mine.stats("q").ready == 1
    mine.migrate(CHANGED, lambda _: None)
    assert mine.declare(CHANGED) is False
    assert bodies(mine) == [b"x"]


def test_a_smaller_queue_is_filled_as_workers_make_room(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not hold yet waits, none is dropped, and it is said."""
    monkeypatch.setattr(migration, "STILL_THERE", 0.2)
    send(transport, *(Message(body=b"%02d" % n) for n in range(50)))
    said: list[str] = []
    smaller = QueueSpec(name="q", type="classic", max_length=10)
    moving = threading.Thread(target=transport.migrate, args=(smaller, said.append))
    moving.start()
    eventually(lambda: any("q is full" in line for line in said), within=PATIENCE)
    consumer = transport.consumer("q", 5)
    done: list[bytes] = []

    def all_done() -> bool:
        deliveries = consumer.receive(5, 0.1)
        consumer.settle([Ack(delivery) for delivery in deliveries])
        done.extend(delivery.message.body for delivery in deliveries)
        return len(done) >= 50

    eventually(all_done, within=PATIENCE, what="all messages")
    consumer.close()
    moving.join(PATIENCE)
    assert not moving.is_alive()
    assert sorted(done) == [b"%02d" % n for n in range(50)]


def test_moving_stops_at_a_queue_that_nobody_empties(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy bounds the queue in between: the migration ends, and nothing was dropped."""
    monkeypatch.setattr(migration, "STUCK", 1.0)
    policy = {"pattern": r"\.moving$", "definition": {"max-length": 5}, "apply-to": "queues"}
    broker.manage("PUT", f"policies/{vhost.name}/small", policy)
    send(transport, *(Message(body=b"x" * 50) for n in range(3000)))
    with pytest.raises(ConfigError, match=r"q\.moving takes no more"):
        transport.migrate(CHANGED, lambda _: None)
    assert transport.stats("q").ready == 3000


def test_a_mover_keeps_what_is_refused_for_want_of_room(transport: RabbitMQTransport) -> None:
    """It does not hand it to and fro: that would count as deliveries."""
    transport.declare(QueueSpec(name="small", type="classic", max_length=3))
    send(transport, *(Message(body=b"%d" % n) for n in range(6)))

    class Enough(Exception):
        pass

    tries: list[int] = []

    def look(mover: Mover) -> None:
        tries.append(mover.moved)
        if mover.moved == 3 and len(tries) > 20:
            raise Enough

    with transport.link("test") as link:
        mover = Mover(link, "q", "small", look)
        with pytest.raises(Enough):
            mover.move(1.0)
        mover.close()
    assert transport.stats("small").ready == 3
    eventually(lambda: transport.stats("q").ready == 3, within=PATIENCE)


def test_a_policy_that_deletes_unused_queues_takes_none_of_it(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost
) -> None:
    """The queue in between is in use, however long a worker keeps the migration waiting."""
    policy = {"pattern": r"\.moving$", "definition": {"expires": 1000}, "apply-to": "queues"}
    broker.manage("PUT", f"policies/{vhost.name}/passing", policy)
    send(transport, Message(body=b"long"))
    consumer = transport.consumer("q", 1)
    [running] = eventually(lambda: consumer.receive(1, 1.0), within=PATIENCE)
    said: list[str] = []
    moving = threading.Thread(target=transport.migrate, args=(CHANGED, said.append))
    moving.start()
    eventually(lambda: any("waits in q.moving" in line for line in said), within=PATIENCE)
    send(transport, *(Message(body=b"%d" % n) for n in range(5)))
    began = time.monotonic()

    def long_unused() -> bool:
        """three times as long as the policy allows"""
        consumer.receive(0, 0.05)
        return time.monotonic() - began > 3.0

    eventually(long_unused, within=PATIENCE)
    consumer.settle([Ack(running)])
    consumer.close()
    moving.join(PATIENCE)
    assert not moving.is_alive()
    assert bodies(transport) == [b"%d" % n for n in range(5)]


@pytest.mark.parametrize(("before", "after"), [("quorum", "classic"), ("classic", "quorum")])
def test_many_are_moved_once(
    vhost: Vhost, transport: RabbitMQTransport, before: Any, after: Any
) -> None:
    """Acknowledgements that the broker had not applied would leave some in both queues."""
    spec = QueueSpec(name="many", type=before)
    transport.declare(spec)
    publisher = transport.publisher()
    publisher.publish("many", [Message(body=b"%d" % n) for n in range(20_000)], PATIENCE)
    publisher.close()
    moved = transport.migrate(QueueSpec(name="many", type=after), lambda _: None)
    assert moved == 20_000
    assert transport.stats("many").ready == 20_000


@pytest.mark.parametrize("word", ["waits in q.moving", "moved 3,000 messages to", "made q with"])
def test_a_connection_that_is_cut_leaves_it_usable(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost, proxy: Proxy, word: str
) -> None:
    """Really cut, at the moment at which a step is said; a second call finishes it."""
    roomy = QueueSpec(name="q", max_length=99_999)
    send(transport, *(Message(body=b"x") for n in range(3_000)))
    through = RabbitMQTransport(proxy.through(vhost.url), management_url=broker.management_url)

    def cut(line: str) -> None:
        if word in line:
            proxy.reset_all()

    with pytest.raises(ConnectionLost):
        through.migrate(roomy, cut)
    send(transport, Message(body=b"y"))
    through.migrate(roomy, lambda _: None)
    assert transport.declare(roomy) is False
    assert transport.stats("q").ready == 3_001
    assert not names(broker, vhost) & {"q.moving", "q.migrating"}
