"""What a child process of the process runner does: take a job, run it, say how it ended.

Two sockets come from the worker. On one go jobs and endings, as frames of MessagePack; the other
carries single bytes, and its end is the sign that the worker is gone.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path
from struct import Struct
from types import FrameType
from typing import NoReturn

import msgspec

from workqueue.errors import ConfigError
from workqueue.message import Delivery, Lost, Message
from workqueue.middleware import Middleware, load_middleware
from workqueue.retry import TaskOptions
from workqueue.runners.handler import Function, function_of, handle, load_handler, options_of

head = Struct(">I")

LOSE = b"L"
"""The byte that tells: the message of the job that runs was taken away."""


class Setup(msgspec.Struct):
    """The worker's first frame."""

    handler: str
    path: list[str]
    middleware: list[str] = []


class Task(msgspec.Struct, array_like=True):
    """A job for a child."""

    message: Message
    queue: str
    attempt: int
    redelivered: bool


class Report(msgspec.Struct, array_like=True):
    """A child's answer: first whether it is ready, then how each job ended."""

    verdict: str
    reason: str = ""
    error: str = ""
    delay: float = 0.0
    files: list[str] = []
    options: dict[str, TaskOptions] = {}


READY, UNUSABLE = "ready", "unusable"


class Interrupted(SystemExit):
    """The worker asks this child to stop: handlers may clean up in `finally`."""


class Child:
    """This process: its two sockets, and the flag of the job that runs."""

    def __init__(self, jobs: socket.socket, control: socket.socket) -> None:
        self.jobs = jobs
        self.control = control
        self.lost = Lost()
        self.middleware: list[Middleware] = []

    def serve(self) -> None:
        handler = self.prepare()
        if handler is None:
            return
        while (frame := receive_frame(self.jobs)) is not None:
            task = msgspec.msgpack.decode(frame, type=Task)
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
            report = Report(ending.verdict.value, ending.reason, ending.error, ending.delay)
            self.report(report)

    def prepare(self) -> Function | None:
        """The handler, imported; None after saying that it cannot be."""
        frame = receive_frame(self.jobs)
        if frame is None:
            return None
        setup = msgspec.msgpack.decode(frame, type=Setup)
        sys.path[:] = setup.path
        threading.Thread(target=self.listen, name="workqueue-control", daemon=True).start()
        try:
            self.middleware = load_middleware(setup.middleware)
            found = load_handler(setup.handler)
        except ConfigError as error:
            self.report(Report(UNUSABLE, str(error), error.hint))
            return None
        self.report(Report(READY, files=own_files(), options=options_of(found)))
        return function_of(found, setup.handler)

    def report(self, report: Report) -> None:
        send_frame(self.jobs, msgspec.msgpack.encode(report))

    def listen(self) -> None:
        """In a thread of its own, while a handler runs in the first."""
        while byte := self.control.recv(1):
            if byte == LOSE:
                self.lost.set()
        kill_own_session()


def own_files() -> list[str]:
    """The files of the imported modules that are the user's: below the current folder, and not
    installed."""
    here = f"{Path.cwd()}{os.sep}"
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


def send_frame(to: socket.socket, payload: bytes) -> None:
    to.sendall(head.pack(len(payload)) + payload)


def receive_frame(source: socket.socket) -> bytes | None:
    """The next frame; None at the end."""
    size = receive_exactly(source, head.size)
    return receive_exactly(source, head.unpack(size)[0]) if size else None


def receive_exactly(source: socket.socket, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = source.recv(min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def main() -> None:
    """Run by `process` with the two sockets' descriptors as arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker to act on
    signal.signal(signal.SIGTERM, interrupt)
    jobs, control = (socket.socket(fileno=int(number)) for number in sys.argv[1:3])
    try:
        Child(jobs, control).serve()
    except (ConnectionError, Interrupted):
        pass
    flush_output()
    os._exit(0)  # threads that a handler left behind do not keep the child alive
