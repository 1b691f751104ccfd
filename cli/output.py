"""How commands speak: tables for people, ``--json`` for programs, one line for an error."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")

EXIT_OK: Final = 0
"""It was done, and the answer is yes."""
EXIT_NO: Final = 1
"""It was done, and the answer is no: tampered with, degraded, ended without completing."""
EXIT_ERROR: Final = 2
"""It could not be done: bad input, or something is away."""

_UNLIMITED: Final = 1000

STATUS_STYLE: Final[Mapping[str, str]] = {
    "completed": "green",
    "pending": "cyan",
    "waiting": "blue",
    "paused": "yellow",
    "failed": "red",
    "quarantined": "red",
    "cancelled": "dim",
    "ok": "green",
    "warning": "yellow",
    "degraded": "yellow",
    "down": "red",
}


class Output:
    """One command's voice: every command says what it has to say once, to people or to programs."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        # In a file or a pipe, lines are as long as they are.
        self.console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _UNLIMITED)

    def show(self, data: object, render: Callable[[Console], None]) -> None:
        """Print ``data`` as JSON, or have it rendered for people."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(data), ensure_ascii=False, indent=2) + "\n")
        else:
            render(self.console)

    def say(self, data: Mapping[str, Any], line: str) -> None:
        """Print ``data`` as JSON, or one line for people."""
        # As text: a string would be searched for markup and emoji codes, and lines hold ids and messages of others.
        self.show(data, lambda console: console.print(Text(line)))

    def warn(self, line: str) -> None:
        """Say something that does not belong to the result."""
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"aegis: {line}", style="yellow"))


def json_option(command: Callable[P, R]) -> Callable[..., R]:
    """Give a command ``--json``, and an ``Output`` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead.")
    @functools.wraps(command)
    def with_output(*args: Any, as_json: bool, **kwargs: Any) -> R:
        click.get_current_context().meta["aegis.json"] = as_json
        return command(Output(as_json=as_json), *args, **kwargs)  # type: ignore[arg-type]

    return with_output


def fail(message: str, kind: str, *, as_json: bool) -> NoReturn:
    """End with an error, in one line."""
    if as_json:
        sys.stderr.write(json.dumps({"error": message, "type": kind}, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"aegis: {' '.join(message.split())}\n")
    sys.exit(EXIT_ERROR)


def plain(value: object) -> Any:
    """Return what JSON can say of a record."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(member) for key, member in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table in the one style that all commands have."""
    made = Table(
        box=None, pad_edge=False, header_style="bold", show_edge=False, show_header=any(columns), padding=(0, 2, 0, 0)
    )
    for column in columns:
        # The last column takes what is left of the line; no other is ever broken.
        made.add_column(column, no_wrap=column is not columns[-1], overflow="fold")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made


def status_text(status: str, *, running: bool = False) -> Text:
    """Return a status in its colour."""
    return Text("running" if running else status, style="bold cyan" if running else STATUS_STYLE.get(status, ""))


def moment(at: datetime | None) -> str:
    """Return a time for people: in their own zone, to the second."""
    return "-" if at is None else at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
