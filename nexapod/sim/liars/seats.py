"""Stewards that lie: mute ones, ones that sign anything or twice, that withhold chance or take others' seats."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.events import Effect, Event, Received, Send
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import Digest, JobId, Millis, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules import beacon as beacons
from nexapod.protocol.rules import lottery
from nexapod.protocol.wire import bodies, messages, statements
from nexapod.protocol.wire.bodies import Admission, Beacon, Freeze, Succession, Verdict
from nexapod.protocol.wire.messages import Bid, Claim, Deliver, Renew, Value
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner
from nexapod.sim.liars.base import Liar
from nexapod.sim.liars.envelopes import lied, message_of, rewritten, statements_of
from nexapod.sim.liars.repeating import Repeating

USURP_EVERY_MS: Final = 2_000
INVENTED: Final = 4
TOLD_MAX: Final = 16


class MuteSeat(Liar):
    """Takes its seat, and answers no worker and no other seat from then on; it still answers whether it is there."""

    def swallows(self, node: Node, event: Event) -> bool:
        if not isinstance(event, Received):
            return False
        message = message_of(event.frame)
        mute = isinstance(message, Bid | Claim | Renew | messages.Lease | messages.Collect | Value)
        if not mute:
            kinds = {statement.kind for statement in statements_of(event.frame)}
            mute = bool(kinds & {"commit", "reveal", "freeze", "verdict", "admission", "beacon"})
        self.attacks += mute
        return mute


class LyingSeat(Liar):
    """Signs that good tasks have failed, that bad ones have not, and that another result than the first was chosen."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = rewritten(effects, "verdict", self._lie)
        self.attacks += lied(effects, changed)
        return changed

    def _lie(self, statement: Statement) -> Statement:
        body: Verdict = statement.body
        items = tuple(self._turned(item) for item in body.items)
        return statements.make(replace(body, items=items), self.signer)

    def _turned(self, item: bodies.VerdictItem) -> bodies.VerdictItem:
        if item.outcome == "failed":
            return replace(item, outcome="accepted", representative=0, pairs=((0, 1),), reason="")
        if self.rng.chance(500):
            return replace(item, representative=item.representative + 1)
        return replace(item, outcome="failed", representative=0, pairs=(), reason="I say so")


class HastySeat(Liar):
    """As honest as its node, whose clock runs many times too fast: to it all are late, gone, and not to be waited for.
    Its plan must say so (`drift`)."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        self.attacks += sum(1 for effect in effects if isinstance(effect, Send))
        return effects


class StubbornSeat(Liar):
    """Never mute, and never of use: each freeze that it proposes names a commit that nobody has seen."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = rewritten(effects, "freeze", self._spoil)
        self.attacks += lied(effects, changed)
        return changed

    def _spoil(self, statement: Statement) -> Statement:
        body: Freeze = statement.body
        if statement.signers != (self.me,):
            return statement
        last = StatementId(b"\xff" * 32)
        return statements.make(replace(body, commits=(*body.commits[:-1], last)), self.signer)


class TwoFacedSeat(Liar):
    """Signs two freezes of one task and round, and two verdicts: one for each of the other seats."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = []
        for effect in effects:
            if isinstance(effect, Send) and self.rng.chance(500):
                effect = rewritten([effect], "freeze", self._shorter)[0]
            changed.append(effect)
        self.attacks += lied(effects, changed)
        return changed

    def _shorter(self, statement: Statement) -> Statement:
        body: Freeze = statement.body
        items = tuple(replace(item, entries=item.entries[:1]) for item in body.items)
        return statements.make(replace(body, items=items), self.signer)


class BeaconWithholder(Liar):
    """Hears the others' values and never shows its own."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        shown = [e for e in effects if isinstance(e, Send) and isinstance(message_of(e.frame), Value)]
        self.attacks += len(shown)
        return [effect for effect in effects if effect not in shown]


class BeaconAborter(Liar):
    """Shows its value last, and only if the beacon suits it better with it than without: it sees the others' first."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self.shown = 0
        """Values that it was content to show."""
        self._admissions: dict[tuple[int, int], Statement] = {}
        self._others: dict[tuple[int, int], dict[PeerId, bytes]] = {}
        self._held: dict[tuple[int, int], dict[PeerId, tuple[Value, Effect]]] = {}

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        passed: list[Effect] = []
        for effect in effects:
            message = message_of(effect.frame) if isinstance(effect, Send) else None
            if isinstance(effect, Send) and isinstance(message, Value) and message.author == self.me:
                self._held.setdefault((message.epoch, message.round), {})[effect.peer] = (message, effect)
            else:
                passed.append(effect)
                self._note(effect.frame if isinstance(effect, Send) else b"")
        return passed

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        if not isinstance(event, Received):
            return []
        self._note(event.frame)
        message = message_of(event.frame)
        if isinstance(message, Value) and message.author != self.me:
            self._others.setdefault((message.epoch, message.round), {})[message.author] = message.value
        return [effect for round_ in list(self._held) for effect in self._decided(round_)]

    def _note(self, frame: bytes) -> None:
        for statement in statements_of(frame) if frame else ():
            if statement.kind == "admission":
                self._admissions[statement.body.epoch, statement.body.round] = statement

    def _decided(self, round_: tuple[int, int]) -> list[Effect]:
        """Once the others' values are here: what it has held back, or nothing."""
        admission, others = self._admissions.get(round_), self._others.get(round_, {})
        if admission is None or len(others) < limits.SEATS - 1:
            return []
        held = self._held.pop(round_)
        value = next(iter(held.values()))[0].value
        if self._worth(admission, {**others, self.me: value}) <= self._worth(admission, others):
            self.shown += 1
            return [effect for _, effect in held.values()]
        self.attacks += 1
        return []

    def _worth(self, admission: Statement, values: dict[PeerId, bytes]) -> bytes:
        """The first task's ticket of its own group by such a beacon: the smaller, the better."""
        body = Beacon(
            admission.body.job, admission.body.epoch, admission.body.round, admission.id, beacons.ordered(values)
        )
        return lottery.tickets(Digest(beacons.value(body)), body.job, 0, self.me, 1)


class Inventor(Liar):
    """As a seat of the gate it admits workers that nobody has seen, and as a seat vouches for their commits."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = rewritten(effects, "admission", self._invent)
        self.attacks += lied(effects, changed)
        return changed

    def _invent(self, statement: Statement) -> Statement:
        body: Admission = statement.body
        keys = [HashSigner(self.rng.fork("invented", n).next(), "invented").peer for n in range(INVENTED)]
        workers = {**dict(body.workers), **{key: key for key in keys}}
        ordered = sorted(workers.items(), key=lambda pair: key_of_peer_id(pair[0]))
        return statements.make(replace(body, workers=tuple(ordered[:256])), self.signer)


class Usurper(Repeating):
    """Signs successions that put itself and its gang into honest peers' seats, again and again, by every authority."""

    every_ms = USURP_EVERY_MS

    def attack(self, node: Node) -> list[Effect]:
        return [effect for job in self.jobs.values() for effect in self._usurp(job)]

    def _usurp(self, job: Statement) -> list[Effect]:
        holders = tuple(sorted(member.peer for member in self.gang.members))[:3]
        words: tuple[bodies.Authority, ...] = ("panel", "seats", "caretaker", "submitter")
        sent: list[Effect] = []
        for authority in words:
            body = Succession(job.id, 0, 1, holders, authority, job.id)  # type: ignore[arg-type]
            sent += _to_all(self, body)
        return sent


class Walker(Repeating):
    """Takes the shard as its caretaker from whoever holds it now, and again from whoever takes it back."""

    every_ms = USURP_EVERY_MS

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._seats: dict[JobId, tuple[int, StatementId]] = {}
        """Of each job the seats of its first shard that it has heard of last: their epoch, and by what."""
        self._own: set[StatementId] = set()

    def _learn(self, event: Event) -> None:
        super()._learn(event)
        for statement in statements_of(event.frame) if isinstance(event, Received) else ():
            if statement.kind == "succession" and statement.body.shard == 0:
                self._note(statement)

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        """Nobody hears from it that it holds nothing any more."""
        return rewritten(effects, "succession", lambda statement: statement if statement.id in self._own else None)

    def _note(self, statement: Statement) -> None:
        body: Succession = statement.body
        if body.epoch >= self._seats.get(body.job, (0, body.job))[0] and statement.id not in self._own:
            self._seats[body.job] = (body.epoch, statement.id)

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job in self.jobs:
            epoch, previous = self._seats.get(job, (0, StatementId(job)))
            if previous in self._own:
                continue
            body = Succession(job, 0, epoch + 1, (self.me,), "caretaker", previous)
            statement = statements.make(body, self.signer)
            self._seats[job] = (body.epoch, statement.id)
            self._own.add(statement.id)
            sent += _to_all(self, body)
        return sent


class Stopper(Repeating):
    """Tells workers, with the signatures of its gang, that their tasks are decided, or closed, or lost."""

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job, statement in self.jobs.items():
            tasks = range(min(statement.body.tasks, 64))
            items = tuple(bodies.VerdictItem(t, 0, "failed", 0, (), (), "enough") for t in tasks)
            sent += _to_all(self, Verdict(job, 0, 0, (StatementId(bytes(32)),), items))
            for standing in ("decided", "closed", "lost"):
                status = messages.Status(job, 0, tuple((task, standing) for task in tasks))
                sent += [self.send(target.peer, status) for target in self.others[:TOLD_MAX]]
        return sent


def _to_all(liar: Liar, body: Succession | Verdict) -> list[Effect]:
    """A statement with the signatures of its gang, to everybody."""
    statement = statements.make(body, liar.gang.members[0])
    for member in liar.gang.members[1:]:
        statement = statements.cosign(statement, member)
    return [liar.send(target.peer, Deliver((statement.envelope,))) for target in liar.others[:TOLD_MAX]]
