"""Secrets stay secret, and what strangers send stays data: the command line as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.unit.test_cli import ENOUGH, Shell
from workqueue import Producer, connect

SECRET = "s3cr3t-Pa55"
NOBODY = f"amqp://ada:{SECRET}@127.0.0.1:1/v"

HOSTILE = "\x1b[2J\x1b]52;c;aGk=\x07\nworkqueue: fake\r\x9b31m\u202egnp.exe\u2028\x7f\x00"
"""It clears the screen, fills the clipboard, adds a line, colours, turns the direction."""


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


# -- passwords ---------------------------------------------------------------------------------

EACH_IN_TURN = """
import contextlib, io, json, os, sys
from workqueue.cli.main import main
for arguments, environment in json.load(sys.stdin):
    os.environ.update(environment)
    sys.argv, told, sys.stdin = ["workqueue", *arguments], io.StringIO(), io.StringIO("{not json")
    sys.stdin.fileno = lambda: 0
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code
    print(json.dumps([arguments, code, told.getvalue()]), file=sys.__stdout__)
"""


def each_in_turn(
    shell: Shell, runs: list[tuple[list[str], dict[str, str]]]
) -> list[tuple[list[str], int, str]]:
    """Arguments, exit code and all output of many commands, run in one process to be quick."""
    done = subprocess.run(
        [sys.executable, "-c", EACH_IN_TURN],
        cwd=shell.folder,
        env=shell.environment,
        input=json.dumps(runs),
        capture_output=True,
        text=True,
        timeout=ENOUGH,
    )
    assert done.returncode == 0, done.stderr
    assert SECRET not in done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == len(runs)
    return ended


COMMANDS = """
send q x --timeout 100ms
send q x y --timeout 100ms --json
status q
peek q
peek q --state dead
watch q -n 1
declare q
purge q --yes
delete q --yes
migrate q --type classic --yes
dead list q
dead show q --all
dead requeue q --all
dead drop q --all --yes
doctor q
config show
plugins
nonsense
work q
"""


def test_no_password_where_nobody_answers(shell: Shell) -> None:
    """In no output of any command, tracebacks included."""
    environment = {
        "WORKQUEUE_URL": NOBODY,
        "WORKQUEUE_MANAGEMENT_URL": f"http://ada:{SECRET}@127.0.0.1:1",
    }
    lines = [line.split() for line in COMMANDS.strip().splitlines()]
    ended = each_in_turn(
        shell, [([*line, *(["-v"] * (line != ["nonsense"]))], environment) for line in lines]
    )
    for arguments, code, told in ended:
        assert SECRET not in told, arguments
        assert told, arguments
        assert (code == 0) == (arguments[0] in ("config", "plugins")), (arguments, told)
    assert sum("Traceback" in told for _, _, told in ended) > 10


BAD_URLS = [
    f"amqp://ada:{SECRET}#x@127.0.0.1:1/",
    f"amqp://ada:{SECRET}/x@127.0.0.1:1/",
    f"amqp://ada:{SECRET}?x@127.0.0.1:1/",
    f"amqp://ada:{SECRET}@x@127.0.0.1:1/",
    f"amqp://ada:{SECRET}:x@127.0.0.1:1/",
    f"amqp://ada:%{SECRET}@127.0.0.1:1/",
    f"amqp://ada:{SECRET}@[::1/",
    f"amqp://ada:{SECRET}@127.0.0.1:port/",
    f"amqp://ada:{SECRET}@\u2100/",
    f"amqps://ada:{SECRET}@127.0.0.1/?nonsense=1",
    f"http://ada:{SECRET}@127.0.0.1/",
    f"sqlite://ada:{SECRET}@host/file",
    f"memory://ada:{SECRET}@[host/",
    f"x://h/?password={SECRET}",
]


def test_no_password_of_a_url_that_cannot_be(shell: Shell) -> None:
    commands = (["status", "q", "-v"], ["config", "show"], ["doctor", "-v"])
    runs = [(command, {"WORKQUEUE_URL": url}) for url in BAD_URLS for command in commands]
    for (arguments, code, told), (_, environment) in zip(
        each_in_turn(shell, runs), runs, strict=True
    ):
        assert SECRET not in told, environment
        assert "this is a bug" not in told, environment
        assert code == (0 if arguments[0] == "config" else 78), environment


def test_no_password_of_a_management_url_that_cannot_be(shell: Shell) -> None:
    urls = [f"http://a:{SECRET}@[::1", f"http://a:{SECRET}\u2100@h", f"ftp://a:{SECRET}@h", "x"]
    runs = [
        (["status", "q", "-v", "--management-url", url], {"WORKQUEUE_URL": NOBODY}) for url in urls
    ]
    for _, code, told in each_in_turn(shell, runs):
        assert code == 78
        assert "Traceback" in told
        assert SECRET not in told


def test_the_command_line_can_be_seen_by_all(shell: Shell) -> None:
    """So it is said, with what to do instead."""
    result = shell("send", "q", "x", "--timeout", "100ms", "-u", NOBODY)
    assert "seen by all users" in result.err
    assert "WORKQUEUE_URL" in result.err
    assert "--url-file" in result.err
    result = shell("send", "q", "x", "--timeout", "100ms", WORKQUEUE_URL=NOBODY)
    assert "seen by all" not in result.err
    assert result.code == 69


def test_what_is_set_is_shown_without_its_secrets(shell: Shell) -> None:
    (shell.folder / "workqueue.toml").write_text(
        f'management-url = "http://ada:{SECRET}@host:15672"\n'
    )
    url = f"amqps://ada:{SECRET}@h/?cacertfile=/ca&password={SECRET}&x=1"
    rows = {
        row["setting"]: row["value"] for row in shell("config", "show", "--json", "-u", url).json
    }
    assert rows["url"] == "amqps://ada:***@h/?cacertfile=/ca&password=***&x=1"
    assert rows["management-url"] == "http://ada:***@host:15672"


def test_commands_do_not_see_the_url(shell: Shell) -> None:
    """Unless that is asked for."""
    show = (sys.executable, "-c", "import os; print(sorted(os.environ.items()))")
    secrets = {
        "WORKQUEUE_MANAGEMENT_URL": f"http://ada:{SECRET}@h",
        "WORKQUEUE_URL_FILE": f"/{SECRET}",
        "WORKQUEUE_URL": "sqlite:///jobs.db",
    }
    shell("send", "q", "x", "y", "z")
    options = ("work", "q", "--exec", "-n", "1")
    result = shell(*options, "--", *show, **secrets)
    assert "WORKQUEUE_ID" in result.out
    assert "jobs.db" not in result.out
    assert SECRET not in result.out
    assert "jobs.db" in shell(*options, "--pass-url", "--", *show, **secrets).out


def test_the_embedded_file_is_for_its_user_alone(shell: Shell) -> None:
    """Whatever the umask is; and so is the folder that is made for it."""
    before = os.umask(0)
    try:
        shell("send", "q", "x", WORKQUEUE_URL="")
        shell("send", "q", "x")
    finally:
        os.umask(before)
    made = shell.folder / "state" / "workqueue"
    assert (made.stat().st_mode & 0o777, (made / "queue.db").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    assert (shell.folder / "jobs.db").stat().st_mode & 0o777 == 0o600


# -- code --------------------------------------------------------------------------------------


def installed_command(
    shell: Shell, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run as users do, and not with `python -m`, which looks in the current folder first."""
    command = Path(sysconfig.get_path("scripts")) / "workqueue"
    if not command.exists():
        pytest.skip("the command is not installed beside this Python")
    return subprocess.run(
        [command, *arguments],
        cwd=shell.folder,
        env={**shell.environment, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ENOUGH,
    )


def test_nothing_is_imported_from_the_current_folder(shell: Shell) -> None:
    """Not a plugin's namesake, not a library's; the handler that was named is."""

    def run(*arguments: str) -> int:
        return installed_command(shell, *arguments).returncode

    trap = f"open({str(shell.folder / 'trapped')!r}, 'a').write(__name__)\n"
    for name in ("workqueue_x", "kombu", "msgspec", "typer", "json", "sqlite3", "rich"):
        (shell.folder / f"{name}.py").write_text(trap)
    info = shell.folder / "workqueue_x-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workqueue-x\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workqueue.transports]\nx = workqueue_x:X\n")
    assert run("send", "q", "x") == 0
    assert run("send", "q", "x", "-u", NOBODY, "--timeout", "100ms") == 69
    assert run("send", "q", "x", "-u", "x://h") == 78
    assert not (shell.folder / "trapped").exists()
    (shell.folder / "tasks.py").write_text("def handle(job): open('handled', 'a')\n")
    for handler in ("tasks:handle", "tasks.py:handle", f"{shell.folder}/tasks.py:handle"):
        for place in ("thread", "process"):
            assert run("send", "q", "x") == 0
            assert run("work", "q", handler, "-n", "1", "--in", place) == 0
            assert (shell.folder / "handled").exists(), (handler, place)
            (shell.folder / "handled").unlink()
    assert not (shell.folder / "trapped").exists()


@pytest.mark.parametrize("place", ["thread", "process"])
def test_an_installed_module_needs_no_file_of_the_current_folder(shell: Shell, place: str) -> None:
    """Not even one of the name of a module that it imports; and that is said."""
    (shell.folder / "fractions.py").write_text("open('trapped', 'w')\n")
    (shell.folder / "helper.py").write_text("def handle(job): open('handled', 'w')\n")
    (shell.folder / "tasks.py").write_text("from helper import handle\nimport fractions\n")
    options = ("--in", place, "-n", "1", "--max-attempts", "1")

    def work(handler: str, **environment: str) -> str:
        assert shell("send", "q", "x").code == 0
        done = installed_command(shell, "work", "q", handler, *options, **environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    assert f"{shell.folder / 'fractions.py'} is not used" in work("statistics:mean")
    work("tasks:handle")
    assert (shell.folder / "handled").exists()
    assert not (shell.folder / "trapped").exists()
    work("tasks:handle", PYTHONPATH=str(shell.folder))
    assert (shell.folder / "trapped").exists()


def test_no_shell_sees_a_message(shell: Shell) -> None:
    """Neither its body nor its headers, however they are quoted."""
    trap = shell.folder / "pwned"
    bodies = [f"$(touch {trap})", f"`touch {trap}`", f"; touch {trap} #", f"'; touch {trap} '"]
    for body in bodies:
        assert shell("send", "q", "-H", f"h={body}", "--id", body, body).code == 0
    shown = 'import os, sys; print(sys.stdin.read(), os.environ["WORKQUEUE_HEADERS"], sys.argv[1:])'
    command = (sys.executable, "-c", shown, f"$(touch {trap})", f"`touch {trap}`")
    result = shell("work", "q", "--exec", "--until-empty", "--", *command)
    assert not trap.exists()
    for body in bodies:
        assert result.out.count(body) >= 2  # on stdin, and as a header


# -- what is printed ---------------------------------------------------------------------------


def is_plain(text: str) -> bool:
    """Nothing in it that a terminal would act on, but ends of lines and tabs."""
    return text.replace("\n", "").replace("\t", "").isprintable()


@pytest.fixture
def hostile(shell: Shell) -> Shell:
    """A queue with a message that is hostile in all its parts, and a dead letter that is."""
    (shell.folder / "tasks.py").write_text(
        f"def handle(job): raise ValueError({HOSTILE.replace(chr(0), '')!r})\n"
    )
    with connect(f"sqlite:///{shell.folder / 'jobs.db'}") as broker:
        for name in ("q", "r"):
            with Producer(broker.queue(name)) as producer:
                producer.send(
                    HOSTILE,
                    id=f"id{HOSTILE}",
                    type=f"type{HOSTILE}",
                    headers={HOSTILE: HOSTILE},
                    correlation_id=HOSTILE,
                )
    return shell


def test_all_that_is_printed_is_plain(hostile: Shell) -> None:
    """By each command that shows messages, and in the log of the worker that handles them."""
    worked = hostile("work", "q", "tasks:handle", "--until-empty", "--max-attempts", "1")
    logged = hostile(
        *("work", "r", "tasks:handle", "--until-empty", "--max-attempts", "1"),
        *("--log-format", "json", "-v"),
    )
    assert [line for line in logged.err.splitlines() if "fake" in line]
    assert len([line for line in worked.err.splitlines() if "set aside" in line]) == 1
    sendable = HOSTILE.replace("\0", "")
    commands = [
        ["dead", "requeue", "r", "--all"],
        ["peek", "r"],
        ["peek", "r", "--json"],
        ["peek", "q", "--state", "dead"],
        ["peek", "q", "--state", "dead", "--json"],
        ["dead", "list", "q"],
        ["dead", "list", "q", "--json"],
        ["dead", "show", "q", "--all"],
        ["dead", "requeue", "q", "--all", "--dry-run"],
        ["dead", "list", "q", "--error", sendable],
        ["status", "q"],
        ["status", sendable],
        ["send", "q", "--ttl", sendable, "x"],
        ["send", "q", "-H", sendable, "x", "-v"],
    ]
    for arguments, _, told in each_in_turn(hostile, [(command, {}) for command in commands]):
        assert is_plain(told), (arguments, told)
        assert told, arguments
    assert is_plain(worked.err)
    assert is_plain(logged.err)


def test_json_says_the_same_all_the_same(hostile: Shell) -> None:
    """What is escaped reads as it was, so that it can be sent again."""
    [record] = hostile("peek", "q", "--json").json
    assert (record["body"], record["id"]) == (HOSTILE, f"id{HOSTILE}")
    assert record["headers"] == {HOSTILE: HOSTILE}
    lines = hostile("peek", "q", "--json").out
    assert hostile("send", "again", "--envelope", "-", stdin=lines).code == 0
    [again] = hostile("peek", "again", "--json").json
    assert again["body"] == HOSTILE


def test_json_without_numbers_that_are_none(shell: Shell) -> None:
    from workqueue.cli.output import to_json

    line = to_json({"a": float("nan"), "b": [float("inf"), "\x9b\U000e0001\ud800"]})
    assert line == r'{"a": null, "b": [null, "\u009b\udb40\udc01\ud800"]}'
    assert json.loads(line)["b"][1] == "\x9b\U000e0001\ud800"
