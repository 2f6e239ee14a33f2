"""Lends messages from RabbitMQ, and settles them.

Deliveries come in lanes. A lane is a channel with one consumer on it. One lane is enough where
deliveries stay ours until we settle them. Where the broker's acknowledgement timeout may pass
(see `topology`), each slot gets a lane of its own: up to RabbitMQ 4.2 the timeout closes the
whole channel, and from 4.3 on it cancels the whole consumer, so in a shared lane one long task
would drag the others with it.

RabbitMQ takes no new prefetch for a living consumer. To hold more, another lane is opened for the
difference. To hold less, lanes are stopped, the largest first; what they still hold counts until
it is settled, and only then is room given to a new one, or to a stopped one that is empty. What is
held when tasks turn out long all runs at the same time: it may share a lane. Where the broker
allows no more channels, a lane gets another consumer for both: what it held for the one before
is still its own.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, MutableSet, Sequence
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import Any
from weakref import WeakSet

import amqp
from msgspec.structs import replace

from workqueue.errors import ConnectionLost, ConsumerLost, DeliveriesLost, LookCutShort
from workqueue.loggers import logger
from workqueue.logs import CarefulLog
from workqueue.message import Delivery, Message
from workqueue.transport import DEAD_SUFFIX, Ack, Outcome, Reject, Requeue, Retry
from workqueue.transports.bell import Bell
from workqueue.transports.copies import (
    DEATHS,
    as_lent,
    attempt_of,
    dead_copy,
    retry_copy,
    survivor_copy,
    this_worker,
)
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.copier import Copier
from workqueue.transports.rabbitmq.ladder import without_waiting
from workqueue.transports.rabbitmq.link import ChannelClosed, Link, translated
from workqueue.transports.rabbitmq.migration import GateProbe
from workqueue.transports.rabbitmq.owed import Owed, due_in
from workqueue.transports.rabbitmq.publisher import RabbitMQPublisher
from workqueue.transports.rabbitmq.survey import Survey

log = CarefulLog(logger("rabbitmq"))

MOST_LANES = 64
OTHER_CHANNELS = 1
"""That of the probe. All others are closed again before there are lanes."""

MOST_PREFETCH = 65535

MOST_LENT = 2_000
"""What a quorum queue lends at most to a consumer that has no prefetch (rabbit_quorum_queue.erl,
`UNLIMITED_PREFETCH_COUNT`). Then it falls silent, as if it were empty."""

LOOK_PATIENCE = 1.0
"""Seconds for the next message to arrive, when it is only looked at, until it is asked whether
there is one."""

LOOK_SLOWLY = 10.0
"""Seconds after which a look ends all the same: the broker is slow, or somebody else is quicker."""

INNOCENT_RETURNS = 2
"""Times that a message may have come back without being thought to have cost a worker its life,
where hand-backs are counted among the rest. The third is one too many for a worker to hand it back
once more."""

INSTANT, LONGEST_INSTANT, FLOWING = 2e-6, 0.0005, 0.001
"""Seconds: how long to let more deliveries come before they are read, for each of the prefetch and
at most, where the last ones were read no longer ago than that."""

MANY = 100
"""Deliveries of which one read is as good as of more."""

WIDE = 50
"""A prefetch from which on there is always more under way than an instant brings."""

COPY_PATIENCE = 2.0
"""Seconds in which no copy became safe, until a consumer that closes waits no longer for them."""

UNHEARD = 16
"""Settlements that a stopped lane writes without asking whether the queue has applied them. Of 32
that a quorum queue has not answered (`quorum_commands_soft_limit`, rabbit_fifo_client.erl),
RabbitMQ's channel keeps further ones back, and forgets those when it is closed."""

FAREWELL_TIME = 2.0
"""Seconds for each answer of the broker to a consumer that closes, and more where much is out."""

FAREWELL_RATE = 5_000
"""Deliveries of which the broker takes back that many in a second, at least."""


class Lane:
    """One channel with one consumer, for `prefetch` deliveries; without, once it is stopped.

    `held` is what was delivered on it and is not settled: by its delivery tag, and None for what
    an unlimited consumer handed out. Of that the tags alone are kept, so that a look at a hundred
    thousand messages does not hold all of them in memory.

    Without a prefetch, a consumer is followed by another whenever it was lent as much as a quorum
    queue lends to one.
    """

    def __init__(
        self, link: Link, survey: Survey, prefetch: int, arrived: Callable[..., None]
    ) -> None:
        self.link = link
        self.survey = survey
        self.arrived = arrived
        self.held: dict[int, Delivery | None] = {}
        self.before = 0
        self.unheard = 0
        self.consumers: list[tuple[int, str]] = []
        self.uninvited: list[int] | None = None
        self.begun = 0
        self.lent = 0
        self.ended: str | None = None
        self.is_closed = False
        classic = survey.type == "classic"
        counted = classic or survey.abilities.counts_hand_backs
        self.innocent_returns = INNOCENT_RETURNS if counted else 0
        self.opening = True
        self.channel = link.channel()
        self.number: int = self.channel.channel_id
        link.wire.taps[self.number] = self.on_method
        self.begin(prefetch)
        self.opening = False

    def begin(self, prefetch: int) -> None:
        """A consumer. On a stopped lane, another: what it still holds does not count for that."""
        self.prefetch = prefetch
        self.before = next(reversed(self.held), 0)
        self.lent = 0
        self.channel.basic_qos(0, min(prefetch or MOST_LENT, MOST_PREFETCH), False)
        self.begun += 1
        self.tag: str | None = self.channel.basic_consume(
            self.survey.queue,
            # What several consumers hand back at once, the broker orders by their tags.
            consumer_tag=f"workqueue-{self.begun:08}",
            no_ack=False,
            arguments=self.survey.consumer_arguments(),
        )
        earlier = self.consumers if self.held else []
        self.consumers = [*earlier, (self.before, self.tag)]

    def widen(self, prefetch: int) -> None:
        """Room for so many more, without another channel."""
        room = self.room
        self.stop()
        unused = room - len(self.held)
        self.begin(prefetch + max(0, int(unused)) if prefetch and unused < math.inf else 0)

    def is_lent_out(self) -> bool:
        """Whether its consumer is unlimited and was lent as much as a quorum queue lends to one."""
        if self.prefetch or self.tag is None or self.lent < MOST_LENT:
            return False
        self.lent = sum(1 for _ in takewhile(lambda tag: tag > self.before, reversed(self.held)))
        return self.lent >= MOST_LENT

    def succeed(self) -> None:
        """Another consumer on the same channel, where the broker lends no more to the one before.
        What that was lent stays with us."""
        if self.is_lent_out():
            self.stop()
            self.begin(0)

    def hand_out(self, tag: int) -> None:
        """What is known of it is its receiver's from now on, if it has no prefetch."""
        if not self.prefetch and tag in self.held:
            self.held[tag] = None

    def stop(self) -> None:
        """No new deliveries; what was delivered stays."""
        if self.tag is not None:
            self.channel.basic_cancel(self.tag)
            self.tag = None
            # Since 4.0 the channel passes on what it kept back before it cancels.
            self.unheard = 0 if self.survey.abilities.cancel_settles else UNHEARD

    @property
    def room(self) -> float:
        """How many deliveries it may hold, at most, from now on."""
        if self.tag is None:
            return len(self.held)
        if not self.prefetch:
            return math.inf
        earlier = takewhile(lambda tag: tag <= self.before, self.held)  # tags only grow
        return self.prefetch + sum(1 for _ in earlier)

    @property
    def shrinks(self) -> bool:
        """Whether it has less room when what it holds, in part for no consumer any more, is
        settled."""
        return self.tag is None or next(iter(self.held), math.inf) <= self.before

    def on_method(self, inbound: wire.Inbound) -> None:
        match inbound.method:
            case wire.DELIVER:
                self.deliver(inbound)
            case wire.CANCEL:
                self.ended = "RabbitMQ cancelled the consumer"
            case wire.CHANNEL_CLOSE:
                self.link.wire.forget_channel(self.number)
                closed = ChannelClosed(self.number, *wire.decode_refusal(inbound.arguments))
                self.ended, self.is_closed = closed.text, True
                if self.opening:
                    raise closed

    def deliver(self, inbound: wire.Inbound) -> None:
        assert inbound.message is not None
        message, attempt, returns = inbound.message, 1, 0
        tag, came_back = wire.decode_delivered(inbound.arguments)
        self.lent += 1
        redelivered = bool(came_back)
        if message.headers:
            headers = without_waiting(message.headers)
            if headers is not message.headers:
                message = replace(message, headers=headers)
            message = as_lent(message, self.survey.queue)
            attempt = attempt_of(message.headers)
            returns = returns_of(message.headers, redelivered=redelivered)
        delivery = self.held[tag] = Delivery(
            message=message,
            queue=self.survey.queue,
            attempt=attempt,
            redelivered=redelivered or returns > 0,
            deaths=max(0, returns - self.innocent_returns),
            unreadable=inbound.unreadable,
            receipt=(self, tag),
        )
        if self.uninvited is None:
            self.arrived(delivery, counted=not redelivered)
        else:
            self.uninvited.append(tag)

    def ack(self, tags: list[int]) -> bytes:
        """Frames that acknowledge `tags`, in as few as can be."""
        return self.settle(tags, wire.encode_ack, len(tags))

    def give_back(self, tags: list[int]) -> bytes:
        """Frames that hand `tags` back to the queue, in as few as keep their order."""
        return self.settle(tags, wire.encode_nack, self.survey.abilities.most_handed_back)

    def settle(self, tags: list[int], encode: Callable[..., bytes], most: int) -> bytes:
        """Frames that settle `tags`, each up to `most` of them. A stopped lane writes some of them
        itself, and waits until the queue has applied those.

        None once RabbitMQ has closed the channel: its deliveries are back in the queue, and another
        lane may have the channel's number, with the same delivery tags.
        """
        if self.is_closed:
            return b""
        frames: list[bytes] = []
        wanted = set(tags)
        whole = list(takewhile(wanted.__contains__, self.held))  # `held` is in the order of tags
        through = whole[-1] if whole else 0
        runs = [whole[first : first + most] for first in range(0, len(whole), most)]
        runs += [[tag] for tag in tags if tag > through]
        for run in runs:
            if self.unheard >= UNHEARD and self.tag is None and self.ended is None:
                self.link.wire.write(b"".join(frames))
                frames = [self.wait_until_applied()]
            frames.append(encode(self.number, run[-1], multiple=len(run) > 1))
            self.unheard += 1
            for tag in run:
                del self.held[tag]
        return b"".join(frames)

    def wait_until_applied(self) -> bytes:
        """Return when a quorum queue has applied all that this stopped lane settled; what it
        holds, at least one delivery, stays.

        A consumer's beginning and its end each wait for the queue's log, and so for everything
        that the channel passed on to the queue before. A consumer under the tag of one that was
        cancelled goes on with what is unsettled of that one: with a prefetch of one it gets
        nothing new (rabbit_fifo.erl, `merge_consumer`). Should it get something all the same, the
        returned frames hand that back.
        """
        self.unheard = 0
        if self.survey.type == "classic":
            return b""  # RabbitMQ's channel keeps nothing back from these
        newest = next(reversed(self.held))
        tag = next(tag for before, tag in reversed(self.consumers) if before < newest)
        self.uninvited = []
        self.channel.basic_qos(0, 1, False)
        self.channel.basic_consume(
            self.survey.queue,
            consumer_tag=tag,
            no_ack=False,
            arguments=self.survey.consumer_arguments(),
        )
        self.channel.basic_cancel(tag)
        uninvited, self.uninvited = self.uninvited, None
        for delivery_tag in uninvited:
            del self.held[delivery_tag]
        return b"".join(wire.encode_nack(self.number, one, multiple=False) for one in uninvited)

    def settle_through(self) -> None:
        """Return when the queue has all that this stopped lane settled: nothing of it is undone
        by hanging up. Raises amqp's errors if that cannot be known."""
        if self.unheard:
            settle_through(self.channel, self.survey.queue)

    def close(self) -> None:
        """Hang up this lane alone; what it held goes back to the queue."""
        if self.is_closed:
            return  # another lane may have the channel's number
        self.link.wire.taps[self.number] = self.ignore
        if self.channel.connection is not None:
            with suppress(amqp.RecoverableConnectionError):  # the broker closed it at the same time
                self.channel.close()
        self.link.wire.taps.pop(self.number, None)

    def ignore(self, inbound: wire.Inbound) -> None:
        if inbound.method == wire.CHANNEL_CLOSE:
            self.link.wire.forget_channel(self.number)


def settle_through(channel: amqp.Channel, queue: str) -> None:
    """Return when `queue` has all that was settled on `channel`, whose consumer was cancelled.

    RabbitMQ's channel asks the queue's own process for its counts, which comes after all that the
    channel sent there. Twice, since the first answer may overtake the news that lets the channel
    send what it kept back (before 4.0, where cancelling does not).
    """
    for _ in range(2):
        channel.queue_declare(queue, passive=True)


class RabbitMQConsumer:
    """See `workqueue.transport.Consumer`, and `TakesBack`."""

    def __init__(
        self,
        link: Link,
        survey: Survey,
        prefetch: int,
        copier_connection: Callable[[], RabbitMQPublisher],
        repair: Callable[[], None],
    ) -> None:
        self.link = link
        self.survey = survey
        self.queue = survey.queue
        self.arrivals: deque[Delivery] = deque()
        # Without a prefetch only what its receiver still keeps: it may be all of a long queue.
        self.out: MutableSet[Delivery] = set() if prefetch else WeakSet()
        self.copying: dict[Delivery, Owed] = {}
        self.taken_back: list[Delivery] = []
        self.paused = False
        self.finished: str | None = None
        self.left = 0
        self.probe = GateProbe(link, self.queue)
        self.bell = Bell()
        self.copier = Copier(copier_connection, repair, self.wake)
        self.prefetch = prefetch
        self.thin = False
        self.came = 0
        self.read_at = 0.0
        self.most_lanes = max(1, min(MOST_LANES, link.most_channels - OTHER_CHANNELS))
        shares = split(prefetch, 1 if survey.guarded else self.most_lanes)
        try:
            self.lanes = [self.open_lane(share) for share in shares]
        except BaseException:
            self.copier.close()
            self.bell.close()
            raise

    def open_lane(self, prefetch: int) -> Lane:
        return Lane(self.link, self.survey, prefetch, self.arrive)

    def arrive(self, delivery: Delivery, *, counted: bool) -> None:
        """To be handed out; but from a classic queue, which counts no deaths, what comes back is
        first replaced by a copy that counts this one. Not dead letters: those were looked at."""
        if counted or self.survey.type != "classic" or self.queue.endswith(DEAD_SUFFIX):
            self.arrivals.append(delivery)
        else:
            self.copy(delivery, self.queue, survivor_copy(delivery))

    @property
    def unsettled(self) -> int:
        """Once it is closed or lost: how many were settled and have no copy that is known to be
        safe. Their tasks run again."""
        if self.finished is not None:
            return self.left
        return sum(len(lane.held) for lane in self.lanes) - len(self.arrivals)

    @property
    def takes_back_after(self) -> float | None:
        return self.survey.own_timeout

    # -- receive

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        self.check()
        deadline = time.monotonic() + timeout
        while True:
            here = limit > 0 and bool(self.arrivals)
            if self.came and not self.arrivals:
                self.let_more_come(limit)
            self.turn(0.0 if here else deadline - time.monotonic())
            if self.taken_back:
                lost, self.taken_back = self.taken_back, []
                raise DeliveriesLost(f"RabbitMQ took back {len(lost)} deliveries", lost)
            if self.bell.answer():
                return []
            received = self.take(limit)
            if received or time.monotonic() >= deadline:
                return received

    def let_more_come(self, limit: int) -> None:
        """Where deliveries flow, they come as they are settled, a few at a time. To read a few
        costs nearly as much as to read many, and to settle them too: an instant's patience saves
        a quarter of our work (S2 of the bench)."""
        patience = instant(self.came, limit, self.prefetch or MOST_PREFETCH)
        if patience and time.monotonic() - self.read_at < FLOWING:
            time.sleep(patience)

    def turn(self, patience: float) -> None:
        """Read what there is, waiting at most `patience`; heartbeats; finished copies."""
        with self.at_the_wire():
            if self.thin and not self.probe.found:
                self.fill_up()  # before waiting: what was settled may have made room
                if self.arrivals:  # they came with the answer
                    patience = 0.0
            before = len(self.arrivals)
            if not before and not self.paused and not self.probe.found:
                self.succeed()
                if self.arrivals:
                    patience = 0.0
            if self.link.wire.wait_readable(min(patience, 1.0), self.bell.fileno()):
                self.link.wire.read()
                self.read_at = time.monotonic()
            self.came = len(self.arrivals) - before
            self.link.tick()
            self.probe.tick()
            self.drop_ended_lanes()
            self.acknowledge_copied()
            if self.probe.found:
                self.show_up()
            elif self.thin:
                self.fill_up()
        if self.copier.has_ended:
            raise self.lose("the thread that places copies has ended")
        if self.probe.found and not self.unsettled:
            self.close()
            raise ConsumerLost(f"queue {self.queue} is being migrated")

    def succeed(self) -> None:
        """Where the broker lends no more to an unlimited consumer, another one goes on, on a
        channel of its own while there are any: to find a delivery that is acknowledged, RabbitMQ
        goes through all that is out on its channel (rabbit_channel.erl, `collect_acks`)."""
        for lane in list(self.lanes):
            if not lane.is_lent_out():
                continue
            lane.stop()
            if len(self.lanes) < self.most_lanes:
                self.lanes.append(self.open_lane(0))
            else:
                lane.begin(0)

    def take(self, limit: int) -> list[Delivery]:
        """None any more once the queue is being migrated: what is out is finished, then we leave.

        What else arrives stays unread until then. To cancel at once would tell whoever migrates
        that nobody has anything out.
        """
        taken: list[Delivery] = []
        while self.arrivals and len(taken) < limit and not self.probe.found:
            taken.append(self.arrivals.popleft())
        if isinstance(self.out, set):
            self.out.update(taken)
        else:
            for delivery in taken:
                lane, tag = delivery.receipt
                lane.hand_out(tag)
                self.out.add(delivery)
        return taken

    def drop_ended_lanes(self) -> None:
        """A lane that ended is to be replaced; if it cannot be, the consumer is lost.

        After a cancellation the channel is closed at once: RabbitMQ 4.3 keeps a cancelled
        consumer until its client answers, hands it messages as soon as it settles anything, and
        counts each as a failed delivery, until they are dead letters.
        """
        for lane in [lane for lane in self.lanes if lane.ended is not None]:
            lane.close()
            self.lanes.remove(lane)
            self.thin = True
            held = {d for d in lane.held.values() if d is not None}
            held |= {d for d in (*self.out, *self.copying) if d.receipt[0] is lane}
            self.arrivals = deque(d for d in self.arrivals if d not in held)
            self.taken_back += [d for d in held if d in self.out]
            self.out -= held
            self.forget_copies(held, lane.ended or "")
            log.warning("RabbitMQ took back what a consumer of %s held: %s", self.queue, lane.ended)

    # -- holding more and less

    def hold(self, prefetch: int) -> None:
        self.check()
        self.prefetch = prefetch
        if self.paused:
            return
        with self.at_the_wire():
            self.stop_lanes(prefetch or math.inf)
            missing = self.missing
            if missing > 0:
                self.open_or_reuse(0 if math.isinf(missing) else int(missing))
            self.thin = any(lane.shrinks for lane in self.lanes)

    @property
    def missing(self) -> float:
        """How many more deliveries may be out than there is room for in the lanes."""
        room = sum(lane.room for lane in self.lanes)
        if math.isinf(room):
            return 0
        return (self.prefetch or math.inf) - room

    def stop_lanes(self, most: float) -> None:
        """So many that there is room for no more than `most`."""
        for lane in sorted(self.lanes, key=lambda lane: lane.room, reverse=True):
            if sum(lane.room for lane in self.lanes) <= most:
                return
            if lane.tag is not None:
                lane.stop()
                self.give_back_unread(lane)
                self.thin = True

    def give_back_unread(self, lane: Lane) -> None:
        unread = [delivery for delivery in self.arrivals if delivery.receipt[0] is lane]
        self.arrivals = deque(d for d in self.arrivals if d.receipt[0] is not lane)
        if unread:
            self.link.wire.write(lane.give_back([delivery.receipt[1] for delivery in unread]))

    def fill_up(self) -> None:
        """What was stopped or has ended gets its successors, as far as there is room for them."""
        missing = 0 if self.paused else self.missing
        if missing > 0:
            used = sum(lane.tag is not None or bool(lane.held) for lane in self.lanes)
            most = 1 if self.survey.guarded else max(1, self.most_lanes - used)
            for share in split(0 if math.isinf(missing) else int(missing), most):
                self.open_or_reuse(share)
        self.thin = any(lane.shrinks for lane in self.lanes)

    def show_up(self) -> None:
        """Whoever migrates the queue waits until it has no consumers, and so takes us, with all
        lanes stopped, for gone. What comes on this one is not handed out."""
        if self.unsettled and all(lane.tag is None for lane in self.lanes):
            self.open_or_reuse(1)

    def open_or_reuse(self, prefetch: int) -> None:
        """Room for so many more. Lanes that ended are not counted on: they are replaced soon."""
        usable = [lane for lane in self.lanes if lane.ended is None]
        idle = [lane for lane in usable if lane.tag is None]
        for lane in idle:
            if not lane.held:
                lane.begin(prefetch)
                return
        if len(self.lanes) < self.most_lanes:
            self.lanes.append(self.open_lane(prefetch))
        elif usable:
            min(idle or usable, key=lambda lane: len(lane.held)).widen(prefetch)

    # -- settle

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        self.check()
        deliveries = {outcome.delivery for outcome in outcomes}
        strangers = {delivery for delivery in deliveries if delivery not in self.out}
        if len(deliveries) < len(outcomes) or not strangers <= set(self.taken_back):
            raise ValueError("a delivery is settled once, by the consumer that received it")
        self.out -= deliveries
        done: dict[Lane, list[int]] = defaultdict(list)
        untouched: dict[Lane, list[int]] = defaultdict(list)
        copies: list[tuple[Delivery, str, Message]] = []
        for outcome in outcomes:
            delivery = outcome.delivery
            if strangers and delivery in strangers:
                continue  # taken back meanwhile; `receive` is about to say so
            lane, tag = delivery.receipt
            match outcome:
                case Ack():
                    done[lane].append(tag)
                case Requeue():
                    untouched[lane].append(tag)
                case Retry(_, _, delay, failed):
                    copy = retry_copy(delivery, delay, failed=failed)
                    copies.append((delivery, self.queue, copy))
                case Reject(_, reason, error):
                    copy = dead_copy(delivery, reason, error, time.time(), this_worker())
                    copies.append((delivery, self.queue + DEAD_SUFFIX, copy))
        self.write([lane.ack(sorted(tags)) for lane, tags in done.items()])
        self.write([lane.give_back(tags) for lane, tags in untouched.items()])
        for one in copies:
            self.copy(*one)

    def copy(self, delivery: Delivery, queue: str, message: Message) -> None:
        """The original stays with us, and counts in the prefetch, until its copy is safe."""
        owed = self.copying[delivery] = Owed(delivery, queue, message, time.monotonic())
        self.copier.post(owed)

    def acknowledge_copied(self) -> None:
        """Copies that became safe replace their originals."""
        self.copier.tend()
        tags: dict[Lane, list[int]] = defaultdict(list)
        for owed in self.copier.collect():
            if self.copying.pop(owed.delivery, None):  # else taken back meanwhile: a duplicate
                lane, tag = owed.delivery.receipt
                tags[lane].append(tag)
        frames = [lane.ack(sorted(copied)) for lane, copied in tags.items()]
        if frames:
            self.link.wire.write(b"".join(frames))

    def forget_copies(self, deliveries: set[Delivery], why: str) -> None:
        """The broker has these originals back: their outcomes are not kept any longer."""
        forgotten = [self.copying.pop(one) for one in deliveries if one in self.copying]
        for owed in forgotten:
            owed.dropped = True
        if forgotten:
            log.warning(
                "%d tasks of %s run again as the same attempt: no copy of them was safe yet (%s)",
                len(forgotten),
                self.queue,
                why,
            )

    @property
    def hindered(self) -> str | None:
        """See `workqueue.transport.Hindered`: copies that cannot be placed fill the prefetch."""
        waiting, why = self.copier.trouble
        return why if self.prefetch and waiting >= self.prefetch else None

    @property
    def due_in(self) -> float | None:
        """See `workqueue.transport.Defers`."""
        return due_in(self.copying.values(), time.monotonic())

    def write(self, frames: list[bytes]) -> None:
        if frames:
            with self.at_the_wire():
                self.link.wire.write(b"".join(frames))

    @contextmanager
    def at_the_wire(self) -> Iterator[None]:
        """Whatever goes wrong there, this consumer is lost."""
        try:
            with translated():
                yield
        except (ConnectionLost, ChannelClosed) as error:
            raise self.lose(str(error)) from error

    def wake(self) -> None:
        self.bell.ring()

    # -- life

    def pause(self) -> None:
        self.check()
        if self.paused:
            return
        self.paused = True
        self.copier.hurry()
        with self.at_the_wire():
            for lane in self.lanes:
                lane.stop()
                self.give_back_unread(lane)

    def check(self) -> None:
        if self.finished is not None:
            raise ConsumerLost(self.finished)

    def lose(self, why: str) -> ConsumerLost:
        """Finished: everything out goes back by itself, and nothing of it can be settled here."""
        self.finish(why)
        self.link.close(timeout=0.5)
        return ConsumerLost(why)

    def finish(self, why: str) -> None:
        self.finished = why
        self.left = len(self.copying)
        self.out.clear()
        self.forget_copies(set(self.copying), why)
        self.arrivals.clear()
        self.copier.close()

    def wait_for_copies(self) -> None:
        """As long as there are fewer and fewer on their way: an original that goes back while its
        copy is made safe is a duplicate. After a pause no longer than `COPY_PATIENCE` in all: the
        worker that paused has waited as long as there was time."""
        left, until = 0, 0.0
        end = time.monotonic() + COPY_PATIENCE if self.paused else math.inf
        with suppress(ConsumerLost):
            while self.copying and (len(self.copying) != left or time.monotonic() < until):
                if time.monotonic() >= end:
                    return
                if len(self.copying) != left:
                    left, until = len(self.copying), time.monotonic() + COPY_PATIENCE
                self.turn(0.05)

    def close(self) -> None:
        """Handed back one by one, not by hanging up, which would count as a failed delivery. Only
        what ran and has no copy counts as one: it would else run again and again, for ever."""
        if self.finished is None:
            self.wait_for_copies()
        if self.finished is None:
            out = sum(len(lane.held) for lane in self.lanes)
            self.link.wire.call_timeout = FAREWELL_TIME + out / FAREWELL_RATE
            try:
                with translated():
                    self.hand_back_and_settle()
            except (ConnectionLost, ChannelClosed):
                pass  # then the broker takes them back by itself
            self.finish("this consumer is closed")
            self.link.close()
        self.bell.close()

    def hand_back_and_settle(self) -> None:
        """All lanes stopped, before any of them could be lent what another one hands back; what is
        not settled handed back, lane by lane, so that it keeps its order; and all of that heard."""
        alive = [lane for lane in self.lanes if lane.ended is None]
        for lane in alive:
            lane.stop()
        for lane in alive:
            copied = {d.receipt[1] for d in self.copying if d.receipt[0] is lane}
            unsettled = [tag for tag in lane.held if tag not in copied]
            self.link.wire.write(lane.give_back(unsettled), timeout=FAREWELL_TIME)
            lane.settle_through()


def lend_for_a_look(link: Link, queue: str, count: int, more: Callable[[], int]) -> list[Delivery]:
    """Up to `count` messages, handed back at the end in the order in which they came.

    `more` is asked how many are ready when none comes: what others took meanwhile is not waited
    for. Raises LookCutShort if there are some and they do not come.
    """
    seen: list[Delivery] = []

    def note(delivery: Delivery, *, counted: bool) -> None:
        seen.append(delivery)

    lane = Lane(link, Survey(queue, link.abilities, None), 0 if count > MOST_LENT else count, note)
    arrived = asked = time.monotonic()
    missing = 0
    while len(seen) < count and lane.ended is None:
        before = len(seen)
        lane.succeed()  # its first deliveries may come with the broker's answer
        if len(seen) == before and link.wire.wait_readable(0.05):
            link.wire.read()
        now = time.monotonic()
        if len(seen) > before:
            arrived = asked = now
        elif now - asked > LOOK_PATIENCE:
            missing = min(count - len(seen), more())
            asked = time.monotonic()
            if not missing or asked - arrived > LOOK_SLOWLY:
                break
    if lane.ended is None:
        lane.stop()
        link.wire.write(lane.give_back(list(lane.held)))
        lane.settle_through()
    lane.close()
    shown = [replace(delivery, receipt=None) for delivery in seen[:count]]
    if missing or lane.ended is not None:
        raise LookCutShort(queue, len(shown), len(shown) + max(missing, 1), shown)
    return shown


def returns_of(headers: Mapping[str, Any], *, redelivered: bool) -> int:
    """How often the message came back, as far as that was counted.

    A quorum queue counts; on a first delivery its header would be the sender's own. For classic
    queues we count.
    """
    by_broker = headers.get("x-delivery-count") if redelivered else 0
    counts = (by_broker, headers.get(DEATHS))
    return max((count for count in counts if isinstance(count, int) and count > 0), default=0)


def instant(came: int, limit: int, prefetch: int) -> float:
    """Seconds to let more deliveries come, where `came` were read last and `limit` are wanted: none
    after many, nor with a prefetch so small that the broker would wait for us."""
    if prefetch < WIDE or came >= min(limit, prefetch // 3, MANY):
        return 0.0
    return min(prefetch * INSTANT, LONGEST_INSTANT)


def split(prefetch: int, most: int) -> list[int]:
    """How many deliveries each lane may hold, with `most` lanes at most."""
    if prefetch == 0:
        return [0]
    lanes = min(prefetch, most)
    return [prefetch // lanes + (number < prefetch % lanes) for number in range(lanes)]
