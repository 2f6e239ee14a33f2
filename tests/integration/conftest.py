"""The fixtures `broker`, `vhost` and `proxy`: a real RabbitMQ, of each series that is asked for.

    def test_something(broker, vhost): ...              # once on RabbitMQ 4.0 and once on 4.3

    @pytest.mark.rabbitmq("3.10", "4.0", "4.3")         # on these
    @pytest.mark.rabbitmq(config="heartbeat = 5")       # on brokers of their own, configured so

A broker is started when a test first needs it, and removed at the end. Where there is no RabbitMQ
to be had these tests are skipped, or with WORKQUEUE_TEST_REQUIRE_RABBITMQ=1 they fail; the last
line of the output says why, and what to do.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

# Our containers are removed by us: the reaper's image may not be had. And in a container or a
# virtual machine testcontainers would take the bridge's address, not the port that stays.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")

from tests.integration.broker import Broker, Vhost
from tests.integration.supply import (
    Unavailable,
    Wanted,
    allowed_series,
    close,
    prepare,
    skip_unless_suits,
    supply_of,
)
from workqueue.cli.torture.proxy import Proxy

USUAL = ("4.0", "4.3")


@pytest.fixture(scope="session")
def broker(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Broker:
    """A RabbitMQ as the test's marker asks for it, up and well."""
    supply = supply_of(pytestconfig)
    wanted, only = request.param
    try:
        if wanted.series != "given":
            return supply.get(wanted)
        url = os.environ["WORKQUEUE_TEST_AMQP_URL"]
        broker = supply.given(url, os.environ.get("WORKQUEUE_TEST_MANAGEMENT_URL", ""))
    except Unavailable as missing:
        reason = missing.reason
    else:
        skip_unless_suits(broker, wanted, only)
        return broker
    if os.environ.get("WORKQUEUE_TEST_REQUIRE_RABBITMQ") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def vhost(broker: Broker) -> Iterator[Vhost]:
    """A fresh virtual host on `broker`, deleted afterwards."""
    with broker.vhost() as vhost:
        yield vhost


@pytest.fixture
def proxy(broker: Broker) -> Iterator[Proxy]:
    """A proxy to `broker`: `proxy.through(vhost.url)` is the URL that goes by it."""
    with Proxy(*broker.address) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _tended(request: pytest.FixtureRequest) -> Iterator[None]:
    """The next test finds its broker well, whatever this one does and fails to undo."""
    if "broker" not in request.fixturenames:
        yield
        return
    broker: Broker = request.getfixturevalue("broker")
    yield
    broker.heal()


# -- which tests run on what -----------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses `broker` runs once on each series that it asks for."""
    if "broker" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("rabbitmq")
    only = marker.args if marker else ()
    options = dict(marker.kwargs) if marker else {}
    options["environment"] = tuple(sorted((options.pop("env", None) or {}).items()))
    if os.environ.get("WORKQUEUE_TEST_AMQP_URL"):
        series = ["given"]
    else:
        series = [name for name in only or USUAL if name in allowed_series()]
    brokers = [pytest.param((Wanted(name, **options), only), id=name) for name in series]
    if not brokers:
        left_out = pytest.mark.skip(reason="left out by WORKQUEUE_TEST_RABBITMQ_VERSIONS")
        brokers = [pytest.param(None, id="none", marks=left_out)]
    metafunc.parametrize("broker", brokers, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `-m "not rabbitmq"` leave out all that need one."""
    if "broker" in getattr(item, "fixturenames", ()):
        item.add_marker("rabbitmq")


# -- before and after the tests --------------------------------------------------------------------


def pytest_collection_finish(session: pytest.Session) -> None:
    """Get what the chosen tests need, before the first of them has its time measured."""
    if session.config.option.collectonly:
        return
    needed = set()
    for item in session.items:
        param = item.callspec.params.get("broker") if hasattr(item, "callspec") else None
        if param is not None:
            needed.add(param[0].series)
    prepare(session.config, needed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the broker said beside a test that failed."""
    report = yield
    broker = getattr(item, "funcargs", {}).get("broker")
    if report.failed and isinstance(broker, Broker) and broker.container:
        report.sections.append((f"RabbitMQ {broker.version}", broker.log()))
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say which brokers the tests ran on."""
    for version, source in sorted(supply_of(config).used.items()):
        terminalreporter.write_line(f"RabbitMQ {version}: {source}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Nothing that we started is left, and the last line says what was not tested and why."""
    close(config)
