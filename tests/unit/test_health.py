"""What a supervisor is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from typing import Any, Self

import pytest

from workqueue import Broker, ConfigError, ConnectionLost, Producer, serving
from workqueue.health import STUCK, Health, state_of
from workqueue.testing import eventually
from workqueue.transports.memory import MemoryTransport
from workqueue.worker import Tally, Worker


def ask(health: Health, question: str) -> tuple[int, Any]:
    """Status and body."""
    url = f"http://127.0.0.1:{health.port}/{question}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_from_start_to_drained() -> None:
    """Ready while it takes tasks; not any more once it was told to stop; then nothing answers."""
    queue = Broker(MemoryTransport()).queue("jobs")
    Producer(queue).send("x")
    started, gate = threading.Event(), threading.Event()

    def handle(job: object) -> None:
        started.set()
        gate.wait(30)

    health = Health(0)
    worker = Worker(queue, handle, middleware=[health])
    tallies: list[Tally] = []
    thread = threading.Thread(target=lambda: tallies.append(worker.run()))
    thread.start()
    try:
        assert started.wait(20)
        assert ask(health, "alive")[0] == 200
        assert ask(health, "ready") == (
            200,
            {"alive": True, "ready": True, "drained": False, "running": 1},
        )
        assert ask(health, "drained")[0] == 503
        assert ask(health, "metrics")[0] == 404
        worker.stop()
        eventually(lambda: ask(health, "ready")[0] == 503)
        assert ask(health, "alive")[0] == 200
        assert ask(health, "drained")[0] == 503
    finally:
        gate.set()
        thread.join(20)
    assert tallies[0].done == 1
    with pytest.raises(OSError, match="refused"):
        ask(health, "alive")


def test_who_waits_for_a_broker_is_alive() -> None:
    """A supervisor that ended it would only make it wait again."""

    class Away(MemoryTransport):
        def consumer(self, queue: str, prefetch: int) -> Any:
            raise ConnectionLost("nobody answers")

    worker = Worker(Broker(Away()).queue("jobs"), print)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        eventually(lambda: worker.shift)
        shift = worker.shift
        assert shift is not None
        for _ in range(2):
            shift.turned_at -= 2 * STUCK
            eventually(lambda: state_of(worker)["alive"])
        assert not state_of(worker)["ready"]
    finally:
        worker.stop()
        thread.join(20)


def test_a_port_that_is_taken() -> None:
    """Said before any task is taken, with the port."""
    queue = Broker(MemoryTransport()).queue("jobs")
    first = Health(0)
    first.started(Worker(queue, print))
    try:
        told = f"health port {first.port} of 127.0.0.1: Address already in use"
        with pytest.raises(ConfigError, match=told):
            Worker(queue, print, middleware=[Health(first.port)]).run(until_empty=True)
    finally:
        first.stopped()


# -- clients that mean no good -----------------------------------------------------------------


class Probed:
    """A worker with a health port, at work in a thread, and how often it has worked."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.queue = Broker(MemoryTransport()).queue("jobs")
        self.health = Health(0, address)
        self.done = 0
        self.worker = Worker(self.queue, self.handle, middleware=[self.health])
        self.thread = threading.Thread(target=self.worker.run)

    def handle(self, _job: object) -> None:
        self.done += 1

    def __enter__(self) -> Self:
        self.thread.start()
        eventually(lambda: self.health.server is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop()
        self.thread.join(20)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.health.port), timeout=20)

    def works(self) -> bool:
        before = self.done
        Producer(self.queue).send("x")
        eventually(lambda: self.done > before)
        return True


def test_silent_clients() -> None:
    """However many: the worker works on, and who asks is answered while they are silent."""
    with Probed() as probed, ExitStack() as clients:
        for number in range(5 * serving.MOST_CONNECTIONS):
            clients.enter_context(probed.connect())
            if number % 40 == 0:
                assert ask(probed.health, "alive")[0] == 200
                assert probed.works()
        assert ask(probed.health, "ready")[0] == 200
        threads = [thread for thread in threading.enumerate() if "process_request" in thread.name]
        eventually(lambda: sum(map(threading.Thread.is_alive, threads)) <= serving.MOST_CONNECTIONS)


ODD_REQUESTS = [
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /alive HTTP/9.9\r\n\r\n",
    b"GET /alive HTTP/1.1.1\r\n\r\n",
    b"POST /alive HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n",
    b"GET /" + b"a" * 12_000 + b" HTTP/1.1\r\n\r\n",
    b"GET /alive HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    b"GET /\xff\x00\x1b[2J HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET /alive HTTP/1.1\r\n" + b"x" * 2000 + b"\r\n\r\n",
]


def test_no_client_causes_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever it asks, and however it hangs up."""
    with Probed() as probed:
        for request in ODD_REQUESTS:
            for reset in (False, True):
                with probed.connect() as client:
                    client.sendall(request)
                    if reset:
                        linger = struct.pack("ii", 1, 0)
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    else:
                        client.recv(1000)
        for _ in range(20):
            with suppress(OSError), probed.connect() as client:
                client.sendall(b"GET /alive HTTP/1.1\r\n\r\n")
        assert ask(probed.health, "alive")[0] == 200
    assert "Traceback" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("piece", [b"G", b"GET /alive HTTP/1.1\r\n", b"A: b\r\n" * 1000])
def test_requests_that_do_not_end(piece: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are hung up on: by their length, or by the time they take, also when bytes keep coming."""
    monkeypatch.setattr(serving, "PATIENCE", 0.3)
    with Probed() as probed, probed.connect() as client:
        client.settimeout(0.01)

        def hung_up() -> bool:
            try:
                client.sendall(piece)
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        eventually(hung_up)
        assert ask(probed.health, "alive")[0] == 200


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
def test_where_it_listens(address: str) -> None:
    """On this machine's own address, or as it was told."""
    try:
        socket.create_server((address, 0), family=family_of(address)).close()
    except OSError:
        pytest.skip(f"no {address} here")
    with Probed(address) as probed:
        server = probed.health.server
        assert server is not None
        local = address in ("127.0.0.1", "localhost", "::1")
        assert ip_address(server.server_address[0]).is_loopback is local


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.name.invalid", "a" * 300, "\0"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ConfigError, match="health port 0"):
        Health(0, address).started(Worker(Broker(MemoryTransport()).queue("jobs"), print))


@pytest.mark.parametrize(("address", "told"), [("127.0.0.1", True), ("0.0.0.0", False)])
def test_a_kubelet_that_cannot_ask(
    address: str, *, told: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Is warned of, with the flag that lets it."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with Probed(address):
        pass
    assert ("--health-address 0.0.0.0" in caplog.text) == told
