"""What must hold in every simulated world, judged with knowledge of the whole truth. Each rule has a name.

They stand on what nodes tell and report (notices, reports), never on what is inside of them. Online, after every call
of a node, what is cheap; now and then, and at the end, what is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nexapod.protocol import limits
from nexapod.protocol.certificate.check import check_bytes
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import Effect, Event, Penalise, Received, Run, Send, Tick
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import FaultProven, JobSettled, Notice, ResultStored, TaskDecided
from nexapod.protocol.primitives import JobId, Millis, PeerId, TaskId
from nexapod.protocol.steward.gate.pledges import GATE_RECORD
from nexapod.protocol.steward.tenure.ballots import TENURE_RECORD
from nexapod.sim import budgets, calm, tampering
from nexapod.sim.keys import verify
from nexapod.sim.liars import HONEST_SEATS
from nexapod.sim.truth import is_right, right_outcome

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import Job, World

VIOLATIONS_MAX: Final = 8
SCAN_EVERY: Final = 256
"""Calls of nodes between two looks at the tables of the node that was called."""
CLOCK_FAST: Final = 30
"""By how many thousandths the fastest clock of a machine runs too fast."""
TICKS_PER_SECOND_MAX: Final = 1_000 * (1_000 + CLOCK_FAST) // (1_000 * limits.TICK_MS) + 1
"""A node asks for a call each TICK_MS at most, however many jobs it keeps."""
IDLE_TICKS_MAX: Final = 100
"""Calls in a row that a node asked for as soon as it could, and that came to nothing."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that did not hold."""

    invariant: str
    detail: str
    at: Millis


@dataclass(slots=True)
class _Pace:
    """How one process is called: in this second, and in vain."""

    second: Millis = -1
    count: int = 0
    last: Millis = -1_000
    idle: int = 0


class Checkers:
    """All of them, for one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.violations: list[Violation] = []
        self.violations_max = VIOLATIONS_MAX
        """So many are enough to stop; a measurement may count more."""
        self.decided: dict[TaskId, str] = {}
        self._calls = 0
        self.excused: list[str] = []
        """Jobs that are not finished and need not be."""
        self._paces: dict[tuple[int, int], _Pace] = {}
        """By machine and process."""
        self._refusals: dict[int, str] = {}

    @property
    def hopeless(self) -> bool:
        """Enough has gone wrong to stop."""
        return len(self.violations) >= self.violations_max

    def violated(self, invariant: str, detail: str) -> None:
        found = Violation(invariant, detail, self.world.now)
        if len(self.violations) < self.violations_max and found not in self.violations:
            self.violations.append(found)

    # --- online ------------------------------------------------------------------------------------------------------
    def started(self, machine: Machine, effect: Run) -> None:
        """A task has begun to run."""
        if not machine.honest:
            return
        self.world.conduct.started(machine, effect)
        slots = machine.plan.slots
        busy = len(machine.running) - len(machine.vacated)
        if busy > slots or len(machine.running) > 2 * slots:
            self.violated("capacity", f"peer {machine.index} runs {busy} at once, with {slots} slots")
        if machine.paused or machine.draining:
            self.violated(
                "runs-unasked", f"peer {machine.index} begins {effect.task} though its owner wants nothing new"
            )
        job = self.world.specs.get(effect.task.job)
        # Its submitter takes its own store to be whole, and finds out when it runs the task.
        if job is None or job.plan.unfit or (job.plan.input_missing and machine.index != job.plan.submitter):
            self.violated("runs-without-inputs", f"peer {machine.index} runs {effect.task}")

    def after(self, machine: Machine, event: Event, effects: list[Effect]) -> None:
        """A node has handled an event; its effects are still to be done."""
        if not machine.honest or machine.node is None:
            return
        self._calls += 1
        if isinstance(event, Tick):
            self._count_tick(machine, effects)
        if isinstance(event, Received):
            self._amplifies(machine, event, effects)
        for effect in effects:
            if isinstance(effect, Penalise):
                self._on_penalty(machine, effect)
        if self._calls % SCAN_EVERY == 0:
            self.scan(machine, machine.node)

    def _count_tick(self, machine: Machine, effects: list[Effect]) -> None:
        now = self.world.now
        pace = self._paces.setdefault((machine.index, machine.boot), _Pace())
        pace.count = pace.count + 1 if pace.second == now // 1_000 else 1
        at_once = now - pace.last <= 2 * limits.TICK_MS
        pace.idle = pace.idle + 1 if at_once and not effects else 0
        pace.second, pace.last = now // 1_000, now
        if pace.count == TICKS_PER_SECOND_MAX + 1:
            self.violated("tick-storm", f"peer {machine.index}: {pace.count} ticks in one second")
        if pace.idle == IDLE_TICKS_MAX:
            self.violated("tick-storm", f"peer {machine.index}: {pace.idle} ticks in a row that came to nothing")

    def _amplifies(self, machine: Machine, event: Received, effects: list[Effect]) -> None:
        """Whoever has no part in any job is not told more than a multiple of what it asked. One job, or statement, is
        given whole."""
        asking = self.world.by_peer.get(event.peer)
        if asking is None or asking.honest or asking.plan.steward or asking.plan.works:
            return
        answers = [len(effect.frame) for effect in effects if isinstance(effect, Send) and effect.peer == event.peer]
        allowed = max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * len(event.frame))
        if sum(answers) - max(answers, default=0) > allowed:
            what = f"peer {machine.index} answers {len(event.frame)} bytes of peer {asking.index}'s with {sum(answers)}"
            self.violated("amplification", what)

    def _on_penalty(self, machine: Machine, effect: Penalise) -> None:
        other = self.world.by_peer.get(effect.peer)
        if other is None or not other.honest:
            return
        counted = self.world.stats.honest_penalties
        counted[effect.rule] = counted.get(effect.rule, 0) + 1
        if effect.ban_ms:
            self.violated("honest-ban", f"peer {machine.index} bans honest peer {other.index}: {effect.rule}")
        elif self.world.plan.scenario == "quiet":
            self.violated("honest-penalty", f"peer {machine.index} penalises peer {other.index}: {effect.rule}")

    def refused(self, job: Job, reason: str) -> None:
        """A submitter's own node would not take its job: fine while it knows no steward, and its user tries again."""
        self._refusals[job.index] = reason

    def noticed(self, machine: Machine, notice: Notice) -> None:
        """What a node said has become so."""
        if not machine.honest or machine.node is None:
            return
        match notice:
            case TaskDecided(job, task, outcome, reason):
                self._decided(machine, job, task, outcome, reason)
            case ResultStored(job, task):
                self._truthful(machine, machine.node, TaskId(job, task))
            case JobSettled(job):
                self._certificate(machine, machine.node, job)
            case FaultProven(_, peer):
                other = self.world.by_peer.get(peer)
                if other is not None and other.honest:
                    self.violated("honest-fault", f"peer {machine.index} proves a fault of honest peer {other.index}")
            case _:
                pass

    def _decided(self, machine: Machine, job: JobId, task: int, outcome: str, reason: str) -> None:
        spec = self.world.specs[job].draft
        self.decided[TaskId(job, task)] = outcome
        right = right_outcome(spec, task)
        if outcome != right:
            self.violated("wrong-outcome", f"task {task} of {spec.name}: {outcome} ({reason}), it should be {right}")

    def _truthful(self, machine: Machine, node: Node, task: TaskId) -> None:
        spec = self.world.specs[task.job].draft
        report = node.task_report(task.job, task.index)
        if report is None or not report.outputs:
            return
        if any(file.blob not in machine.blobs for file in report.outputs):
            self.violated("output-missing", f"task {task.index} of {spec.name}: an output is not at its submitter")
        if not is_right(spec, task, report.outputs):
            self.violated("wrong-output", f"task {task.index} of {spec.name}: a wrong output is accepted")

    def _certificate(self, machine: Machine, node: Node, job: JobId) -> None:
        spec = self.world.specs[job].draft
        try:
            certificate = b"".join(node.certificate(job))
        except LocalError as error:
            self.violated("certificate", f"{spec.name}: there is none: {error}")
            return
        report = check_bytes(certificate, verify)
        if not report.ok:
            self.violated("certificate", f"{spec.name}: {'; '.join(report.problems[:3])}")
        elif self.world.plan.scenario == "seated":
            for problem in tampering.check(self.world, self.world.specs[job], certificate):
                self.violated("certificate", f"{spec.name}: {problem}")
        for index in range(spec.tasks):
            self._truthful(machine, node, TaskId(job, index))

    # --- now and then ------------------------------------------------------------------------------------------------
    def scan(self, machine: Machine, node: Node) -> None:
        """Every table within its limit."""
        for table in node.report().tables:
            if table.size > table.most:
                what = f"peer {machine.index} holds {table.size} {table.name}, at most {table.most} allowed"
                self.violated("table", what)

    # --- at the end --------------------------------------------------------------------------------------------------
    def at_end(self) -> None:
        """The network has healed, and had time."""
        for machine in self.world.machines:
            if machine.honest and machine.node is not None:
                self.scan(machine, machine.node)
        if self.hopeless:
            return
        for job in self.world.jobs:
            self._is_finished(job)
        if calm.is_calm(self.world.plan):
            calm.check(self.world)
        if self.world.plan.scenario == "seated":
            budgets.check(self.world)
        for job in self.world.jobs:
            self._leaves_nothing(job)

    def _is_finished(self, job: Job) -> None:
        if job.over or job.plan.input_missing:
            return
        if not self._can_finish(job):
            self.excused.append(job.draft.name)
            return
        if job.plan.unfit:
            if job.placed_at is None:
                self.violated("liveness", f"{job.draft.name} is not placed: {self._progress(job)}")
            return
        if self.world.machines[job.plan.submitter].gone:
            if job.placed_at is not None and not self.seats_finished(job):
                self.violated("liveness", f"{job.draft.name}, placed by a submitter that is gone, is not finished")
        else:
            self.violated("liveness", f"{job.draft.name} is not settled: {self._progress(job)}")

    def _leaves_nothing(self, job: Job) -> None:
        """Whoever knows that a job is over keeps nothing of what it had pledged and voted."""
        for machine in self.world.machines:
            node = machine.node
            if job.id is None or node is None or not machine.honest:
                continue
            report = node.job_report(job.id)
            own = [kind for kind, key in machine.disk if kind in (GATE_RECORD, TENURE_RECORD) and key[:32] == job.id]
            if own and report is not None and report.standing != "open":
                self.violated("keeps-too-much", f"peer {machine.index} keeps {own} of a job that is {report.standing}")

    def _can_finish(self, job: Job) -> bool:
        """Whether honest members of its panel could be a quorum of seats. Of a panel of two or one, none may lie: what
        it holds back, or because it is banned, nobody can do in its place."""
        panel = self._panel(job)
        members = [self.world.by_peer[peer] for peer in panel]
        # Those that have gone for good decide nothing, and caretakers come late.
        cared_for = self.world.plan.caretaker_ms < self.world.plan.settle_within_ms
        there = [one for one in members if cared_for or not one.gone]
        honest = sum(1 for one in there if one.plan.liar in (None, *HONEST_SEATS))
        return not panel or honest > min(limits.SEATS, len(panel)) // 2

    def _panel(self, job: Job) -> tuple[PeerId, ...]:
        """As whoever knows the job says."""
        for machine in self.world.machines:
            report = machine.node.job_report(job.id) if machine.node is not None and job.id is not None else None
            if machine.honest and report is not None:
                return report.panel
        return ()

    def seats_finished(self, job: Job) -> bool:
        """Of each shard some honest seat has every task decided."""
        if job.id is None:
            return False
        wanted = {shard: len(job.draft.shard_tasks(shard)) for shard in range(job.draft.shards)}
        for machine in self.world.machines:
            if machine.honest and machine.node is not None:
                report = machine.node.job_report(job.id)
                for kept in report.shards if report is not None else ():
                    if kept.decided >= wanted.get(kept.shard, limits.SHARD_TASKS + 1):
                        del wanted[kept.shard]
        return not wanted

    def _progress(self, job: Job) -> str:
        machine = self.world.machines[job.plan.submitter]
        report = machine.node.job_report(job.id) if machine.node is not None and job.id is not None else None
        if report is None:
            return f"its submitter {machine.index} does not know it {self._refusals.get(job.index, '')}"
        return f"{report}"[:600]
