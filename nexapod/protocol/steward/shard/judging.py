"""The facts of one task to what its seat does next: pure (docs/protocol.md, sections 5 and 6).

The steward applies the actions and asks again until nothing changes: no action is taken in the middle of another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules.agreement import Accepted, Failed, Judgement, Undecided
from nexapod.protocol.types import Group


@dataclass(frozen=True, slots=True)
class FreezeEntry:
    """A commit, whose it is, and the group in which it counts."""

    worker: PeerId
    group: Group
    commit: StatementId


@dataclass(frozen=True, slots=True)
class RoundOf:
    """A freeze of one task: its round, and its entries in the order of the draw."""

    round: int
    entries: tuple[FreezeEntry, ...]

    @property
    def groups(self) -> frozenset[Group]:
        return frozenset(entry.group for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a seat knows of a task that is not decided."""

    agree: int
    frozen: RoundOf | None
    """The freeze that counts, of the highest round."""
    judgement: Judgement | None
    """What it comes to; None without one."""
    entries: tuple[FreezeEntry, ...]
    """What a freeze would have now: those frozen and the commits that count here, in the order of the draw."""
    signed: RoundOf | None
    """What this seat has signed last."""
    stuck: bool
    """... so long ago that others may have given it up."""
    contested: bool
    """Another seat would not sign it. Unanswered it is proposed again as it is: no round is used up."""
    running: bool
    """A worker that is linked still runs it, or has committed what is not frozen."""
    outputs_here: bool
    withheld: tuple[int, ...]
    """Places in `frozen` that are not waited for."""


@dataclass(frozen=True, slots=True)
class Freezable:
    """Enough groups have committed."""

    round: RoundOf


@dataclass(frozen=True, slots=True)
class Decidable:
    """There is a judgement that could be signed."""

    judgement: Accepted | Failed
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Gather:
    """The outputs of the result at this place must be here first."""

    place: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """For workers, or for what they show."""


Action: TypeAlias = Freezable | Decidable | Gather | Waiting


def wanted(agree: int, judgement: Judgement | None) -> int:
    """Groups, in all, that should have a task."""
    match judgement:
        case None:
            return agree
        case Undecided(groups):
            return groups
        case Accepted() | Failed():
            return 0


def decide(facts: Facts) -> Action:
    """The next step of one task."""
    match facts.judgement:
        case Accepted(representative=place) as accepted:
            return Decidable(accepted, facts.withheld) if facts.outputs_here else Gather(place)
        case Failed() as failed:
            # Whoever has committed since, or still runs it, may yet bring the agreement.
            further = _freeze(facts)
            if isinstance(further, Freezable) or facts.running:
                return further
            return Decidable(failed, facts.withheld)
        case Undecided() | None:
            return _freeze(facts)


def _freeze(facts: Facts) -> Action:
    if facts.signed is not None and _is_ahead(facts.signed, facts.frozen):
        unchanged = facts.signed.entries == facts.entries and not facts.contested
        if not facts.stuck or unchanged:
            return Freezable(facts.signed)
    now = frozenset(entry.group for entry in facts.entries)
    before = facts.frozen.groups if facts.frozen is not None else frozenset()
    if len(now) < wanted(facts.agree, facts.judgement) or now <= before:
        return Waiting()
    last = max((known.round for known in (facts.frozen, facts.signed) if known is not None), default=0)
    if last >= limits.ROUNDS_MAX:
        return Waiting()
    return Freezable(RoundOf(last + 1, facts.entries))


def _is_ahead(signed: RoundOf, frozen: RoundOf | None) -> bool:
    return frozen is None or signed.round > frozen.round


def in_draw_order(
    entries: Sequence[FreezeEntry], place_of: Mapping[Group, int], group_of: Mapping[PeerId, Group]
) -> tuple[FreezeEntry, ...]:
    """As a freeze lists them: by the draw of the groups in which the workers were admitted; those outside it last."""
    last = len(place_of)

    def key(entry: FreezeEntry) -> tuple[int, Group, bytes]:
        group = group_of.get(entry.worker, entry.group)
        return place_of.get(group, last), group, key_of_peer_id(entry.worker)

    return tuple(sorted(entries, key=key))
