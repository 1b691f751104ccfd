"""``aegis cluster`` from the outside, on the cluster of these tests, and where there is none."""

from __future__ import annotations

from pathlib import Path

from cluster_site import Site
from command_line import CommandLine


def at(home: Path, folder: Path) -> CommandLine:
    return CommandLine({"AEGIS_HOME": str(home)}, folder)


def test_status_for_people_and_programs(whole: Site, tmp_path: Path) -> None:
    plain, as_json = at(whole.cluster.layout.root.parent, tmp_path).both("cluster", "status")
    assert plain.status == 0
    assert "the cluster is ok: a lost node loses nothing" in plain.stdout
    found = as_json.document()
    assert found["whole"]
    assert [member["name"] for member in found["members"]] == ["node-1", "node-2", "node-3"]
    assert [member["name"] for member in found["members"] if member["role"] == "leader"] == [whole.leader()]


def test_a_switch_over_to_a_node_that_is_named(whole: Site, tmp_path: Path) -> None:
    aegis = at(whole.cluster.layout.root.parent, tmp_path)
    before = whole.leader()
    assert f"{before} leads already" in aegis("cluster", "switchover", before).complaint()
    assert "node-9 cannot take over now; those that can: " in aegis("cluster", "switchover", "node-9").complaint()
    to = next(member.name for member in whole.cluster.members() if member.follows)
    done = aegis("cluster", "switchover", to, "--json").document()
    assert done["leader"] == to == whole.leader()


def test_without_a_cluster_each_command_says_how_to_make_one(tmp_path: Path) -> None:
    aegis = at(tmp_path / "nothing", tmp_path)
    for command in ("status", "switchover", "down"):
        complaint = aegis("cluster", command).complaint()
        assert complaint.startswith("the cluster: there is none below AEGIS_HOME=")
        assert "make one with `aegis cluster up`" in complaint


def test_a_layout_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "cluster").mkdir(parents=True)
    (home / "cluster" / "cluster.json").write_text("{")
    complaint = at(home, tmp_path)("cluster", "status").complaint()
    assert f"{home / 'cluster' / 'cluster.json'} cannot be read (JSONDecodeError" in complaint


def test_a_name_for_etcd_that_is_none(tmp_path: Path) -> None:
    aegis = at(tmp_path, tmp_path)
    assert "AEGIS_ETCD_BIN=/no/etcd: there is no such program" in aegis(
        "cluster", "up", AEGIS_ETCD_BIN="/no/etcd"
    ).complaint().replace("\n", " ")
