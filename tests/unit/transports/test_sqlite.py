"""The SQLite transport keeps every promise, and what is its alone: a file and its ills, locks that
the kernel frees, a log that must not grow, values that a row cannot hold."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shutil
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Literal

import pytest

from workqueue import Job, Producer, Worker, connect
from workqueue.errors import (
    ConfigError,
    ConsumerLost,
    DeliveriesLost,
    NotSent,
    QueueFull,
    QueueNotFound,
    Refused,
    StorageError,
    TooLarge,
)
from workqueue.message import Delivery, Message, new_id
from workqueue.testing import (
    CheckedTransport,
    TransportSuite,
    eventually,
    transport_machine,
)
from workqueue.transport import Ack, QueueSpec, Reject, Requeue, Retry, Transport
from workqueue.transports.copies import REASON
from workqueue.transports.sqlite import (
    SQLiteTransport,
    consumer,
    database,
    place,
    publisher,
    schema,
    store,
)
from workqueue.transports.sqlite.address import parse
from workqueue.transports.sqlite.consumer import SQLiteConsumer
from workqueue.transports.sqlite.database import Database, Parameters
from workqueue.transports.sqlite.life import is_dead, lock_folder, lock_path
from workqueue.transports.sqlite.publisher import SQLitePublisher
from workqueue.transports.sqlite.upkeep import BATCH

PATIENCE = 10.0
"""Seconds. How long something that must happen may take on a slow, shared machine."""


class Counted(SQLiteTransport):
    """Looks, before a queue goes, whether its counters tell the truth."""

    def delete(self, queue: str) -> None:
        if self.address.path.exists():
            check_counters(self.address.path)
        super().delete(queue)


def check_counters(path: Path) -> None:
    with closing(sqlite3.connect(path)) as looking:
        told = looking.execute("SELECT id, ready, delayed, in_flight FROM queues").fetchall()
        true = looking.execute(
            "SELECT q.id, count(m.place) - count(m.consumer) - count(m.due_at), count(m.due_at),"
            " count(m.consumer)"
            " FROM queues q LEFT JOIN messages m ON m.queue = q.id GROUP BY q.id"
        ).fetchall()
    assert sorted(told) == sorted(true)


class TestSQLite(TransportSuite):
    @pytest.fixture
    def transport(self, tmp_path: Path) -> Iterator[Transport]:
        transport = CheckedTransport(Counted(f"sqlite:///{tmp_path}/jobs.db"))
        yield transport
        transport.close()
        assert transport.faults == []

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"


machine_files = itertools.count()
machine_folder = Path(mkdtemp(prefix="workqueue-"))


def setup_module() -> None:
    machine_folder.mkdir(exist_ok=True)


def teardown_module() -> None:
    shutil.rmtree(machine_folder)


TestMachine = transport_machine(
    lambda: Counted(f"sqlite:///{machine_folder}/{next(machine_files)}.db"), examples=25
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def transport(path: Path) -> SQLiteTransport:
    """With the queue `q`."""
    transport = SQLiteTransport(f"sqlite:///{path}")
    transport.declare(QueueSpec(name="q"))
    return transport


@pytest.fixture
def sender(transport: SQLiteTransport) -> Iterator[SQLitePublisher]:
    sender = transport.publisher()
    yield sender
    sender.close()


@pytest.fixture
def worker(transport: SQLiteTransport) -> Iterator[SQLiteConsumer]:
    worker = transport.consumer("q", 0)
    yield worker
    worker.close()


def message(body: bytes = b"x", **properties: Any) -> Message:
    return Message(body=body, id=new_id(), **properties)


def send(sender: SQLitePublisher, *bodies: bytes, to: str = "q") -> None:
    sender.publish(to, [message(body) for body in bodies], PATIENCE)


def take(worker: SQLiteConsumer, count: int) -> list[Delivery]:
    """Exactly `count` deliveries, or AssertionError."""
    taken: list[Delivery] = []

    def enough() -> bool:
        """the deliveries have arrived"""
        taken.extend(worker.receive(count - len(taken), 0.2))
        return len(taken) == count

    eventually(enough, within=PATIENCE)
    return taken


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


@contextmanager
def refused(path: Path, what: str) -> Iterator[None]:
    """A StorageError in one line, which names the file and says what happened."""
    with pytest.raises(StorageError, match=what) as caught:
        yield
    told = str(caught.value)
    assert str(path) in told
    assert "\n" not in told
    assert caught.value.__cause__ is None or not isinstance(caught.value.__cause__, StorageError)


# -- the URL -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path", "synchronous", "timeout"),
    [
        ("sqlite:///jobs.db", "{cwd}/jobs.db", "full", 10),
        ("sqlite:///data/jobs.db", "{cwd}/data/jobs.db", "full", 10),
        ("sqlite:////var/lib/jobs.db", "/var/lib/jobs.db", "full", 10),
        ("sqlite:////a%20b/%3F%23.db", "/a b/?#.db", "full", 10),
        ("sqlite:////jobs.db?synchronous=normal", "/jobs.db", "normal", 10),
        ("sqlite:////jobs.db?timeout=0.5&synchronous=full", "/jobs.db", "full", 0.5),
    ],
)
def test_urls(url: str, path: str, synchronous: str, timeout: float) -> None:
    address = parse(url)
    assert str(address.path) == path.format(cwd=Path.cwd())
    assert (address.synchronous, address.timeout) == (synchronous, timeout)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://", "names no file: write sqlite:///jobs.db"),
        ("sqlite:///", "names no file"),
        ("sqlite://jobs.db", "has no host: write sqlite:///jobs.db"),
        ("sqlite://host/jobs.db", "has no host"),
        ("sqlite://user:secret@host/jobs.db", "has no host"),
        ("sqlite:///:memory:", "memory://"),
        ("sqlite:///jobs.db#1", "%23"),
        ("sqlite:///jobs%00.db", "no file can be named so"),
        ("sqlite:///jobs.db?synchronous=off", "synchronous=off: write full or normal"),
        ("sqlite:///jobs.db?timeout=soon", "timeout=soon: write seconds"),
        ("sqlite:///jobs.db?timeout=-1", "timeout=-1"),
        ("sqlite:///jobs.db?timeout=nan", "timeout=nan"),
        ("sqlite:///jobs.db?timeout=1&timeout=2", "timeout twice"),
        ("sqlite:///jobs.db?mode=ro", "no option mode: only synchronous and timeout"),
        ("sqlite:///jobs.db?timeout", "timeout="),
    ],
)
def test_urls_that_make_no_sense(url: str, told: str) -> None:
    """One line that says what to write, and no password in it."""
    with pytest.raises(ConfigError) as caught:
        SQLiteTransport(url)
    assert told in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_transport_alone_touches_nothing(tmp_path: Path) -> None:
    """Nor does it mind a folder that is not there yet."""
    SQLiteTransport(f"sqlite:///{tmp_path}/later/jobs.db").close()
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that changes its folder goes on with the same file."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    transport = SQLiteTransport("sqlite:///jobs.db")
    monkeypatch.chdir(tmp_path / "other")
    transport.declare(QueueSpec(name="q"))
    assert (tmp_path / "jobs.db").exists()
    assert list((tmp_path / "other").iterdir()) == []


# -- the file ----------------------------------------------------------------------------------


def test_files_are_for_their_user_alone(path: Path, worker: SQLiteConsumer) -> None:
    """Tasks may hold secrets."""
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), worker.life.path):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(lock_folder(path).stat().st_mode) == 0o700


def test_looking_makes_no_file(path: Path) -> None:
    transport = SQLiteTransport(f"sqlite:///{path}")
    assert transport.queues() == []
    assert transport.declare(QueueSpec(name="q"), dry_run=True) is True
    transport.delete("q")
    for look in (transport.stats, transport.purge, lambda name: transport.consumer(name, 1)):
        with pytest.raises(QueueNotFound):
            look("q")
    assert not path.exists()


def test_an_empty_file_is_taken(path: Path) -> None:
    """As `mktemp` makes it."""
    path.touch()
    transport = SQLiteTransport(f"sqlite:///{path}")
    assert transport.declare(QueueSpec(name="q"))
    assert transport.queues() == ["q", "q.dead"]


def test_odd_names(tmp_path: Path) -> None:
    """SQLite is given a URI, in which these mean something."""
    for name in ("a?b.db", "a#b.db", "a%20b.db", "ä &=;.db"):
        path = tmp_path / name
        quoted = name.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
        SQLiteTransport(f"sqlite:///{tmp_path}/{quoted}").declare(QueueSpec(name="q"))
        assert path.exists()


def test_the_longest_name_has_its_dead_letters(transport: SQLiteTransport) -> None:
    """`NAME.dead` is longer than a name that users may choose."""
    name = "n" * 250
    transport.declare(QueueSpec(name=name))
    with closing(transport.publisher()) as sender:
        send(sender, b"x", to=name)
    worker = transport.consumer(name, 1)
    worker.settle([Reject(take(worker, 1)[0], "bad")])
    worker.close()
    assert transport.stats(name).dead == 1
    assert transport.stats(name + ".dead").ready == 1


def test_a_foreign_database_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()
    transport = SQLiteTransport(f"sqlite:///{path}")
    for use in (transport.queues, transport.publisher, lambda: transport.stats("q")):
        with refused(path, "another program"):
            use()
    assert path.read_bytes() == before


def test_another_format_is_refused(path: Path, transport: SQLiteTransport) -> None:
    with closing(sqlite3.connect(path)) as newer:
        newer.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    with refused(path, r"another version of workqueue \(format 2, ours is 1\)") as _:
        SQLiteTransport(f"sqlite:///{path}").queues()


def test_a_text_file_is_refused(path: Path) -> None:
    path.write_text("dear diary, " * 1000)
    with refused(path, "not a database"):
        SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))
    assert path.read_text().startswith("dear diary")


def test_a_damaged_file_is_refused(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """Before anything is written to it: inserting into a damaged file may well succeed."""
    send(sender, *[b"x" * 200] * 500)
    sender.close()
    content = bytearray(path.read_bytes())
    for page in range(4096 * 6, len(content) - 4096, 4096):
        content[page : page + 200] = b"\x05" * 200
    path.write_bytes(content)
    with refused(path, "damaged"):
        SQLiteTransport(f"sqlite:///{path}").publisher()


def test_a_missing_folder(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "jobs.db"
    transport = SQLiteTransport(f"sqlite:///{path}")
    for use in (transport.queues, transport.publisher, lambda: transport.stats("q")):
        with refused(path, "the folder .*missing does not exist"):
            use()
    assert not path.parent.exists()


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    with refused(tmp_path, "a folder, not a file"):
        SQLiteTransport(f"sqlite:///{tmp_path}").queues()


def test_a_pipe_in_place_of_the_file(path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(path)
    with refused(path, "not a regular file"):
        SQLiteTransport(f"sqlite:///{path}").queues()


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root may write anywhere; as somebody else, in `folder`, until the end of the block."""
    if os.geteuid() != 0:
        yield
        return
    for parent in [folder, *folder.parents]:
        if not parent.stat().st_mode & stat.S_IXOTH:
            pytest.skip(f"{parent} is closed to others, and this runs as root")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach."""
    folder = Path(mkdtemp(prefix="workqueue-"))
    folder.chmod(0o777)
    yield folder
    folder.chmod(0o777)
    shutil.rmtree(folder)


def test_a_read_only_file(open_folder: Path) -> None:
    path = open_folder / "jobs.db"
    SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))
    path.chmod(0o444)
    with as_nobody(open_folder), refused(path, "read-only for this user"):
        SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="other"))


def test_a_file_of_somebody_else(open_folder: Path) -> None:
    path = open_folder / "jobs.db"
    SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))
    path.chmod(0o000)
    with as_nobody(open_folder), refused(path, "no permission"):
        SQLiteTransport(f"sqlite:///{path}").queues()


def test_a_read_only_folder(open_folder: Path) -> None:
    path = open_folder / "jobs.db"
    open_folder.chmod(0o555)
    with as_nobody(open_folder), refused(path, "Permission denied"):
        SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))


def test_a_folder_that_cannot_be_listed(open_folder: Path) -> None:
    """Is no worse a place than another."""
    open_folder.chmod(0o733)
    with as_nobody(open_folder):
        SQLiteTransport(f"sqlite:///{open_folder}/jobs.db").declare(QueueSpec(name="q"))
    assert (open_folder / "jobs.db").exists()


def test_a_new_file_has_its_name_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power failure would take it, with all that was confirmed."""
    flushed: list[bool] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(os.path.samestat(os.fstat(descriptor), path.parent.stat()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))
    assert flushed == [True]


def test_an_old_sqlite_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StorageError, match=r"too old: 3\.35 or newer"):
        SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))


MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:30 / /srv/share rw - nfs4 server:/share rw
31 30 0:31 / /srv/share/fast rw - xfs /dev/vdb rw
32 22 0:32 / /my\\040disk rw - cifs //server/disk rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/jobs.db", "ext4"),
        ("/srv/share/jobs.db", "nfs4"),
        ("/srv/shared.db", "ext4"),
        ("/srv/share/fast/jobs.db", "xfs"),
        ("/my disk/jobs.db", "cifs"),
    ],
)
def test_the_file_system_is_known(path: str, kind: str) -> None:
    assert place.file_system(Path(path), MOUNTS) == kind


def test_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines cannot share SQLite's memory, and would damage the file."""
    here = place.file_system(path, Path("/proc/self/mountinfo").read_text())
    monkeypatch.setattr(place, "NETWORK", {here})
    with refused(path, "network file system"):
        SQLiteTransport(f"sqlite:///{path}").declare(QueueSpec(name="q"))
    assert not path.exists()


# -- trouble while in use ----------------------------------------------------------------------


@pytest.fixture
def other(path: Path, transport: SQLiteTransport) -> Iterator[sqlite3.Connection]:
    """A program that uses the same file in its own way."""
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    yield other
    other.close()


def test_a_locked_file(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher, other: sqlite3.Connection
) -> None:
    """Waited for as long as the URL says, and no longer than the sender wants."""
    impatient = SQLiteTransport(f"sqlite:///{path}?timeout=0.1")
    other.execute("BEGIN IMMEDIATE")
    with refused(path, "locked"):
        impatient.declare(QueueSpec(name="other"))
    with refused(path, "locked"):
        sender.publish("q", [message()], 0.1)
    assert impatient.declare(QueueSpec(name="q")) is False  # looking needs no lock
    assert impatient.stats("q").ready == 0
    other.execute("ROLLBACK")
    send(sender, b"x")


def test_a_lock_that_ends_is_waited_for(sender: SQLitePublisher, other: sqlite3.Connection) -> None:
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    release.start()
    send(sender, b"x")
    release.join()


def test_a_worker_outlives_a_lock(
    path: Path,
    transport: SQLiteTransport,
    sender: SQLitePublisher,
    other: sqlite3.Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However long another program holds the file: it says so once, keeps in mind what is done,
    and goes on afterwards. Nothing is done again."""
    monkeypatch.setattr(consumer, "PATIENCE", 0.05)
    handled: list[bytes] = []
    begun, locked = threading.Event(), threading.Event()

    def handle(job: Job[Any]) -> None:
        begun.set()
        locked.wait(PATIENCE)
        handled.append(job.body)

    def said() -> bool:
        """the worker says that it waits"""
        return "locked by another process" in caplog.text

    send(sender, b"a", b"b", b"c")
    worker = Worker(connect(f"sqlite:///{path}").queue("q"), handle)
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(worker.run, until_empty=True)
        assert begun.wait(PATIENCE)
        other.execute("BEGIN EXCLUSIVE")
        locked.set()
        eventually(said, within=PATIENCE)
        assert transport.stats("q").in_flight == 1  # looking needs no lock
        assert not done.done()
        other.execute("ROLLBACK")
        tally = done.result(PATIENCE)
    assert handled == [b"a", b"b", b"c"]
    assert (tally.done, transport.stats("q").done, transport.stats("q").in_flight) == (3, 3, 0)
    assert caplog.text.count("waiting until it can be used again") == 1


def test_a_consumer_heeds_its_bell_while_the_file_is_locked(
    worker: SQLiteConsumer, sender: SQLitePublisher, other: sqlite3.Connection
) -> None:
    """Its worker may be told to stop meanwhile."""
    send(sender, b"x")
    worker.database.timeout = 0.05
    other.execute("BEGIN IMMEDIATE")
    worker.wake()
    began = time.monotonic()
    assert worker.receive(1, 600) == []
    ring = threading.Timer(0.2, worker.wake)
    ring.start()
    assert worker.receive(1, 600) == []
    assert time.monotonic() - began < 600
    ring.join()
    other.execute("ROLLBACK")


def test_a_closed_consumer_says_what_could_not_be_written_down(
    worker: SQLiteConsumer,
    sender: SQLitePublisher,
    other: sqlite3.Connection,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its worker asks after closing it: until then the file may be free again."""
    send(sender, b"a", b"b")
    worker.database.timeout = 0.05
    first, _second = worker.receive(2, 5.0)
    other.execute("BEGIN IMMEDIATE")
    worker.settle([Ack(first)])
    assert worker.unsettled == 2
    worker.close()
    assert worker.unsettled == 1
    assert "1 tasks of q run again" in caplog.text
    other.execute("ROLLBACK")


def test_a_consumer_that_is_heard_in_time_has_nothing_left(
    worker: SQLiteConsumer, sender: SQLitePublisher, other: sqlite3.Connection
) -> None:
    send(sender, b"a", b"b")
    worker.database.timeout = 0.05
    first, _second = worker.receive(2, 5.0)
    other.execute("BEGIN IMMEDIATE")
    worker.settle([Ack(first)])
    other.execute("ROLLBACK")
    worker.close()
    assert worker.unsettled == 0


def test_what_is_settled_last_by_a_consumer_taken_for_dead(
    worker: SQLiteConsumer, sender: SQLitePublisher, other: sqlite3.Connection
) -> None:
    """It runs again, and is not counted as done."""
    send(sender, b"a")
    worker.database.timeout = 0.05
    received = worker.receive(1, 5.0)
    other.execute("BEGIN IMMEDIATE")
    worker.settle([Ack(delivery) for delivery in received])
    other.execute("DELETE FROM consumers")
    other.execute("COMMIT")
    worker.close()
    assert worker.unsettled == 1


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of so many bytes."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk (and not in every container)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_runs_full(tmp_path: Path) -> None:
    """A real one: first sends are refused, while claims and acknowledgements still go through; when
    others have taken the rest too, workers wait. Once there is room, nothing is lost or done again.
    """
    with small_disk(tmp_path / "disk", publisher.RESERVE + 2 * 1024 * 1024) as disk:
        transport = SQLiteTransport(f"sqlite:///{disk}/jobs.db")
        transport.declare(QueueSpec(name="q"))
        sender, worker = transport.publisher(), transport.consumer("q", 10_000)
        sent = 0
        with refused(disk / "jobs.db", "the disk is almost full"):
            while True:
                send(sender, *[b"%d" % n + b" " * 20_000 for n in range(sent, sent + 10)])
                sent += 10
        assert sent > 20
        seen = [int(body) for body in bodies(take(worker, 10))]
        held = list(worker.out)
        with (disk / "filler").open("wb") as filler:
            room = os.statvfs(disk)
            filler.write(bytes(room.f_bavail * room.f_frsize))
        assert os.statvfs(disk).f_bavail == 0
        with (
            refused(disk / "jobs.db", "the disk is almost full"),
            closing(transport.publisher()) as another,
        ):
            send(another, b"never")
        worker.settle([Ack(delivery) for delivery in held])  # written now, or kept in mind
        while taken := worker.receive(5, 0):
            seen += [int(body) for body in bodies(taken)]
            worker.settle([Ack(delivery) for delivery in taken])
        (disk / "filler").unlink()
        while taken := worker.receive(5, 0.2):
            seen += [int(body) for body in bodies(taken)]
            worker.settle([Ack(delivery) for delivery in taken])
        assert worker.unsettled == 0
        assert seen == list(range(sent))
        assert transport.stats("q").done == sent
        check_counters(disk / "jobs.db")
        sender.close()
        worker.close()


def fill_the_disk(connection: sqlite3.Connection) -> None:
    pages = connection.execute("PRAGMA page_count").fetchall()[0][0]
    connection.execute(f"PRAGMA max_page_count = {pages}").fetchall()


def empty_the_disk(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA max_page_count = 1000000").fetchall()


def test_a_full_disk_fails_the_sender(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """Nothing of the batch is stored, and all is well once there is room again."""
    fill_the_disk(sender.database.connection)
    with refused(path, "the disk is full"):
        send(sender, *[b"x" * 5_000] * 100)
    assert transport.stats("q").ready == 0
    empty_the_disk(sender.database.connection)
    send(sender, b"y")
    assert transport.stats("q").ready == 1


def test_a_disk_that_is_full_in_the_middle_of_a_batch(
    transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """What is stored is sent; what is not is named, with the reason, and nothing is both."""
    sender.database.connection.execute("PRAGMA max_page_count = 400").fetchall()
    batch = [message(b"%d" % n + b" " * 1_000) for n in range(publisher.PART * 4)]
    with pytest.raises(NotSent, match="the disk is full") as caught:
        sender.publish("q", batch, PATIENCE)
    failed = [failed for failed, _ in caught.value.failures]
    stored = len(batch) - len(failed)
    assert publisher.PART <= stored < len(batch)
    assert caught.value.sent == stored
    assert {type(cause) for _, cause in caught.value.failures} == {Refused}
    assert failed == batch[stored:]
    with closing(transport.consumer("q", 0)) as worker:
        assert bodies(take(worker, stored)) == [sent.body for sent in batch[:stored]]
        assert worker.receive(1, 0) == []


def test_on_a_full_disk_a_worker_waits(
    transport: SQLiteTransport,
    sender: SQLitePublisher,
    worker: SQLiteConsumer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was settled is kept in mind until it can be written; nothing new is taken meanwhile.

    It says so once. Nothing is settled twice, and nothing is done again.
    """
    send(sender, b"x" * 100_000)
    (delivery,) = take(worker, 1)
    send(sender, *[b"y" * 100_000] * 3)
    fill_the_disk(worker.database.connection)
    worker.settle([Reject(delivery, "bad")])
    assert worker.unsettled == 1
    for _ in range(3):
        assert worker.receive(1, 0.01) == []
    assert [
        record.message for record in caplog.records if "the disk is full" in record.message
    ] == [f"{transport.address.path}: the disk is full; waiting until it can be used again"]
    with pytest.raises(ValueError, match="settled once"):
        worker.settle([Ack(delivery)])
    assert transport.stats("q").dead == 0
    empty_the_disk(worker.database.connection)
    worker.receive(0, 0)
    assert worker.unsettled == 0
    assert (transport.stats("q").dead, transport.stats("q").in_flight) == (1, 0)
    assert bodies(take(worker, 3)) == [b"y" * 100_000] * 3


@pytest.mark.parametrize("in_time", [True, False])
def test_a_worker_that_waits_for_the_disk_says_so(
    transport: SQLiteTransport,
    sender: SQLitePublisher,
    caplog: pytest.LogCaptureFixture,
    in_time: bool,
) -> None:
    """To whoever asks whether it is ready; and, if it ends before, that the task runs again."""
    send(sender, b"x" * 100_000)
    with closing(transport.consumer("q", 1)) as worker:
        (delivery,) = take(worker, 1)
        send(sender, *[b"y" * 100_000] * 3)
        assert worker.hindered is None
        fill_the_disk(worker.database.connection)
        worker.settle([Reject(delivery, "no")])
        assert "the disk is full" in (worker.hindered or "")
        if in_time:
            empty_the_disk(worker.database.connection)
            assert len(take(worker, 1)) == 1
            assert worker.hindered is None
    assert ("1 tasks of q run again as the same attempt" in caplog.text) is not in_time
    assert (transport.stats("q").ready, transport.stats("q").dead) == (3 + (not in_time), in_time)


@pytest.mark.parametrize("outcome", ["retry", "reject"])
def test_a_copy_that_no_row_holds_is_made_smaller(
    transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer, outcome: str
) -> None:
    """Without the error text, and then without the sender's headers."""
    send(sender, b"x" * 15_000)
    sender.publish("q", [Message(body=b"y" * 15_000, headers={"theirs": "z" * 4_900})], PATIENCE)
    deliveries = take(worker, 2)
    worker.database.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 20_000)
    if outcome == "retry":
        wide = "a reason"  # what a retry adds is small; here it is just too much
        worker.database.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 19_950)
        worker.settle([Retry(one, wide) for one in deliveries])
        kept = transport.peek("q", 2)
    else:
        worker.settle([Reject(one, "a reason", "e" * 8_000) for one in deliveries])
        kept = transport.peek("q.dead", 2)
    assert [one.message.body for one in kept] == [b"x" * 15_000, b"y" * 15_000]
    assert all("workqueue-error" not in one.message.headers for one in kept)
    assert all(one.message.headers["workqueue-failures"] == 1 for one in kept)
    assert "theirs" not in kept[1].message.headers


def test_the_last_of_the_disk_is_for_workers(
    path: Path,
    transport: SQLiteTransport,
    sender: SQLitePublisher,
    worker: SQLiteConsumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Acknowledging needs room too, and what cannot be acknowledged is done again."""
    send(sender, b"x")
    monkeypatch.setattr(publisher, "RESERVE", 2**62)
    with closing(transport.publisher()) as another, refused(path, "almost full"):
        send(another, b"y")

    def noticed() -> bool:
        """the sender that has sent before looks again"""
        try:
            send(sender, b"z")
        except StorageError as error:
            return "almost full" in str(error)
        return False

    eventually(noticed, within=PATIENCE)
    worker.settle([Ack(delivery) for delivery in take(worker, 1)])


def test_a_deleted_file_is_no_place_to_send_to(
    path: Path, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """SQLite itself goes on without a word, in a file that nobody will ever read."""
    path.unlink()
    with refused(path, "deleted while in use"):
        send(sender, b"x")
    worker.next_beat = 0.0
    with pytest.raises(ConsumerLost, match=r"jobs\.db: deleted while in use"):
        worker.receive(1, 0)


def test_a_replaced_file_is_no_place_to_send_to(
    path: Path, tmp_path: Path, sender: SQLitePublisher
) -> None:
    """As when a backup is put in place while producers run."""
    shutil.copy(path, tmp_path / "backup.db")
    (tmp_path / "backup.db").replace(path)
    with refused(path, "replaced by another file"):
        send(sender, b"x")


def test_a_worker_notices_a_deleted_log(path: Path, worker: SQLiteConsumer) -> None:
    Path(f"{path}-wal").unlink()
    worker.next_beat = 0.0
    with pytest.raises(ConsumerLost, match="deleted while in use"):
        worker.receive(1, 0)


def test_a_worker_goes_on_in_a_new_file(path: Path, transport: SQLiteTransport) -> None:
    """Whoever still sends to the path expects it to be worked on."""
    handled: list[bytes] = []
    worker = Worker(connect(f"sqlite:///{path}").queue("q"), lambda job: handled.append(job.body))

    def listed() -> bool:
        """the worker is at the queue"""
        try:
            return transport.stats("q").consumers == 1
        except QueueNotFound:
            return False

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(worker.run, max_messages=1)
        eventually(listed, within=PATIENCE)
        for file in path.parent.glob("jobs.db*"):
            if file.is_file():
                file.unlink()
        transport.declare(QueueSpec(name="q"))
        with closing(transport.publisher()) as sender:
            send(sender, b"x")
        done.result(PATIENCE)
    assert handled == [b"x"]


def spoil(path: Path, how: Literal["truncated", "overwritten"]) -> None:
    """Another program damages the file."""
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(4096 * 2)
        else:
            file.write(os.urandom(path.stat().st_size))


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_file_that_is_damaged_in_use(
    path: Path, transport: SQLiteTransport, how: Literal["truncated", "overwritten"]
) -> None:
    """The consumer is lost, what comes after is refused, and all in a line that names the file."""
    transport.declare(QueueSpec(name="other"))
    sender, worker = transport.publisher(), transport.consumer("q", 10_000)
    send(sender, *[os.urandom(2_000) for _ in range(2_000)])
    sender.database.checkpoint()
    worker.close()
    sender.close()  # the last to close has copied the log
    worker = transport.consumer("q", 0)
    spoil(path, how)
    with pytest.raises(ConsumerLost, match=r"jobs\.db: (damaged|not a database|the disk failed)"):
        for _ in range(4):
            worker.settle([Ack(delivery) for delivery in worker.receive(500, 0)])
    worker.close()
    with refused(path, r"damaged|not a database|the disk failed"):
        SQLiteTransport(f"sqlite:///{path}").publisher()


def test_a_file_that_is_damaged_in_the_middle_ends_a_worker(
    path: Path, sender: SQLitePublisher
) -> None:
    """Too large to be read through at the start: what can be read is handled, and then the worker
    says what is wrong. To open the file once more, again and again, would bring nothing."""
    send(sender, *[os.urandom(2_000) for _ in range(2_000)])
    sender.database.checkpoint()
    sender.close()
    assert path.stat().st_size > database.SMALL
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 4096 * 20)
    handled: list[bytes] = []
    queue = connect(f"sqlite:///{path}").queue("q")
    with refused(path, "damaged"):
        Worker(queue, lambda job: handled.append(job.body)).run()
    assert handled


def test_a_deleted_log_is_no_place_to_send_to(path: Path, sender: SQLitePublisher) -> None:
    """The last commits are in it, and in it alone."""
    Path(f"{path}-wal").unlink()
    with refused(path, "deleted while in use"):
        send(sender, b"x")


def test_synchronous(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on the disk when `publish` and `settle` return: all, unless the URL says otherwise.

    A claim needs no flush: when the power goes, its consumer goes too.
    """
    flushed: list[int] = []
    monkeypatch.setattr(database, "FULL_FLUSH", None)
    monkeypatch.setattr(os, "fdatasync", lambda log: flushed.append(os.fstat(log).st_ino))
    for option, expected in (("", 1), ("?synchronous=full", 1), ("?synchronous=normal", 0)):
        transport = SQLiteTransport(f"sqlite:///{path}{option}")
        transport.declare(QueueSpec(name="q"))
        log = Path(f"{path}-wal")
        sender, worker = transport.publisher(), transport.consumer("q", 1)
        with closing(sender), closing(worker):
            flushed.clear()
            send(sender, b"x")
            assert flushed == [log.stat().st_ino] * expected
            flushed.clear()
            (delivery,) = take(worker, 1)
            assert flushed == []
            worker.settle([Ack(delivery)])
            assert flushed == [log.stat().st_ino] * expected


def test_others_can_commit_during_a_flush(
    path: Path, sender: SQLitePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flush serves all that have committed before it; nobody waits for the disk of another."""
    attempts: list[str] = []

    def try_to_write(_log: int) -> None:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
            attempts.append(str(other.execute("BEGIN IMMEDIATE").fetchall()))

    monkeypatch.setattr(database, "FULL_FLUSH", None)
    monkeypatch.setattr(os, "fdatasync", try_to_write)
    send(sender, b"x")
    assert attempts == ["[]"]


def together(count: int, run: Callable[[], object]) -> None:
    """`run` in `count` threads at once; what it raises is raised here."""
    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(run) for _ in range(count)]:
            done.result(timeout=PATIENCE * 3)


def test_many_threads_look_at_once(transport: SQLiteTransport) -> None:
    """Each call has its own connection, and the last one to close takes the log with it."""

    def look() -> None:
        for _ in range(30):
            transport.stats("q")
            transport.declare(QueueSpec(name="q"))

    together(6, look)


def test_threads_that_make_the_same_file(tmp_path: Path) -> None:
    """One makes it, and none finds half of it."""
    for number in range(10):
        transport = SQLiteTransport(f"sqlite:///{tmp_path}/{number}.db")
        together(4, partial(transport.declare, QueueSpec(name="q")))
        assert transport.queues() == ["q", "q.dead"]


def test_threads_that_share_a_producer(path: Path, transport: SQLiteTransport) -> None:
    """What they send at the same time is one transaction, and each knows of its own."""
    with Producer(connect(f"sqlite:///{path}").queue("q")) as producer:

        def run() -> None:
            for _ in range(25):
                producer.send("x")

        together(8, run)
    assert (transport.stats("q").ready, transport.stats("q").sent) == (200, 200)


@pytest.mark.parametrize("jump", [3_600.0, -3_600.0])
def test_a_clock_that_jumps(
    transport: SQLiteTransport,
    sender: SQLitePublisher,
    worker: SQLiteConsumer,
    monkeypatch: pytest.MonkeyPatch,
    jump: float,
) -> None:
    """Only delays and times to live go by the clock on the wall: nobody is taken for dead, nobody
    waits an hour, and what is held stays held."""
    send(sender, b"held", b"ready")
    sender.publish("q", [message(b"late", delay=1_800)], PATIENCE)
    (held,) = take(worker, 1)
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + jump)
    with closing(transport.consumer("q", 0)) as other:
        assert bodies(take(other, 2 if jump > 0 else 1)) == [b"ready", b"late"][: 1 + (jump > 0)]
        assert other.receive(1, 0.01) == []
        send(sender, b"new")
        assert bodies(take(other, 1)) == [b"new"]
        assert transport.stats("q").in_flight == (4 if jump > 0 else 3)
        worker.settle([Ack(held)])
        assert transport.stats("q").done == 1
    assert transport.stats("q").consumers == 1


# -- values ------------------------------------------------------------------------------------


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"deeper": value}
    return value


@pytest.mark.parametrize(
    "properties",
    [
        {"type": "lone \udcff"},
        {"correlation_id": "\ud800"},
        {"headers": {"text": "lone \udcff"}},
        {"headers": {"lone \udcff": 1}},
        {"headers": {"int": 2**64}},
        {"headers": {"int": -(2**63) - 1}},
        {"headers": {"object": object()}},
        {"headers": nested(100_000)},
        {"priority": 2**63},
    ],
    ids=lambda properties: next(iter(properties)),
)
def test_what_cannot_be_stored_harms_no_other(
    transport: SQLiteTransport, sender: SQLitePublisher, properties: dict[str, Any]
) -> None:
    bad = message(b"bad", **properties)
    with pytest.raises(NotSent) as caught:
        sender.publish("q", [message(b"a"), bad, message(b"b")], PATIENCE)
    assert [(failed, type(cause)) for failed, cause in caught.value.failures] == [(bad, Refused)]
    assert caught.value.sent == 2
    with closing(transport.consumer("q", 0)) as worker:
        assert bodies(take(worker, 2)) == [b"a", b"b"]


def test_what_is_too_large_harms_no_other(
    transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """SQLite takes a gigabyte a row; here it is told to take less."""
    sender.database.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 200_000)
    large = message(b"x" * 200_000)
    with pytest.raises(NotSent) as caught:
        sender.publish("q", [large, message(b"b")], PATIENCE)
    assert [(failed, type(cause)) for failed, cause in caught.value.failures] == [(large, TooLarge)]
    send(sender, b"c")
    with closing(transport.consumer("q", 0)) as worker:
        assert bodies(take(worker, 2)) == [b"b", b"c"]


def test_the_largest_can_still_be_set_aside(
    transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """A dead letter is larger than its original: what is taken leaves room for that."""
    for connection in (sender.database.connection, worker.database.connection):
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 200_000)
    largest = 200_000
    with pytest.raises(NotSent):
        send(sender, b"x" * largest)
    while not transport.stats("q").ready:
        largest -= 1_000
        try:
            send(sender, b"x" * largest)
        except NotSent:
            continue
    (delivery,) = take(worker, 1)
    worker.settle([Retry(delivery)])
    worker.settle([Reject(take(worker, 1)[0], "ä" * 2_000, "🐍" * 20_000)])
    assert transport.stats("q").dead == 1


def test_headers_are_exact(sender: SQLitePublisher, worker: SQLiteConsumer) -> None:
    """Down to the microsecond of a time, and the bits of a number."""
    headers = {
        "at": dt.datetime(2026, 11, 23, 12, 30, 1, 123_456, tzinfo=dt.UTC),
        "float": 0.1 + 0.2,
        "large": 2**63 - 1,
        "small": -(2**63),
        "bytes": b"\x00\xff",
        "deep": [None, True, {"": [1, 2.5, "zwei"]}],
    }
    sent = message(headers=headers, sent_at=1_700_000_000.123_456)
    sender.publish("q", [sent], PATIENCE)
    received = take(worker, 1)[0].message
    assert received == sent
    assert {name: type(value) for name, value in received.headers.items()} == {
        name: type(value) for name, value in headers.items()
    }


@pytest.mark.parametrize("packed", [b"\xc1", b"\x81\xa1", b"\x91" * 100_000 + b"\xc0"])
def test_headers_that_cannot_be_read(
    path: Path, sender: SQLitePublisher, worker: SQLiteConsumer, packed: bytes
) -> None:
    """Such a message must not kill every worker that meets it."""
    send(sender, b"odd", b"even")
    with closing(sqlite3.connect(path)) as other, other:
        other.execute("UPDATE messages SET headers = ? WHERE body = ?", (packed, b"odd"))
    odd, even = take(worker, 2)
    assert odd.message.body == b"odd"
    assert odd.unreadable
    assert even.unreadable is None
    worker.settle([Reject(odd, "unreadable"), Ack(even)])


def test_a_reason_that_is_no_text(
    transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """A traceback may quote a file name that is not UTF-8."""
    send(sender, b"x")
    worker.settle([Reject(take(worker, 1)[0], "no file \udcff", "Traceback \udcfe")])
    with closing(transport.consumer("q.dead", 1)) as dead:
        assert take(dead, 1)[0].message.headers[REASON] == r"no file \udcff"


# -- order, time, bounds -----------------------------------------------------------------------


def test_priority_then_arrival(
    transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """Strictly, at any number of levels; and what comes back comes back to its place.

    SQLite's alone, as RabbitMQ has as many levels as its version and the queue's type give.
    """
    wanted = [(n % 7, n) for n in range(40)]
    sender.publish("q", [message(b"%d" % n, priority=p) for p, n in wanted], PATIENCE)
    order = [b"%d" % n for p, n in sorted(wanted, key=lambda pair: (-pair[0], pair[1]))]
    first = take(worker, 10)
    assert bodies(first) == order[:10]
    worker.settle([Requeue(delivery) for delivery in reversed(first)])
    with closing(transport.consumer("q", 0)) as other:
        assert bodies(take(other, 15)) == order[:15]
    assert bodies(take(worker, 40)) == order


def test_a_claim_does_not_depend_on_how_many_wait(
    transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """It walks an index: nothing is scanned and nothing sorted, in all that is frequent."""
    parameters: dict[str, Parameters] = {
        store.CLAIM: (1, 0.0, 10),
        store.EXPIRED: (1, 0.0, 10),
        store.ANY_EXPIRED: (1, 0.0),
        store.STATS: {"queue": 1, "dead": "q.dead"},
    }
    for statement, values in parameters.items():
        plan = sender.database.read(f"EXPLAIN QUERY PLAN {statement}", values)
        steps = [step for *_, step in plan]
        assert not any("SCAN messages" in step or "TEMP B-TREE" in step for step in steps), steps


def age(path: Path, seconds: float) -> None:
    """As if everything had been sent that much earlier."""
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as other, other:
        other.execute(
            "UPDATE messages SET since = since - ?, expires_at = expires_at - ?",
            (seconds, seconds),
        )


def test_the_oldest_of_many_priorities(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """Found without a scan: the first of each priority is its oldest."""
    assert transport.stats("q").oldest is None
    sender.publish("q", [message(priority=0)], PATIENCE)
    age(path, 100)
    sender.publish("q", [message(priority=p) for p in (3, 9, 0, 3)], PATIENCE)
    oldest = transport.stats("q").oldest
    assert oldest is not None
    assert 100 <= oldest < 100 + PATIENCE
    take(worker, 5)
    assert transport.stats("q").oldest is None


def test_a_ttl_goes_on_while_a_message_is_held(path: Path, transport: SQLiteTransport) -> None:
    """Handed back, it is as old as it was; while it is out, it does not expire."""
    transport.declare(QueueSpec(name="brief", ttl=60))
    with closing(transport.publisher()) as sender:
        send(sender, b"held", b"waiting", to="brief")
    worker = transport.consumer("brief", 1)
    (held,) = take(worker, 1)
    age(path, 61)
    with closing(transport.publisher()) as sender:
        send(sender, b"young", to="brief")
    assert transport.stats("brief").dead == 1
    assert transport.stats("brief").in_flight == 1
    worker.settle([Requeue(held)])
    assert bodies(take(worker, 1)) == [b"young"]
    worker.close()
    with closing(transport.consumer("brief.dead", 0)) as dead:
        letters = take(dead, 2)
    assert bodies(letters) == [b"waiting", b"held"]
    assert {letter.message.headers[REASON] for letter in letters} == {"expired"}


def test_any_number_may_expire_at_once(path: Path, transport: SQLiteTransport) -> None:
    """In more than one transaction, so that nobody waits long."""
    count = BATCH + 10
    transport.declare(QueueSpec(name="brief", ttl=60))
    with closing(transport.publisher()) as sender:
        send(sender, *[b"x"] * count, to="brief")
        age(path, 61)
        assert transport.stats("brief").dead == count
        send(sender, b"y", to="brief")
        send(sender, *[b"x"] * 10, to="q")
    assert transport.purge("brief.dead") == count
    assert [transport.stats(name).ready for name in ("brief", "brief.dead", "q")] == [1, 0, 10]


def test_a_bound_is_for_senders(transport: SQLiteTransport, sender: SQLitePublisher) -> None:
    """What failed and what is handed back has its place, even in a full queue."""
    transport.declare(QueueSpec(name="small", max_length=3))
    with closing(transport.consumer("small", 0)) as worker:
        send(sender, b"a", b"b", to="small")
        held = take(worker, 2)
        with pytest.raises(NotSent) as caught:
            send(sender, b"c", b"d", b"e", b"f", to="small")
        assert [type(cause) for _, cause in caught.value.failures] == [QueueFull]
        worker.settle([Retry(held[0]), Requeue(held[1])])
        assert transport.stats("small").ready == 5
        with pytest.raises(NotSent):
            send(sender, b"g", to="small")
        assert transport.stats("small").ready == 5


def test_a_queue_made_anew_is_another(transport: SQLiteTransport, sender: SQLitePublisher) -> None:
    """Its old consumers are lost, and hold nothing of the new one."""
    old = transport.consumer("q", 1)
    send(sender, b"old")
    take(old, 1)
    transport.delete("q")
    transport.declare(QueueSpec(name="q"))
    send(sender, b"new")
    with pytest.raises(ConsumerLost, match="q was deleted"):
        old.receive(1, 0)
    old.close()
    with closing(transport.consumer("q", 1)) as worker:
        assert bodies(take(worker, 1)) == [b"new"]
    assert transport.stats("q").consumers == 0


# -- life and death ----------------------------------------------------------------------------
# SQLite's alone: a broker sees a connection end, a file does not. (Real deaths, of processes, are
# in tests/integration.)


def die(worker: SQLiteConsumer) -> None:
    """What the kernel does when the process ends, and nothing more."""
    worker.life.release()


def test_a_consumer_lives_as_long_as_its_lock(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """However often the others look."""
    send(sender, b"x")
    (held,) = take(worker, 1)
    assert not is_dead(lock_folder(path), worker.life.id)
    with closing(transport.consumer("q", 1)) as other:
        for _ in range(3):
            other.next_beat = 0.0
            assert other.receive(1, 0.01) == []
    assert transport.stats("q").in_flight == 1
    worker.settle([Ack(held)])


def test_the_dead_are_noticed(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """What they held goes to others, flagged, with a death on its record; their file goes too."""
    send(sender, b"x")
    for deaths in (1, 2):
        worker = transport.consumer("q", 1)
        take(worker, 1)
        die(worker)
        assert is_dead(lock_folder(path), worker.life.id)
        with closing(transport.consumer("q", 1)) as other:
            (delivery,) = take(other, 1)
        assert (delivery.redelivered, delivery.deaths, delivery.attempt) == (True, deaths, 1)
        assert not worker.life.path.exists()
        worker.close()
    assert list(lock_folder(path).iterdir()) == []


def test_a_busy_worker_notices_the_dead(
    transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """With limit 0, and on any queue of the file."""
    transport.declare(QueueSpec(name="other"))
    send(sender, b"x")
    worker = transport.consumer("q", 1)
    take(worker, 1)
    with closing(transport.consumer("other", 1)) as busy:
        die(worker)

        def back() -> bool:
            """the message is ready again"""
            busy.receive(0, 0.1)
            return busy.database.read("SELECT ready FROM queues WHERE name = 'q'") == [(1,)]

        eventually(back, within=PATIENCE)
    worker.close()


def test_stats_do_not_count_the_dead(transport: SQLiteTransport, sender: SQLitePublisher) -> None:
    send(sender, b"x", b"y")
    worker = transport.consumer("q", 1)
    take(worker, 1)
    assert transport.stats("q").in_flight == 1
    die(worker)
    found = transport.stats("q")
    assert (found.ready, found.in_flight, found.consumers) == (2, 0, 0)
    worker.close()


def test_closing_is_no_death(transport: SQLiteTransport, sender: SQLitePublisher) -> None:
    """Its tasks come again flagged, but nothing died of them; and no file is left."""
    send(sender, b"x")
    worker = transport.consumer("q", 1)
    take(worker, 1)
    worker.close()
    assert list(lock_folder(transport.address.path).iterdir()) == []
    with closing(transport.consumer("q", 1)) as other:
        (delivery,) = take(other, 1)
    assert (delivery.redelivered, delivery.deaths) == (True, 0)


def test_a_consumer_that_is_taken_for_dead_says_so(
    transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """Somebody has removed its lock file: what it held is others' now, and it goes on.

    What it still settles of that is ignored, so nothing of the others' is undone.
    """
    send(sender, b"x", b"y")
    held = take(worker, 2)
    worker.life.path.unlink()
    with closing(transport.consumer("q", 1)) as other:
        again = take(other, 1)
        assert (again[0].message.body, again[0].redelivered, again[0].deaths) == (b"x", True, 1)
        worker.settle([Ack(held[0])])
        with pytest.raises(DeliveriesLost) as caught:
            worker.receive(0, PATIENCE)
        assert set(caught.value.deliveries) == set(held)
        assert worker.unsettled == 0
        with pytest.raises(ValueError, match="settled once"):
            worker.settle([Ack(held[1])])
        assert bodies(take(worker, 1)) == [b"y"]
        assert transport.stats("q").consumers == 2
        assert transport.stats("q").in_flight == 2
        other.settle([Ack(delivery) for delivery in again])
    assert transport.stats("q").ready == 0


def test_a_consumer_that_was_taken_for_dead_claims_nothing_under_its_old_name(
    transport: SQLiteTransport, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """Nobody would give that back if it died then."""
    worker.receive(0, 0)
    worker.life.path.unlink()
    transport.stats("q")
    send(sender, b"x")
    take(worker, 1)
    assert worker.life.path.exists()
    die(worker)
    assert transport.stats("q").ready == 1


def test_another_path_to_the_same_file(tmp_path: Path, transport: SQLiteTransport) -> None:
    """Through a link: the same file, the same consumers."""
    (tmp_path / "link.db").symlink_to(transport.address.path)
    linked = SQLiteTransport(f"sqlite:///{tmp_path}/link.db")
    with closing(linked.consumer("q", 1)) as worker:
        assert transport.stats("q").consumers == 1
        assert worker.life.path == lock_path(lock_folder(transport.address.path), worker.life.id)
    assert not lock_folder(tmp_path / "link.db").exists()


# -- the write-ahead log -----------------------------------------------------------------------


def test_nobody_checkpoints_by_itself(
    path: Path, sender: SQLitePublisher, worker: SQLiteConsumer
) -> None:
    """SQLite's own checkpoints may begin while another connection commits, which can corrupt the
    file before 3.51.3."""
    with closing(Database(parse(f"sqlite:///{path}"))) as third:
        for connection in (sender.database, worker.database, third):
            assert connection.read("PRAGMA wal_autocheckpoint") == [(0,)]


def test_nobody_can_commit_during_a_checkpoint(path: Path, sender: SQLitePublisher) -> None:
    attempts: list[str] = []

    def try_to_write(statement: str) -> None:
        if "wal_checkpoint" in statement:
            with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                try:
                    other.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    attempts.append(str(error))
                else:
                    attempts.append("could write")

    send(sender, b"x")
    sender.database.connection.set_trace_callback(try_to_write)
    assert sender.database.checkpoint()
    assert attempts == ["database is locked"]


def test_a_checkpoint_waits_for_no_writer(path: Path, sender: SQLitePublisher) -> None:
    """Whoever commits next does it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not sender.database.checkpoint()


def wal_size(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def test_the_log_stays_short(path: Path, sender: SQLitePublisher) -> None:
    """And what it held is in the database."""
    longest = 0
    for _ in range(60):
        send(sender, *[os.urandom(2_000)] * 200)
        longest = max(longest, wal_size(path))
    assert longest < database.WAL_LIMIT * 2
    assert path.stat().st_size > 20_000_000
    check_counters(path)


def test_the_log_stays_short_under_steady_load(path: Path, transport: SQLiteTransport) -> None:
    """With senders and workers that never pause, each with a connection of its own."""
    rounds = 60
    longest: list[int] = []

    def sends() -> None:
        with closing(transport.publisher()) as sender:
            for _ in range(rounds):
                send(sender, *[os.urandom(2_000)] * 50)
                longest.append(wal_size(path))

    def works() -> None:
        with closing(transport.consumer("q", 0)) as worker:
            for _ in range(rounds):
                worker.settle([Ack(delivery) for delivery in worker.receive(50, 0.1)])

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run) for run in (sends, works, sends, works)]:
            done.result(timeout=PATIENCE * 3)
    assert transport.stats("q").sent == rounds * 2 * 50
    assert max(longest) < database.WAL_LIMIT * 3
    check_counters(path)


def test_a_long_reader_holds_the_log_back_only_while_it_reads(
    path: Path, transport: SQLiteTransport, sender: SQLitePublisher
) -> None:
    """As a backup does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchall()
        for _ in range(30):
            send(sender, *[os.urandom(2_000)] * 200)
        assert wal_size(path) > database.WAL_LIMIT * 2
        assert reader.execute("SELECT count(*) FROM messages").fetchall() == [(0,)]
        reader.execute("COMMIT")
    for _ in range(3):
        send(sender, *[os.urandom(2_000)] * 200)
    assert wal_size(path) < database.WAL_LIMIT * 2
    assert transport.stats("q").ready == 33 * 200


# -- waiting -----------------------------------------------------------------------------------


def test_an_idle_consumer_writes_nothing(path: Path, worker: SQLiteConsumer) -> None:
    """However often it looks, and with the dead among those it looks at."""
    worker.receive(1, 0)
    before = wal_size(path), worker.database.read("PRAGMA data_version")
    began = time.monotonic()
    assert worker.receive(1, 1.2) == []
    assert time.monotonic() - began >= 1.1
    assert (wal_size(path), worker.database.read("PRAGMA data_version")) == before
