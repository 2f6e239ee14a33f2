"""The entry point, and how errors become three lines and an exit code."""

from __future__ import annotations

import errno
import gc
import io
import os
import shlex
import sys
import traceback
from contextlib import suppress
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
from workqueue.masking import mask, mask_all

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

NEXT_COMMANDS: list[tuple[type[WorkqueueError], str]] = [
    (UnknownScheme, "workqueue plugins"),
    (HandlerNotFound, "workqueue work --help"),
    (RunnerFailed, "workqueue work -v …"),
    (AccessRefused, "export WORKQUEUE_URL=amqp://user:password@host/vhost"),
    (ConnectionLost, "workqueue doctor"),
    (StorageError, "workqueue doctor"),
    (QueueFull, "workqueue status"),
]
"""What to type after an error that names no command itself. First match counts."""

OWN_LIMITS = {
    errno.EMFILE: ("this process may have no more files open", "ulimit -n 4096"),
    errno.ENFILE: ("this machine may have no more files open", "sysctl fs.file-nr"),
    errno.EAGAIN: ("this user may have no more processes or threads", "ulimit -u"),
    errno.ENOMEM: ("there is no memory left", "free -h"),
    errno.ENOSPC: ("the disk is full", "df -h"),
    errno.EDQUOT: ("this user's share of the disk is used up", "quota"),
    errno.EFBIG: ("a file may not grow any further", "ulimit -f"),
    errno.EIO: ("a disk or a terminal has failed", "dmesg"),
}
"""What the system refuses to a process, whatever it asks for, and how to see more."""

OWN_FILES = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
)
FILE_TROUBLES = frozenset({errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ESTALE})

OUTPUT_TROUBLES = frozenset(
    {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF}
)


def main() -> None:
    """`workqueue …`"""
    arguments = sys.argv[1:]
    gc.disable()  # until the command begins: what is imported is no garbage
    fill_standard_streams()
    escape_what_cannot_be_shown()
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


def escape_what_cannot_be_shown() -> None:
    """On a terminal or in a file whose encoding lacks a character, print its escape instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def complain(*lines: str) -> None:
    """To standard error, as far as it takes anything."""
    from workqueue.message import visible

    with suppress(OSError, ValueError):
        for line in lines:
            print(visible(line), file=sys.stderr)


def leave_by_output(error: Exception) -> None:
    """If standard output takes no more: its reader has gone (`workqueue status | head`), it is not
    open for writing, or the disk is full."""
    if not isinstance(error, OSError) or not is_about_output(error):
        return
    # What is still in its buffer must not fail again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno != errno.EPIPE:
        _, command = OWN_LIMITS.get(error.errno or 0, ("", "ls -l /dev/stdout"))
        told = f"workqueue: cannot write to standard output: {error.strerror}"
        complain(told, f"  Try: {command}")
    sys.exit(1)


def is_about_output(error: OSError) -> bool:
    """All else that writes makes of an OSError an error of its own, or names a file."""
    if error.filename is not None:
        return False
    if error.errno == errno.EAGAIN:  # else it is about a process that could not be started
        return hasattr(error, "characters_written")
    return error.errno in OUTPUT_TROUBLES


def leave_by_usage(error: Exception, arguments: list[str]) -> None:
    """If the command line cannot be understood, or its user said no to a question."""
    if type(error).__name__ == "Abort":
        sys.exit(1)
    told = getattr(error, "format_message", None)
    if told is None:
        return
    context = getattr(error, "ctx", None)
    from workqueue.cli.settings import BadSettings, setting_behind

    if found := setting_behind(error):
        problem = getattr(error, "message", "") or told()
        value = mask(repr(found.value))
        leave(BadSettings(found.source, f"{found.name} = {value}: {problem}"), arguments)
    # For a group without a command, Typer has printed the help already.
    if type(error).__name__ != "NoArgsIsHelpError":
        line = " ".join(told().split()).removeprefix("Invalid value: ").replace("Value error, ", "")
        path = context.command_path if context else command_in(arguments)
        complain(f"workqueue: {mask_all(line[:1].lower() + line[1:])}", f"  Try: {path} --help")
    sys.exit(USAGE)


def leave(error: Exception, arguments: list[str]) -> NoReturn:
    """Say what happened and what to type next; no traceback unless asked."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "-v" in ours or "--verbose" in ours:
        complain(*mask_all("".join(traceback.format_exception(error))).splitlines())
    if not isinstance(error, WorkqueueError):
        error = from_environment(error) or error
    if not isinstance(error, WorkqueueError):
        error = WorkqueueError(
            f"this is a bug in workqueue: {type(error).__name__}: {error}",
            hint="Please report it, with the traceback that -v shows.",
        )
        code, command = BUG, " ".join(["workqueue", *arguments[:1], "-v …"])
    else:
        code = exit_code(error)
        command = next_command(error, arguments)
    hints = [f"  {error.hint}"] if error.hint and error.hint != command else []
    complain(f"workqueue: {mask_all(str(error))}", *hints, f"  Try: {command}")
    sys.exit(code)


def from_environment(error: Exception) -> WorkqueueError | None:
    """What the user can do about an error that the system raised; None for a bug of ours."""
    found: WorkqueueError
    match error:
        case MemoryError():
            return from_environment(OSError(errno.ENOMEM, ""))
        case RuntimeError() if "can't start new thread" in str(error):
            return from_environment(OSError(errno.EAGAIN, ""))
        case UnicodeEncodeError(reason="surrogates not allowed"):
            found = ConfigError("a word of the command line, or of the environment, is not UTF-8")
            command = "locale"
        case OSError(errno=number) if number in OWN_LIMITS:
            told, command = OWN_LIMITS[number]
            found = ConfigError(f"{told}{naming(error)}")
        case OSError(errno=number) if isinstance(error, OWN_FILES) or number in FILE_TROUBLES:
            missing = "the current folder, or a file" if not error.filename else ""
            found = ConfigError(f"{missing or error.filename}: {error.strerror}")
            command = f"ls -ld {shlex.quote(os.fsdecode(error.filename or '.'))}"
        case OSError() if isinstance(error, ConnectionError | TimeoutError):
            found, command = ConnectionLost(str(error.strerror or error)), "workqueue doctor"
        case _:
            return None
    found.command = command
    return found


def naming(error: OSError) -> str:
    """The file that it is about, if it is about one."""
    return f" ({os.fsdecode(error.filename)})" if isinstance(error.filename, str | bytes) else ""


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
        case LookCutShort():
            return f"workqueue status {shlex.quote(error.queue)}"
        case StorageError(hint=hint) if hint.startswith("mkdir "):
            return hint
    known = (command for kind, command in NEXT_COMMANDS if isinstance(error, kind))
    return next(known, f"{command_in(arguments)} --help")


def migration(error: QueueMismatch) -> str:
    """The command that would show how the queue gets the parameters it was asked for."""
    wanted = {name: value for name, (value, _) in error.differences.items() if value is not None}
    if not wanted or not wanted.keys() <= MIGRATABLE.keys():
        return f"workqueue doctor {shlex.quote(error.queue)}"
    options = " ".join(f"{MIGRATABLE[name]} {show(value)}" for name, value in wanted.items())
    return f"workqueue migrate {shlex.quote(error.queue)} {options} --dry-run"
