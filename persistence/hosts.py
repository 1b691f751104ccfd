"""Several hosts behind one address: the last that served is asked first.

libpq asks them in the order of the address, and each one that is dark costs its time-out, again for every
new connection. https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

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


def are_several(address: URL) -> bool:
    """Whether an address names more than one host."""
    return isinstance(address.query.get("host"), tuple)


def connect_args(address: URL) -> dict[str, Any]:
    """Return what libpq is to be told, but for what the address says itself."""
    told = _SEVERAL if are_several(address) else _ONE
    return {name: value for name, value in told.items() if name not in address.query}


def each_alone(url: str) -> Iterator[tuple[str, str]]:
    """Give each host of an address with several, and the address of that one alone, whatever it is at the moment."""
    if not url.startswith("postgresql"):
        return
    address = make_url(several_hosts(url, for_writing=False))
    if are_several(address):
        for host in address.query["host"]:
            alone = address.difference_update_query(["host", "target_session_attrs"]).update_query_dict({"host": host})
            yield host, alone.render_as_string(hide_password=False)


class LastGood:
    """Puts the host that served last before the others, in every new connection of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._last: tuple[str, str] | None = None
        self._avoided: tuple[str, str] | None = None
        event.listen(engine, "do_connect", self._order)
        event.listen(engine, "connect", self._remember)

    def _order(self, _dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        places = list(zip(parameters["host"].split(","), str(parameters["port"]).split(","), strict=True))
        # The sort is stable: the others stay in the order of the address.
        places.sort(key=lambda place: (place == self._avoided, place != self._last))
        parameters["host"] = ",".join(host for host, _ in places)
        parameters["port"] = ",".join(port for _, port in places)

    def _remember(self, connection: Any, _record: Any) -> None:
        self._last = (connection.info.host, str(connection.info.port))

    def avoid(self, host: str, port: int) -> None:
        """Ask a host last that takes connections, and answers nothing."""
        self._last, self._avoided = None, (host, str(port))
