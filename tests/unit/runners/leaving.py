"""Handlers that do their work and leave something behind, which fails before that is reported."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from workqueue import Job, Reject


class Flushing:
    """A stream whose `flush` does something else."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        self.act()


def fail() -> None:
    raise LookupError


def put(stream: Any) -> None:
    sys.stdout = stream


def no_stream() -> None:
    put(None)


def no_attribute() -> None:
    vars(sys).pop("stdout", None)


def any_object() -> None:
    put(object())


def failing_flush() -> None:
    put(Flushing(fail))


def exiting_flush() -> None:
    put(Flushing(sys.exit))


def deadly_flush() -> None:
    put(Flushing(lambda: os._exit(3)))


def full_disk() -> None:
    put(Path("/dev/full").open("w"))  # noqa: SIM115 - to be left behind
    print("this is kept in a buffer")


def broken_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    put(os.fdopen(writer, "w"))
    print("this is kept in a buffer")


def closed_streams() -> None:
    os.closerange(0, 3)


def closed_everything() -> None:
    os.closerange(3, 4096)


def dying_thread() -> None:
    """It ends this process once the worker has nothing more for it to do."""
    threading.Timer(0.05, os._exit, [9]).start()


def reject_and_die() -> None:
    deadly_flush()
    raise Reject("never")


def handle(job: Job[Any]) -> None:
    """The body names what to do, and a file that grows each time that it runs."""
    name, _, ticks = job.body.decode().partition(" ")
    with Path(ticks).open("ab", buffering=0) as file:
        file.write(b"x")
    globals()[name]()
