"""What a handler may do to those who have to say how it ended: a table of odd ways.

`handle` and `handle_async` do what the body names; run as a script, this is a command that does.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workqueue import Job, Reject, RetryLater
from workqueue.runners.runner import Verdict

FAILED, REJECTED, LATER, DONE = Verdict.FAILED, Verdict.REJECTED, Verdict.LATER, Verdict.DONE


@dataclass
class Case:
    """`act` is done by the handler, which then has ended so, for a reason that matches.

    A command only has its exit status: it has failed wherever Python ends with a traceback.
    """

    act: Callable[[], object]
    verdict: Verdict
    reason: str = ""
    command: Verdict = FAILED
    of_coroutines: bool = True


CASES: dict[str, Case] = {}


def case(
    verdict: Verdict, reason: str = "", *, command: Verdict = FAILED, of_coroutines: bool = True
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def add(act: Callable[[], object]) -> Callable[[], object]:
        CASES[act.__name__] = Case(act, verdict, reason, command, of_coroutines)
        return act

    return add


# -- exceptions of every kind ------------------------------------------------------------------


def raising(name: str, error: Callable[[], BaseException], reason: str, **more: Any) -> None:
    def act() -> None:
        raise error()

    act.__name__ = name
    case(FAILED, reason, **more)(act)


class Bare(BaseException):
    """None of Exception's."""


raising("keyboard_interrupt", KeyboardInterrupt, "^KeyboardInterrupt$")
raising("system_exit", lambda: SystemExit("bye"), "^SystemExit: bye$")
raising("system_exit_0", lambda: SystemExit(0), "^SystemExit: 0$", command=DONE)
raising("generator_exit", GeneratorExit, "^GeneratorExit$")
raising("cancelled", asyncio.CancelledError, "^CancelledError$")
raising("stop_iteration", StopIteration, "StopIteration")  # a coroutine's is a RuntimeError
raising("stop_async_iteration", StopAsyncIteration, "StopAsyncIteration")
raising("bare", lambda: Bare("odd"), "^Bare: odd$")
raising("memory", MemoryError, "^MemoryError$")
raising("group", lambda: ExceptionGroup("all", [ValueError("a")]), r"^ExceptionGroup: all \(1 sub")
raising("base_group", lambda: BaseExceptionGroup("all", [Bare()]), "^BaseExceptionGroup: all")
raising("enormous", lambda: ValueError("x" * 20_000_000), "^ValueError: xxx")
raising("many_lines", lambda: ValueError("\n" * 3_000_000 + "end"), "^ValueError")
raising("no_utf8", lambda: ValueError("odd \udcff"), r"^ValueError: odd \\udcff$")
raising("wrong_type", TypeError, "^TypeError$")


@case(FAILED, "^RecursionError: ")
def too_deep() -> object:
    return too_deep()


# -- exceptions that cannot be shown -----------------------------------------------------------


class Unprintable(Exception):
    """As SDKs have them, when there is no response."""

    def __str__(self) -> str:
        raise AttributeError("NoneType has no attribute status")


class Interrupting(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class NoString(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


class Text(str):
    """Text that is no plain string."""

    __slots__ = ()

    def splitlines(self, keepends: bool = False) -> list[str]:
        raise AttributeError

    __getitem__ = encode = strip = __format__ = splitlines  # type: ignore[assignment]


class OddText(Exception):
    def __str__(self) -> str:
        return Text("odd")


def raises_lookup(*_: object) -> Any:
    raise LookupError("no such thing")


class Liar(Exception):
    """It says that it is another."""

    __class__ = property(lambda self: RetryLater)  # type: ignore[assignment]


class Faceless(Exception):
    __class__ = property(raises_lookup)  # type: ignore[assignment]
    __traceback__ = property(raises_lookup)  # type: ignore[assignment]
    __cause__ = property(raises_lookup)  # type: ignore[assignment]
    __notes__ = property(raises_lookup)  # type: ignore[assignment]
    args = property(raises_lookup)  # type: ignore[assignment]
    __str__ = raises_lookup


class Nameless(type):
    __name__ = property(raises_lookup)  # type: ignore[assignment]


class Anonymous(Exception, metaclass=Nameless):
    pass


SHOWN = r"^Unprintable: 'not found', 404 \(its __str__ raised AttributeError\)$"
raising("unprintable", lambda: Unprintable("not found", 404), SHOWN)
raising("unprintable_args", lambda: Unprintable(Interrupting()), "^Unprintable: <Interrupting>")
raising("interrupting", Interrupting, r"^Interrupting: \(its __str__ raised KeyboardInterrupt")
raising("no_string", NoString, "^NoString: .*raised TypeError")
raising("odd_text", OddText, "^OddText: odd$")
raising("liar", lambda: Liar("me"), "^Liar: me$")
raising("faceless", Faceless, r"^Faceless: \(its __str__ raised LookupError")
raising("anonymous", lambda: Anonymous("me"), "^an exception: me$")


@case(FAILED, "^ValueError: second$")
def caused_by_itself() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    raise second


# -- a handler's words, misused ----------------------------------------------------------------


class BrokenLater(RetryLater):
    def __init__(self, delay: object) -> None:
        self.delay = delay  # type: ignore[assignment]


class BrokenReject(Reject):
    def __init__(self) -> None:
        pass

    reason = property(raises_lookup)  # type: ignore[assignment]


NO_NUMBER = "^ValueError: RetryLater needs a number of seconds, not "
raising("later_nan", lambda: RetryLater(float("nan")), NO_NUMBER + "nan$")
raising("later_inf", lambda: RetryLater(float("inf")), NO_NUMBER + "inf$")
raising("later_huge", lambda: RetryLater(10**400), NO_NUMBER)
raising("later_text", lambda: RetryLater("5"), NO_NUMBER + "'5'$")  # type: ignore[arg-type]
raising("later_none", lambda: RetryLater(None), NO_NUMBER + "None$")  # type: ignore[arg-type]
raising("later_broken", lambda: BrokenLater("soon"), "^BrokenLater")
raising("later_broken_nan", lambda: BrokenLater(float("nan")), "^BrokenLater")


@case(LATER)
def later_negative() -> None:
    raise RetryLater(-5)


@case(LATER)
def later() -> None:
    raise RetryLater(2)


@case(REJECTED, "^never$")
def reject() -> None:
    raise Reject("never")


@case(REJECTED, "^404$")
def reject_number() -> None:
    raise Reject(404)  # type: ignore[arg-type]


@case(REJECTED, "^None$")
def reject_none() -> None:
    raise Reject(None)  # type: ignore[arg-type]


@case(REJECTED, "its __str__ raised")
def reject_unprintable() -> None:
    raise Reject(Unprintable("x"))  # type: ignore[arg-type]


@case(REJECTED)
def reject_broken() -> None:
    raise BrokenReject


# -- what a handler returns --------------------------------------------------------------------


class Thing:
    """Nothing can be done with it but to let it go."""

    __bool__ = __eq__ = __hash__ = __repr__ = __getattr__ = __len__ = raises_lookup  # type: ignore[assignment]

    def __del__(self) -> None:
        raise LookupError


@case(DONE, command=DONE)
def returns_a_thing() -> Thing:
    return Thing()


@case(FAILED, "^TypeError: the handler has a yield", command=DONE, of_coroutines=False)
def returns_a_generator() -> Generator[int]:
    yield 1


@case(FAILED, "^TypeError: the handler has a yield", command=DONE, of_coroutines=False)
def returns_an_async_generator() -> object:
    async def numbers() -> Any:
        yield 1

    return numbers()


@case(DONE, command=DONE)
def returns_an_awaitable() -> object:
    class Soon:
        def __await__(self) -> Generator[Any, None, int]:
            return asyncio.sleep(0.001, 7).__await__()

    return Soon()


@case(FAILED, "^LookupError: no such thing$", command=DONE)
def returns_a_coroutine_that_fails() -> object:
    async def fail() -> None:
        await asyncio.sleep(0)
        raises_lookup()

    return fail()


@case(FAILED, "^CancelledError", command=DONE)
def returns_a_coroutine_that_cancels_itself() -> object:
    async def cancel() -> None:
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(0)

    return cancel()


# -- what a handler leaves behind --------------------------------------------------------------


@case(DONE, command=DONE)
def leaves_a_task_that_exits() -> object:
    """It ends the loop while a later handler uses it."""

    async def leave() -> None:
        async def exit_soon() -> None:
            await asyncio.sleep(0)
            sys.exit("too late")

        left.append(asyncio.ensure_future(exit_soon()))

    return leave()


left: list[object] = []


# -- the handlers ------------------------------------------------------------------------------


def handle(job: Job[Any]) -> object:
    """The body names the case, and a file that grows each time that it runs."""
    return act(job.body.decode())


async def handle_async(job: Job[Any]) -> object:
    result = act(job.body.decode())
    return await result if inspect.isawaitable(result) else result


def act(body: str) -> object:
    name, _, ticks = body.partition(" ")
    with Path(ticks).open("ab", buffering=0) as file:
        file.write(b"x")
    return CASES[name].act() if name in CASES else None


def matches(reason: str, pattern: str) -> bool:
    return re.search(pattern, reason) is not None


if __name__ == "__main__":
    act(os.fsdecode(sys.stdin.buffer.read()))
