"""A question that is asked aside: whoever does not answer in time is left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Question(Generic[T]):
    """Something asked in a thread that is left behind if it does not answer; ``failed`` says what an error means."""

    def __init__(self, ask: Callable[[], Iterable[T]], failed: Callable[[Exception], Iterable[T]]) -> None:
        self._found: list[T] = []
        self._thread = threading.Thread(target=self._ask, args=(ask, failed), daemon=True)
        self._thread.start()

    def _ask(self, ask: Callable[[], Iterable[T]], failed: Callable[[Exception], Iterable[T]]) -> None:
        try:
            for one in ask():
                self._found.append(one)
        except Exception as error:  # noqa: BLE001 - a look that failed is a finding, and no silence
            self._found.extend(failed(error))

    def answer(self, deadline: float) -> tuple[list[T], bool]:
        """Return what was found by then, and whether that is all."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        whole = not self._thread.is_alive()
        return list(self._found), whole
