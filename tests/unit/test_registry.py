"""From the scheme of a URL to the transport that serves it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from workqueue import ConfigError, UnknownScheme, Unsupported, connect
from workqueue.registry import (
    BUILT_IN,
    default_file,
    default_url,
    names,
    open_transport,
    scheme_of,
)
from workqueue.transports.memory import MemoryTransport

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes a plugin distribution, as pip would have left it."""

    def install(scheme: str, code: str, attribute: str = "Transport") -> None:
        module = f"workqueue_{scheme}_plugin"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"workqueue_{scheme}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: workqueue-{scheme}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(
            f"[workqueue.transports]\n{scheme} = {module}:{attribute}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


GOOD = """
from workqueue.transports.memory import MemoryTransport

class Transport(MemoryTransport):
    def __init__(self, url, **options):
        super().__init__()
        self.url, self.options = url, options
"""


@pytest.mark.parametrize(
    ("url", "scheme"),
    [
        ("memory://", "memory"),
        ("AMQPS://host", "amqps"),
        ("redis+tls.v2-x://host", "redis+tls.v2-x"),
    ],
)
def test_schemes(url: str, scheme: str) -> None:
    """In front of ://, in any case."""
    assert scheme_of(url) == scheme


@pytest.mark.parametrize("url", ["", "jobs.db", "u:SECRET@host", "://host", "1x://h", "amqp:/h"])
def test_urls_without_a_scheme(url: str) -> None:
    """ConfigError says how to write one, and repeats nothing of what was given."""
    with pytest.raises(ConfigError) as caught:
        open_transport(url)
    assert "SECRET" not in str(caught.value)
    assert "sqlite:///" in caught.value.hint
    assert not isinstance(caught.value, UnknownScheme)


def test_the_built_in_ones_are_entry_points() -> None:
    """Registered in the same way as any plugin's; that they are found without looking through all
    that is installed makes no difference but time."""
    registered = {one.name: one.value for one in entry_points(group="workqueue.transports")}
    assert BUILT_IN.items() <= registered.items()
    assert {"memory", "sqlite", "amqp", "amqps"} <= set(names("workqueue.transports"))
    assert isinstance(open_transport("memory://"), MemoryTransport)
    assert isinstance(open_transport("MEMORY://"), MemoryTransport)


def test_an_unknown_scheme() -> None:
    """What is installed, and what a plugin for it would be called; not the URL."""
    with pytest.raises(UnknownScheme, match="kafka://") as caught:
        open_transport("kafka://u:SECRET@host")
    assert "memory" in caught.value.hint
    assert "workqueue-kafka" in caught.value.hint
    assert "SECRET" not in str(caught.value) + caught.value.hint


def test_a_plugin_serves_its_scheme(install: Install) -> None:
    """It is called with the URL as it was given."""
    install("nats", GOOD)
    transport = open_transport("nats://host/x?y=1")
    assert transport.url == "nats://host/x?y=1"  # type: ignore[attr-defined]
    assert transport.options == {}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("def", "SyntaxError"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_plugin(install: Install, code: str, error: str) -> None:
    """It is an error that names it and its distribution, for those who use it."""
    install("broken", code)
    with pytest.raises(ConfigError) as caught:
        open_transport("broken://")
    for told in ("broken", "workqueue-broken", error):
        assert told in str(caught.value)
    assert caught.value.hint == "See all of them: workqueue plugins"


def test_a_broken_plugin_breaks_nothing_else(install: Install) -> None:
    """Others are found and opened; it is listed, and not even imported."""
    install("wrecked", "raise SystemExit('boom')")
    assert isinstance(open_transport("memory://"), MemoryTransport)
    assert "wrecked" in names("workqueue.transports")
    with pytest.raises(UnknownScheme) as caught:
        open_transport("nowhere://")
    assert "wrecked" in caught.value.hint
    assert "workqueue_wrecked_plugin" not in sys.modules


def test_a_config_error_of_a_plugin_passes(install: Install) -> None:
    """What it says about its URL is for the user."""
    install(
        "picky",
        "from workqueue import ConfigError\n"
        "def Transport(url):\n"
        "    raise ConfigError('picky wants a host', hint='picky://host')\n",
    )
    with pytest.raises(ConfigError, match="picky wants a host"):
        open_transport("picky://")


def test_a_management_url_is_for_rabbitmq() -> None:
    """Elsewhere it is an error: silently ignored, it would be missed later."""
    with pytest.raises(Unsupported, match="memory://"):
        open_transport("memory://", "http://localhost:15672")


def test_the_default_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """WORKQUEUE_URL goes before the embedded file; an empty one is none."""
    monkeypatch.setenv("WORKQUEUE_URL", "memory://default")
    assert default_url() == "memory://default"
    with connect() as broker:
        assert isinstance(broker.transport, MemoryTransport)
    monkeypatch.setenv("WORKQUEUE_URL", "")
    assert default_url() == f"sqlite:///{default_file()}"


def test_the_embedded_file_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the state folder, where all terminals meet; an absolute path."""
    monkeypatch.delenv("WORKQUEUE_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_file() == tmp_path / "workqueue" / "queue.db"
    assert default_url() == f"sqlite:///{tmp_path}/workqueue/queue.db"
