"""Time limits for one attempt: first an exception in the handler, then, where that can be, the end of the process."""

from __future__ import annotations

import ctypes
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType
from typing import Final

from ..core.errors import HandlerTimeout

# How much later than the exception the process ends, if the handler did not react to it (seconds).
HARD_GRACE: Final = 5.0


def time_limit(transition: str, seconds: float | None) -> AbstractContextManager[None]:
    """Raise ``HandlerTimeout`` in the body after so many seconds; in a main thread, end the process a little later.

    Of the other threads none can be ended, and the exception reaches them between two steps of Python: a body that
    is in C code meanwhile, such as a long sleep or a read without a time-out, meets it when it comes back.
    """
    if seconds is None:
        return nullcontext()
    if threading.current_thread() is threading.main_thread():
        return _of_the_process(transition, seconds)
    return _OfAThread(transition, seconds)


@contextmanager
def _of_the_process(transition: str, seconds: float) -> Iterator[None]:
    """Interrupt the main thread by a signal.

    The end comes from a thread that needs no interpreter lock, so it also meets a handler that is
    stuck in C code; the worker's parent then puts the message back, and the attempt has counted.
    """
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


# --- in a pool of threads --------------------------------------------------------------------


class _Limit(threading.local):
    """Of this thread: the transition that runs in it, and how long it may (seconds)."""

    transition = "a handler"
    seconds = 0.0


_limit: Final = _Limit()


class _OutOfTime(HandlerTimeout):
    """A ``HandlerTimeout`` without arguments: of what is raised in another thread, only the class can be named."""

    __module__, __qualname__ = HandlerTimeout.__module__, HandlerTimeout.__qualname__

    def __init__(self) -> None:
        super().__init__(_limit.transition, _limit.seconds)


class _OfAThread:
    """Interrupt this thread from another one: once, and never after the body.

    Whoever takes the one chance decides. Taken by the body's end, nothing is raised any more. Taken by the watcher, the
    end waits until it was raised, and takes back what has not arrived: so it arrives in here, or not at all. It
    may arrive at any step of ``__exit__``, even its first; as it comes once, nothing is left to be undone then.

    Bare locks, each released once: what ``threading`` makes of them is Python itself, and could be interrupted.
    """

    def __init__(self, transition: str, seconds: float) -> None:
        self._told = transition, seconds
        self._thread, self._until = threading.get_ident(), 0.0
        self._chance = [True]  # a list's pop is one step: two never get the same
        self._begun, self._ended, self._raised = (_locked() for _ in range(3))

    def __enter__(self) -> None:
        _limit.transition, _limit.seconds = self._told
        self._until = time.monotonic() + self._told[1]
        threading.Thread(target=self._watch, name="aegis-time-limit", daemon=True).start()
        self._begun.release()  # nothing is raised in the middle of the start of a thread

    def __exit__(self, *_: object) -> None:
        if self._take():
            self._ended.release()
        else:
            self._raised.acquire()
            _raise_in(self._thread, None)

    def _watch(self) -> None:
        self._begun.acquire()
        ended = self._ended.acquire(timeout=max(0.0, self._until - time.monotonic()))
        if not ended and self._take():
            _raise_in(self._thread, _OutOfTime)
            self._raised.release()

    def _take(self) -> bool:
        try:
            return self._chance.pop()
        except IndexError:
            return False


def _locked() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have a thread meet an exception at its next step; without one, nothing that it has not met yet."""
    met = ctypes.py_object() if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), met)
