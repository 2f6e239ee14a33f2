"""Working: claims and settlements, each a batch in one transaction."""

from __future__ import annotations

import logging
import math
import os
import select
import sqlite3
import time
from collections.abc import MutableSet, Sequence
from contextlib import suppress
from typing import NoReturn
from weakref import WeakSet

from workqueue.errors import (
    ConsumerLost,
    DeliveriesLost,
    QueueNotFound,
    StorageError,
    WorkqueueError,
)
from workqueue.message import Delivery
from workqueue.transport import Ack, Outcome, Reject, Requeue, Retry
from workqueue.transports.bell import Bell
from workqueue.transports.copies import as_lent, attempt_of, retry_copy, this_worker
from workqueue.transports.sqlite import store
from workqueue.transports.sqlite.address import Address
from workqueue.transports.sqlite.database import Database, Unavailable
from workqueue.transports.sqlite.life import enter, leave
from workqueue.transports.sqlite.rows import Parcel, Row, pack_copy, unpack
from workqueue.transports.sqlite.upkeep import keep_time, recover

log = logging.getLogger("workqueue.sqlite")

BEAT = 0.5
"""Seconds between two looks at who of the others has died."""

TICK = 0.05
"""Seconds between two looks, while there is plenty to do, at what has waited for its time."""

PATIENCE = 1.0
"""Seconds. How long a consumer waits for a locked file in one turn: it has other things to do."""

CLOSED = "this consumer is closed"

KNOWN = "SELECT (SELECT 1 FROM consumers WHERE id = ?) FROM queues WHERE id = ?"

SOON = 0.001
LATE = 0.03
"""Seconds between two looks at whether anybody has committed anything, which SQLite tells nobody:
short ones after work, then each twice as long as the one before. Longer ones would wake late, and
shorter ones burn an idle processor."""


class SQLiteConsumer:
    """Lends messages through a connection of its own. One thread at a time, except `wake`.

    As long as its process lives, even stopped, it keeps what it holds. In a forked child it
    raises ConsumerLost, as it does once the file is damaged, deleted or replaced. A file that is
    locked by others, or a full disk, only makes it wait: it takes nothing meanwhile, and keeps in
    mind what is settled until it can be written down.
    """

    def __init__(self, address: Address, queue: str, prefetch: int) -> None:
        self.queue = queue
        self.prefetch = prefetch
        # Without a prefetch only what its receiver still keeps: it may be all of a long queue.
        self.out: MutableSet[Delivery] = set() if prefetch else WeakSet()
        self.lent = 0
        self.owed: list[Outcome] = []
        self.lost: set[Delivery] = set()
        self.paused = False
        self.ended = ""
        self.trouble = ""
        self.plenty = True
        self.pace = SOON
        self.next_beat = 0.0
        self.next_tick = 0.0
        self.database = Database(address)
        try:
            found = self.database.read("SELECT id FROM queues WHERE name = ?", (queue,))
            if not found:
                raise QueueNotFound(queue)
            self.queue_id: int = found[0][0]
            self.life = enter(self.database, self.queue_id)
        except BaseException:
            self.database.close()
            raise
        self.database.timeout = min(address.timeout, PATIENCE)
        self.bell = Bell()
        self.poll = select.poll()
        self.poll.register(self.bell, select.POLLIN)

    @property
    def unsettled(self) -> int:
        return self.lent + len(self.owed)

    @property
    def hindered(self) -> str | None:
        """See `workqueue.transport.Hindered`."""
        return self.trouble or None

    # -- receive -------------------------------------------------------------------------------

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        self.check()
        deadline = time.monotonic() + timeout
        try:
            return self.look(limit, deadline)
        except Unavailable as error:
            self.say(error)
            self.wait(deadline, None)
            return []
        except StorageError as error:
            self.end(error)

    def look(self, limit: int, deadline: float) -> list[Delivery]:
        """What `receive` returns, if the file can be used."""
        while True:
            self.beat()
            self.settle_owed()
            self.tell_lost()
            if self.bell.answer():
                return []
            room = self.room(limit)
            if self.plenty and room > 0 and (taken := self.take(room)):
                return taken
            seen = self.database.version()  # before the look: what comes after it is news
            ready_in = self.ready_in()
            if room > 0 and ready_in <= 0:
                self.next_tick = 0.0
                if taken := self.take(room):
                    return taken
            if room > 0:
                self.trouble = ""  # nothing to take, and nothing owed
            if time.monotonic() >= deadline:
                return []
            until = min(deadline, self.next_beat)
            if ready_in > 0:
                until = min(until, time.monotonic() + ready_in)
            self.wait(until, seen if room > 0 else None)

    def room(self, limit: int) -> int:
        if self.paused:
            return 0
        return min(limit, self.prefetch - self.unsettled) if self.prefetch else limit

    def wait(self, until: float, seen: int | None) -> None:
        """Until the bell rings, or `until`, or the database is no longer as it was `seen`."""
        while (rest := until - time.monotonic()) > 0:
            if seen is None:
                self.poll.poll(rest * 1000)
                return
            if self.poll.poll(min(rest, self.pace) * 1000) or self.database.version() != seen:
                return
            self.pace = min(self.pace * 2, LATE)

    def beat(self) -> None:
        """Now and then: the file is still there, so are we, and others' deaths are noticed."""
        if time.monotonic() < self.next_beat:
            return
        self.database.check_identity()
        recover(self.database)
        self.is_known()
        self.next_beat = time.monotonic() + BEAT

    def ready_in(self) -> float:
        """Seconds until there is something to take, 0 if there is, infinity if nothing is known.

        A cheap look: no writing where nothing waits. Raises ConsumerLost without a queue.
        """
        found = self.database.read(store.NEXT, (self.queue_id,))
        if not found:
            self.end(f"queue {self.queue} was deleted")
        ready, due_at = found[0]
        if ready > 0:
            return 0.0
        return math.inf if due_at is None else max(0.0, due_at - time.time())

    def take(self, room: int) -> list[Delivery]:
        """What is ready, without waiting."""
        if time.monotonic() >= self.next_tick:
            keep_time(self.database, self.queue_id, self.queue)
            self.next_tick = time.monotonic() + TICK
        # A claim that a power failure undoes has done no harm: its consumer is dead as well.
        with self.database.transaction(flush=False) as connection:
            if not self.is_known():
                return []
            rows = store.claim(connection, self.queue_id, self.life.id, room, time.time())
        taken = [lend(row, self.queue) for row in rows]
        self.out |= set(taken)
        self.lent += len(taken)
        self.plenty = len(taken) == room
        self.trouble = ""
        if taken:
            self.pace = SOON
        return taken

    def say(self, trouble: Unavailable) -> None:
        """Once, until it is over."""
        if not self.trouble:
            log.warning("%s; waiting until it can be used again", trouble)
        self.trouble = str(trouble)

    # -- settle --------------------------------------------------------------------------------

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.check()
        deliveries = {outcome.delivery for outcome in outcomes}
        known = all(delivery in self.out or delivery in self.lost for delivery in deliveries)
        if len(deliveries) < len(outcomes) or not known:
            raise ValueError("a delivery is settled once, by the consumer that received it")
        settled = [outcome for outcome in outcomes if outcome.delivery in self.out]
        self.owed += settled
        self.lent -= len(settled)
        self.out -= deliveries
        try:
            self.settle_owed()
        except Unavailable as error:
            self.say(error)
        except StorageError as error:
            self.end(error)

    def settle_owed(self) -> None:
        """What was settled is written down: nothing of it is done again, whatever comes."""
        if not self.owed:
            return
        try:
            with self.database.transaction() as connection:
                if self.is_known():
                    self.settle_all(connection, self.owed)
        except Unavailable:
            self.database.checkpoint()  # on a full disk the log can still be written from its start
            raise
        self.owed.clear()

    def settle_all(self, connection: sqlite3.Connection, outcomes: list[Outcome]) -> None:
        now = time.time()
        gone: list[int] = []
        back: list[int] = []
        again: list[Parcel] = []
        done = 0
        for outcome in outcomes:
            match outcome:
                case Ack(delivery):
                    gone.append(delivery.receipt)
                    done += 1
                case Requeue(delivery):
                    back.append(delivery.receipt)
                case Retry(delivery, _, delay, failed):
                    gone.append(delivery.receipt)
                    copy = retry_copy(delivery, delay, failed=failed)
                    again.append(pack_copy(copy, store.largest_row(connection)))
                case Reject(delivery, reason, error):
                    gone.append(delivery.receipt)
                    store.bury(connection, delivery, reason, error, now, this_worker())
        if gone:
            store.forget(connection, self.queue_id, gone, done)
        if back:
            store.give_back(connection, self.queue_id, back)
            self.next_tick = 0.0  # its time may be over
        if again and (queue := store.find_queue(connection, self.queue)):
            store.put(connection, queue, again, now)

    # -- life ----------------------------------------------------------------------------------

    def hold(self, prefetch: int) -> None:
        self.check()
        self.prefetch = prefetch

    def pause(self) -> None:
        self.paused = True

    def wake(self) -> None:
        if os.getpid() == self.database.pid:
            self.bell.ring()

    def close(self) -> None:
        if self.ended == CLOSED:
            return
        self.bell.close()
        if os.getpid() == self.database.pid:
            with suppress(WorkqueueError):
                self.settle_owed()
            if self.owed:
                log.warning(
                    "%d tasks of %s run again as the same attempt: what became of them could not "
                    "be written down",
                    len(self.owed),
                    self.queue,
                )
            # If giving back fails, the lock is let go of all the same, and others give it back.
            with suppress(WorkqueueError):
                leave(self.database, self.life)
        self.database.close()
        self.forget_out()
        self.owed.clear()
        self.ended = CLOSED

    def check(self) -> None:
        if os.getpid() != self.database.pid:
            raise ConsumerLost("this consumer belongs to the process that this one forked from")
        if self.ended:
            raise ConsumerLost(self.ended)

    def end(self, reason: str | StorageError) -> NoReturn:
        self.ended = str(reason)
        self.forget_out()
        self.owed.clear()
        self.lost.clear()
        raise ConsumerLost(self.ended) from (reason if isinstance(reason, StorageError) else None)

    def forget_out(self) -> None:
        self.out.clear()
        self.lent = 0

    def is_known(self) -> bool:
        """Whether the database still lists us. If not, somebody took us for dead, for instance
        because our lock file was removed, and all that we held is others' now.

        Asked inside each transaction that relies on it. Raises ConsumerLost if the queue is gone.
        """
        found = self.database.read(KNOWN, (self.life.id, self.queue_id))
        if not found:
            self.end(f"queue {self.queue} was deleted")
        if found[0][0] is None:
            self.lost.update(self.out, (outcome.delivery for outcome in self.owed))
            self.forget_out()
            self.life.release()
        return found[0][0] is not None

    def tell_lost(self) -> None:
        """We are listed again; raises DeliveriesLost once if anything was taken from us."""
        if not self.life.held:
            self.life = enter(self.database, self.queue_id)
        if self.lost:
            lost, self.lost = self.lost, set()
            told = f"{self.database.path}: another process took this consumer for dead"
            raise DeliveriesLost(told, list(lost))


def lend(row: Row, queue: str) -> Delivery:
    """A row as `store.claim` and the peeks give it."""
    place, redelivered, deaths, *columns = row
    stored, unreadable = unpack(tuple(columns))
    message = as_lent(stored, queue)
    return Delivery(
        message=message,
        queue=queue,
        attempt=attempt_of(message.headers),
        redelivered=bool(redelivered),
        deaths=deaths,
        unreadable=unreadable,
        receipt=place,
    )
