"""Who is admitted: proposals of this seat's, and its answers to those of others (docs/protocol.md, Bid, Round).

The seat k-th among those that are there proposes what has waited k times LEADER_MUTE_MS longer than the first should
have left it: so a leader that is mute, or keeps a worker out, is passed over without anybody being declared dead.
"""

from __future__ import annotations

from typing import assert_never

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts.faults import contradictors
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.rules import beacon
from nexapod.protocol.steward.gate.drawing import Drawing
from nexapod.protocol.steward.gate.rounds import Sound, Unheard, View, Wrong, examine
from nexapod.protocol.steward.gate.state import GateState
from nexapod.protocol.wire.bodies import Admission, Fault
from nexapod.protocol.wire.messages import Object
from nexapod.protocol.wire.statements import Statement, merge


class Admitting:
    """This seat's part in it."""

    def __init__(self, state: GateState, drawing: Drawing) -> None:
        self._state = state
        self._drawing = drawing
        self._since: Millis = state.ctx.now
        self._waiting: dict[StatementId, tuple[Statement, PeerId, Millis]] = {}
        """Proposals that name workers not heard of yet: with who sent it, and when to object."""
        self._recent: dict[StatementId, Statement] = {}
        """The last proposals of others that came: one may find its quorum without this seat."""

    def __len__(self) -> int:
        """Proposals kept, for the table that bounds them."""
        return max(len(self._waiting), len(self._recent))

    def enter_epoch(self) -> None:
        self._waiting.clear()
        self._recent.clear()

    @property
    def next_objection(self) -> Millis | None:
        return min(until for _, _, until in self._waiting.values()) if self._waiting else None

    # --- bids --------------------------------------------------------------------------------------------------------
    def on_bid(self, worker: PeerId) -> None:
        """It counts for the peer at the other end of the link alone."""
        state = self._state
        if state.job.group(worker) is not None:
            state.answer_admitted(worker, worker)
            return
        group = state.ctx.peers.group(worker, state.job.spec.policy.grouping)
        if group is not None and not state.job.closed:
            state.bids.enter(worker, group, state.ctx.now, self._eligible_at(worker))

    def _eligible_at(self, worker: PeerId) -> Millis:
        """When a round may begin for a worker's sake. Whose presence is younger than the job waits a round where nobody
        vouches for it: keys made for a job gain nothing by being many."""
        ctx = self._state.ctx
        met = ctx.peers.met(worker)
        young = met is None or met > self._since
        waits = young and self._state.job.spec.policy.grouping == "network"
        return ctx.now + self._gather_ms + (limits.ROUND_MS if waits else 0)

    @property
    def _gather_ms(self) -> Millis:
        own = self._state.job.spec.policy.grouping == "peer"
        return limits.GATHER_OWN_MS if own else limits.GATHER_MS

    # --- proposing ---------------------------------------------------------------------------------------------------
    def propose(self) -> None:
        """The next round, if one is due."""
        state, now = self._state, self._state.ctx.now
        if not self.is_free() or state.job.closed or not state.job.workable:
            return
        waiting = state.bids.waiting_since(now, state.doubters_max)
        waited_ms = state.rank * limits.LEADER_MUTE_MS
        if waiting is None or waiting + waited_ms > now:
            return
        workers = state.bids.batch(now, waited_ms - self._gather_ms, state.doubters_max, state.has_place)
        committed = self._drawing.committed()
        if not workers or not committed:
            return
        number = max(state.top, state.pledges.signed_round(state.seats.epoch)) + 1
        body = Admission(state.job.job, state.seats.epoch, number, workers, beacon.ordered(committed))
        statement = state.ctx.sign(body)
        state.pledges.sign_admission(state.seats.epoch, number, statement.id)
        self._enter_round(statement, proposed=True)
        state.ctx.trace("admission_proposed", job=state.job.job, round=number, workers=len(workers))

    def is_free(self) -> bool:
        """No round is under way, as far as this seat can tell, and the last is some time ago."""
        state, now = self._state, self._state.ctx.now
        if state.round is None:
            return state.next_at <= now
        mute = state.round.opened + limits.LEADER_MUTE_MS <= now
        return state.round.quorum_at is None and not state.round.proposed and mute

    def _enter_round(self, admission: Statement, *, proposed: bool) -> None:
        self._state.enter_round(admission, proposed=proposed)
        self._waiting.pop(admission.id, None)

    # --- proposals of others -----------------------------------------------------------------------------------------
    def on_admission(self, statement: Statement, sender: PeerId) -> None:
        """Whether it counts or not."""
        state = self._state
        if statement.id in state.complete:
            # Whoever still waits for the beacon shows its value again, and is answered then: two seats that answer
            # each other's statements would never stop.
            return
        current = state.round
        if current is not None and statement.body.round == current.number:
            self._fault(current.admission, statement)
        if sender in state.seats.holders:
            state.top = max(state.top, min(statement.body.round, state.top + limits.ROUNDS_AHEAD_MAX))
        if current is not None and current.admission.id == statement.id:
            current.admission = merge(current.admission, statement)
        elif state.seats.signed_by_quorum(statement.signers):
            self._join(statement)
        elif sender in state.seats.holders:
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
        state = self._state
        current = state.round
        newer = statement.body.round > state.top_complete
        if current is None or current.quorum_at is None or statement.body.round > current.number:
            if newer:
                self._enter_round(statement, proposed=False)
        elif statement.body.round == current.number and not state.pledges.has_signed_beacon(current.admission.id):
            state.ctx.trace("admission_contradicted", job=state.job.job, round=current.number)
            if statement.id < current.admission.id:
                values = current.values
                self._enter_round(statement, proposed=False)
                self._drawing.keep_values(values.items())

    def _consider(self, statement: Statement, sender: PeerId) -> None:
        """Sign a proposal, wait for the bids that it names, or object."""
        state = self._state
        body: Admission = statement.body
        if state.round is not None and state.round.quorum_at is not None:
            return
        if not state.pledges.may_sign_admission(body.epoch, body.round, statement.id):
            self._object(statement, sender, (), "another of this round, or of a later one, was signed here")
            return
        answer = examine(body, self._view())
        match answer:
            case Sound():
                state.pledges.sign_admission(body.epoch, body.round, statement.id)
                self._enter_round(state.ctx.cosign(statement), proposed=False)
            case Unheard():
                self._await_bids(statement, sender, answer.workers)
            case Wrong():
                self._object(statement, sender, answer.workers, answer.reason)
            case _:
                assert_never(answer)

    def _view(self) -> View:
        state, now = self._state, self._state.ctx.now
        return View(
            me=state.ctx.me,
            holders=state.seats.holders,
            void=state.void,
            commitment=self._drawing.own_commitment,
            bids=lambda worker: state.bids.group(worker, now),
            admissible=state.admissible,
        )

    def _await_bids(self, statement: Statement, sender: PeerId, workers: tuple[PeerId, ...]) -> None:
        now = self._state.ctx.now
        known = self._waiting.get(statement.id)
        if known is None and len(self._waiting) < limits.SEATS * 2:
            self._waiting[statement.id] = (statement, sender, now + limits.COSIGN_MS)
        elif known is not None and known[2] <= now:
            self._object(statement, sender, workers, "a worker has not bid here")

    def look_again(self) -> None:
        """What proposals waited for may have come, or it is time to object."""
        for id, (statement, sender, _) in list(self._waiting.items()):
            body = statement.body
            if self._state.pledges.may_sign_admission(body.epoch, body.round, id):
                self._consider(statement, sender)
            else:
                del self._waiting[id]

    # --- objections --------------------------------------------------------------------------------------------------
    def _object(self, statement: Statement, seat: PeerId, workers: tuple[PeerId, ...], reason: str) -> None:
        state = self._state
        self._waiting.pop(statement.id, None)
        self._drawing.tell_pledge(seat)
        if state.round is not None and state.round.number >= statement.body.round:
            state.ctx.deliver(seat, (state.round.admission,))
        state.ctx.send(seat, Object(state.job.job, 0, statement.id, (), workers))
        missed = next((worker for worker in workers if state.job.group(worker) is not None), None)
        if missed is not None:
            state.answer_admitted(missed, seat)
        state.ctx.trace("admission_refused", job=state.job.job, round=statement.body.round, reason=reason)

    def on_object(self, peer: PeerId, message: Object) -> None:
        """A seat cannot sign this seat's proposal: go on without, once it cannot find its quorum. Raises PeerError."""
        state = self._state
        current = state.round
        if peer not in state.seats.holders:
            raise PeerError("not-a-seat", "it objects to an admission", penalty=1)
        if current is None or current.admission.id != message.proposal or current.quorum_at is not None:
            return
        current.objectors[peer] = message.workers
        for worker in message.workers:
            state.bids.doubt(worker, peer, state.ctx.now + limits.BID_RENEW_MS)
        if current.proposed and len(current.objectors) > state.doubters_max:
            state.leave_round()

    # --- signatures --------------------------------------------------------------------------------------------------
    def take_signatures(self) -> None:
        """What counts now came through the job's state."""
        state = self._state
        current = state.round
        known = state.job.get(current.admission.id) if current is not None else None
        if current is not None and known is not None:
            current.admission = merge(current.admission, known)
        for id in list(self._recent):
            recent = state.job.get(id)
            if recent is not None and state.seats.signed_by_quorum(recent.signers) and id not in state.complete:
                del self._recent[id]
                if state.round is None or state.round.admission.id != id:
                    self._join(recent)

    def _fault(self, one: Statement, other: Statement) -> None:
        """Two admissions of one round: whoever signed both is proven to be at fault."""
        state = self._state
        for peer in contradictors(one, other):
            small = max(len(one.envelope), len(other.envelope)) <= limits.ENVELOPE_BYTES_MAX // 3
            if peer in state.job.faults() or peer == state.ctx.me or not small:
                continue
            proof = state.ctx.sign(Fault(state.job.job, peer, one.envelope, other.envelope))
            for seat in (state.ctx.me, *state.others, state.job.submitter):
                if seat != peer:
                    state.ctx.deliver(seat, (proof,))
