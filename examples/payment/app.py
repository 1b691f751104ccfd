"""Place two orders, and look at what was charged.

AEGIS_WORKFLOWS=payment.workflow aegis up   # in one terminal
python -m payment.app                       # in another, from the folder examples/
"""

from __future__ import annotations

import uuid
from decimal import Decimal

from aegis.sync import DurableWorkflowEngine
from payment import provider
from payment.workflow import PaidOrder


def main() -> None:
    """Place them, wait, and compare."""
    engine = DurableWorkflowEngine(actor="app:shop")
    run = uuid.uuid4().hex[:8]
    for number in (1, 2):
        handle = engine.start(PaidOrder(amount=Decimal("9.90")), id=f"order-{run}-{number}")
        handle.wait(timeout=30)
        attempt = handle.history()[-1].attempt
        (effect,) = engine.effects(handle.id)
        charges = [one for one in provider.charged() if one["key"] == effect.key]
        print(f"order {number}: paid at attempt {attempt}, charged {len(charges)} time, as {effect.result['id']}")


if __name__ == "__main__":
    main()
