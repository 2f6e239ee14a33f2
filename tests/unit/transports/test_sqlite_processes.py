"""Several processes on one file: killed, stopped, forked, racing. Real ones, as only they let the
kernel show what it does with their locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from workqueue.message import Message, new_id
from workqueue.testing import eventually
from workqueue.transport import Ack, QueueSpec
from workqueue.transports.sqlite import SQLiteTransport
from workqueue.transports.sqlite.consumer import SQLiteConsumer
from workqueue.transports.sqlite.life import lock_folder

PATIENCE = 30.0
"""Seconds. How long something that must happen may take on a slow, shared machine."""

BEGINNING = """
import os, signal, sys, time
from workqueue.errors import *
from workqueue.message import Message
from workqueue.transport import Ack
from workqueue.transports.sqlite import SQLiteTransport, rows, store

transport = SQLiteTransport(sys.argv[1])


def say(*words):
    print(*words, flush=True)


"""

Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def transport(tmp_path: Path) -> SQLiteTransport:
    """With the queue `q`."""
    transport = SQLiteTransport(f"sqlite:///{tmp_path}/jobs.db")
    transport.declare(QueueSpec(name="q"))
    return transport


@pytest.fixture
def start(transport: SQLiteTransport) -> Iterator[Start]:
    """Runs a program that has `transport` and `say`, in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        program = BEGINNING + textwrap.dedent(code)
        url = f"sqlite:///{transport.address.path}"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, url],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def heard(process: subprocess.Popen[str]) -> str:
    """The next line that the process says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def send(transport: SQLiteTransport, *bodies: bytes) -> None:
    with closing(transport.publisher()) as sender:
        sender.publish("q", [Message(body=body, id=new_id()) for body in bodies], PATIENCE)


def arrives(worker: SQLiteConsumer) -> bytes:
    """The body of the next message, which is acknowledged."""

    def arrived() -> bytes | None:
        """a message has arrived"""
        taken = worker.receive(1, 0.2)
        worker.settle([Ack(delivery) for delivery in taken])
        return taken[0].message.body if taken else None

    return eventually(arrived, within=PATIENCE)  # type: ignore[return-value]


HOLDS_ONE = """
    worker = transport.consumer("q", 1)
    [delivery] = worker.receive(1, 30)
    say("has it")
    sys.stdin.readline()
    worker.settle([Ack(delivery)])
    say("done")
"""


def test_a_killed_process_gives_back_what_it_held(transport: SQLiteTransport, start: Start) -> None:
    send(transport, b"x")
    holder = start(HOLDS_ONE)
    assert heard(holder) == "has it"
    with closing(transport.consumer("q", 1)) as other:
        assert other.receive(1, 0) == []
        holder.send_signal(signal.SIGKILL)
        assert arrives(other) == b"x"
    assert list(lock_folder(transport.address.path).iterdir()) == []


def test_a_stopped_process_keeps_what_it_holds(transport: SQLiteTransport, start: Start) -> None:
    """However often the others look; and when it goes on, it acknowledges as if nothing was."""
    send(transport, b"x")
    holder = start(HOLDS_ONE)
    assert heard(holder) == "has it"
    holder.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)
    with closing(transport.consumer("q", 1)) as other:
        for _ in range(20):
            other.next_beat = 0.0
            assert other.receive(1, 0.05) == []
    assert transport.stats("q").in_flight == 1
    holder.send_signal(signal.SIGCONT)
    holder.communicate("go on\n", timeout=PATIENCE)
    assert holder.returncode == 0
    assert (transport.stats("q").ready, transport.stats("q").in_flight) == (0, 0)


def test_a_process_that_is_killed_inside_a_transaction(
    transport: SQLiteTransport, start: Start
) -> None:
    """Nothing of it is done, and nobody has to wait for its lock."""
    send(transport, b"before")
    victim = start("""
        sender = transport.publisher()
        parcel = rows.pack(Message(body=b"half"), 10_000)
        with sender.database.transaction() as connection:
            queue = store.find_queue(connection, "q")
            store.put(connection, queue, [parcel] * 1000, time.time(), sent=True)
            connection.execute("DELETE FROM messages WHERE body = ?", (b"before",))
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert victim.wait(PATIENCE) == -signal.SIGKILL
    impatient = SQLiteTransport(f"sqlite:///{transport.address.path}?timeout=0")
    send(impatient, b"after")
    with closing(impatient.consumer("q", 1)) as worker:
        assert [arrives(worker), arrives(worker)] == [b"before", b"after"]
    found = transport.stats("q")
    assert (found.ready, found.in_flight, found.sent, found.done) == (0, 0, 2, 2)


def test_processes_that_race_for_the_same_messages(
    transport: SQLiteTransport, start: Start
) -> None:
    """Each message goes to one of them, each of them gets some, and none is lost."""
    count = 2_000
    send(transport, *[b"%d" % n for n in range(count)])
    racers = [
        start("""
            worker = transport.consumer("q", 3)
            say("ready")
            sys.stdin.readline()
            while taken := worker.receive(3, 1):
                say(*[delivery.message.body.decode() for delivery in taken])
                worker.settle([Ack(delivery) for delivery in taken])
            worker.close()
        """)
        for _ in range(4)
    ]
    for racer in racers:
        assert heard(racer) == "ready"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    handled = [racer.communicate(timeout=PATIENCE)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4
    assert sorted(int(word) for words in handled for word in words) == list(range(count))
    assert all(handled)
    found = transport.stats("q")
    assert (found.ready, found.in_flight, found.done) == (0, 0, count)


def test_a_forked_child_is_told_and_does_no_harm(transport: SQLiteTransport, start: Start) -> None:
    """Neither what it tries nor its end touches what its parent holds, not even a transaction."""
    send(transport, b"x")
    parent = start("""
        sender, worker = transport.publisher(), transport.consumer("q", 1)
        [delivery] = worker.receive(1, 30)
        with sender.database.transaction() as connection:
            queue = store.find_queue(connection, "q")
            store.put(connection, queue, [rows.pack(Message(body=b"y"), 10_000)], time.time())
            if os.fork() == 0:
                for attempt, wanted in (
                    (lambda: sender.publish("q", [Message(body=b"z")], 1), ConnectionLost),
                    (lambda: worker.receive(1, 1), ConsumerLost),
                    (lambda: worker.settle([Ack(delivery)]), ConsumerLost),
                ):
                    try:
                        attempt()
                    except wanted as error:
                        assert "forked" in str(error), error
                    else:
                        say("not refused")
                sender.close(), worker.close()
                say("child is done")
                sys.stdout.flush()
                os._exit(0)
            os.wait()
        worker.settle([Ack(delivery)])
        [delivery] = worker.receive(1, 30)
        say(delivery.message.body.decode())
        worker.settle([Ack(delivery)])
        worker.close(), sender.close()
    """)
    assert parent.communicate(timeout=PATIENCE)[0].splitlines() == ["child is done", "y"]
    assert parent.returncode == 0
    found = transport.stats("q")
    assert (found.ready, found.in_flight, found.done) == (0, 0, 2)


def test_another_process_wakes_a_waiting_consumer(transport: SQLiteTransport, start: Start) -> None:
    """Long before the consumer's own turn would end."""
    waiting = start("""
        worker = transport.consumer("q", 1)
        worker.receive(1, 0)
        say("waits")
        say(*[delivery.message.body.decode() for delivery in worker.receive(1, 600)])
    """)
    assert heard(waiting) == "waits"
    send(transport, b"wake up")
    assert heard(waiting) == "wake up"
