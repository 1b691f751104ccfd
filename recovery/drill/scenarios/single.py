"""What can be lost on a single instance."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

from ..faults import broker, database, history, machine, workers
from ..sandbox import Needs
from ..scenario import FILE, WORKFLOW, Command, Scenario
from .commands import FAILED, IS_INTACT, IS_WELL, LOOK, PENDING, QUARANTINE, UP, WORKER


def _needs_root() -> str:
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("mount") is None:
        return "a small file system for the database alone needs Linux, root and mount"
    return ""


def _needs_linux() -> str:
    return "" if sys.platform == "linux" else "children end with their parent on Linux alone"


SINGLE: Final = (
    Scenario(
        name="worker",
        title="A worker was killed",
        objective="process",
        fault=workers.kill_worker,
        injects="SIGKILL to a worker with its children while it has workflows in hand; nothing starts it again.",
        shows="`workers` in `aegis health` has one less alive. The log of the worker ends without a farewell.",
        check=(LOOK,),
        heal=(WORKER,),
        expect="Whatever it had in hand is taken up by other workers within seconds, as the next attempt; if there are"
        " no others, as soon as there is one. Nothing that was acknowledged is lost; effects of the attempt that was"
        " cut off may be repeated, with the same `ctx.key`.",
        over=(QUARANTINE, IS_WELL, IS_INTACT),
        skipped=_needs_linux,
    ),
    Scenario(
        name="child",
        title="A worker's child was killed",
        objective="process",
        fault=workers.kill_child,
        injects="SIGKILL to one child of a worker's pool, inside a handler: as the kernel does when memory is short.",
        shows="The worker's log says `Worker exited prematurely: signal 9`. The number of workers is as before.",
        check=(LOOK,),
        heal=(),
        expect="The pool starts another child. A sibling takes the workflow up at once if it hears the bell that is put"
        " back; if a worker elsewhere does, it waits for the next heartbeat and sweep, three or four seconds. A handler"
        " that kills its process in every attempt ends in quarantine.",
        over=(QUARANTINE, IS_WELL, IS_INTACT),
        advice="If workflows are quarantined: look for what was short (`dmesg`), and `aegis retry` them.",
    ),
    Scenario(
        name="host",
        title="A worker's host is gone",
        objective="host",
        fault=workers.kill_host,
        injects="SIGKILL to a worker and to the process of its heartbeat, so that nobody is left who could tell.",
        shows="`workers` says that one is silent once `AEGIS_HEARTBEAT_TIMEOUT` has passed.",
        check=(LOOK,),
        heal=(),
        expect="After the heartbeat's time-out and one sweep everything it had in hand is due, and is taken up by other"
        " workers.",
        over=(QUARANTINE, IS_WELL, IS_INTACT),
        advice="Start another worker on another host: `aegis worker`. One that starts on the same host again frees at"
        " once what its predecessors there held.",
    ),
    Scenario(
        name="long-handler",
        title="A worker was killed inside a long handler",
        objective="long-handler",
        fault=workers.kill_in_a_long_handler,
        injects="SIGKILL to a worker between two checkpoints of a handler that calls `ctx.progress()`. The sandbox has"
        " an `AEGIS_CHECKPOINT_INTERVAL` of 5 s, and the objective is scaled to it.",
        shows="`RPO now` in `aegis health` says how old the oldest checkpoint of a running handler is: so much of its"
        " work is done again.",
        check=(LOOK,),
        heal=(WORKER,),
        expect="The handler runs again elsewhere within a second, from its last checkpoint on.",
        over=(QUARANTINE, IS_WELL, IS_INTACT),
        loses_progress=True,
        sandboxed=True,
        needs=Needs(settings={"checkpoint_interval": 5.0}),
        skipped=_needs_linux,
    ),
    Scenario(
        name="broker-wiped",
        title="The broker was wiped",
        objective="broker",
        fault=broker.wipe_broker,
        injects="FLUSHALL while bells wait in it.",
        shows="Beat's log says `the broker remembers nothing`. Workflows wait although workers have nothing to do.",
        check=(LOOK, PENDING),
        heal=(),
        expect="The next sweep finds its mark gone, and rings whatever could run: within two seconds. Nothing has to be"
        " put back into the broker.",
        over=(IS_WELL, IS_INTACT),
        advice="If nothing moves after ten seconds, beat is not running: `aegis beat`.",
    ),
    Scenario(
        name="broker-killed",
        title="The broker is gone",
        objective="broker",
        fault=broker.kill_broker,
        injects="SIGKILL to the broker, with bells waiting in it and its disk lost; it is back, empty, a second later.",
        shows="`broker` in `aegis health` is not ok. `aegis start` says that it was not rung.",
        check=(LOOK,),
        heal=(),
        expect="Workflows are accepted meanwhile, and wait in PostgreSQL. Once the broker answers, workers find it"
        " within two seconds, and the sweep rings what could run.",
        over=(IS_WELL, IS_INTACT),
        advice="`aegis up` starts a private broker again by itself. One of your own: start it as your system does; it"
        " may be empty.",
    ),
    Scenario(
        name="database-killed",
        title="PostgreSQL crashed",
        objective="database",
        fault=database.kill_database,
        injects="SIGKILL to PostgreSQL with all its processes, in the middle of commits; it is started again at once.",
        shows="`database` in `aegis health` is down; `start` and `send` raise `DatabaseUnavailable`.",
        check=(LOOK,),
        heal=(),
        expect="PostgreSQL recovers from its log, within a second or two for a small one. Handlers that were running"
        " keep what they have, and commit it. A request that was answered with an error may have been carried out:"
        " the same id, or key, may be used again.",
        over=(FAILED, IS_WELL, IS_INTACT),
        advice="`aegis up` starts a private server again by itself. One of your own: start it as your system does, and"
        " read its log before anything else if it does not come up. Do not remove files from its data directory.",
    ),
    Scenario(
        name="whole-machine",
        title="The whole machine was lost, and is back",
        objective="machine",
        fault=machine.kill_everything,
        injects="SIGKILL to every process at once, servers included, with more than a hundred workflows under way.",
        shows="Nothing answers.",
        check=(Command(argv=("aegis", "health"), why="everything is down", expects=(2,), says="AEGIS is down"),),
        heal=(UP,),
        expect="The servers are up within two or three seconds, and a hundred workflows move within ten, each from its"
        " last committed transition.",
        over=(FAILED, IS_WELL, IS_INTACT),
        advice="With servers of your own: PostgreSQL first, then the broker, workers and beat in any order.",
        from_healing=True,
        spends=True,
    ),
    Scenario(
        name="disk-full",
        title="The database's disk is full",
        objective="disk",
        fault=database.fill_disk,
        injects="A file that takes all the room there is on a small file system with the database alone, until clients"
        " are refused.",
        shows="`start` and `send` raise `DatabaseUnavailable: ... No space left on device`; so does PostgreSQL's log.",
        check=(LOOK,),
        heal=(Command(argv=("rm", FILE), why="make room; never with files of PostgreSQL's own"),),
        expect="Nothing that was acknowledged is lost, and no attempt is counted against a handler whose commit found"
        " no room. Once there is room, everything goes on by itself within seconds.",
        over=(FAILED, IS_WELL, IS_INTACT),
        from_healing=True,
        needs=Needs(disk="176m"),
        spends=True,
        skipped=_needs_root,
    ),
    Scenario(
        name="tampering",
        title="A history was changed",
        objective="tampering",
        fault=history.tamper,
        injects="One column of one committed transition edited by a superuser, past all triggers.",
        shows="`chains` in `aegis health` is down, beat's log says `history was changed`, or `aegis verify` ends in 1.",
        check=(
            Command(
                argv=("aegis", "verify", "--all", "--json"),
                why="names the transition, and no other",
                expects=(1,),
                says='"tampered": true',
            ),
            Command(
                argv=("aegis", "verify", WORKFLOW), why="the same of one workflow", expects=(1,), says="TAMPERED WITH"
            ),
            Command(argv=("aegis", "export", WORKFLOW, "-o", "evidence.json"), why="keep it as it is now"),
        ),
        heal=(),
        expect="What was edited is named within seconds: a million transitions take less than a minute. It is not"
        " undone by itself, and may be evidence.",
        over=(IS_INTACT,),
        advice="Keep a base backup, the anchors and the logs; find out who could do it; restore the rows from a backup"
        " of before, or live with it ([a history was changed](how-to/operate.md#a-history-was-changed)). The drill puts"
        " the row back itself.",
        sandboxed=True,
    ),
)
