"""S8: does it matter how much is waiting?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache

from bench import programs, workers
from bench.contest import Contest, Entry, Figure, Goal, Sample
from bench.workers import THREAD, Words
from bench.world import World

FIGURES = [
    Figure("sent", "/s sent (send_many)"),
    Figure("worked", "/s worked (no-op, thread runner)"),
    Figure("sender_mb", "MB, sender", more=False),
    Figure("worker_mb", "MB, worker", more=False),
]


def on_rabbitmq(world: World) -> Iterator[Contest]:
    with ExitStack() as stack:

        @cache
        def queue(waiting: int) -> dict[str, object]:
            name = stack.enter_context(world.queue())
            return filled(world, workers.settings(world, name, "quorum"), waiting)

        yield contest(world, "quorum queue", queue, workers.enough(world), workers.enough(world))


def on_sqlite(world: World) -> Iterator[Contest]:
    with ExitStack() as stack:

        @cache
        def queue(waiting: int) -> dict[str, object]:
            file = stack.enter_context(world.file())
            asked: dict[str, object] = {"queue": "bench", "size": 256}
            filled(world, {**asked, "url": f"sqlite:///{file}?synchronous=normal"}, waiting)
            return {**asked, "url": f"sqlite:///{file}"}

        yield contest(world, "SQLite", queue, workers.enough(world), workers.enough(world))


def filled(world: World, asked: dict[str, object], waiting: int) -> dict[str, object]:
    programs.run([*world.program("workqueue"), "many", waiting], asked, within=600)
    return asked


def contest(
    world: World,
    where: str,
    queue: Callable[[int], dict[str, object]],
    sends: int,
    works: int,
) -> Contest:
    """`sends` are added and `works` worked off, with so many waiting: once filled, always used."""

    def measured(waiting: int) -> Sample:
        asked = queue(waiting)
        sent = programs.run([*world.program("workqueue"), "many", sends], asked)
        words: Words = THREAD.words(world, str(asked["queue"]), "noop")
        worked = workers.no_op(world, [*words, "--url", asked["url"]], asked, works)
        return {
            "sent": sent["rate"],
            "worked": worked["rate"],
            "sender_mb": sent["memory_mb"],
            "worker_mb": worked["memory_mb"],
        }

    few, many = 10_000, 1_000_000 if world.scale >= 1 else 100_000
    few_told, many_told = f"{few:,} waiting", f"{many:,} waiting"
    return Contest(
        "S8",
        f"Backlog, {where}, 256 B",
        FIGURES,
        [
            Entry(many_told, "", lambda: measured(many)),
            Entry(few_told, "", lambda: measured(few)),
        ],
        [
            Goal(many_told, "sent", 0.8, (few_told,), f"{where}: sending ≥ 0.8×"),
            Goal(many_told, "worked", 0.8, (few_told,), f"{where}: working ≥ 0.8×"),
            Goal(
                many_told, "sender_mb", 1.1, (few_told,), f"{where}: sender's memory flat, ≤ 1.1×"
            ),
            Goal(
                many_told, "worker_mb", 1.1, (few_told,), f"{where}: worker's memory flat, ≤ 1.1×"
            ),
        ],
    )
