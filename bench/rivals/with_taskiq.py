"""Taskiq with taskiq-aio-pika. Acknowledged after the work (ack type when_saved, its default)."""

import asyncio
import sys
from typing import Any

import clock
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

broker = AioPikaBroker(
    clock.URL,
    exchange=Exchange(name=f"{clock.QUEUE}.exchange"),
    task_queues=[
        Queue(name=clock.QUEUE, type=QueueType.QUORUM if clock.QUORUM else QueueType.CLASSIC)
    ],
    dead_letter_queue=Queue(name=f"{clock.QUEUE}.dead"),
    delay_queue=Queue(name=f"{clock.QUEUE}.delay"),
)


@broker.task(task_name="noop")
async def noop(body: str) -> None:
    clock.passed()


@broker.task(task_name="aged")
async def aged(sent_at: float) -> None:
    clock.arrived(sent_at)


async def send(count: int) -> None:
    await broker.startup()
    await noop.kiq(clock.BODY)
    with clock.measured(count - 1):
        for _ in range(count - 1):
            await noop.kiq(clock.BODY)
    await broker.shutdown()


async def fill(count: int) -> None:
    await broker.startup()
    with clock.measured(count):
        for start in range(0, count, 100):
            some = range(start, min(start + 100, count))
            await asyncio.gather(*(noop.kiq(clock.BODY) for _ in some))
    await broker.shutdown()


async def pace(rate: float, count: int) -> None:
    await broker.startup()
    for sent_at in clock.paced(rate, count):
        await aged.kiq(sent_at)
    await broker.shutdown()


if __name__ == "__main__":
    words: list[Any] = [float(word) if "." in word else int(word) for word in sys.argv[2:]]
    asyncio.run({"send": send, "fill": fill, "pace": pace}[sys.argv[1]](*words))
