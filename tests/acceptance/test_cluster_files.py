"""The files that a cluster on real machines is run from: the same settings as those that are tried out and measured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import yaml
from private_servers import PrivatePostgres, folder

from aegis.config.settings import read
from aegis.recovery.cluster.patroni import SETTINGS

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.cluster.yml").read_text())
NODES = ("node-1", "node-2", "node-3")
ETCDS = ("etcd-1", "etcd-2", "etcd-3")


def test_patroni_is_told_the_same_as_by_aegis_cluster_up() -> None:
    told = yaml.safe_load((DEPLOY / "patroni" / "patroni.yml").read_text())
    assert told["bootstrap"]["dcs"] == SETTINGS
    assert "data-checksums" in told["bootstrap"]["initdb"]


def test_no_server_of_ours_lets_a_slot_fill_its_disk(postgres: PrivatePostgres) -> None:
    """PostgreSQL's default is to keep WAL without a limit for a reader that is away."""
    limit = SETTINGS["postgresql"]["parameters"]["max_slot_wal_keep_size"]
    single = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text())["services"]["postgres"]
    assert f"max_slot_wal_keep_size={limit}" in single["command"]
    assert query(postgres.url(), "SHOW max_slot_wal_keep_size") == [(limit,)]


def test_every_node_and_every_etcd_is_called_by_its_own_name() -> None:
    services = COMPOSE["services"]
    for name in NODES:
        given = services[name]["environment"]
        assert given["PATRONI_NAME"] == name
        assert given["PATRONI_RESTAPI_CONNECT_ADDRESS"] == f"{name}:8008"
        assert given["PATRONI_POSTGRESQL_CONNECT_ADDRESS"] == f"{name}:5432"
        assert given["PATRONI_ETCD3_HOSTS"] == ",".join(f"{etcd}:2379" for etcd in ETCDS)
    everybody = ",".join(f"{etcd}=http://{etcd}:2380" for etcd in ETCDS)
    for name in ETCDS:
        options = services[name]["command"]
        assert f"--name={name}" in options
        assert f"--initial-advertise-peer-urls=http://{name}:2380" in options
        assert f"--initial-cluster={everybody}" in options


def test_the_processes_are_given_every_node() -> None:
    given = COMPOSE["services"]["worker"]["environment"]
    filled = {name: value.replace("${POSTGRES_PASSWORD:-aegis}", "secret") for name, value in given.items()}
    settings = read(filled | {"AEGIS_WORKFLOWS": "proposal.workflow"})
    assert all(f"host={name}:5432" in settings.database for name in NODES)
    assert "target_session_attrs=read-write" in settings.database


def test_a_node_is_not_called_sick_while_its_postgresql_is_copied_or_recovers() -> None:
    for name in NODES:
        assert COMPOSE["services"][name]["healthcheck"]["test"][-1].endswith("/liveness")


def test_workers_start_with_any_one_node_that_leads() -> None:
    """With one node lost, `docker compose up` must not wait for it."""
    migrate = COMPOSE["services"]["migrate"]
    assert migrate["depends_on"] == {name: {"condition": "service_started"} for name in NODES}
    assert migrate["restart"] == "on-failure", "it is run before anybody leads"
    assert COMPOSE["services"]["worker"]["depends_on"].keys() == {"migrate", "valkey"}


def test_an_upgrade_ends_where_nobody_leads_yet(tmp_path: Path) -> None:
    """That is what has the compose file's `migrate` run again: also where the name of a container is not known yet."""
    address = "postgresql://aegis@gone.invalid:5432,127.0.0.1:1/aegis?target_session_attrs=read-write"
    given = {"AEGIS_HOME": str(tmp_path), "AEGIS_DATABASE_URL": address, "AEGIS_BROKER_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        [sys.executable, "-c", "from aegis.cli.main import main; main()", "db", "upgrade"],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "no answer from the database" in done.stderr


@pytest.fixture
def own_postgres() -> Iterator[PrivatePostgres]:
    with folder("bootstrap") as root:
        server = PrivatePostgres(root)
        server.start()
        yield server
        server.stop()


def test_the_first_primary_is_given_the_users_that_the_other_files_name(own_postgres: PrivatePostgres) -> None:
    """The script that Patroni runs, on a server as Patroni has made it: what takes backups may do so, and no more."""
    own_postgres.execute("CREATE ROLE postgres SUPERUSER LOGIN")
    address = f"postgresql://postgres@/postgres?host={own_postgres.home.sockets}"
    query(address, "ALTER ROLE aegis RENAME TO whoever_made_it")
    script = (DEPLOY / "patroni" / "post-bootstrap.sh").read_text()
    program = re.search(r"^(/\S+/psql) ", script, re.MULTILINE)
    assert program
    subprocess.run(
        ["sh", "-c", script.replace(program[1], str(own_postgres.programs / "psql")), "post-bootstrap", address],
        env={**os.environ, "POSTGRES_PASSWORD": "it's secret"},
        check=True,
        timeout=60,
    )
    of_aegis = f"postgresql://aegis@/aegis?host={own_postgres.home.sockets}"
    assert query(of_aegis, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]
    assert query(of_aegis, "CREATE TABLE anything (id int)") == [], "it owns the database"
    takes_backups = f"postgresql://aegis_backup@/aegis?host={own_postgres.home.sockets}"
    assert query(takes_backups, "SELECT rolreplication, rolsuper FROM pg_roles WHERE rolname = current_user") == [
        (True, False)
    ]
    query(takes_backups, "CHECKPOINT")
    query(takes_backups, "SELECT pg_switch_wal(), current_setting('data_directory')")
    query(takes_backups, "SELECT pg_backup_start('a', true), pg_create_restore_point('b')")
    named = {line.split()[2] for line in pg_hba() if line.split()[1] == "replication"}
    assert named == {"replicator", "aegis_backup"}


def test_the_page_grants_what_the_script_grants() -> None:
    """For clusters that were made before the script made that user."""
    page = (DEPLOY.parent / "docs" / "how-to" / "cluster.md").read_text()
    (told,) = re.findall(r"^```sql\n(CREATE ROLE aegis_backup.*?)^```$", page, re.DOTALL | re.MULTILINE)
    script = (DEPLOY / "patroni" / "post-bootstrap.sh").read_text()
    statements = [f"{one.strip()};" for one in told.replace("'...'", ":'password'").split(";")[:-1]]
    assert len(statements) == script.count("aegis_backup"), "one for each time that the script names it"
    assert all(statement in script for statement in statements)


def pg_hba() -> list[str]:
    lines: list[str] = yaml.safe_load((DEPLOY / "patroni" / "patroni.yml").read_text())["postgresql"]["pg_hba"]
    return lines


def query(address: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(address)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def test_the_files_that_are_named_are_there() -> None:
    services = COMPOSE["services"]
    assert (DEPLOY / services["node-1"]["build"] / "Dockerfile").exists()
    assert (DEPLOY / services["worker"]["build"] / "Dockerfile").exists()
    copied = (DEPLOY / "patroni" / "Dockerfile").read_text()
    assert all(name in copied for name in ("patroni.yml", "post-bootstrap.sh"))
    volumes = {volume.partition(":")[0] for one in services.values() for volume in one.get("volumes", [])}
    assert {volume for volume in volumes if not volume.startswith(".")} == COMPOSE["volumes"].keys()
