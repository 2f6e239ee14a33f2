"""How a message waits in RabbitMQ for any time up to 30 days. Pure: nothing is sent here.

RabbitMQ drops or dead-letters a message after a time, but the same one for a whole queue: behind
a message that waits for an hour, one that waits for a second would wait for an hour as well. So
there is a queue for each power of two of a tenth of a second, and a message goes through those
whose sum is its delay, the longest first:

    exchange workqueue.delay.4 ──1──▶ queue workqueue.delay.4 (1.6 s) ──dead-letters to──┐
                 └────────0──────────────▶ exchange workqueue.delay.3 ◀──────────────────┘
                                            ⋮
                                           exchange workqueue.due ──▶ queue NAME

The routing key is the delay in binary, a word for each digit, and the destination. All messages of
a queue have the same time to live there, so they leave it in the order in which they came. Each
hop is made safe before the last one is given up (dead-lettering "at-least-once"). What is due for a
queue that is gone goes to `workqueue.undeliverable`: it would else hold up everybody.

Sources: RabbitMQ documentation, "Time-to-Live and Expiration", "Quorum queues" (section "Dead
letter strategy"), "Alternate exchanges"; tried on 3.10, 4.0 and 4.3.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from workqueue.transports.rabbitmq.topology import dead_arguments

TICK = 0.1
"""Seconds. Delays are rounded up to this."""

LEVELS = 25
"""Digits of a delay: 2**25 ticks are 38 days."""

LONGEST_TICKS = (1 << LEVELS) - 1

DUE = "workqueue.due"
UNDELIVERABLE = "workqueue.undeliverable"

PREFIX = "workqueue.delay."
HIGH_PREFIX = "workqueue.delay.high."
"""Up to RabbitMQ 4.2, a quorum queue keeps messages of a priority over 4 apart and hands them out
first, but looks for what has expired only at its head. So these have a ladder of their own."""

LONGEST_KEY = 255 - 2 * LEVELS
"""Bytes that a routing key leaves for the destination."""


class Level(msgspec.Struct, frozen=True):
    """One step: an exchange, and the queue in which 2**number ticks pass."""

    prefix: str
    number: int

    @property
    def name(self) -> str:
        """Of the exchange and of the queue."""
        return f"{self.prefix}{self.number}"

    @property
    def next(self) -> str:
        """The exchange that comes after it."""
        return f"{self.prefix}{self.number - 1}" if self.number else DUE

    @property
    def waits(self) -> str:
        """The routing keys that stop here."""
        return "*." * (LEVELS - 1 - self.number) + "1.#"

    @property
    def passes(self) -> str:
        """The routing keys that go on at once."""
        return "*." * (LEVELS - 1 - self.number) + "0.#"

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the queue. No x-expires: it deletes queues with messages in them."""
        return {
            "x-queue-type": "quorum",
            "x-message-ttl": int(TICK * 1000) << self.number,
            "x-dead-letter-exchange": self.next,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }


class Binding(NamedTuple):
    """What is published to the exchange `source` with a key like `key` goes to `target`."""

    source: str
    target: str
    key: str
    to_queue: bool


class Part(NamedTuple):
    """A queue or an exchange of the ladder; `kind` is the type of an exchange.

    `bindings` are those of an exchange: to its own queue, and to the exchange that comes after it.
    """

    name: str
    is_queue: bool
    kind: str = ""
    arguments: Mapping[str, Any] | None = None
    bindings: tuple[Binding, ...] = ()

    def __str__(self) -> str:
        return f"{'queue' if self.is_queue else 'exchange'} {self.name}"


def parts(top: Level) -> Iterator[Part]:
    """All of the ladder up to `top`, each after those that it leads to."""
    # Where messages go that lead nowhere any more.
    yield Part(UNDELIVERABLE, True, arguments=undeliverable_arguments())
    to_queue = Binding(UNDELIVERABLE, UNDELIVERABLE, "", to_queue=True)
    yield Part(UNDELIVERABLE, False, "fanout", bindings=(to_queue,))
    yield Part(DUE, False, "topic", {"alternate-exchange": UNDELIVERABLE})
    for number in range(top.number + 1):
        level = Level(top.prefix, number)
        waits = Binding(level.name, level.name, level.waits, to_queue=True)
        passes = Binding(level.name, level.next, level.passes, to_queue=False)
        yield Part(level.name, True, arguments=level.arguments)
        yield Part(level.name, False, "topic", bindings=(waits, passes))


def highest_level(names: Iterable[str], prefix: str) -> Level | None:
    """The highest level of which a queue or an exchange is among `names`."""
    numbers = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    found = [int(number) for number in numbers if number.isdecimal() and int(number) < LEVELS]
    return Level(prefix, max(found)) if found else None


def ticks_of(delay: float) -> int:
    """How many ticks to wait: never less than `delay`."""
    return min(max(1, math.ceil(delay / TICK)), LONGEST_TICKS)


def first_level(delay: float, *, high: bool) -> Level:
    """Where a message with this delay begins to wait."""
    return Level(HIGH_PREFIX if high else PREFIX, ticks_of(delay).bit_length() - 1)


def routing_key(delay: float, queue: str) -> str:
    """The way of a message that is to wait `delay` seconds and then go to `queue`."""
    digits = format(ticks_of(delay), f"0{LEVELS}b")
    return ".".join(digits) + "." + destination(queue)


def delivery_key(queue: str) -> str:
    """With what `queue` is bound to the exchange of what is due."""
    return "*." * LEVELS + destination(queue)


def destination(queue: str) -> str:
    """One word that stands for `queue` and for no other, whatever it is called.

    Dots would make it several words, and * and # are words that stand for others.
    """
    word = quote(queue, safe="").replace(".", "%2E")
    if len(word) <= LONGEST_KEY:
        return word
    return "sha256%" + hashlib.sha256(queue.encode()).hexdigest()


def undeliverable_arguments() -> dict[str, Any]:
    """Of the queue for what was due for a queue that is gone."""
    return dead_arguments()


def is_level(queue: str) -> bool:
    """Whether this is a queue in which messages wait for their time."""
    return queue.startswith(PREFIX)


def without_waiting(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """`headers` without what RabbitMQ noted about the hops of a delay.

    Each of them was a dead-lettering, and the message is none the deader for it.
    """
    if not is_level(str(headers.get("x-first-death-queue", ""))):
        return headers
    deaths = headers.get("x-death")
    left = [
        death
        for death in (deaths if isinstance(deaths, list) else [])
        if not (isinstance(death, dict) and is_level(str(death.get("queue", ""))))
    ]
    kept = {
        name: value
        for name, value in headers.items()
        if name != "x-death" and not name.startswith(("x-first-death-", "x-last-death-"))
    }
    return {**kept, "x-death": left} if left else kept
