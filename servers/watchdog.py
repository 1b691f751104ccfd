"""The watchdog: a process that sees everything to its end when the supervisor died without doing so.

It runs as a script of its own, with nothing but the standard library. It reads lines from the
supervisor: ``+ pgid signal grace stage`` for a service that started, ``- pgid`` for one that ended.
The end of its input means that the supervisor is gone, however that came.
"""

import os
import signal
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


def stop(groups: dict[int, tuple[int, float]]) -> None:
    """Stop process groups at once, each with its own signal and its own grace (seconds)."""
    deadlines = {}
    for group, (number, grace) in groups.items():
        ask(group, number)
        deadlines[group] = time.monotonic() + grace
    while deadlines:
        for group, deadline in list(deadlines.items()):
            if not alive(group):
                del deadlines[group]
            elif time.monotonic() > deadline:
                send(group, signal.SIGKILL)
                del deadlines[group]
        time.sleep(0.05)


def main() -> None:
    """Remember what runs; when the supervisor is gone, stop it, the highest stage first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    running: dict[int, tuple[int, int, float]] = {}
    for line in sys.stdin:
        operation, group, *rest = line.split()
        if operation == "+":
            with_signal, grace, stage = rest
            running[int(group)] = (int(stage), int(with_signal), float(grace))
        else:
            running.pop(int(group), None)
    for stage in sorted({stage for stage, _, _ in running.values()}, reverse=True):
        stop({group: (number, grace) for group, (at, number, grace) in running.items() if at == stage})


if __name__ == "__main__":
    main()
