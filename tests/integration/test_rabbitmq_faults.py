"""What happens to a RabbitMQ, its network and its other clients, and what ours do about it."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import foreign
from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import PATIENCE, Desk
from workqueue import NotSent, Producer, TooLarge, Unconfirmed, connect
from workqueue.cli.torture.proxy import Proxy
from workqueue.errors import ConnectionLost, ConsumerLost, DeliveriesLost
from workqueue.message import Delivery, Message, new_id
from workqueue.testing import eventually
from workqueue.transport import Ack, QueueSpec, QueueType, Requeue
from workqueue.transports.rabbitmq.consumer import RabbitMQConsumer
from workqueue.transports.rabbitmq.driver import RabbitMQTransport
from workqueue.transports.rabbitmq.publisher import RabbitMQPublisher

IMPATIENT = "consumer_timeout = 3000\nheartbeat = 2"
"""An acknowledgement timeout and a heartbeat as short as a broker can be told."""


@pytest.fixture
def desk(tmp_path: Path, vhost: Vhost) -> Iterator[Desk]:
    desk = Desk(tmp_path, vhost.url)
    yield desk
    desk.close()


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


# -- the broker dies, stops, hangs up ----------------------------------------------------------


def test_a_killed_broker_has_lost_nothing(desk: Desk, broker: Broker) -> None:
    """500 messages, SIGKILL of the broker, start: 500 messages are worked."""
    desk.send("q", *(f"sleep 0 {n}" for n in range(500)))
    broker.kill()
    broker.start()
    assert desk.drain("q", "-c", "4").code == 0
    assert sorted(desk.bodies("done")) == sorted(f"sleep 0 {n}" for n in range(500))


@pytest.mark.timeout(300)
def test_senders_and_workers_survive_the_broker(desk: Desk, broker: Broker) -> None:
    """A worker that runs goes on without being started again; a sender places all or says which."""
    worker = desk.work("q", "-c", "2")
    desk.send("q", "sleep 0 before")
    desk.until(lambda: desk.bodies("done"), "the first task")
    with connect(desk.url) as remote, Producer(remote.queue("q"), timeout=60) as producer:
        sent: list[str] = []
        stop = threading.Event()

        def keep_sending() -> None:
            while not stop.is_set():
                body = f"sleep 0 {len(sent)}"
                producer.send(body)
                sent.append(body)

        sender = threading.Thread(target=keep_sending)
        sender.start()
        eventually(lambda: len(sent) > 50, within=PATIENCE)
        broker.kill()
        broker.start()
        count = len(sent)
        eventually(lambda: len(sent) > count + 50, within=PATIENCE)
        stop.set()
        sender.join()
    desk.until(lambda: set(sent) <= set(desk.bodies("done")), "all that was sent to be done")
    assert worker.process.poll() is None
    assert worker.says("trying again")
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0


@pytest.mark.timeout(300)
def test_the_broker_is_killed_in_the_middle_of_many(desk: Desk, broker: Broker) -> None:
    """`send_many` goes on when it is back, and all of what it says was sent is there."""
    count = 20_000
    pulled = 0

    def source() -> Iterator[bytes]:
        nonlocal pulled
        for pulled in range(count):
            yield b"%d" % pulled

    def kill() -> None:
        eventually(lambda: pulled > count // 2, within=PATIENCE)
        broker.kill()
        broker.start()

    with connect(desk.url) as remote, Producer(remote.queue("q"), timeout=60) as producer:
        producer.send(b"-1")
        killer = threading.Thread(target=kill)
        killer.start()
        assert producer.send_many(source()) == count
        killer.join()
        consumer = remote.transport.consumer("q", 1_000)
        found: set[int] = set()

        def all_there() -> bool:
            """all that was sent"""
            deliveries = consumer.receive(1_000, 1.0)
            found.update(int(delivery.message.body) for delivery in deliveries)
            consumer.settle([Ack(delivery) for delivery in deliveries])
            return len(found) > count

        eventually(all_there, within=PATIENCE)
        consumer.close()
    assert found == set(range(-1, count))


def test_connections_closed_by_an_administrator(desk: Desk, broker: Broker) -> None:
    """A worker opens a new one; so does a sender that was idle meanwhile."""
    worker = desk.work("q")
    with connect(desk.url) as remote, Producer(remote.queue("q")) as producer:
        producer.send("sleep 0 a")
        desk.until_done(1)
        broker.close_all_connections()
        producer.send("sleep 0 b")
        desk.until_done(2)
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0


@pytest.mark.rabbitmq("4.0", "4.3", config="heartbeat = 1")
def test_an_idle_sender_is_not_cut_off(desk: Desk) -> None:
    """Its connection needs no heartbeats of ours, and the next send works."""
    with connect(desk.url) as remote, Producer(remote.queue("q")) as producer:
        producer.send("sleep 0 a")
        time.sleep(4)  # four times the heartbeat that the broker asks for
        producer.send("sleep 0 b")
    assert desk.status("q")["ready"] == 2


def test_a_worker_waits_for_its_broker(desk: Desk, proxy: Proxy, vhost: Vhost) -> None:
    """Nobody listens: it says so, once an attempt on one line, and goes on when somebody does."""
    desk.send("q", "sleep 0")
    proxy.refuse()
    worker = desk.work("q", WORKQUEUE_URL=proxy.through(vhost.url))
    desk.until(lambda: worker.err.read_text().count("trying again") >= 3, "three attempts")
    lines = [line for line in worker.err.read_text().splitlines() if "trying again" in line]
    assert all("Connection refused" in line for line in lines)
    proxy.heal()
    desk.until_done(1)
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0


@pytest.mark.timeout(300)
@pytest.mark.rabbitmq("4.0", "4.3", config="heartbeat = 2")
def test_a_silent_cut_is_noticed(desk: Desk, proxy: Proxy, vhost: Vhost) -> None:
    """Packets vanish: the worker's task is done by another, and it comes back by itself."""
    desk.send("q", "once 60")
    worker = desk.work("q", WORKQUEUE_URL=proxy.through(vhost.url))
    desk.until(lambda: desk.bodies("start"), "the task to start")
    proxy.drop()
    other = desk.work("q")
    desk.until(lambda: desk.bodies("done"), "the task to be done elsewhere")
    assert desk.journal("done")[0]["worker"] == other.pid
    desk.until(lambda: worker.says("trying again"), "the worker to notice")
    other.send(signal.SIGTERM)
    assert other.wait().code == 0
    proxy.heal()
    desk.send("q", "sleep 0 after")
    desk.until(lambda: "sleep 0 after" in desk.bodies("done"), "it to go on")
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0


# -- long tasks --------------------------------------------------------------------------------


@pytest.mark.rabbitmq("4.0", "4.3", config=IMPATIENT)
@pytest.mark.parametrize("type_", ["quorum", "classic"])
def test_a_task_may_outlast_every_timeout(desk: Desk, broker: Broker, type_: str) -> None:
    """Longer than heartbeat and acknowledgement timeout together: done once."""
    tick_quickly(broker)
    assert desk.run("declare", "q", "--type", type_).code == 0
    desk.send("q", "sleep 9")
    assert desk.drain("q").code == 0
    assert len(desk.journal("start")) == 1
    assert desk.bodies("done") == ["sleep 9"]


@pytest.mark.rabbitmq("4.0", "4.3", config="heartbeat = 2")
@pytest.mark.parametrize("type_", ["quorum", "classic"])
def test_an_acknowledgement_timeout_that_passes(
    desk: Desk, broker: Broker, client: ForeignClient, type_: str
) -> None:
    """Of a queue made by another client: the running handler is told, the worker goes on, and
    nothing else comes again or is set aside because of it."""
    if type_ == "classic" and broker.series == "4.3":
        pytest.skip("classic queues have no such timeout since 4.3")
    tick_quickly(broker)
    # Long enough for all children to start, and over before all else is done.
    client.declare("q", x_queue_type=type_, x_consumer_timeout=6000)
    for n in range(30):
        client.send("q", "listen 30" if n == 0 else f"sleep 0.7 {n}")
    worker = desk.work("q", "-c", "3", "--until-empty")
    result = worker.wait()
    assert result.code == 0, result.err
    assert desk.bodies("told") == ["listen 30"]
    starts = Counter(desk.bodies("start"))
    assert starts.pop("listen 30") == 2
    assert set(starts.values()) == {1}
    done = desk.journal("done")
    assert len(done) == 30
    assert {entry["body"] for entry in done if entry["redelivered"]} == {"listen 30"}
    assert {entry["attempt"] for entry in done} == {1}
    assert desk.status("q")["dead"] == 0


@pytest.mark.rabbitmq("3.10")
def test_what_cannot_be_set_is_said(desk: Desk) -> None:
    """RabbitMQ 3.10 takes the timeout from its configuration alone: the worker says which."""
    desk.send("q", "sleep 0")
    result = desk.drain("q")
    assert result.code == 0
    assert "consumer_timeout = 315360000000" in result.err


def tick_quickly(broker: Broker) -> None:
    """RabbitMQ looks for timeouts once a minute; for a test, once a second."""
    broker.rabbitmqctl("eval", "application:set_env(rabbit, channel_tick_interval, 1000).")


# -- what others send --------------------------------------------------------------------------


def test_foreign_messages_harm_nobody(desk: Desk, client: ForeignClient) -> None:
    """However odd, each is handled or set aside, and the next good task runs."""
    client.declare("q", x_queue_type="quorum")
    marker = desk.folder / "pickled"
    pickle = f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()
    client.send_raw("q", foreign.millisecond_timestamp(), b"milliseconds")
    client.send_raw("q", foreign.content_type(b"\xff\xfe"), b"odd type")
    client.send_raw("q", foreign.nested(3000), b"deep")
    client.send("q", b"\x78\x9c", application_headers={"compression": "application/x-foo"})
    client.send("q", pickle, content_type="application/x-python-serialize")
    client.send("q", b"")
    client.send("q", b"{not json", content_type="application/json")
    client.send("q", b"[" * 100_000, content_type="application/json")
    client.send("q", "sleep 0 good")
    result = desk.drain("q")
    assert result.code == 0, result.err
    assert desk.bodies("done") == ["milliseconds", "odd type", "", "sleep 0 good"]
    assert {entry["worker"] for entry in desk.journal()} == {desk.programs[-1].pid}
    assert not marker.exists()
    show = 'printf "%s\\n" "$WORKQUEUE_HEADERS"'
    dead = desk.run("work", "q.dead", "--exec", "--until-empty", "--", "sh", "-c", show)
    assert len(dead.out.splitlines()) == 5
    for reason in ("nested more than", "compressed", "could run code", "not the JSON"):
        assert reason in dead.out


def test_plain_messages_of_others_are_handled(desk: Desk, client: ForeignClient) -> None:
    """No headers, no content type, no id: the tutorial's clients can send to our workers."""
    client.declare("q")
    client.send("q", "sleep 0 plain")
    assert desk.drain("q").code == 0
    [done] = desk.journal("done")
    assert (done["body"], done["id"], done["attempt"]) == ("sleep 0 plain", None, 1)


def test_others_can_handle_ours(desk: Desk, client: ForeignClient) -> None:
    """Persistent, typed, named and dated, and the body without an envelope."""
    assert desk.run("send", "q", '{"to": "ada"}', "-H", "tenant=7", "--id", "x-1").code == 0
    message = client.get("q")
    assert bytes(message.body) == b'{"to": "ada"}'
    properties = message.properties
    assert properties["delivery_mode"] == 2
    assert properties["content_type"] == "application/json"
    assert properties["message_id"] == "x-1"
    assert abs(properties["timestamp"] - time.time()) < 600
    assert properties["application_headers"] == {"tenant": "7"}


def test_a_queue_of_others_is_taken_as_it_is(desk: Desk, client: ForeignClient) -> None:
    """Sending and working need no particular parameters; asking for some says what differs."""
    client.declare("q", x_max_length=100)
    assert desk.run("send", "q", "sleep 0").code == 0
    assert desk.drain("q").code == 0
    result = desk.run("declare", "q", "--type", "quorum")
    assert result.code == 78
    assert "type is classic, not quorum" in result.err


def test_a_deleted_queue_is_made_again(desk: Desk, client: ForeignClient) -> None:
    """The worker says so, and goes on."""
    worker = desk.work("q")
    desk.send("q", "sleep 0 a")
    desk.until_done(1)
    client.channel.queue_delete("q")
    desk.until(lambda: worker.says("making it again"), "the worker to notice")
    desk.send("q", "sleep 0 b")
    desk.until_done(2)
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0


def test_prefetch_zero_is_the_tutorials_other_behaviour(desk: Desk) -> None:
    """Unlimited: whoever comes first takes all, and the second worker stands idle."""
    desk.send("q", *(f"sleep 0.2 {n}" for n in range(12)))
    first = desk.work("q", "--prefetch", "0")
    desk.until(lambda: desk.bodies("start"), "the first worker")
    second = desk.work("q", "--prefetch", "0", "--until-empty")
    assert second.wait().code == 0
    desk.until_done(12)
    first.send(signal.SIGTERM)
    assert first.wait().code == 0
    assert {entry["worker"] for entry in desk.journal("done")} == {first.pid}


def test_what_came_with_an_answer_is_not_waited_for(vhost: Vhost) -> None:
    """Deliveries that were read while an answer was awaited are handed out without another read."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    consumer = transport.consumer("q", 5)
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"%d" % n) for n in range(5)], PATIENCE)

    def arrived_with_an_answer() -> bool:
        """an answer came, and the deliveries before it"""
        consumer.link.channel().close()
        return len(consumer.arrivals) == 5

    eventually(arrived_with_an_answer, within=PATIENCE)
    began = time.monotonic()
    received = consumer.receive(5, PATIENCE)
    assert time.monotonic() - began < PATIENCE / 2
    assert [delivery.message.body for delivery in received] == [b"0", b"1", b"2", b"3", b"4"]
    consumer.close()
    publisher.close()


def test_an_empty_body_ends_no_connection(vhost: Vhost) -> None:
    """It has no body frame: one of length 0 would be a protocol error to the broker (505)."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    publisher = transport.publisher()
    bodies = [b"before", b"", b"", b"after"]
    publisher.publish("q", [Message(body=body) for body in bodies], PATIENCE)
    publisher.publish("q", [Message(body=b"again")], PATIENCE)
    consumer = transport.consumer("q", 10)
    seen: list[bytes] = []

    def all_there() -> bool:
        """all five"""
        seen.extend(delivery.message.body for delivery in consumer.receive(10, 1.0))
        return len(seen) == 5

    eventually(all_there, within=PATIENCE)
    assert seen == [*bodies, b"again"]
    consumer.close()
    publisher.close()


@pytest.mark.rabbitmq("4.0", "4.3")
def test_a_message_that_came_back_thrice_is_kept(vhost: Vhost) -> None:
    """Where hand-backs count among the deaths, and for ever where they do not."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"x")], PATIENCE)
    consumer = transport.consumer("q", 1)
    deaths = []
    for _ in range(6):
        [delivery] = eventually(lambda: consumer.receive(1, 1.0), within=PATIENCE)
        deaths.append(delivery.deaths)
        consumer.settle([Requeue(delivery)])
    counted = consumer.link.abilities.counts_hand_backs
    assert deaths == ([0, 0, 0, 1, 2, 3] if counted else [0] * 6)
    consumer.close()
    publisher.close()


@pytest.mark.parametrize("stop", ["hold", "pause"])
@pytest.mark.parametrize(("before", "after"), [("quorum", "classic"), ("classic", "quorum")])
def test_a_migration_waits_for_who_has_something_out(
    vhost: Vhost, stop: str, before: QueueType, after: QueueType
) -> None:
    """Also for a worker that takes nothing new, and has no consumer that a classic queue counts."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q", type=before))
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"x")], PATIENCE)
    consumer = transport.consumer("q", 5)
    [delivery] = eventually(lambda: consumer.receive(1, 1.0), within=PATIENCE)
    if stop == "hold":
        consumer.hold(1)
    else:
        consumer.pause()
    spec, steps = QueueSpec(name="q", type=after), list[str]()
    migration = threading.Thread(
        target=transport.migrate, args=(spec, steps.append), kwargs={"force": True}
    )
    migration.start()

    def waits_for_us() -> bool:
        """the migration says that it waits"""
        assert consumer.receive(1, 0.05) == []
        return any("waiting for" in step for step in steps)

    eventually(waits_for_us, within=PATIENCE)
    consumer.settle([Ack(delivery)])
    with pytest.raises(ConsumerLost):
        eventually(lambda: consumer.receive(1, 0.05), within=PATIENCE)
    migration.join(PATIENCE)
    assert not migration.is_alive()
    assert transport.stats("q").ready == 0
    publisher.close()


# -- what cannot be sent -----------------------------------------------------------------------


@pytest.mark.rabbitmq("4.0", "4.3", config="max_message_size = 1000000")
def test_too_large_a_message(vhost: Vhost) -> None:
    """It is named, with both sizes; the connection goes on, and so do the messages around it."""
    with connect(vhost.url) as remote, Producer(remote.queue("q"), timeout=60) as producer:
        producer.send("before")
        with pytest.raises(TooLarge, match=r"1,500,000 bytes.* takes 1,000,000"):
            producer.send(b"x" * 1_500_000)
        with pytest.raises(TooLarge):
            producer.send(b"x" * 1_000_001)
        producer.send("after")
        with pytest.raises(NotSent) as caught:
            producer.send_many(["a", b"x" * 2_000_000, "b"])
        assert caught.value.sent == 2
        assert [type(cause) for _, cause in caught.value.failures] == [TooLarge]
        assert remote.queue("q").stats().ready == 4


def test_headers_that_fit_no_frame(vhost: Vhost) -> None:
    """RabbitMQ would hang up over them; they are refused before they are sent."""
    with connect(vhost.url) as remote, Producer(remote.queue("q")) as producer:
        with pytest.raises(TooLarge, match="headers"):
            producer.send("x", headers={"big": "x" * 200_000})
        producer.send("y")


def test_a_blocked_broker(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """A memory alarm: the sender says that it waits, gives up after its timeout, and nothing that
    was reported as sent is missing afterwards. Workers go on meanwhile."""
    desk.send("q", *(f"sleep 0.2 {n}" for n in range(10)))
    broker.set_memory_alarm()
    waiting = desk.start("send", "q", "sleep 0 waited", "--timeout", "60s")
    gave_up = desk.run("send", "q", "sleep 0 gave-up", "--timeout", "3s")
    assert gave_up.code == 1
    assert "memory or disk alarm" in gave_up.err
    assert desk.drain("q").code == 0
    assert len(desk.bodies("done")) == 10
    broker.clear_memory_alarm()
    assert waiting.wait().code == 0
    assert "waiting" in waiting.err.read_text()
    assert desk.drain("q").code == 0
    assert "sleep 0 waited" in desk.bodies("done")


def test_a_flood_against_an_alarm_waits(broker: Broker, vhost: Vhost) -> None:
    """More than the network's buffers hold: the kernel does not cut the connection, as it would
    with the timeout that py-amqp sets; all is placed when the alarm is over."""
    with connect(vhost.url) as remote, Producer(remote.queue("q"), timeout=120) as producer:
        producer.send("first")
        broker.set_memory_alarm()
        flood = threading.Thread(target=producer.send_many, args=([b"x" * 10_000] * 2_000,))
        flood.start()
        time.sleep(5)
        assert flood.is_alive()
        broker.clear_memory_alarm()
        flood.join(PATIENCE)
        assert not flood.is_alive()
        assert remote.queue("q").stats().ready >= 2_001


# -- the traps of the client libraries, one test each ------------------------------------------


def test_a_late_confirm_confirms_nothing_else(vhost: Vhost, proxy: Proxy) -> None:
    """After a timeout the publisher is used up: the confirm that comes late meets nobody."""
    RabbitMQTransport(vhost.url).declare(QueueSpec(name="q"))
    transport = RabbitMQTransport(proxy.through(vhost.url))
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"a", id=new_id())], 10)
    proxy.stall("down")
    with pytest.raises(NotSent) as caught:
        publisher.publish("q", [Message(body=b"b", id=new_id())], 1)
    assert isinstance(caught.value.failures[0][1], Unconfirmed)
    proxy.heal()
    with pytest.raises(ConnectionLost):
        publisher.publish("q", [Message(body=b"c", id=new_id())], 10)
    publisher.close()


def test_a_producer_sends_again_under_the_same_id(vhost: Vhost, proxy: Proxy) -> None:
    """A confirm that never comes: sent once more on a new connection, known by its id."""
    RabbitMQTransport(vhost.url).declare(QueueSpec(name="q"))
    with connect(proxy.through(vhost.url)) as remote:
        producer = Producer(remote.queue("q"), timeout=15)
        producer.send("warm")
        proxy.stall("down")
        threading.Timer(6, proxy.heal).start()
        sent = producer.send("x")
        producer.close()
    consumer = RabbitMQTransport(vhost.url).consumer("q", 10)
    ids: list[str | None] = []
    received = eventually(lambda: consumer.receive(10, 1), within=PATIENCE)
    while received:
        ids += [delivery.message.id for delivery in received]
        consumer.settle([Ack(delivery) for delivery in received])
        received = consumer.receive(10, 1)
    consumer.close()
    assert set(ids[1:]) == {sent}


def test_a_late_acknowledgement_drops_nobody_elses_message(vhost: Vhost) -> None:
    """The broker closes a channel: its deliveries are reported lost, and settling one of them does
    not touch what the new channel, whose tags begin at one again, has delivered."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"a", id=new_id())], 10)
    consumer = transport.consumer("q", 1)
    [stale] = consumer.receive(1, 10)
    consumer.lanes[0].channel.basic_ack(999)  # an unknown tag: the broker closes the channel
    with pytest.raises(DeliveriesLost) as caught:
        for _ in range(100):
            consumer.receive(0, 0.1)
    assert caught.value.deliveries == [stale]
    [again] = consumer.receive(1, 10)
    with pytest.raises(ValueError, match="settled once"):
        consumer.settle([Ack(stale)])
    consumer.close()
    other = transport.consumer("q", 1)
    [back] = other.receive(1, 10)
    assert (back.message.body, again.message.body) == (b"a", b"a")
    other.close()
    publisher.close()


def test_a_forked_child_does_not_hold_the_connection(desk: Desk) -> None:
    """A handler that forks: when the worker is killed, its task comes back although the forked
    process lives on."""
    (desk.folder / "forks.py").write_text(
        "import os, time\nimport tasks\n\n"
        "def handle(job):\n"
        "    if not job.redelivered and os.fork() == 0:\n"
        "        open('fork', 'w').write(str(os.getpid()))\n"
        "        time.sleep(60)\n"
        "        os._exit(0)\n"
        "    tasks.handle(job)\n"
    )
    desk.send("q", "once 60")
    worker = desk.start("work", "q", "forks:handle", "--in", "thread")
    desk.until(lambda: desk.bodies("start"), "the task to start")
    worker.kill()
    began = time.monotonic()
    assert desk.drain("q").code == 0
    assert desk.bodies("done") == ["once 60"]
    assert time.monotonic() - began < 25, "not by a heartbeat that was missed: of 20 s, so later"
    os.kill(int((desk.folder / "fork").read_text()), signal.SIGKILL)


def test_eight_threads_share_a_producer(vhost: Vhost) -> None:
    """Each message is placed once."""
    with connect(vhost.url) as remote, Producer(remote.queue("q")) as producer:
        ids: list[str] = []

        def send() -> None:
            ids.extend([producer.send(n) for n in range(100)])

        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(ids)) == 800
        assert remote.queue("q").stats().ready == 800


# -- looking, and being refused ----------------------------------------------------------------


def test_in_flight_from_the_management_api(desk: Desk, broker: Broker) -> None:
    """What AMQP does not tell, where its URL is given; null until the API knows."""
    desk.send("q", "sleep 30", "sleep 30")
    worker = desk.work("q")
    assert desk.status("q")["in_flight"] is None

    def agrees() -> bool:
        [found] = desk.run("status", "q", "--json", "--management-url", broker.management_url).json
        assert found["in_flight"] in (None, 1), "never a false figure"
        return bool(found["in_flight"] == 1)

    desk.until(lambda: desk.bodies("start"), "the task to start")
    desk.until(agrees, "the figures to come in")
    [listed] = desk.run("status", "--json", "--management-url", broker.management_url).json
    assert listed["queue"] == "q"
    for command in (("status",), ("watch", "q", "-n", "1")):
        assert "10 s old" in desk.run(*command, "--management-url", broker.management_url).err
    assert "old" not in desk.run("status", "q").err
    worker.kill()


@pytest.mark.parametrize(
    ("login", "vhost_name", "told"),
    [("guest:wr0ng-s3cret", None, "ACCESS_REFUSED"), (None, "nope", "vhost nope not found")],
)
def test_refused_at_once(
    desk: Desk, broker: Broker, vhost: Vhost, login: str | None, vhost_name: str | None, told: str
) -> None:
    """Wrong password or virtual host: exit 77 without a second try, and no password anywhere."""
    host, port = broker.address
    url = f"amqp://{login or 'guest:guest'}@{host}:{port}/{vhost_name or vhost.name}"
    for command in (("send", "q", "x"), ("work", "q", "tasks:handle"), ("status", "q")):
        result = desk.run(*command, "-v", WORKQUEUE_URL=url)
        assert result.code == 77
        assert told in result.err
        assert "wr0ng-s3cret" not in result.out + result.err


def test_every_publish_is_a_connection_of_its_own(vhost: Vhost) -> None:
    """So that a blocked sender does not hold up acknowledgements."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    publisher, consumer = transport.publisher(), transport.consumer("q", 1)
    assert isinstance(publisher, RabbitMQPublisher)
    assert publisher.link.wire.socket is not consumer.link.wire.socket
    publisher.close()
    consumer.close()


# -- channels and what they may hold -------------------------------------------------------------


def take(consumer: RabbitMQConsumer, count: int) -> list[Delivery]:
    """Exactly `count`, and nothing comes after them."""
    taken: list[Delivery] = []
    eventually(
        lambda: len(taken) >= count or taken.extend(consumer.receive(100, 0.2)), within=PATIENCE
    )
    assert len(taken) == count
    assert consumer.receive(100, 0.5) == []
    return taken


@pytest.mark.rabbitmq("3.10", "4.0", "4.3", config="channel_max = 2")
@pytest.mark.parametrize("type_", ["quorum", "classic"])
def test_a_broker_that_allows_two_channels(vhost: Vhost, type_: QueueType) -> None:
    """Holding more and less needs no more of them, and what runs long keeps no slot idle."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q", type=type_))
    publisher = transport.publisher()
    publisher.publish("q", [Message(body=b"x", id=new_id()) for _ in range(60)], 10)
    publisher.close()
    consumer = transport.consumer("q", 2)
    held = take(consumer, 2)
    for _ in range(3):
        consumer.hold(5)
        held += take(consumer, 3)
        consumer.hold(2)
        consumer.settle([Ack(delivery) for delivery in held[1:]])
        del held[1:]  # one that runs on and on: all the others go past it
        held += take(consumer, 1)
    consumer.hold(5)
    held += take(consumer, 3)
    for _ in range(10):  # and when it has ended, the place that it had is filled
        consumer.settle([Ack(held.pop(0))])
        held += take(consumer, 1)
    consumer.settle([Requeue(held.pop()), *map(Ack, held)])
    consumer.hold(0)
    consumer.settle([Ack(delivery) for delivery in take(consumer, 34)])
    consumer.close()
    stats = transport.stats("q")
    assert (stats.ready, stats.dead) == (0, 0)


@pytest.mark.rabbitmq("4.3", config="channel_max = 31")
def test_a_broker_that_allows_fewer_channels_than_there_are_slots(
    vhost: Vhost, client: ForeignClient
) -> None:
    """Where each slot would have one, because tasks may be taken away, some share."""
    client.declare("q", x_queue_type="quorum", x_consumer_timeout=60_000)
    for n in range(50):
        client.send("q", f"{n}")
    transport = RabbitMQTransport(vhost.url)
    consumer = transport.consumer("q", 40)
    held = take(consumer, 40)
    assert len(consumer.lanes) == 30
    consumer.settle([Ack(delivery) for delivery in held])
    consumer.settle([Ack(delivery) for delivery in take(consumer, 10)])
    consumer.close()


@pytest.mark.rabbitmq("4.3", config="channel_max = 1")
def test_a_broker_that_allows_too_few_channels(desk: Desk) -> None:
    """To try again would not help."""
    desk.send("q", "sleep 0")
    result = desk.drain("q")
    assert result.code == 78
    assert "RabbitMQ's channel_max is 1: a connection needs more channels" in result.err


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
def test_what_may_be_held_is_never_said_of_a_whole_channel(broker: Broker, vhost: Vhost) -> None:
    """4.0 closes the connection for that, if the queue is a quorum queue, and 4.3 takes it for
    what a consumer may hold."""
    transport = RabbitMQTransport(vhost.url)
    transport.declare(QueueSpec(name="q"))
    consumer, publisher = transport.consumer("q", 3), transport.publisher()
    consumer.hold(7)
    publisher.prove_alive()
    asked = "[rabbit_channel:info(C, [prefetch_count, global_prefetch_count])"
    told = broker.rabbitmqctl("eval", f"{asked} || C <- rabbit_channel:list()].")
    consumer.close()
    publisher.close()
    assert {1, 4} <= set(map(int, re.findall(r"{prefetch_count,(\d+)}", told)))
    assert set(re.findall(r"{global_prefetch_count,(\d+)}", told)) == {"0"}
