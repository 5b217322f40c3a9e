"""This peer as the submitter of a job: it announces, collects, checks and settles (docs/protocol.md, Submitter).

It trusts no steward: it folds the same statements that they hold, and repeats their arithmetic. Nothing depends on it
after the job and its inputs are placed; it may vanish, and collect later.
"""

from __future__ import annotations

from nexapod.protocol import limits
from nexapod.protocol.certificate import build, evidence_digest
from nexapod.protocol.context import Context, Owner
from nexapod.protocol.messages import AskLog, Collect, TaskLog, View
from nexapod.protocol.records import Record
from nexapod.protocol.shard import Contradiction, ShardState, shard_of
from nexapod.protocol.statements import Bid, Settlement, Statement, Verdict
from nexapod.protocol.types import BlobRef, File, JobId, JobSpec, Millis, Part, PeerId, StatementId

LOGS_MAX = 256
TURNS_MAX = 64
EVIDENCE_RECORD = "evidence"
"""The ids of what a settlement signed."""
STEWARDS_RECORD = "stewards"
"""The most stewards that a job of this node's own was seen to have."""


class Submission:
    """One job of this peer's own."""

    def __init__(self, ctx: Context, statement: Statement) -> None:
        self.ctx = ctx
        self.statement = statement
        self.job = JobId(statement.id)
        self.spec: JobSpec = statement.body
        self.states = [ShardState(self.job, self.spec, shard) for shard in range(self.spec.shards)]
        self.decided: dict[int, Verdict] = {}
        self.size = 0
        """The most stewards that a shard was seen to have: a node that wakes up alone must not believe one of them."""
        self.views: dict[int, View] = {}
        """The newest view of each shard that a steward sent."""
        self.placed_on: dict[int, set[PeerId]] = {}
        self.placed = False
        """Every other steward holds the job and its inputs: this one may leave."""
        self.logs: dict[tuple[int, PeerId], TaskLog] = {}
        """What the workers of tasks that were asked about have printed so far, newest last."""
        self.settlement: Statement | None = None
        self.cancelled = False
        self._turns: dict[tuple[int, PeerId], int] = {}
        """How often a worker's commit to an undecided task was replaced by another one."""
        self._missing: dict[BlobRef, set[int]] = {}
        self._rounds = 0
        self._collect_at: Millis | None = ctx.now + limits.COLLECT_MS
        self._retry_at: Millis | None = None
        for ref in self.spec.blobs:
            ctx.hold(ref, self.owner)

    @property
    def owner(self) -> Owner:
        return ("submitter", self.job, 0)

    @property
    def open(self) -> bool:
        return self.settlement is None and not self.cancelled

    # --- time ------------------------------------------------------------------------------------------------------
    @property
    def deadline(self) -> Millis | None:
        times = [t for t in (self._collect_at, self._retry_at) if t is not None]
        return min(times) if times else None

    def tick(self) -> None:
        now = self.ctx.now
        if self._retry_at is not None and self._retry_at <= now:
            self._retry_at = None
            for task in sorted(self.decided):
                self._fetch_outputs(task)
            self._complete()
        if self._collect_at is not None and self._collect_at <= now:
            self._collect()

    def announce(self) -> None:
        """Tell everybody, and the stewards themselves at once."""
        self.ctx.publish("job", self.statement)
        self._offer_to_stewards()

    def _offer_to_stewards(self) -> None:
        wanted: dict[PeerId, None] = {}
        for shard in range(self.spec.shards):
            for steward in self._stewards(shard):
                if steward not in self.placed_on.get(shard, ()):
                    wanted[steward] = None
        for steward in wanted:
            self.ctx.offer(steward, [self.statement])

    def _collect(self) -> None:
        """Ask one steward of each unfinished shard, in turn, for what is decided there."""
        self._collect_at = self.ctx.now + limits.COLLECT_MS if self.open else None
        if not self.open:
            return
        self._rounds += 1
        if not self.placed:
            self._check_placed()
            self._offer_to_stewards()
        for shard, state in enumerate(self.states):
            have = tuple(t for t in state.tasks if t in self.decided)
            stewards = [s for s in self._stewards(shard) if s != self.ctx.me]
            if stewards and len(have) < len(state.tasks):
                self.ctx.send(stewards[self._rounds % len(stewards)], Collect(self.job, shard, have))
        self._complete()

    def _stewards(self, shard: int) -> tuple[PeerId, ...]:
        """The shard's stewards now; what is remembered is how many there were."""
        stewards = self.ctx.stewards(self.job, shard)
        if len(stewards) > self.size:
            self.size = len(stewards)
            self.ctx.save_record(Record(STEWARDS_RECORD, bytes(self.job), bytes([self.size])))
        return stewards

    # --- placement -------------------------------------------------------------------------------------------------
    def on_placed(self, peer: PeerId, shard: int) -> None:
        """A steward says that it holds the job and all inputs."""
        if 0 <= shard < self.spec.shards and peer in self.ctx.stewards(self.job, shard):
            self.placed_on.setdefault(shard, set()).add(peer)
            self._check_placed()

    def _check_placed(self) -> None:
        """Placed: every shard is held by each of its stewards other than this peer, and at least by one."""
        if self.placed or not all(holders >= needed for holders, needed in self.placement()):
            return
        self.placed = True
        holders = sorted({p for peers in self.placed_on.values() for p in peers} - {self.ctx.me})
        self.ctx.trace("placed", job=self.job, peers=holders)

    def placement(self) -> list[tuple[int, int]]:
        """For each shard: how many of its stewards other than this peer hold it with all its inputs, and how many must
        for this one to leave."""
        found = []
        for shard in range(self.spec.shards):
            others = set(self.ctx.stewards(self.job, shard)) - {self.ctx.me}
            found.append((len(self.placed_on.get(shard, set()) & others), max(1, len(others))))
        return found

    # --- logs for people ---------------------------------------------------------------------------------------------
    def ask_log(self, task: int) -> None:
        """Ask whoever works on a task for what it has printed so far."""
        view = self.views.get(task // limits.SHARD_TASKS)
        for active in view.active if view is not None else ():
            if active.task == task:
                for worker in active.workers:
                    self.ctx.send(worker, AskLog(self.job, task))

    def on_task_log(self, worker: PeerId, task: int, log: str) -> None:
        """For people: nothing rests on it."""
        self.logs.pop((task, worker), None)
        self.logs[(task, worker)] = TaskLog(self.job, task, log)
        while len(self.logs) > LOGS_MAX:
            del self.logs[next(iter(self.logs))]

    # --- collecting ------------------------------------------------------------------------------------------------
    def on_view(self, message: View) -> None:
        """For people: how far the shard is. Decides nothing."""
        if 0 <= message.shard < self.spec.shards:
            self.views[message.shard] = message
            self.ctx.trace("view", job=self.job, shard=message.shard)

    def add(self, statement: Statement) -> None:
        """Fold in a statement of this job. Raises PeerError when it cannot be true."""
        shard = shard_of(statement)
        if not 0 <= shard < len(self.states) or not self.open:
            return
        body = statement.body
        if isinstance(body, Verdict) and not self.ctx.may_judge(statement.author, self.job, shard):
            return
        if not isinstance(body, Bid) and self._spoils(statement):
            return
        state = self.states[shard]
        added = state.add(statement)
        if isinstance(added, Contradiction):
            # The stewards may have judged before they saw it, by either commit: what they send again is what counts.
            turns = self._turns.get((body.task, statement.author), 0)
            if turns >= TURNS_MAX:
                return
            self._turns[(body.task, statement.author)] = turns + 1
            state.prefer(statement)
        elif added != "new":
            return
        if not isinstance(body, Bid):
            if statement.kind == "commit":
                self.ctx.save(state.bids[body.bid])
            self.ctx.save(statement)
            self._decide(body.task)
            self._complete()

    def _spoils(self, statement: Statement) -> bool:
        """What a worker does to a task after it was decided changes nothing: its evidence stays as it was judged."""
        body = statement.body
        if body.task not in self.decided:
            return False
        if statement.kind == "fault":
            return True
        known = self.states[body.task // limits.SHARD_TASKS].file(body.task).commits.get(statement.author)
        return statement.kind == "commit" and known is not None and known.id != statement.id

    def restore(
        self, statements: list[Statement], evidence: frozenset[StatementId] | None = None, size: int = 0
    ) -> None:
        """Take up what a former process of this node had saved, in order; `size` as above.

        `evidence`: what the settlement signed, when there is one: that proves itself, whatever came later. This node's
        other roles may have saved more.
        """
        self.size = size if evidence is None else 0
        for statement in statements:
            if statement.kind == "checkpoint" or (evidence is not None and statement.id not in evidence):
                continue
            self.states[shard_of(statement)].add(statement)
        for state in self.states:
            for task in list(state.files):
                self._decide(task)

    def _decide(self, task: int) -> None:
        state = self.states[task // limits.SHARD_TASKS]
        self._stewards(state.shard)
        verdict = state.decided(task, max(self.size, state.listed(task)))
        if verdict is None:
            return
        old = self.decided.get(task)
        self.decided[task] = verdict
        if old is None or old.result != verdict.result:
            self.ctx.trace("task_settled", job=self.job, task=task, outcome=verdict.outcome)
            self._fetch_outputs(task)

    def outputs(self, task: int) -> tuple[File, ...]:
        """The accepted output files of a task; none before it is settled, or when it failed."""
        verdict = self.decided.get(task)
        if verdict is None or verdict.outcome != "accepted":
            return ()
        reveals = self.states[task // limits.SHARD_TASKS].file(task).reveals
        shown = sorted((w, s) for w, s in reveals.items() if s.body.root == verdict.root)
        files: tuple[File, ...] = shown[0][1].body.outputs
        return files

    def _fetch_outputs(self, task: int) -> None:
        missing = [f.blob for f in self.outputs(task) if not self.ctx.has(Part.whole(f.blob))]
        state = self.states[task // limits.SHARD_TASKS]
        file = state.file(task)
        judges = [a for a, s in file.verdicts.items() if s.body.result == self.decided[task].result]
        workers = [w for w, s in file.reveals.items() if s.body.root == self.decided[task].root]
        for output in self.outputs(task):
            self.ctx.hold(output.blob, self.owner)
            if self.ctx.has(Part.whole(output.blob)):
                # This peer may have got it another way: as the task's worker, or as one of its stewards.
                self._missing.pop(output.blob, None)
        for ref in missing:
            self._missing.setdefault(ref, set()).add(task)
            self.ctx.fetch(Part.whole(ref), self.owner, [*sorted(judges), *sorted(workers)])

    def blob_ready(self, part: Part) -> None:
        for task in sorted(self._missing.pop(part.blob, ())) if part.is_whole else ():
            self.ctx.trace("result_here", job=self.job, task=task)
        self._complete()

    def blob_failed(self, part: Part) -> None:
        if part.blob in self._missing:
            self._retry_at = self.ctx.now + limits.FETCH_RETRY_MS

    @property
    def complete(self) -> bool:
        """Every task is decided, and every accepted output is here."""
        return len(self.decided) == self.spec.tasks and not self._missing

    def _complete(self) -> None:
        if not self.complete or not self.open:
            return
        failed = sum(1 for v in self.decided.values() if v.outcome == "failed")
        evidence = [self.statement, *self._evidence()]
        digest = evidence_digest(evidence)
        ids = b"".join(sorted({s.id for s in evidence}))
        self.ctx.save_record(Record(EVIDENCE_RECORD, bytes(self.job), ids))
        self.settlement = self.ctx.sign(Settlement(self.job, self.spec.tasks - failed, failed, digest))
        self.ctx.save(self.settlement)
        self.ctx.publish("job", self.settlement)
        for shard in range(self.spec.shards):
            for steward in self.ctx.stewards(self.job, shard):
                self.ctx.offer(steward, [self.settlement])
        self.ctx.trace("complete", job=self.job, settled=self.spec.tasks - failed, failed=failed)

    def _evidence(self) -> list[Statement]:
        return [s for state in self.states for task in sorted(state.files) for s in state.evidence(task)]

    def certificate(self) -> bytes | None:
        """The job's certificate, once it is complete."""
        if self.settlement is None:
            return None
        return build(self.statement, self._evidence(), self.settlement)
