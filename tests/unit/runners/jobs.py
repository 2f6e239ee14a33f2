"""Deliveries to run, and a way to run them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from workqueue.message import Delivery, Message, new_id
from workqueue.runners.runner import Ending, Runner
from workqueue.testing import eventually

ENOUGH = 30.0
"""Seconds: longer than anything here takes on any machine."""

TO_BEGIN = 3.0
"""Seconds after which a job is stopped that has done what it does first, on a busy machine too."""


def delivery(body: str | bytes, **more: object) -> Delivery:
    raw = body.encode() if isinstance(body, str) else body
    return Delivery(message=Message(body=raw, id=new_id()), queue="jobs", **more)  # type: ignore[arg-type]


class Bench:
    """A started runner, and the endings it gives."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.rung = threading.Event()
        self.ended: dict[Delivery, Ending] = {}

    def run(self, *deliveries: Delivery, timeout: float | None = None) -> list[Ending]:
        """All of them, as they ended, in the order given."""
        for one in deliveries:
            self.runner.run(one, timeout)
        return self.endings(*deliveries)

    def endings(self, *deliveries: Delivery) -> list[Ending]:
        def all_ended() -> bool:
            self.ended |= {ending.delivery: ending for ending in self.runner.endings()}
            return set(deliveries) <= set(self.ended)

        eventually(all_ended, within=ENOUGH, what="all to end")
        return [self.ended[one] for one in deliveries]


@contextmanager
def at_work(runner: Runner, slots: int = 1) -> Iterator[Bench]:
    bench = Bench(runner)
    runner.start(slots, bench.rung.set)
    try:
        yield bench
    finally:
        runner.close()
        runner.close()


def pid_in(path: Path) -> int:
    """The number that a handler has written there, once it has."""
    return int(eventually(lambda: path.exists() and path.read_text(), within=ENOUGH))


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return True
    return state == "Z"


def few_threads(monkeypatch: pytest.MonkeyPatch, most: int, name: str) -> None:
    """The system lets no more than `most` threads be started whose names begin with `name`."""
    start, started = threading.Thread.start, [0]

    def start_some(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            started[0] += 1
            if started[0] > most:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
