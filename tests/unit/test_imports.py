"""What a fresh interpreter loads: importing workqueue is cheap, and asking its version cheaper."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import workqueue
from workqueue.cli.app import MODULES, make_app

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
    loaded = loaded_by(
        "import workqueue, workqueue.transports.memory\n"
        "from workqueue.cli.app import make_app; make_app()"
    )
    assert not {"pytest", "hypothesis", "workqueue.testing"} & loaded


def test_each_command_is_where_it_is_looked_for() -> None:
    """Asked for alone, a command is there as it is among all; a word that is none finds all."""
    whole = get_command(make_app())
    assert set(whole.commands) == set(MODULES)
    for name, module in MODULES.items():
        alone = get_command(make_app([name, "--help"]))
        assert {other for other in MODULES if MODULES[other] == module} == set(alone.commands)
    assert set(get_command(make_app(["sned"])).commands) == set(MODULES)


def test_settings_are_checked_against_all_commands(tmp_path: Path, monkeypatch: Any) -> None:
    """A command that is asked for alone does not take another's setting for a mistake."""
    monkeypatch.chdir(tmp_path)
    Path("workqueue.toml").write_text("max-attempts = 3\n")
    assert set(get_command(make_app(["send"])).commands) == set(MODULES)


def test_sending_does_not_load_the_other_commands() -> None:
    """It would take most of the time."""
    loaded = loaded_by("from workqueue.cli.app import make_app; make_app(['send', 'q', 'x'])")
    assert "workqueue.cli.send" in loaded
    assert not {"workqueue.cli.work", "workqueue.cli.dead", "workqueue.worker"} & loaded
