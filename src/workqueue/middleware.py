"""Around sending and handling: what plugins add to both without either knowing.

    class Slow(Middleware):
        def handle(self, job, call_next):
            began = time.monotonic()
            try:
                return call_next(job)
            finally:
                print(job.id, time.monotonic() - began)

Switched on by name, never by being installed: `workqueue work … --middleware NAME` for an entry
point of the group `workqueue.middleware`, or `Worker(…, middleware=[…])` with names or objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from workqueue import registry
from workqueue.errors import ConfigError, Unsupported

if TYPE_CHECKING:
    from workqueue.errors import ConsumerLost
    from workqueue.message import Delivery, Job, Message
    from workqueue.transport import Outcome
    from workqueue.worker import Worker

Sending = Callable[[Sequence["Message"]], None]
Handling = Callable[["Job[Any]"], object]


class Middleware:
    """Override what is of interest. One object may be used by several threads.

    `send` is called in the process that sends, `handle` where the handler runs, which may be a
    child process, and all others in the worker's own process and thread: keep them short. What
    `handle` raises is judged like the handler's own; what the others raise is logged, and
    changes nothing.
    """

    def send(self, queue: str, messages: Sequence[Message], call_next: Sending) -> None:
        """Send `messages`, or what is to go in their place, with `call_next`: once it returns,
        the broker keeps them; what it raises tells which it does not."""
        call_next(messages)

    def handle(self, job: Job[Any], call_next: Handling) -> object:
        """Run the handler with `call_next(job)`, and return what it returns."""
        return call_next(job)

    def started(self, worker: Worker) -> None:
        """A worker begins its run. An error raised here keeps it from doing so."""

    def begun(self, delivery: Delivery) -> None:
        """A task was given to a free slot."""

    def settled(self, outcome: Outcome, seconds: float) -> None:
        """It is decided what becomes of a task that was begun `seconds` ago."""

    def lost(self, error: ConsumerLost) -> None:
        """The connection to the queue is gone, with all that ran; the worker makes another."""

    def stopped(self) -> None:
        """The worker's run is over."""


def load_middleware(names: Iterable[Middleware | str]) -> list[Middleware]:
    """Names become objects. Raises ConfigError for one that is not installed, or broken."""
    return [named(name) if isinstance(name, str) else name for name in names]


def named(name: str) -> Middleware:
    entry_point = registry.find(registry.MIDDLEWARE, name)
    if entry_point is None:
        installed = ", ".join(registry.names(registry.MIDDLEWARE)) or "none"
        raise ConfigError(
            f"no middleware {name} is installed",
            hint=f"Installed: {installed}. A plugin for it would be the distribution "
            f"workqueue-{name}.",
        )
    made = registry.load(entry_point)()
    if not isinstance(made, Middleware):
        raise ConfigError(f"the plugin {name} gives a {type(made).__name__}, not a Middleware")
    return made


def wraps_handlers(middleware: Middleware) -> bool:
    """Whether it has to be where the handler runs."""
    return type(middleware).handle is not Middleware.handle


def around_handler(chain: Sequence[Middleware], handler: Handling) -> Handling:
    """`handler` inside of all `handle` methods, the first of the chain outermost."""
    for middleware in reversed(chain):
        if wraps_handlers(middleware):
            handler = one_around(middleware.handle, handler)
    return handler


def one_around(handle: Callable[[Job[Any], Handling], object], call_next: Handling) -> Handling:
    return lambda job: handle(job, call_next)


def around_sending(chain: Sequence[Middleware], queue: str, send: Sending) -> Sending:
    """`send` inside of all `send` methods, the first of the chain outermost."""
    for middleware in reversed(chain):
        if type(middleware).send is not Middleware.send:
            send = one_before(middleware.send, queue, send)
    return send


def one_before(
    send: Callable[[str, Sequence[Message], Sending], None], queue: str, call_next: Sending
) -> Sending:
    return lambda messages: send(queue, messages, call_next)


def check_none_wraps(chain: Iterable[Middleware], where: str) -> None:
    """Raise Unsupported for middleware that has to be where no Python handler is."""
    for middleware in chain:
        if wraps_handlers(middleware):
            raise Unsupported(
                f"{type(middleware).__name__} wraps handlers, and cannot be around {where}"
            )
