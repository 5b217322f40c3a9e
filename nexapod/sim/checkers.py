"""What must hold in every simulated world, judged with knowledge of the whole truth. Each rule has a name.

Online, after every call of a node, what is cheap; now and then, and at the end, what is not. A checker reads nodes and
never changes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nexapod.protocol import certificate, limits, messages
from nexapod.protocol.events import Effect, Event, Penalise, Tick, Trace
from nexapod.protocol.node import Node
from nexapod.protocol.statements import Verdict
from nexapod.protocol.steward import INTEREST_MAX, Steward
from nexapod.protocol.submitter import Submission
from nexapod.protocol.types import Digest, JobId, Millis, TaskId
from nexapod.sim.keys import verify
from nexapod.sim.truth import fails, true_root

if TYPE_CHECKING:
    from nexapod.sim.world import Box, Job, World

VIOLATIONS_MAX = 8
SCAN_EVERY = 256
"""Calls of nodes between two looks at the tables of the node that was called."""
TICKS_PER_SECOND_MAX = 120


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that did not hold."""

    invariant: str
    detail: str
    at: Millis


class Checkers:
    """All of them, for one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[Violation] = []
        self._calls = 0
        self._ticks: dict[int, tuple[Millis, int]] = {}
        self._believed: dict[TaskId, dict[int, tuple[str, Digest]]] = {}

    @property
    def hopeless(self) -> bool:
        """Enough has gone wrong to stop."""
        return len(self.violations) >= VIOLATIONS_MAX

    def violated(self, invariant: str, detail: str) -> None:
        found = Violation(invariant, detail, self.world.now)
        if len(self.violations) < VIOLATIONS_MAX and found not in self.violations:
            self.violations.append(found)

    # --- online ------------------------------------------------------------------------------------------------------
    def sent(self, box: Box, frame: bytes) -> None:
        """Counted by kind: what a protocol costs is what it says. Only a few bytes are looked at: frames are many."""
        known = len(frame) > 1 and frame[0] == 0x92 and frame[1] < len(messages.KINDS)
        kind = messages.KINDS[frame[1]] if known else "garbage"
        if kind == "Offer" and b"profile" in frame[:24]:
            kind = "Profile"
        by_kind = self.world.stats.by_kind
        by_kind[kind] = by_kind.get(kind, 0) + 1

    def started(self, box: Box) -> None:
        """A task has begun to run."""
        slots = box.plan.slots
        if box.honest and (len(box.running) - len(box.leaving) > slots or len(box.running) > 2 * slots):
            self.violated("capacity", f"peer {box.index} runs more than its {slots} slots")

    def after(self, box: Box, event: Event, effects: list[Effect]) -> None:
        """A node has handled an event; its effects are still to be done."""
        if not box.honest or box.node is None:
            return
        node = box.node
        self._calls += 1
        if isinstance(event, Tick):
            self._count_tick(box)
        for effect in effects:
            match effect:
                case Trace(name, facts):
                    self._on_trace(box, node, name, dict(facts))
                case Penalise():
                    self._on_penalty(box, effect)
        if self._calls % SCAN_EVERY == 0:
            self.scan(box, node)

    def _count_tick(self, box: Box) -> None:
        second = self.world.now // 1_000
        when, count = self._ticks.get(box.index, (second, 0))
        count = count + 1 if when == second else 1
        self._ticks[box.index] = (second, count)
        if count == TICKS_PER_SECOND_MAX:
            self.violated("tick-storm", f"peer {box.index}: {count} ticks in one second")

    def _on_trace(self, box: Box, node: Node, name: str, facts: dict[str, Any]) -> None:
        match name:
            case "settled":
                self._truthful(box, facts["job"], facts["task"], facts["outcome"], facts["root"], "steward")
            case "task_settled":
                submission = node.submissions.get(facts["job"])
                if submission is not None:
                    verdict = submission.decided[facts["task"]]
                    self._truthful(box, facts["job"], facts["task"], verdict.outcome, verdict.root, "submitter")
            case "fault_proven":
                worker = self.world.by_peer[facts["worker"]]
                if worker.honest:
                    self.violated("honest-fault", f"peer {worker.index} contradicted itself on task {facts['task']}")
            case "granted":
                self._within_wanted(box, node, facts)
            case "complete":
                submission = node.submissions.get(facts["job"])
                if submission is not None:
                    self._certificate(box, submission)

    def _truthful(self, box: Box, job: JobId, task: int, outcome: str, root: Digest, role: str) -> None:
        known = self.world.specs[job]
        self._believed.setdefault(TaskId(job, task), {})[box.index] = (outcome, root)
        right = "failed" if fails(known.spec, task) else "accepted"
        where = f"peer {box.index} ({role}), task {task} of {known.spec.name}"
        if outcome == "accepted" and (right == "failed" or root != true_root(TaskId(known.id, task))):
            self.violated("wrong-output", f"{where}: a wrong output is settled")
        elif outcome != right:
            self.violated("wrong-outcome", f"{where}: {outcome}, and it should be {right}")

    def _on_penalty(self, box: Box, effect: Penalise) -> None:
        other = self.world.by_peer.get(effect.peer)
        if other is None or not other.honest:
            return
        counted = self.world.stats.honest_penalties
        counted[effect.rule] = counted.get(effect.rule, 0) + 1
        if effect.ban:
            self.violated("honest-ban", f"peer {box.index} bans honest peer {other.index}: {effect.rule}")
        elif self.world.plan.scenario == "quiet":
            self.violated("honest-penalty", f"peer {box.index} penalises honest peer {other.index}: {effect.rule}")

    def _within_wanted(self, box: Box, node: Node, facts: dict[str, Any]) -> None:
        """Of the workers that have a task, no more have yet to commit than results are wanted, late ones aside.

        A steward that has just restarted takes every saved bid for a lease, until they run out: not then.
        """
        if box.boot > 1 and self.world.now < box.clock_since + 2 * limits.LEASE_TTL_MS:
            return
        for (job, _), steward in node.stewards.items():
            if job != facts["job"]:
                continue
            for task in facts["tasks"]:
                if task not in steward.state.tasks:
                    continue
                desk = steward.desks[task]
                commits = steward.state.file(task).commits
                running = [worker for worker in desk.leases if worker not in commits]
                if desk.settled is None and desk.wanted and len(running) > desk.wanted + desk.extra:
                    self.violated(
                        "leases",
                        f"peer {box.index} has leased task {task} to {sorted(desk.leases)}, and wants {desk.wanted}",
                    )

    def _certificate(self, box: Box, submission: Submission) -> None:
        data = submission.certificate()
        if data is None:
            self.violated("certificate", f"peer {box.index}: a complete job has none")
            return
        report = certificate.check(data, verify)
        if not report.ok:
            self.violated("certificate", f"peer {box.index}: {'; '.join(report.problems[:3])}")
        for task in report.tasks:
            if task.outcome == "accepted" and task.root != true_root(TaskId(submission.job, task.index)):
                self.violated("certificate", f"peer {box.index}: it proves a wrong output of task {task.index}")

    # --- now and then ------------------------------------------------------------------------------------------------
    def scan(self, box: Box, node: Node) -> None:
        """Every table within its limit."""
        worker, directory = node.worker, node.ctx.directory
        tables: list[tuple[str, int, int]] = [
            ("profiles", len(directory.known), limits.PROFILES_MAX),
            ("jobs", len(node.jobs), limits.JOBS_MAX),
            ("shards", len(node.stewards), limits.SHARDS_MAX),
            ("penalties", len(node.penalties), limits.PROFILES_MAX),
            ("prospects", len(worker.prospects), limits.JOBS_MAX),
            ("effects", len(node.ctx.effects), 0),
            ("words to itself", len(node.ctx.to_self), 0),
        ]
        for (_, shard), steward in node.stewards.items():
            tables += self._of_steward(shard, steward)
        for name, size, most in tables:
            if size > most:
                self.violated("table", f"peer {box.index} holds {size} {name}, at most {most} allowed")

    def _of_steward(self, shard: int, steward: Steward) -> list[tuple[str, int, int]]:
        state = steward.state
        held: dict[str, int] = {}
        for desk in steward.desks.values():
            for peer in desk.leases:
                held[peer] = held.get(peer, 0) + 1
        return [
            (f"bids of shard {shard}", len(state.bids), limits.STATEMENTS_PER_SHARD_MAX),
            (f"statements of shard {shard}", state.summary()[0], 2 * limits.STATEMENTS_PER_SHARD_MAX),
            (f"desks of shard {shard}", len(steward.desks), limits.SHARD_TASKS),
            (f"waiting workers of shard {shard}", len(steward._interest), INTEREST_MAX),
            (f"lapses of shard {shard}", max((len(d.lapses) for d in steward.desks.values()), default=0), 512),
            (f"leases of one worker on shard {shard}", max(held.values(), default=0), limits.SHARD_TASKS),
        ]

    # --- at the end --------------------------------------------------------------------------------------------------
    def at_end(self) -> None:
        """The network has healed, and had time."""
        for box in self.world.boxes:
            if box.honest and box.node is not None:
                self.scan(box, box.node)
                self._no_honest_fault(box, box.node)
        if self.hopeless:
            return
        for job in self.world.jobs:
            self._one_verdict(job)
            self._complete(job)

    def _no_honest_fault(self, box: Box, node: Node) -> None:
        for steward in node.stewards.values():
            for task, file in steward.state.files.items():
                for peer in file.faults:
                    if self.world.by_peer[peer].honest:
                        index = self.world.by_peer[peer].index
                        self.violated("honest-fault", f"peer {box.index} holds a fault of {index} on task {task}")

    def _one_verdict(self, job: Job) -> None:
        """All honest observers that take a task for settled take it for settled alike."""
        for task in range(job.spec.tasks):
            believed = self._believed.get(TaskId(job.id, task), {})
            seen: dict[tuple[str, Digest], int] = {}
            for box in self.world.boxes:
                if not box.honest or box.node is None:
                    continue
                # Stewards forget a job that is over; what they held last is remembered here.
                now = [verdict.result for verdict in _settled(box.node, job.id, task)]
                for result in now or [believed[i] for i in (box.index,) if i in believed]:
                    seen.setdefault(result, box.index)
            if len(seen) > 1:
                self.violated("two-verdicts", f"task {task} of {job.spec.name}: {sorted(seen.values())} differ")

    def _complete(self, job: Job) -> None:
        submitter = self.world.boxes[job.plan.submitter]
        if submitter.gone:
            if job.placed_at is not None and job.complete_at is None and not self.stewards_finished(job):
                self.violated("liveness", f"{job.spec.name}, placed by a submitter that is gone, is not finished")
        elif job.complete_at is None:
            self.violated("liveness", f"{job.spec.name} is not complete: {self._progress(job)}")

    def stewards_finished(self, job: Job) -> bool:
        """Every shard is settled on a majority of what are, in truth, its live honest stewards."""
        for shard in range(job.spec.shards):
            keepers = [
                box.node.stewards[job.id, shard]
                for box in self.world.boxes
                if box.honest and box.node is not None and (job.id, shard) in box.node.stewards
            ]
            finished = [s for s in keepers if s.active and s.finished]
            if len(finished) < min(2, len([s for s in keepers if s.active])) or not finished:
                return False
        return True

    def _progress(self, job: Job) -> str:
        box = self.world.boxes[job.plan.submitter]
        submission = box.node.submissions.get(job.id) if box.node is not None else None
        if submission is None:
            return f"its submitter {box.index} is down or does not know it"
        open_tasks = [t for t in range(job.spec.tasks) if t not in submission.decided]
        return (
            f"{len(submission.decided)} of {job.spec.tasks} decided, open {open_tasks[:8]},"
            f" {len(submission._missing)} outputs missing, placed: {submission.placed}"
        )


def _settled(node: Node, job: JobId, task: int) -> list[Verdict]:
    found = []
    steward = node.stewards.get((job, task // limits.SHARD_TASKS))
    if steward is not None and steward.active and task in steward.desks:
        verdict = steward.desks[task].settled
        if verdict is not None:
            found.append(verdict)
    submission = node.submissions.get(job)
    if submission is not None and task in submission.decided:
        found.append(submission.decided[task])
    return found
