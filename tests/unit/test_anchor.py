"""Anchors: one line each, read back or refused; when there is to be one; and the log as they tell it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from aegis.core.anchor import Anchor, Due, Entry, Replay, due, log_name
from aegis.core.canonical import is_canonical
from aegis.core.errors import NotANote
from aegis.core.merkle import leaf_hash, root_of
from aegis.core.note import LogHead, SigningKey, VerifierKey, is_key_name, open_note

ORIGIN = "aegis.example/prod"
AT = datetime(2026, 11, 22, 10, 11, 12, 345678, tzinfo=UTC)


def signer(seed: int = 1) -> SigningKey:
    return SigningKey(name=ORIGIN, private=Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def entry(number: int, workflow_id: str = "w") -> Entry:
    return Entry(workflow_id=workflow_id, seq=number, hash=hashlib.sha256(f"{number}".encode()).digest())


LOG = [entry(number) for number in range(40)]


def root(size: int) -> bytes:
    return root_of(leaf_hash(one.hash) for one in LOG[:size])


def anchor(first: int, end: int, *, key: SigningKey | None = None, **other: Any) -> Anchor:
    """The anchor over the log up to ``end``, after one that ended at ``first``."""
    head = {"origin": ORIGIN, "size": end, "root": root(end), "at": AT, **other}
    return Anchor(first=first, note=(key or signer()).sign(LogHead(**head).text()), entries=tuple(LOG[first:end]))


SAMPLE = replace(anchor(2, 5), timestamp="c3RhbXA=")

# --- one line -------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
entries = st.builds(Entry, workflow_id=texts, seq=st.integers(0, 2**53 - 1), hash=st.binary(min_size=32, max_size=32))
anchors = st.builds(
    Anchor,
    first=st.integers(0, 2**53 - 1),
    note=texts,
    entries=st.lists(entries, max_size=5).map(tuple),
    timestamp=st.none() | texts,
)


@given(anchors)
def test_a_line_reads_back_to_the_anchor_that_it_was_written_of(made: Anchor) -> None:
    line = made.line()
    assert Anchor.parse(line) == made
    assert Anchor.parse(line[:-1]) == made, "what lacks only its end is whole"
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert is_canonical(line[:-1])
    assert made.end == made.first + len(made.entries)


def test_a_line_of_5000_entries_with_the_longest_names_is_read_back() -> None:
    made = replace(SAMPLE, entries=tuple(entry(number, "w" * 128) for number in range(5000)))
    assert Anchor.parse(made.line()) == made


def test_every_truncated_line_is_refused() -> None:
    line = SAMPLE.line()
    for length in range(len(line) - 1):
        with pytest.raises(NotANote, match="the anchor"):
            Anchor.parse(line[:length])
    for start in range(1, len(line)):
        with pytest.raises(NotANote, match="the anchor"):
            Anchor.parse(line[start:])


def test_every_flipped_bit_is_refused_or_noticed_by_what_is_signed() -> None:
    """The name and seq of an entry, and the timestamp, are proved by what they lead to, not by the signature."""
    line = anchor(0, 3).line()
    unsigned = [line.index(part) for part in (b'"w"', b'"w",1', b'"w",2', b"null")]
    free = {place for start in unsigned for place in range(start, start + 5)}
    refused = 0
    for place in range(len(line) - 1):
        for bit in range(8):
            changed = bytearray(line)
            changed[place] ^= 1 << bit
            try:
                again = Replay([signer().verifier], ORIGIN)
                list(again.entries([Anchor.parse(bytes(changed))]))
            except NotANote:
                refused += 1
            else:
                assert again.problems or place in free, (place, bit)
    assert refused > 1000


def changed(**members: Any) -> bytes:
    body = json.loads(SAMPLE.line())
    body.update(members)
    return json.dumps({name: value for name, value in body.items() if value != "absent"}).encode()


HEX = "ab" * 32


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b"1",
        b'"aegis-anchor/v1"',
        b"\xff",
        b"\0" * 50,
        b"[" * 100_000,
        b'{"first":' + b"9" * 5000 + b"}",
        SAMPLE.line() * 2,
        SAMPLE.line() + b"x",
        *(changed(**{name: "absent"}) for name in ("entries", "first", "format", "note", "timestamp")),
        changed(more=1),
        changed(format="aegis-anchor/v2"),
        changed(format=None),
        changed(format=["aegis-anchor/v1"]),
        *(changed(first=first) for first in (-1, 1.0, "1", True, None, [])),
        *(changed(note=note) for note in (None, 1, ["a"], "\ud800")),
        *(changed(timestamp=stamp) for stamp in (1, False, ["a"], "\udfff")),
        *(changed(entries=listed) for listed in (None, {}, "a", 1, [None], [[]], ["abc"], [["w", 0]])),
        *(changed(entries=[["w", 0, digest]]) for digest in (HEX[:-1], HEX + "a", HEX.upper(), HEX + "\n", None, 1)),
        *(changed(entries=[["w", seq, HEX]]) for seq in (-1, 1.0, "1", True, False, None)),
        *(changed(entries=[[name, 0, HEX]]) for name in (None, 1, ["w"], "\ud800")),
        changed(entries=[["w", 0, HEX, 1]]),
        changed(entries=[["w", 0, HEX], ["w", 1]]),
    ],
    ids=lambda line: ascii(line[:40]),
)
def test_every_mangled_line_is_refused(line: bytes) -> None:
    with pytest.raises(NotANote, match="the anchor") as refused:
        Anchor.parse(line)
    assert len(str(refused.value).splitlines()) == 1
    assert str(refused.value).encode()


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_be_refused(line: bytes) -> None:
    with pytest.raises(NotANote):
        Anchor.parse(line)


@given(st.text(st.characters(), max_size=128))
def test_the_name_of_a_log_is_one_that_can_be_signed(deployment: str) -> None:
    try:
        name = log_name(deployment)
    except UnicodeEncodeError:
        return
    if name:
        assert is_key_name(name)
        head = LogHead(origin=name, size=0, root=bytes(32), at=AT)
        assert open_note(signer().sign(head.text()), [signer().verifier]) == head


def test_names_of_logs_are_told_apart() -> None:
    assert log_name("aegis.example/prod") == "aegis.example/prod"
    assert len({log_name(name) for name in ("a b", "a+b", "a%20b", "a\nb", "ä", "a_b")}) == 6


# --- when -----------------------------------------------------------------------------------

HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("size", "last", "ago", "expected"),
    [
        (0, None, None, Due.ANCHOR),
        (5, None, None, Due.ANCHOR),
        (0, 0, timedelta(0), Due.NOTHING),
        (5, 5, timedelta(0), Due.NOTHING),
        (5, 5, HOUR - timedelta(microseconds=1), Due.NOTHING),
        (5, 5, HOUR, Due.ANCHOR),
        (5, 5, 9 * HOUR, Due.ANCHOR),
        (6, 5, timedelta(0), Due.NOTHING),
        (14, 5, timedelta(0), Due.NOTHING),
        (15, 5, timedelta(0), Due.ANCHOR),
        (10_000, 5, timedelta(0), Due.ANCHOR),
        (6, 5, HOUR, Due.ANCHOR),
        (4, 5, timedelta(0), Due.AHEAD),
        (4, 5, 9 * HOUR, Due.AHEAD),
        (0, 1, timedelta(0), Due.AHEAD),
        # The clock was set back, or is another server's.
        (5, 5, -HOUR, Due.NOTHING),
        (5, 5, -9 * HOUR, Due.NOTHING),
        (6, 5, timedelta(minutes=-59), Due.NOTHING),
        (6, 5, -HOUR, Due.ANCHOR),
        (15, 5, -9 * HOUR, Due.ANCHOR),
    ],
)
def test_when_an_anchor_is_due(size: int, last: int | None, ago: timedelta | None, expected: Due) -> None:
    head = None
    if last is not None and ago is not None:
        head = LogHead(origin=ORIGIN, size=last, root=root(0), at=AT - ago)
    assert due(size, head, now=AT, interval=HOUR, every=10) is expected


# --- reading back -----------------------------------------------------------------------------


def replay(lines: list[Anchor], *trusted: VerifierKey, origin: str = ORIGIN) -> tuple[list[tuple[int, Entry]], Replay]:
    again = Replay(trusted or [signer().verifier], origin)
    return list(again.entries(lines)), again


@pytest.mark.parametrize("ends", [[], [0], [0, 0, 0], [1], [40], [0, 1, 2, 3], [7, 7, 8, 20, 20, 40], [3, 33]], ids=str)
def test_a_good_sequence_gives_the_log_and_its_head(ends: list[int]) -> None:
    lines = [anchor(first, end) for first, end in zip([0, *ends], ends, strict=False)]
    found, again = replay(lines)
    size = ends[-1] if ends else 0
    assert found == list(enumerate(LOG[:size]))
    assert again.problems == []
    assert again.size == size
    assert again.head == (LogHead(origin=ORIGIN, size=size, root=root(size), at=AT) if ends else None)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).map(sorted))
def test_any_cutting_into_lines_gives_the_same_log(ends: list[int]) -> None:
    found, again = replay([anchor(first, end) for first, end in zip([0, *ends], ends, strict=False)])
    assert found == list(enumerate(LOG[: ends[-1]]))
    assert again.problems == []


@pytest.mark.parametrize(
    ("ends", "gone", "place"),
    [([5, 10, 15], 1, 5), ([5, 10, 15], 0, 0), ([5, 10, 15, 20], 2, 10)],
)
def test_a_line_that_is_missing_is_told_and_what_is_before_it_stands(ends: list[int], gone: int, place: int) -> None:
    lines = [anchor(first, end) for first, end in zip([0, *ends], ends, strict=False)]
    del lines[gone]
    found, again = replay(lines)
    assert found == list(enumerate(LOG[:place]))
    ((index, problem),) = again.problems
    assert index == place
    assert f"the next anchor begins at {lines[gone].first}, not at {place}" in problem
    assert (0 if again.head is None else again.head.size) == place


@pytest.mark.parametrize("order", [[0, 0, 1], [0, 1, 1], [1, 0], [0, 1, 0]])
def test_lines_that_stand_twice_or_in_another_order_are_told(order: list[int]) -> None:
    lines = [anchor(0, 5), anchor(5, 9)]
    found, again = replay([lines[number] for number in order])
    assert len(again.problems) == 1
    assert [place for place, _ in found] == list(range(len(found)))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: replace(made, entries=(*made.entries[:2], entry(99), *made.entries[3:])),
        lambda made: replace(made, entries=(*made.entries[:2], *made.entries[3:])),
        lambda made: replace(made, entries=(*made.entries, entry(99))),
        lambda made: replace(made, entries=made.entries[::-1]),
        lambda made: replace(made, entries=()),
        lambda made: replace(made, note=anchor(5, 10, root=root(9)).note),
        lambda made: replace(made, note=anchor(5, 10, size=11).note),
        lambda made: replace(made, note=anchor(0, 5).note),
    ],
)
def test_entries_that_do_not_lead_to_the_root_that_was_signed_are_told(change: Callable[[Anchor], Anchor]) -> None:
    _, again = replay([anchor(0, 5), change(anchor(5, 10))])
    ((index, problem),) = again.problems
    assert index == 5
    assert "leaves and another root" in problem
    assert again.head is not None
    assert again.head.size == 5, "the last one that is right"


def test_a_line_that_nobody_trusted_signed_is_told_and_the_next_one_vouches_for_it() -> None:
    """Whoever signed it: the root of the next covers its entries too."""
    lines = [anchor(0, 5), anchor(5, 10, key=signer(9)), anchor(10, 15)]
    found, again = replay(lines)
    assert [(index, "is not trusted here" in problem) for index, problem in again.problems] == [(5, True)]
    assert len(found) == 15
    assert again.head is not None
    assert again.head.size == 15


@pytest.mark.parametrize("note", ["", "rubbish", "a\n\nb\n", anchor(5, 10).note[:-4] + "AA=\n"])
def test_a_note_that_is_none_is_told(note: str) -> None:
    _, again = replay([anchor(0, 5), replace(anchor(5, 10), note=note)])
    assert [index for index, _ in again.problems] == [5]
    assert again.head is not None
    assert again.head.size == 5


def test_the_anchors_of_another_log_are_told() -> None:
    _, again = replay([anchor(0, 5, origin="aegis.example/test")])
    assert again.problems == [(0, "it is of the log 'aegis.example/test', not of 'aegis.example/prod'")]
    assert again.head is None


def test_a_key_can_be_replaced_where_both_are_trusted() -> None:
    lines = [anchor(0, 5), anchor(5, 10), anchor(10, 15, key=signer(2)), anchor(15, 15, key=signer(2))]
    _, again = replay(lines, signer(2).verifier, signer(1).verifier)
    assert again.problems == []
    assert again.head is not None
    assert again.head.size == 15
    for one, bad in ((1, [10, 15]), (2, [0, 5])):
        _, again = replay(lines, signer(one).verifier)
        assert [index for index, _ in again.problems] == bad


def test_nothing_is_trusted_where_there_is_no_key() -> None:
    again = Replay([], ORIGIN)
    assert len(list(again.entries([anchor(0, 5)]))) == 5
    assert again.head is None
    assert len(again.problems) == 1
