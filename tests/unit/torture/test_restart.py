"""The user's command that restarts the broker: it is run, and what goes wrong with it is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import typer

from workqueue.cli.torture import restart
from workqueue.cli.torture.restart import Restart
from workqueue.cli.torture.siege import Siege
from workqueue.errors import WorkqueueError


class Calm:
    """A siege in which nothing happens while one waits."""

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not (met := condition()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return met


CALM = cast(Siege, Calm())


def python(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


def test_it_is_run_and_counted() -> None:
    """Without a shell: what it prints is nobody's business while it works."""
    command = Restart(python("print(1)"))
    assert command.strike(CALM).startswith(f"ran {sys.executable} -c ")
    assert command.strike(CALM)
    assert command.count == 2


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; print(7); sys.exit('no such container')", "exited 1: no such container"),
        ("import sys; sys.exit(3)", "exited 3"),
        ("import sys; sys.exit('red\\x1b[31m')", "exited 1: red\\\\x1b"),
        ("import os; os.kill(os.getpid(), 9)", "exited -9"),
    ],
)
def test_a_failure_ends_the_run(code: str, told: str) -> None:
    """With its last word: a broker that was not restarted is not what was asked about."""
    command = Restart(python(code))
    with pytest.raises(WorkqueueError) as caught:
        command.strike(CALM)
    assert told.replace("\\\\", "\\") in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert command.count == 0


def test_what_turns_out_to_be_no_program(tmp_path: Path) -> None:
    file = tmp_path / "restart"
    file.write_text("\0")
    file.chmod(0o700)
    with pytest.raises(WorkqueueError, match="Exec format error"):
        Restart(str(file)).strike(CALM)


def test_one_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "RESTARTING", 0.5)
    command = Restart(python("import time; time.sleep(600)"))
    began = time.monotonic()
    with pytest.raises(WorkqueueError, match=r"was not through after 0\.5 s"):
        command.strike(CALM)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("docker 'restart", "No closing quotation"),
        ("", "there is no command in it"),
        ("nosuch-command x", "there is no command nosuch-command"),
    ],
)
def test_what_is_no_command(line: str, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        Restart(line)
