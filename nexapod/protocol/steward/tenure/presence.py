"""Which members of one job's panel answer this node: its own observation, by probes (docs/protocol.md, Succession).

A member is silent from the first probe on that it has left unanswered: without a link, or with one on which nothing
comes. Whatever it says ends its silence. Peers can also be asked whether they reach a third one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.wire.messages import Probe

OPINIONS_MAX: Final = 4 * limits.PANEL_MAX
FRESH_MS: Final = 2 * limits.PROBE_MS
"""Who has said something within this answers."""


@dataclass(slots=True)
class Watched:
    """One member."""

    due: Millis
    """When it is probed next."""
    since: Millis
    """Watched since."""
    pause_ms: Millis = limits.PROBE_MS
    heard: Millis | None = None
    probed: Millis | None = None
    """Last."""
    asked: Millis | None = None
    """When it was first probed without an answer since."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What a peer has said of another."""

    reached: bool
    at: Millis


class Presence:
    """`nonces`: a number that no other job's probes begin with, so that answers find their way; `addrs`: where the job
    says that a member can be dialled."""

    def __init__(self, ctx: Context, nonces: int, addrs: Callable[[PeerId], tuple[str, ...]]) -> None:
        self._ctx = ctx
        self._addrs = addrs
        self._first_nonce = nonces << 31
        self._nonce = self._first_nonce
        self._watched: dict[PeerId, Watched] = {}
        self._close: frozenset[PeerId] = frozenset()
        self._questions: dict[int, tuple[PeerId, PeerId]] = {}
        self._asked: dict[tuple[PeerId, PeerId], Millis] = {}
        self._opinions: dict[tuple[PeerId, PeerId], Opinion] = {}
        self._due: Millis | None = None
        self._awake_since: Millis | None = None

    @property
    def deadline(self) -> Millis | None:
        return self._due

    def watch(self, members: Collection[PeerId], close: Collection[PeerId]) -> None:
        """Observe these members, and `close` ones of them closely; no others."""
        self._close = frozenset(close)
        wanted = [peer for peer in members if peer != self._ctx.me]
        for peer in [peer for peer in self._watched if peer not in wanted]:
            del self._watched[peer]
        for peer in wanted:
            entry = self._watched.setdefault(peer, Watched(self._ctx.now + self._calm_ms(peer), self._ctx.now))
            if peer in self._close and (entry.asked is None or not self._ctx.peers.linked(peer)):
                entry.due = min(entry.due, self._ctx.now + self._calm_ms(peer))
        self._reckon()

    def _calm_ms(self, peer: PeerId) -> Millis:
        """How often somebody is probed of whom nothing is heard anyway."""
        if peer not in self._close:
            return limits.SEAT_GONE_MAX_MS
        return limits.SEAT_GONE_MS if self._ctx.peers.linked(peer) else 0

    # --- what was observed -------------------------------------------------------------------------------------------
    def silent_since(self, peer: PeerId) -> Millis | None:
        """None: it answers, or was not asked yet."""
        entry = self._watched.get(peer)
        return None if entry is None else entry.asked

    def silent_ms(self, peer: PeerId) -> Millis:
        since = self.silent_since(peer)
        return 0 if since is None else self._ctx.now - since

    def answers(self, peer: PeerId) -> bool:
        """It has said something lately."""
        if peer == self._ctx.me:
            return True
        entry = self._watched.get(peer)
        return entry is not None and entry.heard is not None and entry.heard + FRESH_MS > self._ctx.now

    def seen_ms(self, peer: PeerId) -> Millis:
        """From when it was watched to when it last said something."""
        entry = self._watched.get(peer)
        return 0 if entry is None or entry.heard is None else entry.heard - entry.since

    def reaches(self, peer: PeerId, about: PeerId) -> bool | None:
        """What a peer has said of another lately; None: nothing."""
        said = self._opinions.get((peer, about))
        return said.reached if said is not None and said.at + limits.SEAT_GONE_MS > self._ctx.now else None

    # --- asking ------------------------------------------------------------------------------------------------------
    def probe(self, peer: PeerId) -> None:
        """Ask now, unless it was asked just now."""
        entry = self._watched.get(peer)
        if entry is not None and (entry.probed is None or entry.probed + limits.RETRY_MIN_MS <= self._ctx.now):
            self._probe(peer, entry)
            self._reckon()

    def ask(self, peer: PeerId, about: PeerId) -> None:
        """Ask a peer whether it reaches another; at most once in PROBE_MS."""
        pair = (peer, about)
        if pair in self._asked and self._asked[pair] + limits.PROBE_MS > self._ctx.now:
            return
        if len(self._asked) >= OPINIONS_MAX:
            self._forget_questions()
        if len(self._asked) < OPINIONS_MAX:
            self._asked[pair] = self._ctx.now
            nonce = self._next_nonce()
            self._questions[nonce] = pair
            self._ctx.send(peer, Probe(nonce, about), self._addrs(peer))

    def heard(self, peer: PeerId) -> None:
        """A message came from it."""
        entry = self._watched.get(peer)
        if entry is None:
            return
        entry.heard, entry.asked = self._ctx.now, None
        entry.pause_ms = limits.PROBE_MS
        entry.due = self._ctx.now + max(self._calm_ms(peer), limits.PROBE_MS)

    def answered(self, peer: PeerId, nonce: int, reached: bool) -> None:
        """Alive. A nonce of another job's, or of a question that is forgotten, only says that it lives."""
        self.heard(peer)
        pair = self._questions.get(nonce)
        if pair is not None and pair[0] == peer:
            del self._questions[nonce]
            self._opinions[pair] = Opinion(reached, self._ctx.now)

    def link_changed(self, peer: PeerId) -> None:
        """A link came or went: that says little, an answer says more."""
        entry = self._watched.get(peer)
        if entry is not None and peer in self._close:
            entry.due, entry.pause_ms = self._ctx.now, limits.PROBE_MS
            self._reckon()

    def tick(self) -> None:
        due = self._due
        if due is None or due > self._ctx.now:
            return
        if due + limits.CLOCK_GAP_MS < self._ctx.now:
            self.begin_anew()
        for peer, entry in self._watched.items():
            if entry.due <= self._ctx.now:
                self._probe(peer, entry)
        self._reckon()

    def was_away(self, within_ms: Millis) -> bool:
        """Whether this node itself was not there at some time within the last so many ms."""
        return self._awake_since is not None and self._awake_since + within_ms > self._ctx.now

    def begin_anew(self) -> None:
        """This machine slept, or was started again: nobody could have answered it."""
        self._awake_since = self._ctx.now
        for entry in self._watched.values():
            entry.asked = None
            entry.pause_ms = limits.PROBE_MS

    def _probe(self, peer: PeerId, entry: Watched) -> None:
        entry.probed = self._ctx.now
        entry.asked = self._ctx.now if entry.asked is None else entry.asked
        entry.due = self._ctx.now + entry.pause_ms
        most = limits.PROBE_MAX_MS if peer in self._close else limits.SEAT_GONE_MAX_MS
        entry.pause_ms = min(2 * entry.pause_ms, most)
        self._ctx.send(peer, Probe(self._next_nonce(), None), self._addrs(peer))

    def _next_nonce(self) -> int:
        self._nonce = self._first_nonce + (self._nonce + 1 - self._first_nonce) % 2**31
        return self._nonce

    def _forget_questions(self) -> None:
        """Those that were asked longest ago first."""
        old = [pair for pair, at in self._asked.items() if at + limits.SEAT_GONE_MS <= self._ctx.now]
        for pair in old:
            del self._asked[pair]
            self._opinions.pop(pair, None)
        self._questions = {nonce: pair for nonce, pair in self._questions.items() if pair in self._asked}

    def _reckon(self) -> None:
        self._due = min((entry.due for entry in self._watched.values()), default=None)
