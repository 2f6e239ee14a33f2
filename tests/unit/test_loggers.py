"""What strangers say, in the logs of applications: plainly visible, and not without end."""

from __future__ import annotations

import ast
import importlib
import io
import logging
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workqueue
from workqueue import Job, Middleware, Producer, Reject, RetryLater, RetryPolicy, Worker, connect
from workqueue.loggers import LONGEST, LONGEST_TRACEBACK, logger, plain

HOSTILE = "\x1b[2J\x1b]52;c;aGk=\x07\nERROR workqueue: fake\r\x9b31m\u202egnp.exe\u2028\x7f\x00"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What an application's own handler writes, with Python's usual formatter."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    ours = logging.getLogger("workqueue")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.DEBUG)
    yield written
    ours.removeHandler(handler)
    ours.setLevel(level)


def is_plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_all_loggers_are_ours() -> None:
    """Each that a module of ours has, whoever made it."""
    for module in pkgutil.walk_packages(workqueue.__path__, "workqueue."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    manager = logging.getLogger().manager
    ours = [name for name in manager.loggerDict if name.startswith("workqueue.")]
    assert len(ours) > 4
    for name in ours:
        found = manager.loggerDict[name]
        assert isinstance(found, logging.PlaceHolder) or plain in found.filters, name


def test_texts_of_lines_are_our_own() -> None:
    """What varies is a value, which is escaped, and never within the text, which is not."""
    found = 0
    for file in Path(workqueue.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and is_log_call(node.func):
                found += 1
                assert isinstance(node.args[0], ast.Constant), f"{file}:{node.lineno}"
    assert found > 20


def is_log_call(called: ast.expr) -> bool:
    return (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Name)
        and called.value.id == "log"
        and called.attr in ("debug", "info", "warning", "error", "exception", "critical")
    )


class Careless(Middleware):
    """Fails with the text of a message."""

    def settled(self, outcome: Any, seconds: float) -> None:
        raise ValueError(f"{HOSTILE} {'x' * 100_000}")


def test_a_worker_of_an_application(lines: io.StringIO) -> None:
    """In each line that a message can cause."""

    def handle(job: Job[Any]) -> None:
        match job.payload, job.attempt:
            case "fails", 1:
                raise ValueError(HOSTILE)
            case "rejected", _:
                raise Reject(HOSTILE * 1000)
            case "later", 1:
                raise RetryLater(0.1)

    with connect("memory://hostile-log") as broker:
        queue = broker.queue("q", retry=RetryPolicy(first=0.0))
        with Producer(queue) as producer:
            for payload in ("fails", "rejected", "fine"):
                producer.send(payload, id=f"{payload}{HOSTILE}", type=HOSTILE)
        worker = Worker(queue, handle, middleware=[Careless()])
        assert worker.run(max_messages=4).settled == 4
    told = lines.getvalue()
    for word in ("again in", "set aside", "done", "middleware Careless failed", "Traceback"):
        assert word in told
    assert is_plain(told)
    assert not [line for line in told.splitlines() if line.startswith("ERROR workqueue: fake")]
    assert len(told) < 10 * LONGEST + 4 * (LONGEST_TRACEBACK + LONGEST)


@pytest.mark.parametrize("name", ["worker", "rabbitmq", "sqlite", "producer", "health"])
def test_values_of_any_kind(name: str, lines: io.StringIO) -> None:
    """Errors, objects and texts; numbers stay what they are."""

    class Odd:
        def __str__(self) -> str:
            return HOSTILE

    log = logger(name)
    log.warning("%s %s %s %d %.1f", HOSTILE, ValueError(HOSTILE), Odd(), 7, 2.5)
    log.warning("%s", HOSTILE * 100_000)
    log.warning("no values: 100%")
    told = lines.getvalue()
    assert is_plain(told)
    assert "7 2.5" in told
    assert len(told.splitlines()) == 3
    assert len(told) < 10_000


def test_what_cannot_be_shown(lines: io.StringIO) -> None:
    """Is named, and neither the line nor the thread that logs is lost."""

    class Broken(Exception):
        def __str__(self) -> str:
            raise KeyboardInterrupt

    class WithoutNotes(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise KeyboardInterrupt

    log = logger("rabbitmq")
    log.warning("first: %s", Broken())
    log.warning("second", exc_info=Broken())
    log.warning("third", exc_info=WithoutNotes())
    told = lines.getvalue()
    assert "first: Broken (its __str__ raised KeyboardInterrupt)" in told
    assert "second" in told
    assert "WithoutNotes (its traceback raised KeyboardInterrupt)" in told.partition("third")[2]


def test_what_is_reported_is_the_exception_itself(lines: io.StringIO) -> None:
    """Handlers that send it elsewhere get all of it."""
    seen: list[logging.LogRecord] = []
    log = logger("worker")
    handler = logging.Handler()
    handler.emit = seen.append  # type: ignore[method-assign]
    log.addHandler(handler)
    error = LookupError(HOSTILE)
    log.error("it failed", exc_info=error)
    log.removeHandler(handler)
    [record] = seen
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert is_plain(lines.getvalue())
