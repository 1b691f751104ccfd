"""Network namespaces without names: each is held by an open file, and gone with the last process that has it.

So there is nothing that two runs could share, and nothing that a killed one could leave behind.
https://man7.org/linux/man-pages/man7/network_namespaces.7.html
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ...core.errors import ServerUnavailable

_CLONE_NEWNET: Final = 0x40000000
_OWN: Final = "/proc/thread-self/ns/net"
_TUN: Final = Path("/dev/net/tun")
# iproute2 gives the ends of the lines their addresses, util-linux starts programs inside.
_PROGRAMS: Final = ("ip", "nsenter")


def why_not() -> str:
    """Return why there can be no regions here; empty if there can."""
    if sys.platform != "linux":
        return "regions are network namespaces, which Linux alone has"
    if os.geteuid() != 0:
        return "regions are network namespaces, which only root can make"
    missing = next((name for name in _PROGRAMS if shutil.which(name) is None), None)
    if missing is not None:
        return f"the program {missing} is not installed (Debian: iproute2, util-linux)"
    try:
        os.close(os.open(_TUN, os.O_RDWR))
        with in_another():
            pass
    except OSError as error:
        return f"this kernel, or container, allows no network of one's own ({error})"
    return ""


def refuse_where_there_are_none() -> None:
    """Go on only where there can be regions.

    Raises:
        ServerUnavailable: there can be none.

    """
    reason = why_not()
    if reason:
        raise ServerUnavailable("regions", reason, "run it as root, on a Linux with /dev/net/tun")


@contextmanager
def in_another() -> Iterator[int]:
    """Put the calling thread into a new namespace while the body runs; give a file that holds it."""
    before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("unshare", _CLONE_NEWNET)
        try:
            yield os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


@contextmanager
def inside(place: Path) -> Iterator[None]:
    """Put the calling thread into a namespace while the body runs.

    Connections, threads and programs that begin meanwhile are there, and stay there.
    """
    before = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call("setns", there, _CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def processes(known: frozenset[int]) -> list[int]:
    """Return the processes whose network is one of those."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has just ended
                if (entry / "ns" / "net").stat().st_ino in known:
                    found.append(int(entry.name))
    return found


def _call(name: str, *arguments: int) -> None:
    # Python has them from 3.12 on.
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
