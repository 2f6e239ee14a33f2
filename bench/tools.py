"""What the contestants need: the rivals' environment and the C client, made where missing."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from bench.contest import Say
from bench.programs import RIVALS, last_line

HERE = Path(__file__).parent
BUILD = HERE / ".build"
REQUIREMENTS = RIVALS / "requirements.txt"


def rivals_python(say: Say) -> Path:
    """The Python of an environment with the rivals, pinned; made anew when the pins change."""
    home = BUILD / "rivals"
    python = home / "bin" / "python"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()
    stamp = home / "made-from"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    say("making an environment for the rivals ...")
    shutil.rmtree(home, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    subprocess.run(
        [*installer(python), "-r", str(REQUIREMENTS)],
        check=True,
        stdout=sys.stderr,  # what it says is talk
    )
    stamp.write_text(wanted)
    return python


def installer(python: Path) -> list[str]:
    """Something that installs into the environment of `python`: it has no pip of its own."""
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--quiet", "--python", str(python)]
    base = getattr(sys, "_base_executable", sys.executable)
    pip = sys.executable if importlib.util.find_spec("pip") else base
    return [pip, "-m", "pip", "--python", str(python), "install", "--quiet"]


def c_client(say: Say) -> Path | None:
    """The C client, compiled; None, with a word, where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        say("no C compiler: the C client is left out (Debian: apt-get install gcc)")
        return None
    source, program = HERE / "client.c", BUILD / "client"
    BUILD.mkdir(exist_ok=True)
    words = [compiler, "-O2", "-Wall", "-o", program, source, "-lrabbitmq"]
    made = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if made.returncode:
        say(f"the C client is left out: {last_line(made.stderr)}")
        say("it needs librabbitmq (Debian: apt-get install librabbitmq-dev)")
        return None
    return program


def versions(theirs: Path) -> dict[str, str]:
    """Of the rivals, as they are installed, and of the Pythons and the database."""
    asked = (
        "import importlib.metadata as m, sqlite3\n"
        "for d in m.distributions(): print(d.name, d.version)\n"
        "print('SQLite', sqlite3.sqlite_version)"
    )
    told = subprocess.run([theirs, "-c", asked], capture_output=True, text=True, check=True)
    there = dict(line.split() for line in told.stdout.splitlines())
    names = [line.split("==")[0].split("[")[0] for line in REQUIREMENTS.read_text().splitlines()]
    named = [name for name in names if name in there]
    return {name: there[name] for name in [*named, "SQLite"]}
