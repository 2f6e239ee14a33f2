"""workqueue demo: tasks sent, shared, retried and set aside, a worker killed, nothing lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from workqueue.broker import Broker
from workqueue.cli.options import CHECK_TRANSPORT, Session, command
from workqueue.cli.output import print_json, say
from workqueue.errors import WorkqueueError
from workqueue.message import Job
from workqueue.producer import Producer

WORKERS = 3
SLOTS = 2
TASKS = 300
PATIENCE = 40.0
"""Seconds until the demo gives up on tasks that do not come."""

JOURNAL = "WORKQUEUE_DEMO_JOURNAL"

ATTEMPTS = 3
BACKOFF = "300ms..600ms"

FAIL_ONCE = (5, 50)
"""Tasks whose first attempt fails."""

BROKEN = 20
"""A task that fails each time, until what it needs is mended."""


def add_to(app: typer.Typer) -> None:
    command(app, panel="Run")(demo)


def demo(
    session: Session,
    tasks: Annotated[int, typer.Option("-n", "--tasks", min=10, max=5_000)] = TASKS,
) -> None:
    """See it run: tasks shared, retried and set aside, a worker killed, nothing lost.

    On a file of its own, or on the broker that -u or WORKQUEUE_URL names. Exit 1 if a task was
    lost, or a worker failed.
    """
    from workqueue.testing.checked import checked

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="workqueue-demo-")))
        if session.find_url() is None:
            session = Session(
                url=f"sqlite:///{folder / 'demo.db'}",
                url_file=None,
                management_url=None,
                json=session.json,
                quiet=session.quiet,
                verbose=session.verbose,
            )
        broker = checked(stack.enter_context(session.connect()))
        show = Show(session, broker, folder, plan(tasks))
        stack.callback(show.clean_up)
        show.run()
    if show.lost or show.failed:
        raise typer.Exit(1)


def plan(tasks: int) -> list[float]:
    """Seconds each task takes: most are light, one in ten is ten times as heavy."""
    rng = random.Random(1887)
    return [rng.uniform(0.3, 0.5) if n % 10 == 0 else rng.uniform(0.02, 0.06) for n in range(tasks)]


def handle(job: Job[Any]) -> None:
    """The demo's task, run by its workers: it takes its time, and keeps a journal."""
    write_journal(job, "start")
    time.sleep(job.payload["seconds"])
    task = job.payload["task"]
    if task in FAIL_ONCE and job.attempt == 1:
        write_journal(job, "failed")
        raise ConnectionError("the printer is busy")
    if task == BROKEN and not mended_flag().exists():
        write_journal(job, "failed")
        raise FileNotFoundError("the printer has no paper")
    write_journal(job, "done")


def mended_flag() -> Path:
    return Path(os.environ[JOURNAL]).with_name("mended")


def write_journal(job: Job[Any], event: str) -> None:
    """One line, one write: whole even if the process is killed."""
    line = {
        "event": event,
        "task": job.payload["task"],
        "worker": os.getppid(),
        "redelivered": job.redelivered,
        "attempt": job.attempt,
        "at": time.time(),
    }
    with Path(os.environ[JOURNAL]).open("ab", buffering=0) as journal:
        journal.write(json.dumps(line).encode() + b"\n")


@dataclass
class Show:
    """The demo as it goes: what was sent, what the workers' journal says, what is to be shown."""

    session: Session
    broker: Broker
    folder: Path
    weights: list[float]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: dict[int, int] = field(default_factory=dict)
    done: dict[int, int] = field(default_factory=dict)
    per_worker: dict[int, int] = field(default_factory=dict)
    redelivered: set[int] = field(default_factory=set)
    failed: int = 0
    failures: int = 0
    requeued: int = 0
    began: float = 0.0
    ended: float = 0.0
    killed_at: float = 0.0
    killed: int = 0
    filled: bool = False
    position: int = 0

    def __post_init__(self) -> None:
        self.queue = self.broker.queue(f"workqueue-demo-{os.getpid()}")
        self.journal = self.folder / "journal"
        self.journal.touch()

    @property
    def lost(self) -> int:
        return len(self.weights) - len(self.done)

    def run(self) -> None:
        payloads = [{"task": n, "seconds": seconds} for n, seconds in enumerate(self.weights)]
        with Producer(self.queue) as producer:
            sent = producer.send_many(payloads)
        self.filled = True
        scheme = self.session.find_url() or ""
        self.tell(f"sent {sent} tasks to {self.queue.name} on {scheme.partition(':')[0]}")
        self.workers = [self.launch() for _ in range(WORKERS)]
        self.tell(f"started {WORKERS} workers, {SLOTS} at once in each")
        with self.view() as refresh:
            self.watch(refresh)
        self.dismiss()
        self.summary()

    def launch(self) -> subprocess.Popen[bytes]:
        """A worker as anybody would start it. The URL goes by environment: `ps` shows arguments."""
        arguments = ["work", self.queue.name, "workqueue.cli.demo:handle", "-c", str(SLOTS)]
        arguments += ["--max-attempts", str(ATTEMPTS), "--backoff", BACKOFF]
        url = self.session.find_url()
        assert url is not None
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "workqueue", *arguments, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if self.session.verbose else subprocess.DEVNULL,
            env={
                **os.environ,
                "WORKQUEUE_URL": url,
                CHECK_TRANSPORT: "1",
                JOURNAL: str(self.journal),
            },
        )

    def watch(self, refresh: Any) -> None:
        """Until all is done, killing one worker on the way."""
        deadline = time.monotonic() + PATIENCE
        while self.lost and time.monotonic() < deadline:
            self.read_journal()
            if not self.killed and len(self.done) > len(self.weights) / 3:
                self.kill_one()
            if self.lost == 1 and not self.requeued:
                self.bring_back()
            refresh()
            time.sleep(0.05)

    def read_journal(self) -> None:
        with self.journal.open("rb") as journal:
            journal.seek(self.position)
            for line in journal:
                if not line.endswith(b"\n"):
                    break
                self.position += len(line)
                self.note(json.loads(line))

    def note(self, entry: dict[str, Any]) -> None:
        task, worker, at = entry["task"], entry["worker"], entry["at"]
        self.began = self.began or at
        if entry["event"] == "start":
            self.started[task] = worker
            if entry["redelivered"] and task not in self.redelivered:
                self.redelivered.add(task)
                self.tell(f"task {task} came back and runs again, in worker {worker}")
        elif entry["event"] == "failed":
            self.failures += 1
            self.started.pop(task, None)
            if task == BROKEN and entry["attempt"] == ATTEMPTS:
                self.tell(f"task {task} failed {ATTEMPTS} times: it is set aside, with its reason")
        else:
            if entry["attempt"] > 1 and task not in self.done:
                self.tell(f"task {task} had failed, and is done at attempt {entry['attempt']}")
            self.done[task] = worker
            self.per_worker[worker] = self.per_worker.get(worker, 0) + 1
            if entry["attempt"] == 1 and task != BROKEN:
                self.ended = at  # the makespan is of what went well: the others wait on purpose

    def bring_back(self) -> None:
        """All is done but what was set aside: its cause is mended, and it is sent again."""
        letters = list(self.queue.dead.letters(limit=1))
        if not letters:
            return
        self.read_journal()
        self.tell(f"one dead letter: {letters[0].reason}; mending that, and requeueing it")
        self.journal.with_name("mended").touch()
        self.requeued = len(self.queue.dead.requeue(limit=1))

    def kill_one(self) -> None:
        """The worker that has most in its hands just now."""
        running = [worker for task, worker in self.started.items() if task not in self.done]
        victim = max(self.workers, key=lambda worker: running.count(worker.pid))
        victim.kill()
        self.killed, self.killed_at = victim.pid, time.time()
        count = running.count(victim.pid)
        self.tell(f"killed worker {victim.pid} (SIGKILL) with {count} tasks running")

    def dismiss(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.returncode and worker.pid != self.killed:
                self.failed += 1
                self.tell(f"worker {worker.pid} exited {worker.returncode}: -v shows why")

    def clean_up(self) -> None:
        """Whatever happened: no worker and no queue of ours is left behind."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        try:
            self.queue.delete(dead_letters=True)
        except WorkqueueError as error:
            if self.filled:
                say(f"the demo's queue {self.queue.name} is still there: {error}")

    # -- what is shown

    def tell(self, text: str) -> None:
        since = f"{time.time() - self.began:5.1f} s" if self.began else "  0.0 s"
        self.session.say(f"{since}  {text}")

    @contextmanager
    def view(self) -> Iterator[Any]:
        """A live picture on a terminal; elsewhere the lines are enough."""
        if self.session.quiet or not sys.stderr.isatty():
            yield lambda: None
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        with Live(console=console, refresh_per_second=10, transient=True) as live:
            self.tell = lambda text: live.console.print(  # type: ignore[method-assign]
                f"{time.time() - self.began if self.began else 0:5.1f} s  {text}", highlight=False
            )
            yield lambda: live.update(self.picture())
        del self.tell

    def picture(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for column in ("worker", "done", ""):
            table.add_column(column, justify="left" if not column else "right")
        for worker in self.workers:
            done = self.per_worker.get(worker.pid, 0)
            dead = worker.pid == self.killed
            bar = Text("█" * (done * 100 // len(self.weights)), style="red" if dead else "green")
            table.add_row(f"{worker.pid}{' killed' if dead else ''}", str(done), bar)
        table.add_row("all", f"{len(self.done)}/{len(self.weights)}", "")
        return table

    def ideal(self) -> float:
        """Seconds that as many slots as there were would have needed, never idle: all of them up
        to the kill, and those of the others after it."""
        work, slots = sum(self.weights), WORKERS * SLOTS
        until_kill = max(0.0, self.killed_at - self.began) if self.killed else 0.0
        if not self.killed or work <= until_kill * slots:
            return work / slots
        return until_kill + (work - until_kill * slots) / (slots - SLOTS)

    def summary(self) -> None:
        makespan = max(self.ended - self.began, 0.0)
        figures = {
            "sent": len(self.weights),
            "handled": len(self.done),
            "redelivered": len(self.redelivered),
            "failed": self.failures,
            "requeued": self.requeued,
            "lost": self.lost,
            "makespan_s": round(makespan, 2),
            "ideal_s": round(self.ideal(), 2),
        }
        if self.session.json:
            print_json(figures)
            return
        print()
        for name, value in figures.items():
            label, unit = (name.removesuffix("_s"), " s") if name.endswith("_s") else (name, "")
            print(f"  {label:<12}{value:>8}{unit}")
        print()
        print(f"  now try:  {program()} send hello world")
        print(f"            {program()} work hello --exec --until-empty -- cat")


def program() -> str:
    """What the user has to type to run this command."""
    import shutil

    named = os.environ.get("WORKQUEUE_PROGRAM")
    if named:
        return named
    found = shutil.which("workqueue")
    if found and Path(found).resolve().parent == Path(sys.executable).resolve().parent:
        return "workqueue"
    script = Path(sys.executable).parent / "workqueue"
    return os.path.relpath(script) if script.exists() else f"{sys.executable} -m workqueue"
