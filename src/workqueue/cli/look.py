"""workqueue status: how much is where."""

from __future__ import annotations

from dataclasses import astuple
from typing import Annotated

import typer

from workqueue.broker import Broker
from workqueue.cli.options import Session, command
from workqueue.cli.output import print_json, print_table, say
from workqueue.errors import QueueNotFound
from workqueue.transport import DEAD_SUFFIX, QueueStats

COLUMNS = ("queue", "ready", "in_flight", "delayed", "dead", "consumers", "oldest_ready_s")


def add_to(app: typer.Typer) -> None:
    command(app, panel="Look")(status)


def status(
    session: Session,
    queues: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUEUE]", help="All of them, if none is named."),
    ] = None,
) -> None:
    """How many messages wait, run and are dead, in each QUEUE.

    What the broker will not say is "-", or null in JSON: never a false 0.
    """
    with session.connect() as broker:
        names = queues or listed(broker)
        found: list[tuple[str, QueueStats]] = []
        missing: list[str] = []
        for name in names:
            try:
                found.append((name, broker.queue(name).stats()))
            except QueueNotFound:
                missing.append(name)
    rows = [row(name, stats) for name, stats in found]
    if session.json:
        for record in rows:
            print_json(dict(zip(COLUMNS, record, strict=True)))
    elif rows:
        print_table(COLUMNS, rows)
    elif not missing:
        session.say("there are no queues yet")
    if missing:
        for name in missing[:-1]:
            say(f"workqueue: queue {name} does not exist")
        raise QueueNotFound(missing[-1])


def row(name: str, stats: QueueStats) -> tuple[object, ...]:
    ready, delayed, in_flight, dead, consumers, oldest = astuple(stats)
    rounded = None if oldest is None else round(oldest, 3)
    return (name, ready, in_flight, delayed, dead, consumers, rounded)


def listed(broker: Broker) -> list[str]:
    """All queues; a dead-letter queue is a column of the queue it belongs to."""
    names = broker.queues()
    return [
        name
        for name in names
        if not (name.endswith(DEAD_SUFFIX) and name.removesuffix(DEAD_SUFFIX) in names)
    ]
