"""Feeds mutated bytes to the frame reader, as a hostile or broken server might send them.

    python -m tests.fuzz.frames --minutes 10 [--seed N]

Each execution takes a valid stream, damages it, and feeds it in pieces of any size. What must
hold: nothing is raised but WireError; whatever was read can be decoded as the driver decodes it, or
raises WireError; and a message that was read can be written again, or WireError says why not. One
execution that takes longer than ENDLESS, or memory that grows beyond MEMORY, is a failure as well.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from struct import pack
from types import FrameType
from typing import Any

from workqueue.message import Message
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.wire import FrameReader, Inbound, WireError

FRAME_MAX = 131_072
ENDLESS = 5
"""Seconds. Executions take a tenth of a millisecond."""

MEMORY = 512 << 20
"""Bytes of the process, beside which nothing that was fed remains."""

CORPUS = 500
"""Valid streams that are damaged again and again."""

INTERESTING = [0, 1, 2, 4, 7, 8, 0x7F, 0x80, 0xCE, 0xFE, 0xFF]
LETTERS = b"tbBsUuIilLfdDSxATFV\0Z"


class Endless(Exception):
    """One execution did not end."""


@dataclass
class Report:
    """What a run did."""

    seed: int
    executions: int = 0
    refused: int = 0
    methods: Counter[tuple[int, int]] = field(default_factory=Counter)
    unreadable: int = 0
    fed: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.executions:,} executions in {self.seconds:.0f} s "
            f"({self.executions / max(self.seconds, 0.001):,.0f}/s), {self.fed:,} bytes fed; "
            f"{self.refused:,} streams refused, {sum(self.methods.values()):,} methods read, "
            f"{self.unreadable:,} messages with unreadable properties; "
            f"{peak() >> 20} MiB at most; seed {self.seed}"
        )


def peak() -> int:
    """The most memory that this process ever had, in bytes, whatever else it did before."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# -- streams that are valid --------------------------------------------------------------------


def value(random: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [
        None,
        True,
        random.getrandbits(31),
        -random.getrandbits(62),
        random.random(),
        "x" * random.randrange(20),
        bytes(random.randrange(256) for _ in range(random.randrange(8))),
        datetime.fromtimestamp(random.randrange(2**32), UTC),
        Decimal(random.randrange(-1000, 1000)).scaleb(-2),
    ]
    if depth < 4:
        kinds.append([value(random, depth + 1) for _ in range(random.randrange(3))])
        kinds.append(table(random, depth + 1))
    return random.choice(kinds)


def table(random: random.Random, depth: int = 0) -> dict[str, Any]:
    names = ["x-death", "workqueue-failures", "n", "ü", "", "x" * 200]
    return {random.choice(names): value(random, depth) for _ in range(random.randrange(4))}


def message(random: random.Random) -> Message:
    def perhaps(made: Any) -> Any:
        return made if random.random() < 0.5 else None

    return Message(
        body=random.randbytes(random.choice([0, 1, 10, 10, 300, 300, 5000])),
        id=perhaps("id-1"),
        content_type=perhaps("application/json"),
        content_encoding=perhaps("utf-8"),
        type=perhaps("task"),
        headers=table(random),
        priority=random.randrange(10),
        correlation_id=perhaps("c"),
        reply_to=perhaps("r"),
        app_id=perhaps("a"),
        sent_at=perhaps(float(random.getrandbits(40))),
    )


def content(random: random.Random, method: bytes, channel: int) -> bytes:
    sent = message(random)
    frame_max = random.choice([64, 4096, FRAME_MAX])
    properties = wire.encode_properties(sent)
    header = wire.body_head.pack(wire.BASIC, 0, len(sent.body)) + properties
    frames = [wire.encode_frame(wire.METHOD, channel, method)]
    frames.append(wire.encode_frame(wire.HEADER, channel, header))
    frames += [
        wire.encode_frame(wire.BODY, channel, sent.body[start : start + frame_max])
        for start in range(0, len(sent.body), frame_max)
    ]
    return b"".join(frames)


def valid(random: random.Random) -> bytes:
    """A few methods of each kind that the driver reads."""
    frames = []
    for _ in range(random.randrange(1, 5)):
        channel = random.randrange(3)
        tag, bits = pack(">Q", random.getrandbits(16)), bytes([random.randrange(4)])
        names = b"\x01e\x01q"
        match random.randrange(7):
            case 0 | 1 | 2:
                frames.append(content(random, b"\0\x3c\0\x3c\x03tag" + tag + bits + names, channel))
            case 3:
                refusal = pack(">HHH", 60, 50, 312) + b"\x08NO_ROUTE" + names
                frames.append(content(random, refusal, channel))
            case 4:
                method = random.choice([b"\0\x3c\0\x50", b"\0\x3c\0\x78"])
                frames.append(wire.encode_frame(wire.METHOD, channel, method + tag + bits))
            case 5:
                close = pack(">HHH", 20, 40, 406) + b"\x05PRECO" + pack(">HH", 60, 80)
                frames.append(wire.encode_frame(wire.METHOD, channel, close))
            case 6:
                frames.append(wire.encode_frame(wire.HEARTBEAT, 0, b""))
    return b"".join(frames)


# -- and damaged -------------------------------------------------------------------------------


def damaged(random: random.Random, stream: bytes) -> bytes:
    data = bytearray(stream)
    for _ in range(random.choice([0, 1, 1, 1, 2, 3, 8])):
        if not data:
            break
        at = random.randrange(len(data))
        match random.randrange(9):
            case 0:
                data[at] ^= 1 << random.randrange(8)
            case 1:
                data[at] = random.choice(INTERESTING)
            case 2:
                data[at] = random.choice(LETTERS)
            case 3:
                del data[at : at + random.randrange(1, 20)]
            case 4:
                data[at:at] = random.randbytes(random.randrange(1, 20))
            case 5:
                data[at:at] = data[at : at + random.randrange(1, 200)]
            case 6:
                del data[at:]
            case 7:  # a length, most likely
                data[at : at + 4] = pack(">I", random.choice([0, 1, 2**31, 2**32 - 1, len(data)]))
            case 8:  # the frame around it stays whole: its payload alone is damaged
                data = whole(random, data)
    return bytes(data)


def whole(random: random.Random, data: bytearray) -> bytearray:
    """One frame's payload is changed, and its length set right."""
    starts, at = [], 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 3 : at + 7], "big")
        if at + 8 + size > len(data):
            break
        starts.append((at, size))
        at += 8 + size
    if not starts:
        return data
    at, size = random.choice(starts)
    payload = bytearray(data[at + 7 : at + 7 + size])
    for _ in range(random.randrange(1, 4)):
        place = random.randrange(len(payload) + 1)
        choices: list[bytes] = [
            random.randbytes(random.randrange(9)),
            bytes([random.choice(LETTERS)]),
            pack(">I", random.getrandbits(32)),
            b"\x01xF\0\0\0\xff" * random.randrange(200),
        ]
        payload[place : place + random.randrange(9)] = random.choice(choices)
    size = pack(">I", len(payload))
    return data[: at + 3] + size + payload + b"\xce" + data[at + 8 + starts_size(data, at) :]


def starts_size(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at + 3 : at + 7], "big")


# -- one execution -----------------------------------------------------------------------------


def execute(random: random.Random, stream: bytes, report: Report) -> None:
    """Feed `stream` in pieces; raises what must not be raised."""
    reader = FrameReader()
    report.executions += 1
    report.fed += len(stream)
    at = 0
    try:
        while at < len(stream):
            size = random.choice([1, 7, 64, 4096, len(stream)]) if len(stream) < 2000 else 4096
            reader.feed(stream[at : at + size], FRAME_MAX)
            at += size
    except WireError:
        report.refused += 1
    for inbound in reader.ready:
        report.methods[inbound.method] += 1
        try:
            decode(inbound, report)
        except WireError:
            report.refused += 1


def decode(inbound: Inbound, report: Report) -> None:
    """As the driver does."""
    match inbound.method:
        case wire.DELIVER:
            wire.decode_deliver(inbound.arguments)
        case wire.ACK | wire.NACK:
            wire.decode_settled(inbound.arguments)
        case wire.RETURN | wire.CHANNEL_CLOSE:
            wire.decode_refusal(inbound.arguments)
    if inbound.message is not None:
        report.unreadable += inbound.unreadable is not None
        wire.encode_publish(1, "e", "k", inbound.message, FRAME_MAX)


def fuzz(
    seed: int, *, seconds: float | None = None, executions: int | None = None, say: Any = None
) -> Report:
    """Until either is reached."""
    report = Report(seed)
    at_first = peak()
    chance = random.Random(seed)
    began = last = time.monotonic()
    stream = b""
    corpus = [valid(chance) for _ in range(CORPUS)]

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Endless(f"one execution took more than {ENDLESS} s")

    signal.signal(signal.SIGALRM, give_up)
    try:
        while (executions is None or report.executions < executions) and (
            seconds is None or time.monotonic() - began < seconds
        ):
            if report.executions % 1000 == 0:
                signal.alarm(ENDLESS * 10)
                if peak() - at_first > MEMORY:
                    raise MemoryError(f"{peak() >> 20} MiB")
                corpus[chance.randrange(CORPUS)] = valid(chance)
            stream = damaged(chance, chance.choice(corpus))
            execute(chance, stream, report)
            if say and time.monotonic() - last > 30:
                last = time.monotonic()
                report.seconds = last - began
                say(report)
    except BaseException as error:
        print(f"seed {seed}, execution {report.executions}: {error!r}\n{stream.hex()}")
        raise
    finally:
        signal.alarm(0)
        report.seconds = time.monotonic() - began
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
    report = fuzz(seed, seconds=given.minutes * 60, say=lambda told: print(told, flush=True))
    print(report)


if __name__ == "__main__":
    main()
