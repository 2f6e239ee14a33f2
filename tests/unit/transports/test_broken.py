"""The conformance suite fails drivers that break a promise: one that passes them is no suite."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import Phase, settings

from tests.unit.transports.broken import BROKEN, HostedTransport, SQLiteOf, echo_server
from workqueue.errors import WorkqueueError
from workqueue.testing import TransportSuite, suite
from workqueue.transports.memory import MemoryTransport
from workqueue.transports.sqlite import SQLiteTransport

TAKES_TIME = {
    "test_a_delay_is_waited_for",
    "test_a_short_delay_overtakes_a_long_one",
    "test_delays_and_properties",
    "test_a_retry_waits",
    "test_another_time_is_not_an_attempt",
    "test_a_message_may_expire",
    "test_delays_survive_their_consumer",
    "test_a_ttl_counts_from_when_it_is_ready",
    "test_a_queues_ttl_begins_again_with_a_retry",
    "test_purge_leaves_what_waits_for_its_time",
    "test_what_is_out_does_not_expire",
    "test_dead_letters_keep",
    "test_a_message_is_handed_out_at_once",
    "test_closing_gives_back_at_once",
    "test_wake_is_quick",
}

WATCHES_THE_CLOCK = {
    "test_receive_gives_up",
    "test_receive_waits_for_a_message",
    "test_wake_is_remembered",
}
"""Where a machine that stands still for SHORT would make a broken driver look whole."""

PROMISES = [name for name in dir(TransportSuite) if name.startswith("test_")]


NEEDS_PROCESSES = {"test_a_killed_process_gives_back", "test_deaths_are_counted"}

NEEDS_A_HOST = {
    "test_publish_keeps_its_timeout",
    "test_connecting_ends",
    "test_receive_keeps_its_timeout",
    "test_a_cut_consumer_is_lost",
}

Driver = MemoryTransport | SQLiteTransport


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


def hurried(promise: str) -> dict[str, object]:
    """The suite's own measures for a broken driver, which often fails by letting its test wait in
    vain: short, but not so short that a whole one would fail as well."""
    patience, short = 3.0 if promise in TAKES_TIME | NEEDS_PROCESSES | NEEDS_A_HOST else 0.4, 0.05
    if promise in WATCHES_THE_CLOCK:
        patience, short = 1.5, 0.6
    # The first example that fails is enough; nobody reads the shortest.
    examples = settings(suite.examples, phases=[Phase.generate])
    return {"PATIENCE": patience, "SHORT": short, "CONNECTING": 2.0, "examples": examples}


def whole(promise: str) -> type[Driver]:
    """A driver that keeps it, and has what it takes to be asked."""
    if promise in NEEDS_PROCESSES:
        return SQLiteOf
    return HostedTransport if promise in NEEDS_A_HOST else MemoryTransport


def keep(promise: str, driver: type[Driver]) -> None:
    """Run one test of the suite, with each of its parameters, on transports of our own."""
    for parameters in parameters_of(promise):
        with ExitStack() as stack:
            run(promise, driver, parameters, stack)


def run(promise: str, driver: type[Driver], parameters: dict[str, Any], stack: ExitStack) -> None:
    """As pytest would, with the suite's own fixtures, closed in its order."""
    transport, url = made(driver, stack)
    if isinstance(transport, HostedTransport) and promise not in NEEDS_A_HOST:
        url = None  # its queues are in this process
    one = TransportSuite()
    one.open = lambda url: through(transport, url)  # type: ignore[method-assign]
    given: dict[str, Any] = {"self": one, "transport": transport, "url": url, **parameters}

    def fixture(name: str) -> Any:
        if name not in given:
            function = inspect.unwrap(getattr(TransportSuite, name)._get_wrapped_function())
            needs = inspect.signature(function).parameters
            generator = function(**{need: fixture(need) for need in needs})
            given[name] = next(generator)
            stack.callback(next, generator, None)  # whether the test fails or not
        return given[name]

    test = getattr(TransportSuite, promise)
    test(**{name: fixture(name) for name in inspect.signature(test).parameters})


def made(driver: type[Driver], stack: ExitStack) -> tuple[Driver, str | None]:
    """A transport, and the URL by which its queues are found from elsewhere."""
    if issubclass(driver, SQLiteTransport):
        folder = stack.enter_context(TemporaryDirectory(prefix="workqueue-"))
        url = f"sqlite:///{folder}/jobs.db"
        return driver(url), url
    transport = driver()
    if not isinstance(transport, HostedTransport):
        return transport, None
    url = stack.enter_context(echo_server())
    transport.server = address_in(url)
    return transport, url


def through(transport: Driver, url: str) -> Driver:
    assert isinstance(transport, HostedTransport)
    return transport.through(address_in(url))


def address_in(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return parts.hostname, parts.port


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
    wholes = {whole(promise).__doc__ for promise in PROMISES}
    assert all(lie and lie not in wholes for lie in lies)


@pytest.mark.parametrize("promise", PROMISES)
def test_a_whole_driver_passes(promise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same runner passes the reference: it is not the runner that fails the others."""
    monkeypatch.setattr(suite, "SHORT", 0.05)
    monkeypatch.setattr(suite, "CONNECTING", 2.0)
    keep(promise, whole(promise))


@pytest.mark.parametrize(
    ("promise", "driver"),
    [
        pytest.param(promise, driver, id=f"{promise}-{driver.__name__}")
        for promise, drivers in BROKEN.items()
        for driver in drivers
    ],
)
def test_a_broken_driver_fails(
    promise: str, driver: type[Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each broken driver fails the test of the promise that it breaks."""
    for name, value in hurried(promise).items():
        monkeypatch.setattr(suite, name, value)
    with unkept():
        keep(promise, driver)
