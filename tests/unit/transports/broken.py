"""Memory drivers that each break a promise of the seam, by the suite test that must notice.

Each is the lie of a plausible driver: a window that overflows, an acknowledgement that covers too
much, a count that is never asked for. `BROKEN` maps the name of a suite test to the transports
that it must fail. Where a promise needs other processes or a connection the lie is SQLite's, or
that of a memory driver that asks a server on a socket before each step.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from msgspec import structs

from workqueue.errors import (
    ConnectionLost,
    ConsumerLost,
    NotSent,
    QueueFull,
    QueueMismatch,
    QueueNotFound,
    Unconfirmed,
    Unroutable,
)
from workqueue.message import Delivery, Message, new_id
from workqueue.transport import (
    DEAD_SUFFIX,
    Ack,
    Outcome,
    QueueSpec,
    QueueStats,
    Reject,
    Requeue,
    Retry,
    State,
)
from workqueue.transports.copies import retry_copy
from workqueue.transports.memory import (
    Entry,
    MemoryConsumer,
    MemoryPublisher,
    MemoryTransport,
    Shelf,
    Store,
)
from workqueue.transports.sqlite import SQLiteTransport
from workqueue.transports.sqlite.consumer import SQLiteConsumer

Broken = type[MemoryTransport] | type[SQLiteTransport]
BROKEN: dict[str, list[Broken]] = {}

Part = TypeVar(
    "Part", bound=type[MemoryTransport | MemoryPublisher | MemoryConsumer | SQLiteTransport]
)


def breaks(test: str) -> Callable[[Part], Part]:
    """Register a broken part, in a transport that is whole otherwise, as one that `test` fails."""

    def register(part: Part) -> Part:
        BROKEN.setdefault(test, []).append(transport_of(part))
        return part

    return register


def transport_of(
    part: type[MemoryTransport | MemoryPublisher | MemoryConsumer | SQLiteTransport],
) -> Broken:
    if issubclass(part, MemoryTransport | SQLiteTransport):
        return part
    made: dict[str, Any] = {"__doc__": part.__doc__}
    if issubclass(part, MemoryPublisher):
        made["publisher"] = lambda self: part(self.store)
    else:
        made["consumer"] = lambda self, queue, prefetch: part(self.store, queue, prefetch)
    return type(part.__name__, (MemoryTransport,), made)


# -- declare -----------------------------------------------------------------------------------


@breaks("test_declaring_twice")
class AlwaysMadeIt(MemoryTransport):
    """Says that each declaration made the queue."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        super().declare(spec, dry_run=dry_run)
        return True


@breaks("test_declaring_twice")
class RefusesToDeclareTwice(MemoryTransport):
    """Takes a queue that is there for an error."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        if not super().declare(spec, dry_run=dry_run):
            raise QueueMismatch(spec.name, {})
        return True


@breaks("test_declaring_twice")
class DeclaresAfresh(MemoryTransport):
    """Makes an empty queue in the place of the one that is there."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        with self.store.changed:
            kept = self.store.shelves.pop(spec.name, None)
            super().declare(spec, dry_run=dry_run)
        return kept is None


@breaks("test_a_name_alone_takes_the_queue_as_it_is")
class ComparesWhatWasNotAsked(MemoryTransport):
    """Takes "not asked" for "not set"."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        shelf = self.store.shelves.get(spec.name)
        if shelf and shelf.spec.max_length != spec.max_length:
            wanted_and_found = (spec.max_length, shelf.spec.max_length)
            raise QueueMismatch(spec.name, {"max length": wanted_and_found})
        return super().declare(spec, dry_run=dry_run)


@breaks("test_other_parameters_are_a_mismatch")
class ComparesNothing(MemoryTransport):
    """Takes any queue of the name for the one that was asked for."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        if spec.name in self.store.shelves:
            return False
        return super().declare(spec, dry_run=dry_run)


@breaks("test_other_parameters_are_a_mismatch")
class TellsTheDifferenceBackwards(MemoryTransport):
    """Tells what is there as what was wanted."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        try:
            return super().declare(spec, dry_run=dry_run)
        except QueueMismatch as error:
            backwards = {name: (b, a) for name, (a, b) in error.differences.items()}
            raise QueueMismatch(spec.name, backwards) from error


@breaks("test_a_dry_run_makes_nothing")
class DryRunsForReal(MemoryTransport):
    """Makes the queue that it was only asked about."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        return super().declare(spec)


@breaks("test_a_dry_run_makes_nothing")
class DryRunsWithoutLooking(MemoryTransport):
    """Says that all is well with a queue that is not like that."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        if dry_run:
            return spec.name not in self.store.shelves
        return super().declare(spec)


@breaks("test_the_dead_letter_queue_is_a_queue")
class MakesDeadLettersLater(MemoryTransport):
    """Has no dead-letter queue until the first one dies."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        made = super().declare(spec, dry_run=dry_run)
        if made:
            self.store.shelves.pop(spec.name + DEAD_SUFFIX, None)
        return made


@breaks("test_declared_by_many_at_once")
class LooksThenMakes(MemoryTransport):
    """Makes the queue in a second step, and fails when another was quicker."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        there = spec.name in self.store.shelves
        time.sleep(0.02)
        if not there and spec.name in self.store.shelves:
            raise QueueMismatch(spec.name, {})
        return super().declare(spec, dry_run=dry_run)


@breaks("test_a_type_is_taken_or_unsupported")
class KnowsOneType(MemoryTransport):
    """Takes another broker's word for a mismatch."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        if spec.type == "classic":
            raise QueueMismatch(spec.name, {"type": (spec.type, "quorum")})
        return super().declare(spec, dry_run=dry_run)


@breaks("test_dead_letters_have_dead_letters")
class BuriesInPlace(MemoryConsumer):
    """Puts what is rejected among dead letters back among them, to be handed out again."""

    def settle_one(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reject) and self.queue.endswith(DEAD_SUFFIX):
            outcome = Retry(outcome.delivery)
        super().settle_one(outcome)


@breaks("test_dead_letters_keep")
class GivesDeadLettersItsTtl(MemoryTransport):
    """Makes both queues with the same options."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        made = super().declare(spec, dry_run=dry_run)
        if made and not dry_run:
            dead = self.store.shelves[spec.name + DEAD_SUFFIX]
            dead.spec = dataclasses.replace(dead.spec, ttl=spec.ttl)
        return made


@breaks("test_dead_letters_keep")
class BoundsDeadLetters(MemoryTransport):
    """Makes both queues with the same bound."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        made = super().declare(spec, dry_run=dry_run)
        if made and not dry_run:
            dead = self.store.shelves[spec.name + DEAD_SUFFIX]
            dead.spec = dataclasses.replace(dead.spec, max_length=spec.max_length)
        return made


# -- publish -----------------------------------------------------------------------------------


@breaks("test_publishing_nothing")
class WantsAMessage(MemoryPublisher):
    """Takes an empty batch for a failure."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        if not messages:
            raise NotSent("nothing to send")
        super().publish(queue, messages, timeout)


@breaks("test_order_is_kept")
class SendsTheLastFirst(MemoryPublisher):
    """Works its batch off from the end."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        super().publish(queue, messages[::-1], timeout)


@breaks("test_many_messages_in_one_call")
class OverflowsItsWindow(MemoryPublisher):
    """Forgets what did not fit into its window."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        super().publish(queue, messages[:1000], timeout)


@breaks("test_properties_travel")
class KnowsFewProperties(MemoryPublisher):
    """Leaves out a property that its author never used."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        kept = [structs.replace(message, reply_to=None) for message in messages]
        super().publish(queue, kept, timeout)


@breaks("test_properties_travel")
class FlattensHeaders(MemoryPublisher):
    """Makes text of every header."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        flat = [
            structs.replace(
                message, headers={name: str(value) for name, value in message.headers.items()}
            )
            for message in messages
        ]
        super().publish(queue, flat, timeout)


@breaks("test_bodies_of_any_size")
class CutsLongBodies(MemoryPublisher):
    """Takes one buffer of a body, and forgets the rest."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        cut = [structs.replace(message, body=message.body[:65536]) for message in messages]
        super().publish(queue, cut, timeout)


@breaks("test_bodies_of_any_size")
class SkipsEmptyBodies(MemoryPublisher):
    """Takes an empty body for no message."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        super().publish(queue, [message for message in messages if message.body], timeout)


@breaks("test_any_bytes_and_any_headers")
class ThinksBodiesAreText(MemoryPublisher):
    """Sends a body through UTF-8."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        text = [
            structs.replace(message, body=message.body.decode("utf-8", "replace").encode())
            for message in messages
        ]
        super().publish(queue, text, timeout)


@breaks("test_any_bytes_and_any_headers")
class KeepsIntegersInThirtyTwoBits(MemoryPublisher):
    """Cuts a large number in a header."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        cut = [
            structs.replace(
                message,
                headers={
                    name: value % 2**32 if type(value) is int else value
                    for name, value in message.headers.items()
                },
            )
            for message in messages
        ]
        super().publish(queue, cut, timeout)


@breaks("test_a_missing_queue_is_unroutable")
class SendsIntoTheVoid(MemoryPublisher):
    """Calls it sent when no queue took it: a confirm without the return."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        if queue in self.store.shelves:
            super().publish(queue, messages, timeout)


@breaks("test_a_missing_queue_is_unroutable")
class NamesOneOfMany(MemoryPublisher):
    """Names the first message that failed, and lets the sender believe in the others."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        try:
            super().publish(queue, messages, timeout)
        except NotSent as error:
            error.failures = error.failures[:1]
            raise


@breaks("test_a_missing_queue_is_unroutable")
class CallsAMissingQueueFull(MemoryPublisher):
    """Gives a cause that is not the cause."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        try:
            super().publish(queue, messages, timeout)
        except NotSent as error:
            error.failures = [
                (message, QueueFull("no room") if isinstance(cause, Unroutable) else cause)
                for message, cause in error.failures
            ]
            raise


@breaks("test_a_full_queue_refuses")
class DropsTheOldest(MemoryPublisher):
    """Makes room by dropping what it had promised to keep."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        shelf = self.store.shelves[queue]
        for message in messages:
            while shelf.spec.max_length is not None and len(shelf.ready) >= shelf.spec.max_length:
                heapq.heappop(shelf.ready)
            super().publish(queue, [message], timeout)


@breaks("test_a_full_queue_refuses")
class KnowsNoBound(MemoryPublisher):
    """Puts more into a queue than it was asked to hold."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        with self.store.changed:
            for message in messages:
                self.store.put(self.store.shelf(queue), message)


@breaks("test_a_full_queue_refuses")
class RefusesWhatItKept(MemoryPublisher):
    """Names all of a batch when a part of it did not fit."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        try:
            super().publish(queue, messages, timeout)
        except NotSent as error:
            error.failures = [(message, QueueFull("no room")) for message in messages]
            raise


@breaks("test_publishers_in_threads")
class LosesUpdates(MemoryPublisher):
    """Reads what is there, adds to it and writes it back, without a lock."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        shelf = self.store.shelf(queue)
        seen = list(shelf.ready)
        time.sleep(0.05)
        shelf.ready = seen
        super().publish(queue, messages, timeout)


@breaks("test_failures_are_the_very_objects")
class NamesEqualCopies(MemoryPublisher):
    """Names as failed what it has made of the messages, and not what it was given."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        super().publish(queue, [structs.replace(message) for message in messages], timeout)


@breaks("test_failures_are_the_very_objects")
class MiscountsWhatItSent(MemoryPublisher):
    """Says that all were sent, and names some that were not."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        try:
            super().publish(queue, messages, timeout)
        except NotSent as error:
            error.sent = len(messages)
            raise


@breaks("test_a_bound_holds_for_one_at_a_time")
class IsGenerous(MemoryTransport):
    """Lets nine hundred more into a queue than it was asked to."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        made = super().declare(spec, dry_run=dry_run)
        if made and not dry_run and spec.max_length is not None:
            shelf = self.store.shelves[spec.name]
            shelf.spec = dataclasses.replace(spec, max_length=spec.max_length + 900, type="quorum")
        return made


@breaks("test_a_bound_is_for_what_is_ready")
class CountsWhatIsDelayed(MemoryPublisher):
    """Takes a queue for full in which all wait for their time."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        shelf = self.store.shelf(queue)
        if shelf.spec.max_length is not None and len(shelf.delayed) >= shelf.spec.max_length:
            failures: list[tuple[Message, NotSent]] = [(m, QueueFull("full")) for m in messages]
            raise NotSent("full", failures=failures)
        super().publish(queue, messages, timeout)


@breaks("test_a_bound_is_for_what_is_ready")
class RefusesWhatComesBack(MemoryConsumer):
    """Drops what is handed back to a full queue."""

    def give_back(self, entry: Entry) -> None:
        most = self.shelf.spec.max_length
        if most is None or len(self.shelf.ready) < most:
            super().give_back(entry)


@breaks("test_higher_priorities_come_first")
class KnowsNoPriorities(MemoryPublisher):
    """Hands out as it was sent."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        with self.store.changed:
            super().publish(queue, messages, timeout)
            for entry in self.store.shelf(queue).ready:
                entry.rank = (0, entry.rank[1])
            heapq.heapify(self.store.shelf(queue).ready)


@breaks("test_higher_priorities_come_first")
class ServesTheLowestFirst(MemoryPublisher):
    """Takes 0 for the highest, as some do."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        with self.store.changed:
            super().publish(queue, messages, timeout)
            for entry in self.store.shelf(queue).ready:
                entry.rank = (abs(entry.rank[0]), entry.rank[1])
            heapq.heapify(self.store.shelf(queue).ready)


@breaks("test_headers_that_json_has_no_words_for")
class EndsTextsAtNul(MemoryPublisher):
    """Keeps texts as a C library does."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        cut = [
            structs.replace(message, type=message.type and message.type.partition("\0")[0])
            for message in messages
        ]
        super().publish(queue, cut, timeout)


@breaks("test_headers_that_json_has_no_words_for")
class KeepsHeadersAsJson(MemoryPublisher):
    """Makes text of bytes."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        made = [
            structs.replace(
                message,
                headers={
                    name: value.hex() if isinstance(value, bytes) else value
                    for name, value in message.headers.items()
                },
            )
            for message in messages
        ]
        super().publish(queue, made, timeout)


# -- over a connection -------------------------------------------------------------------------


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets: a server that is there."""

    def handle(self) -> None:
        with suppress(OSError):  # a test cuts it
            while data := self.request.recv(1024):
                self.request.sendall(data)


class EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def echo_server() -> Iterator[str]:
    """The URL of a server on a free port."""
    with EchoServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"hosted://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Line:
    """A connection on which a step is taken only when the server has echoed a byte."""

    def __init__(self, address: tuple[str, int], timeout: float) -> None:
        try:
            self.socket = socket.create_connection(address, timeout=timeout)
        except OSError as error:
            raise ConnectionLost("nobody is there") from error
        try:
            self.echo(timeout)
        except OSError as error:
            self.socket.close()
            raise ConnectionLost("nobody answers") from error

    def echo(self, timeout: float) -> None:
        """Raises OSError: TimeoutError, or of a connection that is gone."""
        self.socket.settimeout(max(timeout, 0.001))
        self.socket.sendall(b"!")
        if not self.socket.recv(1):
            raise ConnectionResetError("gone")

    def close(self) -> None:
        self.socket.close()


class HostedTransport(MemoryTransport):
    """Whole: memory, reached over a socket. `through` makes another on the same queues, by way of
    another address."""

    connecting = 1.0
    server = ("127.0.0.1", 0)

    def through(self, address: tuple[str, int]) -> HostedTransport:
        other = type(self)()
        other.store, other.server = self.store, address
        return other

    def publisher(self) -> HostedPublisher:
        return HostedPublisher(self.store, self.line())

    def consumer(self, queue: str, prefetch: int) -> HostedConsumer:
        return HostedConsumer(self.store, queue, prefetch, self.line())

    def line(self) -> Line:
        return Line(self.server, self.connecting)


class HostedPublisher(MemoryPublisher):
    """Asks before it stores."""

    def __init__(self, store: Store, line: Line) -> None:
        super().__init__(store)
        self.line = line

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        try:
            self.line.echo(timeout)
        except OSError as error:
            cause = Unconfirmed("no answer")
            raise NotSent("no answer", failures=[(one, cause) for one in messages]) from error
        super().publish(queue, messages, timeout)

    def close(self) -> None:
        super().close()
        self.line.close()


class HostedConsumer(MemoryConsumer):
    """Asks before it takes."""

    def __init__(self, store: Store, queue: str, prefetch: int, line: Line) -> None:
        super().__init__(store, queue, prefetch)
        self.line = line

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        self.check()
        try:
            self.line.echo(timeout or 0.1)
        except TimeoutError:
            return []
        except OSError as error:
            self.close()
            raise ConsumerLost("the connection is gone") from error
        return super().receive(limit, timeout)

    def close(self) -> None:
        super().close()
        self.line.close()


@breaks("test_publish_keeps_its_timeout")
class SendsWithoutATimeout(HostedTransport):
    """Waits for the server's answer for as long as that takes."""

    def publisher(self) -> HostedPublisher:
        class Patient(HostedPublisher):
            def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
                super().publish(queue, messages, timeout + 2.0)

        return Patient(self.store, self.line())


@breaks("test_publish_keeps_its_timeout")
class CallsSilenceAYes(HostedTransport):
    """Takes for sent what nobody has confirmed."""

    def publisher(self) -> HostedPublisher:
        class Hopeful(HostedPublisher):
            def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
                try:
                    super().publish(queue, messages, timeout)
                except NotSent:
                    return

        return Hopeful(self.store, self.line())


@breaks("test_connecting_ends")
class ConnectsForEver(HostedTransport):
    """Believes that whoever accepts will say something."""

    connecting = 4.0


@breaks("test_receive_keeps_its_timeout")
class ReceivesWithoutATimeout(HostedTransport):
    """Waits for the server's answer for as long as that takes."""

    def consumer(self, queue: str, prefetch: int) -> HostedConsumer:
        class Patient(HostedConsumer):
            def receive(self, limit: int, timeout: float) -> list[Delivery]:
                return super().receive(limit, timeout + 2.0 * (timeout > 1.0))

        return Patient(self.store, queue, prefetch, self.line())


@breaks("test_a_cut_consumer_is_lost")
class HidesThatItWasCut(HostedTransport):
    """Has lost its connection, and says that there is nothing."""

    def consumer(self, queue: str, prefetch: int) -> HostedConsumer:
        class Quiet(HostedConsumer):
            def receive(self, limit: int, timeout: float) -> list[Delivery]:
                try:
                    return super().receive(limit, timeout)
                except ConsumerLost:
                    return []

        return Quiet(self.store, queue, prefetch, self.line())


# -- receive -----------------------------------------------------------------------------------


@breaks("test_no_consumer_without_a_queue")
class MakesQueuesInPassing(MemoryTransport):
    """Waits for ever at a queue whose name was misspelt."""

    def consumer(self, queue: str, prefetch: int) -> MemoryConsumer:
        self.declare(QueueSpec(name=queue))
        return super().consumer(queue, prefetch)


class Rewriting(MemoryConsumer):
    """Hands out its deliveries as `rewrite` has them."""

    def rewrite(self, delivery: Delivery) -> Delivery:
        raise NotImplementedError

    def take(self, limit: int) -> list[Delivery]:
        taken = []
        for delivery in super().take(limit):
            rewritten = self.rewrite(delivery)
            self.out[rewritten] = self.out.pop(delivery)
            taken.append(rewritten)
        return taken


@breaks("test_a_first_delivery")
class CountsFromZero(Rewriting):
    """Calls the first attempt the zeroth."""

    def rewrite(self, delivery: Delivery) -> Delivery:
        return structs.replace(delivery, attempt=delivery.attempt - 1)


@breaks("test_a_first_delivery")
class CallsAllRedelivered(Rewriting):
    """Flags what nobody has seen."""

    def rewrite(self, delivery: Delivery) -> Delivery:
        return structs.replace(delivery, redelivered=True)


@breaks("test_each_message_goes_to_one_consumer")
class TellsEverybody(MemoryConsumer):
    """Hands each message to every consumer, as a topic does."""

    def take(self, limit: int) -> list[Delivery]:
        taken = super().take(limit)
        for other in self.shelf.consumers - {self}:
            for delivery in taken:
                other.give_back(self.out[delivery])
        return taken


@breaks("test_each_message_goes_to_one_consumer")
class SendsTwice(MemoryPublisher):
    """Writes its batch, and writes it again because it has forgotten that."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        super().publish(queue, messages, timeout)
        super().publish(queue, messages, timeout)


@breaks("test_receive_gives_up")
class NeverWaits(MemoryConsumer):
    """Returns at once when there is nothing: a worker would spin."""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        return super().receive(limit, 0)


@breaks("test_receive_waits_for_a_message")
class LooksOnce(MemoryConsumer):
    """Sleeps through what arrives while it waits."""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        if taken := super().receive(limit, 0):
            return taken
        time.sleep(timeout)
        return []


@breaks("test_prefetch_bounds_what_is_out")
class Hoards(MemoryConsumer):
    """Holds as many as it is asked for."""

    def take(self, limit: int) -> list[Delivery]:
        self.prefetch = 0
        return super().take(limit)


@breaks("test_holding_more")
class StaysSmall(MemoryConsumer):
    """Holds as many as it was made for, whatever it is told."""

    def hold(self, prefetch: int) -> None:
        pass


@breaks("test_holding_more")
class HoldsMoreOnce(MemoryConsumer):
    """Takes what it is told for so many in all, and not for so many at once."""

    def hold(self, prefetch: int) -> None:
        self.left = prefetch - len(self.out)

    def take(self, limit: int) -> list[Delivery]:
        self.prefetch = self.prefetch if not hasattr(self, "left") else len(self.out) + self.left
        taken = super().take(min(limit, getattr(self, "left", limit)))
        self.left = getattr(self, "left", limit) - len(taken)
        return taken


@breaks("test_holding_less")
class StaysLarge(MemoryConsumer):
    """Learns to hold more, and never less."""

    def hold(self, prefetch: int) -> None:
        self.prefetch = max(self.prefetch, prefetch)


@breaks("test_holding_less")
class ForgetsWhatIsOut(MemoryConsumer):
    """Counts from when it was told."""

    def hold(self, prefetch: int) -> None:
        self.prefetch = len(self.out) + prefetch


@breaks("test_a_held_message_does_not_block_others")
class WaitsForTheOthers(MemoryConsumer):
    """Hands nothing out while another consumer holds something."""

    def take(self, limit: int) -> list[Delivery]:
        if any(other.out for other in self.shelf.consumers if other is not self):
            return []
        return super().take(limit)


@breaks("test_limit_zero_takes_nothing")
class TakesZeroForUnlimited(MemoryConsumer):
    """Hands work to a worker whose slots are busy."""

    def take(self, limit: int) -> list[Delivery]:
        return super().take(limit or 100)


@breaks("test_wake_ends_the_wait")
class SleepsThrough(MemoryConsumer):
    """Does not hear its bell."""

    def wake(self) -> None:
        pass


@breaks("test_wake_is_remembered")
class ForgetsTheBell(MemoryConsumer):
    """Hears its bell only while it waits."""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        self.woken = False
        return super().receive(limit, timeout)


@breaks("test_wake_is_remembered")
class CountsTheRings(MemoryConsumer):
    """Returns once for each ring."""

    rings = 0

    def wake(self) -> None:
        with self.store.changed:
            self.rings += 1
        super().wake()

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        with self.store.changed:
            self.woken = self.rings > 0
            self.rings -= self.woken
        return super().receive(limit, timeout)


@breaks("test_limit_is_kept_with_a_backlog")
class TakesPages(MemoryConsumer):
    """Hands out as many as its store returned, which is a page when there are many."""

    def take(self, limit: int) -> list[Delivery]:
        return super().take(20 if limit and len(self.shelf.ready) > 20 else limit)


@breaks("test_limit_is_kept_with_a_backlog")
class TakesThreeTimesTheLimit(MemoryConsumer):
    """Fetches some more while it is at it, and hands out all of it."""

    def take(self, limit: int) -> list[Delivery]:
        return super().take(3 * limit)


@breaks("test_prefetch_is_kept_with_a_backlog")
class FillsItsHands(MemoryConsumer):
    """Takes a number for the whole and not for what is left of it, when there are many."""

    def take(self, limit: int) -> list[Delivery]:
        prefetch = self.prefetch
        if len(self.shelf.ready) > 20 and len(self.out) < prefetch:
            self.prefetch = len(self.out) + prefetch
        try:
            return super().take(limit)
        finally:
            self.prefetch = prefetch


@breaks("test_a_message_is_handed_out_at_once")
class LooksTwiceASecond(MemoryConsumer):
    """Finds a message at its next look."""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        deadline = time.monotonic() + timeout
        while True:
            if taken := super().receive(limit, 0):
                return taken
            rest = deadline - time.monotonic()
            if rest <= 0:
                return []
            time.sleep(min(rest, 0.5))


@breaks("test_wake_is_quick")
class WakesTwiceASecond(MemoryConsumer):
    """Hears its bell at its next look."""

    def wake(self) -> None:
        threading.Timer(0.5, super().wake).start()


# -- delay and ttl -----------------------------------------------------------------------------


class Rewriting(MemoryPublisher):
    """Publishes `rewrite(message)` in place of each message."""

    def rewrite(self, message: Message) -> Message:
        raise NotImplementedError

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        super().publish(queue, [self.rewrite(message) for message in messages], timeout)


@breaks("test_a_delay_is_waited_for")
class WaitsForNothing(Rewriting):
    """Hands out at once what was to wait."""

    def rewrite(self, message: Message) -> Message:
        return structs.replace(message, delay=0)


@breaks("test_a_delay_is_waited_for")
class ComesEarly(Rewriting):
    """Rounds delays down."""

    def rewrite(self, message: Message) -> Message:
        return structs.replace(message, delay=message.delay * 0.8)


@breaks("test_a_delay_is_waited_for")
class NeverComes(Rewriting):
    """Forgets what it was told to keep for later."""

    def rewrite(self, message: Message) -> Message:
        return structs.replace(message, delay=message.delay * 1000)


@breaks("test_a_short_delay_overtakes_a_long_one")
class WaitsInLine(MemoryPublisher):
    """Keeps all that waits in one line, in which nobody overtakes."""

    longest = 0.0

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        for message in messages:
            if message.delay:
                self.longest = max(self.longest, message.delay)
                message = structs.replace(message, delay=self.longest)
            super().publish(queue, [message], timeout)


@breaks("test_delays_and_properties")
class ForgetsPriorities(Rewriting):
    """Puts all that waits on the same level."""

    def rewrite(self, message: Message) -> Message:
        return structs.replace(message, priority=4) if message.delay else message


@breaks("test_a_delay_to_a_missing_queue_is_unroutable")
class TakesForNobody(MemoryPublisher):
    """Looks for the queue only when the time has come."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        if queue in self.store.shelves:
            super().publish(queue, messages, timeout)


class Settling(MemoryConsumer):
    """Settles `settled_as(retry)` in place of each Retry."""

    def settled_as(self, retry: Retry) -> Retry:
        raise NotImplementedError

    def settle_one(self, outcome: Outcome) -> None:
        super().settle_one(self.settled_as(outcome) if isinstance(outcome, Retry) else outcome)


@breaks("test_a_retry_waits")
class RetriesAtOnce(Settling):
    """Tries again and again, as fast as it can."""

    def settled_as(self, retry: Retry) -> Retry:
        return structs.replace(retry, delay=0)


@breaks("test_a_retry_waits")
class HoldsWhatWaits(MemoryConsumer):
    """Keeps a message that is to wait in its own hands."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        super().settle([o for o in outcomes if not (isinstance(o, Retry) and o.delay)])


@breaks("test_another_time_is_not_an_attempt")
class CountsAllAsFailed(Settling):
    """Takes every return for a failure."""

    def settled_as(self, retry: Retry) -> Retry:
        return structs.replace(retry, failed=True)


@breaks("test_a_message_may_expire")
class KeepsForEver(Rewriting):
    """Knows the times of queues, but not of messages."""

    def rewrite(self, message: Message) -> Message:
        return structs.replace(message, ttl=None)


@breaks("test_a_message_may_expire")
class ExpiresAllTogether(MemoryPublisher):
    """Takes the time of one message for that of all."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        shortest = min((m.ttl for m in messages if m.ttl is not None), default=None)
        super().publish(queue, [structs.replace(m, ttl=shortest) for m in messages], timeout)


@breaks("test_delays_survive_their_consumer")
class TakesWhatWaitsAlong(MemoryConsumer):
    """Drops, when it closes, what it was to hand out later."""

    def close(self) -> None:
        self.shelf.delayed.clear()
        super().close()


@breaks("test_a_ttl_counts_from_when_it_is_ready")
class CountsFromTheSending(MemoryPublisher):
    """Lets a message grow old while it waits for its time."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        with self.store.changed:
            super().publish(queue, messages, timeout)
            for entry in self.store.shelf(queue).delayed:
                entry.expires_at -= entry.since - self.store.clock()


@breaks("test_a_queues_ttl_begins_again_with_a_retry")
class RetriesForEver(MemoryConsumer):
    """Forgets the queue's ttl when it makes a copy."""

    def settle_one(self, outcome: Outcome) -> None:
        super().settle_one(outcome)
        if isinstance(outcome, Retry):
            for entry in self.shelf.ready:
                entry.expires_at = math.inf


@breaks("test_what_is_out_does_not_expire")
class BuriesWhatIsOut(MemoryTransport):
    """Sets aside by the clock what somebody is at work on."""

    def stats(self, queue: str) -> QueueStats:
        with self.store.changed:
            for consumer in self.store.shelf(queue).consumers:
                for delivery, entry in list(consumer.out.items()):
                    if entry.expires_at <= self.store.clock():
                        self.store.bury(delivery, "expired", "")
            return super().stats(queue)


@breaks("test_what_is_out_does_not_expire")
class ForgivesWhatComesBack(MemoryConsumer):
    """Lets a message begin afresh each time that it was out."""

    def give_back(self, entry: Entry) -> None:
        entry.expires_at = math.inf
        super().give_back(entry)


@breaks("test_an_expired_letter_says_so")
class BuriesWithoutAReason(MemoryTransport):
    """Has nothing to say about what nobody came for."""

    def stats(self, queue: str) -> QueueStats:
        bury = self.store.bury
        silent = lambda delivery, _, *rest: bury(delivery, "", *rest)  # noqa: E731
        self.store.bury = silent  # type: ignore[method-assign]
        try:
            return super().stats(queue)
        finally:
            self.store.bury = bury  # type: ignore[method-assign]


# -- settle ------------------------------------------------------------------------------------


@breaks("test_acked_is_gone")
class ForgetsAcks(MemoryConsumer):
    """Keeps its acknowledgements to itself, and they are gone when it is."""

    def settle_one(self, outcome: Outcome) -> None:
        if isinstance(outcome, Ack):
            self.acked = [*getattr(self, "acked", []), self.out[outcome.delivery]]
        super().settle_one(outcome)

    def close(self) -> None:
        with self.store.changed:
            for entry in getattr(self, "acked", []):
                self.give_back(entry)
            self.acked: list[Entry] = []
        super().close()


@breaks("test_acked_is_gone")
class CountsAckedAsOut(MemoryConsumer):
    """Never comes down to nothing unsettled: its worker could not leave."""

    most = 0

    @property
    def unsettled(self) -> int:
        self.most = max(self.most, len(self.out), 1)
        return self.most


@breaks("test_received_is_not_settled")
class AcksWhatItHandsOut(MemoryConsumer):
    """Forgets a message once it has handed it out."""

    def close(self) -> None:
        self.out.clear()
        super().close()


@breaks("test_requeue_is_not_an_attempt")
class CountsHandingBack(MemoryConsumer):
    """Takes what was handed back for a failed attempt."""

    def settle_one(self, outcome: Outcome) -> None:
        super().settle_one(Retry(outcome.delivery) if isinstance(outcome, Requeue) else outcome)


@breaks("test_requeue_is_not_an_attempt")
class HidesHandingBack(MemoryConsumer):
    """Hands out again as if for the first time."""

    def give_back(self, entry: Entry) -> None:
        super().give_back(entry)
        entry.redelivered = False


class Copying(MemoryConsumer):
    """Puts on a Retry what `copy` makes of it."""

    def copy(self, delivery: Delivery) -> Message:
        raise NotImplementedError

    def settle_one(self, outcome: Outcome) -> None:
        if isinstance(outcome, Retry):
            self.store.put(self.shelf, self.copy(outcome.delivery))
            del self.out[outcome.delivery]
        else:
            super().settle_one(outcome)


@breaks("test_retry_counts")
class NeverCounts(Copying):
    """Tries again for ever, each time for the first time."""

    def copy(self, delivery: Delivery) -> Message:
        return delivery.message


@breaks("test_retry_counts")
class RetriesUnderAnotherName(Copying):
    """Gives the copy an id of its own."""

    def copy(self, delivery: Delivery) -> Message:
        return structs.replace(retry_copy(delivery), id=new_id())


@breaks("test_retry_counts")
class BlanksHeaders(Copying):
    """Loses what the sender wrote into the headers."""

    def copy(self, delivery: Delivery) -> Message:
        copied = retry_copy(delivery)
        headers = {
            name: value if name.startswith("workqueue-") else None
            for name, value in copied.headers.items()
        }
        return structs.replace(copied, headers=headers)


@breaks("test_reject_sets_aside")
class DropsTheRejected(MemoryConsumer):
    """Takes a rejected message for a finished one."""

    def settle_one(self, outcome: Outcome) -> None:
        super().settle_one(Ack(outcome.delivery) if isinstance(outcome, Reject) else outcome)


@breaks("test_reject_sets_aside")
class KeepsTheRejected(MemoryConsumer):
    """Sets a copy aside and hands the original out again."""

    def settle_one(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reject):
            self.give_back(self.out[outcome.delivery])
        super().settle_one(outcome)


@breaks("test_reject_sets_aside")
class SetsAsideWithoutAWord(MemoryConsumer):
    """Loses the reason."""

    def settle_one(self, outcome: Outcome) -> None:
        super().settle_one(Reject(outcome.delivery, "") if isinstance(outcome, Reject) else outcome)


@breaks("test_a_foreign_message_gets_an_id_with_its_copy")
class LeavesCopiesNameless(Copying):
    """Copies the id that is not there."""

    def copy(self, delivery: Delivery) -> Message:
        return structs.replace(retry_copy(delivery), id=delivery.message.id)


@breaks("test_a_mixed_batch")
class SettlesAllAlike(MemoryConsumer):
    """Takes the first outcome of a batch for all of them."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        kind = type(outcomes[0]) if outcomes else Ack
        if kind is Reject:
            return super().settle(outcomes)
        return super().settle([kind(outcome.delivery) for outcome in outcomes])


@breaks("test_a_mixed_batch")
class AcksAllUpTo(MemoryConsumer):
    """Takes an acknowledgement for all that was received before, too."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        received = list(self.out)
        done = [received.index(o.delivery) for o in outcomes if isinstance(o, Ack)]
        covered = received[: max(done, default=-1) + 1]
        super().settle([Ack(o.delivery) if o.delivery in covered else o for o in outcomes])


@breaks("test_settling_twice")
class ForgivesASecondWord(MemoryConsumer):
    """Ignores what it does not know."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        super().settle([outcome for outcome in outcomes if outcome.delivery in self.out])


@breaks("test_settling_twice")
class SettlesUntilItStumbles(MemoryConsumer):
    """Notices the second word when the rest of the batch is settled already."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            super().settle([outcome])


class Numbering(MemoryConsumer):
    """Knows its deliveries by their number, which begins at one in each consumer."""

    def take(self, limit: int) -> list[Delivery]:
        taken = []
        for delivery in super().take(limit):
            self.number = getattr(self, "number", 0) + 1
            numbered = structs.replace(delivery, receipt=self.number)
            self.out[numbered] = self.out.pop(delivery)
            taken.append(numbered)
        return taken


@breaks("test_deliveries_belong_to_their_consumer")
class SettlesByNumber(Numbering):
    """Takes another consumer's delivery for the one of its own with that number."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        mine = {delivery.receipt: delivery for delivery in self.out}
        super().settle(
            [
                structs.replace(outcome, delivery=mine[outcome.delivery.receipt])
                if outcome.delivery.receipt in mine
                else outcome
                for outcome in outcomes
            ]
        )


@breaks("test_deliveries_belong_to_their_consumer")
class SettlesAfterItsEnd(MemoryConsumer):
    """Takes an acknowledgement with nobody left to tell."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        if not self.closed:
            super().settle(outcomes)


@breaks("test_settling_nothing")
class WantsAnOutcome(MemoryConsumer):
    """Takes an empty batch for a mistake."""

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        if not outcomes:
            raise ValueError("settled once, and nothing else")
        super().settle(outcomes)


@breaks("test_a_retry_is_not_redelivered")
class FlagsRetries(MemoryConsumer):
    """Takes the next attempt for the same one that came back."""

    def take(self, limit: int) -> list[Delivery]:
        taken = []
        for delivery in super().take(limit):
            flagged = structs.replace(delivery, redelivered=delivery.attempt > 1)
            self.out[flagged] = self.out.pop(delivery)
            taken.append(flagged)
        return taken


@breaks("test_a_dead_letter_has_its_error")
class ForgetsTheTraceback(MemoryConsumer):
    """Keeps the reason alone."""

    def settle_one(self, outcome: Outcome) -> None:
        if isinstance(outcome, Reject):
            outcome = Reject(outcome.delivery, outcome.reason)
        super().settle_one(outcome)


@breaks("test_settling_for_a_deleted_queue")
class SettlesAtAGrave(MemoryConsumer):
    """Settles as if its queue were there."""

    def check(self) -> None:
        if self.closed:
            raise ConsumerLost("this consumer is closed")


# -- life --------------------------------------------------------------------------------------


@breaks("test_closing_gives_back")
class TakesItsDeliveriesAlong(MemoryConsumer):
    """Closes with what it held."""

    def give_back(self, entry: Entry) -> None:
        pass


@breaks("test_what_came_back_says_so")
class HidesThatItWasOut(MemoryConsumer):
    """Gives back as if it had never been out."""

    def give_back(self, entry: Entry) -> None:
        super().give_back(entry)
        entry.redelivered = False


@breaks("test_what_came_back_says_so")
class CountsALossAsAnAttempt(MemoryConsumer):
    """Blames the task for the end of its consumer."""

    def close(self) -> None:
        with self.store.changed:
            for delivery, entry in self.out.items():
                entry.message = retry_copy(delivery)
        super().close()


class Buffering(MemoryConsumer):
    """Fetches as many as it may hold, and hands them out as they are asked for."""

    def take(self, limit: int) -> list[Delivery]:
        self.buffer = getattr(self, "buffer", [])
        if not self.paused:
            self.buffer += super().take(self.prefetch or 1_000)
        taken, self.buffer = self.buffer[:limit], self.buffer[limit:]
        return taken


@breaks("test_holding_less")
class HoldsLessWithFullHands(Buffering):
    """Fetches less from now on, and keeps what it has fetched."""


@breaks("test_pause_gives_back_what_was_not_received")
class DrainsWithFullHands(Buffering):
    """Fetches no more, and keeps what it has fetched."""


@breaks("test_pause_gives_back_what_was_not_received")
class NeverPauses(MemoryConsumer):
    """Goes on taking from the others when it should leave."""

    def pause(self) -> None:
        pass

    def take(self, limit: int) -> list[Delivery]:
        self.buffer = getattr(self, "buffer", [])
        self.buffer += super().take(self.prefetch or 1_000)
        taken, self.buffer = self.buffer[:limit], self.buffer[limit:]
        return taken


@breaks("test_a_deleted_queue_loses_its_consumers")
class WaitsAtAGrave(MemoryConsumer):
    """Does not notice that its queue is gone."""

    def check(self) -> None:
        if self.closed:
            raise ConsumerLost("this consumer is closed")


@breaks("test_a_deleted_queue_loses_its_consumers")
class DeletesOnlyOnce(MemoryTransport):
    """Makes an error of a queue that is not there to be deleted."""

    def delete(self, queue: str) -> None:
        with self.store.changed:
            self.store.shelf(queue)
        super().delete(queue)


@breaks("test_closing_twice")
class ClosesOnce(MemoryConsumer):
    """Makes an error of a second close."""

    def close(self) -> None:
        self.check()
        super().close()


@breaks("test_closing_twice")
class PublisherClosesOnce(MemoryPublisher):
    """Makes an error of a second close."""

    def close(self) -> None:
        if self.closed:
            raise ConnectionLost("this publisher is closed")
        super().close()


@breaks("test_closing_twice")
class PlaysDead(MemoryConsumer):
    """Is closed, and says that there is nothing."""

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        return [] if self.closed else super().receive(limit, timeout)


@breaks("test_closing_gives_back_at_once")
class GivesBackLater(MemoryConsumer):
    """Leaves what it held to a clean-up that comes by now and then."""

    def close(self) -> None:
        threading.Timer(0.5, super().close).start()


@breaks("test_closing_is_no_death")
class CountsFarewells(MemoryConsumer):
    """Takes each return for a death."""

    def take(self, limit: int) -> list[Delivery]:
        taken = []
        for delivery in super().take(limit):
            counted = structs.replace(delivery, deaths=int(delivery.redelivered))
            self.out[counted] = self.out.pop(delivery)
            taken.append(counted)
        return taken


class SQLiteOf(SQLiteTransport):
    """SQLite whose consumers are of `kind`."""

    kind: type[SQLiteConsumer] = SQLiteConsumer

    def consumer(self, queue: str, prefetch: int) -> SQLiteConsumer:
        return self.kind(self.address, queue, prefetch)


class Mourning(SQLiteConsumer):
    def beat(self) -> None:
        self.next_beat = time.monotonic() + 60.0


@breaks("test_a_killed_process_gives_back")
class NeverLooksForTheDead(SQLiteOf):
    """Waits for what a killed worker held."""

    kind = Mourning


class Forgetful(SQLiteConsumer):
    def take(self, room: int) -> list[Delivery]:
        taken = [structs.replace(delivery, deaths=0) for delivery in super().take(room)]
        self.out = set(taken)
        return taken


@breaks("test_deaths_are_counted")
class CountsNoDeaths(SQLiteOf):
    """Hands out what kills its workers again and again, as if for the first time."""

    kind = Forgetful


@breaks("test_pause_takes_nothing_new")
class PausesInName(MemoryConsumer):
    """Gives back what it holds, and goes on taking."""

    def pause(self) -> None:
        pass


# -- look and mend -----------------------------------------------------------------------------


class Misreporting(MemoryTransport):
    """Tells figures as `tell` has them."""

    def tell(self, stats: QueueStats) -> QueueStats:
        raise NotImplementedError

    def stats(self, queue: str) -> QueueStats:
        return self.tell(super().stats(queue))


@breaks("test_stats_count_what_is_where")
class SaysZeroForUnknown(Misreporting):
    """Has nothing in flight, ever."""

    def tell(self, stats: QueueStats) -> QueueStats:
        return dataclasses.replace(stats, in_flight=0)


@breaks("test_stats_count_what_is_where")
class CountsWhatIsOutAsReady(Misreporting):
    """Counts everything as waiting."""

    def tell(self, stats: QueueStats) -> QueueStats:
        assert stats.ready is not None
        assert stats.in_flight is not None
        return dataclasses.replace(stats, ready=stats.ready + stats.in_flight)


@breaks("test_stats_count_what_is_where")
class CountsAMissingQueueAsEmpty(MemoryTransport):
    """Shows a queue that is not there."""

    def stats(self, queue: str) -> QueueStats:
        try:
            return super().stats(queue)
        except QueueNotFound:
            return QueueStats(ready=0)


@breaks("test_stats_count_the_dead")
class SeesNoDead(Misreporting):
    """Hides the dead letters."""

    def tell(self, stats: QueueStats) -> QueueStats:
        return dataclasses.replace(stats, dead=0)


@breaks("test_what_waits_too_long_is_dead")
class NeverExpires(MemoryTransport):
    """Knows no time to live."""

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        return super().declare(dataclasses.replace(spec, ttl=None), dry_run=dry_run)


@breaks("test_what_waits_too_long_is_dead")
class DropsTheExpired(MemoryTransport):
    """Expires without a trace."""

    def stats(self, queue: str) -> QueueStats:
        shelf = self.store.shelves.get(queue)
        if shelf and shelf.spec.ttl:
            shelf.ready.clear()
        return super().stats(queue)


@breaks("test_what_waits_too_long_is_dead")
class ExpiresAndHandsOut(MemoryTransport):
    """Sets a copy of the expired aside, and works on it all the same."""

    def stats(self, queue: str) -> QueueStats:
        shelf: Shelf | None = self.store.shelves.get(queue)
        kept = [entry.message for entry in shelf.ready] if shelf else []
        found = super().stats(queue)
        if shelf and found.dead and kept:
            for message in kept:
                self.store.put(shelf, message)
        return found


@breaks("test_peek_takes_nothing")
class PeeksByTaking(MemoryTransport):
    """Shows what it takes away."""

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        seen = super().peek(queue, limit, state)
        del self.store.shelf(queue).ready[:limit]
        return seen


@breaks("test_peek_takes_nothing")
class PeeksFromBehind(MemoryTransport):
    """Shows the last ones as the next ones."""

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        return super().peek(queue, 10_000, state)[::-1][:limit]


@breaks("test_peek_takes_nothing")
class PeeksAndCounts(MemoryTransport):
    """Takes a look for a failure."""

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        seen = super().peek(queue, limit, state)
        for entry in self.store.shelf(queue).ready:
            entry.message = retry_copy(Delivery(message=entry.message, queue=queue))
        return seen


@breaks("test_peek_sees_what_is_delayed")
class SeesNothingWaiting(MemoryTransport):
    """Shows nothing where it ought to say that it cannot see."""

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        return [] if state == "delayed" else super().peek(queue, limit, state)


@breaks("test_peek_sees_what_is_delayed")
class ShowsTheLastFirst(MemoryTransport):
    """Shows first what is due last."""

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        seen = super().peek(queue, 10_000, state)
        return (seen[::-1] if state == "delayed" else seen)[:limit]


@breaks("test_migrate_keeps_the_messages")
class MigratesByDeleting(MemoryTransport):
    """Makes the queue again, and does not ask what was in it."""

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        self.stats(spec.name)
        self.delete(spec.name)
        self.declare(spec)
        say("done")
        return 0


@breaks("test_migrate_keeps_the_messages")
class MigratesNothing(MemoryTransport):
    """Says that it has done it."""

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        self.stats(spec.name)
        say("done")
        return 0


@breaks("test_migrate_keeps_the_messages")
class MigratesInSilence(MemoryTransport):
    """Says nothing of what it does."""

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        return super().migrate(spec, lambda _: None, force=force)


@breaks("test_purge_drops_what_is_ready")
class PurgesNothing(MemoryTransport):
    """Says how many it would have dropped."""

    def purge(self, queue: str) -> int:
        return len(self.store.shelf(queue).ready)


@breaks("test_purge_drops_what_is_ready")
class CountsWhatIsOutAsDropped(MemoryTransport):
    """Says that it dropped what somebody is working on."""

    def purge(self, queue: str) -> int:
        out = sum(len(consumer.out) for consumer in self.store.shelf(queue).consumers)
        return super().purge(queue) + out


@breaks("test_purge_drops_what_is_ready")
class PurgesWhatIsNotThere(MemoryTransport):
    """Drops nothing of a queue that was misspelt, and calls that success."""

    def purge(self, queue: str) -> int:
        return super().purge(queue) if queue in self.store.shelves else 0


@breaks("test_queues_are_apart")
class MixesQueues(MemoryPublisher):
    """Puts each message into all queues."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        for name in [queue, *(set(self.store.shelves) - {queue})]:
            super().publish(name, messages, timeout)


@breaks("test_stats_count_what_was_sent_and_done")
class CountsForEver(Misreporting):
    """Counts consumers that are gone."""

    def tell(self, stats: QueueStats) -> QueueStats:
        return dataclasses.replace(stats, consumers=(stats.consumers or 0) + 7)


@breaks("test_stats_count_what_was_sent_and_done")
class GivesTheTimeOfDay(Misreporting):
    """Says when the oldest came, and not how long it has waited."""

    def tell(self, stats: QueueStats) -> QueueStats:
        return dataclasses.replace(stats, oldest=time.time())


@breaks("test_stats_count_what_was_sent_and_done")
class CountsNothingSent(Misreporting):
    """Says that nothing was ever sent."""

    def tell(self, stats: QueueStats) -> QueueStats:
        return dataclasses.replace(stats, sent=0)


@breaks("test_stats_count_what_was_sent_and_done")
class CountsAllAsDone(Misreporting):
    """Takes what was sent for done."""

    def tell(self, stats: QueueStats) -> QueueStats:
        return dataclasses.replace(stats, done=stats.sent)


@breaks("test_queues_are_listed")
class ListsNothing(MemoryTransport):
    """Knows of no queue."""

    def queues(self) -> list[str]:
        return []


@breaks("test_peek_shows_nothing_that_is_out")
class ShowsWhatIsOut(MemoryTransport):
    """Shows all that there is."""

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        out = [
            delivery
            for consumer in self.store.shelf(queue).consumers
            for delivery in consumer.out
            if state == "ready"
        ]
        return [*out, *super().peek(queue, limit, state)][:limit]


@breaks("test_migrate_sets_all_parameters")
class MigratesInPart(MemoryTransport):
    """Sets what it was asked for, and leaves the rest as it was."""

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        ttl = spec.ttl or self.store.shelf(spec.name).spec.ttl
        return super().migrate(dataclasses.replace(spec, ttl=ttl), say, force=force)


@breaks("test_migrate_sets_all_parameters")
class MigratesWithoutTheTtl(MemoryTransport):
    """Knows of one parameter."""

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        return super().migrate(dataclasses.replace(spec, ttl=None), say, force=force)


@breaks("test_purge_leaves_what_waits_for_its_time")
class PurgesTheFuture(MemoryTransport):
    """Drops all that there is."""

    def purge(self, queue: str) -> int:
        self.store.shelf(queue).delayed.clear()
        return super().purge(queue)


@breaks("test_deleting_leaves_the_dead_letters")
class DeletesTheDead(MemoryTransport):
    """Takes the dead letters along."""

    def delete(self, queue: str) -> None:
        super().delete(queue)
        super().delete(queue + DEAD_SUFFIX)
