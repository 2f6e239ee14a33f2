"""The conformance suite: every promise of `workqueue.transport`, each with the test that holds it.

A transport's own test module is this long:

    class TestRedis(TransportSuite):
        @pytest.fixture
        def transport(self):
            transport = RedisTransport("redis://127.0.0.1")
            yield transport
            transport.close()

A transport may decline a promise by the name of its test, with the reason that its users read:

        declines = {"test_order_is_kept": "a cluster hands out in any order"}
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workqueue.errors import (
    ConsumerLost,
    NotSent,
    QueueFull,
    QueueMismatch,
    QueueNotFound,
    Unroutable,
    Unsupported,
)
from workqueue.message import Delivery, Message, new_id
from workqueue.testing.waiting import eventually
from workqueue.transport import (
    DEAD_SUFFIX,
    Ack,
    Consumer,
    Publisher,
    QueueSpec,
    Reject,
    Requeue,
    Retry,
    Transport,
)
from workqueue.transports.copies import ORIGIN, REASON

PATIENCE = 15.0
"""Seconds. How long something that must happen may take on a slow, shared machine."""

SHORT = 0.3
"""Seconds. How long to watch that something does not happen."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.binary(max_size=40)
)
header_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
)
header_tables = st.dictionaries(
    texts.filter(lambda name: not name.startswith(("x-", "workqueue-"))), header_values, max_size=4
)


class TransportSuite:
    """Subclass, override `transport`, and let pytest collect."""

    declines: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture
    def transport(self) -> Iterator[Transport]:
        raise NotImplementedError(f"{type(self).__name__} must override the `transport` fixture")

    @pytest.fixture(autouse=True)
    def declined(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if name in self.declines:
            pytest.skip(f"{type(self).__name__} declines {name}: {self.declines[name]}")

    def spec(self, name: str, **options: Any) -> QueueSpec:
        """How this transport's queues are asked for; override to run the suite on another kind."""
        return QueueSpec(name=name, **options)

    @pytest.fixture
    def queue(self, transport: Transport) -> Iterator[str]:
        name = f"suite-{uuid.uuid4().hex[:12]}"
        transport.declare(self.spec(name))
        yield name
        transport.delete(name)
        transport.delete(name + DEAD_SUFFIX)

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

    def test_declaring_twice(self, transport: Transport, queue: str) -> None:
        """The first call makes the queue and says so; the second changes nothing."""
        other = f"{queue}-other"
        try:
            assert transport.declare(self.spec(other)) is True
            assert transport.stats(other).ready == 0
            send(transport, other, b"kept")
            assert transport.declare(self.spec(other)) is False
            consumer = transport.consumer(other, 1)
            assert bodies(take(consumer, 1)) == [b"kept"]
            consumer.close()
        finally:
            transport.delete(other)
            transport.delete(other + DEAD_SUFFIX)

    def test_a_name_alone_takes_the_queue_as_it_is(self, transport: Transport, queue: str) -> None:
        """Whoever asks for nothing accepts any queue of that name."""
        other = f"{queue}-bounded"
        try:
            transport.declare(self.spec(other, max_length=7))
            assert transport.declare(QueueSpec(name=other)) is False
        finally:
            transport.delete(other)
            transport.delete(other + DEAD_SUFFIX)

    def test_other_parameters_are_a_mismatch(self, transport: Transport, queue: str) -> None:
        """The error names the parameter and both values."""
        other = f"{queue}-bounded"
        try:
            transport.declare(self.spec(other, max_length=7))
            assert transport.declare(self.spec(other, max_length=7)) is False
            with pytest.raises(QueueMismatch) as caught:
                transport.declare(self.spec(other, max_length=8))
            assert caught.value.differences == {"max length": (8, 7)}
            assert caught.value.queue == other
        finally:
            transport.delete(other)
            transport.delete(other + DEAD_SUFFIX)

    def test_a_dry_run_makes_nothing(self, transport: Transport, queue: str) -> None:
        """It says what would be done, and whether it could be."""
        assert transport.declare(self.spec(f"{queue}-dry"), dry_run=True) is True
        with pytest.raises(QueueNotFound):
            transport.stats(f"{queue}-dry")
        assert transport.declare(QueueSpec(name=queue), dry_run=True) is False
        with pytest.raises(QueueMismatch):
            transport.declare(self.spec(queue, max_length=3), dry_run=True)

    def test_the_dead_letter_queue_is_a_queue(self, transport: Transport, queue: str) -> None:
        """NAME.dead is there from the start, can be sent to and worked on."""
        publisher = transport.publisher()
        publisher.publish(queue + DEAD_SUFFIX, [message(b"x")], PATIENCE)
        publisher.close()
        consumer = transport.consumer(queue + DEAD_SUFFIX, 1)
        assert take(consumer, 1)[0].message.body == b"x"
        consumer.close()

    # -- publish -------------------------------------------------------------------------------

    def test_publishing_nothing(self, publisher: Publisher, queue: str) -> None:
        """No messages, no error."""
        publisher.publish(queue, [], PATIENCE)

    def test_order_is_kept(self, publisher: Publisher, transport: Transport, queue: str) -> None:
        """One publisher's messages reach one consumer that takes one at a time in their order."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(50)], PATIENCE)
        consumer = transport.consumer(queue, 1)
        assert bodies(take_and_ack(consumer, 50)) == [b"%d" % n for n in range(50)]
        consumer.close()

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

        @settings(
            max_examples=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(body=st.binary(max_size=200), headers=header_tables, type_=texts)
        def check(body: bytes, headers: dict[str, Any], type_: str) -> None:
            sent = Message(body=body, id=new_id(), headers=headers, type=type_ or None)
            publisher.publish(queue, [sent], PATIENCE)
            received = take_and_ack(consumer, 1)[0].message
            assert (received.body, received.headers) == (body, headers)
            assert received.type == sent.type

        check()

    def test_a_missing_queue_is_unroutable(self, publisher: Publisher, queue: str) -> None:
        """Each message that no queue took is named; the publisher can go on."""
        lost = [message(b"a"), message(b"b")]
        with pytest.raises(NotSent) as caught:
            publisher.publish(f"{queue}-missing", lost, PATIENCE)
        assert [failed for failed, _ in caught.value.failures] == lost
        assert all(isinstance(cause, Unroutable) for _, cause in caught.value.failures)
        publisher.publish(queue, [message(b"c")], PATIENCE)

    def test_a_full_queue_refuses(self, transport: Transport, queue: str) -> None:
        """What a bounded queue refuses is named, what it took stays, and none is dropped."""
        other = f"{queue}-full"
        try:
            transport.declare(self.spec(other, max_length=5))
            publisher = transport.publisher()
            sent = [message(b"%d" % n) for n in range(2_000)]
            with pytest.raises(NotSent) as caught:
                publisher.publish(other, sent, PATIENCE)
            refused = [failed.body for failed, _ in caught.value.failures]
            assert all(isinstance(cause, QueueFull) for _, cause in caught.value.failures)
            assert caught.value.sent == len(sent) - len(refused) >= 5
            with pytest.raises(NotSent):
                publisher.publish(other, [message(b"again")], PATIENCE)
            publisher.close()
            consumer = transport.consumer(other, 0)
            taken = bodies(take_and_ack(consumer, caught.value.sent))
            assert sorted(taken + refused) == sorted(m.body for m in sent)
            consumer.close()
        finally:
            transport.delete(other)
            transport.delete(other + DEAD_SUFFIX)

    def test_publishers_in_threads(self, transport: Transport, queue: str) -> None:
        """The transport is thread-safe: each thread with a publisher of its own."""

        def send(name: int) -> None:
            publisher = transport.publisher()
            publisher.publish(queue, [message(b"%d-%d" % (name, n)) for n in range(20)], PATIENCE)
            publisher.close()

        threads = [threading.Thread(target=send, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        consumer = transport.consumer(queue, 0)
        assert len(set(bodies(take_and_ack(consumer, 80)))) == 80
        consumer.close()

    # -- receive -------------------------------------------------------------------------------

    def test_no_consumer_without_a_queue(self, transport: Transport, queue: str) -> None:
        """Working on a queue that is not there is an error at once, not a silent wait."""
        with pytest.raises(QueueNotFound):
            transport.consumer(f"{queue}-missing", 1)

    def test_a_first_delivery(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """Attempt one, not redelivered, from the queue by its name."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        delivery = take(consumer, 1)[0]
        assert (delivery.attempt, delivery.redelivered, delivery.queue) == (1, False, queue)
        assert delivery.unreadable is None

    def test_each_message_goes_to_one_consumer(self, transport: Transport, queue: str) -> None:
        """Two consumers share the work: together they see each message once."""
        first, second = transport.consumer(queue, 0), transport.consumer(queue, 0)
        publisher = transport.publisher()
        publisher.publish(queue, [message(b"%d" % n) for n in range(100)], PATIENCE)
        publisher.close()
        seen: list[bytes] = []
        deadline = time.monotonic() + PATIENCE
        while len(seen) < 100 and time.monotonic() < deadline:
            for consumer in (first, second):
                got = consumer.receive(10, 0.05)
                seen += bodies(got)
                consumer.settle([Ack(delivery) for delivery in got])
        assert sorted(seen) == sorted(b"%d" % n for n in range(100))
        assert first.receive(1, SHORT) == second.receive(1, SHORT) == []
        first.close()
        second.close()

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
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """Two may be out: the third comes when one is settled."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(3)], PATIENCE)
        consumer = transport.consumer(queue, 2)
        out = take(consumer, 2)
        assert consumer.receive(5, SHORT) == []
        assert consumer.unsettled == 2
        consumer.settle([Ack(out[0])])
        assert len(take(consumer, 1)) == 1
        consumer.close()

    def test_holding_more(self, publisher: Publisher, transport: Transport, queue: str) -> None:
        """Three may be out where it was one, also of those that come later."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(7)], PATIENCE)
        consumer = transport.consumer(queue, 1)
        out = take(consumer, 1)
        consumer.hold(3)
        for _ in range(2):
            out += take(consumer, 3 - len(out))
            assert consumer.receive(5, SHORT) == []
            consumer.settle([Ack(delivery) for delivery in out])
            out = []
        assert len(take_and_ack(consumer, 1)) == 1
        consumer.close()

    def test_holding_less(self, publisher: Publisher, transport: Transport, queue: str) -> None:
        """What was received stays and counts; the rest goes to others; then one at a time."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(6)], PATIENCE)
        consumer = transport.consumer(queue, 5)
        running = take(consumer, 2, at_a_time=1)
        consumer.hold(1)
        other = transport.consumer(queue, 5)
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
        consumer.close()

    def test_a_held_message_does_not_block_others(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """What one consumer cannot hold goes to the next one."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(4)], PATIENCE)
        busy = transport.consumer(queue, 1)
        take(busy, 1)
        idle = transport.consumer(queue, 1)
        assert len(take_and_ack(idle, 3)) == 3
        busy.close()
        idle.close()

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
        self, transport: Transport, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """Its own ttl, counted from when it is ready; the others stay."""
        consumer.close()
        publisher.publish(queue, [message(b"old", ttl=0.3), message(b"good", ttl=60.0)], PATIENCE)
        eventually(lambda: transport.stats(queue).dead == 1, within=PATIENCE, what="one dead")
        later = transport.consumer(queue, 5)
        assert bodies(take(later, 1)) == [b"good"]
        later.close()
        dead = transport.consumer(queue + DEAD_SUFFIX, 1)
        assert bodies(take(dead, 1)) == [b"old"]
        dead.close()

    def test_delays_survive_their_consumer(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """What waits for its next attempt waits in the broker."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        first = transport.consumer(queue, 1)
        first.settle([Retry(take(first, 1)[0], "no luck", 0.7)])
        eventually(lambda: settled(first), within=PATIENCE)
        first.close()
        second = transport.consumer(queue, 1)
        assert take(second, 1)[0].attempt == 2
        second.close()

    # -- settle --------------------------------------------------------------------------------

    def test_acked_is_gone(self, publisher: Publisher, transport: Transport, queue: str) -> None:
        """Acknowledged work never comes back, not even when its consumer goes."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer = transport.consumer(queue, 1)
        consumer.settle([Ack(take(consumer, 1)[0])])
        assert consumer.unsettled == 0
        consumer.close()
        again = transport.consumer(queue, 1)
        assert again.receive(1, SHORT) == []
        again.close()

    def test_received_is_not_settled(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """Handing out is not acknowledging: what was only received comes back."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        consumer = transport.consumer(queue, 1)
        take(consumer, 1)
        consumer.receive(0, SHORT)
        consumer.close()
        again = transport.consumer(queue, 1)
        assert bodies(take(again, 1)) == [b"x"]
        again.close()

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
        self, transport: Transport, publisher: Publisher, consumer: Consumer, queue: str
    ) -> None:
        """In the dead-letter queue, once, with body, id, origin and reason; gone from its own."""
        sent = message(b"x", headers={"tenant": "ada"})
        publisher.publish(queue, [sent], PATIENCE)
        consumer.settle([Reject(take(consumer, 1)[0], "no such user", "Traceback…")])
        dead = transport.consumer(queue + DEAD_SUFFIX, 10)
        letter = pump(consumer, dead)
        assert (letter.message.id, letter.message.body) == (sent.id, b"x")
        assert letter.message.headers["tenant"] == "ada"
        assert letter.message.headers[REASON] == "no such user"
        assert letter.message.headers[ORIGIN] == queue
        eventually(lambda: settled(consumer), within=PATIENCE)
        assert consumer.receive(1, SHORT) == dead.receive(1, SHORT) == []
        dead.close()

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
        self, transport: Transport, publisher: Publisher, consumer: Consumer, queue: str
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
        dead = transport.consumer(queue + DEAD_SUFFIX, 10)
        assert pump(consumer, dead).message.body == b"c"
        dead.close()

    def test_settling_twice(self, publisher: Publisher, consumer: Consumer, queue: str) -> None:
        """A second word about the same delivery is refused, and changes nothing."""
        publisher.publish(queue, [message(b"x"), message(b"y")], PATIENCE)
        first, second = take(consumer, 2)
        consumer.settle([Ack(first)])
        with pytest.raises(ValueError, match="settled once"):
            consumer.settle([Ack(second), Ack(first)])
        consumer.settle([Requeue(second)])
        assert take(consumer, 1)[0].message.body == second.message.body

    def test_deliveries_belong_to_their_consumer(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """A delivery of an old consumer can never be settled on a new one.

        Delivery tags begin at one again on a new channel: a late acknowledgement would drop
        somebody else's message.
        """
        publisher.publish(queue, [message(b"mine")], PATIENCE)
        old = transport.consumer(queue, 1)
        stale = take(old, 1)[0]
        old.close()
        with pytest.raises(ConsumerLost):
            old.settle([Ack(stale)])
        new = transport.consumer(queue, 1)
        fresh = take(new, 1)[0]
        with pytest.raises(ValueError, match="settled once"):
            new.settle([Ack(stale)])
        new.settle([Requeue(fresh)])
        assert bodies(take(new, 1)) == [b"mine"]
        new.close()

    # -- life ----------------------------------------------------------------------------------

    def test_closing_gives_back(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """What a closed consumer held goes to others at once."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(4)], PATIENCE)
        first = transport.consumer(queue, 4)
        take(first, 2)
        first.close()
        second = transport.consumer(queue, 4)
        assert set(bodies(take(second, 4))) == {b"0", b"1", b"2", b"3"}
        second.close()

    def test_what_came_back_says_so(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """The next worker can tell that the work may have been begun; it is no new attempt."""
        publisher.publish(queue, [message(b"x")], PATIENCE)
        first = transport.consumer(queue, 1)
        assert not take(first, 1)[0].redelivered
        first.close()
        second = transport.consumer(queue, 1)
        again = take(second, 1)[0]
        assert (again.redelivered, again.attempt) == (True, 1)
        second.close()

    def test_pause_gives_back_what_was_not_received(
        self, publisher: Publisher, transport: Transport, queue: str
    ) -> None:
        """A draining worker does not hoard: the rest goes to others, its own it still settles."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)
        draining = transport.consumer(queue, 5)
        running = take(draining, 2, at_a_time=1)
        draining.pause()
        draining.pause()
        other = transport.consumer(queue, 5)
        assert set(bodies(take_and_ack(other, 3))) == {b"2", b"3", b"4"}
        assert draining.receive(5, SHORT) == []
        draining.settle([Ack(delivery) for delivery in running])
        draining.close()
        assert other.receive(1, SHORT) == []
        other.close()

    def test_a_deleted_queue_loses_its_consumers(self, transport: Transport, queue: str) -> None:
        """Not a silent wait for ever."""
        consumer = transport.consumer(queue, 1)
        transport.delete(queue)
        transport.delete(queue)
        with pytest.raises(ConsumerLost):
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                consumer.receive(1, SHORT)
        with pytest.raises(ConsumerLost):
            consumer.receive(1, SHORT)
        consumer.close()

    def test_closing_twice(self, transport: Transport, queue: str) -> None:
        """Every close is safe to repeat, and a closed consumer says that it is."""
        publisher, consumer = transport.publisher(), transport.consumer(queue, 1)
        for _ in range(2):
            publisher.close()
            consumer.close()
        with pytest.raises(ConsumerLost):
            consumer.receive(1, 0)
        transport.close()
        transport.close()

    # -- look and mend -------------------------------------------------------------------------

    def test_stats_count_what_is_where(
        self, transport: Transport, publisher: Publisher, queue: str
    ) -> None:
        """What the broker says is right; what it will not say is None, never a false 0."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)
        consumer = transport.consumer(queue, 2)
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
        self, transport: Transport, publisher: Publisher, queue: str
    ) -> None:
        """A queue's ttl: not handed out, and not dropped either."""
        other = f"{queue}-ttl"
        try:
            transport.declare(self.spec(other, ttl=0.2))
            publisher.publish(other, [message(b"old")], PATIENCE)
            eventually(lambda: transport.stats(other).dead == 1, within=PATIENCE, what="one dead")
            consumer = transport.consumer(other, 1)
            assert consumer.receive(1, SHORT) == []
            consumer.close()
            dead = transport.consumer(other + DEAD_SUFFIX, 1)
            assert bodies(take(dead, 1)) == [b"old"]
            dead.close()
        finally:
            transport.delete(other)
            transport.delete(other + DEAD_SUFFIX)

    def test_peek_takes_nothing(
        self, transport: Transport, publisher: Publisher, queue: str
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
        consumer = transport.consumer(queue, 0)
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
        self, transport: Transport, publisher: Publisher, queue: str
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
        consumer = transport.consumer(queue, 0)
        assert set(bodies(take_and_ack(consumer, 21))) == {b"%d" % n for n in range(21)}
        consumer.close()
        with pytest.raises(QueueNotFound):
            transport.migrate(self.spec(f"{queue}-missing", max_length=5), said.append)

    def test_purge_drops_what_is_ready(
        self, transport: Transport, publisher: Publisher, queue: str
    ) -> None:
        """And not what is in flight; it says how many."""
        publisher.publish(queue, [message(b"%d" % n) for n in range(5)], PATIENCE)
        consumer = transport.consumer(queue, 1)
        held = take(consumer, 1)[0]
        assert transport.purge(queue) == 4
        consumer.settle([Requeue(held)])
        assert bodies(take_and_ack(consumer, 1)) == [held.message.body]
        assert consumer.receive(1, SHORT) == []
        consumer.close()
        with pytest.raises(QueueNotFound):
            transport.purge(f"{queue}-missing")

    def test_queues_are_apart(self, transport: Transport, queue: str) -> None:
        """What is sent to one queue is not seen in another."""
        other = f"{queue}-other"
        try:
            transport.declare(self.spec(other))
            send(transport, other, b"other")
            consumer = transport.consumer(queue, 1)
            assert consumer.receive(1, SHORT) == []
            consumer.close()
        finally:
            transport.delete(other)
            transport.delete(other + DEAD_SUFFIX)


# -- what the tests are written in -------------------------------------------------------------


def message(body: bytes, **properties: Any) -> Message:
    return Message(body=body, id=new_id(), **properties)


def send(transport: Transport, queue: str, *sent: bytes) -> None:
    publisher = transport.publisher()
    publisher.publish(queue, [message(body) for body in sent], PATIENCE)
    publisher.close()


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
