"""An order that is paid at somebody else's: the handler may be repeated, the payment is not."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum

from aegis import Context, Retry, Workflow, transition
from payment import provider


class Stage(StrEnum):
    """How far an order has come."""

    PLACED = "placed"
    PAID = "paid"


class PaidOrder(Workflow):
    """An order, and the id of its payment."""

    state: Stage = Stage.PLACED
    amount: Decimal
    charge: str = ""

    @transition(Stage.PLACED, Stage.PAID, retry=Retry(delay=0.5))
    def pay(self, ctx: Context) -> None:
        """Charge the customer once: a later attempt asks the provider what the earlier one has done."""
        key = ctx.effect_key("charge")
        made = ctx.effect("charge", provider.charge, self.amount, key=key, check=provider.look_up)
        self.charge = made["id"]
