"""Frames to and from bytes, with py-amqp's encoder and decoder as the witness where they agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from struct import pack, unpack_from
from types import SimpleNamespace
from typing import Any

import pytest
from amqp.basic_message import Message as AmqpMessage
from amqp.method_framing import frame_handler, frame_writer
from amqp.serialization import dumps, loads
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from workqueue.message import DEFAULT_PRIORITY, Message
from workqueue.transports.copies import ERROR, FAILURES, REASON
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.wire import FrameReader, Inbound, TooLong, WireError

FRAME_MAX = 4096

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
decimals = st.builds(
    lambda number, scale: Decimal(number).scaleb(-scale),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 20),
)
moments = st.integers(0, 250_000_000_000).map(lambda second: datetime.fromtimestamp(second, UTC))
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
    | st.binary(max_size=30)
    | decimals
    | moments
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
tables = st.dictionaries(names, values, max_size=4)
messages = st.builds(
    Message,
    body=st.binary(max_size=300),
    id=st.none() | texts,
    content_type=st.none() | texts,
    content_encoding=st.none() | texts,
    type=st.none() | texts,
    headers=tables,
    priority=st.integers(0, 255),
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    app_id=st.none() | texts,
    sent_at=st.none() | st.integers(0, 2**53).map(float),
)


# -- what the tests are written in -------------------------------------------------------------


def frame(kind: int, payload: bytes, channel: int = 1, end: int = 0xCE) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def deliver_method(tag: int = 1, *, redelivered: bool = False) -> bytes:
    arguments = ("ctag", tag, redelivered, "workqueue", "q")
    return pack(">HH", 60, 60) + dumps("sLbss", arguments)


def header(properties: bytes, size: int = 0) -> bytes:
    return pack(">HHQ", 60, 0, size) + properties


def delivery(properties: bytes, body: bytes = b"", channel: int = 1) -> bytes:
    """A basic.deliver whose properties are these very bytes."""
    return b"".join(
        [
            frame(wire.METHOD, deliver_method(), channel),
            frame(wire.HEADER, header(properties, len(body)), channel),
            frame(wire.BODY, body, channel) if body else b"",
        ]
    )


def with_headers(table: bytes, *, before: bytes = b"", flags: int = 0) -> bytes:
    """Properties whose header table is these very bytes, followed by an id."""
    return (
        pack(">H", 0x2080 | flags)
        + before
        + pack(">I", len(table))
        + table
        + wire.shortstr("the-id")
    )


def entry(letter: str, raw: bytes) -> bytes:
    return b"\x01h" + letter.encode("latin-1") + raw


def read(data: bytes, *, longest_frame: int = 1 << 20) -> list[Inbound]:
    reader = FrameReader()
    reader.feed(data, longest_frame)
    return list(reader.ready)


def read_one(data: bytes) -> Inbound:
    (inbound,) = read(data)
    return inbound


def message_in(inbound: Inbound) -> Message:
    assert inbound.message is not None
    return inbound.message


def frames_in(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, channel and payload of each frame: a second reader, as plain as can be."""
    while data:
        kind, channel, size = unpack_from(">BHI", data)
        assert data[7 + size] == 0xCE
        yield kind, channel, data[7 : 7 + size]
        data = data[8 + size :]


def written_by_amqp(message: AmqpMessage, frame_max: int = FRAME_MAX) -> bytes:
    """`message` as py-amqp writes it, in a basic.deliver."""
    written = bytearray()
    connection = SimpleNamespace(frame_max=frame_max, bytes_sent=0)
    write = frame_writer(connection, SimpleNamespace(write=written.extend))
    write(1, 1, (60, 60), deliver_method()[4:], message)
    return bytes(written)


def read_by_amqp(data: bytes) -> AmqpMessage:
    """The one message in `data`, as py-amqp reads it."""
    found: list[AmqpMessage] = []
    on_frame = frame_handler(
        SimpleNamespace(bytes_recv=0),
        lambda channel, method, arguments, content: found.append(content),
        content_methods=frozenset({(60, 60), (60, 40)}),
    )
    for part in frames_in(data):
        on_frame(part)
    (message,) = found
    return message


def same(ours: Any, theirs: Any) -> bool:
    """Equal, and of the same type all the way down; times are naive in py-amqp."""
    match ours:
        case datetime():
            return isinstance(theirs, datetime) and bool(
                ours.replace(tzinfo=None) == theirs.replace(tzinfo=None)
            )
        case float() if math.isnan(ours):
            return isinstance(theirs, float) and math.isnan(theirs)
        case dict():
            return ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
        case list():
            return len(ours) == len(theirs) and all(map(same, ours, theirs))
        case _:
            return type(ours) is type(theirs) and bool(ours == theirs)


PROPERTY_NAMES = {
    "id": "message_id",
    "headers": "application_headers",
    "sent_at": "timestamp",
}
"""Ours that py-amqp calls otherwise."""

PROPERTIES = (
    "id",
    "content_type",
    "content_encoding",
    "type",
    "headers",
    "priority",
    "correlation_id",
    "reply_to",
    "app_id",
    "sent_at",
)


# -- reading -----------------------------------------------------------------------------------


@given(message=messages)
@settings(deadline=None)
def test_we_read_what_py_amqp_writes(message: Message) -> None:
    """Every property and the body arrive, and nothing is unreadable."""
    theirs = {
        PROPERTY_NAMES.get(name, name): value
        for name in PROPERTIES
        if (value := getattr(message, name)) is not None
    }
    if message.sent_at is not None:
        theirs["timestamp"] = int(message.sent_at)
    data = written_by_amqp(AmqpMessage(message.body, delivery_mode=2, **theirs), 1 << 17)
    inbound = read_one(data)
    assert inbound.unreadable is None
    ours = message_in(inbound)
    witness = read_by_amqp(data)
    assert ours.body == message.body
    for name in PROPERTIES:
        if name == "headers":
            assert same(ours.headers, witness.properties.get("application_headers", {}))
        else:
            assert getattr(ours, name) == getattr(message, name), name


NUMBER_TYPES = {
    "b": 1,
    "B": 1,
    "s": 2,
    "U": 2,
    "u": 2,
    "I": 4,
    "i": 4,
    "l": 8,
    "L": 8,
    "f": 4,
    "d": 8,
}


@pytest.mark.parametrize(("letter", "size"), [*NUMBER_TYPES.items(), ("t", 1)])
@given(data=st.data())
@settings(max_examples=25)
def test_every_type_of_number(letter: str, size: int, data: st.DataObject) -> None:
    """Each type of the errata is read as py-amqp reads it."""
    raw = data.draw(st.binary(min_size=size, max_size=size))
    table = entry(letter, raw)
    inbound = read_one(delivery(with_headers(table)))
    (witness,), _ = loads("F", pack(">I", len(table)) + table, 0)
    assert inbound.unreadable is None
    assert same(message_in(inbound).headers, witness)


def test_decimals_and_bytes_and_void() -> None:
    """The types that are no numbers: D with its scale, x as bytes, V as None."""
    table = (
        b"\x01d" + b"D\x02" + (-12345).to_bytes(4, signed=True)
        + b"\x01x" + b"x" + pack(">I", 3) + b"abc"
        + b"\x01v" + b"V"
        + b"\x01s" + b"S" + pack(">I", 2) + b"\xff\xfe"
    )  # fmt: skip
    headers = message_in(read_one(delivery(with_headers(table)))).headers
    assert headers == {"d": Decimal("-123.45"), "x": b"abc", "v": None, "s": b"\xff\xfe"}


def stream() -> bytes:
    """A bit of everything, on two channels, with what one channel says amid another's body."""
    large = AmqpMessage(bytes(range(256)) * 30, application_headers={"n": 1}, message_id="large")
    parts = [frame(kind, payload, 1) for kind, _, payload in frames_in(written_by_amqp(large))]
    assert len(parts) > 3
    return b"".join(
        [
            frame(wire.HEARTBEAT, b"", 0),
            *parts[:3],
            frame(wire.METHOD, pack(">HH", 60, 80) + dumps("Lb", (7, True)), 2),
            delivery(pack(">H", 0x0080) + wire.shortstr("small"), b"body", channel=2),
            frame(wire.HEARTBEAT, b"", 0),
            *parts[3:],
            delivery(pack(">H", 0), channel=3),
            frame(wire.METHOD, pack(">HH", 20, 40) + dumps("BsBB", (404, "no", 0, 0)), 2),
        ]
    )


def told(inbounds: list[Inbound]) -> list[tuple[Any, ...]]:
    return [(i.channel, i.method, i.arguments, i.message, i.unreadable) for i in inbounds]


def test_every_split_gives_the_same_methods() -> None:
    """However the socket cuts the bytes in two, the same methods come out, and as many frames."""
    data = stream()
    whole = FrameReader()
    whole.feed(data, FRAME_MAX)
    assert [i.method for i in whole.ready] == [
        wire.ACK,
        wire.DELIVER,
        wire.DELIVER,
        wire.DELIVER,
        wire.CHANNEL_CLOSE,
    ]
    bodies = [i.message.body for i in whole.ready if i.message]
    assert bodies == [b"body", bytes(range(256)) * 30, b""]
    for cut in range(len(data) + 1):
        reader = FrameReader()
        reader.feed(data[:cut], FRAME_MAX)
        reader.feed(data[cut:], FRAME_MAX)
        assert told(list(reader.ready)) == told(list(whole.ready)), cut
        assert reader.frames == whole.frames
        assert reader.rest == b""


@given(cuts=st.lists(st.integers(1, 700), min_size=1, max_size=60))
def test_any_chopping_gives_the_same_methods(cuts: list[int]) -> None:
    """Also when it comes in many pieces, and down to single bytes."""
    data = stream()
    reader = FrameReader()
    position = turn = 0
    while position < len(data):
        step = cuts[turn % len(cuts)]
        reader.feed(data[position : position + step], FRAME_MAX)
        position, turn = position + step, turn + 1
    assert told(list(reader.ready)) == told(read(data, longest_frame=FRAME_MAX))


def test_methods_are_there_as_soon_as_their_last_byte() -> None:
    """A delivery does not wait for the frame after it."""
    data = delivery(pack(">H", 0), b"x")
    reader = FrameReader()
    reader.feed(data[:-1], FRAME_MAX)
    assert not reader.ready
    reader.feed(data[-1:], FRAME_MAX)
    assert len(reader.ready) == 1


@given(
    tag=st.integers(0, 2**64 - 1), flag=st.booleans(), consumer=texts.filter(lambda t: len(t) < 60)
)
def test_arguments_of_deliver(tag: int, flag: bool, consumer: str) -> None:
    """Consumer tag, delivery tag and the redelivered flag."""
    arguments = pack(">HH", 60, 60) + dumps("sLbss", (consumer, tag, flag, "ex", "key"))
    assert wire.decode_deliver(arguments) == (consumer.encode(), tag, flag)


@given(tag=st.integers(0, 2**64 - 1), multiple=st.booleans(), requeue=st.booleans())
def test_arguments_of_confirms(tag: int, multiple: bool, requeue: bool) -> None:
    """Tag and multiple; basic.nack has a second flag, which does not matter here."""
    assert wire.decode_settled(b"\0\0\0\0" + dumps("Lb", (tag, multiple))) == (tag, multiple)
    nack = b"\0\0\0\0" + dumps("Lbb", (tag, multiple, requeue))
    assert wire.decode_settled(nack) == (tag, multiple)


def test_arguments_of_refusals() -> None:
    """Code and text, of channel.close and of basic.return."""
    close = pack(">HH", 20, 40) + dumps("BsBB", (406, "PRECONDITION_FAILED - why", 60, 80))
    assert wire.decode_refusal(close) == (406, "PRECONDITION_FAILED - why")
    returned = pack(">HH", 60, 50) + dumps("Bsss", (312, "NO_ROUTE", "workqueue", "q"))
    assert wire.decode_refusal(returned) == (312, "NO_ROUTE")


# -- strangers' messages -----------------------------------------------------------------------


def test_milliseconds_where_seconds_belong() -> None:
    """A time in the year 55840 is the bare number, and costs nothing else."""
    inbound = read_one(delivery(with_headers(entry("T", pack(">Q", 1_700_000_000_000)))))
    assert inbound.unreadable is None
    assert message_in(inbound).headers == {"h": 1_700_000_000_000}
    assert message_in(inbound).id == "the-id"


@pytest.mark.parametrize(
    ("seconds", "arrives"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (2**31, datetime(2038, 1, 19, 3, 14, 8, tzinfo=UTC)),
        (-315_619_200, datetime(1960, 1, 1, tzinfo=UTC)),
        (-62_135_596_800, datetime(1, 1, 1, tzinfo=UTC)),
        (253_402_300_799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (253_402_300_800, 253_402_300_800),
        (-62_135_596_801, -62_135_596_801),
        (2**53, 2**53),
        (2**63 - 1, 2**63 - 1),
        (-(2**63), -(2**63)),
    ],
)
def test_any_time_at_all(seconds: int, arrives: object) -> None:
    """RabbitMQ delivers the times of AMQP 1.0 clients with a sign. What is no date is a number."""
    headers = message_in(read_one(delivery(with_headers(entry("T", pack(">q", seconds)))))).headers
    assert headers["h"] == arrives


def test_a_content_type_that_is_not_text() -> None:
    """ff fe is shown escaped, and the rest of the message is as it was sent."""
    inbound = read_one(delivery(with_headers(b"", before=b"\x02\xff\xfe", flags=0x8000), b"body"))
    message = message_in(inbound)
    assert (message.content_type, message.id, message.body) == (r"\xff\xfe", "the-id", b"body")
    assert inbound.unreadable is None


def nested(depth: int, letter: bytes) -> bytes:
    """A table in a table in a table, or an array in an array."""
    value = b"V"
    for _ in range(depth):
        inside = value if letter == b"A" else b"\x01d" + value
        value = letter + pack(">I", len(inside)) + inside
    return b"\x01h" + value


@pytest.mark.parametrize("letter", [b"F", b"A"])
def test_headers_nested_too_deep(letter: bytes) -> None:
    """Three thousand deep: the message is there without its headers, and says why."""
    inbound = read_one(delivery(with_headers(nested(3000, letter)), b"body"))
    message = message_in(inbound)
    assert inbound.unreadable is not None
    assert "nested" in inbound.unreadable
    assert (message.headers, message.id, message.body) == ({}, "the-id", b"body")


@pytest.mark.parametrize("letter", [b"F", b"A"])
def test_headers_nested_as_deep_as_we_read(letter: bytes) -> None:
    """Sixty-four deep is fine, one more is not."""
    assert read_one(delivery(with_headers(nested(64, letter)))).unreadable is None
    assert read_one(delivery(with_headers(nested(65, letter)))).unreadable


@pytest.mark.parametrize(
    "letter", [chr(n) for n in range(256) if chr(n) not in "bBsUuIilLfdSxtTVFAD"]
)
def test_table_types_that_do_not_exist(letter: str) -> None:
    """A letter that means nothing makes the headers unreadable, and nothing else."""
    inbound = read_one(delivery(with_headers(entry(letter, b"\0" * 16)), b"body"))
    assert inbound.unreadable is not None
    assert "unknown type" in inbound.unreadable
    assert (message_in(inbound).id, message_in(inbound).body) == ("the-id", b"body")


@pytest.mark.parametrize("letter", list("SxFA"))
@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 100_000])
def test_absurd_lengths(letter: str, length: int) -> None:
    """A string or table that is said to be longer than its frame is not looked for."""
    inbound = read_one(delivery(with_headers(entry(letter, pack(">I", length))), b"body"))
    assert inbound.unreadable is not None
    assert (message_in(inbound).headers, message_in(inbound).body) == ({}, b"body")


def test_headers_longer_than_their_frame() -> None:
    """Where the properties end is unknown then: the message is there, and says so."""
    properties = pack(">H", 0x2080) + pack(">I", 2**32 - 1) + b"\x01h"
    inbound = read_one(delivery(properties, b"body"))
    assert inbound.unreadable is not None
    assert message_in(inbound).body == b"body"


@given(message=messages, data=st.data())
@settings(deadline=None)
def test_properties_cut_anywhere(message: Message, data: st.DataObject) -> None:
    """What was there before the cut is read, the body too, and the rest is said to be missing."""
    properties = wire.encode_properties(message)
    cut = data.draw(st.integers(2, len(properties) - 1))  # a header has its flags at least
    inbound = read_one(delivery(properties[:cut], b"body"))
    assert inbound.unreadable is not None
    assert message_in(inbound).body == b"body"
    if message.content_type is not None and cut >= 3 + len(message.content_type.encode()):
        assert message_in(inbound).content_type == message.content_type


SHORT_TEXT = st.binary(max_size=40).map(lambda raw: bytes((len(raw),)) + raw)


@given(
    flags=st.sampled_from(wire.AS_WE_SEND),
    texts=st.tuples(SHORT_TEXT, SHORT_TEXT, SHORT_TEXT),
    numbers=st.binary(min_size=10, max_size=10),
    ends=st.integers(0, 140),
    more=st.binary(max_size=2),
)
@example(wire.AS_WE_SEND[0], (b"\0", b"\0", b""), bytes(10), 14, b"")
@example(wire.AS_WE_SEND[0], (b"\0", b"\0", b""), bytes(10), 2, b"")
def test_what_we_send_is_read_in_one_go_as_it_is_one_by_one(
    flags: bytes, texts: tuple[bytes, bytes, bytes], numbers: bytes, ends: int, more: bytes
) -> None:
    """Or not at all: cut, or with bytes left over, it goes the longer way."""
    content_type, id_, type_ = texts
    typed = type_ if flags == wire.AS_WE_SEND[1] else b""
    whole = b"".join((flags, content_type, numbers[:2], id_, numbers[2:], typed))
    assert wire.decode_as_we_send(whole, b"x") == wire.decode_one_by_one(whole, b"x")[0]
    for properties in (whole[: max(2, ends)], whole + more):
        found = wire.decode_as_we_send(properties, b"x")
        if properties != whole:
            assert found is None
        assert wire.decode_properties(properties, b"x") == wire.decode_one_by_one(properties, b"x")


@given(table=tables.filter(bool), data=st.data())
@settings(deadline=None)
def test_tables_cut_anywhere(table: dict[str, Any], data: st.DataObject) -> None:
    """A header table that ends in the middle of a value never reaches into what comes after."""
    whole = wire.encode_table(table)[4:]
    cut = data.draw(st.integers(1, len(whole) - 1))
    inbound = read_one(delivery(with_headers(whole[:cut]), b"body"))
    message = message_in(inbound)
    assert (message.id, message.body) == ("the-id", b"body")
    if inbound.unreadable is None:  # the cut was between two values
        all_of_them = message_in(read_one(delivery(with_headers(whole)))).headers
        cut_off = len(all_of_them) - len(message.headers)
        assert cut_off > 0
        assert list(message.headers.items()) == list(all_of_them.items())[:-cut_off]


@pytest.mark.parametrize("letter", ["F", "A"])
def test_tables_in_tables_keep_to_their_own(letter: str) -> None:
    """A value that is longer than the inner table does not take from the outer one."""
    inner = b"\x01n" * (letter == "F") + b"S" + pack(">I", 4)
    value = pack(">I", len(inner)) + inner
    inbound = read_one(delivery(with_headers(entry(letter, value) + b"\x01zV")))
    assert inbound.unreadable is not None
    assert message_in(inbound).id == "the-id"


@given(properties=st.binary(min_size=2, max_size=200))
@example(properties=b"\xff\xff")
@example(properties=b"\x20\x00\x00\x00\x00\x02\x00D")
def test_any_properties_at_all(properties: bytes) -> None:
    """Whatever stands where properties should stand, the delivery arrives with its body."""
    inbound = read_one(delivery(properties, b"body"))
    assert message_in(inbound).body == b"body"
    assert isinstance(message_in(inbound).priority, int)


def test_a_message_without_properties() -> None:
    """Nothing is unreadable; the priority is the broker's default."""
    inbound = read_one(delivery(pack(">H", 0), b"x"))
    assert inbound.unreadable is None
    assert message_in(inbound) == Message(body=b"x", priority=DEFAULT_PRIORITY)


# -- what is not AMQP --------------------------------------------------------------------------


def test_a_frame_that_does_not_end_where_it_says() -> None:
    """The byte after the payload is the frame end, or the stream is not AMQP."""
    with pytest.raises(WireError):
        read(frame(wire.METHOD, pack(">HH", 60, 80), end=0xCF))


def test_a_frame_larger_than_agreed() -> None:
    """It is refused by its head, before its bytes are waited for."""
    with pytest.raises(WireError):
        read(pack(">BHI", wire.METHOD, 1, 4097) + b"x", longest_frame=4096)


@pytest.mark.parametrize("kind", [0, 4, 7, 9, 255])
def test_a_frame_of_no_known_kind(kind: int) -> None:
    """There are four kinds."""
    with pytest.raises(WireError):
        read(frame(kind, b""))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(wire.METHOD, b"\0\0\0"), id="method too short"),
        pytest.param(frame(wire.HEADER, header(pack(">H", 0))), id="header without method"),
        pytest.param(frame(wire.BODY, b"x"), id="body without method"),
        pytest.param(frame(wire.METHOD, deliver_method()) + frame(wire.BODY, b"x"), id="no header"),
        pytest.param(
            frame(wire.METHOD, deliver_method()) + frame(wire.HEADER, b"\0" * 13),
            id="header too short",
        ),
        pytest.param(
            frame(wire.METHOD, deliver_method())
            + frame(wire.HEADER, header(pack(">H", 0), 5))
            + frame(wire.HEADER, header(pack(">H", 0), 5)),
            id="two headers",
        ),
        pytest.param(
            frame(wire.METHOD, deliver_method())
            + frame(wire.HEADER, header(pack(">H", 0), 5))
            + frame(wire.BODY, b"123456"),
            id="body too long",
        ),
    ],
)
def test_frames_out_of_place(data: bytes) -> None:
    """Content comes as method, header and body, of the size that the header says."""
    with pytest.raises(WireError):
        read(data)


def test_a_body_that_never_ends_takes_no_memory() -> None:
    """A size is believed only as far as bytes arrive; one that cannot be, not at all."""
    data = frame(wire.METHOD, deliver_method()) + frame(
        wire.HEADER, header(pack(">H", 0), wire.LARGEST_BODY)
    )
    assert read(data + frame(wire.BODY, b"x") * 3) == []


@given(data=st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    """They are methods, or WireError; nothing else, and no endless loop."""
    with suppress(WireError):
        read(data)


@given(
    parts=st.lists(
        st.tuples(st.sampled_from([1, 1, 2, 3, 8]), st.integers(0, 2), st.binary(max_size=80)),
        max_size=8,
    )
)
def test_random_payloads_in_well_formed_frames(parts: list[tuple[int, int, bytes]]) -> None:
    """The same, where the frames themselves are right."""
    with suppress(WireError):
        read(b"".join(frame(kind, payload, channel) for kind, channel, payload in parts))


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
@settings(max_examples=300)
def test_one_wrong_byte(position: int, byte: int) -> None:
    """The same, for a good stream with one byte changed."""
    data = bytearray(stream())
    data[position % len(data)] = byte
    with suppress(WireError):
        read(bytes(data))


# -- writing -----------------------------------------------------------------------------------


def publish(message: Message, frame_max: int = 1 << 17) -> bytes:
    """By the writer of many, which must not differ from the one for one."""
    writer = wire.PublishWriter(3, "workqueue", "q", frame_max)
    written = writer.frames(message)
    assert written == wire.encode_publish(3, "workqueue", "q", message, frame_max)
    assert written == writer.frames(message)
    return written


@given(message=messages)
@settings(deadline=None)
def test_py_amqp_reads_what_we_write(message: Message) -> None:
    """Every property arrives at the other end as it was given, and delivery is persistent."""
    witness = read_by_amqp(publish(message))
    assert bytes(witness.body or b"") == message.body
    found = dict(witness.properties)
    assert found.pop("delivery_mode") == 2
    assert same(dict(message.headers), found.pop("application_headers", {}))
    for name in PROPERTIES:
        if name != "headers":
            assert found.pop(PROPERTY_NAMES.get(name, name), None) == getattr(message, name), name
    assert not found


@given(message=messages)
@settings(deadline=None)
def test_we_read_what_we_write(message: Message) -> None:
    """There and back again, a message is what it was."""
    properties = wire.encode_properties(message)
    inbound = read_one(delivery(properties, message.body))
    assert inbound.unreadable is None
    assert message_in(inbound) == message


ids = st.just("the-same-id") | texts
plain = st.builds(
    Message,
    body=st.sampled_from([b"", b"x", b"y", b"x" * 100, b"y" * 100, b"z" * FRAME_MAX]),
    id=st.none() | ids,
    content_type=st.none() | st.sampled_from(["", "text/plain", "application/json"]),
    content_encoding=st.sampled_from([None, None, ""]),
    type=st.sampled_from([None, None, "", "task"]),
    headers=st.just({}) | tables,
    priority=st.integers(0, 9),
    correlation_id=st.sampled_from([None, None, ""]),
    reply_to=st.sampled_from([None, None, "there"]),
    app_id=st.sampled_from([None, None, "app"]),
    sent_at=st.none() | st.sampled_from([0.0, 1.0, 1.5, -1.0, 2.0**70]),
    delay=st.sampled_from([0.0, 0.0, 1.0]),
    ttl=st.sampled_from([None, None, 0.5, 7.0]),
)

plainest = st.builds(
    Message,
    body=st.sampled_from([b"x", b"y", b"x" * 100, b"y" * 100]),
    id=ids,
    content_type=st.sampled_from(["text/plain", "application/json"]),
    priority=st.integers(3, 5),
    sent_at=st.sampled_from([0.0, 1.0]),
)


@given(sent=st.lists(plainest | plainest | plain, max_size=12))
@settings(deadline=None)
def test_one_message_leaves_nothing_in_the_next(sent: list[Message]) -> None:
    """What a writer keeps of a message is only what the next one has as well."""
    writer = wire.PublishWriter(3, "workqueue", "q", FRAME_MAX)
    for message in sent:
        assert writer.frames(message) == wire.encode_publish(
            3, "workqueue", "q", message, FRAME_MAX
        )


def test_a_writer_keeps_little() -> None:
    """However many kinds of messages it sees."""
    writer = wire.PublishWriter(3, "workqueue", "q", FRAME_MAX)
    for size in range(1, 3 * wire.MOST_HEADS):
        message = Message(body=b"x" * size, id="1", sent_at=1.0)
        assert writer.frames(message) == wire.encode_publish(
            3, "workqueue", "q", message, FRAME_MAX
        )
    assert 0 < len(writer.heads) <= wire.MOST_HEADS


def test_a_publish_is_mandatory_and_names_its_queue() -> None:
    """By exchange and routing key; a message that no queue takes is to come back."""
    frames = list(frames_in(publish(Message(body=b"x"))))
    assert [(kind, channel) for kind, channel, _ in frames] == [(1, 3), (2, 3), (3, 3)]
    method = frames[0][2]
    assert unpack_from(">HH", method) == (60, 40)
    arguments, end = loads("Bssbb", method, 4)
    assert arguments == [0, "workqueue", "q", True, False]
    assert end == len(method)


def test_an_empty_body_has_no_body_frame() -> None:
    """RabbitMQ takes one of length 0 for a protocol error, and hangs up."""
    frames = list(frames_in(publish(Message(body=b""))))
    assert [kind for kind, _, _ in frames] == [wire.METHOD, wire.HEADER]
    assert unpack_from(">HHQ", frames[1][2]) == (60, 0, 0)


@pytest.mark.parametrize("size", [1, 4087, 4088, 4089, 8176, 8177, 50_000])
def test_long_bodies_are_split(size: int) -> None:
    """No frame is longer than agreed, and together they are the body."""
    body = bytes(n % 251 for n in range(size))
    frames = list(frames_in(publish(Message(body=body), FRAME_MAX)))
    bodies = [payload for kind, _, payload in frames if kind == wire.BODY]
    assert b"".join(bodies) == body
    assert all(0 < len(payload) + 8 <= FRAME_MAX for _, _, payload in frames)
    assert len(bodies) == math.ceil(size / (FRAME_MAX - 8))
    assert unpack_from(">HHQ", frames[1][2]) == (60, 0, size)


def test_headers_that_fit_no_frame() -> None:
    """Up to the last byte they are written; one more is TooLong, for they cannot be split."""
    empty = len(wire.encode_properties(Message(body=b"", headers={"h": ""})))
    room = FRAME_MAX - 8 - 12 - empty
    frames = list(frames_in(publish(Message(body=b"", headers={"h": "x" * room}), FRAME_MAX)))
    assert len(frames[1][2]) == FRAME_MAX - 8
    with pytest.raises(TooLong):
        publish(Message(body=b"", headers={"h": "x" * (room + 1)}), FRAME_MAX)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(Message(body=b"", id="x" * 256), id="id too long"),
        pytest.param(Message(body=b"", type="é" * 128), id="type too long in UTF-8"),
        pytest.param(Message(body=b"", id="\ud800"), id="lone surrogate"),
        pytest.param(Message(body=b"", headers={"x" * 256: 1}), id="header name too long"),
        pytest.param(Message(body=b"", headers={"h": "\ud800"}), id="surrogate in a header"),
        pytest.param(Message(body=b"", headers={"h": math.nan}), id="NaN"),
        pytest.param(Message(body=b"", headers={"h": [math.inf]}), id="infinity in a list"),
        pytest.param(Message(body=b"", headers={"h": 2**63}), id="more than 64 bits"),
        pytest.param(Message(body=b"", headers={"h": -(2**63) - 1}), id="less than 64 bits"),
        pytest.param(Message(body=b"", headers={"h": {"deep": object()}}), id="an object"),
        pytest.param(Message(body=b"", headers={"h": Decimal("NaN")}), id="a Decimal NaN"),
        pytest.param(Message(body=b"", headers={"h": Decimal("1e400")}), id="a Decimal too large"),
    ],
)
def test_what_amqp_cannot_say(message: Message) -> None:
    """It is refused here: RabbitMQ would hang up over it."""
    with pytest.raises(WireError):
        publish(message)


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        (Decimal("1.50"), Decimal("1.5")),
        (Decimal(-7), Decimal(-7)),
        (Decimal(2**31), float(2**31)),
        (Decimal("1e3"), 1000.0),
        ((1, 2), [1, 2]),
        (-(2**31), -(2**31)),
        (2**31, 2**31),
    ],
)
def test_values_at_the_edges(value: object, arrives: object) -> None:
    """What has no exact form in AMQP travels as the nearest that has."""
    witness = read_by_amqp(publish(Message(body=b"", headers={"h": value})))
    assert same(arrives, witness.properties["application_headers"]["h"])


@given(tag=st.integers(1, 2**64 - 1), multiple=st.booleans())
def test_acks_and_nacks(tag: int, multiple: bool) -> None:
    """As py-amqp would say them; a nack always hands back."""
    ((kind, channel, ack),) = frames_in(wire.encode_ack(5, tag, multiple=multiple))
    assert (kind, channel, ack) == (1, 5, pack(">HH", 60, 80) + dumps("Lb", (tag, multiple)))
    ((_, _, nack),) = frames_in(wire.encode_nack(5, tag, multiple=multiple))
    assert nack == pack(">HH", 60, 120) + dumps("Lbb", (tag, multiple, True))


@given(table=tables)
@settings(deadline=None)
def test_tables_are_what_py_amqp_reads(table: dict[str, Any]) -> None:
    """A table by itself, to its last byte."""
    encoded = wire.encode_table(table)
    (witness,), end = loads("F", encoded, 0)
    assert end == len(encoded)
    assert same(table, witness)


# -- what was received, published again --------------------------------------------------------

raw_texts = st.binary(max_size=255)
raw_numbers = [
    st.binary(min_size=size, max_size=size).map(lambda raw, letter=letter: letter.encode() + raw)
    for letter, size in {**NUMBER_TYPES, "t": 1, "T": 8, "D": 5, "V": 0}.items()
]
raw_scalars = st.one_of(
    *raw_numbers,
    st.integers(-(2**40), 2**40).map(lambda second: b"T" + pack(">q", second)),
    st.binary(max_size=40).map(lambda raw: b"S" + wire.longstr(raw)),
    st.binary(max_size=40).map(lambda raw: b"x" + wire.longstr(raw)),
)


def raw_table(entries: list[tuple[bytes, bytes]]) -> bytes:
    return wire.longstr(b"".join(bytes((len(name),)) + name + value for name, value in entries))


raw_names = st.one_of(raw_texts, st.sampled_from([b"CC", b"BCC", b"cc", b"", b"workqueue-cc"]))
raw_values = st.recursive(
    raw_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: b"A" + wire.longstr(b"".join(items))),
        st.lists(st.tuples(raw_names, inner), max_size=3).map(lambda e: b"F" + raw_table(e)),
    ),
    max_leaves=8,
)
raw_headers = st.lists(st.tuples(raw_names, raw_values), max_size=5).map(raw_table)


@st.composite
def raw_properties(draw: st.DrawFn) -> bytes:
    """Any of the fourteen, each with any bytes that it can have on the wire."""
    flags, parts = 0, []
    for name, bit, read in wire.PROPERTIES:
        if draw(st.booleans()):
            flags |= bit
            if name == "headers":
                parts.append(draw(raw_headers))
            elif read is wire.read_octet:
                parts.append(draw(st.binary(min_size=1, max_size=1)))
            elif read is wire.read_timestamp:
                parts.append(draw(st.binary(min_size=8, max_size=8)))
            else:
                text = draw(raw_texts | st.just(b"amq.rabbitmq.reply-to"))
                parts.append(bytes((len(text),)) + text)
    return pack(">H", flags) + b"".join(parts)


def finite(value: Any) -> bool:
    """Whether no float in it is one that RabbitMQ neither takes nor gives."""
    match value:
        case float():
            return math.isfinite(value)
        case dict():
            return all(map(finite, value.values()))
        case list():
            return all(map(finite, value))
    return True


@given(properties=raw_properties())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_can_be_read_can_be_said_again(properties: bytes) -> None:
    """Every property and every header of a received message is in its copy, and equal."""
    message, unreadable = wire.decode_properties(properties, b"x")
    assert unreadable is None
    kept, left_out = wire.fitted(message, 1 << 17)
    assert left_out == [name for name, value in message.headers.items() if not finite(value)]
    if not left_out:
        assert kept == message
    again, unreadable = wire.decode_properties(wire.encode_properties(kept), b"x")
    assert unreadable is None
    assert again == kept


@given(properties=st.binary(min_size=2, max_size=200))
@settings(deadline=None)
def test_whatever_was_read_has_a_copy(properties: bytes) -> None:
    """Also where the properties made no sense."""
    message, _ = wire.decode_properties(properties, b"x")
    kept, _ = wire.fitted(message, 1 << 17)
    assert wire.decode_properties(wire.encode_properties(kept), b"x") == (kept, None)


def names_in(properties: bytes) -> list[str]:
    """Of the headers, as often as they occur: what RabbitMQ looks for in them."""
    (flags,) = unpack_from(">H", properties)
    end = 2
    for name, bit, read in wire.PROPERTIES[:3]:
        if flags & bit and name != "headers":
            _, end = read(properties, end)
    names, stop = [], end + 4 + unpack_from(">I", properties, end)[0] if flags & 0x2000 else end
    end += 4
    while end < stop:
        names.append(properties[end + 1 : end + 1 + properties[end]].decode("latin-1"))
        end = wire.end_of_value(properties, end + 1 + properties[end])
    return names


@given(properties=raw_properties())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_moved_gives_no_orders(properties: bytes) -> None:
    """And is what it was in all else, but for the counts of the queue that it comes from."""
    moved, changes = wire.harmless(properties, 1 << 17)
    counted = set(wire.COUNTS) & set(names_in(properties))
    assert (moved == properties) == (not changes and not counted)
    assert not wire.OBEYED.keys() & set(names_in(moved))
    before, _ = wire.decode_properties(properties, b"x")
    after, unreadable = wire.decode_properties(moved, b"x")
    assert unreadable is None
    if before.reply_to == "amq.rabbitmq.reply-to":
        before = replace(before, reply_to=None)
    if names_in(properties).count("workqueue-cc") == 0:
        kept = {name: value for name, value in before.headers.items() if name not in counted}
        assert same(kept, dict(after.headers))
    assert replace(before, headers={}) == replace(after, headers={})
    assert not unpack_from(">H", moved)[0] & 0x0010


def test_a_message_without_orders_is_moved_byte_for_byte() -> None:
    """Also with headers that cannot be read, as none of RabbitMQ's are."""
    for table in (entry("?", b"what is this"), b"", b"\x02cc" + b"V", entry("A", b"\0\0\0\0")):
        properties = with_headers(table, before=b"\x04text", flags=0x8000)
        assert wire.harmless(properties, 1 << 17) == (properties, [])


def test_what_grows_too_long_for_a_frame_is_left_out() -> None:
    """The name under which CC travels is longer, and headers cannot be split."""
    table = b"\x02CC" + b"A" + wire.longstr(b"") + entry("S", wire.longstr(b"x" * 50))
    properties = with_headers(table)
    moved, _ = wire.harmless(properties, len(properties))
    assert names_in(moved) == ["h"]
    assert len(moved) < len(properties)


def test_cut_properties_are_not_moved() -> None:
    """They are not AMQP, and no broker sent them."""
    order = b"\x02CC" + b"S" + wire.longstr(b"audit")
    properties = with_headers(order, before=b"\x04text", flags=0x8000)
    assert names_in(wire.harmless(properties, 1000)[0]) == ["workqueue-cc"]
    for cut in range(len(properties)):
        with pytest.raises(WireError):
            wire.harmless(properties[:cut], 1000)


@pytest.mark.parametrize("name", ["CC", "BCC"])
@pytest.mark.parametrize("value", [["audit"], "audit", {"a": 1}, None, 7])
def test_no_publish_gives_orders(name: str, value: object) -> None:
    """In whatever form the order is, it is a header like any other where it is read."""
    message = Message(
        body=b"x", headers={name: value, "n": 1, f"workqueue-{name.lower()}": "forged"}
    )
    frames = list(frames_in(publish(message)))
    assert sorted(names_in(frames[1][2][12:])) == ["n", f"workqueue-{name.lower()}"]
    again, _ = wire.decode_properties(frames[1][2][12:], b"x")
    assert again.headers == {name: value, "n": 1}


def test_one_header_that_cannot_travel_costs_no_other() -> None:
    """What cannot be said goes alone; of what does not fit, the largest of others' goes first."""
    message = Message(
        body=b"",
        id="x" * 300,
        sent_at=math.nan,
        headers={"a": 1, "nan": math.nan, "x" * 256: 1, "deep": [{"o": object()}], "z": "z"},
    )
    kept, left_out = wire.fitted(message, FRAME_MAX)
    assert (kept.id, kept.sent_at) == ("x" * 255, None)
    assert dict(kept.headers) == {"a": 1, "z": "z"}
    assert left_out == ["nan", "x" * 256, "deep"]


def test_what_goes_first_where_a_frame_is_too_short() -> None:
    """The beginning of the error; then the largest header of others, and ours at the very end."""
    ours = {FAILURES: 3, ERROR: "e" * 3_000 + "!", REASON: "r" * 900}
    message = Message(body=b"", headers={"s": "s", **ours, "l": "l" * 2_000, "m": "m" * 500})
    kept, left_out = wire.fitted(message, FRAME_MAX)
    assert left_out == []
    assert 100 < len(kept.headers[ERROR]) < 600
    assert kept.headers[ERROR].endswith("e!")
    assert len(wire.encode_properties(kept)) == wire.longest_properties(FRAME_MAX)
    kept, left_out = wire.fitted(message, 2_000)
    assert left_out == ["l"]
    assert dict(kept.headers) == {
        "s": "s",
        FAILURES: 3,
        ERROR: "",
        REASON: "r" * 900,
        "m": "m" * 500,
    }
    kept, left_out = wire.fitted(message, 1_000)
    assert left_out == ["s", "l", "m"]
    assert dict(kept.headers) == {FAILURES: 3, ERROR: "", REASON: "r" * 900}


@given(message=messages, frame_max=st.integers(500, 2_000))
@settings(deadline=None)
def test_what_is_fitted_fits(message: Message, frame_max: int) -> None:
    """Whatever the message and the frame."""
    message = replace(message, headers={**message.headers, ERROR: "é" * 500, REASON: "r"})
    kept, left_out = wire.fitted(message, frame_max)
    if "workqueue-reason" in kept.headers:
        assert wire.encode_publish(1, "", "q", kept, frame_max)
    assert set(left_out) == message.headers.keys() - kept.headers.keys()
