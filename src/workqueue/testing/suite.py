"""The conformance suite: every promise of `workqueue.transport`, each with the test that holds it.

A transport's own test module is this long:

    class TestRedis(TransportSuite):
        @pytest.fixture
        def transport(self):
            transport = RedisTransport("redis://127.0.0.1")
            yield transport
            transport.close()

Its queues must be reachable from other processes for some promises, and through a proxy for
others: those are tested if the class has a fixture `url` besides, with a URL that
`workqueue.registry.open_transport` opens, and are skipped without:

        @pytest.fixture
        def url(self):
            return "redis://127.0.0.1:6379"

A transport may decline a promise by the name of its test, with the reason that its users read:

        declines = {"test_order_is_kept": "a cluster hands out in any order"}

Every fixture closes what it opened, also when a test fails, and the report of a test that failed
has the sentence that was broken.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workqueue import registry
from workqueue.broker import Broker
from workqueue.cli.torture.proxy import Proxy
from workqueue.errors import (
    ConnectionLost,
    ConsumerLost,
    NotSent,
    QueueFull,
    QueueMismatch,
    QueueNotFound,
    Unconfirmed,
    Unroutable,
    Unsupported,
)
from workqueue.message import Delivery, Message, new_id
from workqueue.testing import promises
from workqueue.testing.waiting import eventually
from workqueue.transport import (
    DEAD_SUFFIX,
    Ack,
    Consumer,
    Publisher,
    QueueSpec,
    QueueType,
    Reject,
    Requeue,
    Retry,
    Transport,
)
from workqueue.transports.copies import ERROR, ORIGIN, REASON

PATIENCE = 15.0
"""Seconds. How long something that must happen may take on a slow, shared machine."""

SHORT = 0.3
"""Seconds. How long to watch that something does not happen."""

AT_ONCE = 0.25
"""Seconds. What takes longer, most of the times it is tried, does not happen at once."""

LEEWAY = 1.0
"""Seconds by which `publish` and `receive` may pass their timeout when nobody answers."""

CONNECTING = 10.0
"""Seconds after which a broker that accepts and says nothing is given up, at most."""

OVER = 10
"""Messages by which a sender that waits for each may pass a queue's bound."""

Consume = Callable[[str, int], Consumer]
Another = Callable[[str], str]


def header_tables(texts: st.SearchStrategy[str], scalars: st.SearchStrategy[object]) -> Any:
    """Headers with these texts and values, nested."""
    values = st.recursive(
        scalars | texts,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    )
    names = texts.filter(lambda name: not name.startswith(("x-", "workqueue-")))
    return st.dictionaries(names, values, max_size=4)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
usual_text = any_text.filter(lambda text: "\0" not in text)
usual_headers = header_tables(
    usual_text,
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False),
)
unusual_headers = header_tables(
    any_text, st.binary(max_size=40) | st.integers(-(2**63) + 1, 2**63 - 1)
)
examples = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class TransportSuite:
    """Subclass, override `transport`, and let pytest collect."""

    declines: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        raise NotImplementedError(f"{type(self).__name__} must override the `transport` fixture")

    @pytest.fixture(autouse=True)
    def promise_in_report(self, pytestconfig: pytest.Config) -> None:
        """A test that fails is reported with the sentence that it stands for."""
        if not pytestconfig.pluginmanager.is_registered(promises):
            pytestconfig.pluginmanager.register(promises)

    @pytest.fixture(autouse=True)
    def declined(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if name in self.declines:
            pytest.skip(f"{type(self).__name__} declines {name}: {self.declines[name]}")

    @pytest.fixture
    def url(self) -> str | None:
        """Where another process finds the queues of `transport`; override it if one can."""
        return None

    def open(self, url: str) -> Transport:
        """A transport for `url`, which is that of the fixture, or leads there by a proxy."""
        return registry.open_transport(url)

    def spec(self, name: str, **options: Any) -> QueueSpec:
        """How this transport's queues are asked for; override to run the suite on another kind."""
        return QueueSpec(name=name, **options)

    @pytest.fixture
    def queue(self, transport: Transport) -> Iterator[str]:
        with queues_on(transport) as named:
            name = named("")
            transport.declare(self.spec(name))
            yield name

    @pytest.fixture
    def another(self, transport: Transport) -> Iterator[Another]:
        """Names for queues that a test declares; what was declared is deleted afterwards."""
        with queues_on(transport) as named:
            yield named

    @pytest.fixture
    def consume(self, transport: Transport) -> Iterator[Consume]:
        """Makes consumers, as `Transport.consumer` does, that are closed afterwards."""
        with ExitStack() as stack:
            yield lambda queue, prefetch: stack.enter_context(
                closing(transport.consumer(queue, prefetch))
            )

    @pytest.fixture
    def detour(self, url: str | None) -> Iterator[Detour]:
        """The transport by way of a proxy, on which bytes can be held and connections cut."""
        with detour_to(url, self.open) as detour:
            yield detour

    @pytest.fixture
    def publisher(self, transport: Transport) -> Iterator[Publisher]:
        publisher = transport.publisher()
        yield publisher
        publisher.close()

    @pytest.fixture
    def consumer(self, transport: Transport, queue: str) -> Iterator[Consumer]:
        consumer = transport.consumer(queue, 10)
        yield consumer
        consumer.close()

    # -- declare -------------------------------------------------------------------------------

    def test_declaring_twice(
        self, transport: Transport, consume: Consume, another: Another
    ) -> None:
        """The first call makes the queue and says so; the second changes nothing."""
        other = another("other")
        assert transport.declare(self.spec(other)) is True
        assert transport.stats(other).ready == 0
        send(transport, other, b"kept")
        assert transport.declare(self.spec(other)) is False
        consumer = consume(other, 1)
        assert bodies(take(consumer, 1)) == [b"kept"]

    def test_a_name_alone_takes_the_queue_as_it_is(
        self, transport: Transport, another: Another
    ) -> None:
        """Whoever asks for nothing accepts any queue of that name."""
        other = another("bounded")
        transport.declare(self.spec(other, max_length=7))
        assert transport.declare(QueueSpec(name=other)) is False

    def test_other_parameters_are_a_mismatch(
        self, transport: Transport, queue: str, another: Another
    ) -> None:
        """The error names the parameter and both values."""
        other = another("bounded")
        transport.declare(self.spec(other, max_length=7))
        assert transport.declare(self.spec(other, max_length=7)) is False
        with pytest.raises(QueueMismatch) as caught:
            transport.declare(self.spec(other, max_length=8))
        assert caught.value.differences == {"max length": (8, 7)}
        assert caught.value.queue == other

    def test_a_dry_run_makes_nothing(self, transport: Transport, queue: str) -> None:
        """It says what would be done, and whether it could be."""
        assert transport.declare(self.spec(f"{queue}-dry"), dry_run=True) is True
        with pytest.raises(QueueNotFound):
            transport.stats(f"{queue}-dry")
        assert transport.declare(QueueSpec(name=queue), dry_run=True) is False
        with pytest.raises(QueueMismatch):
            transport.declare(self.spec(queue, max_length=3), dry_run=True)

    def test_the_dead_letter_queue_is_a_queue(
        self, transport: Transport, queue: str, consume: Consume
    ) -> None:
        """NAME.dead is there from the start, can be sent to and worked on."""
        send(transport, queue + DEAD_SUFFIX, b"x")
        consumer = consume(queue + DEAD_SUFFIX, 1)
        assert take(consumer, 1)[0].message.body == b"x"

    def test_declared_by_many_at_once(self, transport: Transport, another: Another) -> None:
        """No call fails, the queue is there, and one call at least says that it made it."""
        other = another("race")
        made: list[bool | Exception] = []

        def declare() -> None:
            try:
                made.append(transport.declare(self.spec(other)))
            except Exception as error:  # noqa: BLE001 - shown below
                made.append(error)

        threads = [threading.Thread(target=declare) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert set(made) <= {True, False}
        assert True in made
        assert transport.declare(self.spec(other)) is False

    @pytest.mark.parametrize("type_", ["quorum", "classic"])
    def test_a_type_is_taken_or_unsupported(
        self, transport: Transport, another: Another, type_: QueueType
    ) -> None:
        """RabbitMQ's words for how a queue is kept are no error of another kind elsewhere."""
        other = another(type_)
        try:
            made = transport.declare(QueueSpec(name=other, type=type_))
        except Unsupported:
            return
        assert made is True
        assert transport.declare(QueueSpec(name=other, type=type_)) is False

    def test_dead_letters_have_dead_letters(
        self, publisher: Publisher, consumer: Consumer, queue: str, consume: Consume
    ) -> None:
        """What is set aside while NAME.dead is worked on goes to NAME.dead.dead, once."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Reject(take(consumer, 1)[0], "bad")])
        dead = consume(queue + DEAD_SUFFIX, 1)
        dead.settle([Reject(pump(consumer, dead), "worse")])
        eventually(lambda: settled(dead), within=PATIENCE)
        deader = consume(queue + DEAD_SUFFIX * 2, 1)
        letter = take(deader, 1)[0].message
        assert (letter.body, letter.headers[REASON]) == (b"x", "worse")
        assert letter.headers[ORIGIN] == queue + DEAD_SUFFIX
        assert dead.receive(1, SHORT) == []

    def test_dead_letters_keep(
        self, transport: Transport, publisher: Publisher, consume: Consume, another: Another
    ) -> None:
        """NAME's bound and ttl are not NAME.dead's: neither for what is set aside nor for what is
        sent there."""
        other = another("ttl")
        transport.declare(self.spec(other, ttl=1.0, max_length=1))
        publisher.publish(other + DEAD_SUFFIX, [message(b"a"), message(b"b")], PATIENCE)
        publisher.publish(other, [message(b"c")], PATIENCE)
        consumer = consume(other, 1)
        consumer.settle([Reject(take(consumer, 1)[0], "bad")])
        eventually(lambda: settled(consumer), within=PATIENCE)
        assert consumer.receive(1, 1.3) == []
        dead = consume(other + DEAD_SUFFIX, 10)
        assert sorted(bodies(take(dead, 3))) == [b"a", b"b", b"c"]

    # -- publish -------------------------------------------------------------------------------

    def test_publishing_nothing(self, publisher: Publisher, queue: str) -> None:
        """No messages, no error."""
        publisher.publish(queue, [], PATIENCE)

    def test_order_is_kept(self, publisher: Publisher, queue: str, consume: Consume) -> None:
        """One publisher's messages reach one consumer that takes one at a time in their order."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(50)], PATIENCE)
        consumer = consume(queue, 1)
        assert bodies(take_and_ack(consumer, 50)) == [b"%d" % n for n in range(50)]

    def test_many_messages_in_one_call(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """A call may carry more than any window inside the driver."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(2500)], PATIENCE * 4)
        assert set(bodies(take_and_ack(consumer, 2500))) == {b"%d" % n for n in range(2500)}

    def test_properties_travel(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """Every property arrives as it was sent; times to the second, as AMQP has them."""
        sent = Message(
            body=b'{"n": 1}',
            id=new_id(),
            content_type="application/json",
            content_encoding="utf-8",
            type="welcome",
            headers={"tenant": "ada", "n": 3, "deep": {"list": [1, "zwei", None, True, 2.5]}},
            priority=7,
            correlation_id="c-1",
            reply_to="answers",
            app_id="suite",
            sent_at=1_700_000_000.0,
        )
        publisher.publish(queue, [sent], PATIENCE)
        assert take(consumer, 1)[0].message == sent

    @pytest.mark.parametrize("size", [0, 1, 4_096, 131_072, 1_000_000])
    def test_bodies_of_any_size(
        self, publisher: Publisher, consumer: Consumer, queue: str, size: int
    ) -> None:
        """Empty, small, and larger than any buffer on the way."""
        body = bytes(n * 31 % 251 for n in range(min(size, 251))) * (size // 251 + 1)
        publisher.publish(queue, [message(body[:size])], PATIENCE)
        assert take(consumer, 1)[0].message.body == body[:size]

    def test_any_bytes_and_any_headers(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """What goes in comes out: any bytes, any text, nested tables and lists."""

        @examples
        @given(body=st.binary(max_size=200), headers=usual_headers, type_=usual_text)
        def check(body: bytes, headers: dict[str, Any], type_: str) -> None:
            sent = Message(body=body, id=new_id(), headers=headers, type=type_ or None)
            publisher.publish(queue, [sent], PATIENCE)
            received = take_and_ack(consumer, 1)[0].message
            assert (received.body, received.headers) == (body, headers)
            assert received.type == sent.type

        check()

    def test_headers_that_json_has_no_words_for(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Bytes, whole numbers of 64 bits and the character NUL arrive as they were, too."""

        @examples
        @given(headers=unusual_headers, type_=any_text)
        def check(headers: dict[str, Any], type_: str) -> None:
            sent = Message(body=b"x", id=new_id(), headers=headers, type=type_ or None)
            publisher.publish(queue, [sent], PATIENCE)
            received = take_and_ack(consumer, 1)[0].message
            assert (received.headers, received.type) == (headers, sent.type)

        check()

    def test_a_missing_queue_is_unroutable(self, publisher: Publisher, queue: str) -> None:
        """Each message that no queue took is named; the publisher can go on."""
        lost = [message(b"a"), message(b"b")]
        with pytest.raises(NotSent) as caught:
            publisher.publish(f"{queue}-missing", lost, PATIENCE)
        assert [failed for failed, _ in caught.value.failures] == lost
        assert all(isinstance(cause, Unroutable) for _, cause in caught.value.failures)
        publisher.publish(queue, [message(b"c")], PATIENCE)

    def test_a_full_queue_refuses(
        self, transport: Transport, publisher: Publisher, consume: Consume, another: Another
    ) -> None:
        """What a bounded queue refuses is named, what it took stays, and none is dropped."""
        other = another("full")
        transport.declare(self.spec(other, max_length=5))
        sent = [message(b"%d" % n) for n in range(2_000)]
        with pytest.raises(NotSent) as caught:
            publisher.publish(other, sent, PATIENCE)
        refused = [failed.body for failed, _ in caught.value.failures]
        assert all(isinstance(cause, QueueFull) for _, cause in caught.value.failures)
        assert caught.value.sent == len(sent) - len(refused) >= 5
        with pytest.raises(NotSent):
            publisher.publish(other, [message(b"again")], PATIENCE)
        consumer = consume(other, 0)
        taken = bodies(take_and_ack(consumer, caught.value.sent))
        assert sorted(taken + refused) == sorted(m.body for m in sent)

    def test_publishers_in_threads(
        self, transport: Transport, queue: str, consume: Consume
    ) -> None:
        """The transport is thread-safe: each thread with a publisher of its own."""

        def send_some(name: int) -> None:
            send(transport, queue, *(b"%d-%d" % (name, n) for n in range(20)))

        threads = [threading.Thread(target=send_some, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        consumer = consume(queue, 0)
        assert len(set(bodies(take_and_ack(consumer, 80)))) == 80

    def test_failures_are_the_very_objects(
        self, transport: Transport, publisher: Publisher, queue: str, another: Another
    ) -> None:
        """Not equal ones: the sender finds its messages by them, and takes all others for sent."""
        full = another("full")
        transport.declare(self.spec(full, max_length=1))
        with suppress(NotSent):
            for _ in range(1 + OVER):
                publisher.publish(full, [message(b"full")], PATIENCE)
        for name, delay in ((f"{queue}-missing", 60.0), (full, 0.0)):
            sent = [message(b"%d" % n, ttl=60.0, delay=delay) for n in range(3)]
            with pytest.raises(NotSent) as caught:
                publisher.publish(name, sent, PATIENCE)
            failed = [id(failure) for failure, _ in caught.value.failures]
            assert set(failed) <= {id(one) for one in sent}, "failures hold other objects"
            assert len(set(failed)) == len(failed)
            assert caught.value.sent + len(failed) == len(sent)

    def test_a_bound_holds_for_one_at_a_time(
        self, transport: Transport, publisher: Publisher, another: Another
    ) -> None:
        """Who waits for each message before sending the next passes it by a few at most."""
        other = another("full")
        transport.declare(self.spec(other, max_length=5))
        for _ in range(5):
            publisher.publish(other, [message(b"x")], PATIENCE)
        with pytest.raises(NotSent) as caught:
            for _ in range(OVER):
                publisher.publish(other, [message(b"y")], PATIENCE)
        assert isinstance(caught.value.failures[0][1], QueueFull)

    def test_a_bound_is_for_what_is_ready(
        self, transport: Transport, publisher: Publisher, consume: Consume, another: Another
    ) -> None:
        """What is out or waits for its time does not count; what comes back is never refused."""
        other = another("full")
        transport.declare(self.spec(other, max_length=1))
        publisher.publish(other, [message(b"later", delay=60.0)], PATIENCE)
        publisher.publish(other, [message(b"a")], PATIENCE)
        consumer = consume(other, 1)
        out = take(consumer, 1)
        publisher.publish(other, [message(b"b")], PATIENCE)
        consumer.settle([Requeue(out[0])])
        consumer.close()
        assert sorted(bodies(take_and_ack(consume(other, 0), 2))) == [b"a", b"b"]

    def test_higher_priorities_come_first(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """Of what is ready, whatever was sent first; the same priority as it was sent."""
        sent = [(b"low", 0), (b"high", 9), (b"usual", 4), (b"high too", 9), (b"lowest too", 0)]
        publisher.publish(queue, [message(body, priority=n) for body, n in sent], PATIENCE)
        consumer = consume(queue, 1)
        expected = [b"high", b"high too", b"usual", b"low", b"lowest too"]
        assert bodies(take_and_ack(consumer, 5)) == expected

    def test_publish_keeps_its_timeout(self, detour: Detour, queue: str) -> None:
        """A broker that says nothing any more: Unconfirmed, within a second of the timeout."""
        with closing(detour.transport.publisher()) as publisher:
            publisher.publish(queue, [message(b"heard")], PATIENCE)
            detour.proxy.stall()
            sent = [message(b"lost"), message(b"lost too")]
            began = time.monotonic()
            with pytest.raises(NotSent) as caught:
                publisher.publish(queue, sent, 1.5)
            took = time.monotonic() - began
        assert took < 1.5 + LEEWAY
        assert [failed for failed, _ in caught.value.failures] == sent
        assert all(isinstance(cause, Unconfirmed) for _, cause in caught.value.failures)

    def test_connecting_ends(self, detour: Detour) -> None:
        """Somebody accepts and says nothing, or nobody is there: ConnectionLost, in seconds."""
        detour.proxy.accept_only()
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            send(detour.transport, "any", b"x", timeout=CONNECTING)
        assert time.monotonic() - began < CONNECTING + LEEWAY
        detour.proxy.refuse()
        with pytest.raises(ConnectionLost):
            send(detour.transport, "any", b"x", timeout=CONNECTING)

    # -- receive -------------------------------------------------------------------------------

    def test_no_consumer_without_a_queue(self, queue: str, consume: Consume) -> None:
        """Working on a queue that is not there is an error at once, not a silent wait."""
        with pytest.raises(QueueNotFound):
            consume(f"{queue}-missing", 1)

    def test_a_first_delivery(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """Attempt one, not redelivered, from the queue by its name."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        delivery = take(consumer, 1)[0]
        assert (delivery.attempt, delivery.redelivered, delivery.queue) == (1, False, queue)
        assert delivery.unreadable is None

    def test_each_message_goes_to_one_consumer(
        self, transport: Transport, queue: str, consume: Consume
    ) -> None:
        """Two consumers share the work: together they see each message once."""
        first, second = consume(queue, 0), consume(queue, 0)
        send(transport, queue, *(b"%d" % n for n in range(100)))
        seen: list[bytes] = []
        deadline = time.monotonic() + PATIENCE
        while len(seen) < 100 and time.monotonic() < deadline:
            for consumer in (first, second):
                got = consumer.receive(10, 0.05)
                seen += bodies(got)
                consumer.settle([Ack(delivery) for delivery in got])
        assert sorted(seen) == sorted(b"%d" % n for n in range(100))
        assert first.receive(1, SHORT) == second.receive(1, SHORT) == []

    def test_receive_gives_up(self, consumer: Consumer) -> None:
        """Nothing there: an empty list after the timeout, not before."""
        began = time.monotonic()
        assert consumer.receive(1, SHORT) == []
        assert time.monotonic() - began >= SHORT * 0.9

    def test_receive_waits_for_a_message(
        self, transport: Transport, consumer: Consumer, queue: str
    ) -> None:
        """A message sent while receive waits ends the wait."""
        sender = threading.Timer(SHORT, send, args=(transport, queue, b"late"))
        sender.start()
        assert bodies(consumer.receive(1, PATIENCE)) == [b"late"]
        sender.join()

    def test_prefetch_bounds_what_is_out(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """Two may be out: the third comes when one is settled."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(3)], PATIENCE)
        consumer = consume(queue, 2)
        out = take(consumer, 2)
        assert consumer.receive(5, SHORT) == []
        assert consumer.unsettled == 2
        consumer.settle([Ack(out[0])])
        assert len(take(consumer, 1)) == 1

    def test_holding_more(self, publisher: Publisher, queue: str, consume: Consume) -> None:
        """Three may be out where it was one, also of those that come later."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(7)], PATIENCE)
        consumer = consume(queue, 1)
        out = take(consumer, 1)
        consumer.hold(3)
        for _ in range(2):
            out += take(consumer, 3 - len(out))
            assert consumer.receive(5, SHORT) == []
            consumer.settle([Ack(delivery) for delivery in out])
            out = []
        assert len(take_and_ack(consumer, 1)) == 1

    def test_holding_less(self, publisher: Publisher, queue: str, consume: Consume) -> None:
        """What was received stays and counts; the rest goes to others; then one at a time."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(6)], PATIENCE)
        consumer = consume(queue, 5)
        running = take(consumer, 2, at_a_time=1)
        consumer.hold(1)
        other = consume(queue, 5)
        assert set(bodies(take_and_ack(other, 4))) == {b"2", b"3", b"4", b"5"}
        other.close()
        publisher.publish(queue, [message(b"later"), message(b"last")], PATIENCE)
        for delivery in running:
            assert consumer.receive(5, SHORT) == []
            consumer.settle([Ack(delivery)])
        for expected in ({b"later", b"last"}, {b"last"}):
            [delivery] = take(consumer, 1)
            assert delivery.message.body in expected
            assert consumer.receive(5, SHORT) == []
            consumer.settle([Ack(delivery)])

    def test_a_held_message_does_not_block_others(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """What one consumer cannot hold goes to the next one."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(4)], PATIENCE)
        busy = consume(queue, 1)
        take(busy, 1)
        idle = consume(queue, 1)
        assert len(take_and_ack(idle, 3)) == 3

    def test_limit_zero_takes_nothing(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """A worker whose slots are busy keeps its connection alive without taking more."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        assert consumer.receive(0, SHORT) == []
        assert len(take(consumer, 1)) == 1

    def test_wake_ends_the_wait(self, consumer: Consumer) -> None:
        """From any thread."""
        bell = threading.Timer(SHORT, consumer.wake)
        bell.start()
        began = time.monotonic()
        assert consumer.receive(1, PATIENCE) == []
        assert time.monotonic() - began < PATIENCE / 2
        bell.join()

    def test_wake_is_remembered(self, consumer: Consumer) -> None:
        """Rung while nobody waits: the next receive returns at once, and only that one."""
        consumer.wake()
        consumer.wake()
        began = time.monotonic()
        assert consumer.receive(1, PATIENCE) == []
        assert time.monotonic() - began < PATIENCE / 2
        began = time.monotonic()
        assert consumer.receive(1, SHORT) == []
        assert time.monotonic() - began >= SHORT * 0.9

    def test_limit_is_kept_with_a_backlog(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """However many wait: what a worker did not ask for it cannot start."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(300)], PATIENCE)
        consumer = consume(queue, 100)
        take(consumer, 1, at_a_time=1)
        consumer.receive(0, SHORT)  # all that a driver fetches ahead is there
        for limit in (1, 2, 7, 0, 30):
            assert len(consumer.receive(limit, SHORT)) <= limit

    def test_prefetch_is_kept_with_a_backlog(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """However many wait and are asked for."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(300)], PATIENCE)
        consumer = consume(queue, 4)
        out = take(consumer, 4)
        for _ in range(3):
            assert consumer.receive(100, SHORT) == []
            consumer.settle([Ack(out.pop())])
            got = consumer.receive(100, PATIENCE)
            assert len(got) == 1
            out += got

    def test_a_message_is_handed_out_at_once(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Not at the next look of a timer: half of the times in a quarter of a second."""
        late: list[float] = []
        sent_at = 0.0

        def send_one() -> None:
            nonlocal sent_at
            sent_at = time.monotonic()
            publisher.publish(queue, [message(b"x")], PATIENCE)

        consumer.receive(1, SHORT / 3)
        for _ in range(7):
            with in_the_background(send_one, after=0.1):
                [delivery] = consumer.receive(1, PATIENCE)
            late.append(time.monotonic() - sent_at)
            consumer.settle([Ack(delivery)])
        assert statistics.median(late) < AT_ONCE, late

    def test_wake_is_quick(self, consumer: Consumer) -> None:
        """Not at the next look of a timer: half of the times in a quarter of a second."""
        late: list[float] = []
        for _ in range(7):
            began = time.monotonic()
            with in_the_background(consumer.wake, after=0.1):
                assert consumer.receive(1, PATIENCE) == []
                late.append(time.monotonic() - began - 0.1)
        assert statistics.median(late) < AT_ONCE, late

    def test_receive_keeps_its_timeout(self, detour: Detour, queue: str) -> None:
        """A broker that says nothing any more: nothing, or ConsumerLost, within a second of it."""
        with closing(detour.transport.consumer(queue, 1)) as consumer:
            consumer.receive(1, SHORT)
            detour.proxy.stall()
            began = time.monotonic()
            with suppress(ConsumerLost):
                assert consumer.receive(1, 1.5) == []
            assert time.monotonic() - began < 1.5 + LEEWAY
            detour.proxy.heal()

    def test_a_cut_consumer_is_lost(
        self, detour: Detour, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """It says so, soon, and what it held is with another."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        with closing(detour.transport.consumer(queue, 1)) as cut:
            take(cut, 1)
            detour.proxy.reset_all()
            with pytest.raises(ConsumerLost):
                deadline = time.monotonic() + PATIENCE
                while time.monotonic() < deadline:
                    cut.receive(0, SHORT)
            again = take(consume(queue, 1), 1)[0]
            assert (again.message.body, again.redelivered, again.attempt) == (b"x", True, 1)

    # -- delay and ttl -------------------------------------------------------------------------

    def test_a_delay_is_waited_for(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Never early; what is received says nothing of it any more."""
        began = time.monotonic()
        publisher.publish(queue, [message(b"x", delay=1.0)], PATIENCE)
        received = take(consumer, 1)[0]
        assert time.monotonic() - began >= 0.98  # the clocks of two places, one of them adjusted
        assert (received.attempt, received.redelivered, received.queue) == (1, False, queue)
        assert (received.message.body, received.message.delay) == (b"x", 0.0)

    def test_a_short_delay_overtakes_a_long_one(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Whatever the order of sending, and whatever the priorities."""
        sent = [
            message(b"late", delay=60.0, priority=9),
            message(b"second", delay=1.7),
            message(b"first", delay=0.4, priority=0),
            message(b"now"),
        ]
        publisher.publish(queue, sent, PATIENCE)
        assert bodies(take_and_ack(consumer, 3)) == [b"now", b"first", b"second"]

    def test_delays_and_properties(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Waiting changes nothing about a message; any length of it is possible, to the queue of
        any name."""
        sent = [
            message(b"%d" % n, delay=n / 7, priority=n % 10, headers={"n": n}, type="t")
            for n in range(1, 12)
        ]
        publisher.publish(queue, sent, PATIENCE)
        received = {d.message.id: d.message for d in take_and_ack(consumer, 11)}
        for expected in sent:
            found = received[expected.id]
            assert (found.body, found.type) == (expected.body, "t")
            assert (found.priority, found.headers["n"]) == (
                expected.priority,
                expected.headers["n"],
            )

    def test_a_delay_to_a_missing_queue_is_unroutable(
        self, publisher: Publisher, queue: str
    ) -> None:
        """Said when it is sent, not found out when it is due."""
        with pytest.raises(NotSent) as caught:
            publisher.publish(f"{queue}-missing", [message(b"x", delay=5)], PATIENCE)
        assert isinstance(caught.value.failures[0][1], Unroutable)
        publisher.publish(queue, [message(b"y")], PATIENCE)

    def test_a_retry_waits(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """In the broker: the consumer holds nothing meanwhile."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        first = take(consumer, 1)[0]
        began = time.monotonic()
        consumer.settle([Retry(first, "no luck", 1.0)])
        eventually(lambda: settled(consumer), within=PATIENCE)
        again = take(consumer, 1)[0]
        assert time.monotonic() - began >= 1.0
        assert (again.attempt, again.message.id) == (2, first.message.id)

    def test_another_time_is_not_an_attempt(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Asked for again, without having failed."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Retry(take(consumer, 1)[0], "later", 0.3, failed=False)])
        again = take(consumer, 1)[0]
        assert again.attempt == 1
        consumer.settle([Retry(again)])
        assert take(consumer, 1)[0].attempt == 2

    def test_a_message_may_expire(
        self,
        transport: Transport,
        publisher: Publisher,
        consumer: Consumer,
        queue: str,
        consume: Consume,
    ) -> None:
        """Its own ttl, counted from when it is ready; the others stay."""
        consumer.close()
        publisher.publish(queue, [message(b"old", ttl=0.3), message(b"good", ttl=60.0)], PATIENCE)
        eventually(lambda: transport.stats(queue).dead == 1, within=PATIENCE, what="one dead")
        later = consume(queue, 5)
        assert bodies(take(later, 1)) == [b"good"]
        later.close()
        dead = consume(queue + DEAD_SUFFIX, 1)
        assert bodies(take(dead, 1)) == [b"old"]

    def test_delays_survive_their_consumer(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """What waits for its next attempt waits in the broker."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        first = consume(queue, 1)
        first.settle([Retry(take(first, 1)[0], "no luck", 0.7)])
        eventually(lambda: settled(first), within=PATIENCE)
        first.close()
        second = consume(queue, 1)
        assert take(second, 1)[0].attempt == 2

    def test_a_ttl_counts_from_when_it_is_ready(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """One that waits for its time for longer than its ttl is handed out all the same."""
        publisher.publish(queue, [message(b"x", delay=1.2, ttl=0.9)], PATIENCE)
        assert bodies(take(consumer, 1)) == [b"x"]

    def test_a_queues_ttl_begins_again_with_a_retry(
        self, transport: Transport, publisher: Publisher, consume: Consume, another: Another
    ) -> None:
        """The next attempt waits no longer than the first was allowed to."""
        other = another("ttl")
        transport.declare(self.spec(other, ttl=0.6))
        publisher.publish(other, [message(b"x")], PATIENCE)
        consumer = consume(other, 1)
        consumer.settle([Retry(take(consumer, 1)[0])])
        eventually(lambda: settled(consumer), within=PATIENCE)
        consumer.close()
        eventually(lambda: transport.stats(other).dead == 1, within=PATIENCE, what="one dead")

    def test_what_is_out_does_not_expire(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """Not while a consumer has it; when it comes back, its time has gone on meanwhile."""
        publisher.publish(queue, [message(b"done", ttl=0.5), message(b"back", ttl=0.5)], PATIENCE)
        consumer = consume(queue, 2)
        out = {delivery.message.body: delivery for delivery in take(consumer, 2)}
        consumer.receive(0, 0.8)
        consumer.settle([Ack(out[b"done"])])
        assert transport.stats(queue).dead == 0
        consumer.close()
        eventually(lambda: transport.stats(queue).dead == 1, within=PATIENCE, what="one dead")
        assert bodies(take(consume(queue + DEAD_SUFFIX, 1), 1)) == [b"back"]

    def test_an_expired_letter_says_so(
        self, transport: Transport, publisher: Publisher, queue: str
    ) -> None:
        """With REASON, or in the broker's own words: `dead list` shows "expired"."""
        publisher.publish(queue, [message(b"x", ttl=0.2)], PATIENCE)
        eventually(lambda: transport.stats(queue).dead == 1, within=PATIENCE, what="one dead")
        letters = list(Broker(transport).queue(queue).dead.letters())
        assert [(letter.reason, letter.queue) for letter in letters] == [("expired", queue)]

    # -- settle --------------------------------------------------------------------------------

    def test_acked_is_gone(self, publisher: Publisher, queue: str, consume: Consume) -> None:
        """Acknowledged work never comes back, not even when its consumer goes."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer = consume(queue, 1)
        consumer.settle([Ack(take(consumer, 1)[0])])
        assert consumer.unsettled == 0
        consumer.close()
        again = consume(queue, 1)
        assert again.receive(1, SHORT) == []

    def test_received_is_not_settled(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """Handing out is not acknowledging: what was only received comes back."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer = consume(queue, 1)
        take(consumer, 1)
        consumer.receive(0, SHORT)
        consumer.close()
        again = consume(queue, 1)
        assert bodies(take(again, 1)) == [b"x"]

    def test_requeue_is_not_an_attempt(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Handed back untouched: it comes again, at the same attempt, flagged."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Requeue(take(consumer, 1)[0])])
        again = take(consumer, 1)[0]
        assert (again.message.body, again.attempt, again.redelivered) == (b"x", 1, True)

    def test_retry_counts(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """A failed attempt comes again as the next one, under the same id."""
        sent = message(b"x", headers={"tenant": "ada"}, type="t", correlation_id="c")
        publisher.publish(queue, [sent], PATIENCE)
        for attempt in (1, 2, 3):
            delivery = take(consumer, 1)[0]
            assert delivery.attempt == attempt
            received = delivery.message
            assert (received.id, received.body, received.type) == (sent.id, b"x", "t")
            assert received.headers["tenant"] == "ada"
            assert received.correlation_id == "c"
            consumer.settle([Retry(delivery)])
        assert take(consumer, 1)[0].attempt == 4

    def test_reject_sets_aside(
        self, publisher: Publisher, consumer: Consumer, queue: str, consume: Consume
    ) -> None:
        """In the dead-letter queue, once, with body, id, origin and reason; gone from its own."""
        sent = message(b"x", headers={"tenant": "ada"})
        publisher.publish(queue, [sent], PATIENCE)
        consumer.settle([Reject(take(consumer, 1)[0], "no such user", "Traceback…")])
        dead = consume(queue + DEAD_SUFFIX, 10)
        letter = pump(consumer, dead)
        assert (letter.message.id, letter.message.body) == (sent.id, b"x")
        assert letter.message.headers["tenant"] == "ada"
        assert letter.message.headers[REASON] == "no such user"
        assert letter.message.headers[ORIGIN] == queue
        eventually(lambda: settled(consumer), within=PATIENCE)
        assert consumer.receive(1, SHORT) == dead.receive(1, SHORT) == []

    def test_a_foreign_message_gets_an_id_with_its_copy(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """So that a message sent without one can be named once it has failed."""
        publisher.publish(queue, [Message(body=b"x")], PATIENCE)
        first = take(consumer, 1)[0]
        assert first.message.id is None
        consumer.settle([Retry(first)])
        assert take(consumer, 1)[0].message.id

    def test_a_mixed_batch(
        self, publisher: Publisher, consumer: Consumer, queue: str, consume: Consume
    ) -> None:
        """Four outcomes in one call, each to its own fate."""
        publisher.publish(queue, [message(body) for body in (b"a", b"b", b"c", b"d")], PATIENCE)
        out = {delivery.message.body: delivery for delivery in take(consumer, 4)}
        # The Ack is for the last one received: it must not cover those before it.
        consumer.settle(
            [Ack(out[b"d"]), Retry(out[b"b"]), Reject(out[b"c"], "bad"), Requeue(out[b"a"])]
        )
        back = {d.message.body: d.attempt for d in take_and_ack(consumer, 2)}
        assert back == {b"b": 2, b"a": 1}
        dead = consume(queue + DEAD_SUFFIX, 10)
        assert pump(consumer, dead).message.body == b"c"

    def test_settling_twice(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """A second word about the same delivery is refused, and changes nothing."""
        publisher.publish(queue, [message(b"x"), message(b"y")], PATIENCE)
        first, second = take(consumer, 2)
        consumer.settle([Ack(first)])
        with pytest.raises(ValueError):
            consumer.settle([Ack(second), Ack(first)])
        consumer.settle([Requeue(second)])
        assert take(consumer, 1)[0].message.body == second.message.body

    def test_deliveries_belong_to_their_consumer(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """A delivery of an old consumer can never be settled on a new one.

        Delivery tags begin at one again on a new channel: a late acknowledgement would drop
        somebody else's message.
        """
        publisher.publish(queue, [message(b"mine")], PATIENCE)
        old = consume(queue, 1)
        stale = take(old, 1)[0]
        old.close()
        with pytest.raises(ConsumerLost):
            old.settle([Ack(stale)])
        new = consume(queue, 1)
        fresh = take(new, 1)[0]
        with pytest.raises(ValueError):
            new.settle([Ack(stale)])
        new.settle([Requeue(fresh)])
        assert bodies(take(new, 1)) == [b"mine"]

    def test_settling_nothing(self, consumer: Consumer) -> None:
        """No outcomes, no error."""
        consumer.settle([])

    def test_a_retry_is_not_redelivered(
        self, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """The last attempt ended and is on record: nobody may be at work on it still."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Retry(take(consumer, 1)[0])])
        again = take(consumer, 1)[0]
        assert (again.attempt, again.redelivered) == (2, False)

    def test_a_dead_letter_has_its_error(
        self, publisher: Publisher, consumer: Consumer, queue: str, consume: Consume
    ) -> None:
        """The end of the traceback is kept with the reason."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Reject(take(consumer, 1)[0], "bad", "Traceback: bad")])
        letter = pump(consumer, consume(queue + DEAD_SUFFIX, 1))
        assert letter.message.headers.get(ERROR) == "Traceback: bad"

    def test_settling_for_a_deleted_queue(
        self, publisher: Publisher, transport: Transport, queue: str, consume: Consume
    ) -> None:
        """The consumer is lost, and says so: not as if the outcome were on record."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer = consume(queue, 1)
        delivery = take(consumer, 1)[0]
        transport.delete(queue)
        with pytest.raises(ConsumerLost):
            for _ in range(20):
                consumer.receive(0, 0.1)
            consumer.settle([Ack(delivery)])

    # -- life ----------------------------------------------------------------------------------

    def test_closing_gives_back(self, publisher: Publisher, queue: str, consume: Consume) -> None:
        """What a closed consumer held goes to others at once."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(4)], PATIENCE)
        first = consume(queue, 4)
        take(first, 2)
        first.close()
        second = consume(queue, 4)
        assert set(bodies(take(second, 4))) == {b"0", b"1", b"2", b"3"}

    def test_what_came_back_says_so(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """The next worker can tell that the work may have been begun; it is no new attempt."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        first = consume(queue, 1)
        assert not take(first, 1)[0].redelivered
        first.close()
        second = consume(queue, 1)
        again = take(second, 1)[0]
        assert (again.redelivered, again.attempt) == (True, 1)

    def test_pause_gives_back_what_was_not_received(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """A draining worker does not hoard: the rest goes to others, its own it still settles."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)
        draining = consume(queue, 5)
        running = take(draining, 2, at_a_time=1)
        draining.pause()
        draining.pause()
        other = consume(queue, 5)
        assert set(bodies(take_and_ack(other, 3))) == {b"2", b"3", b"4"}
        assert draining.receive(5, SHORT) == []
        draining.settle([Ack(delivery) for delivery in running])
        draining.close()
        assert other.receive(1, SHORT) == []

    def test_a_deleted_queue_loses_its_consumers(
        self, transport: Transport, queue: str, consume: Consume
    ) -> None:
        """Not a silent wait for ever."""
        consumer = consume(queue, 1)
        transport.delete(queue)
        transport.delete(queue)
        with pytest.raises(ConsumerLost):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                consumer.receive(1, SHORT)
        with pytest.raises(ConsumerLost):
            consumer.receive(1, SHORT)

    def test_closing_twice(self, transport: Transport, queue: str, consume: Consume) -> None:
        """Every close is safe to repeat, and a closed consumer says that it is."""
        publisher, consumer = transport.publisher(), consume(queue, 1)
        for _ in range(2):
            publisher.close()
            consumer.close()
        with pytest.raises(ConsumerLost):
            consumer.receive(1, 0)
        transport.close()
        transport.close()

    def test_closing_gives_back_at_once(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """To one who waits already: half of the times in a quarter of a second."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        first, late = consume(queue, 1), []
        take(first, 1)
        for _ in range(5):
            second = consume(queue, 1)
            assert second.receive(1, SHORT / 3) == []
            began = time.monotonic()
            first.close()
            take(second, 1)
            late.append(time.monotonic() - began)
            first = second
        assert statistics.median(late) < AT_ONCE, late

    def test_closing_is_no_death(self, publisher: Publisher, queue: str, consume: Consume) -> None:
        """A worker that left in order does not make a suspect of what it gave back."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        for _ in range(3):
            consumer = consume(queue, 1)
            assert take(consumer, 1)[0].deaths == 0
            consumer.close()

    def test_a_killed_process_gives_back(
        self, url: str | None, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """Without a word of farewell: its message is handed out again, and no attempt was made."""
        if url is None:
            pytest.skip("no other process can be killed: the fixture `url` gives no URL")
        publisher.publish(queue, [message(b"x")], PATIENCE)
        with another_process(url, queue) as process:
            consumer = consume(queue, 1)
            assert consumer.receive(1, SHORT) == [], "handed out while another process has it"
            process.kill()
            again = take(consumer, 1)[0]
        assert (again.redelivered, again.attempt) == (True, 1)

    def test_deaths_are_counted(
        self, url: str | None, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """One for each process that was killed, or up to two less, where a broker does not know a
        death from a farewell: so that what kills its workers is found out."""
        if url is None:
            pytest.skip("no other process can be killed: the fixture `url` gives no URL")
        publisher.publish(queue, [message(b"x")], PATIENCE)
        for _ in range(3):
            with another_process(url, queue) as process:
                process.kill()
        assert 1 <= take(consume(queue, 1), 1)[0].deaths <= 3

    def test_pause_takes_nothing_new(
        self, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """What is sent from then on is for others."""
        draining = consume(queue, 5)
        assert draining.receive(1, 0.1) == []
        draining.pause()
        publisher.publish(queue, [message(b"x")], PATIENCE)
        assert draining.receive(5, SHORT) == []
        assert bodies(take(consume(queue, 1), 1)) == [b"x"]

    # -- look and mend -------------------------------------------------------------------------

    def test_stats_count_what_is_where(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """What the broker says is right; what it will not say is None, never a false 0."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)
        consumer = consume(queue, 2)
        take(consumer, 2)

        def agrees() -> bool:
            """ready 3, in flight 2, a consumer, or None"""
            found = transport.stats(queue)
            return (
                found.ready == 3
                and found.in_flight in (2, None)
                and found.delayed in (0, None)
                and found.dead == 0
                and found.consumers != 0
            )

        eventually(agrees, within=PATIENCE)
        consumer.close()
        with pytest.raises(QueueNotFound):
            transport.stats(f"{queue}-missing")

    def test_stats_count_the_dead(
        self, transport: Transport, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Dead letters are in sight."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Reject(take(consumer, 1)[0], "bad")])

        def one_dead() -> bool:
            """one dead letter"""
            consumer.receive(0, 0.02)
            return transport.stats(queue).dead == 1

        eventually(one_dead, within=PATIENCE)

    def test_what_waits_too_long_is_dead(
        self, transport: Transport, publisher: Publisher, consume: Consume, another: Another
    ) -> None:
        """A queue's ttl: not handed out, and not dropped either."""
        other = another("ttl")
        transport.declare(self.spec(other, ttl=0.2))
        publisher.publish(other, [message(b"old")], PATIENCE)
        eventually(lambda: transport.stats(other).dead == 1, within=PATIENCE, what="one dead")
        consumer = consume(other, 1)
        assert consumer.receive(1, SHORT) == []
        consumer.close()
        dead = consume(other + DEAD_SUFFIX, 1)
        assert bodies(take(dead, 1)) == [b"old"]

    def test_peek_takes_nothing(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """In the order of handing out; afterwards all is there, at the same attempt."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)

        def all_back() -> bool:
            """all five are ready: a broker may be slow to take back what was looked at"""
            return transport.stats(queue).ready == 5

        for _ in range(3):
            eventually(all_back, within=PATIENCE)
            seen = transport.peek(queue, 3)
            assert bodies(seen) == [b"0", b"1", b"2"]
            assert {(d.queue, d.attempt) for d in seen} == {(queue, 1)}
        eventually(all_back, within=PATIENCE)
        assert len(transport.peek(queue, 100)) == 5
        consumer = consume(queue, 0)
        assert {d.attempt for d in take_and_ack(consumer, 5)} == {1}
        assert transport.peek(queue, 3) == []
        consumer.close()
        with pytest.raises(QueueNotFound):
            transport.peek(f"{queue}-missing", 1)

    def test_peek_sees_what_is_delayed(
        self, transport: Transport, publisher: Publisher, queue: str
    ) -> None:
        """The next to be due first, or Unsupported: never an empty list that is not true."""
        publisher.publish(
            queue,
            [message(b"b", delay=60), message(b"c", delay=90), message(b"a", delay=30)],
            PATIENCE,
        )
        try:
            seen = transport.peek(queue, 2, "delayed")
        except Unsupported:
            assert transport.stats(queue).delayed is None
        else:
            assert bodies(seen) == [b"a", b"b"]
            assert transport.stats(queue).delayed == 3

    def test_migrate_keeps_the_messages(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """New parameters, the same messages, and it can be used as before. By force, where the
        transport cannot know that nobody else sends here."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(20)], PATIENCE)
        said: list[str] = []
        transport.migrate(self.spec(queue, max_length=1000), said.append, force=True)
        assert said
        assert transport.declare(self.spec(queue, max_length=1000)) is False
        with pytest.raises(QueueMismatch):
            transport.declare(self.spec(queue, max_length=7))
        send(transport, queue, b"20")
        consumer = consume(queue, 0)
        assert set(bodies(take_and_ack(consumer, 21))) == {b"%d" % n for n in range(21)}
        consumer.close()
        with pytest.raises(QueueNotFound):
            transport.migrate(self.spec(f"{queue}-missing", max_length=5), said.append)

    def test_purge_drops_what_is_ready(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """And not what is in flight; it says how many."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)
        consumer = consume(queue, 1)
        held = take(consumer, 1)[0]
        assert transport.purge(queue) == 4
        consumer.settle([Requeue(held)])
        assert bodies(take_and_ack(consumer, 1)) == [held.message.body]
        assert consumer.receive(1, SHORT) == []
        consumer.close()
        with pytest.raises(QueueNotFound):
            transport.purge(f"{queue}-missing")

    def test_stats_count_what_was_sent_and_done(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """And consumers, and how long the oldest has waited; or None, never a wrong figure."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(4)], PATIENCE)
        consumer = consume(queue, 2)
        consumer.settle([Ack(delivery) for delivery in take(consumer, 2)])
        eventually(lambda: transport.stats(queue).consumers in (1, 2, None), within=PATIENCE)
        consumer.close()

        def agrees() -> bool:
            """sent 4, done 2, no consumers, the oldest waited a little while; or None"""
            found = transport.stats(queue)
            return (
                found.ready == 2
                and found.sent in (4, None)
                and found.done in (2, None)
                and found.consumers in (0, None)
                and (found.oldest is None or SHORT < found.oldest < 4 * PATIENCE)
            )

        time.sleep(SHORT)
        eventually(agrees, within=PATIENCE)

    def test_queues_are_listed(self, transport: Transport, queue: str) -> None:
        """All of them, sorted; or Unsupported, never an empty list that is not true."""
        try:
            names = transport.queues()
        except Unsupported:
            return
        assert {queue, queue + DEAD_SUFFIX} <= set(names)
        assert names == sorted(names)

    def test_peek_shows_nothing_that_is_out(
        self, transport: Transport, publisher: Publisher, queue: str, consume: Consume
    ) -> None:
        """What somebody works on is not what comes next."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(3)], PATIENCE)
        take(consume(queue, 1), 1)
        time.sleep(SHORT)
        assert bodies(transport.peek(queue, 10)) == [b"1", b"2"]

    def test_migrate_sets_all_parameters(self, transport: Transport, another: Another) -> None:
        """What the new spec asks for is set, and what it does not ask for is not set any more."""
        other = another("migrated")
        transport.declare(self.spec(other, max_length=5, ttl=60.0))
        for ttl in (30.0, None):
            transport.migrate(self.spec(other, max_length=9, ttl=ttl), lambda _: None, force=True)
            with pytest.raises(QueueMismatch) as caught:
                transport.declare(self.spec(other, max_length=8, ttl=60.0))
            assert caught.value.differences == {"max length": (8, 9), "ttl": (60.0, ttl)}

    def test_purge_leaves_what_waits_for_its_time(
        self, transport: Transport, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """It is not ready: dropped is what could be handed out now."""
        consumer.pause()
        publisher.publish(queue, [message(b"late", delay=1.5), message(b"now")], PATIENCE)
        eventually(lambda: transport.stats(queue).ready == 1, within=PATIENCE)
        assert transport.purge(queue) == 1
        consumer.close()
        eventually(lambda: transport.stats(queue).ready == 1, within=PATIENCE)
        assert bodies(transport.peek(queue, 10)) == [b"late"]

    def test_deleting_leaves_the_dead_letters(
        self,
        transport: Transport,
        publisher: Publisher,
        consumer: Consumer,
        queue: str,
        consume: Consume,
    ) -> None:
        """What was set aside is still to be looked into."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer.settle([Reject(take(consumer, 1)[0], "bad")])
        eventually(lambda: settled(consumer), within=PATIENCE)
        transport.delete(queue)
        assert bodies(take(consume(queue + DEAD_SUFFIX, 1), 1)) == [b"x"]

    def test_queues_are_apart(
        self, transport: Transport, queue: str, consume: Consume, another: Another
    ) -> None:
        """What is sent to one queue is not seen in another."""
        other = another("other")
        transport.declare(self.spec(other))
        send(transport, other, b"other")
        consumer = consume(queue, 1)
        assert consumer.receive(1, SHORT) == []


# -- what the tests are written in -------------------------------------------------------------


@contextmanager
def queues_on(transport: Transport) -> Iterator[Another]:
    """Gives names; afterwards no queue of them is left, nor one for its dead letters."""
    names: list[str] = []
    suite = f"suite-{uuid.uuid4().hex[:12]}"

    def named(suffix: str) -> str:
        names.append(f"{suite}-{suffix}" if suffix else suite)
        return names[-1]

    try:
        yield named
    finally:
        for name in names:
            for dead in ("", DEAD_SUFFIX, DEAD_SUFFIX * 2):
                transport.delete(name + dead)


@dataclass(frozen=True)
class Detour:
    """A transport whose connections go by way of `proxy`."""

    proxy: Proxy
    transport: Transport


@contextmanager
def detour_to(url: str | None, open_: Callable[[str], Transport]) -> Iterator[Detour]:
    """Skips where there is no host that a proxy could lead to."""
    parts = urlsplit(url or "")
    if url is None or not parts.hostname:
        pytest.skip("no connection to cut: the fixture `url` gives no URL with a host")
    if parts.port is None:
        pytest.skip("no proxy without a port: let the fixture `url` give it")
    with (
        Proxy(parts.hostname, parts.port) as proxy,
        closing(open_(proxy.through(url))) as transport,
    ):
        yield Detour(proxy, transport)


HOLD_ONE = """
import sys
from workqueue import registry
consumer = registry.open_transport(sys.stdin.readline().strip()).consumer(sys.argv[1], 1)
while not consumer.receive(1, 1.0):
    pass
print("held", flush=True)
while True:
    consumer.receive(0, 1.0)
"""
"""A program that takes one message, and keeps it until it is killed. The URL is not for `ps`."""


@contextmanager
def another_process(url: str, queue: str) -> Iterator[subprocess.Popen[str]]:
    """One that holds a message of `queue` already."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD_ONE, queue],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        print(url, file=process.stdin, flush=True)
        assert process.stdout.readline() == "held\n", "another process could not take the message"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def in_the_background(function: Callable[[], None], after: float) -> Iterator[None]:
    timer = threading.Timer(after, function)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def message(body: bytes, **properties: Any) -> Message:
    return Message(body=body, id=new_id(), **properties)


def send(transport: Transport, queue: str, *sent: bytes, timeout: float | None = None) -> None:
    with closing(transport.publisher()) as publisher:
        patience = PATIENCE if timeout is None else timeout
        publisher.publish(queue, [message(body) for body in sent], patience)


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


def take(consumer: Consumer, count: int, *, at_a_time: int = 100) -> list[Delivery]:
    """Exactly `count` deliveries, or AssertionError."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE
    while len(taken) < count:
        assert time.monotonic() < deadline, f"{len(taken)} of {count} arrived: {bodies(taken)}"
        taken += consumer.receive(min(count - len(taken), at_a_time), 0.2)
    return taken


def take_and_ack(consumer: Consumer, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, each acknowledged as it comes."""
    taken: list[Delivery] = []
    deadline = time.monotonic() + PATIENCE * (1 + count // 500)
    while len(taken) < count:
        assert time.monotonic() < deadline, f"{len(taken)} of {count} arrived"
        got = consumer.receive(count - len(taken), 0.2)
        consumer.settle([Ack(delivery) for delivery in got])
        taken += got
    return taken


def pump(settling: Consumer, receiving: Consumer) -> Delivery:
    """What `receiving` gets while `settling` has turns to finish its copies."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        settling.receive(0, 0.02)
        if got := receiving.receive(1, 0.05):
            return got[0]
    raise AssertionError("the dead letter did not arrive")


def settled(consumer: Consumer) -> bool:
    """nothing is unsettled"""
    consumer.receive(0, 0.02)
    return consumer.unsettled == 0
