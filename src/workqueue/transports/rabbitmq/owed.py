"""What becomes of a copy that could not be placed: when it is tried again, and in which form.

A retry and a dead letter are copies of a message, and the original is kept, not acknowledged, until
its copy is safe. The handler ran already: whatever is in the way, it does not run again for that.
So the copy is tried again, later and later; one that the broker will not have as it is, in a
smaller form; one for which no delay queue can be had, without delay, once its time has come.

Pure: nothing is sent here.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec.structs import replace

from workqueue.errors import QueueFull, Refused, TooLarge, WorkqueueError
from workqueue.message import Delivery, Message
from workqueue.transports.forms import Form, in_form
from workqueue.transports.rabbitmq.causes import CannotWait, Forbidden, Interrupted

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 20.0
"""Seconds between two tries: the first pause, of which each next one is the double, and the
longest."""

LAST_PAUSES = 1.0
"""Seconds, at most, between two tries while the worker drains: it will not wait much longer."""

DETOUR = 1.0
"""Seconds. A queue that is full refuses a copy, but not one that waits for its time: that one the
broker keeps until there is room."""


@dataclass(slots=True, eq=False)
class Owed:
    """`message` is to be safe in `queue` before `delivery` is acknowledged. If it is
    `deferred`, there was no delay queue for it at its last try, and it waits here.

    `decided_at` is when that was settled, and `next_try` when it is to be tried, in seconds of the
    monotonic clock. `alone`: it is sent with no other on its way, since one of them made the broker
    hang up. `dropped`: the broker has the original back, so there is nothing to copy any more.
    `placed`: the copy is safe.
    """

    delivery: Delivery
    queue: str
    message: Message
    decided_at: float
    form: Form = Form.WHOLE
    next_try: float = 0.0
    deferred: bool = False
    tries: int = 0
    alone: bool = False
    dropped: bool = False
    placed: bool = False

    @property
    def ripe_at(self) -> float:
        """When its delay is over."""
        return self.decided_at + self.message.delay

    @property
    def waits(self) -> bool:
        """Whether it has a delay, be it over or not."""
        return self.message.delay > 0

    def to_send(self, now: float) -> Message:
        """The message, with what is left of its delay if that was tried before."""
        if not self.tries or not self.waits:
            return self.message
        return replace(self.message, delay=max(0.0, self.ripe_at - now))


def plan(owed: Owed, cause: WorkqueueError, now: float, longest: float) -> None:
    """Note in `owed` what follows from the failure of its last try. `longest` is the longest pause
    between two tries, in seconds."""
    owed.tries += 1
    owed.next_try = now + pause(owed.tries, longest)
    owed.deferred = isinstance(cause, CannotWait)
    match cause:
        case Forbidden():
            pass  # whatever the message, the login may not
        case CannotWait():  # once its delay is over, it goes straight to its queue
            owed.next_try = min(owed.next_try, max(now, owed.ripe_at))
        case Interrupted() if not owed.alone:
            owed.alone = True
            owed.next_try = now
        case Interrupted() | TooLarge() | Refused():
            shrink(owed, now)
        case QueueFull() if owed.queue == owed.delivery.queue:
            owed.message = replace(owed.message, delay=DETOUR)
            owed.decided_at = owed.next_try = now if owed.tries == 1 else owed.next_try
    if now < owed.ripe_at:
        owed.next_try = min(owed.next_try, owed.ripe_at)


def due_in(all_owed: Iterable[Owed], now: float) -> float | None:
    """Seconds until the soonest time of those that wait for theirs; None if none does."""
    ripe = [owed.ripe_at - now for owed in all_owed if owed.deferred and owed.ripe_at > now]
    return min(ripe, default=None)


def pause(tries: int, longest: float) -> float:
    """Seconds until the next try after so many: not the same for all workers."""
    return random.uniform(0.5, 1.0) * min(longest, math.ldexp(FIRST_PAUSE, min(tries, 20)))


def shrink(owed: Owed, now: float) -> None:
    """The next smaller form that differs, to be tried at once; in the least, as later as ever."""
    forms = list(Form)
    for form in forms[forms.index(owed.form) + 1 :]:
        smaller = in_form(owed.message, form)
        owed.form = form
        if smaller != owed.message:
            owed.message, owed.next_try = smaller, now
            return
