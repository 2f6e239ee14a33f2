"""Tests on a busy machine, in several processes, as `./dev test` runs them: what they share is got
by their parent.

The parent of `pytest -n 2` collects nothing, so it does not see the conftest of the tests that need
a RabbitMQ. Yet the Docker engine must be its own, to outlive each of the processes.
"""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.integration.supply import allowed_series, close, prepare

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
