"""What can go wrong, and what it tells."""

from __future__ import annotations

import inspect
import re

import pytest

from workqueue import errors
from workqueue.errors import (
    BrokerBlocked,
    ConfigError,
    DeliveriesLost,
    NotSent,
    QueueMismatch,
    QueueNotFound,
    Reject,
    Unconfirmed,
    WorkqueueError,
)
from workqueue.message import Delivery, Message


def drawn() -> dict[str, str]:
    """The tree in the module's docstring, as child to parent."""
    assert errors.__doc__
    parents: dict[str, str] = {}
    trail: list[str] = []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ((?:[│├└─ ]{4})*)(\w+)(?:\s|$)", line)
        if match and match[2] in vars(errors) and (match[1] or match[2] == "WorkqueueError"):
            depth = len(match[1]) // 4
            trail[depth:] = [match[2]]
            if depth:
                parents[match[2]] = trail[depth - 1]
    return parents


def test_the_drawing_is_the_tree() -> None:
    """The docstring shows every error in its place."""
    real = {
        name: kind.__base__.__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, WorkqueueError) and kind is not WorkqueueError
        if kind.__base__
    }
    assert drawn() == real


def test_a_handlers_word_is_no_error_of_ours() -> None:
    """`except WorkqueueError` around a handler does not swallow its Reject."""
    assert not issubclass(Reject, WorkqueueError)
    assert Reject("bad address").reason == str(Reject("bad address")) == "bad address"
    assert Reject().reason


@pytest.mark.parametrize("kind", [WorkqueueError, ConfigError, NotSent, Unconfirmed])
def test_hints_are_beside_the_message(kind: type[WorkqueueError]) -> None:
    """What one can do about it is not part of what happened."""
    error = kind("what happened", hint="what to do")
    assert (str(error), error.hint) == ("what happened", "what to do")
    assert kind("what happened").hint == ""


def test_a_mismatch_names_all_that_differs() -> None:
    """Wanted and existing, in words, and as values for a program."""
    error = QueueMismatch("jobs", {"max length": (8, 7), "ttl": (None, 60)})
    assert str(error) == (
        "queue jobs exists with other parameters: max length is 7, not 8; "
        "ttl is 60, and was not asked for"
    )
    assert error.queue == "jobs"
    assert error.differences == {"max length": (8, 7), "ttl": (None, 60)}


def test_a_missing_queue_is_named() -> None:
    """In the text, and as a value."""
    error = QueueNotFound("jobs")
    assert "jobs" in str(error)
    assert error.queue == "jobs"


def test_not_sent_pairs_messages_with_causes() -> None:
    """What was sent of the same call is told, too."""
    message = Message(body=b"x")
    cause = BrokerBlocked("no memory")
    error = NotSent("1 of 3", failures=[(message, cause)], sent=2)
    assert error.failures == [(message, cause)]
    assert error.sent == 2
    assert NotSent("nothing").failures == []
    assert issubclass(BrokerBlocked, Unconfirmed)


def test_lost_deliveries_are_named() -> None:
    """So that a worker can tell their handlers."""
    delivery = Delivery(message=Message(body=b"x"), queue="q")
    assert DeliveriesLost("too slow", (delivery,)).deliveries == [delivery]
