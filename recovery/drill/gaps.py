"""The gaps of the first assessment, and what covers each now: a part of the runbook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A limitation as it was written down once; ``drills`` are the scenarios that prove what covers it."""

    limitation: str
    covered: str
    drills: Sequence[str]
    left: str


GAPS: Final = (
    Gap(
        limitation="a single instance, without automatic fail-over",
        covered="three nodes under [Patroni](how-to/cluster.md), synchronous; whoever works with them follows the lead",
        drills=("database-failover", "switch-over"),
        left="two nodes and a witness are not tried out; etcd is yours to run",
    ),
    Gap(
        limitation="no replication in real time",
        covered="a commit returns once a standby has it; `aegis health` says whether a lost node would lose anything",
        drills=("database-failover", "asynchronous"),
        left="asynchronous standbys can lose work: found by the anchors, listed, and put on record, not brought back",
    ),
    Gap(
        limitation="no second region",
        covered="the same nodes over [three regions](how-to/regions.md), workers in each, a broker for each",
        drills=("region-killed", "region-cut", "region-cut-asynchronous"),
        left="measured on one machine, with lines that delay; not over a real distance",
    ),
    Gap(
        limitation="no recovery to a point in time",
        covered="`aegis restore --to` a time, a transition or an anchor; a new epoch; `aegis reconcile`",
        drills=("point-in-time",),
        left="events that came after the point are known to their senders alone",
    ),
    Gap(
        limitation="no automated backup",
        covered="`AEGIS_BACKUP_INTERVAL`: taken, restored and verified by beat; the WAL archived as it is written",
        drills=("disk-lost", "point-in-time"),
        left="",
    ),
    Gap(
        limitation="a live drill was still to be held",
        covered="`aegis drill`: sandbox, load, fault, this page's commands, verification, a sealed report; or"
        " [a staging system](how-to/drill.md#a-staging-system), broken by a command of yours",
        drills=("whole-machine", "broker-killed", "broker-failover", "disk-full", "tampering"),
        left="on a staging system, a long handler's work, tampering and a point in time are not drilled",
    ),
    Gap(
        limitation="RPO and RTO were estimates",
        covered="[objectives](reference/objectives.md) by kind of loss, beside what was last measured",
        drills=("worker", "child", "host", "long-handler", "broker-wiped", "database-killed"),
        left="the times are of the machine that was drilled",
    ),
)
