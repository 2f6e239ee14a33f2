"""Publishes the copies that retries and dead letters make, beside a consumer and never in its way.

A consumer's thread may not wait for confirms: a thousand of them outstanding must stall no
acknowledgement, no delivery and no heartbeat. So a thread of its own, with a connection of its
own, makes the copies safe and reports back; then the consumer acknowledges the original.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from workqueue.errors import NotSent, Refused, TooLarge, Unroutable, WorkqueueError
from workqueue.loggers import logger
from workqueue.message import Delivery, Message
from workqueue.transports.copies import bare_copy
from workqueue.transports.rabbitmq.publisher import RabbitMQPublisher

log = logger("rabbitmq")

CONFIRM_TIMEOUT = 10.0
"""Seconds. After that the original goes back to its queue; the copy may turn up as well."""

PAUSE_AFTER_FAILURE = 1.0
"""Seconds. An original whose copy failed would else come straight back, and fail again."""

MOST_AT_ONCE = 500


@dataclass(slots=True, eq=False)
class Copy:
    """`message` is to be safe in `queue` before `delivery` is acknowledged."""

    delivery: Delivery
    queue: str
    message: Message


class Copier:
    """`post` copies, `collect` what became of them; `ring` is called when there is something.

    `connect` opens the publisher; `repair` makes the queues when a copy found none. The thread
    starts with the first copy.
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
        self.posted: queue.SimpleQueue[Copy | None] = queue.SimpleQueue()
        self.done: deque[tuple[Copy, bool]] = deque()
        self.stopping = threading.Event()
        self.thread: threading.Thread | None = None
        self.publisher: RabbitMQPublisher | None = None

    def post(self, copy: Copy) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, name="workqueue-copier", daemon=True)
            self.thread.start()
        self.posted.put(copy)

    def collect(self) -> list[tuple[Copy, bool]]:
        """The copies whose fate became known, each with whether it is safe."""
        collected = []
        while self.done:
            collected.append(self.done.popleft())
        return collected

    def close(self) -> None:
        """Stop soon; what is not confirmed stays unknown. Does not wait for a broker."""
        self.stopping.set()
        self.posted.put(None)

    # -- in the thread

    def work(self) -> None:
        while not self.stopping.is_set():
            batch = self.next_batch()
            for name in dict.fromkeys(copy.queue for copy in batch):
                self.publish(name, [copy for copy in batch if copy.queue == name])
        self.hang_up()

    def next_batch(self) -> list[Copy]:
        first = self.posted.get()
        batch = [] if first is None else [first]
        while first is not None and len(batch) < MOST_AT_ONCE and not self.posted.empty():
            another = self.posted.get()
            if another is None:
                break
            batch.append(another)
        return batch

    def publish(self, name: str, copies: list[Copy]) -> None:
        failed = self.try_publishing(name, copies)
        if mended := self.mend(name, failed):
            failed = [(copy, cause) for copy, cause in failed if copy not in mended]
            failed += self.try_publishing(name, mended)
        lost = {id(copy) for copy, _ in failed}
        self.report([(copy, True) for copy in copies if id(copy) not in lost])
        if failed:
            log.warning("%d copies for %s are not safe: %s", len(failed), name, failed[0][1])
            self.stopping.wait(PAUSE_AFTER_FAILURE)
            self.report([(copy, False) for copy, _ in failed])

    def try_publishing(self, name: str, copies: list[Copy]) -> list[tuple[Copy, WorkqueueError]]:
        """The copies that are not safe, each with its cause."""
        try:
            if self.publisher is None:
                self.publisher = self.connect()
            self.publisher.publish(name, [copy.message for copy in copies], CONFIRM_TIMEOUT)
        except NotSent as error:
            causes = {id(message): cause for message, cause in error.failures}
            if self.publisher is not None and self.publisher.closed:
                self.publisher = None
            return [
                (copy, causes[id(copy.message)]) for copy in copies if id(copy.message) in causes
            ]
        except WorkqueueError as error:
            self.hang_up()
            return [(copy, error) for copy in copies]
        return []

    def mend(self, name: str, failed: list[tuple[Copy, WorkqueueError]]) -> list[Copy]:
        """The copies that may succeed on another try, changed so that they can."""
        mended = []
        for copy, cause in failed:
            bare = bare_copy(copy.message)
            if isinstance(cause, TooLarge | Refused) and bare != copy.message:
                copy.message = bare
                mended.append(copy)
        homeless = [copy for copy, cause in failed if isinstance(cause, Unroutable)]
        if homeless:
            try:
                self.repair()
                mended += homeless
            except WorkqueueError as error:
                log.warning("queue %s is missing and cannot be made: %s", name, error)
        return mended

    def report(self, fates: list[tuple[Copy, bool]]) -> None:
        if fates:
            self.done.extend(fates)
            self.ring()

    def hang_up(self) -> None:
        publisher, self.publisher = self.publisher, None
        if publisher is not None:
            publisher.close()
