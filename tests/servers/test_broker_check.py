"""What health says of a broker, and what it takes to speak to one: real servers, in each way they can be set up."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from local_engine import LocalProcess, eventually
from private_servers import PrivateBroker, PrivateSentinels, folder
from tls_front import TlsFront, certificates

from aegis.config.settings import Settings
from aegis.core.bell import Bell
from aegis.servers.sentinel import MASTER, SentinelGroup
from aegis.tasks.broker import Broker
from aegis.tasks.broker_check import ask_broker
from aegis.tasks.check import Check
from aegis.tasks.health import health
from aegis.workers.factory import make_app

BELLS = [Bell(workflow_id="w", seq=0, queue=None, label="Steps.one")] * 3
NOWHERE = "postgresql://aegis@/postgres?host=/nonexistent"


def settings_for(url: str, **more: Any) -> Settings:
    return Settings(database_url=NOWHERE, broker_url=url, **more)


def checks(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in ask_broker(settings, 3)}


@pytest.fixture
def own() -> Iterator[Callable[..., PrivateBroker]]:
    with ExitStack() as stack:

        def start(*options: str) -> PrivateBroker:
            server = PrivateBroker(stack.enter_context(folder("own-broker")), *options)
            stack.callback(server.container.kill)
            server.start()
            return server

        yield start


@pytest.fixture(scope="module")
def guarded() -> Iterator[PrivateSentinels]:
    """Servers and Sentinels that want a password."""
    with folder("sentinels") as root:
        servers = PrivateSentinels(root, password="geheim")  # noqa: S106 - it is for this test
        try:
            servers.start()
            yield servers
        finally:
            servers.stop()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "master, 0 replicas, AOF everysec, noeviction"),
        (("--appendfsync", "always"), "master, 0 replicas, AOF always, noeviction"),
        (("--appendonly", "no"), "master, 0 replicas, no AOF, noeviction"),
        (("--appendonly", "no", "--save", "60 1"), "master, 0 replicas, snapshots, no AOF, noeviction"),
    ],
)
def test_what_a_broker_keeps_is_said(own: Callable[..., PrivateBroker], options: tuple[str, ...], says: str) -> None:
    found = checks(settings_for(own(*options).url))["broker"]
    assert found.state == "ok"
    assert found.says.startswith("answers; Valkey ")
    assert found.says.endswith(says)


def test_a_broker_that_may_drop_messages_is_warned_of(own: Callable[..., PrivateBroker]) -> None:
    found = checks(settings_for(own("--maxmemory-policy", "allkeys-lru").url))["broker"]
    assert found.state == "warning"
    assert "allkeys-lru: it may drop messages when it is full" in found.says
    assert "noeviction" in found.remedy


def test_a_replica_takes_no_messages(own: Callable[..., PrivateBroker]) -> None:
    found = checks(settings_for(own("--replicaof", "127.0.0.1 1").url))["broker"]
    assert found.state == "degraded"
    assert "it takes no messages" in found.says


def test_a_user_that_may_not_ask_still_hears_that_it_answers(own: Callable[..., PrivateBroker]) -> None:
    broker = own("--user", "default", "on", "nopass", "~*", "&*", "+@all", "-info")
    found = checks(settings_for(broker.url))["broker"]
    assert (found.state, found.says) == ("ok", "answers; its user may not ask what it is (+info)")


@pytest.mark.parametrize("scheme", ["redis", "sentinel"])
def test_a_broker_that_is_dark_keeps_health_no_longer_than_it_was_told(scheme: str) -> None:
    """It takes connections, and never says a word: as a frozen host, or one behind a firewall."""
    with socket.create_server(("127.0.0.1", 0)) as dark:
        master = {"broker_master": "aegis"} if scheme == "sentinel" else {}
        settings = settings_for(f"{scheme}://127.0.0.1:{dark.getsockname()[1]}", **master)
        began = time.monotonic()
        found = {check.name: check for check in health(settings)}["broker"]
        assert time.monotonic() - began < settings.health_timeout + 5  # it would be kept for ever
        assert found.state == "degraded"
        assert "nothing is lost meanwhile" in found.remedy


# --- sentinels --------------------------------------------------------------------------


def behind(servers: PrivateSentinels, **more: str) -> Settings:
    given = {"broker_master": MASTER, "broker_sentinel_password": "geheim", **more}
    return settings_for(servers.group.url, **given)


def test_what_sentinels_name_is_said_and_rung(guarded: PrivateSentinels) -> None:
    settings = behind(guarded)
    port = guarded.group.servers[0].port
    found = checks(settings)
    assert found["sentinels"].says == f"3 of 3 name 127.0.0.1:{port}"
    assert found["broker"].says.endswith("master, 1 replica, AOF everysec, noeviction")
    assert {check.state for check in found.values()} == {"ok"}
    broker = Broker(make_app(settings))
    assert broker.ring(BELLS)
    assert broker.lengths([None]) == {None: 3}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"broker_sentinel_password": "leise"}, "invalid username-password pair"),
        ({"broker_sentinel_password": ""}, "already authenticated"),
        ({"broker_master": "another"}, "it knows no 'another'"),
    ],
)
def test_sentinels_that_name_nothing_say_why(guarded: PrivateSentinels, more: dict[str, str], problem: str) -> None:
    settings = behind(guarded, **more)
    found = checks(settings)
    assert found.keys() == {"broker"}
    assert found["broker"].state == "degraded"
    assert problem in found["broker"].says
    assert "geheim" not in str(found)
    assert not Broker(make_app(settings)).ring(BELLS)


def test_a_sentinel_that_is_away_is_warned_of(guarded: PrivateSentinels) -> None:
    away = guarded.containers["sentinel0"]
    away.kill()
    try:
        found = checks(behind(guarded))
        assert found["sentinels"].state == "warning"
        assert found["sentinels"].says.startswith("2 of 3 name ")
        assert found["broker"].state == "ok"
    finally:
        away.start()


# --- TLS --------------------------------------------------------------------------------


def test_over_tls_the_certificate_is_checked(own: Callable[..., PrivateBroker], tmp_path: Path) -> None:
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    with TlsFront(own().socket, ours) as front:
        place = f"rediss://127.0.0.1:{front.port}/0"
        trusting = settings_for(f"{place}?ssl_ca_certs={ours.authority}")
        assert checks(trusting)["broker"].state == "ok"
        assert Broker(make_app(trusting)).ring(BELLS)
        # Within one process kombu shares connections of the same address and options, whatever their certificates.
        astray = settings_for(f"{place}?ssl_ca_certs={others.authority}", broker_prefix="astray:")
        for settings in (astray, settings_for(place, broker_prefix="nobody:")):
            found = checks(settings)["broker"]
            assert found.state == "degraded"
            assert "certificate verify failed" in found.says.lower()
            assert not Broker(make_app(settings)).ring(BELLS)


def test_sentinels_over_tls_and_the_server_that_they_name(tmp_path: Path) -> None:
    """The front takes TLS from clients, and what the servers say among themselves without it, on the same port."""
    ours, others = certificates(tmp_path / "ours"), certificates(tmp_path / "others")
    with ExitStack() as stack:
        group = SentinelGroup.prepare(Settings(home=stack.enter_context(folder("sentinels"))), replicas=0, sentinels=1)
        server = TlsFront(("127.0.0.1", group.servers[0].port), ours)
        stack.enter_context(server)
        told = group.sentinels[0].folder / "sentinel.conf"
        told.write_text(told.read_text().replace(f" {group.servers[0].port} ", f" {server.port} "))
        for node in group.nodes:
            process = LocalProcess(node.name, lambda node=node: node.argv, node.folder)
            process.start()
            stack.callback(process.kill)
            eventually(f"{node.name} answers", node.is_ready)
        sentinel = stack.enter_context(TlsFront(("127.0.0.1", group.sentinels[0].port), ours))
        place = f"sentinels://127.0.0.1:{sentinel.port}/0?ssl_ca_certs="
        trusting = settings_for(f"{place}{ours.authority}", broker_master=MASTER)
        assert checks(trusting)["sentinels"].says == f"1 of 1 name 127.0.0.1:{server.port}"
        assert checks(trusting)["broker"].says.startswith("answers; Valkey")
        assert Broker(make_app(trusting)).ring(BELLS)
        assert Broker(make_app(trusting)).lengths([None]) == {None: 3}
        astray = settings_for(f"{place}{others.authority}", broker_master=MASTER, broker_prefix="astray:")
        assert "certificate verify failed" in checks(astray)["broker"].says.lower()
        assert not Broker(make_app(astray)).ring(BELLS)
