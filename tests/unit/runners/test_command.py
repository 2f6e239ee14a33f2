"""Commands: the body on stdin, the outcome as the exit status."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.unit.runners.jobs import ENOUGH, TO_BEGIN, at_work, delivery, gone, pid_in
from workqueue.errors import HandlerNotFound
from workqueue.message import Delivery, Message
from workqueue.runners import command
from workqueue.runners.command import CommandRunner
from workqueue.runners.runner import Ending, Verdict
from workqueue.testing import eventually


def shell(script: str, **options: Any) -> CommandRunner:
    return CommandRunner(["sh", "-c", script], **options)


def run(script: str, body: str | bytes = "x", **options: Any) -> Ending:
    with at_work(shell(script, **options)) as bench:
        return bench.run(delivery(body))[0]


@pytest.mark.parametrize(
    ("script", "verdict", "reason"),
    [
        ("exit 0", Verdict.DONE, ""),
        ("exit 65", Verdict.REJECTED, "the command exited with status 65"),
        ("exit 75", Verdict.AGAIN, "the command exited with status 75"),
        ("exit 1", Verdict.FAILED, "the command exited with status 1"),
        ("exit 255", Verdict.FAILED, "the command exited with status 255"),
        ("kill -9 $$", Verdict.FAILED, "the command was killed by signal 9 (SIGKILL)"),
        ("echo why >&2; exit 4", Verdict.FAILED, "the command exited with status 4: why"),
    ],
)
def test_what_the_exit_status_says(script: str, verdict: Verdict, reason: str) -> None:
    ending = run(script)
    assert (ending.verdict, ending.reason) == (verdict, reason)


def test_the_end_of_stderr_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    """And goes on to ours; what is no text is shown escaped."""
    ending = run("seq 1 100000 >&2; printf 'last \\377\\n' >&2; exit 1")
    assert ending.reason.endswith("last \\xff")
    assert len(ending.error) <= 5_000
    assert "99999" in ending.error
    assert capfd.readouterr().err.startswith("1\n2\n")


def test_the_body_is_on_stdin(tmp_path: Path) -> None:
    """Of any size, to its last byte, and never part of a command line."""
    for body in (b"", b"$(touch hacked) ; `ls`", bytes(range(256)) * 8_000):
        out = tmp_path / "out"
        assert run(f"cat > {out}", body).verdict is Verdict.DONE
        assert out.read_bytes() == body


def test_a_command_need_not_read(tmp_path: Path) -> None:
    """Not the whole body, nor any of it."""
    assert run("exit 0", b"x" * 3_000_000).verdict is Verdict.DONE
    assert run("head -c 10 > /dev/null", b"x" * 3_000_000).verdict is Verdict.DONE


def test_what_it_finds_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKQUEUE_URL", "amqp://secret")
    out = tmp_path / "env"
    job = Delivery(
        message=Message(body=b"", id="me", headers={"tenant": "ada", "n": 1}),
        queue="jobs",
        attempt=4,
    )
    with at_work(shell(f"env > {out}", withheld=("WORKQUEUE_URL",))) as bench:
        bench.run(job)
    found = dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)
    assert found["WORKQUEUE_ID"] == "me"
    assert found["WORKQUEUE_QUEUE"] == "jobs"
    assert found["WORKQUEUE_ATTEMPT"] == "4"
    assert json.loads(found["WORKQUEUE_HEADERS"]) == {"tenant": "ada", "n": 1}
    assert "WORKQUEUE_URL" not in found
    assert found["PATH"] == os.environ["PATH"]


def test_what_no_environment_can_hold() -> None:
    """Set aside: no other try can succeed."""
    with at_work(shell("exit 0")) as bench:
        nul = Delivery(message=Message(body=b"", id="a\0b"), queue="jobs")
        huge = Delivery(message=Message(body=b"", headers={"x": "y" * 3_000_000}), queue="jobs")
        endings = bench.run(nul, huge, delivery("good"))
    assert [ending.verdict for ending in endings] == [
        Verdict.REJECTED,
        Verdict.REJECTED,
        Verdict.DONE,
    ]
    assert "cannot be given to a command" in endings[0].reason


def test_what_it_leaves_running_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Even if that holds its stderr open."""
    note = tmp_path / "pid"
    ending = run(f"sleep 600 & echo $! > {note}; exit 0")
    assert ending.verdict is Verdict.DONE
    pid = pid_in(note)
    if not gone(pid):
        os.kill(pid, signal.SIGKILL)


def test_one_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped with its children; one that cleans up may."""
    monkeypatch.setattr(command, "CLEANUP_TIME", ENOUGH)
    note, cleaned = tmp_path / "pid", tmp_path / "cleaned"
    script = f"trap 'touch {cleaned}; exit 0' TERM; sleep 600 & echo $! > {note}; wait"
    with at_work(shell(script)) as bench:
        [ending] = bench.run(delivery("x"), timeout=TO_BEGIN)
        assert (ending.verdict, ending.reason) == (Verdict.FAILED, "timed out after 3 s")
        [good] = bench.run(delivery("x"), timeout=TO_BEGIN)
    assert cleaned.exists()
    assert good.verdict is Verdict.FAILED
    eventually(lambda: gone(pid_in(note)), within=ENOUGH)


def test_one_that_ignores_being_asked(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with at_work(shell(f"trap '' TERM; echo $$ > {note}; while :; do sleep 1; done")) as bench:
        [ending] = bench.run(delivery("x"), timeout=TO_BEGIN)
    assert ending.reason == "timed out after 3 s"
    eventually(lambda: gone(pid_in(note)), within=ENOUGH)


def test_stopping_and_losing(tmp_path: Path) -> None:
    """Stopped by us is not its fault; with finish_lost it is left alone."""
    note = tmp_path / "pid"
    with at_work(shell(f"echo $$ > {note}; sleep 600")) as bench:
        job = delivery("x")
        bench.runner.run(job)
        pid = pid_in(note)
        bench.runner.lose([job])
        assert bench.endings(job)[0].verdict is Verdict.STOPPED
        eventually(lambda: gone(pid), within=ENOUGH)
    with at_work(shell("sleep 0.2", finish_lost=True)) as bench:
        job = delivery("x")
        bench.runner.run(job)
        bench.runner.lose([job])
        assert bench.endings(job)[0].verdict is Verdict.DONE


def test_after_a_stop_nothing_begins() -> None:
    with at_work(shell("sleep 600")) as bench:
        jobs = [delivery("a"), delivery("b")]
        for job in jobs:
            bench.runner.run(job)
        bench.runner.stop()
        endings = bench.endings(*jobs)
    assert [ending.verdict for ending in endings] == [Verdict.STOPPED] * 2


def test_a_stop_while_one_is_being_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked to stop as well, and not forgotten."""
    starting, go_on = threading.Event(), threading.Event()

    class Slow(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            starting.set()
            assert go_on.wait(ENOUGH)
            super().__init__(*arguments, **options)

    with at_work(shell("sleep 600")) as bench:
        monkeypatch.setattr("workqueue.runners.command.subprocess.Popen", Slow)
        job = delivery("x")
        bench.runner.run(job)
        assert starting.wait(ENOUGH)
        release = threading.Timer(0.2, go_on.set)
        release.start()
        bench.runner.stop()
        assert bench.endings(job)[0].verdict is Verdict.STOPPED
        release.join()


def test_closing_kills_what_runs(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with at_work(shell(f"trap '' TERM; echo $$ > {note}; sleep 600")) as bench:
        bench.runner.run(delivery("x"))
        pid = pid_in(note)
    eventually(lambda: gone(pid), within=ENOUGH)


def test_commands_that_are_not_there() -> None:
    """Said before anything is run."""
    with pytest.raises(HandlerNotFound, match="there is no command nosuch"):
        CommandRunner(["nosuch"]).start(1, lambda: None)
    with pytest.raises(HandlerNotFound, match="needs a command"):
        CommandRunner([])


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM])
def test_a_system_without_room_is_no_failed_attempt(
    number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is no fault of the message, which comes again in a while; and it is said."""
    with at_work(shell("exit 0")) as bench:
        start = subprocess.Popen

        def refuse(*_arguments: Any, **_options: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(command.subprocess, "Popen", refuse)
        [ending] = bench.run(delivery("x"))
        assert ending.verdict is Verdict.LATER
        assert ending.delay >= 1
        assert os.strerror(number) in caplog.text
        monkeypatch.setattr(command.subprocess, "Popen", start)
        assert bench.run(delivery("x"))[0].verdict is Verdict.DONE
