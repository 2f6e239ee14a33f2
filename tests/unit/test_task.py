"""Tasks: calls that travel, checked at both ends."""

from __future__ import annotations

import asyncio
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import msgspec
import pytest

from workqueue import (
    BadPayload,
    Broker,
    ConfigError,
    HandlerNotFound,
    Job,
    Producer,
    Queue,
    RetryLater,
    RetryPolicy,
    Tally,
    Task,
    Unsupported,
    Worker,
    current_job,
)
from workqueue.message import Lost
from workqueue.runners.handler import load_handler, name_of
from workqueue.testing import eventually
from workqueue.transports.memory import MemoryTransport

if TYPE_CHECKING:
    from fractions import Fraction

ENOUGH = 20.0

seen: list[Any] = []


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    seen.clear()
    yield
    seen.clear()


@pytest.fixture
def queue() -> Queue:
    return Broker(MemoryTransport()).queue("jobs", retry=RetryPolicy(first=0))


def work(queue: Queue, *arguments: Any, **options: Any) -> Tally:
    return Worker(queue, *arguments, **options).run(until_empty=True)


def reasons(queue: Queue) -> list[str]:
    return [letter.reason for letter in queue.dead.letters()]


# -- sending and handling ----------------------------------------------------------------------


def test_a_call_travels(queue: Queue) -> None:
    """No envelope: the arguments by name as JSON, and the task's name as the type."""

    @queue.task
    def welcome(user_id: int, *, lang: str = "en") -> None:
        seen.append((user_id, lang))

    id_ = welcome.send(42, lang="de")
    [waiting] = queue.transport.peek("jobs", 5)
    assert waiting.message.id == id_
    assert waiting.message.type == "welcome"
    assert waiting.message.content_type == "application/json"
    assert msgspec.json.decode(waiting.message.body) == {"user_id": 42, "lang": "de"}
    assert work(queue) == Tally(done=1)
    assert seen == [(42, "de")]


def test_defaults_are_the_receivers(queue: Queue) -> None:
    """What was not given is not sent."""

    @queue.task
    def welcome(user_id: int, lang: str = "en", tags: list[str] = []) -> None:  # noqa: B006
        seen.append((user_id, lang, tags))

    welcome.send(1)
    assert queue.transport.peek("jobs", 1)[0].message.body == b'{"user_id":1}'
    work(queue)
    assert seen == [(1, "en", [])]


def test_it_is_still_the_function(queue: Queue) -> None:
    @queue.task
    def double(number: int) -> int:
        """Twice as much."""
        return 2 * number

    assert double(21) == 42
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert isinstance(double, Task)


@dataclass
class Address:
    street: str
    number: int


class Order(TypedDict):
    item: str
    count: int


class Colour(Enum):
    RED = "red"


class Point(msgspec.Struct):
    x: float
    y: float


def test_types_arrive_as_they_are_annotated(queue: Queue) -> None:
    """Whatever msgspec knows."""

    @queue.task
    def everything(
        address: Address,
        order: Order,
        colour: Colour,
        point: Point,
        at: datetime,
        key: uuid.UUID,
        mode: Literal["fast", "slow"],
        maybe: int | None,
        many: dict[str, list[Point]],
        anything: Any,
        free,  # type: ignore[no-untyped-def]
    ) -> None:
        seen.append(locals())

    given: dict[str, Any] = {
        "address": Address("Main", 1),
        "order": {"item": "tea", "count": 2},
        "colour": Colour.RED,
        "point": Point(1, 2),
        "at": datetime(2024, 2, 29, tzinfo=UTC),
        "key": uuid.UUID(int=7),
        "mode": "fast",
        "maybe": None,
        "many": {"a": [Point(0, 0)]},
        "anything": [1, {"a": None}],
        "free": "x",
    }
    everything.send(**given)
    assert work(queue) == Tally(done=1)
    assert seen == [given]


def test_what_does_not_fit_is_not_sent(queue: Queue) -> None:
    """Told which argument, and why."""

    @queue.task
    def welcome(user_id: int, address: Address | None = None) -> None: ...

    send: Any = welcome.send
    with pytest.raises(BadPayload, match="task welcome: argument user_id: expected `int`, got"):
        send("42")
    with pytest.raises(BadPayload, match="argument user_id: expected `int`, got `bool`"):
        send(True)
    with pytest.raises(TypeError, match="missing a required argument: 'user_id'"):
        send()
    with pytest.raises(TypeError, match="unexpected keyword argument 'lang'"):
        send(1, lang="de")
    with pytest.raises(BadPayload, match=r"argument address\.number: expected `int`"):
        send(1, address={"street": "Main", "number": "1"})
    with pytest.raises(BadPayload, match="task welcome: "):
        send(object())
    assert queue.tasks
    queue.declare()
    assert queue.stats().ready == 0


@pytest.mark.parametrize(
    ("body", "type_", "told"),
    [
        (
            b'{"user_id": "x"}',
            "welcome",
            "task welcome: argument user_id: expected `int`, got `str`",
        ),
        (b"{}", "welcome", "task welcome: argument user_id is missing"),
        (b'{"user_id": 1, "foo": 2}', "welcome", "task welcome: there is no argument foo"),
        (b"[1]", "welcome", "task welcome: the body must be an object of arguments by name"),
        (b"{nope", "welcome", "not the JSON it claims to be"),
        (b"{}", "goodbye", "no task goodbye: queue jobs has other, welcome"),
        (b"{}", None, "a message that names no task: queue jobs has other, welcome"),
    ],
)
def test_what_does_not_fit_is_a_dead_letter(
    queue: Queue, body: bytes, type_: str | None, told: str
) -> None:
    """With a reason that a person understands, and without another try."""

    @queue.task
    def welcome(user_id: int) -> None: ...

    @queue.task
    def other() -> None: ...

    Producer(queue).send(body, type=type_, content_type="application/json")
    assert work(queue) == Tally(dead=1)
    [reason] = reasons(queue)
    assert told in reason


def test_options_of_a_call(queue: Queue) -> None:
    @queue.task
    def welcome(user_id: int) -> None: ...

    call = welcome.options(delay=60, ttl=5, priority=9, id="me", headers={"tenant": "ada"})
    assert call.send(1) == "me"
    [waiting] = queue.transport.peek("jobs", 5, "delayed")
    assert (waiting.message.priority, waiting.message.headers["tenant"]) == (9, "ada")
    with pytest.raises(BadPayload, match="delay"):
        welcome.options(delay=-1).send(1)


def test_options_of_a_task_go_before_the_workers(queue: Queue) -> None:
    @queue.task(max_attempts=1)
    def fragile() -> None:
        raise LookupError("no")

    @queue.task(name="tough", backoff=(0, 0))
    def other() -> None:
        raise LookupError("no")

    fragile.send()
    other.send()
    assert work(queue, retry=RetryPolicy(max_attempts=3, first=9)) == Tally(retried=2, dead=2)


def test_a_task_finds_its_job(queue: Queue) -> None:
    """Also in a coroutine; and nowhere else."""

    @queue.task
    def plain() -> None:
        seen.append(current_job().type)

    @queue.task
    async def waiting() -> None:
        await asyncio.sleep(0)
        seen.append(current_job().type)

    plain.send()
    waiting.send()
    assert work(queue) == Tally(done=2)
    assert sorted(seen) == ["plain", "waiting"]
    with pytest.raises(LookupError):
        current_job()


def test_a_task_puts_itself_off(queue: Queue) -> None:
    @queue.task
    def shy() -> None:
        seen.append(1)
        if len(seen) < 3:
            raise RetryLater(0.01)

    shy.send()
    assert work(queue) == Tally(done=1, retried=2)


# -- what can be a task ------------------------------------------------------------------------


def test_functions_that_cannot_be_tasks(queue: Queue) -> None:
    """Said where they are made."""
    with pytest.raises(ConfigError, match=r"\*args cannot be told by name"):
        queue.task(lambda *args: None)
    with pytest.raises(ConfigError, match="kwargs cannot be told by name"):
        queue.task(lambda **kwargs: None)

    def positional(a: int, /) -> None: ...

    with pytest.raises(ConfigError, match="a is positional only"):
        queue.task(positional)
    with pytest.raises(ConfigError, match="max attempts 0"):
        queue.task(max_attempts=0)

    @queue.task(name="twice")
    def first() -> None: ...

    with pytest.raises(ConfigError, match="has a task twice already"):
        queue.task(name="twice")(positional_free)


def positional_free() -> None: ...


def test_annotations_that_cannot_be_used(queue: Queue) -> None:
    """Said when a worker starts, or a sender sends; not with each message."""

    @queue.task
    def exact(share: Fraction) -> None: ...

    with pytest.raises(
        ConfigError, match=r"task exact: its annotations cannot be used: .*Fraction"
    ):
        exact.send(0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Fraction"):
        Worker(queue)


def test_annotations_may_name_what_comes_later(queue: Queue) -> None:
    @queue.task
    def draw(shape: Later) -> None:
        seen.append(shape)

    draw.send(Later(3))
    work(queue)
    assert seen == [Later(3)]


@dataclass
class Later:
    size: int


# -- as handlers -------------------------------------------------------------------------------


def test_a_task_alone_is_a_handler(queue: Queue) -> None:
    """Of messages with its type, or none; not of another's."""

    @queue.task
    def welcome(user_id: int) -> None:
        seen.append(user_id)

    welcome.send(1)
    Producer(queue).send({"user_id": 2})
    Producer(queue).send({"user_id": 3}, type="other")
    assert work(queue, welcome) == Tally(done=2, dead=1)
    assert seen == [1, 2]
    assert reasons(queue) == ["this is no call of task welcome, but of other"]


def test_a_queue_without_tasks_is_none(queue: Queue) -> None:
    with pytest.raises(ConfigError, match="needs a handler"):
        Worker(queue)
    with pytest.raises(HandlerNotFound, match="queue without tasks"):
        Worker(queue, queue)


def test_an_async_handler_in_threads(queue: Queue) -> None:
    """One event loop for each thread, kept from job to job."""
    both = threading.Barrier(2)

    async def handle(job: Job[Any]) -> None:
        both.wait(ENOUGH)  # or one thread does it all, while the other is not let run
        await asyncio.sleep(0.001)
        seen.append((threading.get_ident(), id(asyncio.get_running_loop())))

    Producer(queue).send_many(range(20))
    assert work(queue, handle, concurrency=2) == Tally(done=20)
    assert len({thread for thread, _ in seen}) == len(set(seen)) == 2


def test_many_coroutines_at_once(queue: Queue) -> None:
    """All wait together, in one thread."""
    together = asyncio.Event()

    async def handle(job: Job[Any]) -> None:
        seen.append(threading.get_ident())
        if len(seen) == 50:
            together.set()
        await asyncio.wait_for(together.wait(), ENOUGH)

    Producer(queue).send_many(range(50))
    assert work(queue, handle, runner="async", concurrency=50) == Tally(done=50)
    assert len(set(seen)) == 1


def test_a_coroutine_that_takes_too_long_is_cancelled(queue: Queue) -> None:
    """That is its failed attempt; it may clean up."""

    @queue.task(timeout=0.2, max_attempts=2, backoff=(0, 0))
    async def slow() -> None:
        try:
            await asyncio.sleep(ENOUGH)
        finally:
            seen.append("cleaned up")

    slow.send()
    assert work(queue, runner="async") == Tally(retried=1, dead=1)
    assert seen == ["cleaned up"] * 2
    assert reasons(queue) == ["timed out after 0.2 s"]


def test_stopping_coroutines(queue: Queue) -> None:
    """Now: they are cancelled and handed back."""

    async def handle(job: Job[Any]) -> None:
        await asyncio.sleep(ENOUGH)

    Producer(queue).send_many(range(3))
    worker = Worker(queue, handle, runner="async", concurrency=3)
    tallies: list[Tally] = []
    thread = threading.Thread(target=lambda: tallies.append(worker.run()))
    thread.start()
    eventually(lambda: queue.stats().in_flight == 3)
    worker.stop(now=True)
    thread.join(ENOUGH)
    assert tallies == [Tally(handed_back=3)]
    assert queue.stats().ready == 3


def test_no_plain_function_on_the_loop(queue: Queue) -> None:
    """It would hold up all the others."""
    with pytest.raises(HandlerNotFound, match="plain function"):
        Worker(queue, print, runner="async")


def test_no_timeout_for_threads(queue: Queue) -> None:
    """Also not one that a task asks for."""

    @queue.task(timeout=1)
    def slow() -> None: ...

    slow.send()
    with pytest.raises(Unsupported, match="thread cannot be stopped"):
        work(queue)
    assert queue.stats().ready == 1


# -- by name, in child processes ---------------------------------------------------------------

there = Broker(MemoryTransport("memory://test-task")).queue("there")


@there.task(max_attempts=1)
async def shout(word: str) -> None:
    await asyncio.sleep(0)
    raise LookupError(word.upper())


def test_names_for_children() -> None:
    """A task by its function's name, a queue by the global that it is."""
    assert name_of(shout) == f"{__name__}:shout"
    assert name_of(there) == f"{__name__}:there"
    assert load_handler(f"{__name__}:there") is there
    hidden = Broker(MemoryTransport()).queue("hidden")
    hidden.task(positional_free)
    with pytest.raises(HandlerNotFound, match="no global of an importable module"):
        name_of(hidden)


def test_tasks_in_children() -> None:
    """The worker knows what they ask for, though it never imports them itself."""
    shout.send("hey")
    tally = work(there, runner="process")
    assert tally == Tally(dead=1)
    [letter] = there.dead.letters()
    assert letter.reason == "LookupError: HEY"
    assert "in shout" in letter.error
    there.dead.drop()


def test_a_task_handles_a_job_directly() -> None:
    """For tests of users."""
    job: Job[Any] = Job(
        payload={},
        body=b'{"word": "a"}',
        queue="there",
        id=None,
        attempt=1,
        redelivered=False,
        headers={},
        content_type=None,
        type=None,
        priority=4,
        correlation_id=None,
        reply_to=None,
        sent_at=None,
        lost=Lost(),
    )
    coroutine: Any = shout.handle(job)
    with pytest.raises(LookupError, match="A"):
        asyncio.run(coroutine)
    assert sys.modules[__name__].shout is shout
