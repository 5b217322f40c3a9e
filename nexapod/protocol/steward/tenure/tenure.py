"""Keeps the seats of one job filled: one panel member's part (docs/protocol.md, Succession, Caretakers).

It watches the other members, and looks at shards, a few at a time, only while somebody is gone or something has
changed: nothing is kept for a shard that is well. replacing.py decides what to do about one, caretaking.py when nobody
else can, renewal.py who leaves the panel; here the decisions meet the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import assert_never

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.rules import seats as seat_rules
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.rules.succession import Seats, rank
from nexapod.protocol.steward.tenure.ballots import Ballots
from nexapod.protocol.steward.tenure.caretaking import caretaker_due
from nexapod.protocol.steward.tenure.petitions import Petitions
from nexapod.protocol.steward.tenure.presence import Presence
from nexapod.protocol.steward.tenure.renewal import Renewals
from nexapod.protocol.steward.tenure.replacing import (
    Helpless,
    Look,
    Nothing,
    Propose,
    Refuse,
    Scene,
    Sign,
    consent,
    course,
    gone_after_ms,
)
from nexapod.protocol.tables import TableReport
from nexapod.protocol.timers import earliest
from nexapod.protocol.wire.bodies import Authority, Succession
from nexapod.protocol.wire.messages import Alive, Refused
from nexapod.protocol.wire.statements import Statement

JOB_WIDE = ("placed", "renewal", "adoption", "admission", "beacon", "fault")
"""Statements of a job that a new holder needs besides its shard's own."""


@dataclass(slots=True)
class Pending:
    """Another's proposal that this member cannot judge yet."""

    statement: Statement
    sender: PeerId
    until: Millis


class Tenure:
    """`candidates`: see Renewals."""

    def __init__(self, ctx: Context, job: JobState, candidates: Callable[[], Sequence[Candidate]] = tuple) -> None:
        self._ctx = ctx
        self._job = job
        nonces = int.from_bytes(job.job[:4], "big")
        self.presence = Presence(ctx, nonces, job.addrs)
        self._ballots = Ballots(ctx, job.job)
        self._renewals = Renewals(ctx, job, self.presence, self._ballots, candidates)
        self._petitions = Petitions(ctx, job.addrs, limits.PROBE_MAX_MS)
        self._petitioned: dict[int, StatementId] = {}
        """Shards that this node has a proposal of under way."""
        self._pending: dict[StatementId, Pending] = {}
        self._refused: set[PeerId] = set()
        self._briefed: set[PeerId] = set()
        self._yielded: set[StatementId] = set()
        """Caretakers' successions that this member does not contest."""
        self._cursor = 0
        self._scan_at: Millis | None = ctx.now
        self._scan_pause_ms: Millis = limits.RETRY_MIN_MS
        self._asking = False
        """Some shard waits for what a peer will answer."""
        self._panel = job.panel_id
        self.job_changed()

    # --- events ------------------------------------------------------------------------------------------------------
    def tables(self) -> tuple[TableReport, ...]:
        return (TableReport("successions and renewals waiting", len(self._pending), limits.PENDING_MAX),)

    @property
    def deadline(self) -> Millis | None:
        if self._job.closed:
            return None
        pending = min(entry.until for entry in self._pending.values()) if self._pending else None
        renewals, petitions = self._renewals.deadline, self._petitions.deadline
        return earliest(self.presence.deadline, self._scan_at, petitions, pending, renewals)

    def heard(self, peer: PeerId) -> None:
        """Whatever it said: it is there."""
        self.presence.heard(peer)

    def on_message(self, peer: PeerId, message: Alive | Refused) -> None:
        match message:
            case Alive():
                self.presence.answered(peer, message.nonce, message.reached)
                self._look_at_pending()
                if self._asking:
                    self._asking = False
                    self._scan_at = min(self._scan_at or self._ctx.now, self._ctx.now + limits.BATCH_MS)
            case Refused():
                if peer in self._job.members():
                    self._refused.add(peer)
                    self._scan_soon()
            case _:
                assert_never(message)

    def on_statement(self, statement: Statement, sender: PeerId) -> None:
        """A succession or renewal that does not count yet, as the job's state keeps it."""
        if statement.kind == "renewal":
            self._renewals.on_statement(statement, sender)
            return
        whole = self._petitions.signed(statement)
        if whole is not None:
            self._conclude(whole)
        else:
            self._consider(statement, sender)

    def job_changed(self) -> None:
        """Seats or members may be others."""
        self._renewals.job_changed()
        if self._job.panel_id != self._panel:
            self._panel = self._job.panel_id
            self._refused.intersection_update(self._job.members())
            self._briefed.intersection_update(self._job.members())
        self._review_petitions()
        self.presence.watch(self._job.members(), self._close_ones())
        self._scan_soon()

    def peer_up(self, peer: PeerId) -> None:
        self.presence.link_changed(peer)
        self._petitions.hurry(peer)
        self._renewals.peer_up(peer)

    def peer_down(self, peer: PeerId) -> None:
        self.presence.link_changed(peer)

    def tick(self) -> None:
        if self._job.closed:
            return
        self.presence.tick()
        self._look_at_pending()
        if self._scan_at is not None and self._scan_at <= self._ctx.now:
            self._review_petitions()
            self._scan()
        self._petitions.tick()
        self._renewals.tick()

    def restore(self, records: Iterable[Record]) -> None:
        """What a former process of this node had signed."""
        self.presence.begin_anew()
        for record in records:
            self._ballots.restore(record)

    def close(self) -> None:
        """The job is over."""
        self._ballots.forget()

    # --- whom to watch -----------------------------------------------------------------------------------------------
    def _close_ones(self) -> list[PeerId]:
        """The members with whom this one has seats, and the gate's; of jobs of many shards all of the panel.

        Who shares a shard with whom is not looked up for thousands of them.
        """
        if self._job.spec.shards > limits.SCAN_SHARDS:
            return list(self._job.members())
        found = dict.fromkeys(self._job.gate().holders)
        for shard in range(self._job.spec.shards):
            holders = self._job.seats(shard).holders
            if self._ctx.me in holders:
                found |= dict.fromkeys(holders)
        if any(self.presence.silent_ms(peer) >= limits.SEAT_GONE_MS for peer in found):
            return list(self._job.members())
        return list(found)

    def _somebody_is_gone(self) -> bool:
        return any(
            peer in self._refused
            or peer in self._job.faults()
            or self.presence.silent_ms(peer) >= limits.SEAT_GONE_MS - limits.RETRY_MIN_MS
            for peer in self._job.members()
        )

    # --- looking at shards -------------------------------------------------------------------------------------------
    def _scan_soon(self) -> None:
        """Something has changed: look again, and often for a while."""
        self._scan_pause_ms = limits.RETRY_MIN_MS
        self._scan_at = min(self._scan_at or self._ctx.now, self._ctx.now + limits.BATCH_MS)

    def _scan(self) -> None:
        """The next few shards; after the last a pause that grows while nothing changes."""
        if self._cursor == 0:
            self.presence.watch(self._job.members(), self._close_ones())
            if not self._job.reseated and not self._somebody_is_gone():
                self._scan_at = self._next_silence()
                return
        end = min(self._cursor + limits.SCAN_SHARDS, self._job.spec.shards)
        for shard in range(self._cursor, end):
            self._look_after(shard)
        self._cursor = end % self._job.spec.shards
        if self._cursor:
            self._scan_at = self._ctx.now + limits.BATCH_MS
        elif self._somebody_is_gone() or self._petitioned or self._pending:
            self._scan_at = self._ctx.now + self._scan_pause_ms
            self._scan_pause_ms = min(2 * self._scan_pause_ms, limits.SEAT_GONE_MS)
        else:
            self._scan_at = self._next_silence()

    def _next_silence(self) -> Millis:
        """When somebody may have been silent for long enough."""
        silent = [self.presence.silent_since(peer) for peer in self._job.members()]
        since = min((when for when in silent if when is not None), default=self._ctx.now)
        return max(since + limits.SEAT_GONE_MS, self._ctx.now + limits.RETRY_MIN_MS)

    def _scene(self, seats: Seats) -> Scene:
        return Scene(
            me=self._ctx.me,
            seats=seats,
            order=seat_rules.order(self._job.job, seats.shard, self._job.members()),
            silent_ms=self.presence.silent_ms,
            answers=self.presence.answers,
            barred=lambda peer: peer in self._refused or peer in self._job.faults(),
        )

    def _look_after(self, shard: int) -> None:
        seats = self._job.seats(shard)
        if self._is_well(seats) or shard in self._petitioned or self._ctx.me not in self._job.members():
            return
        if self._is_contested(seats):
            self._reclaim(shard)
            return
        scene = self._scene(seats)
        chosen = course(scene)
        match chosen:
            case Propose():
                self._propose_if_confirmed(seats, chosen)
            case Look():
                self._asking = True
                self._probe(chosen.peers)
            case Helpless():
                self._take_care(scene)
            case Nothing():
                pass
            case _:
                assert_never(chosen)

    def _is_well(self, seats: Seats) -> bool:
        """The common case, without the panel's order."""
        full = len(seats.holders) >= min(limits.SEATS, len(self._job.members()))
        patience_ms = gone_after_ms(seats.epoch)
        return (
            full
            and not self._is_contested(seats)
            and not any(
                peer in self._refused
                or peer in self._job.faults()
                or self.presence.silent_ms(peer) >= min(patience_ms, limits.SEAT_GONE_MAX_MS)
                for peer in seats.holders
                if peer != self._ctx.me
            )
        )

    def _probe(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            self.presence.probe(peer)

    # --- proposing ---------------------------------------------------------------------------------------------------
    def _propose_if_confirmed(self, seats: Seats, chosen: Propose) -> None:
        """Sign only what those who must sign too seem to see as well."""
        if not self._ballots.is_free(seats.shard, seats.epoch + 1, rank(chosen.authority)):
            return
        self._asking = True
        if self._confirmations(chosen) >= chosen.needed:
            self._propose(seats, chosen.holders, chosen.authority, chosen.voters)

    def _confirmations(self, chosen: Propose) -> int:
        """Voters that answer, and do not reach those who are gone. A link without an answer is for each to see."""
        unlinked = [peer for peer in chosen.gone if not self._ctx.peers.linked(peer)]
        confirming = 0
        for voter in chosen.voters:
            said = [self.presence.reaches(voter, peer) for peer in unlinked]
            for peer, known in zip(unlinked, said, strict=True):
                if known is None:
                    self.presence.ask(voter, peer)
            if not self.presence.answers(voter):
                self.presence.probe(voter)
            confirming += self.presence.answers(voter) and all(known is False for known in said)
        return confirming

    def _propose(
        self, seats: Seats, holders: tuple[PeerId, ...], authority: Authority, voters: tuple[PeerId, ...]
    ) -> None:
        body = Succession(self._job.job, seats.shard, seats.epoch + 1, holders, authority, seats.id)
        statement = self._ctx.sign(body)
        self._ballots.cast(seats.shard, body.epoch, statement.id, rank(authority))
        self._ctx.trace(
            "succession_proposed", job=self._job.job, shard=seats.shard, epoch=body.epoch, authority=authority
        )
        self._petitions.open(statement, voters)
        self._petitioned[seats.shard] = statement.id
        self._conclude(statement)

    def _usurper(self, shard: int) -> Statement | None:
        """The first caretaker's succession that the seats of a shard rest on."""
        if self._job.seats(shard).epoch == 0:
            return None
        found = (statement for statement in self.chain(shard) if statement.body.authority == "caretaker")
        return next(found, None)

    def _is_contested(self, seats: Seats) -> bool:
        """A caretaker took the shard while this member had a seat of it, and was there to see its quorum."""
        usurper = self._usurper(seats.shard)
        if usurper is None or usurper.id in self._yielded:
            return False
        before = self._job.seats_at(seats.shard, usurper.body.epoch - 1)
        if before is None or self._ctx.me not in before.holders or self.presence.was_away(limits.CARETAKER_MS):
            self._yielded.add(usurper.id)
            return False
        return self._ballots.is_free(seats.shard, usurper.body.epoch, rank("seats"))

    def _reclaim(self, shard: int) -> None:
        """The first of the seats that a caretaker displaced says, with a quorum of them, that they hold the shard."""
        usurper = self._usurper(shard)
        before = None if usurper is None else self._job.seats_at(shard, usurper.body.epoch - 1)
        if before is None:
            return
        self._asking = True
        self._probe(peer for peer in before.holders if not self.presence.answers(peer))
        there = [peer for peer in before.holders if self.presence.answers(peer)]
        if there[0] == self._ctx.me and len(there) >= before.quorum:
            # All of them are asked: among those that answered first may be the caretaker.
            self._propose(before, before.holders, "seats", tuple(p for p in before.holders if p != self._ctx.me))

    # --- caretaking --------------------------------------------------------------------------------------------------
    def _take_care(self, scene: Scene) -> None:
        """Nobody can decide about the shard: after long enough the first that is there takes it alone."""
        self.presence.watch(self._job.members(), self._job.members())
        due = self._caretaker_due(scene)
        free = self._ballots.is_free(scene.seats.shard, scene.seats.epoch + 1, rank("caretaker"))
        if due is not None and due <= self._ctx.now and free and scene.seats.holders != (self._ctx.me,):
            self._ctx.trace("caretaking_begun", job=self._job.job, shard=scene.seats.shard)
            self._propose(scene.seats, (self._ctx.me,), "caretaker", ())

    def _caretaker_due(self, scene: Scene) -> Millis | None:
        since = self.presence.silent_since
        before = scene.order[: scene.order.index(self._ctx.me)] if self._ctx.me in scene.order else scene.order
        ahead = sum(1 for peer in before if since(peer) is None)
        return caretaker_due([since(peer) for peer in scene.seats.holders], [since(p) for p in scene.order], ahead)

    # --- signing -----------------------------------------------------------------------------------------------------
    def _consider(self, statement: Statement, sender: PeerId) -> None:
        """Sign another's proposal, or find out first whether it is true."""
        body: Succession = statement.body
        seats = self._seats_before(body)
        if seats is None:
            if not self._job.counts(statement):
                self._answer_stale(body.shard, sender)
            return
        if self._ctx.me in statement.signers:
            return
        if not self._ballots.may_sign(body.shard, body.epoch, statement.id, rank(body.authority)):
            return
        scene = self._scene(seats)
        due = self._caretaker_due(scene) if body.authority == "caretaker" else None
        answer = self._consent(body, scene, due is not None and due <= self._ctx.now)
        match answer:
            case Sign():
                self._pending.pop(statement.id, None)
                self._sign(statement, sender)
            case Look():
                self._probe(answer.peers)
                self._keep_pending(statement, sender)
            case Refuse():
                self._pending.pop(statement.id, None)
                self._ctx.trace("succession_refused", job=self._job.job, shard=body.shard, reason=answer.reason)
            case _:
                assert_never(answer)

    def _consent(self, body: Succession, scene: Scene, caretaker: bool) -> Sign | Look | Refuse:
        """Seats that a caretaker displaced may say that they hold the shard: all of them are there."""
        if body.holders == scene.seats.holders and scene.seats.id != self._job.seats(body.shard).id:
            mine = body.authority == "seats" and self._is_contested(scene.seats)
            return Sign() if mine else Refuse("not this member's to sign")
        return consent(body, scene, caretaker)

    def _seats_before(self, body: Succession) -> Seats | None:
        """The seats that a succession follows, if those it would make are wanted; None: it is behind."""
        if body.shard >= self._job.spec.shards:
            return None
        now = self._job.seats(body.shard)
        if now.id == body.previous:
            return now
        usurper = self._usurper(body.shard)
        displaced = usurper is not None and usurper.body.previous == body.previous
        return self._job.seats_at(body.shard, body.epoch - 1) if displaced else None

    def _sign(self, statement: Statement, sender: PeerId) -> None:
        body: Succession = statement.body
        self._ballots.cast(body.shard, body.epoch, statement.id, rank(body.authority))
        signed = self._ctx.cosign(statement)
        # To itself too: the job's state gathers signatures, and whoever completes it makes it known.
        self._ctx.deliver(self._ctx.me, (signed,))
        if sender != self._ctx.me:
            self._ctx.deliver(sender, (signed,), self._job.addrs(sender))

    def _keep_pending(self, statement: Statement, sender: PeerId) -> None:
        if statement.id not in self._pending and len(self._pending) < limits.PENDING_MAX:
            until = self._ctx.now + 2 * limits.SEAT_GONE_MS
            self._pending[statement.id] = Pending(statement, sender, until)
            self._scan_soon()

    def _look_at_pending(self) -> None:
        for id, entry in list(self._pending.items()):
            if entry.until <= self._ctx.now or self._seats_before(entry.statement.body) is None:
                self._pending.pop(id, None)
            else:
                self._consider(entry.statement, entry.sender)

    def _answer_stale(self, shard: int, sender: PeerId) -> None:
        """It does not know how the seats have changed since."""
        if shard < self._job.spec.shards and sender != self._ctx.me and sender in self._job.members():
            chain = self.chain(shard)
            if chain:
                self._ctx.deliver(sender, chain)

    def chain(self, shard: int) -> list[Statement]:
        """The successions of a shard that count, in their order."""
        found: list[Statement] = []
        seats = self._job.seats(shard)
        statement = self._job.get(seats.id) if seats.epoch else None
        while statement is not None and statement.kind == "succession":
            found.append(statement)
            statement = self._job.get(statement.body.previous)
        return found[::-1]

    # --- what has come of it -----------------------------------------------------------------------------------------
    def _review_petitions(self) -> None:
        for statement in self._petitions.all():
            self._close_if_over(statement)

    def _close_if_over(self, statement: Statement) -> None:
        """It counts, does not follow the present seats any more, or is not true any more."""
        whole = self._job.get(statement.id) or statement
        if self._job.counts(whole):
            self._announce(whole)
        else:
            seats = self._seats_before(statement.body)
            if seats is None or self._is_refuted(statement.body, seats):
                self._close(statement)

    def _close(self, statement: Statement) -> None:
        self._petitions.close(statement.id)
        self._petitioned.pop(statement.body.shard, None)

    def _is_refuted(self, body: Succession, seats: Seats) -> bool:
        """Somebody whom it removes is back."""
        removed = [peer for peer in seats.holders if peer not in body.holders and peer not in self._refused]
        return any(self.presence.answers(peer) and peer not in self._job.faults() for peer in removed)

    def _conclude(self, statement: Statement) -> None:
        seats = self._seats_before(statement.body)
        if seats is not None and self._is_signed(statement, seats):
            self._ctx.deliver(self._ctx.me, (statement,))
            self._announce(statement)

    def _announce(self, statement: Statement) -> None:
        """It counts: make it known to all members, and tell the new holders what they hold."""
        self._close(statement)
        body: Succession = statement.body
        before = self._job.seats_at(body.shard, body.epoch - 1)
        for peer in body.holders:
            if peer != self._ctx.me and (before is None or peer not in before.holders):
                self._brief(peer, body.shard)
        for peer in dict.fromkeys((*body.holders, *self._job.members(), *self._job.owners)):
            if peer != self._ctx.me and self.presence.silent_since(peer) is None:
                told = (statement, *self._job.overruled(body.shard))
                self._ctx.deliver(peer, told, self._job.addrs(peer))
        self._ctx.trace("seats_changed", job=self._job.job, shard=body.shard, epoch=body.epoch, holders=body.holders)

    def _is_signed(self, statement: Statement, seats: Seats) -> bool:
        body: Succession = statement.body
        match body.authority:
            case "seats":
                return seats.signed_by_quorum(statement.signers)
            case "panel":
                members = self._job.members()
                return sum(1 for peer in statement.signers if peer in members) >= len(members) // 2 + 1
            case "caretaker":
                return all(peer in statement.signers for peer in body.holders)
            case "submitter":
                return False
            case _:
                assert_never(body.authority)

    def _brief(self, peer: PeerId, shard: int) -> None:
        """A new holder gets the job, what counts for all of it (once), and the shard's successions."""
        told: list[Statement] = []
        if peer not in self._briefed:
            self._briefed.add(peer)
            wide = [statement for statement in self._job.statements() if statement.kind in JOB_WIDE]
            told = [self._job.statement, *(one for one in wide if one.kind in ("renewal", "placed"))]
            told += self.chain(0) + [one for one in wide if one.kind not in ("renewal", "placed")]
        self._ctx.deliver(peer, (*told, *self.chain(shard)), self._job.addrs(peer))
