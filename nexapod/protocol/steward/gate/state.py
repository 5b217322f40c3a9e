"""What the parts of one seat of a gate share: its seats, the round under way, and what is complete."""

from __future__ import annotations

from collections import Counter

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.rules.succession import Seats
from nexapod.protocol.steward.gate.bids import Bids
from nexapod.protocol.steward.gate.pledges import Pledges
from nexapod.protocol.steward.gate.rounds import Round, void_after
from nexapod.protocol.types import Group
from nexapod.protocol.wire.statements import Statement


class GateState:
    """Of one job, while this node is a seat of its shard 0. A seat takes part in one round at a time."""

    def __init__(self, ctx: Context, job: JobState, pledges: Pledges) -> None:
        self.ctx = ctx
        self.job = job
        self.pledges = pledges
        self.seats: Seats = job.gate()
        self.bids = Bids()
        self.round: Round | None = None
        self.top = 0
        """The highest round of this epoch that was seen."""
        self.top_complete = 0
        self.void: frozenset[PeerId] = frozenset()
        """Seats whose values do not count in this epoch any more."""
        self.complete: set[StatementId] = set()
        """Admissions whose beacons count here."""
        self.next_at: Millis = 0
        """No round begins before."""
        self._shares: Counter[Group] = Counter()
        """Workers of each group that are admitted."""

    def enter_epoch(self) -> None:
        """The seats are others now, or this node's own pledges have become known."""
        self.seats = self.job.gate()
        self.round = None
        self.complete.clear()
        self._shares.clear()
        self.void = frozenset()
        self.top_complete = 0
        self.top = self.pledges.signed_round(self.seats.epoch)

    # --- seats -------------------------------------------------------------------------------------------------------
    @property
    def doubters_max(self) -> int:
        """A worker that more seats than this cannot vouch for finds no quorum."""
        return len(self.seats.holders) - self.seats.quorum

    @property
    def rank(self) -> int:
        """This node's place among the seats that are there; 0 leads."""
        there = [peer for peer in self.seats.holders if self.ctx.peers.linked(peer)]
        return there.index(self.ctx.me) if self.ctx.me in there else len(there)

    @property
    def others(self) -> list[PeerId]:
        return [peer for peer in self.seats.holders if peer != self.ctx.me]

    # --- workers -----------------------------------------------------------------------------------------------------
    def admissible(self, worker: PeerId, group: Group) -> bool:
        """Whether it is not admitted yet."""
        return self.job.group(worker) is None

    def has_place(self, worker: PeerId, group: Group) -> bool:
        """Neither the job nor the worker's group has all the workers that it may have."""
        full = self._shares.total() >= limits.WORKERS_MAX or self._shares[group] >= limits.WORKERS_PER_GROUP_MAX
        return not full and self.admissible(worker, group)

    def answer_admitted(self, worker: PeerId, asking: PeerId) -> None:
        """Somebody has missed the round that admitted a worker."""
        for admission, beacon in self.job.admissions():
            if any(peer == worker for peer, _ in admission.body.workers):
                self.ctx.deliver(asking, (admission, beacon))
                return

    # --- rounds ------------------------------------------------------------------------------------------------------
    def enter_round(self, admission: Statement, *, proposed: bool) -> Round:
        """Take part in a round. `proposed`: by this seat."""
        committed = dict(admission.body.commitments)
        self.round = Round(admission, committed, self.ctx.now, proposed)
        self.top = max(self.top, admission.body.round)
        return self.round

    def leave_round(self) -> None:
        self.round = None
        self.next_at = self.ctx.now + limits.ROUND_MS

    def completed(self, admission: Statement, beacon: Statement) -> None:
        """A round has its beacon: what follows for this seat."""
        self.complete.add(admission.id)
        self._shares.update(group for _, group in admission.body.workers)
        for worker, _ in admission.body.workers:
            self.bids.remove(worker)
        if admission.body.epoch == self.seats.epoch:
            self._own_completed(admission, beacon)

    def _own_completed(self, admission: Statement, beacon: Statement) -> None:
        """One of this epoch."""
        number = admission.body.round
        self.top_complete = max(self.top_complete, number)
        self.top = max(self.top, number)
        shown = dict(beacon.body.values)
        missing = [peer for peer in dict(admission.body.commitments) if peer not in shown]
        if missing:
            self.ctx.trace("gate_values_voided", job=self.job.job, round=number, seats=missing)
        self.void = void_after(self.void, missing, self.seats.holders)
        if self.round is not None and self.round.number <= number:
            self.leave_round()
