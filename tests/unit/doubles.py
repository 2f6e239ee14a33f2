"""Transports that do as a test says, and help to look into memory's queues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from workqueue.errors import NotSent
from workqueue.message import Message
from workqueue.transports.memory import MemoryPublisher, MemoryTransport, Store

Step = Callable[["ScriptedPublisher", str, Sequence[Message], float], Any]


class ScriptedTransport(MemoryTransport):
    """Memory, whose publishers do what `script` says, call by call, and then what they should.

    `opening` is the same for making a publisher. What was handed to publishers is in `handed`.
    """

    def __init__(self, *script: Step, opening: Sequence[Exception] = ()) -> None:
        super().__init__()
        self.script = deque(script)
        self.opening = deque(opening)
        self.handed: list[list[Message]] = []
        self.publishers: list[ScriptedPublisher] = []

    def publisher(self) -> ScriptedPublisher:
        if self.opening:
            raise self.opening.popleft()
        self.publishers.append(ScriptedPublisher(self))
        return self.publishers[-1]


class ScriptedPublisher(MemoryPublisher):
    def __init__(self, transport: ScriptedTransport) -> None:
        super().__init__(transport.store)
        self.transport = transport

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> Any:
        assert not self.closed, "a publisher is not used once it was closed"
        self.transport.handed.append(list(messages))
        if self.transport.script:
            return self.transport.script.popleft()(self, queue, messages, timeout)
        self.keep(queue, messages)
        return None

    def keep(self, queue: str, messages: Sequence[Message]) -> None:
        super().publish(queue, messages, 1)


def fails(
    cause: NotSent, *, keeping: bool = False, only: Callable[[int], bool] | None = None
) -> Step:
    """A step that fails with `cause` for all messages, or those whose place is among `only`.

    With `keeping` the broker has them all the same; the others it has in any case.
    """

    def step(
        publisher: ScriptedPublisher, queue: str, messages: Sequence[Message], timeout: float
    ) -> None:
        failing = [m for n, m in enumerate(messages) if only is None or only(n)]
        publisher.keep(queue, [m for m in messages if keeping or m not in failing])
        failures = [(message, type(cause)(str(cause))) for message in failing]
        raise NotSent(str(cause), failures=failures, sent=len(messages) - len(failing))

    return step


def breaks(error: BaseException) -> Step:
    """A step that raises `error`, with nothing stored."""

    def step(*_arguments: object) -> None:
        raise error

    return step


def stored(store: Store, queue: str) -> list[Message]:
    """What is ready in a queue in memory, in the order in which it will be handed out."""
    with store.changed:
        return [entry.message for entry in sorted(store.shelves[queue].ready)]


def stored_ids(store: Store, queue: str) -> list[str]:
    return [message.id or "" for message in stored(store, queue)]
