"""A real RabbitMQ in a container, with the handles that tests hold it by."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shlex
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest

from workqueue.testing import eventually

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer


@dataclass(frozen=True, slots=True)
class Vhost:
    """A virtual host on a broker: its name, and the URL that leads to it."""

    name: str
    url: str


class Broker:
    """A RabbitMQ that runs. What takes power over its container skips the test if we have none."""

    def __init__(
        self,
        url: str,
        management_url: str = "",
        container: DockerContainer | None = None,
        patience: float = 60,
        tls_port: int = 0,
    ) -> None:
        self.url = url
        self.tls_port = tls_port
        self.management_url = management_url
        self.container = container
        self.app_is_stopped = False
        self.alarm_is_set = False
        self.version = self.wait_until_ready(patience)

    @property
    def series(self) -> str:
        """Like 4.0."""
        return ".".join(self.version.split(".")[:2])

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 5672

    @contextlib.contextmanager
    def vhost(self) -> Iterator[Vhost]:
        """A fresh virtual host, deleted afterwards with its queues and connections.

        On a broker of the user's whose management API we do not know, the one that the URL names.
        """
        if not self.management_url:
            yield Vhost(unquote(urlsplit(self.url).path[1:]), self.url)
            return
        name = f"test-{uuid.uuid4().hex[:12]}"
        user = urlsplit(self.url).username or "guest"
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.manage("PUT", f"vhosts/{name}")
        self.manage("PUT", f"permissions/{name}/{user}", everything)
        try:
            yield Vhost(name, urlsplit(self.url)._replace(path=f"/{name}").geturl())
        finally:
            self.heal()
            self.manage("DELETE", f"vhosts/{name}")

    def manage(self, method: str, path: str, body: object = None) -> Any:
        """What the management API answers, from JSON; None for nothing. Raises HTTPError."""
        if not self.management_url:
            pytest.skip("WORKQUEUE_TEST_MANAGEMENT_URL is not set: no management API to ask")
        parts = urlsplit(self.management_url)
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        request = urllib.request.Request(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
                "Content-Type": "application/json",
            },
        )
        # A virtual host goes with all its queues, one after the other.
        with urllib.request.urlopen(request, timeout=60) as answer:
            said = answer.read()
        return json.loads(said) if said else None

    def wait_until_ready(self, within: float = 60) -> str:
        """Clients are served, by the management API too; returns the version that they are told."""
        version = eventually(self._greets, within=within, every=0.1, what=f"RabbitMQ at {self.url}")
        if self.management_url:
            eventually(self._manages, within=within, every=0.1, what="its management API")
        return version

    def _greets(self) -> str:
        import kombu

        # Not connect(), which would try again after 2 s.
        transport = kombu.Connection(self.url, connect_timeout=3).transport
        try:
            connection = transport.establish_connection()
        except (*transport.connection_errors, *transport.channel_errors):
            return ""
        transport.close_connection(connection)
        return str(connection.server_properties["version"])

    def _manages(self) -> bool:
        try:
            return bool(self.manage("GET", "whoami"))
        except OSError:
            return False

    # -- powers over the container

    def kill(self) -> None:
        """SIGKILL to all of the broker: what it had not yet written is lost."""
        self._box.kill("SIGKILL")
        self._box.wait(timeout=30)

    def start(self) -> None:
        """It runs again, on the same ports and with what is on its disk."""
        self._box.start()
        self.wait_until_ready()

    def restart_command(self) -> str:
        """What does the same from a command line, as `docker restart` does: not all who have an
        engine have its program."""
        code = (
            f"import docker; docker.from_env().containers.get('{self._box.id}').restart(timeout=1)"
        )
        return shlex.join([sys.executable, "-c", code])

    def pause(self) -> None:
        """Its processes are frozen; connections stay open and nobody answers."""
        import docker.errors

        for attempt in range(3):
            try:
                self._box.pause()
                break
            except docker.errors.APIError as error:
                # The kernel cannot always freeze what it is just about to run.
                if "unable to freeze" not in str(error) or attempt == 2:
                    raise

    def unpause(self) -> None:
        """It goes on as if no time had passed."""
        self._box.unpause()

    def stop_app(self) -> None:
        """RabbitMQ stops in order, closing all connections; its Erlang node stays."""
        self.rabbitmqctl("stop_app")
        self.app_is_stopped = True

    def start_app(self) -> None:
        """The opposite of `stop_app`."""
        self.rabbitmqctl("start_app")
        self.app_is_stopped = False
        self.wait_until_ready()

    def set_memory_alarm(self) -> None:
        """Publishers are blocked, from now on."""
        self.alarm_is_set = True
        self.rabbitmqctl("set_vm_memory_high_watermark", "absolute", "1")
        eventually(lambda: not self._has_no_alarm(), within=30, what="the memory alarm")

    def clear_memory_alarm(self) -> None:
        """Publishers are let go."""
        self.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
        eventually(self._has_no_alarm, within=30, what="the end of the memory alarm")
        self.alarm_is_set = False

    def _has_no_alarm(self) -> bool:
        try:
            self.manage("GET", "health/checks/local-alarms")
        except urllib.error.HTTPError as error:
            error.close()
            return False
        return True

    def close_all_connections(self, reason: str = "test") -> None:
        """The broker closes every connection in order, as an administrator may."""
        self.rabbitmqctl("close_all_connections", "--global", reason)

    def rabbitmqctl(self, *arguments: str) -> str:
        """What it prints. A failure is the test's."""
        code, output = self._box.exec_run(["rabbitmqctl", "--quiet", *arguments])
        assert code == 0, f"rabbitmqctl {' '.join(arguments)}: {output.decode(errors='replace')}"
        return str(output.decode())

    def enable(self, plugin: str) -> None:
        """A plugin that the image has."""
        code, output = self._box.exec_run(["rabbitmq-plugins", "enable", plugin])
        assert code == 0, output.decode(errors="replace")

    def log(self, lines: int = 40) -> str:
        """The end of the broker's log, without its colours."""
        return re.sub("\x1b\\[[0-9;]*m", "", self._box.logs(tail=lines).decode(errors="replace"))

    def heal(self) -> None:
        """Undo whatever a test has done and, perhaps by failing, has left."""
        if self.container is None:
            return
        self._box.reload()
        if self._box.status == "paused":
            self.unpause()
        elif self._box.status != "running":
            self.app_is_stopped = self.alarm_is_set = False
            self.start()
        if self.app_is_stopped:
            self.start_app()
        if self.alarm_is_set:
            self.clear_memory_alarm()

    @property
    def _box(self) -> Any:
        if self.container is None:
            pytest.skip("WORKQUEUE_TEST_AMQP_URL gives no power over the broker's container")
        return self.container.get_wrapped_container()
