"""The package as it is shipped: a wheel from a clean tree holds everything, and runs elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from deployment import Deployment

from aegis.persistence.schema import wanted

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "aegis"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of what a clone holds, without a network."""
    source = tmp_path_factory.mktemp("source") / "aegis"
    unwanted = shutil.ignore_patterns(
        ".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", "build", "dist", ".hypothesis"
    )
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    made = subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"],
        cwd=source,
        capture_output=True,
        text=True,
        check=True,
    )
    return source / "dist" / made.stdout.split()[-1]


def test_every_room_is_linked_and_nothing_else() -> None:
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    links = {path.name: path for path in PACKAGE.iterdir() if path.is_symlink()}
    assert links.keys() == rooms
    assert all(path.readlink() == Path("..", "..", name) for name, path in links.items())
    assert not (ROOT / "__init__.py").exists()


def test_the_wheel_holds_every_module_and_the_types_marker(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"aegis/{path.name}" for path in PACKAGE.glob("*.py")}
    for link in (path for path in PACKAGE.iterdir() if path.is_symlink()):
        modules |= {f"aegis/{link.name}/{path.relative_to(link.resolve())}" for path in link.resolve().rglob("*.py")}
    assert len(modules) > 60
    assert modules <= held
    assert "aegis/py.typed" in held
    assert not [name for name in held if name.startswith(("tests/", "core/", "tasks/"))]


def test_the_wheel_runs_elsewhere(wheel: Path, tmp_path: Path, deployment: Deployment) -> None:
    elsewhere = tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(elsewhere)
    run = (
        "import aegis, sys; assert aegis.__file__.startswith(sys.argv.pop(1)); from aegis.cli.main import main; main()"
    )

    def aegis(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", run, str(elsewhere), *arguments],
            env={**os.environ, **deployment.environment, "PYTHONPATH": str(elsewhere), "AEGIS_WORKFLOWS": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert wanted() in aegis("db", "upgrade")
    assert aegis("list") == "no workflows\n"
