"""Celery, as its docs have it for reliable work: acks late, confirm_publish; no results kept."""

import sys
from typing import Any

import clock
from celery import Celery
from kombu import Queue

app = Celery("bench", broker=clock.URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_default_queue_type="quorum" if clock.QUORUM else "classic",
    task_queues=[
        Queue(
            clock.QUEUE,
            routing_key=clock.QUEUE,
            queue_arguments={"x-queue-type": "quorum" if clock.QUORUM else "classic"},
        )
    ],
    task_default_queue=clock.QUEUE,
    task_default_exchange=f"{clock.QUEUE}.exchange",
    task_default_routing_key=clock.QUEUE,
    broker_transport_options={"confirm_publish": clock.CONFIRM},
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(body: str) -> None:
    clock.passed()


@app.task(name="aged")
def aged(sent_at: float) -> None:
    clock.arrived(sent_at)


def send(count: int) -> None:
    noop.delay(clock.BODY)
    with clock.measured(count - 1):
        for _ in range(count - 1):
            noop.delay(clock.BODY)


def pace(rate: float, count: int) -> None:
    for sent_at in clock.paced(rate, count):
        aged.delay(sent_at)


if __name__ == "__main__":
    words: list[Any] = [float(word) if "." in word else int(word) for word in sys.argv[2:]]
    {"send": send, "pace": pace}[sys.argv[1]](*words)
