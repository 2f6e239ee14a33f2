"""The seam between the core and a broker.

A transport is three small objects. `Transport` owns configuration and no sockets; it makes a
`Publisher` for those who send and a `Consumer` for those who work. Drivers translate between this
seam and a broker; the core decides. So a driver never sleeps to try again, never reconnects,
never decodes a body, and lets none of its libraries' errors through: each becomes one of
`workqueue.errors`, raised from the original.

The docstrings below are the contract. A name in brackets, like [test_acked_is_gone], is the test
of `workqueue.testing.TransportSuite` that holds a transport to the sentence before it. All else
describes what callers do, or what no test can ask of every transport.

All times are seconds, as floats. A queue NAME has its dead letters in the queue NAME.dead, which
is a queue like any other [test_the_dead_letter_queue_is_a_queue]: what is set aside while it is
worked on goes to NAME.dead.dead, which is made when it is needed
[test_dead_letters_have_dead_letters]. NAME's ttl and bound are not those of NAME.dead
[test_dead_letters_keep].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from msgspec import Struct

from workqueue.errors import ConfigError
from workqueue.message import LONGEST_TTL, Delivery, Message

QueueType = Literal["quorum", "classic"]
State = Literal["ready", "delayed"]

DEAD_SUFFIX = ".dead"
LONGEST_NAME = 255 - len(DEAD_SUFFIX)
"""Bytes of UTF-8: AMQP names are short strings of 255, and the dead-letter queue needs its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """A queue by name, and what was asked of it; None stands for "not asked".

    `type` is how RabbitMQ keeps it: replicated ("quorum", the default of a new queue) or on one
    node ("classic"). A transport that knows no such types keeps the word, or raises Unsupported
    [test_a_type_is_taken_or_unsupported].

    `max_length` bounds the messages that are ready: a full queue refuses more
    [test_a_full_queue_refuses]. What is out or waits for its time does not count, and what comes
    back from a consumer is never refused [test_a_bound_is_for_what_is_ready]. A sender that waits
    for each message passes the bound by ten at most [test_a_bound_holds_for_one_at_a_time]; one
    that sends many in one call, by what is on its way when the queue fills up (RabbitMQ: 2,000).

    `ttl` is how long a message may be ready, in seconds, before it becomes a dead letter
    [test_what_waits_too_long_is_dead]. It begins again with a Retry
    [test_a_queues_ttl_begins_again_with_a_retry], and goes on after a Requeue.

    Raises ConfigError for a name no broker would take, or an option that makes no sense.
    """

    name: str
    type: QueueType | None = None
    max_length: int | None = None
    ttl: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.type not in (None, "quorum", "classic"):
            raise ConfigError(f"queue type {self.type!r}: choose quorum or classic")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"max length {self.max_length}: a queue must hold one message")
        if self.ttl is not None and not 0.001 <= self.ttl <= LONGEST_TTL:
            raise ConfigError(f"ttl {self.ttl:g} s: choose between 1 ms and 10 years")

    @property
    def asks(self) -> bool:
        """Whether anything but the name was given."""
        return not (self.type is None and self.max_length is None and self.ttl is None)

    def differences(self, existing: QueueSpec) -> dict[str, tuple[object, object]]:
        """What differs, as `{parameter: (wanted, existing)}`; a type not asked for suits any."""
        if not self.asks:
            return {}
        wanted = {
            "type": self.type or existing.type,
            "max length": self.max_length,
            "ttl": self.ttl,
        }
        found = {"type": existing.type, "max length": existing.max_length, "ttl": existing.ttl}
        return {name: (wanted[name], found[name]) for name in wanted if wanted[name] != found[name]}


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` can name a queue on every transport."""
    if not name:
        raise ConfigError("a queue needs a name")
    if not name.isprintable():
        raise ConfigError(f"queue name {name!r}: only printable characters")
    longest = LONGEST_NAME + len(DEAD_SUFFIX) * name.endswith(DEAD_SUFFIX)
    if len(name.encode()) > longest:
        raise ConfigError(f"queue name {name[:20]}…: longer than {LONGEST_NAME} bytes of UTF-8")
    if name.startswith("amq."):
        raise ConfigError(f"queue name {name}: names that begin with amq. are RabbitMQ's own")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    """How much is where in a queue. None is "the broker will not say", never a false 0.

    `ready` wait for a worker, `delayed` for their time, `in_flight` are lent to consumers, `dead`
    are in the dead-letter queue [test_stats_count_what_is_where, test_stats_count_the_dead].
    `consumers` are as the broker counts them: one or more per worker, and perhaps none of one that
    can take nothing at the moment. `oldest` is how long the oldest ready message has waited, in
    seconds. `sent` and `done` count what was published to the queue and what was acknowledged,
    since some time in the past: they are for comparing two looks
    [test_stats_count_what_was_sent_and_done].
    `age` is how old the figures may be that are samples (all but `ready`, `dead` and `consumers`),
    in seconds; None if everything is of this moment.
    """

    ready: int | None = None
    delayed: int | None = None
    in_flight: int | None = None
    dead: int | None = None
    consumers: int | None = None
    oldest: float | None = None
    sent: int | None = None
    done: int | None = None
    age: float | None = None


class Ack(Struct, frozen=True):
    """The work is done: forget the message."""

    delivery: Delivery


class Retry(Struct, frozen=True):
    """Hand the message out again after `delay` seconds, in which the broker keeps it.

    The attempt failed, and that goes on record, unless `failed` is false: then the handler asked
    for another time. `reason` is for people; nothing is done with it here.
    """

    delivery: Delivery
    reason: str = ""
    delay: float = 0.0
    failed: bool = True


class Reject(Struct, frozen=True):
    """Set the message aside in the dead-letter queue.

    `reason` is one line; `error` the end of a traceback or of a command's stderr.
    """

    delivery: Delivery
    reason: str
    error: str = ""


class Requeue(Struct, frozen=True):
    """Handed back untouched: not an attempt, where the broker allows the difference."""

    delivery: Delivery


Outcome = Ack | Retry | Reject | Requeue


class Transport(Protocol):
    """A broker as configured by one URL. Thread-safe [test_publishers_in_threads]; it may keep a
    connection for looking, which `close` lets go of.

    Every method may raise ConnectionLost (nobody answers, or not now: a server that starts, a
    stand-by that is read-only), AccessRefused (a login, a permission, a database that is not
    there: it will be refused again) or StorageError (the disk is full, the file cannot be used). A
    URL that makes no sense is a ConfigError of the constructor. All errors are those of
    `workqueue.errors`, with a text of one line, raised from the original.
    """

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        """The queue exists, and its dead-letter queue beside it. True if this call made it; of
        several at the same time more than one may say so [test_declared_by_many_at_once].

        Declaring twice changes nothing [test_declaring_twice]. A spec that asks for nothing takes
        an existing queue as it is [test_a_name_alone_takes_the_queue_as_it_is]; one that asks is
        compared, and a difference raises QueueMismatch with all that differs
        [test_other_parameters_are_a_mismatch]. With `dry_run` it is only said what would be
        done [test_a_dry_run_makes_nothing]. What the queue's type cannot have raises Unsupported.
        """
        ...

    def publisher(self) -> Publisher:
        """A connection for sending, apart from those of consumers.

        A broker that blocks publishers must not block consumers with them. Where nobody answers,
        this or the first `publish` raises ConnectionLost within ten seconds
        [test_connecting_ends].
        """
        ...

    def consumer(self, queue: str, prefetch: int) -> Consumer:
        """A connection for working on `queue`, holding at most `prefetch` deliveries.

        0 is unlimited. Raises QueueNotFound [test_no_consumer_without_a_queue]. With several
        consumers each message goes to one of them [test_each_message_goes_to_one_consumer].
        """
        ...

    def stats(self, queue: str) -> QueueStats:
        """How much is where [test_stats_count_what_is_where]. Raises QueueNotFound.

        Looking may set aside what has expired, so it may write, here and in `peek`: with nobody at
        work on a queue its dead letters are still counted [test_a_message_may_expire].
        """
        ...

    def queues(self) -> list[str]:
        """The names of all queues, sorted, those of dead letters too [test_queues_are_listed].
        Raises Unsupported where the broker will not say."""
        ...

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        """The next `limit` messages as they would be handed out, left where they are
        [test_peek_takes_nothing], without what is out [test_peek_shows_nothing_that_is_out]; or
        those that wait for their time [test_peek_sees_what_is_delayed].

        They cannot be settled. Where the broker can only lend them and take them back, that
        counts as it must. Raises QueueNotFound; Unsupported for a state that cannot be seen.
        """
        ...

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        """The existing queue gets the parameters of `spec`, all of them
        [test_migrate_sets_all_parameters], and keeps its messages
        [test_migrate_keeps_the_messages]. How many were moved, 0 where the queue was changed in
        its place; `say` is given a line for each step.

        Meanwhile our senders and workers meet QueueMigrating and go on by themselves. Whoever
        sends past us is not held off: where there may be such, or where the transport cannot know
        what others route to the queue and could not keep it, Unsupported unless `force`.
        Interrupted at any point nothing is lost, and calling it again goes on. Raises
        QueueNotFound.
        """
        ...

    def purge(self, queue: str) -> int:
        """Drop what is ready, and say how much that was [test_purge_drops_what_is_ready].

        What is in flight stays, and what waits for its time
        [test_purge_leaves_what_waits_for_its_time]. Raises QueueNotFound.
        """
        ...

    def delete(self, queue: str) -> None:
        """The queue is gone, and all in it; its dead letters stay in theirs
        [test_deleting_leaves_the_dead_letters], and other queues as they are
        [test_queues_are_apart].

        Its consumers are lost [test_a_deleted_queue_loses_its_consumers], and do not settle any
        more [test_settling_for_a_deleted_queue]. A queue that is not there is no error.
        """
        ...

    def close(self) -> None:
        """Let go of what is cached; safe to call twice [test_closing_twice]."""
        ...


class Publisher(Protocol):
    """Sends. One thread at a time."""

    def publish(self, queue: str, messages: Sequence[Message], timeout: float) -> None:
        """All of `messages` are safe with the broker, in this order [test_order_is_kept], however
        many they are [test_many_messages_in_one_call]. Returns None.

        Safe is what the broker promises at its strongest: confirmed by RabbitMQ, committed to
        disk by SQLite. None at all is fine [test_publishing_nothing]. Body and properties arrive
        as they were [test_properties_travel, test_bodies_of_any_size,
        test_any_bytes_and_any_headers]. The value of a header is None, a bool, a number, text, or
        a list or dict of such; also bytes, whole numbers of 64 bits and the character NUL
        [test_headers_that_json_has_no_words_for].

        Of what is ready, a higher `priority` is handed out first, and the same as it was sent
        [test_higher_priorities_come_first]. A message with a `delay` is not handed out before its
        time [test_a_delay_is_waited_for], is the same then [test_delays_and_properties], and does
        not hold up another [test_a_short_delay_overtakes_a_long_one]. One whose `ttl` has passed
        since it was ready [test_a_ttl_counts_from_when_it_is_ready] is a dead letter
        [test_a_message_may_expire] whose reason is "expired" [test_an_expired_letter_says_so]. It
        does not expire while a consumer has it, and its time goes on meanwhile
        [test_what_is_out_does_not_expire]. The header EXPIRES_AT is the Producer's and the
        worker's: no driver reads or writes it.

        Otherwise raises NotSent, whose `failures` pair each message that is not known to be safe,
        by the very object that was passed [test_failures_are_the_very_objects], with its cause:
        Unroutable [test_a_missing_queue_is_unroutable,
        test_a_delay_to_a_missing_queue_is_unroutable], QueueFull [test_a_full_queue_refuses],
        TooLarge, Refused, or Unconfirmed when the broker did not answer within `timeout` seconds
        or the connection went away. All others are safe, and `sent` is their number. Raises
        ConnectionLost if none was written. Never tries again by itself. Whatever the broker does
        or does not do, it ends within a second of `timeout` [test_publish_keeps_its_timeout].

        After any error but QueueFull, Unroutable and TooLarge the publisher is used up: close it.
        """
        ...

    def close(self) -> None:
        """Hang up; safe to call twice [test_closing_twice]."""
        ...


class Consumer(Protocol):
    """Lends messages and takes their outcomes. One thread, except `wake`.

    Nothing that was received and not settled is ever lost [test_received_is_not_settled]: if the
    consumer closes, or dies in any way, its deliveries go to others, flagged as redelivered
    [test_closing_gives_back, test_what_came_back_says_so, test_a_killed_process_gives_back]: at
    once if it closes [test_closing_gives_back_at_once], and else as soon as its end can be known.
    `Delivery.deaths` is one more for each consumer that died with it [test_deaths_are_counted], and
    no more for one that closed [test_closing_is_no_death], as far as the broker can tell. A
    transport that cannot read the properties of a message hands it out all the same, with the
    reason as `Delivery.unreadable`, which is None for what was sent through it
    [test_a_first_delivery].

    A lost consumer is finished: `receive` and `settle` raise ConsumerLost from then on, and what
    it held can be settled nowhere else [test_deliveries_belong_to_their_consumer]. A worker then
    opens another; where that would be no better, ConsumerLost is raised from StorageDamaged, which
    ends the worker.
    """

    @property
    def unsettled(self) -> int:
        """Deliveries received whose fate is not final: not settled yet
        [test_prefetch_bounds_what_is_out], or the broker has not confirmed the copy that a Retry
        or Reject made. 0 when all is settled [test_acked_is_gone]."""
        ...

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """Between one and `limit` deliveries, as soon as there is one
        [test_receive_waits_for_a_message, test_a_message_is_handed_out_at_once]; never more than
        `limit`, however many wait [test_limit_is_kept_with_a_backlog]. A first delivery is attempt
        one and not redelivered [test_a_first_delivery].

        Empty after `timeout` seconds [test_receive_gives_up], or once `wake` was called
        [test_wake_ends_the_wait, test_wake_is_remembered]. Whatever the broker does or does not
        do, it ends within a second of `timeout` [test_receive_keeps_its_timeout]. With `limit` 0
        nothing is taken [test_limit_zero_takes_nothing]: the worker calls it so while all its slots
        are busy, because this call is also what keeps the consumer alive (heartbeats). A worker
        calls it at least about once a second while a consumer is open, also while its tasks take
        hours; unless a task keeps the interpreter to itself. Never more than the prefetch are out
        at once [test_prefetch_bounds_what_is_out, test_prefetch_is_kept_with_a_backlog], and what
        one consumer holds keeps no other from the rest
        [test_a_held_message_does_not_block_others].

        Raises ConsumerLost, soon after the connection is gone [test_a_cut_consumer_is_lost]; or
        DeliveriesLost when the broker took single deliveries back and the consumer goes on:
        settling one of those before this was raised is ignored.
        """
        ...

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """One mixed batch of outcomes [test_a_mixed_batch], or none [test_settling_nothing].

        Ack: gone for good [test_acked_is_gone]. It is on its way to the broker when this returns:
        if the connection goes just then, the message may come once more. Requeue: ready again, same
        attempt, redelivered [test_requeue_is_not_an_attempt]. Retry: ready again with the next
        attempt, same id, body and properties [test_retry_counts], not redelivered
        [test_a_retry_is_not_redelivered], after its delay [test_a_retry_waits], in which the broker
        keeps it [test_delays_survive_their_consumer]; one that did not fail at the same attempt
        [test_another_time_is_not_an_attempt]. Reject: in the dead-letter queue with its reason
        [test_reject_sets_aside] and error [test_a_dead_letter_has_its_error]. Copies of a message
        without an id get one [test_a_foreign_message_gets_an_id_with_its_copy]. A Retry or Reject
        drops the original only when its copy is safe, and settling does not wait for that. While a
        copy cannot be made safe it is tried again, and the original stays out: it counts in the
        prefetch, and is handed out again only if the consumer closes or is lost before.

        ValueError for a delivery that is not out at this consumer: of another one, or settled
        before [test_settling_twice]; then nothing of the batch is settled, and the text is the
        driver's own.
        """
        ...

    def hold(self, prefetch: int) -> None:
        """From now on at most `prefetch` deliveries are out [test_holding_more], 0 being unlimited.

        What was received already stays out, and counts [test_holding_less]; what `receive` has
        not returned and is too much goes back to the queue. Settling goes on.
        """
        ...

    def pause(self) -> None:
        """No new deliveries from now on [test_pause_takes_nothing_new]; what `receive` has not
        returned goes back to the queue.

        Settling goes on [test_pause_gives_back_what_was_not_received]. To a store that is asked for
        each delivery, `pause` and `hold` are only numbers: nothing was fetched that could go back.
        """
        ...

    def wake(self) -> None:
        """End the wait in `receive` at once [test_wake_is_quick]; remembered when nobody waits
        [test_wake_is_remembered]. Any thread; cheap."""
        ...

    def close(self) -> None:
        """Give back what is not settled, at once [test_closing_gives_back_at_once], and hang up;
        safe to call twice [test_closing_twice]."""
        ...


@runtime_checkable
class TakesBack(Protocol):
    """What a consumer may have besides: its broker does not wait for ever for a settlement."""

    @property
    def takes_back_after(self) -> float | None:
        """Seconds after which a delivery that is not settled goes to another consumer; None if
        that never happens, or if the broker does not tell."""
        ...


@runtime_checkable
class Hindered(Protocol):
    """What a consumer may have besides: it can tell that it takes nothing, and why."""

    @property
    def hindered(self) -> str | None:
        """Why no delivery can arrive at the moment, although there may be messages: outcomes that
        the broker does not take fill the prefetch, or the storage cannot be used. None if nothing
        is in the way. Any thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at, and how it is.

    "fail" is what loses messages or keeps them from moving, "warn" what may some day, or what
    could not be found out; "ok" was looked at and is well. `command` is what to type next.
    """

    state: Literal["ok", "warn", "fail"]
    check: str
    found: str
    command: str = ""
    queue: str | None = None


@runtime_checkable
class Examinable(Protocol):
    """What a transport may have besides: it looks a user's broker over, for `workqueue doctor`."""

    def examine(self, queues: Sequence[str], task_timeout: float | None) -> Iterator[Finding]:
        """How the broker is, and each of `queues`, or all it can list if none is named.

        `task_timeout` is how long tasks may run. Nothing is made or changed by looking. What
        goes wrong is found, not raised.
        """
        ...
