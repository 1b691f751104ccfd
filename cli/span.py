"""Spans of time as one types them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

import click

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def read_span(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    """Read a span of time: ``90d``, ``12h``, ``30m``, ``45s``."""
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,9})([dhms])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no span such as 90d, 12h, 30m or 45s")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


older_than = click.option("--older-than", callback=read_span, metavar="SPAN", help="Such as 90d, 12h, 30m or 45s.")
