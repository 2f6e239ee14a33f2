"""From the scheme of a URL to the transport that serves it, through entry points.

A transport is found under its URL scheme in the entry-point group `workqueue.transports`; the
built-in ones are registered in the same way, and known here besides: to look through all that is
installed takes longer than to send a message. Only the one that is needed is loaded, so a broken
plugin breaks nothing but itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from workqueue.errors import ConfigError, UnknownScheme, Unsupported, WorkqueueError
from workqueue.transport import Transport

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

TRANSPORTS = "workqueue.transports"
MIDDLEWARE = "workqueue.middleware"
COMMANDS = "workqueue.commands"
BUILT_IN = {
    "memory": "workqueue.transports.memory:MemoryTransport",
    "sqlite": "workqueue.transports.sqlite:SQLiteTransport",
    "amqp": "workqueue.transports.rabbitmq.driver:RabbitMQTransport",
    "amqps": "workqueue.transports.rabbitmq.driver:RabbitMQTransport",
}
"""The entry points of this distribution's own transports."""

GROUPS = (TRANSPORTS, MIDDLEWARE, COMMANDS)


URL = str | Callable[[], str]
"""A broker's URL, or a function that gives it as it is at the moment."""


def open_transport(url: URL, management_url: str | None = None) -> Transport:
    """The transport for `url`; nothing is connected yet.

    A function is called at each connect by a transport whose class says `reads_url_again = True`,
    and once for any other.

    Raises UnknownScheme, saying what is installed; ConfigError for a URL that makes no sense or
    a plugin that cannot be loaded; Unsupported for a management URL where there is no such thing.
    """
    text = url() if callable(url) else url
    scheme = scheme_of(text)
    factory = transport_class(scheme)
    if not getattr(factory, "reads_url_again", False):
        url = text
    if management_url is None:
        return factory(url)  # type: ignore[no-any-return]  # what a plugin returns is its promise
    if not scheme.startswith("amqp"):
        raise Unsupported(f"{scheme}:// has no management API: leave out the management URL")
    return factory(url, management_url=management_url)  # type: ignore[no-any-return]


def transport_class(scheme: str) -> type:
    if scheme in BUILT_IN:
        module, _, name = BUILT_IN[scheme].partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]  # a class of ours
    entry_point = find(TRANSPORTS, scheme)
    if entry_point is None:
        raise UnknownScheme(
            f"no transport for {scheme}:// is installed",
            hint=f"Installed: {', '.join(names(TRANSPORTS))}. "
            f"A plugin for it would be the distribution workqueue-{scheme}.",
        )
    return load(entry_point)


def load(entry_point: EntryPoint) -> type:
    try:
        return entry_point.load()  # type: ignore[no-any-return]
    except WorkqueueError:
        raise
    except (Exception, SystemExit) as error:
        distribution = entry_point.dist.name if entry_point.dist else "an unknown distribution"
        raise ConfigError(
            f"the plugin {entry_point.name} of {distribution} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            hint="See all of them: workqueue plugins",
        ) from error


def scheme_of(url: str) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if not match:
        raise ConfigError(
            "the broker's URL has no scheme",
            hint="Write sqlite:///jobs.db or amqp://user:password@host/vhost",
        )
    return match[1].lower()


def find(group: str, name: str) -> EntryPoint | None:
    # Imported late: the module costs more than all of ours, and not every command needs it.
    from importlib.metadata import entry_points

    found = entry_points(group=group, name=name)
    return next(iter(found), None)


def names(group: str) -> list[str]:
    from importlib.metadata import entry_points

    return sorted({entry_point.name for entry_point in entry_points(group=group)})


def default_url() -> str:
    """`WORKQUEUE_URL`, or else the embedded file in the user's state folder."""
    named = os.environ.get("WORKQUEUE_URL")
    return named or f"sqlite:///{quote(os.fsencode(default_file()))}"


def default_file() -> Path:
    """`$XDG_STATE_HOME/workqueue/queue.db`, where two terminals in different folders meet.

    Raises ConfigError for a user without a home.
    """
    if (file := own_file()) is None:
        raise NoHome(
            "no broker was named, and this user has no home for the embedded file",
            hint="Set WORKQUEUE_URL, or XDG_STATE_HOME or HOME to the absolute path of a folder.",
        )
    return file


class NoHome(ConfigError):
    """There is no place for the embedded file."""

    command = "export WORKQUEUE_URL=sqlite:////var/tmp/queue.db"


def own_file() -> Path | None:
    """The same, or None."""
    from platformdirs import user_state_path

    folder = own_folder(user_state_path)
    return folder and folder / "queue.db"


def own_folder(find: Callable[..., Path]) -> Path | None:
    """What `find`, of platformdirs, finds for us; None for a user without a home."""
    try:
        folder = find("workqueue", appauthor=False)
    except RuntimeError:
        return None
    return folder if folder.is_absolute() else None


def is_made(file: Path) -> bool:
    """Whether the embedded file, or its folder, is there, as far as this user can see."""
    try:
        return file.exists()
    except OSError:
        return False
