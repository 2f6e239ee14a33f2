"""Sending: what one call sends is on the disk when it returns."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence

from workqueue.errors import (
    ConnectionLost,
    NotSent,
    QueueFull,
    Refused,
    StorageError,
    Unroutable,
)
from workqueue.message import Message
from workqueue.transports.sqlite import rows, store
from workqueue.transports.sqlite.address import Address
from workqueue.transports.sqlite.database import Database

RESERVE = 16 * 1024 * 1024
"""Bytes. With less than this free nothing is sent any more: on a full disk workers could not even
acknowledge, and all that is done would be done again."""

SPACE_STEP = 1024 * 1024
SPACE_PAUSE = 0.1
"""After so many bytes sent, and after so many seconds, it is looked again how much is free."""

PART = 500
PART_BYTES = 1024 * 1024
"""Messages and bytes in one transaction, about: who else wants the file waits for milliseconds,
not for the whole of a large batch."""

ROOM_FOR_COPIES = 64 * 1024
"""Bytes that a retry or a dead letter may add to a message, which must still fit a row then."""


class SQLitePublisher:
    """Sends through a connection of its own. One thread at a time.

    What `publish` has returned from is on the disk (with synchronous=normal: in the file). In a
    forked child it raises ConnectionLost.
    """

    def __init__(self, address: Address) -> None:
        self.database = Database(address)
        self.folder = self.database.path.parent
        self.queue: store.QueueRow | None = None
        self.look_after = 0.0
        self.look_before = 0
        self.closed = False

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        if self.closed:
            raise ConnectionLost("this publisher is closed")
        if not messages:
            return
        deadline = time.monotonic() + timeout
        causes: dict[int, NotSent] = {}
        stored = 0
        try:
            for part in parts(messages):
                last = stored + len(part) == len(messages)
                failed = self.store(queue, part, deadline - time.monotonic(), flush=last)
                causes |= {stored + index: cause for index, cause in failed.items()}
                stored += len(part)
        except StorageError as error:
            if not stored:
                raise
            with self.database.errors():
                self.database.flush()
            causes |= {index: Refused(str(error)) for index in range(stored, len(messages))}
        self.database.check_identity()
        if causes:
            failures = [(messages[index], causes[index]) for index in sorted(causes)]
            sent = len(messages) - len(failures)
            raise NotSent(str(failures[0][1]), failures=failures, sent=sent)

    def store(
        self, queue: str, messages: Sequence[Message], patience: float, *, flush: bool
    ) -> dict[int, NotSent]:
        """As many as the queue takes are in it; causes for the others."""
        largest = store.largest_row(self.database.connection) - ROOM_FOR_COPIES
        packed, causes = rows.pack_all(messages, largest)
        self.check_space(packed)
        with self.database.transaction(patience, flush=flush) as connection:
            return causes | self.put(connection, queue, packed)

    def put(
        self, connection: sqlite3.Connection, name: str, packed: dict[int, rows.Parcel]
    ) -> dict[int, NotSent]:
        """Into the queue as it was last time, which is a look less, if it still is like that."""
        parcels = list(packed.values())
        queue, now = self.queue, time.time()
        if queue and queue.name == name and store.put(connection, queue, parcels, now, sent=True):
            return {}
        self.queue = queue = store.find_queue(connection, name)
        if queue is None:
            return {index: Unroutable(f"queue {name} does not exist") for index in packed}
        if queue.max_length is not None:
            self.queue = None  # how much room there is must be looked at each time
        placed, refused = in_bounds(queue, packed)
        store.put(connection, queue, placed, now, sent=True)
        return refused

    def check_space(self, packed: dict[int, rows.Parcel]) -> None:
        self.look_before -= sum(parcel.size for parcel in packed.values())
        now = time.monotonic()
        if self.look_before > 0 and now < self.look_after:
            return
        with self.database.errors():
            disk = os.statvfs(self.folder)
        if disk.f_blocks and disk.f_bavail * disk.f_frsize < RESERVE:
            raise StorageError(
                f"{self.database.path}: the disk is almost full: nothing is sent with less than"
                f" {RESERVE // 1024**2} MiB free, so that workers can still acknowledge"
            )
        self.look_before, self.look_after = SPACE_STEP, now + SPACE_PAUSE

    def close(self) -> None:
        self.closed = True
        self.database.close()


def parts(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """`messages`, in runs that are stored quickly."""
    start = size = 0
    for index, message in enumerate(messages):
        if index - start == PART or size > PART_BYTES:
            yield messages[start:index]
            start, size = index, 0
        size += len(message.body)
    yield messages[start:]


def in_bounds(
    queue: store.QueueRow, packed: dict[int, rows.Parcel]
) -> tuple[list[rows.Parcel], dict[int, NotSent]]:
    """The parcels that the queue has room for, and a cause for each of the others."""
    placed = list(packed.values())
    if queue.max_length is None:
        return placed, {}
    room = max(0, queue.max_length - queue.ready)
    refused = list(packed)[room:]
    return placed[:room], {i: QueueFull(f"queue {queue.name} is full") for i in refused}
