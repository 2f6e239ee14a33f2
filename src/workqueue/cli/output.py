"""Data to stdout, talk to stderr. Tables on a terminal, tab-separated elsewhere, JSON on request.

Bodies, headers and errors come from strangers: control characters are shown escaped, so that no
message can move the cursor, change the window's title or fake a line of a log.
"""

from __future__ import annotations

import json
import logging
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NUMBERS = {"ready", "in_flight", "delayed", "dead", "consumers", "oldest_ready_s"}
NUMBERS |= {"messages", "per_second", "p50_ms", "p95_ms", "p99_ms"}
"""Columns that are set to the right."""

TROUBLESOME = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories that a terminal may act on, or not show: controls, formats, surrogates."""


def escape(text: str) -> str:
    """`text` with everything escaped that is not plainly visible."""
    if text.isprintable():
        return text
    return "".join(
        char if unicodedata.category(char) not in TROUBLESOME else escaped(char) for char in text
    )


def escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def say(text: str) -> None:
    """A line of talk, on stderr."""
    print(escape(text), file=sys.stderr, flush=True)


def print_json(record: Mapping[str, Any]) -> None:
    """One object, one line."""
    print(json.dumps(record, ensure_ascii=False, default=str), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The same rows as a table on a terminal and tab-separated elsewhere, None as "-"."""
    cells = [["-" if cell is None else escape(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *cells]:
            print("\t".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for row in cells:
        table.add_row(*map(Text, row))
    Console().print(table)


class TextFormatter(logging.Formatter):
    """A log record as one line of talk."""

    def format(self, record: logging.LogRecord) -> str:
        return escape(f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}")


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            },
            ensure_ascii=False,
        )


def show_log(*, log_format: str = "text", quiet: bool = False, verbose: bool = False) -> None:
    """The library's log goes to stderr; warnings and worse, or all with `verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logger = logging.getLogger("workqueue")
    logger.handlers[:] = [handler]
    logger.propagate = False
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logger.setLevel(level)
