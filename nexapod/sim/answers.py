"""What an honest seat owes an answer to: another seat's freeze or verdict is signed, or objected to, within the time
for which a seat may wait for what it lacks (docs/protocol.md, section 5).

Looked at where nothing excuses it: of seats that never changed, on machines that neither slept nor crashed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from nexapod.protocol import limits
from nexapod.protocol.primitives import Millis, PeerId, StatementId
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.knowledge import Knowledge

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

WITHIN_MS: Final[Millis] = limits.COSIGN_MS + 500
_OWED: Final = ("freeze", "verdict")


class Answers:
    """Of one world. `violated(rule, detail)`."""

    def __init__(self, world: World, knowledge: Knowledge, violated: Callable[[str, str], None]) -> None:
        self._world = world
        self._known = knowledge
        self._violated = violated
        plan = world.plan
        self._excused = {fault.peer for faults in (plan.pauses, plan.disk_faults, plan.clock_jumps) for fault in faults}
        self._owed: dict[tuple[int, StatementId], Millis] = {}
        """What each machine owes an answer to, and until when."""

    def asked(self, machine: Machine, peer: PeerId, statement: Statement) -> None:
        """A seat is sent a statement."""
        key = machine.index, statement.id
        if statement.kind not in _OWED or key in self._owed or machine.index in self._excused:
            return
        if self._is_owed(machine, peer, statement):
            boot = machine.boot
            self._owed[key] = self._world.now + WITHIN_MS
            self._world.at(self._owed[key], lambda: self._due(machine, boot, statement))

    def _is_owed(self, machine: Machine, peer: PeerId, statement: Statement) -> bool:
        body, asking = statement.body, self._world.by_peer.get(peer)
        holders = next(iter(self._known.holders_of(body.job, body.shard)), ())
        seats = asking is not None and asking.honest and peer in holders and machine.peer in holders
        plain = machine.boot == 1 and self._known.is_plain(body.job, body.shard) and body.epoch == 0
        return seats and plain and peer in statement.signers and machine.peer not in statement.signers

    def said(self, machine: Machine, message: messages.Message | None) -> None:
        if isinstance(message, messages.Object):
            self._owed.pop((machine.index, message.proposal), None)

    def signed(self, machine: Machine, statement: Statement) -> None:
        if machine.peer in statement.signers:
            self._owed.pop((machine.index, statement.id), None)

    def _due(self, machine: Machine, boot: int, statement: Statement) -> None:
        body = statement.body
        job = self._world.specs.get(body.job)
        over = machine.boot != boot or machine.node is None or job is None or job.over
        # It may have been answered, and asked again since.
        owed = self._owed.get((machine.index, statement.id)) == self._world.now
        if over or not owed or not self._known.is_plain(body.job, body.shard):
            return
        if not self._known.saw_quorum(machine, statement.id, body.job, body.shard):
            tasks = [item.task for item in body.items]
            self._violated("leaves-unanswered", f"peer {machine.index}: a {statement.kind} of tasks {tasks}")
