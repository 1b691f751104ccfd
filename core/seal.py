"""Codes of checkpoints inside handlers: what no transition has listed yet, only a key vouches for.

The code covers the place as well as the data: put elsewhere, it is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from .canonical import canonical
from .chain import MacKey, hash_of, timestamp

# What was committed before codes had to be there may come into the log so much later, and needs none: a transaction
# that stays open, of whomever, holds the log back meanwhile. Much longer than any is open, as a false alarm is worse
# here than a late one: whoever backdates what he adds is only found by its place once that day is over.
HELD_BACK: Final = timedelta(days=1)


def inside_hash(workflow_id: str, seq: int, number: int, commitment: bytes) -> bytes:
    """Return what the code of checkpoint ``number`` after transition ``seq`` is made of: a hash of its own kind."""
    place = {"commitment": commitment.hex(), "number": number, "seq": seq, "workflow_id": workflow_id}
    return hash_of("inside", canonical(place))


def required_from(keys: Mapping[str, MacKey]) -> str | None:
    """Return from when on codes have to be there, as an envelope would write it; None: there is no key."""
    moment = earliest(keys)
    return None if moment is None else timestamp(moment)


def earliest(keys: Mapping[str, MacKey]) -> datetime | None:
    """Return from when on codes have to be there; None: there is no key."""
    return min((key.required_from for key in keys.values()), default=None)


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
