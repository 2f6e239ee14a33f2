"""What the kernel expects of process 1, for a worker that is one in its container.

A process whose parent has ended is given to process 1, which must wait for it when it ends, or it
stays as a zombie. A worker cannot: it would take the statuses of its own children from those that
wait for them. So it goes on as a child of a process that does nothing else.

Source: Linux, pid_namespaces(7) and wait(2), "notes".
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


def leave_process_1() -> None:
    """Return in a child of this process, if this is process 1. That passes signals on to it, reaps
    what it is given, and ends as the child does. To be called before there are threads."""
    if os.getpid() != 1:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # until somebody heeds them
    child = os.fork()
    if child:
        for number in PASSED_ON:
            signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if child:
        os._exit(reap_until(child))


def reap_until(child: int) -> int:
    """Wait for all that ends, until it is `child`; its exit status, as a shell says it."""
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
