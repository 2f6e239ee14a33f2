"""Passwords are changed while workers and senders run: each connect reads them again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.programs import Desk
from workqueue import Producer, connect


class User:
    """A user of the virtual host, and a file with the URL in it."""

    def __init__(self, broker: Broker, vhost: Vhost, file: Path) -> None:
        self.broker, self.vhost, self.file = broker, vhost, file
        self.name = f"user-{vhost.name}"
        self.set_password("first")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        broker.manage("PUT", f"permissions/{vhost.name}/{self.name}", everything)
        self.write("first")

    def set_password(self, password: str) -> None:
        body = {"password": password, "tags": ""}
        self.broker.manage("PUT", f"users/{self.name}", body)

    def url(self, password: str) -> str:
        host = urlsplit(self.vhost.url).netloc.rpartition("@")[2]
        return f"amqp://{self.name}:{password}@{host}/{self.vhost.name}"

    def write(self, password: str) -> None:
        self.file.write_text(self.url(password) + "\n")


@pytest.fixture
def user(broker: Broker, vhost: Vhost, tmp_path: Path) -> Iterator[User]:
    user = User(broker, vhost, tmp_path / "url")
    yield user
    broker.manage("DELETE", f"users/{user.name}")


@pytest.fixture
def desk(tmp_path: Path, user: User) -> Iterator[Desk]:
    desk = Desk(tmp_path, "")
    yield desk
    desk.close()


@pytest.mark.timeout(180)
def test_a_worker_outlives_its_password(desk: Desk, user: User, broker: Broker) -> None:
    """Half of a URL in the file for a while, and no file for a while, are waited out."""
    file = str(user.file)
    worker = desk.start("work", "q", "tasks:handle", "--url-file", file)
    assert desk.run("send", "q", "sleep 0 a", "--url-file", file).code == 0
    desk.until(lambda: len(desk.bodies("done")) == 1, "the first task")

    user.set_password("second")
    user.file.write_text(user.url("second")[:12])
    broker.close_all_connections()
    desk.until(lambda: worker.says("trying again"), "the refusal")
    user.file.unlink()
    desk.until(lambda: worker.says("cannot read the URL"), "the missing file")
    user.write("second")
    assert desk.run("send", "q", "sleep 0 b", "--url-file", file).code == 0
    desk.until(lambda: len(desk.bodies("done")) == 2, "the second task")
    told = worker.err.read_text()
    assert "first" not in told
    assert "second" not in told


def test_a_sender_and_a_look_outlive_theirs(user: User, broker: Broker) -> None:
    """The library takes a function that gives the URL."""
    queue = connect(lambda: user.file.read_text().strip()).queue("q")
    with Producer(queue, timeout=10) as producer:
        producer.send("a")
        user.set_password("second")
        user.write("second")
        broker.close_all_connections()
        producer.send("b")
        assert queue.stats().ready == 2
