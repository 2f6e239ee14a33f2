"""Looks the file over for `workqueue doctor`. Makes no file and changes none."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from shlex import quote

from workqueue.errors import StorageError
from workqueue.transport import DEAD_SUFFIX, Finding
from workqueue.transports.sqlite import place, schema
from workqueue.transports.sqlite.address import Address
from workqueue.transports.sqlite.database import OLDEST_SQLITE, connect
from workqueue.transports.sqlite.ownership import check_files, check_lock_folder, resolve
from workqueue.transports.sqlite.place import lock_folder

REPAIRED = (3, 51, 3)
"""The first SQLite in which a checkpoint beside a commit cannot damage a file: sqlite.org/wal.html,
"The WAL-Reset Bug"."""

PASSING = frozenset({"tmpfs", "ramfs", "devtmpfs"})
"""File systems in memory."""

READ_THROUGH = 64 * 1024 * 1024
"""Bytes. A file up to this size is checked for damage, which takes a second."""

LEAST_FREE, LITTLE_FREE = 10 * 1024 * 1024, 500 * 1024 * 1024
LONG_LOG = 256 * 1024 * 1024


class Examination:
    """One look at one file. Raises ConfigError for one that may have been planted."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.path = resolve(address.path)

    def run(self, queues: Sequence[str]) -> Iterator[Finding]:
        yield judge_sqlite(sqlite3.sqlite_version_info)
        folder = self.path.parent
        if not folder.is_dir():
            yield Finding(
                state="fail",
                check="file",
                found=f"{self.path}: the folder {folder} does not exist",
                command=f"mkdir -p {quote(str(folder))}",
            )
            return
        yield judge_file_system(self.path, file_system(self.path))
        yield judge_space(self.path, free_space(folder))
        if self.address.synchronous != "full":
            yield Finding(
                state="warn",
                check="durability",
                found="synchronous=normal: the last tasks may be lost when the power goes",
                command="leave synchronous=normal out of the URL",
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            yield Finding(
                state="fail",
                check="file",
                found=f"{folder}: no permission to write there, which SQLite needs for its log",
                command=f"ls -ld {quote(str(folder))}",
            )
            return
        if not self.path.exists():
            yield Finding(
                state="ok",
                check="file",
                found=f"{self.path} does not exist; the first send or worker makes it",
            )
            for queue in queues:
                yield missing(queue)
            return
        check_files(self.path)
        check_lock_folder(lock_folder(self.path))
        yield from self.modes()
        yield from self.contents(queues)

    def modes(self) -> Iterator[Finding]:
        """Who may read the messages."""
        well = True
        log = self.path.with_name(f"{self.path.name}-wal")
        for path in (self.path, log, lock_folder(self.path)):
            if not path.exists():
                continue
            found = path.stat()
            if stat.S_IMODE(found.st_mode) & 0o077:
                well = False
                private = "700" if stat.S_ISDIR(found.st_mode) else "600"
                yield Finding(
                    state="warn",
                    check="modes",
                    found=f"{path}: others may use it (mode {stat.S_IMODE(found.st_mode):04o})",
                    command=f"chmod {private} {quote(str(path))}",
                )
            if not os.access(path, os.R_OK | os.W_OK):
                well = False
                yield Finding(
                    state="fail",
                    check="modes",
                    found=f"{path}: read-only for this user",
                    command=f"ls -l {quote(str(path))}",
                )
        if well:
            yield Finding(state="ok", check="modes", found=f"{self.path}: for this user alone")
        if log.exists() and log.stat().st_size > LONG_LOG:
            yield Finding(
                state="warn",
                check="file",
                found=f"{log} has {log.stat().st_size >> 20} MiB: somebody reads without end",
                command=f"fuser -v {quote(str(self.path))}",
            )

    def contents(self, queues: Sequence[str]) -> Iterator[Finding]:
        """Whether it is ours, undamaged, and has the queues."""
        command = f"sqlite3 {quote(str(self.path))} 'PRAGMA quick_check'"
        try:
            with closing(connect(self.path)) as connection:
                connection.execute("PRAGMA query_only = ON")
                connection.execute("PRAGMA busy_timeout = 5000")
                marks = [
                    connection.execute(f"PRAGMA {name}").fetchone()[0]
                    for name in ("page_count", "application_id", "user_version")
                ]
                if marks[0] == 0:
                    found = f"{self.path} is empty; the first send or worker fills it"
                    yield Finding(state="ok", check="file", found=found)
                    return
                schema.check(self.path, marks[1], marks[2])
                schema.check_objects(self.path, connection.execute(schema.OBJECTS).fetchall())
                if self.path.stat().st_size > READ_THROUGH:
                    size = self.path.stat().st_size >> 20
                    found = f"{self.path} is ours; {size} MiB are not read through for damage"
                    yield Finding(state="warn", check="file", found=found, command=command)
                else:
                    damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
                    if damage != "ok":
                        told = " ".join(str(damage).split())
                        found = f"{self.path}: damaged: {told}"
                        yield Finding(state="fail", check="file", found=found, command=command)
                        return
                    found = f"{self.path} is ours and undamaged"
                    yield Finding(state="ok", check="file", found=found)
                yield from look_at_queues(connection, queues)
        except StorageError as error:
            yield Finding(state="fail", check="file", found=str(error), command=error.hint)
        except sqlite3.Error as error:
            told = f"{self.path}: {error}"
            yield Finding(state="fail", check="file", found=told, command=command)


def look_at_queues(connection: sqlite3.Connection, queues: Sequence[str]) -> Iterator[Finding]:
    rows = connection.execute("SELECT name, ready + delayed + in_flight, type FROM queues")
    counts = {name: (count, type_) for name, count, type_ in rows}
    for queue in queues or sorted(name for name in counts if not name.endswith(DEAD_SUFFIX)):
        if queue not in counts:
            yield missing(queue)
            continue
        count, type_ = counts[queue]
        dead, _ = counts.get(queue + DEAD_SUFFIX, (0, ""))
        found = f"{type_}, {count:,} messages, {dead:,} dead"
        if dead:
            command = f"workqueue dead list {quote(queue)}"
            yield Finding(state="warn", check="queue", queue=queue, found=found, command=command)
        else:
            yield Finding(state="ok", check="queue", queue=queue, found=found)


def missing(queue: str) -> Finding:
    return Finding(
        state="warn",
        check="queue",
        queue=queue,
        found="does not exist; the first send or worker makes it",
        command=f"workqueue declare {quote(queue)}",
    )


def judge_sqlite(version: tuple[int, ...]) -> Finding:
    told = "SQLite " + ".".join(map(str, version[:3]))
    if version < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE[:2]))
        found = f"{told} is too old: {oldest} or newer is needed"
        return Finding(state="fail", check="version", found=found, command="python3 -m sysconfig")
    if version < REPAIRED:
        return Finding(
            state="warn",
            check="version",
            found=f"{told}: a checkpoint of another program can damage the file (the WAL-reset "
            "bug, repaired in 3.51.3); workqueue's own keep clear of it",
            command="let no other program write to the file, or use a Python with a newer SQLite",
        )
    return Finding(state="ok", check="version", found=told)


def file_system(path: Path) -> str:
    """Its kind; nothing where the kernel does not tell."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return ""
    return place.file_system(path, mounts)


def judge_file_system(path: Path, kind: str) -> Finding:
    def about(state: str, found: str, command: str = "") -> Finding:
        return Finding(state=state, check="file system", found=found, command=command)  # type: ignore[arg-type]

    if kind in place.NETWORK:
        return about(
            "fail",
            f"{path} is on a network file system ({kind}), where SQLite cannot keep a queue",
            "choose a local disk, or RabbitMQ for several machines",
        )
    if kind in PASSING:
        return about(
            "warn",
            f"{path} is in memory ({kind}): a restart of the machine loses it",
            f"df {quote(str(path.parent))}",
        )
    if not kind:
        return about("warn", "its kind is not known on this system: a network's would not do")
    return about("ok", f"{kind}, a local one")


def free_space(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def judge_space(path: Path, free: int) -> Finding:
    found = f"{free >> 20:,} MiB free for {path}"
    command = f"df -h {quote(str(path.parent))}"
    if free < LEAST_FREE:
        return Finding(state="fail", check="disk", found=found, command=command)
    if free < LITTLE_FREE:
        return Finding(state="warn", check="disk", found=found, command=command)
    return Finding(state="ok", check="disk", found=found)
