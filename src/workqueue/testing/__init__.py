"""For those who write a transport, and for tests of code that uses one.

`TransportSuite` is the conformance suite: subclass it in a test module, give it a `transport`
fixture, and pytest holds your transport to every promise of `workqueue.transport`.
`transport_machine` does the same with random orders of calls, `CheckedTransport` at every call of
a program, and `FaultyTransport` wraps any transport and breaks one call of your choice. The suite
and the machine need the extra `testing` (pytest, hypothesis), and are imported when first used.
"""

import importlib
import sys
import typing

from workqueue.testing.checked import CheckedTransport
from workqueue.testing.faulty import Fault, FaultyTransport
from workqueue.testing.waiting import eventually

if typing.TYPE_CHECKING:
    from workqueue.testing.machine import transport_machine
    from workqueue.testing.suite import TransportSuite

__all__ = [
    "CheckedTransport",
    "Fault",
    "FaultyTransport",
    "TransportSuite",
    "eventually",
    "transport_machine",
]

_HOMES = {"TransportSuite": "suite", "transport_machine": "machine"}
"""Where the names are that need pytest or hypothesis."""

if "pytest" in sys.modules:
    # Before they are imported: so that a failing promise shows its values, not a bare
    # AssertionError.
    sys.modules["pytest"].register_assert_rewrite(
        "workqueue.testing.suite", "workqueue.testing.machine", "workqueue.testing.promises"
    )

if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"workqueue.testing.{_HOMES[name]}")
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
