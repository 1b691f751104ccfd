"""The bar of ``aegis verify --all``: drawn where somebody watches, and of what there is to do."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from collections.abc import Iterator

import pytest
from command_line import PROGRAM, CommandLine
from deployment import Deployment
from fault_workflows import Steps

from aegis import Start
from aegis.persistence import log, span

COUNT = 2500


@pytest.fixture
def aegis(idle: Deployment) -> CommandLine:
    return CommandLine({**idle.environment, "TERM": "xterm", "COLUMNS": "120"}, idle.folder)


@pytest.fixture(scope="module", autouse=True)
def _many(idle: Deployment) -> None:
    """Histories for several pages, all of them in the log; no table of them was ever analysed."""
    idle.engine.start_many([Start(Steps(), id=f"s-{number:05}") for number in range(COUNT)])
    with idle.database.transaction() as session:
        connection = session.connection()
        assert log.lock(connection)
        log.take_up(connection, 2 * COUNT)
        assert log.state(connection).size == COUNT


def watched(aegis: CommandLine, *arguments: str) -> tuple[int, str, str]:
    """Run a command whose standard error is a terminal; return its status, what it said, and what was drawn."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        cwd=aegis.folder,
        env=aegis.environment(),
    )
    os.close(theirs)
    drawn = b"".join(_all_of(ours))  # ends when nobody has the other end any more
    said, _ = process.communicate(timeout=90)
    return process.returncode, said.decode(), drawn.decode()


def _all_of(descriptor: int) -> Iterator[bytes]:
    try:
        while chunk := os.read(descriptor, 65536):
            yield chunk
    except OSError:  # how Linux says that a terminal is over
        pass
    finally:
        os.close(descriptor)


def test_the_bar_is_drawn_and_moves_to_its_end(aegis: CommandLine) -> None:
    status, said, drawn = watched(aegis, "verify", "--all")
    assert (status, said.splitlines()[0]) == (0, f"{COUNT:,} histories, {COUNT:,} transitions: as committed")
    assert "━" in drawn
    counts = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) transitions", drawn)]
    assert counts == sorted(counts)
    assert len(set(counts)) >= 4, "it moves"
    assert counts[-1] == COUNT
    percents = [int(found) for found in re.findall(r"(\d+)%", drawn)]
    assert percents == sorted(percents)
    # The chains are one half of it, the log the other: nothing was analysed, and it is known all the same.
    assert 40 <= max(percent for percent, count in zip(percents, counts, strict=True) if count < COUNT) <= 50
    assert percents[-1] == 100
    assert "the log and its anchors" in drawn


@pytest.mark.parametrize("arguments", [("verify", "--all", "--json"), ("verify", "s-00001")])
def test_there_is_none_for_programs_nor_for_one_history(aegis: CommandLine, arguments: tuple[str, ...]) -> None:
    status, said, drawn = watched(aegis, *arguments)
    assert (status, drawn) == (0, "")
    assert said


def test_there_is_none_where_nobody_watches(aegis: CommandLine) -> None:
    said = aegis("verify", "--all")
    assert (said.status, said.stderr) == (0, "")
    assert "━" not in said.stdout


def test_its_length_is_known_before_any_statistics(idle: Deployment) -> None:
    with idle.database.statement() as connection:
        assert span.transitions(connection) == COUNT
