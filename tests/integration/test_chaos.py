"""Senders and workers under everything at once, and a checker that counts what was lost.

A seed fixes the faults, their order, victims and lengths. In CI one is enough; `nox -s chaos` runs
ten. By environment:

    WORKQUEUE_CHAOS_SEEDS="1 2 3"     the seeds
    WORKQUEUE_CHAOS_SECONDS=60        how long each attack lasts
    WORKQUEUE_CHAOS_TABLE=table.md    a row for each run is added to this file
"""

from __future__ import annotations

import contextlib
import os
import time
import urllib.error
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.integration.broker import Broker, Vhost
from workqueue import connect
from workqueue.cli.torture.checker import Verdict
from workqueue.cli.torture.nemesis import Fault, plan
from workqueue.cli.torture.proxy import Proxy
from workqueue.cli.torture.siege import Roles, Siege, usual_roles

SEEDS = [int(word) for word in os.environ.get("WORKQUEUE_CHAOS_SEEDS", "7").split()]
SECONDS = float(os.environ.get("WORKQUEUE_CHAOS_SECONDS", "15"))
TABLE = os.environ.get("WORKQUEUE_CHAOS_TABLE")

HEARTBEAT = 3
"""Seconds. Workers that are frozen for longer than two of them are taken for dead."""

RATE = 60
"""Messages a second: so few that two slow, shared cores keep up."""

PASSWORD = "n0t-1n-any-0utput"

pytestmark = pytest.mark.timeout(SECONDS * 6 + 240)

runs = pytest.mark.parametrize("seed", SEEDS)


@runs
def test_on_rabbitmq(broker: Broker, vhost: Vhost, proxy: Proxy, tmp_path: Path, seed: int) -> None:
    """Nothing is lost, whatever dies: a worker, a sender, a connection, or the broker itself."""
    with connect(vhost.url) as remote, login(broker, vhost) as user:
        queue = remote.queue("chaos")
        queue.declare()
        parts = urlsplit(proxy.through(vhost.url))
        place = parts.netloc.rpartition("@")[2]
        url = parts._replace(
            netloc=f"{user}:{PASSWORD}@{place}", query=f"heartbeat={HEARTBEAT}"
        ).geturl()
        with Siege(
            queue,
            url,
            tmp_path,
            usual_roles("chaos", seed),
            messages=int(SECONDS * RATE),
            proxies=[proxy],
            tell=print,
        ) as siege:
            faults = siege.process_faults(longest_freeze=HEARTBEAT * 2.5)
            faults += siege.network_faults() + broker_faults(siege, broker, vhost)
            print(f"seed {seed}")
            siege.run(plan(faults, seed), SECONDS, heal=broker.heal)
            verdict = siege.verdict(secrets=[PASSWORD])
    record(f"RabbitMQ {broker.version}", seed, siege, verdict)
    assert verdict.good, verdict


@runs
def test_on_the_embedded_file(tmp_path: Path, seed: int) -> None:
    """The same without a network: processes are killed, frozen and stopped."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    with connect(url) as local:
        queue = local.queue("chaos")
        queue.declare()
        with Siege(
            queue,
            url,
            tmp_path,
            usual_roles("chaos", seed),
            messages=int(SECONDS * RATE),
            tell=print,
        ) as siege:
            print(f"seed {seed}")
            faults = siege.process_faults(longest_freeze=3.0)
            siege.run(plan(faults, seed), SECONDS, heal=lambda: None)
            verdict = siege.verdict()
    record("SQLite", seed, siege, verdict)
    assert verdict.good, verdict


@pytest.mark.rabbitmq("4.3")
def test_a_naive_client_is_found_out(
    broker: Broker, vhost: Vhost, proxy: Proxy, tmp_path: Path
) -> None:
    """The same checker and the same faults: it says what is missing."""
    script = str(Path(__file__).with_name("naive.py"))
    naive = Roles(
        sender=lambda number, share, until: [
            script, "sender", "chaos", str(number), str(share), str(until)
        ],
        worker=[script, "worker", "chaos"],
        drain=[script, "worker", "chaos", "--until-empty"],
    )  # fmt: skip
    with connect(vhost.url) as remote:
        queue = remote.queue("chaos")
        queue.declare()
        with Siege(
            queue,
            proxy.through(vhost.url),
            tmp_path,
            naive,
            messages=2_000,
            workers_count=2,
            proxies=[proxy],
            patience=5.0,
            tell=print,
        ) as siege:
            first = next(plan(siege.process_faults(0.5)[:1], seed=7))
            strokes = plan([*siege.process_faults(1.0), *siege.network_faults()], seed=7)
            # That a worker dies is not left to the order of the deck.
            siege.run(chain([first], strokes), 8.0, heal=siege.heal_network)
            verdict = siege.verdict()
    assert not verdict.good
    assert verdict.lost


# -- what can be done to a RabbitMQ ------------------------------------------------------------


def broker_faults(siege: Siege, broker: Broker, vhost: Vhost) -> list[Fault]:
    def kill(_number: int, seconds: float) -> str:
        broker.kill()
        siege.pause(seconds)
        broker.start()
        return f"killed the broker, and started it after {seconds} s"

    def stop_app(_number: int, seconds: float) -> str:
        broker.stop_app()
        siege.pause(seconds)
        broker.start_app()
        return f"stopped RabbitMQ in order, and started it after {seconds} s"

    def freeze(_number: int, seconds: float) -> str:
        broker.pause()
        siege.pause(seconds)
        broker.unpause()
        return f"froze the broker for {seconds} s"

    def alarm(_number: int, seconds: float) -> str:
        broker.set_memory_alarm()
        siege.pause(seconds)
        broker.clear_memory_alarm()
        return f"a memory alarm for {seconds} s"

    def hang_up(_number: int, _seconds: float) -> str:
        broker.close_all_connections()
        return "closed all connections, as an administrator"

    def drop_workers(_number: int, _seconds: float) -> str:
        found: list[str] = []

        def known() -> bool:
            found.extend(connections_of_workers(broker, vhost))
            return bool(found)

        siege.wait(known, 8.0)  # so long the management API may take to know them
        for name in found:
            with contextlib.suppress(urllib.error.HTTPError):  # it has gone by itself
                broker.manage("DELETE", f"connections/{quote(name, safe='')}")
        return f"closed {len(found)} connections of workers"

    return [
        Fault("kill the broker", kill, (0.0, 2.0)),
        Fault("stop RabbitMQ", stop_app, (0.0, 2.0)),
        Fault("freeze the broker", freeze, (0.5, HEARTBEAT * 2.5)),
        Fault("memory alarm", alarm, (0.5, 3.0)),
        Fault("close all connections", hang_up),
        Fault("close the workers' connections", drop_workers),
    ]


def connections_of_workers(broker: Broker, vhost: Vhost) -> list[str]:
    connections = broker.manage("GET", f"vhosts/{vhost.name}/connections")
    return [
        found["name"] for found in connections if "worker" in found.get("user_provided_name", "")
    ]


@contextlib.contextmanager
def login(broker: Broker, vhost: Vhost) -> Iterator[str]:
    """A user whose password is not to be found anywhere else."""
    user = f"chaos-{vhost.name}"
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.manage("PUT", f"users/{user}", {"password": PASSWORD, "tags": ""})
    broker.manage("PUT", f"permissions/{vhost.name}/{user}", everything)
    try:
        yield user
    finally:
        broker.manage("DELETE", f"users/{user}")


def record(where: str, seed: int, siege: Siege, verdict: Verdict) -> None:
    """A row of the table, if one is wanted."""
    row = [
        where, seed, siege.faults, verdict.sent, verdict.confirmed, verdict.handled, verdict.dead,
        verdict.duplicated, len(verdict.lost),
        ", ".join(kind for kind, found in verdict.faults.items() if found) or "none",
        f"{time.time() - siege.began:.0f} s",
    ]  # fmt: skip
    line = f"| {' | '.join(map(str, row))} |"
    print(line)
    if TABLE:
        with Path(TABLE).open("a") as table:
            table.write(line + "\n")
