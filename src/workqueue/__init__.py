"""Work queues on RabbitMQ, or on a file: what was sent is handled, whatever dies.

from workqueue import Producer, Worker, connect

emails = connect("sqlite:///jobs.db").queue("emails")
Producer(emails).send({"to": "ada@example.org"})
Worker(emails, lambda job: print(job.payload)).run(until_empty=True)
"""

from workqueue.broker import Broker, connect
from workqueue.dead import DeadLetter
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
    StorageError,
    TooLarge,
    Unconfirmed,
    UnknownScheme,
    Unroutable,
    Unsupported,
    WorkqueueError,
)
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
    "StorageError",
    "Tally",
    "Task",
    "TooLarge",
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
