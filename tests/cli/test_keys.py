"""Keys, anchors and verification at the command line: what an operator and an auditor do."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import psycopg2
import pytest
from command_line import CommandLine
from deployment import Deployment
from local_engine import eventually
from outside import CREDENTIALS, store
from private_servers import PrivatePostgres


@pytest.fixture
def lone(idle: Deployment, tmp_path: Path) -> CommandLine:
    """The command line with a home of its own, where there are no keys yet."""
    return CommandLine({**idle.environment, "AEGIS_HOME": str(tmp_path / "home")}, tmp_path)


def keys(aegis: CommandLine) -> list[tuple[str, bool]]:
    found = aegis("keys", "list", "--json").document()["keys"]
    return [(key["kind"], key["active"]) for key in found]


# --- keys -----------------------------------------------------------------------------------


def test_keys_are_made_once_and_rotated_after_that(lone: CommandLine, tmp_path: Path) -> None:
    assert lone("keys", "list").stdout.startswith("no keys in ")
    for kind in ("anchor", "mac"):
        assert f"no key for {kind} yet" in lone("keys", "rotate", kind).complaint()
        assert lone("keys", "new", kind).status == 0
        assert f"there is a key for {kind} already" in lone("keys", "new", kind).complaint()
        assert lone("keys", "rotate", kind).status == 0
    assert keys(lone) == [("anchor", False), ("anchor", True), ("mac", False), ("mac", True)]
    for path in (tmp_path / "home" / "keys").glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert re.findall(
        r"^(anchor|mac) +[0-9a-f]{8} .* (active|verifies)", lone("keys", "list").stdout, re.MULTILINE
    ) == [
        ("anchor", "verifies"),
        ("anchor", "active"),
        ("mac", "verifies"),
        ("mac", "active"),
    ]


def test_a_new_key_says_what_has_to_be_done_with_it(lone: CommandLine) -> None:
    anchor = lone("keys", "new", "anchor", "--name", "aegis.example/ops")
    assert re.search(r"^  aegis\.example/ops\+[0-9a-f]{8}\+\S+$", anchor.stdout, re.MULTILINE)
    mac = lone("keys", "new", "mac", "--grace", "60")
    assert re.search(r"within (60|59) s: ", mac.stdout)
    backup = lone("keys", "new", "backup")
    assert "keep a copy of it elsewhere: without it, no encrypted backup can be restored" in backup.stdout
    assert "begin another repository" in lone("keys", "rotate", "backup").complaint()
    assert "opens the backups" in lone("keys", "list").stdout
    shown = lone("keys", "list", "--json").document()
    public = shown["keys"][0]["public"]
    assert public in anchor.stdout
    assert "secret" not in json.dumps(shown)
    assert "private" not in json.dumps(shown)


def test_the_key_of_anchors_is_named_after_the_deployment(lone: CommandLine, idle: Deployment) -> None:
    made = lone("keys", "new", "anchor", "--json").document()
    connection = psycopg2.connect(idle.environment["AEGIS_DATABASE_URL"])
    cursor = connection.cursor()
    cursor.execute("SELECT name FROM aegis_deployment")
    assert made["public"].startswith(f"{cursor.fetchone()[0]}+")
    connection.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("keys", "new"), "anchor, mac, backup"),
        (("keys", "new", "house"), "'house' is not one of 'anchor', 'mac'"),
        (("keys", "new", "mac", "--grace", "-1"), "--grace"),
        (("keys", "new", "anchor", "--name", "white space"), "white space"),
        (("keys", "new", "anchor", "--name", "a+b"), "plus"),
    ],
)
def test_what_is_no_key_is_refused(lone: CommandLine, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in lone(*arguments).complaint()
    assert list((tmp_path / "home").rglob("*.key")) == []


def test_a_key_that_others_can_read_is_refused(lone: CommandLine, tmp_path: Path) -> None:
    assert lone("keys", "new", "mac").status == 0
    (path,) = (tmp_path / "home" / "keys").glob("mac-*.key")
    path.chmod(0o644)
    for command in (("keys", "list"), ("verify", "--all"), ("start", "Steps")):
        line = lone(*command).complaint()
        assert path.name in line
        assert "others can read it" in line


# --- what an operator and an auditor see ----------------------------------------------------


@pytest.fixture
def anchored(deploy: Callable[..., Deployment], tmp_path: Path) -> tuple[Deployment, CommandLine]:
    """A deployment whose transitions carry codes, and are anchored within seconds."""
    deployment = deploy(AEGIS_ANCHOR_INTERVAL="1", AEGIS_SCRUB_WITHIN="60")
    aegis = CommandLine(deployment.environment, tmp_path)
    assert aegis("keys", "new", "anchor").status == 0
    assert aegis("keys", "new", "mac", "--grace", "0").status == 0
    deployment.beat()
    deployment.worker()
    assert aegis("start", "Steps", "--id", "p").status == 0
    deployment.await_status("p", "completed")
    length = deployment.engine.describe("p").seq + 1
    eventually("it is anchored", lambda: witness(aegis)["anchored"] >= length)
    return deployment, aegis


def witness(aegis: CommandLine, workflow_id: str = "p") -> dict[str, int]:
    found = aegis("verify", workflow_id, "--json").document()["anchors"]
    return found[0] if found else {"anchored": 0, "entries": 0}


def test_whatever_is_done_to_the_database_the_anchors_tell(anchored: tuple[Deployment, CommandLine]) -> None:
    deployment, aegis = anchored
    told = aegis("verify", "--all", "--json").document()
    assert (told["valid"], told["counts"]) == (True, {})
    assert told["anchors"][0]["entries"] >= told["transitions"]
    connection = psycopg2.connect(deployment.environment["AEGIS_DATABASE_URL"])
    cursor = connection.cursor()
    cursor.execute("SELECT bool_and(mac IS NOT NULL) FROM aegis_transition WHERE seq > 0")
    assert cursor.fetchone() == (True,)
    connection.rollback()
    health = {check["name"]: check for check in aegis("health", "--json").document()["checks"]}
    assert health["anchors"]["state"] == "ok"
    assert health["mac"]["state"] == "ok"

    cursor.execute("SET session_replication_role = replica")
    for table in ("workflow", "transition", "checkpoint", "payload", "log"):
        column = "id" if table == "workflow" else "workflow_id"
        cursor.execute(f"DELETE FROM aegis_{table} WHERE {column} = 'p'")  # noqa: S608 - names of ours
    connection.commit()
    connection.close()
    plain, as_json = aegis.both("verify", "--all")
    assert (plain.status, as_json.status) == (1, 1)
    found = as_json.document()["findings"]
    lost = [(each["seq"], each["code"]) for each in found if each["workflow_id"] == "p"]
    assert lost == [(seq, "MISSING_WORKFLOW") for seq in range(len(lost))]
    assert len(lost) == told["transitions"]
    assert "TAMPERED WITH: p" in plain.stdout
    assert aegis("verify", "p").status == 1
    # The scrubber comes to it by itself, and health says so.
    eventually("the scrubber finds it", lambda: "history was changed" in aegis("health").stdout)
    assert re.search(r"^aegis_scrub_findings [1-9]", aegis("metrics").stdout, re.MULTILINE)


def test_what_is_put_over_anchors_in_a_bucket_hides_no_loss(
    deploy: Callable[..., Deployment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database of before, and delete markers over the locked anchors that know better: what is seen fits together."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with store() as (endpoint, _):
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket="vault", ObjectLockEnabledForBucket=True)
        place = f"s3://vault/shop?endpoint={endpoint}&retention_days=30"
        deployment = deploy(AEGIS_ANCHOR_INTERVAL="1", AEGIS_ANCHORS=place)
        aegis = CommandLine(deployment.environment, tmp_path)
        assert aegis("keys", "new", "anchor").status == 0
        deployment.beat()
        deployment.worker()
        for name in ("kept", "lost"):
            assert aegis("start", "Steps", "--id", name).status == 0
            deployment.await_status(name, "completed")
            length = deployment.engine.describe(name).seq + 1
            eventually("it is anchored", lambda name=name, length=length: witness(aegis, name)["entries"] == length)
        deployment.stop()
        with (
            closing(psycopg2.connect(deployment.environment["AEGIS_DATABASE_URL"])) as opened,
            opened as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute("SET session_replication_role = replica")
            for table in ("workflow", "transition", "checkpoint", "payload", "log"):
                column = "id" if table == "workflow" else "workflow_id"
                cursor.execute(f"DELETE FROM aegis_{table} WHERE {column} = 'lost'")  # noqa: S608 - names of ours
            cursor.execute("UPDATE aegis_log_state SET size = (SELECT count(*) FROM aegis_log) RETURNING size")
            (size,) = cursor.fetchone() or (0,)
        hidden = []
        for found in client.list_objects_v2(Bucket="vault")["Contents"]:
            body = json.loads(client.get_object(Bucket="vault", Key=found["Key"])["Body"].read())
            if body["first"] + len(body["entries"]) > size:
                client.delete_object(Bucket="vault", Key=found["Key"])
                hidden.append(found["Key"])
        assert len(hidden) > 0
        assert client.list_objects_v2(Bucket="vault")["KeyCount"] > 0, "there are others, and they fit"
        client.close()
        said = aegis("verify", "--all", "--json")
        assert said.status == 1
        findings = said.document()["findings"]
        assert {one["code"] for one in findings if one["workflow_id"] == "lost"} == {"MISSING_WORKFLOW"}
        covered = [one["actual"] for one in findings if one["code"] == "ANCHOR_COVERED"]
        assert sorted(covered) == [f"{key}: 1 versions and 1 delete markers" for key in hidden]
        assert aegis("verify", "lost").status == 1


def test_who_verifies_needs_no_more_than_the_public_keys(
    anchored: tuple[Deployment, CommandLine], tmp_path: Path
) -> None:
    deployment, aegis = anchored
    home = Path(deployment.environment["AEGIS_HOME"])
    trusted = tmp_path / "trusted"
    trusted.write_text("# ours\n" + "".join(path.read_text() for path in (home / "keys").glob("*.vkey")))
    elsewhere = {
        "AEGIS_HOME": str(tmp_path / "auditor"),
        "AEGIS_ANCHORS": str(home / "anchors" / "anchors.jsonl"),
        "AEGIS_TRUSTED_KEYS": str(trusted),
    }
    assert aegis("verify", "--all", **elsewhere).status == 0
    nobody = aegis("verify", "--all", **{**elsewhere, "AEGIS_TRUSTED_KEYS": str(tmp_path / "nothing")})
    assert nobody.status == 2
    assert "no key is trusted here" in nobody.stdout
    other = tmp_path / "other"
    assert aegis("keys", "new", "anchor", "--name", "eve", AEGIS_HOME=str(other)).status == 0
    stranger = aegis("verify", "--all", **{**elsewhere, "AEGIS_TRUSTED_KEYS": str(other / "keys")})
    assert stranger.status == 1
    assert "SIGNATURE_INVALID" in stranger.stdout


def test_who_may_only_read_verifies_and_is_refused_the_rest_in_one_line(
    idle: Deployment, tmp_path: Path, postgres: PrivatePostgres
) -> None:
    user = f"reader_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE ROLE {user} LOGIN IN ROLE aegis_auditor")
    try:
        url = idle.environment["AEGIS_DATABASE_URL"].replace("aegis@", f"{user}@", 1)
        reader = CommandLine({**idle.environment, "AEGIS_DATABASE_URL": url}, tmp_path)
        assert reader("verify", "--all").status == 0
        assert reader("list").status == 0
        for command in (("start", "Steps"), ("erase", "nobody", "--reason", "r"), ("cancel", "nobody")):
            line = reader(*command).complaint()
            assert "permission denied" in line or "no workflow" in line
            assert "aegis_app" in line or "no workflow" in line
            assert "fault of AEGIS" not in line
    finally:
        postgres.execute(f"DROP ROLE {user}")


# --- earlier states -------------------------------------------------------------------------


def test_show_at_a_transition_and_at_a_time(anchored: tuple[Deployment, CommandLine]) -> None:
    _, aegis = anchored
    links = aegis("history", "p", "--json").document()
    for link in links:
        by_seq = aegis("show", "p", "--at", str(link["seq"]), "--json").document()
        by_time = aegis("show", "p", "--at", link["at"], "--json").document()
        assert by_seq["data"]["state"] == link["to_state"]
        assert (by_seq["seq"], by_seq["data"]) == (by_time["seq"], by_time["data"])
    first = datetime.fromisoformat(links[0]["at"])
    assert "is before" in aegis("show", "p", "--at", (first - timedelta(days=1)).isoformat()).complaint()
    later = aegis("show", "p", "--at", (datetime.now(UTC) + timedelta(days=1)).isoformat(), "--json").document()
    assert later["seq"] == links[-1]["seq"]


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "²", "2026-13-01", "24:00", "99999-01-01", "nan"])
def test_a_time_that_is_none_is_refused(aegis: CommandLine, given: str) -> None:
    assert "--at" in aegis("show", "nobody", "--at", given).complaint()
