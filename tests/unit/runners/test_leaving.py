"""After the handler has returned nothing turns a task that is done into a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.runners.jobs import ENOUGH, at_work, delivery
from workqueue.message import Delivery, Message
from workqueue.runners.child import Page
from workqueue.runners.command import CommandRunner
from workqueue.runners.process import ProcessRunner, new_page
from workqueue.runners.runner import Verdict

HANDLER = "tests.unit.runners.leaving:handle"

WAYS = [
    "no_stream",
    "no_attribute",
    "any_object",
    "failing_flush",
    "exiting_flush",
    "deadly_flush",
    "full_disk",
    "broken_pipe",
    "closed_streams",
    "closed_everything",
    "dying_thread",
]


@pytest.mark.parametrize("way", WAYS)
def test_done_is_done(way: str, tmp_path: Path) -> None:
    """Once, and so is the next one, in this child or in another."""
    ticks = tmp_path / "ticks"
    with at_work(ProcessRunner(HANDLER)) as bench:
        endings = [*bench.run(delivery(f"{way} {ticks}")), *bench.run(delivery(f"{way} {ticks}"))]
    assert [ending.verdict for ending in endings] == [Verdict.DONE] * 2
    assert ticks.read_text() == "xx"


def test_a_rejection_is_one_too(tmp_path: Path) -> None:
    """With its reason, though the child died before it could say it."""
    with at_work(ProcessRunner(HANDLER)) as bench:
        [ending] = bench.run(delivery(f"reject_and_die {tmp_path / 'ticks'}"))
    assert (ending.verdict, ending.reason) == (Verdict.REJECTED, "never")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("runner", ["process", "command", "thread"])
def test_applications_without_standard_streams(tmp_path: Path, runner: str, closed: str) -> None:
    """Each task is done once, and what it prints goes nowhere."""
    (tmp_path / "tasks.py").write_text(
        "import sys\n"
        "def handle(job):\n"
        f"    with open({str(tmp_path / 'ticks')!r}, 'ab', buffering=0) as file:\n"
        "        file.write(b'x')\n"
        "    print('hello', flush=True)\n"
        "    print('hello', file=sys.stderr, flush=True)\n"
    )
    script = f"echo hello; echo hello >&2; printf x >> {tmp_path / 'ticks'}; exit 0"
    (tmp_path / "app.py").write_text(
        "from workqueue import Producer, Worker, connect\n"
        "from workqueue.runners.command import CommandRunner\n"
        "import tasks\n"
        f"queue = connect('sqlite:///{tmp_path}/jobs.db').queue('jobs')\n"
        "for n in range(5): Producer(queue).send(n)\n"
        f"runner = CommandRunner(['sh', '-c', {script!r}])\n"
        f"runner = runner if {runner!r} == 'command' else {runner!r}\n"
        "tally = Worker(queue, tasks.handle, concurrency=2, runner=runner).run(until_empty=True)\n"
        f"open({str(tmp_path / 'tally')!r}, 'w').write(f'{{tally.done}} {{tally.retried}}')\n"
    )
    line = f"exec {sys.executable} app.py {closed}"
    subprocess.run(["sh", "-c", line], cwd=tmp_path, timeout=4 * ENOUGH, check=True)
    assert (tmp_path / "tally").read_text() == "5 0"
    assert (tmp_path / "ticks").read_text() == "x" * 5


def test_what_cannot_be_handed_over() -> None:
    """Headers may be anything. That message is set aside, and the next one is done."""
    endless: dict[str, object] = {}
    endless["self"] = endless
    for runner in (ProcessRunner("tests.unit.runners.handlers:obey"), CommandRunner(["true"])):
        with at_work(runner) as bench:
            odd = Delivery(message=Message(body=b"", headers=endless), queue="jobs")
            first, second = bench.run(odd, delivery("nothing"))
        assert first.verdict is Verdict.REJECTED
        assert "cannot be given to a" in first.reason
        assert second.verdict is Verdict.DONE


def test_the_page() -> None:
    """It keeps what was written last, and nothing that is too long or half written."""
    with new_page() as file:
        page, other = Page(file.fileno()), Page(file.fileno())
    assert other.read() == b""
    page.write(b"first")
    assert other.read() == b"first"
    page.write(b"x" * Page.SIZE)
    assert other.read() == b""
    page.write(b"last")
    assert other.read() == b"last"
    page.close()
    other.close()
