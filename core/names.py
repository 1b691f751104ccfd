"""Names from outside: what an id, a key or an actor may look like, wherever it comes in."""

from __future__ import annotations

import re
from typing import Final

from .errors import InvalidName

MAX_ID: Final = 128
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=~-]*")
_RULE: Final = f"use 1 to {MAX_ID} letters, digits and any of . _ : @ / + = ~ -, beginning with a letter or digit"


def check_name(what: str, value: object) -> str:
    """Return an id, key or actor that is fit for hashes, URLs, shells and logs.

    Raises:
        InvalidName: says what it must look like.

    """
    if not isinstance(value, str) or len(value) > MAX_ID or not _ID.fullmatch(value):
        raise InvalidName(what, str(value), _RULE)
    return value
