"""The tally: who approved and who moved a workflow on, counted along its chain; it names where a rule was broken.

What the chain says of its own rules is enough for it: no class, no definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .approval import APPROVED, DISREGARDED
from .canonical import Json, is_canonical, load
from .chain import ENGINE_EVENTS

_RULES: Final = (b'"approvals":', b'"four_eyes":')
_SENDER: Final = b'"sender":'


class Tally:
    """The count of one history; what cannot be read any more is judged by nothing."""

    def __init__(self) -> None:
        self._steered_by: str | None = None
        self._taken: bytes | None = None
        """The payload of the event that was taken last, read once somebody asks for its sender."""
        self._senders: dict[str, set[str]] = {}
        """Who approved since the state was entered, by the transition's name."""
        self._lost = True

    @staticmethod
    def is_plain(payload: bytes) -> bool:
        """Whether a transition with that payload was taken by no rule."""
        return not any(rule in payload for rule in _RULES)

    def skip(self, payload: bytes | None) -> None:
        """Count a transition that was taken by no rule, with the payload that it committed to."""
        if payload is not None and _SENDER in payload:
            self._taken = payload
        self._senders.clear()
        self._lost = False

    def lose(self) -> None:
        """Note that something cannot be read: nothing is said of what depends on it."""
        self._steered_by = self._taken = None
        self._senders.clear()
        self._lost = True

    def count(self, envelope: Mapping[str, Json], said: Mapping[str, Json]) -> list[tuple[str, str]]:
        """Count a transition, by its envelope and its payload; return what was to be expected, and what is there."""
        event = str(envelope.get("event"))
        sender = str(said.get("sender"))
        if event == "created":
            self._steered_by, self._taken, self._lost = str(envelope.get("actor")), None, False
            return []
        if event in {APPROVED, DISREGARDED}:
            return self._approval(event, envelope, said, sender)
        moved = envelope.get("from") != envelope.get("to")
        if event in ENGINE_EVENTS:
            if moved:  # an upgrade, to another state
                self._senders.clear()
            return []
        broken = [*self._same_eyes(said, sender), *self._too_few(event, said, sender)]
        if "sender" in said:
            self._steered_by, self._taken = sender, None
        self._senders.clear()
        self._lost = False
        return broken

    def _approval(
        self, event: str, envelope: Mapping[str, Json], said: Mapping[str, Json], sender: str
    ) -> list[tuple[str, str]]:
        broken = []
        if envelope.get("from") != envelope.get("to"):
            broken.append(("a state that stays", f"{event} from {envelope.get('from')} to {envelope.get('to')}"))
        if event == DISREGARDED:
            return broken
        counted = self._senders.setdefault(str(said.get("transition")), set())
        if not self._lost and sender in counted:
            broken.append(("an approval by another sender", f"one more by {sender}"))
        counted.add(sender)
        if not self._lost and said.get("approvals") != len(counted):
            broken.append((f"approvals {len(counted)}", f"approvals {said.get('approvals')}"))
        return broken + self._same_eyes(said, sender)

    def _too_few(self, event: str, said: Mapping[str, Json], sender: str) -> list[tuple[str, str]]:
        needed, counted = said.get("approvals"), self._senders.get(event, set())
        if type(needed) is not int or self._lost:
            return []
        senders = {*counted, sender}
        if sender in counted:
            return [("an approval by another sender", f"one more by {sender}")]
        return (
            [(f"{needed} approvals", f"{len(senders)} by {', '.join(sorted(senders))}")]
            if len(senders) < needed
            else []
        )

    def _same_eyes(self, said: Mapping[str, Json], sender: str) -> list[tuple[str, str]]:
        if said.get("four_eyes") is not True or sender != self._steering:
            return []
        return [("a sender who did not move it on before", sender)]

    @property
    def _steering(self) -> str | None:
        """Who moved it on last, from outside; None where that cannot be known."""
        if self._taken is not None:
            said = load(self._taken) if is_canonical(self._taken) else None
            self._steered_by = str(said.get("sender")) if isinstance(said, dict) else None
            self._taken = None
        return self._steered_by
