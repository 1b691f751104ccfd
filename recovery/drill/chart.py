"""The timeline as a picture: what was acknowledged and what moved, a second, with the fault and the recovery marked.

Written by hand, so that it needs nothing: one SVG that is readable in a browser, in a pull request, and in print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

from .report import Outcome, Report

_WIDTH: Final = 920
_LEFT, _RIGHT = 64, 24
_TOP: Final = 92
_PANEL: Final = 118
_BETWEEN: Final = 44
_PLOT: Final = _WIDTH - _LEFT - _RIGHT
_INK, _FAINT, _GRID = "#1f2933", "#66727f", "#e3e8ee"
_BLUE, _GREEN, _RED = "#2667b8", "#2a8a55", "#c43d3d"
_STEPS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_FEWEST, _MOST = 2, 5


def chart(report: Report) -> str:
    """Return the picture of the slowest repetition."""
    outcome = max(report.outcomes, key=lambda each: float("inf") if each.rto is None else each.rto)
    line = outcome.timeline
    height = _TOP + 2 * _PANEL + _BETWEEN + 46
    span = max(len(line.acknowledged), 1) * line.width
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
        f' font-family="system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif" role="img">'
    )
    parts = [
        opening,
        f"<title>{escape(_title(report))}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        _text(_LEFT, 30, _title(report), size=17, weight="600"),
        _text(_LEFT, 51, _subtitle(report, outcome), size=12.5, fill=_FAINT),
    ]
    second = [value / line.width for value in line.acknowledged]
    refused = [value / line.width for value in line.refused]
    moved = [value / line.width for value in line.transitions]
    bottom = _TOP + 2 * _PANEL + _BETWEEN
    parts += _outage(outcome, line.start, span, bottom)
    parts += _panel(_TOP, "requests a second", [(second, _BLUE, "acknowledged"), (refused, _RED, "refused")])
    parts += _panel(
        _TOP + _PANEL + _BETWEEN, "transitions a second", [(moved, _GREEN, "committed, as seen from outside")]
    )
    parts += _seconds(line.start, span, bottom)
    parts += _marks(outcome, line.start, span, bottom)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _title(report: Report) -> str:
    return f"{report.title}: {'PASS' if report.passed else 'FAIL'}"


def _subtitle(report: Report, outcome: Outcome) -> str:
    took = "did not recover in time" if outcome.rto is None else f"recovered in {outcome.rto:.2f} s"
    if outcome.timeline.last is None and outcome.rto is not None:
        took = f"named in {outcome.rto:.2f} s"
    which = f"the slowest of {len(report.outcomes)} runs" if len(report.outcomes) > 1 else "one run"
    return (
        f"{which}: {took} (declared {report.objective.rto:g} s), {outcome.lost} of {outcome.acknowledged}"
        f" acknowledged requests lost, {outcome.doubled} recorded twice"
    )


# --- parts ------------------------------------------------------------------------------------


def _panel(top: int, name: str, lines: Sequence[tuple[Sequence[float], str, str]]) -> list[str]:
    """Return one diagram: steps that are filled, on a grid with round numbers."""
    most = max(1.0, *(value for values, _, _ in lines for value in values))
    step = next(each for each in (*_STEPS, most) if most / each <= _MOST)
    ceiling = step * max(_FEWEST, -(-most // step))
    parts = [_text(_LEFT, top - 10, name, size=12, weight="600")]
    at: float = 0
    while at <= ceiling:
        y = top + _PANEL - at / ceiling * _PANEL
        parts.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, _GRID if at else _FAINT))
        parts.append(_text(_LEFT - 8, y + 4, f"{at:g}", size=11, fill=_FAINT, anchor="end"))
        at += step
    x: float = _WIDTH - _RIGHT
    for _, colour, label in reversed(lines):
        parts.append(_text(x, top - 10, label, size=11.5, fill=colour, anchor="end"))
        x -= 8 + len(label) * 6.6
    for values, colour, _ in lines:
        if any(values):
            parts.append(_area(values, colour, top, ceiling))
    return parts


def _area(values: Sequence[float], colour: str, top: int, ceiling: float) -> str:
    """Return steps, filled; where there is nothing, nothing is drawn."""
    width = _PLOT / len(values)
    floor = top + _PANEL
    parts = []
    for first, last in _runs(values):
        left, right = _LEFT + first * width, _LEFT + last * width
        steps = [f"{left:.1f},{floor}"]
        for number in range(first, last):
            y = floor - values[number] / ceiling * _PANEL
            steps.append(f"{_LEFT + number * width:.1f},{y:.1f} {_LEFT + (number + 1) * width:.1f},{y:.1f}")
        points = " ".join([*steps, f"{right:.1f},{floor}"])
        parts.append(
            f'<polyline points="{points}" fill="{colour}" fill-opacity="0.14" stroke="{colour}"'
            f' stroke-width="1.6" stroke-linejoin="round"/>'
        )
    return "".join(parts)


def _runs(values: Sequence[float]) -> Iterator[tuple[int, int]]:
    """Give the stretches in which there is something, each with its first bin and the one after its last."""
    first = None
    for number, value in enumerate([*values, 0]):
        if value and first is None:
            first = number
        elif not value and first is not None:
            yield first, number
            first = None


def _outage(outcome: Outcome, start: float, span: float, bottom: int) -> list[str]:
    last = _end(outcome)
    if last is None:
        last = start + span
    left, right = _x(0, start, span), _x(last, start, span)
    wide, high = max(1.0, right - left), bottom - _TOP
    return [f'<rect x="{left:.1f}" y="{_TOP}" width="{wide:.1f}" height="{high}" fill="#fdf0f0"/>']


def _end(outcome: Outcome) -> float | None:
    """Return when it was over, from the fault on; of an edit, when it was named."""
    return outcome.rto if outcome.timeline.last is None else outcome.timeline.last


def _marks(outcome: Outcome, start: float, span: float, bottom: int) -> list[str]:
    """Return the moments: the fault, the healing, the first and the last that moved again."""
    line = outcome.timeline
    named = line.last is None and outcome.rto is not None
    moments = [(0.0, "fault", _RED)]
    if line.healed is not None:
        moments.append((line.healed, "healed", _FAINT))
    if line.first is not None and line.first != line.last:
        moments.append((line.first, "first moves", _GREEN))
    if (end := _end(outcome)) is not None:
        moments.append((end, "named" if named else "last moves" if line.first != line.last else "moves", _GREEN))
    parts = []
    taken: list[tuple[float, float, int]] = []
    for at, label, colour in moments:
        x = _x(at, start, span)
        # One row lower for each that would stand in its way.
        row = 0
        wide = 14 + 7.2 * len(label)
        while any(x < end and begun < x + wide and row == lane for begun, end, lane in taken):
            row += 1
        taken.append((x, x + wide, row))
        parts.append(_line(x, _TOP, x, bottom, colour, dash="3 3"))
        end_side = x > _WIDTH - _RIGHT - 90
        parts.append(
            _text(
                x + (-5 if end_side else 5),
                _TOP + 13 + row * 15,
                label,
                size=11.5,
                fill=colour,
                weight="600",
                anchor="end" if end_side else "start",
            )
        )
    return parts


def _seconds(start: float, span: float, bottom: int) -> list[str]:
    step = next(each for each in (1, 2, 5, 10, 20, 50, 100, span) if span / each <= 16)  # noqa: PLR2004 - room for them
    parts = []
    at: float = -(-start // step) * step
    while at <= start + span:
        x = _x(at, start, span)
        parts.append(_line(x, bottom, x, bottom + 5, _FAINT))
        parts.append(_text(x, bottom + 19, f"{at:g}", size=11, fill=_FAINT, anchor="middle"))
        at += step
    parts.append(
        _text(_LEFT + _PLOT / 2, bottom + 37, "seconds from the fault", size=11.5, fill=_FAINT, anchor="middle")
    )
    return parts


def _x(at: float, start: float, span: float) -> float:
    return _LEFT + min(1.0, max(0.0, (at - start) / span)) * _PLOT


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1"{dashed}/>'


def _text(
    x: float, y: float, text: str, *, size: float, fill: str = _INK, weight: str = "400", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" font-weight="{weight}" fill="{fill}"'
        f' text-anchor="{anchor}" paint-order="stroke" stroke="#ffffff" stroke-width="2.5">{escape(text)}</text>'
    )
