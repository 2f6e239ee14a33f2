"""Openings of a connection as a hostile or broken server might speak them, on 127.0.0.1.

    python -m tests.fuzz.openings --minutes 10 [--seed N]

Each execution opens a connection to a server that says a valid opening, damaged: bytes changed,
methods repeated, left out and out of order, numbers without sense, tables within tables. What must
hold: the connection opens, or ends with an error of ours; never another exception; and neither
memory nor time beyond their bounds.
"""

from __future__ import annotations

import argparse
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from struct import pack
from typing import Any

from tests.fuzz.frames import FRAME_MAX, MEMORY, damaged, peak, value
from workqueue.errors import WorkqueueError
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.address import parse
from workqueue.transports.rabbitmq.link import Link

ENDLESS = 30.0
"""Seconds. The longest that an opening may take; see `opening.LONGEST`."""

NUMBERS = [0, 1, 7, 60, 4095, 4096, FRAME_MAX, 0xFFFF, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF]

Speak = Callable[[socket.socket], None]
"""What the server does with a connection that was accepted."""


@dataclass
class Report:
    """What a run did."""

    seed: int
    executions: int = 0
    opened: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.executions:,} openings, {self.opened:,} of them opened; refused: "
            f"{dict(self.refused)}; the longest took {self.longest:.1f} s; {peak() >> 20} MiB at "
            f"most; seed {self.seed}"
        )


@contextmanager
def server(speak: Speak) -> Iterator[int]:
    """A port of 127.0.0.1 at which `speak` answers each connection, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(8)  # the client's greeting: AMQP, and a version
            speak(connection)
            connection.settimeout(20)
            while connection.recv(4096):  # else what was sent would be thrown away
                pass

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def open_link(port: int) -> None:
    """Open a connection as the driver does, and close it."""
    Link(parse(f"amqp://guest:guest@127.0.0.1:{port}/"), "fuzz", heartbeat=60).close(0.2)


# -- what a server says ------------------------------------------------------------------------


def method(class_: int, number: int, arguments: bytes, channel: int = 0) -> bytes:
    return wire.encode_frame(wire.METHOD, channel, pack(">HH", class_, number) + arguments)


def start(properties: bytes | None = None, mechanisms: bytes = b"PLAIN AMQPLAIN") -> bytes:
    told = wire.encode_table({"version": "4.3.6", "capabilities": {"publisher_confirms": True}})
    table = told if properties is None else properties
    locales = wire.longstr(b"en_US")
    return method(10, 10, b"\0\x09" + table + wire.longstr(mechanisms) + locales)


def tune(channels: int = 2047, frame: int = FRAME_MAX, heartbeat: int = 60) -> bytes:
    return method(10, 30, pack(">HIH", channels, frame, heartbeat))


def open_ok() -> bytes:
    return method(10, 41, b"\0")


def close(text: bytes = b"ACCESS_REFUSED") -> bytes:
    return method(10, 50, pack(">H", 403) + bytes((len(text),)) + text + pack(">HH", 0, 0))


def nested(depth: int) -> bytes:
    """A table within a table, and so on."""
    table = wire.longstr(b"")
    for _ in range(depth):
        table = wire.longstr(b"\x01xF" + table)
    return table


def odd(chance: random.Random) -> bytes:
    """One method that a server may or may not say."""
    number = chance.choice
    match chance.randrange(9):
        case 0:
            made = {"capabilities": value(chance), "version": value(chance)}
            with suppress(wire.WireError):
                return start(wire.encode_table(made))
            return start()
        case 1:
            return start(nested(number([1, 50, 2_000, 12_000])))
        case 2:
            return start(mechanisms=number([b"", b"EXTERNAL", b"\xff", b"PLAIN " * 20_000]))
        case 3:
            return tune(number(NUMBERS) & 0xFFFF, number(NUMBERS), number(NUMBERS) & 0xFFFF)
        case 4:
            return method(10, 20, wire.longstr(b"challenge" * number([0, 1, 1000])))
        case 5:
            return close(number([b"", b"\xff\x1b[2J", b"x" * 255]))
        case 6:
            return method(number([10, 20, 60]), number([10, 41, 60, 71]), b"\0", number([0, 1]))
        case 7:
            return wire.encode_frame(wire.HEARTBEAT, 0, b"") * number([1, 1000])
    return open_ok()


def opening(chance: random.Random) -> bytes:
    """All that a server says: as it should be, or not."""
    said = [start(), tune(), open_ok()]
    for _ in range(chance.choice([0, 0, 1, 2, 3])):
        place = chance.randrange(len(said) + 1)
        if chance.random() < 0.5 and place < len(said):
            said[place] = odd(chance)
        else:
            said.insert(place, odd(chance))
    stream = b"".join(said)
    return damaged(chance, stream) if chance.random() < 0.5 else stream


def speaker(stream: bytes) -> Speak:
    """Says `stream`, and that it has no more to say."""

    def speak(connection: socket.socket) -> None:
        connection.sendall(stream)
        connection.shutdown(socket.SHUT_WR)

    return speak


def fuzz(
    seed: int, *, seconds: float | None = None, executions: int | None = None, say: Any = None
) -> Report:
    """Until either is reached."""
    report = Report(seed)
    chance = random.Random(seed)
    began = last = time.monotonic()
    stream = b""

    def speak(connection: socket.socket) -> None:
        speaker(stream)(connection)  # the one of this execution

    at_first = peak()
    with server(speak) as port:
        while (executions is None or report.executions < executions) and (
            seconds is None or time.monotonic() - began < seconds
        ):
            stream = opening(chance)
            execute(port, report, stream, at_first)
            if say and time.monotonic() - last > 30:
                last = time.monotonic()
                say(report)
    return report


def execute(port: int, report: Report, stream: bytes, at_first: int) -> None:
    """`at_first` is the most memory that this process had before all of them."""
    report.executions += 1
    began = time.monotonic()
    try:
        open_link(port)
        report.opened += 1
    except WorkqueueError as error:
        report.refused[type(error).__name__] += 1
    except BaseException as error:
        print(f"seed {report.seed}, execution {report.executions}: {error!r}\n{stream.hex()}")
        raise
    report.longest = max(report.longest, time.monotonic() - began)
    if report.longest > ENDLESS or peak() - at_first > MEMORY:
        raise AssertionError(f"{report}\n{stream[:10_000].hex()}")


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
