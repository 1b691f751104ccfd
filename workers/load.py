"""Loading the user's workflows: the modules that ``AEGIS_WORKFLOWS`` names."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..core.errors import ConfigurationError

_VARIABLE: Final = "AEGIS_WORKFLOWS"


def load_workflows(modules: Sequence[str]) -> None:
    """Import each module, which makes the workflow types in it known.

    Raises:
        ConfigurationError: names the module, what went wrong in which line, and what to do.

    """
    for module in modules:
        _load(module)


def _load(module: str) -> None:
    source = f"{_VARIABLE}={module}"
    if module.endswith(".py") or "/" in module:
        name = Path(module).stem
        raise ConfigurationError(source, "it is a file", f"name the module: {name}, from the folder that holds it")
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigurationError(
                source, f"there is no module {error.name!r} on the path", "run from its folder, or install it"
            ) from None
        raise _broken(source, error) from None
    except Exception as error:  # noqa: BLE001 - whatever a user's module raises while it is loaded
        raise _broken(source, error) from None


def _broken(source: str, error: BaseException) -> ConfigurationError:
    problem = str(error)
    if isinstance(error, SyntaxError):
        place, problem = f"{error.filename}:{error.lineno}", error.msg
    else:
        # The last line of the user's own code: the machinery of importing, and ours, say nothing to anybody.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_theirs(frame.filename)]
        frames = [frame for frame in frames if "site-packages" not in frame.filename] or frames
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown line"
    return ConfigurationError(source, f"{type(error).__name__} in {place}: {problem}", "mend it, and start again")


def _is_theirs(filename: str) -> bool:
    ours = Path(__file__).resolve().parents[1]
    rooms = {ours / room for room in ("core", "config", "workers")}
    return "importlib" not in filename and not rooms & set(Path(filename).resolve().parents)
