"""How far a server has archived its WAL by itself: what it archives is not only segments."""

from __future__ import annotations

import pytest

from aegis.persistence.cluster import Archiver, archived_to

SEGMENT = 16 * 1024 * 1024
FIFTH = "000000010000000000000005"


def archiver(last: str | None) -> Archiver:
    return Archiver(active=True, last=last, failing=None, since=None, behind=0)


@pytest.mark.parametrize(
    ("last", "end"),
    [
        (None, None),
        (FIFTH, 6 * SEGMENT),
        ("0000000200000001000000FF", 0x200 * SEGMENT),
        # After a promotion: the history comes first, and says nothing of segments.
        ("00000002.history", None),
        (f"{FIFTH}.partial", 5 * SEGMENT),
        (f"{FIFTH}.00000028.backup", 6 * SEGMENT),
        ("something else", None),
    ],
)
def test_how_far_the_last_file_says_it_is(last: str | None, end: int | None) -> None:
    assert archived_to(last) == end


@pytest.mark.parametrize(
    ("last", "has"),
    [
        (None, False),
        ("000000010000000000000004", False),
        (FIFTH, True),
        ("000000010000000000000006", True),
        ("000000020000000000000005", True),
        ("00000001.history", False),
        ("00000002.history", False),
        (f"{FIFTH}.partial", False),
        ("000000010000000000000006.partial", True),
        (f"{FIFTH}.00000028.backup", True),
    ],
)
def test_whether_a_segment_is_archived(last: str | None, *, has: bool) -> None:
    assert archiver(last).has(FIFTH) is has
