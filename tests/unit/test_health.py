"""What a supervisor is told."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

from workqueue import Broker, ConfigError, ConnectionLost, Producer
from workqueue.health import STUCK, Health, state_of
from workqueue.testing import eventually
from workqueue.transports.memory import MemoryTransport
from workqueue.worker import Tally, Worker


def ask(health: Health, question: str) -> tuple[int, Any]:
    """Status and body."""
    url = f"http://127.0.0.1:{health.port}/{question}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_from_start_to_drained() -> None:
    """Ready while it takes tasks; not any more once it was told to stop; then nothing answers."""
    queue = Broker(MemoryTransport()).queue("jobs")
    Producer(queue).send("x")
    started, gate = threading.Event(), threading.Event()

    def handle(job: object) -> None:
        started.set()
        gate.wait(30)

    health = Health(0)
    worker = Worker(queue, handle, middleware=[health])
    tallies: list[Tally] = []
    thread = threading.Thread(target=lambda: tallies.append(worker.run()))
    thread.start()
    try:
        assert started.wait(20)
        assert ask(health, "alive")[0] == 200
        assert ask(health, "ready") == (
            200,
            {"alive": True, "ready": True, "drained": False, "running": 1},
        )
        assert ask(health, "drained")[0] == 503
        assert ask(health, "metrics")[0] == 404
        worker.stop()
        eventually(lambda: ask(health, "ready")[0] == 503)
        assert ask(health, "alive")[0] == 200
        assert ask(health, "drained")[0] == 503
    finally:
        gate.set()
        thread.join(20)
    assert tallies[0].done == 1
    with pytest.raises(OSError, match="refused"):
        ask(health, "alive")


def test_who_waits_for_a_broker_is_alive() -> None:
    """A supervisor that ended it would only make it wait again."""

    class Away(MemoryTransport):
        def consumer(self, queue: str, prefetch: int) -> Any:
            raise ConnectionLost("nobody answers")

    worker = Worker(Broker(Away()).queue("jobs"), print)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        eventually(lambda: worker.shift)
        shift = worker.shift
        assert shift is not None
        for _ in range(2):
            shift.turned_at -= 2 * STUCK
            eventually(lambda: state_of(worker)["alive"])
        assert not state_of(worker)["ready"]
    finally:
        worker.stop()
        thread.join(20)


def test_a_port_that_is_taken() -> None:
    """Said before any task is taken, with the port."""
    queue = Broker(MemoryTransport()).queue("jobs")
    first = Health(0)
    first.started(Worker(queue, print))
    try:
        with pytest.raises(ConfigError, match=f"health port {first.port}: Address already in use"):
            Worker(queue, print, middleware=[Health(first.port)]).run(until_empty=True)
    finally:
        first.stopped()
