"""The scenarios: a table of what can be lost. The runbook's pages are made from it."""

from __future__ import annotations

from typing import Final

from .backups import BACKUPS
from .regions import REGIONAL, REGIONAL_CONTROLS
from .single import SINGLE
from .standby import CONTROLS, STANDBY

SCENARIOS: Final = (*SINGLE, *STANDBY, *REGIONAL, *BACKUPS, *CONTROLS, *REGIONAL_CONTROLS)
QUICK: Final = ("worker", "broker-wiped", "database-killed", "tampering")
"""Those that run wherever tests do."""
ALL: Final = tuple(scenario.name for scenario in SCENARIOS if not scenario.control)
"""Those that have to pass; a control has not."""
BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}
