"""The files that a cluster on real machines is run from: the same settings as those that are tried out and measured."""

from __future__ import annotations

from pathlib import Path

import yaml

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
    filled = {name: value.replace("${AEGIS_PASSWORD:-aegis}", "secret") for name, value in given.items()}
    settings = read(filled | {"AEGIS_WORKFLOWS": "proposal.workflow"})
    assert all(f"host={name}:5432" in settings.database for name in NODES)
    assert "target_session_attrs=read-write" in settings.database


def test_the_files_that_are_named_are_there() -> None:
    services = COMPOSE["services"]
    assert (DEPLOY / services["node-1"]["build"] / "Dockerfile").exists()
    assert (DEPLOY / services["worker"]["build"] / "Dockerfile").exists()
    copied = (DEPLOY / "patroni" / "Dockerfile").read_text()
    assert all(name in copied for name in ("patroni.yml", "post-bootstrap.sh"))
    volumes = {volume.partition(":")[0] for one in services.values() for volume in one.get("volumes", [])}
    assert {volume for volume in volumes if not volume.startswith(".")} == COMPOSE["volumes"].keys()
