"""Several hosts behind one address: the last that served is asked first.

libpq asks them in the order of the address, and each one that is dark costs its time-out, again for every
new connection. https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-MULTIPLE-HOSTS
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import URL, Engine, event

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


class LastGood:
    """Puts the host that served last before the others, in every new connection of an engine."""

    def __init__(self, engine: Engine) -> None:
        self._last: tuple[str, str] | None = None
        event.listen(engine, "do_connect", self._order)
        event.listen(engine, "connect", self._remember)

    def _order(self, _dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        places = list(zip(parameters["host"].split(","), str(parameters["port"]).split(","), strict=True))
        if self._last in places:
            places.sort(key=lambda place: place != self._last)
            parameters["host"] = ",".join(host for host, _ in places)
            parameters["port"] = ",".join(port for _, port in places)

    def _remember(self, connection: Any, _record: Any) -> None:
        self._last = (connection.info.host, str(connection.info.port))

    def avoid(self, host: str, port: int) -> None:
        """Forget a host that accepts connections, and answers nothing."""
        if self._last == (host, str(port)):
            self._last = None
