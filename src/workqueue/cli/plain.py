"""Values that need no converting, or only a word of it, kept from the library that would do it.

Typer converts what it has parsed with pydantic, whose import takes longer than all else that
`workqueue send` does, and ten megabytes for as long as a worker lives. So a value about which
there is no doubt is taken here. All others are left to Typer, which also says what is wrong.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from typer.core import TyperCommand, TyperGroup

SAID = ("COMMANDLINE", "ENVIRONMENT")
"""The sources whose values are words. One from a file of settings may be anything."""


class InDoubt(Exception):
    """A value that is for Typer to convert, or to refuse."""


class PlainCommand(TyperCommand):
    """A command whose plain values are taken without pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        return take_plain_values(super().get_params(ctx), self.callback)


class PlainGroup(TyperGroup):
    """The same for the options before a command, and --help, which come by default."""

    def get_params(self, ctx: Any) -> list[Any]:
        return take_plain_values(super().get_params(ctx), self.callback)


def take_plain_values(parameters: list[Any], function: Callable[..., Any] | None) -> list[Any]:
    """The parameters of `function`, and those that Typer added, which now look themselves at each
    value before Typer does."""
    new = [parameter for parameter in parameters if "process_value" not in vars(parameter)]
    declared = inspect.signature(function).parameters if new and function else {}
    for parameter in new:
        found = declared.get(parameter.name)
        parameter.process_value = process_plainly(parameter, found and found.annotation)
    return parameters


def process_plainly(parameter: Any, annotation: Any) -> Callable[[Any, Any], Any]:
    """What may stand for the method of that name (its name and place are click's)."""
    leave_to_typer = parameter.process_value
    convert = conversion(*get_args(annotation)) if get_origin(annotation) else leave_in_doubt

    def process_value(context: Any, value: Any) -> Any:
        source = context.get_parameter_source(parameter.name)
        try:
            plain = plain_value(value, source and source.name)
        except Exception:  # noqa: BLE001 - Typer says what is wrong
            return leave_to_typer(context, value)
        return parameter.callback(context, parameter, plain) if parameter.callback else plain

    def plain_value(value: Any, source: str | None) -> Any:
        if source == "DEFAULT" and not parameter.required:
            return value
        if source not in SAID or not value:
            raise InDoubt
        return [convert(word) for word in value] if is_list(value) else convert(value)

    return process_value


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def conversion(kind: Any, info: Any) -> Callable[[Any], Any]:
    """How a word becomes a `kind`, as Typer would do it; it raises InDoubt where Typer shall."""
    kinds = [each for each in get_args(kind) if each is not type(None)]
    if get_origin(kind) in (UnionType, Union, list) and len(kinds) == 1:
        return conversion(kinds[0], info)
    if info.parser is not None:
        return info.parser  # type: ignore[no-any-return]  # what Typer would call, too
    if kind is str:
        return text
    if kind is int:
        return lambda word: whole_number(word, info.min, info.max)
    if get_origin(kind) is Literal:
        return lambda word: one_of(word, kinds)
    return leave_in_doubt


def text(word: Any) -> str:
    if not isinstance(word, str):
        raise InDoubt
    return word


def whole_number(word: Any, least: float | None, most: float | None) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text(word)):
        raise InDoubt
    number = int(word)
    if (least is not None and number < least) or (most is not None and number > most):
        raise InDoubt
    return number


def one_of(word: Any, choices: list[str]) -> str:
    if word not in choices:
        raise InDoubt
    return text(word)


def leave_in_doubt(_: Any) -> Any:
    raise InDoubt
