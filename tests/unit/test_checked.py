"""What stands between a program and its transport: all of a transport, and nothing wrong passes."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from tests.unit.doubles import stored_ids
from workqueue import (
    Broker,
    ConsumerLost,
    Message,
    NotSent,
    Producer,
    QueueFull,
    TransportFault,
    Worker,
)
from workqueue.errors import ConnectionLost, DeliveriesLost
from workqueue.testing import CheckedTransport, FaultyTransport
from workqueue.testing import checked as checked_module
from workqueue.testing.checked import (
    AwakeClock,
    CheckedConsumer,
    CheckedPublisher,
    CheckedTakesBack,
)
from workqueue.testing.faulty import FaultyConsumer, FaultyPublisher
from workqueue.transport import (
    Ack,
    Consumer,
    Outcome,
    Publisher,
    QueueSpec,
    Requeue,
    TakesBack,
    Transport,
)
from workqueue.transports.memory import MemoryConsumer, MemoryPublisher, MemoryTransport


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        (Transport, FaultyTransport),
        (Publisher, FaultyPublisher),
        (Consumer, FaultyConsumer),
        (Transport, CheckedTransport),
        (Publisher, CheckedPublisher),
        (Consumer, CheckedConsumer),
        (TakesBack, CheckedTakesBack),
    ],
)
def test_what_wraps_a_transport_is_one(protocol: type, kind: type) -> None:
    """Each method of the seam is there, with the seam's parameters."""
    for name, promised in vars(protocol).items():
        if name.startswith("_") or not (callable(promised) or isinstance(promised, property)):
            continue
        found = getattr(kind, name)
        if not isinstance(promised, property):
            assert inspect.signature(found).parameters.keys() == (
                inspect.signature(promised).parameters.keys()
            ), name


# -- what is wrong is found ----------------------------------------------------------------------


def transport_with(
    publisher: type[MemoryPublisher] = MemoryPublisher,
    consumer: type[MemoryConsumer] = MemoryConsumer,
) -> CheckedTransport:
    """Checked memory with the queue `q`, whose publishers and consumers are of these classes."""

    class Mixed(MemoryTransport):
        def publisher(self) -> MemoryPublisher:
            return publisher(self.store)

        def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
            return consumer(self.store, queue, prefetch)

    checked = CheckedTransport(Mixed())
    checked.declare(QueueSpec(name="q"))
    return checked


def sent(checked: CheckedTransport, count: int = 3) -> None:
    MemoryPublisher(checked.inner.store).publish(  # type: ignore[attr-defined]
        "q", [Message(body=b"x", id=str(n)) for n in range(count)], 1.0
    )


class HandsOutMore(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        return super().receive(limit + 1, timeout)


class ForgetsItsPrefetch(MemoryConsumer):
    def take(self, limit: int) -> Any:
        self.prefetch = 0
        return super().take(limit)


class HandsOutTwice(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        return super().receive(limit, timeout) or list(self.out)[:limit]


class OfAnotherQueue(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        return [structs.replace(one, queue="other") for one in super().receive(limit, timeout)]


class ReturnsNothing(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        return super().receive(limit, timeout) or None


class LeaksErrors(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        raise KeyError("a driver's own")


class SaysMuch(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        raise ConnectionLost("connection failed:\n\tis the server running?")


class NeverPauses(MemoryConsumer):
    def pause(self) -> None:
        pass


class Oversleeps(MemoryConsumer):
    def receive(self, limit: int, timeout: float) -> Any:
        time.sleep(1.5)
        return []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (HandsOutMore, "handed out 2 deliveries where 1 were asked for"),
        (ForgetsItsPrefetch, "3 deliveries out, prefetch 2"),
        (HandsOutTwice, "out already"),
        (OfAnotherQueue, "not of its queue q"),
        (ReturnsNothing, "NoneType"),
        (LeaksErrors, "KeyError"),
        (SaysMuch, "several lines"),
        (NeverPauses, "after it was paused"),
        (Oversleeps, "with a timeout of 0 s"),
    ],
)
def test_a_consumers_fault_is_found(
    kind: type[MemoryConsumer], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the call with which it happens, naming the class."""
    checked = transport_with(consumer=kind)
    monkeypatch.setattr(checked_module, "LEEWAY", 0.5)
    sent(checked)
    consumer = checked.consumer("q", 2)
    with pytest.raises(TransportFault, match=told) as caught:
        for _ in range(5):
            consumer.receive(1, 0.0)
            if kind is NeverPauses:
                consumer.pause()
    assert f"{__name__}.{kind.__name__}" in str(caught.value)
    assert checked.faults == [str(caught.value)]


class TakesAnything(MemoryConsumer):
    def settle(self, outcomes: Sequence[Outcome]) -> None:
        super().settle([outcome for outcome in outcomes if outcome.delivery in self.out])


class RefusesAll(MemoryConsumer):
    def settle(self, outcomes: Sequence[Outcome]) -> None:
        raise ValueError("not mine")


class ComesBackToLife(MemoryConsumer):
    def settle(self, outcomes: Sequence[Outcome]) -> None:
        if not getattr(self, "failed", False):
            self.failed = True
            raise ConsumerLost("cut")


def test_what_is_not_out_is_not_settled() -> None:
    """A driver that takes a second word for a delivery is at fault; refusing it is right."""
    for kind, wrong in ((TakesAnything, TransportFault), (MemoryConsumer, ValueError)):
        checked = transport_with(consumer=kind)
        sent(checked)
        consumer = checked.consumer("q", 0)
        [one] = consumer.receive(1, 0.0)
        consumer.settle([Ack(one)])
        with pytest.raises(wrong):
            consumer.settle([Ack(one)])
    assert checked.faults == []


@pytest.mark.parametrize(("kind", "told"), [(RefusesAll, "refused"), (ComesBackToLife, "was lost")])
def test_settling_is_looked_at(kind: type[MemoryConsumer], told: str) -> None:
    """What is out can be settled, and a lost consumer stays lost."""
    checked = transport_with(consumer=kind)
    sent(checked)
    consumer = checked.consumer("q", 0)
    [one] = consumer.receive(1, 0.0)
    with pytest.raises(TransportFault, match=told):
        for outcome in (Requeue(one), Requeue(one)):
            try:
                consumer.settle([outcome])
            except ConsumerLost:
                assert consumer.out == set()


def test_what_the_broker_took_back_is_out_no_more() -> None:
    """It may come again, to the same consumer, within its prefetch."""

    class TakenBack(MemoryConsumer):
        def receive(self, limit: int, timeout: float) -> Any:
            if self.out:
                lost, entry = self.out.popitem()
                self.give_back(entry)
                raise DeliveriesLost("taken back", [lost])
            return super().receive(limit, timeout)

    checked = transport_with(consumer=TakenBack)
    sent(checked, 1)
    consumer = checked.consumer("q", 1)
    assert len(consumer.receive(1, 0.0)) == 1
    with pytest.raises(DeliveriesLost):
        consumer.receive(1, 0.0)
    assert len(consumer.receive(1, 0.0)) == 1
    assert checked.faults == []


class NamesCopies(MemoryPublisher):
    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        failures = [(structs.replace(message), QueueFull("full")) for message in messages]
        raise NotSent("full", failures=failures)


class AnswersInWords(MemoryPublisher):
    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> Any:
        return "sent"


class LeaksItsErrors(MemoryPublisher):
    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        raise OSError("a driver's own")


class Dawdles(MemoryPublisher):
    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        time.sleep(1.5)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (NamesCopies, "a copy"),
        (AnswersInWords, "returned str"),
        (LeaksItsErrors, "OSError"),
        (Dawdles, "publish took"),
    ],
)
def test_a_publishers_fault_is_found(
    kind: type[MemoryPublisher], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a Producer on it takes nothing of that call for sent."""
    monkeypatch.setattr(checked_module, "LEEWAY", 0.5)
    checked = transport_with(publisher=kind)
    with pytest.raises(TransportFault, match=told):
        checked.publisher().publish("q", [Message(body=b"x", id="x")], 0.1)
    with pytest.raises(NotSent, match="at fault"):
        Producer(Broker(checked).queue("q"), timeout=0.1).send(b"x")
    assert len(checked.faults) == 2


@pytest.mark.parametrize(
    ("name", "answer", "ask"),
    [
        ("declare", None, lambda checked: checked.declare(QueueSpec(name="r"))),
        ("stats", {}, lambda checked: checked.stats("q")),
        ("queues", ["b", "a"], lambda checked: checked.queues()),
        ("peek", [1, 2], lambda checked: checked.peek("q", 1)),
        ("migrate", None, lambda checked: checked.migrate(QueueSpec(name="q"), print)),
        ("purge", "3", lambda checked: checked.purge("q")),
    ],
)
def test_answers_are_of_their_kind(
    name: str, answer: object, ask: Callable[[CheckedTransport], object]
) -> None:
    """What a command would print or count."""
    checked = transport_with()
    setattr(checked.inner, name, lambda *_, **__: answer)
    with pytest.raises(TransportFault, match=name):
        ask(checked)


# -- and nothing else changes ----------------------------------------------------------------------


def test_a_program_does_not_notice() -> None:
    """Sent, worked on, retried and set aside as on the transport itself, and no fault found."""
    checked = transport_with()
    queue = Broker(checked).queue("q")
    with Producer(queue) as producer:
        producer.send_many(range(50))
    seen: list[int] = []
    Worker(queue, lambda job: seen.append(job.payload), concurrency=4).run(until_empty=True)
    assert sorted(seen) == list(range(50))
    assert stored_ids(checked.inner.store, "q") == []  # type: ignore[attr-defined]
    assert checked.faults == []


def test_a_capability_stays_one() -> None:
    """A consumer whose broker takes deliveries back still says so; another does not."""

    class Impatient(MemoryConsumer):
        takes_back_after = 1800.0

    assert not isinstance(transport_with().consumer("q", 1), TakesBack)
    impatient = transport_with(consumer=Impatient).consumer("q", 1)
    assert isinstance(impatient, TakesBack)
    assert impatient.takes_back_after == 1800.0


def test_a_process_that_stood_still_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, or without a share of the processor, nothing can keep its timeout."""
    clock = AwakeClock()
    times = iter([0.0, 0.1, 30.0, 30.1])
    naps = iter([None, None, None])

    class Clock:
        monotonic = staticmethod(lambda: next(times))
        sleep = staticmethod(lambda _: next(naps))

    monkeypatch.setattr(checked_module, "time", Clock)
    with pytest.raises(StopIteration):
        clock.run()
    assert clock.seconds == pytest.approx(0.4)


def test_every_command_can_be_checked(tmp_path: Path) -> None:
    """With a variable; and neither pytest nor hypothesis is loaded for it."""
    code = (
        "import sys; sys.argv = ['workqueue', 'send', 'q', 'x']\n"
        "from workqueue.cli.main import run; run(sys.argv[1:])\n"
        "assert 'workqueue.testing.checked' in sys.modules\n"
        "assert not {'pytest', 'hypothesis'} & set(sys.modules)"
    )
    environment = {
        **os.environ,
        "WORKQUEUE_CHECK_TRANSPORT": "1",
        "WORKQUEUE_URL": f"sqlite:///{tmp_path}/q.db",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_fault_is_told_as_one() -> None:
    """Exit code 70, with what to type next; not as a bug of this package."""
    from workqueue.cli.main import exit_code, next_command

    error = TransportFault("the transport is at fault: mine.Consumer handed out 3")
    assert exit_code(error) == 70
    assert next_command(error, ["work"]) == "workqueue plugins"
    assert "authors of the transport" in error.hint


def test_a_tortured_sender_ends_at_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with exit code 0: the verdict counts it as unruly."""
    from workqueue.cli.torture import handler, sender

    class Lying(MemoryTransport):
        def publisher(self) -> MemoryPublisher:
            return NamesCopies(self.store)

    monkeypatch.setenv(handler.FOLDER, str(tmp_path))
    monkeypatch.setenv("WORKQUEUE_URL", "memory://")
    monkeypatch.setattr(sender, "open_transport", lambda _: Lying())
    monkeypatch.setattr(sender.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["sender", "q", "0", "5", "1", "0"])
    with pytest.raises(SystemExit) as caught:
        sender.main()
    assert "a copy" in str(caught.value.code)


def test_torture_and_demo_check_their_workers(tmp_path: Path) -> None:
    """By the variable that every command heeds."""
    from workqueue.cli.options import CHECK_TRANSPORT
    from workqueue.cli.torture.siege import Roles, Siege

    roles = Roles(lambda *_: [], [], [])
    queue = Broker(MemoryTransport()).queue("q")
    with Siege(queue=queue, url="memory://", folder=tmp_path, roles=roles, messages=1) as siege:
        assert siege.own_environment()[CHECK_TRANSPORT]


def test_a_worker_that_failed_fails_the_demo(tmp_path: Path) -> None:
    """Though nothing was lost, since others did its tasks."""
    from workqueue.cli.demo import Show
    from workqueue.cli.options import Session

    session = Session(
        url="memory://", url_file=None, management_url=None, json=True, quiet=True, verbose=False
    )
    show = Show(session, Broker(MemoryTransport()), tmp_path, [])
    failed = subprocess.Popen([sys.executable, "-c", "raise SystemExit(70)"])
    failed.wait()
    show.workers = [failed]
    show.dismiss()
    assert show.failed == 1
