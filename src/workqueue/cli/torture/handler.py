"""What the tortured workers run: it does as the message asks, and keeps a ledger."""

from __future__ import annotations

import hashlib
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from workqueue.cli.torture.ledger import Ledger
from workqueue.message import Job

FOLDER = "WORKQUEUE_TORTURE_FOLDER"
"""The variable that says where the ledgers are."""

LONGEST = "WORKQUEUE_TORTURE_LONGEST"
"""The variable that says how many seconds a task takes at most."""

SLOW = 1.0
"""Seconds. The same for a slow task: so long that it may well outlive the connection that its
message came by."""


class Asked(Exception):
    """The message asked for a failure."""


def handle(job: Job[Any]) -> None:
    ledger = own_ledger()
    name = job.id or "without id"
    digest = hashlib.sha256(job.body).hexdigest()
    ledger.note("started", name, sha256=digest, attempt=job.attempt, redelivered=job.redelivered)
    longest = SLOW if job.type == "slow" else float(os.environ[LONGEST])
    time.sleep(longest * int(digest[:2], 16) / 255)
    if job.type == "fail" or (job.type == "fail-once" and job.attempt == 1):
        ledger.note("failed", name, attempt=job.attempt)
        raise Asked("as asked")
    if job.type == "crash-once" and job.attempt == 1:
        ledger.note("failed", name, attempt=job.attempt)
        os._exit(9)
    ledger.note("done", name, attempt=job.attempt)


@cache
def own_ledger() -> Ledger:
    return Ledger(Path(os.environ[FOLDER]) / f"handler-{os.getpid()}.ledger")
