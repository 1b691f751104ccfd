"""The scenarios: a table of what can be lost. The runbook's pages are made from it."""

from __future__ import annotations

from typing import Final

from .single import SINGLE
from .standby import STANDBY

SCENARIOS: Final = (*SINGLE, *STANDBY)
QUICK: Final = ("worker", "broker-wiped", "database-killed", "tampering")
"""Those that run wherever tests do."""
BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}
