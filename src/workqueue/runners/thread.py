"""In threads of this process: for embedding and for tests.

A thread cannot be stopped, shares the interpreter's lock with the connection, and a handler that
crashes takes the worker with it: for production there is the process runner.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from workqueue.errors import ConfigError, Unsupported
from workqueue.message import Delivery, Lost
from workqueue.middleware import Middleware
from workqueue.retry import TaskOptions
from workqueue.runners.handler import (
    Handler,
    close_loop,
    described,
    function_of,
    handle,
    options_of,
    retry_of,
)
from workqueue.runners.runner import Ending, Failure, Verdict

NO_TIMEOUT = "a thread cannot be stopped, so the thread runner takes no timeout"


def start_slots(slots: int, work: Callable[[], None]) -> list[threading.Thread]:
    """A daemon thread for each slot. Raises ConfigError if the system allows no more threads."""
    threads = [
        threading.Thread(target=work, name=f"workqueue-slot-{number}", daemon=True)
        for number in range(slots)
    ]
    for number, thread in enumerate(threads):
        try:
            thread.start()
        except RuntimeError as error:
            raise ConfigError(
                f"{slots} slots: no more than {number} threads could be started ({error})",
                hint="Ask for fewer with --concurrency, or raise the limit: ulimit -u",
            ) from error
    return threads


class ThreadRunner:
    """One daemon thread per slot: a handler that hangs does not keep the process from ending.

    The worker is rung once for all that ends until it looks: a thread that has more to run does
    not fight with it for the interpreter's lock after every job.
    """

    def __init__(self, handler: Handler, *, middleware: Sequence[Middleware] = ()) -> None:
        self.middleware = middleware
        self.handler = function_of(handler, getattr(handler, "__qualname__", repr(handler)))
        self.options: Mapping[str, TaskOptions] = options_of(handler)
        self.retry = retry_of(handler)
        self.threads: list[threading.Thread] = []

    def start(self, slots: int, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.rung = False
        self.waiting: queue.SimpleQueue[tuple[Delivery, Lost] | None] = queue.SimpleQueue()
        self.ended: deque[Ending] = deque()
        self.running: dict[Delivery, Lost] = {}
        self.failure = Failure()
        self.threads = start_slots(slots, self.work)

    def work(self) -> None:
        """The thread of a slot, with its last guard."""
        running: list[Delivery] = []
        try:
            self.serve(running)
        except BaseException as error:  # noqa: BLE001 - in silence it would look like a long task
            self.failure.set(f"the thread of a slot died: {described(error)}")
            for delivery in running:
                self.end(Ending(delivery, Verdict.STOPPED))
            self.ring()
        finally:
            close_loop()

    def serve(self, running: list[Delivery]) -> None:
        """`running` is what was begun and has no ending yet."""
        while (task := self.waiting.get()) is not None:
            delivery, lost = task
            running.append(delivery)
            ending = self.run_one(delivery, lost)
            running.clear()
            self.end(ending)

    def run_one(self, delivery: Delivery, lost: Lost) -> Ending:
        if lost:
            return Ending(delivery, Verdict.STOPPED)
        ending = handle(self.handler, delivery, lost, self.middleware)
        # Told to stop, it may have returned with its work half done. Told later, it was done.
        return Ending(delivery, Verdict.STOPPED) if lost else ending

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)
        if not self.rung:  # else the worker has not looked since, and is about to
            self.rung = True
            self.ring()

    def run(self, delivery: Delivery, timeout: float | None = None) -> None:
        if timeout is not None:
            raise Unsupported(NO_TIMEOUT, hint="Use runner='process', which can.")
        lost = self.running[delivery] = Lost()
        self.waiting.put((delivery, lost))

    def recall(self) -> None:
        try:
            while (task := self.waiting.get_nowait()) is not None:
                self.end(Ending(task[0], Verdict.UNTOUCHED))
        except queue.Empty:
            pass

    def endings(self) -> list[Ending]:
        self.rung = False  # before the look: what ends after it rings again
        self.failure.raise_once()
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
            del self.running[ended[-1].delivery]
        return ended

    def lose(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in reversed(deliveries):  # what runs comes last, or the next would begin
            if delivery in self.running:
                self.running[delivery].set()

    def stop(self) -> None:
        self.recall()
        self.lose(list(self.running))

    def close(self) -> None:
        for _ in self.threads:
            self.waiting.put(None)
        self.threads = []
