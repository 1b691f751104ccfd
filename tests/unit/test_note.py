"""Signed notes: the format's own example, published signatures, and every bit of one of ours."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aegis.core.errors import NotANote
from aegis.core.note import LogHead, SigningKey, VerifierKey, is_key_name, open_note

VECTORS = Path(os.environ.get("AEGIS_TEST_VECTORS", "/nonexistent")) / "wycheproof"
HEAD = LogHead(
    origin="aegis.example/prod",
    size=1234,
    root=bytes(range(32)),
    at=datetime(2026, 11, 22, 10, 11, 12, 345678, tzinfo=UTC),
)


def signer(seed: int = 1, name: str = "aegis.example/prod") -> SigningKey:
    return SigningKey(name=name, private=Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))


def test_the_example_of_the_signed_note_specification() -> None:
    """Go's note package has it: a key of PeterNeumann, and a note that it signed."""
    key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    text = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    note = (
        text + "\n\N{EM DASH} PeterNeumann "
        "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )
    signature = re.search(r"Neumann (\S+)\n$", note)
    assert signature is not None
    # It is no head of a log: it is refused for that, after its signature was found good.
    with pytest.raises(NotANote, match="does not have the lines"):
        open_note(note, [key])
    with pytest.raises(NotANote, match=r"the signature of PeterNeumann\+c74f20a3 is not valid"):
        open_note(note.replace("answer", "Answer"), [key])


def test_what_was_signed_is_read_back() -> None:
    note = signer().sign(HEAD.text())
    assert open_note(note, [signer().verifier]) == HEAD
    assert note.startswith(
        "aegis.example/prod\n1234\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\nat 2026-11-22T10:11:12.345678Z\n\n"
    )
    assert VerifierKey.parse(str(signer().verifier)) == signer().verifier


def test_any_one_trusted_key_is_enough_and_others_are_passed_over() -> None:
    note = signer().sign(HEAD.text())
    other = signer(2, "witness.example").sign(HEAD.text()).rpartition("\n\n")[2]
    assert open_note(note + other, [signer().verifier]) == HEAD
    assert open_note(note + other, [signer(2, "witness.example").verifier]) == HEAD
    assert open_note(note, [signer(3).verifier, signer().verifier]) == HEAD


@pytest.mark.parametrize("trusted", [[], [signer(2)], [signer(1, "another")]])
def test_who_is_not_trusted_signs_nothing(trusted: list[SigningKey]) -> None:
    with pytest.raises(NotANote, match="not trusted here"):
        open_note(signer().sign(HEAD.text()), [key.verifier for key in trusted])


def test_every_flipped_bit_of_a_note_is_refused() -> None:
    note = signer().sign(HEAD.text()).encode()
    opened = 0
    for place in range(len(note)):
        for bit in range(8):
            changed = bytearray(note)
            changed[place] ^= 1 << bit
            try:
                text = changed.decode()
            except UnicodeDecodeError:
                continue
            opened += 1
            with pytest.raises(NotANote):
                open_note(text, [signer().verifier])
    assert opened > 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        HEAD.text().replace("1234", "01234"),
        HEAD.text().replace("1234", "-1"),
        HEAD.text().replace("1234", "1" + "0" * 30),
        HEAD.text().replace("AAEC", "AAE"),
        HEAD.text().replace("Hh8=", "Hh9="),  # other bits that decode to the same bytes
        HEAD.text().replace("2026-11-22", "2026-02-30"),
        HEAD.text().replace("345678", "3456"),
        HEAD.text() + "more\n",
        HEAD.text().replace("aegis.example/prod\n", "\n"),
    ],
)
def test_a_head_that_is_signed_and_malformed_is_refused(text: str) -> None:
    with pytest.raises(NotANote):
        open_note(signer().sign(text), [signer().verifier])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "name",
        "name+00000000+AQ==",
        str(signer().verifier).replace("+", "-"),
        str(signer().verifier)[:-1],
        str(replace(signer().verifier, public=b"x" * 31)),
        str(signer().verifier).replace("aegis.example", "aegis example"),
        str(signer().verifier).replace("aegis.example", "other.example"),
    ],
)
def test_a_key_that_is_none_is_refused(line: str) -> None:
    with pytest.raises(NotANote, match="the key"):
        VerifierKey.parse(line)


def test_names_of_keys() -> None:
    assert all(map(is_key_name, ("a", "aegis.example/prod", "aegis/018f6d1e", "ä")))
    assert not any(map(is_key_name, ("", "a b", "a+b", "a\nb", "\x7f")))


def wycheproof() -> list[Any]:
    file = VECTORS / "ed25519_test.json"
    if not file.exists():
        reason = "AEGIS_TEST_VECTORS names no folder with Wycheproof's Ed25519 signatures"
        return [pytest.param(None, None, marks=pytest.mark.skip(reason=reason), id="ed25519")]
    return [
        pytest.param(group["publicKey"]["pk"], test, id=f"{test['tcId']} {test['comment'][:40]}")
        for group in json.loads(file.read_text())["testGroups"]
        for test in group["tests"]
    ]


@pytest.mark.parametrize(("public", "test"), wycheproof())
def test_published_signature(public: str, test: dict[str, Any]) -> None:
    key = VerifierKey(name="wycheproof", public=bytes.fromhex(public))
    found = key.verifies(bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"]))
    assert found is (test["result"] == "valid")
