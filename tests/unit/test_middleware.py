"""Around sending and handling."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from workqueue import Broker, ConfigError, Job, Message, NotSent, Producer, Reject, Unsupported
from workqueue import registry as registry_module
from workqueue.message import Delivery
from workqueue.middleware import Handling, Middleware, Sending
from workqueue.queue import Queue
from workqueue.retry import RetryPolicy
from workqueue.testing import eventually
from workqueue.transport import Outcome
from workqueue.transports.memory import MemoryTransport
from workqueue.worker import Worker


@pytest.fixture
def queue() -> Queue:
    return Broker(MemoryTransport()).queue("jobs", retry=RetryPolicy(first=0))


class Diary(Middleware):
    """Writes down all it is told."""

    def __init__(self, name: str = "", pages: list[str] | None = None) -> None:
        self.name = name
        self.pages = [] if pages is None else pages

    def send(self, queue: str, messages: Sequence[Message], call_next: Sending) -> None:
        self.pages.append(f"{self.name}sending {len(messages)} to {queue}")
        call_next(messages)
        self.pages.append(f"{self.name}sent")

    def handle(self, job: Job[Any], call_next: Handling) -> object:
        self.pages.append(f"{self.name}before {job.payload}")
        found = call_next(job)
        self.pages.append(f"{self.name}after {found}")
        return found

    def started(self, worker: Worker) -> None:
        self.pages.append(f"{self.name}started")

    def begun(self, delivery: Delivery) -> None:
        self.pages.append(f"{self.name}begun")

    def settled(self, outcome: Outcome, seconds: float) -> None:
        assert 0 <= seconds < 60
        self.pages.append(f"{self.name}{type(outcome).__name__}")

    def stopped(self) -> None:
        self.pages.append(f"{self.name}stopped")


def test_the_first_is_the_outermost(queue: Queue) -> None:
    """Around sending, and around handling."""
    pages: list[str] = []
    chain = [Diary("a ", pages), Diary("b ", pages)]
    Producer(queue, middleware=chain).send("x")
    assert pages == ["a sending 1 to jobs", "b sending 1 to jobs", "b sent", "a sent"]
    pages.clear()
    Worker(queue, lambda job: "done", middleware=chain).run(until_empty=True)
    around = ["a before x", "b before x", "b after done", "a after done"]
    assert [page for page in pages if page in around] == around
    assert [page for page in pages if page.startswith("a ") and page not in around] == [
        "a started",
        "a begun",
        "a Ack",
        "a stopped",
    ]


def test_many_are_sent_in_one_go(queue: Queue) -> None:
    """A middleware sees batches: it costs no confirm of its own for each message."""
    diary = Diary()
    Producer(queue, middleware=[diary]).send_many(range(1500))
    batches = [int(page.split()[1]) for page in diary.pages if page.startswith("sending")]
    assert sum(batches) == 1500
    assert len(batches) < 50  # a slow machine cuts some short


def test_what_is_sent_may_be_changed(queue: Queue) -> None:
    class Stamp(Middleware):
        def send(self, queue: str, messages: Sequence[Message], call_next: Sending) -> None:
            call_next([Message(body=m.body.upper(), id=m.id) for m in messages])

    Producer(queue, middleware=[Stamp()]).send("quiet")
    assert queue.transport.peek("jobs", 1)[0].message.body == b"QUIET"


def test_errors_of_sending_go_through(queue: Queue) -> None:
    """The sender hears them, and each middleware on the way."""
    seen: list[str] = []

    class Watch(Middleware):
        def send(self, queue: str, messages: Sequence[Message], call_next: Sending) -> None:
            try:
                call_next(messages)
            except NotSent as error:
                seen.append(type(error).__name__)
                raise

    full = queue.broker.queue("full", max_length=1)
    producer = Producer(full, timeout=0.3, middleware=[Watch()])
    producer.send("fits")
    with pytest.raises(NotSent):
        producer.send("does not")
    assert seen == ["QueueFull"]


def test_what_handle_raises_is_the_tasks(queue: Queue) -> None:
    """Reject in a middleware is as good as in the handler."""

    class Guard(Middleware):
        def handle(self, job: Job[Any], call_next: Handling) -> object:
            raise Reject("not today")

    Producer(queue).send("x")
    tally = Worker(queue, print, middleware=[Guard()]).run(until_empty=True)
    assert (tally.done, tally.dead) == (0, 1)


def test_an_observer_that_fails_changes_nothing(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the work goes on."""

    class Clumsy(Middleware):
        def settled(self, outcome: Outcome, seconds: float) -> None:
            raise LookupError("oops")

    Producer(queue).send("x")
    with caplog.at_level(logging.ERROR):
        tally = Worker(queue, lambda job: None, middleware=[Clumsy()]).run(until_empty=True)
    assert tally.done == 1
    assert "middleware Clumsy failed" in caplog.text


def test_one_that_cannot_start_keeps_the_worker_from_it(queue: Queue) -> None:
    """A port that is taken is said before any task is."""

    class Never(Middleware):
        def started(self, worker: Worker) -> None:
            raise ConfigError("the port is taken")

    Producer(queue).send("x")
    with pytest.raises(ConfigError, match="taken"):
        Worker(queue, print, middleware=[Never()]).run(until_empty=True)
    assert queue.stats().ready == 1


def test_an_object_cannot_be_in_a_child(queue: Queue) -> None:
    """What wraps handlers has to be named, so that children can make their own."""
    with pytest.raises(Unsupported, match="Diary wraps handlers"):
        Worker(queue, "tests.unit.test_middleware:noted", runner="process", middleware=[Diary()])


def noted(job: Job[Any]) -> None:
    """A handler for a child process."""


def shout() -> Middleware:
    class Shout(Middleware):
        def handle(self, job: Job[Any], call_next: Handling) -> object:
            raise Reject(f"heard {job.payload}")

    return Shout()


NAMED = {
    "shout": EntryPoint("shout", "tests.unit.test_middleware:shout", "workqueue.middleware"),
    "wrong": EntryPoint("wrong", "builtins:dict", "workqueue.middleware"),
}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a plugin were installed."""
    monkeypatch.setattr(registry_module, "find", lambda group, name: NAMED.get(name))


@pytest.mark.usefixtures("installed")
def test_by_name(queue: Queue) -> None:
    Producer(queue).send("x")
    Worker(queue, print, middleware=["shout"]).run(until_empty=True)
    eventually(lambda: queue.stats().dead == 1)


@pytest.mark.usefixtures("installed")
def test_names_that_cannot_be(queue: Queue) -> None:
    with pytest.raises(ConfigError, match="no middleware nobody is installed"):
        Worker(queue, print, middleware=["nobody"])
    with pytest.raises(ConfigError, match="gives a dict, not a Middleware"):
        Worker(queue, print, middleware=["wrong"])
