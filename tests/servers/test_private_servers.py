"""The private servers: where their programs come from, and what is said where there are none that work."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_servers import folder

from aegis.config.home import NOBODY
from aegis.config.settings import Settings
from aegis.core.errors import ConfigurationError, ServerUnavailable
from aegis.servers import postgres, stack, valkey
from aegis.servers.postgres import Postgres
from aegis.servers.valkey import Valkey

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as somebody else")


@pytest.fixture
def root() -> Iterator[Path]:
    with folder("servers") as made:
        yield made


@pytest.fixture
def programs() -> Path:
    """The programs of the installed wheel."""
    return postgres._programs(Settings())


def script(place: Path, body: str) -> Path:
    place.write_text(f"#!/bin/sh\n{body}\n")
    place.chmod(0o755)
    return place


def test_without_the_wheel_it_is_said_how_to_get_one(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_PACKAGE", "no_such_package")
    monkeypatch.setattr(valkey, "_PACKAGE", "no_such_package")
    monkeypatch.setattr(valkey, "_NAMES", ())
    with pytest.raises(
        ServerUnavailable, match=r"PostgreSQL: no private server .* pip install 'aegis-workflows\[embed"
    ):
        Postgres.prepare(Settings(home=root))
    with pytest.raises(ServerUnavailable, match=r"Valkey: no private broker .* pip install 'aegis-workflows\[embedded"):
        Valkey.prepare(Settings(home=root))


def test_programs_that_are_named_and_not_there(root: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"AEGIS_POSTGRES_BIN=.*: there is no program `postgres` in it"):
        Postgres.prepare(Settings(home=root, postgres_bin=str(root)))
    with pytest.raises(ConfigurationError, match="AEGIS_VALKEY_BIN=/no/such: there is no such program"):
        Valkey.prepare(Settings(home=root, valkey_bin="/no/such"))


def test_a_broker_that_is_named_is_taken(root: Path) -> None:
    named = script(root / "my-server", "exit 0")
    assert Valkey.prepare(Settings(home=root, valkey_bin=str(named))).argv[0] == str(named)


def test_a_broker_on_the_path_is_taken_where_the_wheels_does_not_run(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, works = root / "broken", root / "works"
    for place, body in ((broken, "exit 1"), (works, "exit 0")):
        place.mkdir()
        script(place / "redis-server", body)
    script(broken / "valkey-server", "exit 127")
    monkeypatch.setattr(valkey, "_from_wheel", lambda: str(root / "not-there"))
    monkeypatch.setenv("PATH", f"{broken}{os.pathsep}{works}")
    # valkey-server on the path does not run, and the first redis-server does not either.
    with pytest.raises(ServerUnavailable):
        Valkey.prepare(Settings(home=root))
    monkeypatch.setenv("PATH", str(works))
    assert Valkey.prepare(Settings(home=root)).argv[0] == str(works / "redis-server")


def test_a_failing_initdb_is_told_with_its_own_words(root: Path) -> None:
    own = root / "bin"
    own.mkdir()
    script(own / "postgres", "exit 0")
    script(own / "initdb", "echo 'initdb: error: no space left on device'; exit 1")
    with pytest.raises(ServerUnavailable, match="initdb failed: initdb: error: no space left on device"):
        Postgres.prepare(Settings(home=root, postgres_bin=str(own)))
    script(own / "initdb", "exit 1")
    with pytest.raises(ServerUnavailable, match="initdb failed: it said nothing"):
        Postgres.prepare(Settings(home=root, postgres_bin=str(own)))


@as_root
def test_a_home_that_nobody_can_reach_is_refused_to_root(root: Path) -> None:
    closed = root / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=f"PostgreSQL, which refuses to run as root, .* through {closed};"):
        Postgres.prepare(Settings(home=closed / "home"))


@as_root
def test_programs_that_nobody_can_reach_are_copied_once(root: Path, programs: Path) -> None:
    """A virtual environment below a private folder, as below /root."""
    closed = root / "closed"
    closed.mkdir(mode=0o700)
    package = programs.parent.parent  # pginstall18/bin is below the package
    reachable = closed / package.name
    reachable.symlink_to(package)
    (closed / f"{package.name}.libs").symlink_to(package.with_name(f"{package.name}.libs"))
    hidden = reachable / programs.parent.name / "bin"
    server = Postgres.prepare(Settings(home=root / "home", postgres_bin=str(hidden)))
    assert server.programs.is_relative_to(root / "home" / "programs")
    said = subprocess.run(
        [str(server.programs / "postgres"), "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
    )
    assert said.stdout.startswith("postgres (PostgreSQL) ")
    copied = (server.programs / "postgres").stat().st_mtime_ns
    again = Postgres.prepare(Settings(home=root / "home", postgres_bin=str(hidden)))
    assert (again.programs / "postgres").stat().st_mtime_ns == copied
    assert stat.S_IMODE((root / "home" / "postgres").stat().st_mode) == 0o700
    assert (root / "home" / "postgres").stat().st_uid == NOBODY


def test_servers_are_durable_and_listen_on_no_network(root: Path) -> None:
    settings = Settings(home=root)
    server, broker = Postgres.prepare(settings), Valkey.prepare(settings)
    assert "listen_addresses=" in server.argv
    assert not [option for option in server.argv if "fsync" in option or "synchronous_commit" in option]
    assert [broker.argv[broker.argv.index(name) + 1] for name in ("--port", "--appendonly", "--maxmemory-policy")] == [
        "0",
        "yes",
        "noeviction",
    ]
    assert not server.is_ready()
    assert not broker.is_ready()


def test_with_addresses_set_there_is_no_private_server(root: Path) -> None:
    theirs = Settings(home=root, database_url="postgresql://a@b/c", broker_url="redis://b")
    assert stack.servers(theirs) == []
    assert [service.name for service in stack.servers(Settings(home=root))] == ["postgresql", "valkey"]


def test_a_port_that_is_taken_is_not_given_out() -> None:
    preferred = stack.free_port(0)
    assert stack.free_port(preferred) == preferred
    monitor = stack.Flower()
    with stack.socket.socket() as taken:
        taken.bind(("127.0.0.1", preferred))
        taken.listen()
        assert stack.free_port(preferred) != preferred
        monitor.port = preferred
        assert monitor.is_ready()
        assert monitor.sees() == 0  # it answers nothing that Flower would
    assert not monitor.is_ready()
    assert monitor.sees() == 0
