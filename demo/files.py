"""The demo's input: real files, and the tool that everybody trusts to check them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from ..core.errors import ConfigurationError

_SKIPPED: Final = frozenset({"__pycache__", "site-packages", "dist-packages", ".git"})
_A_BATCH: Final = 500


def default_directory() -> Path:
    """Return the running Python's standard library: a few hundred real files on every machine."""
    return Path(sysconfig.get_paths()["stdlib"])


def find(directory: Path, most: int) -> list[Path]:
    """Return at most so many readable files below a directory, in a fixed order.

    Raises:
        ConfigurationError: there is no such directory, or no file in it.

    """
    if not directory.is_dir():
        raise ConfigurationError(str(directory), "it is not a directory", "name one that holds the files to archive")
    files = list(islice(_walk(directory), most))
    if not files:
        raise ConfigurationError(str(directory), "there is no readable file in it", "name another directory")
    return files


def _walk(directory: Path) -> Iterator[Path]:
    for folder, below, names in os.walk(directory):
        below[:] = sorted(name for name in below if name not in _SKIPPED)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK) and "\\" not in name:
                yield path


def sha256sums(files: Sequence[Path]) -> dict[str, str]:
    """Return what ``sha256sum`` says of the files; where there is no such program, what Python says."""
    program = shutil.which("sha256sum")
    if program is None:
        return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    sums: dict[str, str] = {}
    for start in range(0, len(files), _A_BATCH):
        batch = [str(file) for file in files[start : start + _A_BATCH]]
        said = subprocess.run([program, "--", *batch], capture_output=True, text=True, check=True).stdout
        for line in said.splitlines():
            digest, _, name = line.partition("  ")
            sums[name] = digest
    return sums
