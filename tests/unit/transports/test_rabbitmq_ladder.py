"""The ladder of delays, walked on paper: every way ends at its queue, after its time."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.message import LONGEST_DELAY
from workqueue.transports.rabbitmq.ladder import (
    DUE,
    HIGH_PREFIX,
    LEVELS,
    PREFIX,
    TICK,
    Level,
    delivery_key,
    destination,
    first_level,
    highest_level,
    is_level,
    parts,
    routing_key,
    ticks_of,
    without_waiting,
)

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: len(name.encode()) <= 255
)
odd_names = st.sampled_from(["a.b", "*", "#", "a.#", "*.b", "%2E", "…" * 80, "x" * 255, "1.0.1"])


def topic_matches(pattern: str, key: str) -> bool:
    """As the AMQP 0-9-1 specification has it, section 3.1.3.3: * is one word, # any number."""

    def match(pattern: list[str], words: list[str]) -> bool:
        if not pattern:
            return not words
        if pattern[0] == "#":
            return any(match(pattern[1:], words[n:]) for n in range(len(words) + 1))
        return bool(words) and pattern[0] in ("*", words[0]) and match(pattern[1:], words[1:])

    return match(pattern.split("."), key.split("."))


def walk(delay: float, queue: str, *, high: bool) -> float:
    """Seconds that a message spends in queues on its way; fails if there is not just one way."""
    key = routing_key(delay, queue)
    place, waited = first_level(delay, high=high).name, 0.0
    while place != DUE:
        level = level_named(place)
        waits, passes = topic_matches(level.waits, key), topic_matches(level.passes, key)
        assert waits != passes, "one of two ways, never both, never none"
        if waits:
            waited += level.arguments["x-message-ttl"] / 1000
            assert level.arguments["x-dead-letter-exchange"] == level.next
        place = level.next
    return waited


def level_named(name: str) -> Level:
    prefix, number = name.rsplit(".", 1)
    return Level(f"{prefix}.", int(number))


@given(st.floats(0.001, LONGEST_DELAY), names | odd_names, st.booleans())
def test_any_delay_to_any_queue(delay: float, queue: str, high: bool) -> None:
    """Never early, and at most one tick late."""
    waited = walk(delay, queue, high=high)
    assert delay <= waited + 1e-6
    assert waited <= delay + 1.001 * TICK
    assert topic_matches(delivery_key(queue), routing_key(delay, queue))


@given(names | odd_names, names | odd_names, st.floats(0.1, LONGEST_DELAY))
def test_to_no_other_queue(queue: str, other: str, delay: float) -> None:
    """Whatever they are called."""
    same = topic_matches(delivery_key(other), routing_key(delay, queue))
    assert same == (queue == other)


@given(names | odd_names, st.floats(0.1, LONGEST_DELAY))
def test_keys_are_short_enough(queue: str, delay: float) -> None:
    """For AMQP's short strings."""
    assert len(routing_key(delay, queue).encode()) <= 255
    assert len(delivery_key(queue).encode()) <= 255
    assert "." not in destination(queue)


@pytest.mark.parametrize(
    ("delay", "ticks"), [(0.0001, 1), (0.1, 1), (0.10001, 2), (0.2, 2), (1, 10), (60, 600)]
)
def test_ticks(delay: float, ticks: int) -> None:
    assert ticks_of(delay) == ticks


def test_the_longest_delay_has_a_way() -> None:
    """30 days fit into the digits."""
    assert math.ceil(LONGEST_DELAY / TICK) < 2**LEVELS
    assert first_level(LONGEST_DELAY, high=False).number == LEVELS - 1


def test_high_priorities_wait_elsewhere() -> None:
    """On a ladder of their own, that ends at the same place."""
    assert first_level(1, high=True).name == f"{HIGH_PREFIX}3"
    assert first_level(1, high=False).name == f"{PREFIX}3"
    assert Level(HIGH_PREFIX, 0).next == Level(PREFIX, 0).next == DUE
    assert is_level(f"{HIGH_PREFIX}3")
    assert is_level(f"{PREFIX}3")
    assert not is_level("workqueue.due")


def test_what_the_ladder_leaves_in_headers() -> None:
    """Is not for the handler; what a real dead-lettering left is."""
    waited = {"queue": f"{PREFIX}2", "reason": "expired"}
    died = {"queue": "emails", "reason": "rejected"}
    headers = {
        "tenant": "ada",
        "x-first-death-queue": f"{PREFIX}2",
        "x-first-death-reason": "expired",
        "x-last-death-queue": f"{PREFIX}0",
        "x-death": [waited, {"queue": f"{HIGH_PREFIX}0"}],
    }
    assert without_waiting(headers) == {"tenant": "ada"}
    headers["x-death"] = [died, waited]
    assert without_waiting(headers) == {"tenant": "ada", "x-death": [died]}
    headers["x-death"] = "nonsense of a stranger"
    assert without_waiting(headers) == {"tenant": "ada"}
    dead = {"x-first-death-queue": "emails", "x-death": [died]}
    assert without_waiting(dead) == dead


@pytest.mark.parametrize("prefix", [PREFIX, HIGH_PREFIX])
@pytest.mark.parametrize("number", [0, 3, LEVELS - 1])
def test_parts_come_after_those_that_they_lead_to(prefix: str, number: int) -> None:
    """Made in this order, at no time does one of them lead nowhere."""
    made: set[tuple[bool, str]] = set()
    for part in parts(Level(prefix, number)):
        made.add((part.is_queue, part.name))
        for binding in part.bindings:
            assert binding.source == part.name
            assert (binding.to_queue, binding.target) in made
        after = (part.arguments or {}).get("x-dead-letter-exchange")
        assert after is None or (False, after) in made
    assert len(made) == 3 + 2 * (number + 1)


@pytest.mark.parametrize(
    ("names", "prefix", "number"),
    [
        ([f"{PREFIX}0", f"{PREFIX}10", f"{PREFIX}9", f"{HIGH_PREFIX}20", "x"], PREFIX, 10),
        ([f"{PREFIX}0", f"{HIGH_PREFIX}2"], HIGH_PREFIX, 2),
        ([f"{PREFIX}99", f"{PREFIX}x", "workqueue.due"], PREFIX, None),
        ([], PREFIX, None),
    ],
)
def test_the_highest_level_there_is(names: list[str], prefix: str, number: int | None) -> None:
    """Each ladder by itself; a name that only looks like one of its levels is not counted."""
    expected = None if number is None else Level(prefix, number)
    assert highest_level(names, prefix) == expected
