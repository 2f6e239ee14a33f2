"""A runner that the system gives too few threads says so, and leaves nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.unit.runners import raising
from tests.unit.runners.jobs import ENOUGH, few_threads
from workqueue.errors import ConfigError
from workqueue.runners.coroutine import AsyncRunner
from workqueue.runners.thread import ThreadRunner
from workqueue.testing import eventually


@pytest.mark.parametrize("most", [0, 3])
def test_threads(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    few_threads(monkeypatch, most, "workqueue-slot")
    before = threading.active_count()
    runner = ThreadRunner(raising.handle)
    with pytest.raises(ConfigError, match=f"no more than {most} threads"):
        runner.start(8, lambda: None)
    eventually(lambda: threading.active_count() == before, within=ENOUGH)
    runner.close()


def test_an_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    few_threads(monkeypatch, 0, "workqueue-loop")
    before = set(Path("/proc/self/fd").iterdir())
    runner = AsyncRunner(raising.handle_async)
    with pytest.raises(ConfigError, match="can't start new thread"):
        runner.start(8, lambda: None)
    runner.close()
    assert set(Path("/proc/self/fd").iterdir()) <= before
