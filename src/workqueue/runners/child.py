"""What a child process of the process runner does: take a job, run it, say how it ended.

Two sockets come from the worker. On one go jobs and endings, as frames of MessagePack, several at
once when they are tiny; the other carries single bytes, and its end is the sign that the worker is
gone. Besides there is a pipe with a token for each job. Whoever takes the token out has the job:
the child before it begins, or the worker, which can so take back what has not begun, whatever the
child is doing, and knows of a child that died how far it had come.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import time
from struct import Struct
from types import FrameType
from typing import NoReturn

import msgspec

from workqueue.errors import ConfigError
from workqueue.message import Delivery, Lost, Message
from workqueue.middleware import Middleware, load_middleware
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.handler import (
    Function,
    current_folder,
    function_of,
    handle,
    load_handler,
    options_of,
    retry_of,
)
from workqueue.runners.runner import Verdict

head = Struct(">I")
token = Struct(">Q")

REPORT_EVERY = 0.002
"""Seconds in which what is done may wait to be reported together."""

LOSE = b"L"
"""The byte that tells: the message of the job that runs was taken away."""


class Setup(msgspec.Struct):
    """The worker's first frame."""

    handler: str
    path: list[str]
    middleware: list[str] = []


class Task(msgspec.Struct, array_like=True):
    """A job for a child; jobs are numbered from one."""

    number: int
    message: Message
    queue: str
    attempt: int
    redelivered: bool


class Report(msgspec.Struct, array_like=True):
    """A child's answer: first whether it is ready, then how each job ended.

    One that is done may be reported later, with the next ones, but not later than a failure.
    """

    verdict: str
    number: int = 0
    seconds: float | None = None
    reason: str = ""
    error: str = ""
    delay: float = 0.0
    files: list[str] = []
    options: dict[str, TaskOptions] = {}
    retry: bytes = b""


READY, UNUSABLE = "ready", "unusable"


class Interrupted(SystemExit):
    """The worker asks this child to stop: handlers may clean up in `finally`."""


class Child:
    """This process: its two sockets, its tokens, and the flag of the job that runs."""

    def __init__(self, jobs: socket.socket, control: socket.socket, tokens: int) -> None:
        self.jobs = jobs
        self.control = control
        self.tokens = tokens
        self.spare = 0
        self.inbox = Inbox()
        self.outbox = bytearray()
        self.reported_at = 0.0
        self.decoder = msgspec.msgpack.Decoder(Task)
        self.encoder = msgspec.msgpack.Encoder()
        self.lost = Lost()
        self.middleware: list[Middleware] = []

    def keep_to_itself(self) -> None:
        """What a handler starts, in whatever way, has none of our descriptors: it would hide our
        death from the worker for as long as it lives."""
        descriptors = [self.jobs.fileno(), self.control.fileno(), self.tokens]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)

        def forked() -> None:
            for descriptor in descriptors:
                os.close(descriptor)

        os.register_at_fork(after_in_child=forked)

    def serve(self) -> None:
        handler = self.prepare()
        if handler is None:
            return
        while (frame := self.next_frame()) is not None:
            task = self.decoder.decode(frame)
            if self.may_begin(task.number):
                self.run(handler, task)

    def run(self, handler: Function, task: Task) -> None:
        delivery = Delivery(
            message=task.message,
            queue=task.queue,
            attempt=task.attempt,
            redelivered=task.redelivered,
        )
        self.lost = Lost()
        ending = handle(handler, delivery, self.lost, self.middleware)
        # What the handler printed appears with its job, also when it goes to a file or pipe.
        flush_output()
        verdict, seconds = ending.verdict, ending.seconds
        if verdict is Verdict.DONE:
            self.note(Report(verdict.value, task.number, seconds))
            if time.monotonic() - self.reported_at < REPORT_EVERY:
                return
        else:
            told = ending.reason, ending.error, ending.delay
            self.note(Report(verdict.value, task.number, seconds, *told))
        self.flush()

    def next_frame(self) -> bytes | None:
        """The next job; what has ended is said before waiting for one."""
        while (frame := self.inbox.frame()) is None:
            self.flush()
            if not (data := self.jobs.recv(1 << 18)):
                return None
            self.inbox.feed(data)
        return frame

    def may_begin(self, number: int) -> bool:
        """Take its token, if it is there. Without one, or with a later one, it was taken back."""
        if self.spare < number:
            try:
                (self.spare,) = token.unpack(os.read(self.tokens, token.size))
            except BlockingIOError:
                return False
        return self.spare == number

    def prepare(self) -> Function | None:
        """The handler, imported; None after saying that it cannot be."""
        frame = self.next_frame()
        if frame is None:
            return None
        setup = msgspec.msgpack.decode(frame, type=Setup)
        sys.path[:] = setup.path
        threading.Thread(target=self.listen, name="workqueue-control", daemon=True).start()
        try:
            self.middleware = load_middleware(setup.middleware)
            found = load_handler(setup.handler)
            retry = packed(retry_of(found))
        except ConfigError as error:
            self.report(Report(UNUSABLE, reason=str(error), error=error.hint))
            return None
        self.report(Report(READY, files=own_files(), options=options_of(found), retry=retry))
        return function_of(found, setup.handler)

    def report(self, report: Report) -> None:
        self.note(report)
        self.flush()

    def note(self, report: Report) -> None:
        payload = self.encoder.encode(report)
        self.outbox += head.pack(len(payload)) + payload

    def flush(self) -> None:
        if self.outbox:
            reports, self.outbox = self.outbox, bytearray()
            self.jobs.sendall(reports)
            self.reported_at = time.monotonic()

    def listen(self) -> None:
        """In a thread of its own, while a handler runs in the first."""
        while byte := self.control.recv(1):
            if byte == LOSE:
                self.lost.set()
        kill_own_session()


def packed(policy: RetryPolicy | None) -> bytes:
    """For the worker, which never imports the handler. Raises ConfigError."""
    try:
        return pickle.dumps(policy)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f"the queue's retry policy cannot be pickled: {error}") from error


def own_files() -> list[str]:
    """The files of the imported modules that are the user's: below the current folder, and not
    installed."""
    here = f"{current_folder()}{os.sep}"
    if here == os.sep:
        return []
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return [
        file
        for file in files
        if file and file.startswith(here) and not file.startswith(sys.prefix + os.sep)
    ]


def kill_own_session() -> NoReturn:
    """The worker is gone. Its watchdog sees to this too; whoever is first."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted(128 + number)


def flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # closed by the handler, or nobody reads it any more
            pass


class Inbox:
    """Bytes from a socket, to be taken out as frames: a length, and as many bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.taken = 0

    def feed(self, data: bytes) -> None:
        del self.data[: self.taken]
        self.taken = 0
        self.data += data

    def frame(self) -> bytes | None:
        """The next one, if all of it is there."""
        start = self.taken + head.size
        if len(self.data) < start:
            return None
        stop = start + head.unpack_from(self.data, self.taken)[0]
        if len(self.data) < stop:
            return None
        self.taken = stop
        return bytes(self.data[start:stop])


def main() -> None:
    """Run by `process` with the descriptors of the two sockets and the tokens as arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker to act on
    signal.signal(signal.SIGTERM, interrupt)
    jobs, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    child = Child(jobs, control, tokens=int(sys.argv[3]))
    child.keep_to_itself()
    try:
        child.serve()
        child.flush()
    except (ConnectionError, Interrupted):
        pass
    flush_output()
    os._exit(0)  # threads that a handler left behind do not keep the child alive
