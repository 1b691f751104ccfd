"""Several hosts behind one address: the last that served is asked first.

libpq asks them in the order of the address, and each one that is dark costs its time-out, again for every
new connection. https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from sqlalchemy import URL, Engine, event, make_url

from ..config.hosts import several_hosts

_ONE: Final[Mapping[str, Any]] = {
    "connect_timeout": 5,
    # A host that went dark is noticed in seconds instead of the kernel's two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    "application_name": "aegis",
}  # and no options: poolers in between refuse, or ignore, what they cannot keep apart
# Where another host can take over, it is worth leaving one sooner.
_SEVERAL: Final[Mapping[str, Any]] = {
    **_ONE,
    "connect_timeout": 2,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "tcp_user_timeout": 4_000,
}
# What a server calls what libpq is told.
_THEIRS: Final[Mapping[str, str]] = {
    "tcp_keepalives_idle": "keepalives_idle",
    "tcp_keepalives_interval": "keepalives_interval",
    "tcp_keepalives_count": "keepalives_count",
    "tcp_user_timeout": "tcp_user_timeout",
}


def are_several(address: URL) -> bool:
    """Whether an address names more than one host."""
    return isinstance(address.query.get("host"), tuple)


def connect_args(address: URL) -> dict[str, Any]:
    """Return what libpq is to be told, but for what the address says itself."""
    told = _SEVERAL if are_several(address) else _ONE
    return {name: value for name, value in told.items() if name not in address.query}


def timeouts(url: str) -> dict[str, Any]:
    """Return after how long libpq is to leave a host, but for what an address says itself."""
    told = connect_args(make_url(url))
    return {name: value for name, value in told.items() if name != "application_name"}


def liveness(address: URL) -> str:
    """Return what a server is to be told at first: that it leaves us as soon as we would leave it.

    Left to its kernel it takes two hours to notice that a host went dark. So long everything stays locked that a
    transaction from there had, and the log takes up nothing that came after it. As a statement, not as an option of the
    connection: poolers in between refuse those that they do not know.
    """
    told = {**connect_args(address), **address.query}
    return "; ".join(f"SET {theirs} = {int(str(told[ours]))}" for theirs, ours in _THEIRS.items())


def be_missed(engine: Engine, address: URL) -> None:
    """Have the server notice in seconds that this host went dark, on every connection of an engine on psycopg2."""
    said = liveness(address)

    def tell(connection: Any, _record: Any) -> None:
        connection.autocommit = True  # it holds whatever becomes of the first transaction
        with connection.cursor() as cursor:
            cursor.execute(said)
        connection.autocommit = False

    event.listen(engine, "connect", tell)


def each_alone(url: str) -> Iterator[tuple[str, str]]:
    """Give each host of an address with several, and the address of that one alone, whatever it is at the moment."""
    if not url.startswith("postgresql"):
        return
    address = make_url(several_hosts(url, for_writing=False))
    if are_several(address):
        for host in address.query["host"]:
            alone = address.difference_update_query(["host", "target_session_attrs"]).update_query_dict({"host": host})
            yield host, alone.render_as_string(hide_password=False)


Place: TypeAlias = tuple[str, str]
"""A host and its port, as drivers name them."""


class Preference:
    """Which host is asked first, and which one last: the one that served, and the one that was left."""

    def __init__(self) -> None:
        self._last: Place | None = None
        self.avoided: Place | None = None

    def order(self, places: Sequence[Place]) -> list[Place]:
        """Return the places in the order in which they are to be asked."""
        # The sort is stable: the others stay in the order of the address.
        return sorted(places, key=lambda place: (place == self.avoided, place != self._last))

    def served(self, place: Place) -> None:
        """Remember who served last."""
        self._last = place
        if place == self.avoided:  # nobody else did: it may lead again, and is as good as any
            self.avoided = None

    def avoid(self, place: Place) -> None:
        """Ask a host last that takes connections, and answers nothing."""
        self._last, self.avoided = None, place


class LastGood:
    """Puts the host that served last before the others, in every new connection of an engine on psycopg2."""

    def __init__(self, engine: Engine) -> None:
        self.preference = Preference()
        event.listen(engine, "do_connect", self._order)
        event.listen(engine, "connect", self._remember)

    def _order(self, _dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        places = self.preference.order(
            list(zip(parameters["host"].split(","), str(parameters["port"]).split(","), strict=True))
        )
        parameters["host"] = ",".join(host for host, _ in places)
        parameters["port"] = ",".join(port for _, port in places)

    def _remember(self, connection: Any, _record: Any) -> None:
        self.preference.served(place_of(connection))


def place_of(connection: Any) -> Place:
    """Return whom a psycopg2 connection leads to."""
    return connection.info.host, str(connection.info.port)
