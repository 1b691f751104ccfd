"""Start a campaign of many letters at once, for in a moment, the most urgent first.

aegis up                  # in one terminal, with AEGIS_WORKFLOWS=campaign.workflow
python -m campaign.app    # in another, from the folder examples/
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import create_engine, func, select

from aegis import Start
from aegis.config.settings import settings
from aegis.core.errors import SingletonConflict
from aegis.sync import DurableWorkflowEngine
from campaign.workflow import SENT, Campaign, Letter

CUSTOMERS = range(1, 31)
REGULARS = (7, 11, 30)


def main() -> None:
    """Start it, and wait until it is over."""
    database = create_engine(settings().database)
    SENT.metadata.create_all(database)
    engine = DurableWorkflowEngine(actor="app:campaigns")
    # As long as one runs, there is no other.
    campaign = engine.start(Campaign(letters=len(CUSTOMERS)), singleton="spring")
    try:
        engine.start(Campaign(letters=5), singleton="spring")
    except SingletonConflict as conflict:
        print(f"a second one is refused: {'the first one runs' if conflict.holder == campaign.id else conflict}")
    letters = engine.start_many(
        Start(
            Letter(campaign=campaign.id, customer=customer),
            id=f"{campaign.id}-{customer}",
            delay=timedelta(seconds=5),
            priority=9 if customer in REGULARS else 0,
            attributes={"campaign": campaign.id, "customer": customer},
        )
        for customer in CUSTOMERS
    )
    waiting = engine.list(attributes={"campaign": campaign.id})
    print(f"{len(letters)} letters, {sum(row.begins_at is not None for row in waiting)} of them for later")
    campaign.wait(timeout=60)
    with database.connect() as connection:
        mine = select(SENT.c.customer).where(SENT.c.campaign == campaign.id).order_by(SENT.c.number)
        sent = list(connection.scalars(mine))
        rows = connection.scalar(select(func.count()).select_from(mine.subquery()))
    print(f"{rows} rows for {len(set(sent))} customers, each once")
    (row,) = engine.list(type=Campaign, attributes={"reached": len(CUSTOMERS)}, limit=1)
    print(f"campaign {row.state}, {row.attributes['reached']} reached")


if __name__ == "__main__":
    main()
