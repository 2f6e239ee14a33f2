"""The options every command has, and how values are written on the command line."""

from __future__ import annotations

import gc
import inspect
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from workqueue import registry
from workqueue.broker import Broker, connect
from workqueue.cli.output import say, show_log
from workqueue.cli.plain import PlainCommand
from workqueue.errors import ConfigError
from workqueue.masking import has_secret

CHECK_TRANSPORT = "WORKQUEUE_CHECK_TRANSPORT"
"""The variable with which every command holds its transport to the contract, at every call."""

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration(text: str) -> float:
    """Seconds, from "30s", "5m", "1h30m", "250ms" or a bare number of seconds."""
    text = str(text).strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d))+", text):
        raise typer.BadParameter(f"{text!r}: write a time like 30s, 5m, 1h30m or 250ms")
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    return sum(float(number) * UNITS[unit] for number, unit in parts)


class Session(msgspec.Struct, frozen=True):
    """What the options say that every command has."""

    url: str | None
    url_file: Path | None
    management_url: str | None
    json: bool
    quiet: bool
    verbose: bool
    in_argv: frozenset[str] = frozenset()
    """The options that were given on the command line, where all users of the machine see them."""

    def find_url(self) -> str | None:
        """The broker's URL; None is the embedded file."""
        if self.url or self.url_file is None:
            return self.url or None
        return read_url(self.url_file)

    def url_source(self) -> registry.URL | None:
        """The same for whoever connects more than once: from a file it is read each time."""
        file = self.url_file
        if self.url or file is None:
            return self.url or None
        with suppress(OSError):  # there may be no current folder
            file = file.absolute()  # a handler may go to another one
        return lambda: read_url(file)

    def connect(self) -> Broker:
        url, source = self.find_url(), self.url_source()
        if url is None:
            self.introduce_embedded_file()
        for flag in self.secrets_in_argv():
            variable = f"WORKQUEUE_{flag.removeprefix('--').replace('-', '_').upper()}"
            other = ", nor can a --url-file" if flag == "--url" else ""
            self.say(
                f"a password in {flag} can be seen by all users of this machine; "
                f"{variable} cannot{other}"
            )
        if url is not None and url.lower().startswith("memory:"):
            raise ConfigError(
                "memory:// queues are of one process: what a command puts there ends with it",
                hint="Write sqlite:///jobs.db for queues in a file.",
            )
        show_log(quiet=self.quiet, verbose=self.verbose)
        amqp = url is not None and url.lower().startswith("amqp")
        broker = connect(source, management_url=self.management_url if amqp else None)
        if not os.environ.get(CHECK_TRANSPORT):
            return broker
        from workqueue.testing.checked import checked

        return checked(broker)

    def secrets_in_argv(self) -> list[str]:
        """The flags that show a password to whoever runs `ps`."""
        return [
            f"--{name.replace('_', '-')}"
            for name, url in (("url", self.url), ("management_url", self.management_url))
            if name in self.in_argv and url and has_secret(url)
        ]

    def introduce_embedded_file(self) -> None:
        file = registry.default_file()
        if not registry.is_made(file):
            self.say(f"no broker was named: using the embedded queue {file}")
            self.say("for RabbitMQ, set WORKQUEUE_URL=amqp://user:password@host/vhost")

    def say(self, text: str) -> None:
        if not self.quiet:
            say(text)


read_once: dict[Path, str] = {}
"""What came out of pipes, as in --url-file <(pass show rabbitmq): nothing comes a second time."""


def read_url(file: Path) -> str:
    """The URL in `file`. Raises ConfigError."""
    if file in read_once:
        return read_once[file]
    try:
        url = file.read_text().strip()
        regular = file.is_file()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read the URL from {file}: {reason}") from error
    if not url:
        raise ConfigError(f"{file} is empty: there should be a URL in it")
    if not regular:
        read_once[file] = url
    return url


def common_options(
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            "-u",
            envvar="WORKQUEUE_URL",
            show_envvar=True,
            help="The broker: sqlite:///jobs.db, amqp://user:password@host/vhost. "
            "Without it, a file of your own.",
        ),
    ] = None,
    url_file: Annotated[
        Path | None,
        typer.Option(envvar="WORKQUEUE_URL_FILE", help="A file with the URL in it, for secrets."),
    ] = None,
    management_url: Annotated[
        str | None,
        typer.Option(
            envvar="WORKQUEUE_MANAGEMENT_URL",
            help="RabbitMQ's management API, for figures AMQP does not give.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No talk, only data and errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="More talk, and tracebacks of errors.")
    ] = False,
) -> None:
    """Carries the declarations; `command` adds them to every command."""


def command(
    app: typer.Typer,
    *,
    panel: str,
    name: str | None = None,
    cls: type[PlainCommand] = PlainCommand,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command: its first parameter is the Session, the others its own."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        common = list(inspect.signature(common_options, eval_str=True).parameters.values())

        def run(ctx: typer.Context, **given: Any) -> None:
            chosen = {parameter.name: given.pop(parameter.name) for parameter in common}
            in_argv = {name for name in chosen if came_from_argv(ctx, name)}
            if strength(ctx, "url_file") > strength(ctx, "url"):
                chosen["url"] = None
            gc.enable()
            function(Session(**chosen, in_argv=frozenset(in_argv)), **given)

        context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *common)
        ]
        run.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in (context, *parameters)}
        run.__doc__ = reflowed(inspect.getdoc(function) or "")
        app.command(
            name or function.__name__,
            rich_help_panel=panel,
            cls=cls,
            context_settings={"help_option_names": ["-h", "--help"]},
        )(run)
        return function

    return decorate


def came_from_argv(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def strength(ctx: typer.Context, name: str) -> int:
    """Higher for a source that goes before others: the command line, the environment, a file."""
    source = ctx.get_parameter_source(name)
    order = ("DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
    return order.index(source.name) if source is not None and source.name in order else -1


def reflowed(text: str) -> str:
    """Paragraphs as one line each, for the terminal to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
