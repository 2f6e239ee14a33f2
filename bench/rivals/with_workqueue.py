"""workqueue itself, as its users have it: nothing is set that has a default."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import clock

from workqueue import Producer, connect
from workqueue.transport import Ack

broker = connect(clock.URL)
kind: Any = {"classic": "classic", "quorum": "quorum"}.get(os.environ.get("BENCH_TYPE", ""))
queue = broker.queue(clock.QUEUE, type=kind)


# -- senders


def bodies(count: int) -> Iterator[bytes]:
    body = clock.BODY.encode()
    return (body for _ in range(count))


def many(count: int) -> None:
    with Producer(queue) as producer:
        producer.send(clock.BODY.encode())
        with clock.measured(count - 1):
            producer.send_many(bodies(count - 1))


def send(count: int) -> None:
    body = clock.BODY.encode()
    with Producer(queue) as producer:
        producer.send(body)
        with clock.measured(count - 1):
            for _ in range(count - 1):
                producer.send(body)


def share(count: int, threads: int) -> None:
    """`threads` of them, one Producer."""
    body = clock.BODY.encode()
    with Producer(queue) as producer:
        producer.send(body)

        def run() -> None:
            for _ in range(count // threads):
                producer.send(body)

        senders = [threading.Thread(target=run) for _ in range(threads)]
        with clock.measured(count):
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()


def naps(count: int) -> None:
    """All at once, for workers that are there already."""
    with Producer(queue) as producer:
        producer.send_many({} for _ in range(count))


def pace(rate: float, count: int) -> None:
    with Producer(queue) as producer:
        for sent_at in clock.paced(rate, count):
            producer.send({"sent_at": sent_at})


# -- consuming


def consume(count: int, prefetch: int) -> None:
    """The seam's consumer, without a worker: what came in one turn is settled in one batch."""
    consumer = broker.transport.consumer(queue.name, prefetch)
    got = 0
    with clock.measured(count):
        while got < count:
            received = consumer.receive(1000, 30)
            got += len(received)
            consumer.settle([Ack(delivery) for delivery in received])
    consumer.close()


def claim() -> None:
    """One message after the other until there is no more: how long each took to get, printed."""
    consumer = broker.transport.consumer(queue.name, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    waits = []
    while True:
        began = time.monotonic()
        received = consumer.receive(1, 1.0)
        if not received:
            break
        waits.append(time.monotonic() - began)
        consumer.settle([Ack(delivery) for delivery in received])
    consumer.close()
    print(json.dumps(waits))


if __name__ == "__main__":
    words: list[Any] = [float(word) if "." in word else int(word) for word in sys.argv[2:]]
    verbs: dict[str, Any] = {
        "many": many,
        "send": send,
        "share": share,
        "naps": naps,
        "pace": pace,
        "consume": consume,
        "claim": claim,
    }
    verbs[sys.argv[1]](*words)
    broker.close()
