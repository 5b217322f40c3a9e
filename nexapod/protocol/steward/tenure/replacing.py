"""What a member of a panel does about one shard whose seats are gone (docs/protocol.md, Succession): pure decisions.

A member acts on what it has observed itself. Before it signs a proposal of its own it asks those whose signatures it
will need whether they reach the seat: a signature on a succession that fails binds its signer for the whole epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.rules.succession import Seats, next_holders, quorum
from nexapod.protocol.wire.bodies import Authority, Succession


@dataclass(frozen=True, slots=True)
class Scene:
    """What one member knows about a shard. `order`: the present panel in the shard's order."""

    me: PeerId
    seats: Seats
    order: tuple[PeerId, ...]
    silent_ms: Callable[[PeerId], Millis]
    answers: Callable[[PeerId], bool]
    barred: Callable[[PeerId], bool]
    """It has refused to be a steward of the job, or is proven to have signed two things of which it may sign one."""

    @property
    def patience_ms(self) -> Millis:
        return gone_after_ms(self.seats.epoch)

    def gone(self, peer: PeerId) -> bool:
        """Whether this member takes a seat to be gone."""
        return peer != self.me and (self.barred(peer) or self.silent_ms(peer) >= self.patience_ms)


def gone_after_ms(epoch: int) -> Millis:
    """How long a seat must have been silent to be replaced: doubles with each epoch of the shard."""
    return min(limits.SEAT_GONE_MS << min(epoch, 16), limits.SEAT_GONE_MAX_MS)


# --- proposing -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Propose:
    """Sign a succession, if enough of the `voters` confirm it."""

    holders: tuple[PeerId, ...]
    authority: Authority
    voters: tuple[PeerId, ...]
    """Who can be asked to sign, this member not among them."""
    needed: int
    """Of their signatures."""
    gone: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Look:
    """Something may be wrong: find out whether these answer."""

    peers: tuple[PeerId, ...]


@dataclass(frozen=True, slots=True)
class Helpless:
    """Neither the seats nor the panel can decide: a caretaker may have to."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """All is well, or it is for others to act first."""


Course: TypeAlias = Propose | Look | Helpless | Nothing


def course(scene: Scene) -> Course:
    """What to do about a shard now."""
    gone = tuple(peer for peer in scene.seats.holders if scene.gone(peer))
    staying = [peer for peer in scene.seats.holders if peer not in gone]
    vacant = min(limits.SEATS, len(scene.order)) - len(scene.seats.holders)
    if not gone and vacant <= 0:
        return Nothing()
    if scene.me not in staying and not _outsider_acts(scene, staying):
        return Nothing()
    reachable = [peer for peer in scene.order if scene.answers(peer) and not scene.barred(peer)]
    holders = next_holders(scene.seats, scene.order, gone, reachable)
    if all(peer in scene.seats.holders for peer in holders):
        unasked = _spares(scene, reachable)
        if unasked:
            return Look(unasked)
        return Helpless() if len(staying) < scene.seats.quorum else Nothing()
    return _by_whom(scene, holders, gone, staying)


def _spares(scene: Scene, reachable: Sequence[PeerId]) -> tuple[PeerId, ...]:
    """The first members that could take a seat, if they answered."""
    able = [
        peer
        for peer in scene.order
        if peer not in scene.seats.holders
        and peer not in reachable
        and not scene.barred(peer)
        and scene.silent_ms(peer) < limits.SEAT_GONE_MS
    ]
    return tuple(able[: limits.SEATS])


def _outsider_acts(scene: Scene, staying: Sequence[PeerId]) -> bool:
    """Members without a seat of the shard act when its seats no longer can, or have not for long."""
    if len(staying) < scene.seats.quorum:
        return True
    longest = max((scene.silent_ms(peer) for peer in scene.seats.holders), default=0)
    return longest >= 2 * limits.SEAT_GONE_MAX_MS


def _by_whom(scene: Scene, holders: tuple[PeerId, ...], gone: tuple[PeerId, ...], staying: Sequence[PeerId]) -> Course:
    live = [peer for peer in scene.order if peer == scene.me or not _dead(scene, peer)]
    if scene.me in staying and len(staying) >= scene.seats.quorum:
        authority: Authority = "seats"
        electors, needed = list(staying), scene.seats.quorum
    elif len(live) >= quorum(len(scene.order)):
        authority = "panel"
        electors = [*staying, *(peer for peer in live if peer not in staying)]
        needed = quorum(len(scene.order))
    else:
        return Helpless()
    waited = min((scene.silent_ms(peer) for peer in gone if not scene.barred(peer)), default=limits.SEAT_GONE_MAX_MS)
    if waited < scene.patience_ms + electors.index(scene.me) * limits.LEADER_MUTE_MS and gone:
        return Nothing()
    if not gone and electors[0] != scene.me:
        return Nothing()
    voters = tuple(peer for peer in electors if peer != scene.me)
    return Propose(holders, authority, voters, needed - 1, gone)


def _dead(scene: Scene, peer: PeerId) -> bool:
    return scene.silent_ms(peer) >= limits.SEAT_GONE_MS


# --- signing ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Sign:
    """It is true by this member's own observation."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """It is not, or not for this member to sign."""

    reason: str


Consent: TypeAlias = Sign | Look | Refuse


def consent(body: Succession, scene: Scene, caretaker_due: bool) -> Consent:
    """Whether this member signs another's succession. Look: once it knows whether these answer.

    Its form (chain, members) is checked by whoever keeps the job's state.
    """
    holders = scene.seats.holders
    may = {
        "seats": scene.me in holders,
        "panel": scene.me in scene.order,
        "caretaker": scene.me in body.holders and caretaker_due,
        "submitter": False,
    }
    if not may[body.authority]:
        return Refuse("not this member's to sign")
    removed = [peer for peer in holders if peer not in body.holders]
    if scene.me in removed:
        return Refuse("this member is there")
    unproven = tuple(peer for peer in removed if not scene.gone(peer))
    added = [peer for peer in body.holders if peer not in holders and peer != scene.me]
    if any(scene.barred(peer) for peer in added):
        return Refuse("a new holder is barred")
    unheard = tuple(peer for peer in added if not scene.answers(peer))
    if not removed and not added and scene.seats.holders == body.holders:
        return Refuse("it changes nothing")
    return Look((*unproven, *unheard)) if unproven or unheard else Sign()
