"""Queues in one SQLite file: no server, and the same promises."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from workqueue.errors import QueueMismatch, QueueNotFound
from workqueue.message import Delivery
from workqueue.transport import DEAD_SUFFIX, Finding, QueueSpec, QueueStats, State
from workqueue.transports.sqlite import place, store, upkeep
from workqueue.transports.sqlite.address import parse
from workqueue.transports.sqlite.consumer import SQLiteConsumer, lend
from workqueue.transports.sqlite.database import Database
from workqueue.transports.sqlite.examination import Examination
from workqueue.transports.sqlite.ownership import resolve
from workqueue.transports.sqlite.publisher import SQLitePublisher


class SQLiteTransport:
    """`sqlite:///jobs.db`, or `sqlite:////var/lib/jobs.db` for an absolute path.

    After a question mark: `synchronous=normal` is faster and may lose the last tasks when the
    power goes, though never when a process dies; `timeout=SECONDS` is how long to wait for a file
    that others have locked (10).

    Thread-safe: each call has a connection of its own, so between calls nothing is held. The file
    is made by the first `declare` or `publisher`, its folder never. Every call may raise
    StorageError.
    """

    def __init__(self, url: str) -> None:
        self.address = parse(url)
        self.inspected = False

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        if dry_run and not place.exists(self.address.path):
            return True
        with self.open() as database:
            if existing := store.queue_of(database.read(store.FIND_QUEUE, (spec.name,))):
                return compare(spec, existing)
            if dry_run:
                return True
            with database.transaction() as connection:
                if existing := store.find_queue(connection, spec.name):  # made in between
                    return compare(spec, existing)
                store.add_queue(connection, spec)
            return True

    def publisher(self) -> SQLitePublisher:
        self.inspect()
        return SQLitePublisher(self.address)

    def consumer(self, queue: str, prefetch: int) -> SQLiteConsumer:
        if not place.exists(self.address.path):
            raise QueueNotFound(queue)
        self.inspect()
        return SQLiteConsumer(self.address, queue, prefetch)

    def stats(self, queue: str) -> QueueStats:
        with self.open_queue(queue) as (database, found):
            upkeep.recover(database)
            upkeep.keep_time(database, found.id, queue)
            rows = database.read(store.STATS, {"queue": found.id, "dead": queue + DEAD_SUFFIX})
        if not rows:
            raise QueueNotFound(queue)
        ready, in_flight, delayed, sent, done, dead, consumers, oldest = rows[0]
        return QueueStats(
            ready=ready,
            delayed=delayed,
            in_flight=in_flight,
            dead=dead or 0,
            consumers=consumers,
            oldest=None if oldest is None else max(0.0, time.time() - oldest),
            sent=sent,
            done=done,
        )

    def queues(self) -> list[str]:
        if not place.exists(self.address.path):
            return []
        with self.open() as database:
            return [name for (name,) in database.read("SELECT name FROM queues ORDER BY name")]

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        with self.open_queue(queue) as (database, found):
            upkeep.keep_time(database, found.id, queue)
            look = store.PEEK_READY if state == "ready" else store.PEEK_DELAYED
            return [lend(row, queue) for row in database.read(look, (found.id, limit))]

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        with self.open_queue(spec.name) as (database, found):
            with database.transaction() as connection:
                store.change_queue(connection, found.id, spec)
            say(f"queue {spec.name} has its new parameters")
            return 0

    def purge(self, queue: str) -> int:
        with self.open_queue(queue) as (database, found):
            return upkeep.purge(database, found.id)

    def delete(self, queue: str) -> None:
        try:
            with self.open_queue(queue) as (database, found):
                upkeep.recover(database)
                upkeep.purge(database, found.id)  # most of it, in small transactions
                with database.transaction() as connection:
                    store.delete_queue(connection, found.id)
        except QueueNotFound:
            pass

    def examine(self, queues: Sequence[str], task_timeout: float | None) -> Iterator[Finding]:
        return Examination(self.address).run(queues)

    def close(self) -> None:
        """Nothing is held."""

    @contextmanager
    def open(self) -> Iterator[Database]:
        """A connection for this call alone."""
        self.inspect()
        database = Database(self.address)
        try:
            yield database
        finally:
            database.close()

    @contextmanager
    def open_queue(self, name: str) -> Iterator[tuple[Database, store.QueueRow]]:
        """The same, with a queue that exists: looking makes no files."""
        if not place.exists(self.address.path):
            raise QueueNotFound(name)
        with self.open() as database:
            if found := store.queue_of(database.read(store.FIND_QUEUE, (name,))):
                yield database, found
            else:
                raise QueueNotFound(name)

    def inspect(self) -> None:
        """Before the first use: the disk is a local one, and a small file is not damaged."""
        if self.inspected:
            return
        path = resolve(self.address.path)
        place.check_file_system(path)
        if place.exists(path):
            database = Database(self.address)
            try:
                database.inspect()
            finally:
                database.close()
        self.inspected = True


def compare(spec: QueueSpec, existing: store.QueueRow) -> bool:
    """False, as nothing was made; raises QueueMismatch with all that differs."""
    found = replace(spec, type=existing.type, max_length=existing.max_length, ttl=existing.ttl)
    if different := spec.differences(found):
        raise QueueMismatch(spec.name, different)
    return False
