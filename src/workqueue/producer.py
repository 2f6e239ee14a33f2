"""Sending: a task is kept by the broker when `send` returns, or named in an error."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from types import TracebackType
from typing import Any, NoReturn, Self

from msgspec.structs import replace

from workqueue.codec import check_headers, encodable, encode
from workqueue.deadline import within
from workqueue.errors import (
    BadPayload,
    ConnectionLost,
    NotSent,
    QueueFull,
    TooLarge,
    TransportFault,
    Unconfirmed,
    Unroutable,
    WorkqueueError,
    account_fault,
    class_name,
    common_reason,
)
from workqueue.forks import renew_after_fork
from workqueue.loggers import logger
from workqueue.message import (
    DEFAULT_PRIORITY,
    EXPIRES_AT,
    LONGEST_DELAY,
    LONGEST_TTL,
    Message,
    new_id,
    new_ids,
)
from workqueue.middleware import Middleware, around_sending, load_middleware
from workqueue.queue import Queue
from workqueue.transport import Publisher

log = logger("producer")

CHUNK_MESSAGES = 1_000
MOST_MESSAGES = 8_000
CHUNK_BYTES = 4 * 1024 * 1024
"""How much `send_many` holds in memory at once: to begin with, and where sending is quick."""

QUICK = 0.25
"""Seconds. What takes no longer, to be gathered from a source or to be sent, is one chunk."""

WORTH_ANOTHER_TRY = (Unroutable, QueueFull, Unconfirmed)
LEAVES_PUBLISHER_USABLE = (Unroutable, QueueFull, TooLarge)

SHORT_TEXTS = (
    "id",
    "type",
    "content_type",
    "content_encoding",
    "correlation_id",
    "reply_to",
    "app_id",
)
"""What AMQP gives one byte for its length, on every transport so that they agree."""

short_texts = attrgetter(*SHORT_TEXTS)

SLOW_SOURCE = 0.005
"""Seconds. A source that takes longer than this for its next payload is not kept waiting for it."""


MOST_HOPE = 1 / 3
"""The part of what the last load took for which others to send with are waited for, at most."""

LONGEST_HOPE, GLANCE = 0.0005, 0.00002
"""Seconds: the longest such wait, and how long until it is looked whether they are there."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two tries to place the same messages, at most."""

LONG_ENOUGH = 1.0
"""Seconds in which a broker that is there says what becomes of a message. The last try may have as
many, or a third of the timeout, beyond it, if the broker answered the one before."""


class Producer:
    """Sends to one queue. Any number of threads may share one: what they send at the same time
    travels together.

    `timeout` (seconds) is how long one `send` may take in all, with everything it does to get the
    message placed: wait for other threads and their messages, for a full queue or a blocked broker,
    reconnect, send again under the same id. Two things may come on top: to learn what becomes of
    the last try at a broker that answers, up to a second; and on RabbitMQ, whenever a queue had to
    be made, the 1.2 seconds before it can be trusted. `connect_timeout` is how long to look for a
    broker that was never reached yet.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        middleware: Sequence[Middleware | str] = (),
    ) -> None:
        self.queue = queue
        self.timeout = timeout
        self.connect_timeout = min(connect_timeout, timeout)
        self.way = around_sending(load_middleware(middleware), queue.name, self.hand_over)
        self.start_afresh()
        renew_after_fork(self, Producer.start_afresh)
        queue.broker.producers.add(self)

    def start_afresh(self) -> None:
        """No connection, and nobody sending: at the beginning, and in a forked child.

        A child that went on with its parent's connection would write into the parent's stream.
        """
        self.publisher: Publisher | None = None
        self.reached = False
        self.declared = not self.queue.spec.asks
        self.created = False
        self.line = Line()

    def send(
        self,
        payload: object,
        *,
        id: str | None = None,
        type: str | None = None,
        headers: Mapping[str, Any] | None = None,
        priority: int = DEFAULT_PRIORITY,
        delay: float = 0.0,
        ttl: float | None = None,
        content_type: str | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
    ) -> str:
        """`payload` is kept by the broker when this returns; its id.

        bytes go as they are, str as text, anything else as JSON. It is ready for a worker after
        `delay` seconds, at once by default and 30 days at most, and a dead letter if no worker
        begins it in the `ttl` seconds after that. `priority` is 0 to 9, higher first.

        Raises BadPayload before anything is sent; NotSent, of the kind that says why, if the
        message was not placed (`Unconfirmed`: its fate is unknown); ConnectionLost if no broker
        was reached; AccessRefused, QueueMismatch or StorageError if there is no use in trying.
        """
        message = make_message(
            payload,
            id=id,
            type=type,
            headers=headers,
            priority=priority,
            delay=delay,
            ttl=ttl,
            content_type=content_type,
            correlation_id=correlation_id,
            reply_to=reply_to,
        )
        self.send_messages([message])
        assert message.id is not None
        return message.id

    def send_many(self, payloads: Iterable[object]) -> int:
        """All of `payloads` are kept by the broker when this returns; how many there were.

        Takes them as they come, a chunk at a time, so memory does not grow with their number; a
        source that is slow has each payload sent at once. Raises as `send` does; NotSent tells
        how many were `sent`, of all of them.
        """
        sent = 0
        pace = Pace()
        for chunk in in_chunks(payloads, pace):
            began = time.perf_counter()
            try:
                self.send_messages(chunk)
            except NotSent as error:
                error.sent += sent
                raise
            sent += len(chunk)
            pace.adjust(len(chunk), time.perf_counter() - began)
        return sent

    def send_messages(self, messages: Sequence[Message]) -> None:
        """The same for messages made by the caller: each an object of its own, with its id."""
        self.way(messages)

    def hand_over(self, messages: Sequence[Message]) -> None:
        """What is left of the way once all middleware had its turn."""
        parcel = Parcel(messages)
        try:
            self.line.wait(parcel)
            if parcel.has_turn:
                self.carry(parcel)
        finally:
            self.line.leave(parcel)
        parcel.tell()

    def carry(self, own: Parcel) -> None:
        """Each of those that wait is placed or knows why not, so that nobody waits in vain."""
        parcels = self.line.gather(own)
        began = time.perf_counter()
        load = Load([message for parcel in parcels for message in parcel.messages])
        try:
            self.place(load, own.since)
        except (StillPending, Distrusted):
            pass  # the causes are on record
        except Exception as error:  # noqa: BLE001 - every sender in line must hear of it
            load.error = error
            self.hang_up()
        except BaseException:  # Ctrl-C in the middle: the connection is in an unknown state
            load.doubt(Unconfirmed("interrupted while sending"))
            self.hang_up()
            raise
        finally:
            # Those who came later than `own` have more time: the next turn is theirs.
            carried = [one for one in parcels if one is own or not self.may_wait(one, load)]
            for parcel in carried:
                parcel.settle(load)
            self.line.served(time.perf_counter() - began)
            for parcel in carried:
                if parcel is not own:
                    parcel.wake()

    def may_wait(self, parcel: Parcel, load: Load) -> bool:
        """Whether nothing of `parcel` was handed to a broker, only for lack of time, and it has
        some left. A broker that was never reached has had its time."""
        out_of_time = load.error is None or isinstance(load.error, ConnectionLost)
        has_time = self.reached and parcel.since + self.timeout > time.monotonic()
        return out_of_time and has_time and all(map(load.untouched, parcel.messages))

    def place(self, load: Load, since: float) -> None:
        """Try, and try again, until all is placed, refused for good, or the time is up that began
        at `since`."""
        timeout = since + self.timeout - time.monotonic()
        if timeout <= 0 < self.timeout:
            raise ConnectionLost("the sends before this one took all of its time")
        connecting = since + self.connect_timeout - time.monotonic()
        try:
            self.place_once(load, timeout, connecting)
        except (ConnectionLost, StillPending) as error:
            self.place_in_time(load, since, error)

    def place_in_time(self, load: Load, began: float, failed: Exception) -> None:
        """The tries after the first, which `failed`."""
        # Imported when something goes wrong: it takes longer than a message to a broker and back.
        from tenacity import RetryCallState, Retrying, retry_if_exception_type

        def time_left() -> float:
            limit = self.timeout if self.reached else self.connect_timeout
            return max(0.0, began + limit - time.monotonic())

        def pause(state: RetryCallState) -> float:
            return min(pauses(state), time_left())

        pauses = Pauses(load)
        attempts = Retrying(
            retry=retry_if_exception_type((ConnectionLost, StillPending)),
            stop=lambda _state: time_left() == 0,
            wait=pause,
            reraise=True,
        )
        # Less, and a busy broker's refusal would come too late: nobody would know whether it keeps
        # what it was handed last. A broker that did not answer gets no such try.
        least = min(LONG_ENOUGH, self.timeout / 3)
        for attempt in attempts:
            with attempt:
                timeout = began + self.timeout - time.monotonic()
                if load.was_answered():
                    timeout = max(timeout, least)
                if attempt.retry_state.attempt_number == 1 or timeout <= 0:
                    raise failed
                try:
                    self.place_once(load, timeout, time_left())
                except (ConnectionLost, StillPending) as error:
                    failed = error
                    raise

    def place_once(self, load: Load, timeout: float, connecting: float) -> None:
        """Within `timeout` seconds; a broker that was never reached has only `connecting`."""
        with within(timeout) as deadline:
            with within(timeout if self.reached else connecting):
                self.prepare()
            # A connection that has gone silent must leave time for a second one.
            share = max(self.timeout / 3, min(LONG_ENOUGH, self.timeout / 2))
            self.publish(load, min(deadline.left(), share))
            if load.pending and load.unroutable() and self.publisher is not None:
                self.created |= self.queue.declare()
                self.publish(load, min(deadline.left(), share))
        if load.pending:
            raise StillPending

    def prepare(self) -> None:
        """A queue that was asked for by its parameters has them, and we have a connection."""
        if not self.declared:
            self.created |= self.queue.declare()
            self.declared = self.reached = True
        if self.publisher is None:
            self.publisher = self.queue.transport.publisher()
            self.reached = True

    def publish(self, load: Load, patience: float) -> None:
        assert self.publisher is not None
        try:
            # A driver of somebody else's may return anything.
            answer: object = self.publisher.publish(  # type: ignore[func-returns-value]
                self.queue.name, list(load.pending.values()), patience
            )
        except NotSent as error:
            if fault := account_fault(error, load.pending):
                self.distrust(load, self.fault(fault), error)
            load.note(error)
            if not all(isinstance(cause, LEAVES_PUBLISHER_USABLE) for _, cause in error.failures):
                self.hang_up()
        except ConnectionLost:
            self.hang_up()
            raise
        except TransportFault as error:
            self.distrust(load, str(error), error)
        except WorkqueueError:
            raise  # nothing was written
        except Exception as error:  # noqa: BLE001 - a driver may raise anything
            self.distrust(load, self.fault(f"raised an error of its own: {error!r}"), error)
        else:
            if answer is not None:
                told = f"returned {type(answer).__name__} instead of nothing"
                self.distrust(load, self.fault(told), None)
            load.pending.clear()

    def fault(self, told: str) -> str:
        return f"the transport is at fault: {class_name(self.publisher)} {told}"

    def distrust(self, load: Load, text: str, error: Exception | None) -> NoReturn:
        """The driver's word cannot be relied on: nobody knows what became of what is pending.

        Not tried again: the same driver would only make duplicates.
        """
        load.doubt(Unconfirmed(text, hint=TransportFault.hint))
        self.hang_up()
        raise Distrusted(text) from error

    def hang_up(self) -> None:
        publisher, self.publisher = self.publisher, None
        if publisher is not None:
            publisher.close()

    def close(self) -> None:
        """Hang up; safe to call twice. A later `send` connects again."""
        nothing = Parcel(())
        try:
            self.line.wait(nothing)
            self.hang_up()
        finally:
            self.line.leave(nothing)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Pauses:
    """Seconds before the next try: more from one in vain to the next, and few again once something
    was placed, for then a full queue is being worked on."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.pending = len(load.pending)
        self.in_vain = 0

    def __call__(self, _state: object) -> float:
        self.in_vain = 0 if len(self.load.pending) < self.pending else self.in_vain + 1
        self.pending = len(self.load.pending)
        longest = SHORTEST_PAUSE * 2 ** min(self.in_vain, 10)  # an unbounded power ends as an error
        return random.uniform(0.0, min(longest, LONGEST_PAUSE))


class StillPending(Exception):
    """Some messages are not placed yet, and it makes sense to try again."""


class Distrusted(Exception):
    """The transport broke its contract, and what is pending may be with the broker or not."""


class Load:
    """The messages of one turn: which are still to be placed, and what became of the others.

    `error` ended the turn before all were placed.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self.pending = {id(message): message for message in messages}
        self.causes: dict[int, NotSent] = {}
        self.doubtful: set[int] = set()
        self.error: Exception | None = None

    def note(self, error: NotSent) -> None:
        """What was placed is done, and what can never be placed is done too."""
        failed = {id(message): cause for message, cause in error.failures}
        self.causes |= failed
        self.doubtful |= {key for key, cause in failed.items() if isinstance(cause, Unconfirmed)}
        self.pending = {
            key: message
            for key, message in self.pending.items()
            if isinstance(failed.get(key), WORTH_ANOTHER_TRY)
        }

    def doubt(self, cause: Unconfirmed) -> None:
        """Nobody knows what became of what is pending."""
        self.causes |= dict.fromkeys(self.pending, cause)
        self.doubtful.update(self.pending)

    def went_well(self) -> bool:
        """All was placed, and none of it in more than one try."""
        return not self.pending and not self.causes

    def was_answered(self) -> bool:
        """Whether the broker refused, in the last try, each message that is still to be placed."""
        refusals = (Unroutable, QueueFull)
        return all(isinstance(self.causes.get(key), refusals) for key in self.pending)

    def unroutable(self) -> bool:
        return any(isinstance(self.causes.get(key), Unroutable) for key in self.pending)

    def cause(self, message: Message) -> NotSent | None:
        """Why `message` was not placed, or None if it was."""
        cause = self.causes.get(id(message))
        if id(message) in self.pending:
            cause = cause or Unconfirmed(str(self.error or "time is up"))
        elif isinstance(cause, WORTH_ANOTHER_TRY):
            return None  # of a try before the one that placed it
        if cause and id(message) in self.doubtful and not isinstance(cause, Unconfirmed):
            return Unconfirmed(f"an earlier try was not confirmed, the last one failed: {cause}")
        return cause

    def untouched(self, message: Message) -> bool:
        """Whether `message` was never handed to a broker that might have kept it."""
        return id(message) in self.pending and id(message) not in self.doubtful


class Line:
    """Those who want to use the connection. One at a time has the turn: it carries for all that
    wait, and then the first of those who came meanwhile has it. Each is woken by itself: one lock
    for all would go through everybody's hands before the next is carried.

    Whoever is interrupted (Ctrl-C), waiting or carrying, leaves nobody behind without a turn.
    """

    def __init__(self) -> None:
        self.door = threading.Lock()
        self.taken = False
        self.waiting: list[Parcel] = []
        self.expected = 0
        self.took = 0.0
        self.hope = MOST_HOPE

    def wait(self, parcel: Parcel) -> None:
        """Until it has the turn, or was carried. Then `leave`, whatever happens."""
        with self.door:
            if not self.taken:
                self.taken = parcel.has_turn = True
                return
            parcel.asleep = threading.Lock()
            parcel.asleep.acquire()
            self.waiting.append(parcel)
        parcel.asleep.acquire()

    def gather(self, own: Parcel) -> list[Parcel]:
        """What is to be carried: `own`, which has the turn, and what waits."""
        parcels = self.present(own)
        if len(parcels) >= self.expected:
            return parcels
        # Those who were served last time often send again at once: give them a moment to come
        # back. A broker is quicker with one load of all than with two. If nobody comes, the next
        # moment is shorter.
        before, began = len(parcels), time.perf_counter()
        patience = min(self.took * self.hope, LONGEST_HOPE)
        while len(parcels) < self.expected and time.perf_counter() - began < patience:
            time.sleep(GLANCE)
            parcels = self.present(own)
        self.hope = min(self.hope * (1.05 if len(parcels) > before else 0.5), MOST_HOPE)
        return parcels

    def present(self, own: Parcel) -> list[Parcel]:
        with self.door:
            return [own, *(one for one in self.waiting if one.messages and one.to_be_carried())]

    def served(self, seconds: float) -> None:
        """A load was carried, which took so long; nobody whose it was is awake yet."""
        self.expected = 1 + sum(not one.has_turn for one in self.waiting)
        self.took = seconds

    def leave(self, parcel: Parcel) -> None:
        with self.door:
            if parcel in self.waiting:
                self.waiting.remove(parcel)
            if not parcel.has_turn:
                return
            parcel.has_turn = False
            for one in self.waiting:
                if one.carried:
                    one.wake()  # if whoever carried it was interrupted before that
            heir = next((one for one in self.waiting if not one.carried), None)
            self.taken = heir is not None
            if heir is not None:
                heir.has_turn = True
                heir.wake()


class Parcel:
    """What one caller sends, or nothing, by one who merely wants the turn."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.since = time.monotonic()
        self.has_turn = False
        self.carried = False
        self.asleep: threading.Lock | None = None
        self.failures: list[tuple[Message, NotSent]] = []
        self.error: Exception | None = None

    def settle(self, load: Load) -> None:
        if not load.went_well():
            self.failures = [
                (message, cause) for message in self.messages if (cause := load.cause(message))
            ]
            untouched = all(load.untouched(message) for message in self.messages)
            self.error = load.error if untouched else None
            if len(self.failures) == len(self.messages):
                self.error = self.error or common_reason(self.failures)
        self.carried = True

    def to_be_carried(self) -> bool:
        """By whoever else has the turn."""
        return not (self.carried or self.has_turn)

    def wake(self) -> None:
        """Of one that had to wait; safe to call twice."""
        assert self.asleep is not None
        with suppress(RuntimeError):  # it is awake
            self.asleep.release()

    def tell(self) -> None:
        """Raise what the caller has to know, if anything."""
        if self.failures and self.error:
            raise self.error
        if self.failures:
            raise not_sent(self.failures, len(self.messages))


def not_sent(failures: list[tuple[Message, NotSent]], total: int) -> NotSent:
    """One error for all: of the kind of its cause if there is but one message."""
    sent = total - len(failures)
    cause = failures[0][1]
    if total == 1:
        return type(cause)(str(cause), failures=failures, sent=sent, hint=cause.hint)
    told = f"{len(failures)} of {total} messages were not sent: {cause}"
    return NotSent(told, failures=failures, sent=sent, hint=cause.hint)


def make_message(
    payload: object,
    *,
    id: str | None = None,
    headers: Mapping[str, Any] | None = None,
    priority: int = DEFAULT_PRIORITY,
    delay: float = 0.0,
    ttl: float | None = None,
    content_type: str | None = None,
    type: str | None = None,
    correlation_id: str | None = None,
    reply_to: str | None = None,
) -> Message:
    """A message as `Producer.send` makes it. Raises BadPayload."""
    body, natural_type = encode(payload)
    message = Message(
        body=body,
        id=id or new_id(),
        content_type=content_type or natural_type,
        type=type,
        headers=dict(headers or {}),
        priority=priority,
        delay=delay,
        ttl=ttl,
        correlation_id=correlation_id,
        reply_to=reply_to,
        sent_at=time.time(),
    )
    return check_message(message)


def check_message(message: Message) -> Message:
    """`message` with the time at which it expires, if it does. Raises BadPayload for what no
    transport can promise."""
    if message.headers:
        check_headers(message.headers)
    for name, text in zip(SHORT_TEXTS, short_texts(message), strict=True):
        if text and not (text.isascii() and len(text) <= 255):
            check_short(name, text)
    if not 0 <= message.priority <= 9:
        raise BadPayload(f"priority {message.priority}: choose between 0 and 9")
    if not 0 <= message.delay <= LONGEST_DELAY:
        raise BadPayload(f"delay {message.delay:g} s: choose between 0 and 30 days")
    if message.ttl is None:
        return message
    if not 0.001 <= message.ttl <= LONGEST_TTL:
        raise BadPayload(f"ttl {message.ttl:g} s: choose between 1 ms and 10 years")
    expires_at = time.time() + message.delay + message.ttl
    return replace(message, headers={**message.headers, EXPIRES_AT: expires_at})


def check_short(name: str, text: str) -> None:
    if not encodable(text) or len(text.encode()) > 255:
        raise BadPayload(f"{name} {text[:20]!r}…: text of at most 255 bytes, please")


class Pace:
    """How many messages of a source go in one chunk: more as long as they go quickly.

    What is left of a chunk is waited for before the next is begun, so a chunk should not be small;
    and it has no more time than one message, so where sending is slow it should not be large.
    """

    def __init__(self) -> None:
        self.messages = CHUNK_MESSAGES

    def adjust(self, count: int, seconds: float) -> None:
        """To what `count` messages took."""
        within_reach = int(count * QUICK / max(seconds, 1e-6))
        most = min(2 * self.messages, MOST_MESSAGES)
        self.messages = max(CHUNK_MESSAGES, min(within_reach, most))


def in_chunks(payloads: Iterable[object], pace: Pace) -> Iterator[list[Message]]:
    """Lists of messages, as long as is good for the broker and as short as the source is slow.

    If the source fails, what it gave before is still handed on first.
    """
    source = iter(payloads)
    chunk: list[Message] = []
    size = 0
    ids, sent_at = new_ids(), 0.0
    now = began = 0.0
    failure: Exception | None = None
    while True:
        if not chunk:
            now = began = time.perf_counter()
        asked = now
        try:
            payload = next(source)
            now = time.perf_counter()
            slow = now - asked > SLOW_SOURCE
            if slow or not chunk:
                ids, sent_at = new_ids(), time.time()
            body, content_type = encode(payload)
        except StopIteration:
            break
        except Exception as error:  # noqa: BLE001 - raised once its chunk is sent
            failure = error
            break
        chunk.append(Message(body=body, id=next(ids), content_type=content_type, sent_at=sent_at))
        size += len(body)
        enough = len(chunk) >= pace.messages or size >= CHUNK_BYTES or now - began > QUICK
        if slow or enough:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
    if failure is not None:
        raise failure
