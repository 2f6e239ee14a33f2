"""Whether a queue is being migrated, as senders and workers see it; see `migration`."""

from __future__ import annotations

from contextlib import suppress

from workqueue.errors import AccessRefused, QueueMigrating
from workqueue.transports.rabbitmq.link import ChannelClosed, Link
from workqueue.transports.rabbitmq.survey import ACCESS_REFUSED, NOT_FOUND, exists

MARKER_SUFFIX = ".migrating"
GATE_SUFFIX = ".open"
LONGEST_NAME = 255 - len(MARKER_SUFFIX)


def gate_is_open(link: Link, queue: str) -> bool:
    """False also where it was never made, or we may not know."""
    if len(queue.encode()) > LONGEST_NAME:
        return False
    channel = link.channel()
    try:
        channel.exchange_declare(queue + GATE_SUFFIX, "fanout", passive=True)
    except ChannelClosed as closed:
        if closed.code not in (NOT_FOUND, ACCESS_REFUSED):
            raise
        return False
    channel.close()
    return True


def open_gate(link: Link, queue: str) -> None:
    """Workers see from now on whether it is closed; not for a name that cannot migrate, nor where
    we may not make it."""
    if len(queue.encode()) > LONGEST_NAME:
        return
    channel = link.channel()
    try:
        channel.exchange_declare(queue + GATE_SUFFIX, "fanout", durable=True, auto_delete=False)
    except ChannelClosed as closed:
        if closed.code != ACCESS_REFUSED:
            raise
        return
    channel.close()


def is_migrating(link: Link, queue: str) -> bool:
    """Whether `queue` is being migrated right now, as far as we may know."""
    return not gate_is_open(link, queue) and has_marker(link, queue)


def has_marker(link: Link, queue: str) -> bool:
    """Whether a queue whose gate is not open was closed, and not just never given one."""
    if len(queue.encode()) > LONGEST_NAME:
        return False
    with suppress(AccessRefused):
        return exists(link, queue + MARKER_SUFFIX)
    return False


def check_not_migrating(link: Link, queue: str) -> None:
    """Raise QueueMigrating if it is."""
    if is_migrating(link, queue):
        raise QueueMigrating(queue)
