"""workqueue dead: look at what was set aside, bring it back, or drop it."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Annotated

import typer

from workqueue.cli.envelope import letter_record
from workqueue.cli.mend import Yes, confirm
from workqueue.cli.options import Session, command
from workqueue.cli.output import print_json, print_table, shown, to_json
from workqueue.cli.plain import PlainGroup
from workqueue.dead import DeadLetter, DeadLetters
from workqueue.errors import LookCutShort, WorkqueueError
from workqueue.message import visible

SHORT_BODY = 40
"""Characters of a body in a table."""

COLUMNS = ("id", "queue", "type", "attempt", "dead_at", "reason", "body")

IN_MEMORY = 1024 * 1024
"""Bytes of a printout; more of it is in a file until it is printed."""

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
    with session.connect() as broker, printout(session.json, ids, COLUMNS) as lines:
        for letter in broker.queue(queue).dead.letters(ids=ids or (), error=error, limit=limit):
            lines.add(letter, table_line)
    check_found(queue, lines.missing)


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
    with session.connect() as broker, printout(session.json, ids) as lines:
        for letter in broker.queue(queue).dead.letters(ids=ids or (), error=error, limit=limit):
            lines.add(letter, letter_text)
    check_found(queue, lines.missing)


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
        done = dead.each_requeued(ids=ids or (), error=error, limit=limit)
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
        done = dead.each_dropped(ids=ids or (), error=error, limit=limit)
        report(session, queue, "dropped", done, ids)


class Printout:
    """What a command prints of dead letters, line by line.

    With `columns` the lines are rows of a table. `missing` are those of `ids` that were not among
    the letters.
    """

    def __init__(
        self, lines: IO[str], json: bool, ids: list[str] | None, columns: Sequence[str]
    ) -> None:
        self.lines = lines
        self.json = json
        self.columns = columns
        self.count = 0
        self.missing = set(ids or ())

    def add(self, letter: DeadLetter, text_of: Callable[[DeadLetter], str]) -> None:
        """A line of JSON, or what `text_of` makes of it."""
        self.count += 1
        self.missing.discard(letter.id or "")
        text = to_json(letter_record(letter)) if self.json else text_of(letter)
        self.lines.write(text + "\n")

    def print(self) -> None:
        self.lines.seek(0)
        if self.columns and not self.json:
            print_table(self.columns, (line.rstrip("\n").split("\t") for line in self.lines))
        else:
            sys.stdout.writelines(self.lines)
            sys.stdout.flush()


@contextmanager
def printout(json: bool, ids: list[str] | None, columns: Sequence[str] = ()) -> Iterator[Printout]:
    """Printed when the look at the letters has ended, also if it was cut short.

    Not before: a pager may take hours to read it, in which nobody else could have the letters, and
    the connection would die. And not from memory, for there may be a hundred thousand.
    """
    with tempfile.SpooledTemporaryFile(
        IN_MEMORY, "w+", encoding="utf-8", errors="surrogatepass"
    ) as lines:
        printed = Printout(lines, json, ids, columns)
        try:
            yield printed
        except WorkqueueError:
            if printed.count:
                printed.print()
            raise
        printed.print()


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


def check_found(queue: str, missing: set[str]) -> None:
    if not missing:
        return
    named = ", ".join(sorted(missing)[:3]) + (" …" if len(missing) > 3 else "")
    error = WorkqueueError(f"queue {queue} has no dead letter {named}")
    error.command = f"workqueue dead list {shlex.quote(queue)}"
    raise error


def tell_dry_run(
    session: Session,
    what: str,
    dead: DeadLetters,
    ids: list[str] | None,
    error: str | None,
    limit: int | None,
) -> None:
    with printout(session.json, ids) as lines:
        for letter in dead.letters(ids=ids or (), error=error, limit=limit):
            lines.add(letter, short_line)
    check_found(dead.queue, lines.missing)
    session.say(f"{lines.count:,} {what}")


def report(
    session: Session, queue: str, verb: str, done: Iterable[str | None], ids: list[str] | None
) -> None:
    """Say how many were `done`, one after the other; also if an error ends that."""
    count, missing = 0, set(ids or ())
    try:
        for each in done:
            count += 1
            missing.discard(each or "")
    except LookCutShort:
        session.say(f"{verb} {counted(count)} of {queue}")
        raise
    if session.json:
        print_json({"queue": queue, verb: count})
    if count or ids:
        session.say(f"{verb} {counted(count)} of {queue}")
    else:
        session.say(f"nothing to do: no dead letter of {queue} matches")
    check_found(queue, missing)


def counted(number: int) -> str:
    return "1 dead letter" if number == 1 else f"{number:,} dead letters"


def short_line(letter: DeadLetter) -> str:
    return f"{visible(str(letter.id))}\t{visible(letter.reason)}"


def table_line(letter: DeadLetter) -> str:
    return "\t".join(shown(row(letter)))


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


def letter_text(letter: DeadLetter) -> str:
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
    lines = [
        f"{visible(name)}: {visible(str(value))}"
        for name, value in facts.items()
        if value is not None
    ]
    lines.append(f"body: {visible(message.body.decode(errors='backslashreplace'))}")
    lines += [f"  {visible(line)}" for line in letter.error.splitlines()]
    return "\n".join([*lines, ""])


def local_time(moment: float | None) -> str | None:
    if moment is None:
        return None
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return str(moment)
