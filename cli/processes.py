"""``aegis worker`` and ``aegis beat``: Celery's own commands, on AEGIS's app, in this very process."""

from __future__ import annotations

import os
import secrets
import sys
from typing import Final

import click

from ..config.settings import settings
from ..core.errors import DatabaseUnavailable
from ..workers.load import load_workflows
from .connect import database

_PASS_ON: Final = {"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]}
_json_option = click.option("--json", "as_json", is_flag=True, help="Log one JSON object a line.")


@click.command("worker", context_settings=_PASS_ON)
@click.option(
    "-c", "--concurrency", type=click.IntRange(min=1), help="How many handlers at once; a core each by default."
)
@click.option("-Q", "--queues", help="The queues to listen to, separated by commas.")
@_json_option
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker_command(
    concurrency: int | None, queues: str | None, celery_options: tuple[str, ...], *, as_json: bool
) -> None:
    """Run a worker; any number may run, on any host. Other options go to `celery worker` as they are."""
    _can_run(as_json=as_json)
    options = list(celery_options)
    if not any(option.startswith(("-n", "--hostname")) for option in options):
        # A name of its own, also beside others on the same host.
        options.append(f"--hostname=aegis-{secrets.token_hex(2)}@%h")
    # Neighbours have nothing to tell each other here; and asking takes a second at each start and reconnect.
    options += [quiet for quiet in ("--without-mingle", "--without-gossip") if quiet not in options]
    if concurrency is not None:
        options.append(f"--concurrency={concurrency}")
    if queues is not None:
        options.append(f"--queues={queues}")
    _become("worker", options)


@click.command("beat", context_settings=_PASS_ON)
@_json_option
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def beat_command(celery_options: tuple[str, ...], *, as_json: bool) -> None:
    """Run beat: the recovery sweep and the periodic checkpoint. Two at once are safe.

    Other options go to `celery beat` as they are.
    """
    _can_run(as_json=as_json)
    _become("beat", list(celery_options))


def _can_run(*, as_json: bool) -> None:
    """Say what is wrong before Celery starts: its own words for it are many."""
    if as_json:
        os.environ["AEGIS_LOG_FORMAT"] = "json"  # what answers nothing speaks by its log
    load_workflows(settings().workflows)
    if not settings().workflows:
        click.echo("aegis: no workflows: name their modules in AEGIS_WORKFLOWS", err=True)
    try:
        database().close()
    except DatabaseUnavailable as error:
        click.echo(f"aegis: {error}; waiting for it", err=True)


def _become(command: str, options: list[str]) -> None:
    # Celery takes this process over: signals and the pid stay what a process manager knows.
    arguments = [sys.executable, "-m", "celery", "-A", "aegis.workers.app", command, *options]
    os.execv(sys.executable, arguments)  # noqa: S606
