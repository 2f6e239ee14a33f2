"""workqueue bench on the embedded file: what it prints, and that it cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.unit.test_cli import Shell, is_error
from workqueue import Worker, connect
from workqueue.cli.bench import Shift, size_in_bytes

FEW = ("bench", "-n", "100", "--seconds", "300ms")
WHAT = ["send", "send_many", "handle_thread", "handle_process", "latency"]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_figures(shell: Shell) -> None:
    """One object a line; what was counted took time, and percentiles are in order."""
    result = shell("bench", "-n", "100", "--seconds", "2s", "--json")  # a disk may be slow
    assert result.code == 0, result
    assert [line["what"] for line in result.json] == WHAT
    for line in result.json:
        assert list(line)[1:] == [
            "messages",
            "seconds",
            "per_second",
            "p50_ms",
            "p95_ms",
            "p99_ms",
        ]
        assert 0 < line["messages"] <= 100
        assert line["per_second"] > 0
        assert line["per_second"] == pytest.approx(line["messages"] / line["seconds"], rel=0.1)
        if line["what"] in ("send", "latency"):
            assert 0 < line["p50_ms"] <= line["p95_ms"] <= line["p99_ms"]
        else:
            assert line["p50_ms"] is None


def test_the_table(shell: Shell) -> None:
    """Tab-separated where no terminal is; talk on stderr, and none with --quiet."""
    result = shell(*FEW)
    head, *rows = [line.split("\t") for line in result.out.splitlines()]
    assert head == ["what", "messages", "per_second", "p50_ms", "p95_ms", "p99_ms"]
    assert rows[0][0] == "sent, one at a time"
    assert len(rows) == len(WHAT)
    assert "measuring in the queue workqueue-bench-" in result.err
    assert shell(*FEW, "--quiet").err == ""


def test_nothing_is_left(shell: Shell) -> None:
    assert shell("send", "mine", "x").code == 0
    assert shell(*FEW).code == 0
    assert {line["queue"] for line in shell("status", "--json").json} <= {"mine", "mine.dead"}
    assert shell.bodies("mine") == ["x"]


@pytest.mark.parametrize("during", ["sending one at a time", "handling, with the thread runner"])
def test_nothing_is_left_by_ctrl_c(shell: Shell, during: str) -> None:
    assert shell("send", "mine", "x").code == 0
    running = subprocess.Popen(
        [sys.executable, "-m", "workqueue", "bench", "-n", "1000000", "--seconds", "20s"]
        if during.startswith("sending")
        else [sys.executable, "-m", "workqueue", "bench", "-n", "100"],
        cwd=shell.folder,
        env=shell.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stderr
        while during not in running.stderr.readline():
            assert running.poll() is None
        os.kill(running.pid, signal.SIGINT)
        _, told = running.communicate(timeout=30)
    finally:
        running.kill()
    assert running.returncode == 130, told
    assert "Traceback" not in told
    assert {line["queue"] for line in shell("status", "--json").json} <= {"mine", "mine.dead"}


@pytest.mark.parametrize(
    ("text", "size"),
    [("256B", 256), ("256", 256), ("0", 0), ("64KiB", 65536), ("1kB", 1000), ("1MB", 1000**2)],
)
def test_sizes(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "B", "-1", "1.5kB", "256 bytes", "1GB"])
def test_no_sizes(shell: Shell, text: str) -> None:
    with pytest.raises(typer.BadParameter):
        size_in_bytes(text)
    is_error(shell("bench", "--size", text), 2, "256B, 64KiB or 1MB")


def test_a_broker_that_is_not_there(shell: Shell) -> None:
    is_error(shell("bench", "-u", "amqp://127.0.0.1:1"), 69, "cannot reach")


def test_ctrl_c_while_a_worker_starts(tmp_path: Path) -> None:
    """The thread may come to run after it was left, and makes no queue then."""
    with connect(f"sqlite:///{tmp_path / 'w.db'}") as broker:
        shift = Shift(Worker(broker.queue("q"), lambda job: None))
        shift.__exit__()
        shift.run()
        assert broker.queues() == []
