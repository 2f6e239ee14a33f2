"""One deadline for all waits below a call."""

from __future__ import annotations

import math
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from workqueue import Producer, connect
from workqueue.deadline import extend, left, within
from workqueue.errors import StorageError
from workqueue.forks import Lock


def test_without_a_deadline_a_wait_takes_its_own_time() -> None:
    """And any time at all, if it has no limit."""
    assert left() == math.inf
    assert left(7.0) == 7.0


def test_the_earlier_of_two_deadlines_counts() -> None:
    """Whichever is the inner one."""
    with within(100.0):
        with within(10.0):
            assert 9.0 < left() <= 10.0
        with within(1000.0) as inner:
            assert 99.0 < inner.left() <= 100.0
        assert left(5.0) == 5.0
    assert left() == math.inf


def test_no_time_is_left_after_the_deadline() -> None:
    """Rather none than less than none."""
    with within(-1.0) as deadline:
        assert left() == deadline.left() == 0.0


def test_what_must_not_be_cut_moves_all_deadlines() -> None:
    """The outer ones too, or they would cut what comes after it."""
    with within(1.0) as outer, within(0.5) as inner:
        extend(10.0)
        assert outer.left() > 10.0
        assert inner.left() > 10.0


def test_another_thread_has_no_deadline() -> None:
    """It works for somebody else."""
    found: list[float] = []
    with within(1.0):
        thread = threading.Thread(target=lambda: found.append(left()))
        thread.start()
        thread.join()
    assert found == [math.inf]


def test_a_lock_is_waited_for_until_the_deadline() -> None:
    """Another thread may hold it for as long as its own time."""
    lock = Lock()
    lock.lock.acquire()
    with within(0.2), pytest.raises(TimeoutError, match="busy"), lock:
        pass


@pytest.mark.parametrize("first", [True, False])
def test_a_locked_file_is_waited_for_no_longer_than_the_timeout(
    tmp_path: Path, first: bool
) -> None:
    """Neither to open it nor to write to it, though the URL would allow ten seconds."""
    queue = connect(f"sqlite:///{tmp_path}/jobs.db").queue("jobs")
    queue.declare()
    producer = Producer(queue, timeout=0.5)
    if not first:
        producer.send("before")
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    if first:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")  # else it can be read by all
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(StorageError, match="locked"):
        producer.send("x")
    assert time.monotonic() - began < 3
    other.close()
