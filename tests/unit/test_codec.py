"""Between a payload and the bytes on the wire."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.codec import BYTES, JSON, TEXT, check_headers, decode, encode
from workqueue.errors import BadPayload

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
)


# -- encode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "body", "content_type"),
    [
        (b"\xff\x00", b"\xff\x00", BYTES),
        (bytearray(b"ab"), b"ab", BYTES),
        (memoryview(b"ab"), b"ab", BYTES),
        (b"", b"", BYTES),
        ("grüße", "grüße".encode(), TEXT),
        ("", b"", TEXT),
        ('{"not": "parsed"}', b'{"not": "parsed"}', TEXT),
        ({"n": 1}, b'{"n":1}', JSON),
        ([1, 2.5, None, True], b"[1,2.5,null,true]", JSON),
        (None, b"null", JSON),
        (7, b"7", JSON),
        ((1, "a"), b'[1,"a"]', JSON),
    ],
)
def test_what_is_sent(payload: object, body: bytes, content_type: str) -> None:
    """bytes as they are, str as text, all else as JSON; nothing around it."""
    assert encode(payload) == (body, content_type)


@given(payload=st.binary() | st.text(st.characters(exclude_categories=["Cs"])) | json_values)
def test_there_and_back(payload: object) -> None:
    """What is sent is what a handler sees."""
    body, content_type = encode(payload)
    assert decode(body, content_type) == payload


@given(payload=json_values)
def test_the_json_is_anybodys(payload: object) -> None:
    """Any language's reader reads it: Python's own says the same."""
    if isinstance(payload, str):
        return
    body, content_type = encode(payload)
    assert content_type == JSON
    assert json.loads(body) == payload


deep: list[Any] = []
for _ in range(100_000):
    deep = [deep]

circular: list[Any] = []
circular.append(circular)


@dataclass
class Point:
    x: float


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(math.nan, id="NaN"),
        pytest.param(math.inf, id="infinity"),
        pytest.param({"a": [1, {"b": -math.inf}]}, id="infinity far down"),
        pytest.param({"nothing": None, "number": math.nan}, id="NaN beside a true null"),
        pytest.param((1.0, math.nan), id="NaN in a tuple"),
        pytest.param(Point(math.nan), id="NaN in a dataclass"),
        pytest.param(object(), id="a foreign object"),
        pytest.param({"f": print}, id="a function"),
        pytest.param({1j: 1}, id="a key that is no text"),
        pytest.param("\ud800", id="a lone surrogate"),
        pytest.param(["\ud800"], id="a lone surrogate in JSON"),
        pytest.param(10**5_000, id="an integer of five thousand digits"),
        pytest.param(deep, id="nested without end"),
        pytest.param(circular, id="a list that holds itself"),
    ],
)
def test_what_cannot_be_sent(payload: object) -> None:
    """It is refused, with a line that says why, instead of becoming something else."""
    with pytest.raises(BadPayload, match="cannot be sent") as caught:
        encode(payload)
    assert "\n" not in str(caught.value)


def test_nulls_are_not_nan() -> None:
    """The search for NaN among nulls finds none where there is none."""
    assert encode({"a": None, "b": [None, 1.5], "c": "null"}) == (
        b'{"a":null,"b":[null,1.5],"c":"null"}',
        JSON,
    )


def test_deep_payloads_with_a_null() -> None:
    """As deep as JSON goes, the search for NaN goes too."""
    payload: object = None
    for _ in range(600):
        payload = [payload]
    assert decode(*encode(payload)) == payload


# -- decode ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "payload"),
    [
        (b'{"n":1}', "application/json", {"n": 1}),
        (b'{"n":1}', "APPLICATION/JSON; charset=utf-8", {"n": 1}),
        (b'{"n":1}', "application/vnd.cloud+json", {"n": 1}),
        (b'{"n":1}', "text/plain", '{"n":1}'),
        (b'{"n":1}', None, '{"n":1}'),
        (b"gr\xfc\xdfe", "text/plain; charset=latin-1", "grüße"),
        (b"gr\xfc\xdfe", 'text/plain;charset="ISO-8859-1"', "grüße"),
        ("grüße".encode(), "text/plain; charset=", "grüße"),
        (b"<p>", "text/html", "<p>"),
        (b"\xff\xfe", None, b"\xff\xfe"),
        (b"\xff\xfe", "", b"\xff\xfe"),
        (b"\x89PNG", "image/png", b"\x89PNG"),
        (b"x", "application/octet-stream", b"x"),
        (b"x", ";;;", "x"),
        (b"", None, ""),
        (b"", "text/plain", ""),
    ],
)
def test_what_a_body_is(body: bytes, content_type: str | None, payload: object) -> None:
    """By its content type; without one it is text if it is UTF-8, and bytes otherwise."""
    assert decode(body, content_type) == payload


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b"{", JSON, id="half of it"),
        pytest.param(b"", JSON, id="nothing"),
        pytest.param(b"NaN", JSON, id="NaN"),
        pytest.param(b'{"n": Infinity}', JSON, id="infinity"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, JSON, id="nested without end"),
        pytest.param(b'"\xff"', JSON, id="JSON that is not UTF-8"),
        pytest.param(b"{}{}", JSON, id="two values"),
        pytest.param(b"\xff", "text/plain", id="text that is not UTF-8"),
        pytest.param(b"\xff", "text/plain; charset=ascii", id="text that is not ASCII"),
        pytest.param(b"x", "text/plain; charset=klingon", id="an unknown charset"),
        pytest.param(b"x", "text/plain; charset=hex", id="a charset that is no charset"),
        pytest.param(b"x", "text/plain; charset=a\0b", id="a charset with a NUL"),
    ],
)
def test_bodies_that_are_not_what_they_claim(body: bytes, content_type: str) -> None:
    """BadPayload, and no other error, whatever stands in them."""
    with pytest.raises(BadPayload, match="claims to be"):
        decode(body, content_type)


def test_a_number_of_many_digits() -> None:
    """Five thousand digits are a number or BadPayload: Python's limit is no crash."""
    try:
        payload = decode(b"1" * 5_000, JSON)
    except BadPayload:
        return
    assert payload > 10**18


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-python-serialize",
        "application/x-python-pickle",
        "application/pickle",
        "application/x-yaml",
        "text/yaml",
        "Application/YAML; charset=utf-8",
    ],
)
def test_nothing_that_runs_code(content_type: str, tmp_path: Path) -> None:
    """A pickle that would make a file makes none."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "boom",))

    with pytest.raises(BadPayload, match="could run code"):
        decode(pickle.dumps(Bomb()), content_type)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize(
    ("encoding", "headers"),
    [
        ("gzip", {}),
        ("GZIP", {}),
        ("deflate", {}),
        (None, {"compression": "application/x-gzip"}),
        ("utf-8", {"compression": "zlib"}),
    ],
)
def test_nothing_is_inflated(encoding: str | None, headers: dict[str, Any]) -> None:
    """A body of kilobytes cannot become gigabytes: it is set aside, and says what it is."""
    with pytest.raises(BadPayload, match="compressed"):
        decode(b"\x1f\x8b", TEXT, encoding, headers)


@pytest.mark.parametrize(
    "encoding",
    [None, "", "utf-8", "UTF-8", "identity", "binary", "us-ascii", "7bit", "8BIT", " utf8 "],
)
def test_encodings_that_change_nothing(encoding: str | None) -> None:
    """kombu puts the character set where the compression belongs."""
    assert decode(b"x", TEXT, encoding, {"compression": None}) == "x"
    assert decode("é".encode(), TEXT, encoding) == "é"


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "payload"),
    [
        (b"\xe9", TEXT, "latin-1", "é"),
        (b"\xe9", TEXT, "ISO-8859-1", "é"),
        (b"\xe9", None, "latin-1", "é"),
        (b"\x80", "text/html", "cp1252", "€"),
        (b'{"a": "\xe9"}', JSON, "latin-1", {"a": "é"}),
        ('"é"'.encode("utf-16"), JSON, "utf-16", "é"),
        ("é".encode(), "text/plain; charset=utf-8", "latin-1", "é"),
        (b"\xe9", BYTES, "latin-1", b"\xe9"),
        (b"YWJj", BYTES, "base64", b"abc"),
        (b"YWJj", TEXT, "Base64", "abc"),
        (b"eyJhIjogMX0=", JSON, "base64", {"a": 1}),
    ],
)
def test_encodings_of_the_field(
    body: bytes, content_type: str | None, encoding: str, payload: object
) -> None:
    """A charset in the place of an encoding is that of text which names none; base64 is read."""
    assert decode(body, content_type, encoding) == payload


@pytest.mark.parametrize(
    ("encoding", "says"),
    [
        ("aes128gcm", "content encoding aes128gcm is not known"),
        ("base64", "not the base64"),
        ("br", "compressed"),
        ("punycode", "not accepted"),
        ("hex", "content encoding hex is not known"),
        ("\0", "is not known"),
    ],
)
def test_encodings_that_are_not_read(encoding: str, says: str) -> None:
    """What stands in the way is called by its name."""
    with pytest.raises(BadPayload, match=says):
        decode(b"%", TEXT, encoding)


@pytest.mark.parametrize("charset", ["unicode_escape!", "Unicode-Escape", "PUNYCODE", "idna."])
def test_odd_charsets_by_any_name(charset: str) -> None:
    """Python finds a codec under many spellings."""
    with pytest.raises(BadPayload):
        decode(b"x", f"text/plain; charset={charset}")


@given(body=st.binary(max_size=60), content_type=st.none() | st.text(max_size=40))
def test_any_body_of_any_type(body: bytes, content_type: str | None) -> None:
    """A payload or BadPayload."""
    try:
        decode(body, content_type)
    except BadPayload as error:
        told = str(error)
        assert told


# -- headers -----------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return {"top": value}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"a": None, "b": True, "c": -(2**63), "d": 2**63 - 1, "e": 1.5, "f": "x", "g": b"\xff"},
        {"list": [1, ["two", {"three": None}]], "tuple": (1, 2)},
        {"n" * 255: 1},
        nested(16),
    ],
)
def test_headers_that_travel(headers: dict[str, Any]) -> None:
    """On every transport."""
    check_headers(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"": 1},
        {"n" * 256: 1},
        {"é" * 128: 1},
        {1: 1},
        {"\ud800": 1},
        {"a": math.nan},
        {"a": math.inf},
        {"a": 2**63},
        {"a": -(2**63) - 1},
        {"a": "\ud800"},
        {"a": object()},
        {"a": {1, 2}},
        {"a": [math.nan]},
        {"a": {"b": {"": 1}}},
        {"a": 1j},
        nested(17),
    ],
)
def test_headers_that_do_not(headers: dict[Any, Any]) -> None:
    """Refused here: RabbitMQ would drop the connection over some of them."""
    with pytest.raises(BadPayload, match="header"):
        check_headers(headers)


def test_headers_that_hold_themselves() -> None:
    """Are nested too deep, and no endless loop."""
    headers: dict[str, Any] = {}
    headers["self"] = headers
    with pytest.raises(BadPayload):
        check_headers(headers)
