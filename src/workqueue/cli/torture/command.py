"""workqueue torture: the attack on the user's own broker, and the verdict."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self
from urllib.parse import unquote, urlsplit

import typer
from msgspec.structs import replace

from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json, say
from workqueue.errors import ConfigError, WorkqueueError
from workqueue.queue import Queue

if TYPE_CHECKING:
    from workqueue.cli.torture.proxy import Proxy
    from workqueue.cli.torture.siege import Siege

PER_SECOND = 400
"""Messages sent in a second of attack, unless --minutes says otherwise."""

SHORTEST = 15.0
"""Seconds of attack, unless --minutes says otherwise."""

LONGEST_FREEZE = 3.0
"""Seconds."""

SHOWN = 5
"""Names of what went wrong, of each kind."""

TERMINATED = 128 + signal.SIGTERM


def add_to(app: typer.Typer) -> None:
    command(app, panel="Run")(torture)


def torture(
    session: Session,
    messages: Annotated[int, typer.Option("--messages", min=1, help="How many are sent.")] = 2_000,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")] = 3,
    senders: Annotated[int, typer.Option("--senders", min=1, help="Sending processes.")] = 2,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.05, help="How long the attack lasts; by default as the messages need."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Repeats the faults of an earlier run.")
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="TIME",
            help="After so long in which nothing more comes, the rest is lost.",
        ),
    ] = 30.0,
    restart_command: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Restarts your broker: the attack begins with it. Without, it is left alone.",
        ),
    ] = None,
) -> None:
    """Kill workers and senders, cut connections, and count what was lost.

    Senders and workers run on a queue of their own on the broker that -u or WORKQUEUE_URL names,
    or on a file of their own; the queue is removed afterwards. They are killed, frozen and
    stopped, and on RabbitMQ their connections, which go through a proxy in this process, are cut
    and stalled. Then what senders were told is held against what was handled. Exit 1 if anything
    that was confirmed is missing, or any other promise was broken.
    """
    seed = random.randrange(1_000_000) if seed is None else seed
    seconds = max(SHORTEST, messages / PER_SECOND) if minutes is None else minutes * 60

    from workqueue.cli.torture.nemesis import Fault, plan
    from workqueue.cli.torture.restart import Restart
    from workqueue.cli.torture.siege import Siege, usual_roles

    restart = None if restart_command is None else Restart(restart_command)

    with ExitStack() as stack:
        stack.enter_context(leaving_in_order())
        folder = stack.enter_context(Folder())
        session = at_home(session, folder.path)
        url = session.find_url()
        assert url is not None
        scheme = url.partition(":")[0].lower()
        if scheme == "memory":
            raise ConfigError("memory:// lives in one process: there are no others to kill")
        if restart and scheme == "sqlite":
            raise typer.BadParameter(
                "--restart-command: a file has no broker to restart: -u names one"
            )
        broker = stack.enter_context(session.connect())
        queue = broker.queue(f"workqueue-torture-{seed}-{random.randrange(16**6):06x}")
        queue.declare()
        stack.callback(clear_away, queue)
        detour, proxies = stack.enter_context(detoured(url))
        reporter = Reporter(session, messages)
        siege = stack.enter_context(
            Siege(
                queue=queue,
                url=detour,
                folder=folder.path,
                roles=usual_roles(queue.name, seed),
                messages=messages,
                workers_count=workers,
                senders_count=senders,
                proxies=proxies,
                patience=patience,
                tell=reporter.tell,
                look=reporter.look,
            )
        )
        faults = siege.process_faults(LONGEST_FREEZE) + siege.network_faults()
        first = None
        if restart:
            first = Fault("restart the broker", lambda _n, _s: restart.strike(siege))
            faults.append(first)
        session.say(f"seed {seed}: {messages:,} messages on {queue.name} ({scheme})")
        siege.run(plan(faults, seed, first), seconds, heal=siege.heal_network)
        verdict = siege.verdict(secrets=secrets_in(url))
        folder.keep = not verdict.good
        figures: dict[str, object] = {
            "seed": seed,
            "sent": verdict.sent,
            "confirmed": verdict.confirmed,
            "handled": verdict.handled,
            "dead": verdict.dead,
            "duplicated": verdict.duplicated,
            "faults": siege.faults,
            "restarts": restart and restart.count,
            **{name: len(found) for name, found in verdict.faults.items()},
            "resumed_s": None if siege.resumed is None else round(siege.resumed, 2),
            "seconds": round(time.time() - siege.began, 1),
            "good": verdict.good,
        }
        reporter.conclude(figures, verdict.faults)
        if folder.keep:
            say(f"the histories are kept in {folder.path}")
    if not verdict.good:
        raise typer.Exit(1)


# -- before and after --------------------------------------------------------------------------


class Folder:
    """For histories and outputs; removed at the end, unless they are needed."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="workqueue-torture-"))
        self.keep = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def leaving_in_order() -> Iterator[None]:
    """SIGTERM does as Ctrl-C: processes, queue and folder are cleared away."""

    def leave(*_: object) -> None:
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def at_home(session: Session, folder: Path) -> Session:
    """Without a broker of the user's: on a file that goes when we go."""
    if session.find_url() is not None:
        return session
    return replace(session, url=f"sqlite:///{folder / 'torture.db'}")


def clear_away(queue: Queue) -> None:
    try:
        queue.delete(dead_letters=True)
    except WorkqueueError as error:
        say(f"the queue {queue.name} is still there: {error}")


@contextmanager
def detoured(url: str) -> Iterator[tuple[str, list[Proxy]]]:
    """The URL by way of a proxy for each of its hosts, if that can be: TLS would notice."""
    from workqueue.cli.torture.proxy import Proxy
    from workqueue.transports.rabbitmq.address import parse

    if urlsplit(url).scheme.lower() != "amqp":
        yield url, []
        return
    with ExitStack() as stack:
        hosts = parse(url).hosts
        proxies = [stack.enter_context(Proxy(name.strip("[]"), port)) for name, port in hosts]
        yield through(url, proxies), proxies


def through(url: str, proxies: list[Proxy]) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
    return parts._replace(netloc=f"{login}{at}{hosts}").geturl()


def secrets_in(url: str) -> set[str]:
    """The password as it is and as it is written; none if its like is found in any text, as that
    of guest is."""
    parts = urlsplit(url)
    if not parts.password or parts.password == parts.username:
        return set()
    return {parts.password, unquote(parts.password)}


# -- what is shown -----------------------------------------------------------------------------


class Reporter:
    """A line for each stroke, and one that shows how far all is: rewritten on a terminal, and
    elsewhere written now and then."""

    def __init__(self, session: Session, messages: int) -> None:
        self.session = session
        self.messages = messages
        self.live = sys.stderr.isatty()
        self.every = 0.2 if self.live else 5.0
        self.began = self.shown = time.monotonic()

    def tell(self, line: str) -> None:
        self.wipe()
        self.session.say(f"{time.monotonic() - self.began:5.1f} s  {line}")

    def look(self, siege: Siege) -> None:
        now = time.monotonic()
        if self.session.quiet or now - self.shown < self.every:
            return
        self.shown = now
        history = siege.history
        line = (
            f"{now - self.began:5.1f} s  {len(history.sent):,} of {self.messages:,} sent, "
            f"{len(history.confirmed):,} confirmed, {len(history.done):,} handled, "
            f"{siege.faults} faults"
        )
        if self.live:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def wipe(self) -> None:
        if self.live and not self.session.quiet:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def conclude(self, figures: dict[str, object], faults: dict[str, tuple[str, ...]]) -> None:
        """The table, and what is behind the numbers that should be 0."""
        self.wipe()
        for kind, found in faults.items():
            if found:
                more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
                say(f"{kind}: {', '.join(found[:SHOWN])}{more}")
        if self.session.json:
            print_json(figures)
            return
        print()
        for name, value in figures.items():
            if value is not None and name != "good":
                label, unit = (name[:-2], " s") if name.endswith("_s") else (name, "")
                print(f"  {label:<12}{value:>8}{unit}")
        print()
        print("  nothing was lost, and no promise broken" if figures["good"] else "  FAILED")
