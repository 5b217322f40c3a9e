"""Statements to test with: a job with its panel, and what its seats and workers sign about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nexapod.protocol import limits
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import BlobRef, Digest, File, JobId, PeerId, StatementId, blob_of, key_of_peer_id
from nexapod.protocol.rules import beacon as beacons
from nexapod.protocol.rules import lottery, seats
from nexapod.protocol.types import (
    Group,
    Grouping,
    JobSpec,
    Offer,
    Run,
    RunOutcome,
    TrustPolicy,
    Usage,
    Validate,
)
from nexapod.protocol.wire import bodies, statements
from nexapod.protocol.wire.bodies import Authority, Body
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify

NETWORK = "net"
MODULE = blob_of(b"module")
OUTPUT = (File("out.txt", blob_of(b"right")),)
OTHER_OUTPUT = (File("out.txt", blob_of(b"wrong")),)


def blob(data: bytes) -> BlobRef:
    return blob_of(data)


def value_of(seat: PeerId) -> bytes:
    """What a seat of the gate shows, whenever it is asked."""
    return hashlib.sha256(key_of_peer_id(seat)).digest()


def by_key(peers: Iterable[PeerId]) -> list[PeerId]:
    return sorted(peers, key=key_of_peer_id)


def signed(body: Body, *signers: HashSigner) -> Statement:
    """A statement with these signatures; by one author, the first alone."""
    statement = statements.make(body, signers[0])
    for signer in signers[1:]:
        statement = statements.cosign(statement, signer)
    return statement


def only(statement: Statement, *signers: HashSigner) -> Statement:
    """The same cosigned statement with these signatures instead."""
    return signed(statement.body, *signers)


def offer(signer: HashSigner, seq: int = 1, addrs: tuple[str, ...] = (), network: str = NETWORK) -> Statement:
    where = addrs or (f"/ip4/10.0.0.1/tcp/{1024 + seq}/p2p/{signer.peer}",)
    return signed(Offer(network, seq, where, 1 << 40, 1_000, 1 << 50), signer)


def job_spec(
    members: Sequence[HashSigner],
    *,
    tasks: int = 4,
    agree: int = 2,
    max_replicas: int = 5,
    grouping: Grouping = "peer",
    nonce: bytes = b"n" * 16,
    delegate: PeerId | None = None,
    checkpoint: Literal["local", "shared"] = "local",
) -> JobSpec:
    return JobSpec(
        NETWORK,
        "a job",
        nonce,
        5,
        Run("wasm", module=MODULE, checkpoint=checkpoint),
        tasks,
        panel=tuple(offer(member).envelope for member in members),
        validate=Validate(agree=agree, max_replicas=max_replicas),
        policy=TrustPolicy(grouping=grouping),
        delegate=delegate,
    )


@dataclass(frozen=True, slots=True)
class Result:
    """What a worker has of one task. Equal files are equal results."""

    task: int
    files: tuple[File, ...] = OUTPUT
    outcome: RunOutcome = "ok"
    exit: int = 0
    resumed: StatementId | None = None
    reason: str = ""

    @property
    def outputs(self) -> tuple[File, ...]:
        return self.files if self.outcome == "ok" else ()

    @property
    def root(self) -> Digest:
        return statements.output_root(self.outcome, self.exit, self.outputs)


def salt_of(worker: HashSigner, result: Result) -> bytes:
    named = key_of_peer_id(worker.peer) + result.task.to_bytes(4, "big") + result.root + (result.resumed or b"")
    return hashlib.sha256(named).digest()[:16]


@dataclass
class JobKit:
    """A job of `submitter` with a panel of `members`, and workers to be admitted to it.

    `groups` are those in which the gate admits; a worker that is not named there is its own.
    """

    submitter: HashSigner
    members: list[HashSigner]
    workers: list[HashSigner]
    job_statement: Statement
    groups: dict[PeerId, Group]
    beacons_made: dict[Group, bytes]
    """The value of the round that admitted each group first (3.3), as this kit made them."""

    @property
    def job(self) -> JobId:
        return JobId(self.job_statement.id)

    @property
    def spec(self) -> JobSpec:
        spec: JobSpec = self.job_statement.body
        return spec

    def signer(self, peer: PeerId) -> HashSigner:
        return next(s for s in (self.submitter, *self.members, *self.workers) if s.peer == peer)

    def seats(self, shard: int = 0) -> list[HashSigner]:
        """The seats of epoch 0, the leader first."""
        holders = seats.order(self.job, shard, [member.peer for member in self.members])[: limits.SEATS]
        return [self.signer(peer) for peer in holders]

    def group(self, worker: HashSigner) -> Group:
        return self.groups.get(worker.peer, worker.peer)

    def quorum(self, shard: int = 0) -> list[HashSigner]:
        """As few seats of epoch 0 as are enough."""
        holders = self.seats(shard)
        return holders[: len(holders) // 2 + 1]

    def state(self, *folded: Statement) -> JobState:
        """What the job and these statements come to."""
        state = JobState(self.job_statement, verify)
        for statement in folded:
            state.add(statement)
        return state

    def evidence(self, *folded: Statement, state: JobState | None = None, shard: int = 0) -> ShardEvidence:
        """What these statements of a shard come to; by default all workers are admitted."""
        evidence = ShardEvidence(state or self.state(*self.round()), shard)
        for statement in folded:
            evidence.add(statement)
        return evidence

    # --- the job ---------------------------------------------------------------------------------------------------
    def placed(self, member: HashSigner, value: bytes = bytes(32)) -> Statement:
        return signed(bodies.Placed(self.job, statements.value_commitment(value)), member)

    def cancel(self, reason: str = "enough", signer: HashSigner | None = None) -> Statement:
        return signed(bodies.Cancel(self.job, reason), signer or self.submitter)

    def settlement(
        self,
        settled: int,
        failed: int = 0,
        evidence: bytes = bytes(32),
        ratified: tuple[StatementId, ...] = (),
        signer: HashSigner | None = None,
    ) -> Statement:
        body = bodies.Settlement(self.job, settled, failed, Digest(evidence), ratified)
        return signed(body, signer or self.submitter)

    def succession(
        self,
        holders: Sequence[HashSigner],
        signers: Sequence[HashSigner],
        authority: Authority = "seats",
        *,
        shard: int = 0,
        epoch: int = 1,
        previous: StatementId | None = None,
    ) -> Statement:
        body = bodies.Succession(
            self.job, shard, epoch, tuple(h.peer for h in holders), authority, previous or StatementId(self.job)
        )
        return signed(body, *signers)

    def renewal(
        self,
        removed: Sequence[HashSigner],
        added: Sequence[HashSigner],
        signers: Sequence[HashSigner],
        authority: Authority = "panel",
        *,
        epoch: int = 1,
        previous: StatementId | None = None,
    ) -> Statement:
        body = bodies.Renewal(
            self.job,
            epoch,
            tuple(s.peer for s in removed),
            tuple(offer(s).envelope for s in added),
            authority,
            previous or StatementId(self.job),
        )
        return signed(body, *signers)

    def adoption(
        self,
        adopted: Iterable[Statement | StatementId],
        signers: Sequence[HashSigner],
        *,
        shard: int = 0,
        epoch: int = 1,
    ) -> Statement:
        ids = sorted({one.id if isinstance(one, Statement) else one for one in adopted})
        return signed(bodies.Adoption(self.job, shard, epoch, tuple(ids)), *signers)

    # --- admission -------------------------------------------------------------------------------------------------
    def admission(
        self,
        workers: Sequence[HashSigner] | None = None,
        signers: Sequence[HashSigner] | None = None,
        *,
        epoch: int = 0,
        round: int = 1,
        groups: Mapping[PeerId, Group] | None = None,
    ) -> Statement:
        chosen = self.workers if workers is None else workers
        names = {worker.peer: (groups or {}).get(worker.peer, self.group(worker)) for worker in chosen}
        listed = tuple((peer, names[peer]) for peer in by_key(names))
        by = signers or self.quorum()
        seats = dict.fromkeys(seat.peer for seat in (*by, *self.seats()))
        committed = {peer: statements.value_commitment(value_of(peer)) for peer in list(seats)[: limits.SEATS]}
        return signed(bodies.Admission(self.job, epoch, round, listed, beacons.ordered(committed)), *by)

    def beacon(
        self,
        admission: Statement,
        signers: Sequence[HashSigner] | None = None,
        values: Mapping[PeerId, bytes] | None = None,
    ) -> Statement:
        """By default with a value of each signer."""
        gate = signers or self.quorum()
        shown = values or {seat.peer: value_of(seat.peer) for seat in gate}
        listed = tuple((peer, shown[peer]) for peer in by_key(shown))
        body = bodies.Beacon(self.job, admission.body.epoch, admission.body.round, admission.id, listed)
        statement = signed(body, *gate)
        for _, group in admission.body.workers:
            self.beacons_made.setdefault(group, beacons.value(statement.body))
        return statement

    def round(
        self, workers: Sequence[HashSigner] | None = None, *, epoch: int = 0, round: int = 1
    ) -> tuple[Statement, Statement]:
        """An admission and its beacon, both with a quorum's signatures."""
        admission = self.admission(workers, epoch=epoch, round=round)
        return admission, self.beacon(admission)

    def place(self, worker: HashSigner, task: int) -> tuple[bytes, Group, bytes]:
        """Where a worker stands in the draw of a task: sorts as a freeze's entries must. It has been admitted."""
        shard, offset = divmod(task, limits.SHARD_TASKS)
        group = self.group(worker)
        many = len(self.spec.shard_tasks(shard))
        drawn = lottery.tickets(Digest(self.beacons_made[group]), self.job, shard, group, many)
        return lottery.ticket_at(drawn, offset), group, key_of_peer_id(worker.peer)

    def in_draw(self, workers: Iterable[HashSigner], task: int) -> list[HashSigner]:
        return sorted(workers, key=lambda worker: self.place(worker, task))

    # --- tasks -----------------------------------------------------------------------------------------------------
    def commit(self, worker: HashSigner, *results: Result) -> Statement:
        shard = results[0].task // limits.SHARD_TASKS
        items = tuple(
            bodies.CommitItem(
                r.task,
                statements.commitment(self.job, r.task, worker.peer, salt_of(worker, r), r.root, r.resumed),
            )
            for r in results
        )
        return signed(bodies.Commit(self.job, shard, items), worker)

    def reveal(self, worker: HashSigner, commit: Statement, *results: Result) -> Statement:
        shard = results[0].task // limits.SHARD_TASKS
        items = tuple(
            bodies.RevealItem(
                r.task, commit.id, salt_of(worker, r), r.outcome, r.exit, r.outputs, r.resumed, Usage(), r.reason, ""
            )
            for r in results
        )
        return signed(bodies.Reveal(self.job, shard, "wasm", "1", "linux-x86_64", items), worker)

    def checkpoint(
        self, worker: HashSigner, task: int, seq: int = 1, progress: int = 100, resumed: StatementId | None = None
    ) -> Statement:
        files = (File("state", blob_of(b"checkpoint %d" % seq)),)
        return signed(bodies.Checkpoint(self.job, task, seq, progress, files, resumed), worker)

    def freeze(
        self,
        commits: Mapping[int, Sequence[Statement]],
        signers: Sequence[HashSigner] | None = None,
        *,
        round: int = 1,
        epoch: int = 0,
        groups: Mapping[PeerId, Group] | None = None,
        sort: bool = True,
    ) -> Statement:
        """Of these commits for each task, in the order of the draw. `groups`: instead of those admitted."""
        shard = min(commits) // limits.SHARD_TASKS
        listed = {commit.author: commit for several in commits.values() for commit in several}
        names = {peer: (groups or {}).get(peer, self.group(self.signer(peer))) for peer in listed}
        workers = tuple((peer, names[peer]) for peer in by_key(listed))
        ids = sorted({commit.id for several in commits.values() for commit in several})
        places = {peer: place for place, (peer, _) in enumerate(workers)}
        items = []
        for task in sorted(commits):
            found = list(commits[task])
            if sort:
                found.sort(key=lambda commit: self.place(self.signer(commit.author), task))
            entries = tuple((places[commit.author], ids.index(commit.id)) for commit in found)
            items.append(bodies.FreezeItem(task, round, entries))
        body = bodies.Freeze(self.job, shard, epoch, workers, tuple(ids), tuple(items))
        return signed(body, *(signers or self.quorum(shard)))

    def verdict(
        self,
        items: Mapping[int, tuple[Statement, bodies.VerdictItem]],
        signers: Sequence[HashSigner] | None = None,
        *,
        epoch: int = 0,
    ) -> Statement:
        """Of each task its freeze and its judgement (see `accepted`, `failed`); the freeze's place is filled in."""
        shard = min(items) // limits.SHARD_TASKS
        freezes = sorted({freeze.id for freeze, _ in items.values()})
        judged = tuple(replace(items[t][1], task=t, freeze=freezes.index(items[t][0].id)) for t in sorted(items))
        body = bodies.Verdict(self.job, shard, epoch, tuple(freezes), judged)
        return signed(body, *(signers or self.quorum(shard)))


def accepted(
    representative: int = 0, pairs: tuple[tuple[int, int], ...] = ((0, 1),), missing: tuple[int, ...] = ()
) -> bodies.VerdictItem:
    return bodies.VerdictItem(0, 0, "accepted", representative, pairs, missing, "")


def failed(
    reason: str = "it failed", pairs: tuple[tuple[int, int], ...] = (), missing: tuple[int, ...] = ()
) -> bodies.VerdictItem:
    return bodies.VerdictItem(0, 0, "failed", 0, pairs, missing, reason)


def make_kit(
    members: int = 3,
    workers: int = 5,
    *,
    seed: int = 1,
    tasks: int = 4,
    agree: int = 2,
    max_replicas: int = 5,
    grouping: Grouping = "peer",
    groups: Mapping[int, Group] | None = None,
    delegate: PeerId | None = None,
    checkpoint: Literal["local", "shared"] = "local",
) -> JobKit:
    """A job with a panel of so many, and so many workers. `groups`: by the worker's number."""
    submitter = HashSigner(seed, "submitter")
    panel = [HashSigner(seed, "member", i) for i in range(members)]
    crew = [HashSigner(seed, "worker", i) for i in range(workers)]
    spec = job_spec(
        panel,
        tasks=tasks,
        agree=agree,
        max_replicas=max_replicas,
        grouping=grouping,
        delegate=delegate,
        checkpoint=checkpoint,
    )
    named = {crew[i].peer: group for i, group in (groups or {}).items()}
    return JobKit(submitter, panel, crew, signed(spec, submitter), named, {})
