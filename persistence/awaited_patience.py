"""The same patience as that of ``patience``, for an event loop: nothing here blocks it, or outlives the engine.

While somebody waits, a timer of the loop looks once a second; where nobody does, there is none. What asks the
other hosts is a task, which the engine's end ends as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from sqlalchemy import Engine

from ..config.logging import get_logger
from .hosts import Place, Preference
from .waits import LOOK_EVERY, Waits

log = get_logger(__name__)


class AwaitedPatience:
    """Knows which connections of an engine on asyncpg wait, and cuts those that wait for the wrong server.

    ``another_leads`` says whether one of the other hosts takes writes.
    """

    def __init__(
        self,
        engine: Engine,
        place_of: Callable[[Any], Place],
        preference: Preference,
        another_leads: Callable[[Place], Awaitable[bool]],
    ) -> None:
        self._preference = preference
        self._another_leads = another_leads
        self._timer: asyncio.TimerHandle | None = None
        self._looks: dict[Place, asyncio.Task[None]] = {}
        self._waits = Waits(engine, place_of, self._begun)

    def _begun(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waits.anybody():
            return
        self._begun()
        # One look at a time: whoever is dark is not asked again before the time-out.
        for place in self._waits.overdue() - self._looks.keys():
            look = self._looks[place] = asyncio.get_running_loop().create_task(self._look_into(place))
            look.add_done_callback(partial(self._looked, place))

    def _looked(self, place: Place, _look: asyncio.Task[None]) -> None:
        self._looks.pop(place, None)

    async def _look_into(self, place: Place) -> None:
        if await self._another_leads(place):
            self._preference.avoid(place)
            log.warning("another server leads", left=":".join(place))
            self._waits.cut(place, lambda connection: connection.terminate())

    def forget_inherited(self) -> None:
        """Begin anew in a forked child, whose loops are its own."""
        self._waits.forget()
        self._timer, self._looks = None, {}

    async def aclose(self) -> None:
        """End every look."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        looks = list(self._looks.values())
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
