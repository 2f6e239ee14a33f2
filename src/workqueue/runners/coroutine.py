"""On one event loop in a thread of this process: for handlers that wait more than they compute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from workqueue.errors import BadPayload, HandlerNotFound
from workqueue.message import Delivery, Job, Lost
from workqueue.retry import TaskOptions
from workqueue.runners.handler import (
    Handler,
    ending_of,
    function_of,
    is_async,
    make_job,
    one_line,
    options_of,
    retry_of,
)
from workqueue.runners.runner import Ending, Verdict, timed_out
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
        self.running: dict[Delivery, asyncio.Task[None]] = {}
        self.losses: dict[Delivery, Lost] = {}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.serve, name="workqueue-loop", daemon=True)
        self.thread.start()

    def serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def run(self, delivery: Delivery, timeout: float | None = None) -> None:
        self.losses[delivery] = Lost()
        self.loop.call_soon_threadsafe(self.begin, delivery, timeout)

    def endings(self) -> list[Ending]:
        ended = []
        while self.ended:
            ended.append(self.ended.popleft())
            self.losses.pop(ended[-1].delivery, None)
        return ended

    def recall(self) -> None:
        self.loop.call_soon_threadsafe(self.give_up_waiting, Verdict.UNTOUCHED)

    def lose(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in reversed(deliveries):  # what runs comes last, or the next would begin
            if delivery in self.losses:
                self.losses[delivery].set()
                self.loop.call_soon_threadsafe(self.cancel, delivery)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.give_up_waiting, Verdict.STOPPED)
        self.lose(list(self.losses))

    def close(self) -> None:
        if self.thread is None:
            return
        thread, self.thread = self.thread, None
        self.stop()
        self.loop.call_soon_threadsafe(self.loop.create_task, self.end_loop())
        thread.join(CLOSING_TIME + 1)

    # -- on the loop

    def begin(self, delivery: Delivery, timeout: float | None) -> None:
        self.waiting.append((delivery, timeout))
        self.begin_next()

    def begin_next(self) -> None:
        while self.waiting and len(self.running) < self.slots:
            delivery, timeout = self.waiting.popleft()
            self.running[delivery] = self.loop.create_task(self.run_one(delivery, timeout))

    def give_up_waiting(self, verdict: Verdict) -> None:
        while self.waiting:
            self.end(Ending(self.waiting.popleft()[0], verdict))

    def cancel(self, delivery: Delivery) -> None:
        if delivery in self.running:
            # Not before its first step, in which it would end without a word.
            self.loop.call_soon(self.running[delivery].cancel)

    def end(self, ending: Ending) -> None:
        self.ended.append(ending)
        self.ring()

    async def run_one(self, delivery: Delivery, timeout: float | None) -> None:
        lost = self.losses.get(delivery) or Lost()
        ending = Ending(delivery, Verdict.STOPPED)
        began = time.monotonic()
        try:
            if lost:
                return  # while it waited for its turn
            ending = await self.ending(make_job(delivery, lost), delivery, timeout)
        except BadPayload as error:
            ending = Ending(delivery, Verdict.REJECTED, one_line(str(error)))
        except asyncio.CancelledError:
            pass  # by us, and that is how it ended
        finally:
            if lost:
                ending = Ending(delivery, Verdict.STOPPED)
            ending = replace(ending, seconds=time.monotonic() - began)
            del self.running[delivery]
            self.end(ending)
            self.begin_next()

    async def ending(self, job: Job[Any], delivery: Delivery, timeout: float | None) -> Ending:
        job_here.set(job)  # in the context of this task alone
        late = asyncio.timeout(timeout)
        try:
            async with late:
                result: Any = self.handler(job)
                await result
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is the task's
            told = ending_of(delivery, error)
            if late.expired() and timeout is not None:
                return timed_out(delivery, timeout, told.error)
            return told
        return Ending(delivery, Verdict.DONE)

    async def end_loop(self) -> None:
        own = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not own]
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=CLOSING_TIME)
        self.loop.stop()
