"""workqueue purge, delete, migrate: what changes queues that are there."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workqueue.broker import Broker
from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json
from workqueue.errors import QueueMigrating, QueueMismatch, QueueNotFound, show
from workqueue.transport import QueueSpec, QueueType


def add_to(app: typer.Typer) -> None:
    command(app, panel="Mend")(purge)
    command(app, panel="Mend")(delete)
    command(app, panel="Mend")(migrate)


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def purge(
    session: Session, queue: Annotated[str, typer.Argument(metavar="QUEUE")], yes: Yes = False
) -> None:
    """Drop all messages that wait in QUEUE. What runs, and what is dead, stays."""
    with session.connect() as broker:
        ready = broker.queue(queue).stats().ready
        confirm(f"drop {'all' if ready is None else format(ready, ',')} messages of {queue}", yes)
        dropped = broker.queue(queue).purge()
    if session.json:
        print_json({"queue": queue, "dropped": dropped})
    session.say(f"dropped {dropped:,} messages of {queue}")


def delete(
    session: Session,
    queue: Annotated[str, typer.Argument(metavar="QUEUE")],
    dead_letters: Annotated[
        bool, typer.Option("--dead-letters", help="Its dead-letter queue as well.")
    ] = False,
    yes: Yes = False,
) -> None:
    """Delete QUEUE with all that waits in it or runs. Its dead letters stay, unless told."""
    with session.connect() as broker:
        stats = broker.queue(queue).stats()
        ready = "all" if stats.ready is None else format(stats.ready, ",")
        what = f"delete queue {queue} and {ready} messages"
        if dead_letters:
            what += f", and {'all' if stats.dead is None else format(stats.dead, ',')} dead letters"
        confirm(what, yes)
        broker.queue(queue).delete(dead_letters=dead_letters)
    if session.json:
        print_json({"queue": queue, "deleted": True})
    session.say(f"deleted queue {queue}")


def migrate(
    session: Session,
    queue: Annotated[str, typer.Argument(metavar="QUEUE")],
    type: Annotated[
        QueueType | None, typer.Option("--type", help="quorum: replicated. classic: on one node.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, help="Waiting messages at most.")
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option("--ttl", parser=duration, metavar="TIME", help="How long one may wait."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Even if somebody sends past us, whose messages or bindings may be lost.",
        ),
    ] = False,
    yes: Yes = False,
) -> None:
    """Give QUEUE other parameters, while it is in use, and keep its messages.

    A parameter that is not named is not set afterwards; the type stays. Senders and workers of
    ours wait meanwhile and go on by themselves. If this is interrupted, call it again: it goes on.
    On RabbitMQ give --management-url: without it bindings that others made cannot be kept.
    """
    spec = QueueSpec(name=queue, type=type, max_length=max_length, ttl=ttl)
    if not spec.asks:
        raise typer.BadParameter("say what is to change: --type, --max-length or --ttl")
    with session.connect() as broker:
        changes = differences(broker, spec)
        if dry_run:
            tell_changes(session, queue, changes)
            return
        confirm(f"make queue {queue} anew with {told(changes)}, and move its messages", yes)
        moved = broker.transport.migrate(spec, session.say, force=force)
    if session.json:
        print_json({"queue": queue, "moved": moved})


Changes = dict[str, tuple[object, object]]
"""Parameters, each with what it is to be and what it is."""


def differences(broker: Broker, spec: QueueSpec) -> Changes:
    """Raises QueueNotFound."""
    try:
        if broker.transport.declare(spec, dry_run=True):
            raise QueueNotFound(spec.name)
    except QueueMismatch as mismatch:
        return mismatch.differences
    except QueueMigrating:  # an interrupted one, that is to go on
        pass
    return {}


def tell_changes(session: Session, queue: str, changes: Changes) -> None:
    if session.json:
        wanted = {name: {"from": now, "to": new} for name, (new, now) in changes.items()}
        print_json({"queue": queue, "changes": wanted})
    session.say(f"queue {queue} would be made anew with {told(changes)}")


def told(changes: Changes) -> str:
    return (
        ", ".join(f"{name} {show(new)} (now {show(now)})" for name, (new, now) in changes.items())
        or "the parameters it has"
    )


def confirm(what: str, yes: bool) -> None:
    """Go on only if told to: by --yes, or by an answer in a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"this would {what}: say --yes to do it")
    if not typer.confirm(f"This will {what}. Go on?", err=True):
        raise typer.Exit(1)
