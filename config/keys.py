"""Keys, in a folder of files that only their owner can read; never in the database.

``anchor-<id>.key`` signs anchors, and ``anchor-<id>.vkey`` is what others verify them with;
``mac-<id>.key`` authenticates transitions; ``backup-<id>.key`` opens encrypted backups. The newest of a kind
is the active one; older ones stay for verifying.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ..core.chain import MacKey
from ..core.errors import ConfigurationError, NotANote
from ..core.note import SigningKey, VerifierKey, is_key_name
from .settings import Settings

ANCHOR: Final = "anchor"
MAC: Final = "mac"
BACKUP: Final = "backup"
KINDS: Final = (ANCHOR, MAC, BACKUP)
_MAC_BYTES: Final = 32
_BACKUP_BYTES: Final = 48
_ID_BYTES: Final = 4
# A key's name may hold the sign itself, but no white space.
_COMMENT: Final = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """A key as it is kept; ``public`` is the line that others need, of a key that signs anchors."""

    kind: str
    id: str
    created_at: datetime
    path: Path
    public: str | None
    required_from: datetime | None
    """From when on every transition has to carry the code of such a key."""


def new_anchor_key(folder: Path, name: str) -> KeyFile:
    """Make a key that signs anchors under that name, and make it the active one.

    Raises:
        ConfigurationError: the folder cannot be written, or the name cannot be a key's.

    """
    if not is_key_name(name):
        raise ConfigurationError("the key's name", f"{name!r} holds white space or a plus", "name it otherwise")
    private = Ed25519PrivateKey.generate()
    key = SigningKey(name=name, private=private).verifier
    raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    # The private one last: it is the active one from then on, and others can verify what it signs.
    _keep(folder, f"{ANCHOR}-{key.id.hex()}.vkey", f"{key}\n", mode=0o644)
    _write(folder, ANCHOR, key.id.hex(), {"name": name, "private": base64.b64encode(raw).decode()})
    return _find(folder, ANCHOR, key.id.hex())


def new_mac_key(folder: Path, *, grace: timedelta) -> KeyFile:
    """Make a key that authenticates transitions, and make it the active one.

    After ``grace`` every transition has to carry its code: by then all processes must have it.

    Raises:
        ConfigurationError: the folder cannot be written.

    """
    name = secrets.token_hex(_ID_BYTES)
    required = datetime.now(UTC) + grace
    secret = base64.b64encode(secrets.token_bytes(_MAC_BYTES)).decode()
    _write(folder, MAC, name, {"secret": secret, "required_from": required.isoformat()})
    return _find(folder, MAC, name)


def new_backup_key(folder: Path) -> KeyFile:
    """Make a key that backups are encrypted with.

    Raises:
        ConfigurationError: the folder cannot be written.

    """
    name = secrets.token_hex(_ID_BYTES)
    _write(folder, BACKUP, name, {"secret": base64.b64encode(secrets.token_bytes(_BACKUP_BYTES)).decode()})
    return _find(folder, BACKUP, name)


def backup_secret(folder: Path) -> str | None:
    """Return what backups are encrypted with; None if there is no key for it.

    Raises:
        ConfigurationError: a file cannot be used.

    """
    found = _all(folder, BACKUP)
    if not found:
        return None
    file, body = found[-1]
    try:
        secret = str(body["secret"])
        if len(base64.b64decode(secret, validate=True)) != _BACKUP_BYTES:
            raise _unusable(file.path, f"its secret is not {_BACKUP_BYTES} bytes")
    except (KeyError, ValueError, TypeError):
        raise _unusable(file.path, "its secret cannot be read") from None
    return secret


def key_files(folder: Path) -> list[KeyFile]:
    """Return the keys of a folder, by kind, the newest of each kind last.

    Raises:
        ConfigurationError: a file cannot be used.

    """
    return [file for kind in KINDS for file, _ in _all(folder, kind)]


def signing_key(folder: Path) -> SigningKey | None:
    """Return the key that signs anchors; None if there is none.

    Raises:
        ConfigurationError: a file cannot be used.

    """
    found = _all(folder, ANCHOR)
    if not found:
        return None
    file, body = found[-1]
    try:
        private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(body["private"], validate=True))
        key = SigningKey(name=body["name"], private=private)
        if not is_key_name(key.name) or key.verifier.id.hex() != file.id:
            raise _unusable(file.path, "its private key is not the one of its name and id")
    except (KeyError, ValueError, TypeError):
        raise _unusable(file.path, "its private key cannot be read") from None
    return key


def mac_keys(folder: Path) -> tuple[MacKey, ...]:
    """Return the keys that authenticate transitions, the active one last.

    Raises:
        ConfigurationError: a file cannot be used.

    """
    made = []
    for file, body in _all(folder, MAC):
        try:
            secret = base64.b64decode(body["secret"], validate=True)
        except (KeyError, ValueError, TypeError):
            raise _unusable(file.path, "its secret cannot be read") from None
        if len(secret) != _MAC_BYTES or file.required_from is None:
            raise _unusable(file.path, f"its secret is not {_MAC_BYTES} bytes, or has no required_from")
        made.append(MacKey(id=file.id, secret=secret, required_from=file.required_from))
    return tuple(made)


def active_mac_key(settings: Settings) -> MacKey | None:
    """Return the key that authenticates transitions now; None if there is none.

    Raises:
        ConfigurationError: a file cannot be used.

    """
    found = mac_keys(settings.key_folder)
    return found[-1] if found else None


def trusted_keys(place: Path) -> list[VerifierKey]:
    """Return the keys whose anchors are trusted: a folder's ``*.vkey`` files, or the lines of one file.

    Raises:
        ConfigurationError: it cannot be read, or a line is no key.

    """
    files = sorted(place.glob("*.vkey")) if place.is_dir() else [place]
    found = []
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except OSError as error:
            raise _unusable(file, f"it cannot be read ({error.strerror})") from None
        except ValueError:
            raise _unusable(file, "it is not text") from None
        for line in filter(None, (_COMMENT.sub("", line).strip() for line in lines)):
            try:
                found.append(VerifierKey.parse(line))
            except NotANote as error:
                raise _unusable(file, f"{line[:80]!r}: {error.problem}") from None
    return found


# --- files ------------------------------------------------------------------------------------


def _write(folder: Path, kind: str, name: str, body: Mapping[str, str]) -> None:
    whole = {"kind": kind, "id": name, "created_at": datetime.now(UTC).isoformat(), **body}
    _keep(folder, f"{kind}-{name}.key", json.dumps(whole, indent=1) + "\n", mode=0o600)


def _keep(folder: Path, name: str, text: str, *, mode: int) -> None:
    """Write a file that is there as a whole or not at all, and never in the place of another."""
    part = folder / f".{name}.{secrets.token_hex(_ID_BYTES)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # With these rights from its first moment.
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.link(part, folder / name)
        finally:
            part.unlink(missing_ok=True)
        _sync(folder)
    except OSError as error:
        raise ConfigurationError(
            f"AEGIS_KEYS={folder}", f"{name} cannot be written there ({error.strerror})", "name another folder"
        ) from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _all(folder: Path, kind: str) -> list[tuple[KeyFile, dict[str, Any]]]:
    found = [_read(path, kind) for path in folder.glob(f"{kind}-*.key")] if folder.is_dir() else []
    return sorted(found, key=lambda one: (one[0].created_at, one[0].id))


def _find(folder: Path, kind: str, name: str) -> KeyFile:
    return next(file for file, _ in _all(folder, kind) if file.id == name)


def _read(path: Path, kind: str) -> tuple[KeyFile, dict[str, Any]]:
    try:
        if path.stat().st_mode & 0o077:
            raise _unusable(path, "others can read it", "chmod 600 it, and think of whether it is still a secret")
        body = json.loads(path.read_text())
        required = body.get("required_from")
        file = KeyFile(
            kind=kind,
            id=body["id"],
            created_at=datetime.fromisoformat(body["created_at"]),
            path=path,
            public=_public(path.with_suffix(".vkey")),
            required_from=None if required is None else datetime.fromisoformat(required),
        )
    except OSError as error:
        raise _unusable(path, f"it cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _unusable(path, "it is not a key as `aegis keys new` writes it") from None
    if path.stem != f"{kind}-{file.id}" or body.get("kind") != kind:
        raise _unusable(path, "it is the key of another file")
    if file.created_at.tzinfo is None or (file.required_from is not None and file.required_from.tzinfo is None):
        raise _unusable(path, "its times have no zone")
    return file, body


def _public(path: Path) -> str | None:
    if not path.exists():
        return None
    found = trusted_keys(path)
    return str(found[0]) if found else None


def _unusable(path: Path, problem: str, remedy: str = "restore it, or move it away") -> ConfigurationError:
    return ConfigurationError(str(path), problem, remedy)
