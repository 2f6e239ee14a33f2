"""workqueue purge: drop what waits."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workqueue.cli.options import Session, command
from workqueue.cli.output import print_json


def add_to(app: typer.Typer) -> None:
    command(app, panel="Mend")(purge)


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


def confirm(what: str, yes: bool) -> None:
    """Go on only if told to: by --yes, or by an answer in a terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"this would {what}: say --yes to do it")
    if not typer.confirm(f"This will {what}. Go on?", err=True):
        raise typer.Exit(1)
