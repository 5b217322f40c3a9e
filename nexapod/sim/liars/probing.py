"""A peer that asks for what must be refused: of what it would say, copies in which one thing each is only just wrong.

It keeps a list of them: an honest peer that signs one has not looked. Those whose form is right it says beside the
right one, all of them; those that cost it points, by which it would soon be banned, in its place, now and then. So
every rule of what a seat signs is tried from outside, one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final

from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Effect, Event, Received, Send
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import Digest, JobId, Millis, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.wire import bodies, messages, statements
from nexapod.protocol.wire.messages import Deliver
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify
from nexapod.sim.liars.base import Liar
from nexapod.sim.liars.envelopes import message_of, statements_of

PERMILLE: Final = 250
SHOWN_WRONGLY: Final = 600
HARSH: Final = (
    *("a task twice", "a place outside", "a commit outside", "a freeze outside", "another group", "not sorted"),
    *("a worker twice", "commitments not sorted", "nobody agrees", "who agrees is withheld", "another round"),
    *("another epoch", "accepted, as it is", "a value to which it was not bound"),
)
"""Whoever reads these sees that they are wrong, and by whom."""
ROUNDS_AHEAD: Final = 5
EPOCHS_AHEAD: Final = 7
"""The next one may yet come, and what is of it be right."""
Wrong = tuple[str, Any]
"""What is wrong with it, and the body."""


class Prober(Liar):
    """Of what it proposes, and of its results, there are some that nobody may sign, or count."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self._tried: set[tuple[PeerId, StatementId]] = set()
        self._agree: dict[JobId, int] = {}

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        for statement in statements_of(event.frame) if isinstance(event, Received) else ():
            if statement.kind == "job":
                self._agree[JobId(statement.id)] = statement.body.validate.agree
        return []

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        said: list[Effect] = []
        for effect in effects:
            message = message_of(effect.frame) if isinstance(effect, Send) else None
            if isinstance(effect, Send) and isinstance(message, Deliver):
                said += [self._beside(effect.peer, envelope) for envelope in self._fine(effect.peer, message)]
                effect = self._instead(effect, message)
            said.append(effect)
        return said

    def _fine(self, peer: PeerId, message: Deliver) -> Iterator[bytes]:
        """Copies of its proposals whose form is right, for whom has had none yet."""
        for envelope in message.envelopes:
            statement = statements.decode(envelope, verify)
            key = peer, statement.id
            if statement.signers != (self.me,) or statement.kind not in statements.COSIGNED or key in self._tried:
                continue
            self._tried.add(key)
            for what, body in self._wrong(statement):
                wrong = None if what in HARSH else self._made(statement, what, body)
                if wrong is not None:
                    yield wrong

    def _beside(self, peer: PeerId, envelope: bytes) -> Effect:
        self.attacks += 1
        return self.send(peer, Deliver((envelope,)))

    def _instead(self, effect: Send, message: Deliver) -> Effect:
        shows = any(statements.read(envelope).kind == "reveal" for envelope in message.envelopes)
        if not self.rng.chance(SHOWN_WRONGLY if shows else PERMILLE):
            return effect
        envelopes = tuple(self._other(envelope) for envelope in message.envelopes)
        if envelopes == message.envelopes:
            return effect
        self.attacks += 1
        return replace(effect, frame=messages.encode(Deliver(envelopes)))

    def _other(self, envelope: bytes) -> bytes:
        """Only of what it has signed alone: what others have signed too they have looked at."""
        statement = statements.decode(envelope, verify)
        found = list(self._wrong(statement)) if statement.signers == (self.me,) else []
        if statement.kind in statements.COSIGNED:
            found = [one for one in found if one[0] in HARSH]
        if not found:
            return envelope
        return self._made(statement, *self.rng.pick(found)) or envelope

    def _made(self, statement: Statement, what: str, body: Any) -> bytes | None:
        """None: what came of it nobody can encode."""
        try:
            wrong = statements.make(body, self.signer)
            statements.decode(wrong.envelope, verify)
        except (PeerError, ValueError, AssertionError):
            return None
        if wrong.id == statement.id:
            return None
        self.wrong[wrong.id] = f"{statement.kind}: {what}"
        return wrong.envelope

    def _wrong(self, statement: Statement) -> Iterator[Wrong]:
        body = statement.body
        agree = self._agree.get(getattr(body, "job", JobId(b"")), 1)
        match body:
            case bodies.Freeze():
                yield from self._freezes(body, agree)
            case bodies.Verdict():
                yield from self._verdicts(body, agree)
            case bodies.Admission():
                # Each of a round of its own: two of one would prove that it lies.
                for ahead, (what, other) in enumerate(self._admissions(body), 1):
                    yield what, replace(other, round=body.round + ahead)
            case bodies.Beacon():
                yield from self._beacons(body)
            case bodies.Adoption():
                yield from self._adoptions(body)
            case bodies.Reveal():
                yield from self._reveals(body)

    # --- one thing each --------------------------------------------------------------------------------------------
    def _freezes(self, body: bodies.Freeze, agree: int) -> Iterator[Wrong]:
        def items(change: Callable[[bodies.FreezeItem], bodies.FreezeItem]) -> bodies.Freeze:
            return replace(body, items=tuple(change(item) for item in body.items))

        if agree > 1:
            yield "one commit too few", items(lambda item: replace(item, entries=item.entries[: agree - 1]))
        if any(len(item.entries) > 1 for item in body.items):
            yield "not in the order of the draw", items(lambda item: replace(item, entries=item.entries[::-1]))
        first = body.items[0].entries[0]
        worker = body.workers[first[0]][0]
        groups = tuple((peer, "elsewhere" if peer == worker else group) for peer, group in body.workers)
        yield "another group", replace(body, workers=groups)
        strangers = ((self._invented(), group) if peer == worker else (peer, group) for peer, group in body.workers)
        yield "a worker that nobody has seen", _resorted(body, list(strangers))
        commits = (self._digest(), *body.commits[1:])
        yield "a commit that nobody has seen", _recommitted(body, list(commits))
        yield "a later epoch", replace(body, epoch=body.epoch + EPOCHS_AHEAD)
        yield "a round far ahead", items(lambda item: replace(item, round=item.round + ROUNDS_AHEAD))
        yield "a task twice", replace(body, items=(*body.items, body.items[-1]))
        yield "a place outside", items(lambda item: replace(item, entries=(*item.entries, (len(body.workers), 0))))
        last = len(body.commits)
        yield (
            "a commit outside",
            items(lambda item: replace(item, entries=((item.entries[0][0], last), *item.entries[1:]))),
        )

    def _verdicts(self, body: bodies.Verdict, agree: int) -> Iterator[Wrong]:
        def items(change: Callable[[bodies.VerdictItem], bodies.VerdictItem]) -> bodies.Verdict:
            return replace(body, items=tuple(change(item) for item in body.items))

        accepted = [item for item in body.items if item.outcome == "accepted"]
        if len(accepted) == len(body.items):
            yield "failed, though enough agree", items(_failed)
            every = tuple(
                range(1 + max((place for item in body.items for pair in item.pairs for place in pair), default=0))
            )
            yield "failed, and all withheld", items(lambda item: replace(_failed(item), pairs=(), missing=every))
            yield "not the first", items(lambda item: replace(item, representative=item.representative + 1))
            if agree > 1:
                yield "nobody agrees", items(lambda item: replace(item, pairs=()))
                yield "who agrees is withheld", items(lambda item: replace(item, missing=item.pairs[0][1:]))
        elif not accepted and agree > 1:
            good: dict[str, Any] = {"outcome": "accepted", "representative": 0, "reason": ""}
            pairs = tuple((i, j) for j in range(agree) for i in range(j))
            yield (
                "accepted, though nobody agrees",
                items(lambda item: replace(item, pairs=tuple(sorted(pairs)), **good)),
            )
            yield "accepted, as it is", items(lambda item: replace(item, **good))
        yield "a later epoch", replace(body, epoch=body.epoch + EPOCHS_AHEAD)
        yield "a freeze that nobody has seen", replace(body, freezes=(StatementId(self._digest()),))
        yield "a task twice", replace(body, items=(*body.items, body.items[-1]))
        yield "a freeze outside", items(lambda item: replace(item, freeze=len(body.freezes)))

    def _admissions(self, body: bodies.Admission) -> Iterator[Wrong]:
        worker = body.workers[0][0]
        groups = tuple((peer, "elsewhere" if peer == worker else group) for peer, group in body.workers)
        yield "another group", replace(body, workers=groups)
        workers = sorted([*body.workers, (self._invented(), "nowhere")], key=lambda pair: key_of_peer_id(pair[0]))
        yield "a worker that nobody has seen", replace(body, workers=tuple(workers))
        if len(body.workers) > 1:
            yield "not sorted", replace(body, workers=body.workers[::-1])
        yield "a worker twice", replace(body, workers=(*body.workers, body.workers[-1]))
        yield "a later epoch", replace(body, epoch=body.epoch + EPOCHS_AHEAD)
        bound = body.commitments
        outsider = sorted([*bound[:2], (self._invented(), self._digest())], key=lambda pair: key_of_peer_id(pair[0]))
        yield "an outsider is bound", replace(body, commitments=tuple(outsider))
        if len(bound) > 1:
            yield "commitments not sorted", replace(body, commitments=bound[::-1])

    def _beacons(self, body: bodies.Beacon) -> Iterator[Wrong]:
        mine = tuple(pair for pair in body.values if pair[0] == self.me)
        if mine and len(body.values) > 1:
            yield "others' values left out", replace(body, values=mine)
        changed = tuple((peer, self._digest() if peer == self.me else value) for peer, value in body.values)
        if mine:
            yield "a value to which it was not bound", replace(body, values=changed)
        yield "another round", replace(body, round=body.round + 1)
        yield "another epoch", replace(body, epoch=body.epoch + EPOCHS_AHEAD)
        yield "another admission", replace(body, admission=StatementId(self._digest()))
        if len(body.values) > 1:
            yield "not sorted", replace(body, values=body.values[::-1])

    def _adoptions(self, body: bodies.Adoption) -> Iterator[Wrong]:
        yield (
            "what nobody has seen",
            replace(body, statements=tuple(sorted((*body.statements, StatementId(self._digest()))))),
        )
        probes = sorted(id for id, what in self.wrong.items() if what.startswith(("freeze", "verdict", "admission")))
        if probes:
            yield "what no quorum has signed", replace(body, statements=tuple(sorted({*body.statements, probes[0]})))
        yield "a later epoch", replace(body, epoch=body.epoch + EPOCHS_AHEAD)

    def _reveals(self, body: bodies.Reveal) -> Iterator[Wrong]:
        def items(**changed: Any) -> bodies.Reveal:
            return replace(body, items=tuple(replace(item, **changed) for item in body.items))

        yield "another salt", items(salt=self._digest()[:16])
        yield "another exit", items(exit=body.items[0].exit + 1)
        yield "another outcome", items(outcome="failed", outputs=())
        yield "another checkpoint", items(resumed=StatementId(self._digest()))
        yield "another commit", items(commit=StatementId(self._digest()))

    def _digest(self) -> Digest:
        return Digest(self.rng.bytes(32))

    def _invented(self) -> PeerId:
        return HashSigner(self.rng.next(), "invented").peer


def _failed(item: bodies.VerdictItem) -> bodies.VerdictItem:
    return replace(item, outcome="failed", representative=0, reason="I say so")


def _resorted(body: bodies.Freeze, workers: list[tuple[PeerId, str]]) -> bodies.Freeze:
    """With these workers in place of its own, in their order."""
    order = sorted(range(len(workers)), key=lambda place: key_of_peer_id(workers[place][0]))
    now = {place: at for at, place in enumerate(order)}
    items = tuple(replace(item, entries=tuple((now[w], c) for w, c in item.entries)) for item in body.items)
    return replace(body, workers=tuple(workers[place] for place in order), items=items)


def _recommitted(body: bodies.Freeze, commits: list[bytes]) -> bodies.Freeze:
    order = sorted(range(len(commits)), key=lambda place: commits[place])
    now = {place: at for at, place in enumerate(order)}
    items = tuple(replace(item, entries=tuple((w, now[c]) for w, c in item.entries)) for item in body.items)
    return replace(body, commits=tuple(StatementId(commits[place]) for place in order), items=items)
