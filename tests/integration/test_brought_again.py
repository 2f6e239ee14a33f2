"""What becomes of messages that are published again, by our copies or by other people's tools: each
is in its one place, whole as far as it can be, and what was brought back begins anew."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.amqp10 import Amqp10Sender, text, unspeakable
from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient, headers, longstr
from workqueue import Job, Producer, Reject, RetryPolicy, Worker, connect
from workqueue.broker import Broker as OurBroker
from workqueue.careful import Undeliverable
from workqueue.testing import eventually
from workqueue.transport import QueueSpec, QueueType
from workqueue.transports.rabbitmq import driver

pytestmark = pytest.mark.rabbitmq("3.10", "4.0", "4.3")

SPEAKS_1_0 = pytest.mark.rabbitmq("4.0", "4.3")
"""Without a plugin."""


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is killed here, so its new queues need not be waited for."""
    monkeypatch.setattr(driver, "SETTLING", 0)


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


@pytest.fixture
def ours(vhost: Vhost) -> Iterator[OurBroker]:
    with connect(vhost.url) as ours:
        yield ours


@pytest.fixture(params=["quorum", "classic"])
def type_(request: pytest.FixtureRequest) -> QueueType:
    chosen: QueueType = request.param
    return chosen


class Failing:
    """A handler that fails as often as it is asked, and keeps what it saw."""

    def __init__(self, times: int = 1_000_000) -> None:
        self.times = times
        self.jobs: list[Job[Any]] = []

    def __call__(self, job: Job[Any]) -> None:
        self.jobs.append(job)
        if len(self.jobs) <= self.times:
            raise ValueError("as asked")

    @property
    def attempts(self) -> list[int]:
        return [job.attempt for job in self.jobs]


def fail_all(ours: OurBroker, queue: str = "q", max_attempts: int = 2) -> Failing:
    handler = Failing()
    policy = RetryPolicy(max_attempts=max_attempts, first=0.0, longest=0.0)
    Worker(ours.queue(queue), handler, retry=policy).run(until_empty=True)
    return handler


# -- headers that RabbitMQ obeys -------------------------------------------------------------------


def test_copies_go_to_their_one_place(
    ours: OurBroker, client: ForeignClient, type_: QueueType
) -> None:
    """A message that names another queue in CC: neither its retries nor its dead letter go there,
    nor its requeue; and whoever handles it sees CC as it was."""
    ours.transport.declare(QueueSpec(name="q", type=type_))
    client.declare("audit")
    table = {"CC": ["audit"], "cc": ["audit"], "tenant": "ada"}
    client.send("q", "x", application_headers=table)
    client.channel.queue_purge("audit")
    queue = ours.queue("q")
    for _ in range(2):
        handler = fail_all(ours)
        assert handler.attempts == [1, 2]
        for job in handler.jobs:
            assert {name: job.headers[name] for name in table} == table
        [letter] = queue.dead.letters()
        assert letter.message.headers == table
        assert len(queue.dead.requeue()) == 1
        [waiting] = ours.transport.peek("q", 10)
        assert waiting.message.headers == table
    assert client.get("audit") is None


def test_a_dead_letter_finds_no_other_place(ours: OurBroker, client: ForeignClient) -> None:
    """With q.dead gone, a copy that went to the queue in CC would count as safe."""
    ours.transport.declare(QueueSpec(name="q"))
    client.declare("audit")
    client.send("q", "x", application_headers={"CC": ["audit"]})
    client.channel.queue_purge("audit")
    client.channel.queue_delete("q.dead")
    fail_all(ours)
    [letter] = ours.queue("q").dead.letters()
    assert (letter.message.body, letter.attempt) == (b"x", 2)
    assert client.get("audit") is None


def test_a_migration_moves_to_one_place(ours: OurBroker, client: ForeignClient) -> None:
    """Also what names other queues, or a user that is not ours."""
    ours.transport.declare(QueueSpec(name="q", type="classic"))
    client.declare("audit")
    client.send("q", "x", application_headers={"n": -7, "CC": ["audit"], "t": {"CC": 1}})
    client.channel.queue_purge("audit")
    spec = QueueSpec(name="q", type="quorum")
    assert ours.transport.migrate(spec, lambda _: None, force=True) == 1
    [moved] = ours.transport.peek("q", 10)
    assert moved.message.headers == {"n": -7, "CC": ["audit"], "t": {"CC": 1}}
    assert client.get("audit") is None


def test_what_we_send_goes_to_one_place(ours: OurBroker, client: ForeignClient) -> None:
    """A sender's own CC and BCC are headers like any other, as they are without RabbitMQ; also
    while it waits, and in a form that RabbitMQ would refuse."""
    queue = ours.queue("q")
    queue.declare()
    client.declare("audit")
    table = {"CC": ["audit"], "BCC": "audit"}
    with Producer(queue) as producer:
        producer.send("x", headers=table)
        producer.send("x", headers=table, delay=0.1)
    handler = Failing(times=0)
    Worker(queue, handler).run(max_messages=2)
    assert [dict(job.headers) for job in handler.jobs] == [table, table]
    assert client.get("audit") is None


# -- what can be read can be said again ------------------------------------------------------------


ODD_VALUES = {
    b"1960": b"T" + struct.pack(">q", -315_619_200),
    b"year 1": b"T" + struct.pack(">q", -62_135_596_800),
    b"long ago": b"T" + struct.pack(">q", -(2**62)),
    b"milliseconds": b"T" + struct.pack(">q", 1_700_000_000_000),
    b"int8": b"b" + struct.pack(">b", -7),
    b"uint8": b"B" + struct.pack(">B", 250),
    b"int16": b"s" + struct.pack(">h", -300),
    b"uint16": b"u" + struct.pack(">H", 65_535),
    b"uint32": b"i" + struct.pack(">I", 2**32 - 1),
    b"int64": b"l" + struct.pack(">q", -(2**63)),
    b"float": b"f" + struct.pack(">f", 0.1),
    b"double": b"d" + struct.pack(">d", 1e300),
    b"decimal": b"D\x02" + struct.pack(">i", -12_345),
    b"void": b"V",
    b"bytes": b"x" + longstr(b"\xff\0"),
    b"not UTF-8": b"S" + longstr(b"\xff\xfe"),
    b"": b"t\x01",
    b"n" * 255: b"t\0",
    b"\xff" * 200: b"S" + longstr(b"v"),
    b"table": b"F" + longstr(b"\x01a" + b"A" + longstr(b"V")),
}
"""Headers by name, as they are on the wire."""


def test_all_headers_stay(ours: OurBroker, client: ForeignClient, type_: QueueType) -> None:
    """Of every type that RabbitMQ takes, through retries, the dead letter, and its requeue."""
    ours.transport.declare(QueueSpec(name="q", type=type_))
    table = b"".join(bytes((len(name),)) + name + raw for name, raw in ODD_VALUES.items())
    client.send_raw("q", headers(table), b"x")
    [sent] = ours.transport.peek("q", 1)
    assert len(sent.message.headers) == len(ODD_VALUES)
    assert sent.message.headers["1960"] == datetime(1960, 1, 1, tzinfo=UTC)
    for _ in range(2):
        handler = fail_all(ours)
        assert handler.attempts == [1, 2]
        for job in handler.jobs:
            assert {
                name: job.headers[name] for name in sent.message.headers
            } == sent.message.headers
        [letter] = ours.queue("q").dead.letters()
        assert letter.message.headers == sent.message.headers
        ours.queue("q").dead.requeue()


def test_what_no_frame_holds_goes_alone(
    ours: OurBroker, client: ForeignClient, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy is longer than its original, by its reason and by wider numbers: the largest header is
    left out, with a line that names it."""
    ours.transport.declare(QueueSpec(name="q"))
    numbers = [n % 100 for n in range(60_000)]
    array = b"A" + longstr(b"".join(b"b" + bytes((n,)) for n in numbers))
    table = b"\x06tenant" + b"S" + longstr(b"ada") + b"\x07numbers" + array
    client.send_raw("q", headers(table), b"x")
    handler = fail_all(ours)
    assert handler.attempts == [1, 2]
    assert handler.jobs[0].headers["numbers"] == numbers
    [letter] = ours.queue("q").dead.letters()
    assert (letter.message.headers, letter.reason) == ({"tenant": "ada"}, "ValueError: as asked")
    assert "do not fit into a frame: numbers" in caplog.text


def test_a_users_name_stays_behind(ours: OurBroker, client: ForeignClient, broker: Broker) -> None:
    """RabbitMQ takes a `user_id` only from that user: a copy by another would be refused."""
    ours.transport.declare(QueueSpec(name="q"))
    client.send("q", "x", user_id="guest", expiration="3600000", priority=200)
    handler = fail_all(ours)
    assert handler.attempts == [1, 2]
    assert [job.priority for job in handler.jobs] == [200, 200]
    message = client.get("q.dead")
    assert not {"user_id", "expiration"} & message.properties.keys()
    assert message.properties["priority"] == 200


# -- brought back by others ------------------------------------------------------------------------

Way = Callable[[Broker, Vhost, ForeignClient], None]


def plain_republish(broker: Broker, vhost: Vhost, client: ForeignClient) -> None:
    """What a script does, or a shovel, which is what "Move messages" of the management UI makes."""
    while message := client.get("q.dead"):
        client.channel.basic_publish(message, routing_key="q", confirm_timeout=10)
        client.channel.basic_ack(message.delivery_info["delivery_tag"])


def by_management_api(broker: Broker, vhost: Vhost, client: ForeignClient) -> None:
    """As with rabbitmqadmin get and publish."""
    name = quote(vhost.name)
    taken = {"count": 100, "ackmode": "ack_requeue_false", "encoding": "base64"}
    for got in broker.manage("POST", f"queues/{name}/q.dead/get", taken):
        message = {
            "routing_key": "q",
            "properties": got["properties"],
            "payload": got["payload"],
            "payload_encoding": "base64",
        }
        assert broker.manage("POST", f"exchanges/{name}/amq.default/publish", message)["routed"]


def by_a_policy(broker: Broker, vhost: Vhost, client: ForeignClient) -> None:
    """The dead-letter queue has a dead-letter target of its own: what is rejected there is back."""
    rule = {"dead-letter-exchange": "", "dead-letter-routing-key": "q"}
    policy = {"pattern": r"^q\.dead$", "apply-to": "queues", "definition": rule}
    broker.manage("PUT", f"policies/{quote(vhost.name)}/back", policy)
    name = f"queues/{quote(vhost.name)}/q.dead"
    eventually(lambda: broker.manage("GET", name).get("policy") == "back")
    reject_all(client, "q.dead", "q")


def reject_all(client: ForeignClient, queue: str, target: str) -> None:
    """What another client rejects in `queue` is dead-lettered by the broker, to `target`."""
    while message := client.get(queue):
        client.channel.basic_reject(message.delivery_info["delivery_tag"], requeue=False)
    eventually(lambda: client.channel.queue_declare(target, passive=True).message_count)


WAYS = [plain_republish, by_management_api, by_a_policy]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_was_brought_back_begins_anew(
    ours: OurBroker, broker: Broker, vhost: Vhost, client: ForeignClient, way: Way
) -> None:
    """It has all its attempts again, and its next end is told, not its last."""
    ours.transport.declare(QueueSpec(name="q"))
    client.send("q", "x", application_headers={"tenant": "ada"})
    assert fail_all(ours, max_attempts=3).attempts == [1, 2, 3]
    way(broker, vhost, client)
    [waiting] = ours.transport.peek("q", 1)
    assert (waiting.attempt, waiting.message.headers["tenant"]) == (1, "ada")
    assert fail_all(ours, max_attempts=2).attempts == [1, 2]
    [letter] = ours.queue("q").dead.letters()
    assert (letter.attempt, letter.queue) == (2, "q")
    way(broker, vhost, client)
    Worker(ours.queue("q"), refuse).run(until_empty=True)
    [letter] = ours.queue("q").dead.letters()
    assert (letter.attempt, letter.reason, letter.error) == (1, "not this one", "")


def refuse(job: Job[Any]) -> None:
    raise Reject("not this one")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_the_broker_set_aside_begins_anew(
    ours: OurBroker, broker: Broker, vhost: Vhost, client: ForeignClient, way: Way
) -> None:
    """After two failures of ours, another client rejects it; brought back, it has all its attempts
    again. Where the same happens once more, that is what is told, and not the end before."""
    queue = ours.queue("q")
    queue.declare()
    client.send("q", "x")
    again = RetryPolicy(first=0.0, longest=0.0)
    for _ in range(2):
        Worker(queue, Failing(), retry=again).run(max_messages=2)
        reject_all(client, "q", "q.dead")
        [letter] = queue.dead.letters()
        assert (letter.queue, letter.attempt) == ("q", 2)
        assert letter.reason == "rejected by another client"
        way(broker, vhost, client)
    assert fail_all(ours, max_attempts=3).attempts == [1, 2, 3]
    way(broker, vhost, client)
    reject_all(client, "q", "q.dead")
    [letter] = queue.dead.letters()
    assert (letter.attempt, letter.reason) == (1, "rejected by another client")
    assert letter.error == ""


# -- what RabbitMQ cannot deliver ------------------------------------------------------------------


@pytest.fixture
def stranger(broker: Broker, vhost: Vhost, ours: OurBroker) -> Iterator[Amqp10Sender]:
    """A client with more types than AMQP 0-9-1 has, which sends to `q`."""
    ours.queue("q").declare()
    stranger = Amqp10Sender(broker, vhost, "q")
    yield stranger
    stranger.close()


@SPEAKS_1_0
def test_a_worker_gets_past_what_cannot_be_delivered(
    ours: OurBroker, stranger: Amqp10Sender, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ closes the connection over one message: the others are done, none of them becomes a
    dead letter, and the one is set aside by the queue."""
    for number in range(9):
        stranger.send(b"%d" % number)
        if number == 3:
            stranger.send(b"poison", key=unspeakable())
    done: list[bytes] = []

    def handle(job: Job[Any]) -> None:
        done.append(job.body)

    Worker(ours.queue("q"), handle, concurrency=4).run(until_empty=True)
    assert set(done) == {b"%d" % number for number in range(9)}
    assert len(done) <= 20, "each ran again at most when the broker failed with it"
    assert ours.queue("q").stats().dead == 1
    assert "taken one at a time" in caplog.text
    assert "cannot deliver the next message" in caplog.text


@SPEAKS_1_0
def test_dead_letters_beside_what_cannot_be_delivered(
    ours: OurBroker, vhost: Vhost, broker: Broker, stranger: Amqp10Sender
) -> None:
    """They are seen and brought back as far as RabbitMQ gives them; then it is said what is there,
    and nothing is lost."""
    queue = ours.queue("q")
    with Producer(queue) as producer:
        for number in range(5):
            producer.send(f"before {number}")
    fail_all(ours, max_attempts=1)
    beside = Amqp10Sender(broker, vhost, "q.dead")
    beside.send(b"poison", key=unspeakable())
    beside.close()
    seen: list[bytes] = []
    with pytest.raises(Undeliverable, match=r"one message of q\.dead cannot be delivered"):
        seen.extend(letter.message.body for letter in queue.dead.letters())
    assert seen
    assert len(set(seen)) == len(seen)
    with pytest.raises(Undeliverable) as told:
        queue.dead.requeue()
    assert told.value.command.startswith("workqueue ")
    back = {delivery.message.body for delivery in ours.transport.peek("q", 100)}
    left = queue.stats().dead or 0
    assert len(back) + left >= 6, "in one queue or the other"
    assert len(back) >= 1


@SPEAKS_1_0
def test_what_amqp_1_0_says_otherwise(
    ours: OurBroker, client: ForeignClient, stranger: Amqp10Sender
) -> None:
    """CC as text, which RabbitMQ refuses of AMQP 0-9-1 clients, and BCC, which it takes from them:
    both come from here, and are ordinary headers of what we publish."""
    client.declare("audit")
    stranger.send(b"x", CC=text("audit"), BCC=text("audit"), when=b"\x83" + pack_ms(-315_619_200))
    expected = {"CC": "audit", "BCC": "audit", "when": datetime(1960, 1, 1, tzinfo=UTC)}
    for _ in range(2):
        handler = fail_all(ours)
        assert handler.attempts == [1, 2]
        for job in handler.jobs:
            assert {name: job.headers[name] for name in expected} == expected
        [letter] = ours.queue("q").dead.letters()
        assert {name: letter.message.headers[name] for name in expected} == expected
        assert len(ours.queue("q").dead.requeue()) == 1
    assert client.get("audit") is None


def pack_ms(seconds: int) -> bytes:
    return struct.pack(">q", seconds * 1000)
