"""A shop that takes orders: the order's row, the stock and the workflow are one transaction.

aegis up                  # in one terminal, with AEGIS_WORKFLOWS=shop.workflow
python -m shop.app        # in another, from the folder examples/
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import CheckConstraint, Engine, create_engine, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from aegis.config.settings import settings
from aegis.sync import DurableWorkflowEngine
from shop.workflow import OrderWorkflow


class Base(DeclarativeBase):
    """The shop's own tables, in the same database."""


class Stock(Base):
    """What there is, and how much of it."""

    __tablename__ = "shop_stock"

    item: Mapped[str] = mapped_column(primary_key=True)
    left: Mapped[int]

    __table_args__ = (CheckConstraint('"left" >= 0', name="shop_stock_is_there"),)


class Order(Base):
    """What somebody ordered."""

    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Shop:
    """The shop: each order is one transaction."""

    def __init__(self, database: Engine, engine: DurableWorkflowEngine) -> None:
        self.database, self.engine = database, engine

    def open(self, stock: dict[str, int]) -> None:
        """Begin with a stock."""
        Base.metadata.drop_all(self.database)
        Base.metadata.create_all(self.database)
        with Session(self.database) as session, session.begin():
            session.add_all(Stock(item=item, left=left) for item, left in stock.items())

    def order(self, customer: str, item: str, within: timedelta = timedelta(days=3)) -> str | None:
        """Take an order; return its workflow's id, or None if there is nothing left."""
        try:
            with Session(self.database) as session, session.begin():
                order = Order(item=item)
                session.add(order)
                session.flush()  # for its number
                handle = self.engine.start(
                    OrderWorkflow(order=order.id, item=item),
                    id=f"order-{order.id}-{customer}",
                    attributes={"customer": customer},
                    deadline=within,
                    session=session,
                )
                # Whatever fails here, or below, takes the order and its workflow with it.
                session.execute(update(Stock).where(Stock.item == item).values(left=Stock.left - 1))
        except IntegrityError:
            return None
        return handle.id


def main() -> None:
    """Take three orders for two things, and ship what was ordered."""
    engine = DurableWorkflowEngine(actor="app:shop")
    shop = Shop(create_engine(settings().database), engine)
    shop.open({"book": 2})
    for customer in ("ada", "grace", "edsger"):
        placed = shop.order(customer, "book", within=timedelta(days=3) if customer == "ada" else timedelta(seconds=2))
        print(f"{customer}: sold out" if placed is None else f"{customer}: {placed}")
    for row in engine.list(attributes={"customer": "ada"}):
        engine.send(row.id, "collect", "by bicycle", key="collect")
    with Session(shop.database) as session:
        orders = session.scalars(select(Order.id).order_by(Order.id)).all()
    workflows = sorted(engine.list(type=OrderWorkflow), key=lambda row: row.created_at)[-len(orders) :]
    for row in workflows:
        engine.wait(row.id, timeout=60)
        print(f"{row.id}: {engine.describe(row.id).state}")
    print(f"{len(orders)} orders, {len(workflows)} workflows")


if __name__ == "__main__":
    main()
