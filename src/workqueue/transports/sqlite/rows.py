"""A message as a row, and a row as a message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from workqueue.errors import NotSent, Refused, TooLarge
from workqueue.message import Message
from workqueue.transports.forms import Form, in_form

Row = tuple[Any, ...]
"""What `unpack` takes: priority, id, content_type, content_encoding, type, correlation_id,
reply_to, app_id, sent_at, headers, body."""


class Parcel(NamedTuple):
    """A message ready to be stored: its row, its bytes, and what was asked about its time."""

    row: Row
    size: int
    delay: float
    ttl: float | None


OVERHEAD = 1_000
"""Bytes of a row beside texts, headers and body; generously."""


def pack(message: Message, largest: int) -> Parcel:
    """`message` as it is stored. Raises Refused or TooLarge for one that SQLite cannot keep.

    Everything is tried here, so that one message cannot spoil the transaction of the others.
    `largest` is how many bytes SQLite takes for a row.
    """
    texts = (
        message.id,
        message.content_type,
        message.content_encoding,
        message.type,
        message.correlation_id,
        message.reply_to,
        message.app_id,
    )
    try:
        headers = pack_headers(message.headers)
        text = "".join(filter(None, texts))
        length = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise Refused(f"a value of message {message.id!a} cannot be stored: {error}") from error
    if not -(2**63) <= message.priority < 2**63:
        raise Refused(f"message {message.id!a}: its priority needs more than 64 bits")
    length += len(headers or b"") + len(message.body) + OVERHEAD
    if length > largest:
        raise TooLarge(f"message {message.id!a} has {length} bytes: SQLite takes up to {largest}")
    row = (message.priority, *texts, message.sent_at, headers, message.body)
    return Parcel(row, length, message.delay, message.ttl)


def pack_copy(copy: Message, largest: int) -> Parcel:
    """The copy that a retry or a dead letter makes, in the largest form that SQLite can keep.

    Raises TooLarge or Refused for one that it can keep in none: the message itself fills a row.
    """
    for form in Form:
        copy = in_form(copy, form)
        with suppress(NotSent):
            return pack(copy, largest)
    return pack(copy, largest)


def pack_all(
    messages: Sequence[Message], largest: int
) -> tuple[dict[int, Parcel], dict[int, NotSent]]:
    """Parcels, and causes where there can be none, by the message's place in `messages`."""
    parcels: dict[int, Parcel] = {}
    causes: dict[int, NotSent] = {}
    for index, message in enumerate(messages):
        try:
            parcels[index] = pack(message, largest)
        except NotSent as cause:
            causes[index] = cause
    return parcels, causes


def pack_headers(headers: Mapping[str, Any]) -> bytes | None:
    return msgspec.msgpack.encode(dict(headers)) if headers else None


def unpack(row: Row) -> tuple[Message, str | None]:
    """The message, and why its headers cannot be read if they cannot."""
    priority, id_, content_type, encoding, type_, correlation, reply_to, app_id = row[:8]
    sent_at, packed, body = row[8:]
    headers, unreadable = unpack_headers(packed)
    message = Message(
        body=body,
        id=id_,
        content_type=content_type,
        content_encoding=encoding,
        type=type_,
        headers=headers,
        priority=priority,
        correlation_id=correlation,
        reply_to=reply_to,
        app_id=app_id,
        sent_at=sent_at,
    )
    return message, unreadable


def unpack_headers(packed: bytes | None) -> tuple[dict[str, Any], str | None]:
    if packed is None:
        return {}, None
    try:
        return msgspec.msgpack.decode(packed), None
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        # One message that cannot be read must not take down every worker that meets it.
        return {}, f"headers that cannot be read: {error}"
