"""The copies that a Retry or a Reject makes, the same on every transport.

What we know of a message's past rides in its headers: how often it failed, and, once it is dead,
why, when and where. So every transport counts alike, any language can read it, and a dead letter
is an ordinary message that can be sent again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from workqueue.message import EXPIRES_AT, Delivery, Message, new_id
from workqueue.transport import DEAD_SUFFIX

FAILURES = "workqueue-failures"
REASON = "workqueue-reason"
ERROR = "workqueue-error"
DEAD_AT = "workqueue-dead-at"
ORIGIN = "workqueue-queue"
WORKER = "workqueue-worker"
DEATHS = "workqueue-deaths"

LONGEST_REASON = 1_000
LONGEST_ERROR = 8_000
"""Characters. All headers together must fit one AMQP frame (128 KiB)."""

LONGEST_TEXT = 255
"""Bytes of UTF-8 of a property."""

OUR_HEADERS = frozenset({FAILURES, REASON, ERROR, DEAD_AT, ORIGIN, WORKER, DEATHS, EXPIRES_AT})
"""Headers about a message's life, which begins anew when the message is sent again."""

DIRECT_REPLY_TO = "amq.rabbitmq.reply-to"
"""An address that means something on the channel alone on which it was sent. RabbitMQ refuses it on
any other, and closes that. Source: its documentation, "Direct Reply-to"."""

# What a broker writes into the headers about its own doings. In a copy it would be stale, or be
# taken for a dead-letter cycle, which RabbitMQ ends by dropping the message.
BROKERS_OWN = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
BROKERS_OWN_PREFIXES = ("x-first-death-", "x-last-death-")


def as_lent(message: Message, queue: str) -> Message:
    """`message` as a consumer of `queue` hands it out: without its past, if somebody brought it
    back from a dead-letter queue, by whatever way."""
    if not message.headers or not was_brought_back(message.headers, queue):
        return message
    headers = {name: value for name, value in message.headers.items() if name not in OUR_HEADERS}
    return replace(message, headers=headers)


def was_brought_back(headers: Mapping[str, Any], queue: str) -> bool:
    """Whether a message in `queue` died before, and is not a dead letter any more.

    Our copies of what is alive have neither our record of a death nor the broker's. In a queue of
    dead letters it is one, whatever queue it died in, unless it died in this very one.
    """
    if DEAD_AT not in headers and REASON not in headers and not last_death(headers):
        return False
    return not queue.endswith(DEAD_SUFFIX) or headers.get(ORIGIN) == queue


def last_death(headers: Mapping[str, Any]) -> Mapping[str, Any]:
    """RabbitMQ's own record of the last time that it set the message aside; empty if it did not.

    Its records of what happened to the message among dead letters tell nothing of the task.
    """
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else []:
        if isinstance(death, dict) and not str(death.get("queue")).endswith(DEAD_SUFFIX):
            return death
    return {}


def attempt_of(headers: Mapping[str, Any]) -> int:
    """Which attempt the next one is: one more than the failures on record.

    Headers come from anybody: whatever is not a sensible number counts as no failure.
    """
    failures = headers.get(FAILURES, 0)
    if isinstance(failures, int) and 0 < failures < 1_000_000:
        return failures + 1
    return 1


def retry_copy(delivery: Delivery, delay: float = 0.0, *, failed: bool = True) -> Message:
    """The message as it is to be tried again: all else but the failures as it was."""
    headers = without_brokers_own(delivery.message.headers)
    headers.pop(DEATHS, None)
    if failed:
        headers[FAILURES] = delivery.attempt
    return replace(copy_with(delivery.message, headers), delay=delay)


def dead_copy(
    delivery: Delivery, reason: str, error: str, at: float, worker: str | None = None
) -> Message:
    """The message as it lies in the dead-letter queue. `at` is in seconds since 1970; `worker` set
    it aside, if it was one."""
    headers = without_brokers_own(delivery.message.headers)
    headers[FAILURES] = delivery.attempt
    headers[REASON] = reason[:LONGEST_REASON]
    headers[DEAD_AT] = at
    headers[ORIGIN] = delivery.queue
    for stale in (ERROR, DEATHS, WORKER):
        headers.pop(stale, None)
    if worker:
        headers[WORKER] = worker
    if error:
        headers[ERROR] = error[-LONGEST_ERROR:]
    return copy_with(delivery.message, headers)


def this_worker() -> str:
    """This process, as people find it: HOST:PID."""
    return f"{os.uname().nodename}:{os.getpid()}"


def survivor_copy(delivery: Delivery) -> Message:
    """The message as it is handed out again, after another worker was lost with it."""
    headers = without_brokers_own(delivery.message.headers)
    counted = headers.get(DEATHS)
    headers[DEATHS] = (counted if isinstance(counted, int) and counted > 0 else 0) + 1
    return copy_with(delivery.message, headers)


def bare_copy(message: Message) -> Message:
    """`message` with no headers but ours and no text too long, for when it cannot be copied whole.

    A stranger may have sent what comes out longer than it went in (what is not UTF-8 is escaped),
    or values that can be read but not said. Left as it is, it could not even be set aside.
    """
    kept = {
        name: value[-LONGEST_ERROR:] if isinstance(value, str) else value
        for name, value in message.headers.items()
        if name in OUR_HEADERS and isinstance(value, str | int | float)
    }
    return replace(with_short_texts(message), headers=kept)


def with_short_texts(message: Message) -> Message:
    """`message` with each text cut to what a property of AMQP holds."""
    return replace(
        message,
        id=short(message.id),
        content_type=short(message.content_type),
        content_encoding=short(message.content_encoding),
        type=short(message.type),
        correlation_id=short(message.correlation_id),
        reply_to=short(message.reply_to),
        app_id=short(message.app_id),
    )


def short(text: str | None) -> str | None:
    """As much of `text` as an AMQP property holds."""
    if text is None:
        return None
    return text.encode("utf-8", "replace")[:LONGEST_TEXT].decode("utf-8", "ignore")


def copy_with(message: Message, headers: dict[str, Any]) -> Message:
    """A foreign message may have no id; its copy gets one, so that it can be named."""
    return replace(answerable(message), id=message.id or new_id(), headers=headers)


def answerable(message: Message) -> Message:
    """`message` without an address to which nobody can answer from here."""
    return replace(message, reply_to=None) if message.reply_to == DIRECT_REPLY_TO else message


def without_brokers_own(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in headers.items()
        if name not in BROKERS_OWN and not str(name).startswith(BROKERS_OWN_PREFIXES)
    }
