"""workqueue work: with a Python function, or with any command."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer

from workqueue.cli.init import leave_process_1
from workqueue.cli.options import Session, command, duration
from workqueue.cli.output import print_json, say, show_log
from workqueue.cli.plain import PlainCommand
from workqueue.middleware import check_none_wraps, load_middleware
from workqueue.retry import RetryPolicy
from workqueue.runners.runner import Runner
from workqueue.worker import Tally, Worker

SECRETS = ("WORKQUEUE_URL", "WORKQUEUE_URL_FILE", "WORKQUEUE_MANAGEMENT_URL")
"""Not for the environment of commands, unless asked for: they hold passwords."""

UNPLACED = 69
"""Exit code of a worker that left tasks behind whose copies the broker did not take: as for a
broker that cannot be reached, another run may succeed."""


class WorkCommand(PlainCommand):
    """Insists on -- before the command of --exec: without it, its options would be taken for
    ours."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--exec" in args and "--" not in args and not {"-h", "--help"} & set(args):
            say("workqueue: write -- before the command, so that its options are its own")
            say(f"  Try: workqueue work {shlex.join(self.with_dashes(args))}")
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def with_dashes(self, args: list[str]) -> list[str]:
        """The same line, with -- before the first word after the queue that is no option's."""
        takes_value = {
            option
            for parameter in self.params
            if parameter.param_type_name == "option" and not getattr(parameter, "is_flag", False)
            for option in parameter.opts
        }
        words = 0
        skip = False
        for position, argument in enumerate(args):
            if skip:
                skip = False
            elif argument in takes_value:
                skip = True
            elif not argument.startswith("-"):
                words += 1
                if words == 2:
                    return [*args[:position], "--", *args[position:]]
        return [*args, "--", "COMMAND"]


def prefetch_count(text: str) -> int | None:
    """A number, or None for "auto"."""
    if str(text) == "auto":
        return None
    if not str(text).isdigit():
        raise typer.BadParameter(f"{text!r}: a number, 0 for unlimited, or auto")
    return int(text)


USUAL = RetryPolicy()


@dataclass(frozen=True)
class Backoff:
    """The first delay and the longest, in seconds."""

    first: float
    longest: float


def backoff_range(text: str) -> Backoff:
    """From "1s..10m"; one time alone is both."""
    first, dots, longest = str(text).partition("..")
    return Backoff(duration(first), duration(longest if dots else first))


def policy_of(max_attempts: int | None, backoff: Backoff | None) -> RetryPolicy | None:
    """None if neither is said: then the handler's queue may say."""
    if max_attempts is None and backoff is None:
        return None
    backoff = backoff or Backoff(USUAL.first, USUAL.longest)
    attempts = USUAL.max_attempts if max_attempts is None else max_attempts
    return RetryPolicy(max_attempts=attempts, first=backoff.first, longest=backoff.longest)


def add_to(app: typer.Typer) -> None:
    command(app, panel="Run", cls=WorkCommand)(work)


def work(
    session: Session,
    queue: Annotated[str, typer.Argument(metavar="QUEUE", help="It is made if it is not there.")],
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="HANDLER|-- CMD ARG",
            help="tasks:handle or tasks.py:handle; with --exec a command and its arguments.",
        ),
    ] = None,
    exec_: Annotated[
        bool,
        typer.Option("--exec", help="Run a command for each message, the body on its stdin."),
    ] = False,
    concurrency: Annotated[
        int,
        typer.Option("-c", "--concurrency", min=1, envvar="WORKQUEUE_CONCURRENCY", help="Slots."),
    ] = 1,
    in_: Annotated[
        Literal["process", "thread"],
        typer.Option("--in", envvar="WORKQUEUE_IN", help="Where a HANDLER runs."),
    ] = "process",
    prefetch: Annotated[
        int | None,
        typer.Option(
            parser=prefetch_count,
            metavar="N|auto",
            envvar="WORKQUEUE_PREFETCH",
            help="Messages held at most, running or not. auto: one per slot, with short tasks up "
            "to 50 ms of them. 0: unlimited.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            parser=duration,
            metavar="TIME",
            envvar="WORKQUEUE_TASK_TIMEOUT",
            help="A task that runs longer is stopped, and has failed.",
        ),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option(
            min=1,
            envvar="WORKQUEUE_MAX_ATTEMPTS",
            help="Failures until a task is a dead letter: 5, unless its queue says otherwise.",
        ),
    ] = None,
    backoff: Annotated[
        Backoff | None,
        typer.Option(
            parser=backoff_range,
            metavar="TIME..TIME",
            envvar="WORKQUEUE_BACKOFF",
            help="Before the second attempt, and at most; in between it doubles: 1s..10m, unless "
            "its queue says otherwise.",
        ),
    ] = None,
    max_messages: Annotated[
        int | None,
        typer.Option("-n", "--max-messages", min=1, help="Leave after this many."),
    ] = None,
    until_empty: Annotated[
        bool,
        typer.Option(
            "--until-empty",
            help="Leave when nothing has come for a second. Waits for retries, but two minutes at "
            "most for what handlers only put off.",
        ),
    ] = False,
    grace: Annotated[
        float,
        typer.Option(
            parser=duration,
            metavar="TIME",
            envvar="WORKQUEUE_GRACE",
            help="How long running tasks may go on after the first SIGTERM or Ctrl-C.",
        ),
    ] = 30.0,
    ack: Annotated[
        Literal["late", "early"],
        typer.Option(
            "--ack", envvar="WORKQUEUE_ACK", help="early: at most once, lost if a worker dies."
        ),
    ] = "late",
    on_lost: Annotated[
        Literal["stop", "finish"],
        typer.Option(
            "--on-lost",
            envvar="WORKQUEUE_ON_LOST",
            help="What becomes of a running task that the broker gave to another worker.",
        ),
    ] = "stop",
    pass_url: Annotated[
        bool, typer.Option("--pass-url", help="Let the command see WORKQUEUE_URL.")
    ] = False,
    middleware: Annotated[
        list[str] | None,
        typer.Option("--middleware", metavar="NAME", help="A plugin around each task; repeat it."),
    ] = None,
    health_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            envvar="WORKQUEUE_HEALTH_PORT",
            help="Answer /alive, /ready and /drained over HTTP.",
        ),
    ] = None,
    health_address: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            envvar="WORKQUEUE_HEALTH_ADDRESS",
            help="Where the health port listens. 0.0.0.0 for probes from outside, as Kubernetes'.",
        ),
    ] = "127.0.0.1",
    reload: Annotated[
        bool, typer.Option("--reload", help="Restart the children when the handler's files change.")
    ] = False,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", envvar="WORKQUEUE_LOG_FORMAT")
    ] = "text",
) -> None:
    """Work messages from QUEUE with a Python function or any command.

    A message is acknowledged when its task is done. The first SIGTERM or Ctrl-C finishes what runs
    and hands back the rest; the second hands everything back now.

    A task that failed is tried again after a while, and set aside after its last attempt. With
    --exec, the command's exit status tells: 0 done, 65 to the dead letters at once, 75 again
    however often that was, any other a failed attempt. It sees WORKQUEUE_ID, WORKQUEUE_QUEUE,
    WORKQUEUE_ATTEMPT and WORKQUEUE_HEADERS.
    """
    words = what or []
    names = middleware or []
    if exec_ and not words:
        raise typer.BadParameter("--exec needs a command after --")
    if not exec_ and len(words) != 1:
        raise typer.BadParameter("one HANDLER, such as tasks:handle, or --exec -- COMMAND")
    if reload and (exec_ or in_ == "thread"):
        raise typer.BadParameter("--reload restarts child processes: it needs a HANDLER in them")
    leave_process_1()
    # Each of these is imported where it is used: half of the time that a worker takes to start,
    # and what it weighs for as long as it lives, is what it imports.
    finish_lost = on_lost == "finish"
    runner: Runner | Literal["thread"] = "thread"
    if exec_:
        from workqueue.runners.command import CommandRunner

        runner = CommandRunner(words, finish_lost=finish_lost, withheld=() if pass_url else SECRETS)
    elif in_ == "process":
        from workqueue.runners.process import ProcessRunner

        runner = ProcessRunner(words[0], finish_lost=finish_lost, reload=reload, middleware=names)

    with session.connect() as broker:
        show_log(log_format=log_format, quiet=session.quiet, verbose=session.verbose)
        plugins = load_middleware(names)
        if exec_:
            check_none_wraps(plugins, "commands")
        health = None
        if health_port is not None:
            from workqueue.health import Health

            health = Health(health_port, health_address)
            plugins.append(health)
        worker = Worker(
            broker.queue(queue),
            words[0],
            runner=runner,
            concurrency=concurrency,
            prefetch=prefetch,
            retry=policy_of(max_attempts, backoff),
            timeout=timeout,
            grace=grace,
            ack=ack,
            middleware=plugins,
        )
        introduction = (
            f"working {queue} with {shlex.join(words)}, {concurrency} at once; "
            "Ctrl-C to finish what runs"
        )

        def introduce() -> None:
            session.say(introduction)
            if health is not None:
                session.say(f"answering /alive, /ready and /drained at {health.url}")

        tally = worker.run(until_empty=until_empty, max_messages=max_messages, ready=introduce)
    report(session, queue, tally)
    if tally.forced:
        sys.exit(128 + tally.forced)
    if tally.unplaced:
        sys.exit(UNPLACED)


def report(session: Session, queue: str, tally: Tally) -> None:
    if session.json:
        record = asdict(tally)
        del record["forced"], record["unplaced"]  # the exit code tells of both
        print_json({"queue": queue, **record})
    told = f"{tally.done} done, {tally.retried} retried, {tally.dead} dead"
    if tally.handed_back:
        told += f", {tally.handed_back} handed back"
    if tally.lost:
        told += f", {tally.lost} lost to other workers"
    if tally.unplaced:
        told += f"; {tally.unplaced} of them run again: the broker did not take their copies"
    session.say(f"stopped: {told}")
