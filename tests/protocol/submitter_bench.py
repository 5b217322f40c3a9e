"""One submission on a node that is only what it needs: a context, links that a test sets, what it says to itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from kit import JobKit, Result, accepted, failed, make_kit

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Drop, Fetch, Save, Send, Trace
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import File, JobId, Millis, Part, PeerId, blob_of
from nexapod.protocol.records import Record
from nexapod.protocol.rules.panel import Candidate
from nexapod.protocol.submitter.submission import Submission
from nexapod.protocol.types import Group, Grouping, Profile
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.messages import Announce, Decided, Deliver, Message, Ready
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify

T = TypeVar("T")
SHARD_KINDS = ("commit", "reveal", "freeze", "verdict", "checkpoint")


class FakePeers:
    """Links as a test sets them."""

    def __init__(self, me: PeerId) -> None:
        self.me = me
        self.up: list[PeerId] = []
        self.lost_at: dict[PeerId, Millis] = {}

    def linked(self, peer: PeerId) -> bool:
        return peer == self.me or peer in self.up

    def links(self) -> tuple[PeerId, ...]:
        return tuple(self.up)

    def group(self, peer: PeerId, grouping: Grouping) -> Group | None:
        return peer

    def met(self, peer: PeerId) -> Millis | None:
        return 0 if self.linked(peer) else None

    def lost(self, peer: PeerId) -> Millis | None:
        return None if self.linked(peer) else self.lost_at.get(peer)

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        return ()

    def profile(self, peer: PeerId) -> Profile | None:
        return None


def make_context(signer: HashSigner, now: Millis = 1_000, network: str = "net") -> tuple[Context, FakePeers]:
    counter = iter(range(1 << 30))
    peers = FakePeers(signer.peer)

    def entropy(size: int) -> bytes:
        return hashlib.sha256(b"%d" % next(counter)).digest()[:size]

    ctx = Context(signer, verify, network, "peer", entropy, peers)
    ctx.now = now
    return ctx, peers


class Bench:
    """A job's submitter and its submission; everybody else is the test."""

    def __init__(
        self,
        made: JobKit | None = None,
        *,
        linked: bool = True,
        candidates: Callable[[], Sequence[Candidate]] = lambda: (),
        records: dict[tuple[str, bytes], bytes] | None = None,
        known: Iterable[Statement] = (),
        archive: bool = False,
        now: Millis = 1_000,
        **kit: Any,
    ) -> None:
        self.made = made or make_kit(**kit)
        self.ctx, self.peers = make_context(self.made.submitter, now)
        self.records: dict[tuple[str, bytes], bytes] = dict(records or {})
        self.effects: list[object] = []
        self.sent: list[tuple[PeerId, Message]] = []
        if linked:
            self.peers.up = [m.peer for m in self.made.members if m.peer != self.ctx.me]
        self.job = JobState(self.made.job_statement, verify)
        for statement in known:
            self.job.add(statement)
        self.announced: list[Announce] = []
        self.submission = Submission(self.ctx, self.job, candidates, self.read if archive else None)
        if records is not None:
            kept = [Record(kind, key, value) for (kind, key), value in sorted(self.records.items())]
            self.submission.restore([record for record in kept if record.kind.startswith("submission")])
        self.drain()

    def read(self, shard: int) -> list[bytes]:
        start = bytes(self.made.job) + shard.to_bytes(4, "big")
        return [v for (kind, key), v in self.records.items() if kind == "submission-evidence" and key[:36] == start]

    # --- the node around it ----------------------------------------------------------------------------------------
    def drain(self) -> None:
        """What was asked for is done; what it said to itself comes back."""
        while self.ctx.effects or self.ctx.to_self:
            for effect in self.ctx.effects:
                self._take(effect)
            self.ctx.effects.clear()
            if self.ctx.to_self:
                self._to_self(self.ctx.to_self.popleft())

    def _take(self, effect: object) -> None:
        self.effects.append(effect)
        if isinstance(effect, Save):
            record = effect.record
            if record.value is None:
                self.records.pop((record.kind, record.key), None)
            else:
                self.records[(record.kind, record.key)] = record.value
        elif isinstance(effect, Send):
            self.sent.append((effect.peer, messages.decode(effect.frame)))

    def _to_self(self, message: Message) -> None:
        if isinstance(message, Deliver):
            for envelope in message.envelopes:
                self._deliver(statements.decode(envelope, verify), self.ctx.me)
        elif isinstance(message, Announce):
            self.announced.append(message)

    def _deliver(self, statement: Statement, sender: PeerId) -> None:
        if statement.kind in SHARD_KINDS:
            self.submission.on_statement(statement, sender)
        elif self.job.add(statement) == "new":
            self.submission.job_changed()

    def hear(self, sender: HashSigner | PeerId, *found: Statement | Message) -> None:
        """Somebody delivers statements, or says something."""
        peer = sender if isinstance(sender, str) else sender.peer
        for one in found:
            if isinstance(one, Statement):
                self._deliver(one, peer)
            else:
                self.submission.on_message(peer, one)
            self.drain()

    def run(self, until_ms: Millis = 0) -> None:
        """Let time pass, deadline by deadline."""
        end = self.ctx.now + until_ms
        for _ in range(100_000):
            deadline = self.submission.deadline
            if deadline is None or deadline > end:
                break
            self.ctx.now = max(self.ctx.now, deadline)
            self.submission.tick()
            self.drain()
        else:
            raise AssertionError("a deadline that never ends")
        self.ctx.now = end

    def link_up(self, *signers: HashSigner) -> None:
        for signer in signers:
            self.peers.up.append(signer.peer)
            self.submission.peer_up(signer.peer)
        self.drain()

    def link_down(self, *signers: HashSigner) -> None:
        for signer in signers:
            self.peers.up.remove(signer.peer)
            self.peers.lost_at[signer.peer] = self.ctx.now
            self.submission.peer_down(signer.peer)
        self.drain()

    # --- reading ---------------------------------------------------------------------------------------------------
    def of(self, kind: type[T]) -> list[T]:
        """Effects of one type, and forget them."""
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return found

    def messages(self, kind: type[T]) -> list[tuple[PeerId, T]]:
        """Sent messages of one type, and forget them."""
        found = [(peer, message) for peer, message in self.sent if isinstance(message, kind)]
        self.sent = [(peer, message) for peer, message in self.sent if not isinstance(message, kind)]
        return found

    def delivered(self, peer: HashSigner | PeerId, kind: str) -> list[Statement]:
        """Statements of one kind that a peer was sent so far."""
        named = peer if isinstance(peer, str) else peer.peer
        found = [
            statements.decode(e, verify)
            for p, m in self.sent
            if isinstance(m, Deliver) and p == named
            for e in m.envelopes
        ]
        return [statement for statement in found if statement.kind == kind]

    def traces(self, name: str) -> list[Trace]:
        return [effect for effect in self.effects if isinstance(effect, Trace) and effect.name == name]

    # --- what others do --------------------------------------------------------------------------------------------
    def place_all(self, skip: Iterable[HashSigner] = ()) -> None:
        for member in self.made.members:
            if member not in list(skip):
                self.hear(member, self.made.placed(member))

    def admit(self) -> None:
        for statement in self.made.round():
            self.hear(self.made.seats()[0], statement)

    def evidence(
        self,
        tasks: Sequence[int],
        *,
        outputs: Callable[[int, int], tuple[File, ...]] = lambda task, place: (File("out", blob_of(b"%d" % task)),),
        outcome: str = "accepted",
        exit: int = 0,
        item: Any = None,
        epoch: int = 0,
        signers: Sequence[HashSigner] | None = None,
        workers: int = 2,
    ) -> list[Statement]:
        """Of some tasks of one shard, by the first workers: commits, freeze, reveals, verdict."""
        made = self.made
        crew = made.workers[:workers]
        ended = "ok" if not exit else "failed"
        results = {
            w.peer: [Result(t, outputs(t, n), ended, exit, reason="no memory" if exit else "") for t in tasks]  # type: ignore[arg-type]
            for n, w in enumerate(crew)
        }
        commits = [made.commit(w, *results[w.peer]) for w in crew]
        freeze = made.freeze(dict.fromkeys(tasks, commits), signers, epoch=epoch)
        reveals = [made.reveal(w, c, *results[w.peer]) for w, c in zip(crew, commits, strict=True)]
        judged = item or (accepted() if outcome == "accepted" else failed())
        verdict = made.verdict(dict.fromkeys(tasks, (freeze, judged)), signers, epoch=epoch)
        return [*commits, freeze, *reveals, verdict]

    def decide(self, tasks: Sequence[int], **how: Any) -> list[Statement]:
        """A seat pushes what it has decided."""
        shard = tasks[0] // limits.SHARD_TASKS
        pushed = self.evidence(tasks, **how)
        self.hear(self.made.seats(shard)[0], *pushed)
        return pushed

    def give_outputs(self) -> int:
        """Every fetch that is asked for succeeds, until there is none; how many there were."""
        count = 0
        while fetches := self.of(Fetch):
            for fetch in fetches:
                count += 1
                self.blob(fetch.part)
        return count

    def blob(self, part: Part) -> None:
        self.ctx.blob_stored(part)
        self.submission.blob_ready(part)
        self.drain()


def ready(job: JobId, shard: int) -> Ready:
    return Ready(job, shard)


def told(job: JobId, shard: int, version: int, decided: int = 0, running: int = 0) -> Decided:
    return Decided(job, shard, version, decided, running)


__all__ = ["Bench", "Drop", "FakePeers", "PeerError", "make_context", "ready", "told"]
