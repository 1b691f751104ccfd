"""An application that starts workflows inside its own transactions, half of which it rolls back.

    python own_transactions.py FIRST COUNT [KILL]

It has a table of its own, ``orders``, in the same database. With KILL it dies by SIGKILL between the commit of
that order and the ring for it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from fault_workflows import Steps
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from aegis.config.settings import settings
from aegis.core.bell import Bell
from aegis.sync import DurableWorkflowEngine

ORDERS = Table("orders", MetaData(), Column("id", Integer, primary_key=True))


def workflow_of(number: int) -> str:
    return f"order-{number:04d}"


def place(app: Engine, engine: DurableWorkflowEngine, number: int) -> None:
    """Place an order; every second one comes to nothing, each in another way."""
    with Session(app) as session:
        start = lambda: engine.start(Steps(), id=workflow_of(number), session=session)  # noqa: E731 - four times
        order = insert(ORDERS).values(id=number)
        match number % 8:
            case 1:  # it is rolled back
                session.execute(order)
                start()
                session.rollback()
            case 3:  # something is raised after the start
                with suppress(ZeroDivisionError), session.begin():
                    session.execute(order)
                    start()
                    session.execute(insert(ORDERS).values(id=1 // 0))
            case 5:  # the database refuses what comes after the start
                try:
                    session.execute(order)
                    start()
                    session.execute(order)
                    session.commit()
                except IntegrityError:
                    session.rollback()
            case 7:  # a savepoint is given up, and the rest is committed
                savepoint = session.begin_nested()
                session.execute(order)
                start()
                savepoint.rollback()
                session.commit()
            case _:
                start()
                session.execute(order)
                session.commit()


def main(given: Sequence[str]) -> None:
    first, count, kill = int(given[0]), int(given[1]), int(given[2]) if len(given) > 2 else None
    app = create_engine(settings().database, pool_size=8)
    ORDERS.metadata.create_all(app)
    engine = DurableWorkflowEngine(actor="app:shop")
    if kill is not None:
        ring = engine._ring

        def die_before(bells: Sequence[Bell], /) -> bool:
            if any(bell.workflow_id == workflow_of(kill) for bell in bells):
                os.kill(os.getpid(), signal.SIGKILL)
            return ring(bells)

        engine._ring = die_before
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(place, app, engine, number) for number in range(first, first + count)]:
            done.result()


if __name__ == "__main__":
    main(sys.argv[1:])
