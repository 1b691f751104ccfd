"""Writes ``persistence/awaited.py``, the engine that is awaited, off ``persistence/durable.py``, the one that blocks.

    python tests/support/awaited.py

Each public verb becomes one line that hands the call on, with the same parameters, types and words; so both
engines have the same verbs without anybody keeping them alike by hand. A test sees that the file is fresh.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOMS = Path(__file__).parents[2]
BLOCKING = ROOMS / "persistence" / "durable.py"
AWAITED = ROOMS / "persistence" / "awaited.py"

# What would keep the event loop from others, because it computes for long or reads files: done in a thread.
IN_A_THREAD = frozenset({"export_bundle", "import_bundle", "verify_audit_chain", "verify_integrity"})

HEAD = '''"""The engine that is awaited: each verb is that of ``durable.py``, handed on to it.

Not to be edited: edit ``durable.py``, and run ``python tests/support/awaited.py``.
"""

from __future__ import annotations

{imports}

W = TypeVar("W", bound=Workflow)


@dataclass(frozen=True)
class Handle(Generic[W]):
{handle}


class DurableWorkflowEngine(Spawning):
    """Start workflows, send them events, read and steer them. Awaited; for one event loop."""

{engine}

    @overload
    def _own(self, found: durable.Handle[W]) -> Handle[W]: ...

    @overload
    def _own(self, found: list_of[durable.Handle[W]]) -> list_of[Handle[W]]: ...

    def _own(self, found: durable.Handle[W] | list_of[durable.Handle[W]]) -> Handle[W] | list_of[Handle[W]]:
        if isinstance(found, durable.Handle):
            return Handle(self, found.id, found.rung, found.new)
        return [self._own(one) for one in found]
'''


def write(source: str) -> str:
    """Return the module that is awaited, for the source of the one that blocks."""
    tree = ast.parse(source)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    handle, engine = classes["Handle"], classes["DurableWorkflowEngine"]
    lines = source.splitlines()
    begins = handle.body[0].lineno - 1
    fields = lines[begins : min(one.lineno for one in _verbs(handle)) - 1]
    made = HEAD.format(
        imports=_imports(source, tree),
        handle="\n".join([*fields, *(_of_handle(lines, one) for one in _verbs(handle))]).rstrip(),
        engine="\n".join(_of_engine(lines, one) for one in _verbs(engine)).rstrip(),
    )
    return _tidy(made)


def _verbs(found: ast.ClassDef) -> list[ast.FunctionDef]:
    return [one for one in found.body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]


def _imports(source: str, tree: ast.Module) -> str:
    kept = [
        ast.get_source_segment(source, one) or ""
        for one in tree.body
        if isinstance(one, ast.ImportFrom | ast.Import) and getattr(one, "module", "") != "__future__"
    ]
    # The formatter throws away what is not needed.
    return "\n".join(
        [*kept, "from . import durable", "from .spawning import Spawning, blocking_side", "from typing import overload"]
    )


def _header(lines: list[str], verb: ast.FunctionDef) -> str:
    """Return everything up to the end of the docstring."""
    assert ast.get_docstring(verb), f"{verb.name} says nothing of itself"
    end = verb.body[0].end_lineno
    assert end is not None
    text = "\n".join(lines[verb.lineno - 1 : end])
    return re.sub(r"^    def ", "    async def ", text, count=1)


def _of_handle(lines: list[str], verb: ast.FunctionDef) -> str:
    assert verb.body[0].end_lineno is not None
    assert verb.end_lineno is not None
    body = "\n".join(lines[verb.body[0].end_lineno : verb.end_lineno])
    assert "self.engine." in body, f"Handle.{verb.name} does something by itself"
    return f"{_header(lines, verb)}\n{body.replace('self.engine.', 'await self.engine.')}\n"


def _of_engine(lines: list[str], verb: ast.FunctionDef) -> str:
    given = verb.args
    arguments = [one.arg for one in (*given.posonlyargs, *given.args) if one.arg != "self"]
    arguments += [f"*{given.vararg.arg}"] if given.vararg else []
    arguments += [f"{one.arg}={_given(one.arg)}" for one in given.kwonlyargs]
    where = "_in_a_thread" if verb.name in IN_A_THREAD else "_spawn"
    called = f"await self.{where}(lambda engine: engine.{verb.name}({', '.join(arguments)}))"
    returns = ast.unparse(verb.returns) if verb.returns else ""
    result = f"return self._own({called})" if "Handle[" in returns else f"return {called}"
    if returns == "None":
        result = called
    return f"{_header(lines, verb)}\n        {result}\n"


def _given(name: str) -> str:
    return "blocking_side(session)" if name == "session" else name


def _tidy(text: str) -> str:
    """Return it as the formatter would have it, without the imports that nothing needs."""
    for arguments in (["check", "--fix-only", "--quiet", "--select", "F401,I"], ["format", "--quiet"]):
        text = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(AWAITED.name), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOMS,
        ).stdout
    return text


if __name__ == "__main__":
    AWAITED.write_text(write(BLOCKING.read_text()))
