"""Handlers for child processes, which import them by name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from workqueue import Job, Reject, RetryLater


def obey(job: Job[Any]) -> None:  # noqa: C901 - a list of things to do
    """The body says what to do."""
    word, _, rest = job.body.decode(errors="replace").partition(" ")
    match word:
        case "fail":
            raise LookupError(f"no {rest}\nsecond line")
        case "reject":
            raise Reject(rest)
        case "later":
            raise RetryLater(float(rest))
        case "exit":
            os._exit(int(rest))
        case "sys.exit":
            sys.exit(rest)
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            Path(rest).write_text(str(os.getpid()))
            time.sleep(600)
        case "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            Path(rest).write_text(str(os.getpid()))
            time.sleep(600)
        case "grandchild" | "daemon":
            child = subprocess.Popen(["sleep", "600"], start_new_session=word == "daemon")
            Path(rest).write_text(str(child.pid))
            time.sleep(600)
        case "fork":
            if os.fork() == 0:
                time.sleep(600)
            os._exit(7)
        case "system":
            os.system("sleep 600 &")
            os._exit(7)
        case "listen":
            Path(rest).write_text("started")
            job.lost.wait(600)
        case "tick":
            with Path(rest).open("ab", buffering=0) as file:
                file.write(b"x")
        case "print":
            print(rest)
        case "who":
            Path(rest).write_text(f"{os.getpid()} {job.attempt} {job.redelivered} {job.queue}")


async def wait(job: Job[Any]) -> None:
    await asyncio.sleep(0.01)


def not_async(job: Job[Any]) -> None: ...


NUMBER = 42
