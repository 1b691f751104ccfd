"""What can be lost where there are three regions."""

from __future__ import annotations

from typing import Final

from ...regions.namespace import why_not
from ..faults import regions
from ..sandbox import Needs
from ..scenario import Scenario
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
from .standby import needs_cluster

_REGIONS: Final = Needs(servers=Kind.REGIONS)


def _needs_regions() -> str:
    return why_not() or needs_cluster()


REGIONAL: Final = (
    Scenario(
        name="region-killed",
        title="A region is gone",
        objective="region",
        fault=regions.lose_the_region,
        injects="Three regions with 10 ms round trip between them, each with a database node, a member of etcd, a"
        " broker, a worker and beat; synchronous; clients in the region with the primary and outside of it. That one's"
        " lines are cut, and all of its processes killed at once. It is back when all is done.",
        shows="`nodes` in `aegis health` has one that does not answer, `workers` says that those of the region are"
        " silent; until another region leads, `database` is down, and `start` and `send` raise `DatabaseUnavailable`.",
        check=(LOOK, STATUS),
        heal=(),
        expect="A standby in another region leads once the lead of the lost one has run out: Patroni's `ttl`, 20 s,"
        " counts from its last sign of life. Workers and beat there go on with what the lost region had in hand, rung"
        " by their own broker; what bells the lost broker had does not matter. Nothing acknowledged is lost.",
        over=(IS_WHOLE, FAILED, IS_WELL, IS_INTACT),
        advice="Send the applications of the region elsewhere, or bring it back; its node is rewound where it has to"
        " be, and follows. Its broker may be empty. Until then one more loss stops all writes"
        " ([regions](how-to/regions.md)).",
        needs=_REGIONS,
        skipped=_needs_regions,
    ),
    Scenario(
        name="region-cut",
        title="A region is cut off",
        objective="region",
        fault=regions.cut_the_region,
        injects="As `region-killed`, but only the lines of the region with the primary are cut: all of its processes"
        " go on, clients included, and reach nobody.",
        shows="From outside, as if the region were gone. From inside, `start` and `send` wait, and raise"
        " `DatabaseUnavailable`: its primary commits nothing that another region has not, and steps down.",
        check=(LOOK, STATUS),
        heal=(),
        expect="As with a lost region: another one leads after 20 to 30 s. Nobody inside was told that anything was"
        " accepted which the others do not know. Once the line is back, the old primary is rewound and follows, and"
        " workers, beat and clients inside go on without a restart.",
        over=(IS_WHOLE, FAILED, IS_WELL, IS_INTACT),
        advice="Do not make a primary by hand inside of the region that is cut off: it would acknowledge what is lost"
        " later.",
        needs=_REGIONS,
        skipped=_needs_regions,
    ),
)
REGIONAL_CONTROLS: Final = (
    Scenario(
        name="region-cut-asynchronous",
        title="A region was cut off that waited for no other",
        objective="region",
        fault=regions.cut_where_nobody_waits,
        injects="Synchronous mode is off, and the region with the primary is cut off, as in `region-cut`: for some"
        " seconds it goes on acknowledging what no other region has, and another one leads without it. This has to be"
        " reported as FAIL, with what was lost: a drill that passes here is blind.",
        shows="`chains` or `anchors` in `aegis health`, and beat's log, say that committed transitions were lost;"
        " nothing is anchored any more. Before, `replication` warned that a lost primary loses what is on its way.",
        check=(ANCHORS_KNOW_MORE, WHAT_IS_LOST),
        heal=(ACCEPT_THE_LOSS,),
        expect="What was anchored inside before the old primary stepped down, and is gone, is listed, workflow by"
        " workflow; what was acknowledged there after that nobody but its clients can name. Those of which something"
        " is left go on from there, with the same idempotency keys.",
        over=(IS_WELL, IS_INTACT),
        advice="Go back to synchronous mode: three nodes, `synchronous_mode: quorum`, `synchronous_mode_strict: true`.",
        control=True,
        needs=_REGIONS,
        spends=True,
        skipped=_needs_regions,
    ),
)
