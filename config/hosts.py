"""An address with several hosts: one database, wherever its primary is at the moment.

``postgresql://user@/database?host=a:5432&host=b:5432&target_session_attrs=read-write``, or as libpq's own
documentation writes it, ``postgresql://user@a:5432,b:5432/database``; both come out as the first.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

_TARGET: Final = "target_session_attrs"
# Who writes needs the primary; the rest is for who reads.
_WRITABLE: Final = frozenset({"read-write", "primary"})


def several_hosts(url: str, *, for_writing: bool = True) -> str:
    """Return an address as it was given, with its hosts where drivers look for them, if there are several.

    ``for_writing``, it has to lead to the primary among them.

    Raises:
        ValueError: what is wrong with it, in words.

    """
    parts = urlsplit(url)
    credentials, at, place = parts.netloc.rpartition("@")
    query = parse_qsl(parts.query, keep_blank_values=True)
    hosts = [value for name, value in query if name == "host"]
    if "," in place:
        if hosts:
            msg = "it names hosts in two places: before the database, and as ?host="
            raise ValueError(msg)
        hosts = place.split(",")
        query = [("host", host) for host in hosts] + query
        parts = parts._replace(netloc=f"{credentials}{at}")
    elif len(hosts) == 1 and "," not in hosts[0]:
        return url
    elif len(hosts) < 2:  # noqa: PLR2004 - one is not several
        return _with_several_in_one(url, hosts)
    if any("[" in host for host in hosts):
        msg = "where there are several hosts, an IPv6 address has to be given by a name"
        raise ValueError(msg)
    if for_writing:
        query = _with_target(query)
    return urlunsplit(parts._replace(query=urlencode(query, safe="/:,")))


def _with_several_in_one(url: str, hosts: list[str]) -> str:
    if not hosts:
        return url
    msg = "write several hosts as ?host=a:5432&host=b:5432"
    raise ValueError(msg)


def _with_target(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """See to it that the primary is meant: a standby among the hosts would refuse every write."""
    given = next((value for name, value in query if name == _TARGET), None)
    if given is None:
        return [*query, (_TARGET, "read-write")]
    if given not in _WRITABLE:
        msg = f"{_TARGET}={given} may lead to a standby, which cannot be written to: say read-write"
        raise ValueError(msg)
    return query


def with_driver(url: str) -> str:
    """Return an address with its driver named.

    Raises:
        ValueError: it is not PostgreSQL's.

    """
    for plain in ("postgresql://", "postgres://"):
        if url.startswith(plain):
            return "postgresql+psycopg2://" + url.removeprefix(plain)
    if url.startswith("sqlite"):
        msg = "workers and commands need PostgreSQL; give SQLite's address to DurableWorkflowEngine itself"
        raise ValueError(msg)
    if url and not url.startswith("postgresql+psycopg2://"):
        msg = "it is not a postgresql:// address"
        raise ValueError(msg)
    return url
