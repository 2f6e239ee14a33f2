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
overlap, a message may be in both queues; at no time is one in neither. If a step fails before NAME
was deleted, steps 5 and 6 are done at once: NAME is used again as it was.

NAME.moving sets aside what expires in it to NAME.dead, as NAME does.

What other exchanges than ours route to NAME is known from the management API alone. Without it
RabbitMQ would drop those bindings with the queue, and what is published to them later would vanish
unseen; a queue that we made may have some as well as any other. So a migration without the
management API wants `force`.

Senders that publish past our exchange, to the default one, still reach NAME itself. They are
noticed when more keeps coming after everybody has left.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import amqp
from amqp.spec import Exchange as ExchangeMethods

from workqueue.errors import ConfigError, Unsupported, WorkqueueError
from workqueue.transport import DEAD_SUFFIX
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.gate import (
    GATE_SUFFIX,
    LONGEST_NAME,
    MARKER_SUFFIX,
    gate_is_open,
    is_migrating,
    open_gate,
)
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.mover import Immovable, Mover
from workqueue.transports.rabbitmq.survey import (
    NOT_FOUND,
    count,
    declare,
    exists,
)
from workqueue.transports.rabbitmq.topology import holding_arguments

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

STUCK = 30.0
"""Seconds that NAME.moving may refuse more before the migration gives up: no worker empties it, so
a policy must bound it."""

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
    """What the driver does for a migration.

    `make` makes the queue with its new parameters and `remake` with those that it had, `route` and
    `unroute` change which queue gets what is routed to it. `knows_bindings` says whether these two
    include the bindings of others.
    """

    differs: Callable[[], bool]
    make: Callable[[], None]
    remake: Callable[[], None]
    make_dead: Callable[[], None]
    route: Callable[[str], None]
    unroute: Callable[[str], None]
    settle: Callable[[], None]
    knows_bindings: bool


class Migration:
    """One run of it over `link`, beginning where the last one was interrupted.

    `user` is the login of `link`. `begun` says that something may have been changed.
    """

    def __init__(
        self,
        link: Link,
        queue: str,
        steps: Steps,
        say: Callable[[str], None],
        *,
        force: bool,
        user: str,
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
        self.user = user
        self.begun = False
        self.keeper: amqp.Channel | None = None
        self.kept = 0
        self.said_at = 0.0

    @property
    def unfinished(self) -> bool:
        return exists(self.link, self.holding)

    def run(self) -> int:
        """How many messages were moved into the queue."""
        present = exists(self.link, self.queue)
        differs = not present or self.steps.differs()
        if not differs and not self.unfinished:
            self.say(f"queue {self.queue} has these parameters already")
            return 0
        self.check_bindings()
        self.begun = True
        if self.unfinished:
            self.say(f"going on with the migration of {self.queue} that was interrupted")
        if differs:
            self.fence()
            if present:
                self.empty()
                self.steps.route(self.holding)  # what was bound meanwhile
                self.drop(self.queue)
            self.make()
        return self.unfence()

    def check_bindings(self) -> None:
        if not self.steps.knows_bindings and not self.force:
            raise Unsupported(
                f"other exchanges may send to queue {self.queue}, and their bindings would be lost:"
                " only RabbitMQ's management API tells which there are",
                hint="Give --management-url http://user:password@host:15672, or say that there are"
                " none: --force",
            )

    def undo(self) -> None:
        """After a failure: the queue is used again, as it was, and gets back what was moved out.

        Nothing where it is in use, or where it was deleted and could not be made again: then
        calling the migration again goes on.
        """
        if is_migrating(self.link, self.queue):
            if exists(self.link, self.queue):
                self.say(f"the migration failed: {self.queue} is used again as it was")
                self.unfence()
        elif self.unfinished and count(self.link, self.holding) == (0, 0):
            self.drop(self.holding)  # the migration failed before anything was routed to it

    def fence(self) -> None:
        self.steps.make_dead()
        if not self.unfinished:
            declare(self.link, self.holding, holding_arguments(self.queue + DEAD_SUFFIX))
            self.steps.settle()
        self.keep_holding()
        declare(self.link, self.marker, dict(MARKER_ARGUMENTS))
        close_gate(self.link, self.queue)
        self.steps.route(self.holding)
        self.steps.unroute(self.queue)
        self.say(f"what is sent to {self.queue} waits in {self.holding} from now on")

    def keep_holding(self) -> None:
        """The holding queue has a consumer: one without could be deleted with all that is in it,
        by a policy that sets `expires`. Source: RabbitMQ documentation, "Time-to-Live and
        Expiration", section "Queue TTL"."""
        self.keeper = self.link.channel()
        self.link.wire.taps[self.keeper.channel_id] = self.on_kept
        self.keeper.basic_qos(0, 1, False)
        self.keeper.basic_consume(self.holding, no_ack=False)

    def stop_keeping(self) -> None:
        keeper, self.keeper = self.keeper, None
        if keeper is not None and keeper.connection is not None:
            number = keeper.channel_id
            keeper.close()
            self.link.wire.taps.pop(number, None)

    def on_kept(self, inbound: wire.Inbound) -> None:
        if inbound.method == wire.DELIVER:
            self.kept = wire.decode_deliver(inbound.arguments).tag
        elif inbound.method == wire.CHANNEL_CLOSE:
            self.link.wire.forget_channel(inbound.channel)

    def hand_back_kept(self) -> None:
        """The one message that the keeper was lent: only in its queue it expires in time."""
        if self.keeper is not None and self.keeper.connection is not None and self.kept:
            self.link.wire.write(wire.encode_nack(self.keeper.channel_id, self.kept, multiple=True))
            self.kept = 0

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
            raise Unsupported(
                f"somebody still sends to {self.queue} past the exchange workqueue, or works on it",
                hint="Stop them and call this again, or lose what they send in between: --force",
            )

    def make(self) -> None:
        """The queue with its new parameters; where the broker refuses them, with its old ones."""
        try:
            self.steps.make()
        except (ChannelClosed, WorkqueueError):
            self.steps.remake()
            raise
        self.steps.settle()
        self.say(f"made {self.queue} with its new parameters")

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
            self.hand_back_kept()
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
        mover = Mover(self.link, source, target, self.watch, user=self.user)
        try:
            if source == self.holding:
                self.stop_keeping()  # the mover is its consumer now
            return mover.move(QUIET, expected)
        except Immovable as error:
            error.hint = "Handle or remove it, or have RabbitMQ accept it, and call this again."
            error.command = f"workqueue peek {shlex.quote(source)} --json"
            raise
        finally:
            with suppress(Exception):  # what stopped the move is the error to be told
                mover.close()
            for how, number in mover.changed.items():
                self.say(f"moved {number:,} messages of {source} {how}")

    def watch(self, mover: Mover) -> None:
        """Say now and then how a move goes; one into a queue that nobody empties has an end."""
        now = time.monotonic()
        if mover.full and mover.target == self.holding and now - mover.kept_at > STUCK:
            raise ConfigError(
                f"queue {self.holding} takes no more messages: does a policy bound its length?"
            )
        if now - self.said_at < STILL_THERE:
            return
        silent = now - mover.heard_at
        if mover.full:
            self.tell(f"{mover.target} is full: the rest waits in {mover.source} until it has room")
        elif silent > STILL_THERE:
            self.tell(
                f"RabbitMQ has confirmed nothing for {silent:.0f} s: is it short of memory or disk?"
            )
        elif mover.moved:
            self.tell(f"moved {mover.moved:,} messages so far")

    def tell(self, what: str) -> None:
        self.said_at = time.monotonic()
        self.say(what)

    def drop(self, queue: str) -> None:
        channel = self.link.channel()
        channel.queue_delete(queue)  # one that is not there is no error to RabbitMQ
        channel.close()
