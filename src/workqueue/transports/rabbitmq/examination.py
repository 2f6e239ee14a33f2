"""Looks a broker over for `workqueue doctor`: asks, and leaves the judging to `verdicts`.

Nothing is made or changed. Where the management API is given, it is asked for queues and their
arguments; elsewhere they are told from refusals (see `survey`), of queues that are there.
"""

from __future__ import annotations

import shlex
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from workqueue.errors import (
    AccessRefused,
    ConfigError,
    ConnectionLost,
    QueueNotFound,
    WorkqueueError,
)
from workqueue.transport import DEAD_SUFFIX, Finding, check_name
from workqueue.transports.rabbitmq.address import Address
from workqueue.transports.rabbitmq.bindings import others
from workqueue.transports.rabbitmq.delays import is_there
from workqueue.transports.rabbitmq.dial import UnusableFile
from workqueue.transports.rabbitmq.gate import MARKER_SUFFIX, is_migrating
from workqueue.transports.rabbitmq.ladder import (
    DUE,
    LEVELS,
    PREFIX,
    UNDELIVERABLE,
    Binding,
    Level,
    Part,
    is_level,
    parts,
)
from workqueue.transports.rabbitmq.link import ChannelClosed, Link, translated
from workqueue.transports.rabbitmq.management import Management
from workqueue.transports.rabbitmq.survey import Survey, count, exists, survey
from workqueue.transports.rabbitmq.topology import EXCHANGE, dead_arguments
from workqueue.transports.rabbitmq.verdicts import (
    POLICIES,
    judge_alternates,
    judge_certificate,
    judge_clock,
    judge_dead,
    judge_ladder,
    judge_nodes,
    judge_permissions,
    judge_queue,
    judge_timeout,
    judge_undeliverable,
    judge_version,
    policy_of,
)

MOST_ABSENT = 6
"""Parts of the ladder that may be missing, one after the other, until higher ones are not asked
for: three levels."""

UNKNOWN = "not known without the management API"
MANAGEMENT_OPTION = "--management-url http://user:password@host:15672"
ASK = f"workqueue doctor {MANAGEMENT_OPTION}"


@dataclass(frozen=True, slots=True)
class Known:
    """What the management API says of a queue."""

    arguments: dict[str, Any]
    policy: dict[str, Any]
    policy_name: str
    durable: bool
    passing: bool
    """Deleted, or another client's alone, when that goes."""


class Examination:
    """One look at one broker."""

    def __init__(self, address: Address, management: Management | None) -> None:
        self.address = address
        self.management = management
        self.known: dict[str, Known] | None = None

    def run(self, queues: Sequence[str], task_timeout: float | None) -> Iterator[Finding]:
        link = None
        reachable = []
        for host, port in self.address.hosts:
            finding, opened = self.reach(host, port)
            reachable.append(finding)
            if opened is not None and link is None:
                link = opened
            elif opened is not None:
                opened.close()
        yield from merged(reachable, reached=link is not None)
        if link is None:
            return
        try:
            yield judge_version(link.version, link.abilities.version)
            yield self.tls(link)
            yield from self.manage()
            names = list(queues) or self.listed()
            yield from self.permissions(names)
            yield from self.delays(link, names)
            yield from self.each_queue(link, names, task_timeout)
        finally:
            link.close()

    # -- the broker

    def reach(self, host: str, port: int) -> tuple[Finding, Link | None]:
        where = f"{host}:{port}"
        began = time.monotonic()
        try:
            link = Link(replace(self.address, hosts=((host, port),)), "doctor")
        except (ConfigError, UnusableFile) as error:
            told, command = str(error), error.command
            return Finding(state="fail", check="tls", found=told, command=command), None
        except AccessRefused as error:
            if isinstance(error.__cause__, ssl.SSLError):
                ca = ["-CAfile", str(self.address.cacertfile)] if self.address.cacertfile else []
                name = self.address.certified_name(host)
                options = ["-connect", where, "-servername", name, *ca]
                command = f"openssl s_client {shlex.join(options)} </dev/null"
                return Finding(state="fail", check="tls", found=str(error), command=command), None
            command = "export WORKQUEUE_URL=amqp://user:password@host/vhost"
            return Finding(state="fail", check="login", found=str(error), command=command), None
        except ConnectionLost as error:
            command = f"nc -vz {shlex.quote(host)} {port}"
            return Finding(state="fail", check="reach", found=str(error), command=command), None
        took = (time.monotonic() - began) * 1000
        found = (
            f"{where} lets {self.address.user} into virtual host {self.address.vhost} "
            f"in {took:.0f} ms"
        )
        return Finding(state="ok", check="login", found=found), link

    def tls(self, link: Link) -> Finding:
        sock = link.wire.socket
        if isinstance(sock, ssl.SSLSocket):
            host, port = sock.getpeername()[:2]
            until = str((sock.getpeercert() or {}).get("notAfter", ""))
            return judge_certificate(until, datetime.now(UTC), f"{host}:{port}")
        local = all(is_local(host) for host, _ in self.address.hosts)
        if local:
            return Finding(state="ok", check="tls", found="off, and the broker is on this machine")
        return Finding(
            state="warn",
            check="tls",
            found="off: passwords and messages can be read on the way",
            command="write amqps:// in the URL, and see https://www.rabbitmq.com/docs/ssl",
        )

    def manage(self) -> Iterator[Finding]:
        """What only the management API knows about the whole broker."""
        if self.management is None:
            for check in ("alarms", "policies", "clock"):
                yield Finding(state="warn", check=check, found=UNKNOWN, command=ASK)
            return
        try:
            date = self.management.date()
            now = time.time()
            nodes, alarms = self.management.objects("nodes"), self.management.alarms()
            self.known = self.list_queues()
        except WorkqueueError as error:
            yield Finding(state="fail", check="management", found=str(error), command=ASK)
            return
        yield judge_clock(date, now)
        yield from judge_nodes(nodes, alarms)
        yield from self.ladder()
        try:
            yield from self.alternates()
        except WorkqueueError as error:
            yield Finding(state="warn", check="exchanges", found=f"not known: {error}", command=ASK)

    def list_queues(self) -> dict[str, Known]:
        assert self.management is not None
        columns = "name,type,durable,auto_delete,exclusive,arguments,effective_policy_definition"
        rows = self.management.objects(f"queues/{self.management.vhost}?columns={columns}")
        rules = self.list_policies()
        found = {}
        for row in rows:
            queue, type_ = row.get("name", ""), row.get("type", "classic")
            # Sampled, some seconds old; but all that those may know who may not see policies.
            policy, name = dict(row.get("effective_policy_definition") or {}), "that applies"
            if rules is not None:
                policy, name = policy_of(queue, type_, *rules)
            found[queue] = Known(
                arguments={"x-queue-type": type_, **row.get("arguments", {})},
                policy=policy,
                policy_name=name,
                durable=bool(row.get("durable", True)),
                passing=bool(row.get("auto_delete") or row.get("exclusive")),
            )
        return found

    def list_policies(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]] | None:
        """Users' and operators'; None if this user may not know."""
        assert self.management is not None
        vhost = self.management.vhost
        try:
            return (
                self.management.objects(f"policies/{vhost}"),
                self.management.objects(f"operator-policies/{vhost}"),
            )
        except AccessRefused:
            return None

    def ladder(self) -> Iterator[Finding]:
        """Policies that change the queues in which messages wait for their time."""
        harmful = {"expires", "message-ttl", "max-length", "max-length-bytes", "delivery-limit"}
        well = True
        for name, known in (self.known or {}).items():
            touched = harmful & known.policy.keys()
            if is_level(name) and touched:
                well = False
                yield Finding(
                    state="fail",
                    check="policies",
                    queue=name,
                    found=f"policy {known.policy_name} sets {', '.join(sorted(touched))}, "
                    "and delayed messages wait here",
                    command=POLICIES,
                )
        if well:
            yield Finding(state="ok", check="policies", found="none changes how delays wait")

    def alternates(self) -> Iterator[Finding]:
        assert self.management is not None
        rules = self.list_policies()
        exchanges = self.management.objects(f"exchanges/{self.management.vhost}")
        yield from judge_alternates(exchanges, rules[0] if rules else None)

    def delays(self, link: Link, names: list[str]) -> Iterator[Finding]:
        """Whether all parts of the ladder are there. Bindings only the management API tells."""
        bindings = None
        try:
            with translated():
                if self.management is not None and self.known is not None:
                    there = self.list_parts()
                    bindings = self.list_bindings()
                else:
                    there = find_parts(link)
                yield from judge_ladder(there, bindings, names[0] if names else "QUEUE")
                if any(part.name == UNDELIVERABLE and part.is_queue for part in there):
                    yield from judge_undeliverable(count(link, UNDELIVERABLE)[0])
        except (WorkqueueError, ChannelClosed) as error:
            yield Finding(state="warn", check="delays", found=f"not known: {error}", command=ASK)

    def list_parts(self) -> list[Part]:
        assert self.management is not None
        rows = self.management.objects(f"exchanges/{self.management.vhost}?columns=name")
        exchanges = [Part(row.get("name", ""), is_queue=False) for row in rows]
        return exchanges + [Part(name, is_queue=True) for name in self.known or {}]

    def list_bindings(self) -> set[Binding]:
        assert self.management is not None
        return {
            Binding(
                row.get("source", ""),
                row.get("destination", ""),
                row.get("routing_key", ""),
                row.get("destination_type") == "queue",
            )
            for row in self.management.objects(f"bindings/{self.management.vhost}")
        }

    def permissions(self, queues: list[str]) -> Iterator[Finding]:
        user = self.address.user
        if self.management is None:
            yield Finding(state="warn", check="permissions", found=UNKNOWN, command=ASK)
            return
        try:
            rules = self.management.objects(f"users/{quote(user, safe='')}/permissions")
        except WorkqueueError:
            yield Finding(
                state="warn",
                check="permissions",
                found="not known: only an administrator of the management API may ask",
                command=f"rabbitmqctl list_user_permissions {shlex.quote(user)}",
            )
            return
        mine = [rule for rule in rules if rule.get("vhost") == self.address.vhost]
        yield from judge_permissions(mine[0] if mine else {}, queues, user)

    # -- its queues

    def listed(self) -> list[str]:
        """Ours: those with a dead-letter queue beside them."""
        known = self.known or {}
        return sorted(name for name in known if name + DEAD_SUFFIX in known)

    def each_queue(
        self, link: Link, names: list[str], task_timeout: float | None
    ) -> Iterator[Finding]:
        if not names and self.known is None:
            yield Finding(
                state="warn",
                check="queues",
                found="none was named, and AMQP cannot list them",
                command="workqueue doctor QUEUE, or --management-url URL",
            )
            return
        for name in names:
            check_name(name)
            try:
                with translated():
                    yield from self.one_queue(link, name, task_timeout)
            except (WorkqueueError, ChannelClosed) as error:
                yield Finding(state="fail", check="queue", queue=name, found=str(error))

    def one_queue(self, link: Link, name: str, task_timeout: float | None) -> Iterator[Finding]:
        try:
            found = self.look(link, name, None)
        except QueueNotFound:
            yield Finding(
                state="warn",
                check="queue",
                queue=name,
                found="does not exist; the first send or worker makes it",
                command=f"workqueue declare {shlex.quote(name)}",
            )
            return
        if is_migrating(link, name):
            yield Finding(
                state="warn",
                check="queue",
                queue=name,
                found=f"is being migrated, or a migration was interrupted ({name}{MARKER_SUFFIX})",
                command=f"workqueue migrate {shlex.quote(name)}",
            )
        known = (self.known or {}).get(name)
        policy = known.policy if known else {}
        if found.arguments is None:
            yield Finding(
                state="warn",
                check="queue",
                queue=name,
                found=f"its arguments are {UNKNOWN}",
                command=ASK,
            )
        else:
            for finding in (*self.passing(name, known), *judge_queue(found, policy)):
                yield self.with_management(finding)
        yield from self.bindings(name)
        yield judge_timeout(found, policy if known else None, task_timeout)
        if not name.endswith(DEAD_SUFFIX):
            yield from self.dead(link, name, found)

    def look(self, link: Link, name: str, guess: dict[str, Any] | None) -> Survey:
        """Raises QueueNotFound."""
        if self.known is None:
            return survey(link, name, guess)
        if name not in self.known:
            raise QueueNotFound(name)
        return Survey(name, link.abilities, self.known[name].arguments)

    def passing(self, name: str, known: Known | None) -> Iterator[Finding]:
        if known and (known.passing or not known.durable):
            yield Finding(
                state="fail",
                check="queue",
                queue=name,
                found="it does not outlive its clients"
                if known.passing
                else "it is not durable: a restart of the broker deletes it with all that waits",
                command=f"workqueue migrate {shlex.quote(name)} --type quorum",
            )

    def with_management(self, finding: Finding) -> Finding:
        """Only with the management API can a migration keep the bindings that others made."""
        if self.management is None and finding.command.startswith("workqueue migrate "):
            return replace(finding, command=f"{finding.command} {MANAGEMENT_OPTION}")
        return finding

    def bindings(self, name: str) -> Iterator[Finding]:
        """Our senders reach a queue through our exchange."""
        if self.management is None or self.known is None:
            return
        path = f"queues/{self.management.vhost}/{quote(name, safe='')}/bindings"
        listed = self.management.objects(path)
        if sources := sorted({binding.source for binding in others(listed, name)}):
            yield Finding(
                state="ok",
                check="queue",
                queue=name,
                found=f"others bound it to {', '.join(sources)}, and migrate binds it again",
            )
        bound = {(row.get("source"), row.get("routing_key")) for row in listed}
        if (EXCHANGE, name) not in bound:
            yield Finding(
                state="warn",
                check="queue",
                queue=name,
                found=f"not bound to the exchange {EXCHANGE}, through which workqueue sends",
                command=f"workqueue declare {shlex.quote(name)}",
            )

    def dead(self, link: Link, name: str, work: Survey) -> Iterator[Finding]:
        dead = name + DEAD_SUFFIX
        try:
            if self.known is None and not exists(link, dead):
                raise QueueNotFound(dead)
            found = self.look(link, dead, dead_arguments())
        except QueueNotFound:
            safe = (work.arguments or {}).get("x-dead-letter-strategy") == "at-least-once"
            yield Finding(
                state="fail",
                check="dead letters",
                queue=dead,
                found="does not exist: what the broker sets aside is "
                + ("held up" if safe else "lost"),
                command=f"workqueue declare {shlex.quote(name)}",
            )
            return
        known = (self.known or {}).get(dead)
        yield from self.passing(dead, known)
        if found.arguments is None:
            told = f"its arguments are {UNKNOWN}"
            yield Finding(state="warn", check="dead letters", queue=dead, found=told, command=ASK)
            return
        yield from judge_dead(found, known.policy if known else {})


def find_parts(link: Link) -> list[Part]:
    """The parts of the ladder that are there, asked one by one, from the lowest level.

    RabbitMQ logs each that is not there as an error: a ladder that nobody ever used costs one line,
    and levels are asked for until none of several is there.
    """
    first = Part(DUE, is_queue=False, kind="topic")
    if not is_there(link, first) and not any(
        is_there(link, part) for part in parts(Level(PREFIX, 0))
    ):
        return []
    found = []
    absent = 0
    for part in parts(Level(PREFIX, LEVELS - 1)):
        if is_there(link, part):
            found.append(part)
            absent = 0
        elif (absent := absent + 1) > MOST_ABSENT:
            break
    return found


def merged(findings: list[Finding], *, reached: bool) -> list[Finding]:
    """With several hosts, one that is down is no more than a warning while another answers."""
    if not reached:
        return findings
    return [
        replace(finding, state="warn")
        if finding.state == "fail" and finding.check == "reach"
        else finding
        for finding in findings
    ]


def is_local(host: str) -> bool:
    return host in ("localhost", "[::1]") or host.startswith("127.")
