"""Moves messages from one queue to another, byte for byte, and loses none.

Each is published to the other queue, confirmed there, and only then acknowledged here. Whatever
stops that in the middle leaves a message in both, never in none. Properties and headers travel
as they are on the wire, also those that we could not read or say ourselves.

Some cannot travel so. RabbitMQ refuses a publish whose `user_id` is another user's, or whose
`reply_to` is the pseudo-queue of a channel that is gone, and it sends copies of a message to the
queues that its headers CC and BCC name (RabbitMQ documentation, "Validated User-ID", "Direct
Reply-to", "Sender-selected Distribution"). So the former are left out and the latter renamed. A
message that is refused all the same is published alone and without its headers; one that is
refused even then ends the move with Immovable.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from msgspec.structs import replace

from workqueue.errors import ConnectionLost, WorkqueueError
from workqueue.message import Message
from workqueue.transports.copies import bare_copy
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.survey import PRECONDITION_FAILED

AT_ONCE = 100
"""Messages on their way: enough to keep both queues busy, few enough to be held in memory."""

PATIENCE = 3.0
"""Seconds for a source that has more than it had to become quiet all the same."""

FULL_PAUSE = 0.2
"""Seconds until the next try, when the other queue has no room."""


class Immovable(WorkqueueError):
    """RabbitMQ refuses this message in every form that we can give it."""


@dataclass(slots=True, eq=False)
class Parcel:
    """A message on its way: its delivery tag at the source, and the form it is published in."""

    tag: int
    message: Message
    properties: bytes
    bare: bool = False


class Mover:
    """From the queue `source` to the queue `target`. For one thread; `close` hands back the rest.

    `user` is the login of the connection. `look` is called in each turn; it may raise, and reads
    `moved` (how many), `changed` (how many travelled in another form, by the reason), `full` (the
    target has no room at the moment), `kept_at` (when the target last took one) and `heard_at`
    (when it last answered, or had nothing to answer).
    """

    def __init__(
        self,
        link: Link,
        source: str,
        target: str,
        look: Callable[[Mover], None] = lambda _: None,
        *,
        user: str = "",
    ) -> None:
        self.link = link
        self.source = source
        self.target = target
        self.look = look
        self.user = user
        self.longest = wire.longest_properties(link.wire.frame_max)
        self.moved = 0
        self.changed: Counter[str] = Counter()
        self.queued: deque[Parcel] = deque()
        self.waiting: dict[int, Parcel] = {}
        self.alone = 0
        self.refusal: ChannelClosed | None = None
        self.stopped: str | None = None
        self.full = False
        self.full_until = 0.0
        self.unsettled: dict[int, bool] = {}
        self.moved_at = self.heard_at = self.kept_at = time.monotonic()
        self.open_target()
        self.inward = link.channel()
        self.link.wire.taps[self.inward.channel_id] = self.on_source
        self.inward.basic_qos(0, AT_ONCE, False)
        self.tag = self.inward.basic_consume(source, no_ack=False)

    def open_target(self) -> None:
        self.published = 0
        self.out = self.link.channel()
        self.out.confirm_select()
        self.link.wire.taps[self.out.channel_id] = self.on_target

    def move(self, quiet: float, expected: float = float("inf")) -> int:
        """Until nothing came for `quiet` seconds and nothing is on its way; how many were moved.

        Where more keeps coming than `expected`, only for a while. Raises Immovable for a message
        that is refused in every form, ConnectionLost if either queue fails; calling again, with
        another Mover, goes on.
        """
        self.moved_at = time.monotonic()
        give_up = float("inf")
        while self.waiting or self.queued or time.monotonic() - self.moved_at < quiet:
            if self.moved > expected:
                give_up = min(give_up, time.monotonic() + PATIENCE)
            if time.monotonic() > give_up:
                break
            if self.link.wire.wait_readable(FULL_PAUSE if self.full else 0.1):
                self.link.wire.read()
            if self.stopped:
                raise ConnectionLost(self.stopped)
            if self.refusal is not None:
                self.single_out(self.refusal)
            self.link.wire.write(self.acknowledge() + self.publish())
            self.link.tick()
            self.look(self)
        return self.moved

    # -- out

    def publish(self) -> bytes:
        """Frames of what is queued; one message at a time while it is not known which of them the
        broker refuses, and none while the target has no room."""
        if not self.waiting:
            self.heard_at = time.monotonic()
        frames = []
        if time.monotonic() >= self.full_until:
            while self.queued and not (self.alone and self.waiting):
                parcel = self.queued.popleft()
                self.alone -= self.alone > 0
                self.published += 1
                self.waiting[self.published] = parcel
                frames.append(
                    wire.publish_frames(
                        self.out.channel_id,
                        "",
                        self.target,
                        parcel.properties,
                        parcel.message.body,
                        self.link.wire.frame_max,
                    )
                )
        return b"".join(frames)

    def acknowledge(self, *, all_: bool = False) -> bytes:
        """Frames that acknowledge what was confirmed: all before the first that was not, in one
        frame, and with `all_` those behind it as well. RabbitMQ's channel keeps acknowledgements of
        a quorum queue back when it gets more frames than the queue applies."""
        number = self.inward.channel_id
        confirmed = list(takewhile(self.unsettled.__getitem__, self.unsettled))
        frames = [wire.encode_ack(number, confirmed[-1], multiple=True)] if confirmed else []
        if all_:
            behind = [tag for tag, safe in self.unsettled.items() if safe][len(confirmed) :]
            frames += [wire.encode_ack(number, tag, multiple=False) for tag in behind]
            confirmed += behind
        for tag in confirmed:
            del self.unsettled[tag]
        return b"".join(frames)

    def single_out(self, refusal: ChannelClosed) -> None:
        """The broker closed the channel because of one message: of several each is tried alone on
        a new channel, of one it is known that it is the one, and it is tried in its barest form.

        Those that the closed channel had taken already are then in the target twice, as ever when
        a confirm is lost.
        """
        self.refusal = None
        suspects = list(self.waiting.values())
        self.waiting.clear()
        if len(suspects) == 1:
            self.make_bare(suspects[0], refusal.text)
        self.queued.extendleft(reversed(suspects))
        self.alone += len(suspects)
        self.open_target()

    def make_bare(self, parcel: Parcel, why: str) -> None:
        if parcel.bare:
            named = f"message {parcel.message.id}" if parcel.message.id else "a message without id"
            raise Immovable(f"RabbitMQ refuses {named} of {self.source}: {why}")
        self.changed[f"without headers, because RabbitMQ refused them: {why}"] += 1
        parcel.bare = True
        parcel.properties = bare_properties(parcel.message)

    # -- what the broker says

    def on_source(self, inbound: wire.Inbound) -> None:
        match inbound.method:
            case wire.DELIVER:
                assert inbound.message is not None
                self.moved_at = time.monotonic()
                tag = wire.decode_deliver(inbound.arguments).tag
                properties, changes = movable(inbound.properties, self.longest, self.user)
                parcel = Parcel(tag, inbound.message, properties)
                self.queued.append(parcel)
                self.unsettled[tag] = False
                self.changed.update(changes)
                if len(parcel.properties) > self.longest:
                    self.make_bare(parcel, "they are longer than a frame")
            case wire.CANCEL:
                self.stopped = f"queue {self.source} was deleted"
            case wire.CHANNEL_CLOSE:
                self.stopped = self.forget(inbound).text

    def on_target(self, inbound: wire.Inbound) -> None:
        match inbound.method:
            case wire.ACK:
                self.settle(*wire.decode_settled(inbound.arguments), kept=True)
            case wire.NACK:
                self.settle(*wire.decode_settled(inbound.arguments), kept=False)
            case wire.RETURN:
                # It comes before its confirm, which must not be taken for one.
                self.stopped = f"queue {self.target} was deleted"
            case wire.CHANNEL_CLOSE:
                closed = self.forget(inbound)
                if closed.code == PRECONDITION_FAILED and self.waiting:
                    self.refusal = closed
                else:
                    self.stopped = closed.text

    def forget(self, inbound: wire.Inbound) -> ChannelClosed:
        self.link.wire.forget_channel(inbound.channel)
        return ChannelClosed(inbound.channel, *wire.decode_refusal(inbound.arguments))

    def settle(self, tag: int, multiple: bool, *, kept: bool) -> None:
        """The target has what was published under `tag`, or has no room for it: then it is kept
        here and published again after a pause."""
        if self.stopped:
            return
        tags = [n for n in self.waiting if n <= tag] if multiple else [tag]
        parcels = [self.waiting.pop(n) for n in tags if n in self.waiting]
        self.moved_at = self.heard_at = time.monotonic()
        self.full = not kept
        if kept:
            self.unsettled.update(dict.fromkeys((parcel.tag for parcel in parcels), True))
            self.moved += len(parcels)
            self.kept_at = time.monotonic()
        else:
            self.full_until = time.monotonic() + FULL_PAUSE
            self.queued.extendleft(reversed(parcels))

    def close(self) -> None:
        """Let go of both queues; what was not confirmed stays where it was, and what was confirmed
        is gone from there."""
        if self.inward.connection is not None:
            self.settle_through()
        numbers = [channel.channel_id for channel in (self.inward, self.out)]
        # Both before either is closed: a late confirm has nothing to acknowledge any more.
        self.link.wire.taps.update(dict.fromkeys(numbers, self.ignore))
        for channel, number in zip((self.inward, self.out), numbers, strict=True):
            if channel.connection is not None:
                channel.close()
            self.link.wire.taps.pop(number, None)

    def settle_through(self) -> None:
        """Return when the source has applied all acknowledgements: a channel that is closed forgets
        those that it kept back, and its messages would be in both queues. The queue's counts, for
        which the channel asks it, come after what the channel sent before; the second answer also
        after what it sent when the first one let it go on."""
        self.inward.basic_cancel(self.tag)
        self.link.wire.write(self.acknowledge(all_=True))
        for _ in range(2):
            self.inward.queue_declare(self.source, passive=True)

    def ignore(self, inbound: wire.Inbound) -> None:
        if inbound.method == wire.CHANNEL_CLOSE:
            self.link.wire.forget_channel(inbound.channel)


def movable(properties: bytes, longest: int, user: str) -> tuple[bytes, list[str]]:
    """`properties` in a form that the connection of `user` may publish and that goes to one queue,
    and what had to be changed, in words. As they were where they cannot be read: RabbitMQ took
    them once."""
    try:
        return wire.harmless(properties, longest, user)
    except wire.WireError:
        return properties, []


def bare_properties(message: Message) -> bytes:
    """As few properties as a message can have and still be the same task."""
    return wire.encode_properties(replace(bare_copy(message), reply_to=None))
