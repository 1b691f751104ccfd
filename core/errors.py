"""Every error that AEGIS raises on purpose; each names the values at fault and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class AegisError(Exception):
    """The root of the tree; ``str()`` of any of them is one printable line for a person."""

    def _message(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        """Return the message; what came from outside may hold line breaks, and is shown escaped."""
        return printable(self._message())


def printable(text: str) -> str:
    """Return the text with whatever would break a line, or is no character, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# --- what the author of a workflow sees ---------------------------------------------


class DefinitionError(AegisError):
    """A workflow class that cannot work; raised when the class is made."""

    def __init__(self, workflow: str, method: str | None, problem: str, remedy: str) -> None:
        super().__init__(workflow, method, problem, remedy)
        self.workflow, self.method, self.problem, self.remedy = workflow, method, problem, remedy

    def _message(self) -> str:
        place = f"{self.workflow}.{self.method}" if self.method else self.workflow
        return f"{place}: {self.problem}; {self.remedy}"


class InvalidHandlerResult(AegisError):
    """A handler returned, or did to its workflow, what its declaration does not allow."""

    def __init__(self, transition: str, problem: str) -> None:
        super().__init__(transition, problem)
        self.transition, self.problem = transition, problem

    def _message(self) -> str:
        return f"{self.transition}: {self.problem}"


class HandlerTimeout(AegisError):
    """A handler ran longer than the ``timeout`` of its transition (seconds)."""

    def __init__(self, transition: str, timeout: float) -> None:
        super().__init__(transition, timeout)
        self.transition, self.timeout = transition, timeout

    def _message(self) -> str:
        return f"{self.transition} did not finish within its timeout of {self.timeout:g} s"


class DidNotHappen(AegisError):
    """An effect that is known not to have happened: for its function to raise, and for its check to return."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def _message(self) -> str:
        return f"it did not happen: {self.reason}" if self.reason else "it did not happen"


class EffectInDoubt(AegisError):
    """An effect of which nobody here knows whether it happened: a person has to find out, and say so."""

    def __init__(self, workflow_id: str, name: str, key: str) -> None:
        super().__init__(workflow_id, name, key)
        self.workflow_id, self.name, self.key = workflow_id, name, key

    def _message(self) -> str:
        return (
            f"whether the effect {self.name!r} of workflow {self.workflow_id!r} happened is not known: ask whoever was "
            f"given the key {self.key!r}, then say so: `aegis effect {self.workflow_id} {self.name} --done JSON` or "
            "`--redo`, with --retry to go on"
        )


# --- what does not get through a door -------------------------------------------------


class NotCanonical(AegisError):
    """A value outside the domain of canonical JSON; ``pointer`` is an RFC 6901 pointer to it."""

    def __init__(self, pointer: str, problem: str) -> None:
        super().__init__(pointer, problem)
        self.pointer, self.problem = pointer, problem

    def _message(self) -> str:
        return f"{self.problem}, at {self.pointer or 'the top of the document'}"


class InvalidData(AegisError):
    """Data that does not fit its declared type; ``problems`` are ``(pointer, problem)`` pairs."""

    def __init__(self, what: str, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__(what, tuple(problems))
        self.what, self.problems = what, tuple(problems)

    def _message(self) -> str:
        found = "; ".join(f"{pointer or '/'}: {problem}" for pointer, problem in self.problems)
        return f"{self.what} is not valid: {found}"


class InvalidName(AegisError):
    """A workflow id, event key, queue or actor that is not usable as one."""

    def __init__(self, what: str, value: str, rule: str) -> None:
        super().__init__(what, value, rule)
        self.what, self.value, self.rule = what, value, rule

    def _message(self) -> str:
        shown = self.value if len(self.value) <= 60 else self.value[:57] + "..."  # noqa: PLR2004 - a line's worth
        article = "an" if self.what[0] in "aeiou" else "a"
        return f"{shown!r} is not {article} {self.what}: {self.rule}"


class UnknownWorkflowType(AegisError):
    """No class of that name was loaded in this process."""

    def __init__(self, type_name: str, known: Iterable[str]) -> None:
        super().__init__(type_name, tuple(known))
        self.type_name, self.known = type_name, tuple(known)

    def _message(self) -> str:
        known = ", ".join(sorted(self.known)) or "none"
        return (
            f"no workflow type {self.type_name!r} is loaded here (known: {known}); name its module in AEGIS_WORKFLOWS"
        )


class UnknownEvent(AegisError):
    """An event that no state of the workflow accepts; ``accepted`` are pairs of an event and its states."""

    def __init__(self, type_name: str, event: str, accepted: Iterable[tuple[str, Iterable[str]]]) -> None:
        pairs = tuple((name, tuple(states)) for name, states in accepted)
        super().__init__(type_name, event, pairs)
        self.type_name, self.event, self.accepted = type_name, event, pairs

    def _message(self) -> str:
        accepted = ", ".join(f"{name} (in {', '.join(states)})" for name, states in sorted(self.accepted))
        return f"{self.type_name} accepts no event {self.event!r}; it accepts: {accepted or 'none at all'}"


class EventRefused(AegisError):
    """An event that is not kept, and that the state of the workflow does not accept now."""

    def __init__(self, workflow_id: str, event: str, state: str, accepted: Iterable[str]) -> None:
        super().__init__(workflow_id, event, state, tuple(accepted))
        self.workflow_id, self.event, self.state, self.accepted = workflow_id, event, state, tuple(accepted)

    def _message(self) -> str:
        accepted = ", ".join(self.accepted) or "no event at all"
        return (
            f"workflow {self.workflow_id!r} is in state {self.state!r}, which does not accept {self.event!r} "
            f"(it accepts: {accepted}), and this event is not kept for later; nothing was sent"
        )


class AlreadyApproved(AegisError):
    """A second approval by the same sender, where different ones are needed."""

    def __init__(self, workflow_id: str, event: str, sender: str) -> None:
        super().__init__(workflow_id, event, sender)
        self.workflow_id, self.event, self.sender = workflow_id, event, sender

    def _message(self) -> str:
        return (
            f"{self.sender} has sent {self.event!r} to workflow {self.workflow_id!r} already, and it needs different "
            "senders; let somebody else send it"
        )


class FourEyes(AegisError):
    """An event by who moved the workflow on before, where somebody else is needed."""

    def __init__(self, workflow_id: str, event: str, sender: str) -> None:
        super().__init__(workflow_id, event, sender)
        self.workflow_id, self.event, self.sender = workflow_id, event, sender

    def _message(self) -> str:
        return (
            f"workflow {self.workflow_id!r} was moved on by {self.sender} before, so somebody else has to send "
            f"{self.event!r}"
        )


class UnknownVersion(AegisError):
    """A workflow of a version that the class of its type, as it is loaded here, cannot read."""

    def __init__(self, type_name: str, version: int, known: Iterable[int]) -> None:
        super().__init__(type_name, version, tuple(known))
        self.type_name, self.version, self.known = type_name, version, tuple(known)

    def _message(self) -> str:
        newest = max(self.known, default=0)
        if self.version > newest:
            remedy = "deploy the newer code here, too"
        else:
            remedy = f"add @upgrade({self.version}) to the class, and those that follow"
        known = ", ".join(map(str, sorted(self.known)))
        return f"version {self.version} of {self.type_name} cannot be read here (known: {known}); {remedy}"


class UpgradeFailed(AegisError):
    """An ``@upgrade`` that raised, or returned no data; the workflow stays as it was."""

    def __init__(self, type_name: str, version: int, problem: str) -> None:
        super().__init__(type_name, version, problem)
        self.type_name, self.version, self.problem = type_name, version, problem

    def _message(self) -> str:
        return f"the upgrade of {self.type_name} from version {self.version} failed: {self.problem}"


# --- what the database says -----------------------------------------------------------


class WorkflowNotFound(AegisError):
    """There is no workflow, or no transition of it, under that id."""

    def __init__(self, workflow_id: str, seq: int | None = None) -> None:
        super().__init__(workflow_id, seq)
        self.workflow_id, self.seq = workflow_id, seq

    def _message(self) -> str:
        if self.seq is None:
            return f"there is no workflow {self.workflow_id!r}; `aegis list` shows those there are"
        return f"workflow {self.workflow_id!r} has no checkpoint at seq {self.seq}"


class EffectNotFound(AegisError):
    """A workflow has no effect of that name that could still be resolved."""

    def __init__(self, workflow_id: str, name: str, known: Iterable[str]) -> None:
        super().__init__(workflow_id, name, tuple(known))
        self.workflow_id, self.name, self.known = workflow_id, name, tuple(known)

    def _message(self) -> str:
        known = ", ".join(sorted(self.known)) or "none"
        return (
            f"workflow {self.workflow_id!r} has no effect {self.name!r} in the transition it is at (there: {known}); "
            f"`aegis effects {self.workflow_id}` shows all, and --seq names one of another transition"
        )


class EffectsOpen(AegisError):
    """A workflow that cannot leave: its handler has done things outside that no transition tells of yet."""

    def __init__(self, workflow_id: str, names: Iterable[str]) -> None:
        super().__init__(workflow_id, tuple(names))
        self.workflow_id, self.names = workflow_id, tuple(names)

    def _message(self) -> str:
        return (
            f"workflow {self.workflow_id!r} has effects that no transition tells of yet ({', '.join(self.names)}), and "
            "whoever imports it would do them again: let it go on, or cancel it; or export it --without-effects, for "
            "reading alone"
        )


class StartConflict(AegisError):
    """The id belongs to a workflow that was started with something else."""

    def __init__(self, workflow_id: str, differences: Sequence[str]) -> None:
        super().__init__(workflow_id, tuple(differences))
        self.workflow_id, self.differences = workflow_id, tuple(differences)

    def _message(self) -> str:
        return (
            f"workflow {self.workflow_id!r} was already started with other input "
            f"({'; '.join(self.differences)}); use another id, or the same input"
        )


class SingletonConflict(AegisError):
    """Another workflow of the type has the singleton key, and has not ended."""

    def __init__(self, type_name: str, key: str, holder: str, status: str, state: str) -> None:
        super().__init__(type_name, key, holder, status, state)
        self.type_name, self.key = type_name, key
        self.holder, self.status, self.state = holder, status, state

    def _message(self) -> str:
        return (
            f"workflow {self.holder!r} of type {self.type_name} has the singleton key {self.key!r}, and has not ended: "
            f"it is {self.status} in state {self.state!r}; wait for it, cancel it, or start with attach=True to get it"
        )


class DeadlineExceeded(AegisError):
    """The deadline of a workflow passed before it had ended."""

    def __init__(self, workflow_id: str, deadline: str, state: str) -> None:
        super().__init__(workflow_id, deadline, state)
        self.workflow_id, self.deadline, self.state = workflow_id, deadline, state

    def _message(self) -> str:
        return (
            f"the deadline of workflow {self.workflow_id!r} passed at {self.deadline} in state {self.state!r}; "
            f"`aegis retry {self.workflow_id} --deadline 2h` gives it another one"
        )


class ForeignSession(AegisError):
    """A session or connection that was handed over, and that AEGIS cannot be part of."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def _message(self) -> str:
        return f"session=: {self.problem}; {self.remedy}"


class EventConflict(AegisError):
    """The event key was already used on this workflow for another event or payload."""

    def __init__(self, workflow_id: str, key: str, event: str) -> None:
        super().__init__(workflow_id, key, event)
        self.workflow_id, self.key, self.event = workflow_id, key, event

    def _message(self) -> str:
        return (
            f"workflow {self.workflow_id!r} already received an event under the key {self.key!r}, "
            f"with another name or payload than this {self.event!r}; use a new key"
        )


class WrongStatus(AegisError):
    """The workflow's status does not allow what was asked of it."""

    def __init__(self, workflow_id: str, status: str, operation: str, allowed: Iterable[str]) -> None:
        super().__init__(workflow_id, status, operation, tuple(allowed))
        self.workflow_id, self.status = workflow_id, status
        self.operation, self.allowed = operation, tuple(allowed)

    def _message(self) -> str:
        return (
            f"workflow {self.workflow_id!r} is {self.status}; {self.operation} needs one that is "
            f"{' or '.join(self.allowed)}"
        )


class WorkflowNotCompleted(AegisError):
    """A workflow that was waited for ended otherwise than by completing."""

    def __init__(self, workflow_id: str, status: str, reason: str | None) -> None:
        super().__init__(workflow_id, status, reason)
        self.workflow_id, self.status, self.reason = workflow_id, status, reason

    def _message(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"workflow {self.workflow_id!r} is {self.status}{because}"


class WaitTimeout(AegisError):
    """A workflow did not end within the time that the caller was ready to wait (seconds)."""

    def __init__(self, workflow_id: str, timeout: float, status: str, state: str) -> None:
        super().__init__(workflow_id, timeout, status, state)
        self.workflow_id, self.timeout, self.status, self.state = workflow_id, timeout, status, state

    def _message(self) -> str:
        return (
            f"workflow {self.workflow_id!r} has not ended after {self.timeout:g} s: "
            f"it is {self.status} in state {self.state!r}"
        )


class ClaimLost(AegisError):
    """Another worker owns this transition now; nothing of this attempt was written."""

    def __init__(self, workflow_id: str, seq: int) -> None:
        super().__init__(workflow_id, seq)
        self.workflow_id, self.seq = workflow_id, seq

    def _message(self) -> str:
        return f"workflow {self.workflow_id!r} is no longer ours at seq {self.seq}"


class HistoryBroken(AegisError):
    """A stored record is not what was committed."""

    def __init__(self, workflow_id: str, seq: int, problem: str) -> None:
        super().__init__(workflow_id, seq, problem)
        self.workflow_id, self.seq, self.problem = workflow_id, seq, problem

    def _message(self) -> str:
        return f"workflow {self.workflow_id!r}, transition {self.seq}: {self.problem}"


class DataErased(AegisError):
    """A workflow's data that was erased on purpose; its history is still there."""

    def __init__(self, workflow_id: str, seq: int) -> None:
        super().__init__(workflow_id, seq)
        self.workflow_id, self.seq = workflow_id, seq

    def _message(self) -> str:
        return (
            f"the data of workflow {self.workflow_id!r} at transition {self.seq} was erased; `aegis history` says why"
        )


class CheckpointPruned(AegisError):
    """A workflow's data as an earlier transition left it, that was pruned on purpose."""

    def __init__(self, workflow_id: str, seq: int) -> None:
        super().__init__(workflow_id, seq)
        self.workflow_id, self.seq = workflow_id, seq

    def _message(self) -> str:
        return (
            f"the checkpoint of workflow {self.workflow_id!r} at transition {self.seq} was pruned; later ones are kept"
        )


class WorkflowPurged(AegisError):
    """An id whose workflow was purged on purpose: only its stub is left, and the id stays taken."""

    def __init__(self, workflow_id: str) -> None:
        super().__init__(workflow_id)
        self.workflow_id = workflow_id

    def _message(self) -> str:
        return f"workflow {self.workflow_id!r} was purged, and its id is never used again; use another id"


class BundleRefused(AegisError):
    """A bundle that is not what was committed; ``findings`` are lines for people, nothing was written."""

    def __init__(self, source: str, findings: Sequence[str]) -> None:
        super().__init__(source, tuple(findings))
        self.source, self.findings = source, tuple(findings)

    def _message(self) -> str:
        return f"{self.source} was not imported, nothing was written: {'; '.join(self.findings)}"


class LogBroken(AegisError):
    """The log over all histories is not what it was; ``index`` is the place in it."""

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(index, problem)
        self.index, self.problem = index, problem

    def _message(self) -> str:
        return f"the log, entry {self.index}: {self.problem}; `aegis verify --all` tells more"


class NotANote(AegisError):
    """A signed note, or a key, that is malformed or signed by nobody trusted; ``what`` says which."""

    def __init__(self, what: str, problem: str) -> None:
        super().__init__(what, problem)
        self.what, self.problem = what, problem

    def _message(self) -> str:
        return f"{self.what} cannot be used: {self.problem}"


class NotABundle(AegisError):
    """A file or document that is no bundle, or was damaged; ``source`` says which."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(source, problem)
        self.source, self.problem = source, problem

    def _message(self) -> str:
        return f"{self.source} is no intact bundle: {self.problem}; fetch or export it again"


# --- the surroundings -----------------------------------------------------------------


class ConfigurationError(AegisError):
    """A setting that cannot be used; ``source`` is the variable or file at fault."""

    def __init__(self, source: str, problem: str, remedy: str) -> None:
        super().__init__(source, problem, remedy)
        self.source, self.problem, self.remedy = source, problem, remedy

    def _message(self) -> str:
        return f"{self.source}: {self.problem}; {self.remedy}"


class NotOnSQLite(AegisError):
    """Something that only PostgreSQL can do for AEGIS; ``remedy`` says what can be done instead."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy

    def _message(self) -> str:
        return f"{self.what} is not to be had on SQLite; {self.remedy}"


class DatabaseUnavailable(AegisError):
    """The database does not answer, or broke the connection off; the outcome may be unknown."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def _message(self) -> str:
        return (
            f"no answer from the database at {self.url} ({self.reason}); "
            "start it with `aegis up`, or set AEGIS_DATABASE_URL to one that runs"
        )


class SchemaMismatch(AegisError):
    """The database's schema is not the one that this version of AEGIS works with."""

    def __init__(self, found: str | None, wanted: str) -> None:
        super().__init__(found, wanted)
        self.found, self.wanted = found, wanted

    def _message(self) -> str:
        if self.found is None:
            return f"the database has no AEGIS schema (needs {self.wanted}); run `aegis db upgrade`"
        return (
            f"the database's schema is at {self.found}, this AEGIS needs {self.wanted}; run "
            "`aegis db upgrade`, or install the version of AEGIS that matches the schema"
        )


class BrokerUnavailable(AegisError):
    """The broker does not answer; whatever was accepted stays accepted."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def _message(self) -> str:
        return (
            f"no answer from the broker at {self.url} ({self.reason}); "
            "start it with `aegis up`, or set AEGIS_BROKER_URL to one that runs"
        )


class SinkUnavailable(AegisError):
    """A place where anchors are kept cannot be read or written."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason

    def _message(self) -> str:
        return f"the anchors at {self.place} cannot be reached ({self.reason}); mend that, or AEGIS_ANCHORS"


class ServerUnavailable(AegisError):
    """A private server for `aegis up` cannot be had, or did not start."""

    def __init__(self, server: str, problem: str, remedy: str) -> None:
        super().__init__(server, problem, remedy)
        self.server, self.problem, self.remedy = server, problem, remedy

    def _message(self) -> str:
        return f"{self.server}: {self.problem}; {self.remedy}"


class BackupFailed(AegisError):
    """A backup that was not taken, or does not prove itself; those before it are as they were."""

    def __init__(self, what: str, problem: str, remedy: str) -> None:
        super().__init__(what, problem, remedy)
        self.what, self.problem, self.remedy = what, problem, remedy

    def _message(self) -> str:
        return f"{self.what}: {self.problem}; {self.remedy}"


class RestoreFailed(AegisError):
    """A point that cannot be gone back to; nothing was put in anybody's place."""

    def __init__(self, what: str, problem: str, remedy: str) -> None:
        super().__init__(what, problem, remedy)
        self.what, self.problem, self.remedy = what, problem, remedy

    def _message(self) -> str:
        return f"{self.what}: {self.problem}; {self.remedy}"


class ClockRefused(AegisError):
    """A clock that tests can set was asked for where it must not be, or cannot be; ``database`` says where."""

    def __init__(self, database: str, problem: str, remedy: str) -> None:
        super().__init__(database, problem, remedy)
        self.database, self.problem, self.remedy = database, problem, remedy

    def _message(self) -> str:
        return f"the clock of {self.database} cannot be set: {self.problem}; {self.remedy}"


class DrillNotRun(AegisError):
    """A drill could not be carried out as it is meant, so that it says nothing about recovery."""

    def __init__(self, scenario: str, problem: str, remedy: str) -> None:
        super().__init__(scenario, problem, remedy)
        self.scenario, self.problem, self.remedy = scenario, problem, remedy

    def _message(self) -> str:
        return f"the drill {self.scenario!r} could not be run: {self.problem}; {self.remedy}"
