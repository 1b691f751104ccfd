"""The report: JSON, page and picture of one made by hand; and its seal, which no changed byte survives."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from command_line import CommandLine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aegis.config.keys import new_anchor_key, signing_key, trusted_keys
from aegis.config.settings import Settings
from aegis.core.errors import ConfigurationError, NotANote
from aegis.core.note import SigningKey, open_note
from aegis.core.objective import DEFAULTS
from aegis.recovery.drill.chart import chart
from aegis.recovery.drill.keep import keep
from aegis.recovery.drill.markdown import markdown
from aegis.recovery.drill.report import Check, Outcome, Ran, Report, Timeline, machine, telling
from aegis.recovery.drill.seal import check_seal
from aegis.tasks.drilled import measured

AT = datetime(2026, 11, 26, 5, 30, tzinfo=UTC)
LINE = Timeline(
    start=-2.0,
    width=0.25,
    acknowledged=(2,) * 8 + (0,) * 4 + (3,) * 8,
    refused=(0,) * 8 + (2,) * 4 + (0,) * 8,
    transitions=(9,) * 8 + (0,) * 4 + (20, 30) * 4,
    healed=None,
    first=1.0,
    last=1.25,
)
OUTCOME = Outcome(
    number=1,
    told="a worker killed with 2 workflows in hand",
    met=2,
    acknowledged=40,
    refused=8,
    ambiguous=1,
    lost=0,
    doubled=0,
    transitions=312,
    repeated=2,
    rpo=0.0,
    first=1.0,
    rto=1.25,
    gap=1.1,
    checks=(Check(name="RTO", declared="5 s", measured="1.25 s", passed=True),),
    commands=(Ran(command="aegis health", stage="check", status=0, seconds=0.8, passed=True),),
    timeline=LINE,
)
REPORT = Report(
    scenario="worker",
    system="a sandbox",
    title="A worker was killed",
    injects="SIGKILL to a worker.",
    objective=DEFAULTS[0],
    seed=7,
    load=8.0,
    started_at=AT,
    finished_at=AT,
    machine=machine(),
    versions={"python": "3.11"},
    settings=telling(Settings()),
    outcomes=(OUTCOME,),
)
LATE = replace(
    OUTCOME,
    number=2,
    rto=None,
    lost=1,
    rpo=2.0,
    checks=(Check(name="RTO", declared="5 s", measured="not within 20 s", passed=False),),
    timeline=replace(LINE, first=None, last=None),
)


def test_one_run_that_failed_fails_the_whole() -> None:
    assert REPORT.document()["verdict"] == "PASS"
    failed = replace(REPORT, outcomes=(OUTCOME, LATE)).document()
    assert failed["verdict"] == "FAIL"
    assert [each["verdict"] for each in failed["outcomes"]] == ["PASS", "FAIL"]
    assert failed["measured"] == {"rpo": 2.0, "rto": None, "lost": 1}


def test_the_largest_of_all_runs_is_what_was_measured() -> None:
    slower = replace(OUTCOME, rto=3.5, rpo=0.5)
    assert replace(REPORT, outcomes=(OUTCOME, slower, OUTCOME)).document()["measured"] == {
        "rpo": 0.5,
        "rto": 3.5,
        "lost": 0,
    }


def test_the_page_has_declared_beside_measured_and_says_what_was_missed() -> None:
    page = markdown(replace(REPORT, outcomes=(OUTCOME, LATE)))
    assert page.startswith("# Drill `worker`: FAIL\n")
    assert "| 5 s | 1.25 s; 1 never recovered |" in page
    assert "| acknowledged and lost | none | 1 of 80 |" in page
    assert "| RTO | 5 s | not within 20 s | **missed** |" in page
    assert "| `aegis health` | check | 0 | 0.8 |" in page


@pytest.mark.parametrize(
    "outcome",
    [
        OUTCOME,
        LATE,
        replace(OUTCOME, timeline=replace(LINE, healed=0.5)),
        replace(OUTCOME, timeline=replace(LINE, first=None, last=None)),  # an edit: named, not moved
        replace(OUTCOME, timeline=replace(LINE, acknowledged=(0,), refused=(0,), transitions=(0,))),
        replace(OUTCOME, timeline=replace(LINE, transitions=(100_000,) * 20)),
    ],
)
def test_the_picture_is_well_formed_and_stays_inside_of_itself(outcome: Outcome) -> None:
    drawn = ET.fromstring(chart(replace(REPORT, outcomes=(outcome,), title="<A & B>")))  # noqa: S314 - our own
    width, height = float(drawn.attrib["width"]), float(drawn.attrib["height"])
    for element in drawn.iter():
        for name in ("x", "x1", "x2"):
            assert 0 <= float(element.attrib.get(name, 0)) <= width
        for name in ("y", "y1", "y2"):
            assert 0 <= float(element.attrib.get(name, 0)) <= height
    text = " ".join("".join(element.itertext()) for element in drawn.iter() if element.tag.endswith("text"))
    assert "<A & B>" in text
    assert "fault" in text


def test_the_picture_is_of_the_slowest_run() -> None:
    assert "did not recover in time" in chart(replace(REPORT, outcomes=(OUTCOME, LATE)))
    slower = replace(OUTCOME, rto=3.5, timeline=replace(LINE, last=3.5))
    assert "the slowest of 2 runs: recovered in 3.50 s" in chart(replace(REPORT, outcomes=(slower, OUTCOME)))


# --- kept, and sealed -------------------------------------------------------------------


def key() -> SigningKey:
    return SigningKey(name="aegis.example/drill", private=Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))


def test_a_report_is_kept_as_json_page_picture_and_seal(tmp_path: Path) -> None:
    path = keep(REPORT, tmp_path / "reports", key())
    assert sorted(each.name for each in path.parent.iterdir()) == [
        *("worker.json", "worker.json.note", "worker.md", "worker.svg"),
    ]
    assert json.loads(path.read_text())["outcomes"][0]["acknowledged"] == 40
    assert check_seal(path, [key().verifier]) == f"aegis.example/drill+{key().verifier.id.hex()}"
    found, unreadable = measured(path.parent)
    assert [(each.scenario, each.rto, each.passed) for each in found] == [("worker", 1.25, True)]
    assert not unreadable
    # The next one without a key is not sealed by the note of this one.
    keep(REPORT, path.parent, None)
    assert not path.with_name("worker.json.note").exists()


def test_a_seal_is_of_these_bytes_and_of_a_key_that_is_trusted(tmp_path: Path) -> None:
    path = keep(REPORT, tmp_path, key())
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"PASS"', b'"FAIL"', 1))
    with pytest.raises(NotANote, match=r"the seal cannot be used: it is not about .*worker.json as it is now"):
        check_seal(path, [key().verifier])
    path.write_bytes(whole)
    stranger = SigningKey(name="aegis.example/drill", private=Ed25519PrivateKey.from_private_bytes(b"\x02" * 32))
    with pytest.raises(NotANote, match=r"the seal cannot be used: it is signed by .* which is not trusted here"):
        check_seal(path, [stranger.verifier])
    note = path.with_name("worker.json.note")
    note.write_text(note.read_text().replace("sha256 ", "sha256 0"))
    with pytest.raises(NotANote, match=r"the seal cannot be used: the signature of .* is not valid"):
        check_seal(path, [key().verifier])
    note.unlink()
    with pytest.raises(NotANote, match=r"the seal cannot be used: .*worker.json.note cannot be read"):
        check_seal(path, [key().verifier])
    with pytest.raises(ConfigurationError, match="it cannot be read"):
        check_seal(tmp_path / "none.json", [key().verifier])


def test_a_seal_is_no_anchor(tmp_path: Path) -> None:
    path = keep(REPORT, tmp_path, key())
    with pytest.raises(NotANote):
        open_note(path.with_name("worker.json.note").read_text(), [key().verifier])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="the report cannot be written there"):
        keep(REPORT, tmp_path / "file", None)


def test_verify_at_the_command_line(tmp_path: Path) -> None:
    new_anchor_key(tmp_path / "keys", "aegis.example/drill")
    path = keep(REPORT, tmp_path, signing_key(tmp_path / "keys"))
    assert trusted_keys(tmp_path / "keys")
    aegis = CommandLine({"AEGIS_HOME": str(tmp_path)}, tmp_path)
    said = aegis("drill", "verify", str(path))
    assert (said.status, said.stdout.startswith(f"{path}: as aegis.example/drill+")) == (0, True)
    assert aegis("drill", "verify", str(path), "--json").document()["valid"] is True
    path.write_text(path.read_text() + " ")
    said = aegis("drill", "verify", str(path))
    assert said.status == 1
    assert said.stdout.startswith("NOT SEALED: it is not about ")
    assert "cannot be read" in aegis("drill", "verify", "none.json").complaint()


def test_the_list_shows_what_was_last_measured(tmp_path: Path) -> None:
    keep(REPORT, tmp_path / "drills", None)
    listed = CommandLine({"AEGIS_HOME": str(tmp_path)}, tmp_path)("drill", "--list").stdout.splitlines()
    lines = {line.split()[0]: line for line in listed[1:]}
    assert "1.25 s" in lines["worker"]
    assert "2026-11-26" in lines["worker"]
    assert "never" in lines["tampering"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("wroker",), "there is no scenario 'wroker'; there are: worker, child, host"),
        (("SCENARIO",), "there is no scenario 'SCENARIO'"),
        (("worker", "--repeat", "0"), "0 is not in the range"),
        (("worker", "--load", "many"), "'many' is not a valid float"),
    ],
)
def test_what_cannot_be_drilled_is_refused_in_one_line(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    aegis = CommandLine({"AEGIS_HOME": str(tmp_path / "home")}, tmp_path)
    assert problem in aegis("drill", *arguments).complaint()
    assert not (tmp_path / "home").exists()
