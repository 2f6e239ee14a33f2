"""Work queues on RabbitMQ, or on a file: what was sent is handled, whatever dies.

from workqueue import Producer, Worker, connect

emails = connect("sqlite:///jobs.db").queue("emails")
Producer(emails).send({"to": "ada@example.org"})
Worker(emails, lambda job: print(job.payload)).run(until_empty=True)
"""

import importlib
import typing

from workqueue.errors import (
    AccessRefused,
    BadPayload,
    BrokerBlocked,
    ConfigError,
    ConnectionLost,
    ConsumerLost,
    HandlerNotFound,
    NotSent,
    QueueFull,
    QueueMigrating,
    QueueMismatch,
    QueueNotFound,
    Refused,
    Reject,
    RetryLater,
    RunnerFailed,
    StorageDamaged,
    StorageError,
    TooLarge,
    TransportFault,
    Unconfirmed,
    UnknownScheme,
    Unroutable,
    Unsupported,
    WorkqueueError,
)

if typing.TYPE_CHECKING:
    from workqueue.broker import Broker, connect
    from workqueue.dead import DeadLetter
    from workqueue.message import Delivery, Job, Message
    from workqueue.middleware import Middleware
    from workqueue.producer import Producer
    from workqueue.queue import Queue
    from workqueue.retry import RetryPolicy
    from workqueue.task import Task, current_job
    from workqueue.transport import QueueStats
    from workqueue.worker import Tally, Worker

__version__ = "0.2.0"

__all__ = [
    "AccessRefused",
    "BadPayload",
    "Broker",
    "BrokerBlocked",
    "ConfigError",
    "ConnectionLost",
    "ConsumerLost",
    "DeadLetter",
    "Delivery",
    "HandlerNotFound",
    "Job",
    "Message",
    "Middleware",
    "NotSent",
    "Producer",
    "Queue",
    "QueueFull",
    "QueueMigrating",
    "QueueMismatch",
    "QueueNotFound",
    "QueueStats",
    "Refused",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    "RunnerFailed",
    "StorageDamaged",
    "StorageError",
    "Tally",
    "Task",
    "TooLarge",
    "TransportFault",
    "Unconfirmed",
    "UnknownScheme",
    "Unroutable",
    "Unsupported",
    "Worker",
    "WorkqueueError",
    "__version__",
    "connect",
    "current_job",
]

_HOMES = {
    "Broker": "broker",
    "DeadLetter": "dead",
    "Delivery": "message",
    "Job": "message",
    "Message": "message",
    "Middleware": "middleware",
    "Producer": "producer",
    "Queue": "queue",
    "QueueStats": "transport",
    "RetryPolicy": "retry",
    "Tally": "worker",
    "Task": "task",
    "Worker": "worker",
    "connect": "broker",
    "current_job": "task",
}
"""The modules of all other names. Each is imported when it is first used: who sends needs no
worker, and neither needs the other's half of a driver."""

if not typing.TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"workqueue.{_HOMES[name]}")
        value = globals()[name] = getattr(home, name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
