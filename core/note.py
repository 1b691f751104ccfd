"""Signed statements about the log: C2SP's signed-note and tlog-checkpoint, with Ed25519.

A note is text, an empty line, and a signature line for each signer. Its text here is the log's
head: its name, its size, its root, and when it was said. https://c2sp.org/signed-note and
https://c2sp.org/tlog-checkpoint have the formats.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from .chain import timestamp
from .errors import NotANote

_ED25519: Final = b"\x01"
_KEY_ID_BYTES: Final = 4
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_ROOT_BYTES: Final = 32
_DASH: Final = "\N{EM DASH}"
_NAME: Final = re.compile(r"[^\s+\x00-\x1f\x7f\ud800-\udfff]+")
_SIZE: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_AT: Final = re.compile(r"at (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)", re.ASCII)
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
_LARGEST: Final = 1_000_000


def is_key_name(name: str) -> bool:
    """Whether a key, or a log, may be called that: neither white space nor a plus, and nothing but characters."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifierKey:
    """A public key with the name that it signs under; ``public`` is 32 bytes."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that tell keys of one name apart."""
        named = self.name.encode() + b"\n" + _ED25519 + self.public
        return hashlib.sha256(named).digest()[:_KEY_ID_BYTES]

    def __str__(self) -> str:
        """Return the key as one line: ``name+id+base64``."""
        return f"{self.name}+{self.id.hex()}+{_base64(_ED25519 + self.public)}"

    @classmethod
    def parse(cls, line: str) -> VerifierKey:
        """Read a key from its line.

        Raises:
            NotANote: it is not one, or its id is not that of the key.

        """
        name, _, rest = line.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _from_base64(encoded)
        if not is_key_name(name) or raw is None or len(raw) != 1 + _KEY_BYTES or not raw.startswith(_ED25519):
            raise NotANote("the key", "it is not name+id+base64 of an Ed25519 key")
        key = cls(name=name, public=raw[1:])
        if key.id.hex() != key_id:
            raise NotANote("the key", f"its id is {key_id!r}, that of this name and key is {key.id.hex()!r}")
        return key

    def verifies(self, signature: bytes, text: bytes) -> bool:
        """Whether the signature is this key's, on this text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKey:
    """A private key with the name that it signs under."""

    name: str
    private: Ed25519PrivateKey

    @property
    def verifier(self) -> VerifierKey:
        """The key that others verify with."""
        public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return VerifierKey(name=self.name, public=public)

    def sign(self, text: str) -> str:
        """Return the text as a note that this key signed."""
        signature = _base64(self.verifier.id + self.private.sign(text.encode()))
        return f"{text}\n{_DASH} {self.name} {signature}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class LogHead:
    """What a note says of a log: ``origin`` names it, ``root`` is over the first ``size`` leaves."""

    origin: str
    size: int
    root: bytes
    at: datetime

    def text(self) -> str:
        """Return what is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\nat {timestamp(self.at)}\n"


def open_note(note: str, trusted: Iterable[VerifierKey]) -> LogHead:
    """Return what a note says, if a trusted key signed it.

    Signatures of others are passed over, as the format asks; one of a trusted key that does not
    verify is no note at all.

    Raises:
        NotANote: it is malformed, or no trusted key signed it.

    """
    text, _ = open_text(note, trusted, what="the anchor")
    return _read_head(text)


def claimed_head(note: str) -> LogHead:
    """Return what a note says, whoever signed it: for looking for one, before it is opened.

    Raises:
        NotANote: it is malformed.

    """
    text, _ = _parts(note, "the anchor")
    return _read_head(text)


def open_text(note: str, trusted: Iterable[VerifierKey], *, what: str) -> tuple[str, VerifierKey]:
    """Return a note's text and who signed it, if a trusted key did; ``what`` it is called where it is refused.

    Raises:
        NotANote: it is malformed, or no trusted key signed it.

    """
    text, signatures = _parts(note, what)
    keys = {(key.name, key.id): key for key in trusted}
    found = [(keys[name, key_id], signature) for name, key_id, signature in signatures if (name, key_id) in keys]
    if not found:
        signers = ", ".join(f"{name}+{key_id.hex()}" for name, key_id, _ in signatures)
        raise NotANote(what, f"it is signed by {signers}, which is not trusted here")
    for key, signature in found:
        if not key.verifies(signature, text.encode()):
            raise NotANote(what, f"the signature of {key.name}+{key.id.hex()} is not valid")
    return text, found[0][0]


def _parts(note: str, what: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    text, separator, rest = note.rpartition("\n\n")
    if len(note) > _LARGEST or not separator or not note.endswith("\n") or not rest or _SURROGATE.search(note):
        raise NotANote(what, "it is not text, an empty line, and signatures")
    signatures = []
    for line in rest.removesuffix("\n").split("\n"):
        dash, _, named = line.partition(" ")
        name, _, encoded = named.partition(" ")
        raw = _from_base64(encoded)
        if dash != _DASH or not is_key_name(name) or raw is None or len(raw) < _KEY_ID_BYTES + 1:
            raise NotANote(what, f"{line[:80]!r} is no signature")
        signatures.append((name, raw[:_KEY_ID_BYTES], raw[_KEY_ID_BYTES:]))
    return text + "\n", signatures


def _read_head(text: str) -> LogHead:
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != 4:  # noqa: PLR2004 - name, size, root, time
        raise NotANote("the anchor", "it does not have the lines: name, size, root, time")
    origin, size, encoded, said = lines
    root, at = _from_base64(encoded), _AT.fullmatch(said)
    if not origin or not _SIZE.fullmatch(size) or root is None or len(root) != _ROOT_BYTES or at is None:
        raise NotANote("the anchor", "its name, size, root or time cannot be read")
    try:
        moment = datetime.strptime(at[1], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        raise NotANote("the anchor", f"{at[1]} is no moment") from None
    return LogHead(origin=origin, size=int(size), root=root, at=moment)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _from_base64(text: str) -> bytes | None:
    """Return the bytes that the text stands for, where it is the only one that does."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if _base64(raw) == text else None
