"""Whose the files are: in a folder that everybody may write to, somebody may have been there first.

The user who makes `jobs.db`, its log or the folder of its locks decides what is read from them and
whether a worker seems to live. So where everybody may write (as in /tmp), nothing is used but what
belongs to this user or to root: the file, what lies beside it, the folders and the symbolic links
on the way to it. Elsewhere all who may write to the folder are trusted with the queue, as are the
users of a group that shares it.

The kernel has such a rule for symbolic links, hard links and files that are opened to be made
(fs.protected_symlinks and others in proc(5)), but not where a path is read link by link, as Python
does, and not for folders.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from workqueue.errors import ConfigError, StorageError

MOST_LINKS = 40
"""Symbolic links on the way to a file; the kernel follows as many."""

BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite puts beside a database, by the ends of the names."""

ELSEWHERE = "Choose a folder of your own, or one that only its group may write to."


def is_public(folder: os.stat_result) -> bool:
    """Whether everybody may write to it."""
    return bool(folder.st_mode & stat.S_IWOTH)


def refusal(path: Path, why: str) -> ConfigError:
    error = ConfigError(f"{path}: {why}", hint=ELSEWHERE)
    error.command = f"ls -ld {shlex.quote(str(path))}"
    return error


def check_owner(folder: os.stat_result, path: Path, found: os.stat_result) -> None:
    """Raise ConfigError if `path`, which lies in `folder`, may have been planted there."""
    if is_public(folder) and found.st_uid not in (os.geteuid(), 0):
        why = f"belongs to another user (uid {found.st_uid}), where everybody may write"
        raise refusal(path, why)


def resolve(path: Path) -> Path:
    """The absolute `path` without symbolic links, whether it exists or not.

    Raises ConfigError for a part of it that may have been planted, StorageError for too many links.
    """
    here, found = Path(path.anchor), Path(path.anchor).lstat()
    waiting = [*reversed(path.parts[1:])]
    links = 0
    while waiting:
        name = waiting.pop()
        if name == "..":
            here = here.parent
            found = here.lstat()
            continue
        step = here / name
        there = look(step)
        if there is None:
            return Path(os.path.normpath(Path(step, *reversed(waiting))))
        check_owner(found, step, there)
        found = there
        if not stat.S_ISLNK(found.st_mode):
            here = step
            continue
        links += 1
        if links > MOST_LINKS:
            raise StorageError(f"{path}: {os.strerror(errno.ELOOP)}")
        waiting += reversed((here / step.readlink()).parts[1:])  # from the root again
        here = Path(path.anchor)
        found = here.lstat()
    return here


def check_files(path: Path) -> None:
    """Raise unless the database at the resolved `path`, and what lies beside it, is as we or SQLite
    would have made it. What is not there is not looked at."""
    folder = path.parent.stat()
    for file, found in existing(path, *(path.with_name(path.name + end) for end in BESIDE)):
        check_owner(folder, file, found)
        if stat.S_ISDIR(found.st_mode):
            raise StorageError(f"{file}: a folder, not a file")
        if not stat.S_ISREG(found.st_mode):
            raise StorageError(f"{file}: not a regular file")
        if is_public(folder) and found.st_nlink > 1:
            raise refusal(file, "has another name (a hard link), where everybody may write")


def check_lock_folder(path: Path) -> None:
    """The same for the folder of locks. Nobody else may write to it: a worker whose lock is gone
    counts as dead, and its tasks are run by another."""
    for folder, found in existing(path):
        check_owner(folder.parent.stat(), folder, found)
        if not stat.S_ISDIR(found.st_mode):
            raise StorageError(f"{folder}: not a folder")
        if is_public(found):
            error = refusal(folder, "everybody may write to it, and end the locks of workers")
            error.hint, error.command = "", f"chmod 700 {shlex.quote(str(folder))}"
            raise error


def existing(*paths: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Those that exist; symbolic links as what they are."""
    for path in paths:
        if (found := look(path)) is not None:
            yield path, found


def look(path: Path) -> os.stat_result | None:
    """None if there is nothing of that name. Raises StorageError if it cannot be known."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a name that is too long, a folder that may not be searched
        raise StorageError(f"{path}: {error.strerror}") from error
