"""What one seat knows of its shard, for the parts of a steward to share (docs/protocol.md, section 5).

What is kept for ever is in the evidence; everything else here may be lost in a crash, and grows back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.rules.agreement import Judgement
from nexapod.protocol.rules.succession import Seats
from nexapod.protocol.steward.shard.assigning import OpenTask
from nexapod.protocol.steward.shard.batching import Pronounced
from nexapod.protocol.steward.shard.claims import Claims
from nexapod.protocol.steward.shard.gathering import Gathering
from nexapod.protocol.steward.shard.judging import RoundOf
from nexapod.protocol.steward.shard.leases import LeaseTable
from nexapod.protocol.steward.shard.ledger import Ledger
from nexapod.protocol.steward.shard.pace import Pace
from nexapod.protocol.steward.shard.signed import Signed
from nexapod.protocol.timers import Timers
from nexapod.protocol.types import Group
from nexapod.protocol.wire import fields
from nexapod.protocol.wire.statements import Statement

EVIDENCE_RECORD: Final = "steward.evidence"
"""Key: job, shard, statement. Value: msgpack [a commit seen on its worker's own link?, tasks of it not leased here,
envelope]."""
CHECKPOINT_RECORD: Final = "steward.checkpoint"
NOTES_MAX: Final = 8


def record_prefix(job: JobId, shard: int) -> bytes:
    """What the keys of all records of one steward begin with."""
    return bytes(job) + shard.to_bytes(4, "big")


@dataclass(slots=True)
class SoftTask:
    """One task beyond its evidence and leases."""

    extra: int = 0
    """Groups beyond those wanted, because a worker is late."""
    width: int = 0
    late: dict[PeerId, None] = field(default_factory=dict)
    """Workers that did not show in time what was frozen."""
    ungiven: dict[PeerId, None] = field(default_factory=dict)
    """Workers whose accepted outputs nobody gave."""
    doubted: dict[PeerId, Millis] = field(default_factory=dict)
    """Workers whose commits other seats have not seen: until then they are left out of what this one proposes."""
    contested: bool = False
    """Another seat would not sign the last freeze that this one proposed."""
    frozen_round: int = 0
    frozen_at: Millis = 0
    idle_since: Millis | None = None
    """Since when no admissible claim has been here for a task that wants more groups."""
    judgement: Judgement | None = None
    notes: dict[PeerId, tuple[int, str]] = field(default_factory=dict)
    """Results that did not end well: (exit, reason)."""

    @property
    def withheld(self) -> tuple[PeerId, ...]:
        return tuple(sorted({**self.late, **self.ungiven}))


class ShardState:
    """One shard at one seat."""

    def __init__(self, ctx: Context, job: JobState, shard: int) -> None:
        self.ctx = ctx
        self.job = job
        self.shard = shard
        self.evidence = ShardEvidence(job, shard)
        self.leases = LeaseTable()
        self.ledger = Ledger()
        self.claims = Claims(self._worth)
        self.signed = Signed()
        self.timers = Timers()
        self.soft: dict[int, SoftTask] = {}
        self.unleased: dict[tuple[int, PeerId], None] = {}
        """Commits on their worker's own link to tasks that it had no lease of here: they do not count."""
        self.wanting: dict[int, OpenTask] = {}
        """Tasks that are not decided, as of their last refresh; likewise the next three."""
        self.open: dict[int, OpenTask] = {}
        """Those of them with a place for somebody."""
        self.freezable: dict[int, RoundOf] = {}
        self.decidable: dict[int, Pronounced] = {}
        self.dirty: dict[int, None] = {}
        """Tasks to be looked at again before the call ends."""
        self.assignable = True
        """Claims, presence or open tasks have changed since the last assigning."""
        self.pace = Pace()
        self.began: Millis | None = ctx.now if job.seats(shard).epoch else None
        """Since when this process has a seat that another process, or peer, had before it: leases of then grow back by
        Renew. None: of a seat that nobody has had yet, or without one."""
        self._gathering = Gathering(job.spec.policy.grouping)
        self.closed = False
        self._typical: tuple[Millis, Millis] | None = None
        """When `typical_ms` was found last, and what."""
        self._claimants: dict[PeerId, Group] | None = None
        """What `claimants` comes to; None: something it rests on has changed."""

    # --- who ---------------------------------------------------------------------------------------------------------
    @property
    def seats(self) -> Seats:
        return self.job.seats(self.shard)

    @property
    def others(self) -> tuple[PeerId, ...]:
        """The other holders, in order."""
        return tuple(peer for peer in self.seats.holders if peer != self.ctx.me)

    @property
    def active(self) -> bool:
        """Whether this node grants and judges: it has a seat, and the job is open."""
        return not self.closed and self.ctx.me in self.seats.holders

    def admitted(self, worker: PeerId) -> Group | None:
        """The group in which a worker was admitted; None also for one at fault."""
        return None if worker in self.job.faults() else self.job.group(worker)

    def present(self, worker: PeerId) -> Group | None:
        """That group, if it is also what this node sees on the worker's own link now. Of itself, of which it sees no
        address, it takes the gate's word: of two seats that work neither would count its own results, and no quorum
        the results of both."""
        group = self.admitted(worker)
        if worker != self.ctx.me and self.ctx.peers.group(worker, self.job.spec.policy.grouping) != group:
            return None
        return group

    def claimants(self) -> Mapping[PeerId, Group]:
        """The workers whose claims stand, who are present and whose groups are drawn among, in order, with these."""
        if self._claimants is None:
            roster = frozenset(self.job.lottery.roster(self.shard)) if len(self.claims) else frozenset()
            seen = ((claim.worker, self.present(claim.worker)) for claim in self.claims)
            self._claimants = {worker: group for worker, group in seen if group is not None and group in roster}
        return self._claimants

    def present_groups(self) -> frozenset[Group]:
        """Those with a standing claim or a lease, of the roster: no others are drawn, or count in anybody's share."""
        return frozenset(self.claimants().values()) | self.leases.groups().intersection(
            self.job.lottery.roster(self.shard)
        )

    def presence_changed(self) -> None:
        """A claim came or ended, a link did, or somebody was admitted."""
        self._claimants = None
        self.assignable = True

    def gathered_at(self) -> Millis:
        """When the first lease may be given: now or before, once it may."""
        return self._gathering.over_at(self.ctx.now, len(self.job.lottery.roster(self.shard)) + len(self.claimants()))

    @property
    def typical_ms(self) -> Millis:
        """What tasks of this shard take of late, from lease to commit; 0: none has been seen."""
        if not self.pace:
            return 0
        if self._typical is None or self._typical[0] != self.ctx.now:
            self._typical = self.ctx.now, self.pace.typical(self._running())
        return self._typical[1]

    def _running(self) -> dict[Group, Millis]:
        """For how long groups that have ended no task run one, the longest, up to what is guessed of it."""
        found: dict[Group, Millis] = {}
        for task in self.leases:
            for lease in self.leases[task].firm:
                if lease.group not in self.pace and self.evidence.commit_of(task, lease.worker) is None:
                    ran_ms = min(self.ctx.now - lease.granted, self._guess_ms)
                    found[lease.group] = max(found.get(lease.group, 0), ran_ms)
        return found

    @property
    def _guess_ms(self) -> Millis:
        return self.job.spec.limits.wall_ms // limits.LATE_GUESS

    @property
    def usual_ms(self) -> Millis:
        """What tasks take, guessed before any has ended here."""
        return self.typical_ms or self._guess_ms

    @property
    def grows_back(self) -> bool:
        """Whether leases that this process knows nothing of may be older than it."""
        return self.began is not None and self.ctx.now < self.began + limits.LEASE_TTL_MS

    def _worth(self, worker: PeerId) -> int:
        """Which claim to keep when there are too many: smaller is better."""
        group = self.admitted(worker)
        roster = self.job.lottery.roster(self.shard)
        return 2 * len(roster) + 1 if group is None else (roster.index(group) if group in roster else 2 * len(roster))

    # --- tasks -------------------------------------------------------------------------------------------------------
    def task(self, task: int) -> SoftTask:
        soft = self.soft.get(task)
        if soft is None:
            soft = self.soft[task] = SoftTask()
        return soft

    def mark(self, *tasks: int) -> None:
        """Look at these again before the call ends."""
        self.dirty |= dict.fromkeys(tasks)

    def decided(self, task: int) -> bool:
        return self.evidence.verdict(task) is not None

    def committed(self, task: int) -> tuple[PeerId, ...]:
        """Workers whose commit counts here: on their own link, with a lease."""
        commits = self.evidence.commits(task)
        return tuple(w for w in sorted(commits) if commits[w].direct and (task, w) not in self.unleased)

    def counts(self, task: int, worker: PeerId) -> bool:
        """Whether this seat vouches for a worker's commit."""
        commit = self.evidence.commit_of(task, worker)
        return commit is not None and commit.direct and (task, worker) not in self.unleased

    def is_doubted(self, task: int, worker: PeerId) -> bool:
        """Whether too few other seats have seen a worker's commit."""
        soft = self.soft.get(task)
        return soft is not None and soft.doubted.get(worker, self.ctx.now) > self.ctx.now

    def wake(self, name: tuple[str, int], when: Millis) -> None:
        """Look at a task (or at something of the shard) again then, or before."""
        self.timers.set(name, when)

    def note(self, task: int, worker: PeerId, exit_status: int, reason: str) -> None:
        """For people: something of this task did not end well."""
        notes = self.task(task).notes
        if worker in notes or len(notes) < NOTES_MAX:
            notes[worker] = (exit_status, reason)

    # --- what survives -----------------------------------------------------------------------------------------------
    def save(self, statement: Statement) -> None:
        key = record_prefix(self.job.job, self.shard) + statement.id
        direct, unleased = False, []
        if statement.kind == "commit":
            tasks = [item.task for item in statement.body.items]
            commits = [self.evidence.commit_of(task, statement.author) for task in tasks]
            direct = any(commit is not None and commit.direct for commit in commits)
            unleased = [task for task in tasks if (task, statement.author) in self.unleased]
        value = fields.pack([direct, unleased, statement.envelope])
        self.ctx.save(Record(EVIDENCE_RECORD, key, value))

    def save_checkpoint(self, id: StatementId, statement: Statement | None) -> None:
        key = record_prefix(self.job.job, self.shard) + id
        self.ctx.save(Record(CHECKPOINT_RECORD, key, None if statement is None else statement.envelope))

    def hand(self, checkpoint: Statement) -> None:
        """A worker is handed a checkpoint: it is kept for as long as the job is, so that whose result rests on whose
        can be told when they are shown."""
        if self.evidence.want(checkpoint):
            self.save(checkpoint)
