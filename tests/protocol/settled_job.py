"""A job that has been worked on, judged and settled, as its submitter has folded it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import kit
from kit import JobKit, Result

from nexapod.protocol import limits
from nexapod.protocol.certificate.build import EvidenceDigest, build
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Digest, File, PeerId, StatementId, blob_of
from nexapod.protocol.types import Usage
from nexapod.protocol.wire import bodies
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify

USAGE = Usage(61_234, 62_345, 312 << 20, 0)
HARDWARE = "linux-x86_64, AMD EPYC 9654 96-Core Processor"
Outputs = Callable[[int, int], tuple[File, ...]]
"""(task, the worker's place among those of the task) -> what it left."""


def alike(task: int, place: int) -> tuple[File, ...]:
    return (File("result.json", blob_of(b"%d" % task)),)


@dataclass
class Settled:
    """A settled job: its kit, and how its evidence is folded."""

    made: JobKit
    job: JobState
    batch: int = 16
    replicas: int = 2
    outputs: Outputs = alike
    failing: Sequence[int] = ()
    epoch: int = 0
    seats_of: Callable[[int], list[HashSigner]] | None = None

    def workers(self, batch: int) -> list[HashSigner]:
        """Who has a batch of tasks: others in turn."""
        crew = self.made.workers
        return [crew[(batch * self.replicas + n) % len(crew)] for n in range(self.replicas)]

    def result(self, task: int, place: int) -> Result:
        if task in self.failing:
            return Result(task, outcome="failed", exit=1, reason="no convergence")
        return Result(task, self.outputs(task, place))

    def evidence_of(self, shard: int) -> Iterator[Statement]:
        """The statements of a shard, batch by batch."""
        tasks = self.made.spec.shard_tasks(shard)
        for start in range(tasks.start, tasks.stop, self.batch):
            yield from self.batch_evidence(range(start, min(tasks.stop, start + self.batch)))

    def batch_evidence(self, tasks: range) -> Iterator[Statement]:
        shard = tasks.start // limits.SHARD_TASKS
        crew = self.workers(tasks.start // self.batch)
        commits = [self.made.commit(worker, *(self.result(t, n) for t in tasks)) for n, worker in enumerate(crew)]
        seats = None if self.seats_of is None else self.seats_of(shard)
        freeze = self.made.freeze(dict.fromkeys(tasks, commits), seats, epoch=self.epoch)
        yield from commits
        yield freeze
        for place, (worker, commit) in enumerate(zip(crew, commits, strict=True)):
            yield self.reveal(worker, commit, [self.result(task, place) for task in tasks])
        yield self.made.verdict({task: (freeze, self.judged(task)) for task in tasks}, seats, epoch=self.epoch)

    def reveal(self, worker: HashSigner, commit: Statement, results: Sequence[Result]) -> Statement:
        """With what real reveals have, and the kit's have not: what was used, and by what."""
        plain: bodies.Reveal = self.made.reveal(worker, commit, *results).body
        items = tuple(replace(item, usage=USAGE) for item in plain.items)
        return kit.signed(replace(plain, version="44.0.0", hardware=HARDWARE, items=items), worker)

    def judged(self, task: int) -> bodies.VerdictItem:
        if task in self.failing:
            return kit.failed("2 replicas failed alike: exit 1")
        pairs = tuple((i, j) for i in range(self.replicas) for j in range(i + 1, self.replicas))
        return kit.accepted(pairs=pairs)

    def shard(self, shard: int) -> ShardEvidence:
        evidence = ShardEvidence(self.job, shard)
        for statement in self.evidence_of(shard):
            added = evidence.add(statement)
            assert added == "new", (statement.kind, added)
        return evidence

    def shards(self) -> Iterator[ShardEvidence]:
        """Each made when it is asked for."""
        return map(self.shard, range(self.made.spec.shards))

    def evidence_digest(self) -> Digest:
        """What the settlement signs: the job's statements but its end, then each shard's."""
        hashed = EvidenceDigest()
        hashed.add_part(one.id for one in self.job.statements() if one.kind not in ("cancel", "settlement"))
        for shard in self.shards():
            hashed.add_part(one.id for one in shard.statements_of(shard.tasks))
        return hashed.digest()

    def settlement(
        self, ratified: Iterable[StatementId] = (), signer: HashSigner | None = None, **changed: object
    ) -> Statement:
        failed = len(self.failing)
        body = bodies.Settlement(
            self.made.job,
            self.made.spec.tasks - failed,
            failed,
            self.evidence_digest(),
            tuple(sorted(ratified)),
        )
        return kit.signed(replace(body, **changed), signer or self.made.submitter)  # type: ignore[arg-type]

    def certificate(self, settlement: Statement | None = None) -> bytes:
        return b"".join(build(self.job, self.shards(), settlement or self.settlement()))


def settled(
    tasks: int = 40,
    *,
    members: int = 3,
    workers: int = 4,
    agree: int = 2,
    delegate: PeerId | None = None,
    more: Callable[[JobKit], Iterable[Statement]] = lambda made: (),
    **how: object,
) -> Settled:
    """A job that its members hold, and whose gate has admitted all workers; `more`: about the job, after that."""
    made = kit.make_kit(members, workers, tasks=tasks, agree=agree, delegate=delegate)
    job = JobState(made.job_statement, verify)
    for member in made.members:
        job.add(made.placed(member))
    for statement in (*made.round(), *more(made)):
        assert job.add(statement) == "new", statement.kind
    return Settled(made, job, **how)  # type: ignore[arg-type]
