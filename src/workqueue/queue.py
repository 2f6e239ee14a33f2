"""A name and options on a broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, overload

from workqueue.errors import ConfigError
from workqueue.forks import Lock
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.transport import DEAD_SUFFIX, QueueSpec, QueueStats, Transport

if TYPE_CHECKING:
    from workqueue.broker import Broker
    from workqueue.dead import DeadLetters
    from workqueue.producer import Producer
    from workqueue.task import Params, Result, Task


class Queue:
    """A queue on a broker; `Broker.queue` makes it. Thread-safe; connects for what it is asked.

    `tasks` are those of its own, by name; see `task`.
    """

    def __init__(self, broker: Broker, spec: QueueSpec, retry: RetryPolicy) -> None:
        self.broker = broker
        self.spec = spec
        self.retry = retry
        self.tasks: dict[str, Task[..., Any]] = {}
        self.lock = Lock()
        self.own_producer: Producer | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def transport(self) -> Transport:
        return self.broker.transport

    @property
    def producer(self) -> Producer:
        """The one that its tasks are sent with; made when it is first needed."""
        from workqueue.producer import Producer

        with self.lock:
            if self.own_producer is None:
                self.own_producer = Producer(self)
            return self.own_producer

    @overload
    def task(self, function: Callable[Params, Result], /) -> Task[Params, Result]: ...

    @overload
    def task(
        self,
        *,
        name: str | None = None,
        max_attempts: int | None = None,
        backoff: tuple[float, float] | None = None,
        timeout: float | None = None,
    ) -> Callable[[Callable[Params, Result]], Task[Params, Result]]: ...

    def task(
        self,
        function: Callable[Params, Result] | None = None,
        *,
        name: str | None = None,
        max_attempts: int | None = None,
        backoff: tuple[float, float] | None = None,
        timeout: float | None = None,
    ) -> Task[Params, Result] | Callable[[Callable[Params, Result]], Task[Params, Result]]:
        """Make a function, async or plain, a task of this queue: `@queue.task`, with options or
        without.

        Its calls are sent with `send`, and a worker of this queue makes them. `name` is what
        messages call it, by default the function's own. The options go before those of the
        worker: `backoff` is the first and the longest delay before another attempt, `timeout` the
        longest run, in seconds. Raises ConfigError for a name that is taken, options that make no
        sense, or a function whose arguments cannot be told by name.
        """
        from workqueue.task import Task

        asks = TaskOptions(max_attempts=max_attempts, backoff=backoff, timeout=timeout)

        def register(function: Callable[Params, Result]) -> Task[Params, Result]:
            made = Task(function, self, name=name, asks=asks)
            if made.name in self.tasks:
                raise ConfigError(f"queue {self.name} has a task {made.name} already")
            self.tasks[made.name] = made
            return made

        return register if function is None else register(function)

    def declare(self) -> bool:
        """The queue and its dead-letter queue exist; True if this call made them.

        Raises QueueMismatch if it exists with other parameters than were asked for.
        """
        return self.transport.declare(self.spec)

    def stats(self) -> QueueStats:
        """How much is where. Raises QueueNotFound."""
        return self.transport.stats(self.name)

    def purge(self) -> int:
        """Drop what is ready; how many that were. Raises QueueNotFound."""
        return self.transport.purge(self.name)

    @property
    def dead(self) -> DeadLetters:
        """What was set aside: to list, bring back or drop."""
        from workqueue.dead import DeadLetters

        return DeadLetters(self.transport, self.name)

    def delete(self, *, dead_letters: bool = False) -> None:
        """The queue is gone, and with `dead_letters` its dead-letter queue as well."""
        self.transport.delete(self.name)
        if dead_letters:
            self.transport.delete(self.name + DEAD_SUFFIX)

    def __repr__(self) -> str:
        return f"<Queue {self.name}>"
