"""Which queues, with which arguments, for which version of RabbitMQ. Pure: nothing is sent here.

    exchange workqueue ──name──▶ queue NAME ──broker's own dead-lettering──▶ queue NAME.dead

Argument names and what each version makes of them are from RabbitMQ's documentation ("Quorum
queues", "Queue length limit", "Time-to-live", "Consumers", "Dead letter exchanges") and were
tried on 3.10, 4.0 and 4.3.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from workqueue.transport import DEAD_SUFFIX, QueueSpec, QueueType

EXCHANGE = "workqueue"
"""Direct and durable; each queue is bound to it by its name. Unbinding a queue from an exchange of
our own is how senders can be held off while it is rebuilt; the default exchange cannot do that."""

DELIVERY_LIMIT = 20
"""Times a quorum queue hands a message out again after its worker was lost, before it sets it
aside. The default since 4.0; said explicitly because 3.x has none."""

DEAD_DELIVERY_LIMIT = 1_000_000
"""Of a dead-letter queue: with the default, a message looked at 20 times would be dropped. Not -1,
which is "no limit" on 4.x and "none at all" on 3.13."""

NO_TIMEOUT = 315_360_000_000
"""Milliseconds; ten years. An acknowledgement timeout that never passes. It must be an integer."""

MAX_PRIORITY = 9

Version = tuple[int, ...]


def parse_version(text: object) -> Version:
    """(4, 3, 6) from "4.3.6" or "4.3.6-rc.1"; () if it says nothing, which is older than all."""
    match = re.match(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", str(text))
    return tuple(int(part or 0) for part in match.groups()) if match else ()


class Abilities(msgspec.Struct, frozen=True):
    """What a version of the broker can do, in one table."""

    version: Version

    @property
    def queue_sets_timeout(self) -> bool:
        """A queue's x-consumer-timeout counts. Before, only the broker's configuration does."""
        return self.version >= (3, 12)

    @property
    def classic_has_timeout(self) -> bool:
        """Classic queues take deliveries back after a timeout; since 4.3 they neither do that nor
        accept the argument."""
        return self.version < (4, 3)

    @property
    def consumer_sets_timeout(self) -> bool:
        """A consumer's x-consumer-timeout goes before the queue's and the policy's."""
        return self.version >= (4, 3)

    @property
    def compares_timeout(self) -> bool:
        """Declaring a queue with another x-consumer-timeout is refused."""
        return self.version >= (4, 3)

    @property
    def counts_hand_backs(self) -> bool:
        """What a quorum queue says of how often a message came back has the times in it that it
        was merely handed back. Since 4.3 only failures are counted."""
        return self.version < (4, 3)

    @property
    def cancel_settles(self) -> bool:
        """A quorum queue has applied what was settled for a consumer when that is cancelled."""
        return self.version >= (4, 0)

    @property
    def most_handed_back(self) -> int:
        """How many messages a quorum queue takes back at once and keeps in their order: before
        4.0 it goes through a map, which Erlang keeps in order up to 32."""
        return 1_000_000 if self.version >= (4, 0) else 32

    @property
    def high_priorities_block(self) -> bool:
        """Quorum queues have two levels of priority, and those that wait in one hold up what has
        expired in the other. Before, they have none; since 4.3 each level is looked at."""
        return (4, 0) <= self.version < (4, 3)

    @property
    def quorum_priorities(self) -> int:
        """How many levels of priority quorum queues tell apart."""
        return 32 if self.version >= (4, 3) else 2 if self.version >= (4, 0) else 1


def queue_arguments(spec: QueueSpec) -> dict[str, Any]:
    """The arguments of the work queue that `spec` asks for; quorum unless it says otherwise."""
    queue_type: QueueType = spec.type or "quorum"
    arguments: dict[str, Any] = {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": spec.name + DEAD_SUFFIX,
    }
    if queue_type == "quorum":
        # At-least-once dead-lettering needs reject-publish; together no message is ever dropped.
        arguments["x-delivery-limit"] = DELIVERY_LIMIT
        arguments["x-dead-letter-strategy"] = "at-least-once"
        arguments["x-overflow"] = "reject-publish"
        arguments["x-consumer-timeout"] = NO_TIMEOUT
    else:
        # Without x-consumer-timeout, which 4.0 to 4.2 would honour: 4.3 refuses to import the
        # definition of a classic queue that has it.
        arguments["x-max-priority"] = MAX_PRIORITY
    if spec.max_length is not None:
        arguments["x-max-length"] = spec.max_length
        arguments["x-overflow"] = "reject-publish"
    if spec.ttl is not None:
        arguments["x-message-ttl"] = max(1, round(spec.ttl * 1000))
    return arguments


def dead_arguments() -> dict[str, Any]:
    """The arguments of a dead-letter queue: replicated, without a limit that could eat it."""
    return {"x-queue-type": "quorum", "x-delivery-limit": DEAD_DELIVERY_LIMIT}


def holding_arguments(dead: str) -> dict[str, Any]:
    """The arguments of the queue that holds a work queue's messages while it is migrated: nothing
    is dropped from it, and what expires in it is a dead letter, in the queue `dead`."""
    return {
        **dead_arguments(),
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


class Inequivalent(msgspec.Struct, frozen=True):
    """One argument that differs, as RabbitMQ's refusal of a declaration tells it."""

    argument: str
    wanted: Any
    existing: Any


REFUSAL = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for queue .*? in vhost .*?: "
    r"received (?P<wanted>.+?) but current is (?P<existing>.+)",
    re.DOTALL,
)
TYPED = re.compile(r"the value '(?P<value>.*?)' of type '(?P<type>\w+)'", re.DOTALL)
QUOTED = re.compile(r"'(?P<value>.*?)'", re.DOTALL)


def parse_refusal(text: str) -> Inequivalent | None:
    """What differs, from the text of a 406 PRECONDITION_FAILED; None if it is not about that."""
    match = REFUSAL.search(text)
    if not match:
        return None
    name = match["argument"]
    wanted, existing = parse_value(name, match["wanted"]), parse_value(name, match["existing"])
    return Inequivalent(name, wanted, existing)


TEXTS = frozenset(
    {
        "x-queue-type",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-overflow",
    }
)


def parse_value(argument: str, text: str) -> Any:
    """`none`, `the value '5' of type 'signedint'`, or, where both are set, `'5'` without a type."""
    text = text.strip()
    if text == "none":
        return None
    typed = TYPED.match(text)
    if typed:
        if typed["type"] in ("longstr", "shortstr", "binary"):
            return typed["value"]
        if re.fullmatch(r"-?\d+", typed["value"]):
            return int(typed["value"])
        return {"true": True, "false": False}.get(typed["value"], typed["value"])
    quoted = QUOTED.match(text)
    value = quoted["value"] if quoted else text
    return int(value) if argument not in TEXTS and re.fullmatch(r"-?\d+", value) else value


PARAMETERS = {"x-queue-type": "type", "x-max-length": "max length", "x-message-ttl": "ttl"}
"""Arguments that are options of ours; the others are named as RabbitMQ names them."""


def parameter(argument: str, value: Any) -> tuple[str, object]:
    """Name and value of an argument as our users know it: a ttl in seconds."""
    if argument == "x-message-ttl" and isinstance(value, int):
        seconds = value / 1000
        return "ttl", int(seconds) if seconds.is_integer() else seconds
    return PARAMETERS.get(argument, argument), value
