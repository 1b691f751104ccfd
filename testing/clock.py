"""The clock of a test deployment: real workers and real beat, and a week that passes in a moment."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

from ..core.errors import InvalidData
from ..persistence import shift
from ..persistence.database import Database


class Clock:
    """The time of one database for tests, for all processes that use it; made by ``Clock.install``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def install(cls, database_url: str) -> Clock:
        """Give a database for tests a clock that can be set; do so before anything else connects to it.

        Its name has to say that it is for tests (``test``, as a word of its own), or it has to be marked:
        ``COMMENT ON DATABASE name IS 'aegis: for tests'``. Our user has to be its owner.

        Raises:
            ClockRefused: it is no such database, none of PostgreSQL, or somebody is connected to it.
            DatabaseUnavailable: it does not answer.

        """
        database = Database(database_url, pool_size=1)
        try:
            shift.install(database)
        except BaseException:
            database.close()
            raise
        return cls(database)

    def now(self) -> datetime:
        """Return what it shows."""
        return shift.now(self._database)

    def advance(self, by: timedelta) -> None:
        """Put it forward: every timer, deadline, delay and back-off that ends before then is over.

        Raises:
            InvalidData: time does not run backwards.

        """
        shift.advance(self._database, by)

    def set(self, moment: datetime) -> None:
        """Put it forward to a moment.

        Raises:
            InvalidData: the moment has no time zone, or has passed.

        """
        if moment.tzinfo is None:
            raise InvalidData("the time", [("/moment", f"{moment.isoformat()} has no time zone")])
        self.advance(moment - self.now())

    def remove(self) -> None:
        """Take it away; stop what uses the database first."""
        shift.remove(self._database)
        self._database.close()

    def __enter__(self) -> Self:
        """Use it for a while."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        self.remove()
