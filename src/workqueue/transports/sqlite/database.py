"""One connection to the file: opening, transactions, checkpoints, and what can go wrong."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workqueue.deadline import left
from workqueue.errors import ConnectionLost, StorageDamaged, StorageError
from workqueue.transports.sqlite import ownership, schema
from workqueue.transports.sqlite.address import Address
from workqueue.transports.sqlite.place import find_or_create, lock_folder

Parameters = tuple[object, ...] | dict[str, object]

OLDEST_SQLITE = (3, 35, 0)
"""The first with RETURNING."""

WAL_LIMIT = 4 * 1024 * 1024
"""Bytes. How long the write-ahead log may get before it is copied into the database."""

WAL_STEP = 1024 * 1024
"""Bytes of growth before the next try, when a reader kept the last one from finishing."""

SMALL = 1024 * 1024
"""Bytes. A file up to this size is read through before its first use, which takes a millisecond."""

CACHE = 8 * 1024
"""KiB of pages a connection may keep."""


SHORT_NAP = 0.001
LONG_NAP = 0.02
LONG_LOCK = 0.5
"""Seconds. How long to sleep, at most, before the next try at a locked file; others of ours have it
for a few milliseconds, and after half a second it is somebody else."""


class Unavailable(StorageError):
    """Locked, or the disk is full: nothing was done, and the same may succeed later."""


class Database:
    """One connection. One thread at a time, and only in the process that opened it.

    Opening makes a file that is not there, with mode 0600, but not its folder. Every method
    raises StorageError with one line that names the file, or ConnectionLost in a forked child.
    """

    def __init__(self, address: Address) -> None:
        self.path = ownership.resolve(address.path)
        self.wal = self.path.with_name(f"{self.path.name}-wal")
        self.names = (str(self.path), str(self.wal))
        self.timeout = address.timeout
        self.flushes = address.synchronous == "full"
        self.pid = os.getpid()
        self.checkpoint_at = WAL_LIMIT
        self.guard: sqlite3.Connection | None = None
        self.log = -1
        with self.errors():
            found = identity(find_or_create(self.path))
            ownership.check_lock_folder(lock_folder(self.path))
            self.connection = connect(self.path)
            connections.add(self.connection)
            try:
                self.prepare()
                # SQLite keeps no lock on the log, so closing this drops none.
                self.log = os.open(self.wal, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                ownership.check_files(self.path)  # or it was planted after the first look
                self.identity = (found, identity(os.fstat(self.log)))
                self.check_identity()
            except BaseException:
                self.close()
                raise

    def prepare(self) -> None:
        """The tables are there, they are ours, and this connection is set up."""
        self.read("PRAGMA synchronous = FULL")
        self.read("PRAGMA fullfsync = ON")  # macOS: a plain fsync there does not reach the disk
        self.read(f"PRAGMA cache_size = -{CACHE}")
        if self.read("PRAGMA page_count") == [(0,)]:
            with self.transaction() as connection:
                schema.create(connection)
        [(application_id,)] = self.read("PRAGMA application_id")
        [(version,)] = self.read("PRAGMA user_version")
        schema.check(self.path, application_id, version)
        schema.check_objects(self.path, self.read(schema.OBJECTS))
        if self.read("PRAGMA journal_mode = WAL") != [("wal",)]:
            raise StorageError(f"{self.path}: this file system cannot share a database's memory")
        self.read("PRAGMA synchronous = NORMAL")  # the rest is `flush`
        self.read("PRAGMA wal_autocheckpoint = 0")
        self.read(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
        # Opens the log, and loads the tables that another process may have made just now. A
        # statement that names one of them would not do: while others hold the file, SQLite
        # calls it missing instead of calling the file locked.
        self.read("SELECT count(*) FROM sqlite_master")

    @contextmanager
    def transaction(
        self, patience: float | None = None, *, flush: bool = True
    ) -> Iterator[sqlite3.Connection]:
        """All of the block is done, on disk, or none of it.

        It begins as a writer, so nothing in it can find the file locked. `patience` is how many
        seconds to wait for other writers, if less than the database's own. Without `flush` a power
        failure may undo it: for what nobody was promised, as a claim.
        """
        self.check_process()
        connection = self.connection
        try:
            try:
                self.patiently(BEGIN, patience)
                yield connection
                self.patiently(COMMIT)
            except BaseException:
                if connection.in_transaction:
                    with suppress(sqlite3.Error):  # what is raised already says more
                        connection.execute("ROLLBACK")
                raise
            if self.log >= 0:  # else the file is just being made, and SQLite sees to it alone
                if flush:
                    self.flush()
                self.keep_wal_short()
        except (sqlite3.Error, OSError) as error:
            raise told(self.path, error) from error

    def flush(self) -> None:
        """What was committed is on the disk, and not only in the system's memory.

        SQLite's own `synchronous = FULL` does the same, but keeps all other writers out meanwhile.
        After the commit they go on, and one flush of the log serves all that committed before it.
        """
        if not self.flushes:
            return
        if FULL_FLUSH is not None:
            fcntl.fcntl(self.log, FULL_FLUSH)
        else:
            os.fdatasync(self.log)

    def read(self, query: str, parameters: Parameters = ()) -> list[tuple[Any, ...]]:
        """All rows at once: a statement left open would hold the write-ahead log back."""
        self.check_process()
        try:
            return self.patiently(query, parameters=parameters)
        except sqlite3.Error as error:
            raise told(self.path, error) from error

    def version(self) -> int:
        """Another number after each commit of another connection. The cheapest look there is."""
        return int(self.read("PRAGMA data_version")[0][0])

    def patiently(
        self, statement: str, patience: float | None = None, parameters: Parameters = ()
    ) -> list[tuple[Any, ...]]:
        """Run `statement` again and again while others have the file locked, until patience ends.

        Short sleeps of random length: SQLite's own waiting sleeps ever longer, and whoever came
        first starves while newcomers are served.
        """
        run = self.connection.execute
        try:
            return run(statement, parameters).fetchall()
        except sqlite3.OperationalError as error:
            if primary(error) != sqlite3.SQLITE_BUSY:
                raise
        began = time.monotonic()
        patience = left(self.timeout if patience is None else min(patience, self.timeout))
        while True:
            waited = time.monotonic() - began
            time.sleep(random.uniform(0, SHORT_NAP if waited < LONG_LOCK else LONG_NAP))
            try:
                return run(statement, parameters).fetchall()
            except sqlite3.OperationalError as error:
                if primary(error) != sqlite3.SQLITE_BUSY or waited >= patience:
                    raise

    def check_process(self) -> None:
        if os.getpid() != self.pid:
            raise ConnectionLost(f"{self.path}: opened by the process that this one forked from")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors of SQLite and of the operating system become ours, here and in `transaction`."""
        self.check_process()
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise told(self.path, error) from error

    def check_identity(self) -> None:
        """Raise StorageError if the file or its log is no longer the one that we write to.

        Writing to a deleted file succeeds, and nobody ever reads it.
        """
        try:
            # Each time that something is sent; by Path it takes twice as long.
            now = (identity(os.stat(self.names[0])), identity(os.stat(self.names[1])))  # noqa: PTH116
        except OSError as error:
            raise StorageError(f"{self.path}: deleted while in use") from error
        if now != self.identity:
            raise StorageError(f"{self.path}: replaced by another file while in use")

    def inspect(self) -> None:
        """A small file is checked for damage, as inserting into a damaged one may succeed."""
        if self.path.stat().st_size <= SMALL:
            found = self.read("PRAGMA quick_check(1)")
            if found != [("ok",)]:
                raise StorageDamaged(f"{self.path}: damaged: {' '.join(str(found[0][0]).split())}")

    def keep_wal_short(self) -> None:
        """After a commit: copy the write-ahead log into the database, if it has grown enough.

        A file that was copied whole is written from its start again, and by journal_size_limit
        cut to WAL_LIMIT then; so a longer one is one with much to copy.
        """
        size = os.fstat(self.log).st_size
        if size <= WAL_LIMIT:
            self.checkpoint_at = WAL_LIMIT
        elif size > self.checkpoint_at and self.checkpoint():
            self.checkpoint_at = size + WAL_STEP

    def checkpoint(self) -> bool:
        """Copy what no reader still needs. False if another connection is writing.

        SQLite 3.7.0 to 3.51.2 can lose pages when a checkpoint begins while another connection's
        commit starts the log from its beginning again ("the WAL-reset bug"). So it runs only
        while nobody can commit: a second connection holds the writers' lock, and whoever does not
        get that lock at once leaves the work to the next commit. That also makes it one at a
        time. The second connection itself writes nothing.

        What goes wrong here harms nobody: the log still has everything, and is tried again.
        """
        try:
            if self.guard is None:
                self.guard = connect(self.path)
                connections.add(self.guard)
            self.guard.execute(BEGIN)
        except sqlite3.Error:
            return False
        try:
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error:
            return False
        finally:
            with suppress(sqlite3.Error):
                self.guard.execute("ROLLBACK")
        return True

    def close(self) -> None:
        """Safe to call twice; in a forked child it does nothing."""
        if os.getpid() != self.pid:
            return
        for connection in (self.guard, self.connection):
            if connection is not None:
                connections.discard(connection)
                connection.close()
        log, self.log = self.log, -1
        if log >= 0:
            os.close(log)


BEGIN = "BEGIN IMMEDIATE"
COMMIT = "COMMIT"

FULL_FLUSH: int | None = getattr(fcntl, "F_FULLFSYNC", None)
"""macOS: what reaches the disk itself, which a plain fsync there does not."""


def connect(path: Path) -> sqlite3.Connection:
    """A bare connection, to be used by one thread at a time; waits for nothing, makes no file."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StorageError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 or newer is needed")
    return sqlite3.connect(
        uri_of(path), uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )


def uri_of(path: Path) -> str:
    return f"file://{quote(os.fsencode(path))}?mode=rw"


def identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def primary(error: sqlite3.Error) -> int:
    """The error's kind; the higher bits of a code are its details."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def told(path: Path, error: sqlite3.Error | OSError) -> StorageError:
    """What happened, in one line."""
    if isinstance(error, OSError):
        kind = Unavailable if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
        return kind(f"{error.filename or path}: {error.strerror or error}")
    match primary(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Unavailable(f"{path}: locked by another process for too long")
        case sqlite3.SQLITE_FULL:
            return Unavailable(f"{path}: the disk is full")
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            what = "read-only for this user"
        case sqlite3.SQLITE_CORRUPT:
            return StorageDamaged(f"{path}: damaged: {error}")
        case sqlite3.SQLITE_NOTADB:
            return StorageDamaged(f"{path}: not a database")
        case sqlite3.SQLITE_CANTOPEN:
            what = "cannot be opened: no permission for the file or its folder"
        case sqlite3.SQLITE_IOERR:
            what = f"the disk failed: {error} ({error.sqlite_errorname})"
        case _:
            what = f"{error}"
    return StorageError(f"{path}: {what}")


connections: set[sqlite3.Connection] = set()
"""All that are open in this process."""


def abandon_connections() -> None:
    """In a forked child: the parent's connections are never closed, not even by being forgotten.

    Closing one would end, in memory that both share, the transaction its parent may be in.
    """
    if connections:
        import ctypes

        for connection in connections:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        connections.clear()


os.register_at_fork(after_in_child=abandon_connections)
