"""Who may be given which task, as long as no width has grown: a leading seat's first leases (docs/protocol.md, section
5, Entitlement), counted once more.

A lease that this finds wrong was given to a group that had had its share, while others with room had not. Later the
widths of several seats differ, and nobody outside can tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import JobId, Millis, PeerId
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import messages
from nexapod.sim.knowledge import Knowledge

if TYPE_CHECKING:
    from nexapod.sim.machine import Machine
    from nexapod.sim.world import World

NARROW_MS: Final[Millis] = limits.PATIENCE_MIN_MS - 10
"""So long after the first claim no width can have grown."""
REACH: Final = 4
Ticket: TypeAlias = Callable[[JobId, int, str, int, JobSpec], bytes | None]
"""(job, shard, group, task, spec) -> that group's ticket for the task; None: nobody can tell."""


@dataclass(slots=True)
class _Account:
    """What the first seat to do so has given of a shard."""

    seat: int
    began: Millis
    leases: dict[PeerId, int] = field(default_factory=dict)
    beyond: dict[PeerId, int] = field(default_factory=dict)


class Shares:
    """Of one world in which each peer is its own group. `violated(rule, detail)`."""

    def __init__(
        self, world: World, knowledge: Knowledge, ticket: Ticket, violated: Callable[[str, str], None]
    ) -> None:
        self._world = world
        self._known = knowledge
        self._ticket = ticket
        self._violated = violated
        self._claims: dict[tuple[int, JobId, int], dict[PeerId, None]] = {}
        """Who has claimed in a shard, as each machine has heard."""
        self._began: dict[tuple[int, JobId, int], Millis] = {}
        """When a machine heard the first claim."""
        self._accounts: dict[tuple[JobId, int], _Account] = {}

    def claimed(self, machine: Machine, peer: PeerId, claim: messages.Claim) -> None:
        key = machine.index, claim.job, claim.shard
        self._claims.setdefault(key, {})[peer] = None
        self._began.setdefault(key, self._world.now)

    def leases(self, machine: Machine, lease: messages.Lease, spec: JobSpec) -> None:
        """What a seat says that it gives to whom, in the order in which it has dealt."""
        key = machine.index, lease.job, lease.shard
        began = self._began.get(key, self._world.now)
        account = self._accounts.setdefault((lease.job, lease.shard), _Account(machine.index, began))
        if account.seat != machine.index:
            return
        plain = self._known.is_plain(lease.job, lease.shard) and self._known.is_plain(lease.job, 0)
        if self._world.plan.crashes or not plain or self._world.now > account.began + NARROW_MS:
            return
        present = dict(self._claims.get(key, {}))
        if machine.plan.works:
            present[machine.peer] = None
        for item in lease.items:
            own = self._is_own(item.task, item.worker, present, lease, spec)
            if own is None:
                return
            admitted = [peer for peer in present if self._ticket(lease.job, lease.shard, peer, item.task, spec)]
            self._judge(machine, item, own, account, len(admitted))
            account.leases[item.worker] = account.leases.get(item.worker, 0) + 1
            account.beyond[item.worker] = account.beyond.get(item.worker, 0) + (not own)

    def _is_own(
        self, task: int, worker: PeerId, present: dict[PeerId, None], lease: messages.Lease, spec: JobSpec
    ) -> bool | None:
        """Whether it stands among the first of the draw; None: nobody outside can tell."""
        job, shard = lease.job, lease.shard
        drawn = {peer: self._ticket(job, shard, peer, task, spec) for peer in (*present, worker)}
        tickets = {peer: ticket for peer, ticket in drawn.items() if ticket is not None}
        if worker not in tickets:
            return None
        order = sorted(tickets, key=lambda peer: (tickets[peer], peer))
        return order.index(worker) < spec.validate.agree

    def _judge(self, machine: Machine, item: messages.LeaseItem, own: bool, account: _Account, groups: int) -> None:
        leases, beyond = account.leases.get(item.worker, 0), account.beyond.get(item.worker, 0)
        all_leases = sum(account.leases.values())
        fair = 2 * leases * groups < 3 * all_leases and 3 * beyond * groups < 2 * all_leases
        if not own and not fair:
            what = f"task {item.task} to one that has had {leases} of {all_leases}, {beyond} of them beyond its own"
            self._violated("leases-unfairly", f"peer {machine.index}: {what}, among {groups}")
