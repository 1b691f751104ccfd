"""Whether an event loop goes on: a heart that beats on it, and a broker that would hold whoever waits for it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Self

from celery import Celery

# As long as nobody hinders it, a heart beats this often (seconds); and this is how long it may miss.
BEAT: Final = 0.005
LONGEST_GAP: Final = 0.1


class Hearts:
    """A heart that beats on the loop, and one beside it in a thread: what hinders both is the machine."""

    def __init__(self) -> None:
        self.loop: list[float] = []
        self.thread: list[float] = []
        self._stopped = threading.Event()
        self._beside = threading.Thread(target=self._beat_beside, daemon=True)

    async def __aenter__(self) -> Self:
        self._last = time.perf_counter()
        self._task = asyncio.create_task(self._beat())
        self._beside.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # The beat that did not come because the loop was held until now.
        self.loop.append(time.perf_counter() - self._last)
        self._task.cancel()
        self._stopped.set()
        self._beside.join()

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT)
            now = time.perf_counter()
            self.loop.append(now - self._last)
            self._last = now

    def _beat_beside(self) -> None:
        last = time.perf_counter()
        while not self._stopped.is_set():
            time.sleep(BEAT)
            now = time.perf_counter()
            self.thread.append(now - last)
            last = now

    def went_on(self) -> bool:
        """Whether nobody held the loop: it never missed for longer than it may, or than the machine had all wait."""
        return max(self.loop) < max(LONGEST_GAP, 4 * max(self.thread))


@contextmanager
def black_hole() -> Iterator[str]:
    """A broker that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def app_for(broker: str) -> Celery:
    app = Celery("test", broker=broker, set_as_current=False)
    app.conf.broker_transport_options = {"socket_timeout": 2, "socket_connect_timeout": 2}
    return app
