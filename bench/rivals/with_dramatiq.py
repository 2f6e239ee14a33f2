"""Dramatiq. It acknowledges after the work; its docs have confirm_delivery. Classic queues only."""

import sys
from typing import Any

import clock
import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

broker = RabbitmqBroker(url=clock.URL, confirm_delivery=clock.CONFIRM)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=clock.QUEUE)
def noop(body: str) -> None:
    clock.passed()


@dramatiq.actor(queue_name=clock.QUEUE)
def aged(sent_at: float) -> None:
    clock.arrived(sent_at)


def send(count: int) -> None:
    noop.send(clock.BODY)
    with clock.measured(count - 1):
        for _ in range(count - 1):
            noop.send(clock.BODY)


def pace(rate: float, count: int) -> None:
    for sent_at in clock.paced(rate, count):
        aged.send(sent_at)


if __name__ == "__main__":
    words: list[Any] = [float(word) if "." in word else int(word) for word in sys.argv[2:]]
    {"send": send, "pace": pace}[sys.argv[1]](*words)
