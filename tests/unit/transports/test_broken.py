"""The conformance suite fails drivers that break a promise: one that passes them is no suite."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import Phase, settings

from tests.unit.transports.broken import BROKEN
from workqueue.errors import WorkqueueError
from workqueue.testing import TransportSuite, suite
from workqueue.transport import QueueSpec
from workqueue.transports.memory import MemoryTransport

TAKES_TIME = {
    "test_a_delay_is_waited_for",
    "test_a_short_delay_overtakes_a_long_one",
    "test_delays_and_properties",
    "test_a_retry_waits",
    "test_another_time_is_not_an_attempt",
    "test_a_message_may_expire",
    "test_delays_survive_their_consumer",
}

WATCHES_THE_CLOCK = {
    "test_receive_gives_up",
    "test_receive_waits_for_a_message",
    "test_wake_is_remembered",
}
"""Where a machine that stands still for SHORT would make a broken driver look whole."""

PROMISES = [name for name in dir(TransportSuite) if name.startswith("test_")]


@contextmanager
def unkept() -> Iterator[None]:
    """What a broken promise looks like: a failed test, or an error that the seam knows.

    Anything else would be a bug in the broken driver itself.
    """
    with pytest.raises(
        (AssertionError, pytest.fail.Exception, WorkqueueError, ValueError)
    ) as caught:
        yield
    if isinstance(caught.value, ValueError):
        assert "settled once" in str(caught.value)


def keep(promise: str, make_transport: Callable[[], MemoryTransport]) -> None:
    """Run one test of the suite, with each of its parameters, on transports of our own."""
    for parameters in parameters_of(promise):
        run(promise, make_transport(), parameters)


def run(promise: str, transport: MemoryTransport, parameters: dict[str, Any]) -> None:
    queue = f"suite-{uuid.uuid4().hex[:12]}"
    transport.declare(QueueSpec(name=queue))
    fixtures: dict[str, Callable[[], Any]] = {
        "transport": lambda: transport,
        "queue": lambda: queue,
        "publisher": transport.publisher,
        "consumer": lambda: transport.consumer(queue, 10),
    }
    test = getattr(TransportSuite(), promise)
    given = {
        name: parameters[name] if name in parameters else fixtures[name]()
        for name in inspect.signature(test).parameters
    }
    test(**given)


def parameters_of(promise: str) -> Iterator[dict[str, Any]]:
    marks = getattr(getattr(TransportSuite, promise), "pytestmark", [])
    for mark in marks:
        assert mark.name == "parametrize", f"this runner does not know the mark {mark.name}"
        name, values = mark.args
        yield from ({name: value} for value in values)
    if not marks:
        yield {}


def test_each_promise_has_a_broken_driver() -> None:
    """A test that joins the suite comes with a driver that it fails, and none is left behind."""
    assert set(BROKEN) == set(PROMISES)


def test_broken_drivers_tell_their_lie() -> None:
    """Each says in a line of its own what is wrong with it."""
    lies = [driver.__doc__ for drivers in BROKEN.values() for driver in drivers]
    assert all(lie and lie != MemoryTransport.__doc__ for lie in lies)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_whole_driver_passes(promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same runner passes the reference: it is not the runner that fails the others."""
    monkeypatch.setattr(suite, "SHORT", 0.05)
    keep(promise, MemoryTransport)


@pytest.mark.parametrize(
    ("promise", "driver"),
    [
        pytest.param(promise, driver, id=f"{promise}-{driver.__name__}")
        for promise, drivers in BROKEN.items()
        for driver in drivers
    ],
)
def test_a_broken_driver_fails(
    promise: str, driver: type[MemoryTransport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each broken driver fails the test of the promise that it breaks."""
    # Short, because a broken driver often fails by letting its test wait in vain; but not so short
    # that a whole one would fail as well.
    patience, short = 3.0 if promise in TAKES_TIME else 0.4, 0.05
    if promise in WATCHES_THE_CLOCK:
        patience, short = 1.5, 0.6
    monkeypatch.setattr(suite, "PATIENCE", patience)
    monkeypatch.setattr(suite, "SHORT", short)
    # The first example that fails is enough; nobody reads the shortest.
    monkeypatch.setattr(suite, "settings", partial(settings, phases=[Phase.generate]))
    with unkept():
        keep(promise, driver)
