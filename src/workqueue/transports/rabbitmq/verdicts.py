"""What is well with a broker and its queues, and what is not. Pure: nothing is asked here.

What is right is what `topology` would declare. Sources: RabbitMQ documentation, "Policies",
"Quorum queues", "Consumers", "Access control", and the release notes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from shlex import quote
from typing import Any

from workqueue.transport import DEAD_SUFFIX, Finding, QueueSpec
from workqueue.transports.rabbitmq.ladder import (
    DUE,
    HIGH_PREFIX,
    PREFIX,
    TICK,
    UNDELIVERABLE,
    Binding,
    Level,
    Part,
    highest_level,
    is_level,
    parts,
)
from workqueue.transports.rabbitmq.survey import Survey
from workqueue.transports.rabbitmq.topology import (
    EXCHANGE,
    NO_TIMEOUT,
    Version,
    queue_arguments,
)

SUPPORT_ENDED: dict[Version, str] = {
    (3, 8): "on 2022-07-31",
    (3, 9): "on 2023-01-31",
    (3, 10): "on 2023-07-31",
    (3, 11): "on 2023-12-31",
    (3, 12): "on 2024-06-30",
    (3, 13): "on 2024-09-17",
    (4, 0): "on 2025-04-15",
    (4, 1): "on 2026-01-30",
    (4, 2): "when 4.3 came out, in 2026",
}
"""When the community support of a series ended. As of November 2026, from endoflife.date/rabbitmq
and the release notes; RabbitMQ supports the newest series alone (its COMMUNITY_SUPPORT.md)."""

NEWEST: Version = (4, 3)

SAFE_SINCE: dict[Version, Version] = {(4, 0): (4, 0, 8), (4, 3): (4, 3, 3)}
"""The release of a series from which on its release notes tell of no more repaired defects that
could lose confirmed messages of quorum queues (rabbitmq-server#13530; ra#637)."""

USUAL_TIMEOUT = 1800.0
"""Seconds: RabbitMQ's acknowledgement timeout unless it is configured."""

LEAST_DEAD_LIMIT = 1000
"""Looks at a dead letter that its queue should survive."""

SOON = 30
"""Days before its end at which a certificate is spoken of."""

SKEW = 5.0
"""Seconds that two clocks may differ before times to live are noticeably wrong."""


def judge_version(text: str, version: Version) -> Finding:
    series, told = version[:2], ".".join(map(str, version[:2]))
    upgrade = "see https://www.rabbitmq.com/docs/upgrade"

    def found(state: Any, what: str, command: str = "") -> Finding:
        return Finding(
            state=state, check="version", found=f"RabbitMQ {text}: {what}", command=command
        )

    if version < (3, 10):
        return found("fail", "too old, 3.10 or newer is needed", upgrade)
    safe = SAFE_SINCE.get(series, ())
    defect = version < safe
    if series in SUPPORT_ENDED:
        what = f"the community support of {told} ended {SUPPORT_ENDED[series]}"
        if defect:
            what += f", and before {'.'.join(map(str, safe))} quorum queues can lose messages"
        return found("warn", what, upgrade)
    if defect:
        repaired = ".".join(map(str, safe))
        return found("warn", f"quorum queues can lose messages, repaired in {repaired}", upgrade)
    if series == NEWEST:
        return found("ok", "the newest series, as of November 2026")
    return found("warn", f"when the support of {told} ends is not known here", upgrade)


def judge_certificate(until: str, now: datetime, where: str) -> Finding:
    """By its last day, as `ssl` tells it."""
    end = datetime.strptime(until, "%b %d %H:%M:%S %Y %Z").replace(tzinfo=UTC)
    days = (end - now).days
    found = f"on, and verified; the certificate is good until {end:%Y-%m-%d}"
    if days >= SOON:
        return Finding(state="ok", check="tls", found=found)
    return Finding(
        state="warn",
        check="tls",
        found=f"{found}: {days} more days",
        command=f"openssl s_client -connect {quote(where)} </dev/null | openssl x509 -noout -dates",
    )


def judge_clock(date: str, now: float) -> Finding:
    """By the header of an HTTP answer, which has whole seconds."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding(state="warn", check="clock", found="the broker does not tell its time")
    ahead = now - theirs
    if -SKEW <= ahead <= SKEW + 1:
        return Finding(state="ok", check="clock", found="agrees with the broker's")
    direction = "ahead of" if ahead > 0 else "behind"
    return Finding(
        state="warn",
        check="clock",
        found=f"{abs(ahead):.0f} s {direction} the broker's: times to live are off by that",
        command="timedatectl set-ntp true, here and on the broker",
    )


def judge_nodes(nodes: list[dict[str, Any]], alarms: list[tuple[str, str]]) -> Iterator[Finding]:
    """Of the cluster: alarms, nodes that are down, partitions."""
    well = not alarms
    for where, resource in alarms:
        yield Finding(
            state="fail",
            check="alarms",
            found=f"node {where}: {resource} alarm: senders are blocked",
            command=f"rabbitmq-diagnostics -n {quote(where)} status",
        )
    for node in nodes:
        name = node.get("name", "?")
        if node.get("running") is False:
            well = False
            yield Finding(
                state="warn",
                check="nodes",
                found=f"node {name} of the cluster is down",
                command=f"rabbitmq-diagnostics -n {quote(name)} ping",
            )
        if node.get("partitions"):
            well = False
            yield Finding(
                state="fail",
                check="nodes",
                found=f"node {name} is cut off from {', '.join(map(str, node['partitions']))}",
                command=f"rabbitmq-diagnostics -n {quote(name)} cluster_status",
            )
    if well:
        yield Finding(state="ok", check="alarms", found=f"none, on {len(nodes)} nodes")


def judge_permissions(rule: Mapping[str, str], queues: list[str], user: str) -> Iterator[Finding]:
    """Whether `rule`, three patterns, lets us do what we must with `queues`."""
    mine = [name for queue in queues for name in (queue, queue + DEAD_SUFFIX)]
    needed = {
        "configure": [EXCHANGE, *mine],
        "write": [EXCHANGE, "amq.default", *mine],
        "read": [EXCHANGE, *mine],
    }
    refused = False
    for kind, names in needed.items():
        lacking = [name for name in names if not allows(rule.get(kind, ""), name)]
        if lacking:
            refused = True
            found = f"{user} may not {kind} {', '.join(lacking)}"
            if kind == "configure":
                found += ": what is missing of these must be made by somebody else"
            yield Finding(
                state="warn" if kind == "configure" else "fail",
                check="permissions",
                found=found,
                command=f"rabbitmqctl set_permissions -p VHOST {quote(user)} '.*' '.*' '.*'",
            )
    if not refused:
        found = f"{user} may configure, write and read what is needed"
        yield Finding(state="ok", check="permissions", found=found)


def allows(pattern: str, name: str) -> bool:
    """As RabbitMQ matches them: anywhere in the name, and an empty pattern matches nothing."""
    if takes_long(pattern):
        return True
    try:
        return re.search(pattern or "^$", name) is not None
    except (re.error, OverflowError, RecursionError):
        return True  # Erlang's patterns know more than ours


def takes_long(pattern: str) -> bool:
    """Whether a pattern might be tried in more ways than there is time for: with much that
    repeats, or a group that does. It comes from the broker, and nothing interrupts a search."""
    repeats, choices = (len(re.findall(signs, pattern)) for signs in ("[*+{]", "[?(]"))
    if len(pattern) > 1_000 or repeats > 2 or choices > 5:
        return True
    return re.search(r"\)[*+{]", pattern) is not None


def policy_of(
    queue: str, type_: str, policies: list[dict[str, Any]], operators: list[dict[str, Any]]
) -> tuple[dict[str, Any], str]:
    """What policies set for a queue, and their names.

    Of each kind the one of the highest priority that matches; an operator's goes first, except
    that of two numbers the lower holds.
    """
    chosen = [rule for rule in (strongest(queue, type_, p) for p in (policies, operators)) if rule]
    merged: dict[str, Any] = {}
    for rule in chosen:
        for key, value in rule.get("definition", {}).items():
            merged[key] = least(value, merged.get(key)) if isinstance(value, int) else value
    return merged, " and ".join(str(rule.get("name")) for rule in chosen)


def strongest(queue: str, type_: str, rules: list[dict[str, Any]]) -> dict[str, Any] | None:
    return strongest_of(queue, ("queues", "all", f"{type_}_queues"), rules)


def strongest_of(
    name: str, kinds: Collection[str], rules: list[dict[str, Any]]
) -> dict[str, Any] | None:
    matching = [
        rule
        for rule in rules
        if rule.get("apply-to") in kinds and allows(rule.get("pattern", ""), name)
    ]
    return max(matching, key=lambda rule: rule.get("priority", 0), default=None)


def judge_ladder(
    there: Collection[Part], bindings: Collection[Binding] | None, queue: str
) -> Iterator[Finding]:
    """What of the ladder is missing, up to the highest level of which anything is there.

    `there` are parts by kind and name; `bindings` all of the virtual host, None if not known.
    `queue` is one that a delayed message can be sent to, which makes what is missing.
    """
    names = {(part.is_queue, part.name) for part in there}
    seen: set[str] = set()
    tops = [highest_level((name for _, name in names), p) for p in (PREFIX, HIGH_PREFIX)]
    for top in tops:
        for part in parts(top) if top else ():
            lacking = [] if (part.is_queue, part.name) in names else [f"{part} does not exist"]
            if not lacking and bindings is not None:
                lacking = [
                    f"{part} is not bound to {binding.target} with the key {binding.key!r}"
                    for binding in part.bindings
                    if binding not in bindings
                ]
            for found in set(lacking) - seen:
                seen.add(found)
                yield Finding(
                    state="fail",
                    check="delays",
                    found=f"{found}: what is delayed is held up; the next delayed message mends it",
                    command=delayed_message(top, queue),
                )
    if any(tops) and not seen:
        yield Finding(state="ok", check="delays", found="all that they need is there")


def delayed_message(top: Level | None, queue: str) -> str:
    """The command whose message needs all levels up to `top`."""
    assert top is not None
    priority = " --priority 9" if top.prefix == HIGH_PREFIX else ""
    delay = f"{TICK * 2**top.number:g}s"
    return f"workqueue send {quote(queue)} BODY --delay {delay}{priority}"


def judge_undeliverable(count: int) -> Iterator[Finding]:
    """What was due for a queue that was gone, or not bound, waits where nobody works."""
    if count:
        yield Finding(
            state="warn",
            check="delays",
            found=f"{count:,} delayed messages were due for queues that were gone",
            command=f"workqueue peek {UNDELIVERABLE}",
        )


def judge_alternates(
    exchanges: list[dict[str, Any]], policies: list[dict[str, Any]] | None
) -> Iterator[Finding]:
    """Whether messages that no queue takes go elsewhere, instead of back to their senders.

    An exchange's own argument goes before a policy (RabbitMQ documentation, "Alternate exchanges").
    """
    for row in exchanges:
        name = str(row.get("name"))
        if name not in (EXCHANGE, DUE) and not is_level(name):
            continue
        own = (row.get("arguments") or {}).get("alternate-exchange")
        rule = strongest_of(name, ("exchanges", "all"), policies or [])
        ruled = (rule or {}).get("definition", {}).get("alternate-exchange")
        alternate = own or ruled
        if alternate is None or (name == DUE and own == UNDELIVERABLE):
            continue
        by = "argument" if own else f"policy {(rule or {}).get('name')}"
        yield Finding(
            state="warn",
            check="exchanges",
            found=f"exchange {name} has the alternate exchange {alternate} ({by}): what no queue "
            "takes goes there, and does not come back to its sender",
            command=f"rabbitmqctl list_exchanges name arguments policy, and {POLICIES}",
        )


def judge_queue(found: Survey, policy: Mapping[str, Any]) -> Iterator[Finding]:
    """A work queue's arguments and policy, against what we would declare."""
    queue = found.queue
    arguments = found.arguments or {}
    migrate = f"workqueue migrate {quote(queue)} --type {quote(found.type or 'quorum')}"

    def about(state: Any, what: str, command: str = migrate) -> Finding:
        return Finding(state=state, check="queue", queue=queue, found=what, command=command)

    if found.type not in ("quorum", "classic"):
        told = found.type or "unknown"
        yield about("fail", f"its type is {told}: a work queue is quorum or classic", "")
        return
    spec = QueueSpec(name=queue, type="quorum" if found.type == "quorum" else "classic")
    wanted = queue_arguments(spec)
    well = True
    for finding in judge_limits(about, arguments, policy):
        well = False
        yield finding
    target = arguments.get("x-dead-letter-routing-key")
    exchange = arguments.get("x-dead-letter-exchange", policy.get("dead-letter-exchange"))
    if exchange is None:
        well = False
        yield about("warn", "what the broker itself sets aside is dropped: no dead-letter exchange")
    elif target != wanted["x-dead-letter-routing-key"]:
        well = False
        yield about("warn", f"what the broker sets aside goes elsewhere, not to {queue}.dead")
    if found.type == "quorum":
        limit = least(arguments.get("x-delivery-limit"), policy.get("delivery-limit"))
        if limit != wanted["x-delivery-limit"]:
            well = False
            yield about("warn", judge_limit(limit, found.abilities.version))
        if exchange is not None and (
            arguments.get("x-dead-letter-strategy"),
            arguments.get("x-overflow"),
        ) != ("at-least-once", "reject-publish"):
            well = False
            yield about("warn", "what the broker sets aside is not moved safely (at-most-once)")
    if arguments.get("x-single-active-consumer"):
        well = False
        yield about("warn", "one worker at a time gets its messages (single active consumer)")
    if policy.get("delayed-retry-type", "disabled") != "disabled":
        well = False
        yield about("warn", "a policy delays what comes back, beside our own delays", POLICIES)
    if well:
        bound = arguments.get("x-max-length")
        more = f", at most {bound:,} messages" if bound else ""
        yield about("ok", f"{found.type}, as workqueue declares it{more}", "")


POLICIES = "rabbitmqctl list_policies, and list_operator_policies"


def judge_limits(
    about: Any, arguments: Mapping[str, Any], policy: Mapping[str, Any]
) -> Iterator[Finding]:
    """What makes a queue drop messages, or itself."""
    for name in ("max-length", "max-length-bytes"):
        bound = least(arguments.get(f"x-{name}"), policy.get(name))
        overflow = arguments.get("x-overflow", policy.get("overflow", "drop-head"))
        if bound is not None and overflow != "reject-publish":
            command = POLICIES if name in policy else about("ok", "").command
            yield about(
                "fail", f"when it is full ({name} {bound:,}) it drops confirmed messages", command
            )
        elif name in policy:
            yield about("warn", f"a policy bounds it ({name} {policy[name]:,})", POLICIES)
    expires = least(arguments.get("x-expires"), policy.get("expires"))
    if expires is not None:
        told = f"it is deleted, with all that waits in it, after {expires / 1000:g} s without use"
        yield about("fail", told, POLICIES if "expires" in policy else about("ok", "").command)
    if "message-ttl" in policy:
        told = f"a policy has messages expire after {policy['message-ttl'] / 1000:g} s"
        yield about("warn", told, POLICIES)


def judge_limit(limit: int | None, version: Version) -> str:
    if limit is None and version < (4, 0):
        return "no delivery limit: a message that kills its worker comes again for ever"
    if limit is None:
        return "no delivery limit of its own; the broker's is 20"
    if limit < 0:
        return f"delivery limit {limit}: what that means depends on RabbitMQ's version"
    return f"delivery limit {limit}, where workqueue declares 20"


def judge_dead(found: Survey, policy: Mapping[str, Any]) -> Iterator[Finding]:
    """A dead-letter queue: nothing may vanish from it."""
    queue, arguments = found.queue, found.arguments or {}
    requeue = f"workqueue dead requeue {quote(queue.removesuffix(DEAD_SUFFIX))} --all"
    delete = f"workqueue delete {quote(queue)} --yes"
    rebuild = f"{requeue}, then {delete}"

    def about(state: Any, what: str, command: str = rebuild) -> Finding:
        return Finding(state=state, check="dead letters", queue=queue, found=what, command=command)

    well = True
    for finding in judge_limits(about, arguments, policy):
        well = False
        yield finding
    if "x-message-ttl" in arguments:
        well = False
        told = f"dead letters vanish after {arguments['x-message-ttl'] / 1000:g} s"
        yield about("fail", told)
    if found.type == "quorum":
        own, ruled = arguments.get("x-delivery-limit"), policy.get("delivery-limit")
        limit = least(own, ruled)
        if limit is None and found.abilities.version >= (4, 0):
            limit = 20
        if limit is not None and limit < LEAST_DEAD_LIMIT:
            well = False
            yield about(
                "fail",
                f"delivery limit {limit}: a dead letter is dropped after it was looked at "
                f"{limit + 1} times",
                rebuild if own is not None else RAISE_LIMIT,
            )
    if well:
        yield about("ok", "there, and keeps what it gets", "")


RAISE_LIMIT = (
    r"""rabbitmqctl set_policy -p VHOST dead '\.dead$' '{"delivery-limit":1000000}' """
    "--apply-to queues"
)


def judge_timeout(
    found: Survey, policy: Mapping[str, Any] | None, task_timeout: float | None
) -> Finding:
    """Whether a task may take as long as it will.

    `policy` is None where the management API was not asked: then not all arguments are certain.
    """

    def about(state: Any, what: str, command: str = "") -> Finding:
        return Finding(
            state=state, check="ack timeout", queue=found.queue, found=what, command=command
        )

    abilities = found.abilities
    longest, guarded = found.own_timeout, found.guarded
    if policy is not None and abilities.queue_sets_timeout and not abilities.compares_timeout:
        limit = least(
            (found.arguments or {}).get("x-consumer-timeout"), policy.get("consumer-timeout")
        )
        longest = limit / 1000 if limit is not None and limit < NO_TIMEOUT else None
        guarded = limit is not None and limit >= NO_TIMEOUT
    if longest is None and guarded:
        return about("ok", "none: a task may take as long as it needs")
    settings = f"set consumer_timeout = {NO_TIMEOUT} in rabbitmq.conf"
    if longest is None:
        told = "tasks are taken away after the broker's consumer_timeout, 30 minutes if not set"
        if task_timeout is not None and task_timeout >= USUAL_TIMEOUT:
            told += f"; yours may run {task_timeout:g} s"
        return about("warn", told, settings)
    told = f"tasks are taken away after {longest:g} s"
    if task_timeout is None:
        return about("warn", told, f"workqueue doctor {quote(found.queue)} --timeout TIME")
    if task_timeout >= longest:
        return about(
            "fail",
            f"{told}, and yours may run {task_timeout:g} s",
            f"workqueue migrate {quote(found.queue)} --type {quote(found.type or 'quorum')}",
        )
    return about("ok", f"{told}; yours end after {task_timeout:g} s")


def least(*numbers: Any) -> int | None:
    """RabbitMQ takes the lower of an argument and a policy."""
    return min((number for number in numbers if isinstance(number, int)), default=None)
