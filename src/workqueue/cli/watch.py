"""workqueue watch: the figures of status, again and again, with how they move."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from workqueue.broker import Broker
from workqueue.cli.look import listed, tell_age
from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json, say
from workqueue.errors import ConnectionLost, QueueNotFound, WorkqueueError
from workqueue.message import visible
from workqueue.transport import QueueStats

HISTORY = 60.0
"""Seconds that the sparkline shows."""

BARS = "▁▂▃▄▅▆▇█"

COLUMNS = (
    "queue",
    "ready",
    "in_flight",
    "delayed",
    "dead",
    "consumers",
    "in_per_s",
    "done_per_s",
    "oldest_ready_s",
)


def add_to(app: typer.Typer) -> None:
    command(app, panel="Look")(watch)


def watch(
    session: Session,
    queues: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUEUE]", help="All of them, if none is named."),
    ] = None,
    interval: Annotated[
        float, typer.Option("-i", "--interval", parser=duration, metavar="TIME")
    ] = 2.0,
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="Leave after this many looks.")
    ] = None,
) -> None:
    """How much waits, runs and is dead in each QUEUE, live; Ctrl-C to leave.

    in/s is what was sent, done/s what was worked off. What the broker will not say is "-", or null
    in JSON: on RabbitMQ that is much without --management-url.
    """
    if interval < 0.1:
        raise typer.BadParameter(f"-i {interval:g}: at least 0.1 s")
    with session.connect() as broker:
        names = queues or listed(broker)
        tell_age(session, [broker.queue(name).stats() for name in names])  # a misspelt one is said
        rows = [Row(name) for name in names]
        try:
            with view(session, interval) as show:
                for _ in ticks(interval, count):
                    look(broker, rows)
                    show(rows)
        except KeyboardInterrupt:
            pass


def ticks(interval: float, count: int | None) -> Iterator[int]:
    """At even times, however long what happens in between takes."""
    began, number = time.monotonic(), 0
    while count is None or number < count:
        yield number
        number += 1
        if count is None or number < count:
            time.sleep(max(0.0, began + number * interval - time.monotonic()))


def look(broker: Broker, rows: list[Row]) -> None:
    """New figures; of a broker that does not answer, none."""
    for row in rows:
        try:
            row.take(broker.queue(row.name).stats(), time.monotonic())
        except QueueNotFound:
            row.lose("gone")
        except (ConnectionLost, WorkqueueError) as error:
            row.lose(str(error))


@dataclass
class Row:
    """One queue: its last figures, and how they came about."""

    name: str
    stats: QueueStats = field(default_factory=QueueStats)
    problem: str = ""
    arriving: float | None = None
    finishing: float | None = None
    taken_at: float | None = None
    history: deque[tuple[float, int | None]] = field(default_factory=deque)

    def take(self, stats: QueueStats, now: float) -> None:
        if self.problem:
            self.problem = ""
            self.taken_at = None
        if self.taken_at is not None:
            seconds = now - self.taken_at
            self.arriving = rate(self.stats.sent, stats.sent, seconds)
            self.finishing = rate(self.stats.done, stats.done, seconds)
        self.stats, self.taken_at = stats, now
        self.history.append((now, stats.ready))
        while self.history and self.history[0][0] < now - HISTORY:
            self.history.popleft()

    def lose(self, problem: str) -> None:
        """Nothing is known any more, and nothing is shown as if it were."""
        if problem != self.problem:
            say(f"{self.name}: {problem}")
        self.problem = problem
        self.stats = QueueStats()
        self.arriving = self.finishing = None

    @property
    def values(self) -> tuple[object, ...]:
        found = self.stats
        oldest = None if found.oldest is None else round(found.oldest, 1)
        return (
            self.name,
            found.ready,
            found.in_flight,
            found.delayed,
            found.dead,
            found.consumers,
            self.arriving,
            self.finishing,
            oldest,
        )

    @property
    def sparkline(self) -> str:
        """What waited in the last minute, the highest bar being the most there was; a gap where
        that is not known."""
        counts = [count for _, count in self.history]
        top = max((count for count in counts if count), default=1)
        return "".join(" " if n is None else BARS[n * len(BARS) // (top + 1)] for n in counts)


def rate(before: int | None, now: int | None, seconds: float) -> float | None:
    if before is None or now is None or seconds <= 0 or now < before:
        return None  # counters begin again with their broker
    return round((now - before) / seconds, 1)


# -- what is shown -----------------------------------------------------------------------------


@contextmanager
def view(session: Session, interval: float) -> Iterator[Callable[[list[Row]], None]]:
    """A live table on a terminal; JSON or tab-separated lines elsewhere."""
    if session.json:
        yield show_json
    elif not sys.stdout.isatty():
        print("\t".join(("time", *COLUMNS)), flush=True)
        yield show_lines
    else:
        from rich.live import Live

        with Live(refresh_per_second=4) as live:
            yield lambda rows: live.update(table(rows, interval), refresh=True)


def show_json(rows: list[Row]) -> None:
    for row in rows:
        print_json({"time": round(time.time(), 3), **dict(zip(COLUMNS, row.values, strict=True))})


def show_lines(rows: list[Row]) -> None:
    clock = time.strftime("%H:%M:%S")
    for row in rows:
        cells = ["-" if value is None else visible(str(value)) for value in row.values]
        print("\t".join((clock, *cells)), flush=True)


def table(rows: list[Row], interval: float) -> Any:
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    made.title = f"{time.strftime('%H:%M:%S')}, every {interval:g} s; Ctrl-C to leave"
    for column in (*COLUMNS, "last minute"):
        text = column.removesuffix("_ready_s").replace("_per_s", "/s").replace("_", " ")
        made.add_column(text, justify="left" if column in ("queue", "last minute") else "right")
    for row in rows:
        cells = ["-" if value is None else visible(str(value)) for value in row.values]
        made.add_row(*map(Text, cells), Text(visible(row.problem) or row.sparkline))
    return made
