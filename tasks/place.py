"""Where a process is: what its pid means something in."""

from __future__ import annotations

import socket
from pathlib import Path

import psutil


def host() -> str:
    """Return what identifies the space in which a pid means one process: host, boot, pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    booted = boot.read_text().strip() if boot.exists() else str(int(psutil.boot_time()))
    space = str(namespace.readlink()) if namespace.is_symlink() else ""
    return "/".join(filter(None, (socket.gethostname(), booted, space)))
