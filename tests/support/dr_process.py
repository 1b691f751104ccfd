"""One life of an application: it opens the engine, does what it is told, and prints what it saw as a line of JSON.

    python dr_process.py STORY [ARGUMENT]

On the database that ``AEGIS_DATABASE_URL`` names, or on the file of SQLite that ``AEGIS_TEST_SQLITE`` does. After
its line it waits: it is for the test to kill it, or to let it go on by closing its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dr_workflows import Reminder, Report

from aegis import DurableWorkflowEngine, Workflow

GATE = Path(os.environ["AEGIS_TEST_GATE"])
# More than two workers that were killed and two that are new can have in hand, beside the one that is at work.
QUEUED = ("queued", "queued-1", "queued-2", "queued-3")
Story = Callable[[DurableWorkflowEngine, str], Awaitable[dict[str, Any]]]


def open_the_gate() -> None:
    """Let all go on that wait at it."""
    GATE.touch()


async def until(engine: DurableWorkflowEngine, workflow_id: str, **wanted: object) -> None:
    """Wait until a workflow's row is as it is wanted."""
    for _ in range(1500):
        row = await engine.describe(workflow_id)
        if all(getattr(row, name) == value for name, value in wanted.items()):
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"{workflow_id} never was {wanted}: {row}")


async def until_written(engine: DurableWorkflowEngine, workflow_id: str, chapters: int) -> None:
    """Wait until a handler has saved so many chapters on its way."""
    for _ in range(1500):
        data = (await engine.get(workflow_id)).to_dict()
        if len(data["chapters"]) >= chapters:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError(f"{workflow_id} has {data['chapters']}")


async def in_hand(engine: DurableWorkflowEngine) -> set[str]:
    """Return the workflows that somebody has in hand, or died with."""
    return {row.id for row in await engine.list(status="pending") if row.running}


async def seen(engine: DurableWorkflowEngine, workflow_id: str) -> dict[str, Any]:
    """Return what there is to be seen of a workflow."""
    row, workflow = await engine.describe(workflow_id), await engine.get(workflow_id)
    history = await engine.history(workflow_id)
    return {
        "state": row.state,
        "status": row.status,
        "seq": row.seq,
        "data": workflow.to_dict(),
        "valid": await engine.verify_integrity(workflow_id),
        "history": [[link.seq, link.event, link.from_state, link.to_state, link.hash, link.prev] for link in history],
        "actors": [link.actor for link in history],
    }


# --- stories: before the crash ------------------------------------------------------------------


async def wait_for_approval(engine: DurableWorkflowEngine, _: str) -> dict[str, Any]:
    """One that waits for somebody, with a checkpoint of its own."""
    await engine.start(Report(title="A"), id="a")
    await until(engine, "a", state="checked", status="waiting")
    made = await engine.checkpoint("a")
    assert made is not None
    return await seen(engine, "a") | {"checkpoint": [made.seq, made.number, made.commitment]}


async def stop_in_a_handler(engine: DurableWorkflowEngine, handler: str) -> dict[str, Any]:
    """One whose handler hangs half-way."""
    await engine.start(Report(title="A", gated=handler), id="a")
    await until_written(engine, "a", 2 if handler == "write" else 4)
    if handler == "check":
        await until(engine, "a", state="written", running=True)
    return await seen(engine, "a")


async def start_many(engine: DurableWorkflowEngine, count: str) -> dict[str, Any]:
    """Many, none of which gets anywhere."""
    handles = await engine.start_many([Report(title=str(number), gated="write") for number in range(int(count))])
    return {"ids": [handle.id for handle in handles]}


async def all_kinds(engine: DurableWorkflowEngine, _: str) -> dict[str, Any]:
    """One in every state that a workflow can be found in."""
    for workflow_id in ("waiting", "paused", "cancelled", "done"):
        await engine.start(Report(title=workflow_id), id=workflow_id)
    await engine.start(Report(title="failed", broken="check"), id="failed")
    for workflow_id in ("waiting", "paused", "cancelled", "done"):
        await until(engine, workflow_id, state="checked", status="waiting")
    await engine.pause("paused", reason="tests")
    await engine.cancel("cancelled", reason="tests")
    await engine.send("done", "approve", "ada", key="1")
    await until(engine, "done", status="completed")
    await until(engine, "failed", status="failed")
    await engine.start(Report(title="working", gated="write"), id="working")
    await until_written(engine, "working", 2)
    for workflow_id in QUEUED:
        await engine.start(Report(title=workflow_id, gated="write"), id=workflow_id)
    await engine.start(Reminder(), id="expiring")
    return {row.id: [row.state, row.status] for row in await engine.list()}


async def complete(engine: DurableWorkflowEngine, _: str) -> dict[str, Any]:
    """One from its beginning to its end."""
    handle = await engine.start(Report(title="A"), id="a")
    await handle.send("approve", "ada", key="1", reason="it is good")
    await handle.wait(timeout=30)
    return await seen(engine, "a")


# --- and after it ---------------------------------------------------------------------------------


async def look(engine: DurableWorkflowEngine, workflow_id: str) -> dict[str, Any]:
    """What is there, before anything goes on."""
    return await seen(engine, workflow_id)


async def approve(engine: DurableWorkflowEngine, workflow_id: str) -> dict[str, Any]:
    """Let it go on to its end."""
    found = await seen(engine, workflow_id)
    await engine.send(workflow_id, "approve", "ada", key="1")
    await engine.wait(workflow_id, timeout=30)
    return {"found": found, "at the end": await seen(engine, workflow_id)}


async def resume_all(engine: DurableWorkflowEngine, count: str) -> dict[str, Any]:
    """Resume all that are pending, and wait until they are where they wait for somebody."""
    resumed = [handle.id for handle in await engine.resume_all_pending(Report)]
    open_the_gate()
    ids = [row.id for row in await engine.list(limit=1000)]
    for workflow_id in ids:
        await until(engine, workflow_id, state="checked")
    assert len(ids) == int(count)
    return {"resumed": resumed, "workflows": {one: await seen(engine, one) for one in ids}}


async def go_on(engine: DurableWorkflowEngine, _: str) -> dict[str, Any]:
    """Bring every kind of workflow to where it belongs."""
    found = {row.id: [row.state, row.status] for row in await engine.list()}
    # Until the gate opens, nobody lets go of what he has in hand.
    held = await in_hand(engine)
    resumed = [handle.id for handle in await engine.resume_all_pending(Report)]
    held |= await in_hand(engine)
    open_the_gate()
    await engine.send("waiting", "approve", "ada", key="1")
    await engine.resume("paused")
    await engine.send("paused", "approve", "ada", key="1")
    await engine.retry("failed")
    for workflow_id in ("failed", "working", *QUEUED):
        await until(engine, workflow_id, state="checked", status="waiting")
        await engine.send(workflow_id, "approve", "ada", key="1")
    for workflow_id in ("waiting", "paused", "failed", "working", *QUEUED, "expiring"):
        await engine.wait(workflow_id, timeout=30)
    everything = {row.id: await seen(engine, row.id) for row in await engine.list()}
    return {"found": found, "resumed": resumed, "held": sorted(held), "workflows": everything}


async def travel(engine: DurableWorkflowEngine, workflow_id: str) -> dict[str, Any]:
    """Look at every moment of a history, by its number and by its time."""
    handle = await engine.handle(workflow_id)
    links = await handle.history()
    by_seq = [(await handle.at(link.seq)).to_dict() for link in links]
    by_time = [(await handle.at(link.at)).to_dict() for link in links]
    return {"by seq": by_seq, "by time": by_time}


async def export(engine: DurableWorkflowEngine, workflow_id: str) -> dict[str, Any]:
    """Give a history away, and its data."""
    workflow = await engine.get(workflow_id)
    again = type(workflow).from_dict(workflow.to_dict())
    assert again == workflow
    return {"bundle": (await engine.export_bundle(workflow_id)).to_dict(), "seen": await seen(engine, workflow_id)}


async def take_over(engine: DurableWorkflowEngine, bundle: str) -> dict[str, Any]:
    """Take a history over, and go on with it."""
    given: dict[str, Any] = json.loads(bundle)
    handle = await engine.import_bundle(given, accept_unanchored=True)
    taken = await seen(engine, handle.id)
    same: Workflow = await handle.get()
    await engine.resume(handle.id)
    await handle.send("approve", "bob", key="2")
    await handle.wait(timeout=30)
    return {"taken": taken, "same": same.to_dict(), "at the end": await seen(engine, handle.id)}


async def _live(story: Story, argument: str) -> None:
    async with DurableWorkflowEngine(os.environ.get("AEGIS_TEST_SQLITE")) as engine:
        print(json.dumps(await story(engine, argument)), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_live(globals()[sys.argv[1]], sys.stdin.readline().rstrip("\n")))
