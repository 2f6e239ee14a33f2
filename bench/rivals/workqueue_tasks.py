"""The handlers of workqueue's workers, by themselves: a child process imports nothing else."""

from typing import Any

import clock


def noop(job: Any) -> None:
    clock.passed()


def aged(job: Any) -> None:
    clock.arrived(job.payload["sent_at"])


def nap(job: Any) -> None:
    clock.nap()
