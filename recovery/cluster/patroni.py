"""What Patroni is told, and what it tells.

The settings decide what a fail-over may cost: ``deploy/patroni`` has the same ones for real machines.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from ...core.errors import ServerUnavailable
from ...persistence.cluster import SLOT
from .layout import USER, Layout, Node

SCOPE: Final = "aegis"
LEADER: Final = "leader"
# How Patroni calls standbys that have what was acknowledged.
SYNCHRONOUS: Final = frozenset({"sync_standby", "quorum_standby"})

SETTINGS: Final[Mapping[str, Any]] = {
    # A leader that was not heard of for so long (seconds) leads no more; loop_wait + 2 * retry_timeout <= ttl.
    "ttl": 20,
    "loop_wait": 2,
    "retry_timeout": 5,
    # Its database dead and its agent alive: fail over at once, instead of waiting for crash recovery.
    "primary_start_timeout": 0,
    # A commit is acknowledged once a standby has it, and writes stop where none is left: RPO 0, always.
    "synchronous_mode": "quorum",
    "synchronous_mode_strict": True,
    # etcd away: the leader goes on as long as it reaches every other node.
    "failsafe_mode": True,
    # The archive's slot is on every node, and follows that of the leader: a fail-over leaves no gap. Patroni drops
    # slots that it does not know.
    "slots": {SLOT: {"type": "physical"}},
    "postgresql": {
        "use_pg_rewind": True,
        "use_slots": True,
        "parameters": {
            "wal_level": "replica",
            "hot_standby": "on",
            "wal_log_hints": "on",
            "max_connections": 200,
            "max_wal_senders": 10,
            "max_replication_slots": 10,
            "wal_keep_size": "256MB",
            # A slot whose reader is away must not fill the disk: beyond this, that reader has a gap, and begins anew.
            "max_slot_wal_keep_size": "8GB",
            # A host that went dark is noticed in seconds.
            "wal_sender_timeout": "5s",
            "wal_receiver_timeout": "5s",
            "tcp_user_timeout": 5000,
            "password_encryption": "scram-sha-256",
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Member:
    """One node as Patroni sees it; ``lag`` is in bytes, None where it cannot be told."""

    name: str
    role: str
    state: str
    timeline: int | None
    lag: int | None

    @property
    def leads(self) -> bool:
        """Whether it is the primary, in service."""
        return self.role == LEADER and self.state == "running"

    @property
    def follows(self) -> bool:
        """Whether it has what was acknowledged, and goes on receiving."""
        return self.role in SYNCHRONOUS and self.state == "streaming"


def configuration(layout: Layout, node: Node, programs: Path) -> dict[str, Any]:
    """Return a node's configuration, as Patroni's YAML holds it."""
    login = {"username": USER, "password": layout.password}
    return {
        "scope": SCOPE,
        "name": node.name,
        "restapi": {
            "listen": f"{node.host}:{node.api_port}",
            "connect_address": f"{node.host}:{node.api_port}",
            "authentication": login,
        },
        "etcd3": {"hosts": [f"{etcd.host}:{etcd.client_port}" for etcd in layout.etcds]},
        "bootstrap": {
            "dcs": SETTINGS,
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
        },
        "postgresql": {
            "listen": f"{node.host}:{node.port}",
            "connect_address": f"{node.host}:{node.port}",
            "data_dir": str(node.data),
            "bin_dir": str(programs),
            "pgpass": str(node.folder / "pgpass"),
            "authentication": {
                "superuser": login,
                "replication": {"username": "replicator", "password": layout.password},
            },
            "parameters": {"unix_socket_directories": ""},
            "pg_hba": [
                *(f"host all all {host}/32 scram-sha-256" for host in sorted({*layout.hosts, *layout.guests})),
                *(f"host replication replicator {host}/32 scram-sha-256" for host in sorted({*layout.hosts})),
                # The archive, and backups.
                *(
                    f"host replication {USER} {host}/32 scram-sha-256"
                    for host in sorted({*layout.hosts, *layout.guests})
                ),
            ],
        },
    }


def members(layout: Layout) -> list[Member]:
    """Return the nodes as the first Patroni that answers sees them; none if none answers."""
    for node in layout.nodes:
        try:
            _, said = ask(f"{node.api}/cluster")
            found = json.loads(said)["members"]
        except (OSError, ValueError, KeyError, HTTPException):
            continue
        return sorted((_member(one) for one in found), key=lambda member: member.name)
    return []


def _member(said: Mapping[str, Any]) -> Member:
    lag = said.get("lag")
    return Member(
        name=str(said["name"]),
        role=str(said.get("role", "unknown")),
        state=str(said.get("state", "unknown")),
        timeline=said.get("timeline"),
        lag=lag if isinstance(lag, int) else None,
    )


def leader(found: Iterable[Member]) -> Member | None:
    """Return who leads, if anybody does."""
    return next((member for member in found if member.leads), None)


def switch_over(layout: Layout, to: str | None = None) -> str:
    """Hand the lead over to another node, ``to`` or the best; return what Patroni says once it is done.

    Raises:
        ServerUnavailable: it did not; who leads is who led before.

    """
    found = members(layout)
    leads = leader(found)
    if leads is None:
        raise ServerUnavailable("the cluster", "nobody leads it now", "see `aegis cluster status`")
    candidates = [member.name for member in found if member.follows]
    if to is not None and to not in candidates:
        problem = f"{to} leads already" if to == leads.name else f"{to} cannot take over now"
        raise ServerUnavailable("the cluster", problem, f"those that can: {', '.join(candidates) or 'none'}")
    wish = {"leader": leads.name} | ({"candidate": to} if to else {})
    node = next(node for node in layout.nodes if node.name == leads.name)
    try:
        status, said = ask(f"{node.api}/switchover", wish, password=layout.password, patience=60)
    except (OSError, HTTPException) as error:
        raise ServerUnavailable("the cluster", f"{leads.name} did not answer: {error}", "try again") from None
    if status != 200:  # noqa: PLR2004 - HTTP's OK
        raise ServerUnavailable("the cluster", said, "see `aegis cluster status`")
    return said


def change(layout: Layout, settings: Mapping[str, object]) -> None:
    """Change settings of the whole cluster; each node takes them over within ``loop_wait``.

    Raises:
        ServerUnavailable: no node of it answers, or they are refused.

    """
    said = "no node of it answers"
    for node in layout.nodes:
        try:
            status, said = ask(f"{node.api}/config", settings, password=layout.password, method="PATCH")
        except (OSError, HTTPException):
            continue
        if status == 200:  # noqa: PLR2004 - HTTP's OK
            return
    raise ServerUnavailable("the cluster", said, "see `aegis cluster status`")


def ask(
    url: str, body: object = None, *, password: str = "", patience: float = 2, method: str | None = None
) -> tuple[int, str]:
    """Ask a program of the cluster; return the status, and what it said."""
    told = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, told, method=method)  # noqa: S310 - loopback
    if password:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{USER}:{password}".encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=patience) as answer:  # noqa: S310 - likewise
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(errors="replace").strip()
