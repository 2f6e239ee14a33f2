"""The RabbitMQ transport: makes queues, publishers and consumers, and looks at queues.

What only some commands need is imported where it is needed: a process that sends one message would
else spend most of its time on a worker's half of the driver.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from workqueue.deadline import extend
from workqueue.errors import (
    AccessRefused,
    BrokerFailed,
    ConfigError,
    ConnectionLost,
    QueueMismatch,
    QueueNotFound,
    Unsupported,
    WorkqueueError,
)
from workqueue.forks import Lock
from workqueue.loggers import logger
from workqueue.message import Delivery
from workqueue.transport import DEAD_SUFFIX, Finding, QueueSpec, QueueStats, State
from workqueue.transports.copies import HOLDING_SUFFIX
from workqueue.transports.rabbitmq.address import Address, Source
from workqueue.transports.rabbitmq.delays import Delays
from workqueue.transports.rabbitmq.destinations import ensure_exchange
from workqueue.transports.rabbitmq.gate import check_not_migrating, open_gate
from workqueue.transports.rabbitmq.ladder import DUE, delivery_key
from workqueue.transports.rabbitmq.link import ChannelClosed, Link, translated
from workqueue.transports.rabbitmq.priorities import Priorities
from workqueue.transports.rabbitmq.publisher import RabbitMQPublisher
from workqueue.transports.rabbitmq.survey import (
    ACCESS_REFUSED,
    PRECONDITION_FAILED,
    Survey,
    check_type,
    count,
    declare,
    exchange_exists,
    exists,
    find_type,
    not_allowed,
    permission_in,
    survey,
)
from workqueue.transports.rabbitmq.topology import (
    EXCHANGE,
    PARAMETERS,
    dead_arguments,
    parameter,
    parse_refusal,
    queue_arguments,
)

if TYPE_CHECKING:
    from workqueue.transports.rabbitmq.bindings import Binding
    from workqueue.transports.rabbitmq.consumer import RabbitMQConsumer
    from workqueue.transports.rabbitmq.management import Management
    from workqueue.transports.rabbitmq.migration import Migration

log = logger("rabbitmq")

SETTLING = 1.2
"""Seconds after a quorum queue was made until it can be trusted. RabbitMQ writes the name of a new
one to disk only half a second after the last change to its list of them (ra's directory, saved
with `auto_save` 500): killed before that, it starts the queue afresh, and every message that it
had confirmed is gone. Tried on 4.0 and 4.3: all lost after 0.3 s, none after 1 s."""


def settle() -> None:
    """Return when a queue that was just made can be trusted. This wait is never cut short: it
    comes on top of the caller's time."""
    extend(SETTLING)
    time.sleep(SETTLING)


class RabbitMQTransport:
    """See `workqueue.transport.Transport`. Holds no connection: each question opens one.

    `url` may be a function that gives it: it is called at each connect (see `Source`).
    `management_url` is that of the management API, http[s]://user:password@host:15672.
    """

    reads_url_again = True  # see registry.open_transport

    def __init__(self, url: str | Callable[[], str], *, management_url: str | None = None) -> None:
        self.delays = Delays(settle)
        read = url if callable(url) else lambda: url
        self.source = Source(read, self.delays.forget)
        self.management = open_management(management_url, self.source)
        self.priorities = Priorities()
        self.warned: set[str] = set()
        self.warned_lock = Lock()

    @property
    def address(self) -> Address:
        """As the URL says it at the moment."""
        return self.source.now()

    @contextmanager
    def link(self, role: str, heartbeat: float = 0.0) -> Iterator[Link]:
        """A connection for a few questions; refusals that nobody expected become ours."""
        link = Link(self.address, role, heartbeat=heartbeat)
        try:
            with translated(), unexpected_refusals():
                yield link
        finally:
            link.close()

    # -- declare

    def declare(self, spec: QueueSpec, *, dry_run: bool = False) -> bool:
        with self.link("setup") as link:
            check_not_migrating(link, spec.name)
            made = not exists(link, spec.name)
            if spec.asks and not made:
                self.compare(link, spec)
            elif not made:
                check_type(spec.name, find_type(link, spec.name))
            if dry_run:
                return made
            # The dead-letter queue first: a broker that dead-letters into nowhere loses, or
            # holds the message back for three minutes.
            made_dead = self.ensure_dead(link, spec.name + DEAD_SUFFIX)
            if made:
                self.make(link, spec)
            self.bind(link, spec.name)
            self.bind(link, spec.name + DEAD_SUFFIX)
            open_gate(link, spec.name)
            if made_dead or (made and spec.type != "classic"):
                settle()
            return made

    def compare(self, link: Link, spec: QueueSpec) -> None:
        """Raises QueueMismatch with all that differs."""
        wanted = queue_arguments(spec)
        found = survey(link, spec.name, wanted)
        check_type(spec.name, found.type)
        if found.arguments is None or not found.durable or found.auto_delete:
            self.make(link, spec)  # it is refused, with the one difference that can be told
            return
        if spec.type is None and found.type in ("quorum", "classic"):
            existing_type: Any = found.type
            wanted = queue_arguments(replace(spec, type=existing_type))
        if different := differences(wanted, found.arguments):
            raise QueueMismatch(spec.name, different)

    def make(self, link: Link, spec: QueueSpec) -> None:
        try:
            declare(link, spec.name, queue_arguments(spec))
        except ChannelClosed as closed:
            if closed.code == ACCESS_REFUSED:
                raise may_not_make(link, spec.name, closed) from closed
            differs = parse_refusal(closed.text) if closed.code == PRECONDITION_FAILED else None
            if differs is None:
                raise
            name, wanted = parameter(differs.argument, differs.wanted)
            _, existing = parameter(differs.argument, differs.existing)
            raise QueueMismatch(spec.name, {name: (wanted, existing)}) from closed

    def ensure_dead(self, link: Link, name: str) -> bool:
        """Whether this call made it. A user who may not know takes it that it is there: a dead
        letter that finds no queue comes back."""
        try:
            if exists(link, name):
                return False
        except AccessRefused:
            return False
        try:
            declare(link, name, dead_arguments())
        except ChannelClosed as closed:
            if closed.code == ACCESS_REFUSED:
                raise may_not_make(link, name, closed) from closed
            if closed.code != PRECONDITION_FAILED or parse_refusal(closed.text) is None:
                raise
            return False  # somebody else made it meanwhile, in another way
        return True

    def bind(self, link: Link, queue: str, target: str | None = None) -> None:
        """What is sent to `queue` goes to `target`, by default itself.

        A user who may not bind takes it that others have: a sender notices if they have not.
        """
        ensure_exchange(link)
        channel = link.channel()
        try:
            channel.queue_bind(target or queue, EXCHANGE, queue)
        except ChannelClosed as closed:
            if closed.code != ACCESS_REFUSED or target is not None:
                raise
            return
        channel.close()

    # -- send and work

    def publisher(self) -> RabbitMQPublisher:
        with unexpected_refusals():
            return RabbitMQPublisher(self.address, self.delays, self.priorities)

    def consumer(self, queue: str, prefetch: int) -> RabbitMQConsumer:
        from workqueue.transports.rabbitmq.consumer import RabbitMQConsumer

        address = self.address
        link = Link(address, f"worker of {queue}", heartbeat=address.heartbeat)
        try:
            with translated(), unexpected_refusals():
                check_not_migrating(link, queue)
                found = survey(link, queue)
                check_type(queue, found.type)
                self.warn_once(found, link.version)
                return RabbitMQConsumer(
                    link,
                    found,
                    prefetch,
                    # The default exchange, so that a queue that is fenced off from senders still
                    # takes the retries of its own messages.
                    lambda: RabbitMQPublisher(
                        self.address,
                        self.delays,
                        exchange="",
                        role=f"copies of {queue}",
                        whole=False,
                    ),
                    lambda: self.repair(queue),
                )
        except BaseException:
            link.close()
            raise

    def warn_once(self, found: Survey, version: str) -> None:
        warning = found.warning(version)
        if warning and not found.queue.endswith(DEAD_SUFFIX):  # dead letters are no long tasks
            self.say_once(warning)

    def say_once(self, warning: str) -> None:
        with self.warned_lock:
            if warning in self.warned:
                return
            self.warned.add(warning)
        log.warning("%s", warning)

    def repair(self, queue: str) -> None:
        """What a dead letter of `queue` needs is made again where it is missing, at once; what a
        retry needs, before the next one."""
        with self.link("setup") as link:
            if self.ensure_dead(link, queue + DEAD_SUFFIX):
                settle()
        self.delays.forget()

    # -- look and mend

    def stats(self, queue: str) -> QueueStats:
        with self.link("status") as link:
            ready, consumers = count(link, queue)
            try:
                dead: int | None = count(link, queue + DEAD_SUFFIX)[0]
            except QueueNotFound:
                dead = 0
            except AccessRefused:
                dead = None
        return self.completed(queue, QueueStats(ready=ready, dead=dead, consumers=consumers))

    def completed(self, queue: str, stats: QueueStats) -> QueueStats:
        """With what the management API tells, where there is one and it answers."""
        if self.management is None:
            return stats
        try:
            return self.management.complete(queue, stats)
        except ConnectionLost as error:
            self.say_once(f"{error}: what is in flight or delayed is not known")
            return stats

    def queues(self) -> list[str]:
        if self.management is None:
            raise Unsupported(
                "AMQP cannot list queues",
                hint="Name the queues, or give --management-url http://user:password@host:15672",
            )
        return self.management.queues()

    def peek(self, queue: str, limit: int, state: State = "ready") -> list[Delivery]:
        """On queues that count what is lent and taken back (classic ones by us, quorum queues up
        to 4.2 by the broker), this counts as well."""
        if state == "delayed":
            raise Unsupported(
                "RabbitMQ keeps what is delayed in queues that all share, and cannot show one's own"
            )
        from workqueue.transports.rabbitmq.consumer import lend_for_a_look

        with self.link("peek") as link:
            try:
                ready, _ = count(link, queue)
                check_type(queue, find_type(link, queue))
                if not ready or limit <= 0:
                    return []
                wanted = min(limit, ready)
                with translated():
                    return lend_for_a_look(link, queue, wanted, lambda: count(link, queue)[0])
            except BrokerFailed as failure:
                if limit > 1:
                    failure.command = f"workqueue peek {shlex.quote(queue)} -n {limit // 2}"
                raise

    def migrate(self, spec: QueueSpec, say: Callable[[str], None], *, force: bool = False) -> int:
        migration = None
        try:
            with self.link("migrate", heartbeat=self.address.heartbeat) as link:
                migration = self.migration(link, spec, say, force=force)
                if not migration.unfinished and not exists(link, spec.name):
                    raise QueueNotFound(spec.name)
                self.delays.forget()
                return migration.run()
        except (Exception, KeyboardInterrupt) as error:
            if migration is not None and migration.begun:
                self.undo_migration(spec, say, error)
            raise

    def undo_migration(
        self, spec: QueueSpec, say: Callable[[str], None], error: BaseException
    ) -> None:
        """Over a connection of its own: the failed one may be gone, or whoever listens to `say`."""

        def try_to_say(what: str) -> None:
            with suppress(Exception):
                say(what)

        try:
            with self.link("migrate", heartbeat=self.address.heartbeat) as link:
                self.migration(link, spec, try_to_say, force=True).undo()
        except WorkqueueError as failed:
            if str(failed) != str(error):
                try_to_say(f"the migration of {spec.name} was not undone: {failed}")
            if isinstance(error, WorkqueueError) and not error.hint:
                error.hint = "Nothing is lost: call this again, and it goes on where it stopped."

    def migration(
        self, link: Link, spec: QueueSpec, say: Callable[[str], None], *, force: bool
    ) -> Migration:
        from workqueue.transports.rabbitmq.migration import Migration, Steps

        name = spec.name
        guess = queue_arguments(spec)
        before = None
        if exists(link, name):
            found = survey(link, name, guess)
            check_type(name, found.type)
            before = found.arguments
        steps = Steps(
            differs=lambda: self.differs(link, spec),
            make=lambda: self.make(link, spec),
            remake=lambda: self.remake(link, name, before),
            make_dead=lambda: self.make_dead(link, name),
            route=lambda target: self.route(link, name, target),
            unroute=lambda target: self.unroute(link, name, target),
            settle=settle,
            knows_bindings=self.management is not None,
        )
        return Migration(link, name, steps, say, force=force, user=self.address.user)

    def remake(self, link: Link, queue: str, arguments: dict[str, Any] | None) -> None:
        """As it was, where that could be found out."""
        if arguments is not None:
            declare(link, queue, arguments)
            settle()

    def make_dead(self, link: Link, queue: str) -> None:
        if self.ensure_dead(link, queue + DEAD_SUFFIX):
            self.bind(link, queue + DEAD_SUFFIX)
            settle()

    def differs(self, link: Link, spec: QueueSpec) -> bool:
        try:
            self.compare(link, spec)
        except QueueMismatch:
            return True
        return False

    def route(self, link: Link, queue: str, target: str) -> None:
        """What is sent to `queue`, or is due for it, goes to `target` from now on."""
        self.bind(link, queue, target)
        channel = link.channel()
        if self.delays_are_known(link):
            channel.queue_bind(target, DUE, delivery_key(queue))
        channel.close()
        for binding in self.bindings_of_others(link, queue):
            binding.bind(link, target)

    def unroute(self, link: Link, queue: str, target: str) -> None:
        """And not any more. A binding or a queue that is not there is no error to RabbitMQ."""
        channel = link.channel()
        channel.queue_unbind(target, EXCHANGE, queue)
        if self.delays_are_known(link):
            channel.queue_unbind(target, DUE, delivery_key(queue))
        channel.close()
        for binding in self.bindings_of_others(link, queue):
            binding.unbind(link, target)

    def bindings_of_others(self, link: Link, queue: str) -> list[Binding]:
        """As far as the management API is there to tell them."""
        from workqueue.transports.rabbitmq.bindings import bindings_of_others

        if self.management is None:
            return []
        return bindings_of_others(link, self.management, queue, queue + HOLDING_SUFFIX)

    def delays_are_known(self, link: Link) -> bool:
        """Whether anything was ever delayed in this virtual host."""
        return exchange_exists(link, DUE)

    def purge(self, queue: str) -> int:
        with self.link("purge") as link:
            if not exists(link, queue):
                raise QueueNotFound(queue)
            check_type(queue, find_type(link, queue))
            return int(link.channel().queue_purge(queue))

    def delete(self, queue: str) -> None:
        from workqueue.transports.rabbitmq.migration import close_gate, drop_stale_marker

        with self.link("delete") as link:
            drop_stale_marker(link, queue)  # first: without its gate the queue would be migrating
            if exists(link, queue):
                check_type(queue, find_type(link, queue))
                link.channel().queue_delete(queue)
                close_gate(link, queue)

    def examine(self, queues: Sequence[str], task_timeout: float | None) -> Iterator[Finding]:
        from workqueue.transports.rabbitmq.examination import Examination

        return Examination(self.address, self.management).run(queues, task_timeout)

    def close(self) -> None:
        """Nothing is held."""


def open_management(url: str | None, source: Source) -> Management | None:
    """The management API at `url`, if there is one."""
    if not url:
        return None
    from workqueue.transports.rabbitmq.management import Management

    return Management(url, source)


def may_not_make(link: Link, queue: str, closed: ChannelClosed) -> AccessRefused:
    """A queue that dead-letters needs more than the permission to configure it."""
    needed = permission_in(closed.text, "configure", queue)
    return not_allowed(link, f"queue {queue} does not exist", needed)


def differences(
    wanted: dict[str, Any], existing: dict[str, Any]
) -> dict[str, tuple[object, object]]:
    """What differs, by the names our users know; only what was asked for, if that explains it."""
    names = [name for name in {**wanted, **existing} if wanted.get(name) != existing.get(name)]
    asked = [name for name in names if name in PARAMETERS]
    different = {}
    for name in asked or names:
        told, value = parameter(name, wanted.get(name))
        different[told] = (value, parameter(name, existing.get(name))[1])
    return different


@contextmanager
def unexpected_refusals() -> Iterator[None]:
    """A channel that the broker closed for a reason no one took care of."""
    try:
        yield
    except ChannelClosed as closed:
        if closed.code == ACCESS_REFUSED:
            raise AccessRefused(f"RabbitMQ refuses: {closed.text}") from closed
        if closed.code == PRECONDITION_FAILED:
            raise ConfigError(f"RabbitMQ refuses: {closed.text}") from closed
        raise ConnectionLost(f"RabbitMQ closed the channel: {closed}") from closed
