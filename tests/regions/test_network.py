"""The network itself: delays as they were asked for, cuts that cut, and nothing of it left, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from local_engine import eventually

from aegis.core.errors import ServerUnavailable
from aegis.recovery.regions import namespace
from aegis.recovery.regions.namespace import why_not
from aegis.recovery.regions.network import Network, joined
from aegis.servers.supervisor import Service

needed = pytest.mark.skipif(bool(why_not()), reason=why_not())
pytestmark = pytest.mark.faults

PORT = 7000
# A machine that runs other tests at the same time answers late, never early.
LATE = 0.015
KILLED = """
import sys, subprocess
from aegis.recovery.regions.network import joined
with joined(["a", "b"], grace=2) as network:
    entry = ["nsenter", f"--net={network.place('a')}", "sleep", "600"]
    print(subprocess.Popen(entry).pid, network._process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def network() -> Iterator[Network]:
    with joined(["a", "b", "c"], ["outside"]) as made:
        yield made


@contextmanager
def echo(network: Network, name: str) -> Iterator[None]:
    """Answer each byte in a place."""
    with network.inside(name):
        listener = socket.create_server((network.address(name), PORT))

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while said := connection.recv(1):
                connection.sendall(said)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@contextmanager
def connected(network: Network, source: str, target: str, within: float = 5.0) -> Iterator[socket.socket]:
    with network.inside(source):
        connection = socket.create_connection((network.address(target), PORT), timeout=within)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


def round_trips(connection: socket.socket, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.monotonic()
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        found.append(time.monotonic() - began)
    return found


def is_reached(network: Network, source: str, target: str) -> bool:
    try:
        with connected(network, source, target, within=1.0) as connection:
            return len(round_trips(connection, 1)) == 1
    except OSError:
        return False


@needed
@pytest.mark.parametrize("delay", [0.0, 0.010, 0.040])
def test_a_round_trip_takes_twice_the_delay(network: Network, delay: float) -> None:
    network.delay(delay)
    with echo(network, "a"), connected(network, "b", "a") as connection:
        found = round_trips(connection, 30)
    assert min(found) >= 2 * delay
    assert 2 * delay <= statistics.median(found) < 2 * delay + LATE


@needed
def test_jitter_comes_on_top(network: Network) -> None:
    network.delay(0.005, jitter=0.020)
    with echo(network, "a"), connected(network, "b", "a") as connection:
        found = round_trips(connection, 40)
    assert min(found) >= 0.010
    assert statistics.median(found) == pytest.approx(0.030, abs=LATE)
    assert max(found) - min(found) > 0.010


@needed
def test_who_looks_on_is_next_to_each(network: Network) -> None:
    network.delay(0.100)
    with echo(network, "a"), connected(network, "outside", "a") as connection:
        assert statistics.median(round_trips(connection, 20)) < LATE


@needed
def test_a_place_that_is_cut_off_reaches_nobody_and_nobody_it_until_it_is_mended(network: Network) -> None:
    with echo(network, "a"), echo(network, "b"), connected(network, "b", "a") as connection:
        assert len(round_trips(connection, 3)) == 3
        network.cut("a")
        before = network.carried()["lost"]
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            round_trips(connection, 1)
        for source, target in (("b", "a"), ("c", "a"), ("outside", "a"), ("a", "b")):
            assert not is_reached(network, source, target), f"{source} reaches {target}"
        assert is_reached(network, "c", "b")
        assert network.carried()["lost"] > before
        network.mend("a")
        connection.settimeout(10)
        assert connection.recv(1) == b"x"  # TCP kept it
        assert is_reached(network, "a", "b")
        assert is_reached(network, "outside", "a")


@needed
def test_one_line_is_cut_alone(network: Network) -> None:
    with echo(network, "a"):
        network.cut("a", "b")
        assert not is_reached(network, "b", "a")
        assert is_reached(network, "c", "a")
        network.mend("a", "b")
        assert is_reached(network, "b", "a")


@needed
def test_a_program_runs_in_its_place_as_its_user_and_is_killed_there(network: Network, tmp_path: Path) -> None:
    service = Service(
        name="sleeper",
        argv=lambda: ["sleep", "600"],
        log=tmp_path / "log",
        identity={"user": 65534, "group": 65534, "extra_groups": [], "cwd": "/"},
    )
    told = network.service("b", service)
    process = subprocess.Popen(list(told.argv()), **told.identity)
    eventually("it runs", lambda: psutil.Process(process.pid).name() == "sleep")
    assert network.processes("b") == [process.pid]  # the same process, and no other
    assert network.processes("a", "c", "outside") == []
    assert psutil.Process(process.pid).uids().effective == 65534
    assert psutil.Process(process.pid).gids().effective == 65534
    assert "Groups:\t \n" in Path(f"/proc/{process.pid}/status").read_text()
    network.kill("b")
    assert process.wait(5) == -signal.SIGKILL
    assert network.processes("b") == []


@needed
def test_two_networks_at_once_know_nothing_of_each_other() -> None:
    with joined(["a", "b"]) as one, joined(["a", "b"]) as other, echo(one, "a"):
        assert one.address("a") == other.address("a")
        assert is_reached(one, "b", "a")
        assert not is_reached(other, "b", "a")
        other.cut("a")
        assert is_reached(one, "b", "a")


@needed
def test_in_the_end_nothing_is_left() -> None:
    devices, threads = _devices(), _own()
    with joined(["a", "b"]) as network:
        with network.inside("a"):
            assert _own() != threads
            child = subprocess.Popen(["sleep", "600"])
        router = network._process.pid
        assert _devices() == devices, "nothing of it is seen outside"
    assert child.wait(5) == -signal.SIGKILL
    assert _own() == threads
    assert not psutil.pid_exists(router)


@needed
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whoever_made_it_is_killed_and_nothing_is_left(number: signal.Signals) -> None:
    maker = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert maker.stdout is not None
    assert maker.stdin is not None
    sleeper, router = (psutil.Process(int(pid)) for pid in maker.stdout.readline().split())
    maker.send_signal(number)
    maker.wait(10)
    # It lets those that can end by themselves do so; nobody else is there to end this one.
    sleeper.wait(20)
    router.wait(10)
    for pipe in (maker.stdin, maker.stdout):
        pipe.close()


@needed
def test_a_router_that_was_killed_is_named(network: Network) -> None:
    network._process.kill()
    network._process.wait(5)
    with pytest.raises(ServerUnavailable, match="its router ended"):
        network.cut("a")


def test_where_it_cannot_be_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServerUnavailable, match=r"only root can make.*run it as root|Linux alone"), joined(["a"]):
        pass
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespace, "_PROGRAMS", ("ip", "no-such-program"))
    if sys.platform == "linux":
        assert "no-such-program is not installed" in why_not()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux alone" in why_not()


def _devices() -> list[str]:
    return sorted(name for _, name in socket.if_nameindex())


def _own() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino
