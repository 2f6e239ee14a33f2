"""Which published message is safe: a confirm is for the message with its tag, and for no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workqueue.errors import NotSent, QueueFull, Unconfirmed, Unroutable
from workqueue.message import Message, new_id
from workqueue.transports.rabbitmq.confirms import Confirms


def published(confirms: Confirms, count: int) -> list[Message]:
    messages = [Message(body=b"%d" % n, id=new_id()) for n in range(count)]
    for message in messages:
        confirms.published(message)
    return messages


def open_bodies(confirms: Confirms) -> list[bytes]:
    bodies = [message.body for message in confirms.open_messages()]
    assert confirms.open == len(bodies)
    return bodies


def failed(confirms: Confirms) -> list[tuple[bytes, type[NotSent]]]:
    return [(message.body, type(cause)) for message, cause in confirms.failures]


def test_tags_count_from_one() -> None:
    """As the broker counts them, from the first publish of a channel on."""
    confirms = Confirms()
    published(confirms, 3)
    assert confirms.open_tags() == [1, 2, 3]


def test_a_late_confirm_is_not_for_a_later_message() -> None:
    """The confirm of the first message, when only the second is waited for, settles the first."""
    confirms = Confirms()
    published(confirms, 2)
    confirms.on_ack(1, multiple=False)
    assert open_bodies(confirms) == [b"1"]


def test_a_late_confirm_after_giving_up_confirms_nothing() -> None:
    """What was given up stays unconfirmed, and what was sent since stays open."""
    confirms = Confirms()
    published(confirms, 1)
    confirms.give_up(Unconfirmed("no confirm in time"))
    published(confirms, 1)
    confirms.on_ack(1, multiple=False)
    assert open_bodies(confirms) == [b"0"]
    assert failed(confirms) == [(b"0", Unconfirmed)]
    confirms.on_nack(2, multiple=False)
    assert failed(confirms) == [(b"0", Unconfirmed), (b"0", QueueFull)]


def test_confirms_out_of_order() -> None:
    """Each settles its own."""
    confirms = Confirms()
    published(confirms, 3)
    for tag in (3, 1, 2):
        confirms.on_ack(tag, multiple=False)
    assert open_bodies(confirms) == []
    assert confirms.failures == []


def test_multiple_is_all_up_to_the_tag() -> None:
    """That one included, later ones not, and none twice."""
    confirms = Confirms()
    published(confirms, 5)
    confirms.on_ack(2, multiple=False)
    confirms.on_ack(3, multiple=True)
    assert open_bodies(confirms) == [b"3", b"4"]
    confirms.on_ack(3, multiple=True)
    assert open_bodies(confirms) == [b"3", b"4"]


def test_multiple_with_tag_zero_is_all() -> None:
    """So says the specification: zero stands for everything so far."""
    confirms = Confirms()
    published(confirms, 3)
    confirms.on_ack(0, multiple=True)
    assert open_bodies(confirms) == []


@pytest.mark.parametrize("multiple", [False, True])
def test_a_nack_is_a_full_queue(multiple: bool) -> None:
    """A refused message is named, with what a person can do about it as the cause."""
    confirms = Confirms()
    published(confirms, 3)
    confirms.on_nack(2, multiple=multiple)
    expected = [b"0", b"1"] if multiple else [b"1"]
    assert failed(confirms) == [(body, QueueFull) for body in expected]
    confirms.on_ack(3, multiple=True)
    assert len(confirms.failures) == len(expected)


def test_a_returned_message_is_unroutable() -> None:
    """Its confirm, which says "ack" all the same, makes it a failure with the broker's word."""
    confirms = Confirms()
    first, second = published(confirms, 2)
    confirms.on_return(first.id, "NO_ROUTE")
    assert confirms.failures == []
    confirms.on_ack(2, multiple=True)
    assert failed(confirms) == [(b"0", Unroutable)]
    assert "NO_ROUTE" in str(confirms.failures[0][1])
    assert confirms.failures[0][0] is first
    assert second.body not in {message.body for message, _ in confirms.failures}


def test_a_return_is_for_one_of_those_with_the_same_id() -> None:
    """The same id twice, two returns: two failures, each message once."""
    confirms = Confirms()
    twins = [Message(body=b"a", id="same"), Message(body=b"b", id="same")]
    for twin in twins:
        confirms.published(twin)
    confirms.on_return("same", "NO_ROUTE")
    confirms.on_ack(1, multiple=False)
    assert failed(confirms) == [(b"a", Unroutable)]
    confirms.on_return("same", "NO_ROUTE")
    confirms.on_ack(2, multiple=False)
    assert failed(confirms) == [(b"a", Unroutable), (b"b", Unroutable)]


def test_a_return_and_then_a_nack_is_one_failure() -> None:
    """A message fails once, whatever the broker says about it."""
    confirms = Confirms()
    (message,) = published(confirms, 1)
    confirms.on_return(message.id, "NO_ROUTE")
    confirms.on_nack(1, multiple=False)
    assert len(confirms.failures) == 1


def test_a_return_of_a_stranger_is_nothing() -> None:
    """A message that is not open cannot fail."""
    confirms = Confirms()
    published(confirms, 1)
    confirms.on_return("somebody else's", "NO_ROUTE")
    confirms.on_return(None, "NO_ROUTE")
    confirms.on_ack(1, multiple=False)
    assert confirms.failures == []


@pytest.mark.parametrize("tag", [0, 4, 2**63])
def test_unknown_tags_settle_nothing(tag: int) -> None:
    """A confirm for a tag that was never given is about nothing."""
    confirms = Confirms()
    published(confirms, 3)
    confirms.on_ack(tag, multiple=False)
    confirms.on_nack(tag, multiple=False)
    assert confirms.open == 3
    assert confirms.failures == []


def test_giving_up_names_all_that_is_open() -> None:
    """And a return that came before is of no use any more."""
    confirms = Confirms()
    messages = published(confirms, 3)
    confirms.on_ack(1, multiple=False)
    confirms.on_return(messages[1].id, "NO_ROUTE")
    confirms.give_up(Unconfirmed("gone"))
    assert failed(confirms) == [(b"1", Unconfirmed), (b"2", Unconfirmed)]
    assert open_bodies(confirms) == []
    assert confirms.returned == {}


def test_no_message_is_held_longer_than_it_is_open() -> None:
    """Not for the next publish, however long the channel lives; tags go on."""
    confirms = Confirms()
    for _ in range(3):
        messages = published(confirms, 2)
        confirms.on_ack(0, multiple=True)
        confirms.close()
        assert confirms.messages == []
    assert confirms.next_tag == 7
    (last,) = published(confirms, 1)
    confirms.on_return(messages[0].id, "NO_ROUTE")
    confirms.on_nack(7, multiple=False)
    assert confirms.failures[0][0] is last


said = st.lists(
    st.tuples(
        st.sampled_from(["publish", "publish", "ack", "nack", "close"]),
        st.integers(0, 6),
        st.booleans(),
    ),
    max_size=40,
)


@given(said=said)
def test_each_message_has_one_fate(said: list[tuple[str, int, bool]]) -> None:
    """Whatever is confirmed in whatever order: open, safe or failed, as a slow model says."""
    confirms = Confirms()
    model: dict[int, str] = {}
    for word, tag, multiple in said:
        if word == "publish":
            tag = confirms.next_tag
            assert tag == len(model) + 1
            confirms.published(Message(body=b"%d" % tag, id=new_id()))
            model[tag] = "open"
            continue
        if word == "close":
            confirms.close()
            model = {t: "closed" if fate == "open" else fate for t, fate in model.items()}
            continue
        covered = [t for t in model if t <= tag or tag == 0] if multiple else [tag]
        for each in covered:
            if model.get(each) == "open":
                model[each] = word
        (confirms.on_ack if word == "ack" else confirms.on_nack)(tag, multiple)
    still_open = [tag for tag, fate in model.items() if fate == "open"]
    assert (confirms.open_tags(), confirms.open) == (still_open, len(still_open))
    assert [int(message.body) for message in confirms.open_messages()] == still_open
    refused = sorted(int(message.body) for message, _ in confirms.failures)
    assert refused == [tag for tag, fate in model.items() if fate == "nack"]
