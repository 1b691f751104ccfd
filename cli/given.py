"""What is given on the command line, read: moments, attributes."""

from __future__ import annotations

from datetime import datetime

import click

from ..core.canonical import parse
from ..core.errors import NotCanonical
from ..core.starting import Attribute, Moment
from .span import SPANS, span_in


def moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> datetime | None:
    """Read a moment, in the zone of whoever asks if none is named."""
    if value is None:
        return None
    found = _moment_in(value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no time such as 2026-11-24T10:30")
    return found


def span_or_moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Moment | None:
    """Read a span from now, or a moment."""
    if value is None:
        return None
    span = span_in(value)
    found = _moment_in(value) if span is None else span
    if found is None:
        raise click.BadParameter(f"{value!r} is neither a span such as {SPANS} nor a time such as 2026-11-24T10:30")
    return found


def attributes(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, Attribute]:
    """Read ``name=value`` as often as it is given; what is JSON of one value is that, anything else a string."""
    read: dict[str, Attribute] = {}
    for one in value:
        name, equals, text = one.partition("=")
        if not equals:
            raise click.BadParameter(f"{one!r} is no name=value, such as customer=7")
        if name in read:
            raise click.BadParameter(f"{name!r} is given twice")
        read[name] = _value_in(text)
    return read


def _value_in(text: str) -> Attribute:
    try:
        found = parse(text)
    except NotCanonical:
        return text
    return found if isinstance(found, str | int | float) else text


def _moment_in(value: str) -> datetime | None:
    try:
        return datetime.fromisoformat(value).astimezone()
    except (ValueError, OverflowError):
        return None
