"""Metrics of workqueue's workers and senders for Prometheus.

Names and labels keep Prometheus's rules: base units, `_total` for counters, no ids and no host
names. All is counted in the process of the worker or sender, never in a worker's children.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.registry import Collector

import workqueue
from workqueue import ConfigError, Message, Middleware, NotSent, Worker, WorkqueueError
from workqueue.errors import (
    BrokerBlocked,
    ConsumerLost,
    QueueFull,
    Refused,
    TooLarge,
    Unroutable,
)
from workqueue.message import Delivery, seconds_since
from workqueue.middleware import Sending
from workqueue.queue import Queue
from workqueue.serving import BoundedHandler, BoundedServer
from workqueue.transport import Ack, Outcome, Reject, Requeue, Retry

PORT = 9464
"""That of OpenTelemetry's exporters for Prometheus."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 60, 600, 3600)
"""Seconds. Those of OpenTelemetry's semantic conventions for messaging, and some for long tasks."""

OTHER = "other"
"""The label of a task that this worker does not know by name: its name came with the message, and
each new one would be another time series."""

LONGEST_WAIT = 366 * 86_400.0
"""Seconds. What seems to have waited longer comes from a sender with a wrong clock, and would
outweigh all others in the sum."""

OUTCOMES: dict[type[Outcome], str] = {
    Ack: "done",
    Retry: "retry",
    Reject: "dead",
    Requeue: "released",
}


class Metrics:
    """All of them, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        of_run = ["queue", "handler", "outcome"]
        here: dict[str, Any] = {"namespace": "workqueue", "registry": registry}
        timed: dict[str, Any] = {**here, "buckets": BUCKETS}
        self.sent = Counter("messages_sent", "Sent, or not.", ["queue", "outcome"], **here)
        self.send_time = Histogram("send_duration_seconds", "Per batch.", ["queue"], **timed)
        self.received = Counter("messages_received", "Given to a slot.", ["queue"], **here)
        self.finished = Counter("messages_finished", "What became of them.", of_run, **here)
        self.run_time = Histogram("process_duration_seconds", "Per run.", of_run, **timed)
        self.wait = Histogram("wait_seconds", "From sending to first start.", ["queue"], **timed)
        self.running = Gauge("in_progress_messages", "Running now.", ["queue"], **here)
        self.slots = Gauge("worker_slots", "Of this worker.", ["state"], **here)
        self.connected = Gauge("broker_connected", "Whether a worker is.", **here)
        self.blocked = Gauge("broker_blocked", "Whether it took no messages, last time.", **here)
        self.reconnects = Counter("broker_reconnects", "Of workers.", ["reason"], **here)
        self.info = Gauge("build_info", "Always 1.", ["version", "driver", "python"], **here)


class QueueFigures(Collector):
    """What the broker says of a queue, asked for when somebody scrapes."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def collect(self) -> Iterable[GaugeMetricFamily]:
        messages = GaugeMetricFamily("workqueue_queue_messages", "By state.", labels=STATES)
        oldest = GaugeMetricFamily(
            "workqueue_queue_oldest_ready_seconds", "How long it has waited.", labels=["queue"]
        )
        workers = GaugeMetricFamily(
            "workqueue_queue_workers", "Consumers, as the broker counts them.", labels=["queue"]
        )
        name = self.queue.name
        try:
            stats = self.queue.stats()
        except WorkqueueError:
            return []  # nothing is known, and nothing is what is said
        for state in ("ready", "in_flight", "delayed", "dead"):
            count = getattr(stats, state)
            if count is not None:
                messages.add_metric([name, state], count)
        if stats.oldest is not None:
            oldest.add_metric([name], stats.oldest)
        if stats.consumers is not None:
            workers.add_metric([name], stats.consumers)
        return [messages, oldest, workers]

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Nothing: to register is not to ask the broker."""
        return []


STATES = ["queue", "state"]

shared: WeakKeyDictionary[CollectorRegistry, Metrics] = WeakKeyDictionary()
making = Lock()


def metrics_in(registry: CollectorRegistry) -> Metrics:
    """A registry takes each metric once, however many workers and senders there are."""
    with making:
        if registry not in shared:
            shared[registry] = Metrics(registry)
        return shared[registry]


class Scrape(BoundedHandler, MetricsHandler):
    """One scrape: prometheus_client's answer, under the bounds of `workqueue.serving`."""


class PrometheusMiddleware(Middleware):
    """Counts, and serves what it counted while a worker runs.

    `port` and `address` are where, by default as the environment says; port 0 serves nothing.
    Raises ConfigError for a port that is none, or is taken.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        address: str | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        self.port = port_in_environment() if port is None else port
        self.address = address or os.environ.get("WORKQUEUE_PROMETHEUS_ADDRESS") or "127.0.0.1"
        self.registry = registry
        self.metrics = metrics_in(registry)
        self.server: BoundedServer | None = None
        self.figures: QueueFigures | None = None
        self.watched: list[Gauge] = []
        self.worker: Worker | None = None

    # -- sending

    def send(self, queue: str, messages: Sequence[Message], call_next: Sending) -> None:
        began = time.perf_counter()
        failures: Sequence[tuple[Message, NotSent]] = ()
        kept = len(messages)
        try:
            call_next(messages)
        except NotSent as error:
            failures, kept = error.failures, error.sent
            blocked = any(isinstance(cause, BrokerBlocked) for _, cause in failures)
            self.metrics.blocked.set(float(blocked))
            raise
        except WorkqueueError:
            kept = 0
            self.metrics.sent.labels(queue, "timeout").inc(len(messages))
            raise
        else:
            self.metrics.blocked.set(0)
        finally:
            self.metrics.send_time.labels(queue).observe(time.perf_counter() - began)
            self.metrics.sent.labels(queue, "confirmed").inc(kept)
            for _, cause in failures:
                self.metrics.sent.labels(queue, word_for(cause)).inc()

    # -- working

    def started(self, worker: Worker) -> None:
        self.worker = worker
        self.watch(worker)
        driver = driver_of(worker.queue)
        self.metrics.info.labels(workqueue.__version__, driver, platform.python_version()).set(1)
        self.figures = QueueFigures(worker.queue)
        self.registry.register(self.figures)
        if self.port:
            handler = type("Scrape", (Scrape,), {"registry": self.registry})
            try:
                self.server = BoundedServer(self.address, self.port, handler)
            except (OSError, UnicodeError) as error:
                raise ConfigError(
                    f"metrics on {self.address}:{self.port}: {getattr(error, 'strerror', error)}",
                    hint="Choose another: WORKQUEUE_PROMETHEUS_PORT=9465, or 0 for none",
                ) from error
            self.server.serve("workqueue-prometheus")

    def watch(self, worker: Worker) -> None:
        """What is now is looked up when somebody scrapes: what a lost connection, or a lost task,
        does to it needs no counting."""
        running = self.metrics.running.labels(worker.queue.name)
        busy, free = (self.metrics.slots.labels(state) for state in ("busy", "free"))
        running.set_function(lambda: float(busy_slots(worker)))
        busy.set_function(lambda: float(busy_slots(worker)))
        free.set_function(lambda: float(worker.concurrency - busy_slots(worker)))
        self.metrics.connected.set_function(lambda: float(is_connected(worker)))
        self.watched = [running, busy, free, self.metrics.connected]

    def begun(self, delivery: Delivery) -> None:
        queue = delivery.queue
        self.metrics.received.labels(queue).inc()
        waited = seconds_since(delivery.message.sent_at, time.time())
        first = delivery.attempt == 1 and not delivery.redelivered
        if first and waited is not None and waited <= LONGEST_WAIT:
            self.metrics.wait.labels(queue).observe(waited)

    def settled(self, outcome: Outcome, seconds: float) -> None:
        delivery = outcome.delivery
        labels = (delivery.queue, self.handler_of(delivery), OUTCOMES[type(outcome)])
        self.metrics.finished.labels(*labels).inc()
        self.metrics.run_time.labels(*labels).observe(seconds)

    def handler_of(self, delivery: Delivery) -> str:
        """The task's name, if it is one of the worker's own; empty for plain messages."""
        name = delivery.message.type or ""
        known = self.worker.runner.options if self.worker is not None else {}
        return name if not name or name in known else OTHER

    def lost(self, error: ConsumerLost) -> None:
        self.metrics.reconnects.labels(type(error.__cause__ or error).__name__).inc()

    def stopped(self) -> None:
        for gauge in self.watched:
            gauge.set_function(lambda: 0.0)
        if self.figures is not None:
            self.registry.unregister(self.figures)
            self.figures = None
        server, self.server = self.server, None
        if server is not None:
            server.stop()


def word_for(cause: NotSent) -> str:
    match cause:
        case Unroutable():
            return "unroutable"
        case QueueFull() | TooLarge() | Refused():
            return "refused"
    return "timeout"


def busy_slots(worker: Worker) -> int:
    """Lost tasks keep theirs until they end."""
    shift = worker.shift
    return 0 if shift is None else len(shift.running) + len(shift.lost)


def is_connected(worker: Worker) -> bool:
    return worker.shift is not None and worker.shift.consumer is not None


def driver_of(queue: Queue) -> str:
    """The transport's module: sqlite, rabbitmq, memory, or a plugin's."""
    module = type(queue.transport).__module__.removeprefix("workqueue.transports.")
    return module.partition(".")[0]


def port_in_environment() -> int:
    value = os.environ.get("WORKQUEUE_PROMETHEUS_PORT") or str(PORT)
    if not value.isdigit() or int(value) > 65535:
        raise ConfigError(f"WORKQUEUE_PROMETHEUS_PORT={value}: a port is between 0 and 65535")
    return int(value)
