"""workqueue bench: how fast this machine and this broker are, with nothing else around."""

from __future__ import annotations

import os
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, Self

import typer

from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json, print_table, say
from workqueue.errors import WorkqueueError
from workqueue.message import Job
from workqueue.middleware import Middleware
from workqueue.producer import Producer
from workqueue.queue import Queue
from workqueue.transport import Outcome
from workqueue.worker import Worker

SIZES = {"": 1, "B": 1, "kB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2}

RATE = 50.0
"""Messages a second whose latency is measured: a broker that is not busy."""

WARMING_UP = 10
"""Messages that are not counted, of those whose latency is measured."""


def size_in_bytes(text: str) -> int:
    """From "256B", "64KiB", "1MB" or a bare number of bytes."""
    found = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", str(text).strip())
    if found is None or found[2] not in SIZES:
        raise typer.BadParameter(f"{text!r}: write a size like 256B, 64KiB or 1MB")
    return int(found[1]) * SIZES[found[2]]


def add_to(app: typer.Typer) -> None:
    command(app, panel="Run")(bench)


def bench(
    session: Session,
    messages: Annotated[
        int, typer.Option("-n", "--messages", min=100, help="For each figure, at most.")
    ] = 10_000,
    size: Annotated[
        int, typer.Option(parser=size_in_bytes, metavar="SIZE", help="Of each message.")
    ] = 256,
    seconds: Annotated[
        float, typer.Option(parser=duration, metavar="TIME", help="For each figure, at most.")
    ] = 2.0,
    type: Annotated[
        Literal["quorum", "classic"] | None, typer.Option("--type", help="Of the queue.")
    ] = None,
) -> None:
    """Measure this machine and this broker: messages a second, and how soon one is handled.

    On the broker that -u or WORKQUEUE_URL names, in a queue of its own, which is deleted
    afterwards. Sends one at a time and many at once, each kept by the broker; handles with one
    slot, in a thread and in a child process, a task that does nothing; and sends 50 a second to
    see how long they take from `send` to the handler.
    """
    from workqueue.testing.checked import checked

    with session.connect() as broker:
        # Figures of a transport that breaks its contract are worth nothing. The checks cost about
        # 0.1 microseconds for a message of many and 1 for a single one.
        queue = checked(broker).queue(f"workqueue-bench-{os.getpid()}", type=type)
        with fresh(queue):
            session.say(f"measuring in the queue {queue.name}, up to {seconds:g} s for each figure")
            figures = list(measure(session, queue, b"x" * size, messages, seconds))
    show(session, figures)


@contextmanager
def fresh(queue: Queue) -> Iterator[None]:
    """The queue is there, and afterwards gone, also after Ctrl-C."""
    queue.declare()
    try:
        yield
    finally:
        try:
            queue.delete(dead_letters=True)
        except WorkqueueError as error:
            say(f"the queue {queue.name} is still there: {error}")


@dataclass(frozen=True)
class Figure:
    """`messages` in `seconds`; the percentiles are of single messages, in milliseconds."""

    what: str
    messages: int
    seconds: float
    per_second: float
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def figure(what: str, messages: int, seconds: float, each: list[float] | None = None) -> Figure:
    """Rounded to what can be believed."""
    rate = messages / seconds if seconds else 0.0
    if each is None or len(each) < 2:
        return Figure(what, messages, round(seconds, 6), round(rate, 1))
    cuts = statistics.quantiles(each, n=100, method="inclusive")
    p50, p95, p99 = (round(cuts[percent - 1] * 1000, 3) for percent in (50, 95, 99))
    return Figure(what, messages, round(seconds, 6), round(rate, 1), p50, p95, p99)


def measure(
    session: Session, queue: Queue, body: bytes, messages: int, seconds: float
) -> Iterator[Figure]:
    with Producer(queue) as producer:
        producer.send(body)  # connected
        session.say("sending one at a time ...")
        yield (one := send_one_by_one(producer, body, messages, seconds))
        session.say("sending many ...")
        yield (many := send_many(producer, body, messages, seconds))
        waiting = 1 + one.messages + many.messages
        for runner in ("thread", "process"):
            if waiting < messages:
                waiting += send_many(producer, body, messages - waiting, seconds).messages
            session.say(f"handling, with the {runner} runner ...")
            yield (handled := handle(queue, runner, min(messages, waiting), seconds))
            waiting -= handled.messages + 1
        queue.purge()
        session.say(f"from send to handler, {RATE:g} a second ...")
        yield latency(queue, producer, max(seconds, 1.0))


def send_one_by_one(producer: Producer, body: bytes, messages: int, seconds: float) -> Figure:
    """Each is kept by the broker before the next is sent."""
    took: list[float] = []
    began = last = time.monotonic()
    while len(took) < messages and last - began < seconds:
        producer.send(body)
        now = time.monotonic()
        took.append(now - last)
        last = now
    return figure("send", len(took), last - began, took)


def send_many(producer: Producer, body: bytes, messages: int, seconds: float) -> Figure:
    began = time.monotonic()

    def bodies() -> Iterator[bytes]:
        for _ in range(messages):
            if time.monotonic() - began > seconds:
                return
            yield body

    sent = producer.send_many(bodies())
    return figure("send_many", sent, time.monotonic() - began)


# -- handling


def nothing(job: Job[Any]) -> None:
    """The task that does nothing."""


class Meter(Middleware):
    """Counts what a worker has settled, and when the first and the latest of it was."""

    def __init__(self, enough: int) -> None:
        self.enough = enough
        self.count = 0
        self.first = self.latest = 0.0
        self.reached = threading.Event()

    def settled(self, outcome: Outcome, seconds: float) -> None:
        self.latest = time.monotonic()
        self.first = self.first or self.latest
        self.count += 1
        if self.count == self.enough:
            self.reached.set()


class Shift(threading.Thread):
    """A worker beside the main thread, which is to hear Ctrl-C; stopped when left."""

    def __init__(self, worker: Worker, max_messages: int | None = None) -> None:
        super().__init__(name="workqueue-bench", daemon=True)
        self.worker = worker
        self.max_messages = max_messages
        self.left = False
        self.error: BaseException | None = None

    def run(self) -> None:
        if self.left:
            return
        try:
            self.worker.run(max_messages=self.max_messages)
        except BaseException as error:  # noqa: BLE001 - raised again where somebody waits
            self.error = error

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C, while the thread may start nevertheless
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True
        while self.is_alive():
            self.worker.stop()  # again: it may not have begun when it was first told
            self.join(0.1)

    def wait(self, event: threading.Event, until: float) -> bool:
        """Until it is set, or the time is over. Raises what ended the worker."""
        while not event.wait(min(0.1, max(0.0, until - time.monotonic()))):
            if self.error is not None:
                raise self.error
            if time.monotonic() >= until:
                return False
        return True


def handle(queue: Queue, runner: Any, messages: int, seconds: float) -> Figure:
    """From the first that was settled on: a child process takes a while to be there."""
    meter = Meter(messages)
    worker = Worker(queue, "workqueue.cli.bench:nothing", runner=runner, middleware=[meter])
    with Shift(worker, messages) as shift:
        began = time.monotonic()
        while not meter.count and time.monotonic() - began < 30.0:
            shift.wait(meter.reached, time.monotonic() + 0.01)
        shift.wait(meter.reached, time.monotonic() + seconds)
    return figure(f"handle_{runner}", max(meter.count - 1, 0), meter.latest - meter.first)


def latency(queue: Queue, producer: Producer, seconds: float) -> Figure:
    """From before `send` to the first line of the handler, in a thread."""
    wanted = max(int(RATE * seconds), 10) + WARMING_UP
    took: list[float] = []
    reached = threading.Event()

    def arrived(job: Job[Any]) -> None:
        took.append(time.monotonic() - job.payload["sent"])
        if len(took) == wanted:
            reached.set()

    with Shift(Worker(queue, arrived)) as shift:
        began = due = time.monotonic()
        for _ in range(wanted):
            time.sleep(max(0.0, due - time.monotonic()))
            producer.send({"sent": time.monotonic()})
            due += 1 / RATE
        shift.wait(reached, time.monotonic() + 30.0)
        counted = took[WARMING_UP:]
        return figure("latency", len(counted), time.monotonic() - began, counted)


# -- what is shown

TITLES = {
    "send": "sent, one at a time",
    "send_many": "sent, many",
    "handle_thread": "handled, in a thread",
    "handle_process": "handled, in a child process",
    "latency": "send to handler",
}


def show(session: Session, figures: list[Figure]) -> None:
    if session.json:
        for one in figures:
            print_json(asdict(one))
        return
    columns = ["what", "messages", "per_second", "p50_ms", "p95_ms", "p99_ms"]
    rows = [
        [TITLES[one.what], one.messages, one.per_second, one.p50_ms, one.p95_ms, one.p99_ms]
        for one in figures
    ]
    print_table(columns, rows)
