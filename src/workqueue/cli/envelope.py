"""A message as one line of JSON: what the commands that look print, and `send --envelope` reads."""

from __future__ import annotations

import base64
import binascii
import time
from typing import Any

import msgspec

from workqueue.codec import JSON, TEXT, check_headers
from workqueue.errors import BadPayload
from workqueue.message import DEFAULT_PRIORITY, Message, new_id
from workqueue.transports.copies import without_brokers_own


class Envelope(msgspec.Struct):
    """The keys that are taken; others, such as the attempt and the death, are left behind."""

    id: str | None = None
    body: Any = None
    body_base64: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    type: str | None = None
    headers: dict[str, Any] = {}
    priority: int = DEFAULT_PRIORITY
    correlation_id: str | None = None
    reply_to: str | None = None


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
    check_headers(headers)
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
        sent_at=time.time(),
    )


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
