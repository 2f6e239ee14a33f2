"""A fault that only the user knows how to do: the broker itself is restarted, by a command."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING

import typer

from workqueue.errors import WorkqueueError
from workqueue.message import visible

if TYPE_CHECKING:
    from workqueue.cli.torture.siege import Siege

RESTARTING = 120.0
"""Seconds for the command to end."""


class Restart:
    """Runs `line`, without a shell; `count` is how often. Raises BadParameter for what is none."""

    def __init__(self, line: str) -> None:
        self.words = split(line)
        self.count = 0

    def strike(self, siege: Siege) -> str:
        """Raises WorkqueueError if it fails: how the broker is then, nobody knows, and a verdict
        would be on something else than was asked for."""
        told = shlex.join(self.words)
        with tempfile.TemporaryFile() as output:
            try:
                code = self.run(siege, output.fileno())
            except OSError as error:  # no program after all
                raise failed(f"{told}: {error.strerror}") from error
            output.seek(0)
            last = output.read().decode(errors="replace").strip().rpartition("\n")[2]
        if code is None:
            raise failed(f"{told} was not through after {RESTARTING:g} s")
        if code:
            raise failed(visible(f"{told} exited {code}{last and ': '}{last}"))
        self.count += 1
        return f"ran {told}"

    def run(self, siege: Siege, output: int) -> int | None:
        """Its exit code; None if it would not end. Meanwhile all others go on."""
        process = subprocess.Popen(
            self.words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            siege.wait(lambda: process.poll() is not None, RESTARTING)
            return process.poll()
        finally:
            process.kill()
            process.wait()


def split(line: str) -> list[str]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise typer.BadParameter(f"--restart-command: {error}") from error
    if not words:
        raise typer.BadParameter("--restart-command: there is no command in it")
    if shutil.which(words[0]) is None:
        raise typer.BadParameter(f"--restart-command: there is no command {words[0]}")
    return words


def failed(what: str) -> WorkqueueError:
    return WorkqueueError(what, hint="The broker may be down now; nothing was found out about it.")
