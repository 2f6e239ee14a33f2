"""Our loggers: the one place at which text of strangers enters a log.

Messages, servers and files say things that end in a line of a log: ids, reasons, names, refusals.
Whoever configures logging in his application gets them from here with control characters escaped
and cut, so that no message can fake a line, move a cursor, or fill a disk.
"""

from __future__ import annotations

import logging

from workqueue.message import visible

LONGEST = 1_000
"""Characters of one value in a line of a log; of a traceback, LONGEST_TRACEBACK."""

LONGEST_TRACEBACK = 16_000

formatter = logging.Formatter()


def logger(name: str) -> logging.Logger:
    """The logger "workqueue.NAME", whose records are made plain."""
    found = logging.getLogger(f"workqueue.{name}")
    found.addFilter(plain)
    return found


def plain(record: logging.LogRecord) -> bool:
    """Escape all values of a record but numbers, and its traceback, line by line. Never raises."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(shown, record.args))
    if record.exc_info and record.exc_info[0] is not None:
        try:
            text = brief(formatter.formatException(record.exc_info), LONGEST_TRACEBACK)
        except BaseException as error:  # noqa: BLE001 - its notes and causes may be anything
            text = f"{record.exc_info[0].__name__} (its traceback raised {type(error).__name__})"
        # Formatters take it from here; the exception stays there for those who report it whole.
        # Indented, as a line of an exception's own text would else pass for a line of the log.
        record.exc_text = "\n".join(f"  {visible(line)}" for line in text.split("\n"))
    return True


def shown(value: object) -> object:
    if isinstance(value, int | float):
        return value
    try:
        return visible(brief(str(value), LONGEST))
    except BaseException as error:  # noqa: BLE001 - errors of others cannot always be shown
        return f"{type(value).__name__} (its __str__ raised {type(error).__name__})"


def brief(text: str, longest: int) -> str:
    """At most `longest` characters of `text`: where it begins, and how it ends."""
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"
