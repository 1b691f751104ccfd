"""Spans of time as one types them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

import click

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


SPANS: Final = "90d, 12h, 30m or 45s"


def read_span(_context: click.Context, _parameter: click.Parameter, value: str | None) -> timedelta | None:
    """Read a span of time: ``90d``, ``12h``, ``30m``, ``45s``."""
    if value is None:
        return None
    found = span_in(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no span such as {SPANS}")
    return found


def span_in(value: str) -> timedelta | None:
    """Return the span that a text says, if it says one."""
    found = re.fullmatch(r"([0-9]{1,9})([dhms])", value)
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


older_than = click.option("--older-than", callback=read_span, metavar="SPAN", help="Such as 90d, 12h, 30m or 45s.")
