r"""Verify a bundle that `aegis export` wrote, without AEGIS: this one file and Python 3.9 or newer.

    python verify_bundle.py bundle.json --key aegis.example/prod+1f2e3d4c+AQ...

A bundle holds one workflow's history: each transition (its envelope, in canonical JSON) has a hash,
holds the hash of the one before it, and commits to its payload and its checkpoint. All transitions
of all workflows stand in one log, a Merkle tree; the bundle has a note with the log's root, signed
by whoever runs AEGIS, and for each transition the proof that it stands in the log.

    H(kind, data)     = SHA-256("aegis/" + kind + "/v1\n" + data)
    first prev        = H("genesis", canonical {"deployment", "workflow_id"})
    transition's hash = H("transition", envelope)
    commitments       = H("payload", salt + payload), H("checkpoint", salt + checkpoint)
    leaf of the log   = SHA-256(0x00 + hash), node = SHA-256(0x01 + left + right)      (RFC 6962)
    note              = C2SP signed-note of a tlog-checkpoint, Ed25519                 (RFC 8032)
    line's digest     = H("bundle-line", canonical form of its object without "digest")

What a reader takes from the bundle alone is only that it fits together: whoever made it could have
made all of it. So something has to come from elsewhere: the public key that signs the notes (--key),
a root of the log (--root and --size), or a copy of the anchors (--anchors), with which it is also
found where the history was cut off.

Exit status: 0 verified; 1 tampered with, and each finding names its transition; 2 it could not be
verified: not readable, or nothing of the reader's own vouches for all of it.
"""

# ruff: noqa: PLR2004 - the numbers are those of the formats

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

FORMAT = "aegis-bundle/v1"
ANCHOR_FORMAT = "aegis-anchor/v1"
LARGEST_INTEGER = 2**53 - 1
DEEPEST = 64
INFORMATIVE = {"UNANCHORED", "PAYLOAD_ERASED", "CHECKPOINT_PRUNED"}
# The engine's own events: they leave the state as it is.
ENGINE_EVENTS = {
    *("created", "paused", "resumed", "failed", "quarantined", "retried", "cancelled"),
    *("approved", "disregarded", "upgraded", "imported", "erased"),
    *("pruned", "purged", "recovery_epoch", "loss_accepted"),
}
# What the row's status has to be after an event of the engine; other events leave an open one.
STATUS_AFTER = {
    "paused": "paused",
    "cancelled": "cancelled",
    "failed": "failed",
    "quarantined": "quarantined",
}
OPEN_STATUSES = {"pending", "waiting", "completed"}


class Unreadable(Exception):
    """Something that is not in the form that it has to be in; says why."""


class Finding(NamedTuple):
    """One thing that is not as it was committed; ``seq`` is the transition, None where it is about none."""

    seq: int | None
    code: str
    expected: str
    actual: str
    log_index: int | None = None

    def __str__(self) -> str:
        place = "the bundle" if self.seq is None else f"transition {self.seq}"
        return f"{place}: {self.code}: expected {self.expected}, found {self.actual}"


# --- JSON, in its one form (RFC 8785) -----------------------------------------------------------


def read_json(data: bytes) -> Any:
    """Read JSON, where it is written in its one form, and nothing else."""
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_members, parse_int=_integer, parse_constant=_refuse)
        written = write_json(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"it is not JSON ({type(error).__name__})") from None
    if written != text:
        raise Unreadable("it is JSON, but not in canonical form")
    return value


def write_json(value: Any, depth: int = 0) -> str:
    """Write a value in its one form: no blanks, members sorted by UTF-16, numbers as ECMAScript has them."""
    if isinstance(value, (list, dict)) and depth >= DEEPEST:
        raise Unreadable("it is nested too deeply")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _write_text(value)
    if isinstance(value, int):
        if abs(value) > LARGEST_INTEGER:
            raise Unreadable("an integer is beyond 2^53-1")
        return str(value)
    if isinstance(value, float):
        return _write_float(value)
    if isinstance(value, list):
        return "[" + ",".join(write_json(item, depth + 1) for item in value) + "]"
    members = sorted(value.items(), key=lambda member: member[0].encode("utf-16-be", "surrogatepass"))
    return "{" + ",".join(_write_text(name) + ":" + write_json(item, depth + 1) for name, item in members) + "}"


def canonical(value: Any) -> bytes:
    """Return the bytes of a value's one form."""
    return write_json(value).encode()


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Unreadable("a key stands twice in its object")
    return members


def _integer(digits: str) -> int:
    if len(digits) > len(str(LARGEST_INTEGER)) + 1:
        raise Unreadable("an integer is beyond 2^53-1")
    return int(digits)


def _refuse(name: str) -> Any:
    raise Unreadable(f"{name} is no JSON")


def _write_text(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise Unreadable("a text holds U+0000, or half a character")
    return json.dumps(text, ensure_ascii=False)


def _write_float(number: float) -> str:
    """Write a number as ECMAScript does: Python finds the same shortest digits, and sets them out otherwise."""
    if number - number != 0 or (number == int(number) and abs(number) > LARGEST_INTEGER):
        raise Unreadable("a number is infinite, or an integer beyond 2^53-1")
    if number == 0:
        return "0"
    if number < 0:
        return "-" + _write_float(-number)
    mantissa, _, power = repr(number).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(power or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    # The number is 0.digits times ten to the power of ``point``.
    if len(digits) <= point <= 21:
        return digits + "0" * (point - len(digits))
    if 0 < point <= 21:
        return digits[:point] + "." + digits[point:]
    if -6 < point <= 0:
        return "0." + "0" * -point + digits
    exponent = f"e{point - 1:+d}"
    return (digits[0] + "." + digits[1:] if len(digits) > 1 else digits) + exponent


# --- hashes and trees -------------------------------------------------------------------------


def tagged(kind: str, data: bytes) -> str:
    """Return H(kind, data), in hexadecimal."""
    return hashlib.sha256(b"aegis/" + kind.encode() + b"/v1\n" + data).hexdigest()


def leaf(transition: str) -> bytes:
    """Return the leaf of a transition, by its hash."""
    return hashlib.sha256(b"\x00" + bytes.fromhex(transition)).digest()


def node(left: bytes, right: bytes) -> bytes:
    """Return the node over two others."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_by_proof(found: bytes, index: int, size: int, proof: Sequence[str]) -> bytes | None:
    """Return the root that a proof of inclusion leads to, from the leaf up; None where it leads nowhere."""
    if size <= 1:
        return found if size == 1 and index == 0 and not proof else None
    if not proof or not 0 <= index < size:
        return None
    # The largest power of two below the size: the left side of the tree is whole (RFC 6962, section 2.1).
    split = 1 << ((size - 1).bit_length() - 1)
    right = index >= split
    below = root_by_proof(found, index - split if right else index, size - split if right else split, proof[:-1])
    sibling = bytes.fromhex(proof[-1])
    if below is None:
        return None
    return node(sibling, below) if right else node(below, sibling)


class Tree:
    """A tree that grows: the roots of the whole trees that it consists of, each with its number of leaves."""

    def __init__(self) -> None:
        self.size = 0
        self._whole: list[tuple[int, bytes]] = []

    def add(self, found: bytes) -> None:
        """Add a leaf."""
        self.size += 1
        count = 1
        while self._whole and self._whole[-1][0] == count:
            found = node(self._whole.pop()[1], found)
            count *= 2
        self._whole.append((count, found))

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        if not self._whole:
            return hashlib.sha256(b"").digest()
        found = self._whole[-1][1]
        for _, left in self._whole[-2::-1]:
            found = node(left, found)
        return found


# --- Ed25519 (RFC 8032, section 5.1) -------------------------------------------------------------

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_1 = pow(2, (P - 1) // 4, P)
# A point is (X, Y, Z, T) with x = X/Z, y = Y/Z, x*y = T/Z.
Point = tuple[int, int, int, int]
NEUTRAL: Point = (0, 1, 1, 0)


def add(one: Point, other: Point) -> Point:
    """Add two points (section 5.1.4)."""
    a = (one[1] - one[0]) * (other[1] - other[0]) % P
    b = (one[1] + one[0]) * (other[1] + other[0]) % P
    c = 2 * one[3] * other[3] * D % P
    d = 2 * one[2] * other[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def double(one: Point) -> Point:
    """Add a point to itself (section 5.1.4)."""
    a, b, c = one[0] * one[0] % P, one[1] * one[1] % P, 2 * one[2] * one[2] % P
    h = a + b
    e = h - (one[0] + one[1]) * (one[0] + one[1]) % P
    g = a - b
    f = c + g
    return (e * f % P, g * h % P, f * g % P, e * h % P)


def point_of(encoded: bytes) -> Point | None:
    """Return the point of 32 bytes (section 5.1.3); None if they are no point's only encoding."""
    y = int.from_bytes(encoded, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if len(encoded) != 32 or y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if v * x * x % P != u:
        x = x * ROOT_OF_MINUS_1 % P
    if v * x * x % P != u or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return (x, y, 1, x * y % P)


def bytes_of(point: Point) -> bytes:
    """Return a point's encoding (section 5.1.2)."""
    inverse = pow(point[2], P - 2, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


BASE = point_of((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def signature_is_valid(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether the signature is that key's (section 5.1.7): R = [S]B - [k]A, and S below the group's order."""
    key = point_of(public)
    s = int.from_bytes(signature[32:], "little")
    if BASE is None or key is None or len(signature) != 64 or s >= ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    minus_key = (P - key[0], key[1], 1, P - key[3])
    step = {1: BASE, 2: minus_key, 3: add(BASE, minus_key)}
    found = NEUTRAL
    for bit in range(252, -1, -1):  # both products at once, from the highest bit down
        found = double(found)
        which = (s >> bit & 1) | (k >> bit & 1) << 1
        if which:
            found = add(found, step[which])
    return bytes_of(found) == signature[:32]


# --- keys and notes (C2SP signed-note, tlog-checkpoint) --------------------------------------------


class Key(NamedTuple):
    """A public key, with the name that it signs under."""

    name: str
    id: bytes
    public: bytes

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}"


class Note(NamedTuple):
    """The head of a log: its name, its size, its root; ``signatures`` are (name, id of the key, signature)."""

    text: bytes
    origin: str
    size: int
    root: bytes
    at: str
    signatures: tuple[tuple[str, bytes, bytes], ...]


def read_key(line: str) -> Key:
    """Read a key's line, name+id+base64."""
    name, _, rest = line.strip().partition("+")
    given, _, encoded = rest.partition("+")
    raw = _base64(encoded)
    if not re.fullmatch(r"[^\s+]+", name) or len(raw) != 33 or raw[:1] != b"\x01":
        raise Unreadable(f"{line.strip()[:80]!r} is no key: it is name+id+base64 of an Ed25519 key")
    own = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if own.hex() != given:
        raise Unreadable(f"the id of the key {name} is {own.hex()}, not {given!r}")
    return Key(name, own, raw[1:])


def read_note(note: str) -> Note:
    """Read a note, without looking at who signed it."""
    text, separator, rest = note.rpartition("\n\n")
    lines = text.split("\n")
    if not separator or not rest.endswith("\n") or len(lines) != 4:
        raise Unreadable("the note is not name, size, root, time, an empty line, and signatures")
    moment = re.fullmatch(r"at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)", lines[3], re.ASCII)
    root = _base64(lines[2])
    if not lines[0] or not re.fullmatch(r"0|[1-9][0-9]{0,18}", lines[1]) or len(root) != 32 or moment is None:
        raise Unreadable("the note's name, size, root or time cannot be read")
    signatures = tuple(_signature(line) for line in rest[:-1].split("\n"))
    return Note((text + "\n").encode(), lines[0], int(lines[1]), root, moment.group(1), signatures)


def _signature(line: str) -> tuple[str, bytes, bytes]:
    found = re.fullmatch("\u2014 ([^\\s+]+) (\\S+)", line)
    raw = b"" if found is None else _base64(found.group(2))
    if found is None or len(raw) < 5:
        raise Unreadable("a line of the note is no signature")
    return found.group(1), raw[:4], raw[4:]


def signers(note: Note, keys: Sequence[Key]) -> list[Key]:
    """Return which of the keys signed a note; one whose signature does not hold makes it none."""
    found = []
    for name, identity, signature in note.signatures:
        for key in keys:
            if (key.name, key.id) == (name, identity):
                if not signature_is_valid(key.public, note.text, signature):
                    return []
                found.append(key)
    return found


def _base64(text: str) -> bytes:
    """Return the bytes that a text stands for, where it is the only one that does; else none."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return b""
    return raw if base64.b64encode(raw).decode() == text else b""


# --- the lines of the file ------------------------------------------------------------------------

HEX = re.compile(r"[0-9a-f]{64}")
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
Check = Callable[[Any], bool]


def _is_text(found: Any) -> bool:
    return isinstance(found, str)


def _is_count(found: Any) -> bool:
    return type(found) is int and found >= 0


def _is_hash(found: Any) -> bool:
    # Not bytes.fromhex, which also takes upper case and blanks.
    return isinstance(found, str) and HEX.fullmatch(found) is not None


def _is_moment(found: Any) -> bool:
    return isinstance(found, str) and MOMENT.fullmatch(found) is not None


def _is_proof(found: Any) -> bool:
    return isinstance(found, list) and all(_is_hash(one) for one in found)


def _are_pairs(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(one, list) and len(one) == 2 and _is_count(one[0]) and _is_count(one[1]) and one[1] for one in found
    )


def _or_null(check: Check) -> Check:
    return lambda found: found is None or check(found)


HEAD: dict[str, Check] = {
    "workflow_id": _is_text,
    "deployment": _is_text,
    "exported_by": _is_text,
    "exported_at": _is_moment,
    "type": _is_text,
    "version": _is_count,
    "definition": _is_text,
    "state": _is_text,
    "status": _is_text,
    "seq": _is_count,
    "head": _is_hash,
    "anchored_length": _is_count,
    "log_size": _is_count,
    "note": _or_null(_is_text),
    "pruned_through": _or_null(_is_count),
    "checkpoints": _are_pairs,
}
TRANSITION: dict[str, Check] = {
    "seq": _is_count,
    "envelope": _is_text,
    "hash": _is_hash,
    "payload": _or_null(_is_text),
    "payload_salt": _or_null(_is_hash),
    "checkpoint": _or_null(_is_text),
    "checkpoint_salt": _or_null(_is_hash),
    "log_index": _or_null(_is_count),
    "proof": _or_null(_is_proof),
}
CHECKPOINT: dict[str, Check] = {
    "seq": _is_count,
    "number": _is_count,
    "kind": _is_text,
    "at": _is_moment,
    "checkpoint": _is_text,
    "checkpoint_salt": _is_hash,
}
ENVELOPE: dict[str, Check] = {
    "v": _is_count,
    "alg": _is_text,
    "wf": _is_text,
    "seq": _is_count,
    "prev": _is_hash,
    "type": _is_text,
    "def": _is_text,
    "event": _is_text,
    "from": _or_null(_is_text),
    "to": _is_text,
    "actor": _is_text,
    "attempt": _is_count,
    "at": _is_moment,
    "payload": _or_null(_is_hash),
    "checkpoint": _is_hash,
}
TOGETHER = (("payload", "payload_salt"), ("checkpoint", "checkpoint_salt"), ("log_index", "proof"))

FIRST_LINE = (b'{"format":"' + FORMAT.encode() + b'","head":', b',"transitions":[')
OTHER_LINES = {b'],"checkpoints":[': "middle", b"]}": "end"}
# Which line it is: "head", ("T", seq), "middle", ("C", seq, number), or "end".
Which = Any
Members = dict[str, Any]


class Line(NamedTuple):
    """A line that has its digest; ``comma`` is whether one follows, ``flaw`` what is wrong with it all the same."""

    which: Which
    members: Members
    comma: bool
    flaw: str


def read_line(raw: bytes) -> Line | None:
    """Read a line of the file; None if it is not what anybody wrote."""
    if raw in OTHER_LINES:
        return Line(OTHER_LINES[raw], {}, comma=False, flaw="")
    before, after = FIRST_LINE
    is_head = raw.startswith(before) and raw.endswith(after)
    comma = not is_head and raw.endswith(b",")
    try:
        members = read_json(raw[len(before) : -len(after)] if is_head else raw[:-1] if comma else raw)
        if not isinstance(members, dict) or members.pop("digest", None) != tagged("bundle-line", canonical(members)):
            return None
    except Unreadable:
        return None
    if is_head:
        return Line("head", members, comma, flaw_of(HEAD, members))
    return _record(members, comma=comma)


def _record(members: Members, *, comma: bool) -> Line | None:
    seq, number = members.get("seq"), members.get("number", 0)
    if type(seq) is not int or type(number) is not int:
        return None
    if "number" in members:
        return Line(("C", seq, number), members, comma, flaw_of(CHECKPOINT, members))
    return Line(("T", seq), members, comma, flaw_of(TRANSITION, members))


def flaw_of(form: dict[str, Check], members: Members) -> str:
    """Return what is wrong with the members of an object; nothing if they are as they have to be."""
    for name in sorted(set(form) | set(members)):
        if name not in form:
            return f"a member {name!r} too many"
        if name not in members or not form[name](members[name]):
            return f"no {name} as it has to be"
    for one, other in TOGETHER:
        if one in form and other in form and (members[one] is None) != (members[other] is None):
            return f"{one} or {other} without the other"
    return ""


def _seq_of(which: Which) -> int | None:
    return which[1] if isinstance(which, tuple) else None


def _told(which: Which) -> str:
    if isinstance(which, tuple):
        return "its line" if which[0] == "T" else f"the line of its checkpoint {which[2]}"
    return f"the {which} of the file"


class File:
    """The bundle as far as it can be read, and what is wrong with its form."""

    def __init__(self, data: bytes) -> None:
        self.findings: list[Finding] = []
        self.head: Members = {}
        self.transitions: dict[int, Members] = {}
        self.checkpoints: list[Members] = []
        self.lost: set[int] = set()
        lines = data.split(b"\n")
        rest = lines.pop()
        read: list[Line | None] = [read_line(line) for line in lines]
        if rest:
            read.append(None)  # the last line has no end
        if not any(read):
            raise Unreadable(f"it is no bundle in the format {FORMAT}")
        if read and read[0] is not None and read[0].which == "head" and not read[0].flaw:
            self.head = read[0].members
        self.wanted = self._wanted(read)
        self._place = {which: place for place, which in enumerate(self.wanted)}
        self._compare(read)

    def _wanted(self, read: Sequence[Line | None]) -> list[Which]:
        """Return which lines there have to be: the head says so, or else those that can be read."""
        whiches = [line.which for line in read if line is not None]
        if self.head:
            last, pairs = self.head["seq"], [tuple(pair) for pair in self.head["checkpoints"]]
        else:
            last = max([which[1] for which in whiches if which[0] == "T"], default=-1)
            pairs = sorted({which[1:] for which in whiches if which[0] == "C"})
        transitions: list[Which] = [("T", seq) for seq in range(min(last + 1, len(read)))]
        return ["head", *transitions, "middle", *(("C", *pair) for pair in pairs), "end"]

    def _compare(self, read: Sequence[Line | None]) -> None:
        there = {line.which for line in read if line is not None}
        named: set[Which] = set()
        before, broken = -1, 0
        for number, line in enumerate([*read, Line("beyond", {}, comma=False, flaw="")], start=1):
            if line is None:
                broken = broken or number
                continue
            at = len(self.wanted) if line.which == "beyond" else self._place.get(line.which, -1)
            if broken and at >= 0:
                # What is damaged must be what is missing between the lines around it.
                gone = [which for which in self.wanted[before + 1 : at] if which not in there]
                for which in gone or [self.wanted[max(before, 0)]]:
                    named.add(which)
                    self._lost(
                        which, "NON_CANONICAL", f"{_told(which)} as it was written", f"other bytes, line {number - 1}"
                    )
                broken = 0
            if line.which == "beyond":
                break
            self._take(line, number, "in another order" if 0 <= at <= before else "", [*read, None][number])
            before = max(before, at)
        end = max(self.transitions, default=-1)
        for which in self.wanted:
            if which not in there and which not in named:
                seq = _seq_of(which)
                missing = "TRUNCATED" if seq is not None and seq > end else "SEQ_GAP"
                code = {"T": missing, "C": "CHECKPOINT_MISMATCH"}.get(which[0], "NON_CANONICAL")
                self._lost(which, code, _told(which), "nothing")

    def _take(self, line: Line, number: int, order: str, following: Line | None) -> None:
        which = line.which
        problem = line.flaw or order or self._misfit(line, following)
        if problem:
            self.findings.append(
                Finding(_seq_of(which), "NON_CANONICAL", f"{_told(which)} in its form", f"{problem}, line {number}")
            )
        if line.flaw:
            if which[0] == "T":
                self.lost.add(which[1])
        elif which[0] == "T":
            self.transitions.setdefault(which[1], line.members)
        elif which[0] == "C":
            self.checkpoints.append(line.members)

    def _misfit(self, line: Line, following: Line | None) -> str:
        """Return how a line does not fit in where it stands; where the next one is damaged, by what it has to be."""
        at = self._place.get(line.which)
        if at is None:
            return "it is none that the head knows of"
        if not isinstance(line.which, tuple):
            return ""
        after = self.wanted[at + 1] if following is None else following.which
        return "" if line.comma == (after[0] == line.which[0]) else "its comma"

    def _lost(self, which: Which, code: str, expected: str, actual: str) -> None:
        if which[0] == "T":
            self.lost.add(which[1])
        self.findings.append(Finding(_seq_of(which), code, expected, actual))


# --- approvals -------------------------------------------------------------------------------------


class Tally:
    """Who approved and who moved the workflow on, counted along the chain; it names where a rule was broken."""

    def __init__(self) -> None:
        self.steered_by: str | None = None
        self.senders: dict[str, set[str]] = {}
        """Who approved since the state was entered, by the transition's name."""
        self.lost = True

    def lose(self) -> None:
        """Note that something cannot be read: nothing is said of what depends on it."""
        self.steered_by, self.senders, self.lost = None, {}, True

    def count(self, envelope: Members, said: Members) -> Iterator[tuple[str, str]]:
        """Count a transition; yield what was to be expected, and what is there."""
        event, sender, stays = envelope["event"], str(said.get("sender")), envelope["from"] == envelope["to"]
        if event == "created":
            self.steered_by, self.lost = envelope["actor"], False
            return
        if event in {"approved", "disregarded"} and not stays:
            yield "a state that stays", f"{event} from {envelope['from']} to {envelope['to']}"
        if event in ENGINE_EVENTS - {"approved"}:
            self.senders = self.senders if stays else {}
            return
        if said.get("four_eyes") is True and sender == self.steered_by:
            yield "a sender who did not move it on before", sender
        approves = event == "approved"
        counted = self.senders.setdefault(str(said.get("transition")) if approves else event, set())
        ruled = not self.lost and (approves or type(said.get("approvals")) is int)
        if ruled and sender in counted:
            yield "an approval by another sender", f"one more by {sender}"
        twice = sender in counted
        counted.add(sender)
        if approves:
            if ruled and said.get("approvals") != len(counted):
                yield f"approvals {len(counted)}", f"approvals {said.get('approvals')}"
            return
        if ruled and not twice and len(counted) < said["approvals"]:
            yield f"{said['approvals']} approvals", f"{len(counted)} by {', '.join(sorted(counted))}"
        self.steered_by = sender if "sender" in said else self.steered_by
        self.senders, self.lost = {}, False


# --- the history -----------------------------------------------------------------------------------


class Trust(NamedTuple):
    """What the reader has from elsewhere: keys, a root and its size, lines of anchors."""

    keys: Sequence[Key] = ()
    root: bytes | None = None
    size: int | None = None
    anchors: Iterable[bytes] | None = None


class Verification:
    """One bundle against what the reader trusts: what is wrong, and what vouches for it."""

    def __init__(self, data: bytes, trust: Trust) -> None:
        self._trust = trust
        self.file = File(data)
        self.findings = list(self.file.findings)
        self.head, self.transitions = self.file.head, self.file.transitions
        self.envelopes: dict[int, Members] = {}
        self.note: Note | None = None
        self.vouchers: list[str] = []
        self.vouched: set[int] = set()
        """The transitions that something of the reader's own vouches for."""
        if self.head:  # without it, nobody knows whose history it is, and where it began
            self._chain()
            self._anchored()
            if trust.anchors is not None:
                self._against(trust.anchors)
            self._tell_unanchored()

    @property
    def tampered(self) -> bool:
        """Whether anything is wrong."""
        return any(finding.code not in INFORMATIVE for finding in self.findings)

    def _found(self, seq: int | None, code: str, expected: object, actual: object, index: int | None = None) -> None:
        self.findings.append(Finding(seq, code, str(expected), str(actual), index))

    def _same(self, seq: int | None, code: str, expected: object, actual: object) -> None:
        if expected != actual:
            self._found(seq, code, expected, actual)

    # --- the chain

    def _chain(self) -> None:
        self._listed: dict[int, list[str]] = {}
        self._erased, self._status = -1, ""
        self._tally = Tally()
        self._version: int | None = None
        missing: list[tuple[int, str]] = []
        for seq in sorted(self.transitions):
            envelope = self._envelope(seq)
            if envelope is None or (seq and seq - 1 not in self.transitions):
                self._tally.lose()
            if envelope is None:
                continue
            self._link(seq, envelope)
            before = len(self.findings) + len(missing)
            said = self._payload(seq, envelope, missing)
            self._rules(seq, envelope, said, intact=len(self.findings) + len(missing) == before)
            self._own_checkpoint(seq, envelope, missing)
            self._event(seq, envelope, said)
        self._pruned = -1 if self.head["pruned_through"] is None else self.head["pruned_through"]
        if self._pruned >= self.head["seq"]:
            self._found(self.head["seq"], "CHECKPOINT_MISMATCH", "the newest checkpoint", "pruned, it says")
        self._settle(missing)
        self._between()
        self._row()

    def _envelope(self, seq: int) -> Members | None:
        body = self.transitions[seq]["envelope"].encode()
        self._same(seq, "HASH_MISMATCH", tagged("transition", body), self.transitions[seq]["hash"])
        try:
            members = read_json(body)
        except Unreadable as problem:
            self._found(seq, "NON_CANONICAL", "an envelope in canonical form", problem)
            return None
        if not isinstance(members, dict) or type(members.get("v")) is not int or members["v"] != 1:
            self._found(seq, "UNKNOWN_VERSION", "version 1", "another")
            return None
        if members.get("alg") != "sha256":
            self._found(seq, "UNKNOWN_VERSION", "sha256", members.get("alg"))
            return None
        flaw = flaw_of(ENVELOPE, members)
        if flaw:
            self._found(seq, "NON_CANONICAL", "an envelope of version 1", flaw)
            return None
        self.envelopes[seq] = members
        self._same(seq, "WRONG_WORKFLOW", self.head["workflow_id"], members["wf"])
        self._same(seq, "HASH_MISMATCH", f"seq {seq}", f"seq {members['seq']}")
        return members

    def _link(self, seq: int, envelope: Members) -> None:
        """Check the link to the transition before, and name the one of the two that was changed."""
        if seq == 0:
            begin = canonical({"deployment": self.head["deployment"], "workflow_id": self.head["workflow_id"]})
            self._same(0, "PREV_MISMATCH", tagged("genesis", begin), envelope["prev"])
        elif seq - 1 in self.transitions:
            own = self.transitions[seq]
            # One that still has its own hash speaks for what it was linked to.
            intact = tagged("transition", own["envelope"].encode()) == own["hash"]
            before = self.transitions[seq - 1]["hash"]
            self._same(seq - 1 if intact else seq, "PREV_MISMATCH", envelope["prev"], before)

    def _payload(self, seq: int, envelope: Members, missing: list[tuple[int, str]]) -> Members:
        """Check the payload, and return what it says, where it is an object."""
        own = self.transitions[seq]
        if own["payload"] is None:
            if envelope["payload"] is not None:
                missing.append((seq, "PAYLOAD"))
            return {}
        body = own["payload"].encode()
        self._same(seq, "PAYLOAD_MISMATCH", envelope["payload"], tagged("payload", _salted(own, "payload")))
        try:
            said = read_json(body)
        except Unreadable as problem:
            self._found(seq, "NON_CANONICAL", "a payload in canonical form", problem)
            return {}
        return said if isinstance(said, dict) else {}

    def _rules(self, seq: int, envelope: Members, said: Members, *, intact: bool) -> None:
        """Check what the history says of its own rules; of what is not what was committed, nothing is concluded."""
        if not intact:
            self._tally.lose()
            return
        for expected, actual in self._tally.count(envelope, said):
            self._found(seq, "RULE_BROKEN", expected, actual)

    def _own_checkpoint(self, seq: int, envelope: Members, missing: list[tuple[int, str]]) -> None:
        own = self.transitions[seq]
        if own["checkpoint"] is None:
            missing.append((seq, "CHECKPOINT"))
            return
        committed = tagged("checkpoint", _salted(own, "checkpoint"))
        self._same(seq, "CHECKPOINT_MISMATCH", envelope["checkpoint"], committed)
        self._body(seq, own["checkpoint"])

    def _body(self, seq: int, text: str) -> None:
        """Check that a checkpoint says whose it is, and where."""
        try:
            members = read_json(text.encode())
        except Unreadable as problem:
            self._found(seq, "NON_CANONICAL", "a checkpoint in canonical form", problem)
            return
        own = members if isinstance(members, dict) else {}
        self._same(seq, "WRONG_WORKFLOW", self.head["workflow_id"], own.get("workflow_id"))
        self._same(seq, "CHECKPOINT_MISMATCH", f"seq {seq}", f"seq {own.get('seq')}")

    def _event(self, seq: int, envelope: Members, said: Members) -> None:
        """Note what a transition says of others: which checkpoints were made, what was erased, how it stands."""
        listed = said.get("progress")
        self._listed[seq - 1] = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
        event, through, status = envelope["event"], said.get("through"), said.get("status")
        if event == "erased" and isinstance(through, int) and _is_count(through):
            self._erased = max(self._erased, min(through, seq - 1))
        says = event in {"erased", "imported"} and isinstance(status, str)
        self._status = str(status) if says else STATUS_AFTER.get(event, "")
        if event == "upgraded" and type(said.get("to_version")) is int:
            self._version = said["to_version"]

    def _settle(self, missing: Sequence[tuple[int, str]]) -> None:
        """Say of what is missing whether it was removed on purpose."""
        for seq, what in missing:
            if seq <= self._erased or (what == "CHECKPOINT" and 0 < seq <= self._pruned < self.head["seq"]):
                code = "PAYLOAD_ERASED" if what == "PAYLOAD" else "CHECKPOINT_PRUNED"
                self._found(seq, code, f"a {what.lower()}", "nothing: removed on purpose, its commitment is kept")
            elif not any(seq < other for other in self.file.lost):  # which may have said that it was erased
                self._found(seq, f"{what}_MISMATCH", f"a {what.lower()}", "nothing")

    def _between(self) -> None:
        """Check the checkpoints between transitions: the next one lists each, and each that is listed is there."""
        there: dict[int, list[str]] = {}
        for one in sorted(self.file.checkpoints, key=lambda one: one["number"]):
            seq, commitment = one["seq"], tagged("checkpoint", _salted(one, "checkpoint"))
            there.setdefault(seq, []).append(commitment)
            self._body(seq, one["checkpoint"])
            if seq > self.head["seq"]:
                self._found(seq, "CHECKPOINT_MISMATCH", "nothing", f"a checkpoint after transition {seq}")
            elif seq + 1 in self.envelopes and commitment not in self._listed[seq]:
                self._found(seq, "CHECKPOINT_MISMATCH", "one that the next transition lists", commitment)
        for seq, listed in self._listed.items():
            lost = any(seq < other for other in self.file.lost)
            kept = there.get(seq, [])
            for commitment in listed:
                if commitment not in kept and seq > max(self._erased, self._pruned) and not lost:
                    self._found(seq, "CHECKPOINT_MISMATCH", commitment, "nothing")
            if [one for one in listed if one in kept] != [one for one in kept if one in listed]:
                self._found(seq, "CHECKPOINT_MISMATCH", "the order of the next transition's list", "another")

    def _row(self) -> None:
        """Check that the head says of the workflow what its last transition says."""
        head, end = self.head, max(self.transitions, default=-1)
        if head["seq"] in self.file.lost or end < 0:
            return
        self._same(end, "HEAD_MISMATCH", f"seq {end}", f"seq {head['seq']}")
        self._same(end, "HEAD_MISMATCH", self.transitions[end]["hash"], head["head"])
        last = self.envelopes.get(end)
        if last is None:
            return
        for name, member in (("state", "to"), ("type", "type"), ("definition", "def")):
            self._same(end, "ROW_STATE_MISMATCH", last[member], head[name])
        if self._version is not None:
            self._same(end, "ROW_STATE_MISMATCH", f"version {self._version}", f"version {head['version']}")
        if head["status"] not in ({self._status} if self._status else OPEN_STATUSES):
            self._found(
                end, "ROW_STATE_MISMATCH", f"status {self._status or 'pending, waiting or completed'}", head["status"]
            )

    # --- the log

    def _anchored(self) -> None:
        """Check the note, and that each transition that is said to be anchored stands in its log."""
        head, length = self.head, self.head["anchored_length"]
        if length > head["seq"] + 1:
            self._found(None, "ANCHOR_MISMATCH", f"at most {head['seq'] + 1} anchored", length)
        self._read_note()
        for seq in sorted(self.transitions):
            own = self.transitions[seq]
            if (own["proof"] is not None) != (seq < length):
                self._found(seq, "ANCHOR_MISMATCH", "a proof" if seq < length else "no proof", "the contrary")
            elif own["proof"] is not None and self.note is not None:
                root = root_by_proof(leaf(own["hash"]), own["log_index"], self.note.size, own["proof"])
                if root == self.note.root:
                    self.vouched.update({seq} if self.vouchers else ())
                else:
                    told = "nowhere" if root is None else root.hex()
                    self._found(seq, "ANCHOR_MISMATCH", self.note.root.hex(), told, own["log_index"])

    def _read_note(self) -> None:
        head, trust = self.head, self._trust
        if head["note"] is None:
            self._same(None, "ANCHOR_MISMATCH", (0, 0), (head["log_size"], head["anchored_length"]))
            return
        try:
            note = read_note(head["note"])
        except Unreadable as problem:
            self._found(None, "SIGNATURE_INVALID", "a signed note", problem)
            return
        self.note = note
        self._same(None, "ANCHOR_MISMATCH", note.size, head["log_size"])
        self._same(None, "ANCHOR_MISMATCH", quote(head["exported_by"], safe="/:.@~=-_"), note.origin)
        if head["deployment"] != head["exported_by"] and not self._was_imported():
            self._found(0, "ANCHOR_MISMATCH", f"a history of {head['exported_by']}", f"one of {head['deployment']}")
        if trust.keys:
            signed = signers(note, trust.keys)
            if signed:
                self.vouchers.append(f"the key {', '.join(map(str, signed))}")
            else:
                names = ", ".join(f"{name}+{identity.hex()}" for name, identity, _ in note.signatures)
                self._found(None, "SIGNATURE_INVALID", "a note signed by a key that you gave", f"one signed by {names}")
        if trust.root is not None and trust.size == note.size:
            self._same(None, "ANCHOR_MISMATCH", trust.root.hex(), note.root.hex())
            if trust.root == note.root:
                self.vouchers.append(f"the root over {note.size} transitions that you gave")

    def _was_imported(self) -> bool:
        """Whether the history itself says that it came from where it began."""
        if self.file.lost:
            return True
        for seq, envelope in self.envelopes.items():
            body = self.transitions[seq]["payload"]
            if envelope["event"] == "imported":
                try:
                    said = {} if body is None else read_json(body.encode())
                except Unreadable:
                    continue
                if body is None or (isinstance(said, dict) and said.get("deployment") == self.head["deployment"]):
                    return True
        return False

    # --- anchors from elsewhere

    def _against(self, lines: Iterable[bytes]) -> None:
        """Check the history against the log as it was anchored: nothing else shows where it was cut off."""
        log = Log(self._trust.keys, quote(self.head["exported_by"], safe="/:.@~=-_"), self.head["workflow_id"])
        if self.note is not None:
            log.look_at = self.note.size
        log.read(lines)
        for index, problem in log.problems:
            self._found(None, "LOG_INCONSISTENT", "the log as it was anchored", problem, index)
        if self.note is not None and log.root_there is not None:
            self._same(None, "ANCHOR_MISMATCH", log.root_there.hex(), self.note.root.hex())
        known = {entry for entry in log.entries if entry[1] < log.known}
        for seq, index, digest in sorted(known):
            self._compare(seq, index, digest)
        for seq in set(self.transitions) - {entry[0] for entry in known}:
            index = self.transitions[seq]["log_index"]
            if index is not None and index < log.known:
                self._found(seq, "LOG_INCONSISTENT", "another entry", self.transitions[seq]["hash"], index)
        if log.known:
            self.vouchers.append(f"the anchors that you gave, of {log.known} transitions")

    def _compare(self, seq: int, index: int, digest: str) -> None:
        own = self.transitions.get(seq)
        if own is not None and own["hash"] != digest:
            self._found(seq, "LOG_INCONSISTENT", digest, own["hash"], index)
        elif own is not None and own["log_index"] not in (None, index):
            self._found(seq, "LOG_INCONSISTENT", f"entry {index}", f"entry {own['log_index']}", index)
        elif own is not None:
            self.vouched.add(seq)
        elif seq not in self.file.lost:
            self._found(seq, "TRUNCATED" if seq > self.head["seq"] else "SEQ_GAP", digest, "nothing", index)

    # --- the verdict

    def _tell_unanchored(self) -> None:
        left = [seq for seq in sorted(self.transitions) if self.transitions[seq]["proof"] is None]
        left = [seq for seq in left if seq not in self.vouched]
        if left:
            self._found(left[0], "UNANCHORED", "an anchor", f"{len(left)} without one when it was exported")

    def reasons(self, *, accept_unanchored: bool = False) -> list[str]:
        """Say what keeps it from being verified, though nothing may be wrong with it."""
        trust, left = self._trust, sorted(set(self.transitions) - self.vouched)
        if not trust.keys and trust.root is None and trust.anchors is None:
            return ["its anchor was not checked against anything of your own: give --key, --root or --anchors"]
        if trust.root is not None and self.note is not None and trust.size != self.note.size:
            return [f"the root that you gave is over {trust.size} transitions, that of its note over {self.note.size}"]
        if left and not (accept_unanchored and self.vouchers):
            which = f"{len(left)} of its {len(self.transitions)} transitions, from {left[0]} on"
            return [f"nothing vouches yet for {which}: have it exported again after the next anchor"]
        return []


def _salted(own: Members, what: str) -> bytes:
    return bytes.fromhex(own[f"{what}_salt"]) + str(own[what]).encode()


class Log:
    """The log as a file of anchors tells it: each line holds a signed note, and the entries since the line before."""

    def __init__(self, keys: Sequence[Key], origin: str, workflow_id: str) -> None:
        self._keys, self._origin, self._workflow_id = keys, origin, workflow_id
        self._tree = Tree()
        self.look_at = -1
        self.root_there: bytes | None = None
        """The root over the first ``look_at`` entries."""
        self.known = 0
        """How many entries a note vouches for."""
        self.entries: list[tuple[int, int, str]] = []
        """Seq, index and hash of the workflow's own."""
        self.problems: list[tuple[int, str]] = []

    def read(self, lines: Iterable[bytes]) -> None:
        """Read the lines; one that a crash cut off is passed over, and was written once more after it."""
        for line in lines:
            try:
                first, note, entries = self._parts(line)
            except Unreadable:
                continue
            if first != self._tree.size:
                self.problems.append((self._tree.size, f"the next anchor begins at {first}, not at {self._tree.size}"))
                return
            for workflow_id, seq, digest in entries:
                if workflow_id == self._workflow_id:
                    self.entries.append((seq, self._tree.size, digest))
                self._tree.add(leaf(digest))
                if self._tree.size == self.look_at:
                    self.root_there = self._tree.root()
            problem = self._problem(note)
            if problem:
                self.problems.append((first, problem))
            else:
                self.known = self._tree.size

    def _parts(self, line: bytes) -> tuple[int, str, list[Any]]:
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            raise Unreadable("it is not JSON") from None
        if not isinstance(body, dict) or set(body) != {"entries", "first", "format", "note", "timestamp"}:
            raise Unreadable("it is no anchor")
        first, note, entries = body["first"], body["note"], body["entries"]
        if (
            body["format"] != ANCHOR_FORMAT
            or not _is_count(first)
            or not _is_text(note)
            or not isinstance(entries, list)
        ):
            raise Unreadable("it is no anchor")
        for entry in entries:
            is_entry = isinstance(entry, list) and len(entry) == len(("workflow", "seq", "hash"))
            if not is_entry or not _is_text(entry[0]) or not _is_count(entry[1]) or not _is_hash(entry[2]):
                raise Unreadable("an entry of it is none")
        return first, note, entries

    def _problem(self, note: str) -> str:
        """Return what is wrong with a line's note; nothing if it is as it has to be."""
        try:
            said = read_note(note)
        except Unreadable as problem:
            return str(problem)
        if self._keys and not signers(said, self._keys):
            return "an anchor is not signed by a key that you gave"
        if said.origin != self._origin:
            return f"an anchor is of the log {said.origin!r}, not of {self._origin!r}"
        if (said.size, said.root) != (self._tree.size, self._tree.root()):
            return f"the entries lead to {self._tree.size} leaves and another root than the anchor of {said.size} has"
        return ""


# --- the command ---------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a file, and say what came of it; return the exit status."""
    options = _options(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        data = sys.stdin.buffer.read() if options.bundle == "-" else Path(options.bundle).read_bytes()
        keys = [key for given in options.key for key in _keys(given)]
        lines = None if options.anchors is None else _lines(Path(options.anchors))
        verification = Verification(data, Trust(keys, _root(options), options.size, lines))
    except OSError as error:
        return _give_up(f"{error.filename} cannot be read ({error.strerror})", as_json=options.json)
    except Unreadable as problem:
        return _give_up(str(problem), as_json=options.json)
    except Exception as error:  # noqa: BLE001 - whatever a forged file leads to, it is one line
        return _give_up(f"it cannot be verified ({type(error).__name__}: {error})", as_json=options.json)
    reasons = [] if options.no_anchor else verification.reasons(accept_unanchored=options.accept_unanchored)
    status = 1 if verification.tampered else 2 if reasons else 0
    result = ("verified" if verification.vouched else "consistent", "tampered with", "not verified")[status]
    report = _report(verification, result, reasons if status == 2 else [])
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else _for_people(options.bundle, report))
    return status


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    about, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", help="the file, or - for standard input")
    parser.add_argument(
        "--key", action="append", default=[], help="a public key name+id+base64, or a file of such lines"
    )
    parser.add_argument("--root", help="the log's root that you have from elsewhere, in hexadecimal; with --size")
    parser.add_argument("--size", type=int, help="how many transitions that root is over")
    parser.add_argument("--anchors", help="a copy of the file of anchors: shows also where a history was cut off")
    parser.add_argument("--no-anchor", action="store_true", help="be content with a history that fits together")
    parser.add_argument(
        "--accept-unanchored", action="store_true", help="be content where the newest are not anchored yet"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)


def _root(options: argparse.Namespace) -> bytes | None:
    if (options.root is None) != (options.size is None) or not _is_hash(options.root or "0" * 64):
        raise Unreadable("--root is 64 hexadecimal digits in lower case, and is given with --size")
    return None if options.root is None else bytes.fromhex(options.root)


def _keys(given: str) -> list[Key]:
    """Return the keys of a line, or of a file of lines."""
    try:
        return [read_key(given)]
    except Unreadable:
        if not Path(given).is_file():
            raise
    lines = (line.partition("#")[0].strip() for line in Path(given).read_text(encoding="utf-8").splitlines())
    return [read_key(line) for line in lines if line]


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _give_up(problem: str, *, as_json: bool) -> int:
    line = _printable(problem)
    sys.stderr.write((json.dumps({"result": "not verified", "error": line}) if as_json else line) + "\n")
    return 2


def _report(verification: Verification, result: str, reasons: Sequence[str]) -> dict[str, Any]:
    head, note, envelopes = verification.head, verification.note, verification.envelopes
    moments = [envelopes[seq]["at"] for seq in sorted(envelopes)]
    return {
        "result": result,
        "workflow_id": head.get("workflow_id"),
        "type": head.get("type"),
        "deployment": head.get("deployment"),
        "exported_at": head.get("exported_at"),
        "transitions": len(verification.transitions),
        "first_at": moments[0] if moments else None,
        "last_at": moments[-1] if moments else None,
        "payloads": sum(own["payload"] is not None for own in verification.transitions.values()),
        "checkpoints": len(verification.file.checkpoints)
        + sum(own["checkpoint"] is not None for own in verification.transitions.values()),
        "anchored_length": head.get("anchored_length"),
        "log": None
        if note is None
        else {"origin": note.origin, "size": note.size, "root": note.root.hex(), "at": note.at},
        "vouched_for_by": verification.vouchers,
        "vouched_for": len(verification.vouched),
        "reasons": list(reasons),
        "findings": [
            {
                "workflow_id": head.get("workflow_id"),
                "severity": "informative" if finding.code in INFORMATIVE else "failure",
                **finding._asdict(),
            }
            for finding in verification.findings
        ],
    }


def _for_people(name: str, report: dict[str, Any]) -> str:
    """Return the report as lines: what it is, what was checked, what was found."""
    count, log = report["transitions"], report["log"]
    lines = [
        f"bundle       {name}: workflow {report['workflow_id']!r} of type {report['type']}",
        f"began in     {report['deployment']}",
        f"transitions  {count}, from {report['first_at']} to {report['last_at']}",
        f"contents     {report['payloads']} payloads, {report['checkpoints']} checkpoints",
        "log          the bundle has no anchor"
        if log is None
        else f"log          {log['origin']}, {log['size']} transitions on {log['at']}",
        f"root         {'none' if log is None else log['root']}",
        f"vouched for  {report['vouched_for']} of {count}, by {' and '.join(report['vouched_for_by']) or 'nothing'}",
    ]
    for finding in report["findings"]:
        place = "the bundle" if finding["seq"] is None else f"transition {finding['seq']}"
        said = f"{finding['code']}: expected {finding['expected']}, found {finding['actual']}"
        lines.append(f"{'note' if finding['severity'] == 'informative' else 'FAILURE':<13}{place}: {said}")
    lines += [f"but          {reason}" for reason in report["reasons"]]
    lines.append(f"result       {report['result'].upper()}")
    return "".join(_printable(line) + "\n" for line in lines)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


if __name__ == "__main__":
    sys.exit(main())
