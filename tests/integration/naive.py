"""A client as one writes it without having thought of faults: no confirms, acknowledgements before
the work, no limit to what a worker holds. A checker that finds nothing wrong with it sees nothing.

    python naive.py sender URL QUEUE NUMBER SHARE UNTIL
    python naive.py worker URL QUEUE [--until-empty]
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import amqp

from workqueue.cli.torture.handler import FOLDER
from workqueue.cli.torture.ledger import Ledger, read

WORK = 0.01
"""Seconds for each message: two workers do not keep up, so that something is always waiting."""


def main() -> None:
    role, queue, *rest = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if role == "sender":
        number, share, until = rest
        send(queue, int(number), int(share), float(until))
    else:
        work(queue, until_empty="--until-empty" in rest)


def channel() -> Any:
    """On a connection that is tried for until there is one."""
    url = urlsplit(os.environ["WORKQUEUE_URL"])
    while True:
        connection = amqp.Connection(
            host=f"{url.hostname}:{url.port}",
            userid=url.username,
            password=url.password,
            virtual_host=url.path[1:],
        )
        try:
            connection.connect()
            return connection.channel()
        except (OSError, amqp.AMQPError):
            time.sleep(0.2)


def own_ledger(name: str) -> Ledger:
    return Ledger(Path(os.environ[FOLDER]) / f"{name}.ledger")


def send(queue: str, number: int, share: int, until: float) -> None:
    """What was written to a socket counts as sent."""
    path = Path(os.environ[FOLDER]) / f"sender-{number}.ledger"
    begun = sum(entry.event == "sent" for entry in read(path))
    ledger = Ledger(path)
    pace = max(until - time.time(), 0) / max(share - begun, 1)
    out = channel()
    for n in range(begun, share):
        body = os.urandom(50)
        name = f"{number}-{n}"
        ledger.note("sent", name, sha256=hashlib.sha256(body).hexdigest())
        ledger.note("tried", name)
        try:
            out.basic_publish(amqp.Message(body, message_id=name, delivery_mode=2), "", queue)
        except (OSError, amqp.AMQPError):
            ledger.note("unknown", name)
            out = channel()
        else:
            ledger.note("confirmed", name)
        time.sleep(pace)


def work(queue: str, *, until_empty: bool) -> None:
    """Acknowledged when it is delivered, worked on later."""
    ledger = own_ledger(f"handler-{os.getpid()}")
    while True:
        try:
            inbox = channel()
            inbox.basic_consume(queue, no_ack=True, callback=handler(ledger))
            while True:
                try:
                    inbox.connection.drain_events(timeout=2.0)
                except TimeoutError:
                    if until_empty:
                        return
        except (OSError, amqp.AMQPError):
            continue


def handler(ledger: Ledger) -> Callable[[Any], None]:
    def handle(message: Any) -> None:
        name = message.properties["message_id"]
        digest = hashlib.sha256(bytes(message.body)).hexdigest()
        redelivered = message.delivery_info["redelivered"]
        ledger.note("started", name, sha256=digest, redelivered=redelivered)
        time.sleep(WORK)
        ledger.note("done", name)

    return handle


if __name__ == "__main__":
    main()
