"""What happens to an order, from the moment that it is in the shop's own table."""

from __future__ import annotations

from enum import StrEnum

from aegis import Context, Workflow, transition


class Stage(StrEnum):
    """Where an order is."""

    ORDERED = "ordered"
    PACKED = "packed"
    SHIPPED = "shipped"
    GIVEN_BACK = "given back"


class OrderWorkflow(Workflow, name="example.Order"):
    """An order that is packed at once, shipped when the carrier comes, and given back if that takes too long."""

    state: Stage = Stage.ORDERED
    order: int
    item: str
    carrier: str | None = None

    @transition(Stage.ORDERED, Stage.PACKED)
    def pack(self, ctx: Context) -> None:
        """Pack it: the order's row is there, as both were committed as one."""
        ctx.log.info("packed", item=self.item)

    @transition(Stage.PACKED, Stage.SHIPPED, on="collect")
    def ship(self, ctx: Context, carrier: str) -> None:
        """Hand it to whoever came for it."""
        del ctx
        self.carrier = carrier

    @transition(Stage.PACKED, Stage.GIVEN_BACK, deadline=True)
    def give_back(self, ctx: Context) -> None:
        """Put it back: nobody came for it in time."""
