"""Queue arguments by type and version, and what RabbitMQ's refusals say."""

from __future__ import annotations

from typing import Any

import pytest

from workqueue.errors import ConfigError
from workqueue.transport import QueueSpec
from workqueue.transports.rabbitmq.consumer import LONGEST_INSTANT, MANY, WIDE, instant, split
from workqueue.transports.rabbitmq.driver import differences
from workqueue.transports.rabbitmq.priorities import shortfall
from workqueue.transports.rabbitmq.publisher import sizes_in
from workqueue.transports.rabbitmq.survey import (
    Question,
    Survey,
    check_type,
    learn,
    permission_in,
    type_in,
)
from workqueue.transports.rabbitmq.topology import (
    NO_TIMEOUT,
    Abilities,
    Inequivalent,
    dead_arguments,
    parameter,
    parse_refusal,
    parse_version,
    queue_arguments,
)

VERSIONS = ["3.10.25", "3.13.7", "4.0.5", "4.2.1", "4.3.6"]

ALWAYS = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "jobs.dead"}
QUORUM = {
    **ALWAYS,
    "x-queue-type": "quorum",
    "x-delivery-limit": 20,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
    "x-consumer-timeout": NO_TIMEOUT,
}
CLASSIC = {**ALWAYS, "x-queue-type": "classic", "x-max-priority": 9}


def abilities(version: str) -> Abilities:
    return Abilities(parse_version(version))


# -- arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("4.3.6", (4, 3, 6)),
        ("4.3.6-rc.1", (4, 3, 6)),
        ("3.13.7+12.gabcdef", (3, 13, 7)),
        ("4.0", (4, 0, 0)),
        ("10.2.3", (10, 2, 3)),
        ("unknown", ()),
        ("", ()),
        (None, ()),
        (b"4.3.6", ()),
    ],
)
def test_versions(text: object, version: tuple[int, ...]) -> None:
    """What says nothing is older than all that says something."""
    assert parse_version(text) == version
    assert () < (3, 10, 0)


@pytest.mark.parametrize("asked", [None, "quorum"])
def test_a_quorum_queue(asked: Any) -> None:
    """The default: with a limit of deliveries, and no message ever dropped."""
    assert queue_arguments(QueueSpec(name="jobs", type=asked)) == QUORUM


def test_a_classic_queue() -> None:
    """Without the timeout that it could have up to 4.2: 4.3 would not import its definition."""
    assert queue_arguments(QueueSpec(name="jobs", type="classic")) == CLASSIC


@pytest.mark.parametrize("type_", ["quorum", "classic"])
def test_a_bounded_queue_refuses_more(type_: Any) -> None:
    """By default RabbitMQ would drop the oldest, which it had confirmed."""
    spec = QueueSpec(name="jobs", type=type_, max_length=5)
    arguments = queue_arguments(spec)
    assert (arguments["x-max-length"], arguments["x-overflow"]) == (5, "reject-publish")


@pytest.mark.parametrize(
    ("ttl", "milliseconds"), [(1.5, 1500), (0.001, 1), (0.0014, 1), (60, 60000)]
)
def test_a_ttl_in_milliseconds(ttl: float, milliseconds: int) -> None:
    """Seconds with us, whole milliseconds with RabbitMQ, and never 0, which is "at once"."""
    arguments = queue_arguments(QueueSpec(name="jobs", ttl=ttl))
    assert arguments["x-message-ttl"] == milliseconds


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("type_", ["quorum", "classic"])
def test_every_argument_is_text_or_an_integer(type_: Any, version: str) -> None:
    """A float, or a number in words, is not what RabbitMQ takes."""
    spec = QueueSpec(name="jobs", type=type_, max_length=3, ttl=2.5)
    for name, value in queue_arguments(spec).items():
        assert type(value) in (str, int), name


def test_a_dead_letter_queue_eats_nothing() -> None:
    """No time to live, no bound, and a limit that looking at it cannot reach; not -1."""
    assert dead_arguments() == {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}


@pytest.mark.parametrize(
    ("version", "queue_sets", "classic_has", "consumer_sets", "compares"),
    [
        ("3.10.25", False, True, False, False),
        ("3.13.7", True, True, False, False),
        ("4.0.5", True, True, False, False),
        ("4.2.1", True, True, False, False),
        ("4.3.0", True, False, True, True),
        ("4.3.6", True, False, True, True),
        ("5.0.0", True, False, True, True),
        ("nonsense", False, True, False, False),
    ],
)
def test_what_versions_can_do(
    version: str, queue_sets: bool, classic_has: bool, consumer_sets: bool, compares: bool
) -> None:
    """The acknowledgement timeout is set by the queue since 3.12, by the consumer since 4.3."""
    can = abilities(version)
    assert can.queue_sets_timeout is queue_sets
    assert can.classic_has_timeout is classic_has
    assert can.consumer_sets_timeout is consumer_sets
    assert can.compares_timeout is compares


# -- refusals ----------------------------------------------------------------------------------


def refusal(argument: str, told: str, *, queue: str = "q", vhost: str = "/") -> str:
    """As RabbitMQ 3.10 to 4.3 word it."""
    where = f"for queue '{queue}' in vhost '{vhost}'"
    return f"PRECONDITION_FAILED - inequivalent arg '{argument}' {where}: {told}"


REFUSALS = [
    (
        refusal(
            "x-max-length",
            "received none but current is the value '5' of type 'signedint'",
            queue="f3",
        ),
        Inequivalent("x-max-length", None, 5),
    ),
    (
        refusal(
            "x-dead-letter-exchange",
            "received the value '' of type 'longstr' but current is none",
            queue="f2",
        ),
        Inequivalent("x-dead-letter-exchange", "", None),
    ),
    (
        refusal("x-max-length", "received '8' but current is '7'"),
        Inequivalent("x-max-length", 8, 7),
    ),
    (
        refusal("x-queue-type", "received 'classic' but current is 'quorum'"),
        Inequivalent("x-queue-type", "classic", "quorum"),
    ),
    (
        refusal("x-dead-letter-routing-key", "received '7.dead' but current is '7'"),
        Inequivalent("x-dead-letter-routing-key", "7.dead", "7"),
    ),
    (
        refusal(
            "x-single-active-consumer",
            "received none but current is the value 'true' of type 'bool'",
        ),
        Inequivalent("x-single-active-consumer", None, True),
    ),
    (
        refusal(
            "x-delivery-limit",
            "received the value '20' of type 'signedint' but current is the value '-1' of type "
            "'signedint'",
        ),
        Inequivalent("x-delivery-limit", 20, -1),
    ),
    (
        refusal("durable", "received 'true' but current is 'false'"),
        Inequivalent("durable", "true", "false"),
    ),
    (
        refusal("x-max-length", "received '1' but current is '2'", queue="it's here", vhost="a: b"),
        Inequivalent("x-max-length", 1, 2),
    ),
]

INVALID = (
    "PRECONDITION_FAILED - invalid arg '{}' for queue 'q' in vhost '/' "
    "of queue type rabbit_{}_queue"
)
TIMED_OUT = (
    "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: "
    "3000 ms. This timeout value can be configured, see consumers doc guide to learn more"
)
TOO_LARGE = (
    "PRECONDITION_FAILED - message size 17825792 is larger than configured max size 16777216"
)
OTHER_TEXTS = [
    "",
    INVALID.format("x-delivery-limit", "classic"),
    TIMED_OUT,
    TOO_LARGE,
    "PRECONDITION_FAILED - unknown delivery tag 1",
    "NOT_FOUND - no queue 'q' in vhost '/'",
]


@pytest.mark.parametrize(("text", "expected"), REFUSALS)
def test_a_refusal_names_the_difference(text: str, expected: Inequivalent) -> None:
    """The argument, and both values as they would have to be declared."""
    found = parse_refusal(text)
    assert found == expected
    assert found is not None
    assert type(found.wanted) is type(expected.wanted)
    assert type(found.existing) is type(expected.existing)


@pytest.mark.parametrize("text", OTHER_TEXTS)
def test_other_refusals_name_none(text: str) -> None:
    """Not every 406 is about arguments that differ."""
    assert parse_refusal(text) is None


@pytest.mark.parametrize(
    ("argument", "value", "told"),
    [
        ("x-queue-type", "classic", ("type", "classic")),
        ("x-max-length", 5, ("max length", 5)),
        ("x-message-ttl", 1500, ("ttl", 1.5)),
        ("x-message-ttl", 60_000, ("ttl", 60)),
        ("x-message-ttl", None, ("ttl", None)),
        ("x-expires", 5, ("x-expires", 5)),
    ],
)
def test_arguments_by_our_names(argument: str, value: object, told: tuple[str, object]) -> None:
    """A user reads the option that was given, in seconds; what is no option of ours, as it is."""
    assert parameter(argument, value) == told


def test_only_what_was_asked_is_told() -> None:
    """A difference in an option explains it; the arguments that follow from it are not said."""
    wanted = queue_arguments(QueueSpec(name="q", type="quorum"))
    found = queue_arguments(QueueSpec(name="q", type="classic"))
    assert differences(wanted, found) == {"type": ("quorum", "classic")}
    assert differences(wanted, wanted) == {}
    assert differences({"x-expires": 1}, {}) == {"x-expires": (1, None)}


# -- what a queue is like, from refusals -------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), [r for r in REFUSALS if r[1].argument[:2] == "x-"])
def test_learning_takes_the_existing_value(text: str, expected: Inequivalent) -> None:
    """The next declaration says what the broker has; what it has not is left out."""
    arguments = {expected.argument: expected.wanted} if expected.wanted is not None else {}
    assert learn(arguments, text) is True
    assert arguments.get(expected.argument) == expected.existing
    assert (expected.argument in arguments) is (expected.existing is not None)


def test_learning_that_it_is_classic() -> None:
    """What a classic queue cannot have is left out at once: to ask again would be refused."""
    arguments: dict[str, Any] = dict(QUORUM)
    told = "received 'quorum' but current is 'classic'"
    assert learn(arguments, refusal("x-queue-type", told))
    assert arguments["x-queue-type"] == "classic"
    assert not {"x-delivery-limit", "x-dead-letter-strategy"} & arguments.keys()


@pytest.mark.parametrize(("asked", "there"), [("classic", "quorum"), ("quorum", "classic")])
def test_learning_from_an_invalid_argument(asked: str, there: str) -> None:
    """An argument that a queue has and the type we asked for cannot have: it is the other type."""
    arguments: dict[str, Any] = {"x-queue-type": asked}
    assert learn(arguments, INVALID.format("x-foo", asked))
    assert arguments["x-queue-type"] == there


@pytest.mark.parametrize(
    "text",
    [
        *(text for text in OTHER_TEXTS if "invalid arg" not in text),
        refusal("durable", "received 'true' but current is 'false'"),
        refusal("exclusive", "received 'false' but current is 'true'"),
    ],
)
def test_nothing_to_learn(text: str) -> None:
    """What arguments cannot say ends the questions, and changes nothing."""
    arguments = dict(QUORUM)
    assert learn(arguments, text) is False
    assert arguments == QUORUM


def test_questions_come_to_an_end() -> None:
    """Refusal by refusal, the arguments of a foreign queue are found."""
    existing: dict[str, Any] = {"x-queue-type": "classic", "x-max-length": 9, "x-expires": 60_000}
    arguments: dict[str, Any] = dict(QUORUM)
    questions = 0
    while arguments != existing:
        questions += 1
        assert questions < 25
        names = sorted({*arguments, *existing}, key=lambda name: name != "x-queue-type")
        name = next(n for n in names if arguments.get(n) != existing.get(n))
        told = [
            "none" if value is None else f"the value '{value}' of type '{kind}'"
            for value in (arguments.get(name), existing.get(name))
            for kind in ["longstr" if isinstance(value, str) else "signedint"]
        ]
        assert learn(arguments, refusal(name, f"received {told[0]} but current is {told[1]}"))


# -- who may hold a task for hours -------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        (refusal("x-queue-type", "received 'quorum' but current is 'stream'"), "stream"),
        (refusal("x-queue-type", "received 'quorum' but current is 'classic'"), "classic"),
        (refusal("durable", "received 'true' but current is 'false'"), "classic"),
        (refusal("auto_delete", "received 'false' but current is 'true'"), "classic"),
        (
            refusal("x-delivery-limit", "received the value '20' of type 'x' but current is none"),
            "quorum",
        ),
        (refusal("exclusive", "received 'false' but current is 'true'"), None),
        (TOO_LARGE, None),
    ],
)
def test_the_type_from_one_refusal(text: str, type_: str | None) -> None:
    """Of a declaration as our quorum queue: the flags come first, then the type, then all else."""
    assert type_in(text) == type_


def test_flags_are_learned() -> None:
    """A queue that is not durable is declared so: then the arguments can be asked for."""
    asked = Question(dict(QUORUM))
    assert asked.learn(refusal("durable", "received 'true' but current is 'false'"))
    assert asked.learn(refusal("auto_delete", "received 'false' but current is 'true'"))
    assert (asked.durable, asked.auto_delete, asked.arguments) == (False, True, QUORUM)
    assert not asked.learn(refusal("exclusive", "received 'false' but current is 'true'"))
    assert asked.learn(refusal("x-queue-type", "received 'quorum' but current is 'stream'"))
    assert asked.told_type == "stream"


@pytest.mark.parametrize("type_", ["stream", "MQTT_QOS0", "jms"])
def test_types_that_are_no_work_queues(type_: str) -> None:
    """The error names the type; quorum, classic and a type that is not known pass."""
    with pytest.raises(ConfigError, match=f"queue q has the type {type_}"):
        check_type("q", type_)
    for good in ("quorum", "classic", None):
        check_type("q", good)


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("configure access to queue 'q' in vhost '/' refused for user 'ada'", "configure q"),
        ("read access to queue 'q' in vhost '/' refused for user 'ada'", "read q"),
        ("write access to exchange 'amq.default' in vhost '/' refused", "write amq.default"),
        ("access to queue 'q' in vhost '/' refused for user 'ada'", "configure q"),
        ("write access to topic '0.1' in exchange 'x' in vhost '/' refused", "write topics of x"),
        ("access to exchange 'amq.default' in vhost '/' refused", "write amq.default"),
        ("something else", "configure q"),
    ],
)
def test_the_permission_that_was_missing(text: str, needed: str) -> None:
    """By RabbitMQ's own words since 4.0; before, they do not name the kind."""
    assert permission_in(f"ACCESS_REFUSED - {text}", "configure", "q") == needed


def queue(version: str, arguments: dict[str, Any] | None) -> Survey:
    return Survey("jobs", abilities(version), arguments)


@pytest.mark.parametrize(
    ("version", "arguments", "guarded"),
    [
        ("3.10.25", QUORUM, False),
        ("3.13.7", QUORUM, True),
        ("4.0.5", QUORUM, True),
        ("4.2.1", {"x-queue-type": "quorum"}, False),
        ("4.3.6", {"x-queue-type": "quorum"}, True),
        ("4.3.6", {"x-queue-type": "quorum", "x-consumer-timeout": 3000}, False),
        ("4.3.6", {"x-queue-type": "quorum", "x-consumer-timeout": NO_TIMEOUT}, True),
        ("4.3.6", {"x-queue-type": "classic"}, True),
        ("4.3.6", {}, True),
        ("4.0.5", CLASSIC, False),
        ("4.0.5", {"x-queue-type": "classic"}, False),
        ("4.3.6", None, False),
    ],
)
def test_whether_a_delivery_stays_ours(
    version: str, arguments: dict[str, Any] | None, guarded: bool
) -> None:
    """No timeout takes a long task away, or it is known which, or a warning says so."""
    found = queue(version, arguments)
    assert found.guarded is guarded
    assert (found.warning(version) is None and found.own_timeout is None) is guarded


def test_the_warning_says_what_to_do() -> None:
    """The broker's own setting where that is the way out. A queue's timeout, which is known, is
    the worker's to compare with how long its tasks may run."""
    warning = queue("4.0.5", {"x-queue-type": "quorum"}).warning("4.0.5")
    assert warning is not None
    assert f"consumer_timeout = {NO_TIMEOUT}" in warning
    timed = queue("4.3.6", {"x-queue-type": "quorum", "x-consumer-timeout": 90_000})
    assert timed.warning("4.3.6") is None
    assert timed.own_timeout == 90


@pytest.mark.parametrize(
    ("version", "arguments", "expected"),
    [
        ("4.3.6", {"x-queue-type": "quorum"}, {"x-consumer-timeout": NO_TIMEOUT}),
        ("4.3.6", {"x-queue-type": "quorum", "x-consumer-timeout": 3000}, {}),
        ("4.3.6", {"x-queue-type": "classic"}, {}),
        ("4.0.5", QUORUM, {}),
        ("4.3.6", None, {}),
    ],
)
def test_consumer_arguments(
    version: str, arguments: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    """Only where it works: quorum queues since 4.3, and not against their maker's word."""
    assert queue(version, arguments).consumer_arguments() == expected


def test_a_queue_without_a_type_is_classic() -> None:
    """So RabbitMQ has it."""
    assert queue("4.0.5", {}).type == "classic"
    assert queue("4.0.5", None).type is None
    assert Survey("q", abilities("4.3.6"), None, "quorum").type == "quorum"


# -- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (TOO_LARGE, (17_825_792, 16_777_216)),
        ("PRECONDITION_FAILED - message size 200B is larger than max size 100B", (200, 100)),
        ("PRECONDITION_FAILED - unknown delivery tag 1", (0, 0)),
        ("message size is larger than max size", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_sizes_in_a_refusal(text: str, sizes: tuple[int, int]) -> None:
    """Size and limit, from the words of 4.x and of 3.x."""
    assert sizes_in(text) == sizes


@pytest.mark.parametrize(
    ("version", "arguments", "told"),
    [
        ("3.13.7", {"x-queue-type": "quorum"}, "know no priorities"),
        ("4.0.5", {"x-queue-type": "quorum"}, "RabbitMQ 4.0.5 know two priorities"),
        ("4.2.1", {"x-queue-type": "quorum"}, "know two priorities"),
        ("4.3.6", {"x-queue-type": "quorum"}, None),
        ("4.3.6", {"x-queue-type": "classic"}, "queue jobs was made without priorities"),
        ("4.0.5", {"x-queue-type": "classic", "x-max-priority": 3}, "with 3 priorities"),
        ("4.0.5", CLASSIC, None),
        ("4.0.5", {"x-queue-type": "stream"}, None),
        ("4.0.5", None, None),
    ],
)
def test_what_priorities_are_worth(
    version: str, arguments: dict[str, Any] | None, told: str | None
) -> None:
    found = shortfall(Survey("jobs", abilities(version), arguments), version)
    assert found is None if told is None else told in str(found)


@pytest.mark.parametrize(
    ("prefetch", "most", "shares"),
    [
        (0, 64, [0]),
        (1, 64, [1]),
        (5, 64, [1] * 5),
        (5, 1, [5]),
        (5, 3, [2, 2, 1]),
        (65, 64, [2] + [1] * 63),
    ],
)
def test_lanes_share_what_may_be_held(prefetch: int, most: int, shares: list[int]) -> None:
    """All of it, and no more."""
    assert split(prefetch, most) == shares


@pytest.mark.parametrize(
    ("came", "limit", "prefetch", "waits"),
    [
        pytest.param(1, 1000, 1, False, id="one at a time"),
        pytest.param(1, 1000, WIDE - 1, False, id="a small window, which the broker fills at once"),
        pytest.param(1, 1000, WIDE, True, id="a trickle"),
        pytest.param(20, 1000, WIDE, False, id="a good part of the window"),
        pytest.param(MANY, 1000, 2000, False, id="many"),
        pytest.param(MANY - 1, 1000, 2000, True, id="fewer"),
        pytest.param(5, 5, 1000, False, id="all that is wanted"),
        pytest.param(5, 0, 1000, False, id="nothing is wanted"),
    ],
)
def test_an_instant_is_waited_for_more(came: int, limit: int, prefetch: int, waits: bool) -> None:
    """Only where more is sure to come, and for less than anybody notices."""
    seconds = instant(came, limit, prefetch)
    assert (seconds > 0) == waits
    assert seconds <= LONGEST_INSTANT < 0.001
