"""workqueue doctor on a real RabbitMQ: each check finds what is wrong; looking makes nothing."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.foreign import ForeignClient
from tests.integration.programs import Desk, Result
from tests.integration.supply import free_port


@pytest.fixture
def desk(tmp_path: Path, vhost: Vhost, broker: Broker) -> Iterator[Desk]:
    desk = Desk(tmp_path, vhost.url, {"WORKQUEUE_MANAGEMENT_URL": broker.management_url})
    yield desk
    desk.close()


@pytest.fixture
def client(broker: Broker, vhost: Vhost) -> Iterator[ForeignClient]:
    client = ForeignClient(broker, vhost)
    yield client
    client.close()


def states(result: Result) -> dict[str, str]:
    """The gravest state of each check."""
    order = ["ok", "warn", "fail"]
    found: dict[str, str] = {}
    for row in result.json:
        assert row["state"] == "ok" or row["command"], row
        found[row["check"]] = max(found.get(row["check"], "ok"), row["state"], key=order.index)
    assert result.code == int("fail" in found.values())
    return found


def told(result: Result, check: str) -> str:
    return "; ".join(
        row["found"] for row in result.json if row["check"] == check and row["state"] != "ok"
    )


def test_all_is_well(desk: Desk, broker: Broker) -> None:
    """Of a queue of ours; and of all that can be listed, if none is named."""
    desk.send("q", "x")
    assert desk.run("send", "q", "x", "--delay", "1h").code == 0  # the ladder is there as well
    for names in (["q"], []):
        found = states(desk.run("doctor", *names, "--json", "--timeout", "2h"))
        del found["version"]  # what is in support changes with the year
        assert set(found.values()) == {"ok"}
        checks = {"login", "tls", "alarms", "policies", "clock", "permissions"}
        assert checks | {"queue", "dead letters", "ack timeout"} <= found.keys()
    version = told(desk.run("doctor", "--json"), "version")
    assert ("can lose messages" in version) == (broker.version == "4.0.5")


def test_what_takes_the_management_api_is_not_called_well(desk: Desk) -> None:
    desk.send("q", "x")
    result = desk.run("doctor", "q", "--json", WORKQUEUE_MANAGEMENT_URL="")
    found = states(result)
    for check in ("alarms", "policies", "clock", "permissions"):
        assert found[check] == "warn"
        assert "management API" in told(result, check)
    # From refusals alone:
    assert found["queue"] == found["dead letters"] == found["ack timeout"] == "ok"
    assert states(desk.run("doctor", "--json", WORKQUEUE_MANAGEMENT_URL=""))["queues"] == "warn"


def test_looking_makes_nothing(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    kinds = ("queues", "exchanges", "bindings", "policies", "parameters")

    def things() -> dict[str, list[str]]:
        columns = "?columns=name,source,destination,arguments"
        return {
            kind: sorted(map(str, broker.manage("GET", f"{kind}/{vhost.name}{columns}")))
            for kind in kinds
        }

    before = things()
    result = desk.run("doctor", "q", "--json", "--timeout", "2h")
    assert "does not exist" in told(result, "queue")
    assert states(desk.run("doctor", "q", "--json", WORKQUEUE_MANAGEMENT_URL=""))["queue"] == "warn"
    assert things() == before
    desk.send("q", "x")
    before = things()
    desk.run("doctor", "q", "--json")
    desk.run("doctor", "q", "--json", WORKQUEUE_MANAGEMENT_URL="")
    assert things() == before
    assert desk.status("q")["ready"] == 1


@pytest.mark.parametrize("asked", [True, False], ids=["management", "refusals"])
def test_a_queue_that_loses(desk: Desk, client: ForeignClient, asked: bool) -> None:
    """Bounded without back-pressure, dead letters into nowhere, a dead-letter queue that eats."""
    without = {} if asked else {"WORKQUEUE_MANAGEMENT_URL": ""}
    client.declare("q", x_max_length=5)
    result = desk.run("doctor", "q", "--json", **without)
    assert states(result)["queue"] == states(result)["dead letters"] == "fail"
    assert "drops confirmed messages" in told(result, "queue")
    assert "no dead-letter exchange" in told(result, "queue")
    assert "does not exist" in told(result, "dead letters")
    client.declare("q.dead", x_queue_type="quorum")
    result = desk.run("doctor", "q", "--json", **without)
    assert "after it was looked at 21 times" in told(result, "dead letters")


def test_an_acknowledgement_timeout(desk: Desk, client: ForeignClient) -> None:
    client.declare("q", x_queue_type="quorum", x_consumer_timeout=120_000)
    result = desk.run("doctor", "q", "--json", "--timeout", "2h")
    assert states(result)["ack timeout"] == "fail"
    assert (
        told(result, "ack timeout") == "tasks are taken away after 120 s, and yours may run 7200 s"
    )
    assert states(desk.run("doctor", "q", "--json", "--timeout", "1m"))["ack timeout"] == "ok"


@pytest.mark.rabbitmq("3.10")
def test_an_acknowledgement_timeout_that_only_the_broker_knows(desk: Desk) -> None:
    desk.send("q", "x")
    result = desk.run("doctor", "q", "--json", "--timeout", "2h")
    assert states(result)["ack timeout"] == "warn"
    assert "yours may run 7200 s" in told(result, "ack timeout")


def test_policies_that_change_our_queues(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    desk.send("q", "x")
    assert desk.run("send", "q", "x", "--delay", "1h").code == 0

    def rule(name: str, pattern: str, **definition: Any) -> None:
        keys = {key.replace("_", "-"): value for key, value in definition.items()}
        body = {"pattern": pattern, "definition": keys, "apply-to": "queues"}
        broker.manage("PUT", f"policies/{vhost.name}/{name}", body)

    rule("a", "^q$", expires=600_000)
    rule("b", r"^q\.dead$", delivery_limit=3)
    rule("c", r"^workqueue\.delay", message_ttl=600_000)
    result = desk.run("doctor", "q", "--json")
    assert "after 600 s without use" in told(result, "queue")
    assert "delivery limit 3" in told(result, "dead letters")
    assert "policy c sets message-ttl" in told(result, "policies")
    assert set(map(states(result).get, ("queue", "dead letters", "policies"))) == {"fail"}


def test_alarms(desk: Desk, broker: Broker) -> None:
    broker.set_memory_alarm()
    result = desk.run("doctor", "--json")
    assert states(result)["alarms"] == "fail"
    assert "memory alarm: senders are blocked" in told(result, "alarms")
    broker.clear_memory_alarm()


def test_permissions(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """Of a user who may not write; and what he himself may find out about that."""
    user = f"ada-{vhost.name}"
    broker.manage("PUT", f"users/{user}", {"password": "s3cret", "tags": "monitoring"})
    rule = {"configure": "^(workqueue|q)", "write": "", "read": ".*"}
    broker.manage("PUT", f"permissions/{vhost.name}/{user}", rule)
    try:
        parts = urlsplit(vhost.url)
        url = parts._replace(netloc=f"{user}:s3cret@{parts.hostname}:{parts.port}").geturl()
        result = desk.run("doctor", "q", "--json", WORKQUEUE_URL=url)
        assert states(result)["permissions"] == "fail"
        assert f"{user} may not write workqueue" in told(result, "permissions")
        api = urlsplit(broker.management_url)
        own = api._replace(netloc=f"{user}:s3cret@{api.hostname}:{api.port}").geturl()
        result = desk.run("doctor", "q", "--json", WORKQUEUE_URL=url, WORKQUEUE_MANAGEMENT_URL=own)
        assert states(result)["permissions"] == "warn"
        assert "administrator" in told(result, "permissions")
        assert "s3cret" not in result.out + result.err
    finally:
        broker.manage("DELETE", f"users/{user}")


def test_clocks(desk: Desk, broker: Broker) -> None:
    with late_clock(broker, by=3600) as url:
        result = desk.run("doctor", "--json", WORKQUEUE_MANAGEMENT_URL=url)
    assert states(result)["clock"] == "warn"
    assert "ahead of the broker's" in told(result, "clock")


def test_a_queue_without_its_binding(desk: Desk, client: ForeignClient) -> None:
    desk.send("q", "x")
    client.channel.queue_unbind("q", "workqueue", "q")
    result = desk.run("doctor", "q", "--json")
    assert "not bound to the exchange" in told(result, "queue")
    assert desk.run("declare", "q").code == 0
    assert states(desk.run("doctor", "q", "--json"))["queue"] == "ok"


@pytest.mark.parametrize("asked", [True, False], ids=["management", "AMQP alone"])
def test_parts_of_the_delays(desk: Desk, client: ForeignClient, asked: bool) -> None:
    """Each that is missing is named, with the message that makes it again."""
    more = {} if asked else {"WORKQUEUE_MANAGEMENT_URL": ""}
    assert desk.run("send", "q", "x", "--delay", "1s").code == 0
    assert states(desk.run("doctor", "q", "--json", **more))["delays"] == "ok"
    # Were it due while parts are missing, it would be undeliverable, and the doctor would say so.
    desk.until(lambda: desk.status("q")["ready"] == 1, "the delayed message")
    client.channel.queue_delete("workqueue.delay.1")
    client.channel.exchange_delete("workqueue.due")
    client.channel.exchange_unbind("workqueue.delay.1", "workqueue.delay.2", "*." * 22 + "0.#")
    result = desk.run("doctor", "q", "--json", **more)
    for missing in ("queue workqueue.delay.1 does not exist", "exchange workqueue.due does not"):
        assert missing in told(result, "delays")
    inner = "exchange workqueue.delay.2 is not bound to workqueue.delay.1"
    assert (inner in told(result, "delays")) == asked
    assert states(result)["delays"] == "fail"
    command = next(row["command"] for row in result.json if row["check"] == "delays")
    assert command == "workqueue send q BODY --delay 0.8s"
    assert desk.run(*command.split()[1:]).code == 0
    assert states(desk.run("doctor", "q", "--json", **more))["delays"] == "ok"


def test_an_alternate_exchange(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    desk.send("q", "x")
    definition = {"alternate-exchange": "amq.fanout"}
    body = {"pattern": ".*", "definition": definition, "apply-to": "all"}
    broker.manage("PUT", f"policies/{vhost.name}/catch", body)
    result = desk.run("doctor", "q", "--json")
    assert states(result)["exchanges"] == "warn"
    expected = "exchange workqueue has the alternate exchange amq.fanout (policy catch)"
    assert expected in told(result, "exchanges")


def test_refused_and_unreachable(desk: Desk, broker: Broker, vhost: Vhost) -> None:
    """One line each, and no password; another host that answers makes it a warning."""
    host, port = broker.address
    nobody = free_port()
    result = desk.run(
        "doctor", "--json", WORKQUEUE_URL=f"amqp://guest:wr0ng@{host}:{port}/{vhost.name}"
    )
    assert states(result)["login"] == "fail"
    assert "wr0ng" not in result.out + result.err
    result = desk.run("doctor", "--json", WORKQUEUE_URL=f"amqp://guest@{host}:{port}/nope")
    assert "vhost nope not found" in told(result, "login")
    result = desk.run("doctor", "--json", WORKQUEUE_URL=f"amqp://guest@{host}:{nobody}")
    assert "Connection refused" in told(result, "reach")
    assert states(result)["reach"] == "fail"
    url = f"amqp://guest@{host}:{nobody},{host}:{port}/{vhost.name}"
    found = states(desk.run("doctor", "--json", WORKQUEUE_URL=url))
    assert (found["reach"], found["login"]) == ("warn", "ok")
    result = desk.run("doctor", "--json", WORKQUEUE_MANAGEMENT_URL=f"http://{host}:{nobody}")
    assert states(result)["management"] == "fail"


@contextmanager
def late_clock(broker: Broker, by: float) -> Iterator[str]:
    """The management API as it would be if the broker's clock were late."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            where = f"http://{urlsplit(broker.management_url).netloc.rpartition('@')[2]}{self.path}"
            login = {"Authorization": self.headers["Authorization"]}
            with urllib.request.urlopen(urllib.request.Request(where, headers=login)) as answer:
                body = answer.read()
                date = parsedate_to_datetime(answer.headers["Date"]) - timedelta(seconds=by)
            self.send_response_only(200)
            self.send_header("Date", format_datetime(date, usegmt=True))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://guest:guest@127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
