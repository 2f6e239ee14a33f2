"""Copies that RabbitMQ does not take: their tasks do not run again meanwhile, and what a worker
settled last is heard."""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.integration.amqp10 import Amqp10Sender
from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import PATIENCE, Desk
from workqueue import Broker as Remote
from workqueue import Job, NotSent, QueueFull, Reject, RetryLater, RetryPolicy, Unconfirmed, Worker
from workqueue.errors import ConsumerLost
from workqueue.health import state_of
from workqueue.message import Delivery, Message, new_id
from workqueue.testing import eventually
from workqueue.transport import Ack, QueueSpec, QueueType, Requeue
from workqueue.transport import Reject as SetAside
from workqueue.transports.bell import Bell
from workqueue.transports.rabbitmq import driver, publisher, wire
from workqueue.transports.rabbitmq.consumer import RabbitMQConsumer
from workqueue.transports.rabbitmq.driver import RabbitMQTransport
from workqueue.transports.rabbitmq.ladder import DUE, Level
from workqueue.transports.rabbitmq.owed import Owed
from workqueue.transports.rabbitmq.publisher import RabbitMQPublisher

pytestmark = pytest.mark.usefixtures("no_settling")

ONE_ATTEMPT = RetryPolicy(max_attempts=1)

TYPES: tuple[QueueType, ...] = ("quorum", "classic")


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no broker is killed, new queues need not be waited for."""
    monkeypatch.setattr(driver, "SETTLING", 0)


@pytest.fixture
def transport(vhost: Vhost) -> Iterator[RabbitMQTransport]:
    transport = RabbitMQTransport(vhost.url)
    yield transport
    transport.close()


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


def send(transport: RabbitMQTransport, count: int, queue: str = "q") -> None:
    with closing(transport.publisher()) as sender:
        messages = [Message(body=b"%d" % n, id=new_id()) for n in range(count)]
        sender.publish(queue, messages, PATIENCE)


class Failing:
    """A worker in a thread whose tasks all fail; `runs` says how often each body was run."""

    def __init__(
        self,
        transport: RabbitMQTransport,
        error: str = "no",
        before: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        self.runs: Counter[bytes] = Counter()
        self.error = error
        self.transport = transport
        self.before = before
        retry = RetryPolicy(max_attempts=2, first=0.5)
        options = {"retry": retry, "concurrency": 2, **options}
        self.worker = Worker(Remote(transport).queue("q"), self.handle, **options)
        self.thread = threading.Thread(target=self.worker.run)

    def handle(self, job: Job) -> None:
        self.before()
        self.runs[bytes(job.body)] += 1
        raise ValueError(self.error)

    @property
    def dead(self) -> int:
        return self.transport.stats("q").dead or 0

    @property
    def ready(self) -> bool:
        return bool(state_of(self.worker)["ready"])


@contextmanager
def failing(transport: RabbitMQTransport, *arguments: Any, **options: Any) -> Iterator[Failing]:
    """The worker is told to stop at the end, and must."""
    failing = Failing(transport, *arguments, **options)
    failing.thread.start()
    try:
        yield failing
    finally:
        failing.worker.stop()
        failing.thread.join(PATIENCE)
        assert not failing.thread.is_alive(), "the worker does not end"


def queue_limit(broker: Broker, vhost: Vhost, limit: int) -> None:
    broker.manage("PUT", f"vhost-limits/{vhost.name}/max-queues", {"value": limit})


def no_place_for_dead_letters(broker: Broker, vhost: Vhost, client: ForeignClient) -> None:
    """NAME.dead is gone, and cannot be made."""
    client.channel.queue_delete("q.dead")
    queue_limit(broker, vhost, 1)


# -- what is in the way ---------------------------------------------------------------------------


@pytest.mark.parametrize("type", TYPES)
def test_no_delay_queue_can_be_made(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost, type: QueueType
) -> None:
    """The worker itself waits out the delay: as many runs as the policy says, and a dead letter."""
    transport.declare(QueueSpec(name="q", type=type))
    queue_limit(broker, vhost, 2)
    send(transport, 1)
    began = time.monotonic()
    with failing(transport) as work:
        eventually(lambda: work.dead == 1, within=PATIENCE)
        assert time.monotonic() - began >= 0.45
    assert work.runs == {b"0": 2}
    assert transport.stats("q").ready == 0


def test_nowhere_to_set_it_aside(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost, client: ForeignClient
) -> None:
    """NAME.dead is gone and cannot be made: the worker says that it is not ready, runs nothing
    twice, and sets the message aside as soon as there is a place for it."""
    transport.declare(QueueSpec(name="q"))
    with failing(transport, retry=ONE_ATTEMPT, prefetch=1, concurrency=1) as work:
        eventually(lambda: work.ready, within=PATIENCE)
        no_place_for_dead_letters(broker, vhost, client)
        send(transport, 1)
        eventually(lambda: work.runs and not work.ready, within=PATIENCE)
        queue_limit(broker, vhost, 100)
        eventually(lambda: work.dead == 1, within=PATIENCE)
        eventually(lambda: work.ready, within=PATIENCE)
    assert work.runs == {b"0": 1}


def test_a_worker_that_ends_before_its_copy_is_placed(
    transport: RabbitMQTransport,
    broker: Broker,
    vhost: Vhost,
    client: ForeignClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ends in time, and says that the task runs again; the next worker counts a lost one."""
    transport.declare(QueueSpec(name="q"))
    with failing(transport, retry=ONE_ATTEMPT) as work:
        eventually(lambda: work.ready, within=PATIENCE)
        no_place_for_dead_letters(broker, vhost, client)
        send(transport, 1)
        eventually(lambda: work.runs, within=PATIENCE)
        eventually(lambda: "cannot be placed" in caplog.text, within=PATIENCE)
    assert work.worker.shift is not None
    assert work.worker.shift.tally.unplaced == 1
    assert "1 tasks of q run again as the same attempt" in caplog.text
    again = transport.consumer("q", 1)
    (delivery,) = eventually(lambda: again.receive(1, 1.0), within=PATIENCE)
    assert (delivery.attempt, delivery.redelivered) == (1, True)
    assert delivery.message.headers["x-delivery-count"] == 1
    again.close()


def test_until_empty_does_not_wait_for_ever(
    transport: RabbitMQTransport,
    broker: Broker,
    vhost: Vhost,
    client: ForeignClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a copy that cannot be placed."""
    monkeypatch.setattr("workqueue.worker.UNPLACED_TIME", 3.0)
    transport.declare(QueueSpec(name="q"))
    send(transport, 1)
    work = Failing(
        transport,
        before=lambda: no_place_for_dead_letters(broker, vhost, client),
        retry=ONE_ATTEMPT,
    )
    tally = work.worker.run(until_empty=True)
    assert (tally.dead, tally.unplaced) == (1, 1)
    assert work.runs == {b"0": 1}


def test_until_empty_waits_for_a_retry_without_a_delay_queue(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than for a copy that cannot be placed: its time has not come."""
    monkeypatch.setattr("workqueue.worker.UNPLACED_TIME", 3.0)
    transport.declare(QueueSpec(name="q"))
    queue_limit(broker, vhost, 2)
    send(transport, 1)
    work = Failing(transport, retry=RetryPolicy(max_attempts=2, first=9.0))
    tally = work.worker.run(until_empty=True)
    assert (tally.retried, tally.dead, tally.unplaced) == (1, 1, 0)
    assert work.runs == {b"0": 2}


def test_a_command_that_leaves_a_task_behind_says_so(
    tmp_path: Path, broker: Broker, vhost: Vhost, client: ForeignClient
) -> None:
    """In its last line, and by its exit code: another run may succeed."""
    desk = Desk(tmp_path, vhost.url)
    desk.send("q", "fail")
    worker = desk.work("q", "--max-attempts", "5", "--backoff", "0.5s..1s", "-n", "20")
    eventually(lambda: desk.journal("start"), within=PATIENCE)
    no_place_for_dead_letters(broker, vhost, client)
    eventually(lambda: worker.says("cannot be placed"), within=PATIENCE)
    worker.send(signal.SIGTERM)
    result = worker.wait()
    assert result.code == 69
    assert "the broker did not take their copies" in result.err
    desk.close()


@pytest.mark.rabbitmq(config="frame_max = 8192")
def test_an_error_text_that_no_frame_holds(transport: RabbitMQTransport) -> None:
    """Is left out; the reason stays."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 1)
    with failing(transport, "é" * 9_000) as work:
        eventually(lambda: work.dead == 1, within=PATIENCE)
    assert work.runs == {b"0": 2}
    (letter,) = transport.peek("q.dead", 1)
    assert str(letter.message.headers["workqueue-reason"]).startswith("ValueError: é")


def test_a_login_that_may_not_publish(
    transport: RabbitMQTransport, broker: Broker, vhost: Vhost, caplog: pytest.LogCaptureFixture
) -> None:
    """Until it may."""
    user = broker.manage("GET", "whoami")["name"]

    def may_write(pattern: str) -> None:
        rights = {"configure": ".*", "read": ".*", "write": pattern}
        broker.manage("PUT", f"permissions/{vhost.name}/{user}", rights)

    transport.declare(QueueSpec(name="q"))
    send(transport, 2)
    with failing(transport, before=lambda: may_write("nothing"), retry=ONE_ATTEMPT) as work:
        eventually(lambda: len(work.runs) == 2, within=PATIENCE)
        eventually(lambda: "cannot be placed" in caplog.text, within=PATIENCE)
        assert work.dead == 0
        may_write(".*")
        eventually(lambda: work.dead == 2, within=PATIENCE)
    assert set(work.runs.values()) == {1}
    assert transport.stats("q").ready == 0


def test_a_queue_that_is_full_when_a_retry_comes_back(transport: RabbitMQTransport) -> None:
    """The retry waits in the broker until there is room: its worker goes on meanwhile."""
    transport.declare(QueueSpec(name="q", type="classic", max_length=1))
    send(transport, 1)
    filled = threading.Event()

    def fill_up() -> None:
        if not filled.is_set():
            filled.set()
            send(transport, 1)

    retry = RetryPolicy(max_attempts=2, first=0.0)
    with failing(transport, before=fill_up, retry=retry, concurrency=1, prefetch=1) as work:
        eventually(lambda: work.dead == 2, within=PATIENCE)
    assert work.runs == {b"0": 4}


def test_a_dead_letter_queue_that_is_full(
    transport: RabbitMQTransport,
    broker: Broker,
    vhost: Vhost,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it refuses it takes when there is room."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 1, "q.dead")
    full = {"max-length": 1, "overflow": "reject-publish"}
    policy = {"pattern": "^q.dead$", "definition": full, "apply-to": "queues"}
    broker.manage("PUT", f"policies/{vhost.name}/full", policy)
    eventually(lambda: refuses(transport, "q.dead"), within=PATIENCE)
    before = transport.stats("q").dead or 0
    send(transport, 4)
    with failing(transport, retry=ONE_ATTEMPT) as work:
        eventually(lambda: "cannot be placed" in caplog.text, within=PATIENCE)
        broker.manage("DELETE", f"policies/{vhost.name}/full")
        eventually(lambda: work.dead == before + 4, within=PATIENCE)
    assert work.runs == {b"%d" % n: 1 for n in range(4)}


def refuses(transport: RabbitMQTransport, queue: str) -> bool:
    try:
        send(transport, 1, queue)
    except QueueFull:
        return True
    except NotSent as error:
        return isinstance(error.failures[0][1], QueueFull)
    return False


@pytest.mark.parametrize("known", [True, False])
def test_one_message_that_may_not_be_published_again(
    transport: RabbitMQTransport,
    broker: Broker,
    vhost: Vhost,
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """A sender of AMQP 1.0 asks for answers in a way that AMQP 0-9-1 refuses by closing the
    channel. It alone is published without that, whether it is known to be dangerous or not, and its
    neighbours are run as often as they should."""
    if not known:
        monkeypatch.setattr(publisher, "travels_alone", lambda _message: False)
    transport.declare(QueueSpec(name="q"))
    send(transport, 300)
    sender = Amqp10Sender(broker, vhost, "q")
    sender.send(b"poison", reply_to="amq.rabbitmq.reply-to")
    sender.close()
    send(transport, 300, "q")
    with failing(transport, concurrency=4) as work:
        eventually(lambda: work.dead >= 601, within=PATIENCE)
        eventually(lambda: sum(work.runs.values()) >= 1_202, within=PATIENCE)
    assert transport.stats("q").ready == 0
    if known:  # else what was on its way with it may have been stored before the channel closed
        assert work.dead == 601
        assert set(work.runs.values()) == {2, 4}


def test_a_senders_neighbours_are_not_refused_for_it(transport: RabbitMQTransport) -> None:
    """Only the message that RabbitMQ refused is; those after it were never sent."""
    transport.declare(QueueSpec(name="q"))
    batch = [Message(body=b"%d" % n, id=new_id()) for n in range(100)]
    batch[50] = replace(batch[50], reply_to="amq.rabbitmq.reply-to")
    with closing(transport.publisher()) as sender, pytest.raises(NotSent) as caught:
        sender.publish("q", batch, PATIENCE)
    failures = caught.value.failures
    assert [message for message, _ in failures] == batch[50:]
    assert [type(cause).__name__ for _, cause in failures] == ["Refused"] + ["Interrupted"] * 49
    assert all(isinstance(cause, Unconfirmed) for _, cause in failures[1:])
    assert transport.stats("q").ready == 50


def test_no_more_connections(transport: RabbitMQTransport, broker: Broker, vhost: Vhost) -> None:
    """The consumer has one; its copies find none at first."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 2)

    def limit(most: int) -> None:
        broker.manage("PUT", f"vhost-limits/{vhost.name}/max-connections", {"value": most})

    with failing(transport, retry=ONE_ATTEMPT) as work:
        eventually(lambda: work.runs, within=PATIENCE)
        limit(1)
        eventually(lambda: len(work.runs) == 2, within=PATIENCE)
        limit(100)
        eventually(lambda: work.dead == 2, within=PATIENCE)
    assert set(work.runs.values()) == {1}


def test_delay_queues_deleted_while_a_retry_needs_them(
    transport: RabbitMQTransport, client: ForeignClient
) -> None:
    """Each level alone, or all that it leads to: the retry comes, and its task runs no more often
    than it should."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 5)
    with failing(transport, retry=RetryPolicy(max_attempts=4, first=0.5), concurrency=1) as work:
        for level in (Level("workqueue.delay.", number) for number in (0, 2, 3)):
            eventually(lambda: sum(work.runs.values()) > 2, within=PATIENCE)
            client.channel.exchange_delete(level.name)
        client.channel.exchange_delete(DUE)
        # What waited in the broker at that moment is gone with its way, as for any deleted queue.
        eventually(lambda: not work.worker.shift or work.worker.shift.consumer.unsettled == 0)  # type: ignore[union-attr]
    assert max(work.runs.values()) <= 4


def test_blocked_for_longer_than_a_confirm_may_take(
    transport: RabbitMQTransport, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copier waits on the connection that it has: each new one would store them again."""
    monkeypatch.setattr("workqueue.transports.rabbitmq.copier.CONFIRM_TIMEOUT", 1.0)
    transport.declare(QueueSpec(name="q"))
    send(transport, 20)
    with failing(transport, retry=ONE_ATTEMPT, prefetch=10) as work:
        eventually(lambda: work.dead >= 1, within=PATIENCE)
        broker.set_memory_alarm()
        send_time = time.monotonic()
        eventually(lambda: time.monotonic() - send_time > 4.0)
        broker.clear_memory_alarm()
        eventually(lambda: work.dead == 20, within=PATIENCE)
    assert set(work.runs.values()) == {1}
    assert work.dead == 20


def test_a_confirm_that_never_comes(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the copy was stored: it is sent again, and may be there twice; its task is not."""
    monkeypatch.setattr("workqueue.transports.rabbitmq.copier.CONFIRM_TIMEOUT", 1.0)
    deaf: list[RabbitMQPublisher] = []
    heard = RabbitMQPublisher.on_method

    def on_method(self: RabbitMQPublisher, inbound: wire.Inbound) -> None:
        if self.patient and not deaf:
            deaf.append(self)
        if self not in deaf:
            heard(self, inbound)

    transport.declare(QueueSpec(name="q"))
    send(transport, 1)
    monkeypatch.setattr(RabbitMQPublisher, "on_method", on_method)
    with failing(transport, retry=ONE_ATTEMPT) as work:
        eventually(lambda: work.dead == 2, within=PATIENCE)
    assert work.runs == {b"0": 1}
    assert transport.stats("q").ready == 0


# -- what was settled last ------------------------------------------------------------------------


def rejected(_job: Job) -> None:
    raise Reject("no")


def put_off(_job: Job) -> None:
    raise RetryLater(3_600)


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
@pytest.mark.parametrize("handler", [rejected, put_off])
@pytest.mark.parametrize("end", ["after so many", "told to"])
@pytest.mark.parametrize("type", TYPES)
def test_the_last_words_of_a_worker(
    transport: RabbitMQTransport, handler: Callable[[Job], None], end: str, type: QueueType
) -> None:
    """Nothing that was set aside or put off is ready as well once the worker has ended."""
    count = 3_000
    transport.declare(QueueSpec(name="q", type=type))
    send(transport, count)
    runs: list[Job] = []

    def handle(job: Job) -> None:
        runs.append(job)
        if len(runs) == count and end == "told to":
            worker.stop()
        handler(job)

    worker = Worker(Remote(transport).queue("q"), handle, concurrency=8)
    tally = worker.run(max_messages=count if end == "after so many" else None)
    assert tally.dead + tally.retried == count
    link = driver.Link(transport.address, "look")
    ready, consumers = driver.count(link, "q")
    assert (ready, consumers) == (0, 0)
    link.close()


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
def test_what_a_stopped_lane_settles_one_by_one(transport: RabbitMQTransport) -> None:
    """While the oldest delivery is still out, each other is acknowledged by itself: the consumer
    waits now and then until the queue has applied that, and gets nothing new by it."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 510)
    consumer = transport.consumer("q", 500)
    out: list[Delivery] = []
    while len(out) < 500:
        out += consumer.receive(500, 1.0)
    consumer.pause()
    consumer.settle([Ack(delivery) for delivery in out[1:]])
    assert consumer.unsettled == 1
    consumer.close()
    rest = transport.consumer("q", 0)
    left: list[bytes] = []
    while more := rest.receive(100, 1.0):
        assert len(more) + len(left) <= 11
        left += [delivery.message.body for delivery in more]
    assert sorted(left) == sorted([b"0", *(b"%d" % n for n in range(500, 510))])
    rest.close()


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
@pytest.mark.parametrize("type", TYPES)
def test_what_is_handed_back_at_once_keeps_its_order(
    transport: RabbitMQTransport, type: QueueType
) -> None:
    transport.declare(QueueSpec(name="q", type=type))
    send(transport, 200)
    consumer = transport.consumer("q", 0)
    out = consumer.receive(200, 5.0)
    eventually(lambda: len(out) == 200 or out.extend(consumer.receive(200, 1.0)))
    consumer.close()
    again = transport.consumer("q", 1)
    bodies = []
    for _ in range(200):
        (delivery,) = eventually(lambda: again.receive(1, 1.0), within=PATIENCE)
        bodies.append(int(delivery.message.body))
        again.settle([Ack(delivery)])
    assert bodies == list(range(200))
    again.close()


# -- a lane that ends while copies are owed -------------------------------------------------------


class Gate:
    """Keeps a consumer's news of copies that are safe, until it is opened."""

    def __init__(self, consumer: RabbitMQConsumer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[Owed] = []
        self.consumer = consumer
        monkeypatch.setattr(consumer.copier, "report", self.kept.extend)

    def open(self) -> None:
        self.consumer.copier.done.extend(self.kept)


def receive_all(consumer: RabbitMQConsumer, count: int) -> list[Delivery]:
    received: list[Delivery] = []
    eventually(
        lambda: received.extend(consumer.receive(count, 0.2)) or len(received) == count,
        within=PATIENCE,
    )
    return received


@pytest.mark.parametrize("prefetch", [0, 50])
def test_copies_of_a_lane_that_ended_settle_nothing_of_its_successor(
    transport: RabbitMQTransport,
    client: ForeignClient,
    monkeypatch: pytest.MonkeyPatch,
    prefetch: int,
) -> None:
    """The successor has the same channel number and the same delivery tags: an acknowledgement of
    an old delivery would drop a new message that nobody has handled."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 10)
    consumer = transport.consumer("q", prefetch)
    old = receive_all(consumer, 10)
    gate = Gate(consumer, monkeypatch)
    consumer.settle([SetAside(delivery, "no", "") for delivery in old])
    eventually(lambda: len(gate.kept) == 10, within=PATIENCE)
    client.channel.queue_delete("q")
    transport.declare(QueueSpec(name="q"))
    send(transport, 30)
    new = receive_all(consumer, 30)
    gate.open()
    consumer.receive(0, 0.2)
    assert consumer.unsettled == len(new)
    consumer.close()
    assert transport.stats("q").ready == 30


def test_a_channel_number_that_is_used_again(transport: RabbitMQTransport) -> None:
    """RabbitMQ closed a lane's channel, and before the consumer has replaced the lane another one
    has that number: what is settled of the first settles nothing of the other."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 60)
    consumer = transport.consumer("q", 5)
    old = receive_all(consumer, 5)
    (lane,) = consumer.lanes
    consumer.link.wire.write(wire.encode_ack(lane.number, 999, multiple=False))  # no such delivery
    consumer.hold(20)
    eventually(lambda: lane.ended or consumer.link.wire.read(), within=PATIENCE)
    consumer.hold(40)
    successor = consumer.lanes[-1]
    assert successor.number == lane.number
    eventually(lambda: len(successor.held) >= 5 or consumer.link.wire.read(), within=PATIENCE)
    consumer.settle([Ack(delivery) for delivery in old])
    consumer.receive(0, 0.2)
    consumer.close()
    assert transport.stats("q").ready == 60


@pytest.mark.rabbitmq("4.3")  # those before count what is handed back as well
@pytest.mark.parametrize("prefetch", [0, 50])
def test_what_ran_and_has_no_copy_counts_as_lost(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch, prefetch: int
) -> None:
    """A consumer that closes hands back what did not run, and not what ran: that would come again
    and again as if it never had."""
    monkeypatch.setattr("workqueue.transports.rabbitmq.consumer.COPY_PATIENCE", 0.2)
    transport.declare(QueueSpec(name="q"))
    send(transport, 2)
    consumer = transport.consumer("q", prefetch)
    ran, waiting = receive_all(consumer, 2)
    Gate(consumer, monkeypatch)
    consumer.settle([SetAside(ran, "no", "")])
    consumer.close()
    again = {delivery.message.body: delivery for delivery in receive_all_of(transport, 2)}
    assert again[ran.message.body].message.headers.get("x-delivery-count") == 1
    assert not again[waiting.message.body].message.headers.get("x-delivery-count")


def receive_all_of(transport: RabbitMQTransport, count: int) -> list[Delivery]:
    consumer = transport.consumer("q", count)
    try:
        return receive_all(consumer, count)
    finally:
        consumer.close()


# -- a consumer in trouble ------------------------------------------------------------------------


def test_without_a_thread_for_copies_all_else_is_settled(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the system gives no thread, what was done is done, and the copies follow once there is
    one."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 4)
    consumer = transport.consumer("q", 10)
    first, second, third, fourth = receive_all(consumer, 4)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        consumer.settle([SetAside(third, "no", ""), Ack(first), Ack(second), Requeue(fourth)])
        assert receive_all(consumer, 1)[0].message.body == b"3"
        assert consumer.unsettled == 2
        assert "can't start new thread" in caplog.text
    eventually(lambda: consumer.receive(0, 0.1) or consumer.unsettled == 1, within=PATIENCE)
    consumer.close()
    assert (transport.stats("q").ready, transport.stats("q").dead) == (1, 1)


def test_a_copier_that_ended_ends_its_consumer(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be copied any more, and nobody would know."""
    transport.declare(QueueSpec(name="q"))
    send(transport, 1)
    consumer = transport.consumer("q", 10)
    received = receive_all(consumer, 1)
    monkeypatch.setattr(consumer.copier, "work", lambda: None)
    consumer.settle([SetAside(received[0], "no", "")])
    with pytest.raises(ConsumerLost, match="copies"):
        eventually(lambda: consumer.receive(0, 0.1), within=PATIENCE)
    assert consumer.unsettled == 1
    consumer.close()
    assert receive_all_of(transport, 1)


def test_after_a_pause_closing_takes_only_so_long(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However well the copies get on: the worker has waited for them as long as it wanted to. How
    many are left can still be read."""
    monkeypatch.setattr("workqueue.transports.rabbitmq.consumer.COPY_PATIENCE", 0.5)
    monkeypatch.setattr("workqueue.transports.rabbitmq.copier.MOST_AT_ONCE", 1)
    transport.declare(QueueSpec(name="q"))
    send(transport, 60)
    consumer = transport.consumer("q", 100)
    received = receive_all(consumer, 60)
    place = consumer.copier.place

    def place_slowly(batch: list[Owed]) -> None:
        time.sleep(0.2)
        place(batch)

    monkeypatch.setattr(consumer.copier, "place", place_slowly)
    consumer.settle([SetAside(delivery, "no", "") for delivery in received])
    consumer.pause()
    consumer.close()
    assert 40 < consumer.unsettled <= 60
    eventually(lambda: transport.stats("q").ready == consumer.unsettled, within=PATIENCE)


def test_a_refused_consumer_leaves_no_descriptors(
    transport: RabbitMQTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise ConsumerLost("no")

    transport.declare(QueueSpec(name="q"))
    monkeypatch.setattr(RabbitMQConsumer, "open_lane", refuse)
    closed: list[Bell] = []
    close = Bell.close
    monkeypatch.setattr(Bell, "close", lambda bell: (closed.append(bell), close(bell)))
    with pytest.raises(ConsumerLost):
        transport.consumer("q", 5)
    assert [bell.reader for bell in closed] == [-1]
