"""No second try: only a test that judges nothing but a time runs again, and not many of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MOST_RERUNS, judges_safety
from workqueue.testing import TransportSuite

ROOT = Path(__file__).parents[2]

PROGRAM = '''
import pytest
from pathlib import Path

def once(name):
    """Fails the first time."""
    there = Path(name + ".tried")
    first = not there.exists()
    there.touch()
    assert not first

@pytest.mark.timing
@pytest.mark.parametrize("name", {names})
def test_timed(name):
    once(name)

{rest}
'''


def run(folder: Path, timed: int, rest: str = "", *options: str) -> tuple[int, str]:
    """The exit code and output of pytest with this checkout's conftest, in a folder of its own."""
    names = [f"t{number}" for number in range(timed)]
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    (folder / "conftest.py").write_text(conftest)
    (folder / "test_it.py").write_text(PROGRAM.format(names=names, rest=rest))
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = timing: \n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "WORKQUEUE_TEST_AMQP_URL": "none"},
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_a_few_timing_tests_may_run_again(tmp_path: Path, options: tuple[str, ...]) -> None:
    """They are counted and named."""
    code, output = run(tmp_path, MOST_RERUNS, "", *options)
    assert code == 0, output
    assert f"{MOST_RERUNS} timing tests were run again\n" in output
    assert "test_it.py::test_timed[t0]" in output


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_more_are_a_failure(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Though each passed the second time."""
    code, output = run(tmp_path, MOST_RERUNS + 1, "", *options)
    assert code == 1, output
    assert f"{MOST_RERUNS + 1} timing tests were run again: more than {MOST_RERUNS}" in output


def test_no_other_test_runs_again(tmp_path: Path) -> None:
    """What fails once has failed."""
    code, output = run(tmp_path, 0, 'def test_plain():\n    once("plain")')
    assert code == 1, output
    assert "0 timing tests were run again\n" in output


def test_another_marker_is_refused(tmp_path: Path) -> None:
    """Nobody goes past the count."""
    rest = '@pytest.mark.flaky(reruns=5)\ndef test_plain():\n    once("plain")'
    code, output = run(tmp_path, 0, rest)
    assert code == pytest.ExitCode.USAGE_ERROR, output
    assert "use the marker timing" in output


@pytest.mark.parametrize(
    ("path", "kind", "judges"),
    [
        ("tests/integration/test_chaos.py", None, True),
        ("tests/integration/test_rabbitmq_faults.py", None, True),
        ("tests/integration/test_single_faults.py", None, True),
        ("tests/integration/test_promises.py", None, True),
        ("tests/unit/torture/test_checker.py", None, True),
        ("tests/integration/test_rabbitmq.py", type("TestX", (TransportSuite,), {}), True),
        ("tests/integration/test_rabbitmq.py", None, False),
    ],
)
def test_safety_has_no_second_try(path: str, kind: type | None, judges: bool) -> None:
    """Suite, chaos, torture, faults and promises cannot be marked."""
    assert judges_safety(Path(path), kind) is judges


def test_nothing_else_in_the_checkout_reruns_tests() -> None:
    """Neither an option of ours nor of CI."""
    for name in ("dev", "noxfile.py", "pyproject.toml", ".ci/run"):
        assert "--reruns" not in (ROOT / name).read_text(), name
