"""Causes of a failed publish that this transport tells apart, since each asks for another answer.

To everybody else each is the error of `workqueue.errors` that it derives from.
"""

from __future__ import annotations

from workqueue.errors import Refused, Unconfirmed


class CannotWait(Refused):
    """There is no delay queue for it, and none can be made."""


class Forbidden(Refused):
    """The login may not publish: no message of it would be taken."""


class Interrupted(Unconfirmed):
    """RabbitMQ closed the channel or the connection because of a message: this one, or another
    that was on its way at the same time."""
