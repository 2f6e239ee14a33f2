"""What becomes of a copy that could not be placed, as a table; and what the copier makes of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence

import pytest

from workqueue.errors import (
    ConnectionLost,
    NotSent,
    QueueFull,
    Refused,
    TooLarge,
    Unconfirmed,
    Unroutable,
    WorkqueueError,
)
from workqueue.message import Delivery, Message
from workqueue.testing import eventually
from workqueue.transports.copies import ERROR, FAILURES, REASON
from workqueue.transports.forms import Form
from workqueue.transports.rabbitmq import publisher
from workqueue.transports.rabbitmq.causes import CannotWait, Forbidden, Interrupted
from workqueue.transports.rabbitmq.copier import Copier
from workqueue.transports.rabbitmq.owed import DETOUR, LONGEST_PAUSE, Owed, pause, plan

NOW = 1_000.0


def owed(queue: str = "q.dead", delay: float = 0.0, **headers: object) -> Owed:
    message = Message(body=b"x", id="m", delay=delay, reply_to="r", headers=headers)
    return Owed(Delivery(message=message, queue="q"), queue, message, NOW)


def after(one: Owed, *causes: WorkqueueError, now: float = NOW) -> Owed:
    for cause in causes:
        plan(one, cause, now, LONGEST_PAUSE)
    return one


@pytest.mark.parametrize(
    "cause",
    [ConnectionLost("no"), Unconfirmed("no"), Unroutable("no"), Forbidden("no"), QueueFull("no")],
)
def test_what_may_pass_is_tried_again_later_and_later(cause: WorkqueueError) -> None:
    """As it is: nothing of it is given up for a fault that is not its own."""
    one = owed(**{ERROR: "long", "theirs": 1})
    as_it_was = one.message
    for _ in range(50):
        after(one, cause)
        assert NOW + 0.05 <= one.next_try <= NOW + LONGEST_PAUSE
    assert one.message == as_it_was
    assert one.next_try >= NOW + LONGEST_PAUSE / 2


@pytest.mark.parametrize("cause", [TooLarge("no"), Refused("no")])
def test_what_is_refused_is_tried_at_once_and_smaller(cause: WorkqueueError) -> None:
    one = owed(**{ERROR: "e" * 8_000, REASON: "r" * 1_000, FAILURES: 1, "theirs": 1})
    after(one, cause)
    assert (one.form, one.next_try) == (Form.SHORT, NOW)
    assert one.message.headers == {REASON: "r" * 200, FAILURES: 1, "theirs": 1}
    after(one, cause)
    assert (one.form, one.next_try) == (Form.BARE, NOW)
    assert one.message.headers == {REASON: "r" * 200, FAILURES: 1}
    after(one, cause)
    assert (one.form, one.message.reply_to, one.next_try) == (Form.LEAST, None, NOW)
    after(one, cause)
    assert one.form is Form.LEAST
    assert one.next_try > NOW


def test_a_form_that_changes_nothing_is_left_out() -> None:
    one = after(owed(**{FAILURES: 1}), TooLarge("no"))
    assert one.form is Form.LEAST
    assert one.next_try == NOW


def test_one_of_several_made_the_broker_hang_up() -> None:
    """Each is tried alone, as it is; the one that does it again is tried smaller."""
    one = owed(**{ERROR: "text"})
    after(one, Interrupted("no"))
    assert (one.alone, one.form, one.next_try) == (True, Form.WHOLE, NOW)
    after(one, Interrupted("no"))
    assert (one.form, one.next_try) == (Form.SHORT, NOW)


def test_without_a_delay_queue_it_waits_in_the_worker() -> None:
    """It is tried again meanwhile, with what is left, and goes straight once its time has come."""
    one = owed("q", delay=5.0)
    for second in range(5):
        after(one, CannotWait("no"), now=NOW + second)
        assert NOW + second <= one.next_try <= NOW + 5.0
        assert one.to_send(NOW + second).delay == 5.0 - second
    after(one, *[CannotWait("no")] * 10, now=NOW + 5.1)
    assert one.next_try == NOW + 5.1
    assert one.to_send(NOW + 5.1).delay == 0.0
    assert one.form is Form.WHOLE


def test_a_full_queue_takes_what_waits_for_its_time() -> None:
    one = after(owed("q"), QueueFull("no"))
    assert one.to_send(NOW).delay == DETOUR
    assert one.next_try == NOW
    after(one, QueueFull("no"), now=NOW + 1)
    assert one.next_try > NOW + 1
    assert one.to_send(one.next_try).delay == DETOUR


def test_pauses_stay_between_bounds() -> None:
    assert all(0.05 <= pause(tries, 20.0) <= 20.0 for tries in range(1, 2_000))


def test_what_may_close_the_channel_travels_alone() -> None:
    direct = Message(body=b"", reply_to="amq.rabbitmq.reply-to")
    copied = Message(body=b"", headers={"CC": "x"})
    usual = Message(body=b"", reply_to="answers", headers={"x": 1})
    assert [publisher.travels_alone(one) for one in (direct, copied, usual)] == [True, True, False]


class Scripted:
    """A publisher whose queues answer as a test says; it keeps what was placed."""

    def __init__(self) -> None:
        self.trouble: dict[str, WorkqueueError] = {}
        self.placed: list[tuple[str, Message]] = []
        self.calls = 0
        self.closed = self.patient = self.abandoned = False
        self.delays = self

    def forget(self) -> None:
        """No delay queues are known here."""

    def publish(self, queue: str, messages: Sequence[Message], _timeout: float) -> None:
        self.calls += 1
        cause = self.trouble.get(queue)
        if isinstance(cause, NotSent):
            raise NotSent("no", failures=[(message, cause) for message in messages], sent=0)
        if cause:
            raise cause
        if any(message.body == b"bug" for message in messages):
            raise ValueError("a bug of ours")
        self.placed += [(queue, message) for message in messages]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def copier(scripted: Scripted) -> Iterator[Copier]:
    copier = Copier(lambda: scripted, lambda: None, lambda: None)  # type: ignore[arg-type,return-value]
    yield copier
    copier.close()


def test_trouble_is_told_once_and_kept_in_mind(
    copier: Copier, scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    """Not once a try; and it says when it is over."""
    scripted.trouble["q.dead"] = QueueFull("full")
    for _ in range(3):
        copier.post(owed())
    eventually(lambda: scripted.calls > 5)
    assert copier.trouble[0] == 3
    assert "full" in copier.trouble[1]
    assert caplog.text.count("cannot be placed") == 1
    with caplog.at_level(logging.WARNING):
        del scripted.trouble["q.dead"]
        copier.hurry()
        eventually(lambda: len(scripted.placed) == 3)
        eventually(lambda: copier.trouble == (0, ""))
    assert "placed again" in caplog.text
    assert len(copier.collect()) == 3


def test_tries_become_rare(copier: Copier, scripted: Scripted) -> None:
    """A broker that takes nothing is not asked in a hot loop."""
    scripted.trouble["q.dead"] = Unroutable("gone")
    copier.post(owed())
    waited = threading.Event().wait(2.0)
    assert not waited
    assert 2 <= scripted.calls <= 10


def test_one_queue_does_not_hold_up_another(copier: Copier, scripted: Scripted) -> None:
    scripted.trouble["q.dead"] = QueueFull("full")
    copier.post(owed("q.dead"))
    copier.post(owed("q", delay=1.0))
    eventually(lambda: [queue for queue, _ in scripted.placed] == ["q"])


def test_what_the_broker_took_back_is_not_copied(copier: Copier, scripted: Scripted) -> None:
    scripted.trouble["q.dead"] = QueueFull("full")
    one = owed()
    copier.post(one)
    eventually(lambda: copier.trouble[0] == 1)
    one.dropped = True
    scripted.trouble.clear()
    copier.hurry()
    copier.post(owed("q"))
    eventually(lambda: scripted.placed)
    assert [queue for queue, _ in scripted.placed] == ["q"]


def test_a_bug_in_one_copy_is_that_copys_alone(copier: Copier, scripted: Scripted) -> None:
    """The thread goes on, and the others are placed."""
    bug = owed()
    bug.message = Message(body=b"bug")
    for one in (bug, owed(), owed()):
        copier.post(one)
    eventually(lambda: len(scripted.placed) == 2)
    assert copier.thread is not None
    assert copier.thread.is_alive()
