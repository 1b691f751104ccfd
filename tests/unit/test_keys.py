"""Keys in files: made, found, the newest of them used; and refused by name where anything is wrong with one."""

from __future__ import annotations

import base64
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from aegis.config import keys as keys_module
from aegis.config.keys import (
    ANCHOR,
    BACKUP,
    KINDS,
    MAC,
    KeyFile,
    active_mac_key,
    backup_secret,
    key_files,
    mac_keys,
    new_anchor_key,
    new_backup_key,
    new_mac_key,
    signing_key,
    trusted_keys,
)
from aegis.config.settings import Settings
from aegis.core.errors import ConfigurationError
from aegis.core.note import LogHead, open_note

NAME = "aegis.example/prod"
GRACE = timedelta(minutes=10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def change(path: Path, **members: Any) -> None:
    """Write other members into a key; those that are ``...`` are left out."""
    body = json.loads(path.read_text()) | members
    path.write_text(json.dumps({name: value for name, value in body.items() if value is not ...}))


def refusal(act: Callable[[], object], path: Path) -> ConfigurationError:
    """The error names the file, in one line, and shows nothing of the key."""
    secret = ""
    if path.is_file() and os.access(path, os.R_OK):
        secret = path.read_bytes().decode(errors="replace").partition('"secret": "')[2][:20]
    with pytest.raises(ConfigurationError) as refused:
        act()
    assert refused.value.source == str(path)
    assert len(str(refused.value).splitlines()) == 1
    assert not secret or secret not in str(refused.value)
    return refused.value


# --- made -----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_key_is_for_its_owner_alone_whatever_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        made = [new_anchor_key(folder, NAME), new_mac_key(folder, grace=GRACE), new_backup_key(folder)]
    finally:
        os.umask(before)
    assert [mode(one.path) for one in made] == [0o600, 0o600, 0o600]
    assert mode(folder) == 0o700
    assert {file.name for file in folder.iterdir()} == {
        f"anchor-{made[0].id}.key",
        f"anchor-{made[0].id}.vkey",
        f"mac-{made[1].id}.key",
        f"backup-{made[2].id}.key",
    }, "and nothing is left over"


def test_an_anchor_key_signs_what_its_public_line_verifies(folder: Path) -> None:
    made = new_anchor_key(folder, NAME)
    key = signing_key(folder)
    assert key is not None
    assert key.name == NAME
    assert (made.kind, made.id, made.public, made.required_from) == (
        ANCHOR,
        key.verifier.id.hex(),
        str(key.verifier),
        None,
    )
    head = LogHead(origin=NAME, size=0, root=bytes(32), at=datetime.now(UTC))
    assert open_note(key.sign(head.text()), trusted_keys(folder)) == head


def test_a_mac_key_is_required_after_its_grace(folder: Path) -> None:
    before = datetime.now(UTC)
    made = new_mac_key(folder, grace=GRACE)
    (key,) = mac_keys(folder)
    assert (made.kind, made.id, made.public) == (MAC, key.id, None)
    assert before + GRACE <= key.required_from <= datetime.now(UTC) + GRACE
    assert key.required_from == made.required_from
    assert len(key.secret) == 32
    assert key.secret != mac_keys_of_another(folder)


def mac_keys_of_another(folder: Path) -> bytes:
    new_mac_key(folder, grace=GRACE)
    return mac_keys(folder)[-1].secret


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", " ", "\ud800"])
def test_a_name_that_no_key_can_have_is_refused_and_nothing_is_written(folder: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="name it otherwise"):
        new_anchor_key(folder, name)
    assert not folder.exists()


@pytest.mark.parametrize("make", [lambda at: new_anchor_key(at, NAME), lambda at: new_mac_key(at, grace=GRACE)])
def test_a_folder_that_cannot_be_one_is_refused(tmp_path: Path, make: Callable[[Path], KeyFile]) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "keys"):
        with pytest.raises(ConfigurationError, match="cannot be written there") as refused:
            make(folder)
        assert refused.value.source == f"AEGIS_KEYS={folder}"
        assert refused.value.remedy == "name another folder"


def test_a_crash_while_a_key_is_made_leaves_no_half_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the deployment reads that folder, and refuses to start on half a key."""
    good = new_mac_key(folder, grace=GRACE)
    for at in ("fsync", "link"):

        def crash(*_: object) -> None:
            (written,) = set(folder.iterdir()) - {good.path}
            assert not written.name.endswith(".key")
            assert [key.id for key in mac_keys(folder)] == [good.id], "those who look in the meantime"
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(keys_module.os, at, crash)
            with pytest.raises(ConfigurationError, match="No space left on device"):
                new_mac_key(folder, grace=GRACE)
        assert list(folder.iterdir()) == [good.path]


def test_the_public_half_is_there_before_the_private_one_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link
    made = []

    def link(source: Path, target: Path) -> None:
        made.append(target.suffix)
        real(source, target)

    monkeypatch.setattr(keys_module.os, "link", link)
    new_anchor_key(folder, NAME)
    assert made == [".vkey", ".key"]


def test_a_key_never_takes_the_place_of_another(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module.secrets, "token_hex", lambda _: "abad1dea")
    new_mac_key(folder, grace=GRACE)
    before = mac_keys(folder)
    with pytest.raises(ConfigurationError, match=r"mac-abad1dea\.key cannot be written there \(File exists\)"):
        new_mac_key(folder, grace=GRACE)
    assert mac_keys(folder) == before


def test_two_who_make_keys_at_once_both_make_one_and_all_agree_on_the_active_one(folder: Path) -> None:
    def make(number: int) -> KeyFile:
        return new_anchor_key(folder, NAME) if number % 2 else new_mac_key(folder, grace=GRACE)

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(40)))
    found = key_files(folder)
    assert sorted(made, key=lambda one: one.id) == sorted(found, key=lambda one: one.id)
    assert len({one.path for one in found}) == 40
    key = signing_key(folder)
    assert key is not None
    newest = max((one for one in made if one.kind == ANCHOR), key=lambda one: (one.created_at, one.id))
    assert key.verifier.id.hex() == newest.id


# --- found ----------------------------------------------------------------------------------


def test_where_there_is_no_folder_there_are_no_keys(folder: Path) -> None:
    assert key_files(folder) == []
    assert signing_key(folder) is None
    assert mac_keys(folder) == ()
    assert backup_secret(folder) is None
    assert active_mac_key(Settings(keys=folder)) is None
    folder.mkdir(parents=True)
    assert key_files(folder) == []
    assert signing_key(folder) is None
    assert trusted_keys(folder) == []


def test_the_newest_of_a_kind_is_the_active_one_whatever_its_name(folder: Path) -> None:
    macs = [new_mac_key(folder, grace=GRACE) for _ in range(5)]
    signers = [new_anchor_key(folder, NAME) for _ in range(5)]
    assert [key.id for key in mac_keys(folder)] == [one.id for one in macs]
    active = active_mac_key(Settings(keys=folder))
    assert active is not None
    assert active.id == macs[-1].id
    key = signing_key(folder)
    assert key is not None
    assert key.verifier.id.hex() == signers[-1].id
    openers = [new_backup_key(folder) for _ in range(5)]
    assert backup_secret(folder) == json.loads(openers[-1].path.read_text())["secret"]
    assert [one.id for one in key_files(folder)] == [one.id for one in signers + macs + openers]
    assert [one.kind for one in key_files(folder)] == [kind for kind in KINDS for _ in range(5)]


def test_by_its_time_the_newest_is_known_also_in_other_zones(folder: Path) -> None:
    first, second = new_mac_key(folder, grace=GRACE), new_mac_key(folder, grace=GRACE)
    change(first.path, created_at="2026-01-01T12:00:00+02:00")
    change(second.path, created_at="2026-01-01T11:00:00+00:00")
    assert [key.id for key in mac_keys(folder)] == [first.id, second.id]
    change(first.path, created_at="2026-01-01T12:00:00-02:00")
    assert [key.id for key in mac_keys(folder)] == [second.id, first.id]


def test_what_is_no_key_is_left_alone(folder: Path) -> None:
    new_mac_key(folder, grace=GRACE)
    for name in ("README", "mac.key", "other-1.key", "mac-1.key.old", ".mac-1.key.part", "tls.pem"):
        (folder / name).write_text("something else")
    assert len(key_files(folder)) == 1


def test_of_a_key_whose_public_half_is_lost_there_is_no_public_line(folder: Path) -> None:
    made = new_anchor_key(folder, NAME)
    made.path.with_suffix(".vkey").unlink()
    assert [one.public for one in key_files(folder)] == [None]
    assert signing_key(folder) is not None


@pytest.mark.parametrize("required_from", ["2026-01-01T00:00:00+00:00", "2026-01-01T02:00:00+02:00"])
def test_a_mac_key_is_required_from_the_moment_that_its_file_says(folder: Path, required_from: str) -> None:
    made = new_mac_key(folder, grace=GRACE)
    change(made.path, required_from=required_from)
    assert mac_keys(folder)[0].required_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert key_files(folder)[0].required_from == datetime(2026, 1, 1, tzinfo=UTC)


# --- refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rights", [0o640, 0o604, 0o660, 0o644, 0o620, 0o610, 0o601, 0o777])
def test_a_key_that_others_can_read_is_refused(folder: Path, rights: int) -> None:
    for made in (new_anchor_key(folder, NAME), new_mac_key(folder, grace=GRACE)):
        made.path.chmod(rights)
        error = refusal(lambda: key_files(folder), made.path)
        assert error.problem == "others can read it"
        assert "chmod 600" in error.remedy
        made.path.chmod(0o400)
        key_files(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{",
        b"null",
        b"[]",
        b"1",
        b'"key"',
        b"\xff\xfe",
        b"\0" * 100,
        b"{}",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"id": "x"}',
        b"-----BEGIN PRIVATE KEY-----\n",
    ],
    ids=lambda content: ascii(content[:20]),
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_key_is_refused(folder: Path, kind: str, content: bytes) -> None:
    folder.mkdir(parents=True)
    path = folder / f"{kind}-00000000.key"
    path.write_bytes(content)
    path.chmod(0o600)
    look = {ANCHOR: signing_key, MAC: mac_keys, BACKUP: backup_secret}[kind]
    for act in (lambda: look(folder), lambda: key_files(folder)):
        assert "aegis keys new" in refusal(act, path).problem


def test_a_folder_in_the_place_of_a_key_is_refused(folder: Path) -> None:
    path = folder / "mac-00000000.key"
    path.mkdir(parents=True, mode=0o700)
    refusal(lambda: mac_keys(folder), path)


def test_a_link_that_leads_nowhere_is_refused(folder: Path) -> None:
    folder.mkdir(parents=True)
    path = folder / "mac-00000000.key"
    path.symlink_to(folder / "gone")
    assert "cannot be read" in refusal(lambda: mac_keys(folder), path).problem


@pytest.mark.parametrize(
    "members",
    [
        {"id": ...},
        {"id": "another"},
        {"id": 7},
        {"id": None},
        {"kind": ...},
        {"kind": "anchor"},
        {"created_at": ...},
        {"created_at": "yesterday"},
        {"created_at": 0},
        {"created_at": None},
        {"created_at": "2026-01-01T00:00:00"},
        {"required_from": ...},
        {"required_from": None},
        {"required_from": "2026-01-01T00:00:00"},
        {"required_from": "tomorrow"},
        {"required_from": 0},
        {"secret": ...},
        {"secret": None},
        {"secret": 7},
        {"secret": ""},
        {"secret": "not base64!"},
        {"secret": "ä"},
        {"secret": base64.b64encode(b"x" * 31).decode()},
        {"secret": base64.b64encode(b"x" * 33).decode()},
    ],
    ids=str,
)
def test_a_mac_key_with_anything_wrong_in_it_is_refused(folder: Path, members: dict[str, Any]) -> None:
    new_mac_key(folder, grace=GRACE)
    made = new_mac_key(folder, grace=GRACE)
    change(made.path, **members)
    refusal(lambda: mac_keys(folder), made.path)
    refusal(lambda: active_mac_key(Settings(keys=folder)), made.path)


@pytest.mark.parametrize("secret", [None, "", "x", "AAAA", 5])
def test_a_backup_key_whose_secret_is_not_one_is_refused(folder: Path, secret: object) -> None:
    path = new_backup_key(folder).path
    path.write_text(json.dumps({**json.loads(path.read_text()), "secret": secret}))
    assert "its secret" in refusal(lambda: backup_secret(folder), path).problem


@pytest.mark.parametrize("members", [{"created_at": "2026-01-01T00:00:00"}, {"required_from": "2026-01-01T00:00:00"}])
def test_times_without_a_zone_are_refused(folder: Path, members: dict[str, Any]) -> None:
    made = new_mac_key(folder, grace=GRACE)
    change(made.path, **members)
    assert refusal(lambda: mac_keys(folder), made.path).problem == "its times have no zone"


@pytest.mark.parametrize(
    "members",
    [
        {"id": "another"},
        {"kind": "mac"},
        {"private": ...},
        {"private": None},
        {"private": 7},
        {"private": "not base64!"},
        {"private": base64.b64encode(b"x" * 31).decode()},
        {"private": base64.b64encode(b"x" * 32).decode()},
        {"name": ...},
        {"name": None},
        {"name": "a b"},
        {"name": "another"},
    ],
    ids=str,
)
def test_an_anchor_key_with_anything_wrong_in_it_is_refused(folder: Path, members: dict[str, Any]) -> None:
    made = new_anchor_key(folder, NAME)
    change(made.path, **members)
    refusal(lambda: signing_key(folder), made.path)


def test_a_copy_under_another_name_is_refused(folder: Path) -> None:
    made = new_mac_key(folder, grace=GRACE)
    copy = folder / "mac-backup.key"
    copy.write_bytes(made.path.read_bytes())
    copy.chmod(0o600)
    assert refusal(lambda: mac_keys(folder), copy).remedy == "restore it, or move it away"


# --- trusted --------------------------------------------------------------------------------


@pytest.fixture
def others(tmp_path: Path) -> list[str]:
    """The public lines of three keys."""
    return [str(new_anchor_key(tmp_path / "others", name).public) for name in (NAME, "witness.example", "a#b")]


def test_the_keys_of_a_folder_are_trusted(folder: Path) -> None:
    made = [new_anchor_key(folder, name) for name in (NAME, "a#b", "ä")]
    (folder / "notes.txt").write_text("no key at all")
    assert {str(key) for key in trusted_keys(folder)} == {one.public for one in made}
    assert {one.public for one in key_files(folder)} == {one.public for one in made}


def test_the_lines_of_a_file_are_trusted_beside_comments(tmp_path: Path, others: list[str]) -> None:
    file = tmp_path / "trusted"
    file.write_text(
        f"# ours\n{others[0]}\n\n   \n\t# theirs\n  {others[1]}   # until 2030\n{others[2]} #\n#{others[0]}\n"
    )
    assert [str(key) for key in trusted_keys(file)] == others
    file.write_text("\r\n".join(others))
    assert [str(key) for key in trusted_keys(file)] == others
    file.write_text("# nobody\n")
    assert trusted_keys(file) == []


@pytest.mark.parametrize("line", ["rubbish", "name+00000000+AQ==", "a b", "+", "x+y+z"])
def test_a_line_that_is_no_key_is_refused_and_shown(tmp_path: Path, others: list[str], line: str) -> None:
    file = tmp_path / "trusted"
    file.write_text(f"{others[0]}\n{line}\n")
    assert repr(line) in refusal(lambda: trusted_keys(file), file).problem


def test_a_key_under_another_name_is_not_trusted(tmp_path: Path, others: list[str]) -> None:
    file = tmp_path / "trusted"
    file.write_text(others[0].replace(NAME, "aegis.example/test"))
    assert "its id is" in refusal(lambda: trusted_keys(file), file).problem


def test_of_a_folder_the_file_at_fault_is_named(folder: Path) -> None:
    new_anchor_key(folder, NAME)
    broken = folder / "anchor-00000000.vkey"
    broken.write_bytes(b"\xff\xfe")
    assert refusal(lambda: trusted_keys(folder), broken).problem == "it is not text"
    broken.write_text("rubbish")
    refusal(lambda: trusted_keys(folder), broken)


def test_a_broken_public_half_is_named_also_where_keys_are_listed(folder: Path) -> None:
    public = new_anchor_key(folder, NAME).path.with_suffix(".vkey")
    public.write_text("rubbish")
    refusal(lambda: key_files(folder), public)


def test_a_place_that_is_not_there_is_refused_not_taken_for_empty(tmp_path: Path) -> None:
    place = tmp_path / "gone"
    assert "cannot be read (No such file or directory)" in refusal(lambda: trusted_keys(place), place).problem
