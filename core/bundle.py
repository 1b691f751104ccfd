r"""Bundles: one workflow's history in one file, with all that it takes to verify it elsewhere.

The file is one JSON document, and lines: what was damaged is known by its line, even where the JSON
cannot be read any more. Exactly one sequence of bytes stands for a content::

    {"format":"aegis-bundle/v1","head":HEAD,"transitions":[
    TRANSITION,
    TRANSITION
    ],"checkpoints":[
    CHECKPOINT
    ]}

Each object is in canonical form and holds a ``digest``: SHA-256("aegis/bundle-line/v1\n" and its
canonical form without the digest), in hexadecimal. Anybody can make it anew: it names accidents.
Against intent stand the chain, the commitments, the proofs of inclusion, and the signed note. What
these do not cover (``version``, ``status``, when it was exported) is only what the exporter says.

Transitions come by seq, checkpoints between transitions by seq and number. Hashes and salts are 64
hexadecimal digits, payloads, checkpoints and envelopes the text of their canonical bytes. The first
``anchored_length`` transitions have a place in the log and a proof that they stand there.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from .anchor import Anchor, Replay, log_name
from .canonical import Json, canonical, is_canonical, load, parse
from .chain import VERSION, checkpoint_commitment, genesis, hash_of
from .errors import NotABundle, NotANote, NotCanonical
from .finding import Code, Finding
from .merkle import Frontier, includes, leaf_hash
from .note import VerifierKey, open_note
from .verify import Audit, Evidence, Leaf, Removed, StoredCheckpoint, StoredTransition, StoredWorkflow

FORMAT: Final = "aegis-bundle/v1"
_ANY_SIZE: Final = 2**30
_HASH_BYTES: Final = 32
_BEFORE_HEAD: Final = f'{{"format":"{FORMAT}","head":'.encode()
_AFTER_HEAD: Final = b',"transitions":['
_MIDDLE_LINE: Final = b'],"checkpoints":['
_END_LINE: Final = b"]}"

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_AT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)


# --- records ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleHead:
    """What the bundle is of, and the log's signed head that its proofs lead to.

    ``deployment`` is the one that the chain began in, ``exported_by`` the one whose log it is in
    now. ``checkpoints`` are seq and number of those between transitions. Checkpoints up to
    ``pruned_through`` may have been pruned.
    """

    workflow_id: str
    deployment: str
    exported_by: str
    exported_at: str
    type: str
    version: int
    definition: str
    state: str
    status: str
    seq: int
    head: bytes
    anchored_length: int
    log_size: int
    note: str | None
    pruned_through: int | None
    checkpoints: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledTransition:
    """A transition with what it commits to, as far as it is still there, and its proof."""

    seq: int
    envelope: bytes
    hash: bytes
    payload: bytes | None = None
    payload_salt: bytes | None = None
    checkpoint: bytes | None = None
    checkpoint_salt: bytes | None = None
    log_index: int | None = None
    proof: tuple[bytes, ...] | None = None

    @property
    def members(self) -> Mapping[str, Json]:
        """What the envelope says; empty where it cannot be read."""
        found = load(self.envelope) if is_canonical(self.envelope) else None
        return found if isinstance(found, dict) else {}

    @property
    def said(self) -> Mapping[str, Json]:
        """What the payload says; empty where there is none that can be read."""
        found = load(self.payload) if self.payload is not None and is_canonical(self.payload) else None
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class BundledCheckpoint:
    """A checkpoint between transition ``seq`` and the next; ``kind`` and ``at`` are not hashed."""

    seq: int
    number: int
    kind: str
    at: str
    checkpoint: bytes
    checkpoint_salt: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """One workflow's history, as it goes from one deployment to another, or to an auditor."""

    head: BundleHead
    transitions: tuple[BundledTransition, ...]
    checkpoints: tuple[BundledCheckpoint, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the document: what the file says, read as JSON."""
        return {
            "format": FORMAT,
            "head": _sealed(_HEAD, self.head),
            "transitions": [_sealed(_TRANSITION, one) for one in self.transitions],
            "checkpoints": [_sealed(_CHECKPOINT, one) for one in self.checkpoints],
        }

    def to_bytes(self) -> bytes:
        """Return the file."""
        return render(self.to_dict())

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Bundle:
        """Read the document; whether it is true is for ``verify``.

        Raises:
            NotABundle: it is none, or was damaged.

        """
        return cls.from_bytes(render(document))

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """Read the file; whether what it says is true is for ``verify``.

        Raises:
            NotABundle: it is none, or was damaged.

        """
        form = _Form(data)
        if form.findings or form.head is None:
            raise NotABundle("the file", str(form.findings[0]))
        return form.bundle(form.head)


def render(document: Mapping[str, Any]) -> bytes:
    """Return the file for a document.

    Raises:
        NotABundle: it is no document of that shape.

    """
    match dict(document):
        case {"format": str(name), "head": dict(head), "transitions": list(first), "checkpoints": list(second), **more}:
            if name != FORMAT or more:
                raise NotABundle("the document", f"it is not in the format {FORMAT}")
        case _:
            raise NotABundle("the document", f"it is not in the format {FORMAT}")
    try:
        lines = [_BEFORE_HEAD + _canonical(head) + _AFTER_HEAD]
        lines += _separated(first)
        lines.append(_MIDDLE_LINE)
        lines += _separated(second)
    except NotCanonical as error:
        raise NotABundle("the document", str(error)) from None
    return b"\n".join([*lines, _END_LINE, b""])


def _separated(records: Sequence[object]) -> list[bytes]:
    lines = [_canonical(record) for record in records]
    return [line + b"," for line in lines[:-1]] + lines[-1:]


def _canonical(value: object) -> bytes:
    return canonical(value, max_bytes=_ANY_SIZE)


# --- how a member is written -----------------------------------------------------------------


class _As(NamedTuple):
    """How one member stands in a line: whether it is well-formed, and the way there and back."""

    what: str
    is_well_formed: Callable[[Json], bool]
    write: Callable[[Any], Json]
    read: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


def _or_null(of: _As) -> _As:
    return _As(
        f"{of.what}, or null",
        lambda found: found is None or of.is_well_formed(found),
        lambda value: None if value is None else of.write(value),
        lambda found: None if found is None else of.read(found),
    )


def _list_of(of: _As) -> _As:
    return _As(
        f"a list, each {of.what}",
        lambda found: isinstance(found, list) and all(map(of.is_well_formed, found)),
        lambda values: [of.write(value) for value in values],
        lambda found: tuple(of.read(one) for one in found),
    )


def _is_count(found: Json) -> bool:
    return type(found) is int and found >= 0


_TEXT: Final = _As("text", lambda found: isinstance(found, str), _same, _same)
_COUNT: Final = _As("a whole number from 0 on", _is_count, _same, _same)
_HEX: Final = _As(
    "64 hexadecimal digits in lower case",
    lambda found: isinstance(found, str) and _HASH.fullmatch(found) is not None,
    bytes.hex,
    bytes.fromhex,
)
_BYTES: Final = _As("text", _TEXT.is_well_formed, bytes.decode, str.encode)
_MOMENT: Final = _As(
    "a time in UTC with six decimals",
    lambda found: isinstance(found, str) and _AT.fullmatch(found) is not None,
    _same,
    _same,
)
_PAIR: Final = _As(
    "a seq and a number from 1 on",
    lambda found: isinstance(found, list) and len(found) == 2 and all(map(_is_count, found)) and found[1] != 0,  # noqa: PLR2004 - a pair
    list,
    tuple,
)

# A member that is missing here, or one too many in the record above, is found by every test.
_HEAD: Final[Mapping[str, _As]] = {
    "workflow_id": _TEXT,
    "deployment": _TEXT,
    "exported_by": _TEXT,
    "exported_at": _MOMENT,
    "type": _TEXT,
    "version": _COUNT,
    "definition": _TEXT,
    "state": _TEXT,
    "status": _TEXT,
    "seq": _COUNT,
    "head": _HEX,
    "anchored_length": _COUNT,
    "log_size": _COUNT,
    "note": _or_null(_TEXT),
    "pruned_through": _or_null(_COUNT),
    "checkpoints": _list_of(_PAIR),
}
_TRANSITION: Final[Mapping[str, _As]] = {
    "seq": _COUNT,
    "envelope": _BYTES,
    "hash": _HEX,
    "payload": _or_null(_BYTES),
    "payload_salt": _or_null(_HEX),
    "checkpoint": _or_null(_BYTES),
    "checkpoint_salt": _or_null(_HEX),
    "log_index": _or_null(_COUNT),
    "proof": _or_null(_list_of(_HEX)),
}
_CHECKPOINT: Final[Mapping[str, _As]] = {
    "seq": _COUNT,
    "number": _COUNT,
    "kind": _TEXT,
    "at": _MOMENT,
    "checkpoint": _BYTES,
    "checkpoint_salt": _HEX,
}
_ENVELOPE: Final[Mapping[str, _As]] = {
    "v": _COUNT,
    "alg": _TEXT,
    "wf": _TEXT,
    "seq": _COUNT,
    "prev": _HEX,
    "type": _TEXT,
    "def": _TEXT,
    "event": _TEXT,
    "from": _or_null(_TEXT),
    "to": _TEXT,
    "actor": _TEXT,
    "attempt": _COUNT,
    "at": _MOMENT,
    "payload": _or_null(_HEX),
    "checkpoint": _HEX,
}
# What is there only together.
_COUPLES: Final = (("payload", "payload_salt"), ("checkpoint", "checkpoint_salt"), ("log_index", "proof"))


def _sealed(form: Mapping[str, _As], record: object) -> dict[str, Json]:
    members = {name: way.write(getattr(record, name)) for name, way in form.items()}
    return members | {"digest": _digest(members)}


def _digest(members: Mapping[str, Json]) -> str:
    return hash_of("bundle-line", _canonical(dict(members))).hex()


def _open(form: Mapping[str, _As], members: Mapping[str, Json]) -> dict[str, Any]:
    return {name: way.read(members[name]) for name, way in form.items()}


def _flaw(form: Mapping[str, _As], members: Mapping[str, Json]) -> str | None:
    """Return what is wrong with the members of a line; None if they are as they have to be."""
    for name, way in form.items():
        if name not in members or not way.is_well_formed(members[name]):
            return f"{name} is not {way.what}"
    if more := sorted(set(members) - set(form)):
        return f"{more[0]} is no member of it"
    for one, other in _COUPLES:
        if one in form and other in form and (members[one] is None) != (members[other] is None):
            return f"{one} or {other} is there without the other"
    return None


# --- the lines -----------------------------------------------------------------------------


class _Place(NamedTuple):
    """Which line it is: the head, a transition, the one between, a checkpoint, or the last."""

    kind: str
    seq: int | None = None
    number: int = 0

    def __str__(self) -> str:
        return {"transition": "its line", "checkpoint": f"the line of its checkpoint {self.number}"}.get(
            self.kind, f"the {self.kind} of the file"
        )


_AT_HEAD: Final = _Place("head")
_AT_MIDDLE: Final = _Place("middle")
_AT_END: Final = _Place("end")


class _Read(NamedTuple):
    """A line that is as it was written; ``flaw`` is what its members may not be all the same."""

    place: _Place
    members: Mapping[str, Json]
    comma: bool
    flaw: str | None


def _read_line(raw: bytes) -> _Read | None:
    """Read a line; None if it is not what anybody wrote."""
    if raw in {_MIDDLE_LINE, _END_LINE}:
        return _Read(_AT_MIDDLE if raw == _MIDDLE_LINE else _AT_END, {}, comma=False, flaw=None)
    if raw.startswith(_BEFORE_HEAD) and raw.endswith(_AFTER_HEAD):
        members = _intact(raw[len(_BEFORE_HEAD) : -len(_AFTER_HEAD)])
        return None if members is None else _Read(_AT_HEAD, members, comma=False, flaw=_flaw(_HEAD, members))
    comma = raw.endswith(b",")
    members = _intact(raw.removesuffix(b","))
    if members is None:
        return None
    seq, number = members.get("seq"), members.get("number")
    if type(seq) is not int or type(number) not in {int, type(None)}:
        return None
    if number is None:
        return _Read(_Place("transition", seq), members, comma, _flaw(_TRANSITION, members))
    assert isinstance(number, int)  # noqa: S101 - it was looked at above
    return _Read(_Place("checkpoint", seq, number), members, comma, _flaw(_CHECKPOINT, members))


def _intact(body: bytes) -> Mapping[str, Json] | None:
    """Return the members of an object, if these are its bytes and its digest."""
    try:
        found = parse(body)
        if not isinstance(found, dict) or canonical(found, max_bytes=len(body)) != body:
            return None
    except NotCanonical:
        return None
    members = {name: member for name, member in found.items() if name != "digest"}
    return members if found.get("digest") == _digest(members) else None


_Pairs: TypeAlias = tuple[tuple[int, int], ...]


class _Form:
    """The file as it can be read: its intact records, and a finding for each line that is not intact."""

    def __init__(self, data: bytes) -> None:
        self.findings: list[Finding] = []
        self.head: BundleHead | None = None
        self.transitions: dict[int, BundledTransition] = {}
        self.checkpoints: list[BundledCheckpoint] = []
        self.lost: set[int] = set()
        """The transitions whose lines cannot be read, or are not there."""
        *lines, rest = data.split(b"\n")
        reads = [_read_line(line) for line in lines] + ([None] if rest else [])
        first = reads[0] if reads else None
        if first is not None and first.place == _AT_HEAD and first.flaw is None:
            self.head = BundleHead(**_open(_HEAD, first.members))
        self._expected = self._lines_expected(reads)
        self._index = {place: number for number, place in enumerate(self._expected)}
        self._seen: set[_Place] = set()
        self._go_through(reads)
        self._settle_missing()

    def bundle(self, head: BundleHead) -> Bundle:
        """Return the records."""
        return Bundle(head=head, transitions=tuple(self.transitions.values()), checkpoints=tuple(self.checkpoints))

    def _lines_expected(self, reads: Sequence[_Read | None]) -> list[_Place]:
        """Return the lines that there have to be, by the head; where it cannot be read, by those there are."""
        seen = {read.place for read in reads if read is not None}
        numbers = [place.seq for place in seen if place.kind == "transition" and place.seq is not None]
        last = max(numbers, default=-1) if self.head is None else self.head.seq
        pairs: _Pairs = (
            tuple(sorted((p.seq or 0, p.number) for p in seen if p.kind == "checkpoint"))
            if self.head is None
            else self.head.checkpoints
        )
        # A head may say anything; what it says beyond the file's own length is found otherwise.
        transitions = [_Place("transition", seq) for seq in range(min(last + 1, len(reads)))]
        return [_AT_HEAD, *transitions, _AT_MIDDLE, *(_Place("checkpoint", *pair) for pair in pairs), _AT_END]

    def _go_through(self, reads: Sequence[_Read | None]) -> None:
        there = {read.place for read in reads if read is not None}
        before, damaged = -1, 0
        for number, read in enumerate(reads, start=1):
            if read is None:
                damaged = damaged or number
                continue
            at = self._index.get(read.place)
            if damaged and at is not None:
                self._settle_damaged(before, at, damaged, there)
                damaged = 0
            following = reads[number] if number < len(reads) else None
            self._take(read, number, "in another order" if at is not None and at <= before else None, following)
            before = before if at is None else max(before, at)
        if damaged:
            self._settle_damaged(before, len(self._expected), damaged, there)

    def _settle_damaged(self, before: int, at: int, number: int, there: set[_Place]) -> None:
        """Name the lines that damaged ones must have been: those between the intact ones around them."""
        lost = [place for place in self._expected[before + 1 : at] if place not in there]
        for place in lost or [self._expected[max(before, 0)]]:
            self._seen.add(place)
            self._lose(place)
            self._name(place, Code.NON_CANONICAL, f"{place} as it was written", f"other bytes, in line {number}")

    def _take(self, read: _Read, number: int, order: str | None, following: _Read | None) -> None:
        place = read.place
        self._seen.add(place)
        problem = read.flaw or order or self._misfit(read, following)
        if problem is not None:
            self._name(place, Code.NON_CANONICAL, f"{place} as the format has it", f"{problem}, in line {number}")
        if read.flaw is not None:
            self._lose(place)
        elif place.kind == "transition" and place.seq is not None:
            self.transitions.setdefault(place.seq, BundledTransition(**_open(_TRANSITION, read.members)))
        elif place.kind == "checkpoint":
            self.checkpoints.append(BundledCheckpoint(**_open(_CHECKPOINT, read.members)))

    def _misfit(self, read: _Read, following: _Read | None) -> str | None:
        """Return how a line does not fit in where it stands."""
        place = read.place
        at = self._index.get(place)
        if at is None:
            return "the head knows of no such line"
        if place.seq is None:
            return None
        # Where the next one cannot be read, it is what the head says comes next.
        kind = self._expected[at + 1].kind if following is None else following.place.kind
        return None if read.comma is (kind == place.kind) else "its comma is one too many, or missing"

    def _settle_missing(self) -> None:
        """Name the lines that are simply not there."""
        end = max(self.transitions, default=-1)
        for place in self._expected:
            if place in self._seen:
                continue
            self._lose(place)
            missing = Code.TRUNCATED if place.seq is not None and place.seq > end else Code.SEQ_GAP
            codes = {"transition": missing, "checkpoint": Code.CHECKPOINT_MISMATCH}
            self._name(place, codes.get(place.kind, Code.NON_CANONICAL), str(place), "nothing")

    def _lose(self, place: _Place) -> None:
        if place.kind == "transition" and place.seq is not None:
            self.lost.add(place.seq)

    def _name(self, place: _Place, code: Code, expected: str, actual: str) -> None:
        self.findings.append(
            Finding(workflow_id=self.workflow_id, seq=place.seq, code=code, expected=expected, actual=actual)
        )

    @property
    def workflow_id(self) -> str:
        """Whose history it is."""
        return "(unknown)" if self.head is None else self.head.workflow_id


# --- verifying -------------------------------------------------------------------------------


def verify(
    bundle: Bundle | bytes, trusted: Sequence[VerifierKey], *, anchors: Iterable[Anchor] | None = None
) -> list[Finding]:
    """Return everything that is wrong with a bundle, and what is missing from it on purpose.

    ``trusted`` are the keys that may have signed its note; with ``anchors``, as the exporter's log
    was anchored, it is also found where the history was cut off.
    """
    form = _Form(bundle if isinstance(bundle, bytes) else bundle.to_bytes())
    if form.head is None:  # whose history it is, and where it began, stands there
        return form.findings
    return form.findings + _Verification(form, form.head, trusted).findings(anchors)


@dataclass(kw_only=True)
class _Said:
    """What a note says, whoever signed it."""

    origin: str
    size: int
    root: bytes


class _Verification:
    def __init__(self, form: _Form, head: BundleHead, trusted: Sequence[VerifierKey]) -> None:
        self._form, self._head, self._trusted = form, head, trusted
        self._found: list[Finding] = []

    def findings(self, anchors: Iterable[Anchor] | None) -> list[Finding]:
        said = self._note()
        audited = self._audit(said)
        for transition in self._form.transitions.values():
            self._proof(transition, said)
        if anchors is not None:
            self._anchors(anchors, said)
        return list(dict.fromkeys(audited + self._found))

    # --- the log -------------------------------------------------------------------------

    def _note(self) -> _Said | None:
        """Check who signed the note, and that it is of the log that the head says it is of."""
        head = self._head
        self._same(None, Code.ANCHOR_MISMATCH, True, head.anchored_length <= head.seq + 1)
        if head.note is None:
            self._same(None, Code.ANCHOR_MISMATCH, (0, 0), (head.log_size, head.anchored_length))
            return None
        try:
            signed = open_note(head.note, self._trusted)
            said: _Said | None = _Said(origin=signed.origin, size=signed.size, root=signed.root)
        except NotANote as error:
            self._add(None, Code.SIGNATURE_INVALID, "a note that a trusted key signed", str(error))
            said = _claimed(head.note)
        if said is not None:
            self._same(None, Code.ANCHOR_MISMATCH, said.size, head.log_size)
            self._same(None, Code.ANCHOR_MISMATCH, log_name(head.exported_by), said.origin)
            self._same(0, Code.ANCHOR_MISMATCH, True, self._may_be_of_that_log())
        return said

    def _may_be_of_that_log(self) -> bool:
        """Whether the history began in the deployment whose log it is, or says that it was imported."""
        head = self._head
        came_from = [
            head.deployment if one.payload is None else one.said.get("deployment")  # None: it was erased
            for one in self._form.transitions.values()
            if one.members.get("event") == "imported"
        ]
        return head.deployment == head.exported_by or bool(self._form.lost) or head.deployment in came_from

    def _proof(self, transition: BundledTransition, said: _Said | None) -> None:
        """Check that a transition stands in the log where it says, if it is one of those that do."""
        seq, index, proof = transition.seq, transition.log_index, transition.proof
        anchored = seq < self._head.anchored_length
        if anchored is not (proof is not None):
            what = ("no proof", "a proof that it is in the log")
            self._add(seq, Code.ANCHOR_MISMATCH, what[anchored], what[not anchored])
        elif index is not None and proof is not None and said is not None:
            leaf = leaf_hash(transition.hash)
            if not includes(leaf, index, said.size, proof, said.root):
                self._add(
                    seq, Code.ANCHOR_MISMATCH, "a proof that it is in the log", "a proof of something else", index
                )

    def _anchors(self, anchors: Iterable[Anchor], said: _Said | None) -> None:
        """Check the history against the log as it was anchored elsewhere."""
        replay, frontier = Replay(self._trusted, log_name(self._head.exported_by)), Frontier()
        logged: list[tuple[int, int, bytes]] = []
        for index, entry in replay.entries(anchors):
            frontier.append(leaf_hash(entry.hash))
            if said is not None and frontier.size == said.size:
                self._same(None, Code.ANCHOR_MISMATCH, frontier.root.hex(), said.root.hex())
            if entry.workflow_id == self._head.workflow_id:
                logged.append((entry.seq, index, entry.hash))
        for index, problem in replay.problems:
            self._add(None, Code.LOG_INCONSISTENT, "the log as it was signed", problem, index)
        known = 0 if replay.head is None else replay.head.size
        self._logged([one for one in logged if one[1] < known], known)

    def _logged(self, logged: Sequence[tuple[int, int, bytes]], known: int) -> None:
        there = dict(self._form.transitions)
        for seq, index, digest in logged:
            own = there.pop(seq, None)
            if own is None and seq not in self._form.lost:
                code = Code.TRUNCATED if seq > self._head.seq else Code.SEQ_GAP
                self._add(seq, code, digest.hex(), None, index)
            elif own is not None and own.hash != digest:
                self._add(seq, Code.LOG_INCONSISTENT, digest.hex(), own.hash.hex(), index)
            elif own is not None and own.log_index is not None and own.log_index != index:
                self._add(seq, Code.LOG_INCONSISTENT, f"entry {index}", f"entry {own.log_index}", index)
        for seq, own in there.items():
            if own.log_index is not None and own.log_index < known:
                self._add(seq, Code.LOG_INCONSISTENT, None, own.hash.hex(), own.log_index)

    # --- the chain --------------------------------------------------------------------------

    def _audit(self, said: _Said | None) -> list[Finding]:
        """Verify the chain of what is intact; a line that is not was named already."""
        head = self._head
        audit = Audit(head.workflow_id, Evidence(deployment=head.deployment, anchored=0 if said is None else said.size))
        for seq, one in sorted(self._form.transitions.items()):
            self._envelope(seq, one.members)
            audit.transition(_stored(one, head.workflow_id), _own_checkpoint(one, head.workflow_id), _leaf(one))
        removed = Removed(pruned_through=self._pruned_through())
        more = [_between(one, head.workflow_id) for one in self._form.checkpoints]
        self._beginning()
        found = audit.close(None if head.seq in self._form.lost else _row(head), more, removed=removed)
        return [finding for finding in found if not self._is_told(finding)]

    def _beginning(self) -> None:
        """Check that the chain begins in the deployment that the head names, not in another that it tells of."""
        head, first = self._head, self._form.transitions.get(0)
        begun = genesis(head.deployment, head.workflow_id).hex()
        if first is not None and first.members:
            self._same(0, Code.PREV_MISMATCH, begun, first.members.get("prev"))

    def _envelope(self, seq: int, members: Mapping[str, Json]) -> None:
        """Check that what an envelope says is of the kind that it has to be; its version is for the audit."""
        if members.get("v") == VERSION and (flaw := _flaw(_ENVELOPE, members)) is not None:
            self._add(seq, Code.NON_CANONICAL, f"an envelope of version {VERSION}", flaw)

    def _pruned_through(self) -> int:
        through = -1 if self._head.pruned_through is None else self._head.pruned_through
        if through >= self._head.seq:  # the newest is never pruned
            self._add(self._head.seq, Code.CHECKPOINT_MISMATCH, f"below {self._head.seq}", f"pruned up to {through}")
        return min(through, self._head.seq - 1)

    def _is_told(self, finding: Finding) -> bool:
        """Whether it only says once more that a line is damaged, or blames another for it."""
        lost, seq = self._form.lost, finding.seq
        if finding.code is Code.SEQ_GAP:
            return seq in lost
        if finding.code is Code.MISSING_WORKFLOW:
            return self._head.seq in lost
        # What says that it was erased may be what cannot be read.
        missing = finding.code in {Code.PAYLOAD_MISMATCH, Code.CHECKPOINT_MISMATCH} and finding.actual is None
        return missing and seq is not None and any(seq < other for other in lost)

    def _add(self, seq: int | None, code: Code, expected: object, actual: object, index: int | None = None) -> None:
        self._found.append(
            Finding(
                workflow_id=self._head.workflow_id,
                seq=seq,
                code=code,
                expected=None if expected is None else str(expected),
                actual=None if actual is None else str(actual),
                log_index=index,
            )
        )

    def _same(self, seq: int | None, code: Code, expected: object, actual: object) -> None:
        if expected != actual:
            self._add(seq, code, expected, actual)


_CLAIM: Final = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\nat [^\n]+\n\n")


def _claimed(note: str) -> _Said | None:
    """Return what a note says that nobody trusted signed: then it is known at least whether the rest fits to it."""
    found = _CLAIM.match(note)
    return found and _Said(origin=found[1], size=int(found[2]), root=binascii.a2b_base64(found[3]))


def _stored(one: BundledTransition, workflow_id: str) -> StoredTransition:
    members = one.members

    def text(name: str) -> str:
        found = members.get(name)
        return found if isinstance(found, str) else ""

    attempt = members.get("attempt")
    return StoredTransition(
        workflow_id=workflow_id,
        seq=one.seq,
        event=text("event"),
        from_state=None if members.get("from") is None else text("from"),
        to_state=text("to"),
        actor=text("actor"),
        attempt=attempt if type(attempt) is int else 0,
        at=text("at"),
        envelope=one.envelope,
        hash=one.hash,
        payload=one.payload,
        payload_salt=one.payload_salt,
    )


def _own_checkpoint(one: BundledTransition, workflow_id: str) -> StoredCheckpoint | None:
    if one.checkpoint is None or one.checkpoint_salt is None:
        return None
    return _as_stored(workflow_id, one.seq, 0, one.checkpoint, one.checkpoint_salt)


def _between(one: BundledCheckpoint, workflow_id: str) -> StoredCheckpoint:
    return _as_stored(workflow_id, one.seq, one.number, one.checkpoint, one.checkpoint_salt)


def _as_stored(workflow_id: str, seq: int, number: int, body: bytes, salt: bytes) -> StoredCheckpoint:
    commitment = checkpoint_commitment(salt, body)
    return StoredCheckpoint(
        workflow_id=workflow_id, seq=seq, number=number, body=body, salt=salt, commitment=commitment
    )


def _leaf(one: BundledTransition) -> Leaf | None:
    return None if one.log_index is None else Leaf(one.log_index, one.hash)


def _row(head: BundleHead) -> StoredWorkflow:
    return StoredWorkflow(
        workflow_id=head.workflow_id,
        type=head.type,
        definition=head.definition,
        state=head.state,
        status=head.status,
        seq=head.seq,
        head=head.head,
        version=head.version,
    )
