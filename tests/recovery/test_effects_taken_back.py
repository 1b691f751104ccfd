"""Effects that a recovery took back: asked for, done again under the same key, or left to a person; never just run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from private_servers import TEMPLATE, PrivatePostgres
from site_of_its_own import opened
from site_of_its_own import run as aegis
from store_workbench import RecordingRing, make_bench, make_engine, sql, value
from store_workflows import SCRIPT, Act, Relay

from aegis import Context, DidNotHappen, Happened
from aegis.cli.restore import _lines
from aegis.config.keys import new_anchor_key
from aegis.config.settings import Settings
from aegis.core.errors import AegisError, EffectNotFound, EffectsOpen, InvalidName, WrongStatus
from aegis.persistence import lost, operations, recovered
from aegis.persistence.database import Database
from aegis.persistence.durable import DurableWorkflowEngine
from aegis.recovery.reconcile import accept, look
from aegis.recovery.restore.difference import Difference, with_anchors, with_live
from aegis.recovery.restore.epoch import begin
from aegis.recovery.restore.restore import Restored
from aegis.tasks.anchor import Policy, anchor, notary
from aegis.tasks.scrub import sources
from aegis.tasks.sinks import sinks
from aegis.tasks.transition import Ended, run_transition


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path)
    new_anchor_key(made.key_folder, "tester")
    return made


@pytest.fixture(autouse=True)
def script() -> Iterator[dict[str, Act]]:
    SCRIPT.clear()
    yield SCRIPT
    SCRIPT.clear()


@dataclass
class Bank:
    """Somebody outside, who forgets nothing: what it was asked to do, and what it was only asked about."""

    paid: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def pay(self, key: str) -> str:
        self.calls.append(key)
        return self.paid.setdefault(key, f"receipt of {key}")

    def look_up(self, key: str) -> Happened[str] | type[DidNotHappen]:
        self.questions.append(key)
        return Happened(self.paid[key]) if key in self.paid else DidNotHappen


@pytest.fixture
def bank() -> Bank:
    return Bank()


def paying(bank: Bank, name: str, seen: list[object] | None = None, **options: Any) -> Act:
    """A handler that pays, and notes what it is given."""

    def act(_workflow: Any, ctx: Context) -> None:
        result = ctx.effect(name, bank.pay, ctx.effect_key(name), **options)
        if seen is not None:
            seen.append((ctx.key, result))

    return act


def run(database: Database, workflow_id: str, *, to: int | None = None) -> Ended:
    """Run what a workflow is about to do, once or up to a transition."""
    while True:
        seq = value(database, "SELECT seq FROM aegis_workflow WHERE id = :id", id=workflow_id)
        if to is not None and seq >= to:
            return Ended.COMMITTED
        ended = run_transition(make_bench(database, RecordingRing()), workflow_id, seq)
        if to is None or ended is not Ended.COMMITTED:
            return ended


def anchored(database: Database, settings: Settings) -> None:
    policy = Policy(interval=timedelta(minutes=1), every=1000)
    anchor(database, sinks(settings), notary(settings), policy, now=True)


def engine_of(database: Database) -> DurableWorkflowEngine:
    return make_engine(database, RecordingRing())


@dataclass
class World:
    """The database that is given up, and the one that is gone on with."""

    live: Database
    old: Database
    url: str
    """Of the old one."""
    settings: Settings

    def lacks(self) -> Difference:
        return with_live(self.old, self.live)

    def recover(self, *, disk_lost: bool = False) -> None:
        """Go on with the old one, as a restore does; without the live one, by the anchors alone."""
        lacks = [] if disk_lost else [self.lacks()]
        begin(self.settings, self.old, [*lacks, *with_anchors(self.old, sources(self.settings))], "a test")

    def go_on(self, workflow_id: str) -> Ended:
        engine_of(self.old).resume(workflow_id)
        return run(self.old, workflow_id)

    def effects(self, workflow_id: str) -> list[tuple[str, str, str | None]]:
        with self.old.snapshot() as connection:
            found = lost.effects(connection)
            return [(one.name, one.status, one.key) for one in found if one.workflow_id == workflow_id]


@pytest.fixture
def world_of(postgres: PrivatePostgres, settings: Settings) -> Callable[..., Any]:
    """What makes a world: ``before`` happens in both databases, ``after`` in the live one alone."""

    @contextmanager
    def make(before: Callable[[Database], object], after: Callable[[Database], object]) -> Iterator[World]:
        with postgres.database(TEMPLATE) as url:
            database = opened(url)
            before(database)
            anchored(database, settings)
            database.close()
            with postgres.database(url.partition("?")[0].rpartition("/")[2]) as backup:
                world = World(opened(url), opened(backup), backup, settings)
                try:
                    after(world.live)
                    yield world
                finally:
                    world.live.close()
                    world.old.close()

    return make


def started(*ids: str) -> Callable[[Database], object]:
    return lambda database: [engine_of(database).start(Relay(), id=workflow_id) for workflow_id in ids]


def both_paid(settings: Settings, workflow_id: str = "r") -> Callable[[Database], object]:
    """Both transitions of a relay, committed and anchored."""

    def act(database: Database) -> None:
        run(database, workflow_id, to=2)
        anchored(database, settings)

    return act


def broken_off(workflow_id: str = "r") -> Callable[[Database], object]:
    """A worker that died after it had recorded its effect, before its transition."""

    def act(database: Database) -> None:
        pay = SCRIPT["one"]

        def die(workflow: Any, ctx: Context) -> None:
            pay(workflow, ctx)
            raise KeyboardInterrupt

        SCRIPT["one"] = die
        with pytest.raises(KeyboardInterrupt):
            run(database, workflow_id)
        SCRIPT["one"] = pay

    return act


KEYS = ["r:1:fee", "r:2:rent"]


# --- whoever can be asked is asked ----------------------------------------------------------


@pytest.mark.parametrize("disk_lost", [False, True], ids=["beside the live database", "by the anchors alone"])
def test_a_provider_is_asked_before_what_was_lost_is_done_again(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act], disk_lost: bool
) -> None:
    seen: list[object] = []
    script["one"] = paying(bank, "fee", seen, check=bank.look_up)
    script["two"] = paying(bank, "rent", seen, check=bank.look_up)
    with world_of(started("r"), both_paid(settings)) as world:
        assert (bank.calls, bank.questions) == (KEYS, []), "as long as nothing was lost, nobody is asked"
        before = list(seen)
        world.recover(disk_lost=disk_lost)
        assert world.go_on("r") is Ended.COMMITTED
        assert run(world.old, "r") is Ended.COMMITTED
        # The pause and its end take two seqs, and no key: the provider knows what it is asked about.
        assert bank.questions == KEYS
        assert bank.calls == KEYS
        assert seen[len(before) :] == before
        assert [status for _, status, _ in world.effects("r")] == ["done", "done"]
        told = [link.payload["effects"][0]["key"] for link in engine_of(world.old).history("r") if link.seq in {3, 4}]
        assert told == KEYS
        assert engine_of(world.old).verify_integrity("r") == (True, None)
        assert accept(settings, world.old, "", resume=True).is_done


def test_what_the_provider_says_was_not_done_is_done(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    script["one"] = paying(bank, "fee", check=bank.look_up)
    script["two"] = paying(bank, "rent", check=bank.look_up)
    with world_of(started("r"), both_paid(settings)) as world:
        bank.paid.clear()  # it took its payments back
        world.recover()
        assert world.go_on("r") is Ended.COMMITTED
        assert bank.questions == KEYS[:1]
        assert bank.calls == [*KEYS, KEYS[0]]


def test_a_question_that_fails_is_asked_again_before_anything_is_done(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    def away(key: str) -> object:
        bank.questions.append(key)
        raise TimeoutError

    script["one"] = paying(bank, "fee", check=away)
    with world_of(started("r"), both_paid(settings)) as world:
        world.recover(disk_lost=True)
        assert world.go_on("r") is Ended.FAILED
        assert engine_of(world.old).resume("r")
        assert run(world.old, "r") is Ended.FAILED
        assert bank.questions == [KEYS[0]] * 2
        assert bank.calls == KEYS[:1]


def test_what_may_have_gone_on_unseen_is_asked_for_too(
    world_of: Callable[..., Any], bank: Bank, script: dict[str, Act]
) -> None:
    """Neither anchored, nor in a database that answers: nobody paused it."""
    script["one"] = paying(bank, "fee", check=bank.look_up)
    with world_of(started("r"), lambda live: run(live, "r")) as world:
        world.recover(disk_lost=True)
        assert engine_of(world.old).describe("r").status == "pending"
        assert run(world.old, "r") is Ended.COMMITTED
        assert bank.questions == bank.calls == KEYS[:1]


def test_what_begins_after_the_recovery_is_not_asked_for(
    world_of: Callable[..., Any], bank: Bank, script: dict[str, Act]
) -> None:
    script["one"] = paying(bank, "fee", check=bank.look_up)
    with world_of(lambda _: None, lambda _: None) as world:
        world.recover()
        started("r")(world.old)
        assert run(world.old, "r") is Ended.COMMITTED
        assert (bank.calls, bank.questions) == (KEYS[:1], [])


@pytest.mark.parametrize("disk_lost", [False, True], ids=["beside the live database", "by the anchors alone"])
def test_what_is_started_again_under_its_id_is_asked_for(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act], disk_lost: bool
) -> None:
    script["one"] = paying(bank, "fee", check=bank.look_up)
    script["two"] = paying(bank, "rent", check=bank.look_up)

    def after(live: Database) -> None:
        started("r")(live)
        both_paid(settings)(live)

    with world_of(lambda _: None, after) as world:
        world.recover(disk_lost=disk_lost)
        if disk_lost:  # the anchors say what is gone; once that is accepted, the database does
            accept(settings, world.old, "", resume=True)
        started("r")(world.old)
        assert run(world.old, "r", to=2) is Ended.COMMITTED
        assert bank.questions == bank.calls == KEYS


# --- nobody can be asked ---------------------------------------------------------------------


@pytest.mark.parametrize("disk_lost", [False, True], ids=["beside the live database", "by the anchors alone"])
def test_what_must_not_be_done_twice_waits_for_a_person(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act], disk_lost: bool
) -> None:
    script["one"] = paying(bank, "fee", repeat=False)
    script["two"] = paying(bank, "rent", repeat=False)
    with world_of(started("r"), both_paid(settings)) as world:
        world.recover(disk_lost=disk_lost)
        engine = engine_of(world.old)
        world.go_on("r")
        assert engine.describe("r").status == "failed"
        found = look(settings, world.old)
        assert ("fee", "in doubt", KEYS[0]) in [(one.name, one.status, one.key) for one in found.effects]
        assert not found.is_done
        engine.resolve_effect("r", "fee", Happened("by hand"), reason="in the bank's list", retry=True)
        assert run(world.old, "r") is Ended.COMMITTED
        run(world.old, "r")
        assert engine.describe("r").status == "failed", "the next one had been done, too"
        engine.resolve_effect("r", "rent", DidNotHappen(), reason="not in the list", retry=True)
        assert run(world.old, "r") is Ended.COMMITTED
        assert bank.calls == [*KEYS, KEYS[1]]


def test_a_doubt_ends_with_what_is_known_to_have_gone_on(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    """Of the anchors' last transition, the handler after it may have been at work; nothing says so of another."""
    script["three"] = paying(bank, "late", repeat=False)

    def before(database: Database) -> None:
        started("r")(database)
        run(database, "r")

    def after(live: Database) -> None:
        run(live, "r")
        anchored(live, settings)

    with world_of(before, after) as world:
        script["two"] = paying(bank, "rent", repeat=False)
        world.recover(disk_lost=True)
        world.go_on("r")
        engine = engine_of(world.old)
        engine.resolve_effect("r", "rent", Happened("x"), reason="known", retry=True)
        assert run(world.old, "r") is Ended.COMMITTED
        engine.send("r", "go", key="k")
        run(world.old, "r")
        assert engine.describe("r").status == "failed"
        assert [name for name, status, _ in world.effects("r") if status == "in doubt"] == ["late"]
    script["one"] = script["two"] = lambda *_: None
    with world_of(started("q"), lambda live: (run(live, "q"), anchored(live, settings))) as world:
        script["three"] = paying(bank, "late", repeat=False)
        world.recover(disk_lost=True)
        assert world.go_on("q") is Ended.COMMITTED
        assert run(world.old, "q") is Ended.COMMITTED
        engine_of(world.old).send("q", "go", key="k")
        assert run(world.old, "q") is Ended.COMMITTED
        assert bank.calls == ["q:3:late"]


@pytest.mark.parametrize("disk_lost", [False, True], ids=["beside the live database", "by the anchors alone"])
def test_what_may_be_repeated_is_done_again_under_the_same_keys(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act], disk_lost: bool
) -> None:
    script["one"], script["two"] = paying(bank, "fee"), paying(bank, "rent")
    with world_of(started("r"), both_paid(settings)) as world:
        world.recover(disk_lost=disk_lost)
        assert world.go_on("r") is Ended.COMMITTED
        assert run(world.old, "r") is Ended.COMMITTED
        assert bank.calls == KEYS * 2
        assert len(bank.paid) == 2


def test_the_keys_stay_through_two_recoveries(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    seen: list[object] = []
    script["one"], script["two"], script["three"] = (paying(bank, name, seen) for name in ("fee", "rent", "tip"))
    with world_of(started("r"), both_paid(settings)) as world:
        world.recover()
        world.go_on("r")
        begin(settings, world.old, [world.lacks()], "a test")  # which is behind at its second transition only
        world.go_on("r")
        engine_of(world.old).send("r", "go", key="k")
        assert run(world.old, "r") is Ended.COMMITTED
        assert bank.calls == [*KEYS, *KEYS, "r:3:tip"]
        assert seen[-1] == ("r:3", "receipt of r:3:tip")


def test_an_upgrade_counts_where_it_enters_a_state(world_of: Callable[..., Any], settings: Settings) -> None:
    with world_of(started("r"), both_paid(settings)) as world:
        world.recover()
        world.go_on("r")  # created, paused, resumed, one

        def number() -> int:
            with world.old.transaction() as session:
                position, _, _ = operations.lock(session, "r")
                return recovered.seq_of(session.connection(), position)

        assert number() == 2
        changed = "UPDATE aegis_transition SET event = 'upgraded', from_state = 'another' WHERE seq = 3"
        assert sql(world.old, changed + " AND workflow_id = 'r'") == 1
        assert number() == 2
        assert sql(world.old, "UPDATE aegis_transition SET from_state = to_state WHERE seq = 3") == 1
        assert number() == 1, "as long as the state keeps its name, its handler's key goes on"


# --- what is listed ----------------------------------------------------------------------------


def test_a_handler_at_work_when_all_ended_is_paused_and_what_it_did_is_listed(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    script["one"] = paying(bank, "fee", check=bank.look_up)
    with world_of(started("r", "idle"), broken_off()) as world:
        lacks = world.lacks()
        assert (lacks.transitions, lacks.behind, lacks.through) == (0, ("r",), {"r": 1})
        (found,) = lacks.effects
        assert (found.workflow_id, found.seq, found.name, found.status, found.key) == ("r", 1, "fee", "done", KEYS[0])
        world.recover()
        open_ = look(settings, world.old)
        assert (open_.paused, open_.unknown, open_.is_done) == (["r"], 1, False)
        (effect,) = open_.effects
        assert (effect.status, effect.key) == ("begun", KEYS[0])
        assert effect.told == 'done in the database of before, with "receipt of r:1:fee"'
        assert not accept(settings, world.old, "", resume=True).is_done, "its provider was not asked yet"
        assert run(world.old, "r") is Ended.COMMITTED
        assert bank.calls == bank.questions == KEYS[:1]
        assert look(settings, world.old).is_done


def test_what_both_know_is_no_difference(world_of: Callable[..., Any], bank: Bank, script: dict[str, Act]) -> None:
    script["one"] = paying(bank, "fee")

    def before(database: Database) -> None:
        started("done", "refused", "begun")(database)
        run(database, "done")
        script["one"] = failing(DidNotHappen("declined"))
        run(database, "refused")
        script["one"] = failing(TimeoutError())
        run(database, "begun")

    def after(live: Database) -> None:
        for workflow_id in ("refused", "begun"):
            engine_of(live).resume(workflow_id)
            run(live, workflow_id)  # another attempt, of which no more is known

    with world_of(before, after) as world:
        lacks = world.lacks()
        assert [(one.workflow_id, one.status) for one in lacks.effects] == [("refused", "begun")]
        world.recover()
        # What it once knew not to have been done may have been done since.
        assert ("fee", "begun", "refused:1:fee") in world.effects("refused")
        assert engine_of(world.old).describe("refused").status == "paused"
        assert engine_of(world.old).describe("begun").status == "pending"


def failing(error: Exception) -> Act:
    def act(_workflow: Any, ctx: Context) -> None:
        def fail() -> None:
            raise error

        ctx.effect("fee", fail)

    return act


def test_what_a_handler_does_now_is_not_open(world_of: Callable[..., Any], settings: Settings, bank: Bank) -> None:
    seen: list[int] = []
    with world_of(started("r"), lambda _: None) as world:

        def act(_workflow: Any, ctx: Context) -> None:
            ctx.effect("fee", lambda: seen.append(look(settings, world.old).unknown))

        SCRIPT["one"] = act
        assert run(world.old, "r") is Ended.COMMITTED
        assert seen == [0]


# --- what a person says --------------------------------------------------------------------------


def test_a_person_says_what_the_database_has_never_heard_of(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    seen: list[object] = []
    with world_of(started("r"), both_paid(settings)) as world:
        script["one"], script["two"] = paying(bank, "fee", seen), paying(bank, "rent", seen)
        world.recover(disk_lost=True)
        engine = engine_of(world.old)
        engine.resolve_effect("r", "fee", Happened("first"), reason="in the bank's list")
        engine.resolve_effect("r", "rent", Happened("second"), reason="in the bank's list", seq=2)
        assert world.effects("r") == [("fee", "done", KEYS[0]), ("rent", "done", KEYS[1])]
        refused: tuple[tuple[str, int | None, type[AegisError]], ...] = (
            ("\x00", None, InvalidName),
            ("fee", None, WrongStatus),
            ("fee", 0, EffectNotFound),
        )
        for name, seq, error in refused:
            with pytest.raises(error):
                engine.resolve_effect("r", name, Happened(1), reason="r", seq=seq)
        world.go_on("r")
        run(world.old, "r")
        assert bank.calls == []
        assert seen == [("r:1", "first"), ("r:2", "second")]
        told = engine.history("r")[3].payload["effects"]
        assert told[0]["resolved_by"] == "user:ada"
        # Nobody else's history is added to.
        started("other")(world.old)
        engine.pause("other")
        with pytest.raises(EffectNotFound):
            engine.resolve_effect("other", "fee", Happened(1), reason="r")


def test_a_person_says_how_those_went_that_nothing_will_ever_ask_for(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    script["one"], script["two"] = paying(bank, "fee"), paying(bank, "fee")

    def after(live: Database) -> None:
        both_paid(settings)(live)
        started("gone")(live)
        run(live, "gone")

    with world_of(started("r"), after) as world:
        world.recover()
        engine = engine_of(world.old)
        (left,) = engine.effects("gone")
        assert (left.name, left.status, left.claim) == ("fee", "begun", 0)
        engine.resolve_effect("gone", "fee", DidNotHappen(), reason="the bank took it back")
        engine.cancel("r")
        assert look(settings, world.old).unknown == 2
        engine.resolve_effect("r", "fee", Happened(1), reason="paid, and kept")
        engine.resolve_effect("r", "fee", Happened(1), reason="paid, and kept")
        accept(settings, world.old, "", resume=True)
        assert look(settings, world.old).is_done


def test_which_one_is_meant_has_to_be_said(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    script["two"], script["three"] = paying(bank, "fee"), paying(bank, "fee")

    def after(live: Database) -> None:
        run(live, "r", to=2)
        engine_of(live).send("r", "go", key="k")
        run(live, "r")

    with world_of(started("r"), after) as world:
        world.recover()
        engine = engine_of(world.old)
        with pytest.raises(EffectNotFound, match=r"there: fee of 2, fee of 3.*--seq"):
            engine.resolve_effect("r", "fee", Happened(1), reason="r")
        engine.resolve_effect("r", "fee", Happened(1), reason="r", seq=3)
        assert world.effects("r") == [("fee", "begun", "r:2:fee"), ("fee", "done", "r:3:fee")]


# --- what may not get lost a second time ----------------------------------------------------------


def test_pruning_and_carrying_away_leave_what_is_not_told_yet(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    script["one"], script["two"] = paying(bank, "fee"), paying(bank, "rent")
    with world_of(started("r"), both_paid(settings)) as world:
        world.recover()
        engine = engine_of(world.old)
        world.go_on("r")
        assert engine.prune(keep=1, older_than=timedelta(0)) > 0
        assert world.effects("r") == [("rent", "begun", KEYS[1])], "that of the first is told, and old"
        with pytest.raises(EffectsOpen, match="rent"):
            engine.export_bundle("r")


# --- commands ---------------------------------------------------------------------------------------


def test_the_commands_list_and_resolve_it(
    world_of: Callable[..., Any], settings: Settings, bank: Bank, script: dict[str, Act]
) -> None:
    script["one"] = paying(bank, "fee", check=bank.look_up)

    def after(live: Database) -> None:
        broken_off()(live)
        started("gone")(live)
        broken_off("gone")(live)

    with world_of(started("r"), after) as world:
        world.recover()

        def call(*arguments: str) -> tuple[int, str]:
            done = aegis(
                settings.home, *arguments, AEGIS_DATABASE_URL=world.url, AEGIS_BROKER_URL="redis://127.0.0.1:1/0"
            )
            return done.returncode, done.stdout + done.stderr

        code, said = call("reconcile", "--accept", "--resume")
        assert code == 1, said
        assert "2 effects of which nobody here knows how they went" in said
        assert 'r 1 fee: begun, key r:1:fee (done in the database of before, with "receipt of r:1:fee")' in said
        assert "gone:1:fee" in call("effects", "gone", "--json")[1]
        code, said = call("effect", "gone", "fee", "--done", '"x"', "--reason", "a test", "--seq", "1")
        assert (code, said) == (0, "the effect fee of gone is done; the workflow is not there\n")
        assert call("reconcile")[0] == 1
        assert run(world.old, "r") is Ended.COMMITTED
        assert call("reconcile")[0] == 0


def test_events_alone_are_a_loss_too(settings: Settings) -> None:
    sent = lost.Sent(workflow_id="p", name="decide", key="mail-1", sender="user:ada", received_at=datetime.now(UTC))
    lack = Difference(source="live", transitions=0, workflows=0, gone=0, examples=(), events=12, sent=(sent,))
    done = Restored(
        to="latest",
        backup="b",
        into=None,
        workflows=1,
        transitions=1,
        logged=1,
        last_at=None,
        anchored=0,
        lacks=[lack],
        epoch=None,
        paused=0,
        seconds=0,
    )
    assert list(_lines(lack, done)) == [
        "12 events came after that; their senders can send them again:",
        "  decide to p, key mail-1, of user:ada",
        "  ... and 11 more events; --json lists 1",
    ]
