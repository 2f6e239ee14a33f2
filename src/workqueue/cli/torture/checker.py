"""The verdict on a run: what was promised, held against what was written down.

The model is Jepsen's total-queue (https://github.com/jepsen-io/jepsen, checker.clj): everything
that a sender was told is kept comes out at least once, and nothing comes out that did not go in.
It needs no order and no clocks, so the histories of many processes can be thrown together; what it
needs is that the queue was worked empty at the end, without faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from workqueue.cli.torture.ledger import Entry


@dataclass(frozen=True, slots=True)
class Letter:
    """A message found among the dead."""

    id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended; `code` is None if it had to be killed because it would not leave.
    `killed` is whether that was the attack's own doing."""

    name: str
    code: int | None
    killed: bool = False


@dataclass(slots=True)
class History:
    """What all ledgers say, added up by message."""

    sent: dict[str, str] = field(default_factory=dict)
    delayed: set[str] = field(default_factory=set)
    tries: Counter[str] = field(default_factory=Counter)
    confirmed: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    seen: dict[str, set[str]] = field(default_factory=dict)
    unmarked: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)

    def add(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.add_one(entry)

    def add_one(self, entry: Entry) -> None:
        match entry.event:
            case "sent":
                self.sent[entry.id] = entry.sha256
                if entry.delayed:
                    self.delayed.add(entry.id)
            case "tried":
                self.tries[entry.id] += 1
            case "confirmed":
                self.confirmed.add(entry.id)
            case "refused":
                self.refused.add(entry.id)
            case "unknown":
                pass  # it may come or not
            case "started":
                self.seen.setdefault(entry.id, set()).add(entry.sha256)
                if entry.attempt == 1 and not entry.redelivered:
                    self.unmarked[entry.id] += 1
            case "failed":
                self.failures[entry.id] += 1
            case "done":
                self.done[entry.id] += 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was counted, and what must not be: each of the latter names messages, processes or
    files, and all are empty after a good run.

    `lost`: confirmed to a sender, and neither done nor dead. `invented`: handled or dead, and
    never sent. `altered`: with another body than was sent. `denied`: reported as not kept, and
    yet handled. `unmarked`: run once more, though nothing said that it might have run before: not
    the redelivered flag, not the attempt, and the sender had not handed it over again. `hasty`:
    set aside with fewer failures of its own than it had attempts. `unruly`: processes that were
    not killed on purpose and did not exit 0. `leaks`: outputs with the broker's password in them.
    """

    sent: int
    confirmed: int
    handled: int
    dead: int
    duplicated: int
    lost: tuple[str, ...] = ()
    invented: tuple[str, ...] = ()
    altered: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    unmarked: tuple[str, ...] = ()
    hasty: tuple[str, ...] = ()
    unruly: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()

    @property
    def faults(self) -> dict[str, tuple[str, ...]]:
        """Everything that must not be, by its name."""
        return {
            "lost": self.lost,
            "invented": self.invented,
            "altered": self.altered,
            "denied": self.denied,
            "unmarked": self.unmarked,
            "hasty": self.hasty,
            "unruly": self.unruly,
            "leaks": self.leaks,
        }

    @property
    def good(self) -> bool:
        """And something was confirmed: a run in which nothing happened proves nothing."""
        return self.confirmed > 0 and not any(self.faults.values())


def check(
    history: History,
    letters: Collection[Letter],
    ends: Iterable[End],
    leaks: Iterable[str],
    *,
    max_attempts: int,
) -> Verdict:
    """Judge a run that is over: its queue was worked empty, and `letters` are all its dead."""
    dead = {letter.id for letter in letters}
    came_out = set(history.seen) | set(history.done) | dead
    altered = {key for key, seen in history.seen.items() if seen - {history.sent.get(key)}}
    altered |= {letter.id for letter in letters if letter.sha256 != history.sent.get(letter.id)}
    invented = came_out - set(history.sent)
    return Verdict(
        sent=len(history.sent),
        confirmed=len(history.confirmed),
        handled=len(history.done),
        dead=len(dead),
        duplicated=sum(count > 1 for count in history.done.values()),
        lost=listed(history.confirmed - set(history.done) - dead),
        invented=listed(invented),
        altered=listed(altered - invented),
        denied=listed(history.refused & came_out),
        unmarked=listed(unmarked(history)),
        hasty=listed(key for key in dead - invented if history.failures[key] < max_attempts),
        unruly=tuple(told(end) for end in ends if end.code != 0 and not end.killed),
        leaks=listed(leaks),
    )


def unmarked(history: History) -> set[str]:
    """Delayed messages are let off: the broker itself carries them from queue to queue, and may
    repeat a step after it was killed, of which no flag tells."""
    return {
        key
        for key, starts in history.unmarked.items()
        if starts > max(history.tries[key], 1) and key not in history.delayed
    }


def listed(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(names))


def told(end: End) -> str:
    return f"{end.name} " + ("would not leave" if end.code is None else f"exited {end.code}")
