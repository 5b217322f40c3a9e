"""Stewards that lie: mute ones, ones that sign anything or twice, that withhold chance or take others' seats."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from nexapod.protocol.types import Millis
from nexapod.protocol.v3.events import Effect, Event, Received, Send
from nexapod.protocol.v3.node.node import Node
from nexapod.protocol.v3.wire import bodies, messages, statements
from nexapod.protocol.v3.wire.bodies import Admission, Freeze, Succession, Verdict
from nexapod.protocol.v3.wire.messages import Bid, Claim, Deliver, Renew, Value
from nexapod.protocol.v3.wire.statements import Statement
from nexapod.sim.v3.keys import HashSigner
from nexapod.sim.v3.liars.base import Liar
from nexapod.sim.v3.liars.envelopes import message_of, rewritten, statements_of

USURP_EVERY_MS: Final = 2_000
INVENTED: Final = 4


class MuteSeat(Liar):
    """Takes its seat, and answers no worker and no other seat from then on; it still answers whether it is there."""

    def swallows(self, node: Node, event: Event) -> bool:
        if not isinstance(event, Received):
            return False
        message = message_of(event.frame)
        if isinstance(message, Bid | Claim | Renew | messages.Lease | messages.Collect | Value):
            return True
        kinds = {statement.kind for statement in statements_of(event.frame)}
        return bool(kinds & {"commit", "reveal", "freeze", "verdict", "admission", "beacon"})


class LyingSeat(Liar):
    """Signs that good tasks have failed, and that bad ones have not."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return rewritten(effects, "verdict", self._lie)

    def _lie(self, statement: Statement) -> Statement:
        body: Verdict = statement.body
        items = tuple(
            replace(item, outcome="failed", representative=0, pairs=(), reason="I say so")
            if item.outcome == "accepted"
            else replace(item, outcome="accepted", representative=0, pairs=((0, 1),), reason="")
            for item in body.items
        )
        return statements.make(replace(body, items=items), self.signer)


class TwoFacedSeat(Liar):
    """Signs two freezes of one task and round, and two verdicts: one for each of the other seats."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        changed = []
        for effect in effects:
            if isinstance(effect, Send) and self.rng.chance(500):
                effect = rewritten([effect], "freeze", self._shorter)[0]  # noqa: PLW2901
            changed.append(effect)
        return changed

    def _shorter(self, statement: Statement) -> Statement:
        body: Freeze = statement.body
        items = tuple(replace(item, entries=item.entries[:1]) for item in body.items)
        return statements.make(replace(body, items=items), self.signer)


class BeaconWithholder(Liar):
    """Hears the others' values and never shows its own."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return [e for e in effects if not (isinstance(e, Send) and isinstance(message_of(e.frame), Value))]


class Inventor(Liar):
    """As a seat of the gate it admits workers that nobody has seen, and as a seat vouches for their commits."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return rewritten(effects, "admission", self._invent)

    def _invent(self, statement: Statement) -> Statement:
        body: Admission = statement.body
        keys = [HashSigner(self.rng.fork("invented", n).next(), "invented").peer for n in range(INVENTED)]
        workers = {**dict(body.workers), **{key: key for key in keys}}
        ordered = sorted(workers.items(), key=lambda pair: statements.key_of_peer_id(pair[0]))
        return statements.make(replace(body, workers=tuple(ordered[:256])), self.signer)


class Usurper(Liar):
    """Signs successions that put itself and its gang into honest peers' seats, again and again."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self._at: Millis = 0

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        if now < self._at or not isinstance(event, Received):
            return []
        self._at = now + USURP_EVERY_MS
        found: list[Effect] = []
        for statement in statements_of(event.frame):
            if statement.kind == "job":
                found += self._usurp(statement)
        return found

    def _usurp(self, job: Statement) -> list[Effect]:
        holders = tuple(sorted(member.peer for member in self.gang.members))[:3]
        words: tuple[bodies.Authority, ...] = ("panel", "seats", "caretaker", "submitter")
        sent: list[Effect] = []
        for authority in words:
            body = Succession(job.id, 0, 1, holders, authority, job.id)  # type: ignore[arg-type]
            statement = statements.make(body, self.gang.members[0])
            for member in self.gang.members[1:]:
                statement = statements.cosign(statement, member)
            sent += [self.send(target.peer, Deliver((statement.envelope,))) for target in self.others[:16]]
        return sent
