"""Figures that only RabbitMQ's management API has: what is in flight, and which queues there are.

Its port cannot be known from the AMQP URL, so it is asked only where its URL was given. The
figures are samples, some seconds old. Source: RabbitMQ documentation, "HTTP API Reference".
"""

from __future__ import annotations

import base64
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from time import monotonic, time
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, unquote, urlsplit

import msgspec

from workqueue.deadline import left
from workqueue.errors import AccessRefused, ConfigError, ConnectionLost
from workqueue.message import seconds_since
from workqueue.transport import QueueStats
from workqueue.transports.rabbitmq.address import Source
from workqueue.transports.rabbitmq.ladder import is_level

TIMEOUT = 5.0
"""Seconds for each read, and LONGEST for a whole answer: one may trickle."""

LONGEST = 20.0

LARGEST_ANSWER = 64 << 20
"""Bytes. The names of 100,000 queues are about 6 MB."""

SAMPLE_AGE = 10.0
"""Seconds. A queue tells its figures every 5 s (collect_statistics_interval, quorum_tick_interval),
and the API collects what was told as often. Source: RabbitMQ documentation, "Management plugin"."""


def unreadable() -> ConfigError:
    return ConfigError(
        "the management URL cannot be read", hint="Write http://user:password@host:15672"
    )


Answer = TypeVar("Answer")

FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "type", "vhost", "pattern", "configure", "write", "read"), str),
    **dict.fromkeys(("source", "destination", "destination_type", "routing_key"), str),
    **dict.fromkeys(("arguments", "definition"), dict),
    "effective_policy_definition": (dict, list, type(None)),
    **dict.fromkeys(("partitions", "alarms"), list),
    "priority": int,
}
"""The fields that are looked at, and what they are."""


def row(value: Any) -> dict[str, Any]:
    """An object whose fields are of the types that RabbitMQ gives them; else ValueError."""
    if not isinstance(value, dict):
        raise ValueError("an answer that is no object")
    for name in value.keys() & FIELDS.keys():
        if not isinstance(value[name], FIELDS[name]):
            raise ValueError(f"an answer whose {name} is a {type(value[name]).__name__}")
    for alarm in value.get("alarms", ()):
        row(alarm)
    return value


def rows(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise ValueError("an answer that is no list")
    return [row(item) for item in value]


def number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


class Readable(Protocol):
    """An answer, or an error that is one."""

    def read1(self, size: int, /) -> bytes: ...


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The API redirects nobody. Followed, its answer would be that of a host nobody named."""

    def redirect_request(self, *_: Any) -> None:
        return None


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
        self.opener = urllib.request.build_opener(NoRedirect)

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
        found = self.objects(f"queues/{self.vhost}?columns=name")
        return sorted(queue["name"] for queue in found if "name" in queue)

    def complete(self, queue: str, stats: QueueStats) -> QueueStats:
        """`stats` with what AMQP does not tell. Before its first sample the API says nothing, and
        later what was seconds ago: that nothing is in flight is believed only beside a count of
        what is ready that AMQP agrees with, and else None."""
        found = self.get(f"queues/{self.vhost}/{quote(queue, safe='')}")
        in_flight = number(found.get("messages_unacknowledged"))
        if in_flight == 0 and found.get("messages_ready") != stats.ready:
            in_flight = None
        oldest = number(found.get("head_message_timestamp"))  # its sender's word
        totals = found.get("message_stats")
        totals = totals if isinstance(totals, dict) else {}
        return replace(
            stats,
            in_flight=in_flight,
            delayed=self.delayed(number(found.get("messages_delayed", 0))),
            oldest=seconds_since(oldest, time()),
            sent=number(totals.get("publish")),
            done=number(totals.get("ack")),
            age=SAMPLE_AGE,
        )

    def delayed(self, by_queue: int | None) -> int | None:
        """What waits for its time is in queues that all share: only that there is none of it can
        be told."""
        found = self.objects(f"queues/{self.vhost}?columns=name,messages")
        counts = [queue.get("messages") for queue in found if is_level(queue.get("name", ""))]
        return by_queue if all(count == 0 for count in counts) else None

    def alarms(self) -> list[tuple[str, str]]:
        """Node and resource ("memory" or "disk") of each alarm, as of now."""
        answer = self.get("health/checks/alarms", also=503)
        alarms = answer.get("alarms", [])
        return [(str(alarm.get("node")), str(alarm.get("resource"))) for alarm in alarms]

    def get(self, path: str, also: int = 200) -> dict[str, Any]:
        """The object it answers; `also` is a status beside 200 that is an answer."""
        return self.ask(path, row, also)[0]

    def date(self) -> str:
        """What the broker says the time is, as HTTP writes it, or nothing."""
        return self.ask("whoami", row)[1]

    def objects(self, path: str) -> list[dict[str, Any]]:
        """The objects it answers."""
        return self.ask(path, rows)[0]

    def ask(self, path: str, read: Callable[[Any], Answer], also: int = 200) -> tuple[Answer, str]:
        """The answer as `read` understands it, and the date that came with it."""
        url = f"{self.root}/{path}"  # http or https: checked in __init__
        request = urllib.request.Request(url)  # noqa: S310
        # A redirection elsewhere must not take the password along.
        request.add_unredirected_header("Authorization", self.login)
        try:
            with self.opener.open(request, timeout=left(TIMEOUT)) as response:
                return read(decoded(response)), response.headers.get("Date", "")
        except urllib.error.HTTPError as error:
            with error:
                if error.code == also:
                    return read(decoded(error)), error.headers.get("Date", "")
            if error.code in (401, 403):
                told = f"the management API at {self.where} refuses the login"
                raise AccessRefused(told) from error
            raise ConnectionLost(
                f"the management API at {self.where} answers {error.code}"
            ) from error
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionLost(
                f"cannot reach the management API at {self.where}: {reason}"
            ) from error


def decoded(answer: Readable) -> Any:
    """The JSON that it is. Raises ValueError for what is not, or is too large, and TimeoutError for
    one that does not end."""
    return msgspec.json.decode(whole(answer))


def whole(answer: Readable) -> bytes:
    parts: list[bytes] = []
    size, deadline = 0, monotonic() + left(LONGEST)
    while part := answer.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > LARGEST_ANSWER:
            raise ValueError(f"an answer of more than {LARGEST_ANSWER} bytes")
        if monotonic() > deadline:
            raise TimeoutError(f"no end of its answer within {LONGEST:g} s")
    return b"".join(parts)
