"""What ends the children when the worker itself was killed.

A killed worker cannot clean up, and children that went on would do work that the broker has
already given to others. So each worker has a watchdog: a small process that sleeps on a pipe whose
other end only the worker holds. When the worker is gone, however it went, the pipe ends, and the
watchdog kills what the worker started: by session, because children are started in sessions of
their own, and by a mark in their environment, which also finds grandchildren that left the session.

Run as a script, by path and isolated, so that it starts in milliseconds and stays small: it
imports next to nothing. `guard` is the worker's end of it.
"""

# pathlib alone would double its start and its memory.
# ruff: noqa: PTH112, PTH123, PTH208

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

MARK = "WORKQUEUE_WORKER"
"""The environment variable that names the worker to its children."""

ORDERLY = "."
"""The line that says: the end of the pipe is no accident."""

KILLING_TIME = 5.0
"""Seconds after which whatever cannot be killed is left alone."""


def signal_session(leader: int, number: int, *, leader_too: bool = True) -> None:
    """Send a signal to every process of the session that `leader` began."""
    for pid in members({leader}, mark=""):
        if pid == leader and not leader_too:
            continue
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def members(leaders: set[int], mark: str) -> list[int]:
    """The processes in the sessions of `leaders` or with `mark` in their environment."""
    if not os.path.isdir("/proc/self"):
        return [pid for leader in leaders for pid in group_of(leader)]
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and belongs(pid, leaders, mark)]


def belongs(pid: int, leaders: set[int], mark: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The fields after the command's name: state, parent, group, session.
            state, _, _, session = file.read().rpartition(b")")[2].split()[:4]
        if state == b"Z":
            return False
        if int(session) in leaders:
            return True
        if not mark:
            return False
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{MARK}={mark}\0".encode() in file.read() + b"\0"
    except (OSError, ValueError):  # it ended meanwhile, or is another user's
        return False


def group_of(leader: int) -> list[int]:
    """Where there is no /proc, its process group stands for the session."""
    with suppress(OSError):
        os.killpg(leader, 0)
        return [-leader]
    return []


def main() -> None:
    """Sleep until the worker is gone; then end what it left."""
    mark = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    leaders: set[int] = set()
    for line in sys.stdin:
        if line[0] == ORDERLY:
            mark = ""
        elif line[0] == "+":
            leaders.add(int(line[1:]))
        else:
            leaders.discard(int(line[1:]))
    deadline = time.monotonic() + KILLING_TIME
    while time.monotonic() < deadline and (left := members(leaders, mark)):
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main()
