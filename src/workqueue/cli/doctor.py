"""workqueue doctor: what is well, what is not, and the command to type."""

from __future__ import annotations

import platform
import shlex
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import entry_points
from typing import Annotated

import typer

from workqueue import __version__, registry
from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json, print_table, show_log
from workqueue.cli.setup import describe
from workqueue.errors import WorkqueueError
from workqueue.masking import has_secret, mask
from workqueue.message import visible
from workqueue.transport import DEAD_SUFFIX, Examinable, Finding, Transport, check_name

COLUMNS = ("state", "check", "queue", "found", "command")


def add_to(app: typer.Typer) -> None:
    command(app, panel="Set up")(doctor)


def doctor(
    session: Session,
    queues: Annotated[
        list[str] | None,
        typer.Argument(metavar="[QUEUE]", help="All that can be listed, if none is named."),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(parser=duration, metavar="TIME", help="How long your tasks may run."),
    ] = None,
) -> None:
    """Look the broker and each QUEUE over: what is well, what is not, and what to type.

    Nothing is made or changed on the broker. What only RabbitMQ's management API knows takes
    --management-url, and is a warning without it. Exit 1 if anything fails.
    """
    names = queues or []
    for name in names:
        check_name(name)
    show_log(quiet=session.quiet, verbose=session.verbose)
    findings = []
    for finding in (*installation(), *environment(session), *broker(session, names, timeout)):
        findings.append(finding)
        if session.json:
            print_json(asdict(finding))
    if not session.json:
        show(findings)
    if any(finding.state == "fail" for finding in findings):
        sys.exit(1)


def show(findings: list[Finding]) -> None:
    """Lines for a reader on a terminal, the same tab-separated elsewhere."""
    if not sys.stdout.isatty():
        print_table(COLUMNS, [[getattr(row, name) for name in COLUMNS] for row in findings])
        return
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        about = f"{finding.queue}: " if finding.queue else ""
        print(f"{finding.state:4}  {finding.check:{width}}  {visible(about + finding.found)}")
        if finding.command:
            print(f"      {'':{width}}  {visible(finding.command)}")


def installation() -> Iterator[Finding]:
    """What is installed here, and whether each plugin can be loaded."""
    python = f"Python {platform.python_version()}"
    yield Finding(
        state="ok", check="installed", found=f"workqueue {__version__} on {python}, {sys.platform}"
    )
    loaded = 0
    for group in registry.GROUPS:
        for entry_point in entry_points(group=group):
            kind, name, distribution, _, state = describe(group, entry_point)
            if state == "ok":
                loaded += 1
                continue
            yield Finding(
                state="warn",
                check="plugins",
                found=f"the {kind} {name} of {distribution} is {state}",
                command=f"pip install --upgrade {shlex.quote(distribution or 'workqueue')}",
            )
    yield Finding(state="ok", check="plugins", found=f"{loaded} can be loaded")


def environment(session: Session) -> Iterator[Finding]:
    """Which broker was named, and who can read its password where it was named."""
    url = session.find_url()
    if url is None:
        there = "" if registry.is_made(registry.default_file()) else ", which is made on first use"
        found = f"none was named: the embedded file {registry.default_file()}{there}"
        yield Finding(state="ok", check="url", found=found)
        return
    told = mask(url)
    if flags := session.secrets_in_argv():
        yield Finding(
            state="warn",
            check="url",
            found=f"a password in {' and '.join(flags)} can be seen by all users of this machine",
            command="set WORKQUEUE_URL or WORKQUEUE_MANAGEMENT_URL, or use --url-file FILE",
        )
        return
    if session.url is None and session.url_file is not None:
        mode = stat.S_IMODE(session.url_file.stat().st_mode)
        if mode & 0o077 and has_secret(url):
            yield Finding(
                state="warn",
                check="url",
                found=f"others may read {session.url_file} (mode {mode:04o})",
                command=f"chmod 600 {shlex.quote(str(session.url_file))}",
            )
            return
    yield Finding(state="ok", check="url", found=told)


def broker(session: Session, queues: list[str], timeout: float | None) -> Iterator[Finding]:
    """What the transport finds. Raises ConfigError for a URL that cannot be."""
    named = session.find_url()
    if named is None and not registry.is_made(registry.default_file().parent):
        return  # all of it is made on first use
    url = named or registry.default_url()
    amqp = url.lower().startswith("amqp")
    transport = registry.open_transport(url, session.management_url if amqp else None)
    try:
        if isinstance(transport, Examinable):
            yield from transport.examine(queues, timeout)
            return
        yield Finding(
            state="warn",
            check="broker",
            found=f"{registry.scheme_of(url)}:// cannot be looked over; only its queues are",
            command="workqueue plugins",
        )
        for queue in queues or work_queues(transport):
            stats = transport.stats(queue)
            found = f"{stats.ready} ready, {stats.dead} dead"
            yield Finding(state="ok", check="queue", queue=queue, found=found)
    except WorkqueueError as error:
        yield Finding(state="fail", check="broker", found=str(error), command=error.hint)
    finally:
        transport.close()


def work_queues(transport: Transport) -> list[str]:
    return [name for name in transport.queues() if not name.endswith(DEAD_SUFFIX)]
