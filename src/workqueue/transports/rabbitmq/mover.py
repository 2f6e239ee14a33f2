"""Moves messages from one queue to another, byte for byte, and loses none.

Each is published to the other queue, confirmed there, and only then acknowledged here. Whatever
stops that in the middle leaves a message in both, never in none. Properties and headers travel
as they are on the wire, also those that we could not read or say ourselves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from workqueue.errors import ConnectionLost
from workqueue.transports.rabbitmq import wire
from workqueue.transports.rabbitmq.link import ChannelClosed, Link

AT_ONCE = 100
"""Messages on their way: enough to keep both queues busy, few enough to be held in memory."""

PATIENCE = 3.0
"""Seconds for a source that has more than it had to become quiet all the same."""

FULL_PAUSE = 0.2
"""Seconds until the next try, when the other queue has no room."""


class Mover:
    """From the queue `source` to the queue `target`. For one thread; `close` hands back the rest.

    `told` is called with how many have been moved so far, from time to time.
    """

    def __init__(
        self, link: Link, source: str, target: str, told: Callable[[int], None] = lambda _: None
    ) -> None:
        self.link = link
        self.source = source
        self.target = target
        self.told = told
        self.moved = 0
        self.published = 0
        self.waiting: dict[int, int] = {}
        self.stopped: str | None = None
        self.full = False
        self.buffer = bytearray()
        self.moved_at = time.monotonic()
        self.out = link.channel()
        self.out.confirm_select()
        self.link.wire.taps[self.out.channel_id] = self.on_target
        self.inward = link.channel()
        self.link.wire.taps[self.inward.channel_id] = self.on_source
        self.inward.basic_qos(0, AT_ONCE, False)
        self.inward.basic_consume(source, no_ack=False)

    def move(self, quiet: float, expected: float = math.inf) -> int:
        """Until nothing came for `quiet` seconds and nothing is on its way; how many were moved.

        Where more keeps coming than `expected`, only for a while. Raises ConnectionLost if either
        queue fails; calling again, with another Mover, goes on.
        """
        self.moved_at = time.monotonic()
        give_up = math.inf
        while self.waiting or time.monotonic() - self.moved_at < quiet:
            if self.moved > expected:
                give_up = min(give_up, time.monotonic() + PATIENCE)
            if time.monotonic() > give_up:
                break
            if self.link.wire.wait_readable(0.1):
                self.link.wire.read()
            if self.stopped:
                raise ConnectionLost(self.stopped)
            if self.full:
                time.sleep(FULL_PAUSE)  # else the same messages would go to and fro, fast
                self.full = False
            data, self.buffer = bytes(self.buffer), bytearray()
            self.link.wire.write(data)
            self.link.tick()
            self.told(self.moved)
        return self.moved

    def on_source(self, inbound: wire.Inbound) -> None:
        match inbound.method:
            case wire.DELIVER:
                assert inbound.message is not None
                self.published += 1
                self.waiting[self.published] = wire.decode_deliver(inbound.arguments).tag
                self.buffer += wire.encode_publish_as_it_was(
                    self.out.channel_id,
                    self.target,
                    inbound.properties,
                    inbound.message.body,
                    self.link.wire.frame_max,
                )
            case wire.CANCEL:
                self.stopped = f"queue {self.source} was deleted"
            case wire.CHANNEL_CLOSE:
                self.on_closed(inbound)

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
                self.on_closed(inbound)

    def on_closed(self, inbound: wire.Inbound) -> None:
        self.link.wire.forget_channel(inbound.channel)
        closed = ChannelClosed(inbound.channel, *wire.decode_refusal(inbound.arguments))
        self.stopped = closed.text

    def settle(self, tag: int, multiple: bool, *, kept: bool) -> None:
        """The target has what was published under `tag`, or has no room for it."""
        if self.stopped:
            return
        tags = [n for n in self.waiting if n <= tag] if multiple else [tag]
        encode = wire.encode_ack if kept else wire.encode_nack
        for source_tag in [self.waiting.pop(n) for n in tags if n in self.waiting]:
            self.buffer += encode(self.inward.channel_id, source_tag, multiple=False)
            self.moved += kept
        self.full |= not kept
        self.moved_at = time.monotonic()

    def close(self) -> None:
        """Let go of both queues; what was not confirmed stays where it was."""
        numbers = [channel.channel_id for channel in (self.inward, self.out)]
        # Both before either is closed: a late confirm has nothing to acknowledge any more.
        self.link.wire.taps.update(dict.fromkeys(numbers, self.ignore))
        for channel, number in zip((self.inward, self.out), numbers, strict=True):
            if channel.connection is not None:
                channel.close()
            self.link.wire.taps.pop(number, None)

    def ignore(self, inbound: wire.Inbound) -> None:
        if inbound.method == wire.CHANNEL_CLOSE:
            self.link.wire.forget_channel(inbound.channel)
