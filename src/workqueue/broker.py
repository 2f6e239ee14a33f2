"""`connect(url)` gives a Broker, and a Broker gives queues."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from weakref import WeakSet

from workqueue import registry
from workqueue.errors import StorageError
from workqueue.queue import Queue
from workqueue.retry import RetryPolicy
from workqueue.transport import QueueSpec, QueueType, Transport

if TYPE_CHECKING:
    from workqueue.producer import Producer


def connect(
    url: str | Callable[[], str] | None = None, *, management_url: str | None = None
) -> Broker:
    """The broker at `url`: `sqlite:///file.db`, `amqp://user:password@host/vhost`, `memory://`.

    A function that gives the URL is called at each connect to RabbitMQ, so that passwords can be
    changed while a worker runs; while it raises, or gives what is no URL, the last one stays.
    Without a URL it is `WORKQUEUE_URL`, or else a file in the user's state folder, made on first
    use. Nothing is connected until something is sent or worked on. `management_url` is that of
    RabbitMQ's management API, for figures that AMQP does not give.

    Raises ConfigError or UnknownScheme.
    """
    if url is None:
        if not os.environ.get("WORKQUEUE_URL"):
            make_folder(registry.default_file())
        url = registry.default_url()
    return Broker(registry.open_transport(url, management_url))


def make_folder(file: Path) -> None:
    """That of the embedded `file` exists. Raises StorageError."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder {file.parent} of the embedded file cannot be made: {error.strerror}",
            hint="Set XDG_STATE_HOME to a folder of this user, or WORKQUEUE_URL.",
        ) from error


class Broker:
    """A place where queues are. Thread-safe; a context manager that closes it."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.producers: WeakSet[Producer] = WeakSet()

    def queue(
        self,
        name: str,
        *,
        type: QueueType | None = None,
        max_length: int | None = None,
        ttl: float | None = None,
        retry: RetryPolicy | None = None,
    ) -> Queue:
        """The queue `name`. It is made on first use, and otherwise taken as it is.

        `retry` is for its workers, unless they say otherwise themselves. With other options (see
        `QueueSpec`) an existing queue is compared instead, and QueueMismatch says what differs.
        Raises ConfigError for a name or an option that cannot be.
        """
        spec = QueueSpec(name=name, type=type, max_length=max_length, ttl=ttl)
        return Queue(self, spec, retry or RetryPolicy())

    def queues(self) -> list[str]:
        """The names of all queues, dead-letter queues among them. May raise Unsupported."""
        return self.transport.queues()

    def close(self) -> None:
        """Close the connections of all producers of its queues, those of tasks too. Safe to call
        twice; who sends later connects again."""
        with ExitStack() as stack:
            stack.callback(self.transport.close)
            for producer in list(self.producers):
                stack.callback(producer.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
