"""S7: the embedded file, beside huey and litequeue at the same sync level."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from bench import programs
from bench.contest import CPU, RATE, Contest, Entry, Figure, Goal, Sample
from bench.workers import THREAD, Words, enough, no_op
from bench.world import World

OURS = "workqueue"
COUNTS = {"full": 3_000, "normal": 12_000}
PROCESSES = 4


def contests(world: World) -> Iterator[Contest]:
    for sync in COUNTS:
        yield sends(world, sync)
        yield works(world, sync)
    yield batches(world)
    yield shares(world)


def settings(name: str, file: Path, sync: str) -> dict[str, object]:
    url = f"sqlite:///{file}?synchronous={sync}" if name == "workqueue" else file
    return {"url": url, "queue": "bench", "size": 256, "sync": sync}


def sends(world: World, sync: str) -> Contest:
    count = world.scaled(COUNTS[sync])

    def sent_by(name: str) -> Sample:
        with world.file() as file:
            return programs.run([*world.program(name), "send", count], settings(name, file, sync))

    return Contest(
        "S7",
        f"SQLite, synchronous={sync}: single sends, 256 B",
        [RATE, CPU],
        [
            Entry(OURS, "send", lambda: sent_by("workqueue")),
            Entry("huey", "SqliteHuey", lambda: sent_by("huey")),
            Entry("litequeue", "put", lambda: sent_by("litequeue")),
        ],
        [Goal(OURS, "rate", 1.5, ("huey", "litequeue"), f"{sync}: single sends ≥ 1.5×")],
    )


def works(world: World, sync: str) -> Contest:
    def worked_by(name: str) -> Sample:
        count = enough(world) if name == "workqueue" else world.scaled(COUNTS[sync])
        with world.file() as file:
            asked = settings(name, file, sync)
            fill = "many" if name == "workqueue" else "send"
            quickly = settings(name, file, "normal")
            programs.run([*world.program(name), fill, count + 1], quickly)
            words: Words = [*world.program(name), "work"]
            if name == "workqueue":
                words = [*THREAD.words(world, "bench", "noop"), "--url", asked["url"]]
            return no_op(world, words, asked, count)

    return Contest(
        "S7",
        f"SQLite, synchronous={sync}: no-op work, one worker",
        [RATE, CPU],
        [
            Entry(OURS, "work --in thread, 1 slot", lambda: worked_by("workqueue")),
            Entry("huey", "its consumer, 1 thread; no acks", lambda: worked_by("huey")),
            Entry("litequeue", "pop, then done", lambda: worked_by("litequeue")),
        ],
        [Goal(OURS, "rate", 1.5, ("huey", "litequeue"), f"{sync}: no-op work ≥ 1.5×")],
    )


def batches(world: World) -> Contest:
    def sent(verb: str, count: int) -> Sample:
        with world.file() as file:
            return programs.run(
                [*world.program("workqueue"), verb, count], settings("workqueue", file, "full")
            )

    return Contest(
        "S7",
        "SQLite, synchronous=full: send_many beside send",
        [RATE, CPU],
        [
            Entry("send_many", "", lambda: sent("many", world.scaled(80_000))),
            Entry("send", "", lambda: sent("send", world.scaled(3_000))),
        ],
        [Goal("send_many", "rate", 20, ("send",), "full: batch sends ≥ 20× single ones")],
    )


def shares(world: World) -> Contest:
    """Four processes that claim one message after the other from one file."""
    count = world.scaled(8_000)

    def claimed() -> Sample:
        with world.file() as file:
            asked = settings("workqueue", file, "full")
            programs.run([*world.program("workqueue"), "many", count], asked)
            said = programs.race([*world.program("workqueue"), "claim"], asked, PROCESSES)
        told: list[list[float]] = [json.loads(text) for text in said]
        taken = [len(waits) for waits in told]
        worst = max(statistics.quantiles(waits, n=100)[98] for waits in told if len(waits) > 1)
        return {
            "share": min(taken) / (sum(taken) / PROCESSES),
            "claim_p99_ms": worst * 1000,
            "rate": sum(taken) / max(sum(waits) for waits in told),
        }

    return Contest(
        "S7",
        f"SQLite, synchronous=full: {PROCESSES} processes claim and settle one by one",
        [
            Figure("share", "of its fair share, the worst process"),
            Figure("claim_p99_ms", "ms, the worst process's p99", more=False),
            RATE,
        ],
        [Entry(OURS, "claim 1, settle, again", claimed)],
        [
            Goal(OURS, "share", 0.5, (), "4 processes: no worker below half its fair share"),
            Goal(OURS, "claim_p99_ms", 10, (), "4 processes: p99 of a claim < 10 ms"),
        ],
    )
