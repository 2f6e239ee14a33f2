"""Where the tests' brokers come from: containers that start when asked for, or a broker given."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from tests.integration import engine, images
from tests.integration.broker import Broker
from tests.integration.engine import Engine, Say, Unavailable

OWNER = "workqueue-test.owner"
"""The label of our containers: which process, on which machine, started them."""

MOST = 4
"""How many containers run at once; beyond, the one that was asked for longest ago is removed."""

# What a test asks of its broker travels in the environment, which suits an engine on another
# machine, and a container that is started again. Only the official image has an entry point.
COMMAND = """set -e
cd /etc/rabbitmq
mkdir -p conf.d
printf '%s\\n' "$WORKQUEUE_CONFIG" > conf.d/90-workqueue-test.conf
if [ "$WORKQUEUE_ADVANCED" ]; then printf '%s\\n' "$WORKQUEUE_ADVANCED" > advanced.config; fi
if [ -x /usr/local/bin/docker-entrypoint.sh ]; then exec docker-entrypoint.sh rabbitmq-server; fi
exec rabbitmq-server
"""
CONFIG = """
loopback_users = none
log.console = true
log.console.level = info
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A broker as tests ask for it; those that ask for the same share one.

    `config`, `advanced` and `environment` add to rabbitmq.conf, make advanced.config, and are
    set for the server.
    """

    series: str
    config: str = ""
    advanced: str = ""
    environment: tuple[tuple[str, str], ...] = ()


class Supply:
    """The brokers of one test run. `close` removes all that it has started."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.engine: Engine | None = None
        self.images: dict[str, str] = {}
        self.missing: dict[str, Unavailable] = {}
        self.running: dict[Wanted, Broker] = {}
        self.used: dict[str, str] = {}

    def prepare(self, series: Iterable[str]) -> None:
        """An engine runs and has an image of each series, or it is known why not."""
        series = sorted(series)
        try:
            self.engine = engine.ensure(self.say)
            remove_stale_containers()
        except Unavailable as reason:
            self.miss(reason, *series)
            return
        for name in series:
            try:
                self.images[name] = images.find_or_make(images.SERIES[name], self.say)
            except Unavailable as reason:
                self.miss(reason, name)

    def miss(self, reason: Unavailable, *series: str) -> None:
        """Remember why there will be no brokers of these series."""
        for line in reason.said:
            self.say(line)
        self.missing.update(dict.fromkeys(series, reason))

    def get(self, wanted: Wanted) -> Broker:
        """A broker that is as wanted, and well. Raises Unavailable."""
        if wanted.series in self.missing:
            raise self.missing[wanted.series]
        broker = self.running.pop(wanted, None)
        if broker is None:
            while len(self.running) >= MOST:
                self.remove(next(iter(self.running)))
            broker = run(wanted, self.images[wanted.series])
            self.used[broker.version] = self.images[wanted.series]
        self.running[wanted] = broker
        return broker

    def given(self, url: str, management_url: str) -> Broker:
        """The broker that the user gave us. Raises Unavailable."""
        if "given" in self.missing:
            raise self.missing["given"]
        wanted = Wanted("given")
        if wanted not in self.running:
            try:
                self.running[wanted] = Broker(url, management_url, patience=10)
            except AssertionError:
                reason = "nobody answers at WORKQUEUE_TEST_AMQP_URL: correct it, or unset it"
                self.missing["given"] = Unavailable(reason)
                raise self.missing["given"] from None
            self.used[self.running[wanted].version] = "WORKQUEUE_TEST_AMQP_URL"
        return self.running[wanted]

    def remove(self, wanted: Wanted) -> None:
        """The broker is gone, with its container and all it held."""
        broker = self.running.pop(wanted)
        if broker.container is not None:
            broker.container.stop()

    def close(self) -> None:
        """All brokers are gone, and the engine if it was ours. Safe to call twice: where a path is
        named, the parent of several processes has two conftests that do."""
        engine, self.engine = self.engine, None
        with contextlib.ExitStack() as last:  # each of them, also when one fails
            if engine is not None:
                last.callback(engine.stop)
                # Those of our processes, if they were interrupted, and killed.
                last.callback(remove_stale_containers)
            for wanted in list(self.running):
                last.callback(self.remove, wanted)


# -- of one pytest run, or of one process of it ----------------------------------------------------

STASH = pytest.StashKey[Supply]()


def supply_of(config: pytest.Config) -> Supply:
    if STASH not in config.stash:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        config.stash[STASH] = Supply(reporter.write_line if reporter else print)
    return config.stash[STASH]


def prepare(config: pytest.Config, series: set[str]) -> None:
    """See `Supply.prepare`; "given" is the user's own broker."""
    if not series:
        return
    # Like Ctrl-C: what we started is stopped before we go.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if series != {"given"}:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            supply_of(config).prepare(series)
            gc.collect()  # docker-py leaves sockets to the collector, when nobody answers


def close(config: pytest.Config) -> None:
    """Nothing that was started is left, and the last line says what was not tested and why."""
    supply = supply_of(config)
    for asking in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asking, signal.SIG_IGN)  # once is enough: we are at it
    supply.close()
    for reason in dict.fromkeys(missing.reason for missing in supply.missing.values()):
        config.get_terminal_writer().line(f"The tests on RabbitMQ did not run: {reason}.")


def allowed_series() -> set[str]:
    """Those that WORKQUEUE_TEST_RABBITMQ_VERSIONS names, as in `4.0,4.3.6`; by default all."""
    named = os.environ.get("WORKQUEUE_TEST_RABBITMQ_VERSIONS", "").replace(",", " ").split()
    series = {".".join(version.split(".")[:2]) for version in named}
    if series - set(images.SERIES):
        choice = ", ".join(images.SERIES)
        raise pytest.UsageError(
            f"WORKQUEUE_TEST_RABBITMQ_VERSIONS={' '.join(named)}: choose from {choice}"
        )
    return series or set(images.SERIES)


# -- containers ------------------------------------------------------------------------------------


def run(wanted: Wanted, image: str) -> Broker:
    """A new container, on free ports of 127.0.0.1 that stay the same when it starts again."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    amqp, http, tls = free_port(), free_port(), free_port()
    container = DockerContainer(image)
    container.image = image  # it is here under this name, without a registry's prefix
    container.with_command(["sh", "-c", COMMAND])
    container.with_envs(
        RABBITMQ_NODENAME="rabbit@localhost",
        WORKQUEUE_CONFIG=f"{CONFIG}\n{wanted.config}",
        WORKQUEUE_ADVANCED=wanted.advanced,
        **dict(wanted.environment),
    )
    inside = {"5672/tcp": amqp, "15672/tcp": http, "5671/tcp": tls}
    ports = {name: ("127.0.0.1", port) for name, port in inside.items()}
    container.ports.update(ports)  # type: ignore[arg-type]  # docker takes the address, too
    container.with_kwargs(labels={OWNER: f"{socket.gethostname()} {os.getpid()}"})
    ready = LogMessageWaitStrategy("Server startup complete").with_startup_timeout(60)
    try:
        container.waiting_for(ready.with_poll_interval(0.2)).start()
        login = "guest:guest@127.0.0.1"
        url, management_url = f"amqp://{login}:{amqp}/", f"http://{login}:{http}"
        broker = Broker(url, management_url, container, tls_port=tls)
        assert broker.series == wanted.series, f"{image} holds RabbitMQ {broker.version}"
    except BaseException:
        container.stop()
        raise
    return broker


def remove_stale_containers() -> None:
    """Remove what earlier runs left that were killed; not what runs beside us have."""
    from testcontainers.core.docker_client import DockerClient

    client = DockerClient().client
    try:
        for container in client.containers.list(all=True, filters={"label": OWNER}):
            machine, pid = container.labels[OWNER].split()
            if machine == socket.gethostname() and not lives(int(pid)):
                container.remove(force=True, v=True)
        for network in client.networks.list(filters={"label": OWNER}):
            machine, pid = network.attrs["Labels"][OWNER].split()
            if machine == socket.gethostname() and not lives(int(pid)):
                network.remove()
    finally:
        client.close()


def lives(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


MOST_PROCESSES = 8
"""Of pytest-xdist, each of which has ports of its own."""

given_ports: set[int] = set()


def free_port() -> int:
    """A port that nobody has, nor will be given: below those that outgoing connections take. None
    twice, and none of another process of the tests: a container takes its own seconds later."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = random.randrange(20000 + process % MOST_PROCESSES, 32000, MOST_PROCESSES)
        if port in given_ports:
            continue
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            given_ports.add(port)
            return port


def skip_unless_suits(broker: Broker, wanted: Wanted, only: Iterable[str]) -> None:
    """On the user's broker: skip a test that asks for another series, or for a configuration."""
    if wanted != Wanted(wanted.series):
        pytest.skip("needs a broker configured for it, and WORKQUEUE_TEST_AMQP_URL is the user's")
    if only and broker.series not in only:
        pytest.skip(f"is for RabbitMQ {', '.join(only)}, and this one is {broker.version}")
