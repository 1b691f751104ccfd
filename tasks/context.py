"""What a handler is given: who it works for, and the ways to save what it has done so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from typing_extensions import override

from ..config.logging import get_logger
from ..core.approval import Approval
from ..core.effect import is_runnable
from ..core.errors import ClaimLost, DatabaseUnavailable, InvalidData, InvalidHandlerResult, InvalidName, NotCanonical
from ..core.machine import Edge
from ..core.starting import Attribute, check_attributes
from ..core.workflow import Context, Workflow, snapshot
from ..persistence import inbox, moves, repository
from ..persistence.database import Session
from ..persistence.inbox import Message
from ..persistence.records import Position, Snapshot
from .bench import Bench
from .effects import Effects
from .result import OnTheGround

log = get_logger(__name__)

# How much of the checkpoint interval may pass between two looks at whether one is asked for.
LOOKS_PER_INTERVAL: Final = 60


class HandlerContext(Context):
    """The ``Context`` of one attempt."""

    def __init__(
        self,
        bench: Bench,
        position: Position,
        edge: Edge,
        workflow: Workflow,
        newest: Snapshot,
        *,
        session: Session | None = None,
        approvals: tuple[Approval, ...] = (),
        ahead: bool = False,
    ) -> None:
        """``newest`` is the checkpoint that the workflow was loaded from; ``ahead``: it is not recorded yet."""
        self._ahead = ahead
        self.grounded = False
        """Whether the handler wanted what it can have on the ground alone."""
        self._bench = bench
        self._position = position
        self._edge = edge
        self._workflow = workflow
        self._session = session
        self._approvals = approvals
        self.outbox: list[Message] = []
        """The events that go out with the transition."""
        self.attributes: Mapping[str, Attribute] | None = None
        """What the workflow is found by from then on; None: as before."""
        self._look_every = bench.settings.checkpoint_interval / LOOKS_PER_INTERVAL
        self._looked = time.monotonic()
        self.newest = newest
        leaving = workflow.definition.leaving(position.state)
        others = {other.name for other in leaving} - {edge.name}
        self.effects = Effects(bench, position, edge.name, others)

    @property
    @override
    def workflow_id(self) -> str:
        return self._position.workflow_id

    @property
    @override
    def key(self) -> str:
        return f"{self._position.workflow_id}:{self.effects.key_seq}"

    @property
    @override
    def attempt(self) -> int:
        return self._position.attempt

    @property
    @override
    def session(self) -> Session:
        if self._session is None:
            raise InvalidHandlerResult(self._name, "ctx.session needs @transition(..., transactional=True)")
        return self._session

    @property
    @override
    def log(self) -> Any:
        return get_logger(self._name).bind(
            workflow_id=self.workflow_id, seq=self._position.seq + 1, attempt=self.attempt
        )

    @property
    @override
    def approvals(self) -> tuple[Approval, ...]:
        return self._approvals

    @override
    def send(self, id: str, event: str, payload: object = None, *, key: str | None = None, reason: str = "") -> None:
        self._need_ground()
        message = Message(
            workflow_id=id,
            event=event,
            payload=payload,
            # The same at every attempt, as long as the handler sends in the same order.
            key=f"{self.key}:{event}:{len(self.outbox) + 1}" if key is None else key,
            sender=f"workflow:{self.workflow_id}",
            reason=reason,
        )
        if self._session is not None:
            inbox.judge(self._session, message, self._bench.settings.max_bytes)
        else:
            with self._bench.database.reading() as session:
                inbox.judge(session, message, self._bench.settings.max_bytes)
        self.outbox.append(message)

    @override
    def effect(
        self,
        name: str,
        fn: Callable[..., object],
        /,
        *args: Any,
        check: Callable[[str], object] | None = None,
        repeat: bool = True,
        **kwargs: Any,
    ) -> Any:
        if self._session is not None:
            problem = "what a transactional handler does outside cannot be taken back with it: use a transition before"
            raise InvalidHandlerResult(self._name, problem)
        if not is_runnable(fn):
            raise InvalidHandlerResult(
                self._name, f"the effect {name!r} is {fn!r}; give a plain function and its arguments"
            )
        self._need_ground()
        return self.effects.run(name, lambda: fn(*args, **kwargs), check, repeat=repeat)

    def check_ground(self) -> None:
        """Refuse what a handler did after it caught what told it to begin on the ground.

        Raises:
            OnTheGround: it did.

        """
        if self.grounded:
            raise OnTheGround

    def _need_ground(self) -> None:
        if self._ahead:
            self.grounded = True
            raise OnTheGround

    @override
    def effect_key(self, name: str) -> str:
        return self.effects.key(name)

    @override
    def set_attributes(self, attributes: Mapping[str, Attribute]) -> None:
        try:
            self.attributes = check_attributes(attributes)
        except (InvalidData, InvalidName, NotCanonical) as error:
            raise InvalidHandlerResult(self._name, str(error)) from error

    @override
    def checkpoint(self) -> None:
        self._refuse_in_a_transaction()
        self._need_ground()
        self._save("manual")

    @override
    def progress(self) -> None:
        self._refuse_in_a_transaction()  # at the first call, not only minutes later when a checkpoint is asked for
        self._need_ground()
        now = time.monotonic()
        if now - self._looked < self._look_every:
            return
        self._looked = now
        try:
            with self._bench.database.statement() as connection:
                asked = repository.is_asked(connection, self._position)
        except DatabaseUnavailable as error:
            # The work goes on without the database for as long as it can.
            log.warning("no checkpoint", workflow_id=self.workflow_id, reason=error.reason)
            return
        if asked is None:
            raise ClaimLost(self._position.workflow_id, self._position.seq)
        if asked:
            self._save("periodic")

    def _refuse_in_a_transaction(self) -> None:
        if self._session is not None:
            raise InvalidHandlerResult(self._name, "a transactional handler is saved as a whole, at its end")

    def _save(self, kind: str) -> None:
        made = moves.snapshot_of(
            self._position,
            snapshot(self._workflow),
            self.newest.number + 1,
            max_bytes=self._bench.settings.max_bytes,
            mac_key=self._bench.mac_key,
        )
        # Before it is written: a time limit that strikes in between must not have its number given out twice.
        self.newest = made
        if not self._bench.patiently(lambda: self._write(made, kind)):
            raise ClaimLost(self._position.workflow_id, self._position.seq)
        log.info(
            "checkpoint saved", workflow_id=self.workflow_id, seq=self._position.seq, number=made.number, kind=kind
        )

    def _write(self, made: Snapshot, kind: str) -> bool:
        with self._bench.database.statement() as connection:
            return repository.save_progress(connection, self._position, made, kind)

    @property
    def _name(self) -> str:
        return f"{self._position.type}.{self._edge.name}"
