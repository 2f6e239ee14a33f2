"""What a child process of the process runner does: take a job, run it, say how it ended.

Two sockets come from the worker. On one go jobs and endings, as frames of MessagePack, several at
once when they are tiny; the other carries single bytes, and its end is the sign that the worker is
gone. Besides there is a pipe with a token for each job. Whoever takes the token out has the job:
the child before it begins, or the worker, which can so take back what has not begun, whatever the
child is doing, and knows of a child that died how far it had come. And there is a page of memory
that both share, where the child notes how a job ended as soon as its handler has: nothing that
fails between that moment and the report, not even the death of the child, undoes the job.

A child obeys the worker alone, by the second socket. A stop signal that comes from elsewhere was
sent to all processes of a service at once: the worker heard it too, and lets the job finish.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from struct import Struct
from types import FrameType
from typing import NoReturn

import msgspec
from msgspec.structs import replace

from workqueue.errors import ConfigError
from workqueue.message import Delivery, Lost, Message
from workqueue.middleware import Middleware, load_middleware
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.handler import (
    Function,
    Interrupted,
    current_folder,
    described,
    function_of,
    handle,
    load_handler,
    one_line,
    options_of,
    retry_of,
)
from workqueue.runners.runner import STOP_SIGNALS, Ending, Verdict

head = Struct(">I")
token = Struct(">Q")

REPORT_EVERY = 0.002
"""Seconds in which what is done may wait to be reported together."""

LOSE = b"L"
"""The byte that tells: the message of the job that runs was taken away."""

STOP = b"S"
"""The byte that asks the job that runs to stop."""


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
    signalled: bool = False


READY, UNUSABLE = "ready", "unusable"


class Child:
    """This process: its two sockets, its tokens, its page, and the flags of the job that runs.

    `handling` is true while its handler runs, `asked` from when the worker asked it to stop until
    that was raised in it, `stopped` from then on; `signalled` if a signal came from elsewhere.
    """

    def __init__(
        self, jobs: socket.socket, control: socket.socket, tokens: int, page: Page
    ) -> None:
        self.jobs = jobs
        self.control = control
        self.tokens = tokens
        self.page = page
        self.spare = 0
        self.inbox = Inbox()
        self.outbox = bytearray()
        self.reported_at = 0.0
        self.decoder = msgspec.msgpack.Decoder(Task)
        self.encoder = msgspec.msgpack.Encoder()
        self.lost = Lost()
        self.handling = self.asked = self.stopped = self.signalled = False
        self.middleware: list[Middleware] = []

    def keep_to_itself(self) -> None:
        """What a handler starts, in whatever way, has none of our descriptors: it would hide our
        death from the worker for as long as it lives."""
        descriptors = [self.jobs.fileno(), self.control.fileno(), self.tokens]
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)

        def forked() -> None:
            for descriptor in descriptors:
                with suppress(OSError):
                    os.close(descriptor)

        os.register_at_fork(after_in_child=forked)

    def keep_signals_to_itself(self) -> None:
        """A process that a handler forks dies of a signal as it would in any Python program, also
        of one that comes before it has let go of ours."""
        masks = threading.local()

        def before() -> None:
            masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

        def after() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

        def forked() -> None:
            self.let_go_of_signals()
            after()

        os.register_at_fork(before=before, after_in_parent=after, after_in_child=forked)

    def heed_signals(self) -> None:
        """A function for each stop signal, which programs that a handler starts do not inherit, as
        they would inherit that a signal is ignored. Where we were started so (nohup), it stays."""
        for number in STOP_SIGNALS:
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self.heed)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def heed(self, number: int, frame: FrameType | None) -> None:
        """Raise Interrupted in the handler, once, if the worker has asked for it."""
        if not self.asked:
            self.signalled = True
        elif self.handling:
            self.asked = False
            raise Interrupted(128 + number)

    def heed_again(self) -> None:
        """What an earlier handler has left as Python has it at its start (asyncio does, after
        add_signal_handler) is heeded again; what it made of it on purpose is its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self.heed)

    def let_go_of_signals(self) -> None:
        """In a process that a handler has forked: as in any Python program."""
        for number in STOP_SIGNALS:
            if signal.getsignal(number) == self.heed:
                usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(number, usual)

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
        ending = self.ending(handler, delivery)
        verdict, seconds = ending.verdict, ending.seconds
        if verdict is Verdict.DONE:
            report = Report(verdict.value, task.number, seconds)
        else:
            told = ending.reason, ending.error, ending.delay
            signalled = ending.signalled or self.signalled
            report = Report(verdict.value, task.number, seconds, *told, signalled=signalled)
        self.note(report)
        # What the handler printed appears with its job, also when it goes to a file or pipe.
        flush_output()
        if verdict is not Verdict.DONE or time.monotonic() - self.reported_at >= REPORT_EVERY:
            self.flush()

    def ending(self, handler: Function, delivery: Delivery) -> Ending:
        """Run the handler. STOPPED if the worker asked for that while it ran, whatever it made of
        it: it may have returned with its work half done."""
        self.lost = Lost()
        self.asked = self.stopped = self.signalled = False
        self.heed_again()
        self.handling = True
        ending = handle(handler, delivery, self.lost, self.middleware)
        self.handling = False
        return replace(ending, verdict=Verdict.STOPPED) if self.stopped else ending

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
            self.report(Report(UNUSABLE, reason=one_line(str(error)), error=error.hint))
            return None
        except BaseException as error:  # noqa: BLE001 - the user's modules may raise anything
            told = f"loading {setup.handler} failed: {described(error)}"
            self.report(Report(UNUSABLE, reason=one_line(told)))
            return None
        self.report(Report(READY, files=own_files(), options=options_of(found), retry=retry))
        return function_of(found, setup.handler)

    def report(self, report: Report) -> None:
        self.note(report)
        self.flush()

    def note(self, report: Report) -> None:
        """For the worker to read: soon from the socket, or from the page if we die before."""
        payload = self.encoder.encode(report)
        self.page.write(payload)
        self.outbox += head.pack(len(payload)) + payload

    def flush(self) -> None:
        if self.outbox:
            reports, self.outbox = self.outbox, bytearray()
            self.jobs.sendall(reports)
            self.reported_at = time.monotonic()

    def listen(self) -> None:
        """In a thread of its own, while a handler runs in the first."""
        try:
            while byte := self.control.recv(1):
                if byte == LOSE:
                    self.lost.set()
                elif byte == STOP and self.handling:
                    self.asked = self.stopped = True
                    # A signal also ends the call in which the main thread waits.
                    signal.pthread_kill(main_thread_id(), signal.SIGTERM)
        except OSError:
            return  # a handler has closed this socket; the main thread ends the child after it
        kill_own_session()


def packed(policy: RetryPolicy | None) -> bytes:
    """For the worker, which never imports the handler. Raises ConfigError."""
    try:
        return pickle.dumps(policy)
    except Exception as error:
        told = f"the queue's retry policy cannot be pickled: {described(error)}"
        raise ConfigError(told) from error


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


def main_thread_id() -> int:
    return threading.main_thread().ident or 0


def flush_output() -> None:
    """Never raises: a handler may have closed them or put anything in their place, nobody may read
    them any more, and the application may have been started without."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except BaseException:  # noqa: BLE001, S110 - there is nowhere else to say it
            pass


class Page:
    """Memory that the worker and a child share; it outlives the child."""

    SIZE = 16_384

    def __init__(self, descriptor: int) -> None:
        self.memory = mmap.mmap(descriptor, self.SIZE)

    def write(self, payload: bytes) -> None:
        """Longer ones are not kept: then the socket alone has them."""
        head.pack_into(self.memory, 0, 0)  # nothing, for one that dies half-way
        if len(payload) <= self.SIZE - head.size:
            self.memory[head.size : head.size + len(payload)] = payload
            head.pack_into(self.memory, 0, len(payload))

    def read(self) -> bytes:
        """What was written last, or nothing."""
        (length,) = head.unpack_from(self.memory, 0)
        return self.memory[head.size : head.size + length]

    def close(self) -> None:
        self.memory.close()


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
    """Run by `process` with the descriptors of the two sockets, the tokens and the page."""
    jobs, control, tokens, shared = map(int, sys.argv[1:5])
    sockets = [socket.socket(fileno=number) for number in (jobs, control)]
    child = Child(sockets[0], sockets[1], tokens, Page(shared))
    os.close(shared)  # the page stays
    child.keep_to_itself()
    child.heed_signals()
    child.keep_signals_to_itself()
    try:
        child.serve()
        child.flush()
    except (OSError, Interrupted):
        pass  # the worker is gone, or a handler closed the sockets: what it did is on the page
    flush_output()
    os._exit(0)  # threads that a handler left behind do not keep the child alive
