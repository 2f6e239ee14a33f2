"""Where the file is: it exists, and it lies where a database can work."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from workqueue.errors import StorageError
from workqueue.forks import Lock
from workqueue.transports.sqlite.ownership import check_files

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs"})
"""File systems on which machines cannot share SQLite's memory, and would damage the file."""

making = Lock()
"""Held while a file is made, by the one thread of this process that makes it."""


def exists(path: Path) -> bool:
    """Whether there is such a file. Raises StorageError if there is not even its folder."""
    folder = path.parent
    try:
        if not folder.is_dir():
            told = f"{path}: the folder {folder} does not exist"
            raise StorageError(told, hint=f"mkdir -p {shlex.quote(str(folder))}")
        return path.exists()
    except OSError as error:  # a name that is too long, for one
        raise StorageError(f"{path}: {error.strerror}") from error


def find_or_create(path: Path) -> os.stat_result:
    """The file at `path`, which is made if missing, for this user only. The path is a resolved one.

    An existing one is never opened here: closing it would drop the locks that SQLite holds on it
    for this whole process. A new one is SQLite's only once it is closed again, hence the lock.
    """
    with making:
        if not exists(path):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                flush_folder(path.parent)
            except FileExistsError:  # another process was faster
                pass
        check_files(path)
        return path.stat()


def lock_folder(path: Path) -> Path:
    """Where the locks of the consumers of the database at `path` are."""
    return path.with_name(f"{path.name}-consumers")


def flush_folder(folder: Path) -> None:
    """The names in it are on the disk: a file without one is lost when the power goes.

    Not in a folder that this user may write to but not read: only by reading can it be asked for.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_file_system(path: Path) -> None:
    """Raise StorageError for a network's, where the kernel says which it is (Linux)."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return
    kind = file_system(path, mounts)
    if kind in NETWORK:
        raise StorageError(
            f"{path}: on a network file system ({kind}), where SQLite cannot keep a queue",
            hint="Choose a local disk, or RabbitMQ for several machines.",
        )


def file_system(path: Path, mounts: str) -> str:
    """The kind of the file system that holds `path`, by the text of /proc/self/mountinfo."""
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace(r"\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split(" ")[0]
    return kind
