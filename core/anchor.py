"""Anchors: what is kept outside of the database, so that nobody who can write to it can rewrite history.

One line of canonical JSON for each: the signed head of the log, and the log's entries since the
line before, each with the transition that it is of. Read in their order, the lines give the whole
log: which transition was changed, added or removed since can be named, and not only that one was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeGuard
from urllib.parse import quote

from .canonical import Json, canonical
from .errors import NotANote, SinkUnavailable
from .merkle import Frontier, leaf_hash
from .note import LogHead, VerifierKey, claimed_head, open_note

FORMAT: Final = "aegis-anchor/v1"
_ANY_SIZE: Final = 2**30
_HEX: Final = re.compile(r"[0-9a-f]{64}")
_ENTRY_MEMBERS: Final = 3
_MEMBERS: Final = {"entries", "first", "format", "note", "timestamp"}


def log_name(deployment: str) -> str:
    """Return the log's name: the deployment's, with what a note cannot hold written as in a URL."""
    return quote(deployment, safe="/:.@~=-_")


class Entry(NamedTuple):
    """One leaf of the log, and the transition that it is of; ``hash`` is the transition's."""

    workflow_id: str
    seq: int
    hash: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchor:
    """A signed head of the log, with the entries from ``first`` on; ``timestamp`` is an RFC 3161 response in base64."""

    first: int
    note: str
    entries: tuple[Entry, ...]
    timestamp: str | None = None

    @property
    def end(self) -> int:
        """How long the log is with its entries, which is where the next anchor begins."""
        return self.first + len(self.entries)

    def line(self) -> bytes:
        """Return it as it is kept: one line."""
        body: dict[str, Json] = {
            "format": FORMAT,
            "first": self.first,
            "note": self.note,
            "entries": [[entry.workflow_id, entry.seq, entry.hash.hex()] for entry in self.entries],
            "timestamp": self.timestamp,
        }
        return canonical(body, max_bytes=_ANY_SIZE) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Anchor:
        """Read it back.

        Raises:
            NotANote: it is not a whole line of this format.

        """
        try:
            # Not the strict reader, which is slow on what may be millions of entries: each is checked
            # below, and all of them by the root that is signed.
            body: Json = json.loads(line)
        except (ValueError, RecursionError):
            raise NotANote("the anchor", "it is not a whole line of JSON") from None
        if not isinstance(body, dict) or body.get("format") != FORMAT or set(body) != _MEMBERS:
            raise NotANote("the anchor", f"it is not in the format {FORMAT}")
        first, note, listed, stamp = body["first"], body["note"], body["entries"], body["timestamp"]
        if type(first) is not int or first < 0 or not _is_text(note) or not isinstance(listed, list):
            raise NotANote("the anchor", "its first, note or entries cannot be read")
        if stamp is not None and not _is_text(stamp):
            raise NotANote("the anchor", "its timestamp cannot be read")
        return cls(first=first, note=note, entries=tuple(map(_entry, listed)), timestamp=stamp)


def _entry(found: Json) -> Entry:
    # There may be millions: plain comparisons take a third of the time of a pattern.
    if type(found) is list and len(found) == _ENTRY_MEMBERS:
        workflow_id, seq, digest = found
        if _is_text(workflow_id) and type(seq) is int and seq >= 0 and type(digest) is str and _HEX.fullmatch(digest):
            return Entry(workflow_id, seq, bytes.fromhex(digest))
    raise NotANote("the anchor", f"{str(found)[:80]!r} is no entry")


def _is_text(found: Json) -> TypeGuard[str]:
    """Whether it is text that can be written down again: JSON's escapes can spell what is no character."""
    if not isinstance(found, str):
        return False
    if found.isascii():
        return True
    try:
        return bool(found.encode())
    except UnicodeEncodeError:
        return False


Judge: TypeAlias = Callable[[str, str], str | None]
"""What says what is wrong with a timestamp over a note, given in this order; None if nothing is."""


class Sink(Protocol):
    """A place outside of the database, where anchors can be added and never changed."""

    @property
    def name(self) -> str:
        """What people know it by."""

    def last(self) -> Anchor | None:
        """Return the anchor that was written last; None if there is none."""

    def add(self, anchor: Anchor, head: LogHead) -> None:
        """Write one more; once this returns, it is there."""

    def anchors(self) -> Iterator[Anchor]:
        """Go through all of them, in their order."""

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        """Go through those that have entries of a workflow; there may be others among them."""

    def since(self, moment: datetime) -> Anchor | None:
        """Return the first that says that it was signed at that moment or later; None if none does."""

    def covered(self) -> Iterator[str]:
        """Say of which of them somebody tried to get out of sight, and how: each line names one."""


def end_of(last: Anchor | None) -> int:
    """Return how long the log is with the last anchor of a place."""
    return 0 if last is None else last.end


def overtaken(name: str) -> SinkUnavailable:
    """Return what to say where the last anchor is not the one that was to be followed."""
    return SinkUnavailable(name, "another process wrote there in the meantime")


def is_since(anchor: Anchor, moment: datetime) -> bool:
    """Whether it says that it was signed at that moment or later; one that cannot be read is passed over as earlier."""
    try:
        return claimed_head(anchor.note).at >= moment
    except NotANote:
        return False


# --- deciding -----------------------------------------------------------------------------


class Due(Enum):
    """What is to be done about a place where anchors are kept."""

    NOTHING = "nothing"
    ANCHOR = "anchor"
    AHEAD = "ahead"


def due(size: int, last: LogHead | None, *, now: datetime, interval: timedelta, every: int) -> Due:
    """Return whether a log of that size is to be anchored now, where the last anchor says ``last``.

    An anchor that is ahead of the log means that the database has lost what was committed: it was
    restored from an older copy, or an asynchronous fail-over cut it off. Where the database's clock
    was set back, or another server's is behind, what is new does not wait until that is made up for.
    """
    if last is None:
        return Due.ANCHOR
    if last.size > size:
        return Due.AHEAD
    new, ago = size - last.size, now - last.at
    return Due.ANCHOR if new >= every or ago >= interval or (new and -ago >= interval) else Due.NOTHING


# --- reading back ---------------------------------------------------------------------------


class Replay:
    """The log as a place's anchors tell it: each line is checked against its own signature and root."""

    def __init__(self, trusted: Sequence[VerifierKey], origin: str) -> None:
        self._trusted, self._origin = trusted, origin
        self._frontier = Frontier()
        self.problems: list[tuple[int, str]] = []
        """Log index and what is wrong there."""
        self.head: LogHead | None = None
        """The last head that a trusted key signed and whose root is that of the entries up to it."""

    @property
    def size(self) -> int:
        """How many entries there are so far."""
        return self._frontier.size

    @property
    def root(self) -> bytes:
        """The root over these entries."""
        return self._frontier.root

    def entries(self, anchors: Iterable[Anchor]) -> Iterator[tuple[int, Entry]]:
        """Go through the entries, with their places in the log."""
        for anchor in anchors:
            if anchor.first != self.size:
                self.problems.append((self.size, f"the next anchor begins at {anchor.first}, not at {self.size}"))
                return
            for entry in anchor.entries:
                place = self.size
                self._frontier.append(leaf_hash(entry.hash))
                yield place, entry
            self._check(anchor)

    def _check(self, anchor: Anchor) -> None:
        try:
            head = open_note(anchor.note, self._trusted)
        except NotANote as error:
            self.problems.append((anchor.first, str(error)))
            return
        if head.origin != self._origin:
            self.problems.append((anchor.first, f"it is of the log {head.origin!r}, not of {self._origin!r}"))
        elif (head.size, head.root) != (self.size, self._frontier.root):
            problem = f"its entries lead to {self.size} leaves and another root than it says of {head.size}"
            self.problems.append((anchor.first, problem))
        else:
            self.head = head
