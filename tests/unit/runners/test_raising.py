"""The outcome of a task is what its handler did: in every runner, whatever it raises or returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.unit.runners import raising
from tests.unit.runners.jobs import Bench, at_work, delivery
from tests.unit.runners.raising import CASES
from workqueue.runners.command import CommandRunner
from workqueue.runners.coroutine import AsyncRunner
from workqueue.runners.process import ProcessRunner
from workqueue.runners.runner import Verdict
from workqueue.runners.thread import ThreadRunner

RUNNERS = {
    "thread": lambda: ThreadRunner(raising.handle),
    "async": lambda: AsyncRunner(raising.handle_async),
    "process": lambda: ProcessRunner(raising.handle),
    "process, async": lambda: ProcessRunner(raising.handle_async),
    "command": lambda: CommandRunner([sys.executable, "-m", "tests.unit.runners.raising"]),
}

BY_EXIT_STATUS = {"keyboard_interrupt", "system_exit", "system_exit_0", "enormous", "no_utf8"}
BY_EXIT_STATUS |= {"unprintable", "reject", "returns_a_thing"}
"""Each is a Python to be started, and all other exceptions end it alike."""


def tried(kind: str, name: str) -> bool:
    if kind == "command":
        return name in BY_EXIT_STATUS
    return "async" not in kind or CASES[name].of_coroutines


PAIRS = [(kind, name) for kind in RUNNERS for name in CASES if tried(kind, name)]


@pytest.fixture(scope="module")
def benches() -> Iterator[dict[str, Bench]]:
    """Runners with one slot each, which all cases go through, and which must outlive them all."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(at_work(make())) for kind, make in RUNNERS.items()}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_what_a_handler_may_do(
    benches: dict[str, Bench], kind: str, name: str, tmp_path: Path
) -> None:
    """It has run once, its ending says what it was, and the slot goes on."""
    case, ticks = CASES[name], tmp_path / "ticks"
    odd, plain = benches[kind].run(delivery(f"{name} {ticks}"), delivery(f"plain {ticks}"))
    assert odd.verdict is (case.command if kind == "command" else case.verdict)
    assert plain.verdict is Verdict.DONE
    assert ticks.read_text() == "xx"
    if kind != "command":
        assert raising.matches(odd.reason, case.reason), odd.reason
    if odd.verdict is Verdict.FAILED:
        assert 0 < len(odd.reason) <= 300
        assert "\n" not in odd.reason
        assert 0 < len(odd.error) <= 8_000
        assert (odd.reason + odd.error).encode()
    if odd.verdict is Verdict.LATER:
        assert odd.delay in (2, -5)
