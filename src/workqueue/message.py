"""What travels: a Message is sent, a Delivery is lent to a worker, a Job is what a handler sees."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct, field

from workqueue.forks import Lock

Payload = TypeVar("Payload")

DEFAULT_PRIORITY = 4
"""What RabbitMQ 4.3 gives a message without a priority; sent always, so that every version agrees.

Source: RabbitMQ documentation, "Quorum queues", section "Priorities".
"""

EXPIRES_AT = "workqueue-expires-at"
"""The header with the time, in seconds since 1970, after which a message is not to be worked on any
more. It travels with all copies; the broker's own `expiration` ends with the first of them."""

LONGEST_DELAY = 30 * 86_400.0
LONGEST_TTL = 10 * 365 * 86_400.0
"""Seconds."""


class Message(Struct, frozen=True, kw_only=True, gc=False):
    """Body and properties, as they are on the wire: there is no envelope around the body.

    The names are those of AMQP's basic properties; `id` is its `message_id` and `sent_at` its
    `timestamp`, in seconds since 1970. A message of a foreign sender may lack all of them.

    `delay` and `ttl` are asked of the broker when it is sent, in seconds: how long it waits there
    before it is ready, and how long it may then wait for a worker before it is a dead letter. In
    what was received they are 0 and None.

    A changed copy is made by `msgspec.structs.replace`.
    """

    body: bytes
    id: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    type: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    priority: int = DEFAULT_PRIORITY
    correlation_id: str | None = None
    reply_to: str | None = None
    app_id: str | None = None
    sent_at: float | None = None
    delay: float = 0.0
    ttl: float | None = None


class Delivery(Struct, frozen=True, kw_only=True, eq=False, weakref=True):
    """A message lent to a consumer, which settles it once.

    `attempt` counts from one and goes up with each recorded failure. `redelivered` says that it
    was lent before and came back: the work may have been done already, or half. `deaths` counts
    the times a whole worker was lost with it, as far as the transport can tell. `unreadable`
    says why its properties could not be read, where they could not. `receipt` is the driver's
    own, and means nothing outside it.
    """

    message: Message
    queue: str
    attempt: int = 1
    redelivered: bool = False
    deaths: int = 0
    unreadable: str | None = None
    receipt: Any = None


class Lost:
    """Set once the broker has taken a job's message away, perhaps to hand it to another worker.

    True or false in an `if`; `wait(seconds)` sleeps and returns early, with True, when it is set.
    There is one for every job and hardly any is waited for: the event is made by who waits.
    """

    __slots__ = ("event", "told")

    def __init__(self) -> None:
        self.told = False
        self.event: threading.Event | None = None

    def __bool__(self) -> bool:
        return self.told

    def is_set(self) -> bool:
        return self.told

    def set(self) -> None:
        self.told = True
        if self.event is not None:
            self.event.set()

    def wait(self, timeout: float | None = None) -> bool:
        with making_events:
            self.event = self.event or threading.Event()
        return self.told or self.event.wait(timeout)


making_events = Lock()


class Job(Struct, Generic[Payload], frozen=True, kw_only=True):
    """What a handler sees: the decoded payload, and where it comes from.

    `payload` is what the sender gave to `send`: JSON values, text or bytes; `body` is the same as
    it was on the wire. `id` is None for a foreign message without one. `lost` turns true when
    the broker has taken the message away: what the handler still does may be done twice.
    """

    payload: Payload
    body: bytes
    queue: str
    id: str | None
    attempt: int
    redelivered: bool
    headers: Mapping[str, Any]
    content_type: str | None
    type: str | None
    priority: int
    correlation_id: str | None
    reply_to: str | None
    sent_at: float | None
    lost: Lost


def new_id() -> str:
    """A fresh id that sorts by time: a UUID of version 7 (RFC 9562, section 5.7)."""
    head, number = first_of_series()
    return f"{head}-{number:012x}"


def new_ids() -> Iterator[str]:
    """Ids without end, for what is made at the same time: all of this millisecond, in order.

    Each series has 74 random bits to begin with, and counts on in the last 48 (RFC 9562,
    section 6.2, method 2).
    """
    head, first = first_of_series()
    return (f"{head}-{number:012x}" for number in range(first, first + 2**47))


def first_of_series() -> tuple[str, int]:
    """All of an id but its last 48 bits, and those."""
    moment = time.time_ns() // 1_000_000
    chance = int.from_bytes(os.urandom(10), "big")
    # Version 7 and 12 random bits; variant 2 and 14.
    third, fourth = 0x7000 | chance >> 68, 0x8000 | chance >> 48 & 0x3FFF
    head = f"{moment >> 16:08x}-{moment & 0xFFFF:04x}-{third:04x}-{fourth:04x}"
    return head, chance & 0x7FFF_FFFF_FFFF  # room to count on


EARLIEST = 946_684_800.0
"""Seconds since 1970: the year 2000. A time of sending before that is none; many clients send 0."""

SKEW = 60.0
"""Seconds that a sender's clock may be ahead of ours."""


def seconds_since(sent_at: float | None, now: float) -> float | None:
    """How long ago a message was sent, in seconds; None if its sender does not say, or says what
    cannot be: a time to come, by more than SKEW, or one before EARLIEST. The time is the word of
    its sender, who may be anybody. Both times are in seconds since 1970."""
    if sent_at is None or not EARLIEST <= sent_at <= now + SKEW:
        return None
    return max(0.0, now - sent_at)


TROUBLESOME = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that a terminal may act on, or not show: controls, formats, surrogates."""


def visible(text: str) -> str:
    """`text` of strangers with everything escaped that is not plainly visible.

    So no message can move the cursor, change a window's title, turn the direction of writing, or
    fake a line of a log.
    """
    if text.isprintable():
        return text
    import unicodedata  # rarely needed, and large

    return text.translate(
        {
            ord(char): char.encode("unicode_escape").decode()
            for char in set(text)
            if unicodedata.category(char) in TROUBLESOME
        }
    )
