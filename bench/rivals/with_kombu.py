"""Bare kombu, as fast as its own layers go: confirms pipelined in a window, acks in batches."""

import sys

import clock
from kombu import Connection, Consumer, Message, Producer, Queue

WINDOW = 1000


def publish(count: int, window: int = WINDOW) -> None:
    """Confirms are counted as they come; at most `window` are out."""
    with Connection(clock.URL) as connection:
        channel = connection.channel()
        channel.confirm_select()
        open_tags = set()
        low = 0

        def acked(tag: int, multiple: bool) -> None:
            nonlocal low
            if multiple:
                open_tags.difference_update(range(low + 1, tag + 1))
                low = tag
            else:
                open_tags.discard(tag)

        def refused(*_: object) -> None:
            raise RuntimeError("a message was not kept")

        channel.events["basic_ack"].add(acked)
        channel.events["basic_nack"].add(refused)
        channel.events["basic_return"].add(refused)
        producer = Producer(channel, auto_declare=False)
        body = clock.BODY.encode()
        with clock.measured(count):
            for tag in range(1, count + 1):
                open_tags.add(tag)
                producer.publish(
                    body,
                    exchange="",
                    routing_key=clock.QUEUE,
                    content_type="application/octet-stream",
                    content_encoding="binary",
                    delivery_mode=2,
                    mandatory=True,
                    message_id=f"{tag:08x}-0000-7000-8000-{tag:012x}",
                )
                while len(open_tags) >= window:
                    connection.drain_events(timeout=30)
            while open_tags:
                connection.drain_events(timeout=30)


def consume(count: int, prefetch: int, batch: int) -> None:
    with Connection(clock.URL) as connection:
        channel = connection.channel()
        channel.basic_qos(0, prefetch, False)
        got = 0

        def arrived(message: Message) -> None:
            nonlocal got
            got += 1
            if got % batch == 0 or got == count:
                channel.basic_ack(message.delivery_tag, multiple=True)

        queue = Queue(clock.QUEUE, no_declare=True)
        with (
            clock.measured(count),
            Consumer(channel, [queue], on_message=arrived, auto_declare=False),
        ):
            while got < count:
                connection.drain_events(timeout=30)


if __name__ == "__main__":
    {"publish": publish, "consume": consume}[sys.argv[1]](*map(int, sys.argv[2:]))
