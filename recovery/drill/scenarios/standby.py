"""What can be lost where there is somebody beside it to take over."""

from __future__ import annotations

import importlib.util
from typing import Final

from ....config.settings import settings
from ....core.errors import AegisError
from ...cluster import programs
from ..faults import broker, cluster
from ..sandbox import Needs
from ..scenario import Command, Scenario
from ..servers import Kind
from .commands import (
    ACCEPT_THE_LOSS,
    ANCHORS_KNOW_MORE,
    FAILED,
    IS_INTACT,
    IS_WELL,
    IS_WHOLE,
    LOOK,
    STATUS,
    WHAT_IS_LOST,
)

_CLUSTER: Final = Needs(servers=Kind.CLUSTER)


def needs_cluster() -> str:
    """Return why there can be no cluster here; empty if there can."""
    if importlib.util.find_spec("patroni") is None:
        return "Patroni is not installed: pip install 'aegis-workflows[cluster]'"
    try:
        programs.etcd(settings())
    except AegisError as error:
        return str(error)
    return ""


STANDBY: Final = (
    Scenario(
        name="broker-failover",
        title="The broker failed over",
        objective="broker-failover",
        fault=broker.lose_the_master,
        injects="SIGKILL to the server that the Sentinels name as the master, with bells waiting in it. Its replica"
        " takes over; it stays away until all is done.",
        shows="`sentinels` in `aegis health` names another server than before, `broker` that it has no replica. The"
        " logs of workers and beat say that their connection was lost.",
        check=(LOOK,),
        heal=(),
        expect="The Sentinels agree within two or three seconds, and workers, beat and applications ask them again."
        " What the replica had not received of the queue is rung again by the sweep. Nothing is lost meanwhile.",
        over=(IS_WELL, IS_INTACT),
        advice="Start the server that is gone: it comes back as the replica.",
        needs=Needs(servers=Kind.SENTINELS),
    ),
    Scenario(
        name="database-failover",
        title="The database's primary is gone",
        objective="database-node",
        fault=cluster.lose_the_leader,
        injects="SIGKILL to every process of the PostgreSQL that leads, and to its Patroni, in the middle of commits;"
        " both stay away until all is done. Synchronous, three nodes.",
        shows="`nodes` in `aegis health` has one that does not answer; until a standby leads, `database` is down, and"
        " `start` and `send` raise `DatabaseUnavailable`.",
        check=(LOOK, STATUS),
        heal=(),
        expect="A standby that has everything acknowledged leads once the lead of the lost one has run out: Patroni's"
        " `ttl`, 20 s, counts from its last sign of life. Engines, workers and beat find it by themselves; none is to"
        " be restarted. A request that was answered with an error may have been carried out: the same id, or key, may"
        " be used again.",
        over=(IS_WHOLE, FAILED, IS_WELL, IS_INTACT),
        advice="Bring the lost node back, or another in its place: until then one more loss stops all writes."
        " `aegis cluster up` starts it again by itself; it is rewound where it has to be, and follows.",
        needs=_CLUSTER,
        skipped=needs_cluster,
    ),
    Scenario(
        name="switch-over",
        title="The database's primary has to be stopped",
        objective="switch-over",
        fault=cluster.before_a_switch_over,
        injects="Nothing is broken: the lead is handed over under load, as before an upgrade of the primary's machine.",
        shows="It does not: somebody wants to stop the machine of the primary.",
        check=(IS_WHOLE,),
        heal=(
            Command(
                argv=("aegis", "cluster", "switchover"),
                why="hands the lead to the standby that suits best",
                says=" leads, after ",
            ),
        ),
        expect="Two to four seconds in which `start` and `send` wait or raise `DatabaseUnavailable`; then the standby"
        " leads, and the old primary follows. Handlers that were running commit what they did.",
        over=(IS_WHOLE, FAILED, IS_WELL, IS_INTACT),
        advice="With Patroni of your own: `patronictl switchover`.",
        planned=True,
        needs=_CLUSTER,
        skipped=needs_cluster,
    ),
)

CONTROLS: Final = (
    Scenario(
        name="asynchronous",
        title="A standby that was behind took over",
        objective="database-node",
        fault=cluster.lose_the_leader_of_those_behind,
        injects="Synchronous mode is off, the standbys stop receiving for three seconds of load, and the primary is"
        " killed: a standby leads without what was acknowledged meanwhile. This has to be reported as FAIL, with what"
        " was lost: a drill that passes here is blind.",
        shows="`chains` or `anchors` in `aegis health`, and beat's log, say that committed transitions were lost;"
        " nothing is anchored any more. Before, `replication` warned that a lost primary loses what is on its way.",
        check=(ANCHORS_KNOW_MORE, WHAT_IS_LOST),
        heal=(ACCEPT_THE_LOSS,),
        expect="What is gone is listed, workflow by workflow. Those of which something is left go on from there, with"
        " the same idempotency keys; those that are gone may be started again by whoever did. From the record on,"
        " verification tells what is gone and why, and alarms about anything else.",
        over=(IS_WELL, IS_INTACT),
        advice="Go back to synchronous mode: three nodes, `synchronous_mode: quorum`, `synchronous_mode_strict: true`.",
        control=True,
        needs=_CLUSTER,
        spends=True,
        skipped=needs_cluster,
    ),
)
