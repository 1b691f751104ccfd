"""Somebody else's payment service, played by a file: what it has charged stays charged.

It knows keys, as such services do, and now and then its answer gets lost although it has done its work.
"""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

from aegis import DidNotHappen, Happened

BOOK = Path(os.environ.get("PAYMENT_BOOK", "payments.jsonl"))


def charge(amount: Decimal, *, key: str) -> dict[str, Any]:
    """Charge a customer; the first answer of all gets lost on its way."""
    charges = charged()
    made = {"id": f"ch-{len(charges) + 1}", "key": key, "amount": str(amount)}
    with BOOK.open("a") as book:
        book.write(json.dumps(made) + "\n")
    if not charges:
        raise TimeoutError("no answer from the payment service")
    return made


def look_up(key: str) -> Happened[dict[str, Any]] | type[DidNotHappen]:
    """Say what became of the charge with that key."""
    found = [one for one in charged() if one["key"] == key]
    return Happened(found[0]) if found else DidNotHappen


def charged() -> list[dict[str, Any]]:
    """Return everything that was ever charged."""
    return [json.loads(line) for line in BOOK.read_text().splitlines()] if BOOK.exists() else []
