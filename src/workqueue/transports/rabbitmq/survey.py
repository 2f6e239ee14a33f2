"""What a queue that is already there is like.

AMQP has no question for a queue's arguments, but its refusals tell: declaring a queue again with
other arguments is refused with the first one that differs and its value. So the arguments are
found by taking each refusal's word until the broker agrees. For a queue of ours it agrees at once.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from workqueue.errors import AccessRefused, QueueNotFound
from workqueue.transport import DEAD_SUFFIX, QueueSpec
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.topology import (
    NO_TIMEOUT,
    Abilities,
    parse_refusal,
    queue_arguments,
)

MOST_QUESTIONS = 25

SECOND_LOOKS = 3
"""At a queue that says it holds nothing: a quorum queue's leader that is busy for 250 ms is
reported as empty and without consumers."""

NOT_FOUND, ACCESS_REFUSED, LOCKED, PRECONDITION_FAILED = 404, 403, 405, 406


class Survey(msgspec.Struct, frozen=True):
    """A queue's arguments as far as the broker told; None if it would not."""

    queue: str
    abilities: Abilities
    arguments: dict[str, Any] | None

    @property
    def type(self) -> str | None:
        return None if self.arguments is None else self.arguments.get("x-queue-type", "classic")

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
        return self.ours

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
    """Raises AccessRefused if we may not know, or if another connection holds the queue."""
    try:
        declare(link, queue, None)
    except ChannelClosed as closed:
        if closed.code == NOT_FOUND:
            return False
        if closed.code in (ACCESS_REFUSED, LOCKED):
            raise AccessRefused(f"queue {queue}: {closed.text}") from closed
        raise
    return True


def count(link: Link, queue: str) -> tuple[int, int]:
    """Ready messages and consumers. Raises QueueNotFound."""
    counted = (0, 0)
    for _ in range(SECOND_LOOKS):
        try:
            counted = declare(link, queue, None)
        except ChannelClosed as closed:
            if closed.code == NOT_FOUND:
                raise QueueNotFound(queue) from closed
            raise
        if any(counted):
            break
    return counted


def survey(link: Link, queue: str, guess: dict[str, Any] | None = None) -> Survey:
    """What `queue` is like; `guess` is what it is expected to be. Raises QueueNotFound."""
    if not exists(link, queue):
        raise QueueNotFound(queue)
    first = guess or queue_arguments(QueueSpec(name=queue), link.abilities)
    found = find_arguments(link, queue, first)
    return Survey(queue, link.abilities, found)


def find_arguments(link: Link, queue: str, guess: dict[str, Any]) -> dict[str, Any] | None:
    arguments = dict(guess)
    for _ in range(MOST_QUESTIONS):
        try:
            declare(link, queue, arguments)
        except ChannelClosed as closed:
            if closed.code != PRECONDITION_FAILED or not learn(arguments, closed.text):
                return None
        else:
            return arguments
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
        for quorum_only in ("x-delivery-limit", "x-dead-letter-strategy"):
            arguments.pop(quorum_only, None)
    return True


def declare(link: Link, queue: str, arguments: dict[str, Any] | None) -> tuple[int, int]:
    """Ready messages and consumers of `queue`; declared passively where `arguments` is None.

    Raises ChannelClosed with the broker's refusal. A channel of its own: a refusal closes it.
    """
    channel = link.channel()
    answer = channel.queue_declare(
        queue,
        passive=arguments is None,
        durable=True,
        auto_delete=False,
        arguments=arguments,
    )
    channel.close()
    return int(answer.message_count), int(answer.consumer_count)
