"""workqueue torture, as a user runs it: its table, its exit code, and that it leaves nothing."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker import Broker, Vhost
from tests.integration.programs import Desk, processes_with
from workqueue import connect

SHORT = ("torture", "--messages", "150", "--minutes", "0.08", "--seed", "3")

PATIENCE = 240.0
"""Seconds. Processes start, are waited for, and are asked to leave, one after the other."""

pytestmark = pytest.mark.timeout(300)


class Torture:
    @pytest.fixture
    def url(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def management_url(self) -> str | None:
        return None

    @pytest.fixture
    def desk(self, tmp_path: Path, url: str) -> Iterator[Desk]:
        desk = Desk(tmp_path, url)
        yield desk
        desk.close()

    def test_nothing_is_lost(self, desk: Desk, management_url: str | None) -> None:
        """One object on stdout, the strokes on stderr, and the queue is gone."""
        result = desk.start(*SHORT, "--json").wait(PATIENCE)
        assert result.code == 0, result.err
        [figures] = result.json
        assert figures["seed"] == 3
        assert figures["sent"] == 150
        assert figures["handled"] + figures["dead"] >= figures["confirmed"] > 0
        assert figures["faults"] > 0
        kinds = ("lost", "invented", "altered", "denied", "unmarked", "hasty", "unruly", "leaks")
        assert {kind: figures[kind] for kind in kinds} == dict.fromkeys(kinds, 0)
        assert "SIG" in result.err
        self.assert_nothing_is_left(desk, management_url)

    def test_ctrl_c_clears_away(self, desk: Desk, management_url: str | None) -> None:
        """In the middle: no process, no queue, no traceback."""
        program = desk.start("torture", "--messages", "5000", "--minutes", "5")
        desk.until(lambda: program.says(" handled, "), "it to be in full swing")
        program.send(signal.SIGINT)
        result = program.wait()
        assert result.code == 130
        assert "Traceback" not in result.err
        self.assert_nothing_is_left(desk, management_url)

    def assert_nothing_is_left(self, desk: Desk, management_url: str | None) -> None:
        [queue] = re.findall(r"on (workqueue-torture-\S+)", desk.programs[0].err.read_text())
        desk.until(lambda: not processes_with(queue), "all processes to end")
        with connect(desk.url, management_url=management_url) as broker:
            assert not [name for name in broker.queues() if "torture" in name]


class TestOnTheEmbeddedFile(Torture):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path / 'jobs.db'}"

    def test_a_loss_is_exit_1(self, desk: Desk) -> None:
        """What somebody else drops meanwhile is missing, is named, and its history is kept."""
        program = desk.start(
            "torture", "--messages", "2000", "--minutes", "0.1", "--patience", "3s"
        )
        desk.until(lambda: self.purged(desk), "messages to be dropped")
        result = program.wait(PATIENCE)
        assert result.code == 1
        assert "lost: " in result.err
        assert "FAILED" in result.out
        kept = Path(result.err.rpartition("kept in ")[2].strip())
        assert list(kept.glob("*.ledger"))
        shutil.rmtree(kept)
        self.assert_nothing_is_left(desk, None)

    def purged(self, desk: Desk) -> int:
        """How many of those that wait were dropped."""
        with connect(desk.url) as broker:
            names = [n for n in broker.queues() if "torture" in n and not n.endswith(".dead")]
            return sum(broker.queue(name).purge() for name in names)


@pytest.mark.rabbitmq("4.3")
class TestOnRabbitMQ(Torture):
    @pytest.fixture
    def management_url(self, broker: Broker) -> str:
        return broker.management_url

    @pytest.fixture
    def url(self, vhost: Vhost) -> str:
        return vhost.url

    def test_the_broker_is_restarted(self, desk: Desk, broker: Broker, management_url: str) -> None:
        """By the user's command, with which even a short attack begins."""
        restart = ("--restart-command", broker.restart_command())
        result = desk.start(*SHORT, *restart, "--json").wait(PATIENCE)
        assert result.code == 0, result.err
        [figures] = result.json
        assert figures["restarts"] == 1
        assert (figures["sent"], figures["lost"], figures["good"]) == (150, 0, True)
        broker.wait_until_ready()
        self.assert_nothing_is_left(desk, management_url)
