"""Going back: a copy is restored beside, verified, compared with what it lacks, and only then given.

Nothing is put in anybody's place before that. What is given is in a new epoch: workers, claims and
messages of before are void, and what the outside world has seen of what was lost is paused.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from ...config.settings import Settings
from ...core.errors import AegisError, DatabaseUnavailable, RestoreFailed
from ...core.finding import Report
from ...persistence import log as logs
from ...persistence import lost
from ...persistence.database import Database
from ...tasks.scrub import sources
from ..backup.adapter import Adapter, Base
from ..backup.ledger import alone
from ..backup.pages import check_pages
from ..backup.prove import database_name, ends_early, scratch, verified
from ..backup.source import repository, source
from ..copy import Copy, copied
from . import epoch, point
from .before import Before, compared, is_of_the_database, stopped
from .difference import Difference, with_anchors
from .point import Point, Target

# In the files of a server: that commits wait for somebody.
_WAITS: Final = re.compile(r"^\s*synchronous_standby_names\s*=?\s*'?\s*[^'\s#]", re.IGNORECASE | re.MULTILINE)
_TOO_EARLY: Final = "requested recovery stop point is before consistent recovery point"
_TOO_LATE: Final = "recovery ended before configured recovery target was reached"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What came out; ``into`` is None of a rehearsal, of which nothing stays."""

    to: str
    backup: str
    into: Path | None
    workflows: int
    transitions: int
    logged: int
    last_at: datetime | None
    """When the newest transition in it was."""
    anchored: int
    """So many entries of its log were compared with anchors."""
    lacks: Sequence[Difference]
    epoch: int | None
    paused: int
    seconds: float
    waited: bool = False
    """Whether its commits would have waited for standbys that do not follow it: it was told to wait for nobody."""
    uncompared: str | None = None
    """Why it could not be compared with the database of before; None: it was."""
    kept: Path | None = None
    """Where the database of before is now, if this one was put in its place."""


def restore(settings: Settings, to: str, into: Path | None, *, replaced: Path | None = None) -> Restored:
    """Restore a point in time into a directory that is not there yet; None: rehearse it, and say what would be lost.

    It is compared with the live database; or with the files of the stopped server that it is to replace.

    Raises:
        RestoreFailed: the point is not to be had, or what was restored does not verify: nothing was put anywhere.
        BackupFailed: the backup that it needs is damaged.

    """
    asked, began = point.parse(to), time.monotonic()
    if into is not None:
        _need_a_new(into)
    with alone(settings.backups):
        adapter = repository(settings)
        with suppress(AegisError):  # the server may be gone, or be another: then what is archived is all there is
            source(settings).adapter.file_all()
        live = Database(settings.database, pool_size=2, pre_ping=False)
        try:
            target = _target(settings, adapter, asked, live)
            base = _base(adapter, asked, target)
            with _beside(settings, into) as folder:
                before = _before(settings, adapter, live, replaced, folder)
                return _restore(settings, adapter, base, asked, target, before, folder, into, began)
        finally:
            live.close()


def _restore(
    settings: Settings,
    adapter: Adapter,
    base: Base,
    asked: Point,
    target: Target,
    before: Before,
    folder: Path,
    into: Path | None,
    began: float,
) -> Restored:
    data, keep = folder / "data", into is not None
    with _recovered(settings, adapter, base, asked, target, folder, durable=keep) as (copy, user, last):
        url = copy.url(user, database_name(settings))
        if not target.options:
            _need_the_latest(url, last, asked)
        report, size = verified(settings, url)
        _need_as_committed(report)
        database = Database(url, pool_size=2, pre_ping=False)
        try:
            _need_what_was_asked(database, asked, size)
            found, uncompared = compared(database, before)
            lacks = [*found, *with_anchors(database, sources(settings))]
            paused, raised, last_at = 0, None, _last_at(database)
            if keep:
                raised, paused = epoch.begin(settings, database, lacks, asked.said)
        finally:
            database.close()
    check_pages(adapter.programs, base, data)
    waited = False
    if into is not None:
        waited = _let_wait_for_nobody(data, asked_for=settings.backup_synchronous and not settings.embedded)
        _give(data, into)
    return Restored(
        to=asked.said,
        backup=base.id,
        into=into,
        workflows=report.workflows,
        transitions=report.transitions,
        logged=size,
        last_at=last_at,
        anchored=max((witness.entries for witness in report.witnesses), default=0),
        lacks=lacks,
        epoch=raised,
        paused=paused,
        waited=waited,
        uncompared=uncompared,
        seconds=round(time.monotonic() - began, 1),
    )


def _before(settings: Settings, adapter: Adapter, live: Database, replaced: Path | None, folder: Path) -> Before:
    if replaced is None:
        return lambda: nullcontext(live)
    log, user, name = folder / "before.log", superuser(settings), database_name(settings)
    return lambda: stopped(replaced, adapter.programs, log, user=user, name=name)


@contextmanager
def _recovered(
    settings: Settings, adapter: Adapter, base: Base, asked: Point, target: Target, folder: Path, *, durable: bool
) -> Iterator[tuple[Copy, str, int]]:
    """Give a server on a copy that went to the target, a superuser of it, and the last segment that is archived."""
    data, wal = folder / "data", folder / "wal"
    last = adapter.make(base, data, wal)
    user = superuser(settings)
    with copied(data, adapter.programs, folder / "postgresql.log") as copy:
        try:
            copy.recover(wal, target.options, user=user, durable=durable)
        except RestoreFailed as error:
            raise _explained(error, asked, base) from None
        yield copy, user, last
        copy.stop()


def _explained(error: RestoreFailed, asked: Point, base: Base) -> RestoreFailed:
    what = f"--to {asked.said}"
    if _TOO_LATE in error.problem:
        remedy = "`--to latest` has all that is archived; `aegis health` says what is not"
        return RestoreFailed(what, "what is archived ends before that", remedy)
    if _TOO_EARLY in error.problem:
        return RestoreFailed(what, f"backup {base.id} was not finished by then", "name a later point")
    return RestoreFailed(what, error.problem, f"backup {base.id} may be damaged: `aegis backup verify {base.id}`")


# --- where to ---------------------------------------------------------------------------------


def _target(settings: Settings, adapter: Adapter, asked: Point, live: Database) -> Target:
    if asked.at is not None:
        return point.at_time(asked.at)
    if asked.size is not None:
        known = sources(settings)
        return point.at_time(point.anchored(known.sinks, known.trusted, asked.size).at)
    if asked.transition is not None:
        return point.at_transaction(*_transaction(settings, adapter, asked, live))
    return point.at_the_end()


def _transaction(settings: Settings, adapter: Adapter, asked: Point, live: Database) -> tuple[int, datetime]:
    """Find the transaction that committed a transition: in the live database, or in what is archived."""
    assert asked.transition is not None, "it is one that is asked for"  # noqa: S101
    found = None
    try:
        with live.snapshot() as connection:
            found = lost.transaction_of(connection, *asked.transition)
    except Exception as error:  # whatever is wrong with it is why one goes back
        if not isinstance(error, DatabaseUnavailable | AegisError) and not is_of_the_database(error):
            raise
    if found is None:
        newest = _base(adapter, asked, point.at_the_end())
        with (
            scratch(settings) as folder,
            _recovered(settings, adapter, newest, asked, point.at_the_end(), folder, durable=False) as (copy, user, _),
        ):
            database = Database(copy.url(user, database_name(settings)), pool_size=1, pre_ping=False)
            try:
                with database.snapshot() as connection:
                    found = lost.transaction_of(connection, *asked.transition)
            finally:
                database.close()
    if found is None:
        remedy = "`aegis history` shows those there are; of one that was purged, name a time"
        raise RestoreFailed(f"--to {asked.said}", "there is no such transition, neither live nor archived", remedy)
    return found


def _base(adapter: Adapter, asked: Point, target: Target) -> Base:
    """Return the newest backup that was finished by then."""
    done = [base for base in adapter.bases() if base.done]
    found = next((base for base in done if target.after is None or base.ended_at <= target.after), None)
    if found is None:
        oldest = f"the oldest one was finished at {done[-1].ended_at.isoformat()}" if done else "there are none"
        raise RestoreFailed(f"--to {asked.said}", f"no backup is that old: {oldest}", "name a later point")
    return found


def superuser(settings: Settings) -> str:
    """Return who made the cluster, as the backups' last look at it found; the private server's is ours."""
    from ..backup.ledger import Ledger  # noqa: PLC0415

    return Ledger(settings.backups).known().superuser or "aegis"


# --- what it has to be ------------------------------------------------------------------------


def _need_a_new(into: Path) -> None:
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise RestoreFailed(f"--into {into}", "it is there, and not empty", "name a directory that is not there yet")
    if not into.parent.is_dir():
        raise RestoreFailed(f"--into {into}", f"{into.parent} is not there", "make it, with room for the database")


def _need_as_committed(report: Report) -> None:
    if report.tampered:
        remedy = "name an earlier point; `aegis verify --all` says the same of the live database, if it has it, too"
        raise RestoreFailed("the copy", f"it is not as committed: {report.failures[0]}", remedy)
    if report.problems:
        remedy = "bring back what is missing, or do without: AEGIS_ANCHORS=none compares with no anchors"
        raise RestoreFailed("the copy", f"nobody can say whether it is as committed: {report.problems[0]}", remedy)


def _need_the_latest(url: str, last: int, asked: Point) -> None:
    """Refuse what ends at a gap, where the end of the archive is asked for: nobody is to find that out later."""
    problem = ends_early(url, last)
    if problem is None:
        return
    database = Database(url, pool_size=1, pre_ping=False)
    try:
        with database.snapshot() as connection:
            newest = lost.newest(connection)
    finally:
        database.close()
    remedy = "take a backup once there is something to back up"
    if newest is not None:
        remedy = f"`--to {newest[0]}:{newest[1]}` has everything up to there; what came after it is lost"
    raise RestoreFailed(f"--to {asked.said}", problem, remedy)


def _need_what_was_asked(database: Database, asked: Point, size: int) -> None:
    if asked.size is not None and size != asked.size:
        problem = f"the log is {size} entries long at that point, and not {asked.size}"
        raise RestoreFailed(f"--to {asked.said}", problem, "name a time: clocks may have been set back")
    if asked.transition is not None:
        with database.snapshot() as connection:
            if lost.transaction_of(connection, *asked.transition) is None:
                raise RestoreFailed(f"--to {asked.said}", "recovery did not come to it", "name a time shortly after it")


def _last_at(database: Database) -> datetime | None:
    with database.snapshot() as connection:
        return logs.newest(connection)


# --- where it goes --------------------------------------------------------------------------------


@contextmanager
def _beside(settings: Settings, into: Path | None) -> Iterator[Path]:
    """Give a folder to restore into: on the disk where it is to be, so that giving it is one rename."""
    if into is None:
        with scratch(settings) as folder:
            yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix=f".{into.name}-", dir=into.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _let_wait_for_nobody(data: Path, *, asked_for: bool) -> bool:
    """Tell it so where its files, or what we ask of its original, have commits wait: they would wait for ever."""
    own = data / "postgresql.auto.conf"  # what is last in it overrides all other files
    texts = [file.read_text(errors="replace") for file in (data / "postgresql.conf", own) if file.exists()]
    if not asked_for and not any(_WAITS.search(text) for text in texts):
        return False
    with own.open("a") as file:
        file.write("synchronous_standby_names = ''\n")
    return True


def _give(data: Path, into: Path) -> None:
    try:
        os.sync()
        if into.exists():
            into.rmdir()
        data.rename(into)
    except OSError as error:
        raise RestoreFailed(f"--into {into}", f"it cannot be made ({error.strerror})", "name another place") from None
