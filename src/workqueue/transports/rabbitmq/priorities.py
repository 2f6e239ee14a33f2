"""What becomes of priorities: said once of each queue that cannot honour all ten."""

from __future__ import annotations

from workqueue.errors import QueueNotFound
from workqueue.forks import Lock
from workqueue.loggers import logger
from workqueue.logs import CarefulLog
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.survey import Survey, survey
from workqueue.transports.rabbitmq.topology import MAX_PRIORITY

log = CarefulLog(logger("rabbitmq"))


class Priorities:
    """Of the queues of one transport. Thread-safe."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.looked_at: set[str] = set()

    def look(self, link: Link, queue: str) -> None:
        """A message with a priority goes to `queue`: say what that is worth there."""
        with self.lock:
            if queue in self.looked_at:
                return
            try:
                told = shortfall(survey(link, queue), link.version)
            except QueueNotFound:
                return  # it is about to be made
            except ChannelClosed:
                told = None  # we may not know
            self.looked_at.add(queue)
        if told:
            log.warning("%s", told)


def shortfall(found: Survey, version: str) -> str | None:
    """What `found` makes of priorities 0 to 9; None if it honours them, or cannot be known."""
    if found.type == "classic":
        highest = (found.arguments or {}).get("x-max-priority")
        if highest is None:
            return f"queue {found.queue} was made without priorities: all of its messages are equal"
        if highest < MAX_PRIORITY:
            return f"queue {found.queue} was made with {highest} priorities: higher ones are equal"
    if found.type == "quorum":
        match found.abilities.quorum_priorities:
            case 1:
                return f"quorum queues of RabbitMQ {version} know no priorities: all are equal"
            case 2:
                return (
                    f"quorum queues of RabbitMQ {version} know two priorities: 5 to 9 go before "
                    "0 to 4, two for each one"
                )
    return None
