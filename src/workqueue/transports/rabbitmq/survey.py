"""What a queue that is already there is like.

AMQP has no question for a queue's arguments, but its refusals tell: declaring a queue again with
other arguments is refused with the first one that differs and its value. So the arguments are
found by taking each refusal's word until the broker agrees. For a queue of ours it agrees at once.

To declare, even again, a user needs the permission to configure. Users without it can still learn
the type: a consumer with an argument that only streams know is refused in words that name it.
"""

from __future__ import annotations

import re
import shlex
from typing import Any

import msgspec

from workqueue.errors import AccessRefused, ConfigError, QueueNotFound
from workqueue.transport import DEAD_SUFFIX, QueueSpec
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.topology import (
    NO_TIMEOUT,
    Abilities,
    parse_refusal,
    queue_arguments,
)

MOST_QUESTIONS = 25

QUORUM_ONLY = ("x-delivery-limit", "x-dead-letter-strategy", "x-consumer-timeout")
"""Arguments of ours that a classic queue cannot have, or need not be asked for: up to RabbitMQ 4.2
it may have an x-consumer-timeout, but declarations are not compared with it."""

SECOND_LOOKS = 3
"""At a queue that says it holds nothing: a quorum queue's leader that is busy for 250 ms is
reported as empty and without consumers."""

NOT_FOUND, ACCESS_REFUSED, LOCKED, PRECONDITION_FAILED = 404, 403, 405, 406


WORK_QUEUES = ("quorum", "classic")
"""Types of queues that hand each message to one consumer and drop it when it is acknowledged."""


class Survey(msgspec.Struct, frozen=True):
    """A queue's arguments as far as the broker told; None if it would not.

    `told_type` is the type where nothing but the type could be learned. `durable` and
    `auto_delete` are as the broker has them, where `arguments` are known.
    """

    queue: str
    abilities: Abilities
    arguments: dict[str, Any] | None
    told_type: str | None = None
    durable: bool = True
    auto_delete: bool = False

    @property
    def type(self) -> str | None:
        if self.arguments is None:
            return self.told_type
        return str(self.arguments.get("x-queue-type", "classic"))

    @property
    def ours(self) -> bool:
        """Whether it was made the way we make queues."""
        dead = self.queue + DEAD_SUFFIX
        return (self.arguments or {}).get("x-dead-letter-routing-key") == dead

    @property
    def own_timeout(self) -> float | None:
        """The acknowledgement timeout that its maker gave it, in seconds, where it can be known."""
        if self.arguments is None or not self.abilities.compares_timeout:
            return None
        timeout = self.arguments.get("x-consumer-timeout")
        return timeout / 1000 if isinstance(timeout, int) and timeout < NO_TIMEOUT else None

    @property
    def guarded(self) -> bool:
        """Whether what we receive stays ours until we settle it, however long that takes."""
        if self.type is None or not self.abilities.queue_sets_timeout:
            return False
        if self.type == "classic" and not self.abilities.classic_has_timeout:
            return True
        if self.abilities.consumer_sets_timeout:
            return self.own_timeout is None
        # Before 4.3 nobody can see a queue's timeout: only that we make quorum queues with one.
        return self.type == "quorum" and self.ours

    def consumer_arguments(self) -> dict[str, Any]:
        """A queue whose maker gave it a timeout keeps it; any other has none for us."""
        if self.type == "quorum" and self.abilities.consumer_sets_timeout and self.guarded:
            return {"x-consumer-timeout": NO_TIMEOUT}
        return {}

    def warning(self, version: str) -> str | None:
        """What must be known before long tasks are taken on, where it cannot be known how long is
        too long; None if nothing."""
        if self.guarded or self.own_timeout is not None:
            return None
        return (
            f"RabbitMQ {version} takes tasks of queue {self.queue} away after its consumer_timeout "
            f"(30 minutes unless configured): for longer ones set consumer_timeout = {NO_TIMEOUT} "
            "in rabbitmq.conf"
        )


def exists(link: Link, queue: str) -> bool:
    """Raises AccessRefused if we may not know, ConfigError if the queue is exclusive."""
    try:
        look(link, queue)
    except QueueNotFound:
        return False
    return True


def exchange_exists(link: Link, name: str) -> bool:
    """True also where this user may not know: RabbitMQ 4.3 tells only users who have some
    permission on it."""
    channel = link.channel()
    try:
        channel.exchange_declare(name, "direct", passive=True)
    except ChannelClosed as closed:
        if closed.code not in (NOT_FOUND, ACCESS_REFUSED):
            raise
        return closed.code == ACCESS_REFUSED
    channel.close()
    return True


def count(link: Link, queue: str) -> tuple[int, int]:
    """Ready messages and consumers. Raises QueueNotFound, and what `exists` raises."""
    counted = (0, 0)
    for _ in range(SECOND_LOOKS):
        counted = look(link, queue)
        if any(counted):
            break
    return counted


def look(link: Link, queue: str) -> tuple[int, int]:
    """What a passive declaration answers. RabbitMQ lets everybody ask, and since 4.3.1 only users
    who have some permission on the queue."""
    try:
        return declare(link, queue, None)
    except ChannelClosed as closed:
        if closed.code == NOT_FOUND:
            raise QueueNotFound(queue) from closed
        if closed.code == LOCKED:
            raise exclusive(queue) from closed
        if closed.code == ACCESS_REFUSED:
            # Any permission on it would do, whichever RabbitMQ names.
            raise not_allowed(link, f"queue {queue} is hidden", f"read {queue}") from closed
        raise


def survey(link: Link, queue: str, guess: dict[str, Any] | None = None) -> Survey:
    """What `queue` is like; `guess` is what it is expected to be. Raises QueueNotFound, and what
    `exists` raises."""
    look(link, queue)
    asked = Question(dict(guess or queue_arguments(QueueSpec(name=queue))))
    if find_arguments(link, queue, asked):
        flags = (asked.durable, asked.auto_delete)
        return Survey(queue, link.abilities, asked.arguments, None, *flags)
    return Survey(queue, link.abilities, None, asked.told_type or type_by_consuming(link, queue))


def exclusive(queue: str) -> ConfigError:
    error = ConfigError(f"queue {queue} is exclusive: only the connection that made it may use it")
    error.command = f"workqueue doctor {shlex.quote(queue)}"
    return error


def check_type(queue: str, type_: str | None) -> None:
    """Raise ConfigError for a type that is no work queue's; a type that is not known passes."""
    if type_ is None or type_ in WORK_QUEUES:
        return
    error = ConfigError(f"queue {queue} has the type {type_}: a work queue is quorum or classic")
    error.command = f"workqueue doctor {shlex.quote(queue)}"
    raise error


def permission_in(refusal: str, verb: str, name: str) -> str:
    """The permission that was missing, like "write jobs", from RabbitMQ's refusal to `verb` `name`.

    It names the permission only since 4.0. What is refused on another object is to write to it: the
    exchange that a queue dead-letters to, or that another one is bound to.
    """
    match = re.search(
        r"(?:(\w+) )?access to (?P<topic>topic '.*?' in )?(?:queue|exchange) '(?P<name>.*?)' in v",
        refusal,
    )
    if match is None:
        return f"{verb} {name}"
    named = match[1] if match[1] in ("configure", "write", "read") else None
    topics = "topics of " if match["topic"] else ""
    return f"{named or (verb if match['name'] == name else 'write')} {topics}{match['name']}"


def not_allowed(link: Link, problem: str, *needed: str) -> AccessRefused:
    """The error for a `problem` that permissions like "configure jobs" would let us mend."""
    error = AccessRefused(
        f"{problem}, and this user lacks the permission to {' and to '.join(needed)}"
    )
    vhost = str(link.wire.virtual_host)
    error.command = f"rabbitmqctl list_permissions -p {shlex.quote(vhost)}"
    return error


class Question(msgspec.Struct):
    """A declaration that is put to the broker until it agrees: what is known of a queue so far."""

    arguments: dict[str, Any]
    durable: bool = True
    auto_delete: bool = False
    told_type: str | None = None

    def learn(self, refusal: str) -> bool:
        """Take a refusal's word. False if it has none that another declaration could say."""
        differs = parse_refusal(refusal)
        if differs is None or differs.argument.startswith("x-"):
            learned = learn(self.arguments, refusal)
            if learned:
                self.told_type = self.arguments.get("x-queue-type", "classic")
            return learned
        match differs.argument:
            case "durable":
                self.durable = differs.existing == "true"
            case "auto_delete":
                self.auto_delete = differs.existing == "true"
            case _:
                return False
        return True


def find_arguments(link: Link, queue: str, asked: Question) -> bool:
    """Ask until the broker agrees to `asked`. False if it never does, or if we may not ask.

    Of a type that is no work queue nothing but the type is asked.
    """
    for _ in range(MOST_QUESTIONS):
        try:
            redeclare(link, queue, asked)
        except ChannelClosed as closed:
            if closed.code != PRECONDITION_FAILED or not asked.learn(closed.text):
                return False
            if asked.told_type not in (None, *WORK_QUEUES):
                asked.arguments = {"x-queue-type": asked.told_type}
                return True
        else:
            return True
    return False


def find_type(link: Link, queue: str) -> str | None:
    """The type of a queue that is there, with as few questions as possible; None if nobody will
    tell this user."""
    asked = Question(queue_arguments(QueueSpec(name=queue)))
    try:
        redeclare(link, queue, asked)
    except ChannelClosed as closed:
        if closed.code == ACCESS_REFUSED:
            return type_by_consuming(link, queue)
        return type_in(closed.text)
    return "quorum"


def type_in(refusal: str) -> str | None:
    """The type of a queue, from the refusal of a declaration as one of our quorum queues.

    RabbitMQ compares the flags first, then the type, then all else. A queue that is not durable,
    or goes with its consumers, can only be classic.
    """
    differs = parse_refusal(refusal)
    if differs is None:
        return None
    match differs.argument:
        case "x-queue-type":
            return str(differs.existing)
        case "durable" | "auto_delete":
            return "classic"
        case argument if argument.startswith("x-"):
            return "quorum"
    return None


def type_by_consuming(link: Link, queue: str) -> str | None:
    """The type, for users who may read and not configure; None if it does not tell.

    Nothing is consumed: quorum and classic queues refuse the argument and name their type, and a
    stream refuses consumers without a prefetch (RabbitMQ documentation, "Streams"; tried on 3.10,
    4.0 and 4.3).
    """
    channel = link.channel()
    try:
        channel.basic_consume(queue, no_ack=False, arguments={"x-stream-offset": "next"})
    except ChannelClosed as closed:
        named = re.search(r"of queue type rabbit_(\w+)_queue", closed.text)
        if named:
            return named[1]
        return "stream" if "prefetch count is not set" in closed.text else None
    channel.close()
    return None


def learn(arguments: dict[str, Any], refusal: str) -> bool:
    """Take a refusal's word into `arguments`. False if it has none that arguments could say."""
    invalid = re.search(r"invalid arg '([^']+)' for queue .* type rabbit_(\w+)_queue", refusal)
    if invalid and arguments.get("x-queue-type") == invalid[2]:
        # An argument that the existing queue has and this type cannot have: it is the other type.
        arguments["x-queue-type"] = "classic" if invalid[2] == "quorum" else "quorum"
        return True
    differs = parse_refusal(refusal)
    if differs is None or not differs.argument.startswith("x-"):
        return False
    if differs.existing is None:
        arguments.pop(differs.argument, None)
    else:
        arguments[differs.argument] = differs.existing
    if arguments.get("x-queue-type") == "classic" and differs.argument == "x-queue-type":
        for quorum_only in QUORUM_ONLY:
            arguments.pop(quorum_only, None)
    return True


def redeclare(link: Link, queue: str, asked: Question) -> None:
    """Declare a queue that is there. Raises ChannelClosed with what differs."""
    flags = {"durable": asked.durable, "auto_delete": asked.auto_delete}
    declare(link, queue, asked.arguments, **flags)


def declare(
    link: Link,
    queue: str,
    arguments: dict[str, Any] | None,
    *,
    durable: bool = True,
    auto_delete: bool = False,
) -> tuple[int, int]:
    """Ready messages and consumers of `queue`; declared passively where `arguments` is None.

    Raises ChannelClosed with the broker's refusal. A channel of its own: a refusal closes it.
    """
    channel = link.channel()
    answer = channel.queue_declare(
        queue,
        passive=arguments is None,
        durable=durable,
        auto_delete=auto_delete,
        arguments=arguments,
    )
    channel.close()
    return int(answer.message_count), int(answer.consumer_count)
