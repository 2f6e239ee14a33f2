"""Between a payload and the bytes on the wire: bytes, text and JSON, and nothing that runs code.

What is sent is the body alone, without an envelope, and its content type says how to read it.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Mapping
from encodings import normalize_encoding
from encodings.aliases import aliases
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

ISO_8859 = [f"iso8859_{part}" for part in range(1, 17) if part != 12]
CODE_PAGES = [
    *(37, 273, 424, 437, 500, 720, 737, 775, 850, 852, 855, 856, 857, 858, 860, 861, 862, 863, 864),
    *(865, 866, 869, 874, 875, 932, 949, 950, 1006, 1026, 1125, 1140, *range(1250, 1259)),
]
JAPANESE = [
    *("euc_jp", "euc_jis_2004", "euc_jisx0213", "shift_jis", "shift_jis_2004", "shift_jisx0213"),
    *("iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_3"),
    "iso2022_jp_ext",
]
CHARSETS = frozenset(
    {
        *("ascii", "latin_1", "utf_7", "utf_8", "utf_8_sig", "utf_16", "utf_16_be", "utf_16_le"),
        *("utf_32", "utf_32_be", "utf_32_le", *ISO_8859, *(f"cp{page:03}" for page in CODE_PAGES)),
        *("koi8_r", "koi8_t", "koi8_u", "kz1048", "ptcp154", "tis_620", "hp_roman8", "palmos"),
        *("mac_arabic", "mac_croatian", "mac_cyrillic", "mac_farsi", "mac_greek", "mac_iceland"),
        *("mac_latin2", "mac_roman", "mac_romanian", "mac_turkish"),
        *("big5", "big5hkscs", "gb2312", "gbk", "gb18030", "hz", "euc_kr", "johab", "iso2022_kr"),
        *JAPANESE,
    }
)
"""The character sets that text may be in, by the names of Python's codecs. Each is decoded in time
that grows with the text and no faster. Left out are idna and punycode, whose time grows as a
square, the escapes of Python's own source, and codecs that are no character sets."""

QUICK_CHARSETS = frozenset({"ascii", "latin_1", "iso8859_1", "utf_8", "utf_8_sig"})

LONGEST_SLOW_TEXT = 8 << 20
"""Bytes of text in another character set than those: decoding it may take 5 ns a byte."""

LONGEST_BASE64 = 16 << 20
"""Bytes of a body in base64: decoding it takes 3 ns a byte, during which nothing else runs."""

LONGEST_NAME = 255
"""Characters of a content type or encoding: as many as AMQP can carry."""

MOST_VALUES = int(os.environ.get("WORKQUEUE_MOST_VALUES") or 500_000)
"""What a JSON body may make of itself, see `weight`. Decoding it holds the interpreter, and with it
the thread that keeps the connection alive, for about 50 ms at most."""

UTF_8 = frozenset({"utf_8", "ascii"})
"""Of these, those whose text is UTF-8 as well."""

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
        check_weight(body)  # or each of its receivers would refuse it
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
    encoding = (content_encoding or "")[:LONGEST_NAME].strip().lower()
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
        if len(body) > LONGEST_BASE64:
            raise BadPayload(f"{len(body)} bytes of base64: more than {LONGEST_BASE64}")
        try:
            return base64.b64decode(body, validate=True), ""
        except ValueError as error:
            raise BadPayload(f"the body is not the base64 it claims to be: {error}") from error
    if encoding in COMPRESSIONS:
        raise BadPayload(f"the body is compressed ({encoding}), which is not supported")
    charset = codec_of(encoding)
    if charset is None:
        raise BadPayload(f"the content encoding {encoding} is not known, or not accepted")
    return body, "" if charset in UTF_8 else charset


@lru_cache(256)
def runs_code(media: str) -> bool:
    return any(word in media for word in RUNS_CODE)


@lru_cache(256)
def media_type(content_type: str | None) -> tuple[str, str]:
    """The type and the charset that it names, if any, both in lower case."""
    media, *parameters = (content_type or "")[:LONGEST_NAME].lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip():
            return media.strip(), value.strip().strip('"')
    return media.strip(), ""


def decode_json(body: bytes) -> Any:
    check_weight(body)
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError, OverflowError) as error:
        raise BadPayload(f"the body is not the JSON it claims to be: {error}") from error


def weight(body: bytes) -> int:
    """How much work a JSON body is at most, told before it is decoded: one for each number or
    string, four for each list, object or key.

    Bytes say nothing about it: 16 MiB of "[]," become 5.6 million lists of 56 bytes, and 16 MiB of
    one string remain that. Commas within strings are counted too, as to tell them apart takes
    longer than to decode them.
    """
    if len(body) <= MOST_VALUES // 3:  # no byte weighs more than three
        return 0
    return body.count(b",") + 3 * (body.count(b"[") + body.count(b"{") + body.count(b":"))


def check_weight(body: bytes) -> None:
    """Raise BadPayload for a JSON body with more values than are decoded."""
    if (found := weight(body)) > MOST_VALUES:
        raise BadPayload(
            f"a JSON body of {len(body)} bytes with too many values ({found}, where {MOST_VALUES} "
            "are taken; lists, objects and keys count four times)",
            hint="Send it in parts or as bytes, or set WORKQUEUE_MOST_VALUES for both sides.",
        )


def decode_text(body: bytes, charset: str) -> str:
    codec = codec_of(charset)
    if codec is None:
        raise BadPayload(
            f"the body is not the text it claims to be: charset {charset} is not accepted"
        )
    if codec not in QUICK_CHARSETS and len(body) > LONGEST_SLOW_TEXT:
        raise BadPayload(f"{len(body)} bytes of text in {codec}: more than {LONGEST_SLOW_TEXT}")
    try:
        return body.decode(codec)
    except (LookupError, ValueError) as error:
        raise BadPayload(f"the body is not the text it claims to be: {error}") from error


def codec_of(charset: str) -> str | None:
    """Python's name of the codec for `charset`, if text may be in it.

    Python itself is not asked: it finds codecs by many more spellings, and remembers each name
    that it did not find.
    """
    try:
        name = normalize_encoding(charset).lower()
    except UnicodeError:
        return None
    name = aliases.get(name, name)
    return name if name in CHARSETS else None


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
