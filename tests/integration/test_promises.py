"""The promises of the README, looked at from outside: real commands, real processes, real signals.

The same program on the embedded file and on RabbitMQ, with the same behaviour: what is in
`Promises` holds for both, and only what a transport alone can do stands elsewhere.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Vhost
from tests.integration.programs import Desk, alive, children_of, processes_with
from workqueue import QueueNotFound, connect

SOON = ("--backoff", "50ms..100ms")
"""So that no test waits for a policy's patience."""


class Promises:
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def desk(self, tmp_path: Path, url: str) -> Iterator[Desk]:
        desk = Desk(tmp_path, url)
        yield desk
        desk.close()

    # P1

    def test_work_is_shared(self, desk: Desk) -> None:
        """Two workers with commands: each message goes to one of them, and both have a share."""
        numbers = [str(number) for number in range(1, 301)]
        desk.send("numbers", *numbers)
        script = 'sleep 0.01; printf "%s\\n" "$(cat)" >> out-$PPID.txt'
        arguments = ("numbers", "--exec", "--until-empty", "-c", "4", "--", "sh", "-c", script)
        workers = [desk.start("work", *arguments) for _ in range(2)]
        assert [worker.wait().code for worker in workers] == [0, 0]
        shares = [path.read_text().split() for path in desk.folder.glob("out-*.txt")]
        assert sorted(itertools.chain(*shares), key=int) == numbers
        assert len(shares) == 2
        assert all(shares)

    # P2

    def test_acknowledged_after_the_work(self, desk: Desk) -> None:
        """A task that was begun and not finished is still the broker's."""
        desk.send("q", "once 60")
        worker = desk.work("q")
        desk.until(lambda: desk.bodies("start"), "the task to start")
        worker.kill()
        assert desk.drain("q").code == 0
        assert desk.bodies("done") == ["once 60"]

    def test_acknowledged_early_if_asked(self, desk: Desk) -> None:
        """--ack early is at most once: what was begun does not come again."""
        desk.send("q", "once 60")
        worker = desk.work("q", "--ack", "early")
        desk.until(lambda: desk.bodies("start"), "the task to start")
        time.sleep(0.5)
        worker.kill()
        assert desk.drain("q").code == 0
        assert desk.bodies("done") == []

    # P3

    def test_a_killed_worker_loses_nothing(self, desk: Desk) -> None:
        """What it ran and what it held goes to another, flagged; no child of its is left."""
        desk.send("q", "once 60 a", "once 60 b", "hold")
        worker = desk.work("q", "-c", "2", "--prefetch", "3")
        desk.until(lambda: len(desk.bodies("start")) == 2, "two tasks to start")
        children = children_of(worker.pid)
        assert len(children) >= 2
        worker.kill()
        desk.until(lambda: not any(map(alive, children)), "its children to end")
        assert desk.drain("q", "-c", "2").code == 0
        done = {entry["body"]: entry for entry in desk.journal("done")}
        assert set(done) == {"once 60 a", "once 60 b", "hold"}
        for body in ("once 60 a", "once 60 b"):
            assert done[body]["redelivered"]
            assert done[body]["attempt"] == 1

    def test_a_killed_worker_takes_the_grandchildren_along(self, desk: Desk) -> None:
        """Whatever a command started, also in a session of its own, ends with the worker."""
        mark = f"7{os.getpid() % 100000:05}.25"
        desk.send("q", "x")
        script = f"setsid sleep {mark} & sleep {mark}"
        worker = desk.start("work", "q", "--exec", "--", "sh", "-c", script)
        # The worker and the shell have it in their script: the sleepers as an argument.
        sleeper = f"sleep\0{mark}\0"
        desk.until(lambda: len(processes_with(sleeper)) >= 2, "the sleepers to start")
        worker.kill()
        desk.until(lambda: not processes_with(mark), "them to end")

    # P6, P7, P9

    def test_a_full_queue_names_what_it_did_not_take(self, desk: Desk) -> None:
        """What the sender was told, what status says and what is handled later agree."""
        assert desk.run("declare", "q", "--max-length", "10").code == 0
        bodies = "".join(f"{number}\n" for number in range(3000))
        # A third of the time is what the first answers may take.
        result = desk.run("send", "q", "-", "--timeout", "6s", "--json", stdin=bodies)
        assert result.code == 3, result.err
        assert "full" in result.err
        [told] = result.json
        assert told["sent"] >= 10
        desk.until(lambda: desk.status("q")["ready"] == told["sent"], "status to agree")
        assert desk.start("work", "q", "--exec", "--until-empty", "--", "true").wait().code == 0
        assert desk.status("q")["ready"] == 0

    def test_a_mismatch_names_the_parameter(self, desk: Desk) -> None:
        """Parameter, both values, what to do; exit 78."""
        assert desk.run("declare", "q", "--max-length", "10").code == 0
        assert desk.run("declare", "q", "--max-length", "10").code == 0
        result = desk.run("declare", "q", "--max-length", "20")
        assert result.code == 78
        assert "max length is 10, not 20" in result.err
        assert len(result.err.splitlines()) <= 3
        assert desk.run("send", "q", "x").code == 0

    def test_a_backlog_is_seen_and_worked_down(self, desk: Desk) -> None:
        """status shows it, and workers that come later help."""
        desk.send("q", *(f"sleep 0.2 {n}" for n in range(60)))
        assert desk.status("q")["ready"] == 60
        first = desk.work("q", "--until-empty")
        desk.until_done(3)
        second = desk.work("q", "--until-empty", "-c", "2")
        assert (first.wait().code, second.wait().code) == (0, 0)
        assert desk.status("q")["ready"] == 0
        assert len({entry["worker"] for entry in desk.journal("done")}) == 2
        assert len(desk.bodies("done")) == 60

    # P8

    def test_fair_dispatch(self, desk: Desk) -> None:
        """Odd tasks are heavy, even ones light: two workers need about half the time of one."""
        tasks = [f"sleep {n % 2} {n}" for n in range(16)]
        # Begin with both workers ready, so that their start is not measured.
        assert desk.run("declare", "q").code == 0
        workers = [desk.work("q", "--prefetch", "1") for _ in range(2)]
        desk.until(lambda: desk.status("q")["consumers"] == 2, "both workers")
        desk.send("q", *tasks)
        desk.until_done(16)
        makespan = self.makespan(desk)
        for worker in workers:
            worker.send(signal.SIGTERM)
            assert worker.wait().code == 0
        heavy = [entry for entry in desk.journal("done") if entry["body"].startswith("sleep 1 ")]
        assert sorted(Counter(entry["worker"] for entry in heavy).values()) == [4, 4]
        assert makespan < 8.0 * 0.8, "one worker alone would need 8 s, two at best 4 s"

    def test_fair_without_a_number(self, desk: Desk) -> None:
        """Workers that have found that tasks are tiny, and hold many, share long ones all the same:
        what waits behind one of them is handed back."""
        assert desk.run("declare", "q").code == 0
        workers = [desk.work("q") for _ in range(2)]
        desk.until(lambda: desk.status("q")["consumers"] >= 2, "both workers")
        desk.send("q", *(f"sleep 0 tiny {n}" for n in range(1000)))
        desk.until_done(1000)
        desk.send("q", *(f"sleep {1 if n % 2 else 0} {n}" for n in range(12)))
        desk.until_done(1012)
        heavy = [entry for entry in desk.journal() if entry["body"].startswith("sleep 1 ")]
        for worker in workers:
            worker.send(signal.SIGTERM)
            assert worker.wait().code == 0
        assert {entry["attempt"] for entry in desk.journal("done")} == {1}
        assert len(desk.journal("done")) == 1012, "each once"
        makespan = max(e["at"] for e in heavy) - min(e["at"] for e in heavy)
        # Three seconds for each, side by side, or one more where the machine came between; a worker
        # that kept what it had taken would need all six.
        assert makespan < 4.0 + 0.9

    def makespan(self, desk: Desk) -> float:
        began = min(entry["at"] for entry in desk.journal("start"))
        ended = max(entry["at"] for entry in desk.journal("done"))
        return float(ended - began)

    # P10

    def test_crashes_stay_where_they_happen(self, desk: Desk) -> None:
        """Exit, segfault and SIGKILL of a task are its failed attempts; its neighbours and the
        worker do not notice."""
        healthy = [f"sleep 0.05 {n}" for n in range(20)]
        desk.send("q", "exit", "segfault", "suicide", *healthy)
        worker = desk.work("q", "-c", "4", "--until-empty", *SOON)
        result = worker.wait()
        assert result.code == 0, result.err
        done = desk.journal("done")
        assert sorted(entry["body"] for entry in done) == sorted(healthy)
        assert {entry["attempt"] for entry in done} == {1}
        assert {entry["worker"] for entry in desk.journal()} == {worker.pid}
        attempts = Counter(entry["body"] for entry in desk.journal("start"))
        assert {body: attempts[body] for body in ("exit", "segfault", "suicide")} == {
            "exit": 5,
            "segfault": 5,
            "suicide": 5,
        }
        assert desk.status("q")["dead"] == 3

    def test_a_failing_task_is_set_aside_with_its_reason(self, desk: Desk) -> None:
        """Five attempts, then the dead-letter queue; its error is with it."""
        desk.send("q", "fail")
        assert desk.drain("q", *SOON).code == 0
        assert [entry["attempt"] for entry in desk.journal("start")] == [1, 2, 3, 4, 5]
        assert desk.status("q")["dead"] == 1
        [letter] = desk.run("dead", "list", "q", "--json").json
        assert (letter["body"], letter["attempt"]) == ("fail", 5)
        assert letter["reason"] == "ValueError: as asked"
        assert "Traceback" in letter["error"]

    @pytest.mark.timeout(300)
    def test_a_task_that_kills_its_worker_is_set_aside(self, desk: Desk) -> None:
        """However often the worker is started again; and those that were beside it are handled."""
        healthy = [f"sleep 0 {n}" for n in range(9)]
        desk.send("q", "parricide", *healthy)
        for _ in range(60):
            worker = desk.work("q", "-c", "4", "--prefetch", "10", "--until-empty")
            if worker.wait().code == 0:
                break
        assert worker.wait().code == 0, worker.wait().err
        assert set(desk.bodies("done")) == set(healthy)  # one may have been done just before
        assert desk.status("q")["dead"] == 1
        [letter] = desk.run("dead", "list", "q", "--json").json
        assert letter["body"] == "parricide"
        assert "workers were lost while they had it" in letter["reason"]

    def test_a_task_that_hangs_is_stopped(self, desk: Desk) -> None:
        """With all that it started; that was a failed attempt."""
        desk.send("q", "sleep 60", "sleep 0")
        assert desk.drain("q", "--timeout", "2s", "--max-attempts", "2", *SOON).code == 0
        assert desk.bodies("done") == ["sleep 0"]
        [letter] = desk.run("dead", "list", "q", "--json").json
        assert (letter["reason"], letter["attempt"]) == ("timed out after 2 s", 2)

    def test_a_retry_waits_in_the_broker(self, desk: Desk) -> None:
        """Twice it fails, and is done at the third attempt, at the times the policy says; the
        worker that failed is gone meanwhile."""
        # What keeps delays is made when it is first needed; later it is quick.
        assert desk.run("send", "another", "x", "--delay", "7s").code == 0
        desk.send("q", "twice")
        backoff = ("--backoff", "2s..4s")
        worker = desk.work("q", *backoff)
        desk.until(lambda: len(desk.bodies("start")) == 1, "the first attempt")
        # Not killed: until its retry is safe the broker would give out the first attempt again.
        worker.send(signal.SIGTERM)
        assert worker.wait().code == 0
        later = desk.work("q", *backoff)
        desk.until_done(1)
        later.send(signal.SIGTERM)
        assert later.wait().code == 0
        starts = desk.journal("start")
        assert [entry["attempt"] for entry in starts] == [1, 2, 3]
        first, second, third = (entry["at"] for entry in starts)
        # Never before 0.9 of the delay, the jitter; how much later is the machine's affair.
        assert second - first >= 1.8
        assert third - second >= 3.6

    def test_dead_letters_come_back_as_often_as_they_are_asked(self, desk: Desk) -> None:
        """By requeue and by way of JSON; each time they fail, they are dead again; looking at them
        costs them nothing."""
        desk.send("q", "fail", "exit")
        assert desk.drain("q", "--max-attempts", "1").code == 0
        for round_ in range(3):
            assert len(desk.run("dead", "list", "q", "--json").json) == 2
            if round_ % 2:
                lines = desk.run("dead", "list", "q", "--json").out
                assert desk.run("send", "q", "--envelope", "-", stdin=lines).code == 0
                assert desk.run("dead", "drop", "q", "--all", "--yes").code == 0
            else:
                assert desk.run("dead", "requeue", "q", "--all").code == 0
            assert desk.drain("q", "--max-attempts", "1").code == 0
        letters = desk.run("dead", "list", "q", "--json").json
        assert {letter["attempt"] for letter in letters} == {1}
        assert len({letter["id"] for letter in letters}) == 2

    # P7

    def test_a_queue_is_migrated_while_it_is_used(self, desk: Desk) -> None:
        """The migration is killed in the middle once; everything that was sent is handled."""
        assert desk.run("declare", "q").code == 0
        numbers = [f"sleep 0 {n}" for n in range(600)]
        desk.send("q", *numbers[:300])
        worker = desk.work("q", "-c", "2")
        sender = desk.start("send", "q", "-", stdin="".join(f"{n}\n" for n in numbers[300:]))
        migrate = ("migrate", "q", "--max-length", "100000", "--force", "--yes")
        first = desk.start(*migrate)
        time.sleep(1.0)
        first.kill()
        assert desk.run(*migrate).code == 0
        assert sender.wait().code == 0
        desk.until(lambda: set(desk.bodies("done")) == set(numbers), "all to be done")
        worker.send(signal.SIGTERM)
        assert worker.wait().code == 0
        assert desk.run("declare", "q", "--max-length", "100000").code == 0
        assert desk.run("declare", "q", "--max-length", "7").code == 78

    # P9

    def test_a_delayed_message_comes_later(self, desk: Desk) -> None:
        """Not before its time; and one whose time is over is a dead letter."""
        sent_at = time.time()
        assert desk.run("send", "q", "late", "--delay", "4s").code == 0
        assert desk.run("send", "q", "never", "--ttl", "100ms").code == 0
        desk.until(lambda: desk.status("q")["dead"] == 1, "the dead letter")
        assert desk.run("send", "q", "soon").code == 0
        worker = desk.work("q")
        desk.until_done(2)
        worker.send(signal.SIGTERM)
        assert worker.wait().code == 0
        started_at = {entry["body"]: entry["at"] for entry in desk.journal("start")}
        assert set(started_at) == {"soon", "late"}
        assert started_at["late"] - sent_at >= 4.0
        [letter] = desk.run("dead", "list", "q", "--json").json
        assert (letter["body"], letter["reason"]) == ("never", "expired")

    # P11

    def test_sigterm_finishes_and_hands_back(self, desk: Desk) -> None:
        """Four tasks run, eight more are held: the four finish, the eight are another's at once."""
        # Long enough for all four children to start before the first is done.
        desk.send("q", *(f"sleep 6 {n}" for n in range(4)), *(f"sleep 0 {n}" for n in range(8)))
        worker = desk.work("q", "-c", "4", "--prefetch", "12")
        desk.until(lambda: len(desk.bodies("start")) >= 4, "four tasks to start")
        worker.send(signal.SIGTERM)
        other = desk.work("q", "-c", "4", "--until-empty")
        result = worker.wait()
        assert result.code == 0, result.err
        assert other.wait().code == 0
        done = desk.journal("done")
        assert len(done) == 12
        assert {entry["worker"] for entry in done if "sleep 6" in entry["body"]} == {worker.pid}
        assert {entry["worker"] for entry in done if "sleep 0" in entry["body"]} == {other.pid}
        assert {entry["attempt"] for entry in done} == {1}

    def test_sigterm_twice_leaves_at_once(self, desk: Desk) -> None:
        """Out soon, without a traceback, and the tasks run again elsewhere."""
        desk.send("q", "once 60 a", "once 60 b")
        worker = desk.work("q", "-c", "2", "-v")
        desk.until(lambda: len(desk.bodies("start")) == 2, "two tasks to start")
        worker.send(signal.SIGTERM)  # two that nobody has heeded yet would be one
        desk.until(lambda: worker.says("once more to stop now"), "it to heed the first")
        worker.send(signal.SIGTERM)
        result = worker.wait(20)
        assert result.code == 143
        assert "Traceback" not in result.err
        assert desk.drain("q").code == 0
        assert sorted(desk.bodies("done")) == ["once 60 a", "once 60 b"]

    def test_ctrl_c_does_as_sigterm(self, desk: Desk) -> None:
        """And in a terminal the children, which get it too, go on."""
        desk.send("q", "sleep 1")
        worker = desk.work("q")
        desk.until(lambda: desk.bodies("start"), "the task to start")
        worker.send(signal.SIGINT)
        assert worker.wait().code == 0
        assert desk.bodies("done") == ["sleep 1"]

    def test_the_grace_period_ends(self, desk: Desk) -> None:
        """A task that outlasts it is handed back, and the worker still exits 0."""
        desk.send("q", "once 60")
        worker = desk.work("q", "--grace", "500ms")
        desk.until(lambda: desk.bodies("start"), "the task to start")
        worker.send(signal.SIGTERM)
        assert worker.wait(20).code == 0
        assert desk.drain("q").code == 0
        assert desk.bodies("done") == ["once 60"]

    # the demo

    def test_the_demo_loses_nothing(self, desk: Desk) -> None:
        """Workers, one killed in the middle, a table; exit 0 with 0 lost."""
        result = desk.run("demo", "-n", "150", "--json")
        assert result.code == 0, result.err
        [figures] = result.json
        assert (figures["sent"], figures["handled"], figures["lost"]) == (150, 150, 0)
        assert "killed worker" in result.err
        assert not processes_with(f"workqueue-demo-{desk.programs[-1].pid}")

    # the bench

    def test_the_bench_measures_and_cleans_up(self, desk: Desk) -> None:
        result = desk.run("bench", "-n", "100", "--seconds", "1s", "--json")
        assert result.code == 0, result.err
        assert len(result.json) == 5
        assert all(line["messages"] and line["per_second"] for line in result.json)
        with connect(desk.url) as broker, pytest.raises(QueueNotFound):
            broker.queue(f"workqueue-bench-{desk.programs[-1].pid}").stats()


class TestOnTheEmbeddedFile(Promises):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'jobs.db'}"


class TestOnRabbitMQ(Promises):
    @pytest.fixture
    def url(self, vhost: Vhost) -> str:
        return vhost.url
