"""What every contestant is timed by: the same few lines in each sender and each handler.

A sender prints one line of JSON. A handler counts, and tells the bench through a pipe when it
passed the marks that were asked for, or how old a message was. Clocks are CLOCK_MONOTONIC, which
all processes of a machine share.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

URL = os.environ.get("BENCH_URL", "")
QUEUE = os.environ.get("BENCH_QUEUE", "bench")
QUORUM = os.environ.get("BENCH_TYPE") == "quorum"
CONFIRM = os.environ.get("BENCH_CONFIRM") != "0"
"""Off where a queue is only filled, for the next to be measured."""

BODY = "x" * int(os.environ.get("BENCH_SIZE", "256"))

MARKS = frozenset(map(int, os.environ.get("BENCH_MARKS", "1").split(",")))
NAP = float(os.environ.get("BENCH_NAP", "0.01"))


@contextmanager
def measured(count: int) -> Iterator[None]:
    """How long `count` messages took, how much of the processor and, at most, of memory, printed
    as JSON."""
    used, began = time.process_time(), time.monotonic()
    yield
    told = {
        "count": count,
        "seconds": time.monotonic() - began,
        "cpu": time.process_time() - used,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(told), flush=True)


def paced(rate: float, count: int) -> Iterator[float]:
    """`count` times to send at, one at a time, `rate` in a second: each is handed out when it is
    due, and is the time at which it was."""
    due = time.monotonic() + 0.1
    for _ in range(count):
        time.sleep(max(0.0, due - time.monotonic()))
        yield time.monotonic()
        due += 1 / rate


class Pipe:
    """Where handlers tell the bench. Opened on first use: what handles may be a fork."""

    def __init__(self) -> None:
        self.owner, self.file = 0, -1

    def tell(self, text: str) -> None:
        if self.owner != os.getpid():
            self.owner, self.file = os.getpid(), os.open(os.environ["BENCH_PIPE"], os.O_WRONLY)
        os.write(self.file, f"{text}\n".encode())


pipe = Pipe()
counter = itertools.count(1)


def passed() -> None:
    """One more was handled; the bench hears of it at the marks."""
    number = next(counter)
    if number in MARKS:
        pipe.tell(f"{number} {time.monotonic()}")


def arrived(sent_at: float) -> None:
    """A message that was sent at `sent_at` is handled now."""
    pipe.tell(f"0 {time.monotonic() - sent_at}")


def nap() -> None:
    """A task that takes its time; the bench hears when it ends."""
    time.sleep(NAP)
    pipe.tell(f"{os.getpid()} {time.monotonic()}")
