"""Files that somebody else made first, where everybody may write."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from workqueue import ConfigError, Producer, StorageError, Worker, connect
from workqueue.transports.sqlite import ownership
from workqueue.transports.sqlite.ownership import resolve
from workqueue.transports.sqlite.place import lock_folder
from workqueue.transports.sqlite.schema import SCHEMA

SOMEBODY = 4711


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """A folder as /tmp is."""
    folder = tmp_path / "public"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a file another user's; who is not root becomes another user instead."""

    def give(path: Path) -> None:
        if os.geteuid() == 0:
            os.chown(path, SOMEBODY, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(ownership.os, "geteuid", lambda: SOMEBODY)

    return give


def use(path: Path) -> None:
    """Send a task and work on it."""
    with connect(f"sqlite:///{path}") as broker:
        queue = broker.queue("q")
        with Producer(queue, timeout=5) as producer:
            producer.send("x")
        assert Worker(queue, lambda _job: None).run(max_messages=1).done == 1


def plant_file(path: Path) -> None:
    path.write_bytes(b"")
    path.chmod(0o666)


def plant_folder(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def plant_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


PLANTED = [
    ("", plant_file),
    ("", plant_link),
    ("-wal", plant_file),
    ("-wal", plant_link),
    ("-shm", plant_file),
    ("-journal", plant_file),
    ("-consumers", plant_folder),
    ("-consumers", plant_link),
]


@pytest.mark.parametrize(("end", "plant"), PLANTED)
def test_what_was_planted_is_refused(
    end: str, plant: Callable[[Path], None], public: Path, give_away: Callable[[Path], None]
) -> None:
    """In one line, by everything that opens the file."""
    file = public / f"jobs.db{end}"
    plant(file)
    give_away(file)
    with pytest.raises(ConfigError, match=f"{file}: belongs to another user") as raised:
        use(public / "jobs.db")
    assert raised.value.command == f"ls -ld {file}"
    with connect(f"sqlite:///{public / 'jobs.db'}") as broker, pytest.raises(ConfigError):
        list(broker.transport.examine([], None))  # type: ignore[attr-defined]


@pytest.mark.parametrize("end", ["-wal", "-consumers"])
def test_what_is_planted_beside_a_file_of_ours(
    end: str, public: Path, give_away: Callable[[Path], None]
) -> None:
    use(public / "jobs.db")
    file = public / f"jobs.db{end}"
    if end == "-consumers":
        file.rmdir()
        plant_folder(file)
    else:
        plant_file(file)
    give_away(file)
    with pytest.raises(ConfigError, match="belongs to another user"):
        use(public / "jobs.db")


def test_folders_and_links_on_the_way(public: Path, give_away: Callable[[Path], None]) -> None:
    """Lead nobody where somebody else wants them."""
    (public / "theirs").mkdir()
    (public / "link").symlink_to(public / "theirs")
    give_away(public / "theirs")
    give_away(public / "link")
    for folder in ("theirs", "link"):
        with pytest.raises(ConfigError, match=f"{folder}: belongs to another user"):
            use(public / folder / "jobs.db")


def test_another_name(public: Path) -> None:
    """Of a database that is ours: a hard link to it may be anybody's."""
    use(public / "mine.db")
    (public / "jobs.db").hardlink_to(public / "mine.db")
    with pytest.raises(ConfigError, match="hard link"):
        use(public / "jobs.db")


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal", "-consumers"])
def test_pipes(end: str, tmp_path: Path) -> None:
    """Are no files, wherever they are; opening one might wait for ever."""
    os.mkfifo(tmp_path / f"jobs.db{end}")
    with pytest.raises(StorageError, match="not a"):
        use(tmp_path / "jobs.db")


def test_a_lock_folder_for_everybody(tmp_path: Path) -> None:
    """Whoever may take a worker's lock away has its tasks run twice."""
    use(tmp_path / "jobs.db")
    folder = lock_folder(tmp_path / "jobs.db")
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="end the locks") as raised:
        use(tmp_path / "jobs.db")
    assert raised.value.command == f"chmod 700 {folder}"


def test_what_goes_on_working(
    public: Path, tmp_path: Path, give_away: Callable[[Path], None]
) -> None:
    """Files of ours where everybody may write, links of ours, and folders that a group shares."""
    use(public / "jobs.db")
    use(public / "jobs.db")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    use(shared / "jobs.db")
    for file in (shared, shared / "jobs.db", shared / "jobs.db-consumers"):
        give_away(file)
    use(shared / "jobs.db")
    (tmp_path / "link").symlink_to("shared/../shared")
    (tmp_path / "name.db").symlink_to(tmp_path / "link" / "jobs.db")
    use(tmp_path / "name.db")
    assert not (tmp_path / "name.db-consumers").exists()


def test_paths_are_resolved_as_python_does(tmp_path: Path) -> None:
    for name, target in {
        "a": "b/../c",
        "c": str(tmp_path / "d"),
        "e": "../" + tmp_path.name,
        "dangling": "no/such/../file",
        "root": "/",
    }.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "b").mkdir()
    (tmp_path / "d").mkdir()
    for way in ("a/x", "e/e/a/../b/x", "dangling", "no/y", "root/tmp", "b/./x", "d/../d"):
        assert resolve(tmp_path / way) == (tmp_path / way).resolve()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(StorageError, match="symbolic links"):
        resolve(tmp_path / "loop")


# -- files that are not as we make them --------------------------------------------------------

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS name FROM n"


@pytest.mark.parametrize(
    "change",
    [
        f"DROP TABLE queues; CREATE VIEW queues AS {ENDLESS}",
        "CREATE TRIGGER t AFTER INSERT ON messages BEGIN DELETE FROM queues; END",
        "DROP TABLE consumers; CREATE TABLE consumers (id, queue, pid, started)",
        "DROP INDEX held",
        "ALTER TABLE messages ADD COLUMN more TEXT",
        "CREATE INDEX slow ON messages (length(body || zeroblob(1000000)))",
        "ALTER TABLE messages RENAME TO others; CREATE VIEW messages AS SELECT * FROM others",
    ],
)
def test_tables_that_are_not_ours(change: str, tmp_path: Path) -> None:
    """Are refused before anything is asked of them, which might never end."""
    path = tmp_path / "jobs.db"
    use(path)
    with closing(sqlite3.connect(path)) as database:
        database.executescript(change)
    with connect(f"sqlite:///{path}") as broker:
        for ask in (broker.transport.queues, lambda: broker.queue("q").stats(), lambda: use(path)):
            with pytest.raises(StorageError, match="not as workqueue makes it"):
                ask()
        findings = list(broker.transport.examine([], None))  # type: ignore[attr-defined]
        assert any("not as workqueue makes it" in finding.found for finding in findings)


@pytest.mark.parametrize(
    "change",
    [
        "ANALYZE",
        "CREATE TABLE notes (text); CREATE VIEW waiting AS SELECT id FROM messages",
        "CREATE INDEX by_id ON messages (id)",
        "VACUUM",
    ],
)
def test_what_users_add_beside_them(change: str, tmp_path: Path) -> None:
    """Tables and views of their own, an index, the statistics of SQLite."""
    path = tmp_path / "jobs.db"
    use(path)
    with closing(sqlite3.connect(path)) as database:
        database.executescript(change)
    use(path)


def test_a_file_that_was_dumped_and_read_again(tmp_path: Path) -> None:
    """By SQLite's own tools."""
    use(tmp_path / "jobs.db")
    with (
        closing(sqlite3.connect(tmp_path / "jobs.db")) as database,
        closing(sqlite3.connect(tmp_path / "again.db")) as again,
    ):
        again.executescript("\n".join(database.iterdump()))
        again.executescript("\n".join(line for line in SCHEMA.splitlines() if "PRAGMA" in line))
        database.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    use(tmp_path / "again.db")
    use(tmp_path / "copy.db")


@pytest.mark.parametrize("name", ["n" * 300, "jobs.db/x/y", "x" * 5000])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    """Are an error of ours, whoever looks."""
    (tmp_path / "jobs.db").touch()
    with connect(f"sqlite:///{tmp_path / name}") as broker:
        with pytest.raises(StorageError):
            broker.transport.publisher()
        with suppress(StorageError):
            list(broker.transport.examine([], None))  # type: ignore[attr-defined]
