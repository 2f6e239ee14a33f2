"""The reference: what a transport promises, in its shortest form, in this process alone.

It is also the double for users' tests. `memory://` is a broker of its own; `memory://NAME` is
shared by all who ask for that name in this process. Nothing survives the process.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from msgspec import structs

from workqueue.errors import (
    ConfigError,
    ConnectionLost,
    ConsumerLost,
    NotSent,
    QueueFull,
    QueueMismatch,
    QueueNotFound,
    Unroutable,
)
from workqueue.forks import Condition, Lock
from workqueue.message import Delivery, Message
from workqueue.transport import (
    DEAD_SUFFIX,
    Ack,
    Finding,
    Outcome,
    QueueSpec,
    QueueStats,
    Reject,
    Requeue,
    Retry,
    State,
)
from workqueue.transports.copies import as_lent, attempt_of, dead_copy, retry_copy, this_worker


@dataclass(order=True, slots=True)
class Entry:
    """A message in a queue; entries sort in the order in which they are handed out."""

    rank: tuple[int, int]
    message: Message = field(compare=False)
    since: float = field(compare=False)
    expires_at: float = field(default=math.inf, compare=False)
    redelivered: bool = field(default=False, compare=False)


@dataclass(slots=True)
class Shelf:
    """One queue. `timed` says that time changes something in it."""

    spec: QueueSpec
    ready: list[Entry] = field(default_factory=list)
    delayed: list[Entry] = field(default_factory=list)
    consumers: set[MemoryConsumer] = field(default_factory=set)
    timed: bool = False
    sent: int = 0
    done: int = 0


class Store:
    """All queues of one broker, and the one lock around them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.changed = Condition()
        self.shelves: dict[str, Shelf] = {}
        self.counter = itertools.count()

    def shelf(self, queue: str) -> Shelf:
        try:
            return self.shelves[queue]
        except KeyError:
            raise QueueNotFound(queue) from None

    def put(self, shelf: Shelf, message: Message) -> None:
        rank = (-message.priority, next(self.counter))
        since = self.clock() + message.delay
        waits = [ttl for ttl in (shelf.spec.ttl, message.ttl) if ttl is not None]
        expires_at = since + min(waits, default=math.inf)
        entry = Entry(rank, structs.replace(message, delay=0.0, ttl=None), since, expires_at)
        heapq.heappush(shelf.delayed if message.delay > 0 else shelf.ready, entry)
        shelf.timed |= message.delay > 0 or expires_at < math.inf

    def bury(self, delivery: Delivery, reason: str, error: str, worker: str | None = None) -> None:
        name = delivery.queue + DEAD_SUFFIX
        dead = self.shelves.setdefault(name, Shelf(QueueSpec(name=name, type="quorum")))
        self.put(dead, dead_copy(delivery, reason, error, self.clock(), worker))

    def keep_time(self, shelf: Shelf) -> None:
        """What has waited for its time is ready; what has waited too long is a dead letter."""
        if not shelf.timed:
            return
        now = self.clock()
        due = [entry for entry in shelf.delayed if entry.since <= now]
        shelf.delayed = [entry for entry in shelf.delayed if entry.since > now]
        late = [entry for entry in [*shelf.ready, *due] if entry.expires_at <= now]
        shelf.ready = [entry for entry in [*shelf.ready, *due] if entry.expires_at > now]
        heapq.heapify(shelf.ready)
        mortal = any(entry.expires_at < math.inf for entry in shelf.ready)
        shelf.timed = mortal or bool(shelf.delayed)
        for entry in late:
            self.bury(Delivery(message=entry.message, queue=shelf.spec.name), "expired", "")

    def next_due(self, shelf: Shelf) -> float:
        """Seconds until another message is ready by itself."""
        return min((entry.since for entry in shelf.delayed), default=math.inf) - self.clock()


def lend(entry: Entry, queue: str) -> Delivery:
    message = as_lent(entry.message, queue)
    return Delivery(
        message=message,
        queue=queue,
        attempt=attempt_of(message.headers),
        redelivered=entry.redelivered,
    )


shared_stores: dict[str, Store] = {}
shared_stores_lock = Lock()


class MemoryTransport:
    """Queues in this process, for tests and for reading."""

    def __init__(self, url: str = "memory://", *, clock: Callable[[], float] = time.time) -> None:
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ConfigError("the memory:// URL cannot be read") from None
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigError(f"{url}: write memory:// or memory://NAME")
        if parts.netloc:
            with shared_stores_lock:
                self.store = shared_stores.setdefault(parts.netloc, Store(clock))
        else:
            self.store = Store(clock)

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        with self.store.changed:
            existing = self.store.shelves.get(spec.name)
            if existing:
                if different := spec.differences(existing.spec):
                    raise QueueMismatch(spec.name, different)
                return False
            if dry_run:
                return True
            for name in (spec.name + DEAD_SUFFIX, spec.name):
                asked = spec if name == spec.name else QueueSpec(name=name)
                made = Shelf(replace(asked, type=asked.type or "quorum"))
                self.store.shelves.setdefault(name, made)
            return True

    def publisher(self) -> MemoryPublisher:
        return MemoryPublisher(self.store)

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        return MemoryConsumer(self.store, queue, prefetch)

    def stats(self, queue: str) -> QueueStats:
        with self.store.changed:
            shelf = self.store.shelf(queue)
            self.store.keep_time(shelf)
            dead = self.store.shelves.get(queue + DEAD_SUFFIX)
            oldest = min((entry.since for entry in shelf.ready), default=None)
            return QueueStats(
                ready=len(shelf.ready),
                delayed=len(shelf.delayed),
                in_flight=sum(len(consumer.out) for consumer in shelf.consumers),
                dead=len(dead.ready) if dead else 0,
                consumers=len(shelf.consumers),
                oldest=None if oldest is None else max(0.0, self.store.clock() - oldest),
                sent=shelf.sent,
                done=shelf.done,
            )

    def queues(self) -> list[str]:
        with self.store.changed:
            return sorted(self.store.shelves)

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        with self.store.changed:
            shelf = self.store.shelf(queue)
            self.store.keep_time(shelf)
            entries = sorted(shelf.ready)
            if state == "delayed":
                entries = sorted(shelf.delayed, key=lambda entry: entry.since)
            return [lend(entry, queue) for entry in entries[:limit]]

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        with self.store.changed:
            shelf = self.store.shelf(spec.name)
            shelf.spec = replace(spec, type=spec.type or shelf.spec.type)
            say(f"queue {spec.name} has its new parameters")
            return 0

    def purge(self, queue: str) -> int:
        with self.store.changed:
            shelf = self.store.shelf(queue)
            dropped, shelf.ready = len(shelf.ready), []
            return dropped

    def delete(self, queue: str) -> None:
        with self.store.changed:
            self.store.shelves.pop(queue, None)
            self.store.changed.notify_all()

    def examine(self, queues: Sequence[str], task_timeout: float | None) -> Iterator[Finding]:
        yield Finding(
            state="warn",
            check="durability",
            found="memory:// is this process alone: what is sent is gone when it ends",
            command="export WORKQUEUE_URL=sqlite:///jobs.db",
        )

    def close(self) -> None:
        """Nothing is held."""


class MemoryPublisher:
    """See `workqueue.transport.Publisher`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.closed = False

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        if self.closed:
            raise ConnectionLost("this publisher is closed")
        failures: list[tuple[Message, NotSent]] = []
        with self.store.changed:
            shelf = self.store.shelves.get(queue)
            for message in messages:
                if shelf is None:
                    failures.append((message, Unroutable(f"queue {queue} does not exist")))
                elif (
                    shelf.spec.max_length is not None and len(shelf.ready) >= shelf.spec.max_length
                ):
                    failures.append((message, QueueFull(f"queue {queue} is full")))
                else:
                    self.store.put(shelf, message)
                    shelf.sent += 1
            self.store.changed.notify_all()
        if failures:
            sent = len(messages) - len(failures)
            raise NotSent(str(failures[0][1]), failures=failures, sent=sent)

    def close(self) -> None:
        self.closed = True


class MemoryConsumer:
    """See `workqueue.transport.Consumer`."""

    def __init__(self, store: Store, queue: str, prefetch: int) -> None:
        self.store = store
        self.queue = queue
        self.prefetch = prefetch
        self.out: dict[Delivery, Entry] = {}
        self.woken = False
        self.paused = False
        self.closed = False
        with store.changed:
            self.shelf = store.shelf(queue)
            self.shelf.consumers.add(self)

    @property
    def unsettled(self) -> int:
        return len(self.out)

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        with self.store.changed:
            while True:
                self.check()
                taken = [] if self.woken else self.take(limit)
                rest = deadline - time.monotonic()
                if taken or self.woken or rest <= 0:
                    self.woken = False
                    return taken
                if not self.paused:
                    rest = min(rest, self.store.next_due(self.shelf))
                self.store.changed.wait(max(0.0, rest))

    def take(self, limit: int) -> list[Delivery]:
        if self.paused:
            return []
        self.store.keep_time(self.shelf)
        if self.prefetch:
            limit = min(limit, self.prefetch - len(self.out))
        taken: list[Delivery] = []
        while len(taken) < limit and self.shelf.ready:
            entry = heapq.heappop(self.shelf.ready)
            delivery = lend(entry, self.queue)
            self.out[delivery] = entry
            taken.append(delivery)
        return taken

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        with self.store.changed:
            self.check()
            deliveries = {outcome.delivery for outcome in outcomes}
            if len(deliveries) < len(outcomes) or not deliveries <= self.out.keys():
                raise ValueError("a delivery is settled once, by the consumer that received it")
            for outcome in outcomes:
                self.settle_one(outcome)
            self.store.changed.notify_all()

    def settle_one(self, outcome: Outcome) -> None:
        match outcome:
            case Requeue(delivery):
                self.give_back(self.out[delivery])
            case Retry(delivery, _, delay, failed):
                self.store.put(self.shelf, retry_copy(delivery, delay, failed=failed))
            case Reject(delivery, reason, error):
                self.store.bury(delivery, reason, error, this_worker())
            case Ack(_):
                self.shelf.done += 1
        del self.out[outcome.delivery]

    def give_back(self, entry: Entry) -> None:
        entry.redelivered = True
        heapq.heappush(self.shelf.ready, entry)
        self.shelf.timed |= entry.expires_at < math.inf

    def hold(self, prefetch: int) -> None:
        self.check()
        self.prefetch = prefetch

    def pause(self) -> None:
        self.paused = True

    def wake(self) -> None:
        with self.store.changed:
            self.woken = True
            self.store.changed.notify_all()

    def close(self) -> None:
        with self.store.changed:
            if self.closed:
                return
            self.closed = True
            for entry in self.out.values():
                self.give_back(entry)
            self.out.clear()
            self.shelf.consumers.discard(self)
            self.store.changed.notify_all()

    def check(self) -> None:
        if self.closed:
            raise ConsumerLost("this consumer is closed")
        if self.store.shelves.get(self.queue) is not self.shelf:
            self.out.clear()
            raise ConsumerLost(f"queue {self.queue} was deleted")
