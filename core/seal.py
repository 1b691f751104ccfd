"""Codes of checkpoints inside handlers: what no transition has listed yet, only a key vouches for.

The code covers the place as well as the data: put elsewhere, it is none.
"""

from __future__ import annotations

from collections.abc import Mapping

from .canonical import canonical
from .chain import MacKey, hash_of, timestamp


def inside_hash(workflow_id: str, seq: int, number: int, commitment: bytes) -> bytes:
    """Return what the code of checkpoint ``number`` after transition ``seq`` is made of: a hash of its own kind."""
    place = {"commitment": commitment.hex(), "number": number, "seq": seq, "workflow_id": workflow_id}
    return hash_of("inside", canonical(place))


def required_from(keys: Mapping[str, MacKey]) -> str | None:
    """Return from when on codes have to be there, as an envelope would write it; None: there is no key."""
    return timestamp(min(key.required_from for key in keys.values())) if keys else None


def flaw(
    mac: bytes | None, mac_key: str | None, hash_: bytes, keys: Mapping[str, MacKey], *, needed: bool
) -> tuple[str, str | None] | None:
    """Return what was expected of a code, and what there is instead; None if there is nothing wrong with it."""
    if mac is None or mac_key is None:
        return ("a code, as there is a key", None) if needed else None
    key = keys.get(mac_key)
    if key is None:
        return "a key that is known here", f"the key {mac_key!r}"
    return None if mac == key.code(hash_) else (f"the code of the key {mac_key!r}", mac.hex())
