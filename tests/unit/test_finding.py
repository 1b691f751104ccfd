"""Findings: each is counted once, and no flood of one kind hides another."""

from __future__ import annotations

from collections.abc import Iterator

from aegis.core.finding import Code, Finding, Findings, Report


def finding(code: Code, number: int, seq: int | None = 0) -> Finding:
    return Finding(workflow_id=f"w-{number}", seq=seq, code=code, expected=None, actual=None)


def many(code: Code, count: int) -> Iterator[Finding]:
    return (finding(code, number) for number in range(count))


def report(found: Findings) -> Report:
    return Report(
        workflows=0,
        transitions=0,
        findings=tuple(found.told),
        counts=dict(found.counts),
        witnesses=(),
        problems=(),
        seconds=0,
    )


def test_a_break_is_told_however_much_was_removed_on_purpose_before_it() -> None:
    found = Findings()
    found.extend(many(Code.PURGED, 10_001))
    found.extend(many(Code.ANCHOR_STALE, 10_001))
    found.add(finding(Code.ANCHOR_MISMATCH, 7, 3))
    told = report(found)
    assert [(one.workflow_id, one.seq) for one in told.failures if one.code is Code.ANCHOR_MISMATCH] == [("w-7", 3)]
    assert told.tampered
    assert len(found.told) == 20_001
    assert found.counts == {Code.PURGED: 10_001, Code.ANCHOR_STALE: 10_001, Code.ANCHOR_MISMATCH: 1}


def test_what_is_found_twice_is_counted_once_also_where_it_is_told_no_more() -> None:
    found = Findings(most=2)
    for _ in range(2):
        found.extend(many(Code.TRUNCATED, 5))
    assert found.counts == {Code.TRUNCATED: 5}
    assert [one.workflow_id for one in found.told] == ["w-0", "w-1"]


def test_what_is_about_the_log_is_told_apart_by_its_place() -> None:
    found = Findings()
    for index in (3, 3, 4):
        found.add(
            Finding(workflow_id=None, seq=None, code=Code.LOG_INCONSISTENT, expected="", actual=None, log_index=index)
        )
    assert [one.log_index for one in found.told] == [3, 4]
