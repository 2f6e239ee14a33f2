"""The memory transport keeps every promise: it is the reference."""

from collections.abc import Iterator

import pytest

from workqueue.testing import TransportSuite, transport_machine
from workqueue.transports.memory import MemoryTransport


class TestMemory(TransportSuite):
    @pytest.fixture
    def transport(self) -> Iterator[MemoryTransport]:
        transport = MemoryTransport()
        yield transport
        transport.close()


TestMachine = transport_machine(MemoryTransport)
