"""The tables, and whether a file is ours."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path

from workqueue.errors import StorageError

APPLICATION_ID = int.from_bytes(b"wrkq", "big")
VERSION = 1

# Arrival is the rowid, `place`: it only grows, and a message keeps it when it is given back.
# `since` is when the message became ready, `expires_at` when it becomes a dead letter, `due_at`
# when its delay is over, NULL once it is; all are seconds since 1970. `consumer` is who holds it,
# NULL while nobody does. So each index is as small as what it serves, and a claim costs the same
# with ten rows waiting and with a million, be they ready or delayed.
#
# `ready`, `delayed` and `in_flight` count rows, in the same transaction as what they count:
# looking at a queue is not a scan. `sent` and `done` only grow. Queue ids are never used twice, so
# that whoever works on a queue notices that it was deleted and made anew.
SCHEMA = f"""
CREATE TABLE queues (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    max_length INTEGER,
    ttl REAL,
    ready INTEGER NOT NULL DEFAULT 0,
    delayed INTEGER NOT NULL DEFAULT 0,
    in_flight INTEGER NOT NULL DEFAULT 0,
    sent INTEGER NOT NULL DEFAULT 0,
    done INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE consumers (
    id INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    pid INTEGER NOT NULL,
    started REAL NOT NULL
);
CREATE TABLE messages (
    place INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL,
    consumer INTEGER,
    redelivered INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    since REAL NOT NULL,
    due_at REAL,
    expires_at REAL,
    priority INTEGER NOT NULL,
    id TEXT,
    content_type TEXT,
    content_encoding TEXT,
    type TEXT,
    correlation_id TEXT,
    reply_to TEXT,
    app_id TEXT,
    sent_at REAL,
    headers BLOB,
    body BLOB NOT NULL
);
CREATE INDEX ready ON messages (queue, priority DESC, place)
    WHERE consumer IS NULL AND due_at IS NULL;
CREATE INDEX delayed ON messages (queue, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX held ON messages (consumer) WHERE consumer IS NOT NULL;
CREATE INDEX expiring ON messages (queue, expires_at)
    WHERE consumer IS NULL AND due_at IS NULL AND expires_at IS NOT NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""


def create(connection: sqlite3.Connection) -> None:
    """All of it, inside the caller's transaction: a file is never half ours.

    Nothing is done if another process was faster.
    """
    if connection.execute("PRAGMA schema_version").fetchall() == [(0,)]:
        for statement in SCHEMA.split(";"):
            connection.execute(statement)


OBJECTS = """
SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL AND (
    name IN ('queues', 'consumers', 'messages') OR tbl_name IN ('queues', 'consumers', 'messages')
)
"""
"""What a file has that our statements would meet. Their own indexes have no text."""


def check_objects(path: Path, objects: Sequence[tuple[str, str, str]]) -> None:
    """Raise StorageError unless the tables are those that `create` makes, and nothing of somebody
    else's runs when they are used: a view in the place of a table can keep a statement busy for
    ever, and a trigger can do anything to the rows. One that only counts is refused all the same.
    """
    lacking = {words(statement) for statement in SCHEMA.split(";") if "CREATE" in statement}
    for type_, name, sql in objects:
        if words(sql) in lacking:
            lacking.remove(words(sql))
        elif type_ != "index" or sql.count("(") != 1:  # a plain one more does no harm
            told = f"the {type_} {name} is another's"
            raise StorageError(f"{path}: not as workqueue makes it: {told}")
    if lacking:
        raise StorageError(f"{path}: not as workqueue makes it: {len(lacking)} parts are missing")


def words(sql: str) -> str:
    return " ".join(sql.split())


def check(path: Path, application_id: int, version: int) -> None:
    """Raise StorageError unless a file with these marks is ours and of our version."""
    if application_id != APPLICATION_ID:
        raise StorageError(
            f"{path}: a database of another program",
            hint="Choose another file; one that does not exist is made.",
        )
    if version != VERSION:
        raise StorageError(
            f"{path}: made by another version of workqueue (format {version}, ours is {VERSION})",
            hint="Update workqueue: pip install --upgrade workqueue",
        )
