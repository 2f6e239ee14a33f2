"""A message as one line of JSON: what the commands that look print, and `send --envelope` reads."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from workqueue.codec import JSON, TEXT, check_headers
from workqueue.dead import OURS, DeadLetter
from workqueue.errors import BadPayload
from workqueue.message import DEFAULT_PRIORITY, Delivery, Message, new_id
from workqueue.transports.copies import without_brokers_own

MOST_PRIORITY = 255
"""What a message of another client may have, and keeps in a copy."""


def record_of(message: Message) -> dict[str, Any]:
    """`message` as an object whose line `read_envelope` takes."""
    record: dict[str, Any] = {"id": message.id}
    try:
        record["body"] = message.body.decode()
    except UnicodeDecodeError:
        record["body_base64"] = base64.b64encode(message.body).decode()
    record |= {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": {name: sayable(value) for name, value in message.headers.items()},
        "type": message.type,
        "priority": message.priority,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "app_id": message.app_id,
    }
    if binary := [pointer for pointer, _, _ in values_of(message.headers, bytes)]:
        record["headers_base64"] = binary
    return record


def values_of(headers: Any, kind: type) -> Iterator[tuple[str, Any, Any]]:
    """Each value of this kind in tables and lists: its JSON pointer (RFC 6901), and the table or
    list and the key or index under which it is."""
    waiting: list[tuple[str, Any]] = [("", headers)]
    while waiting:
        pointer, holder = waiting.pop()
        items = holder.items() if isinstance(holder, dict) else enumerate(holder)
        for key, value in items:
            step = f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"
            if isinstance(value, kind):
                yield step, holder, key
            elif isinstance(value, dict | list | tuple):
                waiting.append((step, value))


def sayable(value: Any) -> Any:
    """A header's value as JSON can say it."""
    try:
        return msgspec.to_builtins(value, str_keys=True)
    except TypeError:
        return str(value)


def delivery_record(delivery: Delivery) -> dict[str, Any]:
    """A message that was looked at as such an object, with its attempt."""
    headers = {
        name: value
        for name, value in without_brokers_own(delivery.message.headers).items()
        if name not in OURS
    }
    record = record_of(replace(delivery.message, headers=headers))
    return record | {"queue": delivery.queue, "attempt": delivery.attempt}


def letter_record(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as such an object, with its end."""
    return record_of(letter.message) | {
        "queue": letter.queue,
        "attempt": letter.attempt,
        "reason": letter.reason,
        "error": letter.error,
        "sent_at": letter.message.sent_at,
        "dead_at": letter.dead_at,
        "worker": letter.worker,
    }


class Envelope(msgspec.Struct):
    """The keys that are taken; others, such as the death, are left behind. `headers_base64` are
    JSON pointers to what in `headers` is bytes. The attempt tells what was received from what was
    written by hand."""

    id: str | None = None
    body: Any = None
    body_base64: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    type: str | None = None
    headers: dict[str, Any] = {}
    priority: int = DEFAULT_PRIORITY
    headers_base64: list[str] = []
    attempt: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    app_id: str | None = None


def read_envelope(line: bytes) -> Message:
    """The message in `line`, to be sent as new under its own id. Raises BadPayload."""
    try:
        envelope = msgspec.json.decode(line, type=Envelope)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadPayload(f"not an envelope: {error}") from error
    body, natural_type = body_of(envelope)
    headers = {
        name: value
        for name, value in without_brokers_own(envelope.headers).items()
        if not name.startswith("workqueue-")
    }
    restore_bytes(headers, frozenset(envelope.headers_base64))
    check_headers(headers)
    most = MOST_PRIORITY if envelope.attempt is not None else 9
    if not 0 <= envelope.priority <= most:
        raise BadPayload(f"priority {envelope.priority}: choose between 0 and {most}")
    return Message(
        body=body,
        id=envelope.id or new_id(),
        content_type=envelope.content_type or natural_type,
        content_encoding=envelope.content_encoding,
        type=envelope.type,
        headers=headers,
        priority=envelope.priority,
        correlation_id=envelope.correlation_id,
        reply_to=envelope.reply_to,
        app_id=envelope.app_id,
        sent_at=time.time(),
    )


def restore_bytes(headers: dict[str, Any], pointers: frozenset[str]) -> None:
    """What `pointers` name is bytes again, as far as it is still there. Raises BadPayload."""
    for pointer, holder, key in values_of(headers, str) if pointers else ():
        if pointer in pointers:
            try:
                holder[key] = base64.b64decode(holder[key], validate=True)
            except ValueError as error:
                raise BadPayload(f"header {pointer} is not base64: {error}") from error


def body_of(envelope: Envelope) -> tuple[bytes, str | None]:
    """A string is the body itself; any other JSON value is one to be sent as JSON."""
    if envelope.body_base64 is not None:
        try:
            return base64.b64decode(envelope.body_base64, validate=True), None
        except (binascii.Error, ValueError) as error:
            raise BadPayload(f"body_base64 is not base64: {error}") from error
    if isinstance(envelope.body, str):
        return envelope.body.encode(), TEXT
    if envelope.body is None:
        raise BadPayload("the envelope has no body")
    return msgspec.json.encode(envelope.body), JSON
