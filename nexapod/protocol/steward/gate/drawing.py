"""The chance of a round: values shown once a quorum has signed its admission, and the beacon made of them
(docs/protocol.md, Round)."""

from __future__ import annotations

from collections.abc import Iterable

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, Millis, PeerId
from nexapod.protocol.rules import beacon as beacon_rules
from nexapod.protocol.steward.gate.rounds import Round
from nexapod.protocol.steward.gate.state import GateState
from nexapod.protocol.wire.bodies import Beacon
from nexapod.protocol.wire.messages import Value
from nexapod.protocol.wire.statements import Statement, merge


class Drawing:
    """This seat's part in it."""

    def __init__(self, state: GateState) -> None:
        self._state = state
        self._following: dict[PeerId, tuple[int, int, Digest]] = {}
        """Commitments that seats spoke of on their own links: epoch and round after which, and to what."""

    # --- commitments -------------------------------------------------------------------------------------------------
    def committed(self) -> dict[PeerId, Digest]:
        """The commitments that a proposal of this seat lists: of seats whose values are not void."""
        state = self._state
        placed = state.job.placed()
        found = {state.ctx.me: state.pledges.commitment}
        for peer in state.others:
            if peer in self._following:
                found[peer] = self._following[peer][2]
            elif peer in placed:
                found[peer] = placed[peer].body.commitment
        return {peer: digest for peer, digest in found.items() if peer not in state.void}

    @property
    def own_commitment(self) -> Digest | None:
        """None when this seat has never spoken of one."""
        state = self._state
        spoken = state.ctx.me in state.job.placed() or state.pledges.shown is not None
        return state.pledges.commitment if spoken else None

    def tell_pledge(self, seat: PeerId) -> None:
        """What this seat has bound itself to, for one that lists something else."""
        state = self._state
        mine = state.job.placed().get(state.ctx.me)
        if state.pledges.shown is not None:
            state.ctx.send(seat, self.shown_value())
        elif mine is not None:
            state.ctx.deliver(seat, (mine,))

    # --- values ------------------------------------------------------------------------------------------------------
    def show(self, current: Round) -> None:
        """A quorum has signed the admission: this seat owes its value."""
        state = self._state
        committed = current.committed.get(state.ctx.me)
        body = current.admission.body
        if committed is None:
            return
        shown = state.pledges.show(body.epoch, body.round, current.admission.id, committed)
        if shown is not None:
            current.values[state.ctx.me] = shown.value

    def shown_value(self) -> Value:
        """The value that this seat has shown last. Only when there is one."""
        state = self._state
        shown = state.pledges.shown
        assert shown is not None
        following = state.pledges.commitment
        return Value(state.job.job, shown.epoch, shown.round, state.ctx.me, shown.value, following)

    def on_value(self, peer: PeerId, message: Value) -> None:
        """Raises PeerError."""
        state = self._state
        if message.author not in state.seats.holders or peer not in state.seats.holders:
            raise PeerError("not-a-seat", "it shows a value", penalty=1)
        if peer == message.author:
            self._note_following(message)
        current = state.round
        if current is not None and (message.epoch, message.round) == (state.seats.epoch, current.number):
            self.keep_values([(message.author, message.value)])
        elif message.epoch == state.seats.epoch:
            self._answer_round(message.round, peer)

    def _note_following(self, message: Value) -> None:
        known = self._following.get(message.author)
        if known is None or known[:2] <= (message.epoch, message.round):
            self._following[message.author] = (message.epoch, message.round, message.following)

    def keep_values(self, values: Iterable[tuple[PeerId, bytes]]) -> None:
        """Those that fit the commitments of the round."""
        current = self._state.round
        if current is None:
            return
        for peer, value in values:
            if peer in current.committed and beacon_rules.fits(value, current.committed[peer]):
                current.values[peer] = value

    def _answer_round(self, number: int, seat: PeerId) -> None:
        """A seat shows its value of a round that is complete here."""
        state = self._state
        for admission, beacon in state.job.admissions():
            if admission.body.epoch == state.seats.epoch and admission.body.round == number:
                state.ctx.deliver(seat, (admission, beacon))

    # --- beacon ------------------------------------------------------------------------------------------------------
    def propose(self, current: Round) -> None:
        """This seat's turn: at once if it leads and all is shown, else after whoever comes before it."""
        state = self._state
        if state.pledges.has_signed_beacon(current.admission.id) or not current.values:
            return
        if self.due(current) > state.ctx.now:
            return
        body = current.admission.body
        values = beacon_rules.ordered(current.values)
        statement = state.ctx.sign(Beacon(body.job, body.epoch, body.round, current.admission.id, values))
        state.pledges.sign_beacon(current.admission.id, statement.id)
        current.beacon = statement
        current.proposed = True
        current.resend_at = state.ctx.now

    def due(self, current: Round) -> Millis:
        """When this seat proposes the beacon. Only once the admission has its quorum."""
        assert current.quorum_at is not None
        rank = self._state.rank
        if rank == 0 and current.complete_values:
            return current.quorum_at
        return current.quorum_at + limits.VALUE_MS + rank * limits.LEADER_MUTE_MS

    def on_beacon(self, statement: Statement, sender: PeerId) -> None:
        """Whether it counts or not."""
        state = self._state
        body: Beacon = statement.body
        current = state.round
        if body.admission in state.complete or current is None or current.admission.id != body.admission:
            return
        if current.beacon is not None and current.beacon.id == statement.id:
            current.beacon = merge(current.beacon, statement)
        elif state.seats.signed_by_quorum(statement.signers):
            current.beacon = statement
        elif current.quorum_at is not None and sender in state.seats.holders:
            self._consider(current, statement, sender)

    def _consider(self, current: Round, statement: Statement, sender: PeerId) -> None:
        state = self._state
        error = beacon_rules.error_in(statement.body, current.admission, current.committed, current.values)
        if error is not None:
            self._pass_on_values(current, sender)
            state.ctx.trace("beacon_refused", job=state.job.job, round=current.number, reason=error)
        elif state.pledges.may_sign_beacon(current.admission.id, statement.id):
            state.pledges.sign_beacon(current.admission.id, statement.id)
            self.keep_values(statement.body.values)
            current.beacon = state.ctx.cosign(statement)
            current.resend_at = state.ctx.now

    def _pass_on_values(self, current: Round, seat: PeerId) -> None:
        """What this seat was shown, its own included."""
        state = self._state
        body = current.admission.body
        for peer, value in beacon_rules.ordered(current.values):
            if peer != state.ctx.me:
                nothing = Digest(bytes(32))  # only the author's own link says what follows
                state.ctx.send(seat, Value(body.job, body.epoch, body.round, peer, value, nothing))
        if state.ctx.me in current.values:
            state.ctx.send(seat, self.shown_value())
