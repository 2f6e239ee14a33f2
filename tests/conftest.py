"""Tests on a busy machine, in several processes, as `./dev test` runs them: what they share is got
by their parent, and what fails has failed.

No test that judges safety runs a second time: a message that is lost once in a hundred runs is
lost. Only a test with the marker `timing` is tried once more, since the machine's other work may
have been in its way; how many were is printed, and more than three fail the run.

The parent of `pytest -n 2` collects nothing, so it does not see the conftest of the tests that need
a RabbitMQ. Yet the Docker engine must be its own, to outlive each of the processes.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.supply import allowed_series, close, prepare
from workqueue.testing import TransportSuite

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would all that the tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# How long an example takes says more of the machine than of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def is_parent(config: pytest.Config) -> bool:
    return bool(getattr(config.option, "numprocesses", None))


def pytest_sessionstart(session: pytest.Session) -> None:
    if is_parent(session.config) and not os.environ.get("WORKQUEUE_TEST_AMQP_URL"):
        prepare(session.config, allowed_series())


def pytest_unconfigure(config: pytest.Config) -> None:
    if is_parent(config):
        close(config)


# -- a second try ----------------------------------------------------------------------------------

MOST_RERUNS = 3

SAFETY = ("machine", "chaos", "torture", "fault", "promises", "cluster", "broken", "suite")
"""Words in the paths of tests that judge whether something is lost: these never run again."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test with the marker `timing` runs once more if it fails, and no other does."""
    for item in items:
        if item.get_closest_marker("flaky"):
            raise pytest.UsageError(f"{item.nodeid}: use the marker timing, if it judges only that")
        if not item.get_closest_marker("timing"):
            continue
        if judges_safety(item.path, getattr(item, "cls", None)):
            raise pytest.UsageError(f"{item.nodeid} judges safety: it may not run again")
        item.add_marker(pytest.mark.flaky(reruns=1))


def judges_safety(path: Path, kind: type | None) -> bool:
    names = {path.stem, path.parent.name}
    of_the_suite = kind is not None and issubclass(kind, TransportSuite)
    return of_the_suite or any(word in name for word in SAFETY for name in names)


def reruns(config: pytest.Config) -> list[str]:
    """The tests that were run again, in any of the processes; in the parent alone."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return [] if reporter is None else [one.nodeid for one in reporter.stats.get("rerun", [])]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if len(reruns(session.config)) > MOST_RERUNS and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which, for somebody to look into."""
    again = reruns(config)
    verdict = (
        f": more than {MOST_RERUNS}, so this run has failed" if len(again) > MOST_RERUNS else ""
    )
    terminalreporter.write_line(f"{len(again)} timing tests were run again{verdict}")
    for name in again:
        terminalreporter.write_line(f"  {name}")
