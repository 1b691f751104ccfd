"""Two proposals, decided in one process: ``python -m local.app [sqlite:///proposals.db]``."""

from __future__ import annotations

import asyncio
import sys

from proposal.workflow import Decision, ProposalWorkflow

from aegis import DurableWorkflowEngine


async def decided(engine: DurableWorkflowEngine, title: str, *, yes: bool) -> str:
    """Start a proposal, decide it, and tell how it went."""
    workflow_id = title.lower().replace(" ", "-")
    handle = await engine.start(ProposalWorkflow(title=title), id=workflow_id)
    # It is kept until the proposal is in review; and by its key it is received once, however often this is run.
    await handle.send("decide", Decision(yes=yes, comment="as agreed"), key="the-board")
    await handle.wait(timeout=30)
    events = [one.event for one in await handle.history()]
    valid, problem = await handle.verify_integrity()
    return f"{workflow_id}: {', '.join(events)}; {'intact' if valid else problem}"


async def main(address: str) -> None:
    """Decide both at once."""
    async with DurableWorkflowEngine(address) as engine:
        for line in await asyncio.gather(
            decided(engine, "Plant trees", yes=True),
            decided(engine, "Pave the garden", yes=False),
        ):
            print(line)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite://"))
