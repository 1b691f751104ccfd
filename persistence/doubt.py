"""What a server says beside its answers that leaves a commit in doubt, whatever driver brings it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

# What says nothing about a commit, as a server with English messages writes it.
_HARMLESS: Final = ("NOTICE:", "INFO:", "LOG:", "DEBUG")
_WARNING: Final = "WARNING:"
_TELLS: Final = "synchronous replication"


def doubt_in(notices: Iterable[str]) -> str | None:
    """Return the first message of the server that leaves a commit in doubt, if there is one.

    A server that speaks another language cannot be understood: what is neither harmless nor an English
    warning counts as doubt.
    """
    for notice in notices:
        if notice.startswith(_HARMLESS) or (notice.startswith(_WARNING) and _TELLS not in notice):
            continue
        return notice.partition("\n")[0].strip()
    return None
