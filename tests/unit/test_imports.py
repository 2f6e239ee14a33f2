"""What a fresh interpreter loads: importing workqueue is cheap, and asking its version cheaper."""

from __future__ import annotations

import subprocess
import sys

import pytest

import workqueue

HEAVY = {"kombu", "amqp", "vine", "typer", "rich", "pydantic", "sqlite3", "asyncio"}


def loaded_by(code: str) -> set[str]:
    """The modules of a fresh interpreter that ran `code`."""
    code += "\nimport sys; print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "module",
    ["workqueue", "workqueue.transports.memory", "workqueue.transport", "workqueue.runners.child"],
)
def test_importing_loads_no_brokers_client_and_no_command_line(module: str) -> None:
    """Neither those, nor what they would bring with them."""
    loaded = loaded_by(f"import {module}")
    assert module in loaded
    assert not HEAVY & loaded


def test_a_memory_queue_loads_no_other_transport() -> None:
    """Only the transport that is asked for is loaded."""
    code = "from workqueue import *; Producer(connect('memory://').queue('q')).send(1)"
    loaded = loaded_by(code)
    assert "workqueue.transports.memory" in loaded
    assert not {"kombu", "amqp", "sqlite3", "typer", "rich"} & loaded


def test_a_sender_loads_no_worker() -> None:
    """Nor what a worker needs of a driver: most of what a command that sends does is importing."""
    loaded = loaded_by("from workqueue import *; import workqueue as w; w.Producer; w.connect")
    assert "workqueue.worker" in loaded
    loaded = loaded_by(
        "from workqueue import Producer, connect; import workqueue.transports.rabbitmq.driver; "
        "Producer(connect('amqp://nobody@localhost').queue('q'))"
    )
    assert "workqueue.transports.rabbitmq.publisher" in loaded
    assert (
        not {
            "workqueue.worker",
            "workqueue.runners",
            "workqueue.dead",
            "workqueue.task",
            "workqueue.transports.rabbitmq.consumer",
            "workqueue.transports.rabbitmq.examination",
            "workqueue.transports.rabbitmq.migration",
            "tenacity",
        }
        & loaded
    )


def test_the_version_loads_no_command_line() -> None:
    """Scripts ask for it often."""
    loaded = loaded_by(
        "import contextlib, runpy, sys; sys.argv = ['workqueue', '--version']\n"
        "with contextlib.suppress(SystemExit): runpy.run_module('workqueue', run_name='__main__')"
    )
    assert "workqueue" in loaded
    assert not HEAVY & loaded


def test_the_version_is_printed() -> None:
    """On stdout, by name."""
    done = subprocess.run(
        [sys.executable, "-m", "workqueue", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"workqueue {workqueue.__version__}\n")


def test_the_library_needs_no_testing_tools() -> None:
    """pytest and hypothesis are loaded by workqueue.testing alone."""
    loaded = loaded_by("import workqueue, workqueue.cli.app, workqueue.transports.memory")
    assert not {"pytest", "hypothesis", "workqueue.testing"} & loaded
