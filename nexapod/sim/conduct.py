"""What honest peers may say and do, judged by all that was said in a world: each rule by itself, whatever comes of it.

An outcome can be right although a rule was broken on the way to it. Here every frame of an honest peer is held against
what everybody has said so far. Nothing of the core's own judgement is asked: what is counted here is counted anew, and
where the world cannot tell (a seat that spoke to itself), nothing is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Run
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, TaskId
from nexapod.protocol.rules import groups, seats
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.bodies import Admission, Commit, Freeze, FreezeItem, Reveal, Succession, Verdict
from nexapod.protocol.wire.bodies import VerdictItem as Judged
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import verify
from nexapod.sim.truth import is_right

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

Entry: TypeAlias = tuple[PeerId, str, StatementId]
"""(worker, group, commit) of a freeze."""
Shard: TypeAlias = tuple[JobId, int]
_KEPT: Final = ("commit", "reveal", "freeze", "verdict")
"""What its author must know of after a restart, or it would contradict itself."""
_FRAMES_MAX: Final = 2_048
_TOLD: Final = frozenset(messages.KINDS.index(kind) for kind in ("Deliver", "Grant", "Bid", "Value"))


class Conduct:
    """Of one world. `violated(rule, detail)`."""

    def __init__(self, world: World, violated: Callable[[str, str], None]) -> None:
        self._world = world
        self._violated = violated
        self._frames: dict[bytes, messages.Message | None] = {}
        self._bodies: dict[StatementId, Statement] = {}
        self._holders: dict[Shard, dict[tuple[PeerId, ...], None]] = {}
        """Everybody who was ever named to hold a shard, together."""
        self._signers: dict[StatementId, set[PeerId]] = {}
        self._asked: dict[tuple[JobId, int, StatementId], int] = {}
        """(job, task, commit) -> how many groups the largest freeze of a quorum has that names it."""
        self._admitted: set[tuple[JobId, int, int]] = set()
        """Rounds (job, epoch, number) whose admission a quorum has signed."""
        self._shown: dict[tuple[JobId, int, StatementId], Digest | None] = {}
        """What was revealed: the root of a result that is ok, None of another."""
        self._outputs: dict[tuple[JobId, int, StatementId], bool] = {}
        """Whether it was right."""
        self._heard: dict[int, set[object]] = {}
        """What each machine has heard on its author's own link: commits, and jobs that it bids for."""
        self._granted: dict[tuple[int, TaskId], set[PeerId]] = {}
        self._said: dict[tuple[object, ...], object] = {}
        """What each peer has signed of which it may sign one."""
        self._judged: set[tuple[int, StatementId]] = set()

    # --- what happens ----------------------------------------------------------------------------------------------
    def received(self, machine: Machine, peer: PeerId, frame: bytes) -> None:
        """A frame is read by a machine."""
        message = self._message(frame)
        heard = self._heard.setdefault(machine.index, set())
        match message:
            case messages.Deliver():
                heard.update(s.id for s in self._statements(message) if s.kind == "commit" and s.author == peer)
            case messages.Bid(job):
                heard.add((job, peer))
            case messages.Grant(job=job, tasks=tasks):
                for task in tasks:
                    self._granted.setdefault((machine.index, TaskId(job, task)), set()).add(peer)

    def sent(self, machine: Machine, frame: bytes) -> None:
        """A frame leaves a machine, whether it arrives or not."""
        message = self._message(frame)
        if isinstance(message, messages.Grant) and machine.honest:
            self._grants(machine, message)
        if isinstance(message, messages.Value) and message.author == machine.peer and machine.honest:
            self._shows_value(machine, message)
        for statement in self._statements(message) if isinstance(message, messages.Deliver) else ():
            self._note(statement)
            if machine.honest:
                self._judge(machine, statement)

    def started(self, machine: Machine, effect: Run) -> None:
        """An honest machine begins a task: a quorum of some seats must have granted it."""
        job, shard = effect.task.job, effect.task.shard
        granted = self._granted.get((machine.index, effect.task), set()) | {machine.peer}
        if not any(self._is_quorum(granted, holders) for holders in self._holders_of(job, shard)):
            self._violated("runs-ungranted", f"peer {machine.index} begins {effect.task}, granted by {len(granted)}")

    # --- reading ---------------------------------------------------------------------------------------------------
    def _message(self, frame: bytes) -> messages.Message | None:
        if len(frame) < 2 or frame[1] not in _TOLD:
            return None
        if frame not in self._frames:
            if len(self._frames) >= _FRAMES_MAX:
                self._frames.clear()
            try:
                self._frames[frame] = messages.decode(frame)
            except PeerError:
                self._frames[frame] = None
        return self._frames[frame]

    def _statements(self, message: messages.Deliver) -> list[Statement]:
        found = []
        for envelope in message.envelopes:
            try:
                statement = statements.decode(envelope, verify)
            except PeerError:
                continue
            self._bodies.setdefault(statement.id, statement)
            found.append(statement)
        return found

    # --- what everybody has said -----------------------------------------------------------------------------------
    def _note(self, statement: Statement) -> None:
        match statement.body:
            case Succession(job, shard, _, holders):
                self._holders_of(job, shard)[holders] = None
            case Freeze() as freeze:
                self._note_freeze(statement, freeze)
            case Admission() as admission:
                self._note_admission(statement, admission)
            case Reveal() as reveal:
                self._note_reveal(reveal)

    def _note_admission(self, statement: Statement, body: Admission) -> None:
        signers = self._signers.setdefault(statement.id, set())
        signers.update(statement.signers)
        if any(self._is_quorum(signers, holders) for holders in self._holders_of(body.job, 0)):
            self._admitted.add((body.job, body.epoch, body.round))

    def _note_freeze(self, statement: Statement, freeze: Freeze) -> None:
        signers = self._signers.setdefault(statement.id, set())
        if signers.issuperset(statement.signers):
            return
        signers.update(statement.signers)
        if not any(self._is_quorum(signers, holders) for holders in self._holders_of(freeze.job, freeze.shard)):
            return
        for item in freeze.items:
            entries = _entries(freeze, item)
            count = len({group for _, group, _ in entries})
            for _, _, commit in entries:
                key = freeze.job, item.task, commit
                self._asked[key] = max(count, self._asked.get(key, 0))

    def _note_reveal(self, reveal: Reveal) -> None:
        spec = self._spec(reveal.job)
        for item in reveal.items if spec is not None else ():
            key = reveal.job, item.task, item.commit
            if key not in self._shown:
                assert spec is not None
                ok = item.outcome == "ok"
                self._shown[key] = statements.output_root(item.outcome, item.exit, item.outputs) if ok else None
                self._outputs[key] = ok and is_right(spec, TaskId(reveal.job, item.task), item.outputs)

    def _spec(self, job: JobId) -> JobSpec | None:
        known = self._world.specs.get(job)
        return None if known is None else known.draft

    def _holders_of(self, job: JobId, shard: int) -> dict[tuple[PeerId, ...], None]:
        found = self._holders.get((job, shard))
        if found is None:
            found = {}
            known = self._world.specs.get(job)
            if known is not None and known.panel:
                found[seats.first_holders(job, shard, known.panel)] = None
                self._holders[job, shard] = found
        return found

    @staticmethod
    def _is_quorum(signers: Iterable[PeerId], holders: tuple[PeerId, ...]) -> bool:
        return 2 * len(set(signers).intersection(holders)) > len(holders)

    # --- what an honest peer says ----------------------------------------------------------------------------------
    def _judge(self, machine: Machine, statement: Statement) -> None:
        """What it has signed itself, when it says it for the first time."""
        if machine.peer not in statement.signers or (machine.index, statement.id) in self._judged:
            return
        spec = self._spec(getattr(statement.body, "job", JobId(b"")))
        if spec is None:
            return
        self._judged.add((machine.index, statement.id))
        kept = chain(machine.disk.values(), machine.removed)
        if statement.kind in _KEPT and not any(statement.raw in value for value in kept):
            self._violated("says-unsaved", f"peer {machine.index} says a {statement.kind} that is not on its disk")
        match statement.body:
            case Commit() as commit:
                for item in commit.items:
                    self._once(machine, ("commit", commit.job, item.task), item.sealed)
            case Reveal() as reveal:
                self._reveals(machine, reveal, spec)
            case Admission() as admission:
                self._admits(machine, admission, spec)
                self._once(machine, ("admission", admission.job, admission.epoch, admission.round), statement.id)
            case Freeze() as freeze:
                for entry in freeze.items:
                    self._freezes(machine, freeze, entry, spec)
            case Verdict() as verdict:
                for judged in verdict.items:
                    self._pronounces(machine, verdict, judged, spec)

    def _once(self, machine: Machine, what: tuple[object, ...], value: object) -> None:
        if self._said.setdefault((machine.index, *what), value) != value:
            self._violated("signs-twice", f"peer {machine.index} signs two of {what[0]} {what[2:]}")

    def _reveals(self, machine: Machine, reveal: Reveal, spec: JobSpec) -> None:
        for item in reveal.items:
            if self._asked.get((reveal.job, item.task, item.commit), 0) < spec.validate.agree:
                self._violated("reveals-unasked", f"peer {machine.index} shows task {item.task} before it is frozen")

    def _admits(self, machine: Machine, admission: Admission, spec: JobSpec) -> None:
        heard = self._heard.get(machine.index, set())
        for worker, group in admission.workers:
            if worker != machine.peer and (admission.job, worker) not in heard:
                self._violated("admits-unseen", f"peer {machine.index} admits one that has not bid there")
            self._groups_as_seen(machine, worker, group, spec)

    def _groups_as_seen(self, machine: Machine, worker: PeerId, group: str, spec: JobSpec) -> None:
        other = self._world.by_peer.get(worker)
        seen = None if other is None else groups.group_of(worker, other.addr, spec.policy.grouping)
        if seen != group:
            self._violated("wrong-group", f"peer {machine.index} says {group} of a worker in {seen}")

    def _shows_value(self, machine: Machine, value: messages.Value) -> None:
        if value.job in self._world.specs and (value.job, value.epoch, value.round) not in self._admitted:
            self._violated("shows-value-early", f"peer {machine.index}: round {value.round} has no quorum")
        self._once(machine, ("value", value.job, value.epoch, value.round), value.value)

    def _freezes(self, machine: Machine, freeze: Freeze, item: FreezeItem, spec: JobSpec) -> None:
        heard = self._heard.get(machine.index, set())
        entries = _entries(freeze, item)
        for worker, group, commit in entries:
            seen = worker == machine.peer or commit in heard
            if not seen and (freeze.job, item.task, commit) not in self._asked:
                self._violated("freezes-unseen", f"peer {machine.index}: a commit of task {item.task}")
            self._groups_as_seen(machine, worker, group, spec)
        if len({group for _, group, _ in entries}) < spec.validate.agree:
            self._violated("freezes-few", f"peer {machine.index}: task {item.task}, {len(entries)} commits")
        self._once(machine, ("freeze", freeze.job, freeze.epoch, item.task, item.round), entries)

    def _pronounces(self, machine: Machine, verdict: Verdict, item: Judged, spec: JobSpec) -> None:
        freeze = self._bodies.get(verdict.freezes[item.freeze])
        if freeze is None:
            return
        frozen = next((one for one in freeze.body.items if one.task == item.task), None)
        entries = () if frozen is None else _entries(freeze.body, frozen)
        keys = [(verdict.job, item.task, commit) for _, _, commit in entries]
        counted = [keys[place] for place in _places_counted(item, len(keys))]
        if any(key not in self._shown for key in counted):
            return
        support = {key: self._support(keys.index(key), keys, entries, counted) for key in counted}
        good = [key for key in counted if support[key] >= spec.validate.agree]
        if item.outcome == "accepted":
            chosen = keys[item.representative] if item.representative < len(keys) else None
            if not good or chosen != good[0]:
                self._violated("judges-wrongly", f"peer {machine.index} accepts what is not task {item.task}'s result")
            elif not self._outputs[good[0]]:
                self._violated("judges-wrongly", f"peer {machine.index} accepts a wrong result of task {item.task}")
        elif len({self._shown[key] for key in good}) == 1:
            self._violated("judges-wrongly", f"peer {machine.index} fails task {item.task} on which workers agree")

    def _support(
        self,
        place: int,
        keys: list[tuple[JobId, int, StatementId]],
        entries: tuple[Entry, ...],
        counted: list[tuple[JobId, int, StatementId]],
    ) -> int:
        """How many groups say the same as one result, each by its first."""
        root = self._shown[keys[place]]
        if root is None:
            return 0
        firsts: dict[str, Digest | None] = {}
        for (_, group, _), key in zip(entries, keys, strict=True):
            if key in counted:
                firsts.setdefault(group, self._shown[key])
        return sum(1 for other in firsts.values() if other == root)

    def _grants(self, machine: Machine, grant: messages.Grant) -> None:
        known = self._world.specs.get(grant.job)
        if known is None or machine.index == known.plan.submitter:
            # Its submitter takes its own store to be whole.
            return
        lacking = [part for part in known.draft.shard_parts(grant.shard) if part.blob not in machine.blobs]
        if lacking:
            self._violated("grants-without-inputs", f"peer {machine.index} grants tasks of shard {grant.shard}")


def _entries(freeze: Freeze, item: FreezeItem) -> tuple[Entry, ...]:
    return tuple((*freeze.workers[worker], freeze.commits[commit]) for worker, commit in item.entries)


def _places_counted(item: Judged, entries: int) -> list[int]:
    """Of an acceptance those that it names: what was shown after it changes nothing. Of a failure all but what it says
    is missing."""
    if item.outcome == "failed":
        return [place for place in range(entries) if place not in item.missing]
    named = {item.representative, *(place for pair in item.pairs for place in pair)}
    return sorted(place for place in named if place < entries)
