"""A RabbitMQ of three nodes, each in a container, with the handles that tests hold it by.

Each node has its published ports on Docker's own bridge, and meets the others on a network of
theirs. So a node can be cut off from the others while its clients still reach it.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import urllib.request
from base64 import b64encode
from os import getpid
from typing import Any
from urllib.parse import quote

from tests.integration.supply import COMMAND, CONFIG, OWNER, free_port
from workqueue.testing import eventually

SIZE = 3

PATIENCE = 180.0
"""Seconds for a node to come up, or to be back among the others, on a slow machine."""

WITH_COOKIE = """
printf %s "$WORKQUEUE_COOKIE" > /var/lib/rabbitmq/.erlang.cookie
chown rabbitmq:rabbitmq /var/lib/rabbitmq/.erlang.cookie
chmod 400 /var/lib/rabbitmq/.erlang.cookie
"""


class Node:
    """One of them. Its container's name is also its host's."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.name = f"rabbit@{host}"
        self.amqp, self.http = free_port(), free_port()
        self.container: Any = None

    def get(self, path: str) -> Any:
        """What its management API answers. Raises OSError."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http}/api/{path}",
            headers={"Authorization": f"Basic {b64encode(b'guest:guest').decode()}"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.load(answer)

    def is_up(self) -> bool:
        try:
            return bool(self.get("whoami"))
        except (OSError, ValueError):
            return False


class Cluster:
    """Three nodes that found each other. `close` removes all there is of it."""

    def __init__(self, image: str) -> None:
        from testcontainers.core.docker_client import DockerClient

        self.docker = DockerClient(timeout=60).client
        mark = secrets.token_hex(3)
        self.label = {OWNER: f"{socket.gethostname()} {getpid()}"}
        self.network: Any = None
        self.nodes = [Node(f"wq-{mark}-{number}") for number in range(1, SIZE + 1)]
        try:
            self.network = self.docker.networks.create(f"wq-{mark}", labels=self.label)
            for node in self.nodes:
                self.launch(node, image)
            eventually(self.is_whole, within=PATIENCE, every=0.5, what="the cluster")
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """All three hosts."""
        hosts = ",".join(f"127.0.0.1:{node.amqp}" for node in self.nodes)
        return f"amqp://guest:guest@{hosts}/"

    def launch(self, node: Node, image: str) -> None:
        peers = "\n".join(
            f"cluster_formation.classic_config.nodes.{number} = {peer.name}"
            for number, peer in enumerate(self.nodes, 1)
        )
        config = f"""{CONFIG}
cluster_formation.peer_discovery_backend = classic_config
{peers}
cluster_partition_handling = pause_minority
"""
        node.container = self.docker.containers.create(
            image,
            ["sh", "-c", WITH_COOKIE + COMMAND],
            name=node.host,
            hostname=node.host,
            labels=self.label,
            environment={
                "RABBITMQ_NODENAME": node.name,
                "WORKQUEUE_COOKIE": self.network.name * 3,
                "WORKQUEUE_CONFIG": config,
                "WORKQUEUE_ADVANCED": "",
                # How soon a node that is cut off is noticed; a minute by default.
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel net_ticktime 8",
            },
            ports={
                "5672/tcp": ("127.0.0.1", node.amqp),
                "15672/tcp": ("127.0.0.1", node.http),
            },
        )
        self.network.connect(node.container)
        node.container.start()

    def is_whole(self) -> bool:
        """Whether all nodes are up and see all others."""
        for node in self.nodes:
            try:
                seen = node.get("nodes?columns=name,running")
            except (OSError, ValueError):
                return False
            if sum(peer.get("running", False) for peer in seen) < SIZE:
                return False
        return True

    def leader_of(self, queue: str) -> Node:
        """The node that leads a quorum queue."""
        for node in self.nodes:
            with contextlib.suppress(OSError, ValueError):
                leader = node.get(f"queues/%2F/{quote(queue, safe='')}")["leader"]
                return next(node for node in self.nodes if node.name == leader)
        raise AssertionError(f"no node knows the leader of {queue}")

    def wait_until_replicated(self, queue: str) -> None:
        """All three nodes take part in a quorum queue."""

        def replicated() -> bool:
            try:
                found = self.nodes[0].get(f"queues/%2F/{quote(queue, safe='')}")
            except (OSError, ValueError):
                return False
            return len(found.get("online", ())) == SIZE

        eventually(replicated, within=PATIENCE, every=0.5, what=f"three members of {queue}")

    # -- what is done to it

    def kill(self, node: Node) -> None:
        node.container.kill("SIGKILL")
        node.container.wait(timeout=30)

    def start(self, node: Node) -> None:
        """It runs, and is one of three again."""
        node.container.start()
        eventually(self.is_whole, within=PATIENCE, every=0.5, what=f"{node.name} to be back")

    def stop(self, node: Node) -> None:
        """In order, as for maintenance."""
        node.container.exec_run(["rabbitmqctl", "--quiet", "shutdown", "--no-wait"])
        node.container.stop(timeout=30)

    def cut_off(self, node: Node) -> None:
        """The others do not reach it, nor it them; its clients do."""
        self.network.disconnect(node.container)

    def rejoin(self, node: Node) -> None:
        self.network.connect(node.container)
        eventually(self.is_whole, within=PATIENCE, every=0.5, what=f"{node.name} to rejoin")

    def heal(self) -> None:
        """Undo what a test has left, perhaps by failing."""
        for node in self.nodes:
            node.container.reload()
            if self.network.name not in node.container.attrs["NetworkSettings"]["Networks"]:
                self.network.connect(node.container)
            if node.container.status != "running":
                node.container.start()
        eventually(self.is_whole, within=PATIENCE, every=0.5, what="the cluster to be whole")

    def close(self) -> None:
        for node in self.nodes:
            if node.container is not None:
                node.container.remove(force=True, v=True)
        if self.network is not None:
            self.network.remove()
        self.docker.close()
