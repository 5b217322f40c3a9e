"""One seat of a job's gate: it admits workers, a round at a time (docs/protocol.md, Bid, Round).

A round goes: proposed -> signed by a quorum -> values shown -> beacon signed by a quorum. What a seat may not do twice
is in Pledges; all else grows back after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, assert_never

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.steward.gate.admitting import Admitting
from nexapod.protocol.steward.gate.announcing import Announcer
from nexapod.protocol.steward.gate.drawing import Drawing
from nexapod.protocol.steward.gate.pledges import Pledges
from nexapod.protocol.steward.gate.rounds import Round
from nexapod.protocol.steward.gate.state import GateState
from nexapod.protocol.tables import TableReport
from nexapod.protocol.timers import earliest
from nexapod.protocol.wire.messages import Bid, Card, Object, Value
from nexapod.protocol.wire.statements import Statement

ROUND_MAX_MS: Final[Millis] = limits.VALUE_MS + limits.SEATS * limits.LEADER_MUTE_MS + limits.COSIGN_MS
"""A round whose beacon has not come for so long is given up: its workers are proposed again."""


class Gate:
    """Exists while this node is a seat of shard 0. `population`, `open_places`: see Announcer."""

    def __init__(
        self,
        ctx: Context,
        job: JobState,
        population: Callable[[], int],
        *,
        pledges: Pledges | None = None,
        open_places: Callable[[], int] | None = None,
    ) -> None:
        self._ctx = ctx
        self._job = job
        self.pledges = pledges or Pledges(ctx, job.job)
        self._state = GateState(ctx, job, self.pledges)
        self._drawing = Drawing(self._state)
        self._admitting = Admitting(self._state, self._drawing)
        places = open_places or (lambda: job.spec.tasks * job.spec.validate.agree)
        self.announcer = Announcer(ctx, job, self.pledges, population, places)
        self._wake: Millis | None = None
        self._enter_epoch()

    # --- events ------------------------------------------------------------------------------------------------------
    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("bids", len(self._state.bids), limits.BIDS_MAX),
            TableReport("admissions proposed", len(self._admitting), 2 * limits.SEATS),
        )

    @property
    def deadline(self) -> Millis | None:
        # Before the job is workable nobody is admitted or called, whatever the time.
        waits = self._state.round is not None or self._admitting.next_objection is not None
        rests = not waits and not self._job.workable
        return None if self._job.closed or rests else earliest(self._wake, self.announcer.due)

    def on_message(self, peer: PeerId, message: Bid | Value | Object) -> None:
        """`peer`: on whose link it came. Raises PeerError."""
        match message:
            case Bid():
                self._admitting.on_bid(peer)
            case Value():
                self._drawing.on_value(peer, message)
            case Object():
                self._admitting.on_object(peer, message)
            case _:
                assert_never(message)
        self._progress()

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """Admissions and beacons, whether they count or not. Raises PeerError."""
        seats = self._state.seats
        if statement.body.epoch == seats.epoch and any(s in seats.holders for s in statement.signers):
            if statement.kind == "admission":
                self._admitting.on_admission(statement, sender)
            else:
                self._drawing.on_beacon(statement, sender)
            self._progress()

    def job_changed(self) -> None:
        """The seats of the gate, or what has counted, may be others."""
        if self._job.gate().id != self._state.seats.id:
            self._enter_epoch()
        self._note_complete()
        self._admitting.take_signatures()
        self._progress()

    def peer_up(self, peer: PeerId) -> None:
        """Another seat may have missed what this one said last."""
        if peer in self._state.seats.holders and self._state.round is not None:
            self._state.round.resend_at = self._ctx.now
            self._progress()

    def peer_down(self, peer: PeerId) -> None:
        self._progress()

    def tick(self) -> None:
        self._state.bids.expire(self._ctx.now)
        self._progress()
        self.announcer.tick(self._state.rank == 0)

    def card_seen(self, card: Card) -> None:
        """An announcement of the job by whomsoever."""
        self.announcer.heard(card)

    def knows(self, proposal: StatementId) -> bool:
        """Whether an Object is about a proposal of this gate's."""
        return self._state.round is not None and self._state.round.admission.id == proposal

    def restored(self) -> None:
        """What a former process had signed is known now."""
        self._enter_epoch()

    def _enter_epoch(self) -> None:
        self._state.enter_epoch()
        self._admitting.enter_epoch()
        self._note_complete()
        self._wake = self._ctx.now

    # --- the end of a round ------------------------------------------------------------------------------------------
    def _note_complete(self) -> None:
        """Rounds whose beacons have come to count, here or by what others sent."""
        pairs = self._job.admissions()
        if len(pairs) == len(self._state.complete):
            return
        for admission, beacon in pairs:
            if admission.id not in self._state.complete:
                self._end_round(admission, beacon)

    def _end_round(self, admission: Statement, beacon: Statement) -> None:
        current = self._state.round
        if current is not None and current.admission.id == admission.id:
            self._tell(current, (admission, beacon))
        self._state.completed(admission, beacon)

    def _finish(self, current: Round) -> None:
        """Admission and beacon count."""
        assert current.beacon is not None
        self._ctx.deliver(self._ctx.me, (current.admission, current.beacon))
        self._end_round(current.admission, current.beacon)

    def _tell(self, current: Round, pair: tuple[Statement, Statement]) -> None:
        """The seat that proposed tells the workers and everybody who holds a seat; others tell the gate's seats."""
        for peer in self._audience(current) if current.proposed else self._state.others:
            self._ctx.deliver(peer, pair, self._job.addrs(peer))
        workers = len(current.admission.body.workers)
        self._ctx.trace("workers_admitted", job=self._job.job, round=current.number, workers=workers)

    def _audience(self, current: Round) -> list[PeerId]:
        """The workers admitted, the submitter, and each holder of a seat once: of jobs of many shards, the panel."""
        job = self._job
        if job.spec.shards > limits.PANEL_MAX:
            holders: Iterable[PeerId] = job.members()
        else:
            holders = (holder for shard in range(job.spec.shards) for holder in job.seats(shard).holders)
        workers = (worker for worker, _ in current.admission.body.workers)
        told = dict.fromkeys((*self._state.others, *workers, job.submitter, *holders))
        return [peer for peer in told if peer != self._ctx.me]

    # --- the round goes on -------------------------------------------------------------------------------------------
    def _progress(self) -> None:
        """Everything that has become possible, then what is to be said again."""
        self._admitting.look_again()
        self._advance()
        if self._state.round is None or self._admitting.is_free():
            self._admitting.propose()
            self._advance()
        self._repeat()
        self._wake = self._next_wake()

    def _advance(self) -> None:
        current = self._state.round
        if current is None:
            return
        self._note_quorum(current)
        if current.quorum_at is not None and current.beacon is None:
            self._drawing.propose(current)
        if current.beacon is not None and self._state.seats.signed_by_quorum(current.beacon.signers):
            self._finish(current)
        elif self._has_failed(current):
            self._state.leave_round()

    def _note_quorum(self, current: Round) -> None:
        if current.quorum_at is None and self._state.seats.signed_by_quorum(current.admission.signers):
            current.quorum_at = self._ctx.now
            current.resend_at, current.resend_ms = self._ctx.now, limits.RETRY_MIN_MS
            self._drawing.show(current)
            self._ctx.deliver(self._ctx.me, (current.admission,))

    def _has_failed(self, current: Round) -> bool:
        """Given up: an admission that seats object to when no other answers, one that has found no beacon, and one of
        which nothing has come for long. An objection is said once, and may be lost: two seats that had each proposed
        one of the same round would wait for one another for good."""
        now = self._ctx.now
        if current.quorum_at is not None:
            return current.quorum_at + ROUND_MAX_MS <= now
        contested = current.proposed and bool(current.objectors)
        return current.opened + (limits.LEADER_MUTE_MS if contested else ROUND_MAX_MS) <= now

    def _repeat(self) -> None:
        """Say to the other seats where the round is, until they have answered with the beacon."""
        current = self._state.round
        if current is None or current.resend_at > self._ctx.now:
            return
        current.resend_at = self._ctx.now + current.resend_ms
        current.resend_ms = min(2 * current.resend_ms, ROUND_MAX_MS)
        said = [current.admission] if current.beacon is None else [current.admission, current.beacon]
        for seat in self._state.others:
            self._ctx.deliver(seat, said, self._job.addrs(seat))
            if current.quorum_at is not None and self._ctx.me in current.values:
                self._ctx.send(seat, self._drawing.shown_value())

    def _next_wake(self) -> Millis | None:
        now, state = self._ctx.now, self._state
        times = [self._admitting.next_objection]
        current = state.round
        if current is not None:
            times += [current.resend_at, current.opened + limits.LEADER_MUTE_MS]
            if current.quorum_at is not None:
                times += [current.quorum_at + ROUND_MAX_MS, self._drawing.due(current)]
            else:
                times.append(current.opened + ROUND_MAX_MS)
        else:
            waiting = state.bids.waiting_since(now, state.doubters_max)
            if waiting is not None:
                times.append(max(waiting + state.rank * limits.LEADER_MUTE_MS, state.next_at))
            times.append(state.bids.doubted_until(now))
        later = (when if when > now else now + limits.ROUND_MS for when in times if when is not None)
        return min(later, default=None)
