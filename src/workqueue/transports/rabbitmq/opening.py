"""The opening of a connection: what a server may say until it lets us in, and how much of it.

Until then nobody knows who answers: anybody may listen on a port. Afterwards the server is trusted
with messages, which may be large, but not with numbers that we would reserve memory by.

Order and meaning of the methods: AMQP 0-9-1 specification, section 2.2.4, "The Connection Class".
"""

from __future__ import annotations

import time
from enum import Enum

from workqueue.transports.rabbitmq.wire import WireError

LARGEST_FRAME = 1 << 20
"""Bytes. RabbitMQ's own frame_max is 128 KiB; a server that offers more than this gets this. All
headers of a message must fit into one frame."""

SMALLEST_FRAME = 4096
"""Bytes, that each peer must take (frame-min-size in the specification)."""

MOST_BYTES = 256 * 1024
"""How much a server may say before it lets us in; RabbitMQ says about 700 bytes."""

LONGEST = 10.0
"""Seconds for all of the opening: each step may take CONNECT_TIMEOUT, but a server that lets bytes
trickle is not waited for."""


class Step(Enum):
    """What the server has to say next, by the method's number; OPEN is the end."""

    START = (10, 10)
    TUNE = (10, 30)
    OPEN_OK = (10, 41)
    OPEN = None


FOLLOWS = {Step.START: Step.TUNE, Step.TUNE: Step.OPEN_OK, Step.OPEN_OK: Step.OPEN}

CLOSE = (10, 50)
ONCE_OPEN = frozenset({CLOSE, (10, 51), (10, 60), (10, 61), (10, 71)})
"""The class's methods that a server may send at any later time: close, close-ok, blocked,
unblocked, update-secret-ok."""


class Opening:
    """How far one connection's opening has come. Everything here raises WireError."""

    def __init__(self) -> None:
        self.step = Step.START
        self.bytes = 0
        self.until = time.monotonic() + LONGEST

    def received(self, size: int) -> None:
        """`size` bytes came."""
        if self.step is Step.OPEN:
            return
        self.bytes += size
        if self.bytes > MOST_BYTES:
            raise WireError(f"more than {MOST_BYTES} bytes before it let us in")
        if time.monotonic() > self.until:
            raise WireError(f"no end of its greeting within {LONGEST:g} s")

    def said(self, channel: int, method: tuple[int, int]) -> None:
        """The server said `method`: is it its turn?"""
        if self.step is Step.OPEN:
            if channel == 0 and method not in ONCE_OPEN:
                raise WireError(f"method {method} on channel 0 of an open connection")
        elif channel:
            raise WireError(f"method {method} on channel {channel} before it let us in")
        elif method == self.step.value:
            self.step = FOLLOWS[self.step]
        elif method != CLOSE:
            raise WireError(f"method {method} where {self.step.name.lower()} was due")


def frame_size(offered: int) -> int:
    """The frame_max to agree on, in bytes, of what connection.tune offers; 0 is no limit."""
    if 0 < offered < SMALLEST_FRAME:
        raise WireError(f"a frame_max of {offered} bytes, where {SMALLEST_FRAME} is the least")
    return min(offered, LARGEST_FRAME)
