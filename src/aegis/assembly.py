"""Where the parts meet: the database, the bell of ``tasks`` or the runner of this process, and on whose terms."""

from __future__ import annotations

import getpass
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from celery import Celery

from .config.keys import active_mac_key, mac_keys
from .config.logging import get_logger
from .config.settings import Settings, settings
from .core.bell import Ring
from .core.errors import ConfigurationError
from .core.names import check_name
from .persistence.auditor import Sources
from .persistence.database import Database
from .persistence.migrate import upgrade
from .persistence.operations import Terms
from .tasks.broker import Broker
from .tasks.local import LocalRunner
from .tasks.scrub import sources
from .tasks.unheard import noting
from .workers.factory import make_app

IN_MEMORY: Final = "sqlite://"

log = get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an engine is made of; ``runner`` is there where no worker could run anything."""

    database: Database
    owned: bool
    """Whether the database is the engine's alone, and ends with it."""
    ring: Ring
    terms: Terms
    sources: Sources
    runner: LocalRunner | None


def assemble(
    persistence: Database | str | None, *, checkpoint_on_transition: bool, app: Celery | None, actor: str | None
) -> Parts:
    """Return the parts of an engine, and let the runner run, if there is one.

    Raises:
        ConfigurationError: a setting, an address or an argument cannot be used.
        DatabaseUnavailable: the database does not answer.

    """
    configured = settings()
    if persistence is None and app is None and nothing_is_configured(configured):
        log.warning(
            "no database is configured: workflows are kept in memory, and lost with this process",
            remedy="run `aegis up`, set AEGIS_DATABASE_URL, or give the engine a database",
        )
        persistence = IN_MEMORY
    owned = not isinstance(persistence, Database)
    database = persistence if isinstance(persistence, Database) else Database(persistence or configured.database)
    terms = Terms(
        actor=check_name("actor", f"user:{_login()}" if actor is None else actor),
        grace=timedelta(seconds=configured.ring_grace),
        max_bytes=configured.max_bytes,
        mac_key=active_mac_key(configured),
        mac_keys=mac_keys(configured.key_folder),
        checkpoint_on_transition=checkpoint_on_transition,
    )
    if not database.is_sqlite:
        ring = noting(Broker(make_app(configured) if app is None else app).ring, database)
        return Parts(database=database, owned=owned, ring=ring, terms=terms, sources=sources(configured), runner=None)
    if app is not None:
        remedy = "leave it out: this process runs what is in the file; or use PostgreSQL, and workers"
        raise ConfigurationError("app", "workers cannot serve a database of SQLite", remedy)
    upgrade(database, deployment=configured.deployment)
    runner = LocalRunner(database, configured)
    # Nothing is anchored there: what other databases have outside is no witness for this one.
    known = replace(sources(configured), sinks=())
    return Parts(database=database, owned=owned, ring=runner.ring, terms=terms, sources=known, runner=runner)


def nothing_is_configured(configured: Settings) -> bool:
    """Whether there is no database that was ever set up: none is named, and `aegis up` never ran here."""
    try:
        return configured.embedded and not configured.places.postgres.exists()
    except PermissionError:  # somebody's servers are there
        return False


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container that runs as a uid without a name
        return "unknown"
