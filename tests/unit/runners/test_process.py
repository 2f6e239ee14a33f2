"""Child processes: what a job does to its process, it does to itself alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.runners.jobs import ENOUGH, TO_BEGIN, at_work, delivery, few_threads, gone, pid_in
from workqueue.errors import ConfigError, HandlerNotFound, Unsupported
from workqueue.middleware import Middleware
from workqueue.runners import process
from workqueue.runners.process import ProcessRunner, how_it_died
from workqueue.runners.runner import Verdict
from workqueue.testing import eventually

HANDLER = "tests.unit.runners.handlers:obey"


@pytest.mark.parametrize(
    ("body", "verdict", "reason"),
    [
        ("nothing", Verdict.DONE, ""),
        ("fail x", Verdict.FAILED, "LookupError: no x"),
        ("reject never", Verdict.REJECTED, "never"),
        ("sys.exit bye", Verdict.FAILED, "SystemExit: bye"),
        ("exit 3", Verdict.FAILED, "its process exited with status 3"),
        ("segfault", Verdict.FAILED, "its process was killed by signal 11 (SIGSEGV)"),
        ("kill", Verdict.FAILED, "its process was killed by signal 9 (SIGKILL)"),
    ],
)
def test_how_a_job_can_end(body: str, verdict: Verdict, reason: str) -> None:
    """Each way is told apart, and the slot goes on."""
    with at_work(ProcessRunner(HANDLER)) as bench:
        bad, good = bench.run(delivery(body), delivery("nothing"))
    assert (bad.verdict, bad.reason) == (verdict, reason)
    assert good.verdict is Verdict.DONE


def test_the_traceback_is_the_handlers() -> None:
    with at_work(ProcessRunner(HANDLER)) as bench:
        [ending] = bench.run(delivery("fail x"))
    assert "LookupError: no x\nsecond line" in ending.error
    assert "in obey" in ending.error
    assert "runners/handler.py" not in ending.error


def test_another_time() -> None:
    with at_work(ProcessRunner(HANDLER)) as bench:
        [ending] = bench.run(delivery("later 2.5"))
    assert (ending.verdict, ending.delay) == (Verdict.LATER, 2.5)


@pytest.mark.parametrize("word", ["fork", "system"])
def test_what_a_job_has_started_does_not_hide_its_death(word: str) -> None:
    """Processes that live on have none of the child's ends of its sockets."""
    with at_work(ProcessRunner(HANDLER)) as bench:
        [ending] = bench.run(delivery(word))
    assert (ending.verdict, ending.reason) == (Verdict.FAILED, "its process exited with status 7")


def test_a_crash_is_nobody_elses(tmp_path: Path) -> None:
    """Neighbours and later jobs do not notice."""
    with at_work(ProcessRunner(HANDLER), slots=3) as bench:
        bodies = ["exit 1", "segfault", "kill", *["nothing"] * 20]
        endings = bench.run(*map(delivery, bodies))
    verdicts = [ending.verdict for ending in endings]
    assert verdicts == [Verdict.FAILED] * 3 + [Verdict.DONE] * 20


def test_what_a_job_is_told(tmp_path: Path) -> None:
    """In a process that is not this one."""
    told = tmp_path / "told"
    with at_work(ProcessRunner(HANDLER)) as bench:
        bench.run(delivery(f"who {told}", attempt=3, redelivered=True))
    pid, *rest = told.read_text().split()
    assert int(pid) != os.getpid()
    assert rest == ["3", "True", "jobs"]


def test_large_bodies() -> None:
    """Larger than any buffer between the processes."""
    with at_work(ProcessRunner(HANDLER)) as bench:
        [ending] = bench.run(delivery(b"x" * 5_000_000))
    assert ending.verdict is Verdict.DONE


def test_coroutines() -> None:
    with at_work(ProcessRunner("tests.unit.runners.handlers:wait")) as bench:
        endings = bench.run(delivery("a"), delivery("b"))
    assert {ending.verdict for ending in endings} == {Verdict.DONE}


@pytest.mark.parametrize("word", ["hang", "stubborn", "grandchild"])
def test_a_job_that_takes_too_long(tmp_path: Path, word: str) -> None:
    """It is stopped with all that it started, even if it does not want to; the slot goes on."""
    note = tmp_path / "pid"
    with at_work(ProcessRunner(HANDLER)) as bench:
        job = delivery(f"{word} {note}")
        bench.runner.run(job, TO_BEGIN)
        pid = pid_in(note)
        [late] = bench.endings(job)
        [good] = bench.run(delivery("nothing"), timeout=ENOUGH)
        eventually(lambda: gone(pid), within=ENOUGH)
    assert (late.verdict, late.reason) == (Verdict.FAILED, "timed out after 3 s")
    assert good.verdict is Verdict.DONE
    if word == "hang":
        assert "time.sleep(600)" in late.error


def test_a_lost_job_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may finish by itself."""
    monkeypatch.setattr(process, "LOST_NOTICE", ENOUGH)
    note = tmp_path / "note"
    with at_work(ProcessRunner(HANDLER)) as bench:
        job = delivery(f"listen {note}")
        bench.runner.run(job)
        eventually(note.exists, within=ENOUGH)
        bench.runner.lose([job])
        [ending] = bench.endings(job)
    assert ending.verdict is Verdict.DONE


def test_a_lost_job_is_stopped_then(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with at_work(ProcessRunner(HANDLER)) as bench:
        job = delivery(f"hang {note}")
        bench.runner.run(job)
        pid = pid_in(note)
        bench.runner.lose([job])
        [ending] = bench.endings(job)
        eventually(lambda: gone(pid), within=ENOUGH)
    assert ending.verdict is Verdict.STOPPED


def test_a_lost_job_that_may_finish(tmp_path: Path) -> None:
    """With finish_lost it is told, and left alone."""
    note = tmp_path / "note"
    with at_work(ProcessRunner(HANDLER, finish_lost=True)) as bench:
        job = delivery(f"listen {note}")
        bench.runner.run(job)
        eventually(note.exists, within=ENOUGH)
        bench.runner.lose([job])
        assert bench.endings(job)[0].verdict is Verdict.DONE


def test_stopping_all(tmp_path: Path) -> None:
    """What runs and what waits: not their fault."""
    notes = [tmp_path / name for name in ("a", "b")]
    with at_work(ProcessRunner(HANDLER), slots=2) as bench:
        jobs = [delivery(f"hang {notes[0]}"), delivery(f"stubborn {notes[1]}")]
        for job in jobs:
            bench.runner.run(job)
        pids = [pid_in(note) for note in notes]
        bench.runner.stop()
        endings = bench.endings(*jobs)
    assert {ending.verdict for ending in endings} == {Verdict.STOPPED}
    eventually(lambda: all(map(gone, pids)), within=ENOUGH)


def test_a_daemon_is_left_after_closing(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with at_work(ProcessRunner(HANDLER)) as bench:
        bench.runner.run(delivery(f"daemon {note}"))
        pid = pid_in(note)
    # Of a worker that ends in order: it asked to be on its own.
    assert not gone(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_killed_worker_leaves_nothing(tmp_path: Path) -> None:
    """No child, and no grandchild that left its session."""
    note = tmp_path / "pid"
    script = (
        "from tests.unit.runners.jobs import at_work, delivery\n"
        "from workqueue.runners.process import ProcessRunner\n"
        f"with at_work(ProcessRunner({HANDLER!r})) as bench:\n"
        f"    bench.run(delivery('daemon {note}'))\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": "."})
    try:
        pid = pid_in(note)
        worker.kill()
        eventually(lambda: gone(pid), within=ENOUGH)
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nosuch:handle", "there is no module nosuch"),
        ("tests.unit.runners.handlers:nosuch", "has no nosuch"),
        ("tests.unit.runners.handlers:NUMBER", "is not a function but a int"),
        ("nosuch.py:handle", "there is no file nosuch.py"),
        ("handle", "name the handler as module:function"),
        ("h\udcff:handle", "that is not UTF-8"),
    ],
)
def test_handlers_that_cannot_be_imported(name: str, told: str) -> None:
    """Said before anything is run, in one line."""
    runner = ProcessRunner(name)
    with pytest.raises(HandlerNotFound, match=told) as caught:
        runner.start(2, lambda: None)
    assert "\n" not in str(caught.value)
    runner.close()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise LookupError('no config')", "failed: LookupError: no config"),
        ("import nosuch.thing", "failed: ModuleNotFoundError: No module named 'nosuch'"),
        ("import sys; sys.exit('bye')", "failed: SystemExit: bye"),
        ("import os; os._exit(4)", "ended its process: it exited with status 4"),
        ("def handle(:", "failed: SyntaxError"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path: Path, source: str, told: str) -> None:
    """Whatever they do instead."""
    (tmp_path / "broken.py").write_text(source)
    runner = ProcessRunner(f"{tmp_path}/broken.py:handle")
    with pytest.raises(HandlerNotFound, match=told):
        runner.start(1, lambda: None)


def test_what_a_child_cannot_import() -> None:
    with pytest.raises(HandlerNotFound, match="cannot be imported by its name"):
        ProcessRunner(lambda job: None)
    with pytest.raises(Unsupported, match="cannot be around"):

        class Wraps(Middleware):
            def handle(self, job, call_next):  # type: ignore[no-untyped-def]
                return call_next(job)

        ProcessRunner(HANDLER, middleware=[Wraps()])


def test_output_appears_with_its_job(capfd: pytest.CaptureFixture[str]) -> None:
    """Also when it is no terminal that it goes to."""
    with at_work(ProcessRunner(HANDLER)) as bench:
        bench.run(delivery("print hello"))
        assert "hello\n" in capfd.readouterr().out


def test_reloading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are replaced when their files change, and wait for the next change if that fails."""
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "changing.py"
    module.write_text("from workqueue import Reject\ndef handle(job): raise Reject('old')\n")
    with at_work(ProcessRunner("changing.py:handle", reload=True)) as bench:
        assert bench.run(delivery("x"))[0].reason == "old"
        module.write_text(
            "from workqueue import Reject\ndef handle(job): raise Reject('new one')\n"
        )
        os.utime(module, (1, 1))

        def renewed() -> bool:
            return bench.run(delivery("x"))[0].reason == "new one"

        eventually(renewed, within=ENOUGH)


def test_exit_statuses_in_words() -> None:
    assert how_it_died(3) == "exited with status 3"
    assert how_it_died(-15) == "was killed by signal 15 (SIGTERM)"
    assert how_it_died(-99) == "was killed by signal 99"


# -- several jobs at once ----------------------------------------------------------------------


@pytest.mark.parametrize("word", ["kill", "exit 3", "segfault"])
def test_a_death_is_that_of_one_job(tmp_path: Path, word: str) -> None:
    """Those before it in its run are done, those behind it run elsewhere, and each once."""
    file = tmp_path / "ticks"
    with at_work(ProcessRunner(HANDLER), slots=2) as bench:
        jobs = [delivery(f"tick {file}") for _ in range(300)]
        bad = [delivery(word), delivery(word)]
        mixed = [*jobs[:120], bad[0], *jobs[120:220], bad[1], *jobs[220:]]
        endings = {ending.delivery: ending for ending in bench.run(*mixed)}
    assert {endings[job].verdict for job in jobs} == {Verdict.DONE}
    assert {endings[job].verdict for job in bad} == {Verdict.FAILED}
    assert all("its process" in endings[job].reason for job in bad)
    assert file.stat().st_size == 300


def test_a_failure_in_a_run_is_told_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job has its own ending, in the order of the jobs."""
    # What a child was held up in is taken back, and how long each took is not heard then.
    monkeypatch.setattr(process, "HELD_UP", ENOUGH)
    with at_work(ProcessRunner(HANDLER)) as bench:
        jobs = [delivery("fail x" if n % 7 == 0 else "nothing") for n in range(100)]
        endings = bench.run(*jobs)
    for number, ending in enumerate(endings):
        assert ending.verdict is (Verdict.DONE if number % 7 else Verdict.FAILED)
        assert ending.seconds is not None


def test_what_has_not_begun_can_be_recalled(tmp_path: Path) -> None:
    """Whatever its child is doing; what runs goes on, and what comes later runs."""
    note = tmp_path / "note"
    file = tmp_path / "ticks"
    with at_work(ProcessRunner(HANDLER)) as bench:
        bench.run(*[delivery("nothing") for _ in range(50)])  # so that runs are long
        first, rest = delivery(f"listen {note}"), [delivery(f"tick {file}") for _ in range(50)]
        for job in (first, *rest):
            bench.runner.run(job)
        eventually(note.exists, within=ENOUGH)
        bench.runner.recall()
        assert {ending.verdict for ending in bench.endings(*rest)} == {Verdict.UNTOUCHED}
        later = delivery(f"tick {file}")
        bench.runner.run(later)
        bench.runner.lose([first])
        assert bench.endings(first, later)[1].verdict is Verdict.DONE
    assert file.stat().st_size == 1


def test_a_long_job_holds_up_none_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other slot does all the others, also those that were given to its child already."""
    monkeypatch.setattr(process, "LOST_NOTICE", ENOUGH)
    note = tmp_path / "note"
    with at_work(ProcessRunner(HANDLER), slots=2) as bench:
        bench.run(*[delivery("nothing") for _ in range(50)])
        long = delivery(f"listen {note}")
        jobs = [long, *[delivery("nothing") for _ in range(100)]]
        for job in jobs:
            bench.runner.run(job)
        assert {ending.verdict for ending in bench.endings(*jobs[1:])} == {Verdict.DONE}
        bench.runner.lose([long])
        assert bench.endings(long)[0].verdict is Verdict.DONE


@pytest.mark.parametrize("which", ["workqueue-children", "workqueue-guard"])
def test_a_start_without_enough_threads_leaves_nothing(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No child and no watchdog; and closing such a runner is no error."""
    few_threads(monkeypatch, 0, which)
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(subprocess, "Popen", kept_in(started))
    before = set(Path("/proc/self/fd").iterdir())
    runner = ProcessRunner(HANDLER)
    with pytest.raises(ConfigError, match="can't start new thread"):
        runner.start(2, lambda: None)
    runner.close()
    assert started
    assert all(process.poll() is not None for process in started)
    assert set(Path("/proc/self/fd").iterdir()) <= before


def kept_in(started: list[subprocess.Popen[bytes]]) -> Any:
    class Kept(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            started.append(self)

    return Kept
