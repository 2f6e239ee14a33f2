"""A history by hand for each verdict."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from workqueue.cli.torture.checker import End, History, Letter, Verdict, check
from workqueue.cli.torture.ledger import Entry, Event

SHA = "5a"


def entry(
    event: Event,
    id: str = "a",
    sha256: str = SHA,
    *,
    attempt: int = 1,
    redelivered: bool = False,
    delayed: bool = False,
) -> Entry:
    return Entry(
        event=event, id=id, sha256=sha256, attempt=attempt, redelivered=redelivered, delayed=delayed
    )


def sent(id: str = "a", *, delayed: bool = False) -> list[Entry]:
    """And confirmed, at the first try."""
    return [entry("sent", id, delayed=delayed), entry("tried", id), entry("confirmed", id)]


def handled(id: str = "a", *, attempt: int = 1, redelivered: bool = False) -> list[Entry]:
    return [
        entry("started", id, attempt=attempt, redelivered=redelivered),
        entry("done", id, attempt=attempt),
    ]


def judged(
    *entries: Entry,
    letters: Iterable[Letter] = (),
    ends: Iterable[End] = (),
    leaks: Iterable[str] = (),
) -> Verdict:
    history = History()
    history.add(entries)
    return check(history, list(letters), ends, leaks, max_attempts=2)


def broken(verdict: Verdict) -> dict[str, tuple[str, ...]]:
    """What must not be, and is."""
    assert verdict.good is not any(verdict.faults.values())
    return {kind: found for kind, found in verdict.faults.items() if found}


def test_all_is_well() -> None:
    """Handled, or dead after as many failures as it has attempts."""
    failed = [entry("started", "b"), entry("failed", "b"), entry("started", "b", attempt=2)]
    failed += [entry("failed", "b", attempt=2)]
    verdict = judged(
        *sent(),
        *handled(),
        *sent("b"),
        *failed,
        letters=[Letter("b", SHA)],
        ends=[End("worker 1", 0), End("worker 2", -9, killed=True)],
    )
    assert verdict.good
    assert (verdict.sent, verdict.confirmed, verdict.handled, verdict.dead) == (2, 2, 1, 1)


def test_nothing_at_all_proves_nothing() -> None:
    assert not judged().good
    assert not judged(entry("sent"), entry("unknown")).good


def test_confirmed_and_never_handled_is_lost() -> None:
    assert broken(judged(*sent(), *sent("b"), *handled())) == {"lost": ("b",)}


def test_begun_and_never_done_is_lost() -> None:
    assert broken(judged(*sent(), entry("started"))) == {"lost": ("a",)}


def test_an_unknown_fate_may_be_either() -> None:
    unknown = [entry("sent", "b"), entry("tried", "b"), entry("unknown", "b")]
    assert judged(*sent(), *handled(), *unknown).good
    assert judged(*sent(), *handled(), *unknown, *handled("b")).good


def test_a_sender_killed_before_it_was_told_may_be_either() -> None:
    assert judged(*sent(), *handled(), entry("sent", "b")).good
    assert judged(*sent(), *handled(), entry("sent", "b"), *handled("b")).good


def test_handled_and_never_sent_is_invented() -> None:
    assert broken(judged(*sent(), *handled(), *handled("b"))) == {"invented": ("b",)}


def test_dead_and_never_sent_is_invented() -> None:
    verdict = judged(*sent(), *handled(), letters=[Letter("b", SHA)])
    assert broken(verdict) == {"invented": ("b",)}


def test_another_body_is_altered() -> None:
    verdict = judged(*sent(), entry("started", sha256="bad"), entry("done"))
    assert broken(verdict) == {"altered": ("a",)}


def test_another_body_among_the_dead_is_altered() -> None:
    failures = [entry("failed"), entry("failed", attempt=2)]
    verdict = judged(*sent(), *failures, letters=[Letter("a", "bad")])
    assert broken(verdict) == {"altered": ("a",)}


def test_one_good_run_does_not_hide_an_altered_one() -> None:
    again = entry("started", sha256="bad", redelivered=True)
    assert broken(judged(*sent(), *handled(), again)) == {"altered": ("a",)}


def test_refused_and_yet_handled_is_denied() -> None:
    refused = [entry("sent", "b"), entry("tried", "b"), entry("refused", "b")]
    assert judged(*sent(), *handled(), *refused).good
    verdict = judged(*sent(), *handled(), *refused, *handled("b"))
    assert broken(verdict) == {"denied": ("b",)}


def test_a_second_run_without_a_mark() -> None:
    verdict = judged(*sent(), *handled(), *handled())
    assert verdict.duplicated == 1
    assert broken(verdict) == {"unmarked": ("a",)}


@pytest.mark.parametrize(
    "second",
    [
        handled(redelivered=True),
        [entry("failed"), *handled(attempt=2)],
        [entry("tried"), *handled()],
    ],
    ids=["redelivered", "attempt", "sent again"],
)
def test_a_second_run_with_a_mark(second: list[Entry]) -> None:
    verdict = judged(*sent(), *handled(), *second)
    assert verdict.good
    assert verdict.duplicated == 1


def test_the_broker_may_repeat_what_it_delays() -> None:
    assert judged(*sent(delayed=True), *handled(), *handled()).good


def test_set_aside_before_its_time_is_hasty() -> None:
    """An innocent that shared a worker with one that was not: it never failed by itself."""
    once = [entry("started"), entry("failed"), entry("started", attempt=2)]
    verdict = judged(*sent(), *once, letters=[Letter("a", SHA)])
    assert broken(verdict) == {"hasty": ("a",)}


def test_a_process_that_fails_is_unruly() -> None:
    ends = [End("worker 1", 1), End("sender 1", -9, killed=True), End("worker 2", None)]
    verdict = judged(*sent(), *handled(), ends=ends)
    assert broken(verdict) == {"unruly": ("worker 1 exited 1", "worker 2 would not leave")}


def test_an_output_with_the_password_is_a_leak() -> None:
    assert broken(judged(*sent(), *handled(), leaks=["worker-1.out"])) == {
        "leaks": ("worker-1.out",)
    }
