"""Merkle trees: against the definition, and against published proofs, the ones that must fail above all."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.core.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    extends,
    includes,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
)

VECTORS = Path(os.environ.get("AEGIS_TEST_VECTORS", "/nonexistent"))
LEAVES = [leaf_hash(str(number).encode()) for number in range(70)]
FAR = 2**63


def mth(leaves: list[bytes]) -> bytes:
    """The definition of RFC 6962, section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(mth(leaves[:split]), mth(leaves[split:]))


def of(leaves: list[bytes]) -> Callable[[int, int], bytes]:
    return lambda start, end: mth(leaves[start:end])


def test_the_tree_of_nothing() -> None:
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert root_of([]) == Frontier().root == EMPTY_ROOT


@pytest.mark.parametrize("size", range(len(LEAVES) + 1))
def test_a_growing_tree_has_the_root_of_the_definition(size: int) -> None:
    assert root_of(LEAVES[:size]) == mth(LEAVES[:size])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 33, 64, 70])
def test_each_leaf_is_included_and_at_no_other_place(size: int) -> None:
    leaves = LEAVES[:size]
    root = mth(leaves)
    for index in range(size):
        proof = inclusion_proof(index, size, of(leaves))
        assert includes(leaves[index], index, size, proof, root)
        for other in (*range(size), -1, size, FAR):
            if other != index:
                assert not includes(leaves[index], other, size, proof, root)
        assert not includes(leaves[index], index, size, [*proof, root], root)
        assert not includes(leaves[index], index, size, proof[:-1], root) or not proof
        assert not includes(leaves[index], index, 0, proof, root)
        assert not includes(LEAVES[-1] if index != len(LEAVES) - 1 else LEAVES[0], index, size, proof, root)


@pytest.mark.parametrize("second", [1, 2, 3, 5, 8, 9, 17, 33, 70])
def test_each_tree_extends_those_before_it_and_no_other(second: int) -> None:
    new = mth(LEAVES[:second])
    for first in range(1, second + 1):
        old = mth(LEAVES[:first])
        proof = consistency_proof(first, second, of(LEAVES))
        assert extends(first, second, proof, old, new)
        forked = mth([*LEAVES[: first - 1], leaf_hash(b"another")])
        assert not extends(first, second, proof, forked, new)
        assert not extends(first, second, proof, old, mth([*LEAVES[: second - 1], leaf_hash(b"another")]))
        assert not extends(first, second, [*proof, new], old, new)
        assert not extends(first, second, proof[:-1], old, new) or not proof


@given(st.integers(1, 70), st.data())
def test_a_flipped_bit_anywhere_is_noticed(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, of(LEAVES))
    parts = [LEAVES[index], mth(LEAVES[:size]), *proof]
    which, bit = data.draw(st.integers(0, len(parts) - 1)), data.draw(st.integers(0, 255))
    parts[which] = (int.from_bytes(parts[which], "big") ^ (1 << bit)).to_bytes(32, "big")
    assert not includes(parts[0], index, size, parts[2:], parts[1])


def test_proofs_of_what_is_not_there_are_refused() -> None:
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="there is no leaf"):
            inclusion_proof(index, size, of(LEAVES))
    for first, second in ((0, 3), (4, 3), (-1, 3)):
        with pytest.raises(ValueError, match="does not extend"):
            consistency_proof(first, second, of(LEAVES))


# --- published ------------------------------------------------------------------------------


def vectors(kind: str) -> list[Any]:
    folder = VECTORS / "merkle" / kind
    if not folder.is_dir():
        reason = "AEGIS_TEST_VECTORS names no folder with the proofs of transparency-dev/merkle"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id=kind)]
    files = sorted(folder.rglob("*.json"))
    return [pytest.param(json.loads(file.read_text()), id=str(file.relative_to(folder))) for file in files]


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


@pytest.mark.parametrize("vector", vectors("inclusion"))
def test_published_inclusion_proof(vector: dict[str, Any]) -> None:
    proof = [decoded(one) for one in vector["proof"] or []]
    found = includes(decoded(vector["leafHash"]), vector["leafIdx"], vector["treeSize"], proof, decoded(vector["root"]))
    assert found is not vector["wantErr"]


@pytest.mark.parametrize("vector", vectors("consistency"))
def test_published_consistency_proof(vector: dict[str, Any]) -> None:
    proof = [decoded(one) for one in vector["proof"] or []]
    found = extends(vector["size1"], vector["size2"], proof, decoded(vector["root1"]), decoded(vector["root2"]))
    assert found is not vector["wantErr"]
