"""A transport that works, except where told not to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from workqueue.errors import ConnectionLost, ConsumerLost, NotSent, Unconfirmed
from workqueue.message import Delivery, Message
from workqueue.transport import Consumer, Outcome, Publisher, QueueSpec, QueueStats, Transport

CALLS = (
    "declare",
    "publisher",
    "publish",
    "consumer",
    "receive",
    "settle",
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

    def cut(self, call: str) -> None:
        if self.due(call):
            raise ConnectionLost(f"cut by a test at {call}")

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        self.cut("declare")
        return self.inner.declare(spec, dry_run=dry_run)

    def publisher(self) -> FaultyPublisher:
        self.cut("publisher")
        return FaultyPublisher(self, self.inner.publisher())

    def consumer(self, queue: str, prefetch: int) -> FaultyConsumer:
        self.cut("consumer")
        return FaultyConsumer(self, self.inner.consumer(queue, prefetch))

    def stats(self, queue: str) -> QueueStats:
        return self.inner.stats(queue)

    def queues(self) -> list[str]:
        return self.inner.queues()

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

    def pause(self) -> None:
        if self.transport.due("pause"):
            self.lose("pause")
        self.inner.pause()

    def lose(self, call: str) -> None:
        self.inner.close()
        raise ConsumerLost(f"cut by a test at {call}")

    def wake(self) -> None:
        self.inner.wake()

    def close(self) -> None:
        self.inner.close()
