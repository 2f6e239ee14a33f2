"""What a run of the bench has: a broker, its folder, the C client, the rivals, how much to do."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.programs import RIVALS
from workqueue import connect

numbers = itertools.count(1)


@dataclass(frozen=True)
class World:
    """`server` is how it is called in the table, `url` leads to it (none: SQLite alone)."""

    server: str
    url: str
    folder: Path
    ours: Path
    """The Python that has workqueue."""
    theirs: Path
    """The Python that has the rivals."""
    client: Path | None
    """The C client, if it could be compiled."""
    scale: float
    """Which part of the usual number of messages."""

    def scaled(self, count: int) -> int:
        return max(int(count * self.scale) // 100 * 100, 100)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 5672

    def program(self, name: str) -> list[object]:
        """The start of the command line of a program of `rivals/`."""
        python = self.ours if name == "workqueue" else self.theirs
        return [python, RIVALS / f"with_{name}.py"]

    @contextmanager
    def queue(self, kind: str = "quorum", *, made: bool = True) -> Iterator[str]:
        """The name of a fresh queue, made by workqueue unless a rival is to make its own; it is
        deleted afterwards, with what rivals put beside it."""
        name = f"bench-{os.getpid()}-{next(numbers)}"
        with connect(self.url) as broker:
            if made:
                typed: Any = kind
                broker.queue(name, type=typed).declare()
            try:
                yield name
            finally:
                for suffix in ("", ".dead", ".delay", ".DQ", ".XQ"):
                    broker.transport.delete(name + suffix)

    @contextmanager
    def file(self) -> Iterator[Path]:
        """A database file in a folder of its own, deleted afterwards."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            yield Path(folder) / "bench.db"
