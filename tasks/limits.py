"""Time limits for one attempt: first an exception in the handler, then the end of the process."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from ..core.errors import HandlerTimeout

# How much later than the exception the process ends, if the handler did not react to it (seconds).
HARD_GRACE: Final = 5.0


@contextmanager
def time_limit(transition: str, seconds: float | None) -> Iterator[None]:
    """Raise ``HandlerTimeout`` in the body after so many seconds; end the process a little later.

    The end comes from a thread that needs no interpreter lock, so it also meets a handler that is
    stuck in C code; the worker's parent then puts the message back, and the attempt has counted.
    Only the main thread of a process can be interrupted: in a pool of threads there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    running = True

    def ring(_signal: int, _frame: FrameType | None) -> None:
        if running:
            raise HandlerTimeout(transition, seconds)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # Celery puts a logger in the place of sys.stderr, which has no file to write to.
    faulthandler.dump_traceback_later(seconds + HARD_GRACE, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        running = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
