"""What a seat of a shard may sign and say of tasks, by what it has itself heard: freezes, verdicts, grants, answers.

Each rule is read from docs/protocol.md (sections 5 and 6) once more, slowly and without looking at how the core does
it. conduct.py holds what can be told from what all have said; here it matters who knew what.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.bodies import Admission, Beacon, Freeze, FreezeItem, Reveal, Verdict, VerdictItem
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.knowledge import Knowledge

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

CLOCKS_MS: Final = 3_000
"""By how much two seats may differ on since when they wait for the same thing."""
Entry = tuple[PeerId, str, StatementId]


class Judges:
    """Of one world. `violated(rule, detail)`."""

    def __init__(self, world: World, knowledge: Knowledge, violated: Callable[[str, str], None]) -> None:
        self._world = world
        self._known = knowledge
        self._violated = violated
        self._rounds: dict[JobId, dict[tuple[int, int], tuple[Statement, Statement]]] = {}
        """Admissions and their beacons that a quorum has signed."""
        self._frozen_at: dict[tuple[JobId, int], Millis] = {}
        """When a task was first frozen by a quorum."""
        self._reveals: dict[tuple[JobId, int, StatementId], Reveal] = {}
        self._tickets: dict[tuple[JobId, int, str], bytes] = {}
        self._admitted: dict[JobId, dict[PeerId, list[str]]] = {}
        self._beacons: dict[StatementId, list[Statement]] = {}
        """By their admissions."""
        self._verdicts: dict[tuple[JobId, int], dict[StatementId, None]] = {}

    # --- what everybody has said -----------------------------------------------------------------------------------
    def note(self, statement: Statement) -> None:
        """There is something new in it."""
        match statement.body:
            case Freeze() as body:
                if self._known.counted(statement.id, body.job, body.shard):
                    for item in body.items:
                        self._frozen_at.setdefault((body.job, item.task), self._world.now)
            case Verdict() as verdict:
                for judged in verdict.items:
                    self._verdicts.setdefault((verdict.job, judged.task), {})[statement.id] = None
            case Admission():
                self._note_round(self._beacons.get(statement.id, []))
            case Beacon() as beacon:
                known = self._beacons.setdefault(beacon.admission, [])
                known += [] if statement in known else [statement]
                self._note_round([statement])
            case Reveal() as reveal:
                for shown in reveal.items:
                    self._reveals.setdefault((reveal.job, shown.task, shown.commit), reveal)

    def _note_round(self, beacons: list[Statement]) -> None:
        for beacon in beacons:
            body: Beacon = beacon.body
            admission = self._known.statements.get(body.admission)
            if admission is None or not all(self._known.counted(s.id, body.job, 0) for s in (admission, beacon)):
                continue
            rounds = self._rounds.setdefault(body.job, {})
            if rounds.setdefault((body.epoch, body.round), (admission, beacon))[0].id == admission.id:
                self._admit(admission.body)

    def _admit(self, body: Admission) -> None:
        admitted = self._admitted.setdefault(body.job, {})
        for worker, group in body.workers:
            groups = admitted.setdefault(worker, [])
            if group not in groups:
                groups.append(group)

    # --- what a seat signs -----------------------------------------------------------------------------------------
    def signs_freeze(self, machine: Machine, statement: Statement, spec: JobSpec) -> None:
        body: Freeze = statement.body
        self._in_office(machine, statement)
        if len(set(body.workers)) != len(body.workers) or len(set(body.commits)) != len(body.commits):
            self._violated("freezes-wrongly", f"peer {machine.index} names a worker or a commit twice")
        for item in body.items:
            if item.task not in spec.shard_tasks(body.shard):
                self._violated("freezes-wrongly", f"peer {machine.index} freezes task {item.task} of another shard")
                continue
            entries = entries_of(body, item)
            self._freezes_known(machine, body, item, entries)
            self._in_order(machine, body, item, entries, spec)

    def _in_office(self, machine: Machine, statement: Statement) -> None:
        body = statement.body
        shard = getattr(body, "shard", 0)
        if not any(machine.peer in holders for holders in self._known.holders_of(body.job, shard)):
            self._violated("signs-unseated", f"peer {machine.index} signs a {statement.kind} of shard {shard}")
        if body.epoch and self._known.is_plain(body.job, shard):
            self._violated("signs-unseated", f"peer {machine.index} signs a {statement.kind} of epoch {body.epoch}")

    def _freezes_known(self, machine: Machine, body: Freeze, item: FreezeItem, entries: tuple[Entry, ...]) -> None:
        who = f"peer {machine.index}: task {item.task}, round {item.round}"
        if self._known.known(machine, "verdict", body.job, body.shard, item.task):
            self._violated("freezes-decided", who)
        for other in self._known.known(machine, "freeze", body.job, body.shard, item.task):
            before = next(one for one in other.body.items if one.task == item.task)
            written = entries_of(other.body, before)
            if before.round >= item.round and written != entries:
                self._violated("freezes-stale", f"{who}: it knows round {before.round}")
            elif before.round < item.round and not set(written) < set(entries):
                self._violated("freezes-less", f"{who}: not all of round {before.round}, and more")

    def _in_order(
        self, machine: Machine, body: Freeze, item: FreezeItem, entries: tuple[Entry, ...], spec: JobSpec
    ) -> None:
        """By the draw of the groups that admitted them, those that found no place in the roster last, by name; of a
        group that several rounds admitted nothing is said."""
        places = []
        if not self._known.is_plain(body.job, 0):
            return
        for worker, _, _ in entries:
            groups = self._admitted.get(body.job, {}).get(worker, [])
            if not groups and worker != machine.peer:
                self._violated("freezes-unadmitted", f"peer {machine.index}: task {item.task}")
            # A seat need not tell anybody that it admits itself alone; of several rounds each may be the first.
            ticket = self.ticket(body.job, body.shard, groups[0], item.task, spec) if len(groups) == 1 else None
            if ticket is None:
                return
            places.append((ticket, groups[0], key_of_peer_id(worker)))
        drawn = next((n for n in range(1, len(places)) if places[n - 1] >= places[n]), len(places))
        outside = [(group, key) for _, group, key in places[drawn:]]
        crowded = len({one for found in self._admitted[body.job].values() for one in found}) > limits.ROSTER_MAX
        if outside and not (crowded and outside == sorted(outside)):
            self._violated("freezes-unordered", f"peer {machine.index}: task {item.task}")

    def ticket(self, job: JobId, shard: int, group: str, task: int, spec: JobSpec) -> bytes | None:
        tasks = spec.shard_tasks(shard)
        if (job, shard, group) not in self._tickets:
            rounds = self._rounds.get(job, {}).values()
            mine = [beacon for admission, beacon in rounds if group in dict(admission.body.workers).values()]
            if len(mine) != 1:
                return None
            named = _beacon_value(mine[0].body) + job + shard.to_bytes(4, "big") + group.encode()
            self._tickets[job, shard, group] = hashlib.shake_128(b"nexapod/draw\0" + named).digest(8 * len(tasks))
        at = 8 * (task - tasks.start)
        return self._tickets[job, shard, group][at : at + 8]

    def signs_verdict(self, machine: Machine, statement: Statement, spec: JobSpec) -> None:
        body: Verdict = statement.body
        self._in_office(machine, statement)
        for item in body.items:
            self._judges_once(machine, statement, item)
            freeze = self._known.statements.get(body.freezes[item.freeze]) if item.freeze < len(body.freezes) else None
            frozen = None if freeze is None else [one for one in freeze.body.items if one.task == item.task]
            if freeze is None or not frozen or not self._known.counted(freeze.id, body.job, body.shard):
                if self._known.tells(body.job, body.shard):
                    self._violated("judges-unfrozen", f"peer {machine.index}: task {item.task}")
                continue
            entries = entries_of(freeze.body, frozen[0])
            self._judges_last(machine, body, item, frozen[0].round)
            self._judges_in_time(machine, body, item, entries, spec)
            if item.outcome == "accepted":
                self._holds_outputs(machine, body, item, entries)

    def _judges_once(self, machine: Machine, statement: Statement, item: VerdictItem) -> None:
        body: Verdict = statement.body
        for other in self._known.known(machine, "verdict", body.job, body.shard, item.task):
            if other.id != statement.id:
                self._violated("judges-twice", f"peer {machine.index} knows a verdict on task {item.task}")

    def _judges_last(self, machine: Machine, body: Verdict, item: VerdictItem, round_: int) -> None:
        for other in self._known.known(machine, "freeze", body.job, body.shard, item.task):
            newest = next(one for one in other.body.items if one.task == item.task)
            if newest.round > round_:
                self._violated("judges-stale", f"peer {machine.index}: task {item.task}, round {round_}")

    def _judges_in_time(
        self, machine: Machine, body: Verdict, item: VerdictItem, entries: tuple[Entry, ...], spec: JobSpec
    ) -> None:
        """A failure for want of workers, and leaving a result out, take their time."""
        if any(jump.peer == machine.index for jump in self._world.plan.clock_jumps):
            return
        since = self._frozen_at.get((body.job, item.task), self._world.now)
        waited = (self._world.now - since) * (1_000 + machine.plan.drift) // 1_000 + CLOCKS_MS
        unshown = [place for place in item.missing if (body.job, item.task, entries[place][2]) not in self._reveals]
        if unshown and waited < limits.REVEAL_TTL_MS:
            self._violated("judges-early", f"peer {machine.index} leaves out results of task {item.task}")
        if item.outcome == "failed":
            groups = {group for place, (_, group, _) in enumerate(entries) if place not in item.missing}
            all_groups = {group for _, group, _ in entries}
            enough = len(groups) >= spec.validate.max_replicas or len(all_groups) >= limits.FREEZE_ENTRIES_MAX
            if not enough and waited < limits.NO_BID_MS:
                self._violated("judges-early", f"peer {machine.index} fails task {item.task} after {waited} ms")

    def _holds_outputs(self, machine: Machine, body: Verdict, item: VerdictItem, entries: tuple[Entry, ...]) -> None:
        if item.representative >= len(entries):
            return
        commit = entries[item.representative][2]
        reveal = self._reveals.get((body.job, item.task, commit))
        shown = () if reveal is None else [one for one in reveal.items if one.task == item.task]
        if any(file.blob not in machine.blobs for one in shown for file in one.outputs):
            self._violated("judges-without-outputs", f"peer {machine.index} accepts task {item.task}")

    # --- what a seat says ------------------------------------------------------------------------------------------
    def grants(self, machine: Machine, peer: PeerId, grant: messages.Grant, spec: JobSpec) -> None:
        who = f"peer {machine.index} grants tasks of shard {grant.shard}"
        holders = self._known.holders_of(grant.job, grant.shard)
        if not any(machine.peer in some for some in holders):
            self._violated("grants-unseated", who)
        if grant.epoch and self._known.is_plain(grant.job, grant.shard):
            self._violated("grants-unseated", f"{who} in epoch {grant.epoch}")
        if self._known.is_plain(grant.job, 0) and peer not in self._admitted.get(grant.job, {}):
            self._violated("grants-unadmitted", who)
        for task in grant.tasks:
            if task not in spec.shard_tasks(grant.shard):
                self._violated("grants-unknown", f"{who}: task {task}")
            elif self._known.known(machine, "verdict", grant.job, grant.shard, task):
                self._violated("grants-decided", f"{who}: task {task}")

    def answers(self, machine: Machine, peer: PeerId, status: messages.Status) -> None:
        """What a worker is told of its tasks."""
        for task, standing in status.tasks if self._known.tells(status.job, status.shard) else ():
            if standing == "decided" and not self._is_decided(status.job, status.shard, task):
                self._violated("tells-undecided", f"peer {machine.index}: task {task}")

    def _is_decided(self, job: JobId, shard: int, task: int) -> bool:
        return any(self._known.counted(id, job, shard) for id in self._verdicts.get((job, task), ()))


def entries_of(freeze: Freeze, item: FreezeItem) -> tuple[Entry, ...]:
    """(worker, group, commit) of each entry; those that lie outside the lists are left out."""
    inside = [(w, c) for w, c in item.entries if w < len(freeze.workers) and c < len(freeze.commits)]
    return tuple((*freeze.workers[worker], freeze.commits[commit]) for worker, commit in inside)


def _beacon_value(body: Beacon) -> bytes:
    shown = b"".join(key_of_peer_id(peer) + value for peer, value in body.values)
    return hashlib.sha256(b"nexapod/beacon\0" + body.admission + shown).digest()
