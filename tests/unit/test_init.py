"""A worker that is process 1: nothing that its tasks leave behind stays as a zombie."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workqueue import Producer, connect
from workqueue.testing import eventually

ENOUGH = 30.0
"""Seconds: longer than anything here takes on any machine."""

NAMESPACE = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]


def may_be_process_1() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.skipif(not may_be_process_1(), reason="needs a PID namespace: unshare, and the right")
@pytest.mark.parametrize("ending", [(signal.SIGTERM, 0), (signal.SIGKILL, 128 + 9)])
def test_process_1_reaps_and_passes_on(tmp_path: Path, ending: tuple[int, int]) -> None:
    """What is orphaned is waited for, signals reach the worker, and its end is that of all."""
    number, code = ending
    url = f"sqlite:///{tmp_path}/jobs.db"
    left, done = tmp_path / "left", tmp_path / "done"
    script = f"setsid sh -c 'sleep 0.1 & echo x > {left}' & wait; sleep 0.4; echo x > {done}"
    Producer(connect(url).queue("jobs")).send("x")
    work = [sys.executable, "-m", "workqueue", "work", "jobs", "--exec", "--", "sh", "-c", script]
    outside = subprocess.Popen(
        [*NAMESPACE, *work], env={**os.environ, "WORKQUEUE_URL": url}, start_new_session=True
    )
    try:
        eventually(done.exists, within=ENOUGH)
        assert left.exists()
        [first] = children_of(outside.pid)

        def only_its_worker() -> bool:
            return len(children_of(first)) == 1

        eventually(only_its_worker, within=ENOUGH)
        os.kill(first if number == signal.SIGTERM else children_of(first)[0], number)
        assert outside.wait(ENOUGH) == code
    finally:
        outside.kill()
        outside.wait()
