"""A region is cut off, or lost: another takes over, and whatever was acknowledged, in any of them, is there."""

from __future__ import annotations

import os
import time

import pytest
from local_engine import eventually
from regional import Client, Site

from aegis.recovery.regions.regions import NAMES

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        os.environ.get("AEGIS_TEST_REGIONS") != "1",
        reason="three minutes of a machine that does nothing else: AEGIS_TEST_REGIONS=1 runs it",
    ),
]

# What was on its way when the line was cut may still have been acknowledged.
JUST_NOW = 0.5


def another(*names: str) -> str:
    return next(name for name in NAMES if name not in names)


def assert_nothing_lost(site: Site, clients: dict[str, Client], prefix: str) -> None:
    lost = site.lost(list(clients.values()), prefix)
    assert lost == {name: set() for name in NAMES}
    assert sum(len(client.acknowledged) for client in clients.values()) > 50, "without traffic it shows nothing"
    for workflow_id in list(clients[NAMES[0]].acknowledged)[::20]:
        assert [link.seq for link in site.engine.history(workflow_id)] == [0, 1, 2, 3]
        assert not site.engine.verify_audit_chain(workflow_id).failures


def test_each_region_has_what_it_needs_and_works_for_all(whole: Site) -> None:
    with whole.clients("plain") as clients:
        time.sleep(2)
    assert_nothing_lost(whole, clients, "plain")
    with whole.database.statement() as connection:
        query = "SELECT DISTINCT actor FROM aegis_transition WHERE starts_with(actor, 'worker:')"
        assert len(connection.exec_driver_sql(query).all()) == 3, "a worker in each of them"
    for name in NAMES:
        inhabitants = whole.regions.network.processes(name)
        for service in whole.regions.services(name):
            assert whole.supervisor.pid(service) in inhabitants
    brokers = {region.settings.broker_url for region in whole.regions.all.values()}
    assert len(brokers) == 3


def test_the_region_with_the_primary_is_cut_off(whole: Site) -> None:
    before = whole.leader()
    workers = {name: [whole.supervisor.pid(each) for each in whole.regions.services(name)] for name in NAMES}
    with whole.clients("cut") as clients:
        inside, outside = clients[before], clients[another(before)]
        cut = whole.cut(before)
        whole.await_another_leader(before)
        outside.served()
        served = time.monotonic() - cut
        healed = time.monotonic()
        # Its primary had gone on for a while; but who asks it was told nothing that the others do not know.
        assert [at for at in inside.acknowledged.values() if cut + JUST_NOW < at < healed] == []
        whole.heal()
        whole.await_whole()
        inside.served()
    print(f"cut off: others were served again after {served:.1f} s")
    assert_nothing_lost(whole, clients, "cut")
    assert whole.leader() != before
    assert {name: [whole.supervisor.pid(each) for each in whole.regions.services(name)] for name in NAMES} == workers


def test_the_region_with_the_primary_is_lost(whole: Site) -> None:
    before = whole.leader()
    with whole.clients("lost") as clients:
        lost = whole.kill(before)
        assert whole.regions.network.processes(before) == []
        whole.await_another_leader(before)
        for name in NAMES:
            if name != before:
                clients[name].served()
        print(f"lost: others were served again after {time.monotonic() - lost:.1f} s")
        whole.heal()
        whole.await_whole()
        clients[before].served()
    assert_nothing_lost(whole, clients, "lost")


def test_a_region_without_the_primary_is_cut_off_and_the_others_go_on(whole: Site) -> None:
    leads = whole.leader()
    aside = another(leads)
    with whole.clients("aside") as clients:
        cut = whole.cut(aside)
        time.sleep(10)
        others = [clients[name] for name in NAMES if name != aside]
        assert all(client.since(cut + 8) for client in others)
        assert clients[aside].since(cut + JUST_NOW) == []
        assert whole.leader() == leads
        whole.heal()
        clients[aside].served()
    whole.await_whole()
    assert_nothing_lost(whole, clients, "aside")


def test_one_line_is_cut_between_the_primary_and_another_region_and_nobody_takes_over(whole: Site) -> None:
    """Each of the two still reaches the third: no majority has lost the primary, and one standby is enough."""
    leads = whole.leader()
    far, third = (name for name in NAMES if name != leads)
    with whole.clients("line") as clients:
        whole.regions.network.cut(leads, far)
        cut = time.monotonic()
        time.sleep(12)
        assert clients[leads].since(cut + 10)
        assert clients[third].since(cut + 10)
        assert clients[far].since(cut + JUST_NOW) == []
        assert whole.leader() == leads
        whole.regions.network.mend(leads, far)
        clients[far].served()
    whole.await_whole()
    assert_nothing_lost(whole, clients, "line")


def test_without_a_synchronous_standby_the_same_cut_loses_what_was_acknowledged(whole: Site) -> None:
    """The negative control: what the others do not lose, they would have been seen to lose."""
    before = whole.leader()
    with whole.asynchronous():
        with whole.clients("control") as clients:
            cut = whole.cut(before)
            whole.await_another_leader(before)
            clients[another(before)].served()
            alone = [at for at in clients[before].acknowledged.values() if at > cut + JUST_NOW]
            whole.heal()
            _stop(clients)
            _await_following(whole)
        lost = whole.lost(list(clients.values()), "control")
    total = sum(map(len, lost.values()))
    acknowledged = sum(len(client.acknowledged) for client in clients.values())
    print(f"asynchronous: {total} of {acknowledged} acknowledged are lost, {len(alone)} of them after the cut")
    assert total > 0
    assert len(lost[before]) >= len(alone) > 0
    assert max(alone) - cut > 5, "it had gone on for seconds"


def _stop(clients: dict[str, Client]) -> None:
    for client in clients.values():
        client.stopping = True


def _await_following(site: Site) -> None:
    eventually("the others follow again", site.is_asynchronous, within=150)
