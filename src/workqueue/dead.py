"""Dead letters: what was set aside, by us or by the broker, why, and how to bring it back.

Everything here goes over the seam alone, so it is the same on every transport: messages are lent
from the dead-letter queue, and what is not to go is handed back.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from msgspec.structs import replace

from workqueue.careful import CarefulConsumer
from workqueue.errors import (
    LookCutShort,
    NotSent,
    QueueNotFound,
    Unconfirmed,
    account_fault,
    class_name,
)
from workqueue.message import Delivery, Message
from workqueue.transport import DEAD_SUFFIX, Ack, Transport
from workqueue.transports.copies import (
    DEAD_AT,
    ERROR,
    FAILURES,
    ORIGIN,
    OUR_HEADERS,
    REASON,
    WORKER,
    answerable,
    attempt_of,
    last_death,
    without_brokers_own,
)

OURS = OUR_HEADERS
"""Headers about a message's life, which a message that is sent again begins anew."""

BATCH = 500
"""Letters that are lent at once while they are brought back or dropped."""

QUIET = 1.0
"""Seconds without a letter after which it is asked whether there are more."""

SLOW = 10.0
"""Seconds without a letter after which a look ends although there are more: the broker is slow."""

CONFIRM_TIMEOUT = 30.0

HOLDING_SUFFIX = ".moving"
"""RabbitMQ: NAME.moving holds the messages of NAME while NAME is migrated."""

BROKERS_REASONS = {
    "expired": "expired",
    "rejected": "rejected by another client",
    "maxlen": "the queue was full",
    "delivery_limit": "workers were lost while they had it, more often than the queue allows",
}
"""RabbitMQ's words for why it set a message aside. Source: its documentation, "Dead letter
exchanges"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was set aside from `queue`, with what is known of its end.

    `attempt` is how often it was tried, `reason` one line, `error` the end of a traceback or of a
    command's stderr, `dead_at` the time in seconds since 1970, `worker` the HOST:PID that set it
    aside, if it was one of ours. `message` is as it would be sent
    again: the same id, body, properties and headers, without what its life has added to them.
    """

    queue: str
    message: Message
    attempt: int
    reason: str
    error: str
    dead_at: float | None
    worker: str | None = None

    @property
    def id(self) -> str | None:
        return self.message.id


class DeadLetters:
    """Of one queue; `Queue.dead` gives it. Thread-safe; holds no connection."""

    def __init__(self, transport: Transport, queue: str) -> None:
        self.transport = transport
        self.queue = queue

    @property
    def name(self) -> str:
        return self.queue + DEAD_SUFFIX

    def letters(
        self, *, ids: Collection[str] = (), error: str | None = None, limit: int | None = None
    ) -> Iterator[DeadLetter]:
        """Those with one of `ids`, or whose reason or error contains `error`, or else all; at most
        `limit`. They are lent until the end, and all handed back then.

        Raises QueueNotFound; LookCutShort, after those that came, if there are more and they do
        not come within 10 seconds.
        """
        there = self.count()
        if there is None:
            return
        found = 0
        missing = set(ids)
        with closing(CarefulConsumer(self.transport, self.name, 0)) as consumer:
            for batch in self.batches(consumer, there):
                for _, letter in chosen(batch, ids, error):
                    yield letter
                    found += 1
                    if found == limit:
                        return
                    missing.discard(letter.id or "")
                if ids and not missing:
                    return

    def requeue(
        self, *, ids: Collection[str] = (), error: str | None = None, limit: int | None = None
    ) -> list[str | None]:
        """Send them to their queue again, as new: attempts begin at one. Their ids.

        Each is confirmed before it is taken away here, so that being interrupted at any point
        leaves one too many, never one too few. Raises QueueNotFound; NotSent, once all others were
        brought back, with those whose queue did not take them; LookCutShort as `letters` does.
        """
        return list(self.each_requeued(ids=ids, error=error, limit=limit))

    def each_requeued(
        self, *, ids: Collection[str] = (), error: str | None = None, limit: int | None = None
    ) -> Iterator[str | None]:
        """As `requeue`, giving each id when that letter was brought back: not all of them are kept
        in memory."""
        failures: list[tuple[Message, NotSent]] = []
        done = 0
        with closing(self.transport.publisher()) as publisher:
            for consumer, letters in self.each_batch(ids, error, limit):
                back: list[Delivery] = []
                for queue in dict.fromkeys(letter.queue for _, letter in letters):
                    bound_for = [pair for pair in letters if pair[1].queue == queue]
                    failed = self.send(publisher, queue, [letter for _, letter in bound_for])
                    failures += failed
                    lost = {id(message) for message, _ in failed}
                    back += [d for d, letter in bound_for if id(letter.message) not in lost]
                consumer.settle([Ack(delivery) for delivery in back])
                done += len(back)
                yield from [delivery.message.id for delivery in back]
        if failures:
            told = f"{len(failures)} were not brought back: {failures[0][1]}"
            raise NotSent(told, failures=failures, sent=done)

    def drop(
        self, *, ids: Collection[str] = (), error: str | None = None, limit: int | None = None
    ) -> list[str | None]:
        """Forget them. Their ids. Raises QueueNotFound; LookCutShort as `letters` does."""
        return list(self.each_dropped(ids=ids, error=error, limit=limit))

    def each_dropped(
        self, *, ids: Collection[str] = (), error: str | None = None, limit: int | None = None
    ) -> Iterator[str | None]:
        """As `drop`, giving each id when that letter is gone."""
        for consumer, letters in self.each_batch(ids, error, limit):
            consumer.settle([Ack(delivery) for delivery, _ in letters])
            yield from [letter.id for _, letter in letters]

    # -- over the seam

    def count(self) -> int | None:
        """How many there are, as far as the broker says. None where there can be none: a queue of
        others, or a dead-letter queue, may have no dead-letter queue of its own. Raises
        QueueNotFound if the queue is not there either."""
        try:
            return self.transport.stats(self.name).ready or 0
        except QueueNotFound:
            self.transport.stats(self.queue)
            return None

    def each_batch(
        self, ids: Collection[str], error: str | None, limit: int | None
    ) -> Iterator[tuple[CarefulConsumer, Sequence[tuple[Delivery, DeadLetter]]]]:
        """The chosen ones in batches, to be settled by the caller. All others are handed back at
        the end: while they are out, they do not come round again."""
        there = self.count()
        if there is None:
            return
        left = limit
        taken: set[str | None] = set()
        prefetch = 0 if ids or error else BATCH
        with closing(CarefulConsumer(self.transport, self.name, prefetch)) as consumer:
            for batch in self.batches(consumer, there, taken):
                letters = chosen(batch, ids, error)[:left]
                if letters:
                    yield consumer, letters
                taken.update(letter.id for _, letter in letters if letter.id)
                if left is not None:
                    left -= len(letters)
                    if left <= 0:
                        break
            finish(consumer)

    def batches(
        self, consumer: CarefulConsumer, there: int, taken: Collection[str | None] = ()
    ) -> Iterator[list[tuple[Delivery, DeadLetter]]]:
        """All that was `there` at the beginning. What dies meanwhile is for another time: what has
        an id that was `taken` before, and, of what comes after as many as there were, what died
        later. Their times alone do not tell: they are of other machines' clocks.

        Silence is no end: then it is asked how many are left, of which those lent to us are none.
        Raises LookCutShort if there are some, and they do not come.
        """
        began = time.time()
        arrived = seen = 0
        last = asked = time.monotonic()
        while True:
            deliveries = consumer.receive(BATCH, 0.1)
            arrived += len(deliveries)
            batch = []
            for delivery in deliveries:
                letter = read_letter(delivery)
                late = seen >= there and (letter.dead_at or 0) > began + 1
                if not late and letter.id not in taken:
                    batch.append((delivery, letter))
                    seen += 1
            if batch:
                yield batch
            elif there and seen >= there and (deliveries or not self.count()):
                return  # not by the first count alone: what was just handed back is not in it yet
            if deliveries:
                last = asked = time.monotonic()  # after the yield: what is done may take long
            elif time.monotonic() - asked > QUIET:
                left = self.count()
                asked = time.monotonic()
                if not left:
                    return
                if asked - last > SLOW:
                    raise LookCutShort(self.name, arrived, arrived + left)

    def send(
        self, publisher: Any, queue: str, letters: Sequence[DeadLetter]
    ) -> list[tuple[Message, NotSent]]:
        """What was not sent. A letter is taken from the dead ones only if its driver accounts for
        it: else all of them stay."""
        messages = [letter.message for letter in letters]
        try:
            publisher.publish(queue, messages, CONFIRM_TIMEOUT)
        except NotSent as error:
            if fault := account_fault(error, {id(message) for message in messages}):
                told = f"the transport is at fault: {class_name(publisher)} {fault}"
                return [(message, Unconfirmed(told)) for message in messages]
            return list(error.failures)
        return []


def finish(consumer: CarefulConsumer) -> None:
    """Let what was settled become final, as far as it does so soon."""
    deadline = time.monotonic() + QUIET
    while time.monotonic() < deadline and consumer.receive(0, 0.01):
        pass


def chosen(
    batch: Sequence[tuple[Delivery, DeadLetter]], ids: Collection[str], error: str | None
) -> list[tuple[Delivery, DeadLetter]]:
    return [
        (delivery, letter)
        for delivery, letter in batch
        if (not ids or letter.id in ids)
        and (error is None or error in letter.reason or error in letter.error)
    ]


def read_letter(delivery: Delivery) -> DeadLetter:
    """What a message in a dead-letter queue says of its end, whoever put it there."""
    headers = delivery.message.headers
    broker_says = last_death(headers)
    if broker_says and REASON in headers:
        # Our copies leave out what the broker noted: it set the message aside after somebody had
        # brought it back, and ours is of the time before.
        headers = as_new(delivery.message).headers
    queue = text_in(headers, ORIGIN) or where_it_died(broker_says)
    reason = text_in(headers, REASON) or brokers_reason(broker_says)
    attempts = headers.get(FAILURES)
    return DeadLetter(
        queue=queue or delivery.queue.removesuffix(DEAD_SUFFIX),
        message=as_new(delivery.message),
        attempt=attempts if isinstance(attempts, int) and attempts > 0 else attempt_of(headers),
        reason=reason,
        error=text_in(headers, ERROR),
        dead_at=moment_of(headers.get(DEAD_AT, broker_says.get("time"))),
        worker=text_in(headers, WORKER) or None,
    )


def as_new(message: Message) -> Message:
    headers = {
        name: value
        for name, value in without_brokers_own(message.headers).items()
        if name not in OURS
    }
    return replace(answerable(message), headers=headers)


def where_it_died(death: Mapping[str, Any]) -> str:
    """A queue's name; of what expired while its queue was migrated, that queue's."""
    return str(death.get("queue") or "").removesuffix(HOLDING_SUFFIX)


def brokers_reason(death: Mapping[str, Any]) -> str:
    reason = str(death.get("reason") or "")
    return BROKERS_REASONS.get(reason, reason or "put here by hand")


def text_in(headers: Mapping[str, Any], name: str) -> str:
    value = headers.get(name)
    return value if isinstance(value, str) else ""


def moment_of(value: object) -> float | None:
    match value:
        case bool():
            return None
        case int() | float():
            return float(value)
        case datetime():
            return value.timestamp()
    return None
