"""Peers that break the rules. Each wraps an honest node and changes what goes in or comes out.

A liar signs with its own key only, and lies alone. What two colluding peers of different operator groups can do to a
job with agree = 2 is outside of the fault model: two equal signed results are what such a job asks for. A copycat
that is one of the stewards sees a first wrong result before it runs a tie-break, which comes to the same; so where a
world has a copycat and anybody else who claims wrong results, as copycats do too, its copycats are no stewards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nexapod.protocol import limits, messages, statements
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Effect, Publish, Received, Send
from nexapod.protocol.messages import Collect, Grant, Have, Offer, Query, Renew, Status
from nexapod.protocol.node import Node
from nexapod.protocol.statements import Bid, Commit, Reveal, Signer, Statement, Verdict, commitment, make, output_root
from nexapod.protocol.types import BlobRef, Digest, JobSpec, Millis, PeerId, RunResult, TaskId
from nexapod.sim.keys import verify
from nexapod.sim.plan import LiarKind
from nexapod.sim.rng import Rng
from nexapod.sim.truth import checkpoint_blob, poison, wrong_result

REMEMBERED_MAX = 256
PRY_EVERY_MS = 200


class Liar:
    """The base: as honest as its node. `others` are all peers of the world."""

    def __init__(self, signer: Signer, rng: Rng, others: tuple[PeerId, ...]) -> None:
        self.signer = signer
        self.me = signer.peer
        self.rng = rng
        self.others = tuple(p for p in others if p != self.me)

    def hears(self, node: Node, event: Received) -> list[Effect]:
        """Sees a frame before its node does. What it returns is sent."""
        return []

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        """What is done instead of what its node wants done."""
        return effects

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        """The result claimed and after how long; None = never."""
        return honest, honest.usage.wall_ms

    def keeps(self, task: TaskId) -> BlobRef:
        """What it keeps half-way."""
        return checkpoint_blob(task)

    def send(self, peer: PeerId, message: messages.Message) -> Send:
        return Send(peer, messages.encode(message), ())


class Wrong(Liar):
    """Claims something else than what it should have computed."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return wrong_result(task, self.me.encode(), 20), 20


class Sybil(Liar):
    """One of several that claim the same wrong result, all in one operator group."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return wrong_result(task, b"sybils", 20), 20


class Copycat(Liar):
    """Computes nothing. It commits to junk at once, asks everybody for results, and claims the first it sees."""

    def __init__(self, signer: Signer, rng: Rng, others: tuple[PeerId, ...]) -> None:
        super().__init__(signer, rng, others)
        self._seen: dict[TaskId, Statement] = {}
        self._pried: Millis = 0

    def hears(self, node: Node, event: Received) -> list[Effect]:
        found: list[Effect] = []
        for statement in _offered(event.frame):
            body = statement.body
            if not isinstance(body, Reveal) or statement.author == self.me:
                continue
            task = TaskId(body.job, body.task)
            if task not in self._seen and len(self._seen) < REMEMBERED_MAX:
                self._seen[task] = statement
                found += self._copied(node, task, body)
        # Answers make it ask again: without a pause one copycat would be a flood, which is not its way.
        if self._pried + PRY_EVERY_MS <= node.ctx.now:
            self._pried = node.ctx.now
            found += self._pry(node)
        return found

    def _copied(self, node: Node, task: TaskId, seen: Reveal) -> list[Effect]:
        """Bid, commit and reveal in one breath, whatever it committed to before."""
        bid = make(Bid(task.job, task.shard, (task.index,), 0, task.job, 1), self.signer)  # type: ignore[arg-type]
        salt = self.rng.bytes(32)
        sealed = commitment(task.job, task.index, self.me, salt, seen.root)
        commit = make(Commit(task.job, task.index, bid.id, sealed), self.signer)
        reveal = make(replace(seen, commit=commit.id, salt=salt), self.signer)
        offer = Offer((bid.envelope, commit.envelope, reveal.envelope))
        return [self.send(p, offer) for p in node.ctx.stewards(task.job, task.shard) if p != self.me]

    def _pry(self, node: Node) -> list[Effect]:
        """Ask stewards for what they hold."""
        found: list[Effect] = []
        for job in sorted(node.jobs):
            for steward in node.ctx.stewards(job, 0):
                if steward != self.me:
                    questions = (Have(job, 0, (), True), Collect(job, 0, ()), Query(job, 0))
                    found += [self.send(steward, question) for question in questions]
        return found

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        seen = self._seen.get(task)
        if seen is None:
            return wrong_result(task, self.me.encode(), 1), 1
        body: Reveal = seen.body
        return RunResult(body.outcome, body.exit, body.outputs, body.usage), 1


class Silent(Liar):
    """Takes work and never commits, or commits and never reveals; it renews its leases all the while."""

    def __init__(self, signer: Signer, rng: Rng, others: tuple[PeerId, ...]) -> None:
        super().__init__(signer, rng, others)
        self._kept_back = ("commit", "reveal") if rng.chance(500) else ("reveal",)

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return _rewritten(effects, lambda s: None if s.author == self.me and s.kind in self._kept_back else s.envelope)


class Hoarder(Liar):
    """Takes all the leases it can get, and keeps them for ever."""

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return None


class Equivocator(Liar):
    """Commits to two results for one task, and shows some stewards the one, some the other."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        found: list[Effect] = []
        for effect in effects:
            found.append(effect)
            if not isinstance(effect, Send):
                continue
            for statement in _offered(effect.frame):
                if statement.kind == "commit" and statement.author == self.me and self.rng.chance(500):
                    sealed = Digest(self.rng.bytes(32))
                    other = make(replace(statement.body, sealed=sealed), self.signer)
                    found.append(self.send(effect.peer, Offer((other.envelope,))))
        return found


class Late(Liar):
    """Does everything right, but long after its leases have ended, which it does not renew."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        return [e for e in effects if not (isinstance(e, Send) and isinstance(messages.decode(e.frame), Renew))]

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        return honest, 2 * limits.LEASE_TTL_MS


class Replayer(Liar):
    """Sends what others said again, to anybody, as its own words."""

    def __init__(self, signer: Signer, rng: Rng, others: tuple[PeerId, ...]) -> None:
        super().__init__(signer, rng, others)
        self._heard: list[bytes] = []

    def hears(self, node: Node, event: Received) -> list[Effect]:
        if len(self._heard) < REMEMBERED_MAX:
            self._heard.append(event.frame)
        else:
            self._heard[self.rng.below(REMEMBERED_MAX)] = event.frame
        if not self.rng.chance(200):
            return []
        return [Send(self.rng.pick(self.others), self.rng.pick(self._heard), ())]


class Garbage(Liar):
    """Sends bytes: random ones, true ones with one changed, and statements with a forged author."""

    def hears(self, node: Node, event: Received) -> list[Effect]:
        if not self.rng.chance(100):
            return []
        to = self.rng.pick(self.others)
        match self.rng.below(4):
            case 0:
                return [Send(to, self.rng.bytes(self.rng.below(200)), ())]
            case 1:
                return [Send(to, self._damaged(event.frame), ())]
            case 2:
                return [Publish("job", self._damaged(event.frame))]
            case _:
                return [self.send(to, Offer((self._damaged(event.frame)[: limits.ENVELOPE_BYTES_MAX] or b"x",)))]

    def _damaged(self, frame: bytes) -> bytes:
        at = self.rng.below(len(frame))
        return frame[:at] + bytes([self.rng.below(256)]) + frame[at + 1 :]


class LyingSteward(Liar):
    """Signs verdicts that are not true, naming itself the only steward at times; withholds grants and answers."""

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        told = [e for e in effects if not (isinstance(e, Send) and self._withheld(e.frame))]
        return _rewritten(told, self._twisted)

    def _withheld(self, frame: bytes) -> bool:
        return isinstance(messages.decode(frame), Grant | Status) and self.rng.chance(300)

    def _twisted(self, statement: Statement) -> bytes:
        body = statement.body
        if not isinstance(body, Verdict) or statement.author != self.me:
            return statement.envelope
        votes = tuple(replace(v, agreed=True, group=f"{v.group}{i}") for i, v in enumerate(body.votes))
        stewards = (self.me,) if self.rng.chance(500) else body.stewards
        if self.rng.chance(500):
            lie = replace(body, outcome="failed", root=Digest(bytes(32)), stewards=stewards, reason="because")
        else:
            root = output_root("ok", 0, ())
            lie = replace(body, outcome="accepted", root=root, votes=votes * 2, stewards=stewards)
        return make(lie, self.signer).envelope


class Poisoner(Liar):
    """Works honestly half-way, keeps something wrong instead of what it has, and lets the task go: whoever goes on from
    there gets a wrong result, honestly."""

    def keeps(self, task: TaskId) -> BlobRef:
        return poison(task, self.me.encode())

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        wall = honest.usage.wall_ms
        if spec.run.checkpoint != "shared":
            return honest, wall
        return RunResult("try-elsewhere", 75, reason="so that others go on"), wall


KINDS: dict[LiarKind, type[Liar]] = {
    "wrong": Wrong,
    "sybil": Sybil,
    "copycat": Copycat,
    "silent": Silent,
    "hoarder": Hoarder,
    "equivocator": Equivocator,
    "late": Late,
    "replayer": Replayer,
    "garbage": Garbage,
    "steward": LyingSteward,
    "poisoner": Poisoner,
}


def _offered(frame: bytes) -> list[Statement]:
    """The statements in a frame, if it is an offer of valid ones."""
    try:
        message = messages.decode(frame)
        if isinstance(message, Offer):
            return [statements.decode(envelope, verify) for envelope in message.envelopes]
    except PeerError:
        # Another liar's garbage: there is nothing to learn from it.
        return []
    return []


def _rewritten(effects: list[Effect], rewrite: Callable[[Statement], bytes | None]) -> list[Effect]:
    """The same effects, with each statement that is offered replaced, or left out for None."""
    found: list[Effect] = []
    for effect in effects:
        offered = _offered(effect.frame) if isinstance(effect, Send) else []
        if not isinstance(effect, Send) or not offered:
            found.append(effect)
            continue
        envelopes = [e for e in map(rewrite, offered) if e is not None]
        if envelopes:
            found.append(replace(effect, frame=messages.encode(Offer(tuple(envelopes)))))
    return found
