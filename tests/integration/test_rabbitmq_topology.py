"""What is on the broker is looked at: parts that others deleted, swallowed, forbade or made."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import amqp
import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import PATIENCE, Desk, Result
from tests.integration.supply import Wanted, supply_of
from workqueue import ConfigError, Producer, Worker, connect
from workqueue.retry import RetryPolicy
from workqueue.testing import eventually
from workqueue.transports.rabbitmq import delays, destinations, driver, migration
from workqueue.transports.rabbitmq.ladder import Level, delivery_key
from workqueue.transports.rabbitmq.topology import NO_TIMEOUT

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"


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


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no broker is killed, new queues need not be waited for."""
    monkeypatch.setattr(driver, "SETTLING", 0)


class Site:
    """A sender and a worker of the queue `jobs` that run while parts are deleted."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.broker = connect(url)
        self.queue = self.broker.queue("jobs", retry=RetryPolicy(first=0.4, longest=0.4))
        self.handled: dict[bytes, list[float]] = {}
        self.worker = Worker(self.queue, self.handle, runner="thread", concurrency=4)
        self.thread = threading.Thread(target=self.worker.run)
        self.thread.start()
        self.sender = Producer(self.queue)

    def handle(self, job: Any) -> None:
        runs = self.handled.setdefault(job.body, [])
        runs.append(time.monotonic())
        if job.body.startswith(b"fails once") and len(runs) == 1:
            raise ValueError("as asked")

    def runs(self, body: str, count: int) -> None:
        def enough() -> bool:
            return len(self.handled.get(body.encode(), [])) >= count

        # Far less than the three minutes after which RabbitMQ tries a held message again.
        eventually(enough, within=30, what=f"run {count} of {body!r}")

    def close(self) -> None:
        self.worker.stop()
        self.thread.join(PATIENCE)
        self.sender.close()


@pytest.fixture
def site(vhost: Vhost, no_settling: None) -> Iterator[Site]:
    site = Site(vhost.url)
    yield site
    site.close()


# -- parts of the ladder ---------------------------------------------------------------------------

TOP = 3
"""The highest level that a delay of 0.9 s needs."""

Deletion = Callable[[amqp.Channel], object]


def without_queue(name: str) -> Deletion:
    return lambda channel: channel.queue_delete(name)


def without_exchange(name: str) -> Deletion:
    return lambda channel: channel.exchange_delete(name)


def without_binding(number: int, *, waits: bool) -> Deletion:
    level = Level("workqueue.delay.", number)
    if waits:
        return lambda channel: channel.queue_unbind(level.name, level.name, level.waits)
    return lambda channel: channel.exchange_unbind(level.next, level.name, level.passes)


PARTS: dict[str, Deletion] = {
    "queue 0": without_queue("workqueue.delay.0"),
    "queue 2": without_queue("workqueue.delay.2"),
    "queue 3": without_queue(f"workqueue.delay.{TOP}"),
    "exchange 0": without_exchange("workqueue.delay.0"),
    "exchange 2": without_exchange("workqueue.delay.2"),
    "exchange 3": without_exchange(f"workqueue.delay.{TOP}"),
    "due": without_exchange("workqueue.due"),
    "ours": without_exchange("workqueue"),
    "undeliverable queue": without_queue("workqueue.undeliverable"),
    "undeliverable exchange": without_exchange("workqueue.undeliverable"),
    "dead": without_queue("jobs.dead"),
    "waits 3": without_binding(TOP, waits=True),
    "waits 1": without_binding(1, waits=True),
    "passes 2": without_binding(2, waits=False),
    "passes 0": without_binding(0, waits=False),
    "due binding": lambda channel: channel.queue_unbind(
        "jobs", "workqueue.due", delivery_key("jobs")
    ),
    "our binding": lambda channel: channel.queue_unbind("jobs", "workqueue", "jobs"),
}


def test_any_part_may_be_deleted(site: Site, client: ForeignClient) -> None:
    """The next delayed message arrives in time, and so does the next retry, with no restart."""
    site.sender.send("first", delay=0.9)
    site.runs("first", 1)
    for name, delete in PARTS.items():
        inner_binding = "waits" in name or "passes" in name
        if inner_binding:
            time.sleep(delays.COMPARED)  # a binding alone is looked at no more often
        delete(client.channel)
        site.sender.send(name, delay=0.9)
        site.runs(name, 1)
        if not inner_binding:
            delete(client.channel)
            site.sender.send(f"fails once: {name}")
            site.runs(f"fails once: {name}", 2)


def test_everything_may_be_deleted_at_once(site: Site, client: ForeignClient) -> None:
    """Only the queue itself is left."""
    site.sender.send("first", delay=0.9)
    site.runs("first", 1)
    for name, delete in PARTS.items():
        if name.startswith(("queue", "exchange", "due", "ours", "undeliverable", "dead")):
            with suppress(amqp.NotFound):  # the bindings of an exchange went with it
                delete(client.channel)
    site.sender.send("second", delay=0.9)
    site.runs("second", 1)
    site.sender.send("fails once")
    site.runs("fails once", 2)


def test_what_waits_for_another_queue(site: Site, client: ForeignClient) -> None:
    """The exchange where delays end is made again with the bindings of all queues that this sender
    has delayed messages for: those on their way get there."""
    other = Producer(site.broker.queue("other"))
    other.send("on its way", delay=2.0)
    client.channel.exchange_delete("workqueue.due")
    site.sender.send("next", delay=0.2)
    site.runs("next", 1)
    eventually(lambda: waits(client, "other") == 1, within=30, what="what was on its way")
    other.close()


def test_a_level_that_others_made(site: Site, client: ForeignClient) -> None:
    """With other arguments a message would wait there for ever: one clear error, nothing sent."""
    site.sender.send("first", delay=0.9)
    client.channel.queue_delete("workqueue.delay.2")
    client.declare("workqueue.delay.2", x_queue_type="quorum")
    with pytest.raises(ConfigError, match=r"x-dead-letter-exchange.*workqueue\.delay\.2"):
        Producer(connect(site.url).queue("jobs")).send("second", delay=0.9)
    client.channel.queue_delete("workqueue.delay.2")
    site.sender.send("third", delay=0.9)
    site.runs("third", 1)
    assert b"second" not in site.handled


# -- what a mandatory message does not prove -------------------------------------------------------


def catch_all(broker: Broker, vhost: Vhost, client: ForeignClient) -> None:
    """A policy on all exchanges, as some administrators have it."""
    client.channel.exchange_declare("others", "fanout", durable=True, auto_delete=False)
    client.declare("catch-all")
    client.channel.queue_bind("catch-all", "others")
    broker.manage(
        "PUT",
        f"policies/{vhost.name}/catch",
        {
            "pattern": ".*",
            "apply-to": "exchanges",
            "definition": {"alternate-exchange": "others"},
        },
    )


def waits(client: ForeignClient, queue: str) -> int:
    return int(client.channel.queue_declare(queue, passive=True).message_count)


def test_an_alternate_exchange_swallows_nothing(
    desk: Desk, broker: Broker, vhost: Vhost, client: ForeignClient
) -> None:
    """The queue is made, and gets the message: where it is missing, and where others made it."""
    catch_all(broker, vhost, client)
    client.declare("theirs")
    for queue in ("orders", "orders", "theirs"):
        assert desk.run("send", queue, "x").code == 0
    client.channel.queue_delete("orders")
    assert desk.run("send", "orders", "x", "--delay", "0.1s").code == 0
    eventually(lambda: waits(client, "orders") == 1, what="what was delayed")
    client.channel.exchange_delete("workqueue")
    assert desk.run("send", "orders", "x").code == 0
    assert (waits(client, "orders"), waits(client, "theirs")) == (2, 1)
    assert waits(client, "catch-all") == 0


def test_a_queue_deleted_under_a_sender(
    broker: Broker, vhost: Vhost, client: ForeignClient, no_settling: None
) -> None:
    """It notices within a second, also where another queue would take the message: one that is
    bound with the same key, or an alternate exchange."""
    catch_all(broker, vhost, client)
    client.declare("spy")
    with Producer(connect(vhost.url).queue("orders")) as sender:
        sender.send("1")
        client.channel.queue_bind("spy", "workqueue", "orders")
        for part in ("queue", "binding", "exchange"):
            match part:
                case "queue":
                    client.channel.queue_delete("orders")
                case "binding":
                    client.channel.queue_unbind("orders", "workqueue", "orders")
                case "exchange":
                    client.channel.exchange_delete("workqueue")
            before = 0 if part == "queue" else waits(client, "orders")
            time.sleep(destinations.LOOK_AGAIN)
            sender.send(part)
            assert waits(client, "orders") == before + 1, part
    assert waits(client, "catch-all") == 0


def test_an_exchange_that_others_made(desk: Desk, client: ForeignClient) -> None:
    """A fanout exchange in the place of ours would give each message to every queue."""
    desk.send("jobs", "x")
    client.channel.exchange_delete("workqueue")
    client.channel.exchange_declare("workqueue", "fanout", durable=True, auto_delete=False)
    told = desk.run("send", "jobs", "x")
    assert told.code == 78, told.err
    assert len(told.err.splitlines()) <= 3
    assert "workqueue" in told.err
    assert "fanout" in told.err


# -- queues that are no work queues ----------------------------------------------------------------


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
@pytest.mark.parametrize("kind", ["stream", "exclusive"])
def test_what_is_no_work_queue_is_refused(desk: Desk, client: ForeignClient, kind: str) -> None:
    """By every command that would use it, with one line and exit code 78; nothing is destroyed."""
    if kind == "stream":
        client.declare("theirs", x_queue_type="stream")
        client.send("theirs", "kept")
    else:
        client.channel.queue_declare("theirs", exclusive=True)
    for command in (
        ["send", "theirs", "x"],
        ["send", "theirs", "x", "--delay", "1s"],
        ["work", "theirs", "tasks:handle"],
        ["declare", "theirs"],
        ["declare", "theirs", "--type", "classic"],
        ["migrate", "theirs", "--type", "quorum", "--yes", "--force"],
        ["purge", "theirs", "--yes"],
        ["delete", "theirs", "--yes"],
        ["peek", "theirs"],
    ):
        result = desk.run(*command)
        assert result.code == 78, (command, result.code, result.err)
        assert kind in result.err, command
        said = [line for line in result.err.splitlines() if not line.startswith("working ")]
        assert len(said) == 2, result.err
    if kind == "stream":
        assert "theirs" in desk.run("status", "theirs").out  # to look is no harm
        assert waits(client, "theirs") in (0, 1)  # a stream may not count
        client.channel.basic_qos(0, 10, False)
        seen: list[Any] = []
        client.channel.basic_consume(
            "theirs", callback=seen.append, arguments={"x-stream-offset": "first"}
        )
        while not seen:
            client.connection.drain_events(timeout=PATIENCE)


def test_a_transient_queue_is_known_for_what_it_is(desk: Desk, client: ForeignClient) -> None:
    """It has no acknowledgement timeout on 4.3, and a worker does not say that it had one."""
    client.channel.queue_declare("short", durable=False, auto_delete=False)
    result = desk.run("work", "short", "tasks:handle", "--until-empty")
    assert result.code == 0
    classic_has_timeout = client.connection.server_properties["version"] < "4.3"
    assert ("consumer_timeout" in result.err) == classic_has_timeout


# -- permissions -----------------------------------------------------------------------------------


def least_permissions() -> dict[str, tuple[str, str, str]]:
    """The table of docs/reference.md: what a user may configure, write and read, by what for."""
    text = REFERENCE.read_text().partition("## Permissions on RabbitMQ")[2]
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] not in ("to", "---"):
            patterns = [cell.replace("\\|", "|") or "^$" for cell in cells[1:]]
            rows[cells[0]] = (patterns[0], patterns[1], patterns[2])
    return rows


class Users:
    """Users of a virtual host with so many rights, and commands that run as them."""

    def __init__(self, desk: Desk, broker: Broker, vhost: Vhost) -> None:
        self.desk, self.broker, self.vhost = desk, broker, vhost
        self.made: list[str] = []

    def url(self, permissions: tuple[str, str, str], queue: str) -> str:
        name = f"{self.vhost.name}-{len(self.made)}"
        self.broker.manage("PUT", f"users/{name}", {"password": "secret", "tags": ""})
        self.made.append(name)
        patterns = [pattern.replace("NAME", re.escape(queue)) for pattern in permissions]
        self.broker.manage(
            "PUT",
            f"permissions/{self.vhost.name}/{name}",
            dict(zip(("configure", "write", "read"), patterns, strict=True)),
        )
        host = urlsplit(self.vhost.url).netloc.rpartition("@")[2]
        return f"amqp://{name}:secret@{host}/{self.vhost.name}"

    def run(self, permissions: tuple[str, str, str], *arguments: str) -> Result:
        queue = arguments[2] if arguments[0] == "dead" else arguments[1]
        return self.desk.run(*arguments, WORKQUEUE_URL=self.url(permissions, queue))

    def close(self) -> None:
        for name in self.made:
            self.broker.manage("DELETE", f"users/{name}")


@pytest.fixture
def users(desk: Desk, broker: Broker, vhost: Vhost) -> Iterator[Users]:
    users = Users(desk, broker, vhost)
    yield users
    users.close()


COMMANDS = {
    "send": [["send", "jobs", "x"]],
    "send with a delay": [["send", "jobs", "x", "--delay", "0.5s"]],
    "work": [["work", "jobs", "tasks:handle", "--until-empty", "--max-attempts", "1"]],
    "work with retries that wait": [
        ["work", "jobs", "tasks:handle", "--until-empty", "--max-attempts", "2", "--backoff", "1s"]
    ],
    "look: status, watch, peek, dead list": [
        ["status", "jobs"],
        ["peek", "jobs"],
        ["dead", "list", "jobs"],
    ],
    "purge, dead drop": [["purge", "jobs", "--yes"], ["dead", "drop", "jobs", "--all", "--yes"]],
    "dead requeue": [["dead", "requeue", "jobs", "--all", "--yes"]],
    "declare": [["declare", "fresh"]],
    "delete": [["delete", "fresh", "--yes"]],
    "migrate": [["migrate", "jobs", "--type", "classic", "--yes", "--force"]],
}


@pytest.mark.rabbitmq("3.10", "4.0", "4.3")
def test_the_least_permissions(desk: Desk, users: Users, client: ForeignClient) -> None:
    """Each row of the table is enough for what it is for, once everything is there."""
    table = least_permissions()
    assert list(table) == list(COMMANDS)
    desk.run("declare", "jobs")
    desk.send("jobs", "first", "fail")
    assert desk.run("send", "jobs", "later", "--delay", "3s").code == 0
    for purpose, commands in COMMANDS.items():
        for command in commands:
            if command[0] == "dead":
                desk.send("jobs", "fail")
                desk.run("work", "jobs", "tasks:handle", "--until-empty", "--max-attempts", "1")
            result = users.run(table[purpose], *command)
            assert result.code == 0, (purpose, command, result.err)
            if purpose.startswith("work"):
                assert "0 done" not in result.err
                assert waits(client, "jobs.dead") > 0
                assert "not safe" not in result.err
                desk.run("purge", "jobs.dead", "--yes")
                desk.send("jobs", "second", "fail")


@pytest.mark.parametrize(
    ("command", "missing", "needed"),
    [
        (["send", "nowhere", "x"], None, "configure nowhere"),
        (["work", "nowhere", "tasks:handle"], None, "configure nowhere"),
        (["work", "jobs", "tasks:handle"], without_queue("jobs.dead"), "configure jobs.dead"),
        (["send", "jobs", "x"], PARTS["our binding"], "write jobs"),
        (["send", "jobs", "x"], PARTS["ours"], "configure workqueue"),
        (
            ["send", "jobs", "x", "--delay", "1s"],
            PARTS["queue 2"],
            "configure workqueue.delay.2",
        ),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_permission_that_is_missing_is_named(
    desk: Desk,
    users: Users,
    client: ForeignClient,
    command: list[str],
    missing: Deletion | None,
    needed: str,
) -> None:
    """Exit code 77 and one line, with what to type next; and not only after the timeout."""
    assert desk.run("send", "jobs", "x", "--delay", "1s").code == 0
    if missing:
        missing(client.channel)
    began = time.monotonic()
    result = users.run(("^$", r"^(workqueue($|\.)|amq\.default$)", ".*"), *command)
    assert result.code == 77, result.err
    assert needed in result.err
    assert len([line for line in result.err.splitlines() if line[:8] != "working "]) == 2
    assert time.monotonic() - began < 20, "it waited out the timeout of 30 s"


@pytest.mark.parametrize(
    ("command", "permissions", "needed"),
    [
        (["send", "jobs", "x"], ("^$", "^$", ".*"), "write workqueue"),
        (
            ["send", "jobs", "x", "--delay", "1s"],
            ("^$", "^(workqueue|jobs)$", ".*"),
            "write workqueue.delay.3",
        ),
        (["send", "jobs", "x", "--delay", "1s"], ("^$", "^workqueue", "^$"), "read workqueue.due"),
        (["work", "jobs", "tasks:handle"], (".*", ".*", "^$"), "read access to queue 'jobs'"),
        (["peek", "jobs"], (".*", ".*", "^$"), "read access to queue 'jobs'"),
        (["purge", "jobs", "--yes"], (".*", ".*", "^$"), "read access to queue 'jobs'"),
        (["delete", "jobs", "--yes"], ("^$", ".*", ".*"), "configure access to queue 'jobs'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_less_than_the_least_is_refused_at_once(
    desk: Desk,
    users: Users,
    command: list[str],
    permissions: tuple[str, str, str],
    needed: str,
) -> None:
    """Nobody waits for a permission: a worker that was never let in ends, too."""
    desk.send("jobs", "there")
    assert desk.run("send", "jobs", "later", "--delay", "1s").code == 0
    began = time.monotonic()
    result = users.run(permissions, *command)
    assert result.code == 77, result.err
    assert needed in result.err
    assert time.monotonic() - began < 20


# -- queues of ours on another version -------------------------------------------------------------


def definitions(broker: Broker, vhost: str) -> Any:
    return broker.manage("GET", f"definitions/{vhost}")


@pytest.mark.rabbitmq("3.10")
def test_definitions_survive_an_upgrade(
    desk: Desk, broker: Broker, vhost: Vhost, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    """What is exported on 3.10 is imported on 4.0, exported there, and imported on 4.3: queues of
    all kinds, with what delays and migrations need. Then all of it works."""
    for arguments in (
        ["declare", "quorum"],
        ["declare", "classic", "--type", "classic"],
        ["declare", "bounded", "--max-length", "5", "--ttl", "1h"],
        ["send", "quorum", "x", "--delay", "2s"],
    ):
        assert desk.run(*arguments).code == 0
    client = ForeignClient(broker, vhost)
    client.declare("quorum.migrating", **migration.MARKER_ARGUMENTS)
    client.close()
    exported = definitions(broker, vhost.name)
    for series in ("4.0", "4.3"):
        newer = supply_of(pytestconfig).get(Wanted(series))
        with newer.vhost() as place:
            newer.manage("POST", f"definitions/{place.name}", exported)
            names = {queue["name"] for queue in definitions(newer, place.name)["queues"]}
            assert {"quorum", "classic.dead", "bounded", "workqueue.delay.4"} <= names
            exported = definitions(newer, place.name)
            newer.manage("DELETE", f"queues/{place.name}/quorum.migrating")
            for queue in ("quorum", "classic", "bounded"):
                folder = tmp_path / f"{series}-{queue}"
                folder.mkdir()
                there = Desk(folder, place.url)
                assert there.run("declare", queue).code == 0
                assert there.run("send", queue, "x").code == 0
                assert there.run("send", queue, "later", "--delay", "0.5s").code == 0
                worked = there.run("work", queue, "tasks:handle", "-n", "2")
                assert worked.code == 0
                assert "2 done" in worked.err
                there.close()


@pytest.mark.rabbitmq("4.0")
def test_a_classic_queue_of_version_0_2(desk: Desk, client: ForeignClient) -> None:
    """Made with an acknowledgement timeout, which we do not give it any more: it is taken as it
    is, with options and without."""
    client.declare(
        "old",
        x_queue_type="classic",
        x_dead_letter_exchange="",
        x_dead_letter_routing_key="old.dead",
        x_max_priority=9,
        x_consumer_timeout=NO_TIMEOUT,
    )
    for arguments in (
        ["declare", "old"],
        ["declare", "old", "--type", "classic"],
        ["send", "old", "x"],
        ["work", "old", "tasks:handle", "-n", "1"],
    ):
        assert desk.run(*arguments).code == 0
