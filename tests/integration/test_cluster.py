"""Three nodes: one of them dies, is cut off, is restarted, and nothing is lost.

On RabbitMQ 4.3; `./dev nox -s cluster` runs them on 4.0 as well.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.cluster import Cluster, Node
from tests.integration.programs import Desk, Program
from tests.integration.supply import Unavailable, prepare, supply_of
from workqueue import Producer, connect
from workqueue.testing import eventually

# One process gets them all, and so one cluster serves them all.
pytestmark = [
    pytest.mark.rabbitmq("4.3"),
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("cluster"),
]

SERIES = os.environ.get("WORKQUEUE_TEST_CLUSTER_VERSIONS", "4.3").split(",")
PATIENCE = 300.0


@pytest.fixture(scope="module", params=SERIES)
def cluster(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Cluster]:
    if os.environ.get("WORKQUEUE_TEST_AMQP_URL"):
        pytest.skip("WORKQUEUE_TEST_AMQP_URL gives no power over nodes")
    supply = supply_of(pytestconfig)
    if request.param not in {*supply.images, *supply.missing}:
        prepare(pytestconfig, {request.param})
    if request.param in supply.missing:
        reason: Unavailable = supply.missing[request.param]
        if os.environ.get("WORKQUEUE_TEST_REQUIRE_RABBITMQ") == "1":
            pytest.fail(reason.reason, pytrace=False)
        pytest.skip(reason.reason)
    cluster = Cluster(supply.images[request.param])
    yield cluster
    cluster.close()


@pytest.fixture
def desk(tmp_path: Path, cluster: Cluster) -> Iterator[Desk]:
    cluster.heal()
    desk = Desk(tmp_path, cluster.url)
    yield desk
    desk.close()


class Sender(threading.Thread):
    """Sends `count` messages, a few at a time, through whatever happens."""

    def __init__(self, url: str, queue: str, count: int, pause: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.url, self.queue, self.count, self.pause = url, queue, count, pause
        self.sent: list[str] = []
        self.longest = 0.0
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with connect(self.url) as broker, Producer(broker.queue(self.queue)) as producer:
                producer.timeout = PATIENCE
                while len(self.sent) < self.count:
                    some = [f"sleep 0 {len(self.sent) + n}" for n in range(100)]
                    began = time.monotonic()
                    producer.send_many(some)
                    self.longest = max(self.longest, time.monotonic() - began)
                    self.sent += some
                    time.sleep(self.pause)
        except Exception as error:  # noqa: BLE001 - the test says what it was
            self.error = error

    def has_sent(self, count: int) -> Callable[[], bool]:
        return lambda: self.error is not None or len(self.sent) >= count


def all_are_handled(desk: Desk, sender: Sender, workers: list[Program]) -> None:
    """All that was sent, at least once, and nothing else; by the workers that were there."""
    sender.join(PATIENCE)
    assert sender.error is None
    assert len(sender.sent) == sender.count
    wanted = set(sender.sent)
    try:  # seldom, as it reads the whole journal
        eventually(lambda: wanted <= set(desk.bodies("done")), within=PATIENCE, every=2)
    except AssertionError:
        missing = sorted(wanted - set(desk.bodies("done")))
        logs = "\n".join(worker.err.read_text()[-2000:] for worker in workers)
        pytest.fail(
            f"{len(missing)} are missing, as {missing[:3]}; {desk.status(sender.queue)}\n{logs}"
        )
    assert set(desk.bodies("start")) == wanted
    for worker in workers:
        assert worker.process.poll() is None, worker.err.read_text()
        worker.send(signal.SIGTERM)
    for worker in workers:
        result = worker.wait()
        assert result.code == 0, result.err
    assert desk.status(sender.queue)["ready"] == desk.status(sender.queue)["dead"] == 0


def told(desk: Desk, sender: Sender, what: str, since: float) -> str:
    """How long work stood still, and how much was done twice."""
    done = sorted(entry["at"] for entry in desk.journal("done") if entry["at"] > since - 1)
    still = max((after - before for before, after in pairwise(done)), default=0.0)
    twice = sum(count - 1 for count in Counter(desk.bodies("done")).values())
    return (
        f"\n{what}: {len(sender.sent):,} sent, 0 lost, {twice} twice; work resumed after "
        f"{still:.1f} s, sending after {sender.longest:.1f} s"
    )


def begin(desk: Desk, queue: str, cluster: Cluster) -> list[Program]:
    assert desk.run("declare", queue).code == 0
    cluster.wait_until_replicated(queue)
    return [desk.work(queue, "-c", "4", "--in", "thread") for _ in range(2)]


def test_the_leader_is_killed(
    desk: Desk, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of 20,000 messages; senders and workers go on without a restart."""
    workers = begin(desk, "leader", cluster)
    sender = Sender(cluster.url, "leader", 20_000)
    eventually(sender.has_sent(10_000), within=PATIENCE)
    leader = cluster.leader_of("leader")
    at = time.time()
    cluster.kill(leader)
    all_are_handled(desk, sender, workers)
    with capsys.disabled():
        print(told(desk, sender, f"leader killed ({SERIES})", at))


def test_a_minority_is_cut_off(
    desk: Desk, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """The node that leads the queue, for a while in which its clients still reach it."""
    workers = begin(desk, "minority", cluster)
    sender = Sender(cluster.url, "minority", 4_000, pause=0.1)
    eventually(sender.has_sent(500), within=PATIENCE)
    node = cluster.leader_of("minority")
    at = time.time()
    cluster.cut_off(node)
    others = [other for other in cluster.nodes if other is not node]
    eventually(lambda: sees_down(others[0], node), within=PATIENCE, every=0.5)
    cluster.rejoin(node)
    all_are_handled(desk, sender, workers)
    with capsys.disabled():
        print(told(desk, sender, "minority cut off", at))


def test_all_are_restarted_in_turn(
    desk: Desk, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for an upgrade: each stops in order and comes back before the next."""
    workers = begin(desk, "rolling", cluster)
    sender = Sender(cluster.url, "rolling", 4_000, pause=0.1)
    eventually(sender.has_sent(500), within=PATIENCE)
    at = time.time()
    for node in cluster.nodes:
        cluster.stop(node)
        cluster.start(node)
        cluster.wait_until_replicated("rolling")
    all_are_handled(desk, sender, workers)
    with capsys.disabled():
        print(told(desk, sender, "rolling restart", at))


def sees_down(node: Node, other: Node) -> bool:
    try:
        seen = node.get("nodes?columns=name,running")
    except OSError:  # it waits for the one that is cut off
        return False
    return any(peer["name"] == other.name and not peer.get("running") for peer in seen)
