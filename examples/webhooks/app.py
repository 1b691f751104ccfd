"""Send one webhook to a receiver of each kind, and tell how it went.

aegis up                       # in one terminal, with AEGIS_WORKFLOWS=webhooks.workflow
python -m webhooks.receiver    # in another, from the folder examples/
python -m webhooks.app         # in a third
"""

from __future__ import annotations

import uuid

from aegis.sync import DurableWorkflowEngine
from webhooks.workflow import Delivery


def main() -> None:
    """Send them, and wait for each."""
    engine = DurableWorkflowEngine(actor="app:webhooks")
    run = uuid.uuid4().hex[:8]
    for receiver in ("fine", "flaky", "busy", "gone"):
        engine.start(Delivery(receiver=receiver, body="an order was placed"), id=f"{receiver}-{run}")
    for receiver in ("fine", "flaky", "busy", "gone"):
        row = engine.wait_for_end(f"{receiver}-{run}", timeout=60)
        last = engine.history(row.id)[-1]
        error = "" if row.error is None else f": {row.error['message']}"
        print(f"{receiver}: {row.state}, {row.status}, at attempt {last.attempt}{error}")


if __name__ == "__main__":
    main()
