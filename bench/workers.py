"""The workers that are compared: how each is started with one slot, as its docs say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench import programs
from bench.contest import Sample
from bench.world import World

Words = list[object]


@dataclass(frozen=True)
class Kind:
    """A worker. `program` is what its messages are sent with; `words` starts it, for a handler."""

    name: str
    settings: str
    program: str
    words: Callable[[World, str, str], Words]
    quorum: bool = True
    fills: str = "send"

    @property
    def ours(self) -> bool:
        return self.program == "workqueue"


def ours(runner: str, *more: str) -> Callable[[World, str, str], Words]:
    def words(world: World, queue: str, handler: str) -> Words:
        named = f"workqueue_tasks:{handler}"
        start = [world.ours, "-m", "workqueue", "work", queue, named, "--in", runner, "--quiet"]
        return [*start, *more]

    return words


def theirs(*words: str) -> Callable[[World, str, str], Words]:
    return lambda world, _queue, _handler: [world.theirs, "-m", *words]


CELERY = ["celery", "-A", "with_celery", "worker", "--loglevel=WARNING", "--concurrency=1"]
DRAMATIQ = ["dramatiq", "with_dramatiq", "--processes=1"]

THREAD = Kind(
    "workqueue, thread runner",
    "work --in thread, auto prefetch",
    "workqueue",
    ours("thread"),
    fills="many",
)
PROCESS = Kind(
    "workqueue, process runner",
    "work, auto prefetch: its defaults",
    "workqueue",
    ours("process"),
    fills="many",
)
OURS = [THREAD, PROCESS]
RIVALS = [
    Kind(
        "Celery, solo",
        "acks_late, reject_on_worker_lost, no results, --pool=solo",
        "celery",
        theirs(*CELERY, "--pool=solo"),
    ),
    Kind(
        "Celery, prefork",
        "acks_late, reject_on_worker_lost, no results, --concurrency=1",
        "celery",
        theirs(*CELERY, "--pool=prefork"),
    ),
    Kind(
        "Dramatiq",
        "1 process, 1 thread",
        "dramatiq",
        theirs(*DRAMATIQ, "--threads=1"),
        quorum=False,
    ),
    Kind(
        "Dramatiq, 8 threads",
        "1 process, 8 threads: its default",
        "dramatiq",
        theirs(*DRAMATIQ, "--threads=8"),
        quorum=False,
    ),
    Kind(
        "Taskiq",
        "taskiq-aio-pika, 1 worker, ack when_saved, qos 10, async task",
        "taskiq",
        theirs("taskiq", "worker", "with_taskiq:broker", "--workers=1", "--log-level=WARNING"),
        fills="fill",
    ),
    Kind(
        "FastStream",
        "ack after work, prefetch 100, async handler",
        "faststream",
        theirs("faststream", "run", "with_faststream:app", "--log-level=warning"),
        fills="fill",
    ),
]
ONE_SLOT = [*OURS, *(kind for kind in RIVALS if "8 threads" not in kind.name)]


def settings(world: World, queue: str, type: str) -> dict[str, object]:
    return {"url": world.url, "queue": queue, "size": 256, "type": type}


def enough(world: World) -> int:
    """How many no-op tasks one of ours is given, however small the scale: it settles what it has
    handled in batches of 50 ms, and of these there must be many, or only handlers are timed."""
    return max(world.scaled(40_000), 20_000)


def start(world: World, kind: Kind, queue: str, handler: str) -> Words:
    """The command line of a worker."""
    words = kind.words(world, queue, handler)
    return [*words, "--url", world.url] if kind.ours else words


def fill(world: World, kind: Kind, asked: Mapping[str, object], count: int) -> None:
    """`count` no-op tasks, sent by the contestant's own sender: its way of writing them."""
    unconfirmed = {"confirm": 0}  # nothing dies here, and it is quicker
    programs.run([*world.program(kind.program), kind.fills, count], {**asked, **unconfirmed})


def no_op(world: World, words: Words, asked: Mapping[str, object], count: int) -> Sample:
    """A worker from its start: how fast it was after a tenth of `count`, as its handlers say."""
    first = max(count // 10, 1)
    marks = {"marks": f"{first},{count}"}
    with programs.running(words, world.folder, {**asked, **marks}) as worker:
        _, began = worker.told(within=60)
        used = worker.cpu()
        _, ended = worker.told(within=120)
        cpu = worker.cpu() - used
        memory, _ = worker.memory()
    done = count - first
    return {"rate": done / (ended - began), "cpu_us": cpu / done * 1e6, "memory_mb": memory}
