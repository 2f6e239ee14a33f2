"""Frames of AMQP 0-9-1, to and from bytes. Pure: no sockets, no state but what was fed.

Only what a work queue does a million times is here: publish, deliver, acknowledge. Everything
said once in a connection's life (open, declare, QoS, consume, close) stays with py-amqp.

Reading is tolerant where py-amqp is not: headers are written by strangers, and one message with a
timestamp in milliseconds, a content type that is not UTF-8 or tables nested a thousand deep must
not stop a worker. What cannot be read is said beside the message instead.

Grammar and types: AMQP 0-9-1 specification, sections 4.2.3 to 4.2.6, with RabbitMQ's "AMQP
0-9-1 errata" for the types of table values.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from struct import Struct
from struct import error as struct_error
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from workqueue.message import Message
from workqueue.transports.copies import (
    DIRECT_REPLY_TO,
    ERROR,
    LONGEST_TEXT,
    OUR_HEADERS,
    with_short_texts,
)

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = 0xCE

BASIC = 60
DELIVER = (60, 60)
DELIVER_BYTES = b"\x00\x3c\x00\x3c"
RETURN = (60, 50)
GET_OK = (60, 71)
ACK = (60, 80)
NACK = (60, 120)
CANCEL = (60, 30)
CHANNEL_CLOSE = (20, 40)

CARRIES_CONTENT = frozenset({DELIVER, RETURN, GET_OK})

LARGEST_BODY = 1 << 29
"""Bytes. RabbitMQ itself takes no larger message, whatever its configuration (MAX_MSG_SIZE in
its rabbit.hrl)."""

FRAME_OVERHEAD = 64
"""Bytes that a piece of a body takes besides its own, as an object in a list."""

MOST_HELD = LARGEST_BODY + LARGEST_BODY // 8
"""Bytes of bodies that have not arrived in full, of all channels together."""

DEEPEST_TABLE = 64
"""Tables within tables that are still read. Real headers are two or three deep."""

MOST_HEADS = 1_000
"""Kinds of messages whose encoded beginnings are kept."""

OBEYED = {"CC": "workqueue-cc", "BCC": "workqueue-bcc"}
"""Headers that RabbitMQ obeys, and the names under which they travel. It routes a message to every
queue that they name as well, and closes the channel if they are no arrays. A message that we
publish goes to its one queue: these headers may be a stranger's. They are compared byte for byte:
`cc` is an ordinary header.

Source: RabbitMQ documentation, "Sender-selected Distribution"; rabbit_basic:header_routes.
"""

TRAVELLING = {travels: name for name, travels in OBEYED.items()}

COUNTS = ("x-delivery-count", "x-acquired-count")
"""Headers in which a quorum queue counts its own deliveries: in another queue they begin again."""

frame_head = Struct(">BHI")
two_shorts = Struct(">HH")
short = Struct(">H")
long = Struct(">I")
longlong = Struct(">Q")
signed = Struct(">q")
double = Struct(">d")
body_head = Struct(">HHQ")
content_head = Struct(">BHIHHQ")
tag_and_bit = Struct(">QB")


class WireError(ValueError):
    """These bytes are not AMQP, or a value cannot be said in it."""


class TooLong(WireError):
    """Properties and headers that do not fit into one frame."""


# -- reading -----------------------------------------------------------------------------------


class Inbound(msgspec.Struct):
    """One method from the broker, with its message if it carries one. `properties` are those of
    the message as they came."""

    channel: int
    method: tuple[int, int]
    arguments: bytes
    message: Message | None = None
    unreadable: str | None = None
    properties: bytes = b""


class Partial(msgspec.Struct):
    """A method whose content has not arrived in full."""

    inbound: Inbound
    missing: int = -1
    properties: bytes = b""
    chunks: list[bytes] = msgspec.field(default_factory=list)


class FrameReader:
    """Bytes in, methods out, however the socket cut the bytes.

    A delivery whose frames are all there, which is the rule, is read in one step. Whatever is
    unusual about it goes the long way, frame by frame, and is complained of there.
    """

    def __init__(self) -> None:
        self.rest = b""
        self.frames = 0
        self.partial: dict[int, Partial] = {}
        self.held = 0
        self.ready: deque[Inbound] = deque()

    def feed(self, data: bytes, longest_frame: int) -> None:
        """Put the methods that `data` completes into `ready`, and count frames in `frames`.

        Raises WireError for what cannot be AMQP; the reader is used up then.
        """
        buffer = self.rest + data if self.rest else data
        position, end = 0, len(buffer)
        while end - position >= 8:
            kind, channel, size = frame_head.unpack_from(buffer, position)
            if size > longest_frame:
                raise WireError(f"a frame of {size} bytes, where {longest_frame} were agreed")
            stop = position + 7 + size
            if stop >= end:
                break
            if buffer[stop] != FRAME_END:
                raise WireError("a frame that does not end where it says")
            payload = buffer[position + 7 : stop]
            position = stop + 1
            if kind == METHOD and payload.startswith(DELIVER_BYTES):
                position += self.take_whole(channel, payload, buffer, position, longest_frame)
            else:
                self.take(kind, channel, payload)
        self.rest = buffer[position:]

    def take_whole(
        self, channel: int, method: bytes, buffer: bytes, start: int, longest_frame: int
    ) -> int:
        """A delivery with its header, and its body if that is one frame, which begin at `start`.
        How many bytes they were; 0 for what has to be taken frame by frame."""
        end = len(buffer)
        if end - start >= 22:
            kind, number, size, _, _, length = content_head.unpack_from(buffer, start)
            stop = start + 7 + size
            last = stop + 8 + length if length else stop
            if (
                kind == HEADER
                and number == channel
                and 14 <= size <= longest_frame
                and last < end
                and length <= longest_frame
                and buffer[stop] == FRAME_END
                and buffer[last] == FRAME_END
                and (
                    not length
                    or frame_head.unpack_from(buffer, stop + 1) == (BODY, channel, length)
                )
            ):
                properties = buffer[start + 19 : stop]
                body = buffer[stop + 8 : last] if length else b""
                message, unreadable = decode_properties(properties, body)
                self.ready.append(
                    Inbound(channel, DELIVER, method, message, unreadable, properties)
                )
                self.frames += 3 if length else 2
                self.partial.pop(channel, None)
                return int(last + 1 - start)
        self.take(METHOD, channel, method)
        return 0

    def take(self, kind: int, channel: int, payload: bytes) -> None:
        self.frames += 1
        if kind == METHOD:
            if len(payload) < 4:
                raise WireError("a method frame without a method")
            inbound = Inbound(channel, two_shorts.unpack_from(payload), payload)
            if inbound.method in CARRIES_CONTENT:
                self.partial[channel] = Partial(inbound)
            else:
                self.ready.append(inbound)
        elif kind == HEADER:
            self.take_header(channel, payload)
        elif kind == BODY:
            self.take_body(channel, payload)
        elif kind != HEARTBEAT:
            raise WireError(f"a frame of unknown kind {kind}")

    def take_header(self, channel: int, payload: bytes) -> None:
        partial = self.partial.get(channel)
        if partial is None or partial.missing >= 0 or len(payload) < 14:
            raise WireError("a content header out of place")
        partial.properties = payload[12:]
        _, _, partial.missing = body_head.unpack_from(payload)
        if partial.missing > LARGEST_BODY:
            raise WireError(f"a message of {partial.missing} bytes")
        if not partial.missing:
            self.finish(channel, partial)

    def take_body(self, channel: int, payload: bytes) -> None:
        partial = self.partial.get(channel)
        if partial is None or partial.missing < len(payload):
            raise WireError("a content body out of place")
        partial.missing -= len(payload)
        partial.chunks.append(payload)
        self.held += len(payload) + FRAME_OVERHEAD
        if self.held > MOST_HELD:
            raise WireError(f"{self.held} bytes of messages that do not end")
        if not partial.missing:
            self.finish(channel, partial)

    def finish(self, channel: int, partial: Partial) -> None:
        del self.partial[channel]
        self.held -= sum(len(chunk) + FRAME_OVERHEAD for chunk in partial.chunks)
        inbound = partial.inbound
        inbound.properties = partial.properties
        body = b"".join(partial.chunks)
        inbound.message, inbound.unreadable = decode_properties(inbound.properties, body)
        self.ready.append(inbound)


class Deliver(NamedTuple):
    """The arguments of basic.deliver that matter here."""

    consumer_tag: bytes
    tag: int
    redelivered: bool


def decode_deliver(arguments: bytes) -> Deliver:
    """Raises WireError, as the next two do, if the arguments are cut short."""
    try:
        size = arguments[4]
        tag, redelivered = tag_and_bit.unpack_from(arguments, 5 + size)
    except (struct_error, IndexError) as error:
        raise WireError(f"basic.deliver is cut short: {error}") from error
    return Deliver(arguments[5 : 5 + size], tag, bool(redelivered & 1))


def decode_delivered(arguments: bytes) -> tuple[int, int]:
    """Delivery tag, and whether it was redelivered, of basic.deliver."""
    tag, redelivered = tag_and_bit.unpack_from(arguments, 5 + arguments[4])
    return tag, redelivered & 1


def decode_settled(arguments: bytes) -> tuple[int, bool]:
    """Tag and multiple, of basic.ack and basic.nack."""
    try:
        tag, bits = tag_and_bit.unpack_from(arguments, 4)
    except struct_error as error:
        raise WireError(f"basic.ack is cut short: {error}") from error
    return tag, bool(bits & 1)


def decode_refusal(arguments: bytes) -> tuple[int, str]:
    """Code and text, of channel.close and basic.return."""
    try:
        (code,) = short.unpack_from(arguments, 4)
        text, _ = read_text(arguments, 6)
    except (struct_error, IndexError) as error:
        raise WireError(f"a refusal is cut short: {error}") from error
    return code, text


def decode_properties(properties: bytes, body: bytes) -> tuple[Message, str | None]:
    """The message that they and `body` are, and what of it could not be read, if anything."""
    if properties.startswith(AS_WE_SEND) and (message := decode_as_we_send(properties, body)):
        return message, None
    return decode_one_by_one(properties, body)


def decode_one_by_one(properties: bytes, body: bytes) -> tuple[Message, str | None]:
    """Each property is read by itself, so that one bad one costs no other, as long as it is known
    where it ends."""
    found: dict[str, Any] = {}
    unreadable = None
    offset = 2
    try:
        for name, read in layout((properties[0] << 8 | properties[1]) & ALL_FLAGS):
            if read is None:
                found["headers"], offset, unreadable = read_headers(properties, offset)
            elif name:
                found[name], offset = read(properties, offset)
            else:
                _, offset = read(properties, offset)
    except (struct_error, IndexError) as error:
        unreadable = f"the properties are cut short: {error}"
    return Message(body=body, **found), unreadable


def decode_as_we_send(properties: bytes, body: bytes) -> Message | None:
    """What has a content type, delivery mode, priority, id and time, and perhaps a type, read in
    one go: most that comes was sent by one of us. None if it does not end where it says."""
    try:
        size = properties[2]
        id_ends = 6 + size + properties[5 + size]
        end, type_ = id_ends + 8, None
        if properties[1] & 0x20:
            type_ = as_text(properties[end + 1 :])
            end += 1 + properties[end]
        if end != len(properties):
            return None
        return Message(
            body=body,
            id=as_text(properties[6 + size : id_ends]),
            content_type=as_text(properties[3 : 3 + size]),
            type=type_,
            priority=properties[4 + size],
            sent_at=float(signed.unpack_from(properties, id_ends)[0]),
        )
    except (struct_error, IndexError):
        return None


@cache
def layout(flags: int) -> tuple[tuple[str | None, Any], ...]:
    """Name and reader of each property that is there. Headers have no reader of the common kind,
    and what is read past, because a Message does not have it, has no name."""
    return tuple(
        (
            name if name in Message.__struct_fields__ else None,
            None if name == "headers" else read,
        )
        for name, bit, read in PROPERTIES
        if flags & bit
    )


def read_text(buffer: bytes, offset: int) -> tuple[str, int]:
    """A short string."""
    end = offset + 1 + buffer[offset]
    if end > len(buffer):
        raise IndexError("a string longer than its frame")
    return as_text(buffer[offset + 1 : end]), end


def as_text(raw: bytes) -> str:
    """A short string's bytes. What is not UTF-8 is shown escaped, so that it is text all the same,
    and cut where it would no longer fit a short string: a copy of its message says it again."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        escaped = raw.decode("utf-8", "backslashreplace").encode()
        return escaped[:LONGEST_TEXT].decode("utf-8", "ignore")


def read_octet(buffer: bytes, offset: int) -> tuple[int, int]:
    return buffer[offset], offset + 1


def read_timestamp(buffer: bytes, offset: int) -> tuple[float, int]:
    """Seconds since 1970, with a sign: AMQP 1.0 clients send earlier times, too."""
    return float(signed.unpack_from(buffer, offset)[0]), offset + 8


def read_headers(buffer: bytes, offset: int) -> tuple[dict[str, Any], int, str | None]:
    """The headers; none, and why, if they cannot be read. Where they end is known in any case."""
    (size,) = long.unpack_from(buffer, offset)
    end = offset + 4 + size
    if end > len(buffer):
        raise IndexError("headers longer than their frame")
    try:
        table, _ = read_table(buffer, offset, depth=0)
    except (WireError, struct_error, IndexError) as error:
        return {}, end, f"the headers cannot be read: {error}"
    for travels, name in TRAVELLING.items():
        if travels in table:
            table.setdefault(name, table.pop(travels))
    return table, end, None


def read_table(buffer: bytes, offset: int, depth: int) -> tuple[dict[str, Any], int]:
    """Of two values of one name the first counts, as for RabbitMQ: what it notes itself, such as
    x-delivery-count, comes before what the sender wrote."""
    end = offset + 4 + long.unpack_from(buffer, offset)[0]
    if end > len(buffer):
        raise WireError("a table longer than its frame")
    offset += 4
    table: dict[str, Any] = {}
    while offset < end:
        name, offset = read_text(buffer, offset)
        value, offset = read_value(buffer, offset, depth)
        table.setdefault(name, value)
    if offset > end:
        raise WireError("a value longer than its table")
    return table, end


def read_array(buffer: bytes, offset: int, depth: int) -> tuple[list[Any], int]:
    end = offset + 4 + long.unpack_from(buffer, offset)[0]
    if end > len(buffer):
        raise WireError("an array longer than its frame")
    offset += 4
    items: list[Any] = []
    while offset < end:
        item, offset = read_value(buffer, offset, depth)
        items.append(item)
    if offset > end:
        raise WireError("a value longer than its array")
    return items, end


NUMBERS: dict[int, Struct] = {
    ord(letter): Struct(form)
    for letter, form in {
        "b": ">b",
        "B": ">B",
        "s": ">h",
        "U": ">h",
        "u": ">H",
        "I": ">i",
        "i": ">I",
        "l": ">q",
        "L": ">q",
        "f": ">f",
        "d": ">d",
    }.items()
}


def read_value(buffer: bytes, offset: int, depth: int) -> tuple[Any, int]:
    """One value of a table or array, with the letter that tells its type."""
    letter = buffer[offset]
    offset += 1
    if letter in NUMBERS:
        number = NUMBERS[letter]
        return number.unpack_from(buffer, offset)[0], offset + number.size
    match chr(letter):
        case "S" | "x" as kind:
            end = offset + 4 + long.unpack_from(buffer, offset)[0]
            if end > len(buffer):
                raise WireError("a string longer than its frame")
            raw = buffer[offset + 4 : end]
            return (text_or_bytes(raw) if kind == "S" else raw), end
        case "t":
            return bool(buffer[offset]), offset + 1
        case "T":
            return moment(signed.unpack_from(buffer, offset)[0]), offset + 8
        case "V":
            return None, offset
        case "F" | "A" if depth >= DEEPEST_TABLE:
            raise WireError(f"tables nested more than {DEEPEST_TABLE} deep")
        case "F":
            return read_table(buffer, offset, depth + 1)
        case "A":
            return read_array(buffer, offset, depth + 1)
        case "D":
            digits = int.from_bytes(buffer[offset + 1 : offset + 5], signed=True)
            return Decimal(digits).scaleb(-buffer[offset]), offset + 5
    raise WireError(f"a value of unknown type {chr(letter)!r}")


def text_or_bytes(raw: bytes) -> str | bytes:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def moment(seconds: int) -> datetime | int:
    """A time, or the bare number where it is none: milliseconds are a common mistake."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return seconds


PROPERTIES = (
    ("content_type", 0x8000, read_text),
    ("content_encoding", 0x4000, read_text),
    ("headers", 0x2000, read_text),
    ("delivery_mode", 0x1000, read_octet),
    ("priority", 0x0800, read_octet),
    ("correlation_id", 0x0400, read_text),
    ("reply_to", 0x0200, read_text),
    ("expiration", 0x0100, read_text),
    ("id", 0x0080, read_text),
    ("sent_at", 0x0040, read_timestamp),
    ("type", 0x0020, read_text),
    ("user_id", 0x0010, read_text),
    ("app_id", 0x0008, read_text),
    ("cluster_id", 0x0004, read_text),
)
"""Name, flag and reader of each property of the class basic, in the order of the wire."""

ALL_FLAGS = 0xFFFC

AS_WE_SEND = (b"\x98\xc0", b"\x98\xe0")
"""Flags of content type, delivery mode, priority, id and time; and of type besides."""


# -- writing -----------------------------------------------------------------------------------


def encode_frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"%b%b\xce" % (frame_head.pack(kind, channel, len(payload)), payload)


def encode_publish(
    channel: int, exchange: str, routing_key: str, message: Message, frame_max: int
) -> bytes:
    """All frames of one basic.publish, mandatory and persistent.

    Raises TooLong if properties and headers do not fit into a frame (no protocol lets them be
    split), WireError for a value that AMQP cannot say.
    """
    properties = encode_properties(message)
    if len(properties) > longest_properties(frame_max):
        raise TooLong(f"{len(properties)} bytes of headers, where {frame_max} fit")
    return publish_frames(channel, exchange, routing_key, properties, message.body, frame_max)


def longest_properties(frame_max: int) -> int:
    """Bytes of properties and headers that one frame holds: they cannot be split."""
    return frame_max - 8 - body_head.size


class PublishWriter:
    """Writes publishes that all go the same way, as `encode_publish` does.

    Of those with nothing but an id, a time, a priority and a content type, all but id and body is
    mostly the same from one to the next, and encoded once.
    """

    def __init__(self, channel: int, exchange: str, routing_key: str, frame_max: int) -> None:
        self.channel = channel
        self.exchange = exchange
        self.routing_key = routing_key
        self.frame_max = frame_max
        self.heads: dict[tuple[str | None, int, int, int], bytes] = {}
        self.sent_at: float | None = None
        self.size = 0
        self.tail = b""

    def frames(self, message: Message) -> bytes:
        """Raises as `encode_publish` does."""
        size, sent_at = len(message.body), message.sent_at
        if (
            sent_at is None
            or message.id is None
            or message.headers
            or message.ttl is not None
            or message.type is not None
            or message.correlation_id is not None
            or message.reply_to is not None
            or message.app_id is not None
            or message.content_encoding is not None
            or not 0 < size <= self.frame_max - 8
        ):
            return encode_publish(
                self.channel, self.exchange, self.routing_key, message, self.frame_max
            )
        id_ = utf8(message.id)
        head = self.heads.get((message.content_type, message.priority, len(id_), size))
        if head is None:
            head = self.make_head(message, len(id_))
        if sent_at is not self.sent_at or size != self.size:
            self.sent_at, self.size = sent_at, size
            body_frame = frame_head.pack(BODY, self.channel, size)
            self.tail = b"%b\xce%b" % (timestamp(sent_at), body_frame)
        return b"%b%b%b%b\xce" % (head, id_, self.tail, message.body)

    def make_head(self, message: Message, id_size: int) -> bytes:
        """All that comes before the id."""
        alike = replace(message, id="-" * id_size, sent_at=0.0)
        properties = encode_properties(alike)
        size = len(message.body)
        head = b"%b%b%b%b" % (
            encode_frame(METHOD, self.channel, publish_method(self.exchange, self.routing_key)),
            frame_head.pack(HEADER, self.channel, body_head.size + len(properties)),
            body_head.pack(BASIC, 0, size),
            properties[: -id_size - longlong.size],
        )
        if len(self.heads) >= MOST_HEADS:
            self.heads.clear()
        self.heads[message.content_type, message.priority, id_size, size] = head
        return head


def publish_frames(
    channel: int, exchange: str, routing_key: str, properties: bytes, body: bytes, frame_max: int
) -> bytes:
    """All frames of one mandatory basic.publish. `properties` that came from elsewhere must be
    `harmless`."""
    method = publish_method(exchange, routing_key)
    header = body_head.pack(BASIC, 0, len(body)) + properties
    frames = [encode_frame(METHOD, channel, method), encode_frame(HEADER, channel, header)]
    # No frame at all for an empty body: one of length 0 is a protocol error to RabbitMQ (505).
    frames += [
        encode_frame(BODY, channel, body[start : start + frame_max - 8])
        for start in range(0, len(body), frame_max - 8)
    ]
    return b"".join(frames)


def publish_method(exchange: str, routing_key: str) -> bytes:
    """The arguments of a mandatory basic.publish, with the method's number before them."""
    return b"\x00\x3c\x00\x28\x00\x00%b%b\x01" % (shortstr(exchange), shortstr(routing_key))


def encode_ack(channel: int, tag: int, *, multiple: bool) -> bytes:
    return encode_frame(METHOD, channel, b"\x00\x3c\x00\x50" + tag_and_bit.pack(tag, multiple))


def encode_nack(channel: int, tag: int, *, multiple: bool) -> bytes:
    """Hand back: basic.nack with requeue. basic.reject would count as a failure since 4.3."""
    return encode_frame(
        METHOD, channel, b"\x00\x3c\x00\x78" + tag_and_bit.pack(tag, 2 | int(multiple))
    )


def encode_properties(message: Message) -> bytes:
    """Flags and properties; always with persistent delivery mode and a priority."""
    flags = 0x1000 | 0x0800
    parts: list[bytes] = []
    if message.content_type is not None:
        flags |= 0x8000
        parts.append(shortstr(message.content_type))
    if message.content_encoding is not None:
        flags |= 0x4000
        parts.append(shortstr(message.content_encoding))
    if message.headers:
        flags |= 0x2000
        parts.append(encode_headers(message.headers))
    parts.append(bytes((2, min(max(message.priority, 0), 255))))
    if message.correlation_id is not None:
        flags |= 0x0400
        parts.append(shortstr(message.correlation_id))
    if message.reply_to is not None:
        flags |= 0x0200
        parts.append(shortstr(message.reply_to))
    if message.ttl is not None and not message.delay:
        # While it waits for its time, RabbitMQ would count that as well.
        flags |= 0x0100
        parts.append(shortstr(str(max(1, round(message.ttl * 1000)))))
    if message.id is not None:
        flags |= 0x0080
        parts.append(shortstr(message.id))
    if message.sent_at is not None:
        flags |= 0x0040
        parts.append(timestamp(message.sent_at))
    if message.type is not None:
        flags |= 0x0020
        parts.append(shortstr(message.type))
    if message.app_id is not None:
        flags |= 0x0008
        parts.append(shortstr(message.app_id))
    return short.pack(flags) + b"".join(parts)


def timestamp(moment: float) -> bytes:
    """Whole seconds, as near as 64 bits come. Raises WireError for a time that is no number."""
    if not math.isfinite(moment):
        raise WireError(f"the time {moment} cannot be said in AMQP")
    return signed.pack(min(max(int(moment), -(2**63)), 2**63 - 1))


def shortstr(text: str) -> bytes:
    raw = utf8(text)
    if len(raw) > LONGEST_TEXT:
        raise WireError(f"{text[:20]}… is longer than 255 bytes")
    return bytes((len(raw),)) + raw


def longstr(raw: bytes) -> bytes:
    return long.pack(len(raw)) + raw


def utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise WireError(f"text that is not Unicode: {error}") from error


def encode_headers(headers: Mapping[str, Any]) -> bytes:
    """The table of a message's headers, with none that RabbitMQ obeys."""
    obeyed = {travels: headers[name] for name, travels in OBEYED.items() if name in headers}
    if obeyed:
        others = {name: value for name, value in headers.items() if name not in OBEYED}
        headers = {**others, **obeyed}
    return encode_table(headers)


def encode_table(table: Mapping[str, Any]) -> bytes:
    return longstr(
        b"".join(shortstr(str(name)) + encode_value(value) for name, value in table.items())
    )


def encode_value(value: object) -> bytes:
    match value:
        case None:
            return b"V"
        case bool():
            return b"t\x01" if value else b"t\x00"
        case int() if -(2**31) <= value < 2**31:
            return b"I" + value.to_bytes(4, signed=True)
        case int() if -(2**63) <= value < 2**63:
            return b"l" + value.to_bytes(8, signed=True)
        case float() if math.isfinite(value):  # RabbitMQ cannot read others, and hangs up
            return b"d" + double.pack(value)
        case str():
            return b"S" + longstr(utf8(value))
        case bytes():
            return b"x" + longstr(value)
        case datetime():
            return b"T" + signed.pack(math.floor(value.timestamp()))
        case Decimal():
            return encode_decimal(value)
        case list() | tuple():
            return b"A" + longstr(b"".join(encode_value(item) for item in value))
        case Mapping():
            return b"F" + encode_table(value)
    raise WireError(f"a {type(value).__name__} like this cannot be said in AMQP")


def encode_decimal(value: Decimal) -> bytes:
    """A scale and 32 bits; what does not fit goes as a double."""
    sign, digits, exponent = value.as_tuple()
    if isinstance(exponent, int) and -255 <= exponent <= 0:
        number = int("".join(map(str, digits))) * (-1 if sign else 1)
        if -(2**31) <= number < 2**31:
            return b"D" + bytes((-exponent,)) + number.to_bytes(4, signed=True)
    if not (value.is_finite() and math.isfinite(float(value))):
        raise WireError("a Decimal like this cannot be said in AMQP")
    return b"d" + double.pack(float(value))


# -- what was received, to be published again --------------------------------------------------


def fitted(message: Message, frame_max: int) -> tuple[Message, list[str]]:
    """`message` as near to whole as AMQP can say it, and the names of the headers left out.

    What cannot be said is left out alone. Where the headers do not fit into a frame, the error text
    is cut, then the largest headers of others are left out, and ours last. Texts of properties are
    cut to 255 bytes.
    """
    message = with_short_texts(message)
    if message.sent_at is not None and not math.isfinite(message.sent_at):
        message = replace(message, sent_at=None)
    headers = dict(message.headers)
    sizes = {name: size for name in headers if (size := size_of_header(name, headers[name]))}
    room = longest_properties(frame_max) - len(encode_properties(replace(message, headers={})))
    excess = long.size + sum(sizes.values()) - room
    if excess > 0 and ERROR in sizes:
        headers[ERROR] = str(headers[ERROR]).encode()[excess:].decode("utf-8", "ignore")
        excess -= sizes[ERROR] - size_of_header(ERROR, headers[ERROR])
    for name in sorted(sizes, key=lambda name: (name in OUR_HEADERS, -sizes[name])):
        if excess <= 0:
            break
        excess -= sizes.pop(name)
    left_out = [name for name in headers if name not in sizes]
    return replace(message, headers={name: headers[name] for name in sizes}), left_out


def size_of_header(name: str, value: object) -> int:
    """Bytes that a header takes; 0 for one that cannot be said."""
    try:
        return len(encode_headers({name: value})) - long.size
    except (WireError, RecursionError):
        return 0


def harmless(properties: bytes, longest: int, user: str = "") -> tuple[bytes, list[str]]:
    """`properties` of a received message, byte for byte but for what RabbitMQ would obey or refuse
    if `user` published them again, and what was changed, in words.

    The headers that it obeys get the names under which they travel; where that makes more than
    `longest` bytes, they are left out. RabbitMQ accepts a user id from that user alone, and a
    direct reply-to address from its own channel. Raises WireError for what cannot be read.
    """
    try:
        renamed, changes = rewritten(properties, {**OBEYED, **dict.fromkeys(COUNTS)}, user)
        if len(renamed) > longest:
            renamed, changes = rewritten(properties, dict.fromkeys((*OBEYED, *COUNTS)), user)
    except (struct_error, IndexError, KeyError) as error:
        raise WireError(f"properties that cannot be read: {error}") from error
    return renamed, changes


def rewritten(
    properties: bytes, renamed: Mapping[str, str | None], user: str
) -> tuple[bytes, list[str]]:
    flags = kept = short.unpack_from(properties)[0]
    parts, changes = [], []
    end = short.size
    for name, bit, read in PROPERTIES:
        if not flags & bit:
            continue
        start, end = end, end_of_property(properties, end, name, read)
        value = properties[start:end]
        if name == "user_id" and not (user and value[1:] == user.encode()):
            kept &= ~bit
            changes.append("without its user_id, which is another user's")
        elif name == "reply_to" and value[1:] == DIRECT_REPLY_TO.encode():
            kept &= ~bit
            changes.append("without its reply_to, which only its sender's channel could use")
        elif name == "headers":
            table, found = rewritten_table(value, renamed)
            parts.append(table)
            if found & OBEYED.keys():
                changes.append("with its header CC or BCC renamed, so that it goes to one queue")
        else:
            parts.append(value)
    if end > len(properties):
        raise IndexError("a property longer than its frame")
    return short.pack(kept) + b"".join(parts), changes


def end_of_property(properties: bytes, start: int, name: str, read: Any) -> int:
    if name == "headers":
        return int(start + long.size + long.unpack_from(properties, start)[0])
    if read is read_text:
        return start + 1 + properties[start]
    return start + (longlong.size if read is read_timestamp else 1)


def rewritten_table(table: bytes, renamed: Mapping[str, str | None]) -> tuple[bytes, set[str]]:
    """`table` with headers renamed, or left out, and their names. Values are passed over and not
    read."""
    found: set[str] = set()
    if not any(shortstr(name) in table for name in renamed):
        return table, found  # as nearly all are
    parts = []
    end = long.size
    while end < len(table):
        start, name_ends = end, end + 1 + table[end]
        name = table[start + 1 : name_ends].decode("latin-1")
        end = end_of_value(table, name_ends)
        named = table[start:name_ends]
        if name in renamed:
            found.add(name)
            travels = renamed[name]
            if travels is None:
                continue
            named = shortstr(travels)
        parts.append(named + table[name_ends:end])
    if end > len(table):
        raise IndexError("a value longer than its table")
    return (longstr(b"".join(parts)) if found else table), found


VALUE_SIZES = {letter: number.size for letter, number in NUMBERS.items()}
VALUE_SIZES |= {ord("t"): 1, ord("T"): 8, ord("V"): 0, ord("D"): 5}
MEASURED_VALUES = frozenset(b"SxFA")
"""Types of values that begin with their size."""


def end_of_value(buffer: bytes, offset: int) -> int:
    """Where the value that begins at `offset` ends. Raises KeyError for one of unknown type."""
    letter = buffer[offset]
    if letter in MEASURED_VALUES:
        return int(offset + 1 + long.size + long.unpack_from(buffer, offset + 1)[0])
    return offset + 1 + VALUE_SIZES[letter]
