"""What honest peers may say and do, judged by all that was said in a world: each rule by itself, whatever comes of it.

An outcome can be right although a rule was broken on the way to it. Here every frame of an honest peer is held against
what everybody has said so far. Nothing of the core's own judgement is asked: what is counted here is counted anew, and
where the world cannot tell (a seat that spoke to itself), nothing is said.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Run
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, TaskId, key_of_peer_id
from nexapod.protocol.rules import groups
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.bodies import (
    Admission,
    Adoption,
    Beacon,
    Commit,
    Freeze,
    FreezeItem,
    Placed,
    Reveal,
    Succession,
    Verdict,
)
from nexapod.protocol.wire.bodies import VerdictItem as Judged
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.answers import Answers
from nexapod.sim.judges import Judges
from nexapod.sim.keys import verify
from nexapod.sim.knowledge import Knowledge
from nexapod.sim.offices import Offices
from nexapod.sim.shares import Shares
from nexapod.sim.truth import is_right

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

Entry: TypeAlias = tuple[PeerId, str, StatementId]
"""(worker, group, commit) of a freeze."""
_KEPT: Final = ("commit", "reveal", "freeze", "verdict")
"""What its author must know of after a restart, or it would contradict itself."""
_FRAMES_MAX: Final = 2_048
_TOLD: Final = frozenset(
    messages.KINDS.index(kind) for kind in ("Deliver", "Grant", "Bid", "Value", "Status", "Object")
)


_ABOUT_SHARES: Final = frozenset(messages.KINDS.index(kind) for kind in ("Claim", "Lease"))
"""Many: looked at where a world can afford it."""


class Conduct:
    """Of one world. `violated(rule, detail)`."""

    def __init__(self, world: World, violated: Callable[[str, str], None]) -> None:
        self._world = world
        self._violated = violated
        self._frames: dict[bytes, messages.Message | None] = {}
        self._delivered: dict[bytes, tuple[Statement, ...]] = {}
        """The statements of the frames that deliver any: most are sent to several machines, and then read by each."""
        self._known = Knowledge(world)
        self._judges = Judges(world, self._known, violated)
        self._offices = Offices(world, self._known, violated)
        self._answers = Answers(world, self._known, violated)
        self._shares = Shares(world, self._known, self._judges.ticket, violated)
        strict = world.plan.scenario != "mixed" and world.plan.network.grouping == "peer"
        self._told = _TOLD | _ABOUT_SHARES if strict else _TOLD
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
        self._leased: dict[TaskId, dict[PeerId, None]] = {}
        """By task, the workers to whom an honest seat has granted it."""
        self._said: dict[tuple[object, ...], object] = {}
        """What each peer has signed of which it may sign one."""
        self._judged: set[tuple[int, StatementId]] = set()

    # --- what happens ----------------------------------------------------------------------------------------------
    def received(self, machine: Machine, peer: PeerId, frame: bytes) -> None:
        """A frame is read by a machine."""
        self._known.heard(machine, peer, frame)
        message = self._message(frame)
        heard = self._heard.setdefault(machine.index, set())
        match message:
            case messages.Deliver():
                for statement in self._statements(frame, message):
                    self._known.note(machine, statement)
                    self._answers.asked(machine, peer, statement)
                    if statement.kind == "commit" and statement.author == peer:
                        heard.add(statement.id)
            case messages.Bid(job):
                heard.add((job, peer))
            case messages.Value():
                self._offices.heard_value(machine, message)
            case messages.Claim():
                self._shares.claimed(machine, peer, message)
            case messages.Grant(job=job, tasks=tasks):
                for task in tasks:
                    self._granted.setdefault((machine.index, TaskId(job, task)), set()).add(peer)

    def sent(self, machine: Machine, peer: PeerId, frame: bytes) -> None:
        """A frame leaves a machine, whether it arrives or not."""
        message = self._message(frame)
        for statement in self._statements(frame, message) if isinstance(message, messages.Deliver) else ():
            self._note(machine, statement)
            if machine.honest:
                self._answers.signed(machine, statement)
                self._judge(machine, statement)
                self._shows_to(machine, peer, statement)
        if machine.honest:
            self._answers.said(machine, message)
            self._says(machine, peer, message)

    def _says(self, machine: Machine, peer: PeerId, message: messages.Message | None) -> None:
        match message:
            case messages.Grant(job=job):
                spec = self._spec(job)
                for task in message.tasks:
                    self._leased.setdefault(TaskId(job, task), {})[peer] = None
                if spec is not None:
                    self._judges.grants(machine, peer, message, spec)
                    self._grants(machine, message)
            case messages.Value(author=author) if author == machine.peer:
                self._shows_value(machine, message)
            case messages.Lease(job=job, shard=shard):
                spec = self._spec(job)
                if spec is not None and peer == self._first_told(machine, job, shard):
                    self._shares.leases(machine, message, spec)
            case messages.Status():
                self._judges.answers(machine, peer, message)

    def started(self, machine: Machine, effect: Run) -> None:
        """An honest machine begins a task: a quorum of some seats must have granted it."""
        job, shard = effect.task.job, effect.task.shard
        granted = self._granted.get((machine.index, effect.task), set()) | {machine.peer}
        if not self._known.is_quorum(granted, job, shard):
            self._violated("runs-ungranted", f"peer {machine.index} begins {effect.task}, granted by {len(granted)}")

    def _first_told(self, machine: Machine, job: JobId, shard: int) -> PeerId | None:
        """A seat says the same to all the others: it is looked at once."""
        holders = next(iter(self._known.holders_of(job, shard)), ())
        return next((holder for holder in holders if holder != machine.peer), None)

    def leased(self, task: TaskId) -> tuple[PeerId, ...]:
        """The workers to whom honest seats have granted it, of those that were told on a link."""
        return tuple(self._leased.get(task, ()))

    def is_plain(self, job: JobId) -> bool:
        """Whether nobody ever spoke of other seats than the job's own."""
        return self._known.is_plain(job, 0)

    # --- reading ---------------------------------------------------------------------------------------------------
    def _message(self, frame: bytes) -> messages.Message | None:
        if len(frame) < 2 or frame[1] not in self._told:
            return None
        if frame not in self._frames:
            if len(self._frames) >= _FRAMES_MAX:
                self._frames.clear()
                self._delivered.clear()
            try:
                self._frames[frame] = messages.decode(frame)
            except PeerError:
                self._frames[frame] = None
        return self._frames[frame]

    def _statements(self, frame: bytes, message: messages.Deliver) -> tuple[Statement, ...]:
        found = self._delivered.get(frame)
        if found is None:
            found = self._delivered[frame] = tuple(_readable(message))
        return found

    # --- what everybody has said -----------------------------------------------------------------------------------
    def _note(self, machine: Machine, statement: Statement) -> None:
        if not self._known.note(machine, statement):
            return
        self._judges.note(statement)
        self._offices.note(statement)
        match statement.body:
            case Freeze() as freeze:
                self._note_freeze(statement, freeze)
            case Admission(job, epoch, round_):
                if self._known.counted(statement.id, job, 0):
                    self._admitted.add((job, epoch, round_))
            case Reveal() as reveal:
                self._note_reveal(statement.author, reveal)

    def _note_freeze(self, statement: Statement, freeze: Freeze) -> None:
        if not self._known.counted(statement.id, freeze.job, freeze.shard):
            return
        for item in freeze.items:
            entries = _entries(freeze, item)
            count = len({group for _, group, _ in entries})
            for _, _, commit in entries:
                key = freeze.job, item.task, commit
                self._asked[key] = max(count, self._asked.get(key, 0))

    def _note_reveal(self, author: PeerId, reveal: Reveal) -> None:
        """What fits its commit: nothing else is a result."""
        spec = self._spec(reveal.job)
        for item in reveal.items if spec is not None else ():
            key = reveal.job, item.task, item.commit
            commit = self._known.statements.get(item.commit)
            if key in self._shown or commit is None or commit.signers != (author,):
                continue
            assert spec is not None
            ok = item.outcome == "ok"
            root = statements.output_root(item.outcome, item.exit, item.outputs)
            sealed = _sealed(reveal.job, item.task, author, item.salt, root, item.resumed)
            if any(one.task == item.task and one.sealed == sealed for one in commit.body.items):
                self._shown[key] = root if ok else None
                self._outputs[key] = ok and is_right(spec, TaskId(reveal.job, item.task), item.outputs)

    def _spec(self, job: JobId) -> JobSpec | None:
        known = self._world.specs.get(job)
        return None if known is None else known.draft

    # --- what an honest peer says ----------------------------------------------------------------------------------
    def _judge(self, machine: Machine, statement: Statement) -> None:
        """What it has signed itself, when it says it for the first time."""
        if machine.peer not in statement.signers or (machine.index, statement.id) in self._judged:
            return
        spec = self._spec(getattr(statement.body, "job", JobId(b"")))
        if spec is None:
            return
        self._judged.add((machine.index, statement.id))
        liars = (other.liar for other in self._world.machines if other.liar is not None)
        wrong = next((liar.wrong[statement.id] for liar in liars if statement.id in liar.wrong), None)
        if wrong is not None:
            self._violated("signs-what-is-wrong", f"peer {machine.index}: {wrong}")
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
                self._offices.signs_admission(machine, admission)
                self._once(machine, ("admission", admission.job, admission.epoch, admission.round), statement.id)
            case Freeze() as freeze:
                self._judges.signs_freeze(machine, statement, spec)
                for entry in freeze.items:
                    self._freezes(machine, freeze, entry, spec)
            case Placed(job, commitment):
                self._offices.placed(machine, job, commitment)
            case Beacon():
                self._offices.signs_beacon(machine, statement)
            case Succession():
                self._offices.signs_succession(machine, statement)
            case Adoption() as adoption:
                self._offices.signs_adoption(machine, adoption)
            case Verdict() as verdict:
                self._judges.signs_verdict(machine, statement, spec)
                for judged in verdict.items:
                    self._pronounces(machine, verdict, judged, spec)

    def _once(self, machine: Machine, what: tuple[object, ...], value: object) -> None:
        if self._said.setdefault((machine.index, *what), value) != value:
            self._violated("signs-twice", f"peer {machine.index} signs two of {what[0]} {what[2:]}")

    def _reveals(self, machine: Machine, reveal: Reveal, spec: JobSpec) -> None:
        for item in reveal.items:
            if self._asked.get((reveal.job, item.task, item.commit), 0) < spec.validate.agree:
                self._violated("reveals-unasked", f"peer {machine.index} shows task {item.task} before it is frozen")

    def _shows_to(self, machine: Machine, peer: PeerId, statement: Statement) -> None:
        """A worker shows its results to seats. What it hands on as a member, or as the submitter, is another matter."""
        if statement.kind != "reveal" or statement.author != machine.peer:
            return
        body: Reveal = statement.body
        known = self._world.specs.get(body.job)
        named = self._known.holders_of(body.job, body.shard)
        concerned = known is None or machine.peer in known.panel or machine.index == known.plan.submitter
        if not concerned and not any(peer in holders for holders in named):
            self._violated("shows-to-strangers", f"peer {machine.index} shows a result to one that holds no seat")

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
        self._offices.shows(machine, value)

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
        freeze = self._known.statements.get(verdict.freezes[item.freeze])
        if freeze is None:
            return
        frozen = next((one for one in freeze.body.items if one.task == item.task), None)
        entries = () if frozen is None else _entries(freeze.body, frozen)
        keys = [(verdict.job, item.task, commit) for _, _, commit in entries]
        counted = [keys[place] for place in _places_counted(item, len(keys))]
        unshown = [entries[keys.index(key)][0] for key in counted if key not in self._shown]
        if unshown:
            # What a seat has computed itself it need not tell anybody.
            if not any(worker in holders for worker in unshown for holders in self._holders(verdict)):
                self._violated("judges-unshown", f"peer {machine.index} counts what nobody has shown of {item.task}")
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

    def _holders(self, verdict: Verdict) -> Iterable[tuple[PeerId, ...]]:
        return self._known.holders_of(verdict.job, verdict.shard)

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


def _readable(message: messages.Deliver) -> Iterator[Statement]:
    for envelope in message.envelopes:
        try:
            statement = statements.decode(envelope, verify)
        except PeerError:
            continue
        yield statement


def _sealed(job: JobId, task: int, worker: PeerId, salt: bytes, root: Digest, resumed: StatementId | None) -> bytes:
    """Section 3.1: what a commit to this result seals."""
    named = job + task.to_bytes(4, "big") + key_of_peer_id(worker) + salt + root + (resumed or bytes(32))
    return hashlib.sha256(b"nexapod/commit\0" + named).digest()


def _entries(freeze: Freeze, item: FreezeItem) -> tuple[Entry, ...]:
    return tuple((*freeze.workers[worker], freeze.commits[commit]) for worker, commit in item.entries)


def _places_counted(item: Judged, entries: int) -> list[int]:
    """Of an acceptance those that it names: what was shown after it changes nothing. Of a failure all but what it says
    is missing."""
    if item.outcome == "failed":
        return [place for place in range(entries) if place not in item.missing]
    named = {item.representative, *(place for pair in item.pairs for place in pair)}
    return sorted(place for place in named if place < entries)
