"""A transport that is held to its contract at every call, while a program uses it.

The suite asks what a test thought of; a program asks what it needs, in its own order, at its own
sizes. `CheckedTransport` stands between a program and any transport, and raises TransportFault as
soon as a call breaks what `workqueue.transport` says. `workqueue torture`, `demo` and `bench` run
on it, and so does every command while WORKQUEUE_CHECK_TRANSPORT is set.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, ParamSpec, TypeVar

from workqueue.broker import Broker
from workqueue.errors import (
    ConsumerLost,
    DeliveriesLost,
    NotSent,
    TransportFault,
    WorkqueueError,
    account_fault,
    class_name,
)
from workqueue.message import Delivery, Message
from workqueue.transport import (
    Consumer,
    Outcome,
    Publisher,
    QueueSpec,
    QueueStats,
    State,
    TakesBack,
    Transport,
)

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")

LEEWAY = 1.0
"""Seconds by which `publish` and `receive` may pass their timeout."""


class AwakeClock:
    """Seconds in which this process ran, as a thread of its own saw them pass.

    A process that is stopped, or gets no time on a busy machine, cannot keep a timeout, and that is
    no fault of its transport. So a gap between two looks counts as little more than the usual one.
    In a forked child, which has no such thread, the clock stands still.
    """

    EVERY = 0.1
    LONGEST = 0.2
    """Seconds between two looks, as planned and as counted at most."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.started = False
        self.lock = threading.Lock()

    def time(self) -> float:
        if not self.started:
            with self.lock:
                if not self.started:
                    threading.Thread(target=self.run, name="awake-clock", daemon=True).start()
                    self.started = True
        return self.seconds

    def run(self) -> None:
        last = time.monotonic()
        while True:
            time.sleep(self.EVERY)
            now = time.monotonic()
            self.seconds += min(now - last, self.LONGEST)
            last = now


awake = AwakeClock()


def checked(broker: Broker) -> Broker:
    """The same broker, on a CheckedTransport."""
    return Broker(CheckedTransport(broker.transport))


class CheckedTransport:
    """Passes every call on to `inner`, and raises TransportFault when `inner` breaks its contract.

    Checked are: `receive` returns a list of at most `limit` deliveries, of its own queue, none of
    which is out already, and no more are out than the prefetch; nothing is handed out by a paused
    consumer; `settle` refuses what is not out; a lost consumer stays lost; `NotSent` accounts for
    every message by the very object that was passed; `publish` and `receive` end within a second
    of their timeout; and all errors are those of `workqueue.errors`, with a text of one line.
    `faults` lists what was found. The time in which the whole process stood still is not counted.

    As thread-safe as `inner`.
    """

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.faults: list[str] = []

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        made = self.ask(self.inner.declare, spec, dry_run=dry_run)
        return self.expect(bool, made, "declare")

    def publisher(self) -> CheckedPublisher:
        return CheckedPublisher(self, self.ask(self.inner.publisher))

    def consumer(self, queue: str, prefetch: int) -> CheckedConsumer:
        inner = self.ask(self.inner.consumer, queue, prefetch)
        kind = CheckedTakesBack if isinstance(inner, TakesBack) else CheckedConsumer
        return kind(self, inner, queue, prefetch)

    def stats(self, queue: str) -> QueueStats:
        return self.expect(QueueStats, self.ask(self.inner.stats, queue), "stats")

    def queues(self) -> list[str]:
        names = self.expect(list, self.ask(self.inner.queues), "queues")
        if names != sorted(names):
            self.fault(self.inner, "queues returned names that are not sorted")
        return names

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        seen = self.expect(list, self.ask(self.inner.peek, queue, limit, state), "peek")
        if len(seen) > limit:
            self.fault(self.inner, f"peek returned {len(seen)} deliveries, limit {limit}")
        return seen

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        return self.expect(int, self.ask(self.inner.migrate, spec, say, force=force), "migrate")

    def purge(self, queue: str) -> int:
        return self.expect(int, self.ask(self.inner.purge, queue), "purge")

    def delete(self, queue: str) -> None:
        self.ask(self.inner.delete, queue)

    def close(self) -> None:
        self.ask(self.inner.close)

    # -- what is checked

    def ask(
        self,
        call: Callable[Arguments, Answer],
        /,
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """What `call` returns. Its errors are ours, or a fault."""
        try:
            return call(*arguments, **options)
        except Exception as error:
            self.check_error(call, error)
            raise

    def expect(self, kind: type[Answer], answer: object, call: str) -> Answer:
        if not isinstance(answer, kind):
            wanted, got = kind.__name__, type(answer).__name__
            self.fault(self.inner, f"{call} returned {got} instead of {wanted}")
        return answer

    def check_error(self, call: Callable[..., object], error: Exception) -> None:
        """An error is one of ours and says what happened in one line, or it is a fault."""
        thing, name = getattr(call, "__self__", call), getattr(call, "__name__", "")
        if not isinstance(error, WorkqueueError):
            self.fault(thing, f"{name} raised an error that is not ours: {error!r}", error)
        if "\n" in str(error):
            self.fault(thing, f"{name} raised an error of several lines: {str(error)!r}", error)

    def check_time(self, thing: object, call: str, timeout: float, began: float) -> None:
        took = awake.time() - began
        if took > max(timeout, 0.0) + LEEWAY:
            self.fault(thing, f"{call} took {took:.1f} s with a timeout of {timeout:g} s")

    def fault(self, thing: object, told: str, error: Exception | None = None) -> NoReturn:
        text = f"the transport is at fault: {class_name(thing)} {told}"
        self.faults.append(text)
        raise TransportFault(text) from error


class CheckedPublisher:
    """See `CheckedTransport`."""

    def __init__(self, transport: CheckedTransport, inner: Publisher) -> None:
        self.transport = transport
        self.inner = inner

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        began = awake.time()
        try:
            answer = self.inner.publish(queue, messages, timeout)  # type: ignore[func-returns-value]
        except NotSent as error:
            if fault := account_fault(error, {id(message) for message in messages}):
                self.transport.fault(self.inner, fault, error)
            self.transport.check_error(self.inner.publish, error)
            self.transport.check_time(self.inner, "publish", timeout, began)
            raise
        except Exception as error:
            self.transport.check_error(self.inner.publish, error)
            self.transport.check_time(self.inner, "publish", timeout, began)
            raise
        if answer is not None:
            self.transport.fault(self.inner, f"publish returned {type(answer).__name__}")
        self.transport.check_time(self.inner, "publish", timeout, began)

    def close(self) -> None:
        self.transport.ask(self.inner.close)


class CheckedConsumer:
    """See `CheckedTransport`."""

    def __init__(
        self, transport: CheckedTransport, inner: Consumer, queue: str, prefetch: int
    ) -> None:
        self.transport = transport
        self.inner = inner
        self.queue = queue
        self.prefetch = prefetch
        self.out: set[Delivery] = set()
        self.paused = False
        self.lost = False

    @property
    def unsettled(self) -> int:
        return self.inner.unsettled

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        began = awake.time()
        try:
            received = self.inner.receive(limit, timeout)
        except Exception as error:
            self.note(error)
            self.transport.check_error(self.inner.receive, error)
            self.transport.check_time(self.inner, "receive", timeout, began)
            raise
        if fault := self.fault_in(received, limit):
            self.transport.fault(self.inner, fault)
        self.transport.check_time(self.inner, "receive", timeout, began)
        self.out.update(received)
        return received

    def fault_in(self, received: object, limit: int) -> str:
        """What is wrong with what `receive` returned; "" if nothing is."""
        if self.lost:
            return "was lost, and received all the same"
        if not isinstance(received, list):
            return f"receive returned {type(received).__name__} instead of a list"
        count = len(received)
        if not count:
            return ""
        if count > limit:
            return f"handed out {count} deliveries where {limit} were asked for"
        if self.paused:
            return f"handed out {count} deliveries after it was paused"
        if len(set(received)) < count or not self.out.isdisjoint(received):
            return "handed out a delivery that is out already"
        if self.prefetch and len(self.out) + count > self.prefetch:
            return f"has {len(self.out) + count} deliveries out, prefetch {self.prefetch}"
        if any(delivery.queue != self.queue for delivery in received):
            return f"handed out a delivery that is not of its queue {self.queue}"
        return ""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        deliveries = {outcome.delivery for outcome in outcomes}
        once = len(deliveries) == len(outcomes) and deliveries <= self.out
        try:
            self.inner.settle(outcomes)
        except ValueError as error:
            if once:
                told = f"settle refused deliveries that are out: {error!r}"
                self.transport.fault(self.inner, told, error)
            raise
        except Exception as error:
            self.note(error)
            self.transport.check_error(self.inner.settle, error)
            raise
        if self.lost:
            self.transport.fault(self.inner, "was lost, and settled all the same")
        if not once:
            self.transport.fault(self.inner, "settled a delivery that is not out")
        self.out -= deliveries

    def note(self, error: Exception) -> None:
        """What the consumer no longer has."""
        if isinstance(error, ConsumerLost):
            self.lost = True
            self.out.clear()
        elif isinstance(error, DeliveriesLost):
            self.out.difference_update(error.deliveries)

    def hold(self, prefetch: int) -> None:
        self.transport.ask(self.inner.hold, prefetch)
        self.prefetch = prefetch

    def pause(self) -> None:
        self.transport.ask(self.inner.pause)
        self.paused = True

    def wake(self) -> None:
        self.inner.wake()

    def close(self) -> None:
        self.transport.ask(self.inner.close)
        self.lost = True
        self.out.clear()


class CheckedTakesBack(CheckedConsumer):
    """One whose broker takes deliveries back after a while, and says so."""

    @property
    def takes_back_after(self) -> float | None:
        assert isinstance(self.inner, TakesBack)
        return self.inner.takes_back_after
