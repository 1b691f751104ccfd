"""Objectives: how much may be lost (RPO) and how long it may take (RTO), by what has happened.

The defaults are a table; a deployment names those that it wants otherwise, in ``AEGIS_OBJECTIVES``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

_WRITTEN: Final = re.compile(r"([\w-]+)\s*=\s*(\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)", re.ASCII)
_LONGEST: Final = 31_536_000.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is declared for one kind of loss, in seconds.

    ``rpo`` is how far back acknowledged work may be lost, 0: none of it. ``rto`` is until the last
    of the workflows that were met has moved again.
    """

    name: str
    lost: str
    """What has happened."""
    rpo: float
    rto: float
    counts: str
    """From when to when the time is taken."""

    def __str__(self) -> str:
        """Return it as it is written in ``AEGIS_OBJECTIVES``."""
        return f"{self.name}={self.rpo:g}/{self.rto:g}"


def _objective(name: str, lost: str, rpo: float, rto: float, counts: str) -> Objective:
    return Objective(name=name, lost=lost, rpo=rpo, rto=rto, counts=counts)


DEFAULTS: Final = (
    _objective("process", "a worker or one of its children", 0, 5, "from the kill until all that it had in hand moved"),
    _objective("host", "a worker with its whole host", 0, 15, "from its loss until all that it had in hand moved"),
    _objective("long-handler", "a worker, inside a long handler", 300, 5, "until the handler runs again elsewhere"),
    _objective("broker", "the broker, with everything in it", 0, 5, "until all that waited for their bell moved"),
    _objective(
        "broker-failover", "the broker's server, with Sentinels", 0, 10, "until all that waited for their bell moved"
    ),
    _objective("database", "PostgreSQL, killed and started again", 0, 5, "until all that were under way moved"),
    _objective("machine", "every process of a single instance", 0, 10, "from its start until 100 workflows moved"),
    _objective("disk", "room on the database's disk", 0, 10, "from the moment that there is room again"),
    _objective("tampering", "the truth of a row", 0, 5, "until the transition that was edited is named"),
    _objective(
        "database-disk",
        "the database's disk, with an archive that commits wait for",
        0,
        60,
        "from the first command until all that were under way moved; a database below 100 MB",
    ),
    _objective("database-node", "the database's host, with a standby", 0, 30, "until all that were under way moved"),
    _objective(
        "switch-over", "nothing: the lead is handed over", 0, 5, "the longest that nothing was acknowledged, or moved"
    ),
    _objective("region", "a region, with a standby elsewhere", 0, 45, "until all that were under way moved"),
    _objective(
        "operator",
        "rows, by mistake: to a point in time",
        0,
        60,
        "from the first command until all that were under way moved; a database below 100 MB",
    ),
)
_NAMES: Final = tuple(objective.name for objective in DEFAULTS)


def objectives(wanted: Iterable[str] = ()) -> tuple[Objective, ...]:
    """Return all objectives; those that are wanted (``name=RPO/RTO``, in seconds) stand in the place of defaults.

    Raises:
        ValueError: names the part that cannot be read, and what it should hold.

    """
    given: dict[str, Objective] = {}
    for written in wanted:
        changed = _read(written)
        if changed.name in given:
            msg = f"{changed.name} is named twice"
            raise ValueError(msg)
        given[changed.name] = changed
    return tuple(given.get(each.name, each) for each in DEFAULTS)


def _read(written: str) -> Objective:
    found = _WRITTEN.fullmatch(written.strip())
    if found is None:
        msg = f"{written!r} is not an objective: name=RPO/RTO in seconds, such as process=0/5"
        raise ValueError(msg)
    name, rpo, rto = found[1], float(found[2]), float(found[3])
    default = next((each for each in DEFAULTS if each.name == name), None)
    if default is None:
        close = difflib.get_close_matches(name, _NAMES, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"there are: {', '.join(_NAMES)}"
        msg = f"there is no objective {name!r}; {remedy}"
        raise ValueError(msg)
    if not 0 < rto <= _LONGEST or rpo > _LONGEST:
        msg = f"{written!r}: a time to recover is above 0, and both are within a year"
        raise ValueError(msg)
    return replace(default, rpo=rpo, rto=rto)
