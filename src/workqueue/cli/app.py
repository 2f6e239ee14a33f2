"""All commands together."""

from __future__ import annotations

from typing import Annotated

import typer

from workqueue import __version__
from workqueue.cli import bench, dead, demo, doctor, look, mend, send, setup, watch, work
from workqueue.cli.settings import apply_settings
from workqueue.cli.torture import command as torture

EPILOG = (
    "Exit codes: 0 done, 1 failed, 2 usage, 3 partly done, 65 bad input, 69 no broker reached, "
    "70 a bug of ours, 77 refused credentials, 78 bad configuration, 130 and 143 stopped twice."
)

app = typer.Typer(
    name="workqueue",
    help="Work queues on RabbitMQ, or on a file of your own: what was sent is handled.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"workqueue {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """Work queues on RabbitMQ, or on a file of your own: what was sent is handled."""
    apply_settings(ctx)


for module in (send, work, demo, bench, torture, look, watch, dead, mend, setup, doctor):
    module.add_to(app)
