"""What a lost node would cost, in words: every combination of who is there and who is waited for."""

from __future__ import annotations

from datetime import timedelta

import pytest

from aegis.persistence.replication import Replication, Standby, named, needed
from aegis.tasks.check import State
from aegis.tasks.replicas import replication, size


def standby(name: str, mode: str | None = "quorum", *, streams: bool = True, behind: int = 0) -> Standby:
    return Standby(name=name, streams=streams, mode=mode, behind=behind, late=timedelta(0))


def judged(
    *standbys: Standby, names: str = "ANY 1 (b, c)", waits: bool = True, is_standby: bool = False
) -> tuple[State, str]:
    found = Replication(is_standby=is_standby, needed=needed(names), waits=waits, standbys=standbys, named=named(names))
    (check,) = replication(found)
    assert bool(check.remedy) == (check.state is not State.OK)
    return check.state, check.says


@pytest.mark.parametrize(
    ("names", "count", "who"),
    [
        ("", 0, set()),
        (" ", 0, set()),
        ("*", 1, {"*"}),
        ("b", 1, {"b"}),
        ("b, c", 1, {"b", "c"}),
        ('"node-1"', 1, {"node-1"}),
        ("2 (b, c)", 2, {"b", "c"}),
        ("FIRST 2 (b, c)", 2, {"b", "c"}),
        ('ANY 1 ("node-1","node-2")', 1, {"node-1", "node-2"}),
        ("any 2(b,c,d) ", 2, {"b", "c", "d"}),
        ("anyone, b", 1, {"anyone", "b"}),
    ],
)
def test_whom_and_how_many_a_commit_waits_for(names: str, count: int, who: set[str]) -> None:
    assert (needed(names), named(names)) == (count, who)


def test_one_server_alone_is_no_reason_to_warn() -> None:
    assert judged(names="") == (State.OK, "none: one server, whose disk and backups are what there is")
    for name in ("barman_receive_wal", "aegis_archive"):
        assert judged(standby(name, "async", behind=16_000_000), names="")[0] is State.OK


def test_a_node_that_the_others_left_is_not_one_server_alone() -> None:
    found = Replication(is_standby=False, needed=0, waits=True, standbys=(), named=frozenset())
    (check,) = replication(found, nodes=3)
    assert check.state is State.DEGRADED
    assert check.says.startswith("a lost node loses what was committed since the others left it: none of the 3 ")


def test_two_synchronous_standbys_of_which_one_is_needed_lose_nothing() -> None:
    state, says = judged(standby("b"), standby("c"))
    assert state is State.OK
    assert says.startswith("a lost node loses nothing: 2 synchronous standbys (b synchronous, 0 bytes and 0.0 s behind")


def test_the_last_synchronous_standby_is_said_to_be_the_last() -> None:
    state, says = judged(standby("b"), standby("c", streams=False))
    assert state is State.OK
    assert "1 synchronous standby; without it, writes wait (b synchronous" in says
    assert "c catching up" in says


def test_no_synchronous_standby_is_there_and_writes_wait() -> None:
    assert judged() == (State.DEGRADED, "writes wait: 0 of 1 synchronous standbys is there")
    assert judged(standby("b"), names="ANY 2 (b, c)")[1] == "writes wait: 1 of 2 synchronous standbys are there"
    assert judged(standby("b", "potential"))[0] is State.DEGRADED


def test_an_archive_that_commits_wait_for() -> None:
    archive = standby("aegis_archive", "sync")
    state, says = judged(archive, names="aegis_archive")
    assert state is State.OK
    assert says.startswith("a lost disk loses nothing: a commit returns once it is archived; without it, writes wait (")
    assert judged(names="aegis_archive") == (State.DEGRADED, "writes wait: the archive is not there")
    state, says = judged(standby("aegis_archive", "async", streams=False), names="aegis_archive")
    assert (state, says.partition(" (")[0]) == (State.DEGRADED, "writes wait: the archive does not receive")


def test_an_archive_that_alone_may_have_a_commit_is_nobody_to_take_over() -> None:
    archive = standby("aegis_archive")
    state, says = judged(archive, standby("b", behind=4_000), names="ANY 1 (b, aegis_archive)")
    assert state is State.WARNING
    assert says.startswith("a lost disk loses nothing, and a fail-over may lose up to 4.0 kB: the archive alone may")
    # Two standbys, and each may be the one that lacks what the archive has.
    names = "ANY 1 (b, c, aegis_archive)"
    assert judged(archive, standby("b"), standby("c"), names=names)[0] is State.WARNING
    # It is not there now, and is back before anybody looks again.
    assert judged(standby("b"), standby("c"), names=names)[0] is State.WARNING
    # By priority: whoever is first has it.
    first = standby("aegis_archive", "sync"), standby("b", "potential")
    assert judged(*first, names="FIRST 1 (aegis_archive, b)")[0] is State.WARNING
    assert judged(archive, standby("b"), names="ANY 1 (*)")[0] is State.WARNING


def test_a_standby_that_has_each_commit_beside_an_archive_loses_nothing() -> None:
    archive, nothing = standby("aegis_archive"), "a lost node loses nothing: "
    state, says = judged(archive, standby("b"), names="ANY 2 (b, aegis_archive)")
    assert (state, says.partition(" (")[0]) == (
        State.OK,
        f"{nothing}1 synchronous standby and the archive; if one of them is away, writes wait",
    )
    state, says = judged(archive, standby("b"), standby("c"), names="ANY 2 (b, c, aegis_archive)")
    assert (state, says.partition(" (")[0]) == (State.OK, f"{nothing}2 synchronous standbys and the archive")
    state, says = judged(
        standby("aegis_archive", "potential"), standby("b", "sync"), names="FIRST 1 (b, aegis_archive)"
    )
    assert (state, says.partition(" (")[0]) == (State.OK, f"{nothing}1 synchronous standby; without it, writes wait")
    # An archive that nobody waits for takes nothing away, as beside Patroni.
    state, says = judged(standby("aegis_archive", "async"), standby("b"), standby("c"))
    assert (state, says.partition(" (")[0]) == (State.OK, f"{nothing}2 synchronous standbys")


def test_commits_that_wait_for_the_archive_and_for_no_standby_are_no_matter_of_course_in_a_cluster() -> None:
    archive, idle = standby("aegis_archive", "sync"), standby("node-2", "async", behind=4_000)
    state, says = judged(archive, idle, names="aegis_archive")
    assert state is State.DEGRADED
    assert says.startswith("a fail-over may lose up to 4.0 kB: commits wait for the archive, and for no standby (")
    found = Replication(is_standby=False, needed=1, waits=True, standbys=(archive, idle), named=named("aegis_archive"))
    (check,) = replication(found)
    assert "ALTER SYSTEM RESET synchronous_standby_names" in check.remedy


def test_asynchronous_standbys_lose_what_the_nearest_lacks() -> None:
    state, says = judged(standby("b", "async", behind=2_500_000), standby("c", "async", behind=4_000), names="")
    assert state is State.WARNING
    assert says.startswith("a lost primary loses up to 4.0 kB: none of them is synchronous (b asynchronous, 2.5 MB")


def test_synchronous_standbys_that_nobody_waits_for() -> None:
    state, says = judged(standby("b"), waits=False)
    assert state is State.WARNING
    assert says.startswith("a lost primary loses up to 0 bytes: synchronous_commit does not wait for one")


def test_who_may_not_see_the_standbys_is_told_so() -> None:
    hidden = Standby(name="b", streams=False, mode=None, behind=None, late=timedelta(0))
    assert judged(hidden) == (State.WARNING, "1 receive what is committed: this user may not see more")


def test_a_standby_that_is_taken_for_the_database() -> None:
    assert judged(is_standby=True) == (State.DEGRADED, "this is a standby, which takes no writes")


def test_a_database_that_does_not_replicate_says_nothing() -> None:
    assert list(replication(None)) == []


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_500_000, "1.5 MB"), (7 * 10**12, "7000.0 GB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown
