"""Publishes the copies that retries and dead letters make, beside a consumer and never in its way.

A consumer's thread may not wait for confirms: a thousand of them outstanding must stall no
acknowledgement, no delivery and no heartbeat. So a thread of its own, with a connection of its
own, makes the copies safe and reports back; then the consumer acknowledges the original. A copy
that cannot be placed stays here and is tried again (see `owed`).
"""

from __future__ import annotations

import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

from workqueue.errors import ConnectionLost, NotSent, TooLarge, Unroutable, WorkqueueError
from workqueue.loggers import logger
from workqueue.logs import CarefulLog
from workqueue.transports.forms import Form
from workqueue.transports.rabbitmq.causes import CannotWait, Interrupted
from workqueue.transports.rabbitmq.owed import LAST_PAUSES, LONGEST_PAUSE, Owed, pause, plan
from workqueue.transports.rabbitmq.publisher import RabbitMQPublisher

log = CarefulLog(logger("rabbitmq"))

CONFIRM_TIMEOUT = 30.0
"""Seconds in which RabbitMQ confirms nothing, until a connection counts as dead and the copies on
it are sent again, on another. They may turn up twice then. While RabbitMQ says that it takes no
messages for now, that time does not pass."""

MOST_AT_ONCE = 500

SAID_AGAIN = 60.0
"""Seconds until the same trouble is told again."""


class Copier:
    """`post` copies, `collect` those that became safe; `ring` is called when there are any.

    `connect` opens the publisher; `repair` makes the queues when a copy found none. The thread
    starts with the first copy; `tend`, called now and then, starts it where the system gave none
    before. `trouble` is how many copies wait for another try, and why the last one failed.
    """

    def __init__(
        self,
        connect: Callable[[], RabbitMQPublisher],
        repair: Callable[[], None],
        ring: Callable[[], None],
    ) -> None:
        self.connect = connect
        self.repair = repair
        self.ring = ring
        self.posted: queue.SimpleQueue[Owed | None] = queue.SimpleQueue()
        self.done: deque[Owed] = deque()
        self.trouble: tuple[int, str] = (0, "")
        self.longest_pause = LONGEST_PAUSE
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.publisher: RabbitMQPublisher | None = None
        self.waiting: list[Owed] = []
        self.complaints = Complaints(SAID_AGAIN)
        self.rests_until = 0.0
        self.lost = 0

    def post(self, owed: Owed) -> None:
        self.posted.put(owed)
        self.tend()

    def tend(self) -> None:
        """Start the thread, if copies wait for it. Where the system gives none, they go on waiting:
        their originals stay with the consumer."""
        if self.thread is not None or self.posted.empty() or self.stopping.is_set():
            return
        thread = threading.Thread(target=self.work, name="workqueue-copier", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            why = f"copies cannot be placed for now, and wait in the worker: {error}"
            self.complaints.say("", "thread", why)
            self.trouble = (self.posted.qsize(), why)
            return
        self.thread = thread

    @property
    def has_ended(self) -> bool:
        """Whether the thread ended though nobody closed this: nothing more will be placed."""
        running = self.thread is None or self.thread.is_alive()
        return not running and not self.stopping.is_set()

    def collect(self) -> list[Owed]:
        collected = []
        while self.done:
            collected.append(self.done.popleft())
        return collected

    def hurry(self) -> None:
        """The worker drains: try everything now, and then at short intervals."""
        self.longest_pause = LAST_PAUSES
        if self.thread is not None:
            self.posted.put(None)

    def close(self) -> None:
        """Stop soon; what is not confirmed stays unknown. Does not wait for a broker."""
        self.stopping.set()
        if (publisher := self.publisher) is not None:
            publisher.abandoned = True
        self.posted.put(None)

    # -- in the thread

    def work(self) -> None:
        while not self.stopping.is_set():
            for way in ways(self.next_batch()):
                self.place_or_keep(way)
            self.note_trouble()
        self.hang_up()

    def next_batch(self) -> list[Owed]:
        """The copies whose turn it is, once there are any or the patience is over; a few."""
        self.take_posted()
        now = time.monotonic()
        self.waiting = [owed for owed in self.waiting if not owed.dropped]
        batch = [owed for owed in self.waiting if self.due(owed) <= now][:MOST_AT_ONCE]
        chosen = set(map(id, batch))
        self.waiting = [owed for owed in self.waiting if id(owed) not in chosen]
        return batch

    def due(self, owed: Owed) -> float:
        return max(owed.next_try, self.rests_until)

    def take_posted(self) -> None:
        """Wait for a copy, or until one is due; then take all that were posted."""
        due = min(map(self.due, self.waiting), default=None)
        patience = None if due is None else max(0.0, due - time.monotonic())
        try:
            posted = self.posted.get(timeout=patience) if patience != 0 else self.posted.get(False)
            while True:
                if posted is not None:
                    self.waiting.append(posted)
                else:
                    self.try_all_now()
                posted = self.posted.get(False)
        except queue.Empty:
            pass

    def try_all_now(self) -> None:
        self.rests_until = 0.0
        for owed in self.waiting:
            owed.next_try = 0.0

    def place_or_keep(self, batch: list[Owed]) -> None:
        """A bug must not end the thread: what it interrupted is tried again, later."""
        try:
            self.place(batch)
        except Exception as error:
            log.exception("copies for %s could not be published", batch[0].queue)
            cause = Interrupted(f"{type(error).__name__}: {error}")
            waiting = set(map(id, self.waiting))
            kept = [owed for owed in batch if not owed.placed and id(owed) not in waiting]
            for owed in kept:
                plan(owed, cause, time.monotonic(), self.longest_pause)
            self.waiting += kept

    def place(self, batch: list[Owed]) -> None:
        """Publish `batch`, all to one queue. What failed waits for its next try."""
        batch = [owed for owed in batch if not owed.dropped]
        if not batch or self.stopping.is_set():
            return
        name = batch[0].queue
        failed = self.try_publishing(name, batch)
        lost = {id(owed) for owed, _ in failed}
        placed = [owed for owed in batch if id(owed) not in lost]
        self.report(placed)
        self.tell_smaller(name, placed)
        if not failed:
            if not any(owed.tries and owed.queue == name for owed in self.waiting):
                self.complaints.settle(name)
            return
        self.mend(name, [cause for _, cause in failed])
        now = time.monotonic()
        for owed, cause in failed:
            plan(owed, cause, now, self.longest_pause)
        self.waiting += [owed for owed, _ in failed]
        self.tell(name, failed, now)

    def try_publishing(self, name: str, batch: list[Owed]) -> list[tuple[Owed, WorkqueueError]]:
        """The copies that are not safe, each with its cause."""
        now = time.monotonic()
        messages = [owed.to_send(now) for owed in batch]
        failed: list[tuple[Owed, WorkqueueError]] = []
        try:
            self.connected().publish(name, messages, CONFIRM_TIMEOUT)
        except NotSent as error:
            causes = {id(message): cause for message, cause in error.failures}
            failed = [
                (owed, causes[id(message)])
                for owed, message in zip(batch, messages, strict=True)
                if id(message) in causes
            ]
        except WorkqueueError as error:
            failed = [(owed, error) for owed in batch]
        except Exception as error:  # were the thread to end, nothing more would be placed
            log.exception("a copy for %s could not be published", name)
            self.hang_up()
            failed = [(owed, Interrupted(f"{type(error).__name__}: {error}")) for owed in batch]
        self.keep_connection(failed)
        return failed

    def connected(self) -> RabbitMQPublisher:
        """Raises ConnectionLost also when the consumer was closed meanwhile: its originals go back,
        and a copy of one of them would be a duplicate."""
        if self.publisher is None:
            self.publisher = self.connect()
            self.publisher.patient = True
        if self.stopping.is_set():
            raise ConnectionLost("this consumer is closed")
        return self.publisher

    def keep_connection(self, failed: list[tuple[Owed, WorkqueueError]]) -> None:
        """Or hang up, if it is of no more use; and open another one not too soon."""
        kept = self.publisher is not None and not self.publisher.closed
        # It remembers the broker's limit, which may have been raised before the next try.
        outgrown = any(
            isinstance(cause, TooLarge) and owed.form is Form.LEAST for owed, cause in failed
        )
        if not kept or outgrown:
            self.hang_up()
        silent = not kept and not any(isinstance(cause, Interrupted) for _, cause in failed)
        self.lost = self.lost + 1 if silent else 0
        self.rests_until = time.monotonic() + pause(self.lost, self.longest_pause) * bool(self.lost)

    def mend(self, name: str, causes: list[WorkqueueError]) -> None:
        """Make again what a copy did not find."""
        if not any(isinstance(cause, Unroutable) for cause in causes):
            return
        if self.publisher is not None:
            self.publisher.delays.forget()
        try:
            self.repair()
        except WorkqueueError as error:
            self.complaints.say(name, "missing", f"queue {name} cannot be made: {error}")
        except Exception:
            log.exception("queue %s could not be made again", name)

    def tell(self, name: str, failed: list[tuple[Owed, WorkqueueError]], now: float) -> None:
        """Each kind of trouble once, and again while it lasts. One that the next try may well
        overcome is none."""
        if self.stopping.is_set():
            return
        for owed, cause in failed:
            at_once = owed.next_try <= now or (owed.tries == 1 and isinstance(cause, Unroutable))
            if at_once:
                continue
            text = f"copies for {name} cannot be placed, and are tried again: {cause}"
            if isinstance(cause, CannotWait):
                text = f"retries of {name} have no delay queue, and wait in the worker: {cause}"
            self.complaints.say(name, type(cause).__name__, text)

    def tell_smaller(self, name: str, placed: list[Owed]) -> None:
        for form in {owed.form for owed in placed} - {Form.WHOLE}:
            text = f"copies for {name} are placed {form.value}: RabbitMQ does not take them whole"
            self.complaints.say(f"{name} {form.name}", "form", text)

    def note_trouble(self) -> None:
        again = [owed for owed in self.waiting if owed.tries]
        self.trouble = (len(again), self.complaints.last if again else "")

    def report(self, placed: list[Owed]) -> None:
        for owed in placed:
            owed.placed = True
        if placed:
            self.done.extend(placed)
            self.ring()

    def hang_up(self) -> None:
        publisher, self.publisher = self.publisher, None
        if publisher is not None:
            publisher.close()


def ways(batch: list[Owed]) -> list[list[Owed]]:
    """`batch` in parts that can fail together: each for one queue, and each by one way, with a
    delay or without; a copy that is to travel alone is one part."""
    parts: dict[tuple[object, ...], list[Owed]] = defaultdict(list)
    for owed in batch:
        parts[owed.queue, owed.waits, id(owed) if owed.alone else None].append(owed)
    return list(parts.values())


class Complaints:
    """Says each kind of trouble when it begins, and every `interval` seconds while it lasts."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.said: dict[tuple[str, str], float] = {}
        self.last = ""

    def say(self, name: str, kind: str, text: str) -> None:
        now = time.monotonic()
        self.last = text
        if now - self.said.get((name, kind), -self.interval) >= self.interval:
            self.said[name, kind] = now
            log.warning("%s", text)

    def settle(self, name: str) -> None:
        """What was in the way to `name` no longer is."""
        over = [key for key in self.said if key[0] == name]
        for key in over:
            del self.said[key]
        if over:
            log.warning("copies for %s are placed again", name)
