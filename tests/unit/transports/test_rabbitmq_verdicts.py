"""What is found well and what is not, of brokers and queues on paper."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from workqueue.transport import Finding, QueueSpec
from workqueue.transports.rabbitmq.ladder import (
    HIGH_PREFIX,
    PREFIX,
    UNDELIVERABLE,
    Binding,
    Level,
    Part,
    parts,
)
from workqueue.transports.rabbitmq.survey import Survey
from workqueue.transports.rabbitmq.topology import (
    Abilities,
    dead_arguments,
    parse_version,
    queue_arguments,
)
from workqueue.transports.rabbitmq.verdicts import (
    allows,
    judge_alternates,
    judge_certificate,
    judge_clock,
    judge_dead,
    judge_ladder,
    judge_nodes,
    judge_permissions,
    judge_queue,
    judge_timeout,
    judge_undeliverable,
    judge_version,
    policy_of,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NEW, OLD = Abilities((4, 3, 6)), Abilities((4, 0, 9))


def worst(findings: list[Finding]) -> tuple[str, str]:
    """The gravest state, and all that was found in it."""
    order = ("fail", "warn", "ok")
    state = next(state for state in order if any(f.state == state for f in findings))
    return state, "; ".join(f.found for f in findings if f.state == state)


@pytest.mark.parametrize(
    ("version", "state", "told"),
    [
        ("4.3.6", "ok", "newest"),
        ("4.3.2", "warn", "repaired in 4.3.3"),
        ("4.2.5", "warn", "ended when 4.3"),
        ("4.0.5", "warn", "before 4.0.8 quorum queues can lose"),
        ("4.0.9", "warn", "ended on 2025-04-15"),
        ("3.10.8", "warn", "2023-07-31"),
        ("3.9.1", "fail", "too old"),
        ("4.4.0", "warn", "not known"),
        ("of unknown version", "fail", "too old"),
    ],
)
def test_versions(version: str, state: str, told: str) -> None:
    finding = judge_version(version, parse_version(version))
    assert finding.state == state
    assert told in finding.found
    assert bool(finding.command) == (state != "ok")


@pytest.mark.parametrize(("days", "state"), [(400, "ok"), (30, "ok"), (29, "warn"), (0, "warn")])
def test_certificates(days: int, state: str) -> None:
    until = (NOW + timedelta(days=days, hours=1)).strftime("%b %d %H:%M:%S %Y GMT")
    finding = judge_certificate(until, NOW, "host:5671")
    assert finding.state == state


@pytest.mark.parametrize(
    ("ahead", "state"), [(0, "ok"), (4, "ok"), (-4, "ok"), (9, "warn"), (-9, "warn")]
)
def test_clocks(ahead: float, state: str) -> None:
    date = format_datetime(NOW, usegmt=True)
    finding = judge_clock(date, NOW.timestamp() + ahead)
    assert finding.state == state
    if state == "warn":
        assert ("ahead of" if ahead > 0 else "behind") in finding.found


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_broker_without_a_clock(date: str) -> None:
    assert judge_clock(date, 0).state == "warn"


@pytest.mark.parametrize(
    ("node", "state", "told"),
    [
        ({"name": "a", "running": True, "partitions": []}, "ok", "none"),
        ({"name": "a", "running": False}, "warn", "down"),
        ({"name": "a", "partitions": ["b", "c"]}, "fail", "cut off from b, c"),
    ],
)
def test_nodes(node: dict[str, Any], state: str, told: str) -> None:
    found = worst(list(judge_nodes([node], [])))
    assert found[0] == state
    assert told in found[1]


def test_alarms() -> None:
    state, found = worst(list(judge_nodes([{"name": "a"}], [("a", "memory"), ("b", "disk")])))
    assert state == "fail"
    assert "node a: memory alarm" in found
    assert "node b: disk alarm" in found


# -- permissions -------------------------------------------------------------------------------


def test_permissions_that_suffice() -> None:
    rule = {"configure": "^(workqueue|q)", "write": ".*", "read": "^(workqueue|q)"}
    assert [f.state for f in judge_permissions(rule, ["q"], "ada")] == ["ok"]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"configure": ".*", "write": "^q$", "read": ".*"}, "write workqueue, amq.default, q.dead"),
        ({"configure": ".*", "write": ".*", "read": "^x"}, "may not read"),
        ({}, "may not write"),
    ],
)
def test_permissions_that_do_not(rule: dict[str, str], told: str) -> None:
    state, found = worst(list(judge_permissions(rule, ["q"], "ada")))
    assert state == "fail"
    assert told in found


def test_without_configure_one_can_work() -> None:
    """While nothing is missing: so it is no failure."""
    rule = {"configure": "", "write": ".*", "read": ".*"}
    state, found = worst(list(judge_permissions(rule, ["q"], "ada")))
    assert state == "warn"
    assert "may not configure workqueue, q, q.dead" in found


def test_patterns_are_matched_as_rabbitmq_does() -> None:
    assert allows("q", "my-q-too")
    assert allows("", "")
    assert not allows("", "q")
    assert allows("(?>[unknown", "q")  # Erlang knows it, or has refused it


# -- policies ----------------------------------------------------------------------------------


def policy(
    name: str, pattern: str, priority: int = 0, apply_to: str = "queues", **keys: Any
) -> Any:
    definition = {key.replace("_", "-"): value for key, value in keys.items()}
    return {
        "name": name,
        "pattern": pattern,
        "priority": priority,
        "apply-to": apply_to,
        "definition": definition,
    }


def test_the_strongest_policy_alone_holds() -> None:
    policies = [
        policy("a", "^q", expires=5),
        policy("b", "^q$", 2, max_length=7),
        policy("c", "^q", 9, "exchanges", message_ttl=1),
        policy("d", "^q", 9, "classic_queues", message_ttl=1),
    ]
    assert policy_of("q", "quorum", policies, []) == ({"max-length": 7}, "b")
    assert policy_of("q2", "quorum", policies, []) == ({"expires": 5}, "a")
    assert policy_of("x", "quorum", policies, []) == ({}, "")


def test_an_operators_policy_goes_with_it() -> None:
    """Of two numbers the lower, of two words the operator's."""
    mine = [policy("a", "q", max_length=7, overflow="drop-head", delivery_limit=2)]
    theirs = [policy("o", "q", max_length=9, overflow="reject-publish", expires=5)]
    assert policy_of("q", "quorum", mine, theirs) == (
        {"max-length": 7, "overflow": "reject-publish", "delivery-limit": 2, "expires": 5},
        "a and o",
    )


# -- queues ------------------------------------------------------------------------------------


def queue(abilities: Abilities = NEW, type_: Any = "quorum", **changes: Any) -> Survey:
    """One of ours, with other arguments; None takes one away."""
    arguments = queue_arguments(QueueSpec(name="q", type=type_))
    return Survey("q", abilities, changed(arguments, changes))


def dead(**changes: Any) -> Survey:
    return Survey("q.dead", NEW, changed(dead_arguments(), changes))


def changed(arguments: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    arguments |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in arguments.items() if value is not None}


@pytest.mark.parametrize("type_", ["quorum", "classic"])
@pytest.mark.parametrize("abilities", [NEW, OLD])
def test_ours_are_well(abilities: Abilities, type_: str) -> None:
    assert [f.state for f in judge_queue(queue(abilities, type_), {})] == ["ok"]
    bounded = queue(abilities, type_, x_max_length=7, x_overflow="reject-publish")
    assert worst(list(judge_queue(bounded, {}))) == (
        "ok",
        f"{type_}, as workqueue declares it, at most 7 messages",
    )


@pytest.mark.parametrize(
    ("changes", "policy", "state", "told"),
    [
        ({"x_max_length": 5, "x_overflow": None}, {}, "fail", "drops confirmed messages"),
        ({"x_overflow": None}, {"max-length": 5}, "fail", "drops confirmed messages"),
        ({}, {"max-length": 5}, "warn", "a policy bounds it"),
        ({"x_expires": 60_000}, {}, "fail", "after 60 s without use"),
        ({}, {"expires": 60_000}, "fail", "after 60 s without use"),
        ({}, {"message-ttl": 5000}, "warn", "expire after 5 s"),
        ({"x_dead_letter_exchange": None}, {}, "warn", "dropped"),
        ({"x_dead_letter_routing_key": "other"}, {}, "warn", "goes elsewhere"),
        ({"x_delivery_limit": None}, {}, "warn", "no delivery limit"),
        ({"x_delivery_limit": 3}, {}, "warn", "delivery limit 3"),
        ({"x_delivery_limit": -1}, {}, "warn", "depends on RabbitMQ's version"),
        ({}, {"delivery-limit": 2}, "warn", "delivery limit 2"),
        ({"x_dead_letter_strategy": None}, {}, "warn", "at-most-once"),
        ({"x_single_active_consumer": True}, {}, "warn", "one worker at a time"),
        ({}, {"delayed-retry-type": "all"}, "warn", "delays what comes back"),
        ({"x_queue_type": "stream"}, {}, "fail", "its type is stream"),
        ({}, {"queue-leader-locator": "balanced"}, "ok", "quorum"),
    ],
)
def test_queues(changes: dict[str, Any], policy: dict[str, Any], state: str, told: str) -> None:
    found = worst(list(judge_queue(queue(**changes), policy)))
    assert found[0] == state
    assert told in found[1]


def test_a_quorum_queue_of_3_x_has_no_limit_at_all() -> None:
    survey = queue(Abilities((3, 13, 7)), x_delivery_limit=None)
    assert "for ever" in worst(list(judge_queue(survey, {})))[1]


@pytest.mark.parametrize(
    ("changes", "policy", "state", "told"),
    [
        ({}, {}, "ok", "keeps what it gets"),
        ({"x_delivery_limit": None}, {}, "fail", "after it was looked at 21 times"),
        ({"x_delivery_limit": None}, {"delivery-limit": 1_000_000}, "ok", "keeps"),
        ({"x_delivery_limit": 5}, {}, "fail", "6 times"),
        ({}, {"delivery-limit": 5}, "fail", "6 times"),
        ({"x_message_ttl": 1000}, {}, "fail", "vanish after 1 s"),
        ({}, {"message-ttl": 1000}, "warn", "expire after 1 s"),
        ({"x_max_length": 10}, {}, "fail", "drops"),
        ({"x_queue_type": "classic", "x_delivery_limit": None}, {}, "ok", "keeps"),
    ],
)
def test_dead_letter_queues(
    changes: dict[str, Any], policy: dict[str, Any], state: str, told: str
) -> None:
    found = worst(list(judge_dead(dead(**changes), policy)))
    assert found[0] == state
    assert told in found[1]


@pytest.mark.parametrize(
    ("survey", "policy", "task", "state", "told"),
    [
        (queue(), {}, 7200, "ok", "as long as it needs"),
        (queue(OLD), {}, 7200, "ok", "as long as it needs"),
        (queue(x_consumer_timeout=60_000), {}, 120, "fail", "after 60 s, and yours may run 120 s"),
        (queue(x_consumer_timeout=60_000), {}, 30, "ok", "yours end after 30 s"),
        (queue(x_consumer_timeout=60_000), {}, None, "warn", "after 60 s"),
        (queue(OLD, x_consumer_timeout=60_000), {}, 120, "fail", "after 60 s"),
        (queue(OLD, x_consumer_timeout=None), {}, 120, "warn", "30 minutes"),
        (queue(OLD), None, 7200, "ok", "as long as"),
        (queue(OLD), {"consumer-timeout": 60_000}, 120, "fail", "after 60 s"),
        (queue(NEW), {"consumer-timeout": 60_000}, 120, "ok", "as long as"),
        (queue(Abilities((3, 10, 8))), None, 7200, "warn", "yours may run 7200 s"),
        (queue(Abilities((3, 10, 8))), None, None, "warn", "consumer_timeout"),
    ],
)
def test_acknowledgement_timeouts(
    survey: Survey, policy: dict[str, Any] | None, task: float | None, state: str, told: str
) -> None:
    finding = judge_timeout(survey, policy, task)
    assert finding.state == state
    assert told in finding.found
    assert bool(finding.command) == (state != "ok")


# -- delays ------------------------------------------------------------------------------------

LADDER = list(parts(Level(PREFIX, 3)))
BINDINGS = {binding for part in LADDER for binding in part.bindings}


def test_a_ladder_that_is_whole() -> None:
    """Or that nobody ever used: then there is nothing to say."""
    assert [finding.state for finding in judge_ladder(LADDER, BINDINGS, "q")] == ["ok"]
    assert [finding.state for finding in judge_ladder(LADDER, None, "q")] == ["ok"]
    assert list(judge_ladder([], set(), "q")) == []


@pytest.mark.parametrize("missing", LADDER[:-2], ids=str)
def test_each_part_that_is_missing_is_named(missing: Part) -> None:
    """And the message that makes it again: one that needs the highest level there is."""
    left = [part for part in LADDER if part is not missing]
    findings = list(judge_ladder(left, BINDINGS, "my q"))
    assert [finding.state for finding in findings] == ["fail"]
    assert findings[0].found.startswith(f"{missing} does not exist")
    assert findings[0].command == "workqueue send 'my q' BODY --delay 0.8s"


@pytest.mark.parametrize("missing", sorted(BINDINGS), ids=lambda b: f"{b.source} to {b.target}")
def test_each_binding_that_is_missing_is_named(missing: Binding) -> None:
    findings = list(judge_ladder(LADDER, BINDINGS - {missing}, "q"))
    assert len(findings) == 1
    assert f"{missing.source} is not bound to {missing.target}" in findings[0].found


def test_the_ladder_of_high_priorities() -> None:
    """It has levels of its own, and a message of a high priority makes them."""
    high = list(parts(Level(HIGH_PREFIX, 2)))
    left = [part for part in high if part.name != f"{HIGH_PREFIX}1"]
    commands = {finding.command for finding in judge_ladder(left, None, "q")}
    assert commands == {"workqueue send q BODY --delay 0.4s --priority 9"}


def test_what_was_due_for_nobody() -> None:
    assert list(judge_undeliverable(0)) == []
    assert [finding.state for finding in judge_undeliverable(3)] == ["warn"]


@pytest.mark.parametrize(
    ("exchange", "own", "ruled", "told"),
    [
        ("workqueue", None, None, None),
        ("workqueue", "a", None, "a (argument)"),
        ("workqueue", None, "p", "p (policy rule)"),
        ("workqueue", "a", "p", "a (argument)"),
        ("workqueue.delay.3", None, "p", "p (policy rule)"),
        ("workqueue.due", UNDELIVERABLE, "p", None),
        ("workqueue.due", None, "p", "p (policy rule)"),
        ("others", None, "p", None),
    ],
)
def test_alternate_exchanges(
    exchange: str, own: str | None, ruled: str | None, told: str | None
) -> None:
    """An argument goes before a policy; other people's exchanges are theirs."""
    row = {"name": exchange, "arguments": {"alternate-exchange": own} if own else {}}
    definition = {"alternate-exchange": ruled} if ruled else {}
    rule = {"name": "rule", "pattern": ".*", "apply-to": "all", "definition": definition}
    findings = list(judge_alternates([row], [rule]))
    assert [finding.state for finding in findings] == (["warn"] if told else [])
    assert all(f"alternate exchange {told}:" in finding.found for finding in findings)
