"""Names from outside: what an id, a key or an actor may look like, wherever it comes in."""

from __future__ import annotations

import re
from typing import Final, TypeGuard

from .errors import InvalidName

MAX_ID: Final = 128
MAX_NAME: Final = 128
_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/+=~-]*")
_RULE: Final = f"use 1 to {MAX_ID} letters, digits and any of . _ : @ / + = ~ -, beginning with a letter or digit"


SYSTEM: Final = "aegis:system"
"""The workflow whose chain tells of what was removed on purpose."""
SYSTEM_TYPE: Final = "aegis.System"
RECOVERY: Final = "system:recovery"
"""Who acts when a database is put back to an earlier point."""
_RESERVED: Final = "aegis:"


def check_new_id(workflow_id: object) -> str:
    """Return an id that a new workflow may have.

    Raises:
        InvalidName: it cannot be an id, or is the system's.

    """
    checked = check_name("workflow id", workflow_id)
    if checked.startswith(_RESERVED):
        raise InvalidName("workflow id", checked, f"what begins with {_RESERVED!r} is the system's own")
    return checked


def check_name(what: str, value: object) -> str:
    """Return an id, key or actor that is fit for hashes, URLs, shells and logs.

    Raises:
        InvalidName: says what it must look like.

    """
    if not is_id(value):
        raise InvalidName(what, str(value), _RULE)
    return value


def is_id(value: object) -> TypeGuard[str]:
    """Whether something can be a workflow's id, a key or an actor at all."""
    return isinstance(value, str) and len(value) <= MAX_ID and _ID.fullmatch(value) is not None


def is_queue_name(name: str) -> bool:
    """Whether a queue may be called that: what every broker, URL and shell takes as it is."""
    return 0 < len(name) <= MAX_NAME and all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
