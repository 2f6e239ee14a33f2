"""Commands that are printed for people to run: a name in one stays a name."""

from __future__ import annotations

import ast
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

import workqueue
from workqueue.transport import DEAD_SUFFIX
from workqueue.transports.rabbitmq.survey import Survey
from workqueue.transports.rabbitmq.topology import Abilities
from workqueue.transports.rabbitmq.verdicts import (
    judge_dead,
    judge_nodes,
    judge_permissions,
    judge_queue,
    judge_timeout,
)
from workqueue.transports.sqlite.examination import missing

SOURCES = Path(workqueue.__file__).parent

PROGRAMS = (
    *("workqueue declare", "workqueue migrate", "workqueue dead", "workqueue delete"),
    *("workqueue doctor", "workqueue work", "workqueue peek", "workqueue purge"),
    *("workqueue send", "workqueue status", "workqueue watch", "rabbitmq", "openssl ", "pip "),
    *("chmod ", "mkdir ", "ls ", "df ", "fuser ", "sqlite3 ", "nc "),
)

QUOTING = {"quote", "join"}

OUR_OWN = {"private", "verb", "options", "port", "before", "delay", "priority"}
"""Names of what is not anybody else's text: modes, verbs, options with numbers. Constants are ours
as well."""

HOSTILE = "$(touch trapped); 'x' `id` --yes"


def commands_in(tree: ast.AST) -> Iterator[ast.JoinedStr]:
    """The texts that begin with a program's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr) and node.values:
            first = node.values[0]
            if isinstance(first, ast.Constant) and str(first.value).startswith(PROGRAMS):
                yield node


def is_quoted(value: ast.expr) -> bool:
    if isinstance(value, ast.Call):
        called = value.func
        return (called.attr if isinstance(called, ast.Attribute) else called.id) in QUOTING  # type: ignore[attr-defined]
    if isinstance(value, ast.BinOp):
        return isinstance(value.op, ast.FloorDiv)  # a number
    return isinstance(value, ast.Name) and (value.id in OUR_OWN or value.id.isupper())


def test_all_commands_quote_what_is_in_them() -> None:
    """Wherever they are made."""
    found = 0
    for file in SOURCES.rglob("*.py"):
        for command in commands_in(ast.parse(file.read_text())):
            for value in command.values:
                if isinstance(value, ast.FormattedValue):
                    found += 1
                    assert is_quoted(value.value), f"{file.name}: {ast.unparse(command)}"
    assert found > 20


@pytest.mark.parametrize("type_", ["quorum", "classic", "stream"])
def test_hostile_queue_names(type_: str) -> None:
    """Each command of `doctor` reads as words of which the name is one."""
    abilities = Abilities((4, 0, 0))
    arguments = {"x-queue-type": type_, "x-max-length": 5, "x-consumer-timeout": 5000}
    survey = Survey(HOSTILE, abilities, arguments)
    dead = Survey(HOSTILE + DEAD_SUFFIX, abilities, arguments)
    findings = [
        missing(HOSTILE),
        *judge_queue(survey, {}),
        *judge_dead(dead, {}),
        judge_timeout(survey, {}, None),
        judge_timeout(survey, {}, 100.0),
        *judge_permissions({}, ["q"], HOSTILE),
        *judge_nodes([{"name": HOSTILE, "running": False}], [(HOSTILE, "memory")]),
    ]
    for finding in findings:
        if "touch" in finding.command:
            for command in finding.command.split(", then "):
                words = shlex.split(command)
                assert HOSTILE in words or HOSTILE + DEAD_SUFFIX in words, finding.command
