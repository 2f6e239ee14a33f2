"""workqueue status and peek: how much is where, and what it is."""

from __future__ import annotations

from dataclasses import astuple
from typing import Annotated, Any, Literal

import typer

from workqueue.broker import Broker
from workqueue.cli.envelope import delivery_record, letter_record
from workqueue.cli.options import Session, command
from workqueue.cli.output import print_json, print_table, say
from workqueue.errors import LookCutShort, QueueNotFound
from workqueue.transport import DEAD_SUFFIX, QueueStats

SHORT_BODY = 60
"""Characters of a body in a table."""

COLUMNS = ("queue", "ready", "in_flight", "delayed", "dead", "consumers", "oldest_ready_s")


def add_to(app: typer.Typer) -> None:
    command(app, panel="Look")(status)
    command(app, panel="Look")(peek)


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
        tell_age(session, [stats for _, stats in found])
    elif not missing:
        session.say("there are no queues yet")
    if missing:
        for name in missing[:-1]:
            say(f"workqueue: queue {name} does not exist")
        raise QueueNotFound(missing[-1])


def peek(
    session: Session,
    queue: Annotated[str, typer.Argument(metavar="QUEUE")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="At most this many.")] = 10,
    state: Annotated[
        Literal["ready", "delayed", "dead"], typer.Option(help="Which of its messages.")
    ] = "ready",
) -> None:
    """The next messages of QUEUE, left where they are.

    The lines of --json can be sent again: workqueue send QUEUE --envelope -
    """
    with session.connect() as broker:
        records: list[dict[str, Any]] = []
        try:
            if state == "dead":
                records.extend(map(letter_record, broker.queue(queue).dead.letters(limit=count)))
            else:
                records.extend(map(delivery_record, broker.transport.peek(queue, count, state)))
        except LookCutShort as error:
            show_records(session, records or [delivery_record(one) for one in error.deliveries])
            raise
    show_records(session, records)


def show_records(session: Session, records: list[dict[str, Any]]) -> None:
    if session.json:
        for record in records:
            print_json(record)
        return
    columns = ("id", "type", "priority", "attempt", "body")
    print_table(columns, [[*map(record.get, columns[:-1]), body_in(record)] for record in records])


def tell_age(session: Session, stats: list[QueueStats]) -> None:
    """On stderr: how far to trust what the broker did not count for us."""
    if age := max((one.age for one in stats if one.age), default=None):
        session.say(f"in flight, delayed and rates are the management API's: up to {age:g} s old")


def body_in(record: dict[str, Any]) -> str:
    body = str(record.get("body", record.get("body_base64")))
    return body if len(body) <= SHORT_BODY else body[: SHORT_BODY - 1] + "…"


def row(name: str, stats: QueueStats) -> tuple[object, ...]:
    ready, delayed, in_flight, dead, consumers, oldest, *_ = astuple(stats)
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
