"""A log that cannot fail: what an application does with a line must not undo what the line says."""

from __future__ import annotations

import logging
from typing import Any

from workqueue.loggers import logger


class CarefulLog(logging.LoggerAdapter[logging.Logger]):
    """Passes lines on to a logger, and drops one at which a handler or a filter raises.

    The applications' own handlers run in the thread that logs. One that raises in the thread of a
    slot, or while tasks are settled, would end the worker or have tasks run again.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        """See `logging.Logger.log`. Never raises."""
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1  # the caller's line, not this one
        try:
            super().log(level, msg, *args, **kwargs)
        except BaseException:  # noqa: BLE001, S110 - there is nowhere else to say it
            pass


log = CarefulLog(logger("worker"))
"""Of the worker, its runners and their children."""
