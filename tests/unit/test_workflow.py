"""A workflow as data, its handlers as functions of that data, and the types that a process knows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, cast
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, PositiveInt, model_validator

from aegis.core.canonical import canonical, parse
from aegis.core.errors import (
    AegisError,
    DefinitionError,
    InvalidData,
    InvalidHandlerResult,
    NotCanonical,
    UnknownEvent,
    UnknownWorkflowType,
)
from aegis.core.workflow import (
    Context,
    Registry,
    Workflow,
    handle,
    read_payload,
    registry,
    snapshot,
    state_of,
    transition,
)

CONTEXT: Final = cast("Context", object())


class Stage(StrEnum):
    DRAFT = "draft"
    REVIEW = "review"
    APPROVED = "approved"
    REJECTED = "rejected"


class Verdict(StrEnum):
    APPROVED = "approved"
    ADJOURNED = "adjourned"


class Author(BaseModel):
    name: str
    born: date | None = None


class Decision(BaseModel):
    yes: bool
    reason: str = ""


class Renamed(BaseModel):
    """A payload that calls its member otherwise outside."""

    amount: int = Field(alias="amountInCents")


class UnitPaper(Workflow):
    """The workflow of this module. What its handlers do is told by ``act``."""

    state: Stage = Stage.DRAFT
    title: str = ""
    pages: list[PositiveInt] = Field(default_factory=list)
    authors: list[Author] = Field(default_factory=list)
    fee: Decimal = Decimal(0)
    id: UUID | None = None
    at: datetime | None = None
    wait: timedelta | None = None
    notes: dict[str, int] = Field(default_factory=dict)
    extra: Any = None
    act: str = "nothing"

    @transition(Stage.DRAFT, Stage.REVIEW)
    def submit(self, ctx: Context) -> object:
        self.title += "!"
        return self._act(ctx)

    @transition(Stage.REVIEW, (Stage.APPROVED, Stage.REJECTED), on="decide")
    def decide(self, ctx: Context, payload: Decision) -> object:
        assert isinstance(payload, Decision)
        self.title += payload.reason
        return self._act(ctx)

    @transition(Stage.REVIEW, Stage.DRAFT, on="mapped")
    def mapped(self, ctx: Context, payload: dict[str, Any]) -> None: ...

    @transition(Stage.REVIEW, Stage.DRAFT, on="renamed")
    def renamed(self, ctx: Context, payload: Renamed) -> None: ...

    @transition(Stage.REVIEW, Stage.DRAFT, on="scan")
    def scan(self, ctx: Context, payload: bytes) -> None: ...

    @transition(Stage.REVIEW, Stage.DRAFT, on="measure")
    def measure(self, ctx: Context, payload: float | None) -> None: ...

    def _act(self, ctx: Context) -> object:
        assert ctx is CONTEXT
        match self.act:
            case "set the state":
                self.state = Stage.APPROVED
            case "set the state and return it":
                self.state = Stage.REVIEW
                return Stage.REVIEW
            case "raise":
                msg = "no paper"
                raise RuntimeError(msg)
            case "misfit":
                self.pages = [0]
        return RESULTS.get(self.act)


# What a handler returns, by what ``act`` says.
RESULTS: Final[dict[str, object]] = {
    "approve": Stage.APPROVED,
    "approve by value": "approved",
    "approve by another enumeration": Verdict.APPROVED,
    "reject": Stage.REJECTED,
    "review": Stage.REVIEW,
    "draft": Stage.DRAFT,
    "adjourn": Verdict.ADJOURNED,
    "true": True,
    "false": False,
    "empty": "",
    "zero": 0,
    "member name": "APPROVED",
    "class": Stage,
    "both": (Stage.APPROVED, Stage.REJECTED),
    "itself": UnitPaper,
}
FULL: Final = UnitPaper(
    state=Stage.REVIEW,
    title="päy €",
    pages=[1, 2],
    authors=[Author(name="Ada", born=date(1815, 12, 10)), Author(name="Bo")],
    fee=Decimal("10.50"),
    id=UUID(int=7),
    at=datetime(2026, 11, 22, 10, 11, 12, 1, tzinfo=UTC),
    wait=timedelta(days=1, seconds=1),
    notes={"a/b": 1},
    extra=[None, {"a": 0.5}],
)


# --- data -----------------------------------------------------------------------------------


def test_a_workflow_as_a_dict_holds_json_alone() -> None:
    assert FULL.to_dict() == {
        "state": "review",
        "title": "päy €",
        "pages": [1, 2],
        "authors": [{"name": "Ada", "born": "1815-12-10"}, {"name": "Bo", "born": None}],
        "fee": "10.50",
        "id": "00000000-0000-0000-0000-000000000007",
        "at": "2026-11-22T10:11:12.000001Z",
        "wait": "P1DT1S",
        "notes": {"a/b": 1},
        "extra": [None, {"a": 0.5}],
        "act": "nothing",
    }


@pytest.mark.parametrize("workflow", [UnitPaper(), FULL], ids=["defaults", "full"])
def test_a_workflow_comes_back_from_its_dict_and_from_its_canonical_bytes(workflow: UnitPaper) -> None:
    data = workflow.to_dict()
    again = UnitPaper.from_dict(data)
    assert again == workflow
    assert type(again) is UnitPaper
    stored = parse(canonical(data))
    assert isinstance(stored, dict)
    assert UnitPaper.from_dict(stored) == workflow


def test_what_is_left_out_of_a_dict_has_its_default() -> None:
    assert UnitPaper.from_dict({"title": "a"}) == UnitPaper(title="a")


def test_what_comes_back_from_a_dict_shares_nothing_with_it() -> None:
    data = FULL.to_dict()
    UnitPaper.from_dict(data).pages.append(3)
    assert data["pages"] == [1, 2]


@pytest.mark.parametrize(
    ("data", "pointers"),
    [
        ({"title": 1}, ["/title"]),
        ({"state": "burnt"}, ["/state"]),
        ({"titel": ""}, ["/titel"]),
        ({"pages": [1, 0, 2, -1]}, ["/pages/1", "/pages/3"]),
        ({"authors": [{"name": "Ada"}, {}]}, ["/authors/1/name"]),
        ({"authors": [{"name": "Ada", "born": "tomorrow"}]}, ["/authors/0/born"]),
        ({"notes": {"a": "x"}}, ["/notes/a"]),
        ({"title": None, "pages": 1}, ["/title", "/pages"]),
        ({"a/b~c": 1}, ["/a~1b~0c"]),
        ({"notes": {"a/b": "x", "": "y", "~": "z"}}, ["/notes/a~1b", "/notes/", "/notes/~0"]),
    ],
    ids=str,
)
def test_data_that_does_not_fit_is_refused_with_a_json_pointer_to_each_member(
    data: dict[str, Any], pointers: list[str]
) -> None:
    with pytest.raises(InvalidData) as refused:
        UnitPaper.from_dict(data)
    assert [pointer for pointer, _ in refused.value.problems] == pointers
    assert all(problem for _, problem in refused.value.problems)
    assert "the data of UnitPaper" in str(refused.value)


@pytest.mark.parametrize("data", [None, [], "text", 7])
def test_what_is_no_object_is_refused_as_a_whole(data: Any) -> None:
    with pytest.raises(InvalidData) as refused:
        UnitPaper.from_dict(data)
    assert [pointer for pointer, _ in refused.value.problems] == [""]


def test_the_refusal_does_not_repeat_the_data() -> None:
    with pytest.raises(InvalidData) as refused:
        UnitPaper.from_dict({"notes": {"a": "geheim"}, "pages": ["geheim"]})
    assert "geheim" not in str(refused.value)


def test_a_member_is_checked_when_a_handler_assigns_it() -> None:
    workflow = UnitPaper()
    with pytest.raises(ValueError, match="pages"):
        workflow.pages = [0]
    assert workflow.pages == []


def test_data_under_another_name_comes_back_too() -> None:
    class UnitAlias(Workflow):
        state: Stage = Stage.DRAFT
        total: int = Field(default=0, alias="totalInCents")

        @transition(Stage.DRAFT, (Stage.REVIEW, Stage.APPROVED, Stage.REJECTED))
        def go(self, ctx: Context) -> Stage:
            return Stage.REVIEW

    workflow = UnitAlias(totalInCents=3)
    assert UnitAlias.from_dict(workflow.to_dict()) == workflow


# --- the snapshot -----------------------------------------------------------------------------


def test_a_snapshot_is_the_data() -> None:
    assert snapshot(FULL) == FULL.to_dict()


@pytest.mark.parametrize(
    ("spoil", "pointer"),
    [
        (lambda w: w.pages.append(0), "/pages/2"),
        (lambda w: w.pages.insert(0, -7), "/pages/0"),
        (lambda w: setattr(w.authors[1], "name", None), "/authors/1/name"),
        (lambda w: w.notes.update(a=None), "/notes/a"),
    ],
    ids=["list", "list start", "nested model", "mapping"],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_snapshot_of_data_that_could_not_be_read_again_is_refused(spoil: Any, pointer: str) -> None:
    workflow = FULL.model_copy(deep=True)
    spoil(workflow)
    with pytest.raises(InvalidData) as refused:
        snapshot(workflow)
    assert [found for found, _ in refused.value.problems] == [pointer]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_snapshot_of_what_is_no_json_at_all_is_refused_as_data() -> None:
    workflow = UnitPaper()
    workflow.extra = object()
    with pytest.raises(AegisError):  # InvalidData or NotCanonical, and no error of pydantic's
        snapshot(workflow)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_snapshot_does_not_turn_what_is_no_number_into_null(number: float) -> None:
    workflow = UnitPaper()
    workflow.extra = {"rate": number}
    with pytest.raises((InvalidData, NotCanonical)):
        canonical(snapshot(workflow))


# --- handlers -----------------------------------------------------------------------------------

SUBMIT, DECIDE, *_ = UnitPaper.definition.edges


def test_the_state_of_a_workflow_is_the_value_of_its_member() -> None:
    assert state_of(UnitPaper(state=Stage.REJECTED)) == "rejected"
    assert type(state_of(UnitPaper())) is str


@pytest.mark.parametrize("act", ["nothing", "review"])
def test_a_handler_with_one_target_returns_nothing_or_that_target(act: str) -> None:
    workflow = UnitPaper(title="a", act=act)
    assert handle(workflow, SUBMIT, CONTEXT, None) == "review"
    assert workflow.state is Stage.REVIEW
    assert workflow.title == "a!"


@pytest.mark.parametrize(
    ("act", "target"),
    [
        ("approve", Stage.APPROVED),
        ("approve by value", Stage.APPROVED),
        ("approve by another enumeration", Stage.APPROVED),
        ("reject", Stage.REJECTED),
    ],
)
def test_a_handler_with_several_targets_returns_the_one_it_chose(act: str, target: Stage) -> None:
    workflow = UnitPaper(state=Stage.REVIEW, act=act)
    assert handle(workflow, DECIDE, CONTEXT, Decision(yes=True, reason="good")) == target.value
    assert workflow.state is target
    assert workflow.title == "good", "the handler was given the payload"


@pytest.mark.parametrize(
    "act",
    [
        "nothing",
        "review",
        "draft",
        "adjourn",
        "true",
        "false",
        "empty",
        "zero",
        "member name",
        "class",
        "both",
        "itself",
    ],
)
def test_a_handler_that_returns_what_is_no_target_is_refused(act: str) -> None:
    workflow = UnitPaper(state=Stage.REVIEW, act=act)
    with pytest.raises(InvalidHandlerResult) as refused:
        handle(workflow, DECIDE, CONTEXT, Decision(yes=True))
    assert refused.value.transition == "UnitPaper.decide"
    assert f"it returned {RESULTS.get(act)!r}; it must return one of: approved, rejected" in str(refused.value)
    assert workflow.state is Stage.REVIEW


@pytest.mark.parametrize("act", ["approve", "draft", "true", "empty", "zero"])
def test_a_handler_with_one_target_returns_no_other(act: str) -> None:
    with pytest.raises(InvalidHandlerResult, match="it must return one of: review"):
        handle(UnitPaper(act=act), SUBMIT, CONTEXT, None)


@pytest.mark.parametrize("act", ["set the state", "set the state and return it"])
def test_a_handler_that_sets_the_state_itself_is_refused(act: str) -> None:
    with pytest.raises(InvalidHandlerResult, match=r"UnitPaper.submit: it set self.state; it must return the target"):
        handle(UnitPaper(act=act), SUBMIT, CONTEXT, None)


def test_what_a_handler_raises_comes_out_as_it_is_and_the_state_stays() -> None:
    workflow = UnitPaper(act="raise")
    with pytest.raises(RuntimeError, match=r"^no paper$"):
        handle(workflow, SUBMIT, CONTEXT, None)
    assert workflow.state is Stage.DRAFT


def test_a_handler_that_assigns_what_does_not_fit_raises_there() -> None:
    with pytest.raises(ValueError, match="pages"):
        handle(UnitPaper(act="misfit"), SUBMIT, CONTEXT, None)


def test_a_transition_may_lead_back_to_its_own_state() -> None:
    class UnitAgain(Workflow):
        state: Verdict = Verdict.ADJOURNED
        count: int = 0

        @transition(Verdict.ADJOURNED, (Verdict.ADJOURNED, Verdict.APPROVED), on="meet")
        def meet(self, ctx: Context, payload: None) -> Verdict:
            self.count += 1
            return Verdict.ADJOURNED

    workflow = UnitAgain()
    assert handle(workflow, UnitAgain.definition.edges[0], CONTEXT, None) == "adjourned"
    assert workflow == UnitAgain(count=1)


# --- payloads -----------------------------------------------------------------------------------


def test_a_payload_comes_as_the_handler_sees_it_and_as_it_is_stored() -> None:
    expected = (Decision(yes=True, reason="good"), {"yes": True, "reason": "good"})
    assert read_payload(UnitPaper, "decide", {"yes": True, "reason": "good"}) == expected
    assert read_payload(UnitPaper, "decide", Decision(yes=True, reason="good")) == expected


def test_a_payload_that_does_not_fit_is_refused_with_a_json_pointer() -> None:
    with pytest.raises(InvalidData, match="the payload of 'decide' is not valid") as refused:
        read_payload(UnitPaper, "decide", {"reason": 7})
    assert [pointer for pointer, _ in refused.value.problems] == ["/yes", "/reason"]


@pytest.mark.parametrize("payload", [None, "yes", [], 1])
def test_a_payload_that_is_no_object_where_one_is_needed_is_refused(payload: object) -> None:
    with pytest.raises(InvalidData) as refused:
        read_payload(UnitPaper, "decide", payload)
    assert [pointer for pointer, _ in refused.value.problems] == [""]


@pytest.mark.parametrize("event", ["", "Decide", "submit", "decided"])
def test_an_event_that_no_state_accepts_is_unknown(event: str) -> None:
    with pytest.raises(UnknownEvent) as refused:
        read_payload(UnitPaper, event, {"yes": True})
    assert (refused.value.type_name, refused.value.event) == ("UnitPaper", event)
    assert [name for name, _ in refused.value.accepted] == ["decide", "mapped", "renamed", "scan", "measure"]
    assert all(states == UnitPaper.definition.accepting(name) != () for name, states in refused.value.accepted)


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("decide", {"yes": False}),
        ("mapped", {"a": [1, None, {"b": "é"}]}),
        ("renamed", {"amountInCents": 3}),
        ("scan", b"scanned"),
        ("measure", 0.5),
        ("measure", None),
    ],
)
def test_a_worker_reads_from_what_was_stored_the_payload_that_was_sent(event: str, payload: object) -> None:
    seen, stored = read_payload(UnitPaper, event, payload)
    again = parse(canonical(stored))
    assert read_payload(UnitPaper, event, again)[0] == seen


@pytest.mark.parametrize(
    ("event", "payload"),
    [("mapped", {"a": object()}), ("mapped", {"a": {"b": [object()]}}), ("scan", b"\xff\xfe")],
    ids=["object", "object within", "bytes"],
)
def test_a_payload_that_cannot_be_written_as_json_is_refused_as_data(event: str, payload: object) -> None:
    with pytest.raises(AegisError):  # InvalidData or NotCanonical, and no error of pydantic's
        canonical(read_payload(UnitPaper, event, payload)[1])


@pytest.mark.parametrize(
    ("event", "payload"),
    [("mapped", {"a": float("nan")}), ("mapped", {"a": [float("inf")]}), ("measure", float("nan"))],
    ids=["nan", "inf", "typed"],
)
def test_a_payload_does_not_turn_what_is_no_number_into_null(event: str, payload: object) -> None:
    with pytest.raises((InvalidData, NotCanonical)):
        canonical(read_payload(UnitPaper, event, payload)[1])


# --- the registry -------------------------------------------------------------------------------


def make(name: str, *, module: str = "shop.orders", qualname: str | None = None, version: int = 1) -> type[Workflow]:
    """Make a workflow class as a module of that name would; it is known to the process, too."""

    def go(self: Workflow, ctx: Context) -> None: ...

    namespace = {
        "__module__": module,
        "__qualname__": name if qualname is None else qualname,
        "__annotations__": {"state": Verdict},
        "state": Verdict.ADJOURNED,
        "go": transition(Verdict.ADJOURNED, Verdict.APPROVED)(go),
    }
    made: type[Workflow] = type(Workflow)(name, (Workflow,), namespace, version=version)
    return made


@pytest.fixture
def own() -> Registry:
    """A registry of the test's own."""
    return Registry()


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Forget the types that a test made known to the whole process."""
    before = dict(registry._types)
    yield
    registry._types.clear()
    registry._types.update(before)


def test_a_class_is_known_from_when_it_is_made() -> None:
    assert registry.get("UnitPaper") is UnitPaper
    assert UnitPaper in list(registry)


def test_another_class_of_the_same_name_is_refused() -> None:
    first = make("UnitTwin", module="shop.orders")
    with pytest.raises(DefinitionError) as refused:
        make("UnitTwin", module="shop.invoices")
    assert refused.value.workflow == "UnitTwin"
    assert "shop.orders.UnitTwin already has this name" in refused.value.problem
    assert 'name="..."' in refused.value.remedy
    assert registry.get("UnitTwin") is first


def test_another_class_of_the_same_name_in_the_same_module_is_refused() -> None:
    make("UnitInner", qualname="Outer.UnitInner")
    with pytest.raises(DefinitionError, match="already has this name"):
        make("UnitInner", qualname="Other.UnitInner")


def test_the_same_class_imported_again_takes_the_place_of_the_first() -> None:
    first = make("UnitReloaded")
    again = make("UnitReloaded", version=2)
    assert again is not first
    assert registry.get("UnitReloaded") is again
    assert registry.find("UnitReloaded", 1) is None


def test_a_type_that_is_not_known_is_refused_with_those_that_are(own: Registry) -> None:
    own.add(make("UnitZebra"))
    own.add(make("UnitAnt"))
    with pytest.raises(UnknownWorkflowType, match=r"'UnitBee' .*\(known: UnitAnt, UnitZebra\)") as refused:
        own.get("UnitBee")
    assert set(refused.value.known) == {"UnitAnt", "UnitZebra"}


def test_a_type_is_found_by_name_and_version(own: Registry) -> None:
    made = make("UnitVersioned", version=3)
    own.add(made)
    assert own.get("UnitVersioned") is made
    assert own.find("UnitVersioned", 3) is made
    assert [own.find("UnitVersioned", version) for version in (1, 2, 4)] == [None, None, None]
    assert own.find("UnitUnheardOf", 3) is None


def test_the_known_types_are_listed_by_name_with_their_versions(own: Registry) -> None:
    assert own.known() == []
    zebra, ant = make("UnitZebra", version=2), make("UnitAnt")
    own.add(zebra)
    own.add(ant)
    assert own.known() == ["UnitAnt/1", "UnitZebra/2"]
    assert list(own) == [ant, zebra]


def test_a_rule_of_the_whole_model_holds_for_a_snapshot() -> None:
    class UnitRule(Workflow):
        state: Verdict = Verdict.ADJOURNED
        parts: list[int] = Field(default_factory=list)

        @transition(Verdict.ADJOURNED, Verdict.APPROVED)
        def go(self, ctx: Context) -> None: ...

        @model_validator(mode="after")
        def _few(self) -> UnitRule:
            if len(self.parts) > 2:
                msg = "at most two parts"
                raise ValueError(msg)
            return self

    workflow = UnitRule(parts=[1, 2])
    workflow.parts.append(3)
    with pytest.raises(InvalidData, match="at most two parts"):
        snapshot(workflow)
