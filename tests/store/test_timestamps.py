"""Timestamps of anchors, verified: when they come, and for as long as they are kept."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command_line import CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st
from outside import Authority, send, web
from private_servers import DEPLOYMENT
from store_workbench import RecordingRing, make_engine
from store_workflows import Letter
from tampering import signing_key

from aegis.config.settings import read
from aegis.core.anchor import Anchor, Judge, log_name
from aegis.core.errors import ConfigurationError
from aegis.core.finding import Code, Report
from aegis.core.note import LogHead
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.tasks.anchor import Notary, Policy, anchor
from aegis.tasks.scrub import sources
from aegis.tasks.sinks import AnchorFile
from aegis.tasks.timestamp import Stamp, judge_by, stamp

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to be an authority")

KEY = signing_key()
POLICY = Policy(interval=timedelta(hours=1), every=10)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("another"))


def judge_of(*authorities: Authority, folder: Path) -> Judge:
    file = folder / "roots.pem"
    file.write_bytes(b"".join(one.root_file.read_bytes() for one in authorities))
    judge = judge_by(file)
    assert judge is not None
    return judge


def note_of(at: datetime) -> str:
    return KEY.sign(LogHead(origin=log_name(DEPLOYMENT), size=0, root=bytes(32), at=at).text())


def asked(authority: Authority, note: str, judge: Judge | None = None) -> str | None:
    with web(lambda handler, query: send(handler, authority.reply(query))) as url:
        ask = stamp(url, judge)
        assert ask is not None
        return ask(note)


# --- when they come -----------------------------------------------------------------------------


def test_a_token_of_a_trusted_authority_is_kept(authority: Authority, another: Authority, tmp_path: Path) -> None:
    note = note_of(datetime.now(UTC))
    for judge in (judge_of(authority, folder=tmp_path), judge_of(another, authority, folder=tmp_path)):
        token = asked(authority, note, judge)
        assert token is not None
        assert judge(note, token) is None
        assert "Mismatch" in str(judge(note + "x", token))


def test_a_token_that_nobody_trusted_signed_leaves_the_anchor_without(
    authority: Authority, another: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever stands in between can answer with a token of an authority of his own."""
    note = note_of(datetime.now(UTC))
    assert asked(another, note) is not None, "without roots nobody looks"
    assert asked(another, note, judge_of(authority, folder=tmp_path)) is None
    assert "no timestamp" in caplog.text
    assert "Error while verifying certificates" in caplog.text
    assert "ErrorStack" not in caplog.text


@pytest.mark.parametrize("hours", [-25, -23, 23, 25])
def test_a_token_of_another_day_is_not_one_of_this_anchor(authority: Authority, tmp_path: Path, hours: int) -> None:
    """A key that was stolen signs anchors of any time; the authority knows what day it is."""
    note = note_of(datetime.now(UTC) + timedelta(hours=hours))
    token = asked(authority, note)
    assert token is not None
    said = judge_of(authority, folder=tmp_path)(note, token)
    assert (said is not None and "and the anchor says" in said) is (abs(hours) > 24)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_changed_byte_of_a_token_makes_verification_stumble(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    if not _made:
        note = note_of(datetime.now(UTC))
        token = asked(authority, note)
        assert token is not None
        _made.append((note, base64.b64decode(token), judge_of(authority, folder=tmp_path_factory.mktemp("roots"))))
    note, whole, judge = _made[0]
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(changed[: data.draw(st.integers(len(whole) - 3, len(whole)))])
    said = judge(note, base64.b64encode(cut).decode())
    assert (said is None) or said


_made: list[tuple[str, bytes, Judge]] = []


# --- as long as they are kept -----------------------------------------------------------------------


def anchored(database: Database, file: AnchorFile, ask: Stamp | None) -> None:
    engine = make_engine(database, RecordingRing())
    for number in range(10):
        engine.start(Letter(), id=f"w-{datetime.now(UTC):%H%M%S%f}-{number}")
    assert anchor(database, [file], Notary(key=KEY, trusted=[], stamp=ask), POLICY).written == 1


def rewrite(file: AnchorFile, number: int, change: Callable[[Anchor], Anchor]) -> None:
    made = list(file.anchors())
    made[number] = change(made[number])
    file.path.write_bytes(b"".join(one.line() for one in made))


def audit(database: Database, file: AnchorFile, judge: Judge | None) -> Report:
    return Auditor(database, Sources(sinks=[file], trusted=[KEY.verifier], judge=judge)).everything()


def test_kept_tokens_are_verified_and_the_wrong_one_is_named(
    database: Database, authority: Authority, another: Authority, tmp_path: Path
) -> None:
    file, judge = AnchorFile(tmp_path / "anchors.jsonl"), judge_of(authority, folder=tmp_path)
    for source in (authority, None, authority):
        anchored(database, file, None if source is None else lambda note, one=source: asked(one, note))
    first, _, last = file.anchors()
    report = audit(database, file, judge)
    assert report.valid, "one without is none the worse: an authority may be away"
    assert [(one.stamped, one.unchecked) for one in report.witnesses] == [(2, 0)]
    assert [(one.stamped, one.unchecked) for one in audit(database, file, None).witnesses] == [(0, 2)]

    for wrong in (first.timestamp, asked(another, last.note), "c3RhbXA=", "no base64", ""):
        rewrite(file, 2, lambda one, wrong=wrong: replace(one, timestamp=wrong))
        report = audit(database, file, judge)
        assert [(one.code, one.log_index) for one in report.findings] == [(Code.SIGNATURE_INVALID, 20)]
        assert report.tampered
        assert [(one.stamped, one.unchecked) for one in report.witnesses] == [(1, 0)]
        assert audit(database, file, None).valid, "where nothing verifies them, nothing is said to be wrong"


def test_the_command_says_whether_timestamps_were_verified(
    database: Database, database_url: str, authority: Authority, another: Authority, tmp_path: Path
) -> None:
    file, trusted = AnchorFile(tmp_path / "anchors.jsonl"), tmp_path / "trusted.vkey"
    trusted.write_text(f"{KEY.verifier}\n")
    anchored(database, file, lambda note: asked(authority, note))
    environment = {
        "AEGIS_HOME": str(tmp_path),
        "AEGIS_DATABASE_URL": database_url,
        "AEGIS_BROKER_URL": "redis://127.0.0.1:1/0",
        "AEGIS_ANCHORS": file.name,
        "AEGIS_TRUSTED_KEYS": str(trusted),
    }

    aegis = CommandLine(environment, tmp_path)
    plain = aegis("verify", "--all")
    assert plain.status == 0, plain
    assert "1 timestamps there not checked: AEGIS_TIMESTAMP_ROOTS names no certificates" in plain.stdout
    verified = aegis("verify", "--all", AEGIS_TIMESTAMP_ROOTS=str(authority.root_file))
    assert verified.status == 0, verified
    assert "1 timestamps there verified" in verified.stdout
    told = aegis("verify", "--all", "--json", AEGIS_TIMESTAMP_ROOTS=str(authority.root_file)).document()
    assert (told["anchors"][0]["stamped"], told["anchors"][0]["unchecked"]) == (1, 0)
    refused = aegis("verify", "--all", AEGIS_TIMESTAMP_ROOTS=str(another.root_file))
    assert refused.status == 1, refused
    assert "SIGNATURE_INVALID: expected a timestamp of a trusted authority" in refused.stdout


# --- settings ---------------------------------------------------------------------------------------


def test_without_roots_nothing_is_verified(authority: Authority, tmp_path: Path) -> None:
    home = {"AEGIS_HOME": str(tmp_path)}
    assert judge_by(Path()) is None
    assert sources(read(home)).judge is None
    judge = sources(read(home | {"AEGIS_TIMESTAMP_ROOTS": str(authority.root_file)})).judge
    assert judge is not None


def test_roots_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for name, body, problem in (
        ("none", None, "it cannot be read (No such file or directory)"),
        ("text", b"no certificate", "it holds no certificates"),
        ("empty", b"", "it holds no certificates"),
        ("broken", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "it holds no certificates"),
    ):
        file = tmp_path / name
        if body is not None:
            file.write_bytes(body)
        with pytest.raises(ConfigurationError) as refused:
            judge_by(file)
        assert (refused.value.source, refused.value.problem) == (f"AEGIS_TIMESTAMP_ROOTS={file}", problem)
