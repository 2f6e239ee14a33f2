"""The optional protocols of the seam, for what wraps a transport or a consumer.

Callers ask with `isinstance` what a transport has besides. A wrapper that hid one of these would
change how a program behaves, and one that has them all would promise what its inner object cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from workqueue.transport import Defers, Examinable, Finding, Hindered, TakesBack

Wrapper = TypeVar("Wrapper")


class PassesTakesBack:
    inner: TakesBack

    @property
    def takes_back_after(self) -> float | None:
        return self.inner.takes_back_after


class PassesHindered:
    inner: Hindered

    @property
    def hindered(self) -> str | None:
        return self.inner.hindered


class PassesDefers:
    inner: Defers

    @property
    def due_in(self) -> float | None:
        return self.inner.due_in


class PassesExaminable:
    inner: Examinable

    def examine(self, queues: Sequence[str], task_timeout: float | None) -> Iterator[Finding]:
        return self.inner.examine(queues, task_timeout)


PASSES: dict[type, type] = {
    TakesBack: PassesTakesBack,
    Hindered: PassesHindered,
    Defers: PassesDefers,
    Examinable: PassesExaminable,
}


def as_able(wrapper: type[Wrapper], inner: object) -> type[Wrapper]:
    """`wrapper`, or a subclass of it that has each optional protocol that `inner` has, and passes
    it on to its attribute `inner`."""
    parts = [part for protocol, part in PASSES.items() if isinstance(inner, protocol)]
    if not parts:
        return wrapper
    return type(wrapper.__name__, (*parts, wrapper), {"__module__": wrapper.__module__})
