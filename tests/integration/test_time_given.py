"""A time that the user gives bounds everything that is done in it, whatever the network does."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.programs import Desk
from workqueue import Producer, connect
from workqueue.cli.torture.proxy import Direction, Link, Proxy
from workqueue.errors import WorkqueueError
from workqueue.transports.rabbitmq import publisher

SLACK = 1.0
"""Seconds. What a slow machine may add; what was unbounded took three seconds more, and up."""


class Stalling(Proxy):
    """Falls silent, both ways, after `limit` bytes from the broker."""

    limit = 1_000_000

    def _allowed(self, link: Link, way: Direction, data: bytes) -> bytes:
        left = self.limit - self.bytes["down"]
        if way == "down" and len(data) >= left:
            self.stall()
            data = data[: max(left, 0)]
        return super()._allowed(link, way, data)


@pytest.fixture
def stalling(broker: Broker) -> Iterator[Stalling]:
    with Stalling(*broker.address) as proxy:
        yield proxy


@pytest.fixture
def desk(tmp_path: Path, vhost: Vhost) -> Iterator[Desk]:
    desk = Desk(tmp_path, vhost.url)
    yield desk
    desk.close()


def seconds(work: Callable[[], object]) -> float:
    began = time.monotonic()
    with suppress(WorkqueueError):
        work()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("idle", "timeout"), [(True, 1.0), (True, 2.0), (True, 4.0), (False, 2.0), (False, 4.0)]
)
def test_a_connection_that_died_unseen_leaves_time_for_another(
    proxy: Proxy, vhost: Vhost, timeout: float, idle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a NAT that forgot it: the send is done, within its time."""
    monkeypatch.setattr(publisher, "IDLE", 0.0 if idle else 3600.0)
    queue = connect(proxy.through(vhost.url)).queue("q")
    queue.declare()
    with Producer(queue, timeout=timeout) as producer:
        producer.send("before")
        time.sleep(2 * publisher.JUST_USED)  # else the connection is not looked at
        proxy.forget()
        assert seconds(lambda: producer.send("after", id="after")) < timeout
    assert "after" in {lent.message.id for lent in queue.transport.peek("q", 10)}


@pytest.mark.timeout(240)
@pytest.mark.rabbitmq("4.3")
def test_a_broker_that_falls_silent_at_any_moment(stalling: Stalling, vhost: Vhost) -> None:
    """In the greeting, while queues are made, delays built, messages confirmed: in all of it."""
    url = stalling.through(vhost.url)

    def send_to(name: str) -> None:
        with Producer(connect(url).queue(name), timeout=2) as producer:
            producer.send("x", delay=5, priority=9)

    send_to("first")
    whole = stalling.bytes["down"]
    for step in range(12):
        stalling.limit = stalling.bytes["down"] + whole * step // 12
        # Twice something may have been made, and was waited for: see `settle`.
        assert seconds(lambda: send_to(f"q{step}")) < 2 + 2 * 1.2 + SLACK  # noqa: B023
        stalling.limit = Stalling.limit
        stalling.reset_all()
        stalling.heal()


def test_threads_that_share_a_sender_wait_no_longer_than_one(proxy: Proxy, vhost: Vhost) -> None:
    """Each has its own time, which begins when it calls and not when its turn comes."""
    queue = connect(proxy.through(vhost.url)).queue("q")
    took: list[float] = []
    with Producer(queue, timeout=3) as producer:
        producer.send("before")
        proxy.stall()
        send = lambda: took.append(seconds(lambda: producer.send("x")))  # noqa: E731
        threads = [threading.Thread(target=send) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(took) == 8
    assert max(took) < 3 + SLACK


def test_a_silent_broker_and_one_that_answers(proxy: Proxy, vhost: Vhost, broker: Broker) -> None:
    """Of several hosts each has its share of the time."""
    host, port = broker.address
    proxy.accept_only()
    login, _, rest = vhost.url.partition("@")
    url = f"{login}@127.0.0.1:{proxy.port},{host}:{port}/{rest.partition('/')[2]}"
    for _ in range(4):  # the order of the hosts is random
        queue = connect(url).queue("q")
        with Producer(queue, timeout=4) as producer:
            began = time.monotonic()
            producer.send("x")
            assert time.monotonic() - began < 4 + 1.2  # the first one makes the queue


@pytest.mark.parametrize("fault", ["mute", "stalled"])
def test_commands_end_by_themselves(desk: Desk, proxy: Proxy, vhost: Vhost, fault: str) -> None:
    """With the time they were given, or that of one connection."""
    (proxy.accept_only if fault == "mute" else proxy.stall)()
    url = proxy.through(vhost.url)
    commands = {
        ("send", "q", "x", "--timeout", "2s"): 2,
        ("send", "q", "x", "--timeout", "2s", "--delay", "5s"): 2,
        ("status", "q"): 5,
        ("peek", "q"): 5,
        ("dead", "list", "q"): 5,
        ("doctor", "q"): 5,
    }
    for command, limit in commands.items():
        began = time.monotonic()
        result = desk.run(*command, WORKQUEUE_URL=url)
        assert time.monotonic() - began < limit + 2 * SLACK, command
        assert result.code == (1 if command[0] == "doctor" else 69), result


def test_a_worker_leaves_a_silent_broker_in_time(desk: Desk, proxy: Proxy, vhost: Vhost) -> None:
    """Its grace, and the few seconds that a broker has for the last copies."""
    desk.send("q", "sleep 300")
    worker = desk.work("q", "--grace", "1s", WORKQUEUE_URL=proxy.through(vhost.url))
    desk.until(lambda: desk.bodies("start"), "the task")
    proxy.stall()
    began = time.monotonic()
    worker.send(signal.SIGTERM)
    assert worker.wait().code == 0
    assert time.monotonic() - began < 1 + 5 + 2 * SLACK


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_sends_while_a_thread_of_its_parent_makes_delays(vhost: Vhost) -> None:
    """What the thread is in the middle of does not concern the child."""
    queue = connect(vhost.url).queue("q")
    with Producer(queue) as producer:
        producer.send("before")
        with queue.transport.delays.lock:  # type: ignore[attr-defined]
            pid = os.fork()
            if pid == 0:
                try:
                    signal.alarm(30)
                    producer.send("later", delay=2, priority=9)
                    with Producer(connect(vhost.url).queue("q")) as own:
                        own.send("later", delay=2)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        producer.send("after")
    assert queue.stats().ready == 2
