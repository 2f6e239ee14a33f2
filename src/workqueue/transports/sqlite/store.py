"""What is done to the rows. Every function here runs inside its caller's transaction, and keeps
the two counters of the queue true."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from workqueue.message import Delivery
from workqueue.transport import DEAD_SUFFIX, QueueSpec, QueueType
from workqueue.transports.copies import dead_copy
from workqueue.transports.sqlite.rows import Parcel, Row, pack_copy, unpack

DEFAULT_TYPE: QueueType = "quorum"
"""By name only: a program gets the same QueueMismatch here as on RabbitMQ."""

FIND_QUEUE = "SELECT id, name, type, max_length, ttl, ready FROM queues WHERE name = ?"

COUNT_PUT = """
UPDATE queues SET ready = ready + ?, delayed = delayed + ?, sent = sent + ?
WHERE id = ? AND max_length IS ? AND ttl IS ?
"""

INSERT = """
INSERT INTO messages (
    queue, since, due_at, expires_at, priority, id, content_type, content_encoding, type,
    correlation_id, reply_to, app_id, sent_at, headers, body
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

# INDEXED BY: that a claim costs the same however many wait is not left to the query planner.
CLAIM = """
SELECT place, redelivered, deaths, priority, id, content_type, content_encoding, type,
    correlation_id, reply_to, app_id, sent_at, headers, body
FROM messages INDEXED BY ready
WHERE queue = ? AND consumer IS NULL AND due_at IS NULL
    AND (expires_at IS NULL OR expires_at > ?)
ORDER BY priority DESC, place LIMIT ?
"""

HOLD = "UPDATE messages SET consumer = ? WHERE place = ?"

EXPIRED = """
SELECT place, priority, id, content_type, content_encoding, type, correlation_id, reply_to,
    app_id, sent_at, headers, body
FROM messages INDEXED BY expiring
WHERE queue = ? AND consumer IS NULL AND due_at IS NULL AND expires_at <= ?
ORDER BY expires_at, place LIMIT ?
"""

ANY_EXPIRED = """
SELECT 1 FROM messages INDEXED BY expiring
WHERE queue = ? AND consumer IS NULL AND due_at IS NULL AND expires_at <= ? LIMIT 1
"""

NEXT = """
SELECT ready, (
    SELECT due_at FROM messages INDEXED BY delayed
    WHERE queue = queues.id AND due_at IS NOT NULL ORDER BY due_at LIMIT 1
)
FROM queues WHERE id = ?
"""

ANY_DUE = """
SELECT 1 FROM messages INDEXED BY delayed WHERE queue = ? AND due_at <= ? LIMIT 1
"""

# A message is ordered by its arrival, not by when it was due: what waited is not also late.
PROMOTE = """
UPDATE messages SET since = due_at, due_at = NULL
WHERE place IN (
    SELECT place FROM messages INDEXED BY delayed
    WHERE queue = ? AND due_at <= ? ORDER BY due_at LIMIT ?
)
"""

PEEK_READY = """
SELECT place, redelivered, deaths, priority, id, content_type, content_encoding, type,
    correlation_id, reply_to, app_id, sent_at, headers, body
FROM messages INDEXED BY ready
WHERE queue = ? AND consumer IS NULL AND due_at IS NULL
ORDER BY priority DESC, place LIMIT ?
"""

PEEK_DELAYED = """
SELECT place, redelivered, deaths, priority, id, content_type, content_encoding, type,
    correlation_id, reply_to, app_id, sent_at, headers, body
FROM messages INDEXED BY delayed
WHERE queue = ? AND due_at IS NOT NULL
ORDER BY due_at LIMIT ?
"""

# The first of each priority is its oldest, so `step` goes from priority to priority.
STATS = """
WITH RECURSIVE step (priority, since) AS (
    SELECT * FROM (
        SELECT priority, since FROM messages INDEXED BY ready
        WHERE queue = :queue AND consumer IS NULL AND due_at IS NULL
        ORDER BY priority DESC, place LIMIT 1
    )
    UNION ALL
    SELECT below.priority, below.since FROM step JOIN messages AS below ON below.place = (
        SELECT place FROM messages INDEXED BY ready
        WHERE queue = :queue AND consumer IS NULL AND due_at IS NULL
            AND priority < step.priority
        ORDER BY priority DESC, place LIMIT 1
    )
)
SELECT ready, in_flight, delayed, sent, done,
    (SELECT ready FROM queues WHERE name = :dead),
    (SELECT count(*) FROM consumers WHERE queue = :queue),
    (SELECT min(since) FROM step)
FROM queues WHERE id = :queue
"""


class QueueRow(msgspec.Struct, frozen=True):
    """A queue as it is now."""

    id: int
    name: str
    type: QueueType
    max_length: int | None
    ttl: float | None
    ready: int


def find_queue(connection: sqlite3.Connection, name: str) -> QueueRow | None:
    return queue_of(connection.execute(FIND_QUEUE, (name,)).fetchall())


def queue_of(found: list[tuple[Any, ...]]) -> QueueRow | None:
    """The queue that FIND_QUEUE has found."""
    return QueueRow(*found[0]) if found else None


def add_queue(connection: sqlite3.Connection, spec: QueueSpec) -> None:
    """And its dead-letter queue, which asks for nothing."""
    connection.execute(
        "INSERT INTO queues (name, type, max_length, ttl) VALUES (?, ?, ?, ?)",
        (spec.name, spec.type or DEFAULT_TYPE, spec.max_length, spec.ttl),
    )
    dead_letters_of(connection, spec.name)


def dead_letters_of(connection: sqlite3.Connection, name: str) -> QueueRow:
    """The dead-letter queue of the queue `name`; made if somebody has deleted it."""
    dead = name + DEAD_SUFFIX
    found = find_queue(connection, dead)
    if found is None:
        connection.execute("INSERT INTO queues (name, type) VALUES (?, ?)", (dead, DEFAULT_TYPE))
        found = find_queue(connection, dead)
        assert found is not None
    return found


def change_queue(connection: sqlite3.Connection, queue: int, spec: QueueSpec) -> None:
    """Other parameters; what is there stays, and keeps the times that it was given."""
    connection.execute(
        "UPDATE queues SET type = coalesce(?, type), max_length = ?, ttl = ? WHERE id = ?",
        (spec.type, spec.max_length, spec.ttl, queue),
    )


def delete_queue(connection: sqlite3.Connection, queue: int) -> None:
    connection.execute(
        "DELETE FROM messages WHERE consumer IN (SELECT id FROM consumers WHERE queue = ?)",
        (queue,),
    )
    connection.execute(
        "DELETE FROM messages WHERE queue = ? AND consumer IS NULL AND due_at IS NULL", (queue,)
    )
    connection.execute("DELETE FROM messages WHERE queue = ? AND due_at IS NOT NULL", (queue,))
    connection.execute("DELETE FROM consumers WHERE queue = ?", (queue,))
    connection.execute("DELETE FROM queues WHERE id = ?", (queue,))


def count(
    connection: sqlite3.Connection,
    queue: int,
    *,
    ready: int = 0,
    delayed: int = 0,
    in_flight: int = 0,
    sent: int = 0,
    done: int = 0,
) -> None:
    if ready or delayed or in_flight or sent or done:
        connection.execute(
            "UPDATE queues SET ready = ready + ?, delayed = delayed + ?,"
            " in_flight = in_flight + ?, sent = sent + ?, done = done + ? WHERE id = ?",
            (ready, delayed, in_flight, sent, done, queue),
        )


def put(
    connection: sqlite3.Connection,
    queue: QueueRow,
    parcels: Sequence[Parcel],
    now: float,
    *,
    sent: bool = False,
) -> bool:
    """False, and nothing is put, if the queue is not there any more or has other parameters.

    `sent` says that a sender put them here, not one of us.
    """
    delayed = sum(parcel.delay > 0 for parcel in parcels)
    ready, new = len(parcels) - delayed, len(parcels) if sent else 0
    counts = (ready, delayed, new, queue.id, queue.max_length, queue.ttl)
    if not connection.execute(COUNT_PUT, counts).rowcount:
        return False
    rows = [(queue.id, *times(queue, delay, ttl, now), *row) for row, _, delay, ttl in parcels]
    connection.executemany(INSERT, rows)
    return True


def times(
    queue: QueueRow, delay: float, ttl: float | None, now: float
) -> tuple[float, float | None, float | None]:
    """`since`, `due_at` and `expires_at` of a message that comes now."""
    if ttl is None:
        ttl = queue.ttl
    elif queue.ttl is not None:
        ttl = min(ttl, queue.ttl)
    ready_at = now + delay
    return ready_at, ready_at if delay > 0 else None, None if ttl is None else ready_at + ttl


def promote(connection: sqlite3.Connection, queue: int, now: float, limit: int) -> int:
    """Up to `limit` messages whose delay is over are ready; how many."""
    promoted = connection.execute(PROMOTE, (queue, now, limit)).rowcount
    count(connection, queue, ready=promoted, delayed=-promoted)
    return promoted


def claim(
    connection: sqlite3.Connection, queue: int, consumer: int, limit: int, now: float
) -> list[Row]:
    """Up to `limit` ready messages are held by `consumer`, in the order of handing out."""
    rows = connection.execute(CLAIM, (queue, now, limit)).fetchall()
    connection.executemany(HOLD, [(consumer, row[0]) for row in rows])
    count(connection, queue, ready=-len(rows), in_flight=len(rows))
    return rows


def forget(connection: sqlite3.Connection, queue: int, places: Iterable[int], done: int) -> None:
    """Held messages are gone, `done` of them because they were done."""
    gone = [(place,) for place in places]
    connection.executemany("DELETE FROM messages WHERE place = ?", gone)
    count(connection, queue, in_flight=-len(gone), done=done)


def give_back(connection: sqlite3.Connection, queue: int, places: Iterable[int]) -> None:
    """Held messages are ready again, where they were."""
    back = [(place,) for place in places]
    connection.executemany(
        "UPDATE messages SET consumer = NULL, redelivered = 1 WHERE place = ?", back
    )
    count(connection, queue, ready=len(back), in_flight=-len(back))


def bury(
    connection: sqlite3.Connection,
    delivery: Delivery,
    reason: str,
    error: str,
    now: float,
    worker: str | None = None,
) -> None:
    """A dead copy of `delivery` lies in the dead-letter queue; the original is the caller's."""
    copy = dead_copy(delivery, storable(reason), storable(error), now, worker)
    dead = dead_letters_of(connection, delivery.queue)
    put(connection, dead, [pack_copy(copy, largest_row(connection))], now)


def storable(text: str) -> str:
    """Tracebacks may hold file names that are no text; SQLite stores none such."""
    return text.encode(errors="backslashreplace").decode()


def largest_row(connection: sqlite3.Connection) -> int:
    return connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH)


def expire(connection: sqlite3.Connection, queue: int, name: str, now: float, limit: int) -> int:
    """Up to `limit` ready messages whose time is over are dead letters; how many."""
    rows = connection.execute(EXPIRED, (queue, now, limit)).fetchall()
    for _, *columns in rows:
        message, unreadable = unpack(tuple(columns))
        expired = Delivery(message=message, queue=name, unreadable=unreadable)
        bury(connection, expired, "expired", "", now)
    connection.executemany("DELETE FROM messages WHERE place = ?", [row[:1] for row in rows])
    count(connection, queue, ready=-len(rows))
    return len(rows)


def purge(connection: sqlite3.Connection, queue: int, last: int, limit: int) -> int:
    """Up to `limit` ready messages up to the place `last` are gone; how many."""
    gone = connection.execute(
        "DELETE FROM messages WHERE place IN (SELECT place FROM messages INDEXED BY ready"
        " WHERE queue = ? AND consumer IS NULL AND due_at IS NULL AND place <= ? LIMIT ?)",
        (queue, last, limit),
    ).rowcount
    count(connection, queue, ready=-gone)
    return gone


def add_consumer(
    connection: sqlite3.Connection, id_: int, queue: int, pid: int, now: float
) -> None:
    connection.execute("INSERT INTO consumers VALUES (?, ?, ?, ?)", (id_, queue, pid, now))


def give_back_all(connection: sqlite3.Connection, consumer: int, *, died: bool) -> None:
    """All that `consumer` holds is ready again, and the consumer is forgotten."""
    back = connection.execute(
        "UPDATE messages SET consumer = NULL, redelivered = 1, deaths = deaths + ?"
        " WHERE consumer = ?",
        (died, consumer),
    ).rowcount
    for (queue,) in connection.execute(
        "DELETE FROM consumers WHERE id = ? RETURNING queue", (consumer,)
    ).fetchall():
        count(connection, queue, ready=back, in_flight=-back)
