"""What a record of removals commits to: all that was removed with it, in one digest."""

from __future__ import annotations

from collections.abc import Iterable

from .canonical import Json, canonical
from .chain import hash_of

_ANY_SIZE = 2**30


def removals_digest(rows: Iterable[tuple[str, str, int, bytes | None]]) -> bytes:
    """Return the digest over removals: of each the workflow's id, the kind, the last seq, and a purged one's head."""
    listed: list[Json] = [
        [workflow_id, kind, through_seq, None if head is None else head.hex()]
        for workflow_id, kind, through_seq, head in sorted(rows, key=lambda row: row[0])
    ]
    return hash_of("removals", canonical(listed, max_bytes=_ANY_SIZE))
