"""What a sandbox stands on that has three regions; whoever drills sits in one that does not have the primary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from ...servers.supervisor import Service, Supervisor
from ..cluster import patroni
from ..regions.regions import NAMES, Regions, changed

DESK: Final = NAMES[-1]
"""The region whose broker the drill's own client and commands use, and which nothing befalls."""
HANDLERS: Final = 4
# One way, seconds: regions of one continent.
DELAY, JITTER = 0.005, 0.001


class Regional:
    """Three regions with a database node, a broker, a worker and beat each."""

    def __init__(self, regions: Regions) -> None:
        self.regions = regions
        broker = regions.all[DESK].settings.broker_url
        self.settings = changed(regions.settings, database_url=regions.url, broker_url=broker)

    def start(self, start: Callable[[Service], None], supervisor: Supervisor) -> None:
        """Start databases and brokers; a commit is in two regions before it is acknowledged."""
        self.regions.network.delay(DELAY, JITTER)
        self.regions.start(supervisor, run=start)
        self.make_whole(supervisor)

    def processes(self) -> Iterator[Service]:
        """Give a worker and a beat in each region."""
        for name in NAMES:
            yield from self.regions.workers(name, 1, HANDLERS)
            yield self.regions.beat(name)

    def make_whole(self, supervisor: Supervisor) -> None:
        """Wait until one region leads, which is not that of the desk, and the others have what was acknowledged."""
        self.regions.cluster.await_whole(supervisor)
        if self.regions.leader() == DESK:
            patroni.switch_over(self.regions.cluster.layout)
            self.regions.cluster.await_whole(supervisor)
