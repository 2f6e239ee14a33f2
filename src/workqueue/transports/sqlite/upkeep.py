"""What any process does for all of them: what the dead held goes back, and what has waited too
long is set aside."""

from __future__ import annotations

import time

from workqueue.transports.sqlite import store
from workqueue.transports.sqlite.database import Database
from workqueue.transports.sqlite.life import is_dead, lock_path
from workqueue.transports.sqlite.place import lock_folder

BATCH = 2_000
"""Messages in one transaction, so that nobody waits long for the file."""


def recover(database: Database) -> None:
    """What dead consumers held is ready again, with a death more on its record."""
    folder = lock_folder(database.path)
    known = database.read("SELECT id FROM consumers")
    with database.errors():
        dead = [id_ for (id_,) in known if is_dead(folder, id_)]
    for id_ in dead:
        with database.transaction(flush=False) as connection:
            # If somebody else was faster, this finds nothing to give back.
            store.give_back_all(connection, id_, died=True)
            lock_path(folder, id_).unlink(missing_ok=True)


def keep_time(database: Database, queue: int, name: str) -> None:
    """What has waited for its time is ready; what has waited too long is a dead letter."""
    while database.read(store.ANY_DUE, (queue, time.time())):
        with database.transaction(flush=False) as connection:
            store.promote(connection, queue, time.time(), BATCH)
    while database.read(store.ANY_EXPIRED, (queue, time.time())):
        with database.transaction(flush=False) as connection:
            store.expire(connection, queue, name, time.time(), BATCH)


def purge(database: Database, queue: int) -> int:
    """What is ready now is gone; how many that were."""
    last = database.read("SELECT max(place) FROM messages")[0][0] or 0
    total = 0
    while True:
        with database.transaction() as connection:
            gone = store.purge(connection, queue, last, BATCH)
        total += gone
        if gone < BATCH:
            return total
