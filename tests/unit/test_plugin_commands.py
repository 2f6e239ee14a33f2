"""Commands of other distributions, installed as pip would install them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.test_cli import Shell, is_error

COMMANDS = '''
import typer

hello = typer.Typer()


@hello.command()
def greet(name: str, loud: bool = False) -> None:
    """Greet somebody."""
    typer.echo(f"hello {name}" + "!" * loud)


many = typer.Typer(help="More than one.")


@many.command()
def one() -> None:
    """The first."""
    typer.echo("one of many")


@many.command()
def two() -> None:
    from workqueue import QueueNotFound, connect

    connect().queue("nosuch").stats()


@many.command()
def three() -> None:
    raise KeyError("not ours")


@many.command()
def four() -> None:
    raise typer.Exit(4)


no_app = dict
usurper = typer.Typer()


@usurper.command()
def status() -> None:
    typer.echo("usurped")
'''

ENTRY_POINTS = """
[workqueue.commands]
greet = acme_commands:hello
acme = acme_commands:many
odd = acme_commands:no_app
missing = nosuch_module:app
status = acme_commands:usurper
"""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Where a distribution with commands is installed."""
    shell = Shell(tmp_path)
    info = tmp_path / "site" / "workqueue_acme-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workqueue-acme\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info.parent / "acme_commands.py").write_text(COMMANDS)
    path = os.pathsep.join([str(info.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    shell.environment["PYTHONPATH"] = path
    return shell


def test_they_are_run_by_their_names(shell: Shell) -> None:
    """With their own arguments, options, help and exit codes; an app of one command is that."""
    assert shell("greet", "ada", "--loud").out == "hello ada!\n"
    assert shell("acme", "one").out == "one of many\n"
    assert shell("acme", "four").code == 4
    assert "Greet somebody" in shell("greet", "--help").out
    assert "The first" in shell("acme", "--help").out
    is_error(shell("greet"), 2, "name")


def test_they_are_in_the_help_and_the_list(shell: Shell) -> None:
    """Under a heading of their own, with where they are from; none of them is loaded for it."""
    (shell.folder / "site" / "acme_commands.py").write_text("raise SystemExit('loaded')")
    told = shell("--help").out
    assert "Plugins" in told
    assert "From workqueue-acme 1.5" in told
    rows = {row["name"]: row for row in shell("plugins", "--json").json}
    assert rows["missing"]["state"].startswith("broken: ModuleNotFoundError")
    assert rows["greet"]["group"] == "command"


def test_a_broken_one_breaks_nothing_else(shell: Shell) -> None:
    """It says so itself when it is called."""
    is_error(shell("missing", "x"), 78, "plugin missing of workqueue-acme", "workqueue plugins")
    is_error(shell("odd"), 78, "plugin odd of workqueue-acme 1.5", "no Typer app")
    assert shell("send", "q", "x").code == 0
    assert shell("greet", "ada").code == 0
    is_error(shell("nosuch"), 2, "no such command 'nosuch'")


def test_ours_cannot_be_replaced(shell: Shell) -> None:
    """Whatever a distribution calls its own."""
    assert shell("send", "q", "x").code == 0
    assert "usurped" not in shell("status", "q").out
    assert shell("--help").out.count("From workqueue-acme 1.5") == 4


def test_their_errors(shell: Shell) -> None:
    """Ours are told as everywhere; theirs are not called bugs of ours."""
    is_error(shell("acme", "two"), 1, "queue nosuch does not exist")
    is_error(shell("acme", "three"), 1, "plugin acme of workqueue-acme 1.5 failed", "KeyError")
