"""Finding a handler by name, and calling it with a job."""

from __future__ import annotations

import contextvars
import functools
import importlib
import importlib.util
import inspect
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec.structs import replace

from workqueue.codec import decode
from workqueue.errors import BadPayload, HandlerNotFound, Reject, RetryLater
from workqueue.loggers import logger
from workqueue.message import Delivery, Job, Lost
from workqueue.middleware import Middleware, around_handler
from workqueue.queue import Queue
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.runner import Ending, Verdict
from workqueue.task import Task, handle_by_type, job_here

log = logger("worker")

Function = Callable[[Job[Any]], object]
"""What is called for each job. If it is a coroutine function, what it returns is run."""

Handler = Function | Task[..., Any] | Queue
"""What a user names: a function of a job, a task, or a queue for all its tasks."""

LONGEST_REASON = 300

OWN_FILES = frozenset(
    {Path(__file__), *(Path(__file__).parents[1] / name for name in ("middleware.py", "task.py"))}
)
"""Through which a handler is called."""

loops = threading.local()
"""An event loop for each thread that has run a coroutine."""


def handle(
    handler: Function, delivery: Delivery, lost: Lost, middleware: Sequence[Middleware] = ()
) -> Ending:
    """Decode, call, and say how it ended. Raises nothing but what stops a process."""
    try:
        job = make_job(delivery, lost)
    except BadPayload as error:
        return Ending(delivery, Verdict.REJECTED, one_line(str(error)))
    here = job_here.set(job)
    began = time.monotonic()
    try:
        if middleware:
            around_handler(middleware, lambda job: finished(handler(job)))(job)
        else:
            finished(handler(job))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is the task's
        return replace(ending_of(delivery, error), seconds=time.monotonic() - began)
    finally:
        job_here.reset(here)
    return Ending(delivery, Verdict.DONE, seconds=time.monotonic() - began)


def ending_of(delivery: Delivery, error: BaseException) -> Ending:
    """What a handler says by raising `error`."""
    match error:
        case RetryLater(delay=delay):
            return Ending(delivery, Verdict.LATER, one_line(str(error)), delay=delay)
        case Reject(reason=reason):
            return Ending(delivery, Verdict.REJECTED, one_line(reason))
    reason = one_line(f"{type(error).__name__}: {error}")
    return Ending(delivery, Verdict.FAILED, reason, traceback_of(error))


def finished(result: object) -> object:
    """`result`, or what the coroutine gives that it is."""
    if result is None or not inspect.iscoroutine(result):
        return result
    if not hasattr(loops, "runner"):
        import asyncio

        loops.runner = asyncio.Runner()
    return loops.runner.run(result, context=contextvars.copy_context())


def close_loop() -> None:
    """This thread runs no more coroutines."""
    if hasattr(loops, "runner"):
        loops.runner.close()
        del loops.runner


def make_job(delivery: Delivery, lost: Lost) -> Job[Any]:
    """Raises BadPayload if the body is not what it claims to be."""
    message = delivery.message
    return Job(
        payload=decode(
            message.body, message.content_type, message.content_encoding, message.headers
        ),
        body=message.body,
        queue=delivery.queue,
        id=message.id,
        attempt=delivery.attempt,
        redelivered=delivery.redelivered,
        headers=message.headers,
        content_type=message.content_type,
        type=message.type,
        priority=message.priority,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        sent_at=message.sent_at,
        lost=lost,
    )


def one_line(text: str) -> str:
    """The first line of `text` that says something, not too long."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return first if len(first) <= LONGEST_REASON else first[: LONGEST_REASON - 1] + "…"


def traceback_of(error: BaseException) -> str:
    """From the handler on down: how it was called is our business, and asyncio's."""
    trace = error.__traceback__
    while trace is not None and is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def is_machinery(file: str) -> bool:
    path = Path(file)
    return path in OWN_FILES or path.parent.name == "asyncio"


# -- by name -----------------------------------------------------------------------------------


def load_handler(name: str) -> Handler:
    """The function, task or queue that `module:function` or `path/file.py:function` names.

    A module is looked for where Python looks, and then in the current folder: so a file there is
    imported only by its own name, and never in the place of an installed module of the same name,
    which may be one that the installed ones need. Raises HandlerNotFound with the reason, in one
    line.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon or not source or not attribute:
        raise HandlerNotFound(
            f"{name}: name the handler as module:function or file.py:function",
            hint="For example tasks:handle, for the function handle in tasks.py",
        )
    before = set(sys.modules)
    is_file = source.endswith(".py")
    module = load_file(Path(source)) if is_file else load_module(source)
    warn_of_namesakes(Path(source).resolve().parent if is_file else Path.cwd(), before)
    found = find_attribute(module, source, attribute)
    function_of(found, name)
    return found  # type: ignore[return-value]  # or function_of would have refused it


def load_module(name: str) -> ModuleType:
    here = make_importable(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            told = f"there is no module {error.name} in {here} or installed"
            raise HandlerNotFound(told) from error
        raise failed_import(name, error) from error
    except (Exception, SystemExit) as error:
        raise failed_import(name, error) from error


def load_file(path: Path) -> ModuleType:
    """The file as a module of its own name, which may import others from its folder."""
    if not path.is_file():
        raise HandlerNotFound(f"there is no file {path}")
    make_importable(path.resolve().parent)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise HandlerNotFound(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise failed_import(str(path), error) from error
    return module


def make_importable(folder: Path) -> str:
    """Modules in `folder` can be imported, after all that can be already."""
    here = str(folder)
    if here not in sys.path:
        sys.path.append(here)
    return here


def warn_of_namesakes(folder: Path, before: set[str]) -> None:
    """Say which modules, imported since `before`, are not the ones that `folder` has. If they are
    meant, PYTHONPATH puts the folder first, as it does for Python itself."""
    for name in sorted(set(sys.modules) - before):
        origin = getattr(sys.modules[name], "__file__", None)
        if "." in name or not origin or Path(origin).is_relative_to(folder):
            continue
        for namesake in (folder / f"{name}.py", folder / name / "__init__.py"):
            if namesake.is_file():
                log.warning(
                    "module %s is the installed one, and %s is not used; "
                    "if it is meant, rename it, or set PYTHONPATH=%s",
                    name,
                    namesake,
                    folder,
                )


def failed_import(name: str, error: BaseException) -> HandlerNotFound:
    return HandlerNotFound(one_line(f"importing {name} failed: {type(error).__name__}: {error}"))


def find_attribute(module: ModuleType, source: str, attribute: str) -> object:
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            there = [n for n, v in vars(module).items() if inspect.isfunction(v) and n[0] != "_"]
            hint = f"It has {', '.join(there[:8])}." if there else ""
            raise HandlerNotFound(f"{source} has no {attribute}", hint=hint) from None
    return found


def function_of(found: object, name: str) -> Function:
    """What to call for each job. Raises HandlerNotFound for what cannot be a handler."""
    if isinstance(found, Queue):
        if not found.tasks:
            raise HandlerNotFound(f"{name} is a queue without tasks", hint="Add some: @queue.task")
        for task in found.tasks.values():
            task.arguments()  # annotations that make no sense are said now, not with each message
        return functools.partial(handle_by_type, found)
    if isinstance(found, Task):
        found.arguments()
        return found.handle
    if not callable(found):
        raise HandlerNotFound(f"{name} is not a function but a {type(found).__name__}")
    return found


def options_of(handler: object) -> dict[str, TaskOptions]:
    """What the tasks of a handler ask for, by their name."""
    match handler:
        case Queue():
            return {name: task.asks for name, task in handler.tasks.items()}
        case Task():
            return {handler.name: handler.asks}
    return {}


def retry_of(handler: object) -> RetryPolicy | None:
    """What the queue of a handler's tasks asks for."""
    match handler:
        case Queue():
            return handler.retry
        case Task():
            return handler.queue.retry
    return None


def is_async(handler: object) -> bool:
    """Whether all that it runs are coroutines."""
    match handler:
        case Queue():
            return all(is_async(task) for task in handler.tasks.values())
        case Task():
            return inspect.iscoroutinefunction(handler.function)
    call = getattr(handler, "__call__", None)  # noqa: B004 - an object's, to be looked at
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


def name_of(handler: Handler) -> str:
    """The name under which a child process can import `handler`.

    Raises HandlerNotFound for what has none: a lambda, a function inside another, or one of the
    script that is running, which a child would have to run a second time.
    """
    if isinstance(handler, Queue):
        return name_of_queue(handler)
    module = getattr(handler, "__module__", None)
    qualified = getattr(handler, "__qualname__", "")
    if module == "__main__":
        raise HandlerNotFound(
            f"{qualified} is in the script that is running, where child processes cannot import it",
            hint="Move it to a module of its own, or use runner='thread'.",
        )
    found: object = sys.modules.get(module or "")
    for part in qualified.split("."):
        found = getattr(found, part, None)
    if not module or found is not handler:
        raise HandlerNotFound(
            f"{qualified or handler!r} cannot be imported by its name in a child process",
            hint="Make it a function at the top of a module, or use runner='thread'.",
        )
    return f"{module}:{qualified}"


def name_of_queue(queue: Queue) -> str:
    """A queue has no name of its own in Python: it is looked for beside its tasks."""
    for module in dict.fromkeys(task.__module__ for task in queue.tasks.values()):
        for attribute, found in vars(sys.modules[module]).items():
            if found is queue and module != "__main__":
                return f"{module}:{attribute}"
    raise HandlerNotFound(
        f"queue {queue.name} is no global of an importable module, where its tasks are",
        hint="Name it there, as in queue = connect().queue(…), or use runner='thread'.",
    )
