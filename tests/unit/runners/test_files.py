"""Handlers in files: parts of packages, and names that Python itself uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.runners.jobs import at_work, delivery
from workqueue.errors import HandlerNotFound
from workqueue.runners.process import ProcessRunner
from workqueue.runners.runner import Verdict


@pytest.mark.parametrize("package", [True, False])
def test_a_file_that_imports_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool
) -> None:
    """It is said how to name it, and that name works, with and without __init__.py."""
    folder = tmp_path / "app"
    folder.mkdir()
    if package:
        (folder / "__init__.py").touch()
    (folder / "other.py").write_text("ANSWER = 42\n")
    (folder / "tasks.py").write_text("from .other import ANSWER\ndef handle(job): ANSWER\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HandlerNotFound, match="imports from its own package") as caught:
        ProcessRunner("app/tasks.py:handle").start(1, lambda: None)
    assert caught.value.hint == "Name it app.tasks:handle"
    with at_work(ProcessRunner("app.tasks:handle")) as bench:
        assert bench.run(delivery("x"))[0].verdict is Verdict.DONE


def test_a_package_that_is_elsewhere(tmp_path: Path) -> None:
    """Then it is said from where the name works."""
    folder = tmp_path / "app" / "deep"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (tmp_path / "app" / "__init__.py").touch()
    (folder / "tasks.py").write_text("from ..other import ANSWER\ndef handle(job): ANSWER\n")
    with pytest.raises(HandlerNotFound) as caught:
        ProcessRunner(f"{folder}/tasks.py:handle").start(1, lambda: None)
    assert caught.value.hint == f"Name it app.deep.tasks:handle, in the folder {tmp_path}"


@pytest.mark.parametrize("name", ["queue", "email", "statistics", "types"])
def test_a_file_with_a_name_of_the_standard_library(tmp_path: Path, name: str) -> None:
    """It is the handler, and whoever imports that name gets Python's."""
    (tmp_path / f"{name}.py").write_text(
        "import helper\n"
        f"import {name}\n"
        "def handle(job):\n"
        f"    assert {name}.__file__ != __file__ and helper.found\n"
    )
    (tmp_path / "helper.py").write_text("import concurrent.futures.thread\nfound = True\n")
    with at_work(ProcessRunner(f"{tmp_path}/{name}.py:handle")) as bench:
        [ending] = bench.run(delivery("x"))
    assert ending.verdict is Verdict.DONE, ending.reason


def test_exit_codes_and_lines(tmp_path: Path) -> None:
    """Three lines, the last one to be typed next."""
    (tmp_path / "tasks.py").write_text("from . import other\n")
    (tmp_path / "bad.py").write_text("raise KeyboardInterrupt\n")
    for file, told in [("tasks.py", "Name it "), ("bad.py", "failed: KeyboardInterrupt")]:
        done = subprocess.run(
            [sys.executable, "-m", "workqueue", "work", "q", f"{file}:h", "-u", "sqlite:///x.db"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 78, done.stderr
        assert told in done.stderr
        assert len(done.stderr.splitlines()) <= 3
        assert done.stderr.splitlines()[-1].startswith("  Try: workqueue work")
