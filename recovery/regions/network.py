"""The network of several places on this machine, each behind a line of its own: delay, cut, mend, look inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ...core.errors import ServerUnavailable
from ...servers.supervisor import Service
from . import namespace, router
from .lines import Terms, pair

# Who is killed may just have started others; but not so often.
_MOST_ROUNDS: Final = 200
# Longer than the supervisor's watchdog needs to stop everything where its supervisor was killed.
_GRACE: Final = 60.0
_ENDS_WITHIN: Final = 10.0


class Network:
    """Places by name, joined by one router; made by ``joined``."""

    def __init__(
        self, names: Sequence[str], observers: Sequence[str], process: subprocess.Popen[str], files: Sequence[int]
    ) -> None:
        self.names, self.observers = tuple(names), tuple(observers)
        self._number = {name: number for number, name in enumerate([*names, *observers], 1)}
        self._process = process
        # Held here as well: what the kernel knows them by is nobody else's as long as they are open.
        self._places = {
            name: os.open(f"/proc/{process.pid}/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
            for name, file in zip(self._number, files, strict=True)
        }
        self.terms = Terms(near=frozenset(self._number[name] for name in observers))
        self._order(self.terms)

    # --- places -------------------------------------------------------------------------

    def address(self, name: str) -> str:
        """Return the address of a place, the same from everywhere."""
        return router.address(self._number[name])

    def place(self, name: str) -> Path:
        """Return the file that ``nsenter --net=`` and ``inside`` take."""
        return Path(f"/proc/{os.getpid()}/fd/{self._places[name]}")

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Put the calling thread into a place; what it connects to, and starts, is there, and stays there."""
        with namespace.inside(self.place(name)):
            yield

    def service(self, name: str, service: Service) -> Service:
        """Return a service as it runs in a place."""
        told = dict(service.identity)
        user, group = told.pop("user", None), told.pop("group", None)
        told.pop("extra_groups", None)  # nsenter drops them with the group
        entry = ["nsenter", f"--net={self.place(name)}"]
        if user is not None:
            # Only root enters: it becomes the other user afterwards.
            entry += [f"--setgid={group}", f"--setuid={user}"]
        return replace(service, argv=lambda: [*entry, "--", *service.argv()], identity=told)

    def processes(self, *names: str) -> list[int]:
        """Return the processes that are in these places."""
        return namespace.processes(frozenset(os.fstat(self._places[name]).st_ino for name in names))

    def kill(self, *names: str) -> None:
        """End every process in these places with SIGKILL, and whatever these start meanwhile."""
        for _ in range(_MOST_ROUNDS):
            found = self.processes(*names)
            if not found:
                return
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End whoever is left in the places, and let go of them."""
        self.kill(*self.names)
        for file in self._places.values():
            os.close(file)

    # --- lines --------------------------------------------------------------------------

    def delay(self, delay: float, jitter: float = 0.0) -> None:
        """Let each packet take so long (seconds, one way), and up to ``jitter`` longer."""
        self._order(replace(self.terms, delay=delay, jitter=jitter))

    def cut(self, name: str, *others: str) -> None:
        """Cut the lines between a place and others, all by default, in both directions."""
        self._order(replace(self.terms, cut=self.terms.cut | self._lines(name, others)))

    def mend(self, name: str, *others: str) -> None:
        """Mend the lines between a place and others, all by default."""
        self._order(replace(self.terms, cut=self.terms.cut - self._lines(name, others)))

    def carried(self) -> Mapping[str, int]:
        """Return how many packets were ``carried``, and how many ``lost``."""
        said = self._order(self.terms)
        return {name: int(said[name]) for name in ("carried", "lost")}

    def _lines(self, name: str, others: Sequence[str]) -> frozenset[tuple[int, int]]:
        ends = others or [other for other in self._number if other != name]
        return frozenset(pair(self._number[name], self._number[other]) for other in ends)

    def _order(self, terms: Terms) -> Mapping[str, Any]:
        """Have the router go by other terms; returns once it does."""
        said = _ask(self._process, json.dumps(terms.to_dict()))
        self.terms = terms
        return said


@contextmanager
def joined(names: Sequence[str], observers: Sequence[str] = (), grace: float = _GRACE) -> Iterator[Network]:
    """Give a network of these places; in the end nobody is left in them, and nothing of them.

    ``observers`` are places for those who look on: next to each of the others, and nobody there is ended. If this
    process is killed, whoever is in the other places is left ``grace`` seconds to end by itself.

    Raises:
        ServerUnavailable: there can be none here, with the reason.

    """
    namespace.refuse_where_there_are_none()
    process = subprocess.Popen(
        [sys.executable, "-m", router.__name__, str(len(names)), str(len(observers)), str(grace)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A signal to the whole group, or a terminal that is closed, must not take the lines from those still stopping.
        start_new_session=True,
    )
    try:
        network = Network(names, observers, process, _ask(process)["places"])
        try:
            yield network
        finally:
            network.close()
    finally:
        _end(process)


def _ask(process: subprocess.Popen[str], order: str | None = None) -> dict[str, Any]:
    said = ""
    if process.stdin is not None and process.stdout is not None:
        with suppress(BrokenPipeError):
            if order is not None:
                process.stdin.write(order + "\n")
                process.stdin.flush()
            said = process.stdout.readline()
    if not said:
        raise ServerUnavailable("the network of the regions", "its router ended", "see what it printed")
    answer: dict[str, Any] = json.loads(said)
    return answer


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.close()
    try:
        process.wait(_ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
