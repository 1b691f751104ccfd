"""The log: every committed transition gets one place, whatever commits when; and its tree is RFC 6962's."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from log_workbench import (
    Writer,
    add,
    add_leaves,
    committed,
    entry,
    frontier,
    logged,
    names,
    take_up,
    take_up_all,
    writing,
)
from sqlalchemy import text
from store_workbench import sql, value
from store_workflows import Letter

from aegis.core.errors import LogBroken
from aegis.core.merkle import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    extends,
    includes,
    inclusion_proof,
    leaf_hash,
    root_of,
)
from aegis.persistence import log
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.persistence.log import Tree


def assert_complete(database: Database) -> None:
    """The log holds each committed transition once, and nothing else."""
    found = names(logged(database))
    assert len(found) == len(set(found))
    assert set(found) == committed(database)


def root(database: Database, size: int) -> bytes:
    with database.statement() as connection:
        return Tree(connection).root(size)


@pytest.fixture
def settled(database: Database) -> Database:
    """A database that the log already counts the transactions of."""
    take_up(database)
    return database


# --- places ---------------------------------------------------------------------------------


def test_an_empty_log_stays_empty_and_has_the_root_of_nothing(database: Database) -> None:
    assert take_up(database) == 0
    assert logged(database) == []
    assert root(database, 0) == EMPTY_ROOT


def test_what_the_engine_commits_gets_its_places(database: Database, engine: DurableWorkflowEngine) -> None:
    for number in range(3):
        engine.start(Letter(), id=f"l-{number}")
    assert take_up(database) == 3
    assert_complete(database)
    hashes = {value(database, "SELECT hash FROM aegis_transition WHERE workflow_id = :id", id="l-1").tobytes()}
    assert {one.hash for one in logged(database) if one.workflow_id == "l-1"} == hashes


def test_places_are_given_once_and_never_change(settled: Database) -> None:
    add(settled, "a", 3)
    assert (take_up(settled), take_up(settled)) == (3, 0)
    before = logged(settled)
    add(settled, "b", 2)
    assert take_up(settled) == 2
    assert logged(settled) == [*before, entry("b", 0), entry("b", 1)]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
def test_a_backlog_is_taken_up_in_batches(settled: Database, limit: int) -> None:
    """Batches end within transactions, between them, and where everything does."""
    for workflow, count in (("a", 3), ("b", 1), ("c", 3)):
        add(settled, workflow, count)
    counts = list(iter(lambda: take_up(settled, limit), 0))
    assert sum(counts) == 7
    assert all(count == limit for count in counts[:-1])
    assert names(logged(settled)) == [*(("a", n) for n in range(3)), ("b", 0), *(("c", n) for n in range(3))]


def test_the_first_run_ever_takes_up_what_was_there_before_it(database: Database) -> None:
    add(database, "a", 5)
    add(database, "b", 5)
    assert [take_up(database, 4) for _ in range(4)] == [4, 4, 2, 0]
    assert_complete(database)


def test_the_application_s_role_may_do_all_of_it(settled: Database) -> None:
    add(settled, "a", 300)
    with settled.transaction() as session:
        connection = session.connection()
        connection.execute(text("SET LOCAL ROLE aegis_app"))
        assert log.lock(connection)
        assert log.take_up(connection, 1000) == 300
    assert_complete(settled)


# --- transactions that overlap --------------------------------------------------------------


def test_a_lower_transaction_that_commits_later_is_not_skipped(settled: Database) -> None:
    with writing(settled) as early, writing(settled) as late:
        early.add("early")
        late.add("late")
        late.commit()
        add(settled, "last")
        # The one that still runs may yet commit below the others.
        assert take_up(settled) == 0
        early.commit()
    assert take_up_all(settled, 2) == 3
    assert names(logged(settled)) == [("early", 0), ("late", 0), ("last", 0)]


def test_what_is_below_every_running_transaction_does_not_wait_for_it(settled: Database) -> None:
    add(settled, "before", 2)
    with writing(settled) as running:
        running.add("running")
        add(settled, "after")
        assert take_up(settled) == 2
        assert take_up(settled) == 0
        running.rollback()
    assert take_up(settled) == 1
    assert names(logged(settled)) == [("before", 0), ("before", 1), ("after", 0)]


@pytest.mark.parametrize("limit", [1, 2, 5000])
def test_a_lower_transaction_that_commits_after_a_higher_one_was_logged_is_not_skipped(
    database: Database, limit: int
) -> None:
    """The first run takes what it sees, in whatever transaction that is: the ones still running come later."""
    with writing(database) as early, writing(database) as late:
        early.add("early")
        late.add("late", 2)
        late.commit()
        assert take_up_all(database, limit) == 2
        early.commit()
    assert take_up_all(database, limit) == 1
    assert names(logged(database)) == [("late", 0), ("late", 1), ("early", 0)]


def test_what_rolls_back_leaves_no_hole(settled: Database) -> None:
    with writing(settled) as writer:
        writer.add("gone", 3)
        writer.rollback()
        writer.add("kept")
        writer.execute("SAVEPOINT s")
        writer.add("gone", 2)
        writer.execute("ROLLBACK TO SAVEPOINT s")
        writer.execute("SAVEPOINT s")
        writer.add("kept", start=1)
        writer.execute("RELEASE SAVEPOINT s")
        writer.commit()
    with writing(settled) as broken_off:
        broken_off.add("gone", 4)
    take_up_all(settled)
    assert names(logged(settled)) == [("kept", 0), ("kept", 1)]


def test_a_subtransaction_has_the_place_of_its_transaction(settled: Database) -> None:
    """Its own number is higher; were that noted, it could be looked for where everything is over already."""
    with writing(settled) as writer:
        writer.add("a")
        writer.execute("SAVEPOINT s")
        writer.add("a", start=1)
        top = writer.execute("SELECT pg_current_xact_id()::text::bigint")
        add(settled, "between")
        writer.commit()
    assert value(settled, "SELECT DISTINCT xact FROM aegis_transition WHERE workflow_id = 'a'") == top
    take_up_all(settled, 1)
    assert names(logged(settled)) == [("a", 0), ("a", 1), ("between", 0)]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(st.just("savepoint"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("commit"), st.integers(0, 2), st.none()),
        st.tuples(st.just("rollback"), st.integers(0, 2), st.none()),
        st.tuples(st.just("take up"), st.just(0), st.integers(1, 5)),
        st.tuples(st.just("crash"), st.just(0), st.integers(1, 5)),
        st.tuples(st.just("moved"), st.just(0), st.none()),
    ),
    max_size=25,
)
counter = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
@example(
    [("add", 0, 1), ("add", 1, 1), ("commit", 1, None), ("moved", 0, None), ("take up", 0, 1), ("commit", 0, None)]
)
def test_whatever_overlaps_the_log_is_a_permutation_of_what_committed(
    database: Database, plan: list[tuple[str, int, int | bool | None]]
) -> None:
    """One log for all examples: what came before must do no harm either."""
    writers = [Writer(database) for _ in range(3)]
    try:
        for deed, who, number in plan:
            _do(database, writers[who], deed, number)
        for writer in writers[::-1]:
            writer.commit()
    finally:
        for writer in writers:
            writer.close()
    take_up_all(database, 3)
    assert_complete(database)
    found = logged(database)
    assert root(database, len(found)) == frontier(found).root


def _do(database: Database, writer: Writer, deed: str, number: int | bool | None) -> None:
    match deed:
        case "add":
            writer.add(f"w-{next(counter)}", number or 1)
        case "savepoint":
            writer.execute("SAVEPOINT s")
            writer.add(f"w-{next(counter)}")
            writer.execute("RELEASE SAVEPOINT s" if number else "ROLLBACK TO SAVEPOINT s")
        case "commit":
            writer.commit()
        case "rollback":
            writer.rollback()
        case "take up":
            take_up(database, number or 1)
        case "crash":
            crash(database, number or 1)
        case "moved":
            sql(database, "UPDATE aegis_log_state SET system = 'another'")


# --- several processes, and those that die ------------------------------------------------------


def crash(database: Database, limit: int) -> None:
    """Take up a batch, and die before it is committed."""
    connection = database.engine.connect()
    try:
        assert log.lock(connection)
        log.take_up(connection, limit)
    finally:
        connection.detach()
        connection.close()


def test_one_process_at_a_time_has_the_log(settled: Database) -> None:
    add(settled, "a", 3)
    with settled.transaction() as mine:
        assert log.lock(mine.connection())
        with settled.transaction() as theirs:
            assert not log.lock(theirs.connection())
        log.take_up(mine.connection(), 2)
        with settled.transaction() as theirs:
            assert not log.lock(theirs.connection()), "until it is committed"
    assert take_up(settled) == 1
    assert_complete(settled)


def test_whoever_dies_between_two_batches_or_in_one_leaves_the_log_whole(settled: Database) -> None:
    add(settled, "a", 700)
    take_up(settled, 250)
    crash(settled, 250)
    assert len(logged(settled)) == 250
    assert take_up_all(settled, 250) == 450
    assert_complete(settled)
    assert root(settled, 700) == frontier(logged(settled)).root


def test_many_at_once_take_up_everything_once(settled: Database) -> None:
    """Four that write and four that take up, all at the same time."""
    writing_on = threading.Event()
    writing_on.set()

    def write(name: str) -> None:
        for number in range(40):
            add(settled, f"{name}-{number}", 3)

    def grow() -> int:
        total = 0
        while writing_on.is_set():
            with settled.transaction() as session:
                connection = session.connection()
                total += log.take_up(connection, 7) if log.lock(connection) else 0
        return total

    with ThreadPoolExecutor(8) as pool:
        growing = [pool.submit(grow) for _ in range(4)]
        try:
            for done in [pool.submit(write, f"w{number}") for number in range(4)]:
                done.result()
        finally:
            writing_on.clear()
        early = sum(one.result() for one in growing)
    assert early + take_up_all(settled, 7) == 4 * 40 * 3
    assert_complete(settled)
    assert root(settled, 480) == frontier(logged(settled)).root


# --- another cluster ------------------------------------------------------------------------


def move(database: Database, xact: int) -> None:
    """Make of it a dump that was restored here: the cluster is another, and so are the transactions of its rows."""
    sql(database, "UPDATE aegis_log_state SET system = 'where it came from', horizon = :xact", xact=xact)
    sql(database, "UPDATE aegis_transition SET xact = :xact + seq", xact=xact)


@pytest.mark.parametrize("xact", [0, 10**15], ids=["older than ours", "far ahead of ours"])
@pytest.mark.parametrize("limit", [3, 10, 5000])
def test_what_was_dumped_and_restored_is_taken_up_once(settled: Database, xact: int, limit: int) -> None:
    add(settled, "logged there", 5)
    take_up(settled)
    before = logged(settled)
    add(settled, "not logged there", 10)
    move(settled, xact)
    with settled.statement() as connection:
        assert log.is_elsewhere(connection, log.state(connection))
    assert take_up_all(settled, limit) == 10
    assert logged(settled)[:5] == before
    assert_complete(settled)
    with settled.statement() as connection:
        assert not log.is_elsewhere(connection, log.state(connection))
    add(settled, "here", 2)
    assert take_up_all(settled, limit) == 2
    assert_complete(settled)


def test_who_writes_while_a_restored_log_is_taken_up_is_not_skipped(settled: Database) -> None:
    add(settled, "there", 6)
    move(settled, 10**15)
    with writing(settled) as early:
        early.add("early")
        add(settled, "here")
        take_up(settled, 3)
        early.commit()
    with writing(settled) as later:
        later.add("later")
        take_up_all(settled, 3)
        later.commit()
    take_up_all(settled, 3)
    assert_complete(settled)
    assert len(logged(settled)) == 9


# --- the tree -------------------------------------------------------------------------------


def test_the_tree_of_a_small_log_at_each_of_its_sizes(settled: Database) -> None:
    """As it grew, and looked at from later: across whole groups of 256, begun and ended anywhere."""
    sizes = [1, 2, 3, 255, 256, 257, 511, 512, 513, 700]
    for before, size in itertools.pairwise([0, *sizes]):
        add(settled, f"w-{size:03}", size - before)
        take_up(settled)
        assert root(settled, size) == frontier(logged(settled)).root
    leaves = [leaf_hash(one.hash) for one in logged(settled)]
    with settled.statement() as connection:
        tree = Tree(connection)
        for size in range(701):
            assert tree.root(size) == root_of(leaves[:size]), size
            assert Frontier.of(size, tree.mth).root == root_of(leaves[:size]), size


def test_the_nodes_that_are_kept_are_those_of_whole_groups(settled: Database) -> None:
    add(settled, "a", 700)
    for _ in range(7):
        take_up(settled, 100)
    leaves = [leaf_hash(one.hash) for one in logged(settled)]
    with settled.statement() as connection:
        rows = connection.execute(text("SELECT level, number, hash FROM aegis_log_node ORDER BY 1, 2")).all()
    assert [(row.level, row.number) for row in rows] == [(1, 0), (1, 1)]
    assert [bytes(row.hash) for row in rows] == [root_of(leaves[:256]), root_of(leaves[256:512])]


def test_the_tree_of_a_log_of_65_536_and_around_it(settled: Database) -> None:
    add_leaves(settled, 65_534)
    expected = frontier(logged(settled))
    for size in (65_535, 65_536, 65_537):
        add(settled, f"w-{size}")
        assert take_up(settled) == 1
        expected.append(leaf_hash(entry(f"w-{size}", 0).hash))
        assert expected.size == size
        assert root(settled, size) == expected.root
    add(settled, "over", 255)
    take_up(settled)
    counts = "SELECT count(*) FROM aegis_log_node WHERE level = :level"
    assert [value(settled, counts, level=level) for level in (1, 2, 3)] == [257, 1, 0]
    everything = logged(settled)
    assert root(settled, len(everything)) == frontier(everything).root
    _prove(settled, [leaf_hash(one.hash) for one in everything])


def _prove(database: Database, leaves: list[bytes]) -> None:
    """Prove that leaves are in it, and that it extends what it was."""
    size = len(leaves)
    with database.statement() as connection:
        tree = Tree(connection)
        whole = tree.root(size)
        for index in (0, 1, 255, 256, 4095, 32_767, 32_768, 65_279, 65_535, 65_536, size - 1):
            proof = inclusion_proof(index, size, tree.mth)
            assert includes(leaves[index], index, size, proof, whole)
            assert not includes(leaves[index - 1], index, size, proof, whole)
        for first in (1, 2, 255, 256, 257, 512, 32_768, 40_000, 65_535, 65_536, 65_537, size):
            proof = consistency_proof(first, size, tree.mth)
            assert extends(first, size, proof, root_of(leaves[:first]), whole)
            assert not extends(first, size, proof, root_of(leaves[1 : first + 1]), whole)
            assert Frontier.of(first, tree.mth).root == root_of(leaves[:first])


# --- what is not there -------------------------------------------------------------------------


def test_an_entry_that_is_missing_is_named_and_nothing_is_built_over_the_hole(settled: Database) -> None:
    add(settled, "a", 250)
    take_up(settled)
    sql(settled, "DELETE FROM aegis_log WHERE log_index = 100")
    add(settled, "b", 50)
    with pytest.raises(LogBroken, match="the entry is missing") as broken:
        take_up(settled)
    assert broken.value.index == 100
    assert value(settled, "SELECT count(*) FROM aegis_log_node") == 0
    with settled.statement() as connection:
        for look in (lambda: Tree(connection).root(250), lambda: log.entries(connection, 90, 110)):
            with pytest.raises(LogBroken, match="the entry is missing") as broken:
                look()
            assert broken.value.index == 100


def test_a_node_that_is_missing_is_named(settled: Database) -> None:
    add_leaves(settled, 1000)
    sql(settled, "DELETE FROM aegis_log_node WHERE number = 1")
    with settled.statement() as connection, pytest.raises(LogBroken, match="the node over 256 entries") as broken:
        Tree(connection).root(1000)
    assert broken.value.index == 256


@pytest.mark.parametrize("told", [4, 6, 0])
def test_a_log_that_does_not_end_where_it_says_is_not_added_to(settled: Database, told: int) -> None:
    add(settled, "a", 5)
    take_up(settled)
    sql(settled, "UPDATE aegis_log_state SET size = :told", told=told)
    add(settled, "b", 300)
    with pytest.raises(LogBroken):
        take_up(settled)


@pytest.mark.parametrize(("start", "end"), [(0, 4), (3, 4), (0, 100), (5, 6)])
def test_entries_beyond_the_end_are_refused(settled: Database, start: int, end: int) -> None:
    add(settled, "a", 3)
    take_up(settled)
    with settled.statement() as connection:
        assert log.entries(connection, 0, 3) == logged(settled)
        assert log.entries(connection, 3, 3) == []
        with pytest.raises(LogBroken, match="the entry is missing"):
            log.entries(connection, start, end)


def test_a_workflow_s_places_are_found_by_it(settled: Database) -> None:
    for workflow in ("a", "b", "a-b"):
        add(settled, workflow, 2)
    take_up(settled)
    with settled.statement() as connection:
        assert log.places(connection, "b") == {0: (2, entry("b", 0).hash), 1: (3, entry("b", 1).hash)}
        assert log.places(connection, "c") == {}
