"""Histories outlive the processes that write them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from workqueue.cli.torture.ledger import Ledger, Reader, read

WRITER = """
import os, signal, sys
from pathlib import Path
from workqueue.cli.torture.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]))
for n in range(100):
    ledger.note("done", str(n), attempt=2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_noted_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a.ledger")
    ledger.note("started", "x\n", sha256="5a", attempt=3, redelivered=True)
    [entry] = read(tmp_path / "a.ledger")
    assert (entry.event, entry.id, entry.sha256) == ("started", "x\n", "5a")
    assert (entry.attempt, entry.redelivered, entry.process) == (3, True, ledger.process)


def test_no_ledger_yet(tmp_path: Path) -> None:
    assert read(tmp_path / "a.ledger") == []


def test_only_what_is_new(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    first, second = Ledger(tmp_path / "a.ledger"), Ledger(tmp_path / "b.ledger")
    first.note("sent", "1")
    assert [entry.id for entry in reader.news()] == ["1"]
    second.note("sent", "2")
    first.note("sent", "3")
    assert [entry.id for entry in reader.news()] == ["3", "2"]
    assert list(reader.news()) == []


def test_a_line_without_its_end_is_not_there_yet(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    Ledger(tmp_path / "a.ledger").note("sent", "1")
    whole = (tmp_path / "a.ledger").read_bytes()
    with (tmp_path / "a.ledger").open("ab") as file:
        file.write(whole[:9])
        file.flush()
        assert len(list(reader.news())) == 1
        file.write(whole[9:])
    assert len(list(reader.news())) == 1


def test_a_killed_writer_has_written(tmp_path: Path) -> None:
    path = tmp_path / "a.ledger"
    done = subprocess.run([sys.executable, "-c", WRITER, str(path)])
    assert done.returncode == -9
    assert [entry.id for entry in read(path)] == [str(n) for n in range(100)]
