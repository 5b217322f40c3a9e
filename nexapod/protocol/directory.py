"""Who is there: profiles, links and suspicion, and from them the K peers closest to a key.

Gossip fills it, links correct it: a peer is live while it is connected, or while its profile is fresh and no dial to
it has failed lately. Knows nothing of jobs but how to count the peers that satisfy one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from nexapod.protocol import limits
from nexapod.protocol.groups import group_of
from nexapod.protocol.matching import satisfies
from nexapod.protocol.statements import Statement
from nexapod.protocol.types import JobId, JobSpec, Millis, PeerId, Profile, kad_key


@dataclass(slots=True)
class Known:
    """A peer's newest profile, and when this node heard of it."""

    statement: Statement
    heard: Millis

    @property
    def profile(self) -> Profile:
        profile: Profile = self.statement.body
        return profile


@dataclass(slots=True)
class Suspicion:
    """A peer that could not be reached: not live until `until`; each time for twice as long."""

    until: Millis
    span: Millis
    over: bool = False
    """`until` has passed and been acted on. Kept, so that the next failure lasts longer."""


class Directory:
    """The peers that this node knows of, itself included once it has a profile."""

    def __init__(self, me: PeerId, network: str) -> None:
        self.me = me
        self.network = network
        self.version = 0
        """Rises whenever `closest` may answer otherwise."""
        self.known: dict[PeerId, Known] = {}
        self.links: dict[PeerId, str] = {}
        self._last_addr: dict[PeerId, str] = {}
        """Where each peer was last connected from: its operator group outlives its link."""
        self._suspects: dict[PeerId, Suspicion] = {}
        self._serving: list[tuple[int, PeerId]] | None = None
        self._closest: dict[tuple[int, int], tuple[PeerId, ...]] = {}
        self._eligible: dict[JobId, tuple[int, Millis, int]] = {}

    # --- what changes it -------------------------------------------------------------------------------------------
    def learn(self, statement: Statement, now: Millis) -> bool:
        """A peer's profile. True when it is news. A profile of another network is never stored."""
        profile: Profile = statement.body
        peer = statement.author
        old = self.known.get(peer)
        if profile.network != self.network or (old is not None and old.profile.seq >= profile.seq):
            return False
        if old is None and len(self.known) >= limits.PROFILES_MAX and not self._evict(now):
            return False
        self.known[peer] = Known(statement, now)
        if old is None or old.profile.serves != profile.serves or not self.live(peer, now):
            self._changed()
        return True

    def peer_up(self, peer: PeerId, addr: str) -> None:
        self.links[peer] = addr
        if len(self._last_addr) >= limits.PROFILES_MAX:
            self._last_addr = dict(self.links)
        self._last_addr[peer] = addr
        self._suspects.pop(peer, None)
        self._changed()

    def peer_down(self, peer: PeerId, now: Millis) -> None:
        if self.links.pop(peer, None) is not None:
            self.unreachable(peer, now)

    def unreachable(self, peer: PeerId, now: Millis) -> None:
        """A dial failed, or the last link broke: not live for a while, unless it comes back by itself."""
        if peer in self.links or peer not in self.known:
            return
        old = self._suspects.get(peer)
        span = limits.SUSPECT_MS if old is None else min(2 * old.span, self.lifetime())
        self._suspects[peer] = Suspicion(now + span, span)
        self._changed()

    def tick(self, now: Millis) -> None:
        """Forget the peers whose profile has not been heard for too long."""
        stale = [p for p, k in self.known.items() if k.heard + self.lifetime() <= now and p not in self.links]
        for peer in stale:
            if peer != self.me:
                del self.known[peer]
                self._suspects.pop(peer, None)
        # A suspicion that has run out makes its peer live again, until a dial fails once more.
        ended = [s for s in self._suspects.values() if not s.over and s.until <= now]
        for suspicion in ended:
            suspicion.over = True
        if stale or ended:
            self._changed()

    def _evict(self, now: Millis) -> bool:
        oldest = min((k.heard, p) for p, k in self.known.items() if p != self.me)
        if oldest[1] in self.links or oldest[0] + limits.PROFILE_MS > now:
            return False
        del self.known[oldest[1]]
        return True

    def _changed(self) -> None:
        self.version += 1
        self._serving = None
        self._closest.clear()

    # --- what it says ----------------------------------------------------------------------------------------------
    def period(self) -> Millis:
        """How often a peer gossips its profile: the whole network stays under two profile messages a second."""
        return max(limits.PROFILE_MS, limits.PROFILE_PER_PEER_MS * len(self.known))

    def lifetime(self) -> Millis:
        """How long a profile that is not repeated is believed."""
        return self.period() * limits.PROFILE_MISSED_ROUNDS

    def live(self, peer: PeerId, now: Millis) -> bool:
        if peer == self.me or peer in self.links:
            return True
        known = self.known.get(peer)
        if known is None or known.heard + self.lifetime() <= now:
            return False
        suspicion = self._suspects.get(peer)
        return suspicion is None or suspicion.over

    def closest(self, key: int, count: int, now: Millis) -> tuple[PeerId, ...]:
        """The live, serving peers closest to a key, nearest first."""
        cached = self._closest.get((key, count))
        if cached is not None:
            return cached
        if self._serving is None:
            self._serving = [(kad_key(p), p) for p, k in self.known.items() if k.profile.serves and self.live(p, now)]
        nearest = heapq.nsmallest(count, self._serving, key=lambda item: item[0] ^ key)
        answer = tuple(peer for _, peer in nearest)
        self._closest[(key, count)] = answer
        return answer

    def eligible(self, job: JobId, spec: JobSpec, now: Millis) -> int:
        """How many live peers satisfy a job. At most a second old: it only spreads bids."""
        cached = self._eligible.get(job)
        if cached is not None and (cached[0] == self.version or cached[1] + 1_000 > now):
            return cached[2]
        count = sum(1 for p, k in self.known.items() if satisfies(k.profile, spec).ok and self.live(p, now))
        if len(self._eligible) > limits.JOBS_MAX:
            self._eligible.clear()
        self._eligible[job] = (self.version, now, count)
        return count

    def group(self, peer: PeerId) -> str:
        """The operator group of a peer, by the address that it is, or was last, connected from."""
        return group_of(peer, self._last_addr.get(peer, ""))

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer says it can be dialled."""
        known = self.known.get(peer)
        return known.profile.addrs if known else ()
