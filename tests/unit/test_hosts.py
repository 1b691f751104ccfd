"""Addresses with several hosts: as libpq writes them, as SQLAlchemy does, and what cannot be meant."""

from __future__ import annotations

import pytest

from aegis.config.hosts import several_hosts
from aegis.config.settings import read
from aegis.core.errors import ConfigurationError

DRIVER = "postgresql+psycopg2://"
BOTH = "/db?host=a:5432&host=b:5433&target_session_attrs=read-write"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("u:p@a/db", "u:p@a/db"),
        ("u@/db?host=/run/postgresql", "u@/db?host=/run/postgresql"),
        ("u@/db?sslmode=require", "u@/db?sslmode=require"),
        ("u@/db?host=a:5432&host=b:5433", f"u@{BOTH}"),
        ("u@a:5432,b:5433/db", f"u@{BOTH}"),
        ("u:p,w%40@a:5432,b:5433/db", f"u:p,w%40@{BOTH}"),
        (
            "u@/db?host=a&host=b&target_session_attrs=primary&passfile=/x",
            "u@/db?host=a&host=b&target_session_attrs=primary&passfile=/x",
        ),
    ],
)
def test_an_address_names_its_hosts_where_drivers_look(given: str, meant: str) -> None:
    assert several_hosts(DRIVER + given) == DRIVER + meant


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ("u@a,b/db?host=c", "names hosts in two places"),
        ("u@/db?host=a,b", "write several hosts as"),
        ("u@[::1]:5432,b/db", "an IPv6 address has to be given by a name"),
        ("u@a,b/db?target_session_attrs=any", "may lead to a standby"),
        ("u@/db?host=a&host=b&target_session_attrs=prefer-standby", "may lead to a standby"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_the_setting(given: str, wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=wrong) as caught:
        read({"AEGIS_DATABASE_URL": f"postgresql://{given}", "AEGIS_BROKER_URL": "redis://x"})
    assert caught.value.source.startswith("AEGIS_DATABASE_URL")


def test_a_password_is_in_no_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"AEGIS_DATABASE_URL": "postgresql://u:secret@a,b/db?host=c", "AEGIS_BROKER_URL": "redis://x"})
    assert "secret" not in str(caught.value)
