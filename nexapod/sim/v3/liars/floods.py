"""Peers that cost others more than they give: junk, repetition, made-up peers and jobs, questions with long answers."""

from __future__ import annotations

from typing import Final

from nexapod.protocol.types import Digest, JobId, Millis, PeerId, StatementId, blob_of
from nexapod.protocol.v3 import types
from nexapod.protocol.v3.events import Effect, Event, PeerUp, Received, Send
from nexapod.protocol.v3.node.node import Node
from nexapod.protocol.v3.wire import bodies, messages, statements
from nexapod.protocol.v3.wire.messages import Announce, Bid, Card, Claim, Deliver, Range, Reconcile, Sample, Want
from nexapod.sim.v3.keys import HashSigner
from nexapod.sim.v3.liars.base import Liar
from nexapod.sim.v3.liars.envelopes import statements_of

EVERY_MS: Final = 250
MODULE: Final = blob_of(b"a module that nobody has")


class Repeating(Liar):
    """Does something to whoever it hears of, every so often."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)  # type: ignore[arg-type]
        self._at: Millis = 0
        self._count = 0

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        self._learn(event)
        if now < self._at:
            return []
        self._at = now + EVERY_MS
        self._count += 1
        return self.attack(node)

    def _learn(self, event: Event) -> None:
        """Look at what comes in."""

    def attack(self, node: Node) -> list[Effect]:
        return []

    def linked(self, node: Node) -> list[PeerId]:
        return [link.peer for link in node.report().links[:12]]

    def invented(self, number: int) -> HashSigner:
        return HashSigner(self.rng.fork("invented", number).next(), "invented")


class Garbage(Repeating):
    """Sends bytes that mean nothing."""

    def attack(self, node: Node) -> list[Effect]:
        return [Send(peer, self.rng.bytes(self.rng.between(1, 400)), ()) for peer in self.linked(node)[:2]]


class Replayer(Repeating):
    """Says again what it has heard, to everybody."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._heard: list[bytes] = []

    def _learn(self, event: Event) -> None:
        if isinstance(event, Received) and len(self._heard) < 256:
            self._heard.append(event.frame)

    def attack(self, node: Node) -> list[Effect]:
        if not self._heard:
            return []
        return [Send(peer, self.rng.pick(self._heard), ()) for peer in self.linked(node)]


class ProfileFlood(Repeating):
    """Tells everybody of peers that do not exist."""

    def attack(self, node: Node) -> list[Effect]:
        envelopes = []
        for n in range(16):
            signer = self.invented(self._count * 16 + n)
            profile = types.Profile(
                "sim", 1, 0, "x", 0, "linux", "x86_64", "", 64, 1 << 40, 1 << 40, (), (types.Executor("wasm", "1"),),
                (), (), ("/ip4/203.0.113.1/tcp/1",), 64,
            )  # fmt: skip
            envelopes.append(statements.make(profile, signer).envelope)
        return [self.send(peer, Sample(tuple(envelopes), True)) for peer in self.linked(node)]


class JobFlood(Repeating):
    """Announces jobs of made-up submitters, and delivers them to whoever asks and to whoever does not."""

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for n in range(4):
            signer = self.invented(self._count * 4 + n)
            offer = statements.make(types.Offer("sim", 1, ("/ip4/203.0.113.1/tcp/1",), 1 << 40, 10_000, 1 << 50), signer)
            run = types.Run("wasm", module=MODULE)
            spec = types.JobSpec("sim", "junk", self.rng.bytes(16), 0, run, 1_000_000, (offer.envelope,))
            job = statements.make(spec, signer)
            placed = statements.make(bodies.Placed(JobId(job.id), Digest(bytes(32))), signer)
            card = Card(
                JobId(job.id), signer.peer, len(job.envelope), "wasm", 1 << 20, 0, (signer.peer,), 1 << 16, self._count
            )
            for peer in self.linked(node):
                sent.append(self.send(peer, Announce((card,))))
                sent.append(self.send(peer, Deliver((job.envelope, placed.envelope))))
        return sent


class Relay(Repeating):
    """Bids, claims and commits in the names of keys that it made up, on its own link."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._jobs: dict[JobId, types.JobSpec] = {}

    def _learn(self, event: Event) -> None:
        for statement in statements_of(event.frame) if isinstance(event, Received) else ():
            if statement.kind == "job" and len(self._jobs) < 16:
                self._jobs[JobId(statement.id)] = statement.body

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job, spec in self._jobs.items():
            tasks = range(min(spec.tasks, 64))
            items = tuple(bodies.CommitItem(task, Digest(self.rng.bytes(32))) for task in tasks)
            commits = [
                statements.make(bodies.Commit(job, 0, items), self.invented(self._count * 8 + n)).envelope
                for n in range(4)
            ]
            for peer in self.linked(node):
                sent.append(self.send(peer, Bid(job)))
                sent.append(self.send(peer, Claim(job, 0, self._count, 64, (), (), 1)))
                sent.append(self.send(peer, Deliver(tuple(commits))))
        return sent


class Filler(Relay):
    """Commits of its own to everything, without a lease."""

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job, spec in self._jobs.items():
            items = tuple(bodies.CommitItem(t, Digest(self.rng.bytes(32))) for t in range(min(spec.tasks, 256)))
            commit = statements.make(bodies.Commit(job, 0, items), self.signer)
            sent += [self.send(peer, Deliver((commit.envelope,))) for peer in self.linked(node)]
        return sent


class Leech(Repeating):
    """Asks short questions that have long answers, as fast as it may."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._ids: list[StatementId] = []

    def _learn(self, event: Event) -> None:
        for statement in statements_of(event.frame) if isinstance(event, Received) else ():
            if len(self._ids) < 256:
                self._ids.append(statement.id)

    def attack(self, node: Node) -> list[Effect]:
        everything = Range(b"", 0, Digest(bytes(32)), None)
        sent: list[Effect] = []
        for peer in self.linked(node):
            for _ in range(4):
                sent.append(self.send(peer, Want(tuple(self._ids))))
                sent.append(self.send(peer, Reconcile(None, 0, b"", (everything,))))
                sent.append(self.send(peer, Sample((), True)))
        return sent


class Newcomer(Liar):
    """Says Hello again whenever a link comes up, with profiles that get larger sequence numbers each time."""

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        if not isinstance(event, PeerUp):
            return []
        return [self.send(event.peer, messages.Hello(200, None, None)) for _ in range(8)]
