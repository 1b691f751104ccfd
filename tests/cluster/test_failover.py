"""Fail-over and switch-over under load: nothing acknowledged is lost, no process restarted, every chain intact."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from cluster_site import Site
from deployment import Deployment
from fault_workflows import Steps
from local_engine import eventually

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.database import Database
from aegis.persistence.durable import Handle
from aegis.recovery.cluster import patroni
from aegis.tasks.check import State
from aegis.tasks.health import health


class Client:
    """Starts workflows without pause, and remembers what it was told."""

    def __init__(self, running: Deployment, name: str) -> None:
        self._engine, self._name = running.engine, name
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.longest_gap = 0.0
        self.stopping = False

    def run(self) -> None:
        last = time.monotonic()
        number = 0
        while not self.stopping:
            workflow_id, number = f"{self._name}-{number}", number + 1
            try:
                self._engine.start(Steps(), id=workflow_id)
            except DatabaseUnavailable:
                self.errors.append(workflow_id)
                time.sleep(0.05)
                continue
            self.acknowledged.append(workflow_id)
            last, before = time.monotonic(), last
            self.longest_gap = max(self.longest_gap, last - before)
            time.sleep(0.03)

    def served_again(self) -> None:
        """Wait until it is told of one more that was accepted, and a few after that."""
        count = len(self.acknowledged)
        eventually("clients are served again", lambda: len(self.acknowledged) > count + 5, within=60)


@contextmanager
def load(running: Deployment, name: str) -> Iterator[Client]:
    """A client that goes on throughout; afterwards, everything that it was told is there, has ended, and verifies."""
    client = Client(running, name)
    thread = threading.Thread(target=client.run)
    thread.start()
    try:
        client.served_again()
        yield client
        client.served_again()
    finally:
        client.stopping = True
        thread.join(60)
    for workflow_id in client.acknowledged:
        running.await_status(workflow_id, "completed", within=90)
        assert [link.seq for link in running.engine.history(workflow_id)] == [0, 1, 2, 3]
    for workflow_id in client.acknowledged[:: max(1, len(client.acknowledged) // 50)]:
        assert running.engine.verify_integrity(workflow_id)[1] in {None, _no_anchor(running, workflow_id)}
    assert len(client.acknowledged) > 10, "a drill without traffic shows nothing"


def _no_anchor(running: Deployment, workflow_id: str) -> str | None:
    """What is said where there are no anchors to compare with; anything else is a finding."""
    report = running.engine.verify_audit_chain(workflow_id)
    return None if report.failures else next(iter(report.problems), None)


@pytest.mark.usefixtures("worker")
def test_a_switch_over_under_load(whole: Site, running: Deployment) -> None:
    before = whole.leader()
    with load(running, "switch"):
        patroni.switch_over(whole.cluster.layout)
        whole.await_another_leader(before)


@pytest.mark.usefixtures("worker")
def test_the_leaders_postgresql_is_killed_under_load(whole: Site, running: Deployment) -> None:
    before = whole.leader()
    with load(running, "postmaster"):
        whole.postmaster(before).kill()
        whole.await_another_leader(before)


@pytest.mark.usefixtures("worker")
def test_a_leader_whose_agent_hangs_is_left_though_its_postgresql_goes_on(whole: Site, running: Deployment) -> None:
    """Its commits wait for standbys that follow another; nothing but the other one's being there tells so."""
    before = whole.leader()
    agent = whole.supervisor.pid(before)
    with load(running, "frozen") as client:
        os.kill(agent, signal.SIGSTOP)
        try:
            whole.await_another_leader(before)
            assert whole.postmaster(before).is_running()
            client.served_again()
        finally:
            os.kill(agent, signal.SIGCONT)
        assert client.longest_gap < 15


@pytest.mark.usefixtures("worker")
def test_the_leaders_machine_is_lost_under_load_with_a_commit_under_way(whole: Site, running: Deployment) -> None:
    """Its answer never comes; the next leader never heard of it, and says so when it is asked again."""
    before = whole.leader()
    outside = Database(whole.url + "&application_name=test", pool_size=1)
    with load(running, "node"), ThreadPoolExecutor() as pool:
        receivers = whole.receivers(before)
        assert len(receivers) == 2
        for receiver in receivers:
            receiver.suspend()
        start = pool.submit(running.engine.start, Steps(), id="under-way")
        eventually("commits wait for a standby", lambda: _waits(outside) >= 2)
        whole.supervisor.kill(before, stay_down=True)
        for receiver in receivers:
            receiver.kill()  # and what reached its socket is lost: no standby has it
        with pytest.raises(DatabaseUnavailable):
            start.result(60)
        whole.await_another_leader(before)
        nodes = next(check for check in health(running.settings) if check.name == "nodes")
        assert nodes.state is State.DEGRADED
        assert f"{whole.node(before).port} does not answer" in nodes.says
        assert _insistently(lambda: running.engine.start(Steps(), id="under-way")).new
    outside.close()
    whole.supervisor.revive(before)
    running.await_status("under-way", "completed", within=60)


def _waits(database: Database) -> int:
    with database.statement() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND application_name = 'aegis'"
        return int(connection.exec_driver_sql(query).scalar_one())


def _insistently(act: Callable[[], Handle[Steps]]) -> Handle[Steps]:
    deadline = time.monotonic() + 60
    while True:
        try:
            return act()
        except DatabaseUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
