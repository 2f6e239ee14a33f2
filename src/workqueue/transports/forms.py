"""Smaller forms of a copy that a broker does not take as it is.

A message that was run must get to its place, smaller if need be: what is left out first is what a
person misses least.
"""

from __future__ import annotations

from enum import Enum

from msgspec.structs import replace

from workqueue.message import Message
from workqueue.transports.copies import ERROR, REASON, bare_copy

SHORT_REASON = 200
"""Characters of the reason that a copy without error text keeps."""


class Form(Enum):
    """How much of the message a copy has."""

    WHOLE = "whole"
    SHORT = "without its error text"
    BARE = "without the sender's headers, and with shortened properties"
    LEAST = "without the sender's headers, reply_to, correlation_id and app_id"


def in_form(message: Message, form: Form) -> Message:
    """`message` made as small as `form` says; one of the form before it is expected."""
    match form:
        case Form.WHOLE:
            return message
        case Form.SHORT:
            headers = dict(message.headers)
            headers.pop(ERROR, None)
            if isinstance(reason := headers.get(REASON), str):
                headers[REASON] = reason[:SHORT_REASON]
            return replace(message, headers=headers)
        case Form.BARE:
            return bare_copy(message)
        case Form.LEAST:
            return replace(message, reply_to=None, correlation_id=None, app_id=None)
