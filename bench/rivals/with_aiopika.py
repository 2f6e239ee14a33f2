"""Bare aio-pika: publisher confirms are on, its default; a window of them is awaited at once."""

import asyncio
import sys

import aio_pika
import clock


async def publish(count: int, window: int) -> None:
    connection = await aio_pika.connect(clock.URL)
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        gate = asyncio.Semaphore(window)
        body = clock.BODY.encode()

        async def put(number: int) -> None:
            message = aio_pika.Message(
                body,
                content_type="application/octet-stream",
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=f"{number:08x}-0000-7000-8000-{number:012x}",
                priority=4,
            )
            async with gate:
                await channel.default_exchange.publish(message, clock.QUEUE, mandatory=True)

        with clock.measured(count):
            for start in range(0, count, window):
                some = range(start, min(start + window, count))
                await asyncio.gather(*(put(number) for number in some))


async def consume(count: int, prefetch: int, batch: int) -> None:
    connection = await aio_pika.connect(clock.URL)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=prefetch)
        queue = await channel.get_queue(clock.QUEUE, ensure=False)
        got = 0
        with clock.measured(count):
            async with queue.iterator() as messages:
                async for message in messages:
                    got += 1
                    if got % batch == 0 or got == count:
                        await message.ack(multiple=True)
                    if got == count:
                        break


if __name__ == "__main__":
    verbs = {"publish": publish, "consume": consume}
    asyncio.run(verbs[sys.argv[1]](*map(int, sys.argv[2:])))
