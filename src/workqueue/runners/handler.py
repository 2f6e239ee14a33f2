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
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from workqueue.codec import decode
from workqueue.errors import BadPayload, HandlerNotFound, Reject, RetryLater, seconds_of
from workqueue.logs import log
from workqueue.message import Delivery, Job, Lost
from workqueue.middleware import Middleware, around_handler
from workqueue.queue import Queue
from workqueue.retry import RetryPolicy, TaskOptions
from workqueue.runners.runner import STOP_STATUSES, Ending, Verdict
from workqueue.task import Task, handle_by_type, job_here

if TYPE_CHECKING:
    import asyncio
    from asyncio import AbstractEventLoop

Function = Callable[[Job[Any]], object]
"""What is called for each job. If it is a coroutine function, what it returns is run."""

Handler = Function | Task[..., Any] | Queue
"""What a user names: a function of a job, a task, or a queue for all its tasks."""

LONGEST_REASON = 300
"""Characters of a reason."""

MOST_CAUSES = 10
"""Exceptions of a chain that are looked at."""

LONGEST_ERROR = 8_000
"""Characters of a traceback: as many as a dead letter keeps."""

OWN_FILES = frozenset(
    {Path(__file__), *(Path(__file__).parents[1] / name for name in ("middleware.py", "task.py"))}
)
"""Through which a handler is called."""

loops = threading.local()
"""An event loop for each thread that has run a coroutine."""


class Interrupted(SystemExit):
    """The worker asks a child process to stop: handlers may clean up in `finally`."""


def handle(
    handler: Function, delivery: Delivery, lost: Lost, middleware: Sequence[Middleware] = ()
) -> Ending:
    """Decode, call, and say how it ended. Never raises: the thread of a slot depends on it.

    The handler runs in a copy of the context, so that no task changes the variables of the next.
    """
    began = time.monotonic()
    try:
        job = make_job(delivery, lost)
    except BaseException as error:  # noqa: BLE001 - a body may be wrong in any way
        return unreadable(delivery, error)
    try:
        contextvars.copy_context().run(call, handler, job, middleware)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is the task's
        return replace(ending_of(delivery, error), seconds=time.monotonic() - began)
    return Ending(delivery, Verdict.DONE, seconds=time.monotonic() - began)


def call(handler: Function, job: Job[Any], middleware: Sequence[Middleware]) -> None:
    """Run the handler inside of its middleware."""
    job_here.set(job)
    if middleware:
        around_handler(middleware, lambda job: finished(handler(job)))(job)
    else:
        finished(handler(job))


def unreadable(delivery: Delivery, error: BaseException) -> Ending:
    """How a delivery ends whose body cannot be decoded: no other attempt would read it."""
    if isinstance(error, BadPayload):
        return Ending(delivery, Verdict.REJECTED, one_line(str(error)))
    return ending_of(delivery, error)


def ending_of(delivery: Delivery, error: BaseException) -> Ending:
    """What a handler says by raising `error`: an exception may be broken in any way."""
    kind = type(error)  # not isinstance, which asks the exception itself for its class
    if issubclass(kind, Reject):
        return Ending(delivery, Verdict.REJECTED, one_line(reason_of(error)))
    if issubclass(kind, RetryLater):
        delay = delay_of(error)
        if delay is not None:
            return Ending(delivery, Verdict.LATER, one_line(text_of(error)), delay=delay)
    signalled = is_signalled(error)
    told = described(error), traceback_of(error)
    return Ending(delivery, Verdict.FAILED, *told, signalled=signalled)


def is_signalled(error: BaseException) -> bool:
    """Whether a program that the handler started has died of a stop signal."""
    subprocess = sys.modules.get("subprocess")
    if subprocess is None:
        return False
    try:
        return any(
            issubclass(type(cause), subprocess.CalledProcessError)
            and cause.returncode in STOP_STATUSES
            for cause in causes_of(error)
        )
    except BaseException:  # noqa: BLE001 - even reading it may run code of the handler
        return False


def causes_of(error: BaseException) -> Iterator[Any]:
    """The exception and those that led to it, the last ones of many."""
    cause: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def delay_of(error: BaseException) -> float | None:
    """The delay of a RetryLater. None if it is no number: a subclass need not check it."""
    try:
        return seconds_of(getattr(error, "delay", None))
    except BaseException:  # noqa: BLE001 - even reading it may run code of the handler
        return None


def reason_of(error: BaseException) -> str:
    """The reason of a Reject, which may be no string."""
    try:
        return str(getattr(error, "reason"))  # noqa: B009 - a subclass need not have it
    except BaseException:  # noqa: BLE001
        return text_of(error)


def finished(result: object) -> object:
    """`result`, or what it results in, if it can be awaited. Raises TypeError for a generator,
    of which nothing has run."""
    if result is None:
        return None
    if inspect.isawaitable(result):
        return awaited(result)
    if inspect.isgenerator(result) or inspect.isasyncgen(result):
        raise TypeError(NOTHING_RAN)
    return result


NOTHING_RAN = "the handler has a yield: it returned a generator, and nothing of it has run"


def awaited(result: Awaitable[object]) -> object:
    """Run it on this thread's event loop, which is kept for the next coroutine."""
    import asyncio

    if not hasattr(loops, "runner"):
        loops.runner = asyncio.Runner()
    loop = loops.runner.get_loop()
    task = loop.create_task(value_or_error(result), context=contextvars.copy_context())
    try:
        value, error = run_to_end(loop, task)
    finally:
        if not task.done():  # or what is left of it would go on beside the next one
            close_loop()
    if error is not None:
        raise error
    return value


ValueOrError = tuple[object, BaseException | None]


async def value_or_error(result: Awaitable[object]) -> ValueOrError:
    """What it results in, or what it raises: that is for us to judge. A SystemExit would end the
    loop, and asyncio does not survive every exception that its task may have."""
    try:
        return await result, None
    except BaseException as error:  # noqa: BLE001
        return None, error


def run_to_end(loop: AbstractEventLoop, task: asyncio.Task[ValueOrError]) -> ValueOrError:
    """Run the loop until `task` is done, also if a task that an earlier handler has left on it ends
    the loop by a SystemExit or a KeyboardInterrupt."""
    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if isinstance(error, Interrupted):
                raise
            log.error("a background task of an earlier handler raised %s", described(error))


def close_loop() -> None:
    """This thread runs no more coroutines, or the next one on another loop. Never raises."""
    runner = vars(loops).pop("runner", None)
    if runner is None:
        return
    try:
        runner.close()
    except BaseException as error:  # noqa: BLE001 - the tasks on it were cancelled, and may object
        log.error("closing an event loop failed: %s", described(error))


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
    lines = plain(text, 10 * LONGEST_REASON).splitlines()
    first = next((line.strip() for line in lines if line.strip()), "no reason given")
    return first if len(first) <= LONGEST_REASON else first[: LONGEST_REASON - 1] + "…"


def plain(text: str, longest: int) -> str:
    """At most `longest` characters of `text` that can be encoded, and are a real string."""
    cut = str.__getitem__(text, slice(longest))
    return cut.encode("utf-8", "backslashreplace").decode()


def described(error: BaseException) -> str:
    """Type and text of an exception in one line."""
    text = text_of(error)
    return one_line(f"{kind_of(error)}: {text}" if text.strip() else kind_of(error))


def kind_of(error: BaseException) -> str:
    try:
        return plain(f"{type(error).__name__}", LONGEST_REASON)
    except BaseException:  # noqa: BLE001 - a metaclass may say anything
        return "an exception"


def text_of(error: BaseException) -> str:
    """`str(error)`, or where that raises, the arguments from which it would have been made."""
    try:
        return plain(str(error), 10 * LONGEST_REASON)
    except BaseException as broken:  # noqa: BLE001 - SDKs raise errors that cannot be shown
        return f"{arguments_of(error)} (its __str__ raised {kind_of(broken)})".strip()


def arguments_of(error: BaseException) -> str:
    try:
        return plain(", ".join(map(shown, error.args)), LONGEST_REASON)
    except BaseException:  # noqa: BLE001
        return ""


def shown(value: object) -> str:
    try:
        return repr(value)
    except BaseException:  # noqa: BLE001
        return f"<{type(value).__name__}>"


def traceback_of(error: BaseException) -> str:
    """From the handler on down: how it was called is our business, and asyncio's."""
    trace: TracebackType | None = None
    try:
        trace = error.__traceback__
        while trace is not None and is_machinery(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        text = "".join(traceback.format_exception(type(error), error, trace))
    except BaseException:  # noqa: BLE001 - notes, causes and contexts may be anything
        text = "".join(traceback.format_tb(trace)) + described(error)
    return without_middle(text)


def without_middle(text: str) -> str:
    """At most LONGEST_ERROR characters of `text`: where it begins, and how it ends."""
    if len(text) <= LONGEST_ERROR:
        return plain(text, LONGEST_ERROR)
    half = LONGEST_ERROR // 2 - 50
    left_out = len(text) - 2 * half
    return plain(f"{text[:half]}\n… {left_out} characters …\n{text[-half:]}", LONGEST_ERROR)


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
    module = load_file(Path(source), attribute) if is_file else load_module(source)
    warn_of_namesakes(folder_of(Path(source)) if is_file else current_folder(), before)
    found = find_attribute(module, source, attribute)
    function_of(found, name)
    return found  # type: ignore[return-value]  # or function_of would have refused it


def current_folder() -> str:
    """Its path; nothing if it was deleted, or may not be read."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def load_module(name: str) -> ModuleType:
    here = current_folder()
    make_importable(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            told = f"there is no module {error.name} in {here or 'a current folder'} or installed"
            raise HandlerNotFound(told) from error
        raise failed_import(name, error) from error
    except (Exception, SystemExit) as error:
        raise failed_import(name, error) from error


def load_file(path: Path, attribute: str) -> ModuleType:
    """The file as a module of its own name, which may import others from its folder.

    One that has the name of a module of the standard library gets another name: whatever else
    imports that module must get Python's.
    """
    if not path.is_file():
        raise HandlerNotFound(f"there is no file {path}")
    make_importable(folder_of(path))
    name = path.stem
    if name in sys.stdlib_module_names:
        name = f"{name}_handlers"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise HandlerNotFound(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        if "relative import" not in text_of(error):
            raise failed_import(str(path), error) from error
        raise part_of_package(path, attribute) from error
    except (Exception, SystemExit) as error:
        raise failed_import(str(path), error) from error
    return module


def folder_of(file: Path) -> str:
    return str(file.resolve().parent)


def make_importable(folder: str) -> None:
    """Modules in `folder`, if there is one, can be imported, after all that can be already."""
    if folder and folder not in sys.path:
        sys.path.append(folder)


def warn_of_namesakes(folder: str, before: set[str]) -> None:
    """Say which modules, imported since `before`, are not the ones that `folder` has, if there is
    one. If they are meant, PYTHONPATH puts the folder first, as it does for Python itself."""
    if not folder:
        return
    imported = {name: file_of(sys.modules[name]) for name in set(sys.modules) - before}
    for name, origin in sorted(imported.items()):
        if "." in name or not origin or Path(origin).is_relative_to(folder):
            continue
        for namesake in (Path(folder, f"{name}.py"), Path(folder, name, "__init__.py")):
            # The file with the handler may have that name, and was loaded under another.
            if namesake.is_file() and str(namesake) not in imported.values():
                log.warning(
                    "module %s is the installed one, and %s is not used; "
                    "if it is meant, rename it, or set PYTHONPATH=%s",
                    name,
                    namesake,
                    folder,
                )


def file_of(module: ModuleType) -> str:
    """The file that it was loaded from, without symbolic links; nothing if from none."""
    origin = getattr(module, "__file__", None)
    return str(Path(origin).resolve()) if isinstance(origin, str) else ""


def part_of_package(path: Path, attribute: str) -> HandlerNotFound:
    """For a file that imports from its own package, which it has only as a module of it."""
    file = path.resolve()
    root = file.parent.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    module = ".".join(file.relative_to(root).with_suffix("").parts)
    where = "" if root == Path.cwd() else f", in the folder {root}"
    return HandlerNotFound(
        f"{path} imports from its own package, so it is a module and not a file",
        hint=f"Name it {module}:{attribute}{where}",
    )


def failed_import(name: str, error: BaseException) -> HandlerNotFound:
    return HandlerNotFound(one_line(f"importing {name} failed: {described(error)}"))


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
