"""For those who write a transport, and for tests of code that uses one.

`TransportSuite` is the conformance suite: subclass it in a test module, give it a `transport`
fixture, and pytest holds your transport to every promise of `workqueue.transport`.
`TransportMachine` does the same with random orders of calls, and `FaultyTransport` wraps any
transport and breaks one call of your choice. Needs the extra `testing` (pytest, hypothesis).
"""

import pytest

# Before they are imported: so that a failing promise shows its values, not a bare AssertionError.
pytest.register_assert_rewrite("workqueue.testing.suite", "workqueue.testing.machine")

from workqueue.testing.faulty import Fault, FaultyTransport  # noqa: E402
from workqueue.testing.machine import transport_machine  # noqa: E402
from workqueue.testing.suite import TransportSuite  # noqa: E402
from workqueue.testing.waiting import eventually  # noqa: E402

__all__ = ["Fault", "FaultyTransport", "TransportSuite", "eventually", "transport_machine"]
