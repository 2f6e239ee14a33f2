"""One fault at a time, at the worst moment, and what a sender or a worker makes of it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.programs import PATIENCE, Desk, children_of
from workqueue import BrokerBlocked, Producer, Unconfirmed, connect
from workqueue.cli.torture.proxy import Proxy
from workqueue.testing import eventually

HEARTBEAT = 2


@pytest.fixture
def desk(tmp_path: Path, vhost: Vhost) -> Iterator[Desk]:
    desk = Desk(tmp_path, vhost.url)
    yield desk
    desk.close()


@pytest.fixture
def way_out(broker: Broker) -> Iterator[Proxy]:
    """Another way to the broker, closed at first: of several hosts, any may be tried first."""
    with Proxy(*broker.address) as way_out:
        way_out.refuse()
        yield way_out


@pytest.fixture
def detour(vhost: Vhost, proxy: Proxy, way_out: Proxy) -> str:
    """By way of the proxy, or of the other one."""
    url = proxy.through(vhost.url).replace(
        f"127.0.0.1:{proxy.port}", f"127.0.0.1:{proxy.port},127.0.0.1:{way_out.port}"
    )
    return f"{url}?heartbeat={HEARTBEAT}"


STALLED = {
    "stalled": Proxy.stall,  # no packets and no close
    "half-open": Proxy.drop,  # one end has gone, and the other does not hear of it
}
silences = pytest.mark.parametrize("fall_silent", STALLED.values(), ids=STALLED.keys())


# -- connections that fall silent --------------------------------------------------------------


@pytest.mark.timeout(300)
@silences
def test_a_worker_that_hears_nothing(
    desk: Desk, proxy: Proxy, way_out: Proxy, detour: str, fall_silent: Callable[[Proxy], None]
) -> None:
    """It notices within two heartbeats and goes on through a new connection; meanwhile its task
    is done by another."""
    desk.send("q", "once 60")
    worker = desk.work("q", WORKQUEUE_URL=detour)
    desk.until(lambda: desk.bodies("start"), "the task to start")
    other = desk.work("q")
    began = time.monotonic()
    fall_silent(proxy)
    desk.until(lambda: worker.says("may be done twice"), "the worker to notice")
    noticed = time.monotonic() - began
    desk.until(lambda: desk.bodies("done"), "the task to be done")
    assert {entry["worker"] for entry in desk.journal("done")} == {other.pid}
    other.kill()
    way_out.heal()
    desk.send("q", "sleep 0 after")
    # It may try the silent way a few times more, each with a pause before it.
    desk.until(lambda: "sleep 0 after" in desk.bodies("done"), "it to go on", within=2 * PATIENCE)
    worker.send(signal.SIGTERM)
    result = worker.wait()
    assert result.code == 0, result.err
    assert noticed < 2 * HEARTBEAT + 10, "by its heartbeats; the rest is for a slow machine"
    assert {entry["attempt"] for entry in desk.journal()} == {1}
    assert desk.journal("done")[-1]["worker"] == worker.pid


@pytest.mark.rabbitmq("4.3")
@silences
def test_a_sender_that_hears_nothing(
    vhost: Vhost, proxy: Proxy, way_out: Proxy, detour: str, fall_silent: Callable[[Proxy], None]
) -> None:
    """It places its message through a new connection, in the time that it has."""
    with connect(detour) as remote, Producer(remote.queue("q"), timeout=15) as producer:
        producer.send("before")
        fall_silent(proxy)
        way_out.heal()
        producer.send("after")
    with connect(vhost.url) as remote:
        assert remote.queue("q").stats().ready in (2, 3)  # it may have been sent twice


@pytest.mark.rabbitmq("4.3")
def test_a_confirm_that_never_comes(vhost: Vhost, proxy: Proxy) -> None:
    """The sender gives up after its timeout, and says that nobody knows."""
    with (
        connect(proxy.through(vhost.url)) as remote,
        Producer(remote.queue("q"), timeout=60) as producer,
    ):
        producer.send("before")
        producer.timeout = 4
        proxy.stall("down")
        began = time.monotonic()
        with pytest.raises(Unconfirmed):
            producer.send("nobody knows")
        assert time.monotonic() - began >= 3.9
        proxy.heal()
        producer.timeout = 60
        producer.send("after")
    with connect(vhost.url) as remote:
        assert remote.queue("q").stats().ready in range(3, 6)


# -- processes that freeze ---------------------------------------------------------------------


def test_a_worker_that_was_frozen_acknowledges_in_vain(desk: Desk) -> None:
    """For longer than its heartbeats allow: its tasks are others'. When it wakes up they are done
    in its children, and what it says of them harms nobody."""
    url = f"{desk.url}?heartbeat={HEARTBEAT}"
    desk.send("q", "once 5 a", "once 5 b")  # its children may start one after the other
    frozen = desk.work("q", "-c", "2", WORKQUEUE_URL=url)
    desk.until(lambda: len(desk.bodies("start")) == 2, "two tasks to start")
    frozen.send(signal.SIGSTOP)
    desk.until_done(2)  # the children run on, and nobody is told
    other = desk.work("q", "-c", "2")
    desk.until_done(4)
    # Tags that the frozen one still holds are given out again on its next channel.
    desk.send("q", "sleep 1 c", "sleep 1 d")
    desk.until(lambda: len(desk.bodies("start")) == 6, "two more to start")
    frozen.send(signal.SIGCONT)
    desk.until(lambda: frozen.says("trying again") or frozen.says("may be done twice"), "it to see")
    desk.send("q", *(f"sleep 0 {n}" for n in range(20)))
    desk.until(lambda: len(set(desk.bodies("done"))) == 24, "all to be done")
    for worker in (frozen, other):
        worker.send(signal.SIGTERM)
        result = worker.wait()
        assert result.code == 0, result.err
        assert "Traceback" not in result.err
    assert desk.status("q")["ready"] == 0
    done = desk.journal("done")
    assert {entry["body"] for entry in done if entry["redelivered"]} >= {"once 5 a", "once 5 b"}
    assert {entry["attempt"] for entry in done} == {1}


# -- a broker that goes while somebody sends ---------------------------------------------------


def sending(url: str, count: int, placed: list[str]) -> threading.Thread:
    """A thread that sends `count` messages one by one."""

    def send() -> None:
        with connect(url) as remote, Producer(remote.queue("q"), timeout=90) as producer:
            for number in range(count):
                body = f"sleep 0 {number}"
                producer.send(body)
                placed.append(body)

    return threading.Thread(target=send)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_broker_that_goes_at_a_third_and_at_a_half(desk: Desk, broker: Broker, how: str) -> None:
    """By SIGKILL, or in good order: all that was sent is handled."""
    count, placed = 900, list[str]()
    sender = sending(desk.url, count, placed)
    sender.start()
    for part in (count // 3, count // 2):
        eventually(lambda part=part: len(placed) >= part, within=PATIENCE)
        if how == "killed":
            broker.kill()
            broker.start()
        else:
            broker.stop_app()
            broker.start_app()
    sender.join(2 * PATIENCE)
    assert not sender.is_alive()
    assert len(placed) == count
    assert desk.drain("q", "-c", "4").code == 0
    assert set(desk.bodies("done")) == set(placed)


def test_a_sender_under_a_memory_alarm(
    vhost: Vhost, broker: Broker, desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    """It says at once that it waits, and gives up with BrokerBlocked when its time is up; after
    the alarm all is there that was reported as sent."""
    with connect(vhost.url) as remote, Producer(remote.queue("q"), timeout=6) as producer:
        producer.send("sleep 0 before")
        broker.set_memory_alarm()
        began = time.time()
        with pytest.raises(BrokerBlocked):
            producer.send("sleep 0 gave-up")
        assert time.time() - began >= 5.9
        told, *_ = [record for record in caplog.records if "waiting" in record.message]
        assert told.created - began < 1 + 2, "the rest is for a slow machine"
        waiting = desk.start("send", "q", "sleep 0 waited", "--timeout", "90s")
        desk.until(lambda: waiting.says("waiting"), "it to say so")
        said = waiting.err.read_text()
        assert "memory or disk alarm" in said
        broker.clear_memory_alarm()
        assert waiting.wait().code == 0
        producer.send("sleep 0 after")
    assert desk.drain("q").code == 0
    assert set(desk.bodies("done")) >= {"sleep 0 before", "sleep 0 waited", "sleep 0 after"}


# -- tasks that eat all memory -----------------------------------------------------------------

HUNGRY = """
import os, resource
import tasks


def handle(job):
    tasks.note(job, "begin")
    if job.body == b"hungry":
        limit = 1 << 30  # bytes: as a container's limit, but for this process alone
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            eaten = bytearray(4 << 30)
        except MemoryError:
            os.abort()  # as the kernel would: no exception that anybody could catch
    tasks.handle(job)
"""


def test_a_task_that_eats_all_memory(tmp_path: Path) -> None:
    """It ends with its child: a failed attempt, and its neighbours do not notice."""
    desk = Desk(tmp_path, f"sqlite:///{tmp_path / 'jobs.db'}")
    (desk.folder / "hungry.py").write_text(HUNGRY)
    healthy = [f"sleep 0.05 {n}" for n in range(8)]
    desk.send("q", "hungry", *healthy)
    limits = ("--max-attempts", "2", "--backoff", "50ms..100ms")
    worker = desk.start("work", "q", "hungry:handle", "-c", "2", "--until-empty", *limits)
    result = worker.wait()
    assert result.code == 0, result.err
    assert sorted(desk.bodies("done")) == sorted(healthy)
    assert {entry["attempt"] for entry in desk.journal("done")} == {1}
    [letter] = desk.run("dead", "list", "q", "--json").json
    assert (letter["body"], letter["attempt"]) == ("hungry", 2)
    assert "SIGABRT" in letter["reason"]
    assert not children_of(worker.pid)
