"""`connect(url)` gives a Broker, and a Broker gives queues."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from workqueue import Broker, ConfigError, Producer, QueueMismatch, QueueNotFound, connect


@pytest.fixture
def broker() -> Broker:
    return connect(f"memory://{uuid.uuid4().hex}")


def test_nothing_happens_until_something_does(broker: Broker) -> None:
    """Naming a queue makes none."""
    queue = broker.queue("jobs")
    assert broker.queues() == []
    assert repr(queue) == "<Queue jobs>"
    with pytest.raises(QueueNotFound):
        queue.stats()


def test_a_queue_and_its_dead_letters(broker: Broker) -> None:
    """Declared together, deleted apart: dead letters stay unless they are meant, too."""
    queue = broker.queue("jobs")
    assert queue.declare() is True
    assert queue.declare() is False
    assert broker.queues() == ["jobs", "jobs.dead"]
    queue.delete()
    assert broker.queues() == ["jobs.dead"]
    queue.delete(dead_letters=True)
    assert broker.queues() == []


def test_options_are_compared(broker: Broker) -> None:
    """Those that were given, with a queue that is there."""
    broker.queue("jobs", max_length=5).declare()
    assert broker.queue("jobs").declare() is False
    with pytest.raises(QueueMismatch) as caught:
        broker.queue("jobs", max_length=6, ttl=60).declare()
    assert caught.value.differences == {"max length": (6, 5), "ttl": (60, None)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("", {}),
        ("a\nb", {}),
        ("a\x1b[2J", {}),
        ("x" * 251, {}),
        ("é" * 126, {}),
        ("x" * 251 + ".dead", {}),
        ("\ud800", {}),
        ("jobs", {"type": "stream"}),
        ("jobs", {"max_length": 0}),
        ("jobs", {"max_length": -1}),
        ("jobs", {"ttl": 0}),
        ("jobs", {"ttl": -1}),
        ("jobs", {"ttl": float("nan")}),
        ("jobs", {"ttl": float("inf")}),
    ],
)
def test_queues_that_cannot_be(broker: Broker, name: str, options: dict[str, object]) -> None:
    """ConfigError, before any broker is asked, with no control character in it."""
    with pytest.raises(ConfigError) as caught:
        broker.queue(name, **options)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["jobs", "x" * 250, "é" * 125, "with space", "a/b?c#d", "仕事"])
def test_queues_that_can(broker: Broker, name: str) -> None:
    """Any printable text that leaves room for its dead letters' name."""
    queue = broker.queue(name)
    with Producer(queue) as producer:
        producer.send("x")
    assert queue.stats().ready == 1
    assert queue.purge() == 1
    assert broker.queue(f"{name}.dead").stats().ready == 0


def test_brokers_in_memory_are_shared_by_name() -> None:
    """memory://NAME is one for all who ask for it; memory:// is everybody's own."""
    name = uuid.uuid4().hex
    connect(f"memory://{name}").queue("jobs").declare()
    with connect(f"memory://{name}") as broker:
        assert broker.queues() == ["jobs", "jobs.dead"]
    assert connect("memory://").queues() == []
    connect("memory://").queue("jobs").declare()
    assert connect("memory://").queues() == []


@pytest.mark.parametrize("url", ["memory://name/path", "memory:///path", "memory://?x=1"])
def test_memory_urls_that_mean_nothing(url: str) -> None:
    """They are refused: what follows the name would be ignored."""
    with pytest.raises(ConfigError, match="memory://NAME"):
        connect(url)


def test_closing_a_broker_closes_its_producers(tmp_path: Path) -> None:
    """Those that were made for its queues, and those that its tasks are sent with."""
    with connect(f"sqlite:///{tmp_path}/jobs.db") as broker:
        queue = broker.queue("jobs")
        task = queue.task(noted)
        producers = [Producer(queue), Producer(broker.queue("other")), queue.producer]
        for producer in producers:
            producer.send("x")
        task.send()
        assert all(producer.publisher is not None for producer in producers)
    assert all(producer.publisher is None for producer in producers)
    broker.close()
    producers[0].send("later")  # connects again
    assert queue.stats().ready == 4
    broker.close()
    assert producers[0].publisher is None


def noted() -> None:
    """A task."""


def test_one_that_cannot_be_closed_does_not_keep_the_others(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is raised once all are closed."""
    producers = [Producer(broker.queue("jobs")) for _ in range(3)]
    closed: list[Producer] = []

    def close(self: Producer) -> None:
        closed.append(self)
        if self is producers[1]:
            raise OSError("stuck")

    monkeypatch.setattr(Producer, "close", close)
    with pytest.raises(OSError, match="stuck"):
        broker.close()
    assert len(closed) == 3
