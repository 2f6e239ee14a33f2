"""A forked child finds every lock open, whichever thread of its parent holds it."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import workqueue
from workqueue import Producer, Worker, connect
from workqueue.forks import Condition, Lock, renew_after_fork, renewals
from workqueue.transports.bell import Bell

ENOUGH = 20.0

KEPT_BY_THE_PARENT = {
    "producer.py": "made anew by Producer.start_afresh",
    "forks.py": "the locks themselves",
    "message.py": "the event of a delivery, which only its worker's process sets",
    "runners/process.py": "of the worker's process",
    "runners/guard.py": "of the worker's process",
    "runners/command.py": "of the worker's process",
    "runners/thread.py": "of the worker's process",
    "serving.py": "of the worker's process",
    "transports/rabbitmq/copier.py": "of a consumer, which a child cannot use",
    "transports/rabbitmq/dial.py": "of one look-up",
    "cli/bench.py": "of a command",
    "cli/torture/proxy.py": "of a command",
    "testing/checked.py": "held for a few statements, by whoever tests a transport",
}
"""Files that make plain locks, and why a forked child does not meet them."""

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_child(work: Callable[[], None]) -> None:
    """Fork, run `work` in the child, and see it end well."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(int(ENOUGH))  # a child that hangs must not outlive the test
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextmanager
def all_locks_held() -> Iterator[int]:
    """Another thread has every lock of the package that exists; how many that is."""
    locks = [owner for owner in renewals if isinstance(owner, Lock | Condition)]
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        for lock in locks:
            lock.__enter__()
        held.set()
        done.wait(ENOUGH)
        for lock in locks:
            lock.__exit__(None, None, None)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(ENOUGH)
    try:
        yield len(locks)
    finally:
        done.set()
        holder.join(ENOUGH)


def test_a_worker_is_told_to_stop_while_it_is_being_told() -> None:
    """By a signal handler of the application, in the middle of a call of the same thread; and in a
    forked child, while another thread of the parent was in it."""
    worker = Worker(connect("memory://forks").queue("q"), print)

    def interrupted() -> None:
        with worker.lock:
            worker.stop(now=True)

    thread = threading.Thread(target=interrupted, daemon=True)
    thread.start()
    thread.join(ENOUGH)
    assert not thread.is_alive()
    assert worker.stops == 2
    with all_locks_held():
        in_child(worker.stop)


@pytest.mark.parametrize("url", ["sqlite:///jobs.db", "memory://forks"])
def test_a_child_can_do_everything_while_all_locks_are_held(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends now and later, declares, looks, purges, and makes brokers of its own."""
    monkeypatch.chdir(tmp_path)
    queue = connect(url).queue("jobs")
    producer = queue.producer
    producer.send("before")

    def use_everything() -> None:
        for one in (queue, connect(url).queue("jobs")):
            sender = one.producer
            sender.send("now")
            sender.send("later", delay=3600)
            one.declare()
            assert one.stats().ready
            assert one.purge()
            sender.close()

    with all_locks_held() as count:
        assert count >= 2
        in_child(use_everything)
    producer.send("after")
    producer.close()


def test_a_child_that_rings_does_not_wake_its_parent() -> None:
    """It would do so for ever: the parent answers only what was rung in the parent."""
    bell = Bell()
    in_child(bell.ring)
    assert not bell.answer()
    bell.ring()
    assert bell.answer()
    in_child(bell.close)
    bell.ring()
    assert bell.answer()
    bell.close()


def test_what_is_forgotten_is_renewed_no_more() -> None:
    """Objects come and go by the thousand."""
    before = len(renewals)
    for _ in range(100):
        Producer(connect("memory://").queue("jobs"))
    assert len(renewals) < before + 100


def test_no_lock_outlives_a_call_unseen() -> None:
    """Whoever adds one takes it from `workqueue.forks`, or says here why not."""
    source = Path(workqueue.__file__).parent
    plain = re.compile(r"threading\.(R?Lock|Condition|Semaphore|Event)\(|SimpleQueue\(\)")
    found = {
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        if plain.search(file.read_text())
    }
    assert found <= KEPT_BY_THE_PARENT.keys()


def test_one_renewal_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """And Python says so, as it does of all that fails between a fork and what follows."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))

    def fail(_: Bell) -> None:
        raise OSError("no")

    before, broken, after = Lock(), Bell(), Lock()
    renew_after_fork(broken, fail)
    with before, after:

        def look() -> None:
            assert not before.lock.locked()
            assert not after.lock.locked()
            assert "no" in repr(told)

        in_child(look)
    broken.close()


def test_a_child_whose_descriptors_were_closed_goes_on() -> None:
    """An application that makes itself a daemon closes all that it does not know."""
    bell, late = Bell(), Lock()
    os.close(bell.reader)
    with late:

        def look() -> None:
            assert not late.lock.locked()
            assert bell.writer == -1

        in_child(look)
    bell.reader = os.dup(bell.writer)
    bell.close()
