"""The entry point, and how errors become three lines and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

from workqueue.errors import (
    AccessRefused,
    BadPayload,
    ConfigError,
    ConnectionLost,
    ConsumerLost,
    HandlerNotFound,
    NotSent,
    QueueFull,
    QueueMismatch,
    QueueNotFound,
    StorageError,
    UnknownScheme,
    WorkqueueError,
)

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (BadPayload, 65),
    (ConnectionLost, 69),
    (ConsumerLost, 69),
    (AccessRefused, 77),
    (ConfigError, 78),
    (StorageError, 78),
    (WorkqueueError, 1),
]
"""First match counts. The rest: 0 done, 2 usage, 3 partly done, 70 a bug of ours, 130 and 143 told
twice to stop. The numbers are those of sysexits.h."""

USAGE = 2
BUG = 70
INTERRUPTED = 130


def main() -> None:
    """`workqueue …`"""
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        # Before anything is imported: scripts ask this often.
        from workqueue import __version__

        print(f"workqueue {__version__}")
        return
    from workqueue.cli.app import app

    try:
        # Not "standalone", where errors would be drawn in boxes: ours are three lines at most.
        code = app(prog_name="workqueue", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except WorkqueueError as error:
        leave(error, arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone: `workqueue status | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        leave_by_usage(error)
        leave(error, arguments)


def leave_by_usage(error: Exception) -> None:
    """If the command line cannot be understood, or its user said no to a question."""
    if type(error).__name__ == "Abort":
        sys.exit(1)
    told = getattr(error, "format_message", None)
    if told is None:
        return
    context = getattr(error, "ctx", None)
    if context and type(error).__name__ == "NoArgsIsHelpError":
        print(context.get_help(), file=sys.stderr)
    else:
        line = " ".join(told().split()).removeprefix("Invalid value: ").replace("Value error, ", "")
        path = context.command_path if context else "workqueue"
        print(f"workqueue: {line[:1].lower()}{line[1:]}", file=sys.stderr)
        print(f"  Try: {path} --help", file=sys.stderr)
    sys.exit(USAGE)


def leave(error: Exception, arguments: list[str]) -> NoReturn:
    """Say what happened and what to type next; no traceback unless asked."""
    from workqueue.cli.output import escape

    if "-v" in arguments or "--verbose" in arguments:
        traceback.print_exception(error)
    if not isinstance(error, WorkqueueError):
        error = WorkqueueError(
            f"this is a bug in workqueue: {type(error).__name__}: {error}",
            hint="Please report it, with the traceback that -v shows.",
        )
        code, command = BUG, " ".join(["workqueue", *arguments[:1], "-v …"])
    else:
        code = exit_code(error)
        command = next_command(error, arguments)
    print(f"workqueue: {escape(str(error))}", file=sys.stderr)
    if error.hint:
        print(f"  {escape(error.hint)}", file=sys.stderr)
    print(f"  Try: {escape(command)}", file=sys.stderr)
    sys.exit(code)


def exit_code(error: WorkqueueError) -> int:
    if isinstance(error, NotSent) and error.sent:
        return 3
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def next_command(error: WorkqueueError, arguments: list[str]) -> str:
    """What to type next: the command that shows more, or the one that mends it."""
    name = arguments[0] if arguments else ""
    match error:
        case QueueMismatch():
            return f"workqueue {'work' if name == 'work' else 'status'} {error.queue}"
        case QueueNotFound():
            return f"workqueue declare {error.queue}"
        case UnknownScheme():
            return "workqueue plugins"
        case HandlerNotFound():
            return "workqueue work --help"
        case AccessRefused():
            return "export WORKQUEUE_URL=amqp://user:password@host/vhost"
        case ConnectionLost():
            return f"workqueue {name} --help" if name else "workqueue --help"
        case QueueFull():
            return "workqueue status"
        case _:
            return f"workqueue {name} --help" if name else "workqueue --help"
