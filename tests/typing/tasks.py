"""What type checkers make of tasks. A line that must be refused carries mypy's name for the error;
mypy and pyright both complain of one that is not needed."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

from workqueue import Job, Queue, Task, Worker, connect

queue: Queue = connect("memory://").queue("typing")


@queue.task
def plain(user_id: int, *, lang: str = "en") -> float:
    return float(user_id)


@queue.task(max_attempts=3, timeout=30, backoff=(1, 60), name="greetings")
async def welcome(user_id: int, lang: str = "en") -> None: ...


def calls() -> None:
    assert_type(plain(42), float)
    coroutine: Coroutine[Any, Any, None] = welcome(42)
    coroutine.close()
    assert_type(plain.send(42), str)
    assert_type(plain.send(42, lang="de"), str)
    assert_type(welcome.send(42, "de"), str)
    assert_type(welcome.options(delay=60, priority=9).send(42, lang="de"), str)

    plain("42")  # type: ignore[arg-type]
    plain.send("42")  # type: ignore[arg-type]
    plain.send(42, "de")  # type: ignore[call-arg]
    plain.send(42, lang=1)  # type: ignore[arg-type]
    plain.send(42, language="de")  # type: ignore[call-arg]
    plain.send()  # type: ignore[call-arg]
    welcome.send(user=42)  # type: ignore[call-arg]
    welcome.options(delay=60).send("42")  # type: ignore[arg-type]
    welcome.options(delay="1h")  # type: ignore[arg-type]
    welcome.options(lang="de")  # type: ignore[call-arg]
    queue.task(retries=3)  # type: ignore[call-overload]


def handle(job: Job[dict[str, int]]) -> None:
    assert_type(job.payload, dict[str, int])


def workers() -> None:
    Worker(queue)
    Worker(queue, plain)
    Worker(queue, handle)
    Worker(queue, "tasks:handle", runner="process", concurrency=8)
    Worker(queue, handle, runner="greenlet")  # type: ignore[arg-type]
    Worker(queue, 42)  # type: ignore[arg-type]


def takes_task(task: Task[[int], float]) -> None: ...
