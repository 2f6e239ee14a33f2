"""S9 and S10: how soon a command is done, how soon a worker works, and what it weighs."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Iterator

from bench import programs, workers
from bench.contest import Contest, Entry, Failed, Figure, Goal, Sample
from bench.workers import ONE_SLOT, OURS, Kind
from bench.world import World

RUNS = 5
"""Starts in each round, of which the median counts."""


def contests(world: World) -> Iterator[Contest]:
    yield command(world)
    yield worker(world)


def command(world: World) -> Contest:
    def sent(queue: str, url: str) -> Sample:
        words = [world.ours, "-m", "workqueue", "send", queue, "hello", "--url", url]
        return timed([*words, "--quiet"])

    def sent_to_broker() -> Sample:
        with world.queue() as queue:
            return sent(queue, world.url)

    def sent_to_file() -> Sample:
        with world.file() as file:
            return sent("bench", f"sqlite:///{file}")

    imports = "import kombu, typer"
    return Contest(
        "S9",
        "workqueue send of one message, the whole process",
        [Figure("seconds", "s", more=False)],
        [
            Entry("workqueue send", "confirmed, quorum queue", sent_to_broker),
            Entry("workqueue send, SQLite", "on disk: its default", sent_to_file),
            Entry(imports, "python -c", lambda: timed([world.ours, "-c", imports])),
        ],
        [
            Goal("workqueue send", "seconds", 1.5, (imports,), "≤ 1.5× of the imports alone"),
            Goal("workqueue send, SQLite", "seconds", 1.5, (imports,), "SQLite: ≤ 1.5× of them"),
        ],
    )


def timed(words: list[object]) -> Sample:
    took = []
    for _ in range(RUNS):
        began = time.monotonic()
        done = subprocess.run(
            [str(word) for word in words],
            env=programs.environment({}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        took.append(time.monotonic() - began)
        if done.returncode:
            raise Failed(programs.last_line(done.stderr))
    return {"seconds": statistics.median(took)}


def worker(world: World) -> Contest:
    """Tasks wait when it starts; its memory is looked at when it has been idle for a while."""

    def started(kind: Kind) -> Sample:
        with world.queue("classic", made=kind.ours) as queue:
            asked = workers.settings(world, queue, "classic")
            workers.fill(world, kind, asked, 2)
            words = workers.start(world, kind, queue, "noop")
            with programs.running(words, world.folder, asked) as running:
                _, at = running.told(within=60)
                time.sleep(1)
                rss, pss = running.memory()
                count = len(running.family())
        return {"rss_mb": rss, "start_s": at - running.began, "pss_mb": pss, "processes": count}

    rivals = tuple(kind.name for kind in ONE_SLOT if not kind.ours)
    return Contest(
        "S10",
        "Worker of one slot: resident memory idle, all its processes; start to first task handled",
        [
            Figure("rss_mb", "MB resident", more=False),
            Figure("start_s", "s to the first task", more=False),
            Figure("pss_mb", "MB, what is shared shared out", more=False),
            Figure("processes", "processes", more=False),
        ],
        [Entry(kind.name, kind.settings, lambda kind=kind: started(kind)) for kind in ONE_SLOT],
        [
            Goal(kind.name, figure, 1, rivals, f"{kind.name}: {told} below every rival's")
            for kind in OURS
            for figure, told in (("rss_mb", "memory"), ("start_s", "start"))
        ],
    )
