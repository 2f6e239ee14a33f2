"""On one event loop in a thread of this process: for handlers that wait more than they compute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from workqueue.errors import HandlerNotFound
from workqueue.logs import log
from workqueue.message import Delivery, Job, Lost
from workqueue.retry import TaskOptions
from workqueue.runners.handler import (
    Handler,
    described,
    ending_of,
    function_of,
    is_async,
    make_job,
    options_of,
    retry_of,
    unreadable,
)
from workqueue.runners.runner import Ending, Failure, Verdict, timed_out
from workqueue.task import job_here

CLOSING_TIME = 2.0
"""Seconds for cancelled coroutines to clean up before the loop is left alone."""


class AsyncRunner:
    """Each job is a task of asyncio; one that is stopped, lost or late is cancelled. No more run
    at once than there are slots; the others wait for their turn."""

    def __init__(self, handler: Handler) -> None:
        name = getattr(handler, "__qualname__", repr(handler))
        self.handler = function_of(handler, name)
        self.options: Mapping[str, TaskOptions] = options_of(handler)
        self.retry = retry_of(handler)
        if not is_async(handler):
            raise HandlerNotFound(
                f"{name} is a plain function, which would hold up the event loop",
                hint="Write it with async def, or use runner='thread' or 'process'.",
            )
        self.thread: threading.Thread | None = None

    def start(self, slots: int, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.slots = slots
        self.waiting: deque[tuple[Delivery, float | None]] = deque()
        self.ended: deque[Ending] = deque()
        self.running: dict[Delivery, asyncio.Task[Ending]] = {}
        self.losses: dict[Delivery, Lost] = {}
        self.failure = Failure()
        self.closing = False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.serve, name="workqueue-loop", daemon=True)
        self.thread.start()

    def serve(self) -> None:
        """The thread of the loop, with its last guard."""
        asyncio.set_event_loop(self.loop)
        try:
            while not self.closing:
                self.run_loop()
        except BaseException as error:  # noqa: BLE001 - in silence it would look like long tasks
            self.fail(error)
        finally:
            with suppress(Exception):
                self.loop.close()

    def run_loop(self) -> None:
        """asyncio ends the loop for a SystemExit or a KeyboardInterrupt of any task, and for a
        handler that stops it: those of others go on."""
        try:
            self.loop.run_forever()
        except (SystemExit, KeyboardInterrupt) as error:
            log.error("a background task of a handler raised %s", described(error))

    def fail(self, error: BaseException) -> None:
        """Nothing runs any more, nor ever will: `endings` says so."""
        self.failure.set(f"the event loop died: {described(error)}")
        self.closing = True
        self.ring()

    def run(self, delivery: Delivery, timeout: float | None = None) -> None:
        self.losses[delivery] = Lost()
        self.on_loop(self.begin, delivery, timeout)

    def endings(self) -> list[Ending]:
        self.failure.raise_once()
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
            self.losses.pop(ended[-1].delivery, None)
        if self.failure:
            ended += [Ending(delivery, Verdict.STOPPED) for delivery in self.losses]
            self.losses.clear()
        return ended

    def recall(self) -> None:
        self.on_loop(self.give_up_waiting, Verdict.UNTOUCHED)

    def lose(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in reversed(deliveries):  # what runs comes last, or the next would begin
            if delivery in self.losses:
                self.losses[delivery].set()
                self.on_loop(self.cancel, delivery)

    def stop(self) -> None:
        self.on_loop(self.give_up_waiting, Verdict.STOPPED)
        self.lose(list(self.losses))

    def close(self) -> None:
        if self.thread is None:
            return
        thread, self.thread = self.thread, None
        self.stop()
        self.on_loop(lambda: self.loop.create_task(self.end_loop()))
        thread.join(CLOSING_TIME + 1)

    def on_loop(self, function: Callable[..., object], *arguments: object) -> None:
        """Have the loop call it, unless the loop has died."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.guarded, function, *arguments)

    # -- on the loop

    def guarded(self, function: Callable[..., object], *arguments: object) -> None:
        """What fails here would be lost to the loop, with the tasks it was about."""
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001 - a task factory of a handler, for instance
            self.fail(error)
            self.loop.stop()

    def begin(self, delivery: Delivery, timeout: float | None) -> None:
        self.waiting.append((delivery, timeout))
        self.begin_next()

    def begin_next(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            delivery, timeout = self.waiting.popleft()
            began = time.monotonic()
            task = self.running[delivery] = self.loop.create_task(self.run_one(delivery, timeout))
            task.add_done_callback(partial(self.guarded, self.over, delivery, began))

    def give_up_waiting(self, verdict: Verdict) -> None:
        while self.waiting:
            self.end(Ending(self.waiting.popleft()[0], verdict))

    def cancel(self, delivery: Delivery) -> None:
        if delivery in self.running:
            self.running[delivery].cancel()

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)
        self.ring()

    def over(self, delivery: Delivery, began: float, task: asyncio.Task[Ending]) -> None:
        """However the task ended: also one that was cancelled before its first step."""
        del self.running[delivery]
        if not task.cancelled():
            ending = task.result()
        elif self.losses[delivery]:
            ending = Ending(delivery, Verdict.STOPPED)
        else:
            told = "CancelledError: another handler cancelled it before it began"
            ending = Ending(delivery, Verdict.FAILED, told)
        self.end(replace(ending, seconds=time.monotonic() - began))
        self.begin_next()

    async def run_one(self, delivery: Delivery, timeout: float | None) -> Ending:
        """How it ended. Raises nothing: a SystemExit would end the loop, and with it the others."""
        lost = self.losses[delivery]
        if lost:
            return Ending(delivery, Verdict.STOPPED)  # while it waited for its turn
        try:
            job = make_job(delivery, lost)
        except BaseException as error:  # noqa: BLE001 - a body may be wrong in any way
            return unreadable(delivery, error)
        ending = await self.ending(job, delivery, timeout)
        # Told to stop, it may have returned with its work half done. Told later, it was done.
        return Ending(delivery, Verdict.STOPPED) if lost else ending

    async def ending(self, job: Job[Any], delivery: Delivery, timeout: float | None) -> Ending:
        job_here.set(job)  # in the context of this task alone
        late = asyncio.timeout(timeout)
        told = Ending(delivery, Verdict.DONE)
        try:
            async with late:
                result: Any = self.handler(job)
                await result
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
            told = ending_of(delivery, error)
        if late.expired() and timeout is not None:
            return timed_out(delivery, timeout, told.error)
        return told

    async def end_loop(self) -> None:
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=CLOSING_TIME)
        self.closing = True
        self.loop.stop()
