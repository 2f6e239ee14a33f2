"""The entry point, and how errors become three lines and an exit code."""

from __future__ import annotations

import errno
import gc
import os
import shlex
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
    LookCutShort,
    NotSent,
    QueueFull,
    QueueMismatch,
    QueueNotFound,
    RunnerFailed,
    StorageError,
    TransportFault,
    UnknownScheme,
    WorkqueueError,
    show,
)

USAGE = 2
BUG = 70
INTERRUPTED = 130

EXIT_CODES: list[tuple[type[BaseException], int]] = [
    (BadPayload, 65),
    (ConnectionLost, 69),
    (ConsumerLost, 69),
    (AccessRefused, 77),
    (ConfigError, 78),
    (StorageError, 78),
    (TransportFault, BUG),
    (RunnerFailed, BUG),
    (WorkqueueError, 1),
]
"""First match counts. The rest: 0 done, 2 usage, 3 partly done, 70 a bug of ours, 130 and 143 told
twice to stop. The numbers are those of sysexits.h."""

MIGRATABLE = {"type": "--type", "max length": "--max-length", "ttl": "--ttl"}
"""The parameters of a queue that `workqueue migrate` can change, with its options."""

OUTPUT_ERRORS = (errno.EPIPE, errno.EIO, errno.ENOSPC)
"""Of standard output whose reader has gone, whose terminal was closed, or whose disk is full."""


def main() -> None:
    """`workqueue …`"""
    arguments = sys.argv[1:]
    gc.disable()  # until the command begins: what is imported is no garbage
    fill_standard_streams()
    try:
        code = run(arguments)
        sys.stdout.flush()
        sys.exit(code)
    except WorkqueueError as error:
        leave(error, arguments)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        leave_by_output(error)
        leave_by_usage(error, arguments)
        leave(error, arguments)
    finally:
        gc.freeze()  # nor worth a search now that all of it goes: a fifth of the time of a `send`
        gc.enable()


def run(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        # Before anything is imported: scripts ask this often.
        from workqueue import __version__

        print(f"workqueue {__version__}")
        return 0
    from workqueue.cli.app import make_app

    # Not "standalone", where errors would be drawn in boxes: ours are three lines at most.
    code = make_app(arguments)(prog_name="workqueue", standalone_mode=False)
    return code if isinstance(code, int) else 0


def fill_standard_streams() -> None:
    """Give those that we were started without (`>&-`) somewhere to go.

    Else the next file that is opened would get their number, and be taken for them by us and by
    the commands we start. Reading from a missing standard input fails, instead of finding it empty.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_WRONLY)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def leave_by_output(error: Exception) -> None:
    """If standard output takes no more: its reader has gone (`workqueue status | head`), its
    terminal was closed, or the disk is full. All else that writes makes of an OSError an error of
    its own."""
    if not isinstance(error, OSError) or error.errno not in OUTPUT_ERRORS:
        return
    # What is still in its buffer must not fail again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.ENOSPC:
        print(f"workqueue: cannot write to standard output: {error.strerror}", file=sys.stderr)
        print("  Try: df -h", file=sys.stderr)
    sys.exit(1)


def leave_by_usage(error: Exception, arguments: list[str]) -> None:
    """If the command line cannot be understood, or its user said no to a question."""
    if type(error).__name__ == "Abort":
        sys.exit(1)
    from workqueue.message import visible

    told = getattr(error, "format_message", None)
    if told is None:
        return
    context = getattr(error, "ctx", None)
    from workqueue.cli.settings import BadSettings, setting_behind

    if found := setting_behind(error):
        problem = getattr(error, "message", "") or told()
        leave(BadSettings(found.source, f"{found.name} = {found.value!r}: {problem}"), arguments)
    # For a group without a command, Typer has printed the help already.
    if type(error).__name__ != "NoArgsIsHelpError":
        line = " ".join(told().split()).removeprefix("Invalid value: ").replace("Value error, ", "")
        path = context.command_path if context else command_in(arguments)
        print(f"workqueue: {visible(line[:1].lower() + line[1:])}", file=sys.stderr)
        print(f"  Try: {path} --help", file=sys.stderr)
    sys.exit(USAGE)


def leave(error: Exception, arguments: list[str]) -> NoReturn:
    """Say what happened and what to type next; no traceback unless asked."""
    from workqueue.message import visible

    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "-v" in ours or "--verbose" in ours:
        for line in "".join(traceback.format_exception(error)).splitlines():
            print(visible(line), file=sys.stderr)
    if not isinstance(error, WorkqueueError):
        error = WorkqueueError(
            f"this is a bug in workqueue: {type(error).__name__}: {error}",
            hint="Please report it, with the traceback that -v shows.",
        )
        code, command = BUG, " ".join(["workqueue", *arguments[:1], "-v …"])
    else:
        code = exit_code(error)
        command = next_command(error, arguments)
    print(f"workqueue: {visible(str(error))}", file=sys.stderr)
    if error.hint and error.hint != command:
        print(f"  {visible(error.hint)}", file=sys.stderr)
    print(f"  Try: {visible(command)}", file=sys.stderr)
    sys.exit(code)


def exit_code(error: WorkqueueError) -> int:
    if isinstance(error, LookCutShort) or (isinstance(error, NotSent) and error.sent):
        return 3
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def command_in(arguments: list[str]) -> str:
    """The command that was meant, as far as one can tell."""
    known = arguments and arguments[0].isalpha()
    return f"workqueue {arguments[0]}" if known else "workqueue"


def next_command(error: WorkqueueError, arguments: list[str]) -> str:
    """What to type next: the command that shows more, or the one that mends it."""
    if error.command:
        return error.command
    if file := getattr(error, "file", None):
        return f"${{EDITOR:-vi}} {shlex.quote(str(file))}"
    match error:
        case QueueMismatch():
            return migration(error)
        case QueueNotFound():
            return f"workqueue declare {shlex.quote(error.queue)}"
        case UnknownScheme():
            return "workqueue plugins"
        case HandlerNotFound():
            return "workqueue work --help"
        case RunnerFailed():
            return "workqueue work -v …"
        case AccessRefused():
            return "export WORKQUEUE_URL=amqp://user:password@host/vhost"
        case StorageError(hint=hint) if hint.startswith("mkdir "):
            return hint
        case ConnectionLost() | StorageError():
            return "workqueue doctor"
        case QueueFull():
            return "workqueue status"
        case LookCutShort():
            return f"workqueue status {shlex.quote(error.queue)}"
        case _:
            return f"{command_in(arguments)} --help"


def migration(error: QueueMismatch) -> str:
    """The command that would show how the queue gets the parameters it was asked for."""
    wanted = {name: value for name, (value, _) in error.differences.items() if value is not None}
    if not wanted or not wanted.keys() <= MIGRATABLE.keys():
        return f"workqueue doctor {shlex.quote(error.queue)}"
    options = " ".join(f"{MIGRATABLE[name]} {show(value)}" for name, value in wanted.items())
    return f"workqueue migrate {shlex.quote(error.queue)} {options} --dry-run"
