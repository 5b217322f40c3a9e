"""What every process in a world has heard and said, and what everybody together has signed: for those who judge it.

Two readings of "counts". `counted` is what all signatures in the world come to: nobody can know more. `known` is what
one process has itself seen signed by a quorum, where that is beyond doubt: of a shard whose seats nobody ever spoke of
changing. Both are counted anew here; nothing of the core's own judgement is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.rules import seats
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.statements import Statement

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

Process: TypeAlias = tuple[int, int]
"""(machine, boot)."""
Shard: TypeAlias = tuple[JobId, int]
Holders: TypeAlias = tuple[PeerId, ...]
_SPEAKING = frozenset(messages.KINDS.index(kind) for kind in ("Alive", "Lease", "Object", "Value", "Ready"))
_ABOUT_TASKS = ("freeze", "verdict")


def process_of(machine: Machine) -> Process:
    return machine.index, machine.boot


class Knowledge:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.statements: dict[StatementId, Statement] = {}
        """Everything that was ever said, by id."""
        self._signers: dict[StatementId, set[PeerId]] = {}
        self._holders: dict[Shard, dict[Holders, None]] = {}
        """Everybody who was ever named to hold a shard, together."""
        self._heard: dict[Process, dict[StatementId, set[PeerId]]] = {}
        """What a process has heard or said, with the signatures that it saw."""
        self._about: dict[tuple[Process, str, JobId, int], dict[StatementId, None]] = {}
        """Freezes and verdicts that a process knows of a task, by kind."""
        self._counted_at: dict[tuple[Process, StatementId], Millis] = {}
        """When a process first saw the signatures of a quorum."""
        self._heard_of: dict[tuple[Process, PeerId], Millis] = {}
        """When a process last heard anything of a peer, by its own clock."""
        self._spoke: dict[tuple[Process, PeerId], Millis] = {}
        """... and when last something that only a member says. A probe shows little: whoever asks may hear nobody, and
        answers are what a seat is held against."""

    # --- what happens ----------------------------------------------------------------------------------------------
    def heard(self, machine: Machine, peer: PeerId, frame: bytes) -> None:
        local = machine.local(self._world.now)
        self._heard_of[process_of(machine), peer] = local
        if len(frame) > 1 and frame[1] in _SPEAKING:
            self._spoke[process_of(machine), peer] = local

    def note(self, machine: Machine, statement: Statement) -> bool:
        """A process hears or says a statement. Whether there is anything new in it to anybody."""
        body = statement.body
        own = self._heard.setdefault(process_of(machine), {}).setdefault(statement.id, set())
        if not own and statement.kind in _ABOUT_TASKS:
            for item in body.items:
                about = process_of(machine), statement.kind, body.job, item.task
                self._about.setdefault(about, {})[statement.id] = None
        own.update(statement.signers)
        if statement.kind in _ABOUT_TASKS and self.is_quorum(own, body.job, body.shard):
            self._counted_at.setdefault((process_of(machine), statement.id), self._world.now)
        all_signers = self._signers.setdefault(statement.id, set())
        if all_signers.issuperset(statement.signers):
            return False
        all_signers.update(statement.signers)
        if self.statements.setdefault(statement.id, statement).kind == "succession":
            self.holders_of(body.job, body.shard)[body.holders] = None
        return True

    # --- what everybody knows --------------------------------------------------------------------------------------
    def holders_of(self, job: JobId, shard: int) -> dict[Holders, None]:
        found = self._holders.get((job, shard))
        if found is None:
            found = {}
            known = self._world.specs.get(job)
            if known is not None and known.panel:
                found[seats.first_holders(job, shard, known.panel)] = None
                self._holders[job, shard] = found
        return found

    def is_plain(self, job: JobId, shard: int) -> bool:
        """Whether nobody ever spoke of other seats than the first."""
        return len(self.holders_of(job, shard)) == 1

    def tells(self, job: JobId, shard: int) -> bool:
        """Whether a quorum needs more than one: a seat alone need not tell anybody what it decides."""
        return all(len(holders) > 1 for holders in self.holders_of(job, shard))

    def counted(self, id: StatementId, job: JobId, shard: int) -> bool:
        """Whether a quorum of some seats of the shard has signed it."""
        return self.is_quorum(self._signers.get(id, ()), job, shard)

    def is_quorum(self, signers: Iterable[PeerId], job: JobId, shard: int) -> bool:
        some = set(signers)
        return any(2 * len(some.intersection(holders)) > len(holders) for holders in self.holders_of(job, shard))

    # --- what one process knows ------------------------------------------------------------------------------------
    def known(self, machine: Machine, kind: str, job: JobId, shard: int, task: int) -> list[Statement]:
        """The freezes, or verdicts, of a task that this process has seen signed by a quorum of the only seats that the
        shard ever had. Nothing after a restart, as what came back from the disk is not known here; nor where messages
        are lost, as it may not have what a statement rests on."""
        process, network = process_of(machine), self._world.plan.network
        if machine.boot > 1 or network.loss or network.straggling or not self.is_plain(job, shard):
            return []
        about = self._about.get((process, kind, job, task), {})
        return [self.statements[id] for id in about if self._knew(process, self.statements[id])]

    def _knew(self, process: Process, statement: Statement) -> bool:
        """Before the message at hand; of a verdict also the freezes that it judges."""
        ids = (statement.id, *(statement.body.freezes if statement.kind == "verdict" else ()))
        return all(self._counted_at.get((process, id), self._world.now) < self._world.now for id in ids)

    def saw_quorum(self, machine: Machine, id: StatementId, job: JobId, shard: int) -> bool:
        """Whether this process has seen a statement signed by a quorum of some seats of the shard."""
        return self.is_quorum(self._heard.get(process_of(machine), {}).get(id, ()), job, shard)

    def silent_ms(self, machine: Machine, peer: PeerId, *, as_member: bool) -> Millis | None:
        """For how long, by its own clock, a process has heard nothing of a peer, or nothing of what members say; None:
        it never has."""
        spoke = self._spoke if as_member else self._heard_of
        last = spoke.get((process_of(machine), peer))
        return None if last is None else machine.local(self._world.now) - last
