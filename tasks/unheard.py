"""A bell that did not go out is written down where the sweep looks: it would take it for one that waits its turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..core.bell import Bell, Ring
from ..core.errors import DatabaseUnavailable
from ..persistence import watch
from ..persistence.database import Database

_BATCH: Final = 500


def noting(ring: Ring, database: Database) -> Ring:
    """Return a ring whose workflows, where no bell went out, are rung by the first sweep that reaches the broker."""

    def ring_or_note(bells: Sequence[Bell], /) -> bool:
        if ring(bells):
            return True
        try:
            with database.statement() as connection:
                for start in range(0, len(bells), _BATCH):
                    watch.unheard_of(connection, [bell.workflow_id for bell in bells[start : start + _BATCH]])
        except DatabaseUnavailable:
            pass  # they are due soon all the same
        return False

    return ring_or_note
