"""Commands of other distributions: the entry points in `workqueue.commands`.

They are looked for when a word is none of our commands, and listed in the help. Only the one that
is called is loaded, so a broken one breaks nothing else.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from workqueue import registry
from workqueue.cli.plain import PlainGroup
from workqueue.errors import ConfigError, WorkqueueError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PANEL = "Plugins"


class CommandsAndPlugins(PlainGroup):
    """Our commands, and those of plugins under names that none of ours has."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + [name for name in registry.names(registry.COMMANDS) if name not in own]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A plugin's is here only its name, and where it is from: enough to list it."""
        return super().get_command(ctx, cmd_name) or listed(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        own = super().get_command(ctx, args[0])
        if own is None and (found := registry.find(registry.COMMANDS, args[0])):
            return args[0], loaded(found), args[1:]
        return super().resolve_command(ctx, args)


def listed(name: str) -> Any:
    """A line of the help for the plugin `name`; None if there is no such plugin."""
    found = registry.find(registry.COMMANDS, name)
    if found is None:
        return None
    told = f"From {origin(found)}."
    return TyperCommand(name, help=told, short_help=told, rich_help_panel=PANEL)


def loaded(found: EntryPoint) -> Any:
    """The command itself. Raises ConfigError if it cannot be loaded, or is none."""
    app = registry.load(found)
    if not isinstance(app, typer.Typer):
        raise ConfigError(
            f"the plugin {found.name} of {origin(found)} is a {type(app).__name__}, no Typer app",
            hint="See all of them: workqueue plugins",
        )
    command = typer.main.get_command(app)
    command.name = found.name
    command.invoke = guarded(command.invoke, found)  # type: ignore[method-assign,assignment]
    return command


def guarded(invoke: Callable[[Any], Any], found: EntryPoint) -> Callable[[Any], Any]:
    """The same, whose failures are not taken for a bug of ours."""

    def guarded_invoke(context: Any) -> Any:
        gc.enable()
        try:
            return invoke(context)
        except (WorkqueueError, OSError, typer.Exit, typer.Abort):
            raise
        except Exception as error:
            if hasattr(error, "format_message"):  # the command line cannot be understood
                raise
            raise WorkqueueError(
                f"the plugin {found.name} of {origin(found)} failed: "
                f"{type(error).__name__}: {error}",
                hint="Its author may want to see the traceback that follows -v.",
            ) from error

    return guarded_invoke


def origin(found: EntryPoint) -> str:
    return f"{found.dist.name} {found.dist.version}" if found.dist else "an unknown distribution"
