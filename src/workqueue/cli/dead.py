"""workqueue dead: look at what was set aside, bring it back, or drop it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from typing import Annotated

import typer

from workqueue.cli.envelope import letter_record
from workqueue.cli.mend import Yes, confirm
from workqueue.cli.options import Session, command
from workqueue.cli.output import print_json, print_table
from workqueue.cli.plain import PlainGroup
from workqueue.dead import DeadLetter, DeadLetters
from workqueue.errors import WorkqueueError
from workqueue.message import visible

SHORT_BODY = 40
"""Characters of a body in a table."""

QueueName = Annotated[str, typer.Argument(metavar="QUEUE")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]")]
WithError = Annotated[
    str | None, typer.Option("--error", metavar="TEXT", help="Only those whose end tells this.")
]
All = Annotated[bool, typer.Option("--all", help="All of them.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="At most this many.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def add_to(app: typer.Typer) -> None:
    dead = typer.Typer(
        cls=PlainGroup, help="What was set aside: look, bring back, drop.", no_args_is_help=True
    )
    command(dead, panel="Mend", name="list")(dead_list)
    command(dead, panel="Mend", name="show")(dead_show)
    command(dead, panel="Mend", name="requeue")(dead_requeue)
    command(dead, panel="Mend", name="drop")(dead_drop)
    app.add_typer(dead, name="dead", rich_help_panel="Mend")


def dead_list(
    session: Session,
    queue: QueueName,
    ids: Ids = None,
    error: WithError = None,
    limit: Limit = None,
) -> None:
    """The dead letters of QUEUE, with why and when they were set aside.

    The lines of --json can be sent again: workqueue send QUEUE --envelope -
    """
    with session.connect() as broker:
        letters = list(broker.queue(queue).dead.letters(ids=ids or (), error=error, limit=limit))
    check_found(queue, ids, letters)
    if session.json:
        for letter in letters:
            print_json(letter_record(letter))
        return
    columns = ("id", "queue", "type", "attempt", "dead_at", "reason", "body")
    print_table(columns, [row(letter) for letter in letters])


def dead_show(
    session: Session,
    queue: QueueName,
    ids: Ids = None,
    all: All = False,
    error: WithError = None,
    limit: Limit = None,
) -> None:
    """All that is known of dead letters of QUEUE, tracebacks too."""
    check_chosen("show", queue, ids, all, error)
    with session.connect() as broker:
        letters = list(broker.queue(queue).dead.letters(ids=ids or (), error=error, limit=limit))
    check_found(queue, ids, letters)
    for letter in letters:
        if session.json:
            print_json(letter_record(letter))
        else:
            print_letter(letter)


def dead_requeue(
    session: Session,
    queue: QueueName,
    ids: Ids = None,
    all: All = False,
    error: WithError = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Send dead letters of QUEUE to their queue again, as new.

    Each is confirmed there before it is taken away here.
    """
    check_chosen("requeue", queue, ids, all, error)
    with session.connect() as broker:
        dead = broker.queue(queue).dead
        if dry_run:
            tell_dry_run(session, "would be brought back", dead, ids, error, limit)
            return
        done = dead.requeue(ids=ids or (), error=error, limit=limit)
    report(session, queue, "requeued", done, ids)


def dead_drop(
    session: Session,
    queue: QueueName,
    ids: Ids = None,
    all: All = False,
    error: WithError = None,
    limit: Limit = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Forget dead letters of QUEUE. There is no way back."""
    check_chosen("drop", queue, ids, all, error)
    with session.connect() as broker:
        dead = broker.queue(queue).dead
        if dry_run:
            tell_dry_run(session, "would be dropped", dead, ids, error, limit)
            return
        which = counted(len(ids)) if ids else "all dead letters" if all else "the dead letters"
        which += f" with {error!r}" if error else ""
        which += f", {limit:,} at most," if limit else ""
        confirm(f"drop {which} of {queue}", yes)
        done = dead.drop(ids=ids or (), error=error, limit=limit)
    report(session, queue, "dropped", done, ids)


def check_chosen(
    verb: str, queue: str, ids: list[str] | None, all_: bool, error: str | None
) -> None:
    """It is said which ones, and not in two ways that contradict each other."""
    if not ids and not all_ and error is None:
        raise typer.BadParameter(
            f"say which: workqueue dead {verb} {shlex.quote(queue)} ID…, or --all, or --error TEXT"
        )
    if ids and all_:
        raise typer.BadParameter("--all and IDs contradict each other: give one of them")


def check_found(queue: str, ids: list[str] | None, found: Iterable[DeadLetter]) -> None:
    missing = set(ids or ()) - {letter.id for letter in found}
    if missing:
        raise not_there(queue, missing)


def not_there(queue: str, missing: set[str]) -> WorkqueueError:
    named = ", ".join(sorted(missing)[:3]) + (" …" if len(missing) > 3 else "")
    error = WorkqueueError(f"queue {queue} has no dead letter {named}")
    error.command = f"workqueue dead list {shlex.quote(queue)}"
    return error


def tell_dry_run(
    session: Session,
    what: str,
    dead: DeadLetters,
    ids: list[str] | None,
    error: str | None,
    limit: int | None,
) -> None:
    letters = list(dead.letters(ids=ids or (), error=error, limit=limit))
    check_found(dead.queue, ids, letters)
    for letter in letters:
        if session.json:
            print_json(letter_record(letter))
        else:
            print(f"{visible(str(letter.id))}\t{visible(letter.reason)}")
    session.say(f"{len(letters):,} {what}")


def report(
    session: Session, queue: str, verb: str, done: list[str | None], ids: list[str] | None
) -> None:
    if session.json:
        print_json({"queue": queue, verb: len(done)})
    if done or ids:
        session.say(f"{verb} {counted(len(done))} of {queue}")
    else:
        session.say(f"nothing to do: no dead letter of {queue} matches")
    missing = set(ids or ()) - set(done)
    if missing:
        raise not_there(queue, missing)


def counted(number: int) -> str:
    return "1 dead letter" if number == 1 else f"{number:,} dead letters"


def row(letter: DeadLetter) -> tuple[object, ...]:
    body = letter.message.body[: SHORT_BODY * 4].decode(errors="backslashreplace")
    short = body if len(body) <= SHORT_BODY else body[: SHORT_BODY - 1] + "…"
    return (
        letter.id,
        letter.queue,
        letter.message.type,
        letter.attempt,
        local_time(letter.dead_at),
        letter.reason,
        short,
    )


def print_letter(letter: DeadLetter) -> None:
    message = letter.message
    facts = {
        "id": letter.id,
        "queue": letter.queue,
        "type": message.type,
        "content type": message.content_type,
        "priority": message.priority,
        "sent": local_time(message.sent_at),
        "dead": local_time(letter.dead_at),
        "worker": letter.worker,
        "attempts": letter.attempt,
        "reason": letter.reason,
        **{f"header {name}": value for name, value in message.headers.items()},
    }
    for name, value in facts.items():
        if value is not None:
            print(f"{visible(name)}: {visible(str(value))}")
    print(f"body: {visible(message.body.decode(errors='backslashreplace'))}")
    for line in letter.error.splitlines():
        print(f"  {visible(line)}")
    print()


def local_time(moment: float | None) -> str | None:
    if moment is None:
        return None
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return str(moment)
