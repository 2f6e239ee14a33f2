"""The command line as a process: flags, JSON keys, exit codes, errors of at most three lines."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import workqueue
from workqueue import connect
from workqueue.message import Message
from workqueue.testing import eventually

ENOUGH = 60.0


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Shell:
    """A folder of its own, where nothing of the user's is seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("WORKQUEUE_")
        } | {
            "HOME": str(folder),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "WORKQUEUE_URL": "sqlite:///jobs.db",
        }

    def __call__(self, *arguments: str, stdin: str | bytes | None = None, **env: str) -> Result:
        given = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [sys.executable, "-m", "workqueue", *arguments],
            cwd=self.folder,
            env={**self.environment, **env},
            input=given,
            stdin=subprocess.DEVNULL if given is None else None,
            capture_output=True,
            timeout=ENOUGH,
        )
        return Result(done.returncode, done.stdout.decode(), done.stderr.decode())

    def bodies(self, queue: str = "q") -> list[str]:
        seen = self("peek", queue, "-n", "1000", "--json").json
        return [line.get("body", line.get("body_base64")) for line in seen]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def is_error(result: Result, code: int, *told: str) -> None:
    """That code, a few lines without a traceback, and the last of them to type next."""
    assert result.code == code, result
    lines = result.err.splitlines()
    assert "Traceback" not in result.err
    error = [n for n, line in enumerate(lines) if line.startswith("workqueue: ")]
    assert error
    assert len(lines) - error[-1] <= 3, result.err
    assert "Try: " in lines[-1]
    for text in told:
        assert text in result.err


# -- send --------------------------------------------------------------------------------------


def test_bodies(shell: Shell) -> None:
    result = shell("send", "q", "a", "-", "b")
    assert (result.code, result.out) == (0, "")
    assert result.err == "made queue q\n3 messages to q\n"
    assert shell.bodies() == ["a", "-", "b"]
    assert shell("send", "q", "--", "-5").code == 0
    is_error(shell("send", "q", "-5"), 2)


@pytest.mark.parametrize("arguments", [("-",), (), ("-f", "-")])
def test_lines(shell: Shell, arguments: tuple[str, ...]) -> None:
    """From standard input: a line each, the last one with or without an end."""
    assert shell("send", "q", *arguments, stdin="one\r\ntwo\n\nfour").code == 0
    assert shell.bodies() == ["one", "two", "", "four"]


def test_nothing_at_all(shell: Shell) -> None:
    """Is nothing wrong, if it comes from a pipe; a forgotten body is."""
    assert shell("send", "q", "-", stdin="").code == 0
    assert shell("send", "q", "-", "--json", stdin="").json == [
        {"queue": "q", "sent": 0, "failed": 0}
    ]
    is_error(shell("send", "q"), 2, "nothing to send")


def test_files_and_wholes(shell: Shell) -> None:
    (shell.folder / "lines").write_text("a\nb\n")
    assert shell("send", "q", "-f", "lines").code == 0
    assert shell("send", "q", "-f", "lines", "--whole").code == 0
    assert shell("send", "q", "-", "--whole", stdin="x\ny\n").code == 0
    assert shell.bodies() == ["a", "b", "a\nb\n", "x\ny\n"]
    is_error(shell("send", "q", "-f", "nosuch"), 65, "cannot read nosuch")


def test_what_a_body_is_taken_for(shell: Shell) -> None:
    """auto: an object or an array is JSON, anything else text, so 7 and 007 are alike."""
    shell("send", "q", '{"a": 1}', "[1]", "7", "007", "null", "{broken")
    shell("send", "q", "-", "--whole", stdin=b"\xff\xfe")
    seen = shell("peek", "q", "--json").json
    types = [line["content_type"] for line in seen]
    text, as_json = "text/plain", "application/json"
    assert types == [as_json, as_json, text, text, text, text, "application/octet-stream"]
    assert seen[-1]["body_base64"] == "//4="
    assert shell("send", "q", "7", "--as", "json").code == 0
    assert shell("send", "q", '{"a": 1}', "--as", "text").code == 0


def test_a_bad_line_stops_with_its_number(shell: Shell) -> None:
    """What stood before it is sent."""
    lines = '{"n": 1}\n{"n": 2}\n{"n": \n{"n": 4}\n'
    is_error(
        shell("send", "q", "--as", "json", "-", stdin=lines), 65, "line 3 is not JSON", "2 sent"
    )
    assert len(shell.bodies()) == 2


def test_properties(shell: Shell) -> None:
    sent = ("send", "q", "x", "--id", "me", "--type", "t", "-H", "a=1", "-H", "b=x=y")
    assert shell(*sent, "--priority", "9", "--json").json == [
        {"queue": "q", "sent": 1, "failed": 0, "ids": ["me"]}
    ]
    [line] = shell("peek", "q", "--json").json
    assert (line["id"], line["type"], line["priority"]) == ("me", "t", 9)
    assert line["headers"] == {"a": "1", "b": "x=y"}
    is_error(shell("send", "q", "x", "y", "--id", "me"), 2, "--id names one message")
    is_error(shell("send", "q", "x", "-H", "novalue"), 2, "NAME=VALUE")
    is_error(shell("send", "q", "x", "--priority", "10"), 2)


def test_times(shell: Shell) -> None:
    assert shell("send", "q", "late", "--delay", "1h30m", "--ttl", "250ms").code == 0
    assert shell("status", "q", "--json").json[0]["delayed"] == 1
    [line] = shell("peek", "q", "--state", "delayed", "--json").json
    assert line["body"] == "late"
    for bad in ("x", "-1s", "31d", "5 m"):
        is_error(shell("send", "q", "x", f"--delay={bad}"), 2)
    is_error(shell("send", "q", "x", "--ttl", "0s"), 2, "ttl 0 s")


def test_a_full_queue(shell: Shell) -> None:
    """How many are in, and why not more; status says the same."""
    assert shell("declare", "q", "--max-length", "100").code == 0
    lines = "".join(f"{n}\n" for n in range(1000))
    result = shell("send", "q", "-", "--timeout", "1s", "--json", stdin=lines)
    is_error(result, 3, "full", "100 sent", "nor what comes after")
    assert result.json == [{"queue": "q", "sent": 100, "failed": 900}]
    assert shell("status", "q", "--json").json[0]["ready"] == 100
    is_error(shell("send", "q", "x", "--timeout", "300ms"), 1, "full")


def test_envelopes(shell: Shell) -> None:
    """What peek prints can be sent again: the same id, and a fresh life."""
    shell("send", "q", "a", "--id", "one", "--type", "t", "-H", "k=v", "--priority", "7")
    line = shell("peek", "q", "--json").out
    assert shell("send", "copy", "--envelope", "-", stdin=line).code == 0
    [before], [after] = shell("peek", "q", "--json").json, shell("peek", "copy", "--json").json
    assert after == {**before, "queue": "copy"}
    assert shell("send", "q", "--envelope", '{"body": {"a": 1}}').code == 0
    assert shell.bodies()[-1] == '{"a":1}'
    is_error(shell("send", "q", "--envelope", '{"body": 1'), 65, "not an envelope")
    is_error(shell("send", "q", "--envelope", '{"id": "x"}'), 65, "has no body")
    is_error(shell("send", "q", "--envelope", '{"body_base64": "%"}'), 65, "not base64")
    is_error(shell("send", "q", "--envelope", '{"body": "x", "priority": 99}'), 65, "priority")


def test_what_others_sent_is_copied_whole(shell: Shell) -> None:
    """Also with a priority, an application's name and headers that none of our senders can give."""
    headers = {
        "blob": b"\xff\0",
        "YmxvYg==": "YmxvYg==",
        "deep": {"a/b~c": [1, b"in a list", "text"]},
        "CC": ["audit"],
        "float": 0.5,
    }
    sent = Message(
        body=b"\xff",
        id="one",
        content_type="application/octet-stream",
        content_encoding="base64",
        type="t",
        headers=headers,
        priority=200,
        correlation_id="c",
        reply_to="r",
        app_id="their application",
    )
    with connect(f"sqlite:///{shell.folder}/jobs.db") as broker:
        broker.queue("q").declare()
        with closing(broker.transport.publisher()) as publisher:
            publisher.publish("q", [sent], 5.0)
        line = shell("peek", "q", "--json").out
        assert shell("send", "copy", "--envelope", "-", stdin=line).code == 0
        [copy] = broker.transport.peek("copy", 2)
        assert replace(copy.message, sent_at=None) == sent
        options = ("--priority", "3", "-H", "blob=x")
        assert shell("send", "copy", "--envelope", "-", *options, stdin=line).code == 0
        _, copy = broker.transport.peek("copy", 2)
        assert (copy.message.priority, copy.message.headers["blob"]) == (3, "x")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"body": "x", "attempt": 1, "priority": 256}', "between 0 and 255"),
        ('{"body": "x", "priority": 10}', "between 0 and 9"),
        ('{"body": "x", "headers": {"h": "%"}, "headers_base64": ["/h"]}', "/h is not base64"),
        ('{"body": "x", "headers_base64": "/h"}', "not an envelope"),
        ('{"body": "x", "app_id": "%s"}' % ("x" * 256), "app_id"),
    ],
)
def test_envelopes_that_cannot_be_sent(shell: Shell, line: str, says: str) -> None:
    is_error(shell("send", "q", "--envelope", line), 65, says)


def test_options_go_before_what_an_envelope_says(shell: Shell) -> None:
    line = '{"id": "one", "body": "x", "type": "t", "headers": {"a": 1, "b": 2}}'
    options = ("--id", "two", "--type", "u", "-H", "b=3")
    assert shell("send", "q", "--envelope", line, *options).code == 0
    [seen] = shell("peek", "q", "--json").json
    assert (seen["id"], seen["type"], seen["headers"]) == ("two", "u", {"a": 1, "b": "3"})


def test_a_file_that_cannot_be_read_stops_before_anything_is_sent(shell: Shell) -> None:
    (shell.folder / "lines").write_text("a\nb\n")
    for bad in ("nosuch", "."):
        is_error(shell("send", "q", "-f", "lines", "-f", bad), 65, f"cannot read {bad}: ")
    assert shell("status", "q").code == 1
    (shell.folder / "bad").write_text('{"a": 1}\n7 8\n')
    result = shell("send", "q", "-f", "lines", "-f", "bad", "--as", "text", "x", "--json")
    assert result.code == 0
    bad = shell("send", "q", '{"z": 0}', "-f", "bad", "--as", "json", "--json")
    is_error(bad, 65, "bad line 2 is not JSON", "2 sent before it")
    assert bad.json[0]["sent"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--id", ""), 2, "--id is empty"),
        (("--id", "i" * 256), 65, "id 'iiii"),
        (("--type", "ü" * 128), 65, "type 'üü"),
        (("-H", "workqueue-failures=4"), 2, "are our own"),
        (("--as",), 2, "'--as' requires an argument"),
    ],
)
def test_properties_that_cannot_be(
    shell: Shell, arguments: tuple[str, ...], code: int, told: str
) -> None:
    """The same on every transport; nothing is sent."""
    result = shell("send", "q", "x", *arguments)
    is_error(result, code, told)
    assert result.err.splitlines()[-1] == "  Try: workqueue send --help"
    assert shell("status", "q").code == 1


def test_interrupted_while_sending(shell: Shell) -> None:
    """Exit 130, and how many are in for certain."""
    sender = subprocess.Popen(
        [sys.executable, "-m", "workqueue", "send", "q", "-"],
        cwd=shell.folder,
        env=shell.environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert sender.stdin
    sender.stdin.write(b"a\nb\n")
    sender.stdin.flush()
    eventually(lambda: shell("status", "q").code == 0 and len(shell.bodies()) == 2, within=ENOUGH)
    sender.stdin.write(b"c\n")
    sender.stdin.flush()
    # Others see what may not be on the disk yet: once c is there, a and b are in for certain.
    eventually(lambda: len(shell.bodies()) == 3, within=ENOUGH)
    sender.send_signal(signal.SIGINT)
    _, told = sender.communicate(timeout=ENOUGH)
    assert sender.returncode == 130
    assert told in (b"interrupted: at least %d sent to q\n" % certain for certain in (2, 3))


# -- work --------------------------------------------------------------------------------------


def test_commands(shell: Shell) -> None:
    shell("send", "q", "a", "b")
    result = shell("work", "q", "--exec", "--until-empty", "--json", "--", "cat")
    assert result.code == 0
    assert result.out.startswith("ab{")
    tally = json.loads(result.out[2:])
    assert tally == {
        "queue": "q",
        "done": 2,
        "retried": 0,
        "dead": 0,
        "handed_back": 0,
        "lost": 0,
    }


def test_handlers(shell: Shell) -> None:
    """A function, a task, a queue; by module or by file."""
    (shell.folder / "tasks.py").write_text(
        "from workqueue import connect\n"
        "queue = connect().queue('q')\n"
        "def handle(job): print('handled', job.payload, flush=True)\n"
        "@queue.task\n"
        "def greet(name: str): print('hello', name, flush=True)\n"
    )
    shell("send", "q", "x")
    work = ("work", "q", "--until-empty", "--quiet")
    assert shell(*work, "tasks:handle").out == "handled x\n"
    shell("send", "q", '{"name": "ada"}', "--type", "greet")
    assert shell(*work, "tasks.py:greet").out == "hello ada\n"
    shell("send", "q", '{"name": "bob"}', "--type", "greet")
    assert shell(*work, "tasks:queue", "--in", "thread").out == "hello bob\n"


def test_a_queues_own_retries(shell: Shell) -> None:
    """What the handler's queue asks for, unless the command line says otherwise."""
    (shell.folder / "tasks.py").write_text(
        "from workqueue import RetryPolicy, connect\n"
        "queue = connect().queue('q', retry=RetryPolicy(max_attempts=2, first=0))\n"
        "@queue.task\n"
        "def fail(): raise LookupError('no')\n"
    )
    work = ("work", "q", "tasks:queue", "--until-empty", "--json")
    shell("send", "q", "{}", "--type", "fail")
    [tally] = shell(*work).json
    assert (tally["retried"], tally["dead"]) == (1, 1)
    shell("send", "q", "{}", "--type", "fail")
    [tally] = shell(*work, "--max-attempts", "1").json
    assert (tally["retried"], tally["dead"]) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("--exec", "ls", "-l"), 2, "Try: workqueue work q --exec -- ls -l"),
        (("--exec", "-c", "2", "ls"), 2, "Try: workqueue work q --exec -c 2 -- ls"),
        (("--exec", "--"), 2, "--exec needs a command"),
        ((), 2, "one HANDLER"),
        (("a:b", "c:d"), 2, "one HANDLER"),
        (("nosuch:handle",), 78, "there is no module nosuch"),
        (("--exec", "--", "nosuch"), 78, "there is no command nosuch"),
        (("--exec", "--prefetch", "x", "--", "true"), 2, "auto"),
        (("--exec", "-c", "0", "--", "true"), 2, ""),
        (("--exec", "--backoff", "9s..1s", "--", "true"), 78, "backoff 9..1 s"),
        (("--exec", "--middleware", "nosuch", "--", "true"), 78, "no middleware nosuch"),
        (("--exec", "--reload", "--", "true"), 2, "--reload"),
        (("json:loads", "--in", "thread", "--timeout", "1s"), 78, "cannot be stopped"),
    ],
)
def test_work_that_cannot_be(
    shell: Shell, arguments: tuple[str, ...], code: int, told: str
) -> None:
    result = shell("work", "q", *arguments)
    assert result.code == code, result
    assert told in result.err
    assert "working q" not in result.err
    assert "Traceback" not in result.err
    assert "Try: " in result.err.splitlines()[-1]


def test_exit_statuses_of_commands(shell: Shell) -> None:
    """65 is never, 75 is again however often, others are attempts."""
    shell("send", "q", "0", "65", "1", "75")
    script = '[ "$WORKQUEUE_ATTEMPT" -lt 4 ] || exit 0; exit $(cat)'
    options = ("--until-empty", "--max-attempts", "2", "--backoff", "10ms")
    result = shell("work", "q", "--exec", *options, "--json", "--", "sh", "-c", script)
    [tally] = result.json
    assert (tally["done"], tally["dead"], tally["retried"]) == (2, 2, 4)
    letters = shell("dead", "list", "q", "--json").json
    assert {letter["body"]: letter["attempt"] for letter in letters} == {"65": 1, "1": 2}


def test_so_many_and_no_more(shell: Shell) -> None:
    shell("send", "q", "a", "b", "c")
    assert shell("work", "q", "--exec", "-n", "2", "--quiet", "--", "cat").out == "ab"
    assert shell.bodies() == ["c"]


def test_the_url_is_not_for_commands(shell: Shell) -> None:
    shell("send", "q", "a")
    show = ("--", "sh", "-c", 'echo "url=$WORKQUEUE_URL"')
    work = ("work", "q", "--exec", "--until-empty", "--quiet")
    assert shell(*work, *show).out == "url=\n"
    shell("send", "q", "a")
    assert shell(*work, "--pass-url", *show).out == "url=sqlite:///jobs.db\n"


# -- look and mend -----------------------------------------------------------------------------


def test_status(shell: Shell) -> None:
    shell("send", "q", "a")
    [found] = shell("status", "q", "--json").json
    assert list(found) == [
        "queue",
        "ready",
        "in_flight",
        "delayed",
        "dead",
        "consumers",
        "oldest_ready_s",
    ]
    assert (found["queue"], found["ready"], found["dead"]) == ("q", 1, 0)
    lines = shell("status").out.splitlines()
    assert lines[0].split("\t") == list(found)
    assert lines[1].startswith("q\t1\t0\t0\t0\t0\t")
    is_error(shell("status", "q", "nosuch"), 1, "queue nosuch does not exist")
    assert not (shell.folder / "other.db").exists()
    is_error(shell("status", "q", "-u", "sqlite:///other.db"), 1)
    assert not (shell.folder / "other.db").exists()


def test_tables_show_no_control_characters(shell: Shell) -> None:
    shell("send", "q", "-", "--whole", stdin="a\x1b[2Jb\tc\u202ed\n")
    out = shell("peek", "q").out
    assert "a\\x1b[2Jb\\tc\\u202ed\\n" in out
    assert "\x1b" not in out


def test_peek(shell: Shell) -> None:
    shell("send", "q", "a", "b", "c")
    assert len(shell("peek", "q", "-n", "2", "--json").json) == 2
    assert shell.bodies() == ["a", "b", "c"]
    is_error(shell("peek", "nosuch"), 1)


def test_watch(shell: Shell) -> None:
    shell("send", "q", "a")
    lines = shell("watch", "q", "-i", "100ms", "-n", "2").out.splitlines()
    assert len(lines) == 3
    assert lines[0].split("\t")[:3] == ["time", "queue", "ready"]
    first, second = shell("watch", "q", "-i", "100ms", "-n", "2", "--json").json
    assert (first["in_per_s"], second["in_per_s"]) == (None, 0.0)
    is_error(shell("watch", "nosuch"), 1)
    is_error(shell("watch", "q", "-i", "1ms"), 2)


def test_purge_and_delete(shell: Shell) -> None:
    """Not without a word."""
    shell("send", "q", "a", "b")
    is_error(shell("purge", "q"), 2, "say --yes")
    assert shell("purge", "q", "--yes", "--json").json == [{"queue": "q", "dropped": 2}]
    is_error(shell("delete", "q"), 2, "say --yes")
    assert shell("delete", "q", "--yes").code == 0
    is_error(shell("delete", "q", "--yes"), 1)
    is_error(shell("purge", "nosuch", "--yes"), 1)


def test_declare_and_migrate(shell: Shell) -> None:
    assert shell("declare", "q", "--dry-run", "--json").json == [
        {"queue": "q", "made": True, "dry_run": True}
    ]
    assert shell("declare", "q", "r", "--max-length", "5").code == 0
    other = shell("declare", "q", "--max-length", "6")
    is_error(other, 78, "max length is 5, not 6", "or migrate it")
    assert other.err.splitlines()[-1] == "  Try: workqueue migrate q --max-length 6 --dry-run"
    result = shell("migrate", "q", "--max-length", "6", "--dry-run", "--json")
    assert result.json == [{"queue": "q", "changes": {"max length": {"from": 5, "to": 6}}}]
    is_error(shell("migrate", "q", "--max-length", "6"), 2, "say --yes")
    assert shell("migrate", "q", "--max-length", "6", "--yes").code == 0
    assert shell("declare", "q", "--max-length", "6").code == 0
    is_error(shell("migrate", "q", "--yes"), 2, "say what is to change")
    is_error(shell("migrate", "nosuch", "--ttl", "5s", "--yes"), 1)
    is_error(shell("declare", "a\nb"), 78)


def test_dead_letters(shell: Shell) -> None:
    shell("send", "q", "a", "b", "c")
    fail = ("work", "q", "--exec", "--until-empty", "--max-attempts", "1", "--", "sh", "-c")
    shell(*fail, "echo no $(cat) >&2; exit 1")
    letters = shell("dead", "list", "q", "--json").json
    assert [letter["body"] for letter in letters] == ["a", "b", "c"]
    keys = {"id", "queue", "body", "headers", "type", "attempt", "reason", "error", "dead_at"}
    assert keys | {"sent_at", "worker"} <= set(letters[0])
    assert letters[0]["reason"] == "the command exited with status 1: no a"
    assert len(shell("dead", "list", "q", "--error", "no b", "--json").json) == 1
    assert len(shell("dead", "list", "q", "--limit", "2", "--json").json) == 2
    assert "no a" in shell("dead", "show", "q", letters[0]["id"]).out
    assert len(shell("dead", "show", "q", "--error", "no b", "--json").json) == 1
    assert len(shell("dead", "show", "q", "--all", "--json").json) == 3
    is_error(shell("dead", "show", "q"), 2, "say which")
    is_error(shell("dead", "show", "q", "nosuch"), 1, "no dead letter nosuch", "dead list q")
    is_error(shell("dead", "requeue", "q"), 2, "--all")
    is_error(shell("dead", "requeue", "q", "x", "--all"), 2, "contradict")
    assert len(shell("dead", "requeue", "q", "--all", "--dry-run", "--json").json) == 3
    assert shell("dead", "requeue", "q", letters[0]["id"], "--json").json == [
        {"queue": "q", "requeued": 1}
    ]
    assert shell.bodies() == ["a"]
    is_error(shell("dead", "drop", "q", "--all"), 2, "say --yes")
    assert shell("dead", "drop", "q", "--error", "no b", "--yes").code == 0
    assert [line["body"] for line in shell("dead", "list", "q", "--json").json] == ["c"]
    assert "nothing to do" in shell("dead", "requeue", "q", "--error", "nosuch").err
    is_error(shell("dead", "list", "nosuch"), 1)
    assert shell("dead", "list", "q.dead", "--json").json == []


def test_a_demo_that_cannot_begin_leaves_nothing_behind(shell: Shell) -> None:
    """And does not say that it did."""
    result = shell("demo", "-u", "sqlite:////nosuch/folder/x.db")
    is_error(result, 78, "the folder /nosuch/folder does not exist")
    assert result.err.splitlines()[-1] == "  Try: mkdir -p /nosuch/folder"
    assert "still there" not in result.err


# -- streams -----------------------------------------------------------------------------------


def without(shell: Shell, redirection: str, *arguments: str) -> Result:
    """A command as a shell starts it with `>&-` and the like."""
    line = shlex.join([sys.executable, "-m", "workqueue", *arguments])
    done = subprocess.run(
        ["sh", "-c", f"{line} {redirection}"],
        cwd=shell.folder,
        env=shell.environment,
        capture_output=True,
        text=True,
        timeout=ENOUGH,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_streams_that_are_closed(shell: Shell) -> None:
    """What belongs on one does not land on another, or in the queue's file."""
    assert without(shell, "2>&-", "send", "q", "a", "b", "c") == Result(0, "", "")
    assert without(shell, ">&-", "status").code == 0
    assert without(shell, "2>&-", "status", "nosuch") == Result(1, "", "")
    is_error(without(shell, "<&-", "send", "q", "-"), 65, "cannot read standard input")
    is_error(without(shell, "<&-", "send", "q"), 2, "nothing to send")
    none = "<&- >&- 2>&-"
    assert without(shell, none, "work", "q", "--exec", "-n", "1", "--", "cat").code == 0
    (shell.folder / "tasks.py").write_text("def handle(job): print(job.payload)\n")
    assert without(shell, none, "work", "q", "tasks:handle", "-n", "1").code == 0
    assert shell.bodies() == ["c"]


@pytest.mark.parametrize("arguments", [("--version",), ("plugins",), ("plugins", "--json")])
def test_output_that_goes_nowhere(shell: Shell, arguments: tuple[str, ...]) -> None:
    """Its reader has left, or the disk is full: no traceback, and not our bug."""
    left = without(shell, "| true; exit 0", *arguments)
    assert (left.out, left.err) == ("", "")
    if Path("/dev/full").exists():
        is_error(without(shell, "> /dev/full", *arguments), 1, "cannot write to standard output")


# -- settings and errors -----------------------------------------------------------------------


def test_where_settings_come_from(shell: Shell) -> None:
    """Flags, then the environment, then ./workqueue.toml, then the project's, then the user's."""
    user = shell.folder / "config" / "workqueue"
    user.mkdir(parents=True)
    shell.environment.pop("WORKQUEUE_URL")
    names = ["flag", "env", "here", "project", "user"]
    urls = {name: f"sqlite:///{name}.db" for name in names}
    (user / "config.toml").write_text(f"url = '{urls['user']}'\n")
    (shell.folder / "pyproject.toml").write_text(f"[tool.workqueue]\nurl = '{urls['project']}'\n")
    (shell.folder / "workqueue.toml").write_text(f"url = '{urls['here']}'\n")

    def used(*arguments: str, **env: str) -> str:
        assert shell("send", "q", "x", *arguments, **env).code == 0
        [found] = [path.stem for path in shell.folder.glob("*.db")]
        for path in shell.folder.glob("*.db*"):
            path.unlink() if path.is_file() else [p.unlink() for p in path.iterdir()]
        return found

    assert used("-u", urls["flag"], WORKQUEUE_URL=urls["env"]) == "flag"
    assert used(WORKQUEUE_URL=urls["env"]) == "env"
    assert used() == "here"
    (shell.folder / "workqueue.toml").unlink()
    assert used() == "project"
    (shell.folder / "pyproject.toml").unlink()
    assert used() == "user"
    (shell.folder / "workqueue.toml").write_text("colour = 'red'\n")
    is_error(shell("status"), 78, "there is no setting colour")


@pytest.mark.parametrize("content", ["url = \n", "colour = 'red'\n"])
def test_help_is_shown_whatever_the_settings(shell: Shell, content: str) -> None:
    """It may be how the mistake is found; the commands themselves are refused."""
    (shell.folder / "workqueue.toml").write_text(content)
    for asked in (["--help"], ["work", "-h"], ["dead", "--help"], ["dead", "list", "--help"]):
        told = shell(*asked)
        assert (told.code, told.err) == (0, "")
        assert "Usage: workqueue" in told.out
    assert "Usage: workqueue dead" in shell("dead").out
    for command in (["status"], ["dead", "list", "q"], ["send", "q", "--", "--help"]):
        is_error(shell(*command), 78, "workqueue.toml: ")


def test_settings_are_for_commands_within_commands_too(shell: Shell) -> None:
    shell.environment.pop("WORKQUEUE_URL")
    (shell.folder / "workqueue.toml").write_text("url = 'sqlite:///here.db'\n")
    shell("send", "q", "x")
    assert shell("work", "q", "--exec", "-n", "1", "--", "sh", "-c", "exit 65").code == 0
    assert len(shell("dead", "list", "q", "--json").json) == 1


def test_a_file_with_the_url_in_it(shell: Shell) -> None:
    """Goes before a URL from a weaker place, and after one from the same or a stronger."""
    (shell.folder / "secret").write_text("sqlite:///secret.db\n")

    def used(*arguments: str, **env: str) -> str:
        lines = shell("config", "show", "--json", *arguments, **env).json
        [value] = [line["value"] for line in lines if line["setting"] == "url"]
        return value.removeprefix("sqlite:///").removesuffix(".db")

    file, flag = ("--url-file", "secret"), ("-u", "sqlite:///flag.db")
    assert used(*file) == "secret"
    assert used(*file, *flag) == "flag"
    assert used(WORKQUEUE_URL_FILE="secret") == "jobs"
    assert used(*flag, WORKQUEUE_URL_FILE="secret") == "flag"
    (shell.folder / "workqueue.toml").write_text("url = 'sqlite:///here.db'\n")
    assert used(WORKQUEUE_URL="", WORKQUEUE_URL_FILE="secret") == "secret"
    assert shell("send", "q", "x", *file).code == 0
    assert (shell.folder / "secret.db").exists()
    (shell.folder / "secret").write_text("\n")
    is_error(shell("status", *file), 78, "secret is empty")


def test_the_other_projects_settings_are_its_own(shell: Shell) -> None:
    (shell.folder / "pyproject.toml").write_text("tool = 3\n")
    assert shell("status").code == 0
    (shell.folder / "pyproject.toml").write_text("[tool]\nworkqueue = 3\n")
    is_error(shell("status"), 78, "tool.workqueue is not a table")
    (shell.folder / "pyproject.toml").unlink()
    file = shell.folder / "workqueue.toml"
    file.write_text("url = \n")
    broken = shell("status")
    is_error(broken, 78, "workqueue.toml: Invalid value")
    assert broken.err.splitlines()[-1] == "  Try: ${EDITOR:-vi} workqueue.toml"
    file.write_text("concurrency = 'x'\n")
    is_error(shell("work", "q", "a:b"), 78, "workqueue.toml: concurrency = 'x': ", "integer")
    is_error(shell("work", "q", "a:b", "-c", "y"), 2, "-c")
    assert shell("status").code == 0


def test_no_password_is_shown(shell: Shell) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"amqp://ada:geheim@127.0.0.1:{port}/"
    results = [
        shell("send", "q", "x", "--timeout", "1s", "-v", WORKQUEUE_URL=url),
        shell("status", "q", WORKQUEUE_URL=url),
        shell("config", "show", WORKQUEUE_URL=url),
        shell("config", "show", "--json", "-u", url),
        shell("send", "q", "x", "-u", "amqp://ada:geheim@[nonsense/"),
    ]
    for result in results:
        assert "geheim" not in result.out + result.err
    is_error(shell("send", "q", "x", "--timeout", "1s", WORKQUEUE_URL=url), 69, str(port))
    (shell.folder / "secret").write_text(f"{url}\n")
    result = shell("status", "q", "--url-file", "secret", WORKQUEUE_URL="")
    is_error(result, 69, str(port))


@pytest.mark.parametrize(
    ("url", "code", "told"),
    [
        ("nosuch://x", 78, "workqueue-nosuch"),
        ("jobs.db", 78, "no scheme"),
        ("sqlite:////nosuch/folder/x.db", 78, "the folder /nosuch/folder does not exist"),
        ("sqlite:///text.txt", 78, "not a database"),
        ("amqp://guest@host:port/", 78, ""),
        (f"sqlite:///{'n' * 300}", 78, "File name too long"),
        ("memory://", 78, "are of one process"),
    ],
)
def test_urls_that_lead_nowhere(shell: Shell, url: str, code: int, told: str) -> None:
    (shell.folder / "text.txt").write_text("not a database" * 100)
    is_error(shell("send", "q", "x", "-u", url), code, told)


def test_a_broken_plugin_breaks_nothing_else(shell: Shell) -> None:
    """It is listed with its error."""
    info = shell.folder / "site" / "workqueue_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: workqueue-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workqueue.transports]\nbroken = nosuch_module:X\n")
    path = os.pathsep.join([str(info.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    shell.environment["PYTHONPATH"] = path
    rows = [line.split("\t") for line in shell("plugins").out.splitlines()]
    [row] = [row for row in rows if row[1] == "broken"]
    assert row[2] == "workqueue-broken"
    assert row[4].startswith("broken: ModuleNotFoundError")
    assert shell("send", "q", "x").code == 0
    is_error(shell("send", "q", "x", "-u", "broken://x"), 78, "plugin broken", "cannot be loaded")


def test_a_bug_of_ours_says_so(shell: Shell) -> None:
    """Exit 70; a traceback only with -v."""
    (shell.folder / "sitecustomize.py").write_text(
        "import workqueue.queue\nworkqueue.queue.Queue.stats = lambda self: 1 / 0\n"
    )
    shell.environment["PYTHONPATH"] = str(shell.folder)
    is_error(shell("status", "q"), 70, "this is a bug in workqueue: ZeroDivisionError")
    assert "Traceback" in shell("status", "q", "-v").err


def test_version_and_help(shell: Shell) -> None:
    assert shell("--version").out == f"workqueue {workqueue.__version__}\n"
    for arguments in (("-h",), ("send", "-h"), ("dead", "list", "--help")):
        result = shell(*arguments)
        assert (result.code, result.err) == (0, "")
        assert "Usage" in result.out
    for arguments in ((), ("dead",)):
        assert shell(*arguments).code == 2
        assert shell(*arguments).err == ""  # once: on stdout, as asked for by -h
    is_error(shell("nosuch"), 2, "no such command 'nosuch'")
    is_error(shell("send", "q", "x", "--nosuch"), 2)


def test_the_embedded_default_is_introduced(shell: Shell) -> None:
    """At first use, and not again."""
    shell.environment.pop("WORKQUEUE_URL")
    first, second = shell("send", "q", "x"), shell("send", "q", "x")
    assert "using the embedded queue" in first.err
    assert "embedded" not in second.err
    assert (shell.folder / "state" / "workqueue" / "queue.db").stat().st_mode & 0o777 == 0o600
    assert shell("send", "q", "x", "--quiet").err == ""
