"""Trusted time: a token of an RFC 3161 authority over each anchor, where one is set."""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import timedelta
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final, TypeAlias

from ..config.logging import get_logger
from ..config.settings import safe_url
from ..core.anchor import Judge
from ..core.chain import timestamp
from ..core.errors import ConfigurationError
from ..core.note import claimed_head

log = get_logger(__name__)

Stamp: TypeAlias = Callable[[str], str | None]
"""What asks for a token over a note; None if the authority does not answer: the anchor goes without."""

_PATIENCE: Final = 10.0
_MOST: Final = 1_000_000
_PIECE: Final = 64 * 1024
# An anchor that was signed long before it was stamped was not there when it says: clocks do not differ by that much.
_APART: Final = timedelta(days=1)
# RFC 3161, section 2.4.2: granted, and granted with modifications.
_GRANTED: Final = (0, 1)


def stamp(url: str, judge: Judge | None = None) -> Stamp | None:
    """Return what asks the authority at that address; None if there is no address.

    A token that ``judge`` finds fault with is none.

    Raises:
        ConfigurationError: what speaks to one is not installed.

    """
    if not url:
        return None
    try:
        from rfc3161_client import TimestampRequestBuilder, decode_timestamp_response  # noqa: PLC0415 - an extra
    except ImportError:
        remedy = "pip install 'aegis-workflows[timestamp]'"
        raise ConfigurationError(
            f"AEGIS_TIMESTAMP_URL={safe_url(url)}", "rfc3161-client is not installed", remedy
        ) from None

    def ask(note: str) -> str | None:
        request = TimestampRequestBuilder().data(note.encode()).build()
        try:
            answer = _post(url, request.as_bytes())
            problem = _problem(request, decode_timestamp_response(answer))
            if problem is None and judge is not None:
                problem = judge(note, base64.b64encode(answer).decode())
        except (OSError, ValueError, HTTPException) as error:
            answer, problem = b"", str(error) or type(error).__name__
        if problem is not None:
            log.warning("no timestamp", authority=safe_url(url), reason=problem)
            return None
        return base64.b64encode(answer).decode()

    return ask


def judge_by(roots: Path) -> Judge | None:
    """Return what verifies timestamps by the certificates in that file; None if no file is named.

    Raises:
        ConfigurationError: it holds none, or what verifies timestamps is not installed.

    """
    if roots == Path():
        return None
    source = f"AEGIS_TIMESTAMP_ROOTS={roots}"
    try:
        from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 - slow to load
        from rfc3161_client import VerifierBuilder, decode_timestamp_response  # noqa: PLC0415 - an extra
    except ImportError:
        remedy = "pip install 'aegis-workflows[timestamp]'"
        raise ConfigurationError(source, "rfc3161-client is not installed", remedy) from None
    try:
        verifier = VerifierBuilder(roots=load_pem_x509_certificates(roots.read_bytes())).build()
    except OSError as error:
        problem = f"it cannot be read ({error.strerror})"
        raise ConfigurationError(source, problem, "name a file of PEM certificates") from None
    except ValueError:
        raise ConfigurationError(source, "it holds no certificates", "name a file of PEM certificates") from None

    def judge(note: str, token: str) -> str | None:
        try:
            response = decode_timestamp_response(base64.b64decode(token, validate=True))
            verifier.verify_message(response, note.encode())
            said, stamped = claimed_head(note).at, response.tst_info.gen_time
        except Exception as error:  # noqa: BLE001 - whoever can write to a place of anchors chose these bytes
            # What follows is a library's own stack of errors.
            return str(error).partition(": ErrorStack")[0] or type(error).__name__
        if abs(stamped - said) > _APART:
            return f"one of {timestamp(stamped)}, and the anchor says {timestamp(said)}"
        return None

    return judge


def _post(url: str, query: bytes) -> bytes:
    """Send a query to an authority and return what it answers, as far as it does within the time there is."""
    until = time.monotonic() + _PATIENCE
    asked = urllib.request.Request(url, query, {"Content-Type": "application/timestamp-query"})  # noqa: S310 - http alone
    try:
        with urllib.request.urlopen(asked, timeout=_PATIENCE) as answer:  # noqa: S310
            token = b""
            # The time-out is that of one piece: an authority that drips must not keep us for ever.
            while piece := answer.read1(_PIECE):
                token += piece
                if len(token) > _MOST or time.monotonic() > until:
                    msg = "its answer is too long, or takes too long"
                    raise ValueError(msg)
            return token
    except urllib.error.HTTPError as error:
        error.close()
        raise


def _problem(request: Any, response: Any) -> str | None:
    """Return why an answer is no token over what was asked; None if it is one."""
    if response.status not in _GRANTED:
        return f"it answered with status {response.status}"
    said = response.tst_info
    if said.message_imprint.message != request.message_imprint.message or said.nonce != request.nonce:
        return "its token is over something else"
    return None
