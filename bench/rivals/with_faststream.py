"""FastStream. Durable queue, messages persisted, confirmed and mandatory, acknowledged after work.

Without a prefetch a subscriber is given the whole queue, and its docs advise a limit.
"""

import asyncio
import sys
from typing import Any

import clock
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue

broker = RabbitBroker(
    clock.URL,
    default_channel=Channel(prefetch_count=100, publisher_confirms=True, on_return_raises=True),
    logger=None,
)
app = FastStream(broker)
queue = RabbitQueue(
    clock.QUEUE,
    durable=True,
    queue_type=QueueType.QUORUM if clock.QUORUM else QueueType.CLASSIC,
)


@broker.subscriber(queue, ack_policy=AckPolicy.NACK_ON_ERROR)
async def handle(message: dict[str, Any]) -> None:
    if "sent_at" in message:
        clock.arrived(message["sent_at"])
    else:
        clock.passed()


async def put(message: dict[str, Any]) -> None:
    await broker.publish(message, queue=queue, persist=True, mandatory=True)


async def send(count: int) -> None:
    await broker.connect()
    await broker.declare_queue(queue)
    await put({"body": clock.BODY})
    with clock.measured(count - 1):
        for _ in range(count - 1):
            await put({"body": clock.BODY})
    await broker.stop()


async def fill(count: int) -> None:
    await broker.connect()
    await broker.declare_queue(queue)
    with clock.measured(count):
        for start in range(0, count, 100):
            some = range(start, min(start + 100, count))
            await asyncio.gather(*(put({"body": clock.BODY}) for _ in some))
    await broker.stop()


async def pace(rate: float, count: int) -> None:
    await broker.connect()
    await broker.declare_queue(queue)
    for sent_at in clock.paced(rate, count):
        await put({"sent_at": sent_at})
    await broker.stop()


if __name__ == "__main__":
    words: list[Any] = [float(word) if "." in word else int(word) for word in sys.argv[2:]]
    asyncio.run({"send": send, "fill": fill, "pace": pace}[sys.argv[1]](*words))
