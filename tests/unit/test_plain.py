"""Plain values of the command line: the same as Typer makes of them, without what it takes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.main import get_command

from tests.unit.test_imports import loaded_by
from workqueue import Producer, connect
from workqueue.cli import plain
from workqueue.cli.app import make_app

WORDS = {
    "send": "body - {} --id=7 --id --type --as json text yaml --delay 5m 1h30m soon --ttl=3 "
    "--priority 9 10 -1 ٣ 1.5 -H a=b -Hc=d --whole --envelope -f file --timeout=1s -u x: --json "
    "--quiet -v --url-file=f --nosuch -- -vf --prio",
    "work": "tasks:handle -c 3 0 -c2 --concurrency=x --in thread process THREAD --prefetch auto 1 "
    "--prefetch=0 --backoff 1s..10m 2s .. --timeout 30s -n --max-attempts 99999999999 --ack=early "
    "--until-empty --ack late --middleware m:x --exec -- --pass-url --health-port 80 70000",
    "declare": "r --type quorum classic --max-length=5 --ttl 1d 0",
}
ENVIRONMENT = {
    "WORKQUEUE_URL": ["sqlite:///x", ""],
    "WORKQUEUE_TIMEOUT": ["9s", "x", ""],
    "WORKQUEUE_CONCURRENCY": ["4", "0", " 5 "],
    "WORKQUEUE_IN": ["thread", "other"],
    "WORKQUEUE_PREFETCH": ["auto", "7", "-7"],
    "WORKQUEUE_MIDDLEWARE": ["a:b", "a:b c:d"],
}


@pytest.fixture(scope="module")
def ours() -> Any:
    return get_command(make_app())


@pytest.fixture(scope="module")
def typers() -> Any:
    """The same commands, with every value converted by Typer."""
    app = get_command(make_app())
    for name in WORDS:
        command = app.commands[name]
        parts = {"get_params": plain.TyperCommand.get_params}
        command.__class__ = type("Whole", (type(command),), parts)
    return app


def outcome(app: Any, command: str, words: list[str], settings: dict[str, Any]) -> Any:
    """What the command's function would be given, or the error; and where each value is from."""
    try:
        context = app.commands[command].make_context(command, list(words), default_map=settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must say it
        told = getattr(error, "format_message", error.__str__)()
        return type(error).__name__, told, getattr(getattr(error, "param", None), "name", "")
    return {
        name: (as_called(value), context.get_parameter_source(name))
        for name, value in context.params.items()
    }


def as_called(value: Any) -> Any:
    """As the function gets it: Typer makes a list of what is several, and None of no default."""
    return list(value) or None if isinstance(value, list | tuple) else value


@st.composite
def lines(draw: Any) -> tuple[str, list[str], dict[str, str], dict[str, Any]]:
    command = draw(st.sampled_from(sorted(WORDS)))
    words = draw(st.lists(st.sampled_from(["", *WORDS[command].split()]), max_size=5))
    words = draw(st.sampled_from([[], ["q"]])) + words
    variables = draw(st.lists(st.sampled_from(sorted(ENVIRONMENT)), max_size=2, unique=True))
    environment = {name: draw(st.sampled_from(ENVIRONMENT[name])) for name in variables}
    settings = draw(st.sampled_from([{}, {"timeout": 5}, {"timeout": "x"}, {"concurrency": "2"}]))
    return command, words, environment, settings


@settings(max_examples=400, deadline=None)
@example(line=("send", ["q", "--priority", "10"], {}, {}))
@example(line=("send", ["q", "a", "b", "-H", "a=b", "-Hc=d"], {}, {}))
@example(line=("work", ["q", "t:h", "--prefetch", "auto", "-c", "3"], {"WORKQUEUE_IN": "x"}, {}))
@given(line=lines())
def test_every_value_is_what_typer_makes_of_it(ours: Any, typers: Any, line: Any) -> None:
    """And every refusal is Typer's, word for word."""
    command, words, environment, defaults = line
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        assert outcome(ours, command, words, defaults) == outcome(typers, command, words, defaults)


@pytest.mark.parametrize(
    "line",
    [
        "send q x --delay=1s --priority=3 --as=text -Ha=b --json",
        "work q --exec -c2 --backoff=1s -n1 --until-empty -- cat",
        "declare q --type=classic --max-length=3",
        "dead list q --limit=5",
        "status",
    ],
    ids=lambda line: line.split()[0],
)
def test_plain_values_load_no_pydantic(line: str, tmp_path: Any, monkeypatch: Any) -> None:
    """It takes longer to import than a message to send."""
    monkeypatch.setenv("WORKQUEUE_URL", f"sqlite:///{tmp_path}/q.db")
    Producer(connect().queue("q")).send("x")
    loaded = loaded_by(
        f"import contextlib, sys; sys.argv = {['workqueue', *line.split()]!r}\n"
        "from workqueue.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main()"
    )
    assert "workqueue.transports.sqlite.driver" in loaded
    assert not {"pydantic", "pydantic_core", "rich"} & loaded
