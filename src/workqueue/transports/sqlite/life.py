"""Which consumers live, told by the kernel.

Each consumer keeps a lock (`flock`) on a file of its own for as long as its process lives. The
kernel lets go of it at the very moment the process ends, however it ends, and not before: so a
task may run for hours, a stopped process keeps its own, and nobody depends on a clock.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from workqueue.transports.sqlite import store
from workqueue.transports.sqlite.database import Database
from workqueue.transports.sqlite.ownership import check_lock_folder
from workqueue.transports.sqlite.place import lock_folder


class Life:
    """The lock of one consumer, held from the start. Released when the process ends, or by us.

    The file is made and locked before anybody can know of it: whoever finds the consumer in the
    database and can take its lock knows that it is dead. `id` is never used a second time.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(0o700, exist_ok=True)
        check_lock_folder(folder)
        self.id = int.from_bytes(os.urandom(8)) >> 1  # SQLite's integers have a sign
        self.path = lock_path(folder, self.id)
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lives.add(self)

    @property
    def held(self) -> bool:
        return self.descriptor >= 0

    def unlink(self) -> None:
        """Whoever finds the file missing takes the consumer for dead."""
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Safe to call twice."""
        lives.discard(self)
        if self.held:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)


def lock_path(folder: Path, id_: int) -> Path:
    return folder / f"{id_:016x}.lock"


def is_dead(folder: Path, id_: int) -> bool:
    """Whether that consumer's process has ended; False as long as that is not certain.

    Those who ask share the lock, so that they are not in each other's way.
    """
    try:
        descriptor = os.open(lock_path(folder, id_), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def enter(database: Database, queue: int) -> Life:
    """A new consumer of `queue` is known to all. Raises StorageError."""
    with database.errors():
        life = Life(lock_folder(database.path))
    try:
        with database.transaction(flush=False) as connection:
            store.add_consumer(connection, life.id, queue, os.getpid(), time.time())
    except BaseException:
        life.unlink()
        life.release()
        raise
    return life


def leave(database: Database, life: Life) -> None:
    """What it held is ready again, and nobody knows it any more.

    The file goes before the commit: killed in between, we leave no file that nobody looks for,
    but a consumer without one, which counts as dead.
    """
    try:
        with database.transaction(flush=False) as connection:
            store.give_back_all(connection, life.id, died=False)
            life.unlink()
    finally:
        life.release()


lives: set[Life] = set()
"""All that this process holds."""


def let_go() -> None:
    """In a forked child: a lock that two processes hold would outlive the one that works.

    Closing our copy leaves the parent's lock in place.
    """
    for life in list(lives):
        life.release()


os.register_at_fork(after_in_child=let_go)
