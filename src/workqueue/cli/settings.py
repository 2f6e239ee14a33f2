"""Where defaults come from, strongest first:

    the command line
    WORKQUEUE_… in the environment
    ./workqueue.toml, or [tool.workqueue] in ./pyproject.toml
    the user's config.toml ($XDG_CONFIG_HOME/workqueue)
    what the code says

Keys are the flags' names. A file that cannot be read or has an unknown key is an error: a setting
that was meant and silently ignored is worse. Only help is shown all the same.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import typer

from workqueue.errors import ConfigError
from workqueue.registry import own_folder

LONGEST = 1_000_000
"""Characters of a file of settings."""

BROKER = {"url", "url-file"}
"""The settings that name the broker."""


class BadSettings(ConfigError):
    """A file of settings that cannot be used."""

    def __init__(self, file: Path, problem: str, *, hint: str = "") -> None:
        super().__init__(f"{file}: {problem}", hint=hint)
        self.file = file


class Setting(msgspec.Struct, frozen=True):
    """A value from a file. `name` is the flag's, without dashes in front."""

    name: str
    value: Any
    source: Path


def candidate_files() -> list[Path]:
    """Where settings may be, weakest first."""
    from platformdirs import user_config_path

    own = own_folder(user_config_path)
    files = [Path("pyproject.toml"), Path("workqueue.toml")]
    return [own / "config.toml", *files] if own else files


def load_settings() -> dict[str, Setting]:
    """All settings from files, the stronger file winning. Raises ConfigError."""
    settings: dict[str, Setting] = {}
    for file in candidate_files():
        table = {name.replace("_", "-"): value for name, value in read(file).items()}
        if table.keys() & BROKER:
            # Two ways to name the broker: one in a stronger file ends the other.
            settings = {name: found for name, found in settings.items() if name not in BROKER}
        settings |= {name: Setting(name, value, file) for name, value in table.items()}
    return settings


def is_there(file: Path) -> bool:
    """Whether there is such a file. In a folder that this user may not search, nobody has left
    settings for this user."""
    try:
        return bool(file.stat())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    except (OSError, ValueError) as error:
        raise BadSettings(file, getattr(error, "strerror", None) or str(error)) from error


def text_of(file: Path) -> str:
    """What is in `file`. Raises BadSettings."""
    mode = file.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):  # /dev/null stands for no settings
        raise BadSettings(file, "it is not a regular file")
    try:
        with file.open() as opened:
            text = opened.read(LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise BadSettings(file, reason) from error
    if len(text) > LONGEST:
        raise BadSettings(file, f"it is longer than {LONGEST:,} characters")
    return text


def read(file: Path) -> Mapping[str, Any]:
    if not is_there(file):
        return {}
    text = text_of(file)
    # Imported late: most have no such file, and wait for each command to begin.
    import tomllib

    try:
        table: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if file.name == "pyproject.toml":
            return {}  # the project's own affair
        raise BadSettings(file, str(error)) from error
    if file.name == "pyproject.toml":
        tools = table.get("tool", {})
        table = tools.get("workqueue", {}) if isinstance(tools, dict) else {}
    if not isinstance(table, dict):
        raise BadSettings(file, "tool.workqueue is not a table")
    return table


def commands_of(group: Any) -> Iterator[Any]:
    """All commands, those of groups within the group too."""
    for command in group.commands.values():
        yield from commands_of(command) if hasattr(command, "commands") else [command]


def flags_of(command: Any) -> dict[str, str]:
    """The flags of a command that can be set, and the parameters they belong to."""
    return {
        option.removeprefix("--"): parameter.name
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
        if option.startswith("--") and option not in ("--help", "--exec")
    }


def variables_of(group: Any) -> dict[str, str]:
    """The flags that can be set in the environment, and by which variable."""
    return {
        option.removeprefix("--"): parameter.envvar
        for command in commands_of(group)
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and isinstance(parameter.envvar, str)
    }


def check_names(settings: Mapping[str, Setting], group: Any) -> None:
    """Raises ConfigError for a key that no flag has."""
    known = {flag for command in commands_of(group) for flag in flags_of(command)}
    for setting in settings.values():
        if setting.name not in known:
            raise BadSettings(
                setting.source,
                f"there is no setting {setting.name}",
                hint="Settings are named as the flags are: workqueue work --help",
            )


def default_map(settings: Mapping[str, Setting], group: Any) -> dict[str, Any]:
    """The settings as the defaults of each command, and of those of groups within the group."""
    return {
        name: default_map(settings, command)
        if hasattr(command, "commands")
        else {
            parameter: settings[flag].value
            for flag, parameter in flags_of(command).items()
            if flag in settings
        }
        for name, command in group.commands.items()
    }


def setting_behind(error: Any) -> Setting | None:
    """The setting of a file that a usage error is about, if it is."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or parameter is None:
        return None
    source = context.get_parameter_source(parameter.name)
    if source is None or source.name != "DEFAULT_MAP":
        return None
    named = [option.removeprefix("--") for option in parameter.opts]
    return next((found for name, found in load_settings().items() if name in named), None)


def are_there_settings() -> bool:
    """Whether a file has any. One that cannot be used may."""
    try:
        return bool(load_settings())
    except BadSettings:
        return True


def apply_settings(ctx: typer.Context) -> None:
    """Make the files' settings the defaults of whatever command follows.

    If they cannot be used, it is told to the command that is run, and not to one whose help is
    asked for: that may be how the mistake is found.
    """
    try:
        settings = load_settings()
        check_names(settings, ctx.command)
    except BadSettings as error:
        for command in commands_of(ctx.command):
            command.invoke = refusal(error)
        return
    if settings:
        ctx.default_map = default_map(settings, ctx.command)


def refusal(error: BadSettings) -> Callable[[Any], NoReturn]:
    """What may stand for a command's method `invoke` (its name is click's)."""

    def invoke(_context: Any) -> NoReturn:
        raise error

    return invoke
