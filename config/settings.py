"""Settings: one frozen object, read from ``AEGIS_`` variables once, refused loudly.

With neither ``AEGIS_DATABASE_URL`` nor ``AEGIS_BROKER_URL`` set, everything speaks to the
private servers that ``aegis up`` starts below ``AEGIS_HOME``.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..core.errors import ConfigurationError
from ..core.names import is_queue_name
from ..core.objective import Objective, objectives
from ..core.recovery import Policy
from .broker import Sentinels, names_sentinels, sentinels
from .bucket import bucket, refuse_the_impossible
from .home import Home, default_home
from .hosts import several_hosts, with_driver

PREFIX: Final = "AEGIS_"
# What the project's own tests are told; not settings of the product.
_TEST_PREFIX: Final = "AEGIS_TEST_"


class Settings(BaseModel):
    """Everything that can be set, by the name of its variable without ``AEGIS_``; times in seconds."""

    model_config = ConfigDict(frozen=True, validate_default=True, extra="forbid")

    database_url: Annotated[str, Field(description="PostgreSQL: postgresql://user:password@host/database")] = ""
    replica_url: Annotated[
        str, Field(description="standbys to read from where one asks for it; those of AEGIS_DATABASE_URL by default")
    ] = ""
    broker_url: Annotated[str, Field(description="Redis or Valkey: redis://host:6379/0, or its Sentinels")] = ""
    broker_prefix: Annotated[
        str, Field(max_length=64, description="what every key in the broker begins with; one for each deployment on it")
    ] = "aegis:"
    broker_master: Annotated[
        str, Field(max_length=128, description="the name under which the Sentinels of AEGIS_BROKER_URL know the server")
    ] = ""
    broker_sentinel_user: Annotated[str, Field(description="who logs in at the Sentinels themselves")] = ""
    broker_sentinel_password: Annotated[
        str, Field(repr=False, description="the password for the Sentinels themselves")
    ] = ""
    home: Annotated[Path, Field(description="where `aegis up` keeps its private servers and their data")] = Path()
    workflows: Annotated[tuple[str, ...], Field(description="modules to load workflows from, separated by commas")] = ()
    deployment: Annotated[
        str, Field(max_length=128, description="name of this deployment in its hashes; fixed by the first upgrade")
    ] = ""
    queue: Annotated[str, Field(description="the queue for transitions that name none")] = "aegis"
    heartbeat_interval: Annotated[float, Field(ge=0.1, le=60, description="between two signs of life of a worker")] = 3
    heartbeat_timeout: Annotated[float, Field(ge=0.5, le=3600, description="a worker silent for longer is dead")] = 12
    sweep_interval: Annotated[float, Field(ge=0.1, le=60, description="between two recovery sweeps")] = 1
    ring_grace: Annotated[
        float, Field(ge=0.1, le=600, description="a workflow that did not move for so long is rung again")
    ] = 5
    checkpoint_interval: Annotated[
        float, Field(ge=1, le=86400, description="handlers that run longer are asked for a checkpoint, this often")
    ] = 300
    stop_grace: Annotated[
        float, Field(ge=0, le=3600, description="how long a stopping worker lets its handlers finish")
    ] = 15
    health_timeout: Annotated[
        float, Field(ge=0.1, le=60, description="how long `aegis health` waits for what does not answer")
    ] = 0.7
    max_bytes: Annotated[
        int, Field(ge=1024, le=1024 * 1024, description="the most that one checkpoint or payload may hold, in bytes")
    ] = 256 * 1024
    keys: Annotated[
        Path, Field(description="the folder of the keys that sign anchors and authenticate transitions")
    ] = Path()
    trusted_keys: Annotated[
        Path, Field(description="the keys whose anchors are trusted: a file, one a line, or a folder of *.vkey files")
    ] = Path()
    anchors: Annotated[
        tuple[str, ...],
        Field(description="where anchors are written: files, s3://bucket/prefix, separated by commas; or none"),
    ] = ()
    anchor_interval: Annotated[float, Field(ge=1, le=86400, description="between two anchors, at the most")] = 60
    anchor_every: Annotated[
        int, Field(ge=1, le=1_000_000, description="after so many transitions there is an anchor before that")
    ] = 1000
    timestamp_url: Annotated[
        str, Field(description="an RFC 3161 time-stamping authority that is asked about each anchor: https://...")
    ] = ""
    timestamp_roots: Annotated[
        Path, Field(description="a file of PEM certificates, by which the authority's timestamps are verified")
    ] = Path()
    scrub_within: Annotated[
        float, Field(ge=60, le=31_536_000, description="everything is verified in turn, once within so long")
    ] = 86400
    prune_keep: Annotated[
        int, Field(ge=0, le=1_000_000, description="beat keeps so many checkpoints of a workflow; 0: all of them")
    ] = 0
    prune_after: Annotated[
        float, Field(ge=0, le=3_153_600_000, description="and of the others those that are not older than this")
    ] = 0
    purge_after: Annotated[
        float, Field(ge=0, le=3_153_600_000, description="beat purges what ended so long ago; 0: nothing")
    ] = 0
    backup_with: Annotated[Literal["barman", "pgbackrest"], Field(description="what keeps the backups")] = "barman"
    backup_repository: Annotated[
        Path, Field(description="the folder of the backups and the archived WAL; another disk, or another machine's")
    ] = Path()
    backup_bucket: Annotated[
        str, Field(description="s3://bucket/prefix: where pgBackRest keeps them, instead of a folder")
    ] = ""
    backup_encrypt: Annotated[
        bool, Field(description="1: pgBackRest encrypts them, with a key that `aegis keys new backup` makes")
    ] = False
    backup_url: Annotated[
        str, Field(description="the database as a user that may replicate and back up, where that is another one")
    ] = ""
    backup_interval: Annotated[
        float, Field(ge=0, le=31_536_000, description="beat takes and verifies a full backup, this often; 0: none")
    ] = 0
    backup_retention: Annotated[
        float, Field(ge=86400, le=315_360_000, description="one can go back to any moment of the last so many seconds")
    ] = 604_800
    backup_synchronous: Annotated[
        bool, Field(description="1: a commit returns once the archive has it, so that a lost disk loses nothing")
    ] = False
    barman_bin: Annotated[str, Field(description="the program barman, instead of the one that is installed here")] = ""
    pgbackrest_bin: Annotated[str, Field(description="the program pgbackrest, instead of the path's")] = ""
    objectives: Annotated[
        tuple[str, ...],
        Field(description="RPO and RTO that are declared, where not by default: name=RPO/RTO, separated by commas"),
    ] = ()
    drill_within: Annotated[
        float, Field(ge=3600, le=31_536_000, description="each objective is to be drilled once within so long")
    ] = 30 * 86400
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="what is logged")] = "info"
    log_format: Annotated[Literal["console", "json"], Field(description="how it is logged")] = "console"
    postgres_bin: Annotated[
        str, Field(description="folder with initdb and postgres, instead of the installed wheel's")
    ] = ""
    valkey_bin: Annotated[str, Field(description="valkey-server or redis-server, instead of the wheel's")] = ""
    etcd_bin: Annotated[str, Field(description="the etcd of `aegis cluster up`, instead of one that is found")] = ""

    @field_validator("workflows", "anchors", "objectives", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value

    @field_validator("home", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return default_home() if value == Path() else value.expanduser().absolute()

    @field_validator("keys", "trusted_keys", "timestamp_roots", "backup_repository", mode="after")
    @classmethod
    def _expanded(cls, value: Path) -> Path:
        return value if value == Path() else value.expanduser().absolute()

    @field_validator("anchors", mode="after")
    @classmethod
    def _none_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in value and len(value) > 1:
            msg = "it says none, and a place as well"
            raise ValueError(msg)
        return value

    @field_validator("objectives", mode="after")
    @classmethod
    def _known_objectives(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        objectives(value)
        return value

    @field_validator("backup_bucket", mode="after")
    @classmethod
    def _a_bucket(cls, value: str) -> str:
        if value:
            bucket(value)  # or refused
        return value

    @field_validator("timestamp_url", mode="after")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not value.startswith(("https://", "http://")):
            msg = "it is not an http address"
            raise ValueError(msg)
        return value

    @field_validator("database_url", "backup_url", mode="after")
    @classmethod
    def _postgresql(cls, value: str) -> str:
        """Name the driver: SQLAlchemy's own default for a plain ``postgresql://`` is another one."""
        return several_hosts(with_driver(value))

    @field_validator("replica_url", mode="after")
    @classmethod
    def _standbys(cls, value: str) -> str:
        """Take any host that is named: which of them are standbys at the moment, whoever reads finds out."""
        return several_hosts(with_driver(value), for_writing=False)

    @field_validator("broker_url", mode="after")
    @classmethod
    def _redis(cls, value: str) -> str:
        if names_sentinels(value):
            sentinels(value)  # or refused
            return value
        if value and not value.startswith(("redis://", "rediss://", "redis+socket://")):
            msg = "it is not a redis:// address"
            raise ValueError(msg)
        if "://" in value.partition(";")[2]:
            # Some would ring at one of them, while others listen at another.
            msg = "it names several servers: only Sentinels can say which of them it is now"
            raise ValueError(msg)
        if value.startswith("rediss://") and "ssl_cert_reqs" not in value:
            # Without it, kombu would take any certificate (CERT_NONE).
            value += ("&" if "?" in value else "?") + "ssl_cert_reqs=required"
        return value

    @field_validator("queue", mode="after")
    @classmethod
    def _queue_name(cls, value: str) -> str:
        if not is_queue_name(value):
            msg = "it is not a name for a queue: letters, digits, '.', '_' and '-'"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if bool(self.database_url) != bool(self.broker_url):
            missing = "AEGIS_BROKER_URL" if self.database_url else "AEGIS_DATABASE_URL"
            msg = f"{missing} is not set, but its counterpart is: set both, or neither"
            raise ValueError(msg)
        if self.heartbeat_timeout < 2 * self.heartbeat_interval:
            msg = "AEGIS_HEARTBEAT_TIMEOUT must be at least twice AEGIS_HEARTBEAT_INTERVAL"
            raise ValueError(msg)
        self._sentinels_have_all_they_need()
        by_barman = self.backup_with == "barman"
        refuse_the_impossible(by_barman, self.backup_bucket, self.backup_encrypt, self.backup_synchronous)
        return self

    def _sentinels_have_all_they_need(self) -> None:
        if names_sentinels(self.broker_url):
            if not self.broker_master:
                msg = (
                    "AEGIS_BROKER_MASTER is not set, but AEGIS_BROKER_URL names Sentinels: give the name under which "
                    "they know the server, as in `sentinel monitor NAME host port quorum`"
                )
                raise ValueError(msg)
            return
        for name in ("broker_master", "broker_sentinel_user", "broker_sentinel_password"):
            if getattr(self, name):
                msg = f"{PREFIX}{name.upper()} is set, but AEGIS_BROKER_URL names no Sentinels (sentinel://host:26379)"
                raise ValueError(msg)

    @property
    def embedded(self) -> bool:
        """Whether the private servers are used."""
        return not self.database_url

    @property
    def places(self) -> Home:
        """Where the private servers keep their things."""
        return Home(self.home)

    @property
    def key_folder(self) -> Path:
        """Where the keys are."""
        return self.home / "keys" if self.keys == Path() else self.keys

    @property
    def trusted(self) -> Path:
        """Where the keys are whose anchors are trusted."""
        return self.key_folder if self.trusted_keys == Path() else self.trusted_keys

    @property
    def anchor_places(self) -> tuple[str, ...]:
        """Where anchors are written: outside of the database, and not where its own files are."""
        if self.anchors == ("none",):
            return ()
        return self.anchors or (str(self.home / "anchors" / "anchors.jsonl"),)

    @property
    def declared(self) -> tuple[Objective, ...]:
        """What is declared to be lost at most, and to take at most, by what has happened."""
        return objectives(self.objectives)

    @property
    def database(self) -> str:
        """The address of the database in use."""
        return self.database_url or self.places.database_url

    @property
    def broker(self) -> str:
        """The address of the broker in use, as kombu takes it."""
        if self.sentinels is not None:
            return self.sentinels.url
        return self.broker_url or self.places.broker_url

    @property
    def backups(self) -> Path:
        """Where backups are: below the home, or, as it should be, elsewhere."""
        return self.home / "backup" if self.backup_repository == Path() else self.backup_repository

    @property
    def archives(self) -> bool:
        """Whether `aegis up` archives the WAL."""
        return self.backup_with == "barman" and (bool(self.backup_interval) or self.backup_synchronous)

    @property
    def backup_place(self) -> str:
        """Where backups are, as a person has set it."""
        if self.backup_bucket:
            return f"AEGIS_BACKUP_BUCKET={self.backup_bucket}"
        return f"AEGIS_BACKUP_REPOSITORY={self.backups}"

    @property
    def backup_database(self) -> str:
        """The address that backups are taken from."""
        return self.backup_url or self.database

    @property
    def sentinels(self) -> Sentinels | None:
        """The Sentinels that say which server the broker is, if that is how it is found."""
        return sentinels(self.broker_url) if names_sentinels(self.broker_url) else None

    @property
    def recovery(self) -> Policy:
        """How patient recovery is."""
        return Policy(
            heartbeat_timeout=timedelta(seconds=self.heartbeat_timeout),
            ring_grace=timedelta(seconds=self.ring_grace),
        )


@cache
def settings() -> Settings:
    """Return the settings of this process.

    Raises:
        ConfigurationError: names the variable, what is wrong with it, and what it should hold.

    """
    return read(os.environ)


def read(environment: Mapping[str, str]) -> Settings:
    """Return the settings that an environment gives.

    Raises:
        ConfigurationError: names the variable, what is wrong with it, and what it should hold.

    """
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    given = {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIX) and not name.startswith(_TEST_PREFIX)
    }
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known are: {', '.join(sorted(known))}"
            raise ConfigurationError(name, "there is no such setting", remedy)
    values: dict[str, Any] = {known[name]: value for name, value in given.items() if value}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None


def _refusal(error: ValidationError) -> ConfigurationError:
    detail = error.errors(include_url=False)[0]
    problem = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        variable, _, rest = problem.partition(" ")
        return ConfigurationError(variable, rest, "see `docs/reference/settings.md`")
    name = str(detail["loc"][0])
    description = Settings.model_fields[name].description
    given = safe_url(str(detail["input"]))
    return ConfigurationError(f"{PREFIX}{name.upper()}={given}", problem, f"it should hold: {description}")


def safe_url(url: str) -> str:
    """Return an address without its password, for people and logs."""
    return ";".join(_without_password(part) for part in _IN_WORDS.sub(r"\1***", url).split(";"))


# Where a driver takes it by its name: "?password=...", "host=... password=...".
_IN_WORDS: Final = re.compile(r"(?i)((?:password|passwd|passfile|sslpassword)=)[^&\s;]*")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    credentials, at, place = rest.rpartition("@")
    user, _, password = credentials.partition(":")
    return f"{scheme}{separator}{user}{':***' if password else ''}{at}{place}"
