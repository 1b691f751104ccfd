"""The runbook, made from the scenarios: ``python -m aegis.recovery.drill.runbook >docs/runbook.md``.

Every command in a block of the page is one that the drill of its scenario types: what no longer works fails there.
The advice between the blocks is for people, and nobody types it.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Final

from .gaps import GAPS
from .scenario import Command, Scenario
from .scenarios import BY_NAME, SCENARIOS
from .symptoms import SYMPTOMS

_HEAD: Final = """\
**Nothing that was acknowledged is lost by waiting**: workflows, events and timers stand in PostgreSQL. Do not wipe, do
not delete, do not start everything anew at once. Type `aegis health` first, and find what it says below.

Then comes one section for each loss: how it shows, what to check, what to type, what to expect, and how to know that it
is over. Every command in a block is typed by the [drill](how-to/drill.md) of its section, and has to end as the page
says; both are made from one table. What stands between the blocks is advice, which no drill types: it is about servers
of your own, and about what only a person can know. The times are those of the [objectives](reference/objectives.md);
the [reports](drills/README.md) of drills have what was seen.
"""
_WORDS: Final = (
    ("bell", "a message in the broker: that a certain workflow has something to do. It may be lost, doubled or late"),
    ("rung", "a bell was put into the broker, by whoever committed the last transition, or by beat's sweep"),
    ("met", "a workflow that was under way, or waited for its bell, when the loss came"),
    ("moved", "a workflow that has committed a transition since"),
)
_REPORTED: Final = {
    ("aegis", "health"): {0: "ok", 1: "degraded", 2: "down"},
    ("aegis", "cluster", "status"): {0: "whole", 1: "not whole"},
}
"""What their exit statuses mean, where these say how a deployment is."""
_GAPS: Final = """\
The first assessment of AEGIS listed these limitations, and estimated its RPO and RTO. Each of them has a drill now.
"""
_WIDTH: Final = 150


def runbook() -> str:
    """Return the page."""
    lines = ["# Runbook", "", *(line for text in _HEAD.split("\n\n") for line in _paragraph(text))]
    lines += [*_index(), *_glossary()]
    lines += [line for scenario in SCENARIOS for line in _section(scenario)]
    lines += _gaps()
    return "\n".join(lines).rstrip("\n") + "\n"


def _index() -> Iterator[str]:
    yield "## What do you see?"
    yield ""
    yield "| a line of `aegis health`, or an error | section | has a person to act? |"
    yield "|---|---|---|"
    for symptom in SYMPTOMS:
        titles = [BY_NAME[name].title for name in symptom.sections]
        links = [f"[{title}](#{_anchor(title)})" for title in titles]
        links += [f"[{title}]({place})" for title, place in symptom.pages]
        yield f"| {symptom.sign} | {'; '.join(links)} | {symptom.act} |"
    yield ""


def _glossary() -> Iterator[str]:
    yield "## Four words"
    yield ""
    yield from (f"- **{word}**: {meaning}." for word, meaning in _WORDS)
    yield ""


def _gaps() -> Iterator[str]:
    yield "## What was missing once"
    yield ""
    yield from _paragraph(_GAPS)
    yield "| it said | what covers it now | proved by the drill of | what is left open |"
    yield "|---|---|---|---|"
    for gap in GAPS:
        drills = ", ".join(f"[`{name}`](#{_anchor(BY_NAME[name].title)})" for name in gap.drills)
        yield f"| {gap.limitation} | {gap.covered} | {drills} | {gap.left or 'nothing that is known'} |"
    yield ""


def _anchor(title: str) -> str:
    """Return the name by which a page leads to one of its headings."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


def _section(scenario: Scenario) -> Iterator[str]:
    yield f"## {scenario.title}"
    yield ""
    yield f"`aegis drill {scenario.name}`; objective [`{scenario.objective}`](reference/objectives.md)."
    yield ""
    yield from _paragraph(f"**How it shows.** {scenario.shows}")
    yield from _commands("What to check", scenario.check)
    yield from _commands("What to type", scenario.heal)
    if not scenario.heal:
        yield from _paragraph("**What to type.** Nothing.")
    if scenario.advice:
        yield from _paragraph(scenario.advice)
    yield from _paragraph(f"**What to expect.** {scenario.expect}")
    yield from _commands("It is over when", scenario.over)
    yield from _paragraph(f"**The drill.** {scenario.injects}")


def _paragraph(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    yield ""


def _commands(name: str, commands: Sequence[Command]) -> Iterator[str]:
    if not commands:
        return
    yield f"**{name}.**"
    yield ""
    yield "```console"
    width = max(len(str(command)) for command in commands)
    for command in commands:
        yield f"$ {command!s:<{width}}  # {command.why}{_ends(command)}"
    yield "```"
    yield ""


def _ends(command: Command) -> str:
    """Return how a command ends, where that is not as usual, or tells how a deployment is."""
    if command.runs_on:
        return "; runs on"
    if command.expects == (0,):
        return ""
    means = _REPORTED.get(tuple(command.argv))
    if means is None:
        return f"; exit status {_either(command.expects)}"
    return "; " + ", ".join(f"{status}: {means[status]}" for status in command.expects)


def _either(statuses: Sequence[int]) -> str:
    *others, last = map(str, statuses)
    return f"{', '.join(others)} or {last}" if others else last


if __name__ == "__main__":
    sys.stdout.write(runbook())
