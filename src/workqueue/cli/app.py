"""The commands together, or the one that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from workqueue import __version__
from workqueue.cli.plugins import CommandsAndPlugins
from workqueue.cli.settings import apply_settings, are_there_settings

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 65 bad input, 69 no broker reached, "
    "70 a bug of ours, 77 refused credentials, 78 bad configuration, 130 and 143 stopped twice."
)

MODULES = {
    "send": "send",
    "work": "work",
    "demo": "demo",
    "bench": "bench",
    "torture": "torture.command",
    "status": "look",
    "peek": "look",
    "watch": "watch",
    "dead": "dead",
    "purge": "mend",
    "delete": "mend",
    "migrate": "mend",
    "declare": "setup",
    "plugins": "setup",
    "config": "setup",
    "doctor": "doctor",
}
"""Where each command is, in the order of the help."""


def make_app(arguments: Sequence[str] = ()) -> typer.Typer:
    """All commands. If `arguments` begin with the name of one, only those of its module: to import
    and to describe the others takes longer than to send a message.

    Files with settings may name the flags of any command, so where there are some it is all.
    """
    app = typer.Typer(
        name="workqueue",
        cls=CommandsAndPlugins,
        help="Work queues on RabbitMQ, or on a file of your own: what was sent is handled.",
        epilog=EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(root)
    modules = list(dict.fromkeys(MODULES.values()))
    if arguments and arguments[0] in MODULES and not are_there_settings():
        modules = [MODULES[arguments[0]]]
    for module in modules:
        import_module(f"workqueue.cli.{module}").add_to(app)
    return app


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"workqueue {__version__}")
        raise typer.Exit


def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """Work queues on RabbitMQ, or on a file of your own: what was sent is handled."""
    apply_settings(ctx)
