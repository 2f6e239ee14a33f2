"""A queue gets other parameters while it is in use, and loses nothing.

RabbitMQ cannot change a queue: it has to be deleted and made again. Meanwhile its place is taken
by a queue NAME.moving, and our workers and senders are told to wait: by a queue NAME.migrating, the
marker, which is always empty, and by the absence of an exchange NAME.open, the gate, which nothing
goes through. Both, because the gate is there at all other times, so that to ask for it is no error
in the broker's log, and the marker tells a gate that was closed from one that nobody ever made.

    1  NAME.moving is made, then the marker, and the gate is closed
    2  what routes to NAME routes to NAME.moving as well, and then only there
    3  workers of ours see that the gate is closed, finish what they run, and leave
    4  NAME is emptied into NAME.moving, deleted, and made again
    5  what routes to NAME.moving routes to NAME as well, and then only there
    6  the gate is opened, and the marker dropped: workers come back, and NAME.moving is emptied

Killed at any point, it leaves NAME.moving, and whoever asks for the same migration again goes on:
NAME has its old parameters before step 4 has ended, and its new ones after that. Where two steps
overlap, a message may be in both queues; at no time is one in neither.

Senders that publish past our exchange, to the default one, still reach NAME itself. They are
noticed when more keeps coming after everybody has left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from amqp.spec import Exchange as ExchangeMethods

from workqueue.errors import Unsupported
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.gate import (
    GATE_SUFFIX,
    LONGEST_NAME,
    MARKER_SUFFIX,
    gate_is_open,
    open_gate,
)
from workqueue.transports.rabbitmq.link import Link
from workqueue.transports.rabbitmq.mover import Mover
from workqueue.transports.rabbitmq.survey import (
    NOT_FOUND,
    count,
    declare,
    exists,
)
from workqueue.transports.rabbitmq.topology import dead_arguments

HOLDING_SUFFIX = ".moving"

PROBE_EVERY = 1.0
"""Seconds between a consumer's looks at the gate."""

QUIET = 1.0
"""Seconds without a message after which a queue counts as emptied."""

CALM_LOOKS = 6
"""Looks that have to see no consumers, one after the other: a worker that has stopped its own, and
still runs something, looks at the gate meanwhile and shows itself."""

LOOK_AGAIN = 0.3
"""Seconds between two looks at how many consumers there are: one alone may be wrong."""

STILL_THERE = 5.0
"""Seconds between two words about workers that have not left."""

STRANGERS = 3
"""Times a queue may turn out not to be empty after all, until somebody must be sending to it."""

MARKER_ARGUMENTS = {"x-queue-type": "classic", "x-max-length": 0}


class GateProbe:
    """Asks now and then, without waiting, whether a queue's gate was closed: `found`.

    A question publishes nothing. On a connection that has published anything, RabbitMQ would hold
    up acknowledgements as well while it is short of memory or disk.
    """

    def __init__(self, link: Link, queue: str) -> None:
        self.gate = queue + GATE_SUFFIX
        self.channel = link.channel()
        self.link = link
        self.asked_at = 0.0
        self.found = False
        self.blind = not gate_is_open(link, queue)
        self.number: int = self.channel.channel_id
        link.wire.taps[self.number] = self.on_method

    def tick(self) -> None:
        """To be called in every turn; costs nothing until it is time to ask."""
        now = time.monotonic()
        if self.blind or self.found or now - self.asked_at < PROBE_EVERY:
            return
        self.asked_at = now
        passive: tuple[object, ...] = (0, self.gate, "fanout", True, False, False, False, False, {})
        self.channel.send_method(ExchangeMethods.Declare, "BssbbbbbF", passive)

    def on_method(self, inbound: wire.Inbound) -> None:
        if inbound.method == wire.CHANNEL_CLOSE:
            self.link.wire.forget_channel(self.number)
            code, _ = wire.decode_refusal(inbound.arguments)
            self.found = code == NOT_FOUND
            self.blind = not self.found


def close_gate(link: Link, queue: str) -> None:
    """One that is not there is no error to RabbitMQ."""
    if len(queue.encode()) <= LONGEST_NAME:
        channel = link.channel()
        channel.exchange_delete(queue + GATE_SUFFIX)
        channel.close()


@dataclass(frozen=True, slots=True)
class Steps:
    """What the driver does for a migration: make the queue with its new parameters, and change
    which queue gets what is routed to `queue`."""

    differs: Callable[[], bool]
    make: Callable[[], None]
    route: Callable[[str], None]
    unroute: Callable[[str], None]
    settle: Callable[[], None]


class Migration:
    """One run of it over `link`, beginning where the last one was interrupted."""

    def __init__(
        self, link: Link, queue: str, steps: Steps, say: Callable[[str], None], *, force: bool
    ) -> None:
        if len(queue.encode()) > LONGEST_NAME:
            raise Unsupported(
                f"queue {queue[:20]}…: names over {LONGEST_NAME} bytes cannot migrate"
            )
        self.link = link
        self.queue = queue
        self.holding = queue + HOLDING_SUFFIX
        self.marker = queue + MARKER_SUFFIX
        self.steps = steps
        self.say = say
        self.force = force
        self.said_at = 0.0

    @property
    def unfinished(self) -> bool:
        return exists(self.link, self.holding)

    def run(self) -> int:
        """How many messages were moved into the queue."""
        present = exists(self.link, self.queue)
        differs = not present or self.steps.differs()
        if self.unfinished:
            self.say(f"going on with the migration of {self.queue} that was interrupted")
        elif not differs:
            self.say(f"queue {self.queue} has these parameters already")
            return 0
        if differs:
            self.fence()
            if present:
                self.empty()
                self.drop(self.queue)
            self.steps.make()
            self.steps.settle()
            self.say(f"made {self.queue} with its new parameters")
        return self.unfence()

    def fence(self) -> None:
        declare(self.link, self.holding, dead_arguments())
        self.steps.settle()
        declare(self.link, self.marker, dict(MARKER_ARGUMENTS))
        close_gate(self.link, self.queue)
        self.steps.route(self.holding)
        self.steps.unroute(self.queue)
        self.say(f"what is sent to {self.queue} waits in {self.holding} from now on")

    def empty(self) -> None:
        """Everybody has left, and all that was there is in the holding queue."""
        for _ in range(STRANGERS):
            self.wait_for_workers()
            moved = self.move(self.queue, self.holding, expected=count(self.link, self.queue)[0])
            self.say(f"moved {moved:,} messages to {self.holding}")
            # The second look: a worker that had seen no marker, a copy that was under way. And
            # a second try to move something, for a count may be wrong: a busy leader's is 0.
            left = self.look_again(self.queue)
            if left == (0, 0) and not self.move(self.queue, self.holding):
                return
        if not self.force:
            self.unfence()
            raise Unsupported(
                f"somebody still sends to {self.queue} past the exchange workqueue, or works on it",
                hint="Stop them and call this again, or lose what they send in between: --force",
            )

    def unfence(self) -> int:
        """The queue is used again, and gets what was held for it: so many messages."""
        self.steps.route(self.queue)
        self.steps.unroute(self.holding)
        open_gate(self.link, self.queue)
        self.drop(self.marker)
        return self.bring_back()

    def wait_for_workers(self) -> None:
        calm = 0
        while calm < CALM_LOOKS:
            close_gate(self.link, self.queue)  # opened by a worker that had seen no marker yet
            _, consumers = count(self.link, self.queue)
            calm = 0 if consumers else calm + 1
            self.tell_who_stays(self.queue, consumers)
            time.sleep(LOOK_AGAIN)

    def tell_who_stays(self, queue: str, consumers: int) -> None:
        if consumers and time.monotonic() - self.said_at > STILL_THERE:
            self.said_at = time.monotonic()
            self.say(
                f"waiting for {consumers} consumers of {queue} to finish and leave;"
                " workers of ours do so by themselves"
            )

    def look_again(self, queue: str) -> tuple[int, int]:
        """Ready messages and consumers, once what closed a moment ago is known to be gone."""
        time.sleep(LOOK_AGAIN)
        return count(self.link, queue)

    def bring_back(self) -> int:
        if not self.unfinished:
            return 0
        moved, emptied = 0, False
        # That it was quiet proves nothing: what was on its way to a consumer, our own last one or
        # that of a run that was killed, is not ready, and would be deleted with the queue.
        while not emptied:
            came = self.move(self.holding, self.queue)
            moved += came
            ready, consumers = self.look_again(self.holding)
            emptied = not came and not ready and not consumers
            self.tell_who_stays(self.holding, consumers)
        self.drop(self.holding)
        self.say(f"moved {moved:,} messages back to {self.queue}")
        return moved

    def move(self, source: str, target: str, expected: float = math.inf) -> int:
        mover = Mover(self.link, source, target, self.tell_progress)
        try:
            return mover.move(QUIET, expected)
        finally:
            mover.close()

    def tell_progress(self, moved: int) -> None:
        if moved and time.monotonic() - self.said_at > STILL_THERE:
            self.said_at = time.monotonic()
            self.say(f"moved {moved:,} messages so far")

    def drop(self, queue: str) -> None:
        channel = self.link.channel()
        channel.queue_delete(queue)  # one that is not there is no error to RabbitMQ
        channel.close()
