"""The desk: ask for a budget, or answer, as somebody. In a real app, whoever is logged in.

aegis up                                            # in one terminal, with AEGIS_WORKFLOWS=budget.workflow
python -m budget.desk ada ask b-1 "new chairs" 700  # in another, from the folder examples/
python -m budget.desk grace approve b-1 "the old ones are broken"
python -m budget.desk edsger approve b-1 "indeed"
"""

from __future__ import annotations

import sys

from aegis import AegisError
from aegis.sync import DurableWorkflowEngine
from budget.workflow import BudgetWorkflow


def main() -> int:
    """Do what is asked for; return the exit status."""
    try:
        match sys.argv[1:]:
            case [who, "ask", name, purpose, amount]:
                engine = DurableWorkflowEngine(actor=f"user:{who}")
                engine.start(BudgetWorkflow(purpose=purpose, amount=int(amount)), id=name)
            case [who, "approve" | "reject" as event, name, reason]:
                engine = DurableWorkflowEngine(actor=f"user:{who}")
                # The key: whoever clicks twice has answered once.
                engine.send(name, event, reason, key=f"{event}-{who}", reason=reason)
            case _:
                print(__doc__, file=sys.stderr)
                return 2
    except (AegisError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
