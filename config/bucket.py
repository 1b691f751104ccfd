"""Where backups are kept: a place in an S3-compatible bucket, as its address names it; and what keeps them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_KNOWN: Final = {"endpoint", "region", "style", "ca"}
_REMEDY: Final = (
    "write s3://bucket/prefix, with ?endpoint=https://host:port&region=...&style=path&ca=/file.pem as needed"
)
_AMAZON: Final = "https://s3.amazonaws.com"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Where it is; ``ca`` is a file with the certificates that are trusted, "" for the system's."""

    name: str
    prefix: str
    host: str
    port: int
    region: str
    style: str
    ca: str


def bucket(address: str) -> Bucket:
    """Read an address: ``s3://bucket/prefix?endpoint=https://host:port&region=eu-1&style=path&ca=/file.pem``.

    Raises:
        ValueError: it names no place in a bucket.

    """
    parts = urlsplit(address)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    endpoint = urlsplit(options.get("endpoint", _AMAZON))
    if parts.scheme != "s3" or not parts.netloc or not options.keys() <= _KNOWN:
        msg = f"it names no place in a bucket: {_REMEDY}"
        raise ValueError(msg)
    if endpoint.scheme != "https" or not endpoint.hostname:
        msg = f"its endpoint is not an https address: {_REMEDY}"
        raise ValueError(msg)
    if options.get("style", "host") not in {"host", "path"}:
        msg = f"its style is neither host nor path: {_REMEDY}"
        raise ValueError(msg)
    return Bucket(
        name=parts.netloc,
        prefix=parts.path.strip("/"),
        host=endpoint.hostname,
        port=endpoint.port or 443,
        region=options.get("region", "us-east-1"),
        style=options.get("style", "host"),
        ca=options.get("ca", ""),
    )


def refuse_the_impossible(by_barman: bool, place: str, encrypt: bool, synchronous: bool, /) -> None:
    """Refuse what the program that keeps backups cannot do.

    Raises:
        ValueError: the variable, and what to set.

    """
    for name, asked in (("BUCKET", place), ("ENCRYPT", encrypt)):
        if by_barman and asked:
            msg = f"AEGIS_BACKUP_{name} is set, and only pgBackRest can do that: AEGIS_BACKUP_WITH=pgbackrest"
            raise ValueError(msg)
    if synchronous and not by_barman:
        msg = "AEGIS_BACKUP_SYNCHRONOUS is set, and only Barman receives what is committed: AEGIS_BACKUP_WITH=barman"
        raise ValueError(msg)
