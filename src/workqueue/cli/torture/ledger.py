"""Histories: what each process did, one line a write, so that they survive SIGKILL.

Each process appends to a file of its own in one folder. A line is whole or absent: it is written
by a single call on a file opened for appending, and what was written stays when the process dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

Event = Literal["sent", "tried", "confirmed", "refused", "unknown", "started", "failed", "done"]
"""Of a sender: about to send it; about to hand it to the broker, once more for each further try;
told that it is kept, that it is not, or neither. Of a handler: begins; is about to fail because
the message asks for that; has finished."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. What a message is known by, and what was seen of it at that moment."""

    event: Event
    id: str
    sha256: str = ""
    attempt: int = 1
    redelivered: bool = False
    delayed: bool = False
    process: int = 0
    at: float = 0.0


class Ledger:
    """One process's own file."""

    def __init__(self, path: Path) -> None:
        self.process = os.getpid()
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, event: Event, id: str, **seen: Any) -> None:
        entry = Entry(event=event, id=id, process=self.process, at=time.time(), **seen)
        os.write(self.file, msgspec.json.encode(entry) + b"\n")


def read(path: Path) -> list[Entry]:
    """All of one ledger; nothing if there is none yet."""
    return list(Reader(path.parent).added(path)) if path.exists() else []


class Reader:
    """Reads all ledgers of a folder, and later what was added since."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.positions: dict[Path, int] = {}
        self.decoder = msgspec.json.Decoder(Entry)

    def news(self) -> Iterator[Entry]:
        for path in sorted(self.folder.glob("*.ledger")):
            yield from self.added(path)

    def added(self, path: Path) -> Iterator[Entry]:
        """A line without its end is not there yet."""
        position = self.positions.get(path, 0)
        with path.open("rb") as file:
            file.seek(position)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.positions[path] = position + len(whole)
        yield from map(self.decoder.decode, whole.splitlines())
