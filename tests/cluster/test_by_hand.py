"""What docs/how-to/cluster.md has somebody type when two of three nodes are gone: Patroni does what the page says."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest
from cluster_site import Site
from local_engine import eventually

from aegis.recovery.cluster import patroni

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "cluster.md"
OFF = "edit-config aegis --set synchronous_mode=off --force"
ON = "edit-config aegis --set synchronous_mode=quorum --force"
# Several times Patroni's loop_wait: whatever it was told, it has done by then.
SETTLED = 8.0


def typed(site: Site, line: str) -> str:
    """Type a command of the page."""
    configuration = site.cluster.configuration_of(site.node("node-1"))
    done = subprocess.run(
        [Path(sys.executable).with_name("patronictl"), "-c", configuration, *line.split()],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_the_page(line: str, node: str = "node-3") -> str:
    """Return a command that stands on the page, with the node's name in it for the page's."""
    assert f"patronictl {line}" in PAGE.read_text()
    return line.replace("node-3", node)


def statement(site: Site, line: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(site.cluster.layout.url())
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(line)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def follow(site: Site) -> list[tuple[object, ...]] | None:
    """Return who receives what the leader writes; None while a server that was just killed breaks a connection off."""
    try:
        return statement(site, "SELECT application_name FROM pg_stat_replication")
    except psycopg2.OperationalError:
        return None


def waits_for(site: Site) -> list[tuple[object, ...]] | None:
    """Return for whom the leader's commits wait; None while it takes no writes yet."""
    try:
        return statement(site, "SHOW synchronous_standby_names")
    except psycopg2.OperationalError:
        return None


class Commit:
    """A commit that may wait."""

    def __init__(self, site: Site) -> None:
        self.is_done = False
        self._site = site
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        deadline = time.monotonic() + 60
        while not self.is_done:
            try:
                statement(self._site, "SELECT pg_logical_emit_message(true, 'test', 'a commit')")
                self.is_done = True
            except psycopg2.OperationalError:
                # Who leads by what Patroni says may take no writes yet.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def waits(self) -> bool:
        """Whether it waits for a standby; others may, too."""
        asked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query LIKE '%a commit%'"
        return statement(self._site, asked) == [(1,)]


@contextmanager
def gone(site: Site, names: Sequence[str]) -> Iterator[None]:
    """These nodes stay away; afterwards they are back, and commits wait for two standbys, as the page has it."""
    for name in names:
        site.supervisor.kill(name, stay_down=True)
    try:
        yield
    finally:
        for name in names:
            site.supervisor.revive(name)
        eventually("they follow", lambda: sum(one.state == "streaming" for one in site.cluster.members()) == 2, 120)
        typed(site, of_the_page(ON))
        site.await_whole()


def test_the_leader_is_left(whole: Site) -> None:
    leader = whole.leader()
    with gone(whole, [node.name for node in whole.cluster.layout.nodes if node.name != leader]):
        eventually("nobody follows", lambda: follow(whole) == [], within=60)
        commit = Commit(whole)
        eventually("it waits", commit.waits)
        named = "SHOW synchronous_standby_names"
        eventually("Patroni knows as well", lambda: statement(whole, named) == [("ANY 1 (*)",)], within=60)
        # What one would try first. If this fails with another Patroni, the page is to be changed.
        patroni.change(whole.cluster.layout, {"synchronous_mode_strict": False})
        try:
            time.sleep(SETTLED)
            assert not commit.is_done
        finally:
            patroni.change(whole.cluster.layout, {"synchronous_mode_strict": True})
        typed(whole, of_the_page(OFF))
        eventually("it is committed", lambda: commit.is_done)
        assert whole.leader() == leader


def test_a_standby_is_left(whole: Site) -> None:
    leader = whole.leader()
    left, other = (node.name for node in whole.cluster.layout.nodes if node.name != leader)
    log = whole.cluster.logs / f"{left}.log"
    seen = log.stat().st_size
    with gone(whole, [leader, other]):
        eventually("it knows", lambda: "i am not the healthiest node" in log.read_text()[seen:], within=90)
        time.sleep(SETTLED)
        with pytest.raises(psycopg2.OperationalError):
            statement(whole, "SELECT 1")
        said = typed(whole, of_the_page("failover aegis --candidate node-3 --force", left))
        assert f'Successfully failed over to "{left}"' in said
        eventually("it leads", lambda: whole.leader() == left, within=60)
        # For a moment after a fail-over by force it waits for nobody: there is nobody that Patroni could name.
        commits = [Commit(whole)]

        def waits() -> bool:
            if commits[-1].is_done:
                commits.append(Commit(whole))
            return waits_for(whole) == [("ANY 1 (*)",)] and commits[-1].waits()

        eventually("it waits", waits, within=60)
        typed(whole, of_the_page(OFF))
        eventually("it is committed", lambda: commits[-1].is_done)
