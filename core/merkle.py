"""Merkle trees of RFC 6962: one root over everything so far, and short proofs about it.

A tree over ``n`` leaves is known by a function ``mth(start, end)``, the hash of the leaves from
``start`` up to ``end``; where the hashes come from is not this file's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeAlias

EMPTY_ROOT: Final = hashlib.sha256(b"").digest()

Mth: TypeAlias = Callable[[int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962, section 2.1)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node from those of its children."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the perfect subtrees that a growing tree consists of: all that appending needs."""

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []

    @classmethod
    def of(cls, size: int, mth: Mth) -> Frontier:
        """Return that of a tree over ``size`` leaves."""
        made, start = cls(), 0
        for bit in reversed(range(size.bit_length())):
            if size >> bit & 1:
                made._roots.append(mth(start, start + (1 << bit)))
                start += 1 << bit
        made.size = size
        return made

    def append(self, leaf: bytes) -> None:
        """Add a leaf's hash; amortised two hashes each."""
        carry, size = leaf, self.size
        while size & 1:
            carry = node_hash(self._roots.pop(), carry)
            size >>= 1
        self._roots.append(carry)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add several leaves' hashes."""
        for leaf in leaves:
            self.append(leaf)

    @property
    def root(self) -> bytes:
        """The root of the tree as it is now."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the root over leaves' hashes."""
    frontier = Frontier()
    frontier.extend(leaves)
    return frontier.root


def inclusion_proof(index: int, size: int, mth: Mth) -> list[bytes]:
    """Return the proof that leaf ``index`` is in the tree over ``size`` leaves (PATH of RFC 6962).

    Raises:
        ValueError: there is no such leaf.

    """
    if not 0 <= index < size:
        msg = f"there is no leaf {index} in a tree of {size}"
        raise ValueError(msg)
    proof: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        split = start + _split(end - start)
        if index < split:
            proof.append(mth(split, end))
            end = split
        else:
            proof.append(mth(start, split))
            start = split
    return proof[::-1]


def consistency_proof(first: int, second: int, mth: Mth) -> list[bytes]:
    """Return the proof that the tree over ``second`` leaves extends the one over ``first`` (PROOF of RFC 6962).

    Raises:
        ValueError: not 0 < first <= second.

    """
    if not 0 < first <= second:
        msg = f"a tree of {second} does not extend one of {first}"
        raise ValueError(msg)
    proof: list[bytes] = []
    start, end, whole = 0, second, True
    while first != end:
        split = start + _split(end - start)
        if first <= split:
            proof.append(mth(split, end))
            end = split
        else:
            proof.append(mth(start, split))
            start, whole = split, False
    if not whole:
        proof.append(mth(start, end))
    return proof[::-1]


def includes(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows that the leaf's hash stands at ``index`` (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size or not _are_hashes(leaf, root, *proof):
        return False
    place, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            found = node_hash(sibling, found)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and found == root


def extends(first: int, second: int, proof: Sequence[bytes], old: bytes, new: bytes) -> bool:
    """Whether the proof shows that the tree of root ``new`` extends that of ``old`` (RFC 9162, section 2.1.4.2)."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and old == new
    if not _are_hashes(old, new, *proof):
        return False
    path = list(proof)
    if first & (first - 1) == 0:  # a perfect tree is its own first node
        path.insert(0, old)
    return bool(path) and _roots_from(path, first, second) == (old, new)


def _roots_from(path: Sequence[bytes], first: int, second: int) -> tuple[bytes, bytes] | None:
    """Return the roots of both trees that the path leads to, if it leads to the top."""
    place, last = first - 1, second - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    of_old = of_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if place & 1 or place == last:
            of_old, of_new = node_hash(sibling, of_old), node_hash(sibling, of_new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            of_new = node_hash(of_new, sibling)
        place, last = place >> 1, last >> 1
    return (of_old, of_new) if last == 0 else None


def _are_hashes(*found: bytes) -> bool:
    return all(len(one) == hashlib.sha256().digest_size for one in found)


def _split(count: int) -> int:
    """Return the largest power of two below ``count``."""
    return 1 << ((count - 1).bit_length() - 1)
