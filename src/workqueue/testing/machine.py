"""Random orders of calls against a model: what was sent is ready, out, dead or done, and only one.

TestMachine = transport_machine(lambda: MemoryTransport())
"""

from __future__ import annotations

import unittest
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from workqueue.message import Delivery, Message, new_id
from workqueue.testing.waiting import eventually
from workqueue.transport import (
    DEAD_SUFFIX,
    Ack,
    Consumer,
    Outcome,
    QueueSpec,
    Reject,
    Requeue,
    Retry,
    Transport,
)

PREFETCH = 4


class TransportMachine(RuleBasedStateMachine):
    """The model: `waiting` maps ids to attempts; `held` maps consumers to what is out at them."""

    make_transport: Callable[[], Transport]

    @initialize()
    def begin(self) -> None:
        self.transport = type(self).make_transport()
        self.queue = f"machine-{uuid.uuid4().hex[:12]}"
        self.transport.declare(QueueSpec(name=self.queue))
        self.publisher = self.transport.publisher()
        self.waiting: dict[str, int] = {}
        self.held: dict[Consumer, dict[str, Delivery]] = {}
        self.dead: set[str] = set()

    @rule(count=st.integers(1, 5))
    def publish(self, count: int) -> None:
        sent = [new_id() for _ in range(count)]
        self.publisher.publish(self.queue, [Message(body=b"x", id=id_) for id_ in sent], 30)
        self.waiting |= dict.fromkeys(sent, 1)

    @precondition(lambda self: len(self.held) < 3)
    @rule()
    def open(self) -> None:
        self.held[self.transport.consumer(self.queue, PREFETCH)] = {}

    @precondition(lambda self: self.held)
    @rule(data=st.data(), limit=st.integers(0, 6))
    def receive(self, data: st.DataObject, limit: int) -> None:
        consumer = data.draw(st.sampled_from(list(self.held)))
        received = consumer.receive(limit, 0.01)
        assert len(received) <= limit
        for delivery in received:
            id_ = delivery.message.id
            assert id_ in self.waiting, "handed out what was done, dead or out already"
            assert delivery.attempt == self.waiting.pop(id_)
            self.held[consumer][id_] = delivery
        assert len(self.held[consumer]) <= PREFETCH

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from([c for c, out in self.held.items() if out]))
        out = self.held[consumer]
        chosen = data.draw(st.lists(st.sampled_from(list(out)), min_size=1, unique=True))
        batch: list[Outcome] = []
        for id_ in chosen:
            delivery = out.pop(id_)
            match data.draw(st.sampled_from(["ack", "retry", "reject", "requeue"])):
                case "ack":
                    batch.append(Ack(delivery))
                case "retry":
                    batch.append(Retry(delivery))
                    self.waiting[id_] = delivery.attempt + 1
                case "reject":
                    batch.append(Reject(delivery, "drawn"))
                    self.dead.add(id_)
                case "requeue":
                    batch.append(Requeue(delivery))
                    self.waiting[id_] = delivery.attempt
        consumer.settle(batch)
        self.finish(consumer)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        consumer = data.draw(st.sampled_from(list(self.held)))
        consumer.close()
        for id_, delivery in self.held.pop(consumer).items():
            self.waiting[id_] = delivery.attempt

    def finish(self, consumer: Consumer) -> None:
        """A copy that was not confirmed when its consumer closed may exist beside the original:
        allowed, and outside this model, so let the copies be confirmed."""

        def confirmed() -> bool:
            """the copies are confirmed"""
            for delivery in consumer.receive(0, 0.005):
                raise AssertionError(f"limit 0 handed out {delivery}")
            return consumer.unsettled == len(self.held[consumer])

        eventually(confirmed, within=30)

    def teardown(self) -> None:
        """Whatever failed, in the run or here, no consumer stays open: the next example, and there
        are many until the shortest is found, would meet a broker that is short of connections."""
        if not hasattr(self, "transport"):
            return
        with ExitStack() as stack:
            stack.callback(self.transport.close)
            for name in (self.queue, self.queue + DEAD_SUFFIX):
                stack.callback(self.transport.delete, name)
            stack.callback(self.publisher.close)
            for consumer in self.held:
                stack.callback(consumer.close)
            for consumer, out in self.held.items():
                consumer.close()
                self.waiting |= {id_: delivery.attempt for id_, delivery in out.items()}
            assert self.drain(self.queue, len(self.waiting)) == self.waiting
            assert self.drain(self.queue + DEAD_SUFFIX, len(self.dead)).keys() == self.dead

    def drain(self, queue: str, expected: int) -> dict[str, int]:
        found: dict[str, int] = {}

        def all_there() -> bool:
            """everything is handed out again"""
            for delivery in consumer.receive(100, 0.05):
                assert delivery.message.id is not None
                assert delivery.message.id not in found, "handed out twice"
                found[delivery.message.id] = delivery.attempt
                consumer.settle([Ack(delivery)])
            return len(found) >= expected

        with closing(self.transport.consumer(queue, 0)) as consumer:
            eventually(all_there, within=30)
        return found


def transport_machine(
    make_transport: Callable[[], Transport], *, examples: int = 50, steps: int = 30
) -> type[unittest.TestCase]:
    """A test case that draws `examples` runs of up to `steps` calls, each on a fresh transport."""
    machine = type("Machine", (TransportMachine,), {"make_transport": staticmethod(make_transport)})
    case: type[unittest.TestCase] = machine.TestCase  # type: ignore[attr-defined]
    case.settings = settings(  # type: ignore[attr-defined]  # set by Hypothesis on its TestCase
        max_examples=examples, stateful_step_count=steps, deadline=None
    )
    return case
