"""A transport that works, except where told not to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from workqueue.errors import ConnectionLost, ConsumerLost, NotSent, Unconfirmed
from workqueue.message import Delivery, Message
from workqueue.transport import (
    Consumer,
    Outcome,
    Publisher,
    QueueSpec,
    QueueStats,
    State,
    Transport,
)

Answer = TypeVar("Answer")

CALLS = (
    "declare",
    "publisher",
    "publish",
    "consumer",
    "receive",
    "settle",
    "hold",
    "pause",
)
"""The calls of the seam that a running program makes, and that may fail under it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` use of `call` fails, the way a cut connection makes it fail.

    With `after`, the broker still does what was asked, and only the answer is lost.
    """

    call: str
    nth: int = 1
    after: bool = False

    def __post_init__(self) -> None:
        if self.call not in CALLS:
            raise ValueError(f"{self.call}: choose from {', '.join(CALLS)}")


class FaultyTransport:
    """Wraps `inner` and fails as `faults` say; `used` counts the calls."""

    def __init__(self, inner: Transport, *faults: Fault) -> None:
        self.inner = inner
        self.faults = {(fault.call, fault.nth): fault for fault in faults}
        self.used: Counter[str] = Counter()

    def due(self, call: str) -> Fault | None:
        """The fault that this use of `call` meets, if any; counts the use."""
        self.used[call] += 1
        return self.faults.get((call, self.used[call]))

    def ask(self, call: str, question: Callable[[], Answer]) -> Answer:
        """The answer, unless it is the turn of a fault."""
        fault = self.due(call)
        if fault is None:
            return question()
        if fault.after:
            answer = question()
            if hangs_up := getattr(answer, "close", None):
                hangs_up()
        raise ConnectionLost(f"cut by a test at {call}")

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        return self.ask("declare", lambda: self.inner.declare(spec, dry_run=dry_run))

    def publisher(self) -> FaultyPublisher:
        return FaultyPublisher(self, self.ask("publisher", self.inner.publisher))

    def consumer(self, queue: str, prefetch: int) -> FaultyConsumer:
        inner = self.ask("consumer", lambda: self.inner.consumer(queue, prefetch))
        return FaultyConsumer(self, inner)

    def stats(self, queue: str) -> QueueStats:
        return self.inner.stats(queue)

    def queues(self) -> list[str]:
        return self.inner.queues()

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        return self.inner.peek(queue, limit, state)

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        return self.inner.migrate(spec, say, force=force)

    def purge(self, queue: str) -> int:
        return self.inner.purge(queue)

    def delete(self, queue: str) -> None:
        self.inner.delete(queue)

    def close(self) -> None:
        self.inner.close()


class FaultyPublisher:
    def __init__(self, transport: FaultyTransport, inner: Publisher) -> None:
        self.transport = transport
        self.inner = inner

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        fault = self.transport.due("publish")
        if fault is None:
            return self.inner.publish(queue, messages, timeout)
        if fault.after:
            with suppress(NotSent):
                self.inner.publish(queue, messages, timeout)
        self.inner.close()
        failures = [(message, Unconfirmed("cut by a test")) for message in messages]
        raise NotSent("cut by a test at publish", failures=failures)

    def close(self) -> None:
        self.inner.close()


class FaultyConsumer:
    def __init__(self, transport: FaultyTransport, inner: Consumer) -> None:
        self.transport = transport
        self.inner = inner

    @property
    def unsettled(self) -> int:
        return self.inner.unsettled

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        fault = self.transport.due("receive")
        if fault and not fault.after:
            self.lose("receive")
        received = self.inner.receive(limit, timeout)
        if fault:
            self.lose("receive")
        return received

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        fault = self.transport.due("settle")
        if fault and not fault.after:
            self.lose("settle")
        self.inner.settle(outcomes)
        if fault:
            self.lose("settle")

    def hold(self, prefetch: int) -> None:
        fault = self.transport.due("hold")
        if fault is None or fault.after:
            self.inner.hold(prefetch)
        if fault:
            self.lose("hold")

    def pause(self) -> None:
        fault = self.transport.due("pause")
        if fault is None or fault.after:
            self.inner.pause()
        if fault:
            self.lose("pause")

    def lose(self, call: str) -> NoReturn:
        self.inner.close()
        raise ConsumerLost(f"cut by a test at {call}")

    def wake(self) -> None:
        self.inner.wake()

    def close(self) -> None:
        self.inner.close()
