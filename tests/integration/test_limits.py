"""What a broker limits, what a stranger may send at worst, and what other users can see."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from urllib.parse import urlsplit

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import Desk, children_of


@pytest.fixture
def desk(tmp_path: Path, vhost: Vhost) -> Iterator[Desk]:
    desk = Desk(tmp_path, vhost.url)
    yield desk
    desk.close()


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


def test_no_more_connections(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """A sender is told so and gives up; a worker waits until there is room."""
    desk.send("q", "sleep 0")
    limit = f"vhost-limits/{vhost.name}/max-connections"
    broker.manage("PUT", limit, {"value": 0})
    result = desk.run("send", "q", "x", "--timeout", "2s")
    assert result.code == 69
    assert "limit" in result.err
    worker = desk.work("q")
    desk.until(lambda: worker.says("trying again"), "the worker to wait")
    broker.manage("DELETE", limit)
    desk.until_done(1)
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0


def test_no_more_queues(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """What cannot be made is said in a line, and is not tried for ever."""
    broker.manage("PUT", f"vhost-limits/{vhost.name}/max-queues", {"value": 0})
    for command in (("send", "q", "x", "--timeout", "5s"), ("declare", "q")):
        result = desk.run(*command)
        assert result.code in (69, 77, 78), result.err
        assert "limit" in result.err
        assert "Traceback" not in result.err


def test_what_cannot_be_copied_is_set_aside(desk: Desk, client: ForeignClient) -> None:
    """Properties that come out longer than they went in: no loop, and no neighbour waits."""
    client.declare("q", x_queue_type="quorum")
    text = b"\xff" * 255
    table = bytes((255,)) + text + b"S" + pack(">I", 100_000) + b"\xfe" * 100_000
    properties = (
        pack(">H", 0xFEE8)  # all but expiration, user and cluster
        + (bytes((255,)) + text) * 2
        + (pack(">I", len(table)) + table)
        + b"\x02\xff"
        + (bytes((255,)) + text) * 2
        + (bytes((255,)) + text)
        + b"\xff" * 8
        + (bytes((255,)) + text) * 2
    )
    client.send_raw("q", properties, b"fail")
    client.send("q", "sleep 0 good")
    result = desk.drain("q", "--max-attempts", "1")
    assert result.code == 0, result.err
    assert desk.bodies("done") == ["sleep 0 good"]
    assert len(desk.bodies("start")) <= 2
    [letter] = desk.run("dead", "list", "q", "--json").json
    assert letter["attempt"] == 1
    shown = desk.run("dead", "show", "q", "--all").out
    assert shown.replace("\n", "").isprintable()
    assert desk.run("dead", "drop", "q", "--all", "--yes").code == 0


def test_no_password_in_what_others_see(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """Neither in the command line of any process of ours, nor in what a command is given."""
    user, secret = f"ada-{vhost.name}", "s3cr3t-Pa55"
    broker.manage("PUT", f"users/{user}", {"password": secret, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    broker.manage("PUT", f"permissions/{vhost.name}/{user}", everything)
    host, port = broker.address
    file = desk.folder / "url"
    file.write_text(f"amqp://{user}:{secret}@{host}:{port}/{vhost.name}\n")
    try:
        desk.send("q", "sleep 20", "sleep 20")
        python = desk.work("q", "-v", "--url-file", "url", WORKQUEUE_URL="")
        command = desk.start(
            *("work", "q", "-v", "--exec", "--", "sleep", "20"),
            WORKQUEUE_URL=file.read_text().strip(),
        )
        desk.until(
            # Of that name: until it has become the command, a child is a copy of the worker.
            lambda: desk.bodies("start") and "sleep" in map(name_of, children_of(command.pid)),
            "both to run",
        )
        pids = [pid for program in (python, command) for pid in tree(program.pid)]
        assert len(pids) >= 5
        for pid in pids:
            assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
        [sleeping] = [pid for pid in tree(command.pid) if name_of(pid) == "sleep"]
        assert secret not in Path(f"/proc/{sleeping}/environ").read_text()
        for program in (python, command):
            program.send(signal.SIGTERM)
            program.send(signal.SIGTERM)
        for program in (python, command):
            result = program.wait()
            assert secret not in result.out + result.err
    finally:
        broker.manage("DELETE", f"users/{user}")
    assert secret not in broker.log(200)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    return [pid, *(found for child in children_of(pid) for found in tree(child))]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


@pytest.mark.timeout(300)
def test_workers_do_not_come_back_all_at_once(desk: Desk, broker: Broker) -> None:
    """After a restart of the broker: their connections are spread."""
    desk.send("q", "sleep 0")
    workers = [desk.work("q", "--in", "thread") for _ in range(6)]
    desk.until(lambda: connected(broker, desk) >= 6, "all workers")
    broker.stop_app()
    desk.until(lambda: all(worker.says("trying again") for worker in workers), "all to notice")
    broker.start_app()
    pauses = [
        float(line.rpartition("trying again in ")[2].split()[0])
        for worker in workers
        for line in worker.err.read_text().splitlines()
        if "trying again in" in line
    ]
    assert max(pauses) - min(pauses) > 0.1
    assert min(pauses) < 1
    desk.until(lambda: connected(broker, desk) >= 6, "all to be back")


def connected(broker: Broker, desk: Desk) -> int:
    """How many connections of workers there are in the test's virtual host."""
    vhost = urlsplit(desk.url).path[1:]
    rows = broker.manage("GET", f"vhosts/{vhost}/connections")
    names = [str((row.get("client_properties") or {}).get("connection_name")) for row in rows]
    return sum(name.startswith("workqueue worker of q") for name in names)
