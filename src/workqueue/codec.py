"""Between a payload and the bytes on the wire: bytes, text and JSON, and nothing that runs code.

What is sent is the body alone, without an envelope, and its content type says how to read it.
"""

from __future__ import annotations

import base64
import codecs
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from workqueue.errors import BadPayload

JSON = "application/json"
TEXT = "text/plain"
BYTES = "application/octet-stream"

PLAIN_ENCODINGS = frozenset({"", "identity", "binary", "7bit", "8bit"})
"""Content encodings that leave the body as it is: HTTP's, and those of MIME."""

COMPRESSIONS = frozenset(
    [
        "gzip",
        "x-gzip",
        "deflate",
        "zlib",
        "compress",
        "x-compress",
        "br",
        "brotli",
        "zstd",
        "bzip2",
        "x-bzip2",
        "lzma",
        "xz",
        "lz4",
        "snappy",
    ]
)

ODD_CHARSETS = frozenset({"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})
"""Python's own, which no text is sent in, and some of which take time that grows as a square."""

UTF_8 = frozenset({"utf-8", "ascii"})
"""Charsets whose text is UTF-8 as well."""

RUNS_CODE = ("pickle", "python-serialize", "yaml")
"""Parts of content types whose decoders can be made to run code. They cannot be switched on."""


def encode(payload: object) -> tuple[bytes, str]:
    """The body and content type of `payload`: bytes as they are, str as UTF-8, all else as JSON.

    Raises BadPayload for what JSON cannot say: foreign objects, NaN and infinities, lone
    surrogates.
    """
    try:
        if isinstance(payload, bytes | bytearray | memoryview):
            return bytes(payload), BYTES
        if isinstance(payload, str):
            return payload.encode(), TEXT
        body = msgspec.json.encode(payload)
        # msgspec writes NaN and infinities as null: a number would become nothing.
        if b"null" in body and has_nonfinite(msgspec.to_builtins(payload)):
            raise ValueError("JSON has no NaN and no infinity")
        return body, JSON
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise BadPayload(f"this payload cannot be sent: {error}") from error


def has_nonfinite(value: object) -> bool:
    """Whether a float anywhere in these JSON values is NaN or infinite."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case float() as number if not math.isfinite(number):
                return True
            case dict() as table:
                waiting += table.values()
            case list() | tuple() as items:
                waiting += items
    return False


def decode(
    body: bytes,
    content_type: str | None,
    content_encoding: str | None = None,
    headers: Mapping[str, Any] | None = None,
) -> Any:
    """The payload in `body`, by its content type: JSON values, text, or else the bytes themselves.

    A body without a content type, as plain AMQP clients send it, is text if it is UTF-8. The
    content encoding may be base64, or a charset, as some clients have it: that of text and JSON
    which name none. Raises BadPayload, with what a person needs to know, for a body that is not
    what it claims to be, is compressed, or claims to be something that only code could read.
    """
    media, charset = media_type(content_type)
    if runs_code(media):
        raise BadPayload(f"content type {media} is not accepted: reading it could run code")
    if compression := (headers or {}).get("compression"):  # kombu's header
        raise BadPayload(f"the body is compressed ({compression}), which is not supported")
    encoding = (content_encoding or "").strip().lower()
    body, named = without_encoding(body, encoding) if encoding else (body, "")
    if media == JSON or media.endswith("+json"):
        return decode_json(decode_text(body, named).encode() if named else body)
    if media.startswith("text/"):
        return decode_text(body, charset or named or "utf-8")
    if not media:
        return decode_text(body, named) if named else text_if_utf8(body)
    return body


def without_encoding(body: bytes, encoding: str) -> tuple[bytes, str]:
    """The body itself, and the charset if `encoding` is one, where that is not UTF-8.

    Raises BadPayload.
    """
    if encoding in PLAIN_ENCODINGS:
        return body, ""
    if encoding == "base64":
        try:
            return base64.b64decode(body, validate=True), ""
        except ValueError as error:
            raise BadPayload(f"the body is not the base64 it claims to be: {error}") from error
    if encoding in COMPRESSIONS:
        raise BadPayload(f"the body is compressed ({encoding}), which is not supported")
    charset = charset_of(encoding)
    if not charset:
        raise BadPayload(f"the content encoding {encoding} is not known")
    return body, "" if charset in UTF_8 else charset


@lru_cache(256)
def runs_code(media: str) -> bool:
    return any(word in media for word in RUNS_CODE)


@lru_cache(256)
def media_type(content_type: str | None) -> tuple[str, str]:
    """The type and the charset that it names, if any, both in lower case."""
    media, *parameters = (content_type or "").lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip():
            return media.strip(), value.strip().strip('"')
    return media.strip(), ""


@lru_cache(256)
def charset_of(name: str) -> str:
    """Python's own name of a charset; empty if it has none. Raises BadPayload for an odd one."""
    try:
        "a".encode(name)  # refuses codecs that make no text of bytes
        charset = codecs.lookup(name).name
    except (LookupError, ValueError):
        return ""
    if charset.replace("-", "_") in ODD_CHARSETS:
        raise BadPayload(f"the charset {name} is not accepted")
    return charset


def decode_json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadPayload(f"the body is not the JSON it claims to be: {error}") from error


def decode_text(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset_of(charset) or charset)
    except (LookupError, ValueError) as error:
        raise BadPayload(f"the body is not the text it claims to be: {error}") from error


def text_if_utf8(body: bytes) -> str | bytes:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return body


def check_headers(headers: Mapping[str, Any], depth: int = 0) -> None:
    """Raise BadPayload unless `headers` can travel on every transport.

    Names are text of 1 to 255 bytes; values are None, bool, 64-bit int, finite float, str, bytes,
    or lists and tables of these, at most sixteen deep. RabbitMQ drops the whole connection over
    an infinity or NaN.
    """
    for name, value in headers.items():
        if not (isinstance(name, str) and encodable(name) and 0 < len(name.encode()) <= 255):
            raise BadPayload(f"header name {name!r}: text of 1 to 255 bytes, please")
        check_header_value(name, value, depth)


def check_header_value(name: str, value: object, depth: int) -> None:
    match value:
        case None | bool() | bytes():
            return
        case float() if math.isfinite(value):
            return
        case int() if -(2**63) <= value < 2**63:
            return
        case str() if encodable(value):
            return
        case list() | tuple() if depth < 16:
            for item in value:
                check_header_value(name, item, depth + 1)
            return
        case dict() if depth < 16:
            check_headers(value, depth + 1)
            return
    raise BadPayload(f"header {name}: a {type(value).__name__} like this cannot travel")


def encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
