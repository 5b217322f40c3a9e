"""How seats come and go, and how chance is made: what an honest member may sign of successions, admissions, beacons and
adoptions, and which values it may show (docs/protocol.md, sections 4.1 and 5), read once more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.bodies import AUTHORITIES, Admission, Adoption, Beacon, Succession
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.knowledge import Knowledge, Process, process_of

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

ANSWERS_MS: Final = 2 * limits.PROBE_MS + 1_000
"""Whoever takes a seat was heard of so lately by whom has signed it."""
HASTE_MS: Final = 200
"""A clock may run faster than another."""


class Offices:
    """Of one world. `violated(rule, detail)`."""

    def __init__(self, world: World, knowledge: Knowledge, violated: Callable[[str, str], None]) -> None:
        self._world = world
        self._known = knowledge
        self._violated = violated
        self._ballots: dict[tuple[int, JobId, int], tuple[int, int, StatementId]] = {}
        """What each machine has signed of a shard's successions: (epoch, rank, id) of the one that would stand."""
        self._admissions: dict[tuple[Process, JobId], tuple[int, int]] = {}
        """The last (epoch, round) whose admission a process has signed. After a restart it may say what a former one
        could not say any more."""
        self._beacons: dict[tuple[int, StatementId], StatementId] = {}
        self._bound: dict[tuple[Process, JobId], bytes] = {}
        """The commitment to the value that a process shows next, as it has said last. What a former process had saved,
        and could not say any more, nobody knows."""
        self._shown: dict[tuple[int, JobId], tuple[int, int]] = {}
        self._rounds: dict[tuple[JobId, int, int], dict[StatementId, None]] = {}
        """Admissions by (job, epoch, round)."""
        self._values: dict[tuple[tuple[int, int], JobId, int, int], dict[PeerId, bytes]] = {}
        """Values of a round that a process was shown."""

    # --- values ----------------------------------------------------------------------------------------------------
    def placed(self, machine: Machine, job: JobId, commitment: Digest) -> None:
        if all(crash.peer != machine.index for crash in self._world.plan.crashes):
            # What a process had shown and saved, and a crash kept it from saying, is bound to another by then.
            self._bound.setdefault((process_of(machine), job), commitment)

    def note(self, statement: Statement) -> None:
        """There is something new in it to somebody."""
        if statement.kind == "admission":
            body: Admission = statement.body
            self._rounds.setdefault((body.job, body.epoch, body.round), {})[statement.id] = None

    def heard_value(self, machine: Machine, value: messages.Value) -> None:
        """It counts for a process that takes part in the round by then."""
        ids = self._rounds.get((value.job, value.epoch, value.round), {})
        if any(self._known.saw_quorum(machine, id, value.job, 0) for id in ids):
            round_ = process_of(machine), value.job, value.epoch, value.round
            self._values.setdefault(round_, {})[value.author] = value.value

    def shows(self, machine: Machine, value: messages.Value) -> None:
        """Its own."""
        key, round_ = (machine.index, value.job), (value.epoch, value.round)
        if self._shown.get(key) != round_:
            bound = self._bound.get((process_of(machine), value.job))
            told = bound is not None and self._known.is_plain(value.job, 0)
            if told and bound != _committed(value.value):
                self._violated("shows-unbound", f"peer {machine.index} shows another value than it is bound to")
            if self._shown.get(key, (-1, -1)) > round_:
                self._violated("shows-again", f"peer {machine.index} shows a value of an earlier round")
            self._shown[key] = round_
        self._bound[process_of(machine), value.job] = value.following

    # --- admissions and beacons ------------------------------------------------------------------------------------
    def signs_admission(self, machine: Machine, body: Admission) -> None:
        key, round_ = (process_of(machine), body.job), (body.epoch, body.round)
        judged = machine.boot == 1 and self._known.is_plain(body.job, 0)
        if judged and self._admissions.get(key, (-1, -1)) > round_:
            self._violated("admits-again", f"peer {machine.index} signs round {body.round} after a later one")
        self._admissions[key] = round_
        committed = dict(body.commitments)
        if not any(set(committed).issubset(holders) for holders in self._known.holders_of(body.job, 0)):
            self._violated("admits-unbound", f"peer {machine.index}: one that holds no seat is bound")
        mine, bound = committed.get(machine.peer), self._bound.get((process_of(machine), body.job))
        # One seat alone shows its values to nobody.
        told = judged and len(committed) > 1
        if told and mine is not None and bound is not None and mine != bound:
            self._violated("admits-unbound", f"peer {machine.index} is bound to another value")
        keys = [key_of_peer_id(worker) for worker, _ in body.workers]
        seats = [key_of_peer_id(seat) for seat, _ in body.commitments]
        if keys != sorted(set(keys)) or seats != sorted(set(seats)):
            self._violated("admits-unsorted", f"peer {machine.index}: round {body.round}")

    def signs_beacon(self, machine: Machine, statement: Statement) -> None:
        body: Beacon = statement.body
        who = f"peer {machine.index}: round {body.round}"
        if self._beacons.setdefault((machine.index, body.admission), statement.id) != statement.id:
            self._violated("signs-twice", f"{who}: two beacons")
        admission = self._known.statements.get(body.admission)
        if admission is None or not self._known.counted(admission.id, body.job, 0):
            if self._known.tells(body.job, 0):
                self._violated("draws-unadmitted", who)
            return
        if (admission.body.epoch, admission.body.round) != (body.epoch, body.round):
            self._violated("draws-wrongly", f"{who}: it is not that of its admission")
        committed, listed = dict(admission.body.commitments), dict(body.values)
        keys = [key_of_peer_id(peer) for peer, _ in body.values]
        if keys != sorted(set(keys)):
            self._violated("draws-wrongly", f"{who}: unsorted")
        if any(committed.get(peer) != _committed(value) for peer, value in body.values):
            self._violated("draws-wrongly", f"{who}: a value to which nobody was bound")
        round_ = process_of(machine), body.job, body.epoch, body.round
        # Where messages overtake one another a seat may have left the round, and come back to it.
        heard = {} if self._world.plan.network.straggling else self._values.get(round_, {})
        if any(committed.get(p) == _committed(value) and p not in listed for p, value in heard.items()):
            self._violated("draws-wrongly", f"{who}: a value that was shown is left out")

    # --- seats -----------------------------------------------------------------------------------------------------
    def signs_succession(self, machine: Machine, statement: Statement) -> None:
        body: Succession = statement.body
        self._votes_once(machine, statement)
        before = self._before(body)
        if before is None or body.authority == "submitter":
            return
        removed = [peer for peer in before if peer not in body.holders and peer != machine.peer]
        added = [peer for peer in body.holders if peer not in before and peer != machine.peer]
        patience = min(limits.SEAT_GONE_MS << min(body.epoch - 1, 16), limits.SEAT_GONE_MAX_MS)
        patience = limits.CARETAKER_MS if body.authority == "caretaker" else patience
        for peer in removed:
            silent = self._known.silent_ms(machine, peer, as_member=True)
            if self._is_blameless(peer) and silent is not None and silent + HASTE_MS < patience:
                self._violated("replaces-the-living", f"peer {machine.index} heard it {silent} ms ago")
        for peer in added:
            silent = self._known.silent_ms(machine, peer, as_member=False)
            if silent is None or silent > ANSWERS_MS:
                self._violated("seats-the-mute", f"peer {machine.index} has not heard of it for {silent} ms")
        self._signs_for_itself(machine, body, before)

    def _signs_for_itself(self, machine: Machine, body: Succession, before: tuple[PeerId, ...]) -> None:
        known = self._world.specs.get(body.job)
        member = known is None or machine.peer in known.panel
        may = {"seats": machine.peer in before, "panel": member, "caretaker": machine.peer in body.holders}
        if not may[body.authority]:
            self._violated("signs-unseated", f"peer {machine.index} signs as {body.authority}")
        if known is not None and not set(body.holders).issubset(known.panel):
            self._violated("seats-strangers", f"peer {machine.index}")
        if machine.peer in before and machine.peer not in body.holders:
            self._violated("replaces-the-living", f"peer {machine.index} signs itself away")

    def _votes_once(self, machine: Machine, statement: Statement) -> None:
        """Another of an epoch only if it would stand before the first; none of an earlier one."""
        body: Succession = statement.body
        key = machine.index, body.job, body.shard
        rank = AUTHORITIES.index(body.authority)
        last, this = self._ballots.get(key), (body.epoch, rank, statement.id)
        if last is not None and (this[0] < last[0] or (this[0] == last[0] and this[1:] > last[1:])):
            self._violated("votes-twice", f"peer {machine.index}: epoch {body.epoch} of shard {body.shard}")
        self._ballots[key] = this

    def _before(self, body: Succession) -> tuple[PeerId, ...] | None:
        """The holders whom it follows."""
        if bytes(body.previous) == bytes(body.job):
            return next(iter(self._known.holders_of(body.job, body.shard)), None)
        previous = self._known.statements.get(body.previous)
        if previous is None or previous.kind != "succession":
            return None
        if previous.body.epoch + 1 != body.epoch:
            self._violated("succeeds-wrongly", f"epoch {body.epoch} after {previous.body.epoch}")
        return tuple(previous.body.holders)

    def _is_blameless(self, peer: PeerId) -> bool:
        """Not one that may have been proven to be at fault."""
        other = self._world.by_peer.get(peer)
        return other is not None and other.honest

    # --- adoptions -------------------------------------------------------------------------------------------------
    def signs_adoption(self, machine: Machine, body: Adoption) -> None:
        """Nothing that no quorum has ever signed."""
        for id in body.statements if self._known.tells(body.job, body.shard) else ():
            statement = self._known.statements.get(id)
            if statement is None or not self._known.counted(id, body.job, body.shard):
                kind = "something" if statement is None else f"a {statement.kind}"
                self._violated("adopts-uncounted", f"peer {machine.index} adopts {kind} that no quorum has signed")


def _committed(value: bytes) -> bytes:
    return hashlib.sha256(b"nexapod/value\0" + value).digest()
