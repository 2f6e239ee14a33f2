"""A pytest plugin: the report of a failed test of the suite has the promise that was broken.

A bare `assert 3 == 2` says what was found, and not what was promised. The suite registers it.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator
from typing import Any

import pytest

TITLE = "the promise"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and (told := promise_of(item)):
        report.sections.insert(0, (TITLE, told))
    return report


def promise_of(item: pytest.Item) -> str:
    """The sentence that a test of the suite holds a transport to; "" for any other test."""
    from workqueue.testing.suite import TransportSuite

    kind: Any = getattr(item, "cls", None)
    if not (isinstance(kind, type) and issubclass(kind, TransportSuite)):
        return ""
    name = getattr(item, "originalname", item.name)
    test = getattr(kind, name, None)
    return f"{name}: {inspect.getdoc(test)}" if test is not None and test.__doc__ else ""
