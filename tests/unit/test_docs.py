"""What the documents say is so: their programs run, their tables are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workqueue.cli.main import EXIT_CODES, INTERRUPTED
from workqueue.dead import OURS

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = [
    pytest.param(code, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_run(program: str, tmp_path: Path) -> None:
    """Under pytest, if they are tests."""
    file = tmp_path / "test_document.py"
    file.write_text(program)
    runs = ["-m", "pytest", "-q", "-x", "-k", "purge or peek"] if "pytest" in program else []
    done = subprocess.run(
        [sys.executable, *runs, str(file)],
        cwd=tmp_path,
        env={**os.environ, "WORKQUEUE_URL": f"sqlite:///{tmp_path}/document.db"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_exit_code_is_told() -> None:
    table = (ROOT / "docs/reference.md").read_text().partition("## Exit statuses")[0]
    for code in {0, 2, 3, 70, INTERRUPTED, 143, *(code for _, code in EXIT_CODES)}:
        assert re.search(rf"^\| [\d, ]*\b{code}\b", table, re.MULTILINE), code


def test_every_header_of_ours_is_told() -> None:
    text = (ROOT / "docs/wire.md").read_text()
    assert {name for name in OURS if f"`{name}`" not in text} == set()


def test_links_and_paths_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
