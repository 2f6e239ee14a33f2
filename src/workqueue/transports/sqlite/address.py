"""What a URL says: which file, how safe, how patient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from workqueue.errors import ConfigError

USAGE = "write sqlite:///jobs.db, or sqlite:////var/lib/jobs.db for an absolute path"

Synchronous = Literal["full", "normal"]


class Address(msgspec.Struct, frozen=True):
    """A file, by its absolute path.

    `synchronous` is SQLite's: "full" is on the disk at every commit, "normal" may lose the last
    commits when the power goes (never when a process dies). `timeout` is how many seconds to
    wait for a file that others have locked.
    """

    path: Path
    synchronous: Synchronous = "full"
    timeout: float = 10.0


def parse(url: str) -> Address:
    """The address in `url`; looks at no file. Raises ConfigError."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError(f"the sqlite:// URL cannot be read: {USAGE}") from None
    if parts.netloc:
        raise ConfigError(f"a sqlite:// URL has no host: {USAGE}")
    if parts.fragment:
        raise ConfigError("a sqlite:// URL has no #fragment: write %23 for a # in the file's name")
    path = unquote(parts.path.removeprefix("/"))
    if not path:
        raise ConfigError(f"the sqlite:// URL names no file: {USAGE}")
    if path == ":memory:":
        raise ConfigError("sqlite keeps queues in a file: use memory:// for queues without one")
    if "\0" in path:
        raise ConfigError(f"no file can be named so: {USAGE}")
    options = options_of(parts.query)
    return Address(
        path=absolute(Path(path)),
        synchronous=synchronous_of(options.pop("synchronous", "full")),
        timeout=timeout_of(options.pop("timeout", "10")),
    )


def absolute(path: Path) -> Path:
    """By the current folder of now. Raises ConfigError if there is none."""
    try:
        return path if path.is_absolute() else Path.cwd() / path
    except OSError as error:
        raise ConfigError(
            f"{path} is looked for in the current folder, which cannot be used: {error.strerror}",
            hint="Write sqlite:////var/lib/jobs.db, or go to another folder.",
        ) from error


def options_of(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in ("synchronous", "timeout"):
            raise ConfigError(f"sqlite:// has no option {name}: only synchronous and timeout")
        if name in options:
            raise ConfigError(f"the sqlite:// URL says {name} twice")
        options[name] = value
    return options


def synchronous_of(value: str) -> Synchronous:
    match value:
        case "full" | "normal":
            return value
    raise ConfigError(f"synchronous={value}: write full or normal")


def timeout_of(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= 86_400:
        raise ConfigError(f"timeout={value}: write seconds, between 0 and 86400")
    return seconds
