"""One round of a job's gate: what a seat checks of an admission, and how far the round has come (docs/protocol.md,
Round).

An admission lists the commitments of the seats whose values will make its beacon. So they are fixed by the quorum that
signs it, before any value is shown, and whoever has both statements can check the beacon.
Each seat answers for its own commitment; those of others it need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, Millis, PeerId, key_of_peer_id
from nexapod.protocol.rules.succession import quorum
from nexapod.protocol.types import Group
from nexapod.protocol.wire.bodies import Admission
from nexapod.protocol.wire.statements import Statement


# --- values ----------------------------------------------------------------------------------------------------------
def void_after(void: Collection[PeerId], missing: Iterable[PeerId], holders: Collection[PeerId]) -> frozenset[PeerId]:
    """Whose values are void for the epoch once a round has left these out.

    When fewer than a quorum would be left to make beacons, all begin anew: one seat alone could try admissions until
    the beacon suits it.
    """
    grown = frozenset((*void, *missing))
    left = sum(1 for holder in holders if holder not in grown)
    return grown if left >= quorum(len(holders)) else frozenset()


# --- what a seat answers to a proposed admission ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Sound:
    """It may be signed."""


@dataclass(frozen=True, slots=True)
class Unheard:
    """These have not bid here (yet)."""

    workers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """It will not be signed: because of these workers, or, when there are none, for its form or commitments."""

    workers: tuple[PeerId, ...]
    reason: str


Answer: TypeAlias = Sound | Unheard | Wrong


@dataclass(frozen=True, slots=True)
class View:
    """What one seat knows, against which it holds an admission."""

    me: PeerId
    holders: tuple[PeerId, ...]
    void: Collection[PeerId]
    commitment: Digest | None
    """This seat's own; None when it has never spoken of one."""
    bids: Callable[[PeerId], Group | None]
    admissible: Callable[[PeerId, Group], bool]


def examine(body: Admission, view: View) -> Answer:
    """Whether a seat signs an admission, for what it sees itself."""
    keys = [key_of_peer_id(worker) for worker, _ in body.workers]
    if keys != sorted(set(keys)):
        return Wrong((), "its workers are not sorted by key, each once")
    error = _error_in_commitments(dict(body.commitments), view)
    if error is not None:
        return Wrong((), error)
    seen = [(worker, group, view.bids(worker)) for worker, group in body.workers]
    barred = [
        worker
        for worker, group, bid in seen
        if not view.admissible(worker, group) or (bid is not None and bid != group)
    ]
    if barred:
        return Wrong(tuple(barred), "a worker is admitted already, or of another group")
    unheard = tuple(worker for worker, _, bid in seen if bid is None)
    return Unheard(unheard) if unheard else Sound()


def _error_in_commitments(committed: Mapping[PeerId, Digest], view: View) -> str | None:
    if any(peer not in view.holders for peer in committed):
        return "it lists a commitment of no seat"
    if any(peer in view.void for peer in committed):
        return "it lists a commitment of a seat whose values are void"
    if view.commitment is not None and view.me not in view.void and committed.get(view.me) != view.commitment:
        return "it does not list this seat's commitment"
    return None


# --- how far a round is ----------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Round:
    """The round that this seat takes part in. `admission` and `beacon` with all signatures that came."""

    admission: Statement
    committed: dict[PeerId, Digest]
    opened: Millis
    proposed: bool
    """By this seat."""
    quorum_at: Millis | None = None
    values: dict[PeerId, bytes] = field(default_factory=dict)
    beacon: Statement | None = None
    resend_at: Millis = 0
    resend_ms: Millis = limits.RETRY_MIN_MS
    objectors: dict[PeerId, tuple[PeerId, ...]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        number: int = self.admission.body.round
        return number

    @property
    def complete_values(self) -> bool:
        """Every seat that had bound itself has shown its value."""
        return all(peer in self.values for peer in self.committed)
