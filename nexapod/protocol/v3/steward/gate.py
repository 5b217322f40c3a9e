"""One seat of a job's gate: it admits workers, a round at a time (docs/protocol-3.md, Bid, Round).

A round goes: proposed -> signed by a quorum -> values shown -> beacon signed by a quorum. The seat k-th among those
that are there proposes what has waited k times LEADER_MUTE_MS longer than the first should have left it, and the
beacon likewise: so a leader that is mute, or keeps a worker out, is passed over without anybody being declared dead. A
seat takes part in one round at a time. What it may not do twice is in Pledges; all else grows back after a crash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import assert_never

from nexapod.protocol.errors import PeerError
from nexapod.protocol.types import Digest, Millis, PeerId, StatementId
from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.context import Context
from nexapod.protocol.v3.facts.faults import contradictors
from nexapod.protocol.v3.job import JobState
from nexapod.protocol.v3.rules import beacon as beacon_rules
from nexapod.protocol.v3.rules.succession import Seats
from nexapod.protocol.v3.steward.announcing import Announcer
from nexapod.protocol.v3.steward.bids import Bids
from nexapod.protocol.v3.steward.pledges import Pledges
from nexapod.protocol.v3.steward.rounds import (
    Round,
    Sound,
    Unheard,
    View,
    Wrong,
    commitments_in,
    commitments_slot,
    examine,
    void_after,
)
from nexapod.protocol.v3.tables import TableReport
from nexapod.protocol.v3.types import Group
from nexapod.protocol.v3.wire.bodies import Admission, Beacon, Fault
from nexapod.protocol.v3.wire.messages import Bid, Card, Object, Value
from nexapod.protocol.v3.wire.statements import Statement, merge

ROUND_MAX_MS: Millis = limits.VALUE_MS + limits.SEATS * limits.LEADER_MUTE_MS + limits.COSIGN_MS
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
        self._seats: Seats = job.gate()
        self._since: Millis = ctx.now
        self.pledges = pledges or Pledges(ctx, job.job)
        places = open_places or (lambda: job.spec.tasks * job.spec.validate.agree)
        self.announcer = Announcer(ctx, job, self.pledges, population, places)
        self._bids = Bids()
        self._round: Round | None = None
        self._waiting: dict[StatementId, tuple[Statement, PeerId, Millis]] = {}
        """Proposals that name workers not heard of yet: with who sent it, and when to object."""
        self._recent: dict[StatementId, Statement] = {}
        """The last proposals of others that came: one may find its quorum without this seat."""
        self._following: dict[PeerId, tuple[int, int, Digest]] = {}
        """Commitments that seats spoke of on their own links: epoch and round after which, and to what."""
        self._top = 0
        """The highest round of this epoch that was seen."""
        self._void: frozenset[PeerId] = frozenset()
        self._top_complete = 0
        self._complete: set[StatementId] = set()
        """Admissions whose beacons count here."""
        self._shares: Counter[Group] = Counter()
        """Workers of each group that are admitted."""
        self._next_at: Millis = 0
        self._wake: Millis | None = None
        self._enter_epoch()

    # --- events ------------------------------------------------------------------------------------------------------
    def tables(self) -> tuple[TableReport, ...]:
        waiting = max(len(self._waiting), len(self._recent))
        return (
            TableReport("bids", len(self._bids), limits.BIDS_MAX),
            TableReport("admissions proposed", waiting, 2 * limits.SEATS),
        )

    @property
    def deadline(self) -> Millis | None:
        return None if self._job.closed else _earliest(self._wake, self.announcer.due)

    def on_message(self, peer: PeerId, message: Bid | Value | Object) -> None:
        """`peer`: on whose link it came. Raises PeerError."""
        match message:
            case Bid():
                self._on_bid(peer)
            case Value():
                self._on_value(peer, message)
            case Object():
                self._on_object(peer, message)
            case _:
                assert_never(message)
        self._progress()

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """Admissions and beacons, whether they count or not. Raises PeerError."""
        if statement.body.epoch == self._seats.epoch and any(s in self._seats.holders for s in statement.signers):
            if statement.kind == "admission":
                self._on_admission(statement, sender)
            else:
                self._on_beacon(statement, sender)
            self._progress()

    def job_changed(self) -> None:
        """The seats of the gate, or what has counted, may be others."""
        if self._job.gate().id != self._seats.id:
            self._seats = self._job.gate()
            self._enter_epoch()
        self._note_complete()
        self._take_signatures()
        self._progress()

    def peer_up(self, peer: PeerId) -> None:
        """Another seat may have missed what this one said last."""
        if peer in self._seats.holders and self._round is not None:
            self._round.resend_at = self._ctx.now
            self._progress()

    def peer_down(self, peer: PeerId) -> None:
        self._progress()

    def tick(self) -> None:
        self._bids.expire(self._ctx.now)
        self._progress()
        self.announcer.tick(self._rank() == 0)

    def card_seen(self, card: Card) -> None:
        """An announcement of the job by whomsoever."""
        self.announcer.heard(card)

    def knows(self, proposal: StatementId) -> bool:
        """Whether an Object is about a proposal of this gate's."""
        return self._round is not None and self._round.admission.id == proposal

    def restored(self) -> None:
        """What a former process had signed is known now."""
        self._enter_epoch()

    # --- epochs ------------------------------------------------------------------------------------------------------
    def _enter_epoch(self) -> None:
        self._round = None
        self._waiting.clear()
        self._recent.clear()
        self._complete.clear()
        self._shares.clear()
        self._void = frozenset()
        self._top_complete = 0
        self._top = self.pledges.signed_round(self._seats.epoch)
        self._note_complete()
        self._wake = self._ctx.now

    def _note_complete(self) -> None:
        """Rounds whose beacons have come to count, here or by what others sent."""
        pairs = self._job.admissions()
        if len(pairs) == len(self._complete):
            return
        for admission, beacon in pairs:
            if admission.id not in self._complete:
                self._end_round(admission, beacon)

    def _end_round(self, admission: Statement, beacon: Statement) -> None:
        current = self._round
        if current is not None and current.admission.id == admission.id:
            self._tell(current, (admission, beacon))
        self._complete.add(admission.id)
        self._shares.update(group for _, group in admission.body.workers)
        for worker, _ in admission.body.workers:
            self._bids.remove(worker)
        if admission.body.epoch == self._seats.epoch:
            self._end_own_round(admission, beacon)

    def _end_own_round(self, admission: Statement, beacon: Statement) -> None:
        """One of this epoch."""
        self._top_complete = max(self._top_complete, admission.body.round)
        self._top = max(self._top, admission.body.round)
        shown = dict(beacon.body.values)
        missing = [peer for peer in commitments_in(admission.body) or {} if peer not in shown]
        if missing:
            self._ctx.trace("gate_values_voided", job=self._job.job, round=admission.body.round, seats=missing)
        self._void = void_after(self._void, missing, self._seats.holders)
        if self._round is not None and self._round.number <= admission.body.round:
            self._leave_round()

    def _leave_round(self) -> None:
        self._round = None
        self._next_at = self._ctx.now + limits.ROUND_MS

    # --- bids --------------------------------------------------------------------------------------------------------
    def _on_bid(self, worker: PeerId) -> None:
        if self._job.group(worker) is not None:
            self._answer_admitted(worker, worker)
            return
        group = self._ctx.peers.group(worker, self._job.spec.policy.grouping)
        if group is not None and not self._job.closed:
            self._bids.enter(worker, group, self._ctx.now, self._eligible_at(worker))

    def _eligible_at(self, worker: PeerId) -> Millis:
        """Whose presence is younger than the job waits a round: keys made for a job gain nothing by being many."""
        met = self._ctx.peers.met(worker)
        young = met is None or met > self._since
        return self._ctx.now + limits.GATHER_MS + (limits.ROUND_MS if young else 0)

    def _answer_admitted(self, worker: PeerId, asking: PeerId) -> None:
        """Somebody has missed the round that admitted a worker."""
        for admission, beacon in self._job.admissions():
            if any(peer == worker for peer, _ in admission.body.workers):
                self._ctx.deliver(asking, (admission, beacon))
                return

    def _admissible(self, worker: PeerId, group: Group) -> bool:
        return self._job.group(worker) is None

    def _has_place(self, worker: PeerId, group: Group) -> bool:
        """Neither the job nor the worker's group has all the workers that it may have."""
        full = self._shares.total() >= limits.WORKERS_MAX or self._shares[group] >= limits.WORKERS_PER_GROUP_MAX
        return not full and self._admissible(worker, group)

    # --- admissions --------------------------------------------------------------------------------------------------
    @property
    def _doubters_max(self) -> int:
        """A worker that more seats than this cannot vouch for finds no quorum."""
        return len(self._seats.holders) - self._seats.quorum

    def _rank(self) -> int:
        """This node's place among the seats that are there; 0 leads."""
        there = [peer for peer in self._seats.holders if self._ctx.peers.linked(peer)]
        return there.index(self._ctx.me) if self._ctx.me in there else len(there)

    def _others(self) -> list[PeerId]:
        return [peer for peer in self._seats.holders if peer != self._ctx.me]

    def _propose(self) -> None:
        """The next round, if one is due."""
        now = self._ctx.now
        if not self._is_free() or self._job.closed or not self._job.workable:
            return
        waiting = self._bids.waiting_since(now, self._doubters_max)
        waited_ms = self._rank() * limits.LEADER_MUTE_MS
        if waiting is None or waiting + waited_ms > now:
            return
        workers = self._bids.batch(now, waited_ms, self._doubters_max, self._has_place)
        committed = self._committed()
        if not workers or not committed:
            return
        number = max(self._top, self.pledges.signed_round(self._seats.epoch)) + 1
        slot = commitments_slot(committed)
        body = Admission(self._job.job, self._seats.epoch, number, workers, slot)
        statement = self._ctx.sign(body)
        self.pledges.sign_admission(self._seats.epoch, number, statement.id)
        self._enter_round(statement, proposed=True)
        self._ctx.trace("admission_proposed", job=self._job.job, round=number, workers=len(workers))

    def _is_free(self) -> bool:
        """No round is under way, as far as this seat can tell, and the last is some time ago."""
        if self._round is None:
            return self._next_at <= self._ctx.now
        mute = self._round.opened + limits.LEADER_MUTE_MS <= self._ctx.now
        return self._round.quorum_at is None and not self._round.proposed and mute

    def _committed(self) -> dict[PeerId, Digest]:
        """The commitments that a proposal of this seat lists: of seats whose values are not void."""
        placed = self._job.placed()
        found = {self._ctx.me: self.pledges.commitment}
        for peer in self._others():
            if peer in self._following:
                found[peer] = self._following[peer][2]
            elif peer in placed:
                found[peer] = placed[peer].body.commitment
        return {peer: digest for peer, digest in found.items() if peer not in self._void}

    def _enter_round(self, admission: Statement, *, proposed: bool) -> None:
        committed = commitments_in(admission.body) or {}
        self._round = Round(admission, committed, self._ctx.now, proposed)
        self._top = max(self._top, admission.body.round)
        self._waiting.pop(admission.id, None)

    def _on_admission(self, statement: Statement, sender: PeerId) -> None:
        if statement.id in self._complete:
            # Whoever still waits for the beacon shows its value again, and is answered then: two seats that answer
            # each other's statements would never stop.
            return
        current = self._round
        if current is not None and statement.body.round == current.number:
            self._fault(current.admission, statement)
        if sender in self._seats.holders:
            self._top = max(self._top, min(statement.body.round, self._top + limits.ROUNDS_AHEAD_MAX))
        if current is not None and current.admission.id == statement.id:
            current.admission = merge(current.admission, statement)
        elif self._seats.signed_by_quorum(statement.signers):
            self._join(statement)
        elif sender in self._seats.holders:
            self._remember(statement)
            self._consider(statement, sender)

    def _remember(self, statement: Statement) -> None:
        self._recent.pop(statement.id, None)
        self._recent[statement.id] = statement
        if len(self._recent) > 2 * limits.SEATS:
            del self._recent[next(iter(self._recent))]

    def _join(self, statement: Statement) -> None:
        """A quorum without this seat has signed an admission: its round is this seat's too.

        Two of one round need a seat that signed both. The one with the smaller id stands, so that it gains no choice.
        """
        current = self._round
        newer = statement.body.round > self._top_complete
        if current is None or current.quorum_at is None or statement.body.round > current.number:
            if newer:
                self._enter_round(statement, proposed=False)
        elif statement.body.round == current.number and not self.pledges.has_signed_beacon(current.admission.id):
            self._ctx.trace("admission_contradicted", job=self._job.job, round=current.number)
            if statement.id < current.admission.id:
                values = current.values
                self._enter_round(statement, proposed=False)
                self._keep_values(values.items())

    def _consider(self, statement: Statement, sender: PeerId) -> None:
        """Sign a proposal, wait for the bids that it names, or object."""
        body: Admission = statement.body
        if self._round is not None and self._round.quorum_at is not None:
            return
        if not self.pledges.may_sign_admission(body.epoch, body.round, statement.id):
            self._object(statement, sender, (), "another of this round, or of a later one, was signed here")
            return
        answer = examine(body, self._view())
        match answer:
            case Sound():
                self.pledges.sign_admission(body.epoch, body.round, statement.id)
                self._enter_round(self._ctx.cosign(statement), proposed=False)
            case Unheard():
                self._await_bids(statement, sender, answer.workers)
            case Wrong():
                self._object(statement, sender, answer.workers, answer.reason)
            case _:
                assert_never(answer)

    def _view(self) -> View:
        spoken = self._ctx.me in self._job.placed() or self.pledges.shown is not None
        now = self._ctx.now
        return View(
            me=self._ctx.me,
            holders=self._seats.holders,
            void=self._void,
            commitment=self.pledges.commitment if spoken else None,
            bids=lambda worker: self._bids.group(worker, now),
            admissible=self._admissible,
        )

    def _await_bids(self, statement: Statement, sender: PeerId, workers: tuple[PeerId, ...]) -> None:
        known = self._waiting.get(statement.id)
        if known is None and len(self._waiting) < limits.SEATS * 2:
            self._waiting[statement.id] = (statement, sender, self._ctx.now + limits.COSIGN_MS)
        elif known is not None and known[2] <= self._ctx.now:
            self._object(statement, sender, workers, "a worker has not bid here")

    def _object(self, statement: Statement, seat: PeerId, workers: tuple[PeerId, ...], reason: str) -> None:
        self._waiting.pop(statement.id, None)
        self._tell_pledge(seat)
        if self._round is not None and self._round.number >= statement.body.round:
            self._ctx.deliver(seat, (self._round.admission,))
        self._ctx.send(seat, Object(self._job.job, 0, statement.id, (), workers))
        missed = next((worker for worker in workers if self._job.group(worker) is not None), None)
        if missed is not None:
            self._answer_admitted(missed, seat)
        self._ctx.trace("admission_refused", job=self._job.job, round=statement.body.round, reason=reason)

    def _tell_pledge(self, seat: PeerId) -> None:
        """What this seat has bound itself to, for one that lists something else."""
        mine = self._job.placed().get(self._ctx.me)
        if self.pledges.shown is not None:
            self._ctx.send(seat, self._shown_value())
        elif mine is not None:
            self._ctx.deliver(seat, (mine,))

    def _on_object(self, peer: PeerId, message: Object) -> None:
        """A seat cannot sign this seat's proposal: go on without, once it cannot find its quorum."""
        current = self._round
        if peer not in self._seats.holders:
            raise PeerError("not-a-seat", "it objects to an admission", penalty=1)
        if current is None or current.admission.id != message.proposal or current.quorum_at is not None:
            return
        current.objectors[peer] = message.workers
        for worker in message.workers:
            self._bids.doubt(worker, peer, self._ctx.now + limits.BID_RENEW_MS)
        if current.proposed and len(current.objectors) > self._doubters_max:
            self._leave_round()

    # --- values ------------------------------------------------------------------------------------------------------
    def _show(self, current: Round) -> None:
        committed = current.committed.get(self._ctx.me)
        body = current.admission.body
        if committed is None:
            return
        shown = self.pledges.show(body.epoch, body.round, current.admission.id, committed)
        if shown is not None:
            current.values[self._ctx.me] = shown.value

    def _shown_value(self) -> Value:
        shown = self.pledges.shown
        assert shown is not None
        following = self.pledges.commitment
        return Value(self._job.job, shown.epoch, shown.round, self._ctx.me, shown.value, following)

    def _on_value(self, peer: PeerId, message: Value) -> None:
        if message.author not in self._seats.holders or peer not in self._seats.holders:
            raise PeerError("not-a-seat", "it shows a value", penalty=1)
        if peer == message.author:
            self._note_following(message)
        current = self._round
        if current is not None and (message.epoch, message.round) == (self._seats.epoch, current.number):
            self._keep_values([(message.author, message.value)])
        elif message.epoch == self._seats.epoch:
            self._answer_round(message.round, peer)

    def _note_following(self, message: Value) -> None:
        known = self._following.get(message.author)
        if known is None or known[:2] <= (message.epoch, message.round):
            self._following[message.author] = (message.epoch, message.round, message.following)

    def _keep_values(self, values: Iterable[tuple[PeerId, bytes]]) -> None:
        """Those that fit the commitments of the round."""
        current = self._round
        if current is None:
            return
        for peer, value in values:
            if peer in current.committed and beacon_rules.fits(value, current.committed[peer]):
                current.values[peer] = value

    def _answer_round(self, number: int, seat: PeerId) -> None:
        """A seat shows its value of a round that is complete here."""
        for admission, beacon in self._job.admissions():
            if admission.body.epoch == self._seats.epoch and admission.body.round == number:
                self._ctx.deliver(seat, (admission, beacon))

    # --- beacon ------------------------------------------------------------------------------------------------------
    def _propose_beacon(self, current: Round) -> None:
        """This seat's turn: at once if it leads and all is shown, else after whoever comes before it."""
        if self.pledges.has_signed_beacon(current.admission.id) or not current.values:
            return
        if self._beacon_due(current) > self._ctx.now:
            return
        body = current.admission.body
        values = beacon_rules.ordered(current.values)
        statement = self._ctx.sign(Beacon(body.job, body.epoch, body.round, current.admission.id, values))
        self.pledges.sign_beacon(current.admission.id, statement.id)
        current.beacon = statement
        current.proposed = True
        current.resend_at = self._ctx.now

    def _beacon_due(self, current: Round) -> Millis:
        assert current.quorum_at is not None
        rank = self._rank()
        if rank == 0 and current.complete_values:
            return current.quorum_at
        return current.quorum_at + limits.VALUE_MS + rank * limits.LEADER_MUTE_MS

    def _on_beacon(self, statement: Statement, sender: PeerId) -> None:
        body: Beacon = statement.body
        current = self._round
        if body.admission in self._complete or current is None or current.admission.id != body.admission:
            return
        if current.beacon is not None and current.beacon.id == statement.id:
            current.beacon = merge(current.beacon, statement)
        elif self._seats.signed_by_quorum(statement.signers):
            current.beacon = statement
        elif current.quorum_at is not None and sender in self._seats.holders:
            self._consider_beacon(current, statement, sender)

    def _consider_beacon(self, current: Round, statement: Statement, sender: PeerId) -> None:
        error = beacon_rules.error_in(statement.body, current.admission, current.committed, current.values)
        if error is not None:
            self._pass_on_values(current, sender)
            self._ctx.trace("beacon_refused", job=self._job.job, round=current.number, reason=error)
        elif self.pledges.may_sign_beacon(current.admission.id, statement.id):
            self.pledges.sign_beacon(current.admission.id, statement.id)
            self._keep_values(statement.body.values)
            current.beacon = self._ctx.cosign(statement)
            current.resend_at = self._ctx.now

    def _pass_on_values(self, current: Round, seat: PeerId) -> None:
        """What this seat was shown, its own included."""
        body = current.admission.body
        for peer, value in beacon_rules.ordered(current.values):
            if peer != self._ctx.me:
                nothing = Digest(bytes(32))  # only the author's own link says what follows
                self._ctx.send(seat, Value(body.job, body.epoch, body.round, peer, value, nothing))
        if self._ctx.me in current.values:
            self._ctx.send(seat, self._shown_value())

    def _finish(self, current: Round) -> None:
        """Admission and beacon count."""
        assert current.beacon is not None
        self._ctx.deliver(self._ctx.me, (current.admission, current.beacon))
        self._end_round(current.admission, current.beacon)

    def _tell(self, current: Round, pair: tuple[Statement, Statement]) -> None:
        """The seat that proposed tells the workers and everybody who holds a seat; others tell the gate's seats."""
        for peer in self._audience(current) if current.proposed else self._others():
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
        told = dict.fromkeys((*self._others(), *workers, job.submitter, *holders))
        return [peer for peer in told if peer != self._ctx.me]

    # --- the round goes on -------------------------------------------------------------------------------------------
    def _progress(self) -> None:
        """Everything that has become possible, then what is to be said again."""
        self._look_at_waiting()
        self._advance()
        if self._round is None or self._is_free():
            self._propose()
            self._advance()
        self._repeat()
        self._wake = self._next_wake()

    def _take_signatures(self) -> None:
        """What counts now came through the job's state."""
        current = self._round
        known = self._job.get(current.admission.id) if current is not None else None
        if current is not None and known is not None:
            current.admission = merge(current.admission, known)
        for id in list(self._recent):
            recent = self._job.get(id)
            if recent is not None and self._seats.signed_by_quorum(recent.signers) and id not in self._complete:
                del self._recent[id]
                self._join(recent)

    def _fault(self, one: Statement, other: Statement) -> None:
        """Two admissions of one round: whoever signed both is proven to be at fault."""
        for peer in contradictors(one, other):
            small = max(len(one.envelope), len(other.envelope)) <= limits.ENVELOPE_BYTES_MAX // 3
            if peer in self._job.faults() or peer == self._ctx.me or not small:
                continue
            proof = self._ctx.sign(Fault(self._job.job, peer, one.envelope, other.envelope))
            for seat in (self._ctx.me, *self._others(), self._job.submitter):
                if seat != peer:
                    self._ctx.deliver(seat, (proof,))

    def _look_at_waiting(self) -> None:
        for id, (statement, sender, _) in list(self._waiting.items()):
            body = statement.body
            if self.pledges.may_sign_admission(body.epoch, body.round, id):
                self._consider(statement, sender)
            else:
                del self._waiting[id]

    def _advance(self) -> None:
        current = self._round
        if current is None:
            return
        self._note_quorum(current)
        if current.quorum_at is not None and current.beacon is None:
            self._propose_beacon(current)
        if current.beacon is not None and self._seats.signed_by_quorum(current.beacon.signers):
            self._finish(current)
        elif self._has_failed(current):
            self._leave_round()

    def _note_quorum(self, current: Round) -> None:
        if current.quorum_at is None and self._seats.signed_by_quorum(current.admission.signers):
            current.quorum_at = self._ctx.now
            current.resend_at, current.resend_ms = self._ctx.now, limits.RETRY_MIN_MS
            self._show(current)
            self._ctx.deliver(self._ctx.me, (current.admission,))

    def _has_failed(self, current: Round) -> bool:
        """Given up: an admission that seats object to when no other answers, one that has found no beacon."""
        now = self._ctx.now
        if current.quorum_at is not None:
            return current.quorum_at + ROUND_MAX_MS <= now
        if current.proposed:
            return bool(current.objectors) and current.opened + limits.LEADER_MUTE_MS <= now
        return current.opened + ROUND_MAX_MS <= now

    def _repeat(self) -> None:
        """Say to the other seats where the round is, until they have answered with the beacon."""
        current = self._round
        if current is None or current.resend_at > self._ctx.now:
            return
        current.resend_at = self._ctx.now + current.resend_ms
        current.resend_ms = min(2 * current.resend_ms, ROUND_MAX_MS)
        said = [current.admission] if current.beacon is None else [current.admission, current.beacon]
        for seat in self._others():
            self._ctx.deliver(seat, said, self._job.addrs(seat))
            if current.quorum_at is not None and self._ctx.me in current.values:
                self._ctx.send(seat, self._shown_value())

    def _next_wake(self) -> Millis | None:
        now = self._ctx.now
        times = [until for _, _, until in self._waiting.values()]
        current = self._round
        if current is not None:
            times += [current.resend_at, current.opened + limits.LEADER_MUTE_MS]
            if current.quorum_at is not None:
                times += [current.quorum_at + ROUND_MAX_MS, self._beacon_due(current)]
            else:
                times.append(current.opened + ROUND_MAX_MS)
        else:
            waiting = self._bids.waiting_since(now, self._doubters_max)
            if waiting is not None:
                times.append(max(waiting + self._rank() * limits.LEADER_MUTE_MS, self._next_at))
            doubted = self._bids.doubted_until(now)
            times += [] if doubted is None else [doubted]
        later = [when if when > now else now + limits.ROUND_MS for when in times]
        return min(later, default=None)


def _earliest(one: Millis | None, other: Millis | None) -> Millis | None:
    times = [when for when in (one, other) if when is not None]
    return min(times, default=None)
