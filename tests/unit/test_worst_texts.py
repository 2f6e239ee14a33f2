"""The worst that a sender can write for each decoder and each search in what he writes.

Times are CPU time of this process, against that of work that grows with the text and no faster on
the same machine at the same moment: decoding as many strings as a body may have.
"""

from __future__ import annotations

import base64
import gc
import random
import time
import tracemalloc
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from encodings.aliases import aliases
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workqueue import Broker, Reject, codec
from workqueue.codec import (
    CHARSETS,
    JSON,
    LONGEST_BASE64,
    MOST_VALUES,
    codec_of,
    decode,
    encode,
    weight,
)
from workqueue.errors import BadPayload
from workqueue.masking import mask_all
from workqueue.message import Delivery, Lost, Message
from workqueue.runners.handler import handle
from workqueue.task import handle_by_type, in_words
from workqueue.transports.memory import MemoryTransport

MANY = 6
"""How many times the common work a hostile text may take; a square of 60 kB takes hundreds."""

SIZES = (60_000, 1 << 20, 16 << 20)
"""Bytes."""
MODULUS = 2**61 - 1


def cpu(run: Callable[[], Any]) -> float:
    """Seconds, without what the garbage collector would take to go through what other tests left
    in this process."""
    gc.collect()
    gc.freeze()
    began = time.process_time()
    try:
        with suppress(BadPayload, Reject):
            run()
        return time.process_time() - began
    finally:
        gc.unfreeze()


@cache
def common_work() -> float:
    """As many two-letter strings as a body may have."""
    body = b"[" + b'"ab",' * (MOST_VALUES - 10) + b"0]"
    return min(cpu(lambda: decode(body, JSON)) for _ in range(3))


def check(run: Callable[[], Any]) -> None:
    """Not longer than MANY times the common work; tried again, as the machine has other work."""
    for _ in range(3):
        if cpu(run) < MANY * common_work() + 0.005:
            return
        common_work.cache_clear()
    raise AssertionError(f"{cpu(run):.3f} s, where the common work takes {common_work():.3f} s")


def filled(piece: bytes, size: int) -> bytes:
    return (piece * (size // len(piece) + 1))[:size]


# -- JSON --------------------------------------------------------------------------------------

WORST_VALUES = [
    *(b"[],", b"{},", b'{"":0},', b"[[]],", b'{"a":{}},', b'"ab",', '"éé",'.encode()),
    *(b"1e1,", b"-1.5,", b"1234567890123456789012,", b"null,", b"[[[[[[]]]]]],", b'{"a":[{}]},'),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", WORST_VALUES)
def test_values(piece: bytes, size: int) -> None:
    """As many as fit: decoded, or refused with what is wrong."""
    body = b"[" + piece * (size // len(piece)) + b"0]"
    check(lambda: decode(body, JSON))


@pytest.mark.parametrize("piece", WORST_VALUES)
def test_as_many_values_as_are_taken(piece: bytes) -> None:
    """Neither time nor memory without measure: about a hundred bytes for each that counts."""
    one = weight_of(piece)
    body = b"[" + piece * ((MOST_VALUES - 10) // one) + b"0]"
    assert weight(body) <= MOST_VALUES
    check(lambda: decode(body, JSON))
    tracemalloc.start()
    try:
        decode(body, JSON)
        assert tracemalloc.get_traced_memory()[1] < 100 * MOST_VALUES
    finally:
        tracemalloc.stop()


def weight_of(piece: bytes) -> int:
    return piece.count(b",") + 3 * (piece.count(b"[") + piece.count(b"{") + piece.count(b":"))


BODIES = {
    "keys": b"{" + b",".join(b'"%x":1' % n for n in range(MOST_VALUES // 4 - 1)) + b"}",
    "one key again and again": b"{" + b'"a":1,' * (MOST_VALUES // 4 - 1) + b'"a":1}',
    "nested": b"[" * (16 << 20),
    "nested objects": b'{"a":' * (1 << 20),
    "spaces": b" " * (16 << 20) + b"1",
    "escapes": b'"' + b"\\u0041" * (2 << 20) + b'"',
    "surrogates": b'"' + b"\\ud83d\\ude00" * (1 << 20) + b'"',
    "half a surrogate": b'"' + b"\\ud83d" * (2 << 20) + b'"',
    "digits": b"1" * (16 << 20),
    "digits of a fraction": b"0." + b"0" * (16 << 20) + b"1",
    "an exponent": b"1e" + b"9" * (16 << 20),
    "a long text": b'"' + b"x" * (16 << 20) + b'"',
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name: str) -> None:
    check(lambda: decode(BODIES[name], JSON))


def test_nobody_sends_what_would_be_refused() -> None:
    """It is said where it is sent, with what to do."""
    with pytest.raises(BadPayload, match="too many values") as raised:
        encode(list(range(MOST_VALUES + 2)))
    assert "WORKQUEUE_MOST_VALUES" in raised.value.hint
    body, _ = encode(["x" * 20_000_000, list(range(400_000))])
    assert len(decode(body, JSON)) == 2


def test_more_values_for_those_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MOST_VALUES", 10_000_000)
    body, kind = encode([0] * 1_000_000)
    assert len(decode(body, kind)) == 1_000_000


# -- tasks -------------------------------------------------------------------------------------


@dataclass
class Part:
    number: int


queue = Broker(MemoryTransport()).queue("q")


@queue.task
def plain(number: int) -> None: ...


@queue.task
def structured(
    parts: list[Part], table: dict[str, list[int]] | None = None, any_: Any = None
) -> None: ...


@queue.task
def numbers(values: set[int]) -> None: ...


@queue.task
def mapping(values: dict[int, int]) -> None: ...


@queue.task
def identities(values: frozenset[uuid.UUID]) -> None: ...


@queue.task
def texts(values: set[str]) -> None: ...


def run_task(name: str, body: bytes) -> str:
    """Handled as a worker does; the reason if it is refused."""
    message = Message(body=body, type=name, content_type=JSON)
    delivery = Delivery(message=message, queue="q")
    return handle(lambda job: handle_by_type(queue, job), delivery, Lost()).reason


PATHS = [
    b"x - at `$.a",
    b" - at `$.",
    b"`$.",
    b"`",
    b" - at `$.a`b",
    b"a\\n",
    b"\\u001b[2J",
    b"Object missing required field `",
    b"[...]",
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", PATHS)
def test_texts_that_errors_quote(piece: bytes, size: int) -> None:
    """As names of arguments, as values, as keys: each ends in a reason that is short."""
    text = piece * (size // len(piece))
    for body in (
        b'{"%b": 1}' % text,
        b'{"x - at `$.%b`b": 1}' % text,
        b'{"number": "%b"}' % text,
        b'{"parts": [{"number": 1, "%b": 2}]}' % text,
        b'{"parts": [], "table": {"%b": 1}}' % text,
    ):
        for name in ("plain", "structured"):
            check(lambda name=name, body=body: run_task(name, body))  # type: ignore[misc]
            assert len(run_task(name, body)) < 1_000


@given(st.text(alphabet="x`$. -at[]\n…'", max_size=60))
@example("x - at `$.aaaa`b")
@settings(max_examples=300, deadline=None)
def test_any_text_in_words(piece: str) -> None:
    """Repeated to a megabyte, it takes no longer than a short one."""
    for text in (piece, f"{piece} - at `$.{piece}`", f"Object contains unknown field `{piece}`"):
        assert len(in_words(text * (1_000_000 // max(1, len(text))))) < 1_000
        in_words(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Object missing required field `a`", "argument a is missing"),
        ("Object contains unknown field `a`", "there is no argument a"),
        ("Expected `int`, got `str` - at `$.b[1]`", "argument b[1]: expected `int`, got `str`"),
        (
            "Object missing required field `x` - at `$.a`",
            "argument a: object missing required field `x`",
        ),
        ("Object contains unknown field `x - at `$.a`b`", "there is no argument x - at `$.a`b"),
        (
            "Expected `object`, got `array`",
            "the body must be an object of arguments by name: expected `object`, got `array`",
        ),
        ("something else", "something else"),
    ],
)
def test_in_words(text: str, told: str) -> None:
    assert in_words(text) == told


# -- hashes that everybody knows ---------------------------------------------------------------


def colliding(count: int) -> list[int]:
    return [MODULUS * (number + 10) for number in range(count)]


@pytest.mark.parametrize("size", SIZES)
def test_numbers_of_one_hash(size: int) -> None:
    """Would fill a set or a mapping in the square of their number."""
    values = colliding(size // 24)
    ints = b",".join(b"%d" % value for value in values)
    keys = b",".join(b'"%d":1' % value for value in values)
    ids = b",".join(b'"%b"' % str(uuid.UUID(int=value)).encode() for value in values)
    for name, body in (
        ("numbers", b'{"values":[%b]}' % ints),
        ("mapping", b'{"values":{%b}}' % keys),
        ("identities", b'{"values":[%b]}' % ids),
    ):
        check(lambda name=name, body=body: run_task(name, body))  # type: ignore[misc]
        assert "same hash" in run_task(name, body) or "too many values" in run_task(name, body)


def test_numbers_as_people_have_them() -> None:
    """However many, and however large: by chance no two have the same hash."""
    chance = random.Random(1)
    many = [chance.getrandbits(128) for _ in range(20_000)]
    assert run_task("numbers", msgspec.json.encode({"values": [n >> 65 for n in many]})) == ""
    assert run_task("mapping", msgspec.json.encode({"values": {n >> 65: 1 for n in many}})) == ""
    ids = [str(uuid.UUID(int=number)) for number in many]
    assert run_task("identities", msgspec.json.encode({"values": ids})) == ""
    assert run_task("numbers", msgspec.json.encode({"values": [7] * 20_000})) == ""
    assert run_task("texts", msgspec.json.encode({"values": list(map(str, colliding(9999)))})) == ""


@pytest.mark.parametrize(
    ("kind", "exposed"),
    [
        (set[int], True),
        (frozenset[float], True),
        (dict[int, str], True),
        (dict[str, list[set[Decimal]]], True),
        (set[int | str], True),
        (set[str], False),
        (dict[str, int], False),
        (list[int], False),
        (Any, False),
    ],
)
def test_which_annotations_are_looked_at(kind: Any, *, exposed: bool) -> None:
    def function(value: kind) -> None: ...

    task = Broker(MemoryTransport()).queue("q").task(function)
    function.__annotations__["value"] = kind
    task.arguments()
    assert task.exposed is exposed


# -- text --------------------------------------------------------------------------------------

PIECES = [b"a", b"\x80", b"\xb0\xa1", b"+AGE-", b"~{VP~}", b"\x1b$B0!\x1b(B", b"\x0e!\x0f", b"\xff"]


@pytest.mark.parametrize("charset", sorted(CHARSETS))
def test_charsets(charset: str) -> None:
    """Each takes time that grows with the text, or refuses it."""
    assert codec_of(charset) in (charset, "latin_1")  # iso8859_1 is another name of it
    for piece in PIECES:
        body = filled(piece, 1 << 20)
        check(lambda body=body: decode(body, f"text/plain; charset={charset}"))  # type: ignore[misc]


@pytest.mark.parametrize("charset", ["iso2022_jp", "utf_7", "utf_8"])
def test_long_texts(charset: str) -> None:
    for piece in PIECES:
        body = filled(piece, 16 << 20)
        check(lambda body=body: decode(body, f"text/plain; charset={charset}"))  # type: ignore[misc]


@pytest.mark.parametrize(
    "charset",
    [
        *("unicode_escape", "unicode_escape!", "unicode-escape", " unicode  escape", "i.dna"),
        *("punycode", "punycode!", "PUNYCODE", "undefined", "raw_unicode_escape", "idna"),
        *("hex", "base64", "zlib", "bz2", "rot13", "uu", "quopri", "charmap", "mbcs", "oem"),
        *("klingon", "", "..", "../utf_8", "a" * 200, "\udc80", "workqueue", "aliases"),
    ],
)
def test_charsets_that_are_none(charset: str) -> None:
    """However they are written; and Python remembers none of them."""
    import encodings

    before = len(encodings._cache)  # type: ignore[attr-defined]
    if codec_of(charset) is not None:
        assert charset in ("", "..")  # nothing is left of these: UTF-8
    if charset.strip():
        with pytest.raises(BadPayload, match="not accepted"):
            decode(b"x", f"text/plain; charset={charset}")
    assert len(encodings._cache) == before  # type: ignore[attr-defined]


@given(st.sampled_from(sorted({*aliases, *aliases.values()})), st.sampled_from(["", "!", "-", " "]))
@settings(max_examples=300)
def test_any_spelling_of_a_charset(name: str, more: str) -> None:
    """Is that of a codec on the list, or refused."""
    assert codec_of(f"{more}{name}{more}") in {*CHARSETS, None}


@pytest.mark.parametrize("encoding", ["base64", *sorted(CHARSETS)])
def test_content_encodings(encoding: str) -> None:
    """The same bounds hold as for the charset of a content type, for text and for JSON."""
    for piece in (*PIECES, b"YWJj"):
        body = filled(piece, 16 << 20)
        for media in ("text/plain", JSON):
            check(lambda body=body, media=media: decode(body, media, encoding))  # type: ignore[misc]


def test_what_base64_holds() -> None:
    """More of it than is decoded is refused before that, and JSON within is weighed."""
    with pytest.raises(BadPayload, match="bytes of base64: more than"):
        decode(b"YWJj" * (LONGEST_BASE64 // 4 + 1), "application/octet-stream", "base64")
    body = base64.b64encode(b"[" + b"[]," * (2 << 20) + b"0]")
    with pytest.raises(BadPayload, match="too many values"):
        decode(body, JSON, "base64")
    with pytest.raises(BadPayload, match="too many values"):
        decode(("[" + "[]," * (1 << 20) + "0]").encode("utf-16"), JSON, "utf-16")


def test_urls_in_texts() -> None:
    """The search for them begins nowhere twice."""
    for text in ("a" * (1 << 20) + " x://y", "a:" * (1 << 19) + "://", "x://?a=" * (1 << 17)):
        check(lambda text=text: mask_all(text))  # type: ignore[misc]


def test_a_content_type_without_end() -> None:
    """Is cut before it is looked at, and not remembered; an encoding as well."""
    with pytest.raises(BadPayload) as raised:
        decode(b"x", None, "x" * (1 << 20))
    assert len(str(raised.value)) < 1_000
    for text in ("x" * (1 << 20), ";" * (1 << 20), "text/plain;" + " charset" * (1 << 17)):
        check(lambda text=text: decode(b"x", text))  # type: ignore[misc]
        with suppress(BadPayload):
            assert decode(b"x", text) in (b"x", "x")
