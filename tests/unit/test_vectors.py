"""Published vectors that no other file runs: RFC 8785's numbers and bytes, Wycheproof's HMAC-SHA256; and all are run.

The RFC 8785 samples are in ``test_canonical.py``, the Merkle proofs in ``test_merkle.py``, the
Ed25519 signatures in ``test_note.py``. The vectors are read where they are: the project keeps no copy.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest
import rfc8785
from number_list import line, numbers

from aegis.core.canonical import canonical, is_canonical, load, parse
from aegis.core.chain import MacKey
from aegis.core.errors import NotCanonical
from aegis.core.merkle import extends, includes

VECTORS: Final = Path(os.environ.get("AEGIS_TEST_VECTORS", "/nonexistent"))
LARGEST: Final = 2**53 - 1

# The table in https://github.com/cyberphone/json-canonicalization/blob/master/testdata/README.md
CHECKSUMS: Final = {
    1_000: "be18b62b6f69cdab33a7e0dae0d9cfa869fda80ddc712221570f9f40a5878687",
    10_000: "b9f7a8e75ef22a835685a52ccba7f7d6bdc99e34b010992cbc5864cd12be6892",
    100_000: "22776e6d4b49fa294a0d0f349268e5c28808fe7e0cb2bcbe28f63894e494d4c7",
}

# --- RFC 8785's numbers -----------------------------------------------------------------------


def is_outside(number: float) -> bool:
    """Whether it is an integer that not every reader of JSON keeps apart from its neighbours."""
    return number.is_integer() and abs(number) > LARGEST


def written(number: float) -> bytes:
    """How we write it; where we refuse to, how what we write with would."""
    return rfc8785.dumps(number) if is_outside(number) else canonical(number)


@pytest.mark.parametrize("count", CHECKSUMS)
def test_the_numbers_are_written_as_published(count: int) -> None:
    """One byte that differs anywhere in the list gives another checksum."""
    digest = hashlib.sha256()
    for number in islice(numbers(), count):
        digest.update(line(number, written))
    assert digest.hexdigest() == CHECKSUMS[count]


def test_the_list_itself_is_the_published_one() -> None:
    """Some of the lines that its description shows, and the kinds of numbers that there are in it."""
    listed = list(islice(numbers(), 100_000))
    lines = {line(number, written) for number in listed}
    assert {b"444b1ae4d6e2ef50,1e+21\n", b"3eb0c6f7a0b5ed8d,0.000001\n", b"8000000000000000,0\n", b"0,0\n"} <= lines
    assert len(lines) > 99_000
    assert 30_000 < sum(map(is_outside, listed)) < 60_000


def test_the_numbers_outside_of_our_domain_are_refused_and_no_others() -> None:
    for number in islice(numbers(), 100_000):
        try:
            text = canonical([number])
        except NotCanonical:
            assert is_outside(number)
        else:
            assert not is_outside(number)
            assert load(text) == parse(text) == [number]


def test_each_number_has_one_spelling() -> None:
    for number in islice(numbers(), 5000):
        if not is_outside(number):
            assert is_canonical(canonical(number))
            spelled = f"{number:.25e}".encode()
            assert not is_canonical(spelled)
            if number != 0:
                assert canonical(parse(spelled)) == canonical(number)


# --- RFC 8785's bytes ---------------------------------------------------------------------------


def samples() -> list[Any]:
    folder = VECTORS / "rfc8785" / "outhex"
    if not folder.is_dir():
        reason = "AEGIS_TEST_VECTORS names no folder with the sample files of RFC 8785"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="rfc8785")]
    return [pytest.param(file, id=file.stem) for file in sorted(folder.iterdir())]


@pytest.mark.parametrize("file", samples())
def test_the_bytes_of_a_sample_are_those_that_are_published_one_by_one(file: Path) -> None:
    """The samples as hexadecimal: no editor, checkout or line end came between."""
    published = bytes.fromhex(file.read_text())
    source = (file.parents[1] / "input" / f"{file.stem}.json").read_bytes()
    if file.stem == "values":  # by one number outside of our domain: 1E30
        assert not is_canonical(published)
        source, published = source.replace(b"1E30, ", b""), published.replace(b"1e+30,", b"")
    assert canonical(parse(source)) == published
    assert is_canonical(published)


# --- Merkle proofs about a part of a tree ---------------------------------------------------------


def merkle(kind: str) -> list[Any]:
    folder = VECTORS / "merkle" / kind
    if not folder.is_dir():
        reason = "AEGIS_TEST_VECTORS names no folder with the proofs of transparency-dev/merkle"
        return [pytest.param({}, marks=pytest.mark.skip(reason=reason), id=kind)]
    files = sorted(folder.rglob("*.json"))
    return [pytest.param(json.loads(file.read_text()), id=str(file.relative_to(folder))) for file in files]


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


@pytest.mark.parametrize("vector", merkle("subtreeinclusion"))
def test_published_inclusion_proof_in_a_part_of_a_tree(vector: dict[str, Any]) -> None:
    """A part that begins where one of its size may is a tree of its own."""
    size = vector["end"] - vector["start"]
    may_begin = size > 0 and vector["start"] % (1 << (size - 1).bit_length()) == 0
    proof = [decoded(one) for one in vector["proof"] or []]
    place = vector["leafIdx"] - vector["start"]
    found = may_begin and includes(decoded(vector["leafHash"]), place, size, proof, decoded(vector["root"]))
    assert found is not vector["wantErr"]


@pytest.mark.parametrize("vector", [one for one in merkle("subtreeconsistency") if not one.values[0].get("start")])
def test_published_consistency_proof_of_a_part_of_a_tree(vector: dict[str, Any]) -> None:
    """Those of parts from the beginning on; AEGIS neither makes nor takes the others."""
    proof = [decoded(one) for one in vector["proof"] or []]
    found = extends(vector["end"], vector["size"], proof, decoded(vector["root1"]), decoded(vector["root2"]))
    # That a tree extends nothing at all says nothing: it is refused here, as by the vectors of whole trees.
    assert found is not (vector["wantErr"] or vector["end"] == 0)


# --- Wycheproof's HMAC-SHA256 -------------------------------------------------------------------


def wycheproof() -> list[Any]:
    file = VECTORS / "wycheproof" / "hmac_sha256_test.json"
    if not file.exists():
        reason = "AEGIS_TEST_VECTORS names no folder with Wycheproof's codes"
        return [pytest.param(0, {}, marks=pytest.mark.skip(reason=reason), id="hmac")]
    return [
        pytest.param(group["tagSize"] // 8, test, id=f"{test['tcId']} {test['comment'][:40]}")
        for group in json.loads(file.read_text())["testGroups"]
        for test in group["tests"]
    ]


@pytest.mark.parametrize(("size", "test"), wycheproof())
def test_published_code(size: int, test: dict[str, Any]) -> None:
    """The primitive that ``MacKey.code`` calls: its own message has a domain before it, which no vector has."""
    found = hmac.digest(bytes.fromhex(test["key"]), bytes.fromhex(test["msg"]), "sha256")[:size]
    assert hmac.compare_digest(found, bytes.fromhex(test["tag"])) is (test["result"] == "valid")


def test_a_code_is_that_primitive_over_the_domain_and_the_hash() -> None:
    secret, digest = bytes(range(32)), bytes(range(32, 64))
    key = MacKey(id="k", secret=secret, required_from=datetime(2026, 1, 1, tzinfo=UTC))
    # RFC 2104, spelled out.
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in secret.ljust(64, b"\0")) + b"aegis/mac/v1\n" + digest).digest()
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in secret.ljust(64, b"\0")) + inner).digest()
    assert key.code(digest) == outer


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.skipif(not VECTORS.is_dir(), reason="AEGIS_TEST_VECTORS names no folder")
def test_no_published_vector_is_left_out() -> None:
    """A kind that is new there is to be run somewhere, too; and none of those that must fail is missing."""
    kinds = {str(path.relative_to(VECTORS)) for path in VECTORS.glob("*/*")}
    assert kinds == {
        "merkle/consistency",
        "merkle/inclusion",
        "merkle/subtreeconsistency",
        "merkle/subtreeinclusion",
        "rfc8785/input",
        "rfc8785/outhex",
        "rfc8785/output",
        "wycheproof/ed25519_test.json",
        "wycheproof/hmac_sha256_test.json",
    }
    for kind in ("consistency", "inclusion", "subtreeconsistency", "subtreeinclusion"):
        wrong = [json.loads(file.read_text())["wantErr"] for file in (VECTORS / "merkle" / kind).rglob("*.json")]
        assert len(set(wrong)) == 2
