"""The standing bids at one seat of a job's gate (docs/protocol.md, Bid): who asks to be admitted, and as whom.

A bid is only ever entered for the peer at the other end of a link, with the operator group that this node sees there.
What others say of a worker leaves a doubt on its bid, never a bid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId, key_of_peer_id
from nexapod.protocol.types import Group

Batch: TypeAlias = tuple[tuple[PeerId, Group], ...]
"""Workers with their groups, sorted by key, as an admission lists them."""


@dataclass(slots=True)
class Bid:
    """One worker's. `eligible`: when a round may take it first; `until`: when it lapses."""

    group: Group
    eligible: Millis
    until: Millis
    doubts: dict[PeerId, Millis] = field(default_factory=dict)
    """Seats that could not vouch for the worker, and until when that is taken to stand."""


class Bids:
    """At most BIDS_MAX; a newcomer to a full table displaces the youngest bid of the group that has the most."""

    def __init__(self) -> None:
        self._bids: dict[PeerId, Bid] = {}

    def __len__(self) -> int:
        return len(self._bids)

    def enter(self, worker: PeerId, group: Group, now: Millis, eligible: Millis) -> None:
        """A bid that came on the worker's own link. The first one's place is kept while its group stays the same."""
        bid = self._bids.get(worker)
        if bid is not None and bid.group == group and bid.until > now:
            bid.until = now + limits.BID_TTL_MS
        elif bid is not None or self._room_for(group, now):
            self._bids[worker] = Bid(group, eligible, now + limits.BID_TTL_MS)

    def group(self, worker: PeerId, now: Millis) -> Group | None:
        """As whom a worker bids; None without a standing bid."""
        bid = self._bids.get(worker)
        return bid.group if bid is not None and bid.until > now else None

    def remove(self, worker: PeerId) -> None:
        self._bids.pop(worker, None)

    def doubt(self, worker: PeerId, seat: PeerId, until: Millis) -> None:
        """A seat objected to a worker: it is proposed to the others, or later."""
        bid = self._bids.get(worker)
        if bid is not None:
            bid.doubts[seat] = until

    def expire(self, now: Millis) -> None:
        for worker in [worker for worker, bid in self._bids.items() if bid.until <= now]:
            del self._bids[worker]

    def waiting_since(self, now: Millis, doubters_max: int) -> Millis | None:
        """Since (or from) when the first bid that could be proposed may be; None when there is none."""
        able = [bid.eligible for bid in self._bids.values() if len(_doubters(bid, now)) <= doubters_max]
        return min(able, default=None)

    def doubted_until(self, now: Millis) -> Millis | None:
        """When the next doubt ends."""
        return min((until for bid in self._bids.values() for until in bid.doubts.values() if until > now), default=None)

    def batch(
        self, now: Millis, waited_ms: Millis, doubters_max: int, admissible: Callable[[PeerId, Group], bool]
    ) -> Batch:
        """What one round proposes: bids that have been eligible for `waited_ms` (negative: that will soon be), and are
        all doubted by the same seats.

        Undoubted ones go first. One worker of each group comes before the second of any, so that no group fills a
        round.
        """
        able = [
            (_doubters(bid, now), bid.eligible, worker)
            for worker, bid in self._bids.items()
            if bid.until > now and bid.eligible + waited_ms <= now and admissible(worker, bid.group)
        ]
        able = sorted(entry for entry in able if len(entry[0]) <= doubters_max)
        alike = [worker for doubters, _, worker in able if doubters == able[0][0]]
        chosen = _in_turns(alike, lambda worker: self._bids[worker].group)[: limits.ADMISSION_MAX]
        return tuple((worker, self._bids[worker].group) for worker in sorted(chosen, key=key_of_peer_id))

    def _room_for(self, group: Group, now: Millis) -> bool:
        if len(self._bids) < limits.BIDS_MAX:
            return True
        self.expire(now)
        if len(self._bids) < limits.BIDS_MAX:
            return True
        shares = Counter(bid.group for bid in self._bids.values())
        largest = max(shares, key=lambda name: (shares[name], name))
        if shares[largest] <= shares[group] + 1:
            return False
        del self._bids[max((bid.eligible, worker) for worker, bid in self._bids.items() if bid.group == largest)[1]]
        return True


def _doubters(bid: Bid, now: Millis) -> tuple[PeerId, ...]:
    return tuple(sorted(seat for seat, until in bid.doubts.items() if until > now))


def _in_turns(workers: list[PeerId], group: Callable[[PeerId], Group]) -> list[PeerId]:
    """The first of each group, then the second of each, in the order given."""
    seen: Counter[Group] = Counter()
    turns = []
    for place, worker in enumerate(workers):
        turns.append((seen[group(worker)], place, worker))
        seen[group(worker)] += 1
    return [worker for _, _, worker in sorted(turns)]
