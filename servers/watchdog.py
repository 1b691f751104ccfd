"""The watchdog: a process that sees everything to its end when the supervisor died without doing so.

It runs as a script of its own, with nothing but the standard library. It reads lines from the
supervisor: ``+ pgid signal grace stage [pid file]`` for a service that started, ``- pgid`` for one that
ended. The end of its input means that the supervisor is gone, however that came.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time


def alive(group: int) -> bool:
    """Whether any process of the group is left."""
    return send(group, 0)


def send(group: int, number: int) -> bool:
    """Send a signal to a process group; False if there is no such group any more."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and somebody else's
        return True
    return True


def ask(leader: int, number: int) -> None:
    """Send a signal to the first process of a group: it knows best how to end the others."""
    try:
        os.kill(leader, number)
    except (ProcessLookupError, PermissionError):
        return


def end_left(pid_file: str) -> None:
    """End what a service started outside of its group and left behind: the server whose pid file this is.

    Patroni's PostgreSQL is such a one. The first line is its pid, the second its data directory, without
    which in its command line it is somebody else by now.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(pid_file, encoding="utf-8") as file:  # noqa: PTH123 - nothing but the standard library's core
            lines = file.read().splitlines()
        pid, folder = int(lines[0]), lines[1]
        if folder in _command_of(pid):
            os.kill(pid, signal.SIGKILL)


def _command_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123 - likewise
            return file.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # no such process, or no such place: macOS
        shown = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
        return shown.stdout


def stop(groups: dict[int, tuple[int, float, str]]) -> None:
    """Stop process groups at once, each with its own signal and its own grace (seconds)."""
    deadlines = {}
    for group, (number, grace, _) in groups.items():
        ask(group, number)
        deadlines[group] = time.monotonic() + grace
    while deadlines:
        for group, deadline in list(deadlines.items()):
            late = time.monotonic() > deadline
            if late:
                send(group, signal.SIGKILL)
            if late or not alive(group):
                del deadlines[group]
                end_left(groups[group][2])
        time.sleep(0.05)


def main() -> None:
    """Remember what runs; when the supervisor is gone, stop it, the highest stage first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    running: dict[int, tuple[int, int, float, str]] = {}
    for line in sys.stdin:
        operation, group, *rest = line.rstrip("\n").split(" ", 5)
        if operation == "+":
            with_signal, grace, stage, leaves = rest
            running[int(group)] = (int(stage), int(with_signal), float(grace), leaves)
        else:
            running.pop(int(group), None)
    for stage in sorted({stage for stage, *_ in running.values()}, reverse=True):
        stop({group: (number, grace, leaves) for group, (at, number, grace, leaves) in running.items() if at == stage})


if __name__ == "__main__":
    main()
