"""Whether a lost node would lose anything, in words: who has what was committed, and who is there to take over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from ..core.errors import DatabaseUnavailable
from ..persistence.database import Database
from ..persistence.hosts import each_alone
from ..persistence.replication import Replication, Standby
from .check import Check, degraded, ok, span, warning
from .question import Question

_UNITS: Final = ("bytes", "kB", "MB", "GB")
_THOUSAND: Final = 1000
_NAME: Final = "replication"
# Where nobody would take over, but nothing would be lost either.
_ARCHIVED: Final = "a lost disk loses nothing: a commit returns once it is archived"
# With Patroni, what the server itself was told wins over what Patroni knows.
_TAKE_BACK: Final = "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()"


def replication(found: Replication | None, *, nodes: int = 0) -> Iterator[Check]:
    """Say what the loss of a node would cost at this moment; ``nodes`` is how many the address names, if several."""
    if found is not None:
        yield _judge(found, nodes)


def _judge(found: Replication, nodes: int) -> Check:
    if found.is_standby:
        remedy = "name every node in AEGIS_DATABASE_URL, with target_session_attrs=read-write"
        return degraded(_NAME, "this is a standby, which takes no writes", remedy)
    if not found.needed and all(standby.is_archive for standby in found.standbys):
        return _judge_alone(nodes)
    who = "; ".join(map(_standby, found.standbys))
    if any(standby.mode is None for standby in found.standbys):
        remedy = "grant it pg_monitor to see how far they are"
        return warning(_NAME, f"{len(found.standbys)} receive what is committed: this user may not see more", remedy)
    if not found.needed or not found.waits:
        why = "synchronous_commit does not wait for one" if found.needed else "none of them is synchronous"
        lost = f"a lost primary loses up to {size(found.at_risk)}: {why}" if found.standbys else why
        return warning(_NAME, f"{lost} ({who})" if who else lost, "set synchronous_standby_names for an RPO of 0")
    if found.synchronous < found.needed:
        return _writes_wait(found, who)
    return _judge_who_is_waited_for(found, who)


def _judge_alone(nodes: int) -> Check:
    if nodes > 1:
        says = f"a lost node loses what was committed since the others left it: none of the {nodes} follows it"
        return degraded(_NAME, says, "start the others; until then, its disk and its backups are what there is")
    return ok(_NAME, "none: one server, whose disk and backups are what there is")


def _judge_who_is_waited_for(found: Replication, who: str) -> Check:
    if found.waits_for_archives_alone:
        return _judge_archives(found, who)
    return _judge_standbys(found, who) if found.relied_on else _archive_may_be_alone(found, who)


def _judge_standbys(found: Replication, who: str) -> Check:
    standbys = sum(standby.is_synchronous for standby in found.to_take_over)
    says = f"a lost node loses nothing: {_count(standbys)}"
    if found.synchronous > standbys:
        says = f"{says} and the archive"
    if found.synchronous > found.needed:
        return ok(_NAME, f"{says} ({who})")
    without = "without it" if found.synchronous == 1 else "if one of them is away"
    return ok(_NAME, f"{says}; {without}, writes wait ({who})")


def _judge_archives(found: Replication, who: str) -> Check:
    spare = found.synchronous - found.needed
    if not found.to_take_over:
        return ok(_NAME, f"{_ARCHIVED} ({who})" if spare else f"{_ARCHIVED}; without it, writes wait ({who})")
    says = f"a fail-over may lose up to {size(found.at_risk)}: commits wait for the archive, and for no standby ({who})"
    return degraded(_NAME, says, f"have them wait for the standbys; where Patroni runs, it sees to that: {_TAKE_BACK}")


def _archive_may_be_alone(found: Replication, who: str) -> Check:
    """Say that a commit may be in the archive, and on no standby: a restore has it, and a fail-over does not."""
    says = (
        f"a lost disk loses nothing, and a fail-over may lose up to {size(found.at_risk)}:"
        f" the archive alone may have a commit before it returns ({who})"
    )
    return warning(_NAME, says, "have commits wait for one more than there are archives, as ANY 2 (standby, archive)")


def _writes_wait(found: Replication, who: str) -> Check:
    if found.waits_for_archives_alone:
        says = f"writes wait: the archive does not receive ({who})" if who else "writes wait: the archive is not there"
        return degraded(_NAME, says, "start it: `aegis backup archive`, or `aegis up`; nothing is lost meanwhile")
    has = f"{found.synchronous} of {found.needed} synchronous standbys {'is' if found.needed == 1 else 'are'} there"
    return degraded(_NAME, f"writes wait: {has}", "start the standbys; nothing is lost meanwhile")


def _count(number: int) -> str:
    return f"{number} synchronous standby{'s' if number > 1 else ''}"


def _standby(standby: Standby) -> str:
    mode = "synchronous" if standby.is_synchronous else "asynchronous" if standby.streams else "catching up"
    return f"{standby.name} {mode}, {size(standby.behind or 0)} and {span(standby.late)} behind"


def size(count: int) -> str:
    """Return a number of bytes for people."""
    amount, unit = float(count), 0
    while amount >= _THOUSAND and unit < len(_UNITS) - 1:
        amount, unit = amount / _THOUSAND, unit + 1
    return f"{amount:.0f} {_UNITS[unit]}" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


# --- each node by itself ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Seen:
    place: str
    role: str


class Nodes:
    """Every host of an address with several, asked by itself and at the same time."""

    def __init__(self, url: str) -> None:
        self._asked = {place: Question(partial(_ask, place, alone), _silent) for place, alone in each_alone(url)}

    def answer(self, deadline: float) -> Iterator[Check]:
        """Say which of them are there, once the deadline has come."""
        if not self._asked:
            return
        seen: list[_Seen] = []
        for place, question in self._asked.items():
            found, _ = question.answer(deadline)
            seen += found or [_Seen(place=place, role="")]
        yield _judge_nodes(seen)


def _judge_nodes(seen: list[_Seen]) -> Check:
    says = ", ".join(f"{one.place} {one.role or 'does not answer'}" for one in seen)
    primaries = [one.place for one in seen if one.role == "primary"]
    if len(primaries) > 1:
        remedy = "see who leads (`patronictl list`); commits wait on the one that nobody follows"
        return degraded("nodes", f"{says}: {len(primaries)} take themselves for the primary", remedy)
    if not all(one.role for one in seen):
        return degraded("nodes", says, "see that it is up: until then, fewer can take over")
    return ok("nodes", says)


def _silent(_error: Exception) -> list[_Seen]:
    """Say nothing: what it is that it lacks, the check of the database says."""
    return []


def _ask(place: str, url: str) -> Iterator[_Seen]:
    database = Database(url, pool_size=1, pre_ping=False)
    try:
        with database.statement() as connection:
            is_standby = connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one()
        yield _Seen(place=place, role="standby" if is_standby else "primary")
    except DatabaseUnavailable:
        return
    finally:
        database.close()
