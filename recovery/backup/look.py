"""What beat starts now and then: see that no WAL is missing from the archive, without restoring anything.

A server that hands its WAL over may be told that a segment is archived which is not: pgBackRest drops what has piled
up. And what was archived may be removed by somebody. Whichever it is, one cannot go back across it.
"""

from __future__ import annotations

import sys

from ...config import logging as our_logging
from ...config.logging import get_logger
from ...config.settings import Settings, settings
from ...core.errors import AegisError
from .adapter import number
from .ledger import Ledger, alone
from .source import kept

log = get_logger(__name__)


def look(settings: Settings) -> str | None:
    """Look whether the archive is whole since the last look; note a gap, and return it in words.

    Raises:
        BackupFailed: the repository cannot be read, or somebody is at work there.
        ServerUnavailable: PostgreSQL's programs of that version are not installed.

    """
    with alone(settings.backups):
        adapter, ledger = kept(settings), Ledger(settings.backups)
        bases = [base for base in adapter.bases() if base.done and base.begins is not None] if adapter else []
        if adapter is None or not bases:
            return None
        newest, oldest = str(bases[0].begins), str(bases[-1].begins)
        last = (ledger.known().looked or {}).get("to", "")
        names = adapter.archived(number(newest))
        # After a promotion, or a restore, the newest timeline may be shorter than the one before it was.
        is_the_same = last and max(names, default="")[:8] == last[:8]
        since = max(number(last), number(oldest)) if is_the_same else number(newest)
        missing = _missing(adapter.archived(since), since)
        if missing:
            # What came while the lists were read may be on the second of them alone.
            missing = [one for one in _missing(adapter.archived(since), since) if one in missing]
        ledger.looked(max(names, default=newest))
        if not missing:
            return None
        told = _in_words(missing)
        ledger.gap(told)
        log.critical("the archive has a gap", missing=told)
        return told


def _missing(names: list[str], since: int) -> list[int]:
    there = {number(name) for name in names}
    return [one for one in range(since, max(there, default=since - 1) + 1) if one not in there]


def _in_words(missing: list[int]) -> str:
    few = f"segment {missing[0]:X}" if len(missing) == 1 else f"segments {missing[0]:X} to {missing[-1]:X}"
    return few if len(missing) == missing[-1] - missing[0] + 1 else f"{few}, {len(missing)} of them"


def main() -> int:
    """Look once; a look that fails is in the log, and is tried again when the next one is due."""
    our_logging.configure(settings())
    try:
        look(settings())
    except AegisError as error:
        log.warning("the archive could not be looked at", reason=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
