"""Tasks: functions whose calls travel as messages, checked by type when sent and when received.

The wire carries no envelope: the body is a JSON object of the arguments by name, and the
message's `type` is the task's name. So any language can send or handle one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, get_type_hints

import msgspec

from workqueue.codec import JSON, check_weight
from workqueue.collisions import SHORT, check_collisions, hashes_numbers
from workqueue.errors import BadPayload, ConfigError, Reject
from workqueue.message import DEFAULT_PRIORITY, Job
from workqueue.retry import TaskOptions

if TYPE_CHECKING:
    from workqueue.queue import Queue

Params = ParamSpec("Params")
Result = TypeVar("Result")

job_here: ContextVar[Job[Any] | None] = ContextVar("job_here", default=None)


def current_job() -> Job[Any]:
    """The job that is being handled here: for tasks, which are not given it.

    Raises LookupError where none is.
    """
    job = job_here.get()
    if job is None:
        raise LookupError("no job is being handled here")
    return job


class Task(Generic[Params, Result]):
    """A function and the queue to which its calls go; `Queue.task` makes it.

    Calling it calls the function. `name` is the messages' type. `asks` is what its workers are
    asked for. Thread-safe.

    Raises ConfigError for a function whose arguments cannot be told by name.
    """

    def __init__(
        self,
        function: Callable[Params, Result],
        queue: Queue,
        *,
        name: str | None = None,
        asks: TaskOptions,
    ) -> None:
        self.function = function
        self.queue = queue
        self.name = name or function.__name__
        self.asks = asks
        self.signature = inspect.signature(function)
        self.shape: type[msgspec.Struct] | None = None
        self.exposed = False
        self.__doc__ = function.__doc__
        self.__name__ = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__wrapped__ = function
        check_signature(self.name, self.signature)

    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        return self.function(*args, **kwargs)

    def send(self, *args: Params.args, **kwargs: Params.kwargs) -> str:
        """Have a worker make this call; the message's id. See `Producer.send` for what it raises.

        Also raises TypeError for arguments that the function does not have, and BadPayload for
        one that does not fit its annotation.
        """
        return Call(self, {}).send(*args, **kwargs)

    def options(
        self,
        *,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int = DEFAULT_PRIORITY,
        id: str | None = None,
        headers: Mapping[str, Any] | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
    ) -> Call[Params, Result]:
        """How a call is to be sent: `task.options(delay=60).send(…)`. See `Producer.send`."""
        given = {
            "delay": delay,
            "ttl": ttl,
            "priority": priority,
            "id": id,
            "headers": headers,
            "correlation_id": correlation_id,
            "reply_to": reply_to,
        }
        return Call(self, given)

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The body of a call, checked the way its receiver will check it."""
        given = self.signature.bind(*args, **kwargs).arguments
        try:
            body = msgspec.json.encode(given)
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise BadPayload(f"task {self.name}: {error}") from error
        self.decode(body)
        return body

    def decode(self, body: bytes) -> dict[str, Any]:
        """The arguments in `body`, of the annotated types. Raises BadPayload."""
        check_weight(body)
        return self.decode_weighed(body)

    def decode_weighed(self, body: bytes) -> dict[str, Any]:
        """The same of a body that was found to have not too many values."""
        shape = self.arguments()
        if self.exposed and len(body) > SHORT:
            check_collisions(body)
        try:
            found = msgspec.json.decode(body, type=shape)
        except (msgspec.ValidationError, RecursionError) as error:
            raise BadPayload(f"task {self.name}: {in_words(str(error))}") from error
        except ValueError as error:
            told = without_middle(str(error))
            raise BadPayload(f"task {self.name}: the body is not JSON: {told}") from error
        return {name: getattr(found, name) for name in self.signature.parameters}

    def arguments(self) -> type[msgspec.Struct]:
        """What a body must be. Made late: annotations may name what is defined after the task."""
        if self.shape is None:
            self.shape = shape_of(self.name, self.function, self.signature)
            self.exposed = hashes_numbers(self.shape)
        return self.shape

    def handle(self, job: Job[Any]) -> object:
        """Call the function as `job` says; its result, or a coroutine of it. Raises Reject."""
        if job.type not in (self.name, None):
            raise Reject(f"this is no call of task {self.name}, but of {job.type}")
        try:
            weighed = not isinstance(job.payload, bytes | str)  # it was decoded as JSON already
            arguments = (self.decode_weighed if weighed else self.decode)(job.body)
        except BadPayload as error:
            raise Reject(str(error)) from error
        return self.function(**arguments)  # type: ignore[call-arg]  # they are its own

    def __repr__(self) -> str:
        return f"<Task {self.name} of queue {self.queue.name}>"


class Call(Generic[Params, Result]):
    """A call of a task, and how it is to be sent; `Task.options` makes it."""

    def __init__(self, task: Task[Params, Result], options: dict[str, Any]) -> None:
        self.task = task
        self.options = options

    def send(self, *args: Params.args, **kwargs: Params.kwargs) -> str:
        """See `Task.send`."""
        body = self.task.encode(args, kwargs)
        return self.task.queue.producer.send(
            body, type=self.task.name, content_type=JSON, **self.options
        )


def handle_by_type(queue: Queue, job: Job[Any]) -> object:
    """Have the task of `queue` that `job` names handle it. Raises Reject if there is none."""
    task = queue.tasks.get(job.type or "")
    if task is None:
        told = f"no task {job.type}" if job.type else "a message that names no task"
        there = ", ".join(sorted(queue.tasks))
        raise Reject(f"{told}: queue {queue.name} has {there or 'none'}")
    return task.handle(job)


def check_signature(name: str, signature: inspect.Signature) -> None:
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"task {name}: *{parameter.name} cannot be told by name: write it out"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"task {name}: {parameter.name} is positional only, and has no name")


def shape_of(
    name: str, function: Callable[..., Any], signature: inspect.Signature
) -> type[msgspec.Struct]:
    """A struct with a field for each argument. Raises ConfigError for annotations without sense."""
    try:
        hints = get_type_hints(function, include_extras=True)
        fields: list[Any] = []
        for parameter in signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if parameter.default is parameter.empty:
                fields.append((parameter.name, hint))
            else:
                made = msgspec.field(default_factory=returning(parameter.default))
                fields.append((parameter.name, hint, made))
        shape = msgspec.defstruct(
            name.replace(".", "_"), fields, kw_only=True, forbid_unknown_fields=True
        )
        msgspec.json.Decoder(shape)
    except (NameError, TypeError, AttributeError) as error:
        raise ConfigError(f"task {name}: its annotations cannot be used: {error}") from error
    return shape


def returning(value: Any) -> Callable[[], Any]:
    return lambda: value


LONGEST_PROBLEM = 500
"""Characters of msgspec's text about a body that are looked at: it quotes the body."""

MISSING = "Object missing required field `"
UNKNOWN = "Object contains unknown field `"
PLACE = " - at `$."


def in_words(text: str) -> str:
    """msgspec's text about a body, in terms of arguments instead of JSON paths.

    The text holds what the sender wrote: it is cut first, and no regular expression is used.
    """
    text = without_middle(text)
    problem, placed, place = text.rpartition(PLACE)
    if placed and place.find("`") == len(place) - 1:
        return f"argument {place[:-1]}: {lowered(problem)}"
    if text.startswith(MISSING):
        return f"argument {text.removeprefix(MISSING).removesuffix('`')} is missing"
    if text.startswith(UNKNOWN):
        return f"there is no argument {text.removeprefix(UNKNOWN).removesuffix('`')}"
    if text.startswith("Expected `object`"):
        return f"the body must be an object of arguments by name: {lowered(text)}"
    return text


def lowered(text: str) -> str:
    return f"{text[:1].lower()}{text[1:]}"


def without_middle(text: str) -> str:
    """As much of `text` as is looked at: where it begins, and how it ends."""
    if len(text) <= LONGEST_PROBLEM:
        return text
    half = LONGEST_PROBLEM // 2
    return f"{text[:half]}…{text[-half:]}"
