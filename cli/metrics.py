"""``aegis metrics``: the figures of a deployment, for Prometheus."""

from __future__ import annotations

import click

from ..config.settings import settings
from ..tasks.metrics import metrics


@click.command("metrics")
def metrics_command() -> None:
    """Print the figures of a deployment in Prometheus's text format.

    For node_exporter's textfile collector, from cron or a timer:
    `aegis metrics > /var/lib/node_exporter/aegis.prom`.
    """
    click.echo(metrics(settings()), nl=False)
