"""Keeping a report: JSON with its seal, a page, and a picture; each file is there as a whole or not at all."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from ...core.errors import ConfigurationError
from ...core.note import SigningKey
from .chart import chart
from .markdown import markdown
from .report import Report
from .seal import SUFFIX, seal


def keep(report: Report, folder: Path, key: SigningKey | None) -> Path:
    """Write a report into a folder, in the place of the one before; return its JSON file.

    Raises:
        ConfigurationError: the folder cannot be written.

    """
    body = (json.dumps(report.document(), ensure_ascii=False, indent=1) + "\n").encode()
    path = folder / f"{report.scenario}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / f"{report.scenario}.svg", chart(report).encode())
        _write(folder / f"{report.scenario}.md", markdown(report).encode())
        _write(path, body)
        note = path.with_name(path.name + SUFFIX)
        if key is None:
            note.unlink(missing_ok=True)  # the one of before is about another report
        else:
            _write(note, seal(body, key).encode())
    except OSError as error:
        raise ConfigurationError(
            str(folder), f"the report cannot be written there ({error.strerror})", "name another folder"
        ) from None
    return path


def _write(path: Path, body: bytes) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        part.write_bytes(body)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
