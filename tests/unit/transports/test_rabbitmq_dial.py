"""From a name to a connection: in bounded time, and with files that are what they should be."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from workqueue import Producer, connect
from workqueue.errors import AccessRefused, ConfigError, ConnectionLost
from workqueue.transports.rabbitmq.address import parse
from workqueue.transports.rabbitmq.dial import addresses, tls_context

ENOUGH = 20.0


@pytest.fixture
def mute() -> Iterator[int]:
    """A port where connections are accepted by the kernel, and nobody says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_port_that_says_nothing(mute: int, scheme: str) -> None:
    """Neither its greeting nor its TLS handshake is waited for beyond the timeout."""
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match=f"127.0.0.1:{mute}"):
        Producer(connect(f"{scheme}://127.0.0.1:{mute}").queue("q"), timeout=1).send("x")
    assert time.monotonic() - began < 3


def test_a_greeting_that_drips(mute: int) -> None:
    """Each byte is an answer, and all of them together are none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            with listener.accept()[0] as client, suppress(OSError):
                for _ in range(100):
                    client.send(b"\1")
                    time.sleep(0.05)

        threading.Thread(target=drip, daemon=True).start()
        port = listener.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            Producer(connect(f"amqp://127.0.0.1:{port}").queue("q"), timeout=1).send("x")
        assert time.monotonic() - began < 3


def test_a_name_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's look-up knows no timeout."""
    never = threading.Event()
    look_up = socket.getaddrinfo

    def hang(host: Any, *arguments: Any, flags: int = 0, **options: Any) -> Any:
        if flags & socket.AI_NUMERICHOST:
            return look_up(host, *arguments, flags=flags, **options)
        never.wait(ENOUGH)
        raise socket.gaierror(socket.EAI_AGAIN, "at last")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    with pytest.raises(ConnectionLost, match="look-up"):
        Producer(connect("amqp://broker.example").queue("q"), timeout=1).send("x")
    assert time.monotonic() - began < 3
    never.set()


def test_a_name_is_looked_up_without_threads_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have as many processes as are allowed already."""

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    assert addresses("localhost", 1)


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_a_name_that_cannot_be_one(host: str) -> None:
    """The codec for names of hosts raises errors of its own."""
    with pytest.raises(OSError, match="host"):
        addresses(host, 1)


# -- certificates and keys ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate with its key, in PEM; the same key encrypted; another key."""
    if shutil.which("openssl") is None:
        pytest.skip("making certificates takes the command openssl")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(line: str) -> None:
        subprocess.run(["openssl", *line.split()], cwd=folder, capture_output=True, check=True)

    openssl("req -x509 -newkey rsa:2048 -nodes -subj /CN=me -keyout key.pem -out cert.pem")
    openssl("pkey -in key.pem -aes256 -passout pass:secret -out encrypted.pem")
    openssl("genpkey -algorithm RSA -out other.pem")
    both = (folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes()
    (folder / "both.pem").write_bytes(both)
    (folder / "empty.pem").touch()
    (folder / "binary.pem").write_bytes(bytes(range(256)))
    (folder / "folder.pem").mkdir()
    os.mkfifo(folder / "fifo.pem")
    return folder


@pytest.mark.parametrize(
    "query",
    [
        "cacertfile=cert.pem",
        "certfile=cert.pem&keyfile=key.pem",
        "certfile=both.pem",
        "certfile=both.pem&keyfile=both.pem&cacertfile=both.pem",
    ],
)
def test_files_that_can_be_used(files: Path, query: str) -> None:
    """One file may hold both the certificate and its key."""
    assert tls_context(parse(f"amqps://h?{query.replace('=', f'={files}/')}"))


@pytest.mark.parametrize(
    ("query", "named", "told"),
    [
        ("cacertfile=key.pem", "cacertfile", "no certificate"),
        ("cacertfile=empty.pem", "cacertfile", "no certificate"),
        ("cacertfile=binary.pem", "cacertfile", "no certificate"),
        ("cacertfile=missing.pem", "cacertfile", "No such file"),
        ("cacertfile=folder.pem", "cacertfile", "not a regular file"),
        ("cacertfile=fifo.pem", "cacertfile", "not a regular file"),
        ("certfile=cert.pem", "certfile", "no private key"),
        ("certfile=key.pem&keyfile=key.pem", "certfile", "no certificate"),
        ("certfile=binary.pem&keyfile=key.pem", "certfile", "no certificate"),
        ("certfile=fifo.pem", "certfile", "not a regular file"),
        ("certfile=cert.pem&keyfile=cert.pem", "keyfile", "no private key"),
        ("certfile=cert.pem&keyfile=empty.pem", "keyfile", "no private key"),
        ("certfile=cert.pem&keyfile=other.pem", "keyfile", "does not belong"),
        ("certfile=cert.pem&keyfile=missing.pem", "keyfile", "No such file"),
        ("certfile=cert.pem&keyfile=encrypted.pem", "keyfile", "encrypted"),
    ],
)
def test_files_that_cannot(files: Path, query: str, named: str, told: str) -> None:
    """The error names the option and the file, and nobody is asked for a pass phrase."""
    url = f"amqps://user:SECRET@127.0.0.1:1?{query.replace('=', f'={files}/')}"
    began = time.monotonic()
    with pytest.raises((ConfigError, AccessRefused), match=told) as caught:
        connect(url).queue("q").stats()
    assert time.monotonic() - began < 3
    assert f"{named}={files}/" in str(caught.value)
    assert isinstance(caught.value, ConfigError) or caught.value.command.startswith("openssl ")
    assert "SECRET" not in str(caught.value)


def test_a_file_that_is_being_replaced(files: Path, tmp_path: Path) -> None:
    """Certificates are renewed under running workers: for a moment the old ones are good enough."""
    names = {"certfile": tmp_path / "cert.pem", "keyfile": tmp_path / "key.pem"}
    address = parse("amqps://h?" + "&".join(f"{name}={file}" for name, file in names.items()))
    with pytest.raises(ConfigError, match="No such file"):
        tls_context(address)
    for file in names.values():
        shutil.copy(files / file.name, file)
    good = tls_context(address)
    shutil.copy(files / "other.pem", names["keyfile"])
    assert tls_context(address) is good
    names["certfile"].unlink()
    assert tls_context(address) is good
    for file in names.values():
        shutil.copy(files / file.name, file)
    assert tls_context(address) is not good


@pytest.mark.parametrize(
    ("url", "external"),
    [
        ("amqps://h?certfile=/c&keyfile=/k", True),
        ("amqps://user:pw@h?certfile=/c&keyfile=/k", False),
        ("amqps://user@h?certfile=/c&keyfile=/k", False),
        ("amqps://h?cacertfile=/c", False),
    ],
)
def test_a_certificate_is_the_login_where_there_is_no_other(url: str, external: bool) -> None:
    """Who names a user wants to be that user."""
    assert parse(url).external is external
