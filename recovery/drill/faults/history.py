"""The truth: a history that somebody changes."""

from __future__ import annotations

import time

from ....config.keys import trusted_keys
from ....core.errors import DrillNotRun
from ....core.note import open_note
from ....persistence.observe import Sight
from ....tasks.sinks import sinks
from ..scene import Fault, Scene, sights


def tamper(scene: Scene) -> Fault:
    """Edit one transition of a history that is anchored, as a superuser, past all triggers."""
    deadline = time.monotonic() + 30
    while not (done := [s for s in sights(scene) if s.status == "completed" and s.seq > 1 and _is_anchored(scene, s)]):
        if time.monotonic() > deadline:
            raise DrillNotRun("tampering", "no workflow was completed and anchored", "look at the machine's load")
        time.sleep(0.1)
    sight = scene.random.choice(sorted(done, key=lambda each: each.workflow_id))
    seq = scene.random.randrange(1, sight.seq + 1)
    before = _edit(scene, sight.workflow_id, seq, "user:mallory")
    at = time.monotonic()
    return Fault(
        at=at,
        told=f"the actor of transition {seq} of one workflow changed",
        named=(sight.workflow_id, seq),
        undo=lambda: _put_back(scene, sight.workflow_id, seq, before),
        victim=sight.workflow_id,
    )


def _edit(scene: Scene, workflow_id: str, seq: int, actor: str) -> str:
    with scene.box.database.transaction() as session:
        connection = session.connection()
        connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        place = {"id": workflow_id, "seq": seq}
        before: str = connection.exec_driver_sql(
            "SELECT actor FROM aegis_transition WHERE workflow_id = %(id)s AND seq = %(seq)s", place
        ).scalar_one()
        connection.exec_driver_sql(
            "UPDATE aegis_transition SET actor = %(actor)s WHERE workflow_id = %(id)s AND seq = %(seq)s",
            {**place, "actor": actor},
        )
    return before


def _put_back(scene: Scene, workflow_id: str, seq: int, actor: str) -> None:
    _edit(scene, workflow_id, seq, actor)


def _is_anchored(scene: Scene, sight: Sight) -> bool:
    """Whether the last anchor, which the sandbox's key signed, has the workflow's last transition."""
    (sink,) = sinks(scene.box.settings)
    for anchor in sink.about(sight.workflow_id):
        open_note(anchor.note, trusted_keys(scene.box.settings.trusted))
        if any((entry.workflow_id, entry.seq) == (sight.workflow_id, sight.seq) for entry in anchor.entries):
            return True
    return False
