"""The public names. Whoever changes one changes this list, and the changelog."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from types import ModuleType

import pytest

import workqueue
import workqueue.testing

PUBLIC = [
    "AccessRefused",
    "BadPayload",
    "Broker",
    "BrokerBlocked",
    "ConfigError",
    "ConnectionLost",
    "ConsumerLost",
    "DeadLetter",
    "Delivery",
    "HandlerNotFound",
    "Job",
    "Message",
    "Middleware",
    "NotSent",
    "Producer",
    "Queue",
    "QueueFull",
    "QueueMigrating",
    "QueueMismatch",
    "QueueNotFound",
    "QueueStats",
    "Refused",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    "RunnerFailed",
    "StorageDamaged",
    "StorageError",
    "Tally",
    "Task",
    "TooLarge",
    "TransportFault",
    "Unconfirmed",
    "UnknownScheme",
    "Unroutable",
    "Unsupported",
    "Worker",
    "WorkqueueError",
    "__version__",
    "connect",
    "current_job",
]

TESTING = [
    "CheckedTransport",
    "Fault",
    "FaultyTransport",
    "TransportSuite",
    "eventually",
    "transport_machine",
]


@pytest.mark.parametrize(("module", "names"), [(workqueue, PUBLIC), (workqueue.testing, TESTING)])
def test_the_public_names(module: ModuleType, names: list[str]) -> None:
    """These, all there, in order, and no others beside modules."""
    assert module.__all__ == names
    there = {
        name
        for name in dir(module)
        if not name.startswith("_") and not inspect.ismodule(getattr(module, name))
    }
    assert there == {name for name in names if name != "__version__"}


def test_no_other_name_is_there() -> None:
    """Asked for by name, as if it were one of those that are imported when they are used."""
    with pytest.raises(AttributeError, match="Wroker"):
        _ = workqueue.Wroker  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_public_names_say_what_they_are(name: str) -> None:
    """Each has a docstring of its own."""
    doc = getattr(workqueue, name).__doc__
    assert doc
    assert not doc.startswith(f"{name}(")  # what a dataclass without one would get


def test_the_version_is_the_distributions() -> None:
    """One source for both."""
    assert re.fullmatch(r"\d+\.\d+\.\d+(?:\.?(?:dev|a|b|rc)\d+)?", workqueue.__version__)
    assert version("workqueue") == workqueue.__version__
