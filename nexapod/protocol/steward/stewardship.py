"""This peer as a panel member of one job: the machines of its seats, and what it has told others that it holds
(docs/protocol.md, Placing).

A job can have thousands of shards. Which of them this peer has seats of is found out a few at a time; the inputs are
held from then on, a Steward exists from the first message that needs one. Nothing is signed before the first tick, so
that what a former process had signed can be restored first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.job import GATE, JobState
from nexapod.protocol.primitives import Millis, Part, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.steward.gate.gate import Gate
from nexapod.protocol.steward.gate.pledges import GATE_RECORD, Pledges
from nexapod.protocol.steward.inputs import Inputs
from nexapod.protocol.steward.shard.steward import Steward
from nexapod.protocol.steward.tenure.ballots import TENURE_RECORD
from nexapod.protocol.steward.tenure.tenure import Tenure
from nexapod.protocol.tables import TableReport, fullest, in_turn
from nexapod.protocol.timers import Timers, earliest
from nexapod.protocol.wire.bodies import Placed
from nexapod.protocol.wire.messages import (
    Alive,
    Bid,
    Card,
    Claim,
    Collect,
    Inspect,
    Lease,
    Object,
    Ready,
    Reconcile,
    Refused,
    Release,
    Renew,
    Value,
    Want,
)
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.wire.text import clean

OfShard: TypeAlias = Claim | Lease | Release | Renew | Collect | Inspect | Object | Reconcile
MakeSteward: TypeAlias = Callable[[Context, JobState, int, Callable[[], bool]], Steward]


class Stewardship:
    """`accepts`: why this peer would not be a steward of the job; "": it would. `candidates`: see renewal.Renewals.

    `population`: about how many peers there are. `make_steward`: the machine of one shard.
    """

    def __init__(
        self,
        ctx: Context,
        job: JobState,
        accepts: Callable[[JobState], str],
        *,
        candidates: Callable[[], Sequence[Candidate]] = tuple,
        population: Callable[[], int] | None = None,
        make_steward: MakeSteward = Steward,
    ) -> None:
        self._ctx = ctx
        self._job = job
        self._population = population or (lambda: len(ctx.peers.links()))
        self._make_steward = make_steward
        self.refused = accepts(job)
        self._pledges = Pledges(ctx, job.job)
        self._inputs = Inputs(ctx, job, self._sources)
        self._tenure = Tenure(ctx, job, candidates)
        self._gate: Gate | None = None
        self._stewards: dict[int, Steward] = {}
        self._timers = Timers()
        self._cursor = 0
        """The next shard to be looked at; all have been when it is the number of shards."""
        self._seats_seen = job.seats_version
        """The seats as of which they are looked at."""
        self._dirty: deque[int] = deque()
        """Shards whose stewards have not been told yet that the job has changed."""
        self._unsaid: dict[int, None] = {}
        """Shards whose inputs are here, which the submitter has not been told."""
        self._wake: Millis | None = ctx.now
        self._placed_at: Millis | None = ctx.now
        """When `placed` is said (again)."""
        self._placed_pause_ms: Millis = limits.RETRY_MIN_MS
        self._caught_up: Millis | None = None
        """When the gate's seats were last asked for all that counts."""
        self._closed = False
        self._resumed = False
        """A former process of this node had these seats."""
        if not self.refused:
            self._open_gate()

    # --- what others ask ---------------------------------------------------------------------------------------------
    @property
    def gate(self) -> Gate | None:
        return self._gate

    @property
    def submitter(self) -> PeerId:
        return self._job.submitter

    @property
    def tenure(self) -> Tenure:
        return self._tenure

    def stewards(self) -> list[tuple[int, Steward]]:
        """Those that exist, by shard."""
        return sorted(self._stewards.items())

    def tables(self, shards: int, turn: int) -> Iterator[TableReport]:
        """How full its bounded tables are. Of many shards, `shards` of them are looked at: others with each `turn`."""
        yield from self._tenure.tables()
        if self._gate is not None:
            yield from self._gate.tables()
        looked_at = in_turn(list(self._stewards.values()), shards, turn)
        yield from fullest(steward.tables() for steward in looked_at)

    def steward(self, shard: int) -> Steward | None:
        """The machine of a shard that this peer has, or had, a seat of."""
        known = self._stewards.get(shard)
        if known is not None or self._closed or self.refused or not self._has_held(shard):
            return known
        made = self._make_steward(self._ctx, self._job, shard, lambda: self._inputs.has(shard))
        if self._resumed:
            made.resume()
        self._stewards[shard] = made
        self._arm(shard)
        return made

    def _has_held(self, shard: int) -> bool:
        if not 0 <= shard < self._job.spec.shards:
            return False
        seats = self._job.seats(shard)
        epochs = range(seats.epoch, -1, -1)
        found = (self._job.seats_at(shard, epoch) for epoch in epochs)
        return any(past is not None and self._ctx.me in past.holders for past in found)

    # --- messages and statements -------------------------------------------------------------------------------------
    def on_message(self, peer: PeerId, message: OfShard | Bid | Value | Alive | Refused) -> None:
        """Raises PeerError."""
        self._tenure.heard(peer)
        match message:
            case Alive() | Refused():
                self._tenure.on_message(peer, message)
            case Bid() | Value():
                if self._gate is not None:
                    self._gate.on_message(peer, message)
                elif isinstance(message, Bid):
                    self._redirect(peer, GATE)
            case Object() if self._gate is not None and self._gate.knows(message.proposal):
                self._gate.on_message(peer, message)
            case _:
                self._to_steward(peer, message)

    def _to_steward(self, peer: PeerId, message: OfShard) -> None:
        if message.shard >= self._job.spec.shards:
            raise PeerError("no-such-shard")
        steward = self.steward(message.shard)
        if steward is None or self._is_stale(peer, message):
            self._redirect(peer, message.shard)
        else:
            if isinstance(message, Claim | Renew):
                self._meet(peer)
            try:
                steward.on_message(peer, message)
            finally:
                self._arm(message.shard)

    def _is_stale(self, peer: PeerId, message: OfShard) -> bool:
        """Whether somebody speaks as a seat that it is not any more."""
        return isinstance(message, Reconcile) and peer not in self._job.seats(message.shard).holders

    def _meet(self, worker: PeerId) -> None:
        """A worker speaks as one who was admitted. If nothing is known of that here, the gate's seats may know; they
        themselves compare with one another."""
        holders = [peer for peer in self._job.gate().holders if self._ctx.peers.linked(peer)]
        known = self._job.group(worker) is not None or worker in self._job.faults()
        due = self._caught_up is None or self._caught_up + limits.BID_RENEW_MS <= self._ctx.now
        if known or self._gate is not None or not holders or not due:
            return
        self._caught_up = self._ctx.now
        self._ctx.send(holders[0], Want((self._job.statement.id,)))

    def _redirect(self, peer: PeerId, shard: int) -> None:
        """Somebody takes this peer, or itself, for a seat that it is not: what it has missed are successions."""
        if peer != self._ctx.me:
            self._ctx.deliver(peer, self._tenure.chain(shard))

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """`sender`: on whose link it came. Raises PeerError."""
        self._tenure.heard(sender)
        match statement.kind:
            case "succession" | "renewal":
                self._tenure.on_statement(statement, sender)
            case "admission" | "beacon":
                if self._gate is not None:
                    self._gate.on_statement(statement, sender)
            case "commit" | "reveal" | "freeze" | "verdict" | "adoption":
                self._statement_to_steward(statement.body.shard, statement, sender)
            case "checkpoint":
                self._statement_to_steward(statement.body.task // limits.SHARD_TASKS, statement, sender)
            case _:
                pass

    def _statement_to_steward(self, shard: int, statement: Statement, sender: PeerId) -> None:
        steward = self.steward(shard)
        if steward is not None:
            try:
                steward.on_statement(statement, sender)
            finally:
                self._arm(shard)

    def card_seen(self, card: Card) -> None:
        """The job was announced, by whomsoever."""
        if self._gate is not None:
            self._gate.card_seen(card)

    # --- what changes ------------------------------------------------------------------------------------------------
    def job_changed(self) -> None:
        """Something counts that did not before: seats, members, workers, the end."""
        if self._closed:
            return
        if not self.refused:
            self._open_gate()
        if self._gate is not None:
            self._gate.job_changed()
        self._tenure.job_changed()
        # Few are told at once, many a few at a time.
        self._dirty = deque(self._stewards)
        if self._seats_seen != self._job.seats_version:
            self._seats_seen, self._cursor = self._job.seats_version, 0
        self._look_on()

    def _open_gate(self) -> None:
        """The gate's machine exists while this peer is one of its seats."""
        holds = self._ctx.me in self._job.gate().holders
        if holds and self._gate is None:
            self._gate = Gate(
                self._ctx, self._job, self._population, pledges=self._pledges, open_places=self._open_places
            )
        elif not holds:
            self._gate = None

    def _open_places(self) -> int:
        """About how many results the job lacks: what this peer's stewards lack stands for the others'."""
        spec = self._job.spec
        places = spec.tasks * spec.validate.agree
        seen = sum(len(spec.shard_tasks(shard)) for shard in self._stewards) * spec.validate.agree
        if not seen:
            return places
        lacking = sum(steward.open_places for steward in self._stewards.values())
        return -(-places * min(lacking, seen) // seen)

    def peer_up(self, peer: PeerId) -> None:
        self._tenure.peer_up(peer)
        if self._gate is not None:
            self._gate.peer_up(peer)
        if peer == self._job.submitter and not self.refused:
            self._unsaid |= dict.fromkeys(shard for shard in self._inputs.shards() if self._inputs.has(shard))
            self._wake = self._ctx.now
        if peer == self._job.submitter or peer in self._job.gate().holders:
            self._placed_at, self._placed_pause_ms = self._ctx.now, limits.RETRY_MIN_MS
            self._wake = self._ctx.now
        self._inputs.retry_now()
        for shard in list(self._stewards):
            self._stewards[shard].peer_up(peer)
            self._arm(shard)

    def peer_down(self, peer: PeerId) -> None:
        self._tenure.peer_down(peer)
        if self._gate is not None:
            self._gate.peer_down(peer)
        for shard in list(self._stewards):
            self._stewards[shard].peer_down(peer)
            self._arm(shard)

    def blob_ready(self, part: Part) -> None:
        for shard in self._inputs.ready(part):
            self._inputs_here(shard)
        self._wake = self._ctx.now
        for shard in self._asking(part):
            self._stewards[shard].blob_ready(part)
            self._arm(shard)

    def blob_failed(self, part: Part) -> None:
        self._inputs.failed(part)
        for shard in self._asking(part):
            self._stewards[shard].blob_failed(part)
            self._arm(shard)

    def _asking(self, part: Part) -> list[int]:
        """Shards whose machines need the blob: thousands may be here, few of them do."""
        named = dict.fromkeys(which for _, _, which in self._ctx.owners(part.blob, self._job.job))
        return [shard for shard in named if shard in self._stewards]

    # --- time --------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        if self._closed:
            return None
        gate = None if self._gate is None else self._gate.deadline
        return earliest(self._wake, self._timers.next, gate, self._tenure.deadline, self._inputs.deadline)

    def tick(self) -> None:
        if self._closed:
            return
        if self._wake is not None and self._wake <= self._ctx.now:
            self._wake = None
            self._look_on()
        self._inputs.tick()
        if self._gate is not None and _is_due(self._gate.deadline, self._ctx.now):
            self._gate.tick()
        if _is_due(self._tenure.deadline, self._ctx.now):
            self._tenure.tick()
        self._tick_stewards()

    def _tick_stewards(self) -> None:
        while (name := self._timers.pop_due(self._ctx.now)) is not None:
            assert isinstance(name, int)
            self._stewards[name].tick()
            deadline = self._stewards[name].deadline
            # One that is due again at once is so at the next tick: the others have their turn first.
            self._timers.set(name, None if deadline is None else max(deadline, self._ctx.now + 1))

    def _arm(self, shard: int) -> None:
        self._timers.set(shard, self._stewards[shard].deadline)

    def _look_on(self) -> None:
        """The next few shards and stewards, then what is to be said."""
        if self.refused:
            self._refuse()
            return
        for _ in range(min(limits.SCAN_SHARDS, len(self._dirty))):
            shard = self._dirty.popleft()
            self._stewards[shard].job_changed()
            self._arm(shard)
        end = min(self._cursor + limits.SCAN_SHARDS, self._job.spec.shards)
        for shard in range(self._cursor, end):
            self._hold_or_drop(shard)
        self._cursor = end
        if self._dirty or self._cursor < self._job.spec.shards:
            self._wake_by(self._ctx.next_step())
        self._say_ready()
        self._say_placed()

    def _wake_by(self, when: Millis) -> None:
        self._wake = when if self._wake is None else min(self._wake, when)

    # --- inputs ------------------------------------------------------------------------------------------------------
    def _sources(self, shard: int) -> Iterable[PeerId]:
        """The submitter has them, and so may the other seats, and whoever has run a task of the shard: seats that took
        over may find nobody else."""
        steward = self._stewards.get(shard)
        ran = () if steward is None else steward.ran_by(limits.SOURCES_MAX)
        return dict.fromkeys((self._job.submitter, *self._job.seats(shard).holders, *ran))

    def _hold_or_drop(self, shard: int) -> None:
        if self._ctx.me in self._job.seats(shard).holders:
            if not self._inputs.holds(shard) and self._inputs.take(shard):
                self._inputs_here(shard)
        else:
            self._inputs.drop(shard)
            self._unsaid.pop(shard, None)

    def _inputs_here(self, shard: int) -> None:
        self._unsaid[shard] = None
        self._wake_by(self._ctx.now)
        if shard in self._stewards:
            self._stewards[shard].inputs_ready()
            self._arm(shard)

    def _say_ready(self) -> None:
        for shard in list(self._unsaid)[: limits.SCAN_SHARDS]:
            del self._unsaid[shard]
            self._ctx.send(self._job.submitter, Ready(self._job.job, shard))
        if self._unsaid:
            self._wake_by(self._ctx.now + 1)

    def _refuse(self) -> None:
        reason = clean(self.refused, limits.REASON_MAX)
        self._ctx.send(self._job.submitter, Refused(self._job.job, reason))
        for member in self._job.gate().holders:
            if member != self._ctx.me:
                self._ctx.send(member, Refused(self._job.job, reason), self._job.addrs(member))

    # --- placed ------------------------------------------------------------------------------------------------------
    def _say_placed(self) -> None:
        """Once the inputs of all its seats' shards are here: to submitter and gate, until the job is workable."""
        if self._cursor < self._job.spec.shards or not self._inputs.complete or not self._inputs.shards():
            return
        if self._placed_at is None:
            return
        if self._placed_at > self._ctx.now:
            self._wake_by(self._placed_at)
            return
        mine = self._job.placed().get(self._ctx.me) or self._sign_placed()
        for peer in dict.fromkeys((self._job.submitter, *self._job.gate().holders)):
            if peer != self._ctx.me:
                self._ctx.deliver(peer, (mine,), self._job.addrs(peer))
        self._placed_at = None
        if not self._job.workable:
            self._placed_at = self._ctx.now + self._placed_pause_ms
            self._wake_by(self._placed_at)
            self._placed_pause_ms = min(2 * self._placed_pause_ms, limits.PROBE_MAX_MS)

    def _sign_placed(self) -> Statement:
        placed = self._ctx.sign(Placed(self._job.job, self._pledges.commitment))
        self._ctx.deliver(self._ctx.me, (placed,))
        self._ctx.trace("job_held", job=self._job.job)
        return placed

    # --- begin and end -----------------------------------------------------------------------------------------------
    def restore(self, records: Iterable[Record]) -> None:
        """What a former process of this node had saved: before the first tick."""
        of_shards: dict[int, list[Record]] = {}
        tenure: list[Record] = []
        self._resumed = True
        for record in records:
            machine = record.kind.partition(".")[0]
            if machine == GATE_RECORD and record.value is not None:
                self._pledges.restore(record.value)
            elif machine == TENURE_RECORD:
                tenure.append(record)
            else:
                of_shards.setdefault(int.from_bytes(record.key[32:36], "big"), []).append(record)
        self._tenure.restore(tenure)
        if self._gate is not None:
            self._gate.restored()
        for shard, kept in sorted(of_shards.items()):
            steward = self.steward(shard)
            if steward is not None:
                steward.restore(kept)
                self._arm(shard)

    def close(self) -> None:
        """The job is over here."""
        if self._closed:
            return
        self._closed = True
        for _, steward in self.stewards():
            steward.close()
        self._gate = None
        self._inputs.close()
        self._tenure.close()
        self._pledges.forget()


def _is_due(deadline: Millis | None, now: Millis) -> bool:
    return deadline is not None and deadline <= now
