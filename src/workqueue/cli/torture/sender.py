"""A tortured sender: a process that sends its share through a Producer, and keeps a ledger.

    python -m workqueue.cli.torture.sender QUEUE NUMBER SHARE SEED UNTIL

Started again, it goes on after what its ledger says was sent last. What it could not place it
writes down and leaves: the next message is another one's turn. A transport that breaks its contract
ends it, with exit code 1.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from workqueue.broker import Broker
from workqueue.cli.torture.handler import FOLDER
from workqueue.cli.torture.ledger import Ledger, read
from workqueue.codec import BYTES
from workqueue.errors import NotSent, Unconfirmed, WorkqueueError
from workqueue.message import Message
from workqueue.middleware import Middleware, Sending
from workqueue.producer import Producer
from workqueue.registry import open_transport
from workqueue.testing.checked import CheckedTransport
from workqueue.transport import Publisher, Transport

TIMEOUT = 10.0
"""Seconds. Shorter than some of what is done to it, so that giving up is tried as well."""

SIZES = (0, 1, 50, 50, 50, 500, 5_000)
LARGE = 140_000
"""Bytes; more than one frame of AMQP."""

MOST_AT_ONCE = 200


def main() -> None:
    queue, number, share, seed, until = sys.argv[1:]
    path = Path(os.environ[FOLDER]) / f"sender-{number}.ledger"
    begun = last_sent(path)
    ledger = Ledger(path)
    sender = Sender(queue, ledger)
    signal.signal(signal.SIGTERM, lambda *_: sender.leave())
    messages = (make_message(int(seed), int(number), n) for n in range(begun, int(share)))
    sender.send_all(messages, int(share) - begun, float(until))
    if faults := sender.transport.faults:
        sys.exit("\n".join(faults))


def last_sent(path: Path) -> int:
    """How many were begun, also if that was in another life."""
    return sum(entry.event == "sent" for entry in read(path))


class Sender:
    """Sends one chunk after the other, evenly over the time there is."""

    def __init__(self, queue: str, ledger: Ledger) -> None:
        self.transport = CheckedTransport(open_transport(os.environ["WORKQUEUE_URL"]))
        self.producer = Producer(
            Broker(cast(Transport, Watched(self.transport, ledger))).queue(queue),
            timeout=TIMEOUT,
            connect_timeout=TIMEOUT,
            middleware=[Bookkeeper(ledger)],
        )
        self.leaving = False

    def leave(self) -> None:
        """After what is being sent."""
        self.leaving = True

    def send_all(self, messages: Iterator[Message], count: int, until: float) -> None:
        began, sent = time.time(), 0
        rng = random.Random(count)
        with self.producer:
            while sent < count and not self.leaving and not self.transport.faults:
                due = due_by_now(count, began, until) - sent
                if due < 1:
                    time.sleep(0.02)
                    continue
                chunk = [next(messages) for _ in range(min(due, rng.randint(1, MOST_AT_ONCE)))]
                sent += len(chunk)
                try:
                    self.producer.send_messages(chunk)
                except WorkqueueError as error:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)


def due_by_now(count: int, began: float, until: float) -> int:
    """How many of `count` should be sent by now, to be through in time."""
    if time.time() >= until:
        return count
    return 1 + int(count * (time.time() - began) / (until - began))


def make_message(seed: int, sender: int, number: int) -> Message:
    """The same for the same numbers."""
    rng = random.Random(f"{seed}/{sender}/{number}")
    fate = rng.random()
    size = LARGE if rng.random() < 0.005 else rng.choice(SIZES)
    return Message(
        body=rng.randbytes(size),
        id=f"{seed}-{sender}-{number}",
        content_type=BYTES,
        type=type_for(fate),
        delay=round(rng.uniform(0.1, 2.0), 2) if rng.random() < 0.02 else 0.0,
        sent_at=time.time(),
    )


def type_for(fate: float) -> str:
    """Few crash or are slow: each costs a process, or time."""
    if fate < 0.001:
        return "crash-once"
    if fate < 0.004:
        return "fail"
    if fate < 0.01:
        return "slow"
    return "fail-once" if fate < 0.03 else "work"


class Bookkeeper(Middleware):
    """Writes down what is sent, and what becomes of it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def send(self, queue: str, messages: Sequence[Message], call_next: Sending) -> None:
        for message in messages:
            digest = hashlib.sha256(message.body).hexdigest()
            self.ledger.note("sent", name(message), sha256=digest, delayed=message.delay > 0)
        try:
            call_next(messages)
        except NotSent as error:
            self.sort(messages, error)
            raise
        except WorkqueueError:  # by contract, nothing was handed to a broker
            for message in messages:
                self.ledger.note("refused", name(message))
            raise
        for message in messages:
            self.ledger.note("confirmed", name(message))

    def sort(self, messages: Sequence[Message], error: NotSent) -> None:
        causes = {name(message): cause for message, cause in error.failures}
        for message in messages:
            cause = causes.get(name(message))
            if cause is None:
                self.ledger.note("confirmed", name(message))
            else:
                unknown = isinstance(cause, Unconfirmed)
                self.ledger.note("unknown" if unknown else "refused", name(message))


class Watched:
    """A transport that writes down each message handed to the broker: a message that is tried
    twice may be there twice, and nothing in it says so."""

    def __init__(self, transport: Transport, ledger: Ledger) -> None:
        self.transport = transport
        self.ledger = ledger

    def publisher(self) -> Publisher:
        return WatchedPublisher(self.transport.publisher(), self.ledger)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


class WatchedPublisher:
    """See `Watched`."""

    def __init__(self, publisher: Publisher, ledger: Ledger) -> None:
        self.publisher = publisher
        self.ledger = ledger

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        for message in messages:
            self.ledger.note("tried", name(message))
        self.publisher.publish(queue, messages, timeout)

    def close(self) -> None:
        self.publisher.close()


def name(message: Message) -> str:
    assert message.id is not None
    return message.id


if __name__ == "__main__":
    main()
