"""The address of a database, as programs take it that are not Python's."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit


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
    return {key: value for key, value in found.items() if value}


def conninfo(url: str) -> str:
    """Return a database's address as Barman takes it: ``key='value' ...``."""
    escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in words(url).items()}
    return " ".join(f"{key}='{value}'" for key, value in escaped.items())
