"""Ask for a report, kill whoever writes it in the middle of it, and see where it goes on.

AEGIS_CHECKPOINT_INTERVAL=5 AEGIS_WORKFLOWS=report.workflow aegis up   # in one terminal; 5 seconds instead of 5 minutes
python -m report.app                                                   # in another, from the folder examples/
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from aegis.sync import DurableWorkflowEngine, Handle
from report.workflow import Report


def saved(handle: Handle[Report]) -> dict[str, Any]:
    """Return what is saved of the report, also while its handler runs."""
    return handle.get().to_dict()


def main() -> None:
    """Start, kill, wait, and compare."""
    engine = DurableWorkflowEngine(actor="app:reports")
    handle = engine.start(Report(pages=120))
    while not saved(handle)["outline"]:
        time.sleep(0.1)
    print("the outline is saved by the handler itself")
    while not saved(handle)["written"]:
        time.sleep(0.1)
    print("some pages are saved, as beat has asked for them")
    os.kill(saved(handle)["pid"], signal.SIGKILL)
    report = handle.wait(timeout=60).to_dict()
    first, second = report["began_at"]
    attempt = handle.history()[-1].attempt
    print(f"killed; attempt {attempt} went on {'from there' if second > first else 'from the beginning'}")
    valid, problem = handle.verify_integrity()
    print(f"{report['written']} pages; {'intact' if valid else problem}")


if __name__ == "__main__":
    main()
