"""An old backup is put back: what was committed since is named, and nothing is signed that would hide it."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from private_servers import DEPLOYMENT, TEMPLATE, PrivatePostgres, folder
from store_workbench import RecordingRing, make_bench, make_engine, value
from store_workflows import Once, Parcel

from aegis.config.keys import new_anchor_key, trusted_keys
from aegis.config.settings import Settings
from aegis.core.finding import Code
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.persistence.migrate import upgrade
from aegis.tasks.anchor import Anchored, Policy, anchor, notary
from aegis.tasks.check import State
from aegis.tasks.health import health
from aegis.tasks.sinks import sinks
from aegis.tasks.transition import run_transition


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(home=tmp_path)
    new_anchor_key(made.key_folder, "tester")
    return made


def reading(settings: Settings, url: str) -> Settings:
    return Settings(home=settings.home, database_url=url, broker_url="redis://127.0.0.1:1/0", health_timeout=10)


def opened(url: str) -> Database:
    return Database(url.replace("postgresql://", "postgresql+psycopg2://"))


def anchored(database: Database, settings: Settings) -> Anchored:
    policy = Policy(interval=timedelta(minutes=1), every=1000)
    return anchor(database, sinks(settings), notary(settings), policy, now=True)


def copied(source: Path, target: Path) -> None:
    """Copy a server's data, with whose it is."""
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def test_what_a_backup_does_not_have_any_more_is_named(postgres: PrivatePostgres, settings: Settings) -> None:
    sources = Sources(sinks=sinks(settings), trusted=trusted_keys(settings.trusted))
    with postgres.database(TEMPLATE) as url:
        database = opened(url)
        engine = make_engine(database, RecordingRing())
        engine.start(Parcel(), id="kept")
        engine.start(Once(), id="went-on")
        assert anchored(database, settings).written == 1
        database.close()
        with postgres.database(url.partition("?")[0].rpartition("/")[2]) as backup:
            database = opened(url)
            engine = make_engine(database, RecordingRing())
            run_transition(make_bench(database, RecordingRing()), "went-on", 0)
            engine.start(Once(), id="new")
            assert anchored(database, settings).written == 1
            assert Auditor(database, sources).everything().valid
            database.close()

            old = opened(backup)
            report = Auditor(old, sources).everything()
            assert report.tampered
            assert [(each.workflow_id, each.seq, each.code) for each in report.failures] == [
                ("went-on", 1, Code.TRUNCATED),
                ("new", 0, Code.MISSING_WORKFLOW),
            ]
            assert Auditor(old, sources).one("went-on").counts == {Code.TRUNCATED: 1}
            assert Auditor(old, sources).one("new").counts == {Code.MISSING_WORKFLOW: 1}
            assert Auditor(old, sources).one("kept").valid

            lines = settings.anchor_places[0]
            before = Path(lines).read_bytes()
            refused = anchored(old, settings)
            assert refused.written == 0
            assert "committed transitions were lost" in refused.alarms[0]
            assert Path(lines).read_bytes() == before
            told = {check.name: check for check in health(reading(settings, backup))}
            assert told["anchors"].state is State.DOWN
            assert "4 transitions, the database 2: committed transitions were lost" in told["anchors"].says

            # It went on from the backup: what is new is anchored once the old anchors were put aside.
            make_engine(old, RecordingRing()).start(Once(), id="after")
            assert anchored(old, settings).alarms
            Path(lines).rename(Path(lines).with_suffix(".before"))
            assert anchored(old, settings).written == 1
            assert Auditor(old, sources).everything().valid
            old.close()


def test_an_older_server_is_found_by_who_never_saw_the_newer_one(settings: Settings) -> None:
    """The log has the length that this process knows; what is anchored beyond, another process anchored."""
    with folder("restored") as root:
        server = PrivatePostgres(root)
        server.start()
        database = opened(server.url())
        upgrade(database, deployment=DEPLOYMENT)
        engine = make_engine(database, RecordingRing())
        engine.start(Parcel(), id="kept")
        assert anchored(database, settings).written == 1
        server.stop()
        copied(server.home.postgres, root / "copy")

        server.start()
        other = opened(server.url())
        make_engine(other, RecordingRing()).start(Once(), id="lost")
        assert anchored(other, settings).written == 1
        other.close()
        server.stop()

        shutil.rmtree(server.home.postgres)
        copied(root / "copy", server.home.postgres)
        server.start()
        engine.start(Once(), id="new")
        refused = anchored(database, settings)
        assert "committed transitions were lost" in refused.alarms[0]
        assert (refused.logged, refused.written) == (0, 0)
        # Nothing took a place that the anchors gave away.
        assert value(database, "SELECT size FROM aegis_log_state") == 1
        database.close()
        server.stop()
