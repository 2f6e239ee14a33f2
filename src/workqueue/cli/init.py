"""What the kernel expects of process 1, for a worker that is one in its container.

A process whose parent has ended is given to process 1, which must wait for it when it ends, or it
stays as a zombie. A worker cannot: it would take the statuses of its own children from those that
wait for them. So it goes on as a child of a process that does nothing else.

Sources: Linux, pid_namespaces(7), wait(2), "notes", and sigaction(2) about `si_code`.
"""

from __future__ import annotations

import os
import signal

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)

FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
"""Ctrl-C and Ctrl-\\ at the terminal of a container: the kernel gives them to the worker as well,
which is in the same foreground group."""

SI_KERNEL = 0x80
"""Linux: the `si_code` of a signal that no process sent."""


def leave_process_1() -> None:
    """Return in a child of this process, if this is process 1. That passes signals on to it, reaps
    what it is given, and ends as the child does. To be called before there are threads."""
    if os.getpid() != 1:
        return
    # Where it came ignored, the kernel would wait for our children, and keep how they ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    child = os.fork()
    if child:
        os._exit(attend(child))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def attend(child: int) -> int:
    """Heed the blocked signals until `child` has ended; its exit status, as a shell says it."""
    while True:
        told = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if told.si_signo == signal.SIGCHLD:
            code = reap(child)
            if code is not None:
                return code if code >= 0 else 128 - code
        elif told.si_signo not in FROM_KEYBOARD or told.si_code != SI_KERNEL:
            os.kill(child, told.si_signo)


def reap(child: int) -> int | None:
    """Wait for all that has ended. How `child` did, if it is among that: then it is the last."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            return os.waitstatus_to_exitcode(status)
        if not pid:
            return None
