"""python -m bench: workqueue beside the C client, kombu, aio-pika, and the rivals.

    python -m bench                           every row, on RabbitMQ 4.0 and 4.3; about an hour
    python -m bench --rows S1,S3 --pairs 5    these rows
    python -m bench --quick                   a quarter of the messages, three rounds: for a look

Each round runs every contestant once; figures are medians over the rounds, and ratios are taken
round by round. It writes bench/results.md and bench/results.svg from bench/results.json, in which
the rows that are not run keep what they had.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

from bench import report, tools
from bench.contest import Contest, hold
from bench.rows import backlog, embedded, starting, wire, working
from bench.world import World

# Our containers are removed by us, and all traffic goes to 127.0.0.1.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
os.environ.setdefault("WORKQUEUE_TEST_START_DOCKER", "1")

ROWS = [f"S{number}" for number in range(1, 11)]
HERE = Path(__file__).parent


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="How fast, beside others.")
    parser.add_argument("--rows", default=",".join(ROWS), help="such as S1,S3")
    parser.add_argument("--on", default="4.0,4.3", help="series of RabbitMQ")
    parser.add_argument("--pairs", type=int, help="rounds; 5, or 3 with --quick")
    parser.add_argument("--quick", action="store_true", help="a quarter of the messages")
    parser.add_argument("--scale", type=float, help="this part of the messages: for slow machines")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--url", help="a RabbitMQ that runs, instead of one started for this")
    given = parser.parse_args()
    given.rows = [row.strip().upper() for row in given.rows.split(",")]
    if unknown := set(given.rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}: choose from {', '.join(ROWS)}")
    given.pairs = given.pairs or (3 if given.quick else 5)
    given.scale = given.scale or (0.25 if given.quick else 1.0)
    return given


def on_rabbitmq(world: World) -> Iterator[Contest]:
    yield from wire.contests(world)
    yield from working.contests(world)
    yield from backlog.on_rabbitmq(world)
    yield from starting.contests(world)


def on_sqlite(world: World) -> Iterator[Contest]:
    yield from embedded.contests(world)
    yield from backlog.on_sqlite(world)


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was started is stopped
    theirs, client = tools.rivals_python(say), tools.c_client(say)
    results = report.Results(given.results)
    results.note_machine(tools.versions(theirs))
    # Not in /tmp, which may be memory: the rows on SQLite are about a disk.
    tools.BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=tools.BUILD) as name:

        def world(server: str, url: str) -> World:
            ours = Path(sys.executable)
            return World(server, url, Path(name), ours, theirs, client, given.scale)

        def run(contests: Iterator[Contest], server: str) -> None:
            for contest in contests:
                if contest.row in given.rows:
                    results.keep(hold(contest, server, given.pairs, say))

        run(on_sqlite(world("SQLite", "")), "SQLite")
        if set(given.rows) - {"S7"}:
            with contextlib.closing(brokers(given)) as servers:
                for url, server in servers:
                    run(on_rabbitmq(world(server, url)), server)
    say(f"written: {', '.join(str(path) for path in results.write())}")


def brokers(given: argparse.Namespace) -> Generator[tuple[str, str], None, None]:
    """One after the other: its URL, and what it is called in the table."""
    from tests.integration.broker import Broker
    from tests.integration.supply import Supply, Wanted

    if given.url:
        yield given.url, f"RabbitMQ {Broker(given.url).version}"
        return
    supply = Supply(say)
    try:
        series = given.on.split(",")
        supply.prepare(series)
        for one in series:
            broker = supply.get(Wanted(one))
            yield broker.url, f"RabbitMQ {broker.version}"
            supply.remove(Wanted(one))
    finally:
        supply.close()


if __name__ == "__main__":
    main()
