"""A run: senders and workers in processes of their own, what is done to them, and the quiet after.

attack   faults, one after the other, while senders send and workers work
heal     everything is whole again; senders finish their shares, workers what was sent
drain    the workers leave, and another takes what may be left
verdict  the histories are held against each other (see `checker`)
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from workqueue.cli.options import CHECK_TRANSPORT
from workqueue.cli.torture.checker import End, History, Letter, Verdict, check
from workqueue.cli.torture.handler import FOLDER, LONGEST
from workqueue.cli.torture.ledger import Reader
from workqueue.cli.torture.nemesis import Fault, Stroke
from workqueue.cli.torture.proxy import BOTH, Proxy
from workqueue.queue import Queue
from workqueue.runners.guard import Guard
from workqueue.runners.watchdog import MARK

ATTEMPTS = 3
SLOTS = 2
GRACE = 10.0
LEAVING = 30.0
"""Seconds for a process that was asked to leave: its grace period, a last send that times out, and
a slow machine."""

FLAPS = 4

LONGEST_TASK = 0.5
"""Seconds, for those that are not slow on purpose."""

STARTING = 20.0
"""Seconds for a process to come so far that it works, and can leave in order."""

PATIENCE = 30.0
"""Seconds in which nothing more comes, after which the rest is taken for lost."""

TICK = 0.05


@dataclass(frozen=True)
class Roles:
    """How senders and workers are started: the arguments after `python`.

    `sender` is given its number, its share of the messages and the time by which to be through.
    """

    sender: Callable[[int, int, float], list[str]]
    worker: list[str]
    drain: list[str]


def usual_roles(queue: str, seed: int) -> Roles:
    """The installed package's own."""
    work = ["-P", "-m", "workqueue", "work", queue, "workqueue.cli.torture.handler:handle"]
    work += ["--max-attempts", str(ATTEMPTS), "--backoff", "100ms..400ms", "--grace", f"{GRACE}s"]
    work += ["--ack", "late"]

    def sender(number: int, share: int, until: float) -> list[str]:
        words = (queue, number, share, seed, until)
        return ["-P", "-m", "workqueue.cli.torture.sender", *map(str, words)]

    return Roles(sender, [*work, "-c", str(SLOTS)], [*work, "-c", "4", "--until-empty"])


@dataclass
class Program:
    """A process of the run. `doomed`: we killed it; `dismissed`: we asked it to leave."""

    name: str
    process: subprocess.Popen[bytes]
    doomed: bool = False
    dismissed: bool = False

    @property
    def runs(self) -> bool:
        return self.process.poll() is None


@dataclass
class Siege:
    """One run on one queue, in a folder that is its own. `tell` is given a line for each event.

    `url` is what the senders and workers are given, perhaps by way of `proxies`; `queue` is the
    real one, past them.
    """

    queue: Queue
    url: str
    folder: Path
    roles: Roles
    messages: int
    workers_count: int = 3
    senders_count: int = 2
    proxies: Sequence[Proxy] = ()
    patience: float = PATIENCE
    tell: Callable[[str], None] = lambda _line: None
    look: Callable[[Siege], None] = lambda _siege: None
    history: History = field(default_factory=History)
    ends: list[End] = field(default_factory=list)
    faults: int = 0
    resumed: float | None = None

    def __post_init__(self) -> None:
        self.reader = Reader(self.folder)
        self.guard = Guard()
        self.began = time.time()
        self.until = self.began
        self.longest = 0.0
        self.started = 0
        self.workers: list[Program] = []
        self.senders: list[Program | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """Whatever happened, no process of ours is left."""
        for program in self.programs():
            if program.runs:
                program.process.kill()
                program.process.wait()
        self.guard.close()

    # -- the four parts

    def run(self, strokes: Iterator[Stroke], seconds: float, heal: Callable[[], None]) -> None:
        """All but the verdict. `heal` undoes what the caller's own faults may have left."""
        try:
            self.attack(strokes, seconds)
        finally:
            heal()
        self.recover()
        self.drain()

    def attack(self, strokes: Iterator[Stroke], seconds: float) -> None:
        """Until the time is up, which counts from when the first message is handled."""
        # So long that half of all slots are busy: whoever is killed has something in its hands.
        slots = self.workers_count * SLOTS
        self.longest = min(slots * seconds / self.messages, LONGEST_TASK)
        self.workers = [self.start_worker(number) for number in range(self.workers_count)]
        self.wait(lambda: all(heeds_sigterm(w.process.pid) for w in self.workers), STARTING)
        self.until = time.time() + seconds
        self.senders = [self.start_sender(number) for number in range(self.senders_count)]
        self.wait(lambda: bool(self.history.done), STARTING)
        self.until = time.time() + seconds
        for stroke in strokes:
            self.pause(stroke.pause)
            if time.time() >= self.until:
                break
            self.tell(stroke.land())
            self.faults += 1
            self.supervise()

    def recover(self) -> None:
        """No more faults: all senders finish, and everything that they sent is worked on."""
        for proxy in self.proxies:
            proxy.heal()
        healed, done = time.time(), self.history.done.total()
        self.tell("no more faults: finishing")

        def nothing_owed() -> bool:
            if self.resumed is None and self.history.done.total() > done:
                self.resumed = time.time() - healed
            return not any(self.senders) and not self.owed()

        self.wait_while_moving(nothing_owed)

    def drain(self) -> None:
        """The workers leave in order; then the queue is worked empty once more."""
        for program in self.programs():
            self.dismiss(program)
        for program in self.programs():
            self.await_end(program)
        last = self.start("drain", self.roles.drain)
        self.workers = [last]
        self.wait_while_moving(lambda: not last.runs)
        self.await_end(last)
        self.workers = []
        self.read()

    def verdict(self, secrets: Collection[str] = ()) -> Verdict:
        """`secrets` must stand in no output."""
        letters = list(self.letters())
        leaks = self.outputs_with(secrets)
        return check(self.history, letters, self.ends, leaks, max_attempts=ATTEMPTS)

    # -- what is there at the end

    def owed(self) -> set[str]:
        """Confirmed, and not done; what failed as often as it may is on its way to the dead."""
        waiting = self.history.confirmed - self.history.done.keys()
        return {key for key in waiting if self.history.failures[key] < ATTEMPTS}

    def letters(self) -> Iterator[Letter]:
        for letter in self.queue.dead.letters():
            digest = hashlib.sha256(letter.message.body).hexdigest()
            yield Letter(letter.id or "without id", digest)

    def outputs_with(self, secrets: Collection[str]) -> list[str]:
        """The outputs in which one of `secrets` stands."""
        texts = {path.name: path.read_bytes() for path in self.folder.glob("*.out")}
        return [
            name
            for name, text in texts.items()
            if any(secret.encode() in text for secret in secrets)
        ]

    # -- processes

    def programs(self) -> list[Program]:
        return [*self.workers, *(sender for sender in self.senders if sender)]

    def start(self, name: str, arguments: Sequence[str]) -> Program:
        """The URL goes by environment: `ps` shows arguments."""
        self.started += 1
        environment = {
            name: value
            for name, value in self.guard.environment().items()
            if not name.startswith("WORKQUEUE_") or name == MARK  # the user's own settings
        }
        with (self.folder / f"{self.started:03}-{name.replace(' ', '-')}.out").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**environment, **self.own_environment()},
                start_new_session=True,  # Ctrl-C is for us: we end them
            )
        self.guard.watch(process.pid)
        return Program(name, process)

    def own_environment(self) -> dict[str, str]:
        return {
            "WORKQUEUE_URL": self.url,
            CHECK_TRANSPORT: "1",
            FOLDER: str(self.folder),
            LONGEST: str(self.longest),
        }

    def start_worker(self, number: int) -> Program:
        return self.start(f"worker {number}", self.roles.worker)

    def start_sender(self, number: int) -> Program:
        share = len(range(number, self.messages, self.senders_count))
        return self.start(f"sender {number}", self.roles.sender(number, share, self.until))

    def supervise(self) -> None:
        """Whoever ended is replaced, but a sender that has sent its share."""
        for number, worker in enumerate(self.workers):
            if not worker.runs and worker.name != "drain":
                self.note_end(worker)
                self.workers[number] = self.start_worker(number)
        for number, sender in enumerate(self.senders):
            if sender and not sender.runs:
                self.note_end(sender)
                through = sender.process.returncode == 0 and not sender.dismissed
                self.senders[number] = None if through else self.start_sender(number)

    def note_end(self, program: Program) -> None:
        self.guard.release(program.process.pid)
        self.ends.append(End(program.name, program.process.returncode, program.doomed))

    def dismiss(self, program: Program) -> None:
        """SIGTERM, once it has come so far that it can heed it."""
        self.wait(lambda: heeds_sigterm(program.process.pid), STARTING)
        program.dismissed = True
        if program.runs:
            program.process.send_signal(signal.SIGTERM)

    def await_end(self, program: Program) -> None:
        """Of one that was dismissed. Who will not leave is killed, and that is on record."""
        if self.wait(lambda: not program.runs, LEAVING):
            self.note_end(program)
        else:
            program.process.kill()
            program.process.wait()
            self.guard.release(program.process.pid)
            self.ends.append(End(program.name, None))

    # -- waiting, with open eyes

    def read(self) -> None:
        self.history.add(self.reader.news())
        self.look(self)

    def pause(self, seconds: float) -> None:
        self.wait(lambda: False, seconds, watch=False)

    def wait(self, condition: Callable[[], bool], seconds: float, *, watch: bool = False) -> bool:
        """Whether `condition` came true in time. With `watch`, who ends meanwhile is replaced."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(min(TICK, max(deadline - time.monotonic(), 0)))
            self.read()
            if watch:
                self.supervise()
        return True

    def wait_while_moving(self, condition: Callable[[], bool]) -> None:
        """Until `condition` is true, or nothing has moved for so long that nothing will."""
        while True:
            before = self.history.done.total(), len(self.history.sent)
            if self.wait(condition, self.patience, watch=True):
                return
            if (self.history.done.total(), len(self.history.sent)) == before:
                return

    # -- what can be done to processes and connections

    def process_faults(self, longest_freeze: float) -> list[Fault]:
        freeze = (0.5, longest_freeze)
        return [
            Fault("kill a worker", lambda n, _s: self.kill(self.worker(n))),
            Fault("kill a sender", lambda n, _s: self.kill(self.sender(n))),
            Fault("freeze a worker", lambda n, s: self.freeze(self.worker(n), s), freeze),
            Fault("freeze a sender", lambda n, s: self.freeze(self.sender(n), s), freeze),
            Fault("stop a worker", lambda n, _s: self.stop(self.worker(n))),
            Fault("stop a sender", lambda n, _s: self.stop(self.sender(n))),
        ]

    def network_faults(self) -> list[Fault]:
        """None without a proxy."""
        if not self.proxies:
            return []
        return [
            Fault("cut all connections", self.cut),
            Fault("flap", self.flap, (0.1, 0.6)),
            Fault("cut in the middle", self.cut_after, (0.5, 1.0)),
            Fault("hold all bytes", self.stall, (0.5, 6.0)),
            Fault("lose all bytes", self.drop, (0.5, 6.0)),
            Fault("refuse connections", self.refuse, (0.5, 2.0)),
        ]

    def worker(self, number: int) -> Program:
        return self.workers[number % len(self.workers)]

    def sender(self, number: int) -> Program | None:
        return self.senders[number % len(self.senders)]

    def kill(self, program: Program | None) -> str:
        """SIGKILL; another one takes its place."""
        if program is None or not program.runs:
            return "a sender was to be killed, and has finished"
        program.doomed = True
        program.process.kill()
        program.process.wait()
        self.supervise()
        return f"killed {program.name} (SIGKILL)"

    def freeze(self, program: Program | None, seconds: float) -> str:
        """SIGSTOP, and SIGCONT later: what it says then may be long out of date."""
        if program is None or not program.runs:
            return "a sender was to be frozen, and has finished"
        os.kill(program.process.pid, signal.SIGSTOP)
        try:
            self.pause(seconds)
        finally:
            os.kill(program.process.pid, signal.SIGCONT)
        return f"froze {program.name} for {seconds} s (SIGSTOP, SIGCONT)"

    def stop(self, program: Program | None) -> str:
        """SIGTERM: it has to leave by itself, with exit code 0."""
        if program is None or not program.runs:
            return "a sender was to be stopped, and has finished"
        self.dismiss(program)
        if not self.wait(lambda: not program.runs, LEAVING):
            self.ends.append(End(program.name, None))
            program.doomed = True
            program.process.kill()
            program.process.wait()
        self.supervise()
        return f"stopped {program.name} (SIGTERM)"

    def cut(self, _number: int, _seconds: float) -> str:
        for proxy in self.proxies:
            proxy.reset_all()
        return "cut all connections (RST)"

    def flap(self, number: int, seconds: float) -> str:
        """Again and again, so that the channels are new when a slow task of an old one ends; then
        a worker dies with what it holds."""
        for _ in range(FLAPS):
            for proxy in self.proxies:
                proxy.reset_all()
            self.pause(seconds)
        killed = self.kill(self.worker(number))
        return f"cut all connections {FLAPS} times in {FLAPS * seconds:.1f} s, {killed}"

    def cut_after(self, number: int, seconds: float) -> str:
        """At some byte of the conversation, in one direction."""
        way, count = BOTH[number % 2], 1 + number % 20_000
        for proxy in self.proxies:
            proxy.cut_after(count, way)
        self.pause(seconds)
        self.heal_network()
        return f"cut a connection after {count} more bytes {way}"

    def stall(self, number: int, seconds: float) -> str:
        """No bytes and no end, in one direction or both."""
        ways = [BOTH, BOTH[:1], BOTH[1:]][number % 3]
        for proxy in self.proxies:
            proxy.stall(*ways)
        self.pause(seconds)
        self.heal_network()
        return f"held all bytes {' and '.join(ways)} for {seconds} s"

    def drop(self, _number: int, seconds: float) -> str:
        for proxy in self.proxies:
            proxy.drop()
        self.pause(seconds)
        self.heal_network()
        return f"lost all bytes for {seconds} s (half-open)"

    def refuse(self, _number: int, seconds: float) -> str:
        for proxy in self.proxies:
            proxy.refuse()
            proxy.reset_all()
        self.pause(seconds)
        self.heal_network()
        return f"refused all connections for {seconds} s"

    def heal_network(self) -> None:
        for proxy in self.proxies:
            proxy.heal()


def heeds_sigterm(pid: int) -> bool:
    """Whether the process has a handler for SIGTERM: a Python that still imports has none. Where
    /proc does not tell, it is taken to have one."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is None or bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)
