"""The seal of a report: a signed note about the very bytes of its JSON, by the key that signs the anchors.

It is no anchor and cannot be taken for one: its text has other lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ...core.errors import ConfigurationError, NotANote
from ...core.note import SigningKey, VerifierKey, open_text

SUFFIX: Final = ".note"
_SAYS: Final = "aegis drill report\nsha256 {}\n"


def seal(report: bytes, key: SigningKey) -> str:
    """Return the note about a report."""
    return key.sign(_text(report))


def check_seal(path: Path, trusted: Iterable[VerifierKey]) -> str:
    """Return who sealed a report.

    Raises:
        NotANote: there is no note beside it, nobody trusted signed it, or it is about other bytes.
        ConfigurationError: the report cannot be read.

    """
    note = path.with_name(path.name + SUFFIX)
    try:
        report = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(str(path), f"it cannot be read ({error.strerror})", "name a report's JSON") from None
    try:
        signed = note.read_text()
    except OSError as error:
        raise NotANote("the seal", f"{note} cannot be read ({error.strerror})") from None
    except ValueError:
        raise NotANote("the seal", f"{note} is not text") from None
    text, signer = open_text(signed, trusted, what="the seal")
    if text != _text(report):
        raise NotANote("the seal", f"it is not about {path} as it is now")
    return f"{signer.name}+{signer.id.hex()}"


def _text(report: bytes) -> str:
    return _SAYS.format(hashlib.sha256(report).hexdigest())
