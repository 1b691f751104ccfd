"""The engine that is awaited, through the same: nothing acknowledged is lost, and nothing hangs or is made anew."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster_site import Site
from deployment import Deployment
from fault_workflows import Steps
from local_engine import eventually

from aegis.core.errors import DatabaseUnavailable
from aegis.persistence.awaited import DurableWorkflowEngine
from aegis.recovery.cluster import patroni

# Several at once: each has a connection of its own, and each may be the one that waits in vain.
TASKS = 4
# No verb takes longer: the three seconds of patience, the look, and a machine that has more to do.
NO_HANG = 40


class Client:
    """Starts workflows from one event loop, and remembers what it was told."""

    def __init__(self, running: Deployment, name: str) -> None:
        self._running, self._name = running, name
        self.acknowledged: list[str] = []
        self.errors: list[str] = []
        self.other: list[BaseException] = []
        self.left: list[str] = []
        self.stopping = False

    def run(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # noqa: BLE001 - the test is to see it
            self.other.append(error)

    async def _run(self) -> None:
        near = self._running.engine
        engine = DurableWorkflowEngine(self._running.database, near._ring, near.terms)
        try:
            async with asyncio.TaskGroup() as group:
                for task in range(TASKS):
                    group.create_task(self._start_on(engine, task))
        finally:
            await engine.close()
        await asyncio.sleep(0)
        self.left = [str(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]

    async def _start_on(self, engine: DurableWorkflowEngine, task: int) -> None:
        number = 0
        while not self.stopping:
            workflow_id, number = f"{self._name}-{task}-{number}", number + 1
            try:
                await asyncio.wait_for(engine.start(Steps(), id=workflow_id), NO_HANG)
            except DatabaseUnavailable:
                self.errors.append(workflow_id)
                await asyncio.sleep(0.05)
                continue
            self.acknowledged.append(workflow_id)
            await asyncio.sleep(0.1)

    def served_again(self) -> None:
        """Wait until each of its tasks may have been told of some that were accepted."""
        assert not self.other
        count = len(self.acknowledged)
        eventually("clients are served again", lambda: len(self.acknowledged) > count + 3 * TASKS, within=60)


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
        thread.join(NO_HANG + 20)
    assert not thread.is_alive(), "a verb hangs"
    assert client.other == []
    assert client.left == [], "tasks outlive the engine"
    for workflow_id in client.acknowledged:
        running.await_status(workflow_id, "completed", within=90)
        assert [link.seq for link in running.engine.history(workflow_id)] == [0, 1, 2, 3]


def test_a_switch_over(whole: Site, running: Deployment) -> None:
    before = whole.leader()
    with load(running, "awaited-switch"):
        patroni.switch_over(whole.cluster.layout)
        whole.await_another_leader(before)


def test_the_leaders_postgresql_is_killed(whole: Site, running: Deployment) -> None:
    before = whole.leader()
    with load(running, "awaited-postmaster"):
        whole.postmaster(before).kill()
        whole.await_another_leader(before)


def test_a_leader_whose_agent_hangs_is_left_though_its_postgresql_goes_on(whole: Site, running: Deployment) -> None:
    """Its commits wait for standbys that follow another, and no time-out of a driver ends that."""
    before = whole.leader()
    agent = whole.supervisor.pid(before)
    with load(running, "awaited-frozen") as client:
        os.kill(agent, signal.SIGSTOP)
        try:
            whole.await_another_leader(before)
            # All of them, not only who happened to land on the new one.
            for task in range(TASKS):
                mine = starts_of(client, task)
                count = mine()
                eventually(f"task {task} is served again", lambda: mine() > count + 2, within=60)  # noqa: B023
            assert whole.postmaster(before).is_running()
        finally:
            os.kill(agent, signal.SIGCONT)
        assert client.errors, "no commit waited in vain: this has shown nothing"


def starts_of(client: Client, task: int) -> Callable[[], int]:
    prefix = f"{client._name}-{task}-"
    return lambda: sum(one.startswith(prefix) for one in list(client.acknowledged))
