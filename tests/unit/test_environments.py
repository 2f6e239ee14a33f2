"""Each command in each odd environment: a clear line and the right code, and never "a bug".

A command that can do its work in spite of the environment does it; else it says what is wrong and
what to type next, in three lines at most.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

COMMANDS: dict[str, tuple[str, ...]] = {
    "send": ("send", "jobs", "grüße"),
    "work": ("work", "jobs", "--exec", "--until-empty", "--", "true"),
    "work a function": ("work", "jobs", "tasks.py:handle", "--until-empty"),
    "status": ("status", "jobs"),
    "peek": ("peek", "jobs"),
    "peek json": ("peek", "jobs", "--json"),
    "dead list": ("dead", "list", "jobs"),
    "declare": ("declare", "jobs"),
    "purge": ("purge", "jobs", "--yes"),
    "doctor": ("doctor",),
    "plugins": ("plugins",),
    "config show": ("config", "show"),
    "config path": ("config", "path"),
    "help": ("--help",),
    "version": ("--version",),
}

NOBODY = 4711
"""A user that no password file knows."""

WORKS = frozenset({0})
CRAMPED = frozenset({0, 69, 78})
EITHER = frozenset({0, 78})

FEW = ("send", "work", "status", "peek json", "doctor", "config show")
"""The commands that are tried where not all are: each takes half a second."""


@dataclass(frozen=True)
class Environment:
    """What is odd. `named`: with a broker's URL; `codes`: how each command may end."""

    codes: frozenset[int]
    named: bool = True
    variables: dict[str, str | None] = field(default_factory=dict)
    limits: dict[int, int] = field(default_factory=dict)
    redirect: str = ""
    prepare: Callable[[Path], None] = lambda _: None
    before: str = ""
    told: str = ""
    as_nobody: bool = False
    commands: tuple[str, ...] = FEW


def unreadable_settings(folder: Path) -> None:
    (folder / "workqueue.toml").write_text("")
    (folder / "workqueue.toml").chmod(0)


def settings_with(content: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / "workqueue.toml").write_bytes(content))


def void(_: object) -> None:
    """For functions that give something nobody wants."""


NO_HOME = {"HOME": None, "XDG_STATE_HOME": None, "XDG_CONFIG_HOME": None}

EVERY = tuple(COMMANDS)

ENVIRONMENTS: dict[str, Environment] = {
    "as usual": Environment(WORKS, commands=EVERY),
    # The children of `work` may need a Python that only root may execute.
    "no home": Environment(
        EITHER, variables=NO_HOME, as_nobody=True, told="/python: Permission", commands=EVERY
    ),
    "no home, no broker": Environment(
        EITHER, named=False, variables=NO_HOME, as_nobody=True, told="no home"
    ),
    "a relative home": Environment(
        EITHER, named=False, variables={**NO_HOME, "HOME": "here"}, told="no home"
    ),
    "a home that does not exist": Environment(
        EITHER, named=False, variables={**NO_HOME, "HOME": "/proc/nonexistent"}, told="be made"
    ),
    "somebody else's home": Environment(
        EITHER,
        variables={**NO_HOME, "HOME": "{folder}/locked"},
        as_nobody=True,
        told="/python: Permission",
    ),
    "somebody else's home, no broker": Environment(
        EITHER,
        named=False,
        variables={**NO_HOME, "HOME": "{folder}/locked"},
        as_nobody=True,
        told="be made",
    ),
    "an odd home": Environment(
        WORKS, named=False, variables={**NO_HOME, "HOME": "{folder}/a b?c#d%20"}
    ),
    "relative XDG folders": Environment(
        WORKS, variables={"XDG_STATE_HOME": "x", "XDG_CONFIG_HOME": "y"}
    ),
    "a deleted folder": Environment(
        EITHER,
        before="mkdir gone; cd gone; rmdir ../gone;",
        told="folder|no file",
        commands=EVERY,
    ),
    "a relative URL in a deleted folder": Environment(
        EITHER,
        variables={"WORKQUEUE_URL": "sqlite:///jobs.db"},
        before="mkdir gone; cd gone; rmdir ../gone;",
        told="current folder",
    ),
    "a folder that may not be searched": Environment(
        EITHER, before="cd locked;", as_nobody=True, told="no file|Permission"
    ),
    "no temporary folder": Environment(WORKS, variables={"TMPDIR": "/nonexistent"}),
    "ASCII output": Environment(WORKS, variables={"PYTHONIOENCODING": "ascii"}),
    "Latin-1 output": Environment(WORKS, variables={"PYTHONIOENCODING": "latin-1:strict"}),
    "the C locale": Environment(
        WORKS, variables={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ),
    "an unknown time zone": Environment(WORKS, variables={"TZ": "No/Where:::"}),
    "an unknown terminal": Environment(
        WORKS, variables={"TERM": "nonsense", "COLUMNS": "x", "NO_COLOR": ""}
    ),
    "no standard input": Environment(WORKS, redirect="<&-"),
    "no standard output": Environment(WORKS, redirect=">&-"),
    "no standard error": Environment(WORKS, redirect="2>&-"),
    "no standard streams": Environment(WORKS, redirect="<&- >&- 2>&-"),
    "full standard output": Environment(frozenset({0, 1}), redirect=">/dev/full", told="output"),
    "full standard error": Environment(WORKS, redirect="2>/dev/full"),
    "standard output for reading": Environment(
        frozenset({0, 1}), redirect="1</dev/null", told="output"
    ),
    "few open files": Environment(
        CRAMPED, limits={resource.RLIMIT_NOFILE: 16}, told="files open|open files", commands=EVERY
    ),
    "hardly any open files": Environment(
        CRAMPED, limits={resource.RLIMIT_NOFILE: 10}, told="files open|open files", commands=EVERY
    ),
    "fewer open files": Environment(
        CRAMPED, limits={resource.RLIMIT_NOFILE: 7}, told="files open|open files", commands=EVERY
    ),
    "no files of any size": Environment(
        CRAMPED, limits={resource.RLIMIT_FSIZE: 4096}, told="full|grow|failed|cut"
    ),
    "no processes or threads": Environment(
        EITHER, limits={resource.RLIMIT_NPROC: 1}, as_nobody=True, told="processes|Permission"
    ),
    "unreadable settings": Environment(
        EITHER, prepare=unreadable_settings, as_nobody=True, told="workqueue.toml"
    ),
    "settings that are a folder": Environment(
        EITHER, prepare=lambda folder: (folder / "workqueue.toml").mkdir(), told="workqueue.toml"
    ),
    "settings that are a pipe": Environment(
        EITHER, prepare=lambda folder: os.mkfifo(folder / "workqueue.toml"), told="workqueue.toml"
    ),
    "settings that are no text": Environment(
        EITHER, prepare=settings_with(bytes(range(256))), told="workqueue.toml"
    ),
    "settings without an end": Environment(
        EITHER,
        prepare=lambda folder: (folder / "workqueue.toml").symlink_to("/dev/zero"),
        told="workqueue.toml",
    ),
    "settings that are nothing": Environment(
        WORKS, prepare=lambda folder: (folder / "workqueue.toml").symlink_to("/dev/null")
    ),
    "settings in a loop": Environment(
        EITHER,
        prepare=lambda folder: (folder / "workqueue.toml").symlink_to("workqueue.toml"),
        told="workqueue.toml",
    ),
}

AS_NOBODY = shutil.which("setpriv")


def run(command: tuple[str, ...], odd: Environment, folder: Path) -> subprocess.CompletedProcess:
    """`workqueue …` by way of a shell, which sets the scene."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("WORKQUEUE_")
    }
    environment |= {"XDG_STATE_HOME": f"{folder}/state", "XDG_CONFIG_HOME": f"{folder}/config"}
    if odd.named:
        environment["WORKQUEUE_URL"] = f"sqlite:///{folder}/jobs.db"
    for name, value in odd.variables.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value.format(folder=folder)
    words = [sys.executable, "-m", "workqueue", *command]
    if odd.as_nobody:
        user = ("--reuid", str(NOBODY), "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")
        words = [AS_NOBODY or "", *user, *words]

    def limit() -> None:
        for kind, most in odd.limits.items():
            resource.setrlimit(kind, (most, most))

    return subprocess.run(
        ["sh", "-c", f'{odd.before} exec "$@" {odd.redirect}', "sh", *words],
        cwd=folder,
        env=environment,
        preexec_fn=limit if odd.limits else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a handler, a queue that has a message, and a folder that only root may enter."""
    (tmp_path / "tasks.py").write_text("def handle(job): pass\n")
    done = run(COMMANDS["send"], Environment(WORKS), tmp_path)
    assert done.returncode == 0, done
    (tmp_path / "locked").mkdir(0o700)
    return tmp_path


@pytest.mark.parametrize("odd", ENVIRONMENTS)
def test_no_environment_is_a_bug(odd: str, folder: Path) -> None:
    """Every command, one after the other."""
    environment = ENVIRONMENTS[odd]
    if environment.as_nobody:
        if os.geteuid() != 0 or not AS_NOBODY:
            pytest.skip("becoming another user takes root and setpriv")
        open_to_all(folder)
    environment.prepare(folder)
    failures = []
    for name in environment.commands:
        result = run(COMMANDS[name], environment, folder)
        if name == "doctor" and result.returncode == 1 and result.stdout:
            continue  # what it found is on standard output
        if problem := problem_of(result, environment):
            failures.append(f"{name}: {problem}: {result}")
    assert not failures, "\n".join(failures)


def problem_of(result: subprocess.CompletedProcess, odd: Environment) -> str:
    """What is not as it should be with how a command ended."""
    told = result.stderr.decode(errors="replace")
    if "Traceback" in told or "Exception ignored" in told:
        return "a traceback"
    if result.returncode not in odd.codes:
        return f"exit {result.returncode}"
    if result.returncode == 0 or "2>" in odd.redirect:
        return ""
    lines = told.splitlines()
    last = next((at for at, line in enumerate(lines) if line.startswith("workqueue: ")), None)
    if last is None or len(lines) - last > 3 or not lines[-1].startswith("  Try: "):
        return "no clear line"
    if not re.search(odd.told, lines[last]):
        return f"{odd.told!r} is not what it says"
    return ""


def open_to_all(folder: Path) -> None:
    """Another user may use what root made, but for the locked folder; and pytest's own above."""
    for parent in folder.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    for file in (folder, *folder.iterdir()):
        if file.name != "locked":
            os.chown(file, NOBODY, NOBODY)


def test_json_stays_json_in_any_encoding(folder: Path) -> None:
    """What the encoding lacks is escaped as JSON escapes it."""
    for encoding in ("ascii", "latin-1", "utf-8", "cp437"):
        odd = Environment(WORKS, variables={"PYTHONIOENCODING": encoding})
        sent = run(("send", encoding, "→ grüße 🐇"), odd, folder)
        assert sent.returncode == 0
        result = run(("peek", encoding, "--json"), odd, folder)
        assert json.loads(result.stdout.decode(encoding))["body"] == "→ grüße 🐇"


@pytest.mark.parametrize(
    "command",
    [
        ("send", "jobs", b"\xff\xfe"),
        ("send", b"\xff", "x"),
        ("send", "jobs", "x", "--id", b"\xff"),
        ("send", "jobs", "x", "--type", b"\xff"),
        ("send", "jobs", "x", "-H", b"a=\xff"),
        ("send", "jobs", "-f", b"\xff"),
        ("send", "jobs", "x", "-u", b"sqlite:///\xff.db"),
        ("send", "jobs", "x", "-u", b"amqp://\xff@127.0.0.1:1"),
        ("send", "jobs", "x", "-u", b"\xff"),
        ("send", "jobs", "x", "--url-file", b"\xff"),
        ("status", b"\xff"),
        ("peek", b"\xff"),
        ("dead", "list", "jobs", "--error", b"\xff"),
        ("dead", "show", "jobs", b"\xff"),
        ("dead", "requeue", "jobs", b"\xff"),
        ("declare", b"\xff"),
        ("work", "jobs", b"\xff:handle", "--until-empty"),
        ("work", "jobs", b"\xff.py:handle", "--until-empty"),
        ("work", "jobs", "--until-empty", "--middleware", b"\xff", "tasks.py:handle"),
        ("work", "jobs", "--exec", "--until-empty", "--", b"/\xff"),
        ("doctor", b"\xff"),
        (b"\xff",),
        ("status", b"--\xff"),
    ],
)
def test_words_that_are_no_text(command: tuple[str | bytes, ...], folder: Path) -> None:
    """In file names and bodies they are as good as any; elsewhere they are a clear error."""
    words = tuple(os.fsdecode(word) for word in command)
    result = run(words, Environment(WORKS), folder)
    told = result.stderr.decode()
    assert result.returncode != 70, told
    assert "Traceback" not in told
    assert result.returncode == 0 or told.splitlines()[-1].startswith("  Try: ")
