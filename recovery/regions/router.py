"""The router: a program that makes the places, carries every packet between them, and ends with who started it.

    python -m aegis.recovery.regions.router PLACES OBSERVERS GRACE

It makes so many places, and some more for those who look on. It prints a line of JSON with the files that hold
them, and one in answer to each order (see ``Terms.to_dict``) on its standard input. At the end of that, or when
its parent is gone, it waits for whoever still runs in one of the places, kills those that have not ended after
``GRACE`` seconds, and ends itself: with it, the places are gone. Those who look on are not its own to end.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Final

from . import namespace
from .lines import Lines, Terms

NETWORK: Final = "10.77"
_PREFIX: Final = bytes((10, 77))
# linux/if_tun.h: packets without a header of the kernel's before them.
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_DEVICE: Final = "wan"
_MOST_BYTES: Final = 2048
# Reading so many at a time from one end lets the others have their turn.
_MOST_PACKETS: Final = 64
_LOOK_EVERY: Final = 0.5
_A_HEADER, _VERSION_4 = 20, 4


def address(number: int) -> str:
    """Return the address of a place, counted from 1."""
    return f"{NETWORK}.{number}.2"


def make_place(number: int) -> tuple[int, int]:
    """Make a place with one line out of it; return the files that hold the place, and our end of the line."""
    with namespace.in_another() as place:
        line = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(line, _TUNSETIFF, struct.pack("16sH", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
        for told in (
            "link set lo up",
            f"addr add {address(number)}/16 dev {_DEVICE}",
            f"link set {_DEVICE} up mtu 1500",
        ):
            subprocess.run(["ip", *told.split()], check=True)  # noqa: S607 - root's own
    return place, line


class Router:
    """The places, and what is under way between them."""

    def __init__(self, places: int, observers: int, grace: float) -> None:
        made = {number: make_place(number) for number in range(1, places + observers + 1)}
        self._ours, self._grace = range(1, places + 1), grace
        self.places = {number: place for number, (place, _) in made.items()}
        self._ends = {number: end for number, (_, end) in made.items()}
        self._number = {end: number for number, end in self._ends.items()}
        self._lines = Lines(Terms(), random.Random(0))  # noqa: S311 - to be repeated
        self._parent = os.getppid()
        self._told = b""

    def run(self) -> None:
        """Carry packets and follow orders until whoever gives them is gone, and all others with them."""
        ordered, ends_at = True, 0.0
        while ordered or (self._inhabitants() and time.monotonic() < ends_at):
            readable = self._wait([0] if ordered else [])
            for end in readable:
                if end:
                    self._read(end)
            for target, packet in self._lines.arrived(time.monotonic()):
                self._write(target, packet)
            if ordered and ((0 in readable and not self._obey()) or os.getppid() != self._parent):
                ordered, ends_at = False, time.monotonic() + self._grace
        for pid in self._inhabitants():
            os.kill(pid, signal.SIGKILL)

    def _wait(self, orders: list[int]) -> list[int]:
        following = self._lines.next()
        now = time.monotonic()
        wait = _LOOK_EVERY if following is None else min(_LOOK_EVERY, max(0.0, following - now))
        # Not epoll, which counts in milliseconds.
        return select.select([*self._ends.values(), *orders], [], [], wait)[0]

    def _read(self, end: int) -> None:
        for _ in range(_MOST_PACKETS):
            try:
                packet = os.read(end, _MOST_BYTES)
            except BlockingIOError:
                return
            target = packet[18] if len(packet) >= _A_HEADER and packet[0] >> 4 == _VERSION_4 else 0
            if packet[16:18] == _PREFIX and target in self._ends:
                self._lines.take(self._number[end], target, packet, time.monotonic())

    def _write(self, target: int, packet: bytes) -> None:
        try:
            os.write(self._ends[target], packet)
        except OSError:
            self._lines.lost += 1

    def _obey(self) -> bool:
        """Follow the orders that have come; return whether more may."""
        read = os.read(0, 65536)
        *orders, self._told = (self._told + read).split(b"\n")
        for order in orders:
            self._lines.terms = Terms.from_dict(json.loads(order))
            say({"carried": self._lines.carried, "lost": self._lines.lost})
        return bool(read)

    def _inhabitants(self) -> list[int]:
        return namespace.processes(frozenset(os.fstat(self.places[number]).st_ino for number in self._ours))


def say(what: Mapping[str, object]) -> None:
    """Tell whoever gives the orders."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Begin."""
    # Ctrl-C is for whoever gives the orders: the lines are needed until all others have stopped.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    places, observers, grace = sys.argv[1:]
    router = Router(int(places), int(observers), float(grace))
    say({"places": list(router.places.values())})
    router.run()


if __name__ == "__main__":
    main()
