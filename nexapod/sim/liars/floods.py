"""Peers that cost others more than they give: junk, repetition, made-up peers and jobs, questions with long answers."""

from __future__ import annotations

from typing import Final

from nexapod.protocol import types
from nexapod.protocol.events import Effect, Event, PeerUp, Received, Send
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import Digest, JobId, Millis, PeerId, StatementId, blob_of
from nexapod.protocol.wire import bodies, messages, statements
from nexapod.protocol.wire.messages import (
    Announce,
    Bid,
    Card,
    Claim,
    Collect,
    Deliver,
    Hello,
    Inspect,
    Probe,
    Range,
    Reconcile,
    Renew,
    Sample,
    Want,
)
from nexapod.sim.keys import verify
from nexapod.sim.liars.base import Liar
from nexapod.sim.liars.envelopes import message_of, statements_of
from nexapod.sim.liars.repeating import Repeating

MODULE: Final = blob_of(b"a module that nobody has")
JUNK_TASKS: Final = 20_000


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
        super()._learn(event)
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

    jobs_at_once = 2

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for n in range(self.jobs_at_once):
            for peer in self.linked(node):
                sent += self._job(peer, self._count * self.jobs_at_once + n)
        return sent

    def _job(self, peer: PeerId, number: int) -> list[Effect]:
        signer = self.invented(number)
        offer = self._offer(peer) or statements.make(
            types.Offer("sim", 1, ("/ip4/203.0.113.1/tcp/1",), 1 << 40, 10_000, 1 << 50), signer
        )
        spec = types.JobSpec(
            "sim", "junk", self.rng.bytes(16), 0, types.Run("wasm", module=MODULE), JUNK_TASKS, (offer.envelope,)
        )
        job = statements.make(spec, signer)
        placed = statements.make(bodies.Placed(JobId(job.id), Digest(bytes(32))), signer)
        size, gate = len(job.envelope), (offer.author,)
        card = Card(JobId(job.id), signer.peer, size, "wasm", 1 << 20, 0, gate, 1 << 16, self._count)
        return [
            self.send(peer, Announce((card,))),
            self.send(peer, Deliver((job.envelope, placed.envelope))),
        ]

    def _offer(self, peer: PeerId) -> statements.Statement | None:
        """Whose name is put on the panel; None: that of the submitter itself."""
        return None


class Namer(JobFlood):
    """Names each peer, by the offer that it gave, as the only steward of jobs that are large and worth nothing."""

    jobs_at_once = 1

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._offers: dict[PeerId, statements.Statement] = {}

    def _learn(self, event: Event) -> None:
        message = message_of(event.frame) if isinstance(event, Received) else None
        if isinstance(message, Hello) and message.offer is not None and isinstance(event, Received):
            self._offers[event.peer] = statements.decode(message.offer, verify)

    def _offer(self, peer: PeerId) -> statements.Statement | None:
        return self._offers.get(peer)

    def linked(self, node: Node) -> list[PeerId]:
        return [peer for peer in super().linked(node) if peer in self._offers]


class Suppressor(Repeating):
    """Announces jobs that others know with the numbers that their gates will use next, and with calls for nobody."""

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job, statement in self.jobs.items():
            body, size = statement.body, len(statement.envelope)
            cards = tuple(
                Card(job, statement.author, size, "wasm", body.limits.memory, 0, (self.me,), 0, self._count * 16 + n)
                for n in range(16)
            )
            sent += [self.send(peer, Announce(cards)) for peer in self.linked(node)]
        return sent


class Relay(Repeating):
    """Bids, claims and commits in the names of keys that it made up, on its own link."""

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job, statement in self.jobs.items():
            tasks = range(min(statement.body.tasks, 64))
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


class Filler(Repeating):
    """Commits of its own to everything, without a lease."""

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for job, statement in self.jobs.items():
            tasks = range(min(statement.body.tasks, 256))
            items = tuple(bodies.CommitItem(t, Digest(self.rng.bytes(32))) for t in tasks)
            commit = statements.make(bodies.Commit(job, 0, items), self.signer)
            sent += [self.send(peer, Deliver((commit.envelope,))) for peer in self.linked(node)]
        return sent


class Leech(Repeating):
    """Asks short questions that have long answers, as fast as it may."""

    def __init__(self, *parts: object) -> None:
        super().__init__(*parts)
        self._ids: list[StatementId] = []

    def _learn(self, event: Event) -> None:
        super()._learn(event)
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
                sent += [self.send(peer, Inspect(job, 0, ())) for job in self.jobs]
        return sent


class Talker(Repeating):
    """Says everything that the protocol has to everybody, as fast as it can, about jobs that it has no part in."""

    per_peer = 20

    def attack(self, node: Node) -> list[Effect]:
        sent: list[Effect] = []
        for peer in self.linked(node):
            for n in range(self.per_peer):
                number = self._count * self.per_peer + n
                sent.append(self.send(peer, Probe(number, None)))
                for job in self.jobs:
                    sent.append(self.send(peer, self._said(job, number)))
        return sent

    def _said(self, job: JobId, number: int) -> messages.Message:
        held = tuple(messages.Held(task, "running", 1) for task in range(8))
        return (
            Bid(job),
            Claim(job, 0, number, 64, (), (), 1),
            Renew(job, 0, held),
            Collect(job, 0, 0),
            Inspect(job, 0, ()),
            messages.Release(job, 0, tuple(range(8)), True, "no"),
            messages.Object(job, 0, StatementId(bytes(32)), (0,), ()),
            messages.Gone(job, False),
            messages.Status(job, 0, tuple((task, "closed") for task in range(8))),
        )[number % 9]


class Newcomer(Liar):
    """Says Hello again whenever a link comes up, with profiles that get larger sequence numbers each time."""

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        if not isinstance(event, PeerUp):
            return []
        return self.attacked([self.send(event.peer, Hello(200, None, None)) for _ in range(8)])
