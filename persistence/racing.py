"""Whoever serves first: several hosts are asked at the same time, so that one that is dark costs nothing.

asyncpg asks its hosts one after the other, under one time-out for all of them: a dark first one uses it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar


class Closable(Protocol):
    """What can be ended at once, like asyncpg's connection."""

    def terminate(self) -> None:
        """End it, without waiting for the other side."""


T = TypeVar("T", bound=Closable)


async def first_to_serve(tries: Sequence[Callable[[], Awaitable[T]]]) -> T:
    """Return the first connection that is made; any other that is made is closed.

    Raises:
        Exception: none was made; this is why the last did not.

    """
    running = {asyncio.ensure_future(act()) for act in tries}
    failure: BaseException = RuntimeError("nobody was asked")
    try:
        while running:
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            served = [one for one in done if one.exception() is None]
            if served:
                for other in served[1:]:
                    other.result().terminate()
                return served[0].result()
            failure = next(error for one in done if (error := one.exception()) is not None)
    finally:
        for one in running:
            one.add_done_callback(_close)
            one.cancel()
    raise failure


def _close(late: asyncio.Future[T]) -> None:
    """Close a connection that was made although nobody waits for it any more."""
    if not late.cancelled() and late.exception() is None:
        late.result().terminate()
