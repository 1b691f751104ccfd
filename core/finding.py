"""What verification can find, by the names of the format: what was changed, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Code(StrEnum):
    """What can be found."""

    HASH_MISMATCH = "HASH_MISMATCH"
    PREV_MISMATCH = "PREV_MISMATCH"
    SEQ_GAP = "SEQ_GAP"
    SEQ_DUPLICATE = "SEQ_DUPLICATE"
    HEAD_MISMATCH = "HEAD_MISMATCH"
    ROW_STATE_MISMATCH = "ROW_STATE_MISMATCH"
    PAYLOAD_MISMATCH = "PAYLOAD_MISMATCH"
    CHECKPOINT_MISMATCH = "CHECKPOINT_MISMATCH"
    NON_CANONICAL = "NON_CANONICAL"
    RULE_BROKEN = "RULE_BROKEN"
    WRONG_WORKFLOW = "WRONG_WORKFLOW"
    UNKNOWN_VERSION = "UNKNOWN_VERSION"
    MAC_INVALID = "MAC_INVALID"
    ANCHOR_MISMATCH = "ANCHOR_MISMATCH"
    TRUNCATED = "TRUNCATED"
    MISSING_WORKFLOW = "MISSING_WORKFLOW"
    LOG_INCONSISTENT = "LOG_INCONSISTENT"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    ANCHOR_STALE = "ANCHOR_STALE"
    ANCHOR_COVERED = "ANCHOR_COVERED"

    UNANCHORED = "UNANCHORED"
    PAYLOAD_ERASED = "PAYLOAD_ERASED"
    CHECKPOINT_PRUNED = "CHECKPOINT_PRUNED"
    PURGED = "PURGED"
    LOST = "LOST"


class Severity(StrEnum):
    """Whether something was changed that must not be, or is only told."""

    FAILURE = "failure"
    INFORMATIVE = "informative"


# Of each code so many are told one by one; what is beyond is only counted.
_MOST_TOLD: Final = 10_000

INFORMATIVE: Final = frozenset({Code.UNANCHORED, Code.PAYLOAD_ERASED, Code.CHECKPOINT_PRUNED, Code.PURGED, Code.LOST})


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it was committed, or not there on purpose.

    ``workflow_id`` and ``seq`` are None where it is not about one transition; ``log_index`` where
    its place in the log is not known.
    """

    workflow_id: str | None
    seq: int | None
    code: Code
    expected: str | None
    actual: str | None
    log_index: int | None = None

    @property
    def severity(self) -> Severity:
        """Whether it is a failure."""
        return Severity.INFORMATIVE if self.code in INFORMATIVE else Severity.FAILURE

    def __str__(self) -> str:
        """Return one line that names the transition."""
        place = "the log" if self.workflow_id is None else f"workflow {self.workflow_id!r}"
        if self.seq is not None:
            place += f", transition {self.seq}"
        elif self.log_index is not None:
            place += f", entry {self.log_index}"
        expected, actual = ("nothing" if each is None else each for each in (self.expected, self.actual))
        return f"{place}: {self.code}: expected {expected}, found {actual}"


@dataclass(frozen=True, kw_only=True)
class Witness:
    """A place of anchors, and what was compared with it."""

    place: str
    entries: int
    """So many entries of the log were compared with it."""
    anchored: int
    """So many entries the newest of its anchors is about."""
    anchored_at: str | None
    """When that was signed."""
    stamped: int = 0
    """So many of its anchors have a timestamp that was verified."""
    unchecked: int = 0
    """And so many one that nothing here could verify."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a verification saw, found, and could not look at; ``counts`` are of findings, by their codes."""

    workflows: int
    transitions: int
    findings: tuple[Finding, ...]
    counts: Mapping[str, int]
    witnesses: tuple[Witness, ...]
    problems: tuple[str, ...]
    """What could not be verified, and why."""
    seconds: float

    @property
    def failures(self) -> list[Finding]:
        """The findings that are failures."""
        return failures(self.findings)

    @property
    def tampered(self) -> bool:
        """Whether something is not as it was committed. That anchors stopped is not such a thing."""
        return any(count for code, count in self.counts.items() if Code(code) not in INFORMATIVE | _NOT_TAMPERING)

    @property
    def complete(self) -> bool:
        """Whether all of it could be verified."""
        return not self.problems and not any(self.counts.get(code) for code in _NOT_TAMPERING)

    @property
    def valid(self) -> bool:
        """Whether all of it could be verified, and is as it was committed."""
        return self.complete and not self.tampered


_NOT_TAMPERING: Final = frozenset({Code.ANCHOR_STALE})


@dataclass(kw_only=True)
class Findings:
    """Findings as they come in: each once, and of each code no more than anybody reads.

    The codes do not share: however many workflows were purged on purpose, a break is told.
    """

    most: int = _MOST_TOLD
    told: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    # Of what is only counted, too: two places of anchors tell of the same. A number each keeps that small.
    _seen: set[int] = field(default_factory=set)

    def add(self, finding: Finding) -> None:
        """Take one in, unless the same was found of the same place before."""
        # Of what is about no transition there may be several, in as many places.
        place = (finding.log_index, finding.actual) if finding.workflow_id is None else None
        key = hash((finding.workflow_id, finding.seq, finding.code, place))
        if key in self._seen:
            return
        self._seen.add(key)
        self.counts[finding.code] += 1
        if self.counts[finding.code] <= self.most:
            self.told.append(finding)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Take several in."""
        for finding in findings:
            self.add(finding)


def failures(findings: Iterable[Finding]) -> list[Finding]:
    """Return those that are failures."""
    return [finding for finding in findings if finding.severity is Severity.FAILURE]
