"""Signals: a child obeys its worker alone, and what a handler starts is like anybody's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.runners.jobs import ENOUGH, TO_BEGIN, at_work, delivery, pid_in
from workqueue.message import Delivery, Message
from workqueue.runners.command import CommandRunner
from workqueue.runners.process import ProcessRunner
from workqueue.runners.runner import STOP_SIGNALS, Verdict
from workqueue.runners.watchdog import signal_session
from workqueue.testing import eventually

HANDLERS = "tests.unit.runners.signalled"


@pytest.mark.parametrize("handler", ["wait", "wait_async"])
def test_signals_of_others_change_nothing(tmp_path: Path, handler: str) -> None:
    """Many, of each kind: the job finishes, and so does the next one in the same process."""
    go_on = tmp_path / "go_on"
    with at_work(ProcessRunner(f"{HANDLERS}:{handler}")) as bench:
        jobs = [delivery(f"{tmp_path / name} {go_on}") for name in ("first", "second")]
        for job in jobs:
            bench.runner.run(job)
        pid = pid_in(tmp_path / "first")
        for number in STOP_SIGNALS * 3:
            os.kill(pid, number)
        go_on.touch()
        endings = bench.endings(*jobs)
    assert {ending.verdict for ending in endings} == {Verdict.DONE}
    assert pid_in(tmp_path / "second") == pid


def test_signals_while_children_start(tmp_path: Path) -> None:
    """Not even one that comes before it could say what it does with it ends a child."""
    note, go_on = tmp_path / "note", tmp_path / "go_on"
    go_on.touch()
    runner = ProcessRunner(f"{HANDLERS}:wait")
    launched = runner.launch_all

    def launch_all(slots: int) -> None:
        launched(slots)
        for slot in runner.slots:
            for number in STOP_SIGNALS:
                os.kill(slot.process.pid, number)

    runner.launch_all = launch_all  # type: ignore[method-assign]
    with at_work(runner, slots=2) as bench:
        assert bench.run(delivery(f"{note} {go_on}"))[0].verdict is Verdict.DONE


@pytest.mark.parametrize("handler", ["clean_up", "clean_up_async"])
@pytest.mark.parametrize("how", ["stop", "lose", "timeout"])
def test_the_worker_is_obeyed(tmp_path: Path, how: str, handler: str) -> None:
    """Its handler may clean up, and is interrupted once, though its session gets a signal too."""
    began, cleaned = tmp_path / "began", tmp_path / "cleaned"
    with at_work(ProcessRunner(f"{HANDLERS}:{handler}")) as bench:
        job = delivery(f"{began} {cleaned}")
        bench.runner.run(job, TO_BEGIN if how == "timeout" else None)
        pid = pid_in(began)
        if how == "stop":
            bench.runner.stop()
        elif how == "lose":
            bench.runner.lose([job])
        eventually(cleaned.exists, within=ENOUGH)
        signal_session(pid, signal.SIGTERM)
        [ending] = bench.endings(job)
    assert ending.verdict is (Verdict.FAILED if how == "timeout" else Verdict.STOPPED)
    assert cleaned.read_text() == "x"


@pytest.mark.parametrize("handler", ["run_program", "wrap_program", "default_again"])
def test_failures_that_a_signal_may_have_caused(tmp_path: Path, handler: str) -> None:
    """They are marked: whether all processes were signalled is known a little later."""
    note = tmp_path / "note"
    with at_work(ProcessRunner(f"{HANDLERS}:{handler}")) as bench:
        job = delivery(str(note))
        bench.runner.run(job)
        pid = pid_in(note)
        if handler != "default_again":
            eventually(lambda: len(session_of(pid)) > 1, within=ENOUGH)
        signal_session(pid, signal.SIGTERM, leader_too=handler == "default_again")
        [ending] = bench.endings(job)
    assert (ending.verdict, ending.signalled) == (Verdict.FAILED, True)


def session_of(leader: int) -> list[int]:
    from workqueue.runners.watchdog import members

    return members({leader}, mark="")


@pytest.mark.parametrize(
    ("script", "signalled"),
    [
        ("kill -TERM $$", True),
        ("kill -INT $$", True),
        ("kill -HUP $$", True),
        ("exit 143", True),
        ("exit 130", True),
        ("kill -KILL $$", False),
        ("exit 1", False),
    ],
)
def test_commands_that_die_of_a_signal(script: str, signalled: bool) -> None:
    with at_work(CommandRunner(["sh", "-c", script])) as bench:
        [ending] = bench.run(delivery("x"))
    assert (ending.verdict, ending.signalled) == (Verdict.FAILED, signalled)


def test_programs_of_a_handler_are_as_in_any_program(tmp_path: Path) -> None:
    """None of these signals is ignored or blocked in them, and a process that was forked ends."""
    out = tmp_path / "out"
    with at_work(ProcessRunner(f"{HANDLERS}:show")) as bench:
        [ending] = bench.run(delivery(str(out)))
    assert ending.verdict is Verdict.DONE, ending
    ordinary = "False False False"
    assert out.read_text().splitlines() == [ordinary, ordinary, "-2", "-15"]


def test_commands_are_as_in_any_program(tmp_path: Path) -> None:
    from tests.unit.runners.signalled import SHOW

    out = tmp_path / "out"
    with at_work(CommandRunner(["sh", "-c", f"{sys.executable} -c '{SHOW}' > {out}"])) as bench:
        bench.run(Delivery(message=Message(body=b""), queue="jobs"))
    assert out.read_text() == "False False False\n"


def test_a_watchdog_that_is_killed_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """And said; the new one knows what the old one knew."""
    runner = CommandRunner(["sleep", "600"])
    with at_work(runner) as bench:
        job = delivery("x")
        bench.runner.run(job)
        eventually(lambda: runner.guard.children, within=ENOUGH)
        first = runner.guard.process
        os.kill(first.pid, signal.SIGKILL)
        eventually(lambda: runner.guard.process is not first, within=ENOUGH)
        assert isinstance(runner.guard.process, subprocess.Popen)
    assert "watchdog of this worker was killed" in caplog.text
