"""The installed command in processes of its own, and handlers that keep a journal of what they did.

Tests of the promises look from outside, as a user does: exit codes, output, and the journal, which
handlers write one line a write, so that it survives SIGKILL.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workqueue.testing import eventually

PATIENCE = 60.0
"""Seconds. How long something that must happen may take on a slow, shared machine."""

TASKS = '''
import ctypes, json, os, signal, time


def note(job, event, **more):
    line = {
        "event": event, "body": job.body.decode(errors="replace"), "id": job.id,
        "attempt": job.attempt, "redelivered": job.redelivered, "worker": os.getppid(),
        "pid": os.getpid(), "at": time.time(), **more,
    }
    with open("journal", "ab", buffering=0) as journal:
        journal.write(json.dumps(line).encode() + b"\\n")


def handle(job):
    """The body says what to do: a word, perhaps with a number."""
    note(job, "start")
    word, _, rest = job.body.decode(errors="replace").partition(" ")
    if word == "sleep":
        time.sleep(float(rest.split()[0]))
    elif word == "once":  # slow at first, quick when it comes again
        time.sleep(0 if job.redelivered else float(rest.split()[0]))
    elif word == "exit":
        os._exit(1)
    elif word == "segfault":
        ctypes.string_at(0)
    elif word == "suicide":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "fail":
        raise ValueError("as asked")
    elif word == "parricide":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    elif word == "twice" and job.attempt < 3:
        raise ValueError("not yet")
    elif word == "listen":  # until it is told that the message was taken away
        deadline = time.monotonic() + (0 if job.redelivered else float(rest.split()[0]))
        while time.monotonic() < deadline:
            if job.lost.wait(0.05):
                note(job, "told")
                return
    note(job, "done")
'''


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Program:
    """A running command."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def wait(self, within: float = PATIENCE) -> Result:
        self.process.wait(within)
        return Result(self.process.returncode, self.out.read_text(), self.err.read_text())

    def says(self, text: str) -> bool:
        return text in self.err.read_text()


@dataclass
class Desk:
    """A folder with `tasks.py` and a journal in it, and commands that run there."""

    folder: Path
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "tasks.py").write_text(TASKS)
        (self.folder / "journal").touch()

    def start(self, *arguments: str, stdin: str | None = None, **env: str) -> Program:
        """`workqueue …` in the background, its output in files."""
        number = len(self.programs)
        out, err = self.folder / f"out-{number}", self.folder / f"err-{number}"
        source = self.folder / f"in-{number}"
        source.write_text(stdin or "")
        with out.open("wb") as o, err.open("wb") as e, source.open("rb") as i:
            process = subprocess.Popen(
                [sys.executable, "-m", "workqueue", *arguments],
                cwd=self.folder,
                env={**os.environ, "WORKQUEUE_URL": self.url, **self.environment, **env},
                stdin=subprocess.DEVNULL if stdin is None else i,
                stdout=o,
                stderr=e,
            )
        program = Program(process, out, err)
        self.programs.append(program)
        return program

    def run(self, *arguments: str, stdin: str | None = None, **env: str) -> Result:
        """`workqueue …` to its end."""
        return self.start(*arguments, stdin=stdin, **env).wait()

    def send(self, queue: str, *bodies: str) -> None:
        result = self.run("send", queue, "-", stdin="".join(f"{body}\n" for body in bodies))
        assert result.code == 0, result.err

    def work(self, queue: str, *arguments: str, **env: str) -> Program:
        """A worker with the journalling handler."""
        return self.start("work", queue, "tasks:handle", *arguments, **env)

    def drain(self, queue: str, *arguments: str) -> Result:
        """Everything that waits is worked on, to the end."""
        return self.work(queue, "--until-empty", *arguments).wait()

    def journal(self, event: str | None = None) -> list[dict[str, Any]]:
        lines = (self.folder / "journal").read_bytes().splitlines()
        entries = [json.loads(line) for line in lines]
        return [entry for entry in entries if event in (None, entry["event"])]

    def bodies(self, event: str) -> list[str]:
        return [entry["body"] for entry in self.journal(event)]

    def until(self, condition: Callable[[], object], what: str, within: float = PATIENCE) -> None:
        eventually(condition, within=within, what=what)

    def until_done(self, count: int) -> None:
        self.until(lambda: len(self.journal("done")) >= count, f"{count} tasks done")

    def status(self, queue: str) -> dict[str, Any]:
        [found] = self.run("status", queue, "--json").json
        return dict(found)

    def close(self) -> None:
        for program in self.programs:
            if program.process.poll() is None:
                program.process.kill()
                program.process.wait()


def processes_with(mark: str) -> list[int]:
    """The processes whose command line holds `mark`."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes().decode():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(entry.name)] if state != "Z" else []
        except (OSError, UnicodeDecodeError):
            continue
    return found


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                found += [int(entry.name)] if int(parent) == pid and state != "Z" else []
        except OSError:
            continue
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def seconds_since(began: float) -> float:
    return time.monotonic() - began
