"""Sending: placed, or named in an error; sent again only if need be, and under the same id."""

from __future__ import annotations

import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.unit.doubles import (
    ScriptedPublisher,
    ScriptedTransport,
    Step,
    breaks,
    fails,
    stored,
    stored_ids,
)
from workqueue import (
    AccessRefused,
    BadPayload,
    Broker,
    BrokerBlocked,
    ConnectionLost,
    Message,
    NotSent,
    Producer,
    Queue,
    QueueFull,
    QueueMismatch,
    Refused,
    StorageError,
    TooLarge,
    TransportFault,
    Unconfirmed,
    Unroutable,
)
from workqueue.errors import account_fault
from workqueue.producer import (
    CHUNK_BYTES,
    CHUNK_MESSAGES,
    LONGEST_PAUSE,
    MOST_MESSAGES,
    QUICK,
    SHORTEST_PAUSE,
    Line,
    Load,
    Pace,
    Parcel,
    Pauses,
)
from workqueue.testing import Fault, FaultyTransport, eventually
from workqueue.transports.memory import MemoryTransport

ENOUGH = 20.0
"""Seconds: longer than anything here takes on any machine."""


def queue_on(transport: MemoryTransport | FaultyTransport, **options: Any) -> Queue:
    return Broker(transport).queue("jobs", **options)


def declared(transport: MemoryTransport | FaultyTransport, **options: Any) -> Queue:
    queue = queue_on(transport, **options)
    queue.declare()
    return queue


# -- one message -------------------------------------------------------------------------------


def test_what_is_sent_is_kept() -> None:
    """With its id and all that was said about it, and the time."""
    transport = MemoryTransport()
    before = time.time()
    id_ = Producer(queue_on(transport)).send(
        {"n": 1},
        type="welcome",
        headers={"tenant": "ada"},
        priority=9,
        correlation_id="c",
        reply_to="r",
    )
    (message,) = stored(transport.store, "jobs")
    assert message.id == id_
    assert (message.body, message.content_type) == (b'{"n":1}', "application/json")
    assert (message.type, message.priority) == ("welcome", 9)
    assert message.headers == {"tenant": "ada"}
    assert (message.correlation_id, message.reply_to) == ("c", "r")
    assert message.sent_at is not None
    assert before <= message.sent_at <= time.time()


def test_an_id_and_a_content_type_of_ones_own() -> None:
    """They go before what would have been chosen."""
    transport = MemoryTransport()
    assert Producer(queue_on(transport)).send("<p>", id="mine", content_type="text/html") == "mine"
    (message,) = stored(transport.store, "jobs")
    assert (message.id, message.content_type) == ("mine", "text/html")


@pytest.mark.parametrize(
    ("payload", "options"),
    [
        (math.nan, {}),
        ([math.inf], {}),
        (object(), {}),
        ("\ud800", {}),
        ("x", {"priority": 10}),
        ("x", {"priority": -1}),
        ("x", {"headers": {"a": math.nan}}),
        ("x", {"headers": {"": 1}}),
        ("x", {"headers": {"a": object()}}),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(payload: object, options: Any) -> None:
    """BadPayload, before there is even a connection."""
    transport = ScriptedTransport()
    with pytest.raises(BadPayload):
        Producer(queue_on(transport)).send(payload, **options)
    assert transport.publishers == []
    assert transport.queues() == []


def test_a_missing_queue_is_made() -> None:
    """And `created` says so."""
    transport = MemoryTransport()
    producer = Producer(queue_on(transport))
    assert not producer.created
    producer.send("x")
    assert producer.created
    assert transport.queues() == ["jobs", "jobs.dead"]
    assert not made_by_a_second(transport)


def made_by_a_second(transport: MemoryTransport) -> bool:
    producer = Producer(queue_on(transport))
    producer.send("x")
    return producer.created


def test_a_queue_deleted_meanwhile_is_made_again() -> None:
    """Between two sends, in the same producer."""
    transport = MemoryTransport()
    producer = Producer(declared(transport))
    producer.send("x")
    transport.delete("jobs")
    id_ = producer.send("y")
    assert stored_ids(transport.store, "jobs") == [id_]


def test_other_parameters_are_an_error_at_once() -> None:
    """Nothing is sent to a queue that is not what was asked for."""
    transport = ScriptedTransport()
    declared(transport, max_length=5)
    with pytest.raises(QueueMismatch):
        Producer(queue_on(transport, max_length=6), timeout=ENOUGH).send("x")
    assert transport.handed == []


def test_closing_and_going_on() -> None:
    """Twice is fine, and a later send connects again."""
    transport = ScriptedTransport()
    with Producer(queue_on(transport)) as producer:
        producer.send("x")
    producer.close()
    assert all(publisher.closed for publisher in transport.publishers)
    producer.send("y")
    assert len(transport.publishers) == 2
    assert len(stored(transport.store, "jobs")) == 2


# -- trying again ------------------------------------------------------------------------------

FAULTS = [
    Fault(call, nth, after=after)
    for call in ("declare", "publisher", "publish")
    for nth in (1, 2, 3)
    for after in (False, True)
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("options", [{}, {"max_length": 100}], ids=["as it is", "with options"])
def test_each_call_may_fail_once(fault: Fault, options: Any) -> None:
    """Nothing is lost, and what is there twice is there under one id."""
    memory = MemoryTransport()
    transport = FaultyTransport(memory, fault)
    producer = Producer(queue_on(transport, **options), timeout=ENOUGH)
    sent = [producer.send(n) for n in range(5)]
    found = stored_ids(memory.store, "jobs")
    assert set(found) == set(sent)
    assert len(found) - len(sent) <= (fault.call == "publish" and fault.after)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_each_call_may_fail_once_under_many(fault: Fault) -> None:
    """The same, for many in one call."""
    memory = MemoryTransport()
    producer = Producer(queue_on(FaultyTransport(memory, fault)), timeout=ENOUGH)
    assert producer.send_many(range(2_500)) == 2_500
    bodies = {message.id: message.body for message in stored(memory.store, "jobs")}
    assert sorted(map(int, bodies.values())) == list(range(2_500))


@pytest.mark.parametrize("keeping", [False, True])
def test_only_what_is_in_doubt_is_sent_again(keeping: bool) -> None:
    """The very messages that were not vouched for, on a new connection."""
    transport = ScriptedTransport(
        fails(Unconfirmed("no confirm"), only=lambda n: n % 2 == 1, keeping=keeping)
    )
    queue = declared(transport)
    assert Producer(queue, timeout=ENOUGH).send_many(range(10)) == 10
    first, second = transport.handed
    assert second == first[1::2]
    assert [publisher.closed for publisher in transport.publishers] == [True, False]
    assert set(stored_ids(transport.store, "jobs")) == {message.id for message in first}


def test_what_a_full_queue_took_is_not_sent_again() -> None:
    """Refused ones go out again on the same connection, which is none the worse."""
    transport = ScriptedTransport(fails(QueueFull("full"), only=lambda n: n > 2))
    Producer(declared(transport), timeout=ENOUGH).send_many(range(5))
    first, second = transport.handed
    assert second == first[3:]
    assert len(transport.publishers) == 1


def test_a_connection_that_died_while_idle() -> None:
    """The first send after it works."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport), timeout=ENOUGH)
    producer.send("x")
    transport.script.append(breaks(ConnectionLost("gone while idle")))
    producer.send("y")
    assert [message.body for message in stored(transport.store, "jobs")] == [b"x", b"y"]
    assert [publisher.closed for publisher in transport.publishers] == [True, False]


@pytest.mark.parametrize("cause", [TooLarge("17 MB"), Refused("not you")])
def test_what_can_never_be_placed_is_not_tried_again(cause: NotSent) -> None:
    """It is named, of its own kind, after one try; the others are placed."""
    transport = ScriptedTransport(fails(cause, only=lambda n: n == 1))
    queue = declared(transport)
    messages = [Message(body=b"%d" % n, id=str(n)) for n in range(3)]
    with pytest.raises(NotSent) as caught:
        Producer(queue, timeout=ENOUGH).send_messages(messages)
    assert [(message.id, type(kind)) for message, kind in caught.value.failures] == [
        ("1", type(cause))
    ]
    assert caught.value.sent == 2
    assert len(transport.handed) == 1
    assert stored_ids(transport.store, "jobs") == ["0", "2"]


@pytest.mark.parametrize("cause", [TooLarge("17 MB"), Refused("not you")])
def test_one_message_fails_with_its_own_kind(cause: NotSent) -> None:
    """`except TooLarge` around a send is what it looks like."""
    transport = ScriptedTransport(fails(cause))
    with pytest.raises(type(cause), match=str(cause)) as caught:
        Producer(declared(transport)).send("x", id="mine")
    assert caught.value.failures[0][0].id == "mine"
    assert caught.value.sent == 0


def test_a_refusal_uses_the_connection_up() -> None:
    """So the seam has it: the next send is on another one."""
    transport = ScriptedTransport(fails(Refused("not you")))
    producer = Producer(declared(transport))
    with pytest.raises(Refused):
        producer.send("x")
    producer.send("y")
    assert [publisher.closed for publisher in transport.publishers] == [True, False]


@pytest.mark.parametrize("error", [AccessRefused("no"), StorageError("disk full")])
@pytest.mark.parametrize("where", ["connecting", "publishing"])
def test_what_cannot_get_better_is_raised_at_once(error: Exception, where: str) -> None:
    """As it is, after one try."""
    transport = ScriptedTransport(
        *([breaks(error)] if where == "publishing" else []),
        opening=[error] if where == "connecting" else [],
    )
    with pytest.raises(type(error), match=str(error)):
        Producer(declared(transport), timeout=ENOUGH).send("x")
    assert transport.script == transport.opening
    assert len(transport.handed) == (where == "publishing")
    assert stored(transport.store, "jobs") == []


# -- giving up ---------------------------------------------------------------------------------


def test_a_full_queue_is_waited_for() -> None:
    """Until the timeout, and not less; then it is named."""
    transport = MemoryTransport()
    queue = declared(transport, max_length=1)
    Producer(queue).send("first")
    began = time.monotonic()
    with pytest.raises(QueueFull) as caught:
        Producer(queue, timeout=0.4).send("second", id="second")
    assert time.monotonic() - began >= 0.4
    assert caught.value.failures[0][0].id == "second"
    assert len(stored(transport.store, "jobs")) == 1


def test_a_full_queue_is_named_by_a_slow_broker_too() -> None:
    """The last try begins when hardly any time is left, and is given enough to hear of its fate:
    cut off, it would leave everybody in doubt."""
    given: list[float] = []

    def refuse(_publisher: Any, _queue: str, messages: Sequence[Message], timeout: float) -> None:
        given.append(timeout)
        cause = QueueFull("full") if timeout > 0.15 else Unconfirmed("not in time")
        raise NotSent("no", failures=[(message, cause) for message in messages])

    transport = ScriptedTransport(*[refuse] * 1_000)
    began = time.monotonic()
    with pytest.raises(QueueFull):
        Producer(declared(transport), timeout=0.6).send("x")
    assert time.monotonic() - began >= 0.6
    assert len(given) > 1


def test_the_last_try_comes_when_time_is_up_and_not_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pause would be otherwise."""
    monkeypatch.setattr(Pauses, "__call__", lambda *_: 3_600.0)
    transport = MemoryTransport()
    queue = declared(transport, max_length=1)
    Producer(queue).send("first")
    began = time.monotonic()
    with pytest.raises(QueueFull):
        Producer(queue, timeout=0.4).send("second")
    assert 0.4 <= time.monotonic() - began < ENOUGH


def test_a_full_queue_that_is_worked_on_takes_more() -> None:
    """A sender that waits is back-pressure, not an error."""
    transport = ScriptedTransport()
    queue = declared(transport, max_length=1)
    producer = Producer(queue, timeout=ENOUGH)
    producer.send("first")

    def make_room() -> None:
        eventually(lambda: len(transport.handed) > 2, what="the second try")
        transport.purge("jobs")

    room = threading.Thread(target=make_room)
    room.start()
    producer.send("second")
    room.join()
    assert [message.body for message in stored(transport.store, "jobs")] == [b"second"]


def test_pauses_are_short_while_something_is_placed() -> None:
    """A hundred tries, each of which places one, cost a hundred short pauses."""
    load = Load([Message(body=b"%d" % n) for n in range(100)])
    pauses = Pauses(load)
    while load.pending:
        load.pending.popitem()
        assert pauses(None) <= SHORTEST_PAUSE
    assert max(pauses(None) for _ in range(100)) > SHORTEST_PAUSE
    assert max(pauses(None) for _ in range(2_000)) <= LONGEST_PAUSE  # however many were in vain


class Unreachable(MemoryTransport):
    """Nobody answers; `tries` counts."""

    tries = 0

    def publisher(self) -> Any:
        self.tries += 1
        raise ConnectionLost("nobody answers")


def test_a_broker_that_was_never_reached() -> None:
    """It is looked for as long as `connect_timeout` says, more than once, and no longer."""
    transport = Unreachable()
    producer = Producer(queue_on(transport), timeout=3_600, connect_timeout=1.5)
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match="nobody answers"):
        producer.send("x")
    assert time.monotonic() - began >= 1.5
    assert transport.tries > 1


def test_a_broker_that_was_reached_is_waited_for() -> None:
    """As long as `timeout` says: it is known to be there."""
    transport = ScriptedTransport(opening=[])
    producer = Producer(declared(transport), timeout=0.6, connect_timeout=0.1)
    producer.send("x")
    transport.script.append(breaks(ConnectionLost("cut")))
    transport.opening.extend(ConnectionLost("nobody answers") for _ in range(1_000))
    began = time.monotonic()
    with pytest.raises(ConnectionLost):
        producer.send("y")
    assert time.monotonic() - began >= 0.6


def test_a_connect_timeout_is_never_longer_than_the_timeout() -> None:
    """One second in all is one second in all."""
    assert Producer(queue_on(MemoryTransport()), timeout=1).connect_timeout == 1


def lasts_too_long(producer: Producer, step: Step) -> Step:
    """The same step, after which `producer` has no more time, on the slowest machine and on any."""

    def late(
        publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
    ) -> None:
        producer.timeout = 0.0
        step(publisher, queue, messages, timeout)

    return late


@pytest.mark.parametrize("cause", [Unconfirmed("no confirm"), BrokerBlocked("no memory")])
def test_what_was_never_confirmed_is_in_doubt(cause: NotSent) -> None:
    """Each message is named, with the kind that says its fate is unknown."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport), timeout=ENOUGH)
    transport.script.extend([fails(cause), lasts_too_long(producer, fails(cause))])
    with pytest.raises(type(cause)) as caught:
        producer.send("x", id="mine")
    assert isinstance(caught.value, Unconfirmed)
    assert caught.value.failures[0][0].id == "mine"
    assert len(transport.handed) == 2
    assert len({id(messages[0]) for messages in transport.handed}) == 1


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(fails(QueueFull("full")), id="full"),
        pytest.param(fails(Refused("not you")), id="refused"),
        pytest.param(fails(Unroutable("gone")), id="unroutable"),
        pytest.param(breaks(ConnectionLost("cut")), id="lost"),
        pytest.param(breaks(AccessRefused("no")), id="access"),
    ],
)
def test_doubt_stays(after: Any) -> None:
    """What may have been stored by the first try may be stored, whatever the last try says."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport), timeout=ENOUGH)
    first = fails(Unconfirmed("no confirm"), keeping=True)
    transport.script.extend([first, *[lasts_too_long(producer, after)] * 2])
    with pytest.raises(Unconfirmed):
        producer.send("x")
    assert len(transport.handed) > 1


def test_untouched_is_not_in_doubt() -> None:
    """A message that no broker was handed was certainly not sent."""
    transport = ScriptedTransport(*[breaks(ConnectionLost("cut"))] * 1_000)
    with pytest.raises(ConnectionLost):
        Producer(declared(transport), timeout=0.3).send("x")


def test_an_error_tells_how_many_were_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all that were given, and which were not."""
    monkeypatch.setattr("workqueue.producer.SLOW_SOURCE", ENOUGH)  # or a slow machine ends a chunk
    monkeypatch.setattr("workqueue.producer.QUICK", ENOUGH)
    transport = MemoryTransport()
    queue = declared(transport, max_length=1_500)
    with pytest.raises(NotSent) as caught:
        Producer(queue, timeout=0.3).send_many(range(5_000))
    assert caught.value.sent == len(stored(transport.store, "jobs")) == 1_500
    missing = len(caught.value.failures)
    assert [message.body for message, _ in caught.value.failures] == [
        b"%d" % n for n in range(1_500, 1_500 + missing)
    ]
    assert missing > 0
    assert re.match(rf"{missing} of \d+ messages were not sent", str(caught.value))


# -- many --------------------------------------------------------------------------------------


def handed(transport: ScriptedTransport) -> int:
    return sum(map(len, transport.handed))


def test_many_are_pulled_a_chunk_at_a_time() -> None:
    """However long the source: what was pulled and not sent is never more than one chunk."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport))
    ahead = []

    def source() -> Iterator[int]:
        for n in range(10_500):
            ahead.append(n - handed(transport))
            yield n

    assert producer.send_many(source()) == 10_500
    assert max(ahead) < MOST_MESSAGES
    assert [message.body for message in stored(transport.store, "jobs")] == [
        b"%d" % n for n in range(10_500)
    ]


def test_chunks_grow_while_they_are_quick() -> None:
    """Step by step, up to a bound; and they shrink to what a slow broker takes."""
    pace = Pace()
    assert pace.messages == CHUNK_MESSAGES
    pace.adjust(CHUNK_MESSAGES, 0.0)
    assert pace.messages == 2 * CHUNK_MESSAGES
    for _ in range(10):
        pace.adjust(pace.messages, QUICK / 4)
    assert pace.messages == MOST_MESSAGES
    pace.adjust(MOST_MESSAGES, 2 * QUICK)
    assert pace.messages == MOST_MESSAGES // 2
    pace.adjust(10, 1.0)
    assert pace.messages == CHUNK_MESSAGES


def test_a_source_that_is_neither_quick_nor_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it gave in a while is sent, also if that is no full chunk."""
    monkeypatch.setattr("workqueue.producer.SLOW_SOURCE", ENOUGH)
    transport = ScriptedTransport()
    producer = Producer(declared(transport))

    def source() -> Iterator[int]:
        for n in range(100):
            time.sleep(2 * QUICK / 100)
            yield n

    assert producer.send_many(source()) == 100
    assert len(transport.handed) > 1


def test_many_large_ones_are_pulled_by_size() -> None:
    """A few megabytes are a chunk as well."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport))
    ahead = []

    def source() -> Iterator[bytes]:
        for n in range(20):
            ahead.append(n - handed(transport))
            yield bytes(1024 * 1024)

    assert producer.send_many(source()) == 20
    assert max(ahead) * 1024 * 1024 <= CHUNK_BYTES


def test_a_slow_source_is_sent_item_by_item() -> None:
    """What it gave is kept before it is asked for the next."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport))

    def source() -> Iterator[int]:
        for n in range(5):
            assert handed(transport) == n
            time.sleep(0.02)
            yield n

    assert producer.send_many(source()) == 5


class SourceBroke(Exception):
    """A source's own error."""


def test_a_source_that_breaks() -> None:
    """What came before is sent, and its own error raised."""
    transport = MemoryTransport()

    def source() -> Iterator[int]:
        yield from range(1_700)
        raise SourceBroke

    with pytest.raises(SourceBroke):
        Producer(declared(transport)).send_many(source())
    assert len(stored(transport.store, "jobs")) == 1_700


def test_a_payload_in_the_middle_that_cannot_be_sent() -> None:
    """What came before it is sent, nothing after it is asked for."""
    transport = MemoryTransport()
    source = iter([1, 2, math.nan, 3, 4])
    with pytest.raises(BadPayload):
        Producer(declared(transport)).send_many(source)
    assert [message.body for message in stored(transport.store, "jobs")] == [b"1", b"2"]
    assert next(source) == 3


def test_many_of_none() -> None:
    """Nothing to send is no error, and no connection."""
    transport = ScriptedTransport()
    assert Producer(queue_on(transport)).send_many([]) == 0
    assert transport.publishers == []


# -- threads -----------------------------------------------------------------------------------


def in_threads(work: Callable[[int], None], count: int) -> None:
    """Run `work(n)` in `count` threads, and raise what any of them raised."""
    raised: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - it is raised below
            raised.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ENOUGH)
        assert not thread.is_alive(), "a sender hangs"
    for error in raised:
        raise error


@pytest.mark.parametrize("fault", [None, Fault("publish", 20), Fault("publisher", 1)], ids=str)
def test_eight_threads_share_a_producer(fault: Fault | None) -> None:
    """Every message is there once, under the id its sender was told."""
    memory = MemoryTransport()
    transport = FaultyTransport(memory, *[fault] if fault else [])
    producer = Producer(queue_on(transport), timeout=ENOUGH)
    told: list[str] = []
    in_threads(lambda n: told.extend(producer.send([n, m]) for m in range(50)), 8)
    found = stored_ids(memory.store, "jobs")
    assert len(told) == len(found) == 400
    assert set(told) == set(found)


def test_what_threads_send_at_once_travels_together() -> None:
    """While one call is on its way the others gather, and share the next."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport), timeout=ENOUGH)

    def wait_for_the_others(publisher: Any, queue: str, messages: Any, timeout: float) -> None:
        eventually(lambda: len(producer.line.waiting) == 7, what="seven more in the line")
        publisher.keep(queue, messages)

    transport.script.append(wait_for_the_others)

    def send(n: int) -> None:
        if n:
            eventually(lambda: transport.handed, what="the first on its way")
        assert_is_id(producer.send(n))

    in_threads(send, 8)
    assert list(map(len, transport.handed)) == [1, 7]
    assert len(set(stored_ids(transport.store, "jobs"))) == 8


def assert_is_id(id_: str) -> None:
    assert len(id_) == 36


def test_each_thread_is_told_of_its_own() -> None:
    """One that travels with a message that is too large hears nothing of it."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport), timeout=ENOUGH)

    def gather(publisher: Any, queue: str, messages: Any, timeout: float) -> None:
        eventually(lambda: len(producer.line.waiting) == 3, what="three more in the line")
        publisher.keep(queue, messages)

    def one_too_large(publisher: Any, queue: str, messages: Any, timeout: float) -> None:
        large = [m for m in messages if m.id == "2"]
        publisher.keep(queue, [m for m in messages if m.id != "2"])
        if large:
            raise NotSent("large", failures=[(large[0], TooLarge("large"))], sent=2)

    transport.script.extend([gather, one_too_large])
    failed: list[int] = []

    def send(n: int) -> None:
        if n:
            eventually(lambda: transport.handed, what="the first on its way")
        try:
            producer.send("x", id=str(n))
        except TooLarge:
            failed.append(n)

    in_threads(send, 4)
    assert failed == [2]
    assert sorted(stored_ids(transport.store, "jobs")) == ["0", "1", "3"]


def test_an_interrupted_sender_does_not_leave_others_waiting() -> None:
    """Ctrl-C in the one that carries: it gets its KeyboardInterrupt, the others know that their
    messages are in doubt, and the next send works on a new connection."""
    transport = ScriptedTransport()
    producer = Producer(declared(transport), timeout=ENOUGH)
    interrupted: list[type[BaseException]] = []

    def gather(publisher: Any, queue: str, messages: Any, timeout: float) -> None:
        eventually(lambda: len(producer.line.waiting) == 3, what="three more in the line")
        publisher.keep(queue, messages)

    transport.script.extend([gather, breaks(KeyboardInterrupt())])

    def send(n: int) -> None:
        if n:
            eventually(lambda: transport.handed, what="the first on its way")
        try:
            producer.send(n)
        except (KeyboardInterrupt, Unconfirmed) as error:
            interrupted.append(type(error))

    in_threads(send, 4)
    assert sorted(kind.__name__ for kind in interrupted) == [
        "KeyboardInterrupt",
        "Unconfirmed",
        "Unconfirmed",
    ]
    producer.send("afterwards")
    assert [publisher.closed for publisher in transport.publishers] == [True, False]


def test_who_is_interrupted_while_waiting_keeps_nobody_from_the_turn() -> None:
    line = Line()
    first, second, third = (Parcel([Message(body=b"")]) for _ in range(3))
    line.wait(first)
    waits = [threading.Thread(target=line.wait, args=[one]) for one in (second, third)]
    for wait, number in zip(waits, (1, 2), strict=True):
        wait.start()
        eventually(lambda number=number: len(line.waiting) == number)
    assert line.gather(first) == [first, second, third]
    line.leave(second)
    line.leave(first)
    waits[1].join(ENOUGH)
    assert third.has_turn
    assert not second.has_turn
    line.leave(third)
    assert not line.taken
    second.wake()  # for its thread's sake: in truth it was interrupted
    waits[0].join(ENOUGH)


def test_who_was_carried_is_woken_though_the_carrier_was_interrupted() -> None:
    """Ctrl-C may come between the last message and that."""
    line = Line()
    carrier, other = (Parcel([Message(body=b"")]) for _ in range(2))
    line.wait(carrier)
    wait = threading.Thread(target=line.wait, args=[other], daemon=True)
    wait.start()
    eventually(lambda: line.waiting)
    other.carried = True
    line.leave(carrier)
    wait.join(ENOUGH)
    assert not wait.is_alive()


def test_who_was_served_last_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A moment, so that all who send in a loop travel together."""
    monkeypatch.setattr("workqueue.producer.LONGEST_HOPE", ENOUGH)
    line = Line()
    line.expected, line.took = 2, 10 * ENOUGH
    own, other = (Parcel([Message(body=b"")]) for _ in range(2))
    line.wait(own)
    late = threading.Timer(0.1, line.wait, args=[other])
    late.daemon = True
    late.start()
    assert line.gather(own) == [own, other]
    other.wake()
    late.join()


def test_who_does_not_come_back_is_waited_for_less_and_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server's threads come and go: each load would be late for nothing."""
    line = Line()
    own = Parcel([Message(body=b"")])
    line.wait(own)
    before = line.hope
    for _ in range(3):
        line.expected, line.took = 2, 0.001
        assert line.gather(own) == [own]
    assert line.hope == before / 8


# -- forks -------------------------------------------------------------------------------------


class Ledger(MemoryTransport):
    """Writes into a file who published what on whose connection."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.hold = threading.Event()
        self.hold.set()
        self.held = threading.Event()

    def publisher(self) -> Any:
        return LedgerPublisher(self)

    def write(self, line: str) -> None:
        with self.file.open("a") as file:
            file.write(f"{line}\n")

    def lines(self) -> list[str]:
        return self.file.read_text().splitlines()


class LedgerPublisher:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.owner = os.getpid()

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        self.ledger.held.set()
        self.ledger.hold.wait(ENOUGH)
        for message in messages:
            self.ledger.write(f"{os.getpid()} {self.owner} {message.body.decode()}")

    def close(self) -> None:
        self.ledger.write(f"{os.getpid()} {self.owner} closed")


def in_child(work: Callable[[], None]) -> int:
    """Fork, run `work` in the child, and give its pid when it has ended well."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(int(ENOUGH))  # a child that hangs must not outlive the test
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return pid


# Python 3.12 warns of forks among threads, which is what is tried here.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
def test_parent_and_child_send_on_their_own_connections(tmp_path: Path) -> None:
    """A child that went on with its parent's would write into the parent's stream."""
    ledger = Ledger(tmp_path / "ledger")
    producer = Producer(declared(ledger))
    producer.send("before")
    child = in_child(lambda: assert_is_id(producer.send("in the child")))
    producer.send("after")
    parent = os.getpid()
    assert ledger.lines() == [
        f"{parent} {parent} before",
        f"{child} {child} in the child",
        f"{parent} {parent} after",
    ]


@forks
def test_a_child_does_not_close_its_parents_connection(tmp_path: Path) -> None:
    """A farewell from the child would end it for the parent."""
    ledger = Ledger(tmp_path / "ledger")
    producer = Producer(declared(ledger))
    producer.send("before")
    in_child(producer.close)
    producer.send("after")
    assert [line.split()[2] for line in ledger.lines()] == ["before", "after"]


@forks
def test_a_fork_in_the_middle_of_a_send(tmp_path: Path) -> None:
    """The child does not wait for a thread that it does not have."""
    ledger = Ledger(tmp_path / "ledger")
    producer = Producer(declared(ledger), timeout=ENOUGH)
    ledger.hold.clear()
    sender = threading.Thread(target=producer.send, args=("in the middle",))
    sender.start()
    assert ledger.held.wait(ENOUGH)

    def send() -> None:
        ledger.hold = threading.Event()  # of the other the thread may have the lock
        ledger.hold.set()
        producer.send("in the child")

    child = in_child(send)
    ledger.hold.set()
    sender.join(ENOUGH)
    parent = os.getpid()
    assert ledger.lines() == [f"{child} {child} in the child", f"{parent} {parent} in the middle"]


# -- a driver is not believed ------------------------------------------------------------------


def names_copies(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    """Pairs equal copies with the causes, as a driver does that rewrites what it stores."""
    failures = [(structs.replace(message), QueueFull("no room")) for message in messages]
    raise NotSent("no room", failures=failures)


def names_one_of_all(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    raise NotSent("no room", failures=[(messages[0], Refused("no room"))])


def names_one_twice(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    raise NotSent("no room", failures=[(messages[0], Refused("no room"))] * 2)


def names_none(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    raise NotSent("no room")


def gives_a_foreign_cause(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    failures = [(message, OSError("no room")) for message in messages]
    raise NotSent("no room", failures=failures)  # type: ignore[arg-type]


def gives_no_pairs(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    raise NotSent("no room", failures=list(messages))  # type: ignore[arg-type]


def returns_failures(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> Any:
    return [(message, QueueFull("no room")) for message in messages]


def raises_its_own(
    publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
) -> None:
    publisher.keep(queue, messages)
    raise KeyError("a driver's own")


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (names_copies, "a copy"),
        (names_one_of_all, "1 failed and 0 sent, and was given 2"),
        (names_one_twice, "twice"),
        (names_none, "0 failed and 0 sent, and was given 2"),
        (gives_a_foreign_cause, "OSError"),
        (gives_no_pairs, "not pairs"),
        (returns_failures, "returned list"),
        (raises_its_own, "KeyError"),
        (breaks(TransportFault("tests.unit.doubles.ScriptedPublisher is slow")), "is slow"),
    ],
)
def test_what_a_driver_does_not_account_for_is_unconfirmed(step: Step, told: str) -> None:
    """Not taken for sent, not tried again, and the error names the driver."""
    transport = ScriptedTransport(step)
    producer = Producer(declared(transport))
    sent = [Message(body=b"a", id="a"), Message(body=b"b", id="b")]
    with pytest.raises(NotSent) as caught:
        producer.send_messages(sent)
    assert [message for message, _ in caught.value.failures] == sent
    assert all(type(cause) is Unconfirmed for _, cause in caught.value.failures)
    assert caught.value.sent == 0
    assert "tests.unit.doubles.ScriptedPublisher" in str(caught.value)
    assert told in str(caught.value)
    assert len(transport.handed) == 1
    producer.send(b"c")  # on another connection: the script is over
    assert transport.publishers[0].closed


def test_a_driver_at_fault_makes_all_that_travelled_together_unconfirmed() -> None:
    """Nobody's message of that load is taken for sent, whoever sent it."""
    load = Load([Message(body=b"x", id=str(n)) for n in range(3)])
    first = next(iter(load.pending.values()))
    copied = NotSent("no", failures=[(structs.replace(first), QueueFull("no"))], sent=2)
    assert "a copy" in account_fault(copied, load.pending)
    whole = NotSent("no", failures=[(first, QueueFull("no"))], sent=2)
    assert account_fault(whole, load.pending) == ""


def test_an_error_of_ours_says_that_nothing_was_written() -> None:
    """A driver that raises StorageError or AccessRefused has stored nothing: raised as it is."""
    producer = Producer(declared(ScriptedTransport(breaks(StorageError("read-only")))))
    with pytest.raises(StorageError, match="read-only"):
        producer.send(b"x")
