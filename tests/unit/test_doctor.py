"""workqueue doctor on the embedded file, in memory, and where nobody answers."""

from __future__ import annotations

import os
import socket
import sqlite3
from pathlib import Path

import pytest

from tests.unit.test_cli import Result, Shell
from workqueue.transports.sqlite.examination import (
    Examination,
    judge_file_system,
    judge_space,
    judge_sqlite,
)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def states(result: Result) -> dict[str, str]:
    """The gravest state of each check."""
    found: dict[str, str] = {}
    for row in result.json:
        assert list(row) == ["state", "check", "found", "command", "queue"]
        assert row["state"] == "ok" or row["command"] or "not known" in row["found"]
        order = ["ok", "warn", "fail"]
        before = found.get(row["check"], "ok")
        found[row["check"]] = max(before, row["state"], key=order.index)
    return found


def test_a_file_that_is_well(shell: Shell) -> None:
    assert shell("send", "q", "x").code == 0
    result = shell("doctor", "--json")
    assert result.code == 0
    found = states(result)
    assert found["file"] == found["modes"] == found["queue"] == found["plugins"] == "ok"
    [queue] = [row for row in result.json if row["check"] == "queue"]
    assert (queue["queue"], queue["found"]) == ("q", "quorum, 1 messages, 0 dead")


def test_tab_separated_elsewhere(shell: Shell) -> None:
    lines = shell("doctor").out.splitlines()
    assert lines[0] == "state\tcheck\tqueue\tfound\tcommand"
    assert all(line.count("\t") == 4 for line in lines)


def test_looking_makes_nothing(shell: Shell) -> None:
    result = shell("doctor", "q", "--json")
    assert result.code == 0
    assert states(result)["queue"] == "warn"
    assert list(shell.folder.iterdir()) == []
    assert shell("doctor", "--json", WORKQUEUE_URL="").code == 0
    assert not (shell.folder / "state").exists()


def test_a_queue_that_is_not_there(shell: Shell) -> None:
    shell("send", "q", "x")
    before = {path.name for path in shell.folder.iterdir()}
    result = shell("doctor", "nope", "--json")
    [row] = [row for row in result.json if row["check"] == "queue"]
    assert (row["state"], row["command"]) == ("warn", "workqueue declare nope")
    assert shell("status", "nope").code == 1
    assert {path.name for path in shell.folder.iterdir()} == before


def test_others_who_may_read(shell: Shell) -> None:
    shell("send", "q", "x")
    (shell.folder / "jobs.db").chmod(0o644)
    result = shell("doctor", "--json")
    [row] = [row for row in result.json if row["check"] == "modes"]
    assert row["state"] == "warn"
    assert row["command"] == f"chmod 600 {shell.folder / 'jobs.db'}"
    (shell.folder / "jobs.db").chmod(0o600)
    assert states(shell("doctor", "--json"))["modes"] == "ok"


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"no database at all" * 100, "not a database"), ("other", "another program")],
)
def test_a_file_that_is_not_ours(shell: Shell, content: bytes | str, told: str) -> None:
    file = shell.folder / "jobs.db"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE t (a)")
        connection.close()
    before = file.read_bytes()
    result = shell("doctor", "--json")
    assert result.code == 1
    assert any(row["state"] == "fail" and told in row["found"] for row in result.json)
    assert file.read_bytes() == before


def test_a_damaged_file(shell: Shell) -> None:
    shell("send", "q", *("x" * 3000 for _ in range(20)))
    file = shell.folder / "jobs.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    with file.open("r+b") as damaged:
        damaged.seek(8192)
        damaged.write(b"\xff" * 16384)
    result = shell("doctor", "--json")
    assert result.code == 1
    assert states(result)["file"] == "fail"
    assert "Traceback" not in result.err


def test_an_empty_file_stays_empty(shell: Shell) -> None:
    file = shell.folder / "jobs.db"
    file.touch(0o600)
    assert shell("doctor", "--json").code == 0
    assert file.stat().st_size == 0


def test_a_missing_folder(shell: Shell) -> None:
    result = shell("doctor", "--json", "-u", "sqlite:///no/such/jobs.db")
    assert result.code == 1
    [row] = [row for row in result.json if row["state"] == "fail"]
    assert row["command"] == f"mkdir -p {shell.folder / 'no/such'}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(shell: Shell) -> None:
    (shell.folder / "closed").mkdir(0o500)
    assert shell("doctor", "-u", "sqlite:///closed/jobs.db").code == 1


def test_dead_letters_and_durability(shell: Shell) -> None:
    (shell.folder / "tasks.py").write_text("def handle(job): raise ValueError('no')\n")
    shell("send", "q", "x")
    shell("work", "q", "tasks:handle", "--until-empty", "--max-attempts", "1")
    result = shell("doctor", "--json", "-u", "sqlite:///jobs.db?synchronous=normal")
    assert result.code == 0
    assert states(result)["durability"] == states(result)["queue"] == "warn"
    [row] = [row for row in result.json if row["check"] == "queue"]
    assert row["command"] == "workqueue dead list q"


@pytest.mark.parametrize(
    ("version", "state"),
    [((3, 34, 9), "fail"), ((3, 40, 1), "warn"), ((3, 51, 2), "warn"), ((3, 51, 3), "ok")],
)
def test_versions_of_sqlite(version: tuple[int, ...], state: str) -> None:
    assert judge_sqlite(version).state == state


@pytest.mark.parametrize(
    ("kind", "state"), [("ext4", "ok"), ("nfs4", "fail"), ("tmpfs", "warn"), ("", "warn")]
)
def test_file_systems(kind: str, state: str) -> None:
    assert judge_file_system(Path("/srv/jobs.db"), kind).state == state


@pytest.mark.parametrize(("mib", "state"), [(5, "fail"), (100, "warn"), (5000, "ok")])
def test_space(mib: int, state: str) -> None:
    assert judge_space(Path("/srv/jobs.db"), mib << 20).state == state


def test_a_log_that_only_grows(tmp_path: Path) -> None:
    from workqueue.transports.sqlite.address import parse

    file = tmp_path / "jobs.db"
    file.touch(0o600)
    with (tmp_path / "jobs.db-wal").open("wb") as log:
        log.truncate(300 << 20)
    (tmp_path / "jobs.db-wal").chmod(0o600)
    findings = list(Examination(parse(f"sqlite:///{file}")).modes())
    assert [f.state for f in findings] == ["ok", "warn"]
    assert "300 MiB" in findings[1].found


# -- other places ------------------------------------------------------------------------------


def test_memory_keeps_nothing(shell: Shell) -> None:
    result = shell("doctor", "--json", "-u", "memory://")
    assert (result.code, states(result)["durability"]) == (0, "warn")


def test_nobody_answers(shell: Shell) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        result = shell("doctor", "--json", WORKQUEUE_URL=f"amqp://u:s3cret-x@127.0.0.1:{port}")
    assert result.code == 1
    [row] = [row for row in result.json if row["state"] == "fail"]
    assert (row["check"], row["command"]) == ("reach", f"nc -vz 127.0.0.1 {port}")
    assert "s3cret-x" not in result.out + result.err


def test_passwords_others_can_see(shell: Shell) -> None:
    url = "amqp://ada:s3cret-x@127.0.0.1:1"
    result = shell("doctor", "--json", "-u", url, "--management-url", "http://a:s3cret-y@h:1")
    assert "s3cret" not in result.out + result.err
    [row] = [row for row in result.json if row["check"] == "url"]
    assert "--url and --management-url" in row["found"]
    secret = shell.folder / "url"
    secret.write_text(url)
    secret.chmod(0o644)
    result = shell("doctor", "--json", "--url-file", str(secret), WORKQUEUE_URL="")
    [row] = [row for row in result.json if row["check"] == "url"]
    assert (row["state"], row["command"]) == ("warn", f"chmod 600 {secret}")
    secret.chmod(0o600)
    result = shell("doctor", "--json", "--url-file", str(secret), WORKQUEUE_URL="")
    [row] = [row for row in result.json if row["check"] == "url"]
    assert (row["state"], row["found"]) == ("ok", "amqp://ada:***@127.0.0.1:1")


def test_a_url_that_cannot_be(shell: Shell) -> None:
    assert shell("doctor", "-u", "amqp://h:5672:1/").code == 78
    assert shell("doctor", "-u", "nope://h").code == 78
    assert shell("doctor", "a\nb").code == 78


def test_a_broken_plugin_is_named(shell: Shell) -> None:
    """It cannot be loaded, and that is its own distribution's business."""
    install_plugin(shell.folder, "import nothing_like_that\n")
    result = shell("doctor", "--json", PYTHONPATH=str(shell.folder / "site"))
    assert result.code == 0
    [row] = [row for row in result.json if row["check"] == "plugins" and row["state"] == "warn"]
    assert "nothing_like_that" in row["found"]
    assert row["command"] == "pip install --upgrade workqueue-x"


def test_a_transport_without_examination(shell: Shell) -> None:
    """Its queues are looked at all the same."""
    install_plugin(
        shell.folder,
        "from workqueue.transports.memory import MemoryTransport\n"
        "from workqueue.transport import QueueSpec\n"
        "class X:\n"
        "    def __init__(self, url):\n"
        "        self.inner = MemoryTransport('memory://x')\n"
        "        self.inner.declare(QueueSpec(name='q'))\n"
        "    def __getattr__(self, name):\n"
        "        if name == 'examine': raise AttributeError(name)\n"
        "        return getattr(self.inner, name)\n",
    )
    result = shell("doctor", "--json", "-u", "x://", PYTHONPATH=str(shell.folder / "site"))
    assert result.code == 0
    assert states(result)["broker"] == "warn"
    assert [row["queue"] for row in result.json if row["check"] == "queue"] == ["q"]
    gone = shell("doctor", "nope", "--json", "-u", "x://", PYTHONPATH=str(shell.folder / "site"))
    assert gone.code == 1


def install_plugin(folder: Path, code: str) -> None:
    """A distribution workqueue-x with the transport x:// in it."""
    site = folder / "site"
    info = site / "workqueue_x-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workqueue-x\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workqueue.transports]\nx = workqueue_x:X\n")
    (site / "workqueue_x.py").write_text(code)
