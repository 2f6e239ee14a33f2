"""Data to stdout, talk to stderr. Tables on a terminal, tab-separated elsewhere, JSON on request.

Bodies, headers and errors come from strangers: control characters are shown escaped, so that no
message can move the cursor, change the window's title or fake a line of a log.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from workqueue.message import visible

NUMBERS = {"ready", "in_flight", "delayed", "dead", "consumers", "oldest_ready_s"}
NUMBERS |= {"messages", "per_second", "p50_ms", "p95_ms", "p99_ms"}
"""Columns that are set to the right."""

LAID_OUT = 200
"""Rows of a table that are laid out with care."""


def say(text: str) -> None:
    """A line of talk, on stderr. What cannot be said there must not end what is done."""
    with suppress(OSError, ValueError):
        print(visible(text), file=sys.stderr, flush=True)


def print_json(record: Mapping[str, Any]) -> None:
    """One object, one line."""
    print(for_stream(sys.stdout, to_json(record)), flush=True)


def for_stream(stream: Any, text: str) -> str:
    """JSON, with those characters escaped that the encoding of `stream` does not have."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if encoding.lower() in ("utf-8", "utf8"):
        return text
    return "".join(char if encodable(char, encoding) else json_escape(char) for char in text)


def encodable(char: str, encoding: str) -> bool:
    try:
        return bool(char.encode(encoding))
    except UnicodeError:
        return False


def to_json(record: Mapping[str, Any]) -> str:
    """`record` in one line of plainly visible characters, which reads as the same again.

    NaN and infinities, which JSON does not have, are null.
    """
    import json  # late: most commands print none

    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:
        finite = json.loads(json.dumps(record, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite, ensure_ascii=False)
    if text.isprintable():
        return text
    return text.translate({ord(c): json_escape(c) for c in set(text) if visible(c) != c})


def json_escape(char: str) -> str:
    """As JSON writes what it does not show: in units of UTF-16."""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The same rows as a table on a terminal and tab-separated elsewhere, None as "-".

    Of a long table the first rows tell how wide its columns are: to lay out all of a hundred
    thousand takes minutes.
    """
    cells = map(shown, rows)
    if not sys.stdout.isatty():
        for row in chain([list(columns)], cells):
            print("\t".join(row))
        return
    first = list(islice(cells, LAID_OUT))
    if further := list(islice(cells, 1)):
        widths = [max(map(len, column)) for column in zip(columns, *first, strict=True)]
        for row in chain([list(columns)], first, further, cells):
            aligned = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            print("  ".join(aligned).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = "" if os.environ.get("NO_COLOR") else "bold"
    table = Table(box=None, pad_edge=False, header_style=style)
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left")
    for row in first:
        table.add_row(*map(Text, row))
    Console().print(table)


def shown(row: Sequence[object]) -> list[str]:
    return ["-" if cell is None else visible(str(cell)) for cell in row]


class TextFormatter(logging.Formatter):
    """A log record as one line of talk."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(f"{self.formatTime(record, '%H:%M:%S')} {record.getMessage()}")


class JsonFormatter(logging.Formatter):
    """A log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        line = to_json(
            {
                "time": record.created,
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            }
        )
        return for_stream(sys.stderr, line)


def show_log(*, log_format: str = "text", quiet: bool = False, verbose: bool = False) -> None:
    """The library's log goes to stderr; warnings and worse, or all with `verbose`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logger = logging.getLogger("workqueue")
    logger.handlers[:] = [handler]
    logger.propagate = False
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    logger.setLevel(level)
