"""litequeue: pop, then done, as its README has it, at the sync level asked for."""

import os
import sys

import clock
from litequeue import LiteQueue

queue = LiteQueue(clock.URL)
level = "FULL" if os.environ.get("BENCH_SYNC") == "full" else "NORMAL"
queue.conn.execute(f"pragma synchronous={level}")


def send(count: int) -> None:
    queue.put(clock.BODY)
    with clock.measured(count - 1):
        for _ in range(count - 1):
            queue.put(clock.BODY)


def work() -> None:
    while True:
        message = queue.pop()
        if message is None:
            return
        clock.passed()
        queue.done(message.message_id)


if __name__ == "__main__":
    {"send": send, "work": work}[sys.argv[1]](*map(int, sys.argv[2:]))
