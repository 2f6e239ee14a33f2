"""A worker that is process 1: nothing that its tasks leave behind stays as a zombie."""

from __future__ import annotations

import os
import pty
import select
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


AS_PROCESS_1 = """
import os, signal, sys, time
kill = os.kill
os.getpid = lambda: 1
os.kill = lambda *given: (time.sleep(0.2), kill(*given))  # or two of a kind may arrive as one
from workqueue.cli.init import leave_process_1
"""
"""What is process 1 as far as our code can see, in no namespace of its own."""


def as_process_1(program: str) -> list[str]:
    return [sys.executable, "-c", AS_PROCESS_1 + program]


def test_the_exit_status_is_known_where_sigchld_came_ignored() -> None:
    """As it does from a parent that lets the kernel wait for its children."""
    program = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
leave_process_1()
time.sleep(0.3)
sys.exit(7)
"""
    assert subprocess.run(as_process_1(program), timeout=ENOUGH, check=False).returncode == 7


@pytest.mark.parametrize("by", ["keyboard", "kill"])
def test_each_signal_reaches_the_worker_once(by: str) -> None:
    """The kernel gives a Ctrl-C to all processes of the terminal's foreground group."""
    program = """
got = []
leave_process_1()
signal.signal(signal.SIGINT, lambda *_: got.append(1))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(0.5)
print("got", len(got), flush=True)
"""
    first, terminal = pty.fork()
    if first == 0:
        command = as_process_1(program)
        os.execv(command[0], command)
    try:
        read_until(terminal, b"ready")
        if by == "keyboard":
            os.write(terminal, b"\x03")
        else:
            os.kill(first, signal.SIGINT)
        assert b"got 1" in read_until(terminal, b"got")
        assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == 0
    finally:
        os.close(terminal)


def read_until(terminal: int, word: bytes) -> bytes:
    """All lines up to the one that has `word` in it."""
    seen = b""
    while word not in seen or not seen.endswith(b"\n"):
        [ready, _, _] = select.select([terminal], [], [], ENOUGH)
        assert ready, seen
        seen += os.read(terminal, 1000)
    return seen


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
