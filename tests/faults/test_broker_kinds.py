"""Each kind of broker killed with SIGKILL: what it kept makes a difference of time, and none of what is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from deployment import Deployment, deployed
from fault_workflows import Steps
from local_engine import eventually
from private_servers import PrivateBroker, PrivateSentinels, folder
from redis import Redis

from aegis.config.settings import Settings
from aegis.core.bell import Bell
from aegis.persistence import watch
from aegis.persistence.watch import Worker
from aegis.tasks.broker import Broker
from aegis.tasks.broker_check import ask_broker
from aegis.tasks.sweep import sweep
from aegis.workers.factory import make_app

pytestmark = pytest.mark.faults

MANY = 40
BELL = Bell(workflow_id="w", seq=0, queue=None, label="Steps.one")
# Nobody rings again for that: what moves before was rung by a message that was kept, or by the missing mark.
FOR_LONG = {"AEGIS_RING_GRACE": "300"}


@pytest.fixture
def own() -> Iterator[Callable[..., PrivateBroker]]:
    """Start a broker of one's own, with options for its server."""
    with ExitStack() as stack:

        def start(*options: str) -> PrivateBroker:
            server = PrivateBroker(stack.enter_context(folder("own-broker")), *options)
            stack.callback(server.container.remove)
            server.start()
            return server

        yield start


@pytest.fixture
def sentinels() -> Iterator[PrivateSentinels]:
    with folder("sentinels") as root:
        servers = PrivateSentinels(root)
        try:
            servers.start()
            yield servers
        finally:
            servers.stop()


def start_many(deployment: Deployment) -> None:
    for number in range(MANY):
        handle = deployment.engine.start(Steps(), id=f"steps-{number:03d}")
        assert handle.rung
        deployment.ledger.accepted(handle.id)


def queued(deployment: Deployment) -> int:
    return Broker(deployment.app).lengths([None])[None]


@pytest.mark.parametrize("when", ["everysec", "always"])
def test_with_its_file_nothing_is_rung_twice(
    tmp_path: Path, database_url: str, own: Callable[..., PrivateBroker], when: str
) -> None:
    broker = own("--appendfsync", when)
    with deployed(tmp_path, database_url, broker.url, **FOR_LONG) as deployment:
        Broker(deployment.app).remember()
        start_many(deployment)
        broker.kill()
        broker.start()
        assert Broker(deployment.app).remembers()
        assert queued(deployment) == MANY
        beat = deployment.beat()
        deployment.worker(concurrency=2)
        deployment.await_all("completed", MANY)
        deployment.assert_sound()
        assert "remembers nothing" not in beat.container.logs()


def test_without_a_file_everything_is_rung_again_by_the_mark(
    tmp_path: Path, database_url: str, own: Callable[..., PrivateBroker]
) -> None:
    broker = own("--appendonly", "no")
    with deployed(tmp_path, database_url, broker.url, **FOR_LONG) as deployment:
        Broker(deployment.app).remember()
        start_many(deployment)
        broker.kill()
        broker.start()
        assert queued(deployment) == 0
        assert not Broker(deployment.app).remembers()
        deployment.worker(concurrency=2)
        time.sleep(1)
        assert not deployment.engine.list(status="completed"), "whoever moves was not lost"
        beat = deployment.beat()
        deployment.await_all("completed", MANY)
        deployment.assert_sound()
        assert "remembers nothing" in beat.container.logs()


def test_with_sentinels_everybody_goes_on_with_the_replica(
    tmp_path: Path, database_url: str, sentinels: PrivateSentinels
) -> None:
    with deployed(tmp_path, database_url, sentinels.group.url, **sentinels.environment()) as deployment:
        workers = deployment.workers(2, concurrency=1)
        beat = deployment.beat()
        publisher = Publisher(deployment)
        eventually("it is under way", lambda: len(deployment.engine.list(status="completed")) > 5)
        assert sentinels.master() == "server0"
        sentinels.containers["server0"].kill()
        killed = time.monotonic()
        eventually("the replica is promoted", lambda: sentinels.master() == "server1")
        eventually("bells are rung again", lambda: publisher.rung_at > killed + 0.5, within=20)
        done = len(deployment.engine.list(status="completed", limit=10_000))
        eventually(
            "workers go on", lambda: len(deployment.engine.list(status="completed", limit=10_000)) > done + 5, within=20
        )
        accepted = publisher.stop()
        deployment.await_all("completed", accepted)
        deployment.assert_sound()
        assert publisher.unrung, "nobody noticed"
        assert publisher.slowest < 5, "a caller waited"
        assert [node.container.status for node in (*workers, beat)] == ["running"] * 3
        assert all(deployment.effects(handle.id) == 3 for handle in deployment.engine.list(limit=10_000))
        assert queued(deployment) == 0, "this is the promoted one"


def test_what_could_not_be_rung_is_rung_before_what_only_waits(
    tmp_path: Path, database_url: str, own: Callable[..., PrivateBroker]
) -> None:
    """The queue is as long as it should be: whoever counts bells alone leaves it for later, and later again."""
    broker = own()
    with deployed(tmp_path, database_url, broker.url, AEGIS_RING_GRACE="0.1") as deployment:
        Broker(deployment.app).remember()
        start_many(deployment)
        broker.kill()
        assert not deployment.engine.start(Steps(), id="unheard").rung
        broker.start()
        with deployment.database.statement() as connection:
            watch.beat(connection, Worker(id="w", host="h", pid=1, pids=(1,), queues=("aegis",), types=("Steps/1",)))
        time.sleep(0.2)  # everything is due
        swept = sweep(deployment.database, Broker(deployment.app), deployment.settings.recovery)
        assert (swept.rung, swept.broker_forgot) == (1, False)
        assert queued(deployment) == MANY + 1


class Publisher:
    """An application that starts a workflow every 50 ms, whatever happens; an exception ends the test."""

    def __init__(self, deployment: Deployment) -> None:
        self.unrung: list[str] = []
        self.rung_at = self.slowest = 0.0
        self._deployment, self._accepted = deployment, 0
        self._problem: BaseException | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> int:
        """End it; return how many were accepted."""
        self._stopped.set()
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self._accepted

    def _run(self) -> None:
        try:
            while not self._stopped.wait(0.05):
                self._start(f"steps-{self._accepted:04d}")
        except BaseException as problem:  # noqa: BLE001 - it is raised where the test sees it
            self._problem = problem

    def _start(self, workflow_id: str) -> None:
        began = time.monotonic()
        handle = self._deployment.engine.start(Steps(), id=workflow_id)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self._accepted += 1
        self._deployment.ledger.accepted(handle.id)
        if handle.rung:
            self.rung_at = time.monotonic()
        else:
            self.unrung.append(handle.id)


# --- what cannot be rung is not rung, and nobody waits --------------------------------------


@pytest.mark.parametrize("master", ["aegis", "another"])
def test_where_no_sentinel_names_a_server_nothing_is_rung(monkeypatch: pytest.MonkeyPatch, master: str) -> None:
    """Left to itself, redis tries each Sentinel four times, with pauses that grow: ten seconds and more for three."""
    waits: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", waits.append)
    monkeypatch.setattr("redis.retry.sleep", waits.append)
    settings = Settings(
        database_url="postgresql://a@b/c",
        broker_url="sentinel://127.0.0.1:1;sentinel://127.0.0.1:2;sentinel://127.0.0.1:3",
        broker_master=master,
    )
    began = time.monotonic()
    assert not Broker(make_app(settings)).ring([BELL])
    assert time.monotonic() - began < 1
    assert waits == []


def test_a_full_broker_refuses_a_bell_and_keeps_the_others(own: Callable[..., PrivateBroker]) -> None:
    broker = own("--maxmemory", "3mb")
    settings = Settings(database_url="postgresql://a@b/c", broker_url=broker.url)
    doorbell = Broker(make_app(settings))
    rung = 0
    while doorbell.ring([BELL] * 100):
        rung += 100
        assert rung < 100_000, "it is never full"
    assert rung > 0
    with closing(Redis(unix_socket_path=str(broker.socket))) as client:
        assert sum(client.llen(key) for key in client.keys(f"{settings.broker_prefix}{settings.queue}*")) >= rung


def test_a_worker_with_work_at_hand_outlives_its_broker(own: Callable[..., PrivateBroker]) -> None:
    """kombu gives up closing a channel whose pending read fails; asked again, it no longer knew whom to connect to."""
    broker = own()
    settings = Settings(database_url="postgresql://a@b/c", broker_url=broker.url)
    app = make_app(settings)
    assert Broker(app).ring([BELL])
    connection = app.connection_for_read()
    taken: list[object] = []
    connection.Consumer([app.amqp.queues[settings.queue]], on_message=taken.append).consume()
    connection.drain_events(timeout=5)
    assert len(taken) == 1
    other = connection.channel()
    connection.Consumer([app.amqp.queues["aegis.mark"]], channel=other, on_message=taken.append).consume()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.1)
    assert connection.default_channel._in_poll, "both of them read"
    assert other._in_poll, "both of them read"
    broker.kill()
    # As the worker's consumer does it.
    connection.collect()
    connection.close()


# --- a user of its own ------------------------------------------------------------------


def acl_of_the_page() -> list[str]:
    """The rules of docs/how-to/broker.md, which are those of a line in Redis's own file."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "broker.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("user aegis ")]
    return line.split()[1:]


def test_the_user_of_the_page_may_do_all_that_is_needed_and_nothing_else(
    tmp_path: Path, database_url: str, own: Callable[..., PrivateBroker]
) -> None:
    broker = own("--user", *acl_of_the_page(), "--user", "default", "on", "nopass", "-@all", "+ping")
    url = broker.url.replace("redis+socket://", "redis+socket://aegis:secret@")
    with deployed(tmp_path, database_url, url, AEGIS_BROKER_PREFIX="aegis:") as deployment:
        worker, beat = deployment.worker(), deployment.beat()
        start_many(deployment)
        deployment.await_all("completed", MANY)
        deployment.assert_sound()
        (found,) = ask_broker(deployment.settings, 0.7)
        assert (found.state, found.says.startswith("answers; Valkey")) == ("ok", True)
        assert not [line for node in (worker, beat) for line in node.logs().splitlines() if "NOPERM" in line.upper()]
    others = Settings(database_url="postgresql://a@b/c", broker_url=url, broker_prefix="another:")
    assert not Broker(make_app(others)).ring([BELL]), "keys of another prefix"
