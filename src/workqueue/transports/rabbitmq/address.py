"""A broker's URL, taken strictly: what kombu would take for a host name is an error here.

    amqp[s]://[user[:password]@]host[:port][,host[:port]…][/vhost][?heartbeat=20&cacertfile=…]

The forms are those of RabbitMQ's "URI specification" and "URI query parameters"; no virtual host
is "/", as every client has it, and so is "//" at the end, as Celery's users write it. A part of the
URL is never repeated in an error: it may hold the password.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from workqueue.errors import ConfigError
from workqueue.loggers import logger

log = logger("rabbitmq")

PORTS = {"amqp": 5672, "amqps": 5671}
DEFAULT_HEARTBEAT = 20.0
"""Seconds. Below 5, RabbitMQ's guide warns of false alarms; a silent cut is noticed after two."""

SHAPE = re.compile(
    r"(?P<scheme>[a-z]+)://(?:(?P<login>[^/?#]*)@)?(?P<hosts>[^/?#@]*)"
    r"(?:/(?P<vhost>[^?#]*))?(?:\?(?P<query>[^#]*))?",
    re.IGNORECASE,
)
HOST = re.compile(
    r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?)(?::(?P<port>\d{1,5}))?",
    re.IGNORECASE,
)
HINT = "Write amqp://user:password@host:5672/vhost, with @ : / # in a password as %40 %3A %2F %23."


@dataclass(frozen=True, slots=True)
class Address:
    """Where brokers are and how to log in. `hosts` are alternatives; `repr` keeps the password.

    `external`: the client certificate is the login, if the broker lets it be (SASL EXTERNAL), and
    `user` and `password` are for one that does not. Source: RabbitMQ documentation, "Authentication
    with x509 certificates".
    """

    hosts: tuple[tuple[str, int], ...]
    user: str = "guest"
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: bool = False
    heartbeat: float = DEFAULT_HEARTBEAT
    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    server_name: str | None = None
    external: bool = field(default=False, compare=False)

    def certified_name(self, host: str) -> str:
        """What the certificate of `host` must name; it is always checked."""
        return self.server_name or host.strip("[]")


class Source:
    """The address as the URL says it at the moment: it is read at each connect, so that a new
    password, or a broker that moved, needs no restart.

    `read` gives the URL. What it gives first must make sense; later, while it raises or gives what
    does not, the address stays as it was, and a line is logged. `moved` is called when another
    broker or virtual host is named.
    """

    def __init__(self, read: Callable[[], str], moved: Callable[[], None]) -> None:
        self.read = read
        self.moved = moved
        self.url = read()
        self.address = parse(self.url)
        self.problem = ""

    def now(self) -> Address:
        try:
            url = self.read()
            address = parse(url) if url != self.url else self.address
        except Exception as error:  # noqa: BLE001 - the function may be a user's
            # Of errors that are not ours the text may hold what was read.
            told = str(error) if isinstance(error, ConfigError) else type(error).__name__
            if told != self.problem:
                self.problem = told
                log.warning("the URL cannot be read again, the one before stays: %s", told)
            return self.address
        before, self.address = self.address, address
        self.url, self.problem = url, ""
        if (before.hosts, before.vhost) != (address.hosts, address.vhost):
            self.moved()
        return address


def parse(url: str) -> Address:
    """The address in `url`. Raises ConfigError, which never shows the URL."""
    shape = SHAPE.fullmatch(url)
    if not shape or shape["scheme"].lower() not in PORTS:
        raise bad("has a part that does not belong there")
    scheme = shape["scheme"].lower()
    user, password = login(shape["login"])
    chosen = options(shape["query"] or "", tls=scheme == "amqps")
    hosts = tuple(host(text, PORTS[scheme]) for text in shape["hosts"].split(","))
    # One / more in front is the virtual host's own, as kombu has it: amqp://host// is "/".
    path = shape["vhost"] or "/"
    own, vhost = ("/", path[1:]) if path.startswith("/") else ("", path)
    if "/" in vhost:
        raise bad("has more than one part after the host; a / in a virtual host is written %2F")
    return Address(
        hosts=hosts,
        user=user,
        password=password,
        vhost=own + decoded(vhost),
        tls=scheme == "amqps",
        external=shape["login"] is None and "certfile" in chosen,
        **chosen,
    )


def login(text: str | None) -> tuple[str, str]:
    """User and password; the broker's stock user guest has its stock password."""
    if text is None:
        return "guest", "guest"
    if "@" in text:
        raise bad("has more than one @")
    user, colon, password = text.partition(":")
    if not user or ":" in password:
        raise bad("has a login that is not user:password")
    return decoded(user), decoded(password) if colon else ("guest" if user == "guest" else "")


def host(text: str, default_port: int) -> tuple[str, int]:
    match = HOST.fullmatch(text)
    if not match:
        raise bad("has no host" if not text else "has a host that cannot be one")
    port = int(match["port"] or default_port)
    if not 0 < port < 65536:
        raise bad("has a port that is not between 1 and 65535")
    return match["name"].lower(), port


def options(query: str, *, tls: bool) -> dict[str, Any]:
    known = {"heartbeat", "cacertfile", "certfile", "keyfile", "server_name_indication"}
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            raise bad(f"has an unknown option; known are {', '.join(sorted(known))}")
        if name == "heartbeat":
            found[name] = heartbeat(value)
        elif not tls:
            raise bad(f"has the option {name}, which needs amqps://")
        else:
            found["server_name" if name == "server_name_indication" else name] = value
    if ("keyfile" in found) and ("certfile" not in found):
        raise bad("has the option keyfile without certfile")
    return found


def heartbeat(text: str) -> float:
    """At least one second: without heartbeats, a connection that died silently is never noticed."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 1 <= seconds <= 3600:
        raise bad("has a heartbeat that is not between 1 and 3600 seconds")
    return seconds


def decoded(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text) or re.search(r"\s", text):
        raise bad("has a character that must be percent-encoded")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise bad("has a percent-encoded part that is not UTF-8") from None


def bad(what: str) -> ConfigError:
    return ConfigError(f"the RabbitMQ URL {what}", hint=HINT)
