"""Scraped over HTTP and read with the official client's own parser."""

from __future__ import annotations

import platform
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from workqueue_prometheus import PrometheusMiddleware

import workqueue
from workqueue import (
    Broker,
    ConfigError,
    Job,
    Message,
    NotSent,
    Producer,
    Queue,
    Reject,
    RetryPolicy,
    Worker,
)
from workqueue.errors import BrokerBlocked
from workqueue.middleware import load_middleware
from workqueue.serving import MOST_CONNECTIONS
from workqueue.testing import FaultyTransport, eventually
from workqueue.testing.faulty import Fault
from workqueue.transports.memory import MemoryTransport


@pytest.fixture
def queue() -> Queue:
    return Broker(MemoryTransport()).queue("jobs", retry=RetryPolicy(first=0))


@pytest.fixture
def port() -> Iterator[int]:
    """One where only our own server listens: nobody else is given it while the test runs."""
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])


class Scrape:
    """What one look at the endpoint gave: `scrape("name", label="value")`."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        self.types = {family.name: family.type for family in families}
        self.samples = [sample for family in families for sample in family.samples]

    def __call__(self, name: str, **labels: str) -> float | None:
        for sample in self.samples:
            if sample.name == f"workqueue_{name}" and sample.labels == labels:
                return sample.value
        return None


def handle(job: Job[Any]) -> None:
    if job.payload == "bad":
        raise Reject("no good")
    if job.payload == "again" and job.attempt == 1:
        raise LookupError("not yet")


def test_what_a_scraper_sees(queue: Queue, port: int) -> None:
    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=port, registry=registry)
    producer = Producer(queue, middleware=[plugin])
    for payload in ("good", "good", "again"):
        producer.send(payload)
    producer.send("bad", type="invoice")
    worker = Worker(queue, handle, concurrency=2, middleware=[plugin])
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        # Plugins are told of it before the broker is.
        eventually(lambda: (queue.stats().done, queue.stats().dead) == (3, 1), within=20)
        scrape = Scrape(port)
    finally:
        worker.stop()
        thread.join(20)
    assert scrape("messages_sent_total", queue="jobs", outcome="confirmed") == 4
    assert scrape("messages_received_total", queue="jobs") == 5
    done = {"queue": "jobs", "handler": "", "outcome": "done"}
    assert scrape("messages_finished_total", **done) == 3
    assert scrape("messages_finished_total", **OF_DEAD) == 1
    assert scrape("messages_finished_total", **{**done, "outcome": "retry"}) == 1
    assert scrape("process_duration_seconds_count", **done) == 3
    assert scrape("wait_seconds_count", queue="jobs") == 4
    assert scrape("send_duration_seconds_count", queue="jobs") == 4
    assert scrape("in_progress_messages", queue="jobs") == 0
    assert scrape("queue_messages", queue="jobs", state="ready") == 0
    assert scrape("queue_messages", queue="jobs", state="dead") == 1
    assert scrape("queue_workers", queue="jobs") == 1
    assert scrape("queue_oldest_ready_seconds", queue="jobs") is None
    assert scrape("worker_slots", state="free") == 2
    assert scrape("broker_connected") == 1
    assert scrape("broker_blocked") == 0
    here = {"version": workqueue.__version__, "python": platform.python_version()}
    assert scrape("build_info", driver="memory", **here) == 1
    assert scrape.types["workqueue_messages_finished"] == "counter"
    with pytest.raises(OSError, match="refused"):
        Scrape(port)


JOBS = {"queue": "jobs"}
OF_DEAD = {"queue": "jobs", "handler": "other", "outcome": "dead"}


def test_what_was_not_sent_is_counted(queue: Queue) -> None:
    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=0, registry=registry)
    full = queue.broker.queue("full", max_length=1)
    producer = Producer(full, timeout=0.2, middleware=[plugin])
    with pytest.raises(NotSent):
        producer.send_many([1, 2, 3])
    name = "workqueue_messages_sent_total"
    assert registry.get_sample_value(name, {"queue": "full", "outcome": "confirmed"}) == 1
    assert registry.get_sample_value(name, {"queue": "full", "outcome": "refused"}) == 2


def test_a_broker_that_takes_nothing(queue: Queue) -> None:
    """Until it takes something again."""
    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=0, registry=registry)
    message = Message(body=b"", id="a")

    def blocked(_: object) -> None:
        raise NotSent("no", failures=[(message, BrokerBlocked("memory alarm"))])

    with pytest.raises(NotSent):
        plugin.send("jobs", [message], blocked)
    assert registry.get_sample_value("workqueue_broker_blocked") == 1
    plugin.send("jobs", [message], lambda _: None)
    assert registry.get_sample_value("workqueue_broker_blocked") == 0


def test_a_lost_connection(queue: Queue) -> None:
    """It is counted; the slot of the task that is lost is free once the task ends."""
    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=0, registry=registry)
    begun, go_on = threading.Event(), threading.Event()

    def hold(_: Job[Any]) -> None:
        begun.set()
        go_on.wait(20)

    Producer(queue).send("x")
    faulty = FaultyTransport(queue.transport, Fault("receive", 2))
    worker = Worker(Broker(faulty).queue("jobs"), hold, middleware=[plugin])
    thread = threading.Thread(target=worker.run)
    thread.start()
    begun.wait(20)
    name, reason = "workqueue_broker_reconnects_total", {"reason": "ConsumerLost"}
    eventually(lambda: registry.get_sample_value(name, reason) == 1, within=20)
    # The task counts as lost a moment after that.
    gauges = {"workqueue_worker_slots": {"state": "busy"}, "workqueue_in_progress_messages": JOBS}
    eventually(
        lambda: [registry.get_sample_value(*gauge) for gauge in gauges.items()] == [1, 1], within=20
    )
    go_on.set()
    eventually(lambda: queue.stats().done == 1, within=20)
    free = {"state": "free"}
    eventually(lambda: registry.get_sample_value("workqueue_worker_slots", free) == 1, within=20)
    worker.stop()
    thread.join(20)


def test_workers_share_a_registry(queue: Queue) -> None:
    """One after the other, or a worker and a sender: what they count adds up."""
    registry = CollectorRegistry()
    for _ in range(2):
        plugin = PrometheusMiddleware(port=0, registry=registry)
        Producer(queue).send("good")
        Worker(queue, handle, middleware=[plugin]).run(until_empty=True)
    labels = {"queue": "jobs", "handler": "", "outcome": "done"}
    assert registry.get_sample_value("workqueue_messages_finished_total", labels) == 2


def test_a_port_that_is_taken(queue: Queue) -> None:
    """Said before a task is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        plugin = PrometheusMiddleware(port=taken.getsockname()[1], registry=CollectorRegistry())
        with pytest.raises(ConfigError, match="Address already in use"):
            Worker(queue, handle, middleware=[plugin]).run(until_empty=True)


def test_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `--middleware prometheus` does."""
    monkeypatch.setenv("WORKQUEUE_PROMETHEUS_PORT", "0")
    [plugin] = load_middleware(["prometheus"])
    assert isinstance(plugin, PrometheusMiddleware)
    monkeypatch.setenv("WORKQUEUE_PROMETHEUS_PORT", "http")
    with pytest.raises(ConfigError, match="a port is between 0 and 65535"):
        load_middleware(["prometheus"])


def test_silent_clients(queue: Queue, port: int) -> None:
    """However many: a scraper is answered."""
    plugin = PrometheusMiddleware(port=port, registry=CollectorRegistry())
    worker = Worker(queue, handle, middleware=[plugin])
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        eventually(lambda: plugin.server is not None)
        with ExitStack() as clients:
            for _ in range(5 * MOST_CONNECTIONS):
                clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            assert Scrape(port)("worker_slots", state="free") == 1
    finally:
        worker.stop()
        thread.join(20)


def test_strangers_make_no_series(queue: Queue) -> None:
    """A name that is no task's own counts under one label, however many there are."""

    @queue.task
    def welcome() -> None:
        pass

    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=0, registry=registry)
    welcome.send()
    with Producer(queue) as producer:
        for number in range(20):
            producer.send({}, type=f"made-up-{number}")
        producer.send({})
    Worker(queue, middleware=[plugin]).run(max_messages=22)
    handlers = {
        sample.labels["handler"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "workqueue_messages_finished_total"
    }
    assert handlers == {"welcome": 1, "other": 20, "": 1}


@pytest.mark.parametrize(
    ("ago", "counted"),
    [(5.0, 1), (-5.0, 1), (364 * 86_400.0, 1), (400 * 86_400.0, 0), (-3_600.0, 0)],
)
def test_a_wait_that_is_none(queue: Queue, ago: float, counted: int) -> None:
    """A sender without a clock says 1970, and one that counts in milliseconds a far future."""
    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=0, registry=registry)
    moments = [0.0, 1.7e12, time.time() - ago]
    queue.declare()
    with closing(queue.transport.publisher()) as publisher:
        messages = [Message(body=b"x", sent_at=moment) for moment in moments]
        publisher.publish(queue.name, messages, 1.0)
    Worker(queue, lambda job: None, middleware=[plugin]).run(max_messages=len(moments))
    assert (registry.get_sample_value("workqueue_wait_seconds_count", JOBS) or 0) == counted
    total = registry.get_sample_value("workqueue_wait_seconds_sum", JOBS) or 0.0
    assert 0 <= total <= max(ago, 0.0) + 30


def test_the_alerts_use_what_there_is(queue: Queue) -> None:
    """Each metric that a rule names is one of ours; and no rule rests on the age of the oldest
    message alone, which RabbitMQ does not tell."""
    rules = (Path(__file__).parents[1] / "alerts.yml").read_text()
    expressions = re.findall(r"expr: (.*?)(?=\n +(?:for|annotations):)", rules, re.DOTALL)
    assert len(expressions) == 3
    registry = CollectorRegistry()
    plugin = PrometheusMiddleware(port=0, registry=registry)
    known: set[str] = set()
    worker = Worker(
        queue,
        lambda job: known.update(family.name for family in registry.collect()),
        middleware=[plugin],
    )
    Producer(queue).send("x")
    worker.run(until_empty=True)
    for expression in expressions:
        names = {name.removesuffix("_total") for name in re.findall(r"workqueue_\w+", expression)}
        assert names <= known
        assert names - {OLDEST}, expression


OLDEST = "workqueue_queue_oldest_ready_seconds"
