"""workqueue send: bodies from the command line, from files or from standard input."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
import typer
from msgspec.structs import replace

from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json
from workqueue.codec import BYTES, JSON, TEXT, check_headers
from workqueue.errors import BadPayload, ConnectionLost, NotSent, WorkqueueError
from workqueue.message import Message, new_id
from workqueue.producer import CHUNK_BYTES, CHUNK_MESSAGES, Producer, check_message

READ_SIZE = 256 * 1024

STDIN = "standard input"

OURS = "workqueue-"
"""How the names of headers begin in which a message's past is kept."""

As = Literal["auto", "json", "text"]
"""What a body is taken for."""


def add_to(app: typer.Typer) -> None:
    command(app, panel="Run")(send)


def send(
    session: Session,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="It is made if it is not there.")],
    bodies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[BODY|-]",
            help="Each is a message. A sole - is standard input: one message a line.",
        ),
    ] = None,
    file: Annotated[
        list[Path] | None, typer.Option("-f", "--file", help="One message a line of this file.")
    ] = None,
    as_: Annotated[
        As,
        typer.Option("--as", help="auto: a JSON object or array is JSON, anything else is text."),
    ] = "auto",
    whole: Annotated[
        bool, typer.Option("--whole", help="All of a file or of standard input is one message.")
    ] = False,
    envelope: Annotated[
        bool, typer.Option("--envelope", help="Each line is a message as --json prints them.")
    ] = False,
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", metavar="NAME=VALUE")
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="The id of the one message sent.")] = None,
    type: Annotated[str | None, typer.Option("--type", help="The name of the task.")] = None,
    delay: Annotated[
        float,
        typer.Option(
            parser=duration, metavar="TIME", help="Ready for a worker only then; 30d at most."
        ),
    ] = 0.0,
    ttl: Annotated[
        float | None,
        typer.Option(
            parser=duration, metavar="TIME", help="A dead letter if no worker begins it by then."
        ),
    ] = None,
    priority: Annotated[
        int | None, typer.Option("--priority", min=0, max=9, help="Higher comes first.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="TIME",
            envvar="WORKQUEUE_TIMEOUT",
            help="How long to try in all, before saying what was not sent.",
        ),
    ] = 30.0,
) -> None:
    """Send messages to QUEUE.

    They are kept when this returns: confirmed by RabbitMQ, or on disk. With no BODY, messages come
    from a pipe or file on standard input, one a line.
    """
    shape = Shape(
        as_=as_,
        envelope=envelope,
        headers=parse_headers(header or []),
        id=id,
        type=type,
        delay=delay,
        ttl=ttl,
        priority=priority,
    )
    shape.check_times()
    sources = find_sources(bodies or [], file or [], whole=whole)
    if id is not None and (len(sources) > 1 or not sources[0].single):
        raise typer.BadParameter("--id names one message: give one BODY, or --whole")
    if id == "":
        raise typer.BadParameter("--id is empty")
    for source in sources:
        source.check()
    with session.connect() as broker:
        dispatch = Dispatch(session, Producer(broker.queue(queue), timeout=timeout), shape)
        dispatch.send_all(sources)


# -- where bodies come from --------------------------------------------------------------------


class Source(msgspec.Struct, frozen=True):
    """Bodies, in batches as they arrive, each with where it stood."""

    name: str
    body: bytes | None = None
    path: Path | None = None
    whole: bool = False

    @property
    def single(self) -> bool:
        return self.body is not None or self.whole

    def batches(self) -> Iterator[list[tuple[str, bytes]]]:
        if self.body is not None:
            yield [(self.name, self.body)]
            return
        with self.open() as file:
            if self.whole:
                body = b"".join(self.pieces(file))
                yield [(self.name, body)] if body else []
            else:
                yield from self.lines(file)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        if self.path is None:
            yield sys.stdin.buffer
            return
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise self.unreadable(error) from error
        with file:
            yield file

    def pieces(self, file: BinaryIO) -> Iterator[bytes]:
        """What one read brings, until the end."""
        try:
            while data := os.read(file.fileno(), READ_SIZE):
                yield data
        except OSError as error:
            raise self.unreadable(error) from error

    def unreadable(self, error: OSError) -> BadPayload:
        return BadPayload(f"cannot read {self.name}: {error.strerror}")

    def check(self) -> None:
        """Before anything is sent: a file that is not there, or no file."""
        if self.path is None:
            return
        try:
            if self.path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not os.access(self.path, os.R_OK):
                self.path.stat()
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            raise self.unreadable(error) from error

    def lines(self, file: BinaryIO) -> Iterator[list[tuple[str, bytes]]]:
        """What one read brings is one batch: a slow source is not kept waiting for more."""
        number, buffer = 0, bytearray()
        for data in self.pieces(file):
            buffer += data
            if b"\n" not in data:
                continue
            *lines, rest = bytes(buffer).split(b"\n")
            yield [(self.line(number + n), strip(text)) for n, text in enumerate(lines, start=1)]
            number, buffer = number + len(lines), bytearray(rest)
        if buffer:
            yield [(self.line(number + 1), strip(bytes(buffer)))]

    def line(self, number: int) -> str:
        return f"line {number}" if self.path is None else f"{self.path} line {number}"


def strip(line: bytes) -> bytes:
    """Without the carriage return that files from Windows have."""
    return line.removesuffix(b"\r")


def find_sources(bodies: list[str], files: list[Path], *, whole: bool) -> list[Source]:
    """Bodies, then files, else standard input if there is something on it."""
    from_files = [
        stdin_source(whole) if str(path) == "-" else Source(str(path), path=path, whole=whole)
        for path in files
    ]
    if bodies == ["-"]:
        return [stdin_source(whole), *from_files]
    named = [
        Source(f"body {number}", body=os.fsencode(body)) for number, body in enumerate(bodies, 1)
    ]
    if named or from_files:
        return [*named, *from_files]
    if not stdin_has_messages():
        raise typer.BadParameter(
            "nothing to send: give a BODY, -f FILE, or messages on standard input"
        )
    return [stdin_source(whole)]


def stdin_source(whole: bool) -> Source:
    return Source(STDIN, whole=whole)


def stdin_has_messages() -> bool:
    """A pipe, a file or a socket; not a terminal, and not /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


# -- what becomes of a body --------------------------------------------------------------------


class Shape(msgspec.Struct, frozen=True):
    """How bodies become messages, by the options."""

    as_: As
    envelope: bool
    headers: dict[str, str]
    id: str | None
    type: str | None
    delay: float
    ttl: float | None
    priority: int | None

    def check_times(self) -> None:
        """Before anything is read or sent."""
        try:
            check_message(Message(body=b"", delay=self.delay, ttl=self.ttl))
        except BadPayload as error:
            raise typer.BadParameter(str(error)) from error

    def message(self, body: bytes) -> Message:
        """Raises BadPayload for a body that is not what it is said to be."""
        made = self.enveloped(body) if self.envelope else self.plain(body)
        priority = made.priority if self.priority is None else self.priority
        made = replace(made, delay=self.delay, ttl=self.ttl, priority=min(priority, 9))
        return replace(check_message(made), priority=priority)

    def enveloped(self, line: bytes) -> Message:
        """What the envelope says, and in its place what the options say."""
        from workqueue.cli.envelope import read_envelope  # brings dead letters along: 20 ms

        made = read_envelope(line)
        return replace(
            made,
            id=self.id or made.id,
            type=self.type or made.type,
            headers={**made.headers, **self.headers},
        )

    def plain(self, body: bytes) -> Message:
        return Message(
            body=body,
            id=self.id or new_id(),
            content_type=self.content_type(body),
            headers=self.headers,
            type=self.type,
            sent_at=time.time(),
        )

    def content_type(self, body: bytes) -> str:
        if self.as_ == "json" or (self.as_ == "auto" and body.lstrip()[:1] in (b"{", b"[")):
            try:
                msgspec.json.decode(body)
            except (ValueError, RecursionError) as error:
                if self.as_ == "json":
                    raise BadPayload(f"is not JSON: {error}") from error
            else:
                return JSON
        try:
            body.decode()
        except UnicodeDecodeError as error:
            if self.as_ == "text":
                raise BadPayload(f"is not text in UTF-8: {error}") from error
            return BYTES
        return TEXT


def parse_headers(pairs: list[str]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"-H {pair}: write NAME=VALUE")
        if name.startswith(OURS):
            raise typer.BadParameter(f"-H {pair}: names that begin with {OURS} are our own")
        headers[name] = value
    try:
        check_headers(headers)
    except BadPayload as error:
        raise typer.BadParameter(str(error)) from error
    return headers


# -- sending -----------------------------------------------------------------------------------


class Dispatch(msgspec.Struct):
    """Sends batch after batch, and can say at any moment how many are safe."""

    session: Session
    producer: Producer
    shape: Shape
    sent: int = 0
    ids: list[str | None] = msgspec.field(default_factory=list)
    more: bool = False

    def send_all(self, sources: list[Source]) -> None:
        try:
            with self.producer, progress(self.session) as advance:
                for source in sources:
                    self.more = not source.single or source is not sources[-1]
                    for batch in source.batches():
                        self.send_batch(batch, source.single)
                        advance(self.sent)
        except NotSent as error:
            self.report(failed=len(error.failures))
            raise
        except BadPayload as error:
            if self.session.json:
                self.report()
            raise BadPayload(f"{error}; {self.sent} sent before it") from error
        except WorkqueueError as error:
            if self.sent and isinstance(error, ConnectionLost):
                self.report()
                raise NotSent(f"{error}; {self.sent} sent before", sent=self.sent) from error
            raise
        except KeyboardInterrupt:
            self.session.say(
                f"interrupted: at least {self.sent:,} sent to {self.producer.queue.name}"
            )
            raise
        self.report()

    def send_batch(self, batch: list[tuple[str, bytes]], single: bool) -> None:
        """In chunks. A body that cannot be sent stops the rest; what stood before it is sent."""
        chunk: list[tuple[str, Message]] = []
        size = 0
        for where, body in batch:
            try:
                message = self.shape.message(body)
            except BadPayload as error:
                self.send_chunk(chunk, single)
                raise BadPayload(f"{where} {error}") from error
            chunk.append((where, message))
            size += len(body)
            if len(chunk) >= CHUNK_MESSAGES or size >= CHUNK_BYTES:
                self.send_chunk(chunk, single)
                chunk, size = [], 0
        self.send_chunk(chunk, single)

    def send_chunk(self, chunk: list[tuple[str, Message]], single: bool) -> None:
        if not chunk:
            return
        try:
            self.producer.send_messages([message for _, message in chunk])
        except NotSent as error:
            self.sent += error.sent
            raise self.naming(error, chunk) from error
        self.sent += len(chunk)
        if single:
            self.ids += [message.id for _, message in chunk]

    def naming(self, error: NotSent, chunk: list[tuple[str, Message]]) -> NotSent:
        """The same error, saying which messages it is about and how many are in."""
        failed = {id(message) for message, _ in error.failures}
        places = [where for where, message in chunk if id(message) in failed]
        few = ", ".join(places[:3]) + (" …" if len(places) > 3 else "")
        cause = error.failures[0][1] if error.failures else error
        kind = type(cause) if not self.sent else NotSent
        rest = ", nor what comes after" if self.more else ""
        told = f"{len(places)} not sent ({few}){rest}: {cause}; {self.sent} sent"
        return kind(told, failures=error.failures, sent=self.sent, hint=error.hint)

    def report(self, failed: int = 0) -> None:
        queue = self.producer.queue.name
        if self.producer.created:
            self.session.say(f"made queue {queue}")
        if self.session.json:
            told = {"queue": queue, "sent": self.sent, "failed": failed}
            print_json(told | {"ids": self.ids} if self.ids else told)
        elif not failed:
            noun = "message" if self.sent == 1 else "messages"
            self.session.say(f"{self.sent:,} {noun} to {queue}")


@contextmanager
def progress(session: Session) -> Iterator[Callable[[int], None]]:
    """A count that moves, on stderr and in a terminal only."""
    if session.quiet or not sys.stderr.isatty() or sys.stdin.isatty():
        yield lambda sent: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.completed:,.0f} messages"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("send", total=None)
        yield lambda sent: bar.update(task, completed=sent)
