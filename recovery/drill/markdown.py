"""The report for people: declared against measured, run by run, and on what it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .report import FAIL, PASS, Outcome, Report


def markdown(report: Report) -> str:
    """Return the report as a page; the picture stands beside it."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    yield f"# Drill `{report.scenario}`: {PASS if report.passed else FAIL}"
    yield ""
    yield f"{report.title}. {report.injects}"
    yield ""
    yield f"![requests and transitions a second around the fault]({report.scenario}.svg)"
    yield ""
    yield "| | declared | measured |"
    yield "|---|---|---|"
    yield f"| RPO | {report.objective.rpo:g} s | {_most(report.rpo)} |"
    yield f"| RTO ({report.objective.counts}) | {report.objective.rto:g} s | {_times(report)} |"
    if len(report.outcomes) > 1:
        yield f"| RTO, run by run | | {', '.join(_taken(outcome) for outcome in report.outcomes)} |"
    acknowledged = sum(outcome.acknowledged for outcome in report.outcomes)
    yield f"| acknowledged and lost | none | {sum(o.lost for o in report.outcomes)} of {acknowledged} |"
    yield f"| recorded twice | none | {sum(o.doubled for o in report.outcomes)} |"
    yield ""
    for outcome in report.outcomes:
        yield from _outcome(outcome)
    yield "## Measured on"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| when | {report.started_at:%Y-%m-%d %H:%M} to {report.finished_at:%H:%M} UTC |"
    yield f"| system | {_cell(report.system)} |"
    yield f"| load | {report.load:g} new workflows a second, seed {report.seed} |"
    for name, value in {**report.machine, **report.versions, **report.settings}.items():
        shown = f"{value:g}" if isinstance(value, float) else value
        yield f"| {f'`{name}`' if name.startswith('AEGIS_') else name} | {shown} |"


def _times(report: Report) -> str:
    times = [outcome.rto for outcome in report.outcomes if outcome.rto is not None]
    missing = len(report.outcomes) - len(times)
    if not times:
        return "never, while it was watched"
    several = f"{max(times):.2f} s the longest, {median(times):.2f} s the median of {len(times)}"
    told = several if len(times) > 1 else f"{times[0]:.2f} s"
    return f"{told}; {missing} never recovered" if missing else told


def _taken(outcome: Outcome) -> str:
    return "never" if outcome.rto is None else f"{outcome.rto:.2f} s"


def _most(rpo: float | None) -> str:
    return "unknown" if rpo is None else f"{rpo:.2f} s"


def _outcome(outcome: Outcome) -> Iterator[str]:
    yield f"## Run {outcome.number}: {PASS if outcome.passed else FAIL}"
    yield ""
    yield f"{outcome.told[:1].upper()}{outcome.told[1:]}."
    yield ""
    yield "| | declared | measured | |"
    yield "|---|---|---|---|"
    for check in outcome.checks:
        cells = (_cell(check.name), _cell(check.declared), _cell(check.measured), "" if check.passed else "**missed**")
        yield f"| {' | '.join(cells)} |"
    yield ""
    yield (
        f"{outcome.acknowledged} requests acknowledged, {outcome.refused} refused, {outcome.ambiguous} of these carried"
        f" out all the same; {outcome.transitions} transitions, {_repeated(outcome)}; the first moved"
        f" after {'-' if outcome.first is None else f'{outcome.first:.2f} s'}; longest without an acknowledgement"
        f" {outcome.gap:.2f} s."
    )
    yield ""
    if outcome.commands:
        yield "| typed | when | ended with | seconds |"
        yield "|---|---|---|---|"
        for ran in outcome.commands:
            status = "runs on" if ran.status is None else f"{ran.status}{'' if ran.passed else ', **unexpected**'}"
            yield f"| `{ran.command}` | {ran.stage} | {status} | {ran.seconds:.1f} |"
        yield ""


def _repeated(outcome: Outcome) -> str:
    return "no trace of its handlers" if outcome.repeated is None else f"{outcome.repeated} handlers ran twice"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
