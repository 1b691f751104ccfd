"""``aegis demo``: see workflows of real work survive killed workers and a wiped broker."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Final, Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..config.settings import settings
from ..demo.chaos import Chaos
from ..demo.files import default_directory
from ..demo.ledger import Progress as RunProgress
from ..demo.run import Plan, Report, run
from .output import EXIT_NO, EXIT_OK, Output, json_option, table

_DEFAULT_FILES: Final = 300


@click.command("demo")
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--files", default=_DEFAULT_FILES, show_default=True, type=click.IntRange(1, 100_000), help="At most so many."
)
@click.option(
    "--archive", type=click.Path(path_type=Path), help="Where to put the archive; below AEGIS_HOME by default."
)
@click.option("--chaos/--no-chaos", default=True, help="Kill workers at random and wipe the broker once.")
@click.option(
    "--patience", default=300.0, show_default=True, type=click.FloatRange(min=1), help="Give up after so many seconds."
)
@json_option
def demo_command(
    out: Output, directory: Path | None, files: int, archive: Path | None, patience: float, *, chaos: bool
) -> int:
    """Archive the files below DIRECTORY, one durable workflow for each, and be rough with it.

    Each file is read, fingerprinted, compressed into an archive, read back, compared, and entered into a
    manifest table in the checkpoint's own transaction. Meanwhile workers are killed with SIGKILL and the
    broker is wiped. In the end everything is counted, every chain is verified, and the manifest is
    compared with what `sha256sum` says of the originals. DIRECTORY is Python's standard library by default.

    Exit status: 0 all was well, 1 something was off.
    """
    plan = Plan(
        directory=directory or default_directory(), most_files=files, archive=archive, chaos=chaos, patience=patience
    )
    began = time.monotonic()
    console = Console(stderr=out.as_json, highlight=False)
    with _Screen(console) as screen:
        report = run(plan, settings(), screen.tell, screen.watch)
    out.show(report, lambda here: render(here, plan, report, time.monotonic() - began))
    return EXIT_NO if report.problems else EXIT_OK


class _Screen:
    """Live progress: one bar, and a line for each thing that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total} workflows"),
            TextColumn("{task.fields[also]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, also="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, line: str) -> None:
        """Print something that happened, above the bar."""
        self._console.print(told(time.monotonic() - self._began, line))

    def watch(self, progress: RunProgress, chaos: Chaos | None) -> None:
        """Move the bar."""
        also = f"{progress.transitions} transitions"
        if chaos is not None:
            also += f", {chaos.kills} kills, {chaos.wipes} wipes"
        self._bar.update(
            self._task,
            description="archiving",
            completed=progress.completed,
            total=max(1, progress.workflows),
            also=also,
        )


def told(seconds: float, line: str) -> Text:
    """Return something that happened, with its time since the start."""
    return Text.assemble((f"{seconds:6.1f} s  ", "dim"), line)


def render(console: Console, plan: Plan, report: Report, total: float) -> None:
    """Print what a run came to."""
    ok, off = ("green", "red")
    zero = {True: ok, False: off}
    rows: list[tuple[object, object]] = [
        ("files", f"{report.files} of {_named(plan.directory)}"),
        ("workflows", report.workflows),
        ("transitions", f"{report.transitions} in {report.seconds:.1f} s, {report.per_second:.0f} a second"),
        ("workers killed", report.kills),
        ("broker wiped", report.wipes),
        ("workflows resumed", f"{report.resumed} cut off in a handler, and gone on from their last checkpoint"),
        ("able to go on after", _times(report)),
        ("lost", Text(str(report.lost), style=zero[report.lost == 0])),
        ("recorded twice", Text(str(report.recorded_twice), style=zero[report.recorded_twice == 0])),
        ("chains verified", f"{report.chains_verified} of {report.workflows}"),
        ("manifest", f"{report.manifest_matches} of {report.files} as sha256sum says of the originals"),
        ("archive", report.archive),
    ]
    console.print()
    console.print(table(("", ""), rows))
    console.print()
    for problem in report.problems:
        console.print(Text(problem, style=off))
    verdict = "nothing lost, nothing recorded twice" if not report.problems else "something is off"
    console.print(Text.assemble((verdict, f"bold {off if report.problems else ok}"), f" - {total:.0f} s in all"))


def _named(directory: Path) -> str:
    return "Python's standard library" if directory == default_directory() else str(directory)


def _times(report: Report) -> str:
    parts = []
    if report.recovery_after_kill:
        times = report.recovery_after_kill
        parts.append(f"a kill {median(times):.1f} s (median), {max(times):.1f} s (longest)")
    if report.recovery_after_wipe:
        parts.append(f"the wipe {max(report.recovery_after_wipe):.1f} s")
    return ", ".join(parts) or "-"
