"""Settings: read once, normalised, and refused in one line that names the variable and what it should hold."""

from __future__ import annotations

import os
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import pytest
from pydantic import ValidationError

from aegis.config import home as home_module
from aegis.config import settings as settings_module
from aegis.config.bucket import Bucket, bucket
from aegis.config.home import Home, default_home
from aegis.config.settings import Settings, read, safe_url
from aegis.core.errors import ConfigurationError
from aegis.core.recovery import Policy

DATABASE: Final = "postgresql://ada:geheim@db.example/aegis"
BROKER: Final = "redis://:geheim@broker.example:6379/0"
URLS: Final = {"AEGIS_DATABASE_URL": DATABASE, "AEGIS_BROKER_URL": BROKER}


def refusal(**environment: str) -> ConfigurationError:
    """Return the error that an environment is refused with."""
    with pytest.raises(ConfigurationError) as refused:
        read(environment)
    return refused.value


# --- what is read ---------------------------------------------------------------------------


def test_an_empty_environment_gives_the_defaults_and_the_private_servers() -> None:
    settings = read({})
    assert settings.embedded
    assert settings.model_dump(exclude={"home"}) == {
        "database_url": "",
        "replica_url": "",
        "broker_url": "",
        "broker_prefix": "aegis:",
        "broker_master": "",
        "broker_sentinel_user": "",
        "broker_sentinel_password": "",
        "workflows": (),
        "deployment": "",
        "queue": "aegis",
        "heartbeat_interval": 3,
        "heartbeat_timeout": 12,
        "sweep_interval": 1,
        "ring_grace": 5,
        "checkpoint_interval": 300,
        "stop_grace": 15,
        "health_timeout": 0.7,
        "max_bytes": 262144,
        "keys": Path(),
        "trusted_keys": Path(),
        "anchors": (),
        "anchor_interval": 60,
        "anchor_every": 1000,
        "timestamp_url": "",
        "timestamp_roots": Path(),
        "scrub_within": 86400,
        "prune_keep": 0,
        "prune_after": 0,
        "purge_after": 0,
        "backup_with": "barman",
        "backup_repository": Path(),
        "backup_bucket": "",
        "backup_encrypt": False,
        "backup_url": "",
        "backup_interval": 0,
        "backup_retention": 604800,
        "backup_synchronous": False,
        "barman_bin": "",
        "pgbackrest_bin": "",
        "objectives": (),
        "drill_within": 30 * 86400,
        "log_level": "info",
        "log_format": "console",
        "postgres_bin": "",
        "valkey_bin": "",
        "etcd_bin": "",
    }
    assert settings.database == settings.places.database_url
    assert settings.broker == settings.places.broker_url


@pytest.mark.parametrize(
    ("variable", "given", "held"),
    [
        ("AEGIS_BROKER_PREFIX", "blue:", "blue:"),
        ("AEGIS_HOME", "/srv/aegis", Path("/srv/aegis")),
        ("AEGIS_WORKFLOWS", "shop.orders", ("shop.orders",)),
        ("AEGIS_WORKFLOWS", " shop.orders , ,shop.invoices,", ("shop.orders", "shop.invoices")),
        ("AEGIS_DEPLOYMENT", "aegis.example/prod", "aegis.example/prod"),
        ("AEGIS_QUEUE", "slow-2.eu", "slow-2.eu"),
        ("AEGIS_HEARTBEAT_INTERVAL", "0.5", 0.5),
        ("AEGIS_HEARTBEAT_TIMEOUT", "6", 6),
        ("AEGIS_SWEEP_INTERVAL", "60", 60),
        ("AEGIS_RING_GRACE", "0.1", 0.1),
        ("AEGIS_CHECKPOINT_INTERVAL", "1", 1),
        ("AEGIS_STOP_GRACE", "0", 0),
        ("AEGIS_MAX_BYTES", "1048576", 1024 * 1024),
        ("AEGIS_KEYS", "/srv/keys", Path("/srv/keys")),
        ("AEGIS_TRUSTED_KEYS", "/srv/trusted.vkeys", Path("/srv/trusted.vkeys")),
        ("AEGIS_ANCHORS", "/mnt/anchors.jsonl", ("/mnt/anchors.jsonl",)),
        ("AEGIS_ANCHORS", "/mnt/a.jsonl, s3://b/p?retention_days=9,", ("/mnt/a.jsonl", "s3://b/p?retention_days=9")),
        ("AEGIS_ANCHORS", "none", ("none",)),
        ("AEGIS_ANCHOR_INTERVAL", "1", 1),
        ("AEGIS_ANCHOR_EVERY", "1000000", 1_000_000),
        ("AEGIS_TIMESTAMP_URL", "https://tsa.example/stamp", "https://tsa.example/stamp"),
        ("AEGIS_TIMESTAMP_URL", "http://tsa.example", "http://tsa.example"),
        ("AEGIS_SCRUB_WITHIN", "60", 60),
        ("AEGIS_PRUNE_KEEP", "3", 3),
        ("AEGIS_PRUNE_AFTER", "3600.5", 3600.5),
        ("AEGIS_PURGE_AFTER", "3153600000", 3_153_600_000),
        ("AEGIS_LOG_LEVEL", "warning", "warning"),
        ("AEGIS_LOG_FORMAT", "json", "json"),
        ("AEGIS_POSTGRES_BIN", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/17/bin"),
        ("AEGIS_VALKEY_BIN", "/usr/bin/redis-server", "/usr/bin/redis-server"),
        ("AEGIS_REPLICA_URL", "postgresql://a/db", "postgresql+psycopg2://a/db"),
        ("AEGIS_ETCD_BIN", "/usr/bin/etcd", "/usr/bin/etcd"),
    ],
)
def test_a_variable_is_read_into_its_setting(variable: str, given: str, held: Any) -> None:
    assert getattr(read({variable: given}), variable.removeprefix("AEGIS_").lower()) == held


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_as_good_as_none(name: str) -> None:
    assert read({f"AEGIS_{name.upper()}": ""}) == read({})


def test_what_is_not_ours_is_left_alone() -> None:
    others = {"PATH": "/bin", "CELERY_BROKER_URL": "x", "MY_AEGIS_QUEUE": "a b", "AEGIS": "1", "aegis_queue": "a b"}
    assert read(others | {"AEGIS_TEST_ANYTHING": "1"}) == read({})


def test_every_setting_says_what_it_should_hold() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        read({}).queue = "another"  # type: ignore[misc]


def test_the_settings_of_the_process_are_those_of_its_environment_and_read_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings_module.settings.cache_clear()
    try:
        for name in [name for name in os.environ if name.startswith("AEGIS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AEGIS_QUEUE", "first")
        assert settings_module.settings().queue == "first"
        monkeypatch.setenv("AEGIS_QUEUE", "second")
        assert settings_module.settings().queue == "first"
    finally:
        settings_module.settings.cache_clear()


def test_recovery_is_as_patient_as_the_settings_say() -> None:
    settings = read({"AEGIS_HEARTBEAT_TIMEOUT": "7.5", "AEGIS_RING_GRACE": "2"})
    assert settings.recovery == Policy(heartbeat_timeout=timedelta(seconds=7.5), ring_grace=timedelta(seconds=2))


# --- the two addresses ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql://", "postgres://", "postgresql+psycopg2://"])
def test_the_database_is_spoken_to_through_psycopg2(scheme: str) -> None:
    settings = read(URLS | {"AEGIS_DATABASE_URL": f"{scheme}ada:geheim@db.example:5433/aegis?sslmode=require"})
    assert settings.database_url == "postgresql+psycopg2://ada:geheim@db.example:5433/aegis?sslmode=require"
    assert settings.database == settings.database_url
    assert not settings.embedded


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("redis://h", "redis://h"),
        ("redis://h:6379/2?a=b", "redis://h:6379/2?a=b"),
        ("redis+socket:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("rediss://h", "rediss://h?ssl_cert_reqs=required"),
        ("rediss://:geheim@h:6380/0", "rediss://:geheim@h:6380/0?ssl_cert_reqs=required"),
        ("rediss://h/0?a=b", "rediss://h/0?a=b&ssl_cert_reqs=required"),
        ("rediss://h?ssl_cert_reqs=none", "rediss://h?ssl_cert_reqs=none"),
        ("rediss://h?ssl_cert_reqs=CERT_OPTIONAL", "rediss://h?ssl_cert_reqs=CERT_OPTIONAL"),
    ],
)
def test_a_broker_over_tls_has_to_show_a_certificate_unless_told_otherwise(given: str, held: str) -> None:
    settings = read(URLS | {"AEGIS_BROKER_URL": given})
    assert (settings.broker_url, settings.broker) == (held, held)


# --- sentinels ------------------------------------------------------------------------------

SENTINELS: Final = URLS | {"AEGIS_BROKER_MASTER": "shop"}


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ("sentinel://a", "sentinel://a:26379/0"),
        # kombu goes on with any one of them, and takes login and database from that alone.
        ("sentinel://a;sentinel://b:1/2", "sentinel://a:26379/2;sentinel://b:1/2"),
        ("sentinel://:pw@a:1 ; sentinel://b:2/0 ;", "sentinel://:pw@a:1/0;sentinel://:pw@b:2/0"),
        ("sentinel://u:p%40%3B@[::1]:1/3", "sentinel://u:p%40%3B@[::1]:1/3"),
        ("sentinel://a:1;sentinel://a:1", "sentinel://a:1/0"),
        ("sentinels://a;sentinels://b", "{0}://a:26379/0?{1};{0}://b:26379/0?{1}"),
        ("sentinels://a?ssl_cert_reqs=none", "sentinel://a:26379/0?ssl_cert_reqs=none"),
        ("sentinels://a?ssl_ca_certs=/ca.pem", "sentinel://a:26379/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem"),
    ],
)
def test_each_sentinel_is_named_with_everything(given: str, held: str) -> None:
    settings = read(SENTINELS | {"AEGIS_BROKER_URL": given})
    assert settings.broker == held.format("sentinel", "ssl_cert_reqs=required")
    assert read(SENTINELS | {"AEGIS_BROKER_URL": settings.broker.replace("sentinel:", given.partition(":")[0] + ":")})


def test_half_of_the_sentinels_may_be_away() -> None:
    counts = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    for named, lost in counts.items():
        found = read(SENTINELS | {"AEGIS_BROKER_URL": ";".join(f"sentinel://s{n}" for n in range(named))}).sentinels
        assert found is not None
        assert (len(found.hosts), found.most_lost) == (named, lost)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("sentinel://a;b:1", "'b:1' in it is not a sentinel:// address"),
        ("sentinel://a;redis://b", "'redis://b' in it is not a sentinel:// address"),
        ("sentinel://a;sentinels://b", "all of them, or none, over TLS"),
        ("sentinel://", "names no host and port"),
        ("sentinel://:26379", "names no host and port"),
        ("sentinel://a:0", "names no host and port"),
        ("sentinel://a:x", "has no port between 1 and 65535"),
        ("sentinel://a:65536", "has no port between 1 and 65535"),
        ("sentinel://a/x", "'x' in it is not the number of a database"),
        ("sentinel://a/0;sentinel://b/1", "its Sentinels name different databases"),
        ("sentinel://u@a;sentinel://v@b", "its Sentinels name different users"),
        ("sentinel://:geheim@a;sentinel://:geheim2@b", "its Sentinels name different passwords"),
        ("sentinel://:geheim@a:x", "has no port"),
        ("sentinel://a?ssl_ca_certs=/ca.pem", "say sentinels://"),
        ("sentinels://a?ssl_ca=/ca.pem", "'ssl_ca' in it is not one of the options ssl_ca_certs,"),
        ("sentinels://a?ssl_cert_reqs=maybe", "ssl_cert_reqs='maybe' in it is not one of required, optional, none"),
        ("redis://a;redis://b", "only Sentinels can say which of them it is now"),
    ],
)
def test_an_address_of_sentinels_that_cannot_be_used_is_refused_with_what_is_wrong(given: str, problem: str) -> None:
    error = refusal(**SENTINELS | {"AEGIS_BROKER_URL": given})
    assert problem in error.problem
    assert error.source.startswith("AEGIS_BROKER_URL=")
    assert "geheim" not in str(error)


def test_sentinels_without_the_name_of_their_server_are_refused() -> None:
    error = refusal(**URLS | {"AEGIS_BROKER_URL": "sentinel://a"})
    assert error.source == "AEGIS_BROKER_MASTER"
    assert "sentinel monitor NAME" in error.problem


@pytest.mark.parametrize(
    "name", ["AEGIS_BROKER_MASTER", "AEGIS_BROKER_SENTINEL_USER", "AEGIS_BROKER_SENTINEL_PASSWORD"]
)
def test_what_is_for_sentinels_is_refused_where_there_are_none(name: str) -> None:
    error = refusal(**URLS | {name: "geheim"})
    assert error.source == name
    assert "AEGIS_BROKER_URL names no Sentinels" in error.problem
    assert "geheim" not in str(error)


def test_the_password_of_the_sentinels_is_not_shown() -> None:
    settings = read(SENTINELS | {"AEGIS_BROKER_URL": "sentinel://a", "AEGIS_BROKER_SENTINEL_PASSWORD": "leise"})
    assert settings.broker_sentinel_password == "leise"  # noqa: S105 - it is for this test
    assert "leise" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "missing"), [("AEGIS_DATABASE_URL", "AEGIS_BROKER_URL"), ("AEGIS_BROKER_URL", "AEGIS_DATABASE_URL")]
)
def test_one_address_without_the_other_is_refused_and_the_missing_one_is_named(given: str, missing: str) -> None:
    for environment in ({given: URLS[given]}, {given: URLS[given], missing: ""}):
        error = refusal(**environment)
        assert error.source == missing
        assert "is not set, but its counterpart is: set both, or neither" in error.problem
        assert "geheim" not in str(error)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("AEGIS_DATABASE_URL", "mysql://h/d", "it is not a postgresql:// address"),
        ("AEGIS_DATABASE_URL", "postgresql+asyncpg://h/d", "it is not a postgresql:// address"),
        ("AEGIS_DATABASE_URL", "db.example", "it is not a postgresql:// address"),
        ("AEGIS_BROKER_URL", "amqp://h//", "it is not a redis:// address"),
        ("AEGIS_BROKER_URL", "localhost:6379", "it is not a redis:// address"),
        ("AEGIS_BROKER_PREFIX", "p" * 65, "at most 64 characters"),
        ("AEGIS_DEPLOYMENT", "d" * 129, "at most 128 characters"),
        ("AEGIS_QUEUE", "a b", "it is not a name for a queue: letters, digits, '.', '_' and '-'"),
        ("AEGIS_QUEUE", "q" * 129, "it is not a name for a queue"),
        ("AEGIS_HEARTBEAT_INTERVAL", "0", "greater than or equal to 0.1"),
        ("AEGIS_HEARTBEAT_INTERVAL", "61", "less than or equal to 60"),
        ("AEGIS_HEARTBEAT_TIMEOUT", "0.4", "greater than or equal to 0.5"),
        ("AEGIS_HEARTBEAT_TIMEOUT", "3601", "less than or equal to 3600"),
        ("AEGIS_SWEEP_INTERVAL", "often", "valid number"),
        ("AEGIS_SWEEP_INTERVAL", "0.01", "greater than or equal to 0.1"),
        ("AEGIS_SWEEP_INTERVAL", "nan", "less than or equal to 60"),
        ("AEGIS_RING_GRACE", "601", "less than or equal to 600"),
        ("AEGIS_RING_GRACE", "-1", "greater than or equal to 0.1"),
        ("AEGIS_CHECKPOINT_INTERVAL", "0", "greater than or equal to 1"),
        ("AEGIS_CHECKPOINT_INTERVAL", "86401", "less than or equal to 86400"),
        ("AEGIS_STOP_GRACE", "-1", "greater than or equal to 0"),
        ("AEGIS_STOP_GRACE", "inf", "less than or equal to 3600"),
        ("AEGIS_MAX_BYTES", "1023", "greater than or equal to 1024"),
        ("AEGIS_MAX_BYTES", "1048577", "less than or equal to 1048576"),
        ("AEGIS_MAX_BYTES", "256k", "valid integer"),
        ("AEGIS_MAX_BYTES", "2048.5", "valid integer"),
        ("AEGIS_ANCHOR_INTERVAL", "0.5", "greater than or equal to 1"),
        ("AEGIS_ANCHOR_INTERVAL", "86401", "less than or equal to 86400"),
        ("AEGIS_ANCHOR_INTERVAL", "nan", "less than or equal to 86400"),
        ("AEGIS_ANCHOR_EVERY", "0", "greater than or equal to 1"),
        ("AEGIS_ANCHOR_EVERY", "1000001", "less than or equal to 1000000"),
        ("AEGIS_ANCHOR_EVERY", "1k", "valid integer"),
        ("AEGIS_TIMESTAMP_URL", "tsa.example", "it is not an http address"),
        ("AEGIS_TIMESTAMP_URL", "file:///etc/passwd", "it is not an http address"),
        ("AEGIS_BACKUP_WITH", "tar", "'barman' or 'pgbackrest'"),
        ("AEGIS_BACKUP_BUCKET", "backups", "it names no place in a bucket: write s3://bucket/prefix"),
        ("AEGIS_BACKUP_BUCKET", "s3:///prefix", "it names no place in a bucket"),
        ("AEGIS_BACKUP_BUCKET", "s3://b/p?retention=1", "it names no place in a bucket"),
        ("AEGIS_BACKUP_BUCKET", "s3://b/p?endpoint=http://h", "its endpoint is not an https address"),
        ("AEGIS_BACKUP_BUCKET", "s3://b/p?style=new", "its style is neither host nor path"),
        ("AEGIS_BACKUP_ENCRYPT", "perhaps", "valid boolean"),
        ("AEGIS_BACKUP_SYNCHRONOUS", "perhaps", "valid boolean"),
        ("AEGIS_SCRUB_WITHIN", "59", "greater than or equal to 60"),
        ("AEGIS_SCRUB_WITHIN", "inf", "less than or equal to 31536000"),
        ("AEGIS_PRUNE_KEEP", "-1", "greater than or equal to 0"),
        ("AEGIS_PRUNE_KEEP", "1.5", "valid integer"),
        ("AEGIS_PRUNE_AFTER", "-1", "greater than or equal to 0"),
        ("AEGIS_PRUNE_AFTER", "a week", "valid number"),
        ("AEGIS_OBJECTIVES", "process", "'process' is not an objective: name=RPO/RTO in seconds, such as process=0/5"),
        ("AEGIS_OBJECTIVES", "process=0", "'process=0' is not an objective"),
        ("AEGIS_OBJECTIVES", "process=-1/5", "'process=-1/5' is not an objective"),
        ("AEGIS_OBJECTIVES", "process=0/0", "'process=0/0': a time to recover is above 0"),
        ("AEGIS_OBJECTIVES", "process=0/99999999", "'process=0/99999999': a time to recover is above 0"),
        ("AEGIS_OBJECTIVES", "proces=0/5", "there is no objective 'proces'; did you mean process?"),
        ("AEGIS_OBJECTIVES", "moon=0/5", "there is no objective 'moon'; there are: process, host, long-handler"),
        ("AEGIS_OBJECTIVES", "process=0/5,broker=0/5,process=0/6", "process is named twice"),
        ("AEGIS_DRILL_WITHIN", "3599", "greater than or equal to 3600"),
        ("AEGIS_DRILL_WITHIN", "inf", "less than or equal to 31536000"),
        ("AEGIS_PURGE_AFTER", "-0.1", "greater than or equal to 0"),
        ("AEGIS_PURGE_AFTER", "3153600001", "less than or equal to 3153600000"),
        ("AEGIS_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("AEGIS_LOG_LEVEL", "INFO", "'debug', 'info', 'warning' or 'error'"),
        ("AEGIS_LOG_FORMAT", "xml", "'console' or 'json'"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_what_the_variable_should_hold(
    variable: str, value: str, problem: str
) -> None:
    error = refusal(**(URLS if variable in URLS else {}) | {variable: value})
    description = Settings.model_fields[variable.removeprefix("AEGIS_").lower()].description
    assert error.source == f"{variable}={value}"
    assert problem in error.problem
    assert error.remedy == f"it should hold: {description}"
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "variable", "said"),
    [
        ({"AEGIS_BACKUP_BUCKET": "s3://b/p"}, "AEGIS_BACKUP_BUCKET", "only pgBackRest can do that"),
        ({"AEGIS_BACKUP_ENCRYPT": "1"}, "AEGIS_BACKUP_ENCRYPT", "only pgBackRest can do that"),
        (
            {"AEGIS_BACKUP_WITH": "pgbackrest", "AEGIS_BACKUP_SYNCHRONOUS": "1"},
            "AEGIS_BACKUP_SYNCHRONOUS",
            "only Barman receives what is committed",
        ),
    ],
)
def test_what_the_program_that_keeps_backups_cannot_do_is_refused(
    environment: dict[str, str], variable: str, said: str
) -> None:
    error = refusal(**environment)
    assert error.source == variable
    assert said in error.problem


def test_where_in_a_bucket_backups_are() -> None:
    given = "s3://backups/shop/one?endpoint=https://minio:9000&region=eu-1&style=path&ca=/ca.pem"
    settings = read({"AEGIS_BACKUP_WITH": "pgbackrest", "AEGIS_BACKUP_BUCKET": given})
    expected = Bucket(
        name="backups", prefix="shop/one", host="minio", port=9000, region="eu-1", style="path", ca="/ca.pem"
    )
    assert bucket(settings.backup_bucket) == expected
    assert settings.backup_place == f"AEGIS_BACKUP_BUCKET={given}"
    assert bucket("s3://backups").host == "s3.amazonaws.com"
    assert (bucket("s3://backups").port, bucket("s3://backups").prefix) == (443, "")


@pytest.mark.parametrize(
    "environment",
    [
        {"AEGIS_HEARTBEAT_TIMEOUT": "5.9"},
        {"AEGIS_HEARTBEAT_INTERVAL": "6.1"},
        {"AEGIS_HEARTBEAT_INTERVAL": "1", "AEGIS_HEARTBEAT_TIMEOUT": "1.9"},
    ],
)
def test_a_time_out_of_less_than_two_heartbeats_is_refused(environment: dict[str, str]) -> None:
    error = refusal(**environment)
    assert error.source == "AEGIS_HEARTBEAT_TIMEOUT"
    assert error.problem == "must be at least twice AEGIS_HEARTBEAT_INTERVAL"
    assert len(str(error).splitlines()) == 1


def test_a_time_out_of_two_heartbeats_is_enough() -> None:
    assert read({"AEGIS_HEARTBEAT_INTERVAL": "6"}).heartbeat_timeout == 12


def test_of_several_faults_one_is_named_in_one_line() -> None:
    error = refusal(AEGIS_QUEUE="a b", AEGIS_LOG_LEVEL="loud", AEGIS_MAX_BYTES="0")
    assert error.source == "AEGIS_QUEUE=a b"
    assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("value", ["a\nb", "a\r\nb", "a\u2028b"])
def test_a_value_with_a_line_break_is_refused_in_one_line_all_the_same(value: str) -> None:
    assert len(str(refusal(AEGIS_QUEUE=value)).splitlines()) == 1


@pytest.mark.parametrize(
    ("variable", "suggestion"),
    [
        ("AEGIS_DATABSE_URL", "AEGIS_DATABASE_URL"),
        ("AEGIS_DB_URL", "AEGIS_DATABASE_URL"),
        ("AEGIS_BROKERURL", "AEGIS_BROKER_URL"),
        ("AEGIS_WORKFLOW", "AEGIS_WORKFLOWS"),
        ("AEGIS_LOGLEVEL", "AEGIS_LOG_LEVEL"),
        ("AEGIS_HEARTBEAT", "AEGIS_HEARTBEAT_"),
    ],
)
def test_a_variable_that_does_not_exist_is_refused_with_the_one_that_may_be_meant(
    variable: str, suggestion: str
) -> None:
    error = refusal(**{variable: DATABASE})
    assert (error.source, error.problem) == (variable, "there is no such setting")
    assert error.remedy.startswith(f"did you mean {suggestion}")
    assert "geheim" not in str(error)
    assert len(str(error).splitlines()) == 1


def test_a_variable_that_is_like_none_is_refused_with_all_there_are() -> None:
    error = refusal(AEGIS_COMPLETELY_DIFFERENT_THING_ALTOGETHER="1")
    assert error.remedy.startswith("known are: AEGIS_")
    assert [name for name in Settings.model_fields if f"AEGIS_{name.upper()}" not in error.remedy] == []


# --- passwords ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:geheim@h:5432/d", "postgresql://ada:***@h:5432/d"),
        ("postgresql+psycopg2://ada:geheim@/d?host=/run", "postgresql+psycopg2://ada:***@/d?host=/run"),
        ("redis://:geheim@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://ada:ge@heim@h", "redis://ada:***@h"),
        ("redis://ada:ge:heim/@h", "redis://ada:***@h"),
        ("redis://ada:@h", "redis://ada@h"),
        ("redis://ada@h/0", "redis://ada@h/0"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis+socket:///run/valkey.sock", "redis+socket:///run/valkey.sock"),
        ("", ""),
        ("aegis", "aegis"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert safe_url(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://h/d?user=ada&password=geheim",
        "postgresql+psycopg2://h/d?password=geheim&sslmode=require",
        "redis+socket:///run/valkey.sock?password=geheim",
        "sentinel://:geheim@a:26379;sentinel://:geheim@b:26379",
        "ada:geheim@db.example/aegis",
        "host=db.example password=geheim",
    ],
    ids=["query", "query first", "socket", "sentinels", "no scheme", "keywords"],
)
def test_a_password_is_not_shown_wherever_it_stands(url: str) -> None:
    assert "geheim" not in safe_url(url)


@pytest.mark.parametrize(
    "environment",
    [
        URLS | {"AEGIS_DATABASE_URL": "mysql://ada:geheim@h/d"},
        URLS | {"AEGIS_BROKER_URL": "amqp://ada:geheim@h//"},
        URLS | {"AEGIS_DATABASE_URL": BROKER, "AEGIS_BROKER_URL": DATABASE},
        URLS | {"AEGIS_QUEUE": "a b"},
        URLS | {"AEGIS_HEARTBEAT_TIMEOUT": "1"},
        URLS | {"AEGIS_BROKER_ULR": "redis://:geheim@h"},
    ],
)
def test_no_refusal_shows_a_password(environment: dict[str, str]) -> None:
    error = refusal(**environment)
    assert "geheim" not in str(error)
    assert "geheim" not in repr(error)
    assert "geheim" not in "".join(traceback.format_exception(error)), "pydantic's own error shows its input"


# --- keys and anchors -----------------------------------------------------------------------


def test_keys_and_anchors_are_below_the_home_of_whoever_names_no_place() -> None:
    settings = read({"AEGIS_HOME": "/srv/aegis"})
    assert settings.key_folder == settings.trusted == Path("/srv/aegis/keys")
    assert settings.anchor_places == ("/srv/aegis/anchors/anchors.jsonl",)


def test_anchors_are_not_where_the_database_keeps_its_files() -> None:
    settings = read({"AEGIS_HOME": "/srv/aegis"})
    assert not Path(settings.anchor_places[0]).is_relative_to(settings.places.postgres)


def test_the_keys_of_a_folder_are_trusted_unless_others_are_named() -> None:
    keys = {"AEGIS_KEYS": "/srv/keys"}
    assert read(keys).trusted == read(keys).key_folder == Path("/srv/keys")
    named = read(keys | {"AEGIS_TRUSTED_KEYS": "/srv/trusted"})
    assert (named.key_folder, named.trusted) == (Path("/srv/keys"), Path("/srv/trusted"))


@pytest.mark.parametrize("variable", ["AEGIS_KEYS", "AEGIS_TRUSTED_KEYS"])
def test_a_folder_of_keys_is_absolute_and_may_begin_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    name = variable.removeprefix("AEGIS_").lower()
    assert getattr(read({variable: "~/keys"}), name) == tmp_path / "keys"
    assert getattr(read({variable: "keys"}), name) == tmp_path / "keys"


@pytest.mark.parametrize(
    ("given", "places"),
    [
        ("none", ()),
        ("/a.jsonl,s3://b/p", ("/a.jsonl", "s3://b/p")),
        ("relative.jsonl", ("relative.jsonl",)),
    ],
)
def test_anchors_are_written_where_they_are_told_to_or_nowhere(given: str, places: tuple[str, ...]) -> None:
    assert read({"AEGIS_ANCHORS": given}).anchor_places == places


@pytest.mark.parametrize("given", ["none,/a.jsonl", "/a.jsonl, none"])
def test_nowhere_and_somewhere_at_once_is_refused(given: str) -> None:
    """It would be a file of that name, wherever the process happens to have been started."""
    error = refusal(AEGIS_ANCHORS=given)
    assert error.source == f"AEGIS_ANCHORS={given}"
    assert "it says none, and a place as well" in error.problem
    assert len(str(error).splitlines()) == 1


# --- the home -------------------------------------------------------------------------------


def test_a_home_is_absolute_and_may_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert read({"AEGIS_HOME": "~/data"}).home == tmp_path / "data"
    assert read({"AEGIS_HOME": "data"}).home == tmp_path / "data"


@pytest.mark.parametrize(
    ("uid", "data_home", "home"),
    [
        (0, "/data", Path("/var/lib/aegis")),
        (1000, "/data", Path("/data/aegis")),
        (1000, "~/data", Path("/home/ada/data/aegis")),
        (1000, "", Path("/home/ada/.local/share/aegis")),
        (1000, None, Path("/home/ada/.local/share/aegis")),
    ],
)
def test_the_home_of_whoever_names_none(
    monkeypatch: pytest.MonkeyPatch, uid: int, data_home: str | None, home: Path
) -> None:
    monkeypatch.setattr(home_module.os, "geteuid", lambda: uid)
    monkeypatch.setenv("HOME", "/home/ada")
    if data_home is None:
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_DATA_HOME", data_home)
    assert default_home() == home
    assert read({}).home == home


def test_everything_of_a_home_is_below_it() -> None:
    home = Home(Path("/srv/aegis"))
    places = [home.postgres, home.valkey, home.logs, home.lock, home.sockets]
    assert [place.parent for place in places] == [home.root] * 5
    assert len(set(places)) == 5


def test_sockets_are_below_a_home_as_long_as_the_kernel_takes_their_path() -> None:
    longest = Path("/" + "h" * 75)  # and /run: 80 bytes
    assert Home(longest).sockets == longest / "run"
    assert Home(longest.with_name("h" * 76)).sockets.parent == Path(tempfile.gettempdir())


@pytest.mark.parametrize("root", ["/" + "h" * 200, "/home/" + "é" * 40, "/a/" + "deep/" * 60])
def test_sockets_of_a_very_long_home_have_a_short_folder_of_their_own(root: str) -> None:
    home = Home(Path(root))
    assert not home.sockets.is_relative_to(home.root)
    assert home.sockets.parent == Path(tempfile.gettempdir())
    assert home.sockets.name.startswith(f"aegis-{os.getuid()}-")
    assert len(os.fsencode(home.sockets / ".s.PGSQL.5432.lock")) < 104
    assert home.sockets == Home(Path(root)).sockets, "always the same"
    assert home.sockets != Home(Path(root + "2")).sockets, "of this home alone"


@pytest.mark.parametrize("root", ["/srv/aegis", "/srv/with blank & more?", "/" + "h" * 200])
def test_the_addresses_of_the_private_servers_lead_to_their_sockets(root: str) -> None:
    home = Home(Path(root))
    scheme, _, host = home.database_url.partition("?host=")
    assert scheme == "postgresql+psycopg2://aegis@/postgres"
    assert unquote(host) == str(home.sockets)
    scheme, _, path = home.broker_url.partition("://")
    assert scheme == "redis+socket"
    assert unquote(path) == str(home.sockets / "valkey.sock")
    assert not {" ", "&", "?", "#"} & set(host + path)


def test_the_folders_of_a_home_are_made_as_often_as_one_likes(tmp_path: Path) -> None:
    home = Home(tmp_path / "deep" / "home")
    for _ in range(2):
        home.make(home.logs, home.sockets, mode=0o700)
    assert all(folder.is_dir() for folder in (home.root, home.logs, home.sockets))
    assert home.logs.stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    home = Home(tmp_path / "file" / "home")
    with pytest.raises(ConfigurationError) as refused:
        home.make(home.logs)
    assert refused.value.source == f"AEGIS_HOME={home.root}"
    assert "cannot be made (Not a directory)" in refused.value.problem
    assert refused.value.remedy == "name one you can write"
    assert len(str(refused.value).splitlines()) == 1
