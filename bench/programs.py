"""Contestants as processes: run to their end, or watched while they work."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.contest import Failed, Sample

RIVALS = Path(__file__).parent / "rivals"
TICK = os.sysconf("SC_CLK_TCK")


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """That of a contestant: nothing of the user's own settings, and BENCH_… as given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WORKQUEUE_")}
    ours = {f"BENCH_{name.upper()}": str(value) for name, value in settings.items()}
    return {**kept, "PYTHONPATH": str(RIVALS), **ours}


def run(words: Sequence[object], settings: Mapping[str, object], within: float = 120) -> Sample:
    """What a program prints as its last line, as a sample: rate, and CPU per message."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{words[1]} did not end within {within:g} s") from None
    if done.returncode:
        raise Failed(last_line(done.stderr) or f"exit status {done.returncode}")
    lines = done.stdout.splitlines()
    if not lines or not lines[-1].startswith("{"):
        return {}
    told = json.loads(lines[-1])
    return {
        "rate": told["count"] / told["seconds"],
        "cpu_us": told["cpu"] / told["count"] * 1e6,
        "memory_mb": told.get("memory", 0.0),
    }


def last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""


class Running:
    """A worker that runs, with its children, and what its handlers say through the pipe."""

    def __init__(self, words: Sequence[object], pipe: Pipe, settings: Mapping[str, object]) -> None:
        self.pipe = pipe
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the worker runs
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [str(word) for word in words],
            env=environment({**settings, "pipe": pipe.path}),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            cwd=RIVALS,
            start_new_session=True,
        )

    def told(self, within: float) -> tuple[int, float]:
        """What a handler says next: a number, and a time or an age."""
        deadline = time.monotonic() + within
        while True:
            line = self.pipe.line(0.25)
            if line:
                number, value = line.split()
                return int(number), float(value)
            if self.process.poll() is not None:
                raise Failed(f"it ended by itself: {self.said()}")
            if time.monotonic() > deadline:
                raise Failed(f"nothing was handled within {within:g} s: {self.said()}")

    def said(self) -> str:
        self.log.seek(0)
        return last_line(self.log.read())

    def family(self) -> list[int]:
        """The worker and all its descendants."""
        parents = dict(all_parents())
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu(self) -> float:
        """Seconds of the processor that the family has used."""
        return sum(cpu_of(pid) for pid in self.family())

    def memory(self) -> tuple[float, float]:
        """Megabytes resident in all of the family: as such, and with what they share shared out."""
        rss = pss = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    name, _, value = line.partition(":")
                    rss += int(value.split()[0]) if name == "Rss" else 0
                    pss += int(value.split()[0]) if name == "Pss" else 0
        return rss / 1024, pss / 1024

    def end(self) -> None:
        """It is gone, and all that it started: nothing more is to be measured."""
        family = self.family()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in family[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


class Pipe:
    """A named pipe that any number of handlers write lines into."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"pipe-{time.monotonic_ns()}"
        os.mkfifo(self.path)
        self.file = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self.rest = b""

    def line(self, within: float) -> str:
        """The next whole line, or nothing."""
        while b"\n" not in self.rest:
            if not select.select([self.file], [], [], within)[0]:
                return ""
            self.rest += os.read(self.file, 65536)
        line, _, self.rest = self.rest.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        os.close(self.file)
        self.path.unlink()


@contextlib.contextmanager
def running(
    words: Sequence[object], folder: Path, settings: Mapping[str, object]
) -> Iterator[Running]:
    """A worker, ended afterwards."""
    pipe = Pipe(folder)
    worker = Running(words, pipe, settings)
    try:
        yield worker
    finally:
        worker.end()
        pipe.close()


def all_parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            yield int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])


def cpu_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICK


def race(words: Sequence[object], settings: Mapping[str, object], count: int) -> list[str]:
    """`count` of the same program, let go at once when all say that they are ready: what each
    prints."""
    racers = [
        subprocess.Popen(
            [str(word) for word in words],
            env=environment(settings),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        for racer in racers:
            assert racer.stdout
            if racer.stdout.readline() != "ready\n":
                raise Failed(f"{words[1]} did not get ready")
        for racer in racers:
            assert racer.stdin
            racer.stdin.write("go\n")
            racer.stdin.flush()
        return [racer.communicate(timeout=120)[0] for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
