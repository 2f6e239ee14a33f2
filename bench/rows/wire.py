"""S1, S2 and S4: sending and consuming as such, beside a client in C."""

from __future__ import annotations

from collections.abc import Iterator

from bench import programs
from bench.contest import CPU, RATE, Contest, Entry, Goal, Sample
from bench.world import World

C = "C client (librabbitmq)"
OURS = "workqueue"
SIZE = 256


def contests(world: World) -> Iterator[Contest]:
    yield send_many(world)
    yield consume(world, 1000)
    yield consume(world, 100)
    yield send_one(world)


def client(world: World, verb: str, queue: str, count: int, first: int, second: int) -> Sample:
    host, port = world.address
    return programs.run(
        [world.client, verb, host, port, "/", queue, count, first, second], {}, within=120
    )


def settings(world: World, queue: str) -> dict[str, object]:
    return {"url": world.url, "queue": queue, "size": SIZE}


def send_many(world: World) -> Contest:
    """Confirmed, mandatory, persistent, to a quorum queue."""

    def sent_by(name: str, *words: object) -> Sample:
        with world.queue() as queue:
            return programs.run([*world.program(name), *words], settings(world, queue))

    def sent_by_c() -> Sample:
        with world.queue() as queue:
            return client(world, "publish", queue, world.scaled(80_000), SIZE, 1000)

    entries = [
        Entry(OURS, "send_many", lambda: sent_by("workqueue", "many", world.scaled(80_000))),
        Entry("kombu", "window 1000", lambda: sent_by("kombu", "publish", world.scaled(24_000))),
        Entry(
            "aio-pika",
            "window 1000",
            lambda: sent_by("aiopika", "publish", world.scaled(12_000), 1000),
        ),
    ]
    if world.client:
        entries.insert(1, Entry(C, "window 1000", sent_by_c))
    return Contest(
        "S1",
        "send_many, confirmed, mandatory, persistent, quorum queue, 256 B",
        [RATE, CPU],
        entries,
        [
            Goal(OURS, "rate", 0.9, (C,), "≥ 0.9× of C"),
            Goal(OURS, "rate", 2, ("kombu",), "≥ 2× kombu pipelined"),
            Goal(OURS, "rate", 4, ("aio-pika",), "≥ 4× aio-pika"),
            Goal(OURS, "cpu_us", 6, (), "≤ 6 µs of client CPU a message"),
        ],
    )


def consume(world: World, prefetch: int) -> Contest:
    """What is filled in before is consumed to its end; acks with `multiple`."""
    batch = prefetch // 10

    def consumed_by(name: str, count: int, *words: int) -> Sample:
        with world.queue() as queue:
            fill(world, queue, count)
            run = [*world.program(name), "consume", count, prefetch, *words]
            return programs.run(run, settings(world, queue))

    def consumed_by_c() -> Sample:
        count = world.scaled(80_000)
        with world.queue() as queue:
            fill(world, queue, count)
            return client(world, "consume", queue, count, prefetch, batch)

    told = f"prefetch {prefetch}, an ack for {batch}"
    entries = [
        Entry(
            OURS,
            f"prefetch {prefetch}, settled turn by turn",
            lambda: consumed_by("workqueue", world.scaled(80_000)),
        ),
        Entry("kombu", told, lambda: consumed_by("kombu", world.scaled(20_000), batch)),
        Entry("aio-pika", told, lambda: consumed_by("aiopika", world.scaled(10_000), batch)),
    ]
    if world.client:
        entries.insert(1, Entry(C, told, consumed_by_c))
    return Contest(
        "S2",
        f"Consumer at prefetch {prefetch}, settled in batches, quorum queue, 256 B",
        [RATE, CPU],
        entries,
        [
            Goal(OURS, "rate", 0.9, (C,), f"prefetch {prefetch}: ≥ 0.9× of C"),
            Goal(OURS, "cpu_us", 12, (), f"prefetch {prefetch}: ≤ 12 µs of client CPU a message"),
        ],
    )


def fill(world: World, queue: str, count: int) -> None:
    """Put `count` messages there, by whoever is quick and right."""
    if world.client:
        client(world, "publish", queue, count, SIZE, 1000)
    else:
        programs.run([*world.program("workqueue"), "many", count], settings(world, queue))


def send_one(world: World) -> Contest:
    """Each confirmed before the next is sent."""
    count = world.scaled(2_000)

    def sent_by(name: str, *words: object, made: bool = True) -> Sample:
        with world.queue(made=made) as queue:
            asked = {**settings(world, queue), "type": "quorum"}
            return programs.run([*world.program(name), *words], asked)

    def sent_by_c() -> Sample:
        with world.queue() as queue:
            return client(world, "publish", queue, count, SIZE, 1)

    shared = "workqueue, 8 threads"
    entries = [
        Entry(OURS, "send", lambda: sent_by("workqueue", "send", count)),
        Entry(
            shared,
            "send, one Producer",
            lambda: sent_by("workqueue", "share", world.scaled(12_000), 8),
        ),
        Entry(
            "Celery",
            "quorum queue, confirm_publish",
            lambda: sent_by("celery", "send", count // 2, made=False),
        ),
        Entry(
            "Dramatiq",
            "classic queue (it has no other), confirm_delivery",
            lambda: sent_by("dramatiq", "send", count // 2, made=False),
        ),
        Entry(
            "Taskiq",
            "taskiq-aio-pika, quorum queue",
            lambda: sent_by("taskiq", "send", count // 2, made=False),
        ),
        Entry(
            "FastStream",
            "quorum queue, persist, mandatory",
            lambda: sent_by("faststream", "send", count // 2, made=False),
        ),
    ]
    if world.client:
        entries.insert(2, Entry(C, "window 1", sent_by_c))
    return Contest(
        "S4",
        "send one at a time, confirmed, quorum queue, 256 B",
        [RATE, CPU],
        entries,
        [
            Goal(OURS, "rate", 0.9, (C,), "≥ 0.9× of C one at a time"),
            Goal(shared, "rate", 3, (OURS,), "8 threads sharing a Producer ≥ 3× one"),
        ],
    )
