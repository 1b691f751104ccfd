"""The broker as ``aegis health`` sees it: what it is, what it keeps, and whether it may drop a message."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from ..config.broker import Sentinels
from ..config.settings import Settings, safe_url
from .check import Check, degraded, ok, warning

# Of the time there is, what the Sentinels may take of it: the server is asked after them.
_FOR_SENTINELS: Final = 0.4
_NOTHING_LOST: Final = "nothing is lost meanwhile"
_KEPT: Final = {"always": "AOF always", "everysec": "AOF everysec", "no": "AOF, written when the system likes"}


def ask_broker(settings: Settings, patience: float) -> Iterator[Check]:
    """Look at the broker once; whatever does not answer within ``patience`` (seconds) is said not to."""
    found = None
    try:
        if settings.sentinels is not None:
            found = _ask_sentinels(settings.sentinels, settings, patience * _FOR_SENTINELS)
            yield found.check(settings)
            if found.server is None:
                return
        with closing(_server(settings, found, patience * (1 - _FOR_SENTINELS if found else 1))) as client:
            yield _judge(client, behind_sentinels=found is not None)
    except (OSError, RedisError) as error:
        place = f"{found.place}, which the Sentinels name" if found else safe_url(settings.broker)
        remedy = f"start it, or mend AEGIS_BROKER_URL ({place}); {_NOTHING_LOST}"
        yield degraded("broker", str(error).partition("\n")[0] or type(error).__name__, remedy)


def sentinel_options(settings: Settings, patience: float) -> dict[str, Any]:
    """Return how to reach a Sentinel: once, within ``patience`` (seconds). Left to itself, redis tries four times."""
    options = _once(patience)
    if settings.broker_sentinel_user:
        options["username"] = settings.broker_sentinel_user
    if settings.broker_sentinel_password:
        options["password"] = settings.broker_sentinel_password
    return options | (_tls(settings.sentinels) if settings.sentinels else {})


def _once(patience: float) -> dict[str, Any]:
    return {"retry": Retry(NoBackoff(), 0), "socket_timeout": patience, "socket_connect_timeout": patience}


def _tls(sentinels: Sentinels) -> dict[str, Any]:
    if not sentinels.tls:
        return {}
    given: dict[str, Any] = dict(sentinels.tls)
    given["ssl_cert_reqs"] = given["ssl_cert_reqs"].lower().removeprefix("cert_")
    if "ssl_check_hostname" in given:
        given["ssl_check_hostname"] = given["ssl_check_hostname"].lower() != "false"
    return {"ssl": True, **given}


# --- which server it is -----------------------------------------------------------------


@dataclass
class _Told:
    """What the Sentinels say: which server it is, and how many of them answered."""

    asked: int
    named: list[tuple[str, int]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def server(self) -> tuple[str, int] | None:
        """The server that most of them name."""
        return Counter(self.named).most_common(1)[0][0] if self.named else None

    @property
    def place(self) -> str:
        return "{}:{}".format(*self.server) if self.server else "none"

    def check(self, settings: Settings) -> Check:
        master = settings.broker_master
        problem = next(iter(self.problems), "no answer")
        if self.server is None:
            remedy = f"see that they run and know {master!r} (AEGIS_BROKER_MASTER); {_NOTHING_LOST}"
            return degraded("broker", f"no Sentinel names a server: {problem}", remedy)
        says = f"{len(self.named)} of {self.asked} name {self.place}"
        if len(set(self.named)) > 1:
            return warning("sentinels", f"{says}, others another one", "a fail-over is under way: look again")
        if len(self.named) < self.asked:
            return warning("sentinels", f"{says}; {problem}", "start the others: a fail-over needs most of them")
        return ok("sentinels", says)


def _ask_sentinels(sentinels: Sentinels, settings: Settings, patience: float) -> _Told:
    """Ask all of them at once: one that is dark must not use up the time of those that answer."""
    told = _Told(asked=len(sentinels.hosts))
    # Time-outs are for connecting and for each answer: half of it each.
    options = sentinel_options(settings, patience / 2)
    threads = [
        threading.Thread(target=_ask_sentinel, args=(told, place, settings.broker_master, options), daemon=True)
        for place in sentinels.hosts
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    # A copy: who answers after this was too late, and is not waited for.
    return _Told(asked=told.asked, named=list(told.named), problems=list(told.problems))


def _ask_sentinel(told: _Told, place: tuple[str, int], master: str, options: Mapping[str, Any]) -> None:
    try:
        with closing(Redis(*place, **options)) as client:
            named = client.sentinel_get_master_addr_by_name(master, return_responses=True)
    except (OSError, RedisError) as error:
        told.problems.append(f"{place[0]}:{place[1]}: {str(error).partition(chr(10))[0]}")
        return
    if not isinstance(named, tuple):
        told.problems.append(f"{place[0]}:{place[1]}: it knows no {master!r}")
        return
    told.named.append((_text(named[0]), int(named[1])))


def _text(given: bytes | str) -> str:
    return given.decode() if isinstance(given, bytes) else given


# --- how the server is ------------------------------------------------------------------


def _server(settings: Settings, found: _Told | None, patience: float) -> Redis:
    if settings.sentinels is None or found is None or found.server is None:
        # kombu calls the number of the database by another name.
        url = settings.broker.replace("redis+socket://", "unix://").replace("virtual_host=", "db=")
        return Redis.from_url(url, **_once(patience))
    host, port = found.server
    options: dict[str, Any] = {**_once(patience), **_tls(settings.sentinels)}
    user, password = settings.sentinels.user or None, settings.sentinels.password or None
    return Redis(host, port, username=user, password=password, **options)


def _judge(client: Redis, *, behind_sentinels: bool) -> Check:
    client.ping()
    try:
        info = client.info()
    except NoPermissionError:
        return ok("broker", "answers; its user may not ask what it is (+info)")
    says = f"answers; {_words(info, _configured(client))}"
    if info.get("role") != "master":
        return degraded("broker", f"{says}; it takes no messages", "have AEGIS_BROKER_URL name its master")
    if info.get("aof_enabled") and info.get("aof_last_write_status", "ok") != "ok":
        remedy = f"see its disk and its log; {_NOTHING_LOST}"
        return degraded("broker", f"{says}; it cannot write its file, and takes no messages", remedy)
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        remedy = "set its maxmemory-policy to noeviction; a message that is dropped costs time, and nothing else"
        return warning("broker", f"{says}: it may drop messages when it is full", remedy)
    if behind_sentinels and not info.get("connected_slaves"):
        return warning("broker", f"{says}; there is none to go on with", "start a replica, or see why it is not there")
    return ok("broker", says)


def _words(info: Mapping[str, Any], configured: Mapping[str, str]) -> str:
    name, version = ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    replicas = info.get("connected_slaves", 0)
    with_replicas = f", {replicas} replica{'s' if replicas != 1 else ''}" if info.get("role") == "master" else ""
    role = "master" if info.get("role") == "master" else "replica"
    return f"{name} {version}, {role}{with_replicas}, {_kept(info, configured)}, {info.get('maxmemory_policy', '?')}"


def _kept(info: Mapping[str, Any], configured: Mapping[str, str]) -> str:
    if info.get("aof_enabled"):
        return _KEPT.get(configured.get("appendfsync", ""), "AOF")
    return "snapshots, no AOF" if configured.get("save") else "no AOF"


def _configured(client: Redis) -> dict[str, str]:
    try:
        found: dict[Any, Any] = client.config_get("appendfsync", "save")
    except ResponseError:  # those who run it for others do not let it be asked
        return {}
    return found
