"""S3, S5 and S6: workers, beside those of others and beside no queue at all."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

from bench import programs, workers
from bench.contest import CPU, RATE, Contest, Entry, Figure, Goal, Sample
from bench.programs import Pipe, Running
from bench.workers import Kind
from bench.world import World


def contests(world: World) -> Iterator[Contest]:
    yield no_op(world, "classic")
    yield no_op(world, "quorum")
    yield latency(world)
    for count in (1, 2, 4):
        yield naps(world, count)


def able(type: str) -> list[Kind]:
    return [kind for kind in [*workers.OURS, *workers.RIVALS] if kind.quorum or type == "classic"]


def no_op(world: World, type: str) -> Contest:
    """The queue is filled, then a worker of one slot works it down."""

    def worked_by(kind: Kind) -> Sample:
        count = workers.enough(world) if kind.ours else world.scaled(5_000)
        with world.queue(type, made=kind.ours) as queue:
            asked = workers.settings(world, queue, type)
            workers.fill(world, kind, asked, count)
            return workers.no_op(world, workers.start(world, kind, queue, "noop"), asked, count)

    kinds = able(type)
    rivals = tuple(kind.name for kind in kinds if not kind.ours)
    return Contest(
        "S3",
        f"Worker, no-op handler, one slot, acknowledged after the work, {type} queue, 256 B",
        [RATE, CPU],
        [Entry(kind.name, kind.settings, lambda kind=kind: worked_by(kind)) for kind in kinds],
        [
            Goal(workers.THREAD.name, "rate", 5, rivals, f"{type}: thread runner ≥ 5× the best"),
            Goal(workers.PROCESS.name, "rate", 3, rivals, f"{type}: process runner ≥ 3× the best"),
        ],
    )


def latency(world: World) -> Contest:
    """From before `send` to the handler's first line, at 50 messages a second."""
    count = max(world.scaled(400), 200)  # a p99 of fewer would be the worst of them

    def timed_in(kind: Kind) -> Sample:
        with world.queue("classic", made=kind.ours) as queue:
            asked = workers.settings(world, queue, "classic")
            words = workers.start(world, kind, queue, "aged")
            with programs.running(words, world.folder, asked) as worker:
                ages_at(world, kind, worker, asked, 10)  # it is there, and warm
                ages = ages_at(world, kind, worker, asked, count)
        cuts = statistics.quantiles(ages, n=100)
        return {"p50_ms": cuts[49] * 1000, "p99_ms": cuts[98] * 1000}

    kinds = able("classic")
    rivals = tuple(kind.name for kind in kinds if not kind.ours)
    return Contest(
        "S5",
        "Latency from send to handler at 50 a second, confirmed, classic queue",
        [Figure("p50_ms", "ms, p50", more=False), Figure("p99_ms", "ms, p99", more=False)],
        [Entry(kind.name, kind.settings, lambda kind=kind: timed_in(kind)) for kind in kinds],
        [
            Goal(kind.name, figure, 1, rivals, f"{kind.name}: {figure[:3]} no worse than the best")
            for kind in workers.OURS
            for figure in ("p50_ms", "p99_ms")
        ],
    )


def ages_at(
    world: World, kind: Kind, worker: Running, asked: dict[str, object], count: int
) -> list[float]:
    """How old `count` messages were when they were handled."""
    sender = subprocess.Popen(
        [str(word) for word in [*world.program(kind.program), "pace", "50.0", count]],
        env=programs.environment(asked),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        return [worker.told(within=60)[1] for _ in range(count)]
    finally:
        sender.kill()
        sender.wait()


def naps(world: World, count: int) -> Contest:
    """Tasks of 10 ms, sent at once to workers that wait; the ideal is the same loop without a
    queue, in as many processes."""
    tasks = world.scaled(200) * count

    def worked(*more: str) -> Sample:
        with ExitStack() as stack:
            queue = stack.enter_context(world.queue())
            asked = workers.settings(world, queue, "quorum")
            words = [*workers.start(world, workers.PROCESS, queue, "nap"), *more]
            pipe = Pipe(world.folder)
            stack.callback(pipe.close)
            crew = [Running(words, pipe, asked) for _ in range(count)]
            for one in crew:
                stack.callback(one.end)
            warm_up(world, crew, asked)
            programs.run([*world.program("workqueue"), "naps", tasks], asked)
            return pace_of([crew[0].told(within=60)[1] for _ in range(tasks)])

    def ideal() -> Sample:
        pipe = Pipe(world.folder)
        try:
            words = [world.ours, programs.RIVALS / "ideal.py", tasks // count]
            programs.race(words, {"pipe": pipe.path}, count)
            return pace_of([float(pipe.line(10).split()[1]) for _ in range(tasks)])
        finally:
            pipe.close()

    told = f"{count} worker{'s' * (count > 1)}"
    best = "no queue"
    return Contest(
        "S6",
        f"Tasks of 10 ms, {told} of one slot, process runner, quorum queue",
        [RATE],
        [
            Entry("--prefetch 1", "", lambda: worked("--prefetch", "1")),
            Entry("auto prefetch", "its default", worked),
            Entry(best, "the same naps in a loop", ideal),
        ],
        [
            Goal("--prefetch 1", "rate", 0.93, (best,), f"{told}: --prefetch 1 ≥ 0.93 of ideal"),
            Goal("auto prefetch", "rate", 0.96, (best,), f"{told}: auto ≥ 0.96 of ideal"),
        ],
    )


def warm_up(world: World, crew: list[Running], asked: dict[str, object]) -> None:
    """Each worker has worked."""
    seen: set[int] = set()
    while len(seen) < len(crew):
        some = 10 * len(crew)
        programs.run([*world.program("workqueue"), "naps", some], asked)
        seen.update(crew[0].told(within=60)[0] for _ in range(some))


def pace_of(ends: list[float]) -> Sample:
    """Tasks in a second, from the first one's begin to the last one's end."""
    return {"rate": len(ends) / (max(ends) - min(ends) + 0.010)}
