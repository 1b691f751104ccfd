"""The index of the runbook: from what somebody sees to the section about it, and whether a person has to act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """A line of the index: what somebody sees, where it is treated, and whether a person has to act."""

    sign: str
    act: str
    sections: Sequence[str] = ()
    """Scenarios."""
    pages: Sequence[tuple[str, str]] = ()
    """Others, by title."""


SYMPTOMS: Final = (
    Symptom(
        sign="`workers`: one less, or none alive",
        sections=("worker",),
        act="start one, unless your process manager does",
    ),
    Symptom(
        sign="`workers`: one is silent",
        sections=("host",),
        act="no: others go on with what it had. Start another, where there are too few",
    ),
    Symptom(
        sign="a worker's log: `Worker exited prematurely: signal 9`",
        sections=("child",),
        act="no, unless `failures` has quarantined workflows",
    ),
    Symptom(
        sign="`RPO now`: a handler without a checkpoint for long",
        sections=("long-handler",),
        act="no: so much is done again if its worker is lost",
    ),
    Symptom(
        sign="`beat`: no sweep, or the last one is long ago",
        pages=(("processes", "how-to/deploy.md#processes"),),
        act="**yes**: start `aegis beat`. Retries, timers and lost bells wait",
    ),
    Symptom(
        sign="`backlog`, `due`: something waits that nobody takes",
        pages=(("a backlog", "how-to/operate.md#a-backlog"),),
        act="**yes**: more workers, or one that knows the type and listens to the queue",
    ),
    Symptom(
        sign="`failures`: failed, quarantined, left alone",
        pages=(("failed and quarantined", "how-to/operate.md#failed-and-quarantined"),),
        act="**yes**, but not tonight: each waits for a person, and nothing else waits for them",
    ),
    Symptom(
        sign="beat's log: `the broker remembers nothing`",
        sections=("broker-wiped",),
        act="no",
    ),
    Symptom(
        sign="`broker`: does not answer; `aegis start` says that it was not rung",
        sections=("broker-killed",),
        act="start it, unless something else does. Nothing is lost",
    ),
    Symptom(
        sign="`sentinels`: one is away, or names another server; `broker`: no replica",
        sections=("broker-failover",),
        act="start what is gone; the rest is done",
    ),
    Symptom(
        sign="`database` is down, one server; applications get `DatabaseUnavailable`",
        sections=("database-killed",),
        act="start it, unless something else does",
    ),
    Symptom(
        sign="`database` is down, several nodes; or `nodes`: one does not answer",
        sections=("database-failover", "region-killed"),
        act="no: a standby leads within 30 s. Then bring the node back",
    ),
    Symptom(
        sign="`database` is down, several nodes, for more than a minute",
        pages=(
            ("two of three are gone", "how-to/cluster.md#when-two-of-three-nodes-are-gone"),
            ("etcd without a majority", "how-to/cluster.md#etcd-without-a-majority"),
        ),
        act="**yes**: bring nodes and etcd back",
    ),
    Symptom(
        sign="`nodes`: two take themselves for the primary; one region reaches nobody",
        sections=("region-cut",),
        act="no. **Make no primary by hand**",
    ),
    Symptom(
        sign="`replication`: writes wait",
        pages=(
            ("two of three are gone", "how-to/cluster.md#when-two-of-three-nodes-are-gone"),
            ("nothing lost with the disk", "how-to/backup.md#nothing-lost-with-the-disk"),
        ),
        act="**yes**: start the standbys, or the archive",
    ),
    Symptom(
        sign="the machine of the primary has to be stopped",
        sections=("switch-over",),
        act="**yes**: hand the lead over first",
    ),
    Symptom(
        sign="`DatabaseUnavailable: ... No space left on device`",
        sections=("disk-full",),
        pages=(("what fills it", "how-to/operate.md#the-databases-disk-fills"),),
        act="**yes**: make room, never in PostgreSQL's own folders",
    ),
    Symptom(
        sign="`archive`, `backup`: not ok",
        pages=(("what they say", "how-to/backup.md#what-aegis-health-says"),),
        act="**yes**: until then one can go back less far, or not at all",
    ),
    Symptom(
        sign="`chains` is down, a history was changed; `aegis verify` ends with 1",
        sections=("tampering",),
        act="**yes**: touch nothing, keep evidence, call whoever is responsible",
    ),
    Symptom(
        sign="`anchors`, `chains` are down: committed transitions were lost",
        sections=("asynchronous", "region-cut-asynchronous"),
        act="**yes**: list what is lost, and accept it once it is known",
    ),
    Symptom(
        sign="`anchors`: anything else",
        pages=(("anchors", "how-to/operate.md#anchors"),),
        act="**yes**, in the morning, unless it is signed by somebody who is not trusted",
    ),
    Symptom(
        sign="`aegis list` is short; applications get `WorkflowNotFound`",
        sections=("point-in-time",),
        act="**yes**: stop workers, beat and applications at once; leave PostgreSQL up",
    ),
    Symptom(
        sign="PostgreSQL does not start: its data is gone, or cannot be read",
        sections=("disk-lost",),
        act="**yes**: restore",
    ),
    Symptom(
        sign="`schema`: missing, or of another version",
        pages=(("the schema", "how-to/deploy.md#the-schema"),),
        act="**yes**: `aegis db upgrade`, or the AEGIS that fits",
    ),
    Symptom(
        sign="nothing answers, and the disk is there",
        sections=("whole-machine",),
        act="start everything, unless something else does",
    ),
    Symptom(
        sign="nothing is there any more",
        pages=(("when everything is lost", "how-to/lost-everything.md"),),
        act="**yes**",
    ),
    Symptom(
        sign="any other line",
        pages=(("the lines of `aegis health`", "how-to/operate.md#aegis-health"),),
        act="as the line itself says, behind the arrow",
    ),
)
