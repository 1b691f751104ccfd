"""What the tutorial has its reader do to a history, and an auditor do by hand, done as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import pytest
from command_line import PROGRAM, CommandLine
from deployment import Deployment, deployed
from local_engine import eventually
from private_servers import TEMPLATE, PrivateBroker, PrivatePostgres

ROOT = Path(__file__).parents[2]
NEEDED = ("jq", "xxd", "openssl", "sha256sum", "base64")


# --- a page, block by block -----------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    language: str
    text: str

    def calls(self) -> list[tuple[str, list[str]]]:
        """The commands of a console, each with the lines that stand below it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
        return found


def blocks(page: str, heading: str) -> list[Block]:
    """The blocks below a heading, up to the next one of its depth."""
    text = (ROOT / "docs" / page).read_text()
    depth = heading.partition(" ")[0]
    begin = text.index(f"\n{heading}\n")
    rest = text[begin + len(heading) + 2 :]
    end = re.search(rf"^{depth} ", re.sub(r"```.*?```", lambda b: "x" * len(b[0]), rest, flags=re.DOTALL), re.MULTILINE)
    part = rest[: end.start()] if end else rest
    return [Block(one[1], one[2]) for one in re.finditer(r"^```(\w+)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)]


def named(page: str, file: str) -> str:
    """The code that a page has its reader save under a name."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"^```python\n(# {re.escape(file)}\n.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, f"{page} has no {file}"
    return found[1]


# What is another one each time.
VARIES = (
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?", "TIME"),
    (r"\S*anchors\.jsonl", "ANCHORS"),
    (r"worker:[^'\s]+", "WORKER"),
    (r"\b[0-9a-f]{64}\b", "HASH"),
    (r"\bline \d+", "line SOME"),
    (r"\b[\d,]+ histor(y|ies)", "SOME histories"),
    (r"\b[\d,]+(?= (transitions|entries))", "SOME"),
)


def alike(line: str) -> str:
    for pattern, name in VARIES:
        line = re.sub(pattern, name, line)
    return line.rstrip()


def assert_told(said: str, promised: list[str]) -> None:
    """What a command said is what stands on the page; ``...`` there is for any lines that follow."""
    lines, expected = [alike(line) for line in said.splitlines()], [alike(line) for line in promised]
    if expected and expected[-1] == "...":
        expected.pop()
        lines = lines[: len(expected)]
    assert lines == expected


# --- the tutorial's reader ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(
    tmp_path_factory: pytest.TempPathFactory, postgres: PrivatePostgres, broker: PrivateBroker
) -> Iterator[Deployment]:
    """A deployment as the reader has it once Ada has thanked, and all of it is anchored."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "greeting.py").write_text(named("tutorial.md", "greeting.py"))
    (folder / "edit.py").write_text(named("tutorial.md", "edit.py"))
    with (
        postgres.database(TEMPLATE) as url,
        deployed(
            folder, url, broker.url, AEGIS_WORKFLOWS="greeting", PYTHONPATH=str(folder), AEGIS_ANCHOR_INTERVAL="1"
        ) as deployment,
    ):
        assert CommandLine(deployment.environment, folder)("keys", "new", "anchor").status == 0
        deployment.beat()
        deployment.worker()
        (started,) = [block for block in blocks("tutorial.md", "## 2. Run it") if "aegis start" in block.text]
        for command, promised in started.calls():
            if command.startswith("aegis") and "history" not in command:
                assert_told(in_shell(deployment, command), promised)
        eventually("it is anchored", lambda: "3 entries" in in_shell(deployment, "aegis verify ada"))
        yield deployment


def in_shell(deployment: Deployment, command: str, *, status: int = 0) -> str:
    """Run a line as it stands on a page; return all that it said."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=deployment.folder,
        env={**CommandLine(deployment.environment, deployment.folder).environment(), "PATH": path_with_aegis()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def path_with_aegis() -> str:
    return os.pathsep.join([str(Path(PROGRAM[0]).parent), str(Path(sys.executable).parent), os.environ["PATH"]])


def edit(deployment: Deployment, statements: str) -> None:
    """Run statements with the script that the tutorial has for whoever has no psql."""
    (deployment.folder / "edit.sql").write_text(statements)
    assert in_shell(deployment, "python edit.py") == ""


def committed_actor(deployment: Deployment) -> str:
    connection = psycopg2.connect(deployment.environment["AEGIS_DATABASE_URL"])
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT actor FROM aegis_transition WHERE workflow_id = 'ada' AND seq = 2")
        (actor,) = cursor.fetchone()  # type: ignore[misc]
    finally:
        connection.close()
    assert isinstance(actor, str)
    return actor


@pytest.mark.skipif(Path(PROGRAM[0]).name != "aegis", reason="there is no `aegis` beside this Python")
def test_the_history_is_edited_and_caught_as_the_tutorial_tells(reader: Deployment) -> None:
    part = blocks("tutorial.md", "## 4. Edit the history")
    whole, refused, plainly, caught, thoroughly, caught_again, script, run_script = part
    assert [block.language for block in part] == [
        *("console", "console", "sql", "console"),
        *("sql", "console", "python", "console"),
    ]
    assert "import psycopg2" in script.text
    assert run_script.calls() == [("python edit.py", [])]
    actor = committed_actor(reader)

    ((command, promised),) = whole.calls()
    assert_told(in_shell(reader, command), promised)

    # Whoever is not past the trigger is told no, in these words.
    ((_, session),) = refused.calls()
    statement = session[0].partition("=# ")[2]
    connection = psycopg2.connect(reader.environment["AEGIS_DATABASE_URL"])
    with pytest.raises(psycopg2.Error) as no:
        connection.cursor().execute(statement)
    connection.close()
    assert no.value.diag.message_primary == session[1].removeprefix("ERROR:  ")
    assert alike(str(no.value.diag.context)) == alike(session[2].removeprefix("CONTEXT:  "))

    edit(reader, plainly.text)
    ((command, promised),) = caught.calls()
    assert command.endswith("; echo $?")
    assert_told(in_shell(reader, command), promised)
    edit(reader, plainly.text.replace("user:mallory", actor))
    assert "as committed" in in_shell(reader, "aegis verify ada")

    edit(reader, plainly.text)
    edit(reader, thoroughly.text)
    for command, promised in caught_again.calls():
        assert_told(in_shell(reader, command, status=0 if "none" in command else 1), promised)

    # And put back, with the worker's name in both steps, it is what it was.
    edit(reader, plainly.text.replace("user:mallory", actor))
    edit(reader, thoroughly.text.replace("user:mallory", actor))
    ((command, promised),) = whole.calls()
    assert_told(in_shell(reader, command), promised)


# --- an auditor, by hand --------------------------------------------------------------------------


@pytest.fixture
def by_hand(reader: Deployment) -> tuple[str, str, str]:
    """What the page has an auditor run, once there is a bundle ``b.json``: hashes, proof, signature."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        pytest.skip(f"the steps by hand need {' and '.join(missing)}")
    if not in_shell(reader, "openssl version").startswith("OpenSSL 3"):
        pytest.skip("the steps by hand need openssl 3.0 or newer")
    in_shell(reader, "aegis export ada -o b.json --force")
    hashes, proof, signature = (block.text for block in blocks("how-to/audit.md", "## By hand"))
    return hashes, proof, signature


def key_of(reader: Deployment) -> str:
    (file,) = (reader.folder / "home" / "keys").glob("anchor-*.vkey")
    return file.read_text().strip()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_bundle_is_checked_by_hand_as_the_page_tells(
    reader: Deployment, by_hand: tuple[str, str, str], number: int
) -> None:
    hashes, proof, signature = by_hand
    assert hashes.startswith("i=1\n")
    hashes = hashes.replace("i=1\n", f"i={number}\n", 1)
    said = in_shell(reader, hashes).split()
    found = [word for word in said if word != "-"]
    digest, beside, prev, before, genesis, checkpoint, payload, committed, committed_payload, leaf = found
    assert digest == beside
    # Of the first there is none before: it is linked to where the chain begins.
    assert prev == (before if number else genesis)
    assert checkpoint == committed
    if number == 2:  # the only one that has a payload
        assert payload == committed_payload
    else:
        assert committed_payload == "null"
    assert re.fullmatch("[0-9a-f]{64}", leaf)

    end, root = in_shell(reader, f"i={number}\n{proof}").split()
    assert end == root

    assert in_shell(reader, f"KEY='{key_of(reader)}'\n{signature}").strip() == "Signature Verified Successfully"


def test_what_was_changed_in_a_bundle_is_seen_by_hand(reader: Deployment, by_hand: tuple[str, str, str]) -> None:
    hashes, proof, signature = by_hand
    bundle = (reader.folder / "b.json").read_text()
    forged = bundle.replace(r"\"actor\":\"worker", r"\"actor\":\"w0rker")
    assert forged != bundle
    (reader.folder / "b.json").write_text(forged)
    digest, _, beside, *_ = in_shell(reader, hashes).split()
    assert digest != beside

    other = re.sub(r'("hash":")(.)', lambda found: found[1] + ("0" if found[2] != "0" else "1"), bundle)
    (reader.folder / "b.json").write_text(other)
    end, root = in_shell(reader, f"i=1\n{proof}").split()
    assert end != root

    size = re.sub(r"(?<=\\n)(\d+)(?=\\n)", lambda found: str(int(found[1]) + 1), bundle, count=1)
    assert size != bundle
    (reader.folder / "b.json").write_text(size)
    assert "Signature Verification Failure" in in_shell(reader, f"KEY='{key_of(reader)}'\n{signature}", status=1)
