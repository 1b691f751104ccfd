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


async def first_to_serve(
    tries: Sequence[Callable[[], Awaitable[T]]],
    *,
    reluctantly: Sequence[Callable[[], Awaitable[T]]] = (),
    head_start: float = 0.0,
) -> T:
    """Return the first connection that is made; any other that is made is closed.

    Those that are asked ``reluctantly`` are asked once the others have failed, or did not answer for
    ``head_start`` (seconds).

    Raises:
        Exception: none was made; this is why the last did not.

    """
    running: set[asyncio.Future[T]] = {asyncio.ensure_future(act()) for act in tries}
    failure: BaseException = RuntimeError("nobody was asked")
    try:
        while running or reluctantly:
            done, running = await _some(running, head_start if reluctantly else None)
            served = [one for one in done if one.exception() is None]
            if served:
                for other in served[1:]:
                    other.result().terminate()
                return served[0].result()
            failure = next((error for one in done if (error := one.exception()) is not None), failure)
            if reluctantly and not (done and running):
                running |= {asyncio.ensure_future(act()) for act in reluctantly}
                reluctantly = ()
    finally:
        for one in running:
            one.add_done_callback(_close)
            one.cancel()
    raise failure


async def _some(
    running: set[asyncio.Future[T]], within: float | None
) -> tuple[set[asyncio.Future[T]], set[asyncio.Future[T]]]:
    if not running:
        return set(), running
    return await asyncio.wait(running, timeout=within, return_when=asyncio.FIRST_COMPLETED)


def _close(late: asyncio.Future[T]) -> None:
    """Close a connection that was made although nobody waits for it any more."""
    if not late.cancelled() and late.exception() is None:
        late.result().terminate()
