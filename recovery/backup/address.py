"""The address of a database, as programs take it that are not Python's."""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ...persistence.hosts import timeouts

_PORT: Final = "5432"


def words(url: str) -> dict[str, str]:
    """Return a database's address as the words that libpq knows."""
    parts = urlsplit(url)
    found = {
        "host": parts.hostname or "",
        "port": str(parts.port or ""),
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "dbname": unquote(parts.path.lstrip("/")),
    }
    for key, value in parse_qsl(parts.query):
        # Several hosts are several words in an address, and one list for libpq.
        found[key] = f"{found[key]},{value}" if key in {"host", "port"} and found.get(key) else value
    hosts = [host.partition(":") for host in found["host"].split(",")]
    if any(colon for _, colon, _ in hosts):
        # Each with its port is how drivers take several; libpq has them in a list of their own.
        found["host"] = ",".join(host for host, _, _ in hosts)
        found["port"] = ",".join(port or _PORT for _, _, port in hosts)
    return {key: value for key, value in found.items() if value}


def conninfo(url: str) -> str:
    """Return a database's address as Barman takes it: ``key='value' ...``.

    With it goes after how long a host is left that went dark: the receiver would wait for it for a quarter of an hour.
    """
    told = {**{key: str(value) for key, value in timeouts(url).items()}, **words(url)}
    escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in told.items()}
    return " ".join(f"{key}='{value}'" for key, value in escaped.items())
