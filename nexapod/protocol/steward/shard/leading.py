"""Which seat proposes: the first in the order of the holders that is linked and not mute (docs/protocol.md, 1, 5).

A convention, not a right: each seat decides for itself, and two that lead at once cost messages only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId


@dataclass(frozen=True, slots=True)
class _Mute:
    until: Millis
    span: Millis


class Leading:
    """One seat's view of who leads, by what others leave undone."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._mute: dict[PeerId, _Mute] = {}
        self._undone: dict[Hashable, Millis] = {}
        """What a leader should have done by now, and since when."""

    def leader(self, holders: Sequence[PeerId], linked: Callable[[PeerId], bool], now: Millis) -> PeerId | None:
        """None: this node has no seat. It leads itself when all before it are away or mute."""
        if self._me not in holders:
            return None
        for peer in holders:
            if peer == self._me or (linked(peer) and not self._is_mute(peer, now)):
                return peer
        return self._me

    def _is_mute(self, peer: PeerId, now: Millis) -> bool:
        mute = self._mute.get(peer)
        return mute is not None and mute.until > now

    def spoke(self, peer: PeerId) -> None:
        """A seat has proposed or leased something."""
        self._mute.pop(peer, None)

    def passed_over(self, peer: PeerId, now: Millis) -> None:
        """A seat has left something unanswered; each time it is passed over for twice as long."""
        old = self._mute.get(peer)
        span = limits.SEAT_GONE_MS if old is None else min(2 * old.span, limits.SEAT_GONE_MAX_MS)
        self._mute[peer] = _Mute(now + span, span)
        self._undone.clear()

    def watch(self, undone: Collection[Hashable], now: Millis) -> Millis | None:
        """What somebody else should do. When the leader has had its time; None: nothing is left undone."""
        self._undone = {name: self._undone.get(name, now) for name in undone}
        return min(self._undone.values()) + limits.LEADER_MUTE_MS if self._undone else None

    def keep(self, holders: Collection[PeerId]) -> None:
        """The seats have changed."""
        self._mute = {peer: mute for peer, mute in self._mute.items() if peer in holders}
        self._undone.clear()
