"""Handlers that look at signals, for child processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from workqueue import Job

SHOW = (
    "import signal, sys; "
    "print(*(signal.getsignal(n) == signal.SIG_IGN for n in (1, 2, 15)), "
    "*signal.pthread_sigmask(signal.SIG_BLOCK, []), flush=True)"
)
"""Of a program: which of SIGHUP, SIGINT and SIGTERM it ignores, and all that are blocked."""


def wait(job: Job[Any]) -> None:
    """Say that it began, and be done when the file named says so."""
    began, go_on = map(Path, job.body.decode().split())
    began.write_text(str(os.getpid()))
    while not go_on.exists():
        time.sleep(0.01)


async def wait_async(job: Job[Any]) -> None:
    began, go_on = map(Path, job.body.decode().split())
    began.write_text(str(os.getpid()))
    while not go_on.exists():
        await asyncio.sleep(0.01)


def clean_up(job: Job[Any]) -> None:
    """Asked to stop, it writes once for each time that it is interrupted."""
    began, cleaned = map(Path, job.body.decode().split())
    began.write_text(str(os.getpid()))
    try:
        time.sleep(600)
    finally:
        with cleaned.open("a") as file:
            file.write("x")
        time.sleep(0.2)


async def clean_up_async(job: Job[Any]) -> None:
    began, cleaned = map(Path, job.body.decode().split())
    began.write_text(str(os.getpid()))
    try:
        await asyncio.sleep(600)
    finally:
        with cleaned.open("a") as file:
            file.write("x")
        await asyncio.sleep(0.2)


def run_program(job: Job[Any]) -> None:
    """As a plain Python program does: a failure if the program fails."""
    Path(job.body.decode()).write_text(str(os.getpid()))
    subprocess.run(["sleep", "600"], check=True)


def wrap_program(job: Job[Any]) -> None:
    """As libraries do, with an exception of their own."""
    try:
        run_program(job)
    except subprocess.CalledProcessError as error:
        raise LookupError("no thumbnail") from error


def default_again(job: Job[Any]) -> None:
    """It dies of a signal, since its code wants to."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Path(job.body.decode()).write_text(str(os.getpid()))
    time.sleep(600)


def show(job: Job[Any]) -> None:
    """What programs have that are started in each way, a line each."""
    out = Path(job.body.decode())
    command = [sys.executable, "-c", SHOW]
    lines = [subprocess.run(command, check=True, capture_output=True, text=True).stdout]
    os.system(f"{sys.executable} -c '{SHOW}' > {out}.system")
    lines.append(Path(f"{out}.system").read_text())
    program = subprocess.Popen(["sleep", "600"])
    program.send_signal(signal.SIGINT)
    lines.append(f"{program.wait()}\n")
    forked = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    forked.start()
    forked.terminate()
    forked.join()
    lines.append(f"{forked.exitcode}\n")
    out.write_text("".join(lines))
