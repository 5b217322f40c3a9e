"""By whose word seats and panels change (docs/protocol.md, Succession, Renewal): pure functions over values.

The seats of a shard are the end of a chain: it begins with the job, and of several statements that follow the same one
`preferred` says which counts. So a chain that somebody makes long by himself is cut off where it left the regular one,
and everybody who has the same statements has the same seats, in whatever order they came. Knows no clock: whether an
honest seat signs one is its own matter (steward/tenure.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import JobId, PeerId, StatementId
from nexapod.protocol.rules import seats
from nexapod.protocol.wire.bodies import AUTHORITIES, Authority, Renewal, Succession
from nexapod.protocol.wire.statements import Statement

Standing: TypeAlias = Literal["counts", "proposal"]
"""proposal: nothing is wrong with it, but not enough of those who may sign it have."""
_FORGED = 30
"""Points for a statement that no signature could make true."""


@dataclass(frozen=True, slots=True)
class Seats:
    """Who holds a shard, from which epoch on, and by what."""

    shard: int
    epoch: int
    holders: tuple[PeerId, ...]
    """The leader first."""
    authority: Authority | None
    """None: by the job itself."""
    id: StatementId
    """Of the succession; of the job, in epoch 0."""

    @property
    def quorum(self) -> int:
        return quorum(len(self.holders))

    @property
    def witnesses(self) -> int:
        """How many of them must say the same of who a worker is, or that the job is here."""
        return min(limits.WITNESSES, len(self.holders))

    def signed_by_quorum(self, signers: Iterable[PeerId]) -> bool:
        return _enough(signers, self.holders)


def quorum(of: int) -> int:
    """How many of so many are a quorum: two quorums have somebody in common."""
    return of // 2 + 1


def first_seats(job: JobId, shard: int, panel: Iterable[PeerId]) -> Seats:
    """The seats of epoch 0, from the job's own panel."""
    return Seats(shard, 0, seats.first_holders(job, shard, panel), None, StatementId(job))


def succeeded(statement: Statement) -> Seats:
    """The seats by a succession."""
    body: Succession = statement.body
    return Seats(body.shard, body.epoch, body.holders, body.authority, statement.id)


# --- does it count -------------------------------------------------------------------------------------------------
def standing(
    statement: Statement,
    before: Seats,
    panels: Sequence[Collection[PeerId]],
    owners: Collection[PeerId],
) -> Standing:
    """Whether a succession counts as the next after `before`, the seats whose id its `previous` is.

    `panels`: the members by the job and after each renewal that counts, the present last; one that counted when it was
    signed counts after the panel's next renewal too. `owners`: the submitter, and the job's delegate. Raises PeerError
    when no signature could make it count.
    """
    body: Succession = statement.body
    _check_succession(body, before, panels)
    signers = statement.signers
    match body.authority:
        case "submitter":
            ok = any(peer in owners for peer in signers)
        case "seats":
            ok = before.signed_by_quorum(signers)
        case "panel":
            ok = any(_enough(signers, panel) for panel in panels)
        case "caretaker":
            ok = all(holder in signers for holder in body.holders)
    return "counts" if ok else "proposal"


def _check_succession(body: Succession, before: Seats, panels: Sequence[Collection[PeerId]]) -> None:
    if body.shard != before.shard or body.previous != before.id or body.epoch != before.epoch + 1:
        raise PeerError("bad-succession", "it is not one epoch after the one that it names", penalty=_FORGED)
    if len(set(body.holders)) != len(body.holders):
        raise PeerError("bad-succession", "it names a holder twice", penalty=_FORGED)
    if not any(all(holder in panel for holder in body.holders) for panel in panels):
        raise PeerError("bad-succession", "a holder is no member of the panel")


def renewal_standing(
    statement: Statement,
    epoch: int,
    previous: StatementId,
    panel: Sequence[PeerId],
    added: Sequence[PeerId],
    owners: Collection[PeerId],
) -> Standing:
    """Whether a renewal counts as the next for this panel.

    `epoch`, `previous`: of the present panel (0 and the job's id, when there was no renewal). `added`: who made the
    offers that it names. By the panel's word at most a third leaves, and at least one may. Raises PeerError when no
    signature could make it count.
    """
    body: Renewal = statement.body
    if body.previous != previous or body.epoch != epoch + 1:
        raise PeerError("bad-renewal", "it is not one epoch after the one that it names", penalty=_FORGED)
    _check_members(body, panel, added)
    signers = statement.signers
    match body.authority:
        case "submitter":
            ok = any(peer in owners for peer in signers)
        case "panel":
            if len(body.removed) > leaving_max(len(panel)):
                raise PeerError("bad-renewal", "more than a third of the panel leaves", penalty=_FORGED)
            ok = _enough(signers, panel)
        case _:
            raise PeerError("bad-renewal", "a panel is renewed by the submitter or by itself", penalty=_FORGED)
    return "counts" if ok else "proposal"


def _check_members(body: Renewal, panel: Sequence[PeerId], added: Sequence[PeerId]) -> None:
    if len(set(body.removed)) != len(body.removed) or any(peer not in panel for peer in body.removed):
        raise PeerError("bad-renewal", "it removes somebody who is no member, or twice", penalty=_FORGED)
    if len(set(added)) != len(added) or any(peer in panel for peer in added):
        raise PeerError("bad-renewal", "it adds a member, or somebody twice", penalty=_FORGED)
    if not 1 <= len(panel) - len(body.removed) + len(added) <= limits.PANEL_MAX:
        raise PeerError("bad-renewal", f"a panel has 1 to {limits.PANEL_MAX} members", penalty=_FORGED)


def leaving_max(members: int) -> int:
    """How many may leave a panel at a time by its own word."""
    return max(1, members // 3)


def renewed(panel: Sequence[PeerId], removed: Collection[PeerId], added: Iterable[PeerId]) -> tuple[PeerId, ...]:
    """The members after a renewal: those that stay, in their order, then the new ones."""
    return (*(peer for peer in panel if peer not in removed), *added)


def _enough(signers: Iterable[PeerId], of: Collection[PeerId]) -> bool:
    return sum(1 for peer in signers if peer in of) >= quorum(len(of))


# --- which of several counts ----------------------------------------------------------------------------------------
def rank(authority: Authority) -> int:
    """Smaller is stronger."""
    return AUTHORITIES.index(authority)


def preferred(one: Statement, other: Statement) -> Statement:
    """Of two successions, or two renewals, that count and follow the same statement: the one that stands."""
    return min(one, other, key=lambda statement: (rank(statement.body.authority), statement.id))


def next_holders(
    current: Seats, panel_order: Sequence[PeerId], gone: Collection[PeerId], reachable: Collection[PeerId]
) -> tuple[PeerId, ...]:
    """Who should hold a shard next: those that stay, in their order, then for each that is gone the first in the
    shard's order that is no holder and answers. Fewer, if there are not enough; as now, if nobody could take over."""
    staying = tuple(peer for peer in current.holders if peer not in gone)
    spare = [peer for peer in panel_order if peer not in current.holders and peer in reachable and peer not in gone]
    return (*staying, *spare)[: limits.SEATS] or current.holders
