"""Figures that only RabbitMQ's management API has: what is in flight, and which queues there are.

Its port cannot be known from the AMQP URL, so it is asked only where its URL was given. The
figures are samples, some seconds old. Source: RabbitMQ documentation, "HTTP API Reference".
"""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from dataclasses import replace
from time import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from workqueue.deadline import left
from workqueue.errors import AccessRefused, ConfigError, ConnectionLost
from workqueue.transport import QueueStats
from workqueue.transports.rabbitmq.address import Source
from workqueue.transports.rabbitmq.ladder import is_level

TIMEOUT = 5.0
"""Seconds."""

SAMPLE_AGE = 10.0
"""Seconds. A queue tells its figures every 5 s (collect_statistics_interval, quorum_tick_interval),
and the API collects what was told as often. Source: RabbitMQ documentation, "Management plugin"."""


def unreadable() -> ConfigError:
    return ConfigError(
        "the management URL cannot be read", hint="Write http://user:password@host:15672"
    )


class Management:
    """The API at `url`, with its own login or, if it names none, that of the AMQP URL."""

    def __init__(self, url: str, source: Source) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:  # whose text may hold the password
            raise unreadable() from None
        if parts.scheme not in ("http", "https") or not host:
            raise unreadable()
        self.where = f"{host}:{port}" if port else host
        self.root = f"{parts.scheme}://{self.where}{parts.path.rstrip('/')}/api"
        self.source = source
        self.own_user = unquote(parts.username or "")
        self.own_password = unquote(parts.password or "")

    @property
    def vhost(self) -> str:
        """As it is written in a path."""
        return quote(self.source.now().vhost, safe="")

    @property
    def login(self) -> str:
        """A header's value; as the AMQP URL says it at the moment, what this one does not say."""
        address = self.source.now()
        user, password = self.own_user or address.user, self.own_password or address.password
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def queues(self) -> list[str]:
        """All queues of the virtual host, sorted."""
        return sorted(queue["name"] for queue in self.get(f"queues/{self.vhost}?columns=name"))

    def complete(self, queue: str, stats: QueueStats) -> QueueStats:
        """`stats` with what AMQP does not tell. Before its first sample the API says nothing, and
        later what was seconds ago: that nothing is in flight is believed only beside a count of
        what is ready that AMQP agrees with, and else None."""
        found = self.get(f"queues/{self.vhost}/{quote(queue, safe='')}")
        in_flight = found.get("messages_unacknowledged")
        if in_flight == 0 and found.get("messages_ready") != stats.ready:
            in_flight = None
        oldest = found.get("head_message_timestamp")
        return replace(
            stats,
            in_flight=in_flight,
            delayed=self.delayed(found.get("messages_delayed", 0)),
            oldest=max(0.0, time() - oldest) if isinstance(oldest, int) else None,
            sent=(found.get("message_stats") or {}).get("publish"),
            done=(found.get("message_stats") or {}).get("ack"),
            age=SAMPLE_AGE,
        )

    def delayed(self, by_queue: int | None) -> int | None:
        """What waits for its time is in queues that all share: only that there is none of it can
        be told."""
        rows = self.get(f"queues/{self.vhost}?columns=name,messages")
        counts = [row.get("messages") for row in rows if is_level(row["name"])]
        return by_queue if all(count == 0 for count in counts) else None

    def alarms(self) -> list[tuple[str, str]]:
        """Node and resource ("memory" or "disk") of each alarm, as of now."""
        answer = self.get("health/checks/alarms", also=503)
        return [(alarm["node"], alarm["resource"]) for alarm in answer.get("alarms", ())]

    def get(self, path: str, also: int = 200) -> Any:
        """What it answers; `also` is a status beside 200 that is an answer."""
        value, _ = self.ask(path, also)
        return value

    def ask(self, path: str, also: int = 200) -> tuple[Any, str]:
        """The answer, and what the broker says the time is (as HTTP writes it, or nothing)."""
        url = f"{self.root}/{path}"  # http or https: checked in __init__
        request = urllib.request.Request(url)  # noqa: S310
        # A redirection elsewhere must not take the password along.
        request.add_unredirected_header("Authorization", self.login)
        try:
            with urllib.request.urlopen(request, timeout=left(TIMEOUT)) as response:  # noqa: S310
                return msgspec.json.decode(response.read()), response.headers.get("Date", "")
        except urllib.error.HTTPError as error:
            with error:
                if error.code == also:
                    return msgspec.json.decode(error.read()), error.headers.get("Date", "")
            if error.code in (401, 403):
                told = f"the management API at {self.where} refuses the login"
                raise AccessRefused(told) from error
            raise ConnectionLost(
                f"the management API at {self.where} answers {error.code}"
            ) from error
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionLost(
                f"cannot reach the management API at {self.where}: {reason}"
            ) from error
