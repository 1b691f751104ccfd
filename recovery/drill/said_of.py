"""What the runbook's commands said of a loss, read as a person reads it."""

from __future__ import annotations

import json
import re
from typing import Final

from ...core.finding import Severity

_EVENTS: Final = re.compile(r"^([\d,]+) events came after that", re.MULTILINE)


def sent_again(stdout: str) -> int:
    """Return how many events a restore says its senders can send again."""
    found = _EVENTS.search(stdout)
    return int(found[1].replace(",", "")) if found else 0


def failures(document: str) -> set[tuple[str, int]]:
    """Return what `aegis verify --json` says was tampered with; what is only not anchored yet is not."""
    try:
        findings = json.loads(document)["findings"]
    except (ValueError, KeyError):
        return set()
    return {(each["workflow_id"], each["seq"]) for each in findings if each["severity"] == Severity.FAILURE}


def listed(document: str) -> set[str]:
    """Return the workflows that `aegis reconcile --json` says something is gone of."""
    try:
        return {each["workflow_id"] for each in json.loads(document)["lost"]}
    except (ValueError, KeyError):
        return set()
