"""workqueue declare, plugins, config: what is made, installed and set."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from workqueue import registry
from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json, print_table
from workqueue.cli.plain import PlainGroup
from workqueue.cli.settings import candidate_files, is_there, load_settings, variables_of
from workqueue.masking import mask
from workqueue.message import visible
from workqueue.transport import QueueSpec, QueueType


def add_to(app: typer.Typer) -> None:
    command(app, panel="Set up")(declare)
    command(app, panel="Set up")(plugins)
    config = typer.Typer(
        cls=PlainGroup, help="What is set, and where it was set.", no_args_is_help=True
    )
    command(config, panel="Set up", name="show")(config_show)
    command(config, panel="Set up", name="path")(config_path)
    app.add_typer(config, name="config", rich_help_panel="Set up")


def declare(
    session: Session,
    queues: Annotated[list[str], typer.Argument(metavar="QUEUE")],
    type: Annotated[
        QueueType | None,
        typer.Option("--type", help="quorum: replicated, the default. classic: on one node."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=1, help="Waiting messages at most; more are refused."),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            "--ttl",
            parser=duration,
            metavar="TIME",
            help="How long a message may wait before it becomes a dead letter.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
) -> None:
    """Make each QUEUE and its dead-letter queue; if it is there, check it against the options."""
    specs = [QueueSpec(name=q, type=type, max_length=max_length, ttl=ttl) for q in queues]
    with session.connect() as broker:
        for spec in specs:
            made = broker.transport.declare(spec, dry_run=dry_run)
            if session.json:
                print_json({"queue": spec.name, "made": made, "dry_run": dry_run})
            verb = ("would make" if dry_run else "made") if made else "found"
            session.say(f"{verb} queue {spec.name}")


def plugins(session: Session) -> None:
    """What is installed: transports, middleware and commands, and whether each can be loaded."""
    columns = ("group", "name", "distribution", "version", "state")
    rows = [
        describe(group, entry_point)
        for group in registry.GROUPS
        for entry_point in sorted(entry_points(group=group), key=lambda found: found.name)
    ]
    if session.json:
        for row in rows:
            print_json(dict(zip(columns, row, strict=True)))
    else:
        print_table(columns, rows)


def describe(group: str, entry_point: EntryPoint) -> tuple[str | None, ...]:
    try:
        entry_point.load()
        state = "ok"
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may fail in any way
        state = f"broken: {error.__class__.__name__}: {error}"
    dist = entry_point.dist
    kind = group.removeprefix("workqueue.").removesuffix("s")
    return (
        kind,
        entry_point.name,
        dist.name if dist else None,
        dist.version if dist else None,
        state,
    )


def config_show(session: Session) -> None:
    """Every setting that is not left at its default, and where it was set; no passwords."""
    from workqueue.cli.app import make_app

    chosen = {
        setting.name: (setting.value, str(setting.source)) for setting in load_settings().values()
    }
    for flag, variable in variables_of(typer.main.get_command(make_app())).items():
        if os.environ.get(variable):
            chosen[flag] = (os.environ[variable], variable)
    for name in session.in_argv & {"url", "url_file", "management_url"}:
        flag = name.replace("_", "-")
        chosen[flag] = (getattr(session, name), f"--{flag}")
    if session.url is None and session.url_file is not None:
        chosen["url"] = (session.find_url(), str(session.url_file))
    if "url" not in chosen and (file := registry.own_file()):
        chosen["url"] = (f"sqlite:///{file}", "default")
    rows = [(name, shown(value), source) for name, (value, source) in sorted(chosen.items())]
    columns = ("setting", "value", "source")
    if session.json:
        for row in rows:
            print_json(dict(zip(columns, row, strict=True)))
    else:
        print_table(columns, rows)


def config_path(session: Session) -> None:
    """Where settings are looked for, the strongest first."""
    for file in reversed(candidate_files()):
        with suppress(OSError):  # without a current folder, its files are named as they are
            file = file.absolute()
        if session.json:
            print_json({"path": str(file), "exists": is_there(file)})
        else:
            print(visible(str(file)))


def shown(value: object) -> object:
    """A setting's value without its secrets."""
    if isinstance(value, list):
        return [shown(one) for one in value]
    return mask(value) if isinstance(value, str) else value
