"""The rows of watch: rates from two looks, and nothing shown that is not known."""

from __future__ import annotations

import pytest

from workqueue.cli.watch import Row
from workqueue.transport import QueueStats
from workqueue.transports.rabbitmq.driver import RabbitMQTransport


def test_rates_and_bars() -> None:
    row = Row("jobs")
    for now, ready in ((0.0, 0), (2.0, 4), (4.0, 8)):
        row.take(QueueStats(ready=ready, sent=ready, done=0), now)
    assert (row.arriving, row.finishing) == (2.0, 0.0)
    assert row.sparkline == "▁▄█"


def test_counters_that_began_again() -> None:
    """Their broker was started: no rate, and not a negative one."""
    row = Row("jobs")
    row.take(QueueStats(ready=1, sent=100, done=90), 0.0)
    row.take(QueueStats(ready=1, sent=3, done=2), 2.0)
    assert (row.arriving, row.finishing) == (None, None)


def test_what_is_not_known_is_no_zero() -> None:
    row = Row("jobs")
    row.take(QueueStats(ready=5), 0.0)
    row.take(QueueStats(), 2.0)
    row.take(QueueStats(ready=0), 4.0)
    assert row.sparkline == "▇ ▁"
    assert row.values == ("jobs", 0, None, None, None, None, None, None, None)
    row.lose("gone")
    assert set(row.values[1:]) == {None}


def test_only_the_last_minute() -> None:
    row = Row("jobs")
    for now in range(100):
        row.take(QueueStats(ready=1), float(now))
    assert len(row.sparkline) == 61


def test_a_management_api_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    """What AMQP tells is shown all the same, and the rest is not known; said once."""
    transport = RabbitMQTransport("amqp://localhost", management_url="http://127.0.0.1:1")
    stats = QueueStats(ready=3, dead=0, consumers=1)
    for _ in range(2):
        assert transport.completed("jobs", stats) == stats
    [said] = [record.getMessage() for record in caplog.records]
    assert "in flight or delayed is not known" in said
