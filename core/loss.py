"""What a statement about a loss commits to: exactly the entries of the log that are gone, in one digest."""

from __future__ import annotations

from collections.abc import Iterable

from .anchor import Entry
from .canonical import Json, canonical
from .chain import hash_of

_ANY_SIZE = 2**30


def loss_digest(entries: Iterable[tuple[int, Entry]]) -> bytes:
    """Return the digest over lost entries: of each its place in the log, the workflow's id, the seq, and the hash."""
    listed: list[Json] = [
        [index, entry.workflow_id, entry.seq, entry.hash.hex()]
        for index, entry in sorted(entries, key=lambda one: one[0])
    ]
    return hash_of("loss", canonical(listed, max_bytes=_ANY_SIZE))
