"""``aegis``: the group of all commands, and the one place where errors become lines and statuses."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from ..core.errors import AegisError
from .output import EXIT_ERROR, fail

# Each command is loaded when it is called: a short one should not wait for what a long one needs.
_COMMANDS: Final = {
    "up": "up",
    "demo": "demo",
    "drill": "drill",
    "worker": "processes",
    "beat": "processes",
    "start": "steering",
    "send": "steering",
    "pause": "steering",
    "resume": "steering",
    "retry": "retrying",
    "cancel": "steering",
    "checkpoint": "steering",
    "wait": "steering",
    "list": "reading",
    "show": "reading",
    "history": "reading",
    "effects": "effects",
    "effect": "effects",
    "verify": "verify",
    "export": "transfer",
    "import": "transfer",
    "erase": "removing",
    "prune": "removing",
    "purge": "removing",
    "check": "check",
    "health": "health",
    "metrics": "metrics",
    "cluster": "cluster",
    "keys": "keys",
    "backup": "backup",
    "restore": "restore",
    "reconcile": "reconcile",
    "db": "db",
}
_INTERRUPTED: Final = 130


class Commands(click.Group):
    """The commands, in the order in which a newcomer meets them."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the names."""
        return list(_COMMANDS)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant, or say which one may have been."""
        if args and not args[0].startswith("-") and args[0] not in _COMMANDS:
            close = difflib.get_close_matches(args[0], _COMMANDS, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else "`aegis --help` lists those there are"
            raise click.UsageError(f"there is no command {args[0]!r}; {remedy}")
        return super().resolve_command(context, args)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """Load a command."""
        if name not in _COMMANDS:
            return None
        module = importlib.import_module(f".{_COMMANDS[name]}", __package__)
        command: click.Command = getattr(module, f"{name}_command")
        return command


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - it takes time, and is asked for rarely

    return version("aegis-workflows")


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"aegis {_version()}")
        context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version."
)
def aegis() -> None:
    """Durable workflows on Celery and PostgreSQL.

    Begin with `aegis demo`, or `aegis up`. Settings come from variables, AEGIS_DATABASE_URL and
    AEGIS_BROKER_URL first of all; with neither set, the private servers of `aegis up` are used.

    Exit status: 0 done, and the answer is yes; 1 done, and the answer is no (tampered with, degraded,
    ended without completing); 2 it could not be done.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    given = sys.argv[1:] if arguments is None else arguments
    as_json = "--json" in given
    # As with `python -m`: modules that AEGIS_WORKFLOWS names are found in the folder one is in.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        status: Any = aegis.main(args=given, prog_name="aegis", standalone_mode=False)
    except click.ClickException as error:
        fail(error.format_message(), "Usage", as_json=as_json)
    except click.Abort:
        sys.exit(_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except AegisError as error:
        fail(str(error), type(error).__name__, as_json=as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `aegis list | head`
        sys.exit(EXIT_ERROR)
    except Exception as error:
        if os.environ.get("AEGIS_LOG_LEVEL") == "debug":
            raise
        problem = f"{type(error).__name__}: {error} (a fault of AEGIS: AEGIS_LOG_LEVEL=debug shows where)"
        fail(problem, type(error).__name__, as_json=as_json)
    sys.exit(status if isinstance(status, int) else 0)
