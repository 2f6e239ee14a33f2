"""Where defaults come from, strongest first:

    the command line
    WORKQUEUE_… in the environment
    ./workqueue.toml, or [tool.workqueue] in ./pyproject.toml
    the user's config.toml ($XDG_CONFIG_HOME/workqueue)
    what the code says

Keys are the flags' names. A file that cannot be read or has an unknown key is an error: a setting
that was meant and silently ignored is worse.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from workqueue.errors import ConfigError


@dataclass(frozen=True)
class Setting:
    """A value from a file. `name` is the flag's, without dashes in front."""

    name: str
    value: Any
    source: Path


def candidate_files() -> list[Path]:
    """Where settings may be, weakest first."""
    from platformdirs import user_config_path

    user = user_config_path("workqueue", appauthor=False) / "config.toml"
    return [user, Path("pyproject.toml"), Path("workqueue.toml")]


def load_settings() -> dict[str, Setting]:
    """All settings from files, the stronger file winning. Raises ConfigError."""
    settings: dict[str, Setting] = {}
    for file in candidate_files():
        for name, value in read(file).items():
            settings[name.replace("_", "-")] = Setting(name.replace("_", "-"), value, file)
    return settings


def read(file: Path) -> Mapping[str, Any]:
    try:
        table: Any = tomllib.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"cannot read {file}: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        if file.name == "pyproject.toml":
            return {}  # the project's own affair
        raise ConfigError(f"{file}: {error}") from error
    if file.name == "pyproject.toml":
        table = table.get("tool", {}).get("workqueue", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: tool.workqueue is not a table")
    return table


def flags_of(group: Any) -> dict[str, dict[str, str]]:
    """For each command, the flags that can be set, and the parameters they belong to."""
    return {
        name: {
            option.removeprefix("--"): parameter.name
            for parameter in command.params
            if parameter.param_type_name == "option"
            for option in parameter.opts
            if option.startswith("--") and option not in ("--help", "--exec")
        }
        for name, command in group.commands.items()
    }


def variables_of(group: Any) -> dict[str, str]:
    """The flags that can be set in the environment, and by which variable."""
    return {
        option.removeprefix("--"): parameter.envvar
        for command in group.commands.values()
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--") and isinstance(parameter.envvar, str)
    }


def default_map(settings: Mapping[str, Setting], group: Any) -> dict[str, dict[str, Any]]:
    """The settings as each command's defaults. Raises ConfigError for a key that no flag has."""
    flags = flags_of(group)
    known = {flag for names in flags.values() for flag in names}
    for setting in settings.values():
        if setting.name not in known:
            raise ConfigError(
                f"{setting.source}: there is no setting {setting.name}",
                hint="Settings are named as the flags are: workqueue work --help",
            )
    return {
        command: {
            parameter: settings[flag].value for flag, parameter in names.items() if flag in settings
        }
        for command, names in flags.items()
    }


def apply_settings(ctx: typer.Context) -> None:
    """Make the files' settings the defaults of whatever command follows."""
    settings = load_settings()
    if settings:
        ctx.default_map = default_map(settings, ctx.command)
