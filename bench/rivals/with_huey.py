"""huey on SQLite, its storage at the sync level asked for. It has no acknowledgement: a task is
gone from the file when a worker takes it."""

import logging
import os
import sqlite3
import sys

import clock
from huey import Huey
from huey.storage import SqliteStorage

FULL = os.environ.get("BENCH_SYNC") == "full"


class NormalStorage(SqliteStorage):
    """huey itself has FULL and OFF."""

    def _create_connection(self) -> sqlite3.Connection:
        connection = super()._create_connection()
        connection.execute("pragma synchronous=NORMAL")
        return connection


queue = Huey(
    "bench",
    storage_class=SqliteStorage if FULL else NormalStorage,
    filename=clock.URL,
    fsync=True,
    results=False,
)


@queue.task()
def noop(body: str) -> None:
    clock.passed()


def send(count: int) -> None:
    noop(clock.BODY)
    with clock.measured(count - 1):
        for _ in range(count - 1):
            noop(clock.BODY)


def work() -> None:
    logging.disable(logging.CRITICAL)
    queue.create_consumer(workers=1, worker_type="thread", periodic=False).run()


if __name__ == "__main__":
    {"send": send, "work": work}[sys.argv[1]](*map(int, sys.argv[2:]))
