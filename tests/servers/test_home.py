"""The private servers' folder: where it may be, and whose."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from private_servers import PrivateBroker, PrivatePostgres, folder

from aegis.config.home import NOBODY, Home
from aegis.core.errors import ConfigurationError


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home whose path is too long for a socket: its sockets are in the temporary folder, here one of the test's."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return Home(tmp_path / ("deep" * 25))


@pytest.fixture
def short() -> Iterator[Path]:
    with folder("home") as made:
        yield made


def test_a_folder_of_ones_own_is_made_for_sockets(far: Home, tmp_path: Path) -> None:
    for _ in range(2):
        far.make(far.sockets, mode=0o700)
    assert far.sockets.parent == tmp_path
    assert far.sockets.stat().st_mode & 0o777 == 0o700


def _a_link(place: Path) -> None:
    place.with_name("elsewhere").mkdir(mode=0o700)
    place.symlink_to(place.with_name("elsewhere"))


def _open_to_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def _of_another_user(place: Path) -> None:
    place.mkdir(mode=0o700)
    os.chown(place, 12345, 12345)


@pytest.mark.parametrize(
    "plant",
    [
        _a_link,
        _open_to_all,
        pytest.param(_of_another_user, marks=pytest.mark.skipif(os.geteuid() != 0, reason="root alone can give away")),
    ],
)
def test_what_somebody_else_put_in_the_place_of_the_sockets_is_refused(
    far: Home, plant: Callable[[Path], None]
) -> None:
    plant(far.sockets)
    with pytest.raises(ConfigurationError, match="is not a folder of this user's alone; remove that, or name"):
        far.make(far.sockets, mode=0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user runs PostgreSQL only for root")
def test_the_user_that_runs_postgresql_for_root_is_no_stranger(far: Home) -> None:
    far.sockets.mkdir(mode=0o700)
    os.chown(far.sockets, NOBODY, NOBODY)
    far.make(far.sockets, mode=0o700)


def test_a_private_postgresql_is_durable_and_keeps_its_data(short: Path) -> None:
    server = PrivatePostgres(short)
    server.start()
    server.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        # A setting that is off makes the division fail.
        server.execute(f"SELECT 1 / (current_setting('{name}') = 'on')::int")
    server.execute("SELECT 1 / (current_setting('listen_addresses') = '')::int")
    server.kill()
    server.start()
    server.execute("SELECT 1 / (answer = 42)::int FROM kept")
    server.stop()


def test_a_private_broker_keeps_its_messages_and_listens_on_a_socket_alone(short: Path) -> None:
    import redis  # noqa: PLC0415 - only this test speaks to the broker itself

    server = PrivateBroker(short)
    server.start()
    client = redis.Redis(unix_socket_path=str(server.socket))
    client.rpush("queue", "message")
    assert client.config_get("port") == {"port": "0"}
    assert client.config_get("appendonly") == {"appendonly": "yes"}
    client.config_set("appendfsync", "always")
    client.rpush("queue", "another")
    server.kill()
    server.start()
    assert client.llen("queue") == 2
    client.close()
    server.container.remove()
