"""The suite itself: the contract and its tests name each other, and what a failing test leaves."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workqueue import transport as seam
from workqueue.testing import TransportSuite
from workqueue.transport import Consumer, Publisher, QueueSpec, QueueStats, Transport

PROMISES = {name for name in dir(TransportSuite) if name.startswith("test_")}


def docstrings(thing: object) -> str:
    """All docstrings of a module or class."""
    tree = ast.parse(inspect.getsource(thing))  # type: ignore[arg-type]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n".join(
        ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)
    )


def named_in(text: str) -> set[str]:
    """The tests in brackets."""
    return set(re.findall(r"test_\w+", " ".join(re.findall(r"\[([^\]]*)\]", text))))


def test_each_test_is_named_by_a_sentence() -> None:
    """And each name in brackets is a test: the contract is what is tested."""
    named = named_in(docstrings(seam))
    assert PROMISES - named == set(), "of the suite, and named by no sentence of the contract"
    assert named - PROMISES == set(), "named by the contract, and not in the suite"


@pytest.mark.parametrize("part", [Transport, Publisher, Consumer, QueueSpec, QueueStats])
def test_each_call_names_its_tests(part: type) -> None:
    """No method of the seam is described without a test."""
    if part in (QueueSpec, QueueStats):
        assert named_in(inspect.getdoc(part) or "")
        return
    for name, member in vars(part).items():
        if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
            continue
        assert named_in(inspect.getdoc(member) or ""), f"{part.__name__}.{name}"


def test_each_test_states_its_promise() -> None:
    """The docstring is what the report of a failed one shows."""
    assert all(inspect.getdoc(getattr(TransportSuite, name)) for name in PROMISES)


LEAKY = '''
"""A transport that never hands out anything, and counts what is open."""
import pytest
from workqueue.testing import TransportSuite, suite
from workqueue.transports.memory import MemoryConsumer, MemoryTransport

suite.PATIENCE = suite.SHORT = 0.2
opened = []

class Deaf(MemoryConsumer):
    def __init__(self, *given):
        super().__init__(*given)
        opened.append(self)

    def take(self, limit):
        return []

class Transport(MemoryTransport):
    def consumer(self, queue, prefetch):
        return Deaf(self.store, queue, prefetch)

class TestDeaf(TransportSuite):
    @pytest.fixture
    def transport(self):
        yield Transport()

def test_nothing_is_open():
    assert opened
    assert all(consumer.closed for consumer in opened)
'''


def run_pytest(folder: Path, program: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_failed_test_shows_its_promise_and_leaves_nothing_open(tmp_path: Path) -> None:
    """As a driver's author sees it, without a conftest or an option."""
    done = run_pytest(tmp_path, LEAKY, "-k", "mixed_batch or sets_aside or nothing_is_open")
    assert done.returncode == 1, done.stdout
    assert "the promise" in done.stdout
    assert "test_a_mixed_batch: Four outcomes in one call, each to its own fate." in done.stdout
    assert "2 failed, 1 passed" in done.stdout, done.stdout


MACHINE = """
from hypothesis import Phase, settings
from workqueue.testing import transport_machine
from workqueue.transports.memory import MemoryConsumer, MemoryTransport

opened = []

class Broken(MemoryConsumer):
    def __init__(self, *given):
        super().__init__(*given)
        opened.append(self)

    def take(self, limit):
        assert not self.shelf.ready, "broken"
        return []

class Transport(MemoryTransport):
    def consumer(self, queue, prefetch):
        return Broken(self.store, queue, prefetch)

TestMachine = transport_machine(Transport, examples=10, steps=15)
TestMachine.settings = settings(TestMachine.settings, phases=[Phase.generate])

def test_nothing_is_open():
    assert opened
    assert all(consumer.closed for consumer in opened)
"""


def test_a_failed_machine_leaves_nothing_open(tmp_path: Path) -> None:
    """Each of its many failing examples closes its consumers."""
    done = run_pytest(tmp_path, MACHINE)
    assert "1 failed, 1 passed" in done.stdout, done.stdout


DECLINES = """
import pytest
from workqueue.testing import TransportSuite
from workqueue.transports.memory import MemoryTransport

class TestMine(TransportSuite):
    declines = {"test_order_is_kept": "a cluster hands out in any order"}

    @pytest.fixture
    def transport(self):
        yield MemoryTransport()
"""


def test_what_is_declined_is_said(tmp_path: Path) -> None:
    """Skipped, with the reason."""
    done = run_pytest(tmp_path, DECLINES, "-rs", "-k", "order_is_kept or publishing_nothing")
    assert done.returncode == 0
    assert "a cluster hands out in any order" in done.stdout
