"""The fixtures that the other tests here stand on: real brokers, and a network with faults."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import amqp
import kombu
import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.images import SERIES
from workqueue.cli.torture.proxy import Proxy
from workqueue.testing import eventually


@contextmanager
def connected(url: str, within: float = 10) -> Iterator[amqp.Connection]:
    """A connection made at the first try, each step of it `within` so many seconds; on which no
    call waits for ever."""
    patience = {"read_timeout": 10, "write_timeout": 10}
    transport = kombu.Connection(url, connect_timeout=within, transport_options=patience).transport
    connection = transport.establish_connection()
    try:
        yield connection
    finally:
        connection.collect()


@pytest.mark.rabbitmq(*SERIES)
def test_each_series_starts_and_says_so(request: pytest.FixtureRequest, broker: Broker) -> None:
    assert request.node.callspec.id in (broker.series, "given")
    assert broker.manage("GET", "overview")["rabbitmq_version"] == broker.version


@pytest.mark.rabbitmq(*SERIES)
def test_what_is_on_disk_survives_a_kill(broker: Broker, vhost: Vhost) -> None:
    with connected(vhost.url) as connection:
        quorum = {"x-queue-type": "quorum"}
        connection.channel().queue_declare(
            "kept", durable=True, auto_delete=False, arguments=quorum
        )
        broker.kill()
    with pytest.raises(ConnectionRefusedError), connected(vhost.url):
        pass
    broker.start()
    with connected(vhost.url) as connection:  # the same port
        connection.channel().queue_declare("kept", passive=True)


def test_a_vhost_lives_as_long_as_its_test(broker: Broker) -> None:
    with broker.vhost() as vhost, connected(vhost.url):
        assert vhost.name in {each["name"] for each in broker.manage("GET", "vhosts")}
    assert vhost.name not in {each["name"] for each in broker.manage("GET", "vhosts")}


def test_a_paused_broker_is_silent(broker: Broker, vhost: Vhost) -> None:
    broker.pause()
    with pytest.raises(TimeoutError), connected(vhost.url, within=1):
        pass
    broker.unpause()
    with connected(vhost.url):
        pass


def test_a_stopped_app_refuses(broker: Broker, vhost: Vhost) -> None:
    broker.stop_app()
    with pytest.raises(OSError), connected(vhost.url):
        pass
    broker.start_app()
    with connected(vhost.url):
        pass


def test_a_memory_alarm_blocks_publishers(broker: Broker, vhost: Vhost) -> None:
    broker.set_memory_alarm()
    with connected(vhost.url) as connection:
        blocked: list[str] = []
        connection.on_blocked = blocked.append
        connection.channel().basic_publish(amqp.Message(b"x"), routing_key="nobody")

        def is_told() -> bool:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.1)
            return bool(blocked)

        eventually(is_told)
        broker.clear_memory_alarm()


def test_closing_all_connections(broker: Broker, vhost: Vhost) -> None:
    with connected(vhost.url) as connection:
        broker.close_all_connections("for the test")
        with pytest.raises(amqp.ConnectionForced, match="for the test"):
            connection.drain_events(timeout=10)


@pytest.mark.rabbitmq("4.3", config="heartbeat = 7\nconsumer_timeout = 123456", env={"LANG": "C"})
def test_a_broker_is_configured_as_asked(broker: Broker) -> None:
    with connected(broker.url) as connection:
        assert connection.server_heartbeat == 7
    assert "123456" in broker.rabbitmqctl("eval", "application:get_env(rabbit, consumer_timeout).")


@pytest.mark.rabbitmq("4.0", advanced="[{rabbit, [{channel_tick_interval, 1000}]}].")
def test_an_advanced_configuration(broker: Broker) -> None:
    said = broker.rabbitmqctl("eval", "application:get_env(rabbit, channel_tick_interval).")
    assert "1000" in said


def test_the_proxy_passes_and_counts(proxy: Proxy, vhost: Vhost) -> None:
    with connected(proxy.through(vhost.url)):
        assert proxy.accepted == 1
        assert proxy.bytes["up"] > 100
        assert proxy.bytes["down"] > 100


def test_the_proxy_resets(proxy: Proxy, vhost: Vhost) -> None:
    with connected(proxy.through(vhost.url)) as connection:
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            connection.drain_events(timeout=5)


def test_the_proxy_refuses_and_heals(proxy: Proxy, vhost: Vhost) -> None:
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError), connected(proxy.through(vhost.url)):
        pass
    proxy.heal()
    with connected(proxy.through(vhost.url)):
        pass


def test_the_proxy_stalls(proxy: Proxy, vhost: Vhost) -> None:
    """What is stalled is late, not lost."""
    with connected(proxy.through(vhost.url)) as connection:
        proxy.stall("down")
        with pytest.raises(TimeoutError):
            connection.drain_events(timeout=0.3)
        threading.Timer(0.2, proxy.heal).start()
        assert connection.channel().is_open


def test_the_proxy_drops(proxy: Proxy, vhost: Vhost) -> None:
    """What is dropped is lost, and so the connection ends when all is well again."""
    with connected(proxy.through(vhost.url)) as connection:
        proxy.drop()
        before = dict(proxy.bytes)
        connection.send_heartbeat()
        time.sleep(0.1)
        assert proxy.bytes == before
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            connection.drain_events(timeout=5)
    with connected(proxy.through(vhost.url)):
        pass


def test_the_proxy_cuts_after_so_many_bytes() -> None:
    """The bytes before the cut arrive, and then both ends hear a reset."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Proxy(*server.getsockname()) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port)) as client,
        server.accept()[0] as peer,
    ):
        proxy.cut_after(10, "up")
        client.sendall(b"0123456789abcdef")
        assert peer.recv(100) == b"0123456789"
        with pytest.raises(ConnectionResetError):
            peer.recv(100)
        with pytest.raises(ConnectionResetError):
            client.recv(100)


def test_the_proxy_accepts_and_says_nothing() -> None:
    with Proxy("127.0.0.1", 9) as proxy:
        proxy.accept_only()
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=0.3) as client:
            client.sendall(b"anybody?")
            with pytest.raises(TimeoutError):
                client.recv(100)
