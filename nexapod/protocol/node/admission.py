"""The ledger of what each peer may still ask of this node (docs/protocol.md; DESIGN.md, Admission, in one ledger).

Three currencies: bytes of frames and of their answers, cost (one unit is about a millisecond of this machine), and jobs
that are new here. Each link has an account of each, each author of jobs one of jobs. An account may go below zero by
one transaction, and has nothing more to spend until it is refilled. Whoever breaks rules gets points, which halve every
minute; too many of them are a ban. Decides and counts only: node.py drops frames, and tells the driver of bans.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.tables import TableReport

FRAME_COST_MILLI: Final = 50
"""Reading any frame, in thousandths of a unit, ..."""
KIB_COST_MILLI: Final = 10
"""... each KiB of it, ..."""
SIGNATURE_COST_MILLI: Final = 250
"""... each signature that is checked, ..."""
SHARD_COST_MILLI: Final = 64
"""... each shard of a job of whose panel this node is a member, ..."""
RECONCILE_COST_MILLI: Final = 2_000
"""... and comparing a set of ids."""
_MINUTE_MS: Final = 60_000

Name = TypeVar("Name", bound=Hashable)


class Bucket:
    """Something that is earned at a rate and spent at once: `rate` each `per_ms`, saved up to `burst`."""

    __slots__ = ("_at", "_burst", "_level", "_per_ms", "_rate")

    def __init__(self, rate: int, per_ms: Millis, burst: int, now: Millis) -> None:
        self._rate = rate
        self._per_ms = per_ms
        self._burst = burst
        self._level = burst * per_ms
        """In units of 1 / per_ms, so that all of it is whole numbers."""
        self._at = now

    def left(self, now: Millis) -> int:
        """What may be spent; negative: owed."""
        if now > self._at:
            self._level = min(self._burst * self._per_ms, self._level + self._rate * (now - self._at))
            self._at = now
        return self._level // self._per_ms

    def spend(self, amount: int, now: Millis) -> bool:
        """False, and nothing is spent, when nothing is left."""
        if self.left(now) <= 0:
            return False
        self._level -= amount * self._per_ms
        return True

    def charge(self, amount: int, now: Millis) -> None:
        """Spent already, whether or not anything was left."""
        self.left(now)
        self._level -= amount * self._per_ms


class Account:
    """What one link has left."""

    __slots__ = ("bytes", "cost_milli", "dry", "jobs")

    def __init__(self, now: Millis) -> None:
        self.bytes = Bucket(limits.LINK_BYTES_PER_SECOND, 1_000, limits.LINK_BURST_BYTES, now)
        self.cost_milli = Bucket(limits.LINK_COST_PER_SECOND * 1_000, 1_000, limits.LINK_COST_BURST * 1_000, now)
        self.jobs = Bucket(limits.JOBS_PER_LINK_PER_MINUTE, _MINUTE_MS, limits.JOBS_PER_LINK_PER_MINUTE, now)
        self.dry = False
        """Its last frame was dropped: told once, not for each."""


@dataclass(slots=True)
class Points:
    """How badly a peer has behaved of late."""

    points: int
    since: Millis


@dataclass(frozen=True, slots=True)
class Ban:
    """A peer that is refused. `times`: how often it has been banned, this one included."""

    until: Millis
    times: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """What a broken rule leads to. `ban`: the one that begins with it, if any; `lifted`: one that makes room for it."""

    points: int
    ban: Ban | None = None
    lifted: PeerId | None = None


class LeastUsed(Generic[Name]):
    """The names of a bounded table by their last use; overflow drops the one longest unused."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: dict[Name, None] = {}

    def use(self, name: Name) -> Name | None:
        """The name that had to go, if any."""
        self._names.pop(name, None)
        self._names[name] = None
        if len(self._names) <= self._most:
            return None
        oldest = next(iter(self._names))
        del self._names[oldest]
        return oldest


@dataclass(slots=True)
class Ledger:
    """The accounts of everybody. `me` pays nothing."""

    me: PeerId
    _accounts: dict[PeerId, Account] = field(default_factory=dict)
    _links: LeastUsed[PeerId] = field(default_factory=lambda: LeastUsed(limits.ACCOUNTS_MAX))
    _authors: dict[PeerId, Bucket] = field(default_factory=dict)
    _authors_used: LeastUsed[PeerId] = field(default_factory=lambda: LeastUsed(limits.ACCOUNTS_MAX))
    _points: dict[PeerId, Points] = field(default_factory=dict)
    _points_used: LeastUsed[PeerId] = field(default_factory=lambda: LeastUsed(limits.ACCOUNTS_MAX))
    _bans: dict[PeerId, Ban] = field(default_factory=dict)

    # --- accounts --------------------------------------------------------------------------------------------------
    def _account(self, peer: PeerId, now: Millis) -> Account:
        # Kept when the link goes: who comes back finds what it had spent.
        gone = self._links.use(peer)
        if gone is not None:
            self._accounts.pop(gone, None)
        account = self._accounts.get(peer)
        if account is None:
            account = self._accounts[peer] = Account(now)
        return account

    def admit(self, peer: PeerId, size: int, now: Millis) -> bool:
        """Whether a frame of so many bytes is read at all; if so it is charged."""
        if peer == self.me:
            return True
        account = self._account(peer, now)
        if account.bytes.left(now) <= 0 or account.cost_milli.left(now) <= 0:
            return False
        account.dry = False
        account.bytes.charge(size, now)
        account.cost_milli.charge(FRAME_COST_MILLI + KIB_COST_MILLI * (size // 1024), now)
        return True

    def ran_dry(self, peer: PeerId, now: Millis) -> bool:
        """A frame of it was dropped: whether that is news."""
        account = self._account(peer, now)
        news, account.dry = not account.dry, True
        return news

    def spend(self, peer: PeerId, cost_milli: int, now: Millis) -> bool:
        """Whether so much work is done for a peer, in thousandths of a unit; if so it is charged."""
        return peer == self.me or self._account(peer, now).cost_milli.spend(cost_milli, now)

    def allowance(self, peer: PeerId, question: int, now: Millis) -> int:
        """Bytes that an answer to a question of `question` bytes may have."""
        allowed = max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * question)
        return allowed if peer == self.me else max(0, min(allowed, self._account(peer, now).bytes.left(now)))

    def answered(self, peer: PeerId, size: int, now: Millis) -> None:
        """What was sent to a peer because it had asked."""
        if peer != self.me:
            self._account(peer, now).bytes.charge(size, now)

    def new_job(self, peer: PeerId, author: PeerId, now: Millis) -> bool:
        """Whether one more new job is taken of this author from this link; if so it is charged to both."""
        if author == self.me:
            return True
        gone = self._authors_used.use(author)
        if gone is not None:
            self._authors.pop(gone, None)
        rate = limits.JOBS_PER_AUTHOR_PER_MINUTE
        bucket = self._authors.setdefault(author, Bucket(rate, _MINUTE_MS, rate, now))
        if bucket.left(now) <= 0 or not self.relay(peer, now):
            return False
        return bucket.spend(1, now)

    def relay(self, peer: PeerId, now: Millis) -> bool:
        """Whether one more announcement of a link's is acted on; if so it is charged."""
        return peer == self.me or self._account(peer, now).jobs.spend(1, now)

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("accounts of links", len(self._accounts), limits.ACCOUNTS_MAX),
            TableReport("accounts of authors", len(self._authors), limits.ACCOUNTS_MAX),
            TableReport("peers with points", len(self._points), limits.ACCOUNTS_MAX),
            TableReport("bans", len(self._bans), limits.BANS_MAX),
        )

    # --- rules broken ----------------------------------------------------------------------------------------------
    def penalise(self, peer: PeerId, error: PeerError, now: Millis) -> Sentence:
        """Add a broken rule's points, and ban the peer whose points pass PENALTY_MAX. This node is never banned."""
        gone = self._points_used.use(peer)
        if gone is not None:
            self._points.pop(gone, None)
        old = self._points.get(peer)
        kept = old.points >> min((now - old.since) // limits.PENALTY_DECAY_MS, 31) if old else 0
        points = kept + error.penalty
        self._points[peer] = Points(points, now)
        if points <= limits.PENALTY_MAX or peer == self.me or self.banned(peer, now):
            return Sentence(points)
        del self._points[peer]
        times = self._bans[peer].times + 1 if peer in self._bans else 1
        lifted = self._room_for_a_ban(peer)
        ban = self._bans[peer] = Ban(now + ban_ms(times), times)
        return Sentence(points, ban, lifted)

    def _room_for_a_ban(self, peer: PeerId) -> PeerId | None:
        if peer in self._bans or len(self._bans) < limits.BANS_MAX:
            return None
        first = min(self._bans, key=lambda other: (self._bans[other].until, other))
        del self._bans[first]
        return first

    def restore_ban(self, peer: PeerId, times: int, now: Millis) -> Ban:
        """A ban of a former process: no clock tells how long it was off, so it is served from the beginning."""
        ban = self._bans[peer] = Ban(now + ban_ms(times), times)
        return ban

    def banned(self, peer: PeerId, now: Millis) -> bool:
        ban = self._bans.get(peer)
        return ban is not None and now < ban.until

    @property
    def has_bans(self) -> bool:
        """Whether any ban, or the memory of one, is kept."""
        return bool(self._bans)

    def served(self, now: Millis) -> list[PeerId]:
        """The peers whose bans ended at least BAN_MAX_MS ago: how often they were banned is forgotten."""
        ended = [peer for peer, ban in self._bans.items() if ban.until + limits.BAN_MAX_MS <= now]
        for peer in ended:
            del self._bans[peer]
        return ended


def ban_ms(times: int) -> Millis:
    """How long the so-manieth ban of one peer lasts."""
    return min(limits.BAN_MS << min(times - 1, 16), limits.BAN_MAX_MS)
