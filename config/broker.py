"""The broker's address: of one server, or of the Sentinels that know which server it is now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

PLAIN: Final = "sentinel"
# As rediss:// is to redis://: TLS, to the Sentinels and to the servers that they name.
OVER_TLS: Final = "sentinels"
_PORT: Final = 26379
_TLS_OPTIONS: Final = frozenset({"ssl_ca_certs", "ssl_cert_reqs", "ssl_certfile", "ssl_check_hostname", "ssl_keyfile"})
_CERT_REQS: Final = ("required", "optional", "none")
_EXAMPLE: Final = "sentinel://a:26379;sentinel://b:26379;sentinel://c:26379/0"


@dataclass(frozen=True, kw_only=True)
class Sentinels:
    """Where the Sentinels are, and how to log in at the server that they name."""

    hosts: tuple[tuple[str, int], ...]
    user: str = ""
    password: str = ""
    database: int = 0
    tls: tuple[tuple[str, str], ...] = ()

    @property
    def url(self) -> str:
        """The address as kombu takes it: each Sentinel with everything, since it goes on with any of them."""
        return ";".join(self._url(host, port) for host, port in self.hosts)

    @property
    def most_lost(self) -> int:
        """How many of them may be away while a majority is left: who knows fewer others is not to be believed."""
        return len(self.hosts) // 2

    def _url(self, host: str, port: int) -> str:
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user or self.password else ""
        place = f"[{host}]" if ":" in host else host
        query = f"?{urlencode(self.tls)}" if self.tls else ""
        return f"{PLAIN}://{login}{place}:{port}/{self.database}{query}"


def names_sentinels(url: str) -> bool:
    """Whether an address is one of Sentinels."""
    return url.startswith((f"{PLAIN}://", f"{OVER_TLS}://"))


def sentinels(url: str) -> Sentinels:
    """Return what an address of Sentinels says; login, database and options may stand at any one of them.

    Raises:
        ValueError: says which part of it cannot be used, and why; it shows no password.

    """
    parts = [_part(text.strip()) for text in url.split(";") if text.strip()]
    schemes = {part.scheme for part in parts}
    if len(schemes) > 1:
        msg = f"it mixes {' and '.join(sorted(f'{scheme}://' for scheme in schemes))}: all of them, or none, over TLS"
        raise ValueError(msg)
    return Sentinels(
        hosts=tuple(dict.fromkeys((str(part.hostname), _port(part)) for part in parts)),
        user=_one("users", (unquote(part.username or "") for part in parts)),
        password=_one("passwords", (unquote(part.password or "") for part in parts)),
        database=_database(_one("databases", (part.path.removeprefix("/") for part in parts))),
        tls=_tls(schemes.pop(), _one("options", (part.query for part in parts))),
    )


def _part(text: str) -> SplitResult:
    place = text.rpartition("@")[2]
    if not names_sentinels(text):
        msg = f"{place!r} in it is not a sentinel:// address: each Sentinel is named in full, as in {_EXAMPLE}"
        raise ValueError(msg)
    try:
        part = urlsplit(text)
        port = part.port
    except ValueError:
        msg = f"{place!r} in it has no port between 1 and 65535"
        raise ValueError(msg) from None
    if not part.hostname or port == 0:
        msg = f"{place!r} in it names no host and port, as in {_EXAMPLE}"
        raise ValueError(msg)
    return part


def _port(part: SplitResult) -> int:
    return part.port or _PORT


def _one(what: str, given: Iterable[str]) -> str:
    """Return the one that was given, by whichever of them."""
    found = set(filter(None, given))
    if len(found) > 1:
        msg = f"its Sentinels name different {what}: they lead to one server, give it once"
        raise ValueError(msg)
    return found.pop() if found else ""


def _database(text: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        msg = f"{text!r} in it is not the number of a database, as in {_EXAMPLE}"
        raise ValueError(msg)
    return int(text or 0)


def _tls(scheme: str, query: str) -> tuple[tuple[str, str], ...]:
    given = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(given.keys() - _TLS_OPTIONS)
    if unknown:
        msg = f"{unknown[0]!r} in it is not one of the options {', '.join(sorted(_TLS_OPTIONS))}"
        raise ValueError(msg)
    if scheme == PLAIN:
        if given:
            msg = "it has options for TLS, but says sentinel://: say sentinels://"
            raise ValueError(msg)
        return ()
    # Without it, kombu would take any certificate (CERT_NONE).
    options = {"ssl_cert_reqs": "required", **given}
    if options["ssl_cert_reqs"] not in _CERT_REQS:
        msg = f"ssl_cert_reqs={options['ssl_cert_reqs']!r} in it is not one of {', '.join(_CERT_REQS)}"
        raise ValueError(msg)
    return tuple(options.items())
