"""Links of a simulated network: dialled when somebody has something to say, broken by faults, refused by bans.

As in the daemon, a `Send` to a peer without a link dials the addresses that come with it; one without addresses cannot.
Both ends learn of a break some time later. Messages on one link come in order unless the network is faulty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nexapod.protocol.events import Event, PeerDown, PeerUp, Received, Unreachable
from nexapod.protocol.primitives import Millis
from nexapod.sim.machine import Machine

if TYPE_CHECKING:
    from nexapod.sim.world import World

DIAL_MS = (20, 150)
DIAL_FAILS_MS = (500, 4_000)
QUICK_BREAK_MS = (10, 300)
SILENT_BREAK_MS = (3_000, 12_000)
MEND_MS = (1_000, 4_000)


@dataclass(slots=True)
class Link:
    """A connection between two machines. `kept`: of the overlay, dialled again whenever it is down."""

    one: int
    other: int
    kept: bool
    up: bool = False
    epoch: int = 0
    tries: int = 0
    dialling: bool = False
    queue: list[tuple[int, bytes]] = field(default_factory=list)
    """(sender, frame) that wait for the dial."""
    last_arrival: dict[int, Millis] = field(default_factory=dict)


class Links:
    """All of them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rng = world.rng.fork("links")
        self._by_pair: dict[tuple[int, int], Link] = {}
        self._of: dict[int, dict[int, Link]] = {}
        self.clogged: dict[tuple[int, int], Millis] = {}

    def overlay(self) -> list[Link]:
        """Who keeps a link to whom: everybody to everybody, or a ring and random chords."""
        count, degree = len(self._world.machines), self._world.plan.network.degree
        if not degree or degree >= count - 1:
            return [self._link(i, j, kept=True) for i in range(count) for j in range(i + 1, count)]
        rng = self._world.rng.fork("topology")
        pairs: dict[tuple[int, int], None] = {}
        for i in range(count):
            pairs[_pair(i, (i + 1) % count)] = None
            for _ in range(max(0, degree // 2 - 1)):
                j = rng.below(count)
                if j != i:
                    pairs[_pair(i, j)] = None
        return [self._link(i, j, kept=True) for i, j in pairs]

    def _link(self, one: int, other: int, *, kept: bool = False) -> Link:
        pair = _pair(one, other)
        link = self._by_pair.get(pair)
        if link is None:
            link = self._by_pair[pair] = Link(*pair, kept)
            self._of.setdefault(one, {})[other] = link
            self._of.setdefault(other, {})[one] = link
        return link

    def up(self, one: Machine, other: Machine) -> bool:
        link = self._by_pair.get(_pair(one.index, other.index))
        return link is not None and link.up

    # --- breaking and mending --------------------------------------------------------------------------------------
    def break_all(self, machine: Machine, *, quickly: bool) -> None:
        """It crashed, or sleeps."""
        for link in self._of.get(machine.index, {}).values():
            self.break_one(link, quickly=quickly and self._rng.chance(800))

    def break_between(self, one: Machine, other: Machine, *, quickly: bool) -> None:
        link = self._by_pair.get(_pair(one.index, other.index))
        if link is not None:
            self.break_one(link, quickly=quickly)

    def break_sides(self) -> None:
        """A partition has begun: links across it break without a word."""
        machines = self._world.machines
        for link in self._by_pair.values():
            if machines[link.one].side != machines[link.other].side:
                self.break_one(link, quickly=False)

    def break_one(self, link: Link, *, quickly: bool) -> None:
        """Both ends learn it some time later: from a reset, or from pings that are not answered."""
        if not link.up:
            return
        link.up = False
        link.epoch += 1
        epoch = link.epoch
        machines = self._world.machines
        for end, far in ((link.one, link.other), (link.other, link.one)):
            delay = self._rng.between(*(QUICK_BREAK_MS if quickly else SILENT_BREAK_MS))
            down = PeerDown(machines[far].peer)
            self._world.later(machines[end], delay, down, lambda: link.epoch == epoch)
        if link.kept:
            self._world.at(self._world.now + self._rng.between(*MEND_MS), lambda: self.mend(link))

    def mend(self, link: Link) -> None:
        """The overlay's own dialling: one end or the other, again and again."""
        one, other = self._world.machines[link.one], self._world.machines[link.other]
        if link.up or one.gone or other.gone:
            return
        if self._refused(one, other) or not self._both_ways(one, other):
            link.tries += 1
            delay = self._rng.between(500, 1_000 << min(link.tries, 3))
            self._world.at(self._world.now + delay, lambda: self.mend(link))
            return
        self._open(link, one if self._rng.chance(500) else other)

    def _open(self, link: Link, dialler: Machine) -> None:
        link.up = True
        link.epoch += 1
        link.tries = 0
        epoch = link.epoch
        machines = self._world.machines
        link.last_arrival.clear()
        for end, far in ((link.one, link.other), (link.other, link.one)):
            machine, distant = machines[end], machines[far]
            event = PeerUp(distant.peer, distant.addr, machine is dialler)
            self._deliver(link, distant, machine, self._rng.between(1, 20), event, epoch)

    def _both_ways(self, one: Machine, other: Machine) -> bool:
        return self.reaches(one, other) and self.reaches(other, one)

    def _refused(self, one: Machine, other: Machine) -> bool:
        now = self._world.now
        return one.banned.get(other.peer, 0) > now or other.banned.get(one.peer, 0) > now

    def reaches(self, sender: Machine, receiver: Machine) -> bool:
        """Whether bytes can get from one to the other now."""
        if sender.node is None or receiver.node is None or sender.side != receiver.side:
            return False
        now = self._world.now
        if sender.asleep_until > now or receiver.asleep_until > now:
            return False
        return self.clogged.get((sender.index, receiver.index), 0) <= now

    # --- sending -----------------------------------------------------------------------------------------------------
    def send(self, sender: Machine, receiver: Machine, frame: bytes, addrs: tuple[str, ...]) -> None:
        link = self._link(sender.index, receiver.index)
        if link.up:
            self._carry(link, sender, receiver, frame)
            return
        if receiver.addr not in addrs and not link.kept:
            self._world.later(sender, 1, Unreachable(receiver.peer))
            return
        if len(link.queue) < 256:
            link.queue.append((sender.index, frame))
        if not link.dialling:
            link.dialling = True
            delay = self._rng.between(*DIAL_MS)
            self._world.at(self._world.now + delay, lambda: self._dialled(link, sender, receiver))

    def _dialled(self, link: Link, dialler: Machine, receiver: Machine) -> None:
        link.dialling = False
        queue, link.queue = link.queue, []
        if dialler.node is None:
            return
        if not link.up:
            if self._refused(dialler, receiver) or not self._both_ways(dialler, receiver):
                delay = self._rng.between(*DIAL_FAILS_MS)
                self._world.later(dialler, delay, Unreachable(receiver.peer))
                return
            self._open(link, dialler)
        machines = self._world.machines
        for sender, frame in queue:
            far = link.other if sender == link.one else link.one
            self._carry(link, machines[sender], machines[far], frame)

    def _carry(self, link: Link, sender: Machine, receiver: Machine, frame: bytes) -> None:
        if not self.reaches(sender, receiver):
            return
        network = self._world.plan.network
        faulty = self._world.now < self._world.plan.heal_at
        if faulty and self._rng.chance(network.loss):
            return
        event = Received(sender.peer, frame)
        self._deliver(link, sender, receiver, self._latency(sender, receiver), event, link.epoch)
        if faulty and self._rng.chance(network.duplication):
            self._deliver(link, sender, receiver, self._latency(sender, receiver), event, link.epoch)

    def _deliver(self, link: Link, sender: Machine, receiver: Machine, delay: Millis, event: Event, epoch: int) -> None:
        """In order on one link; void once the link has broken."""
        arrival = self._world.now + delay
        faulty = self._world.now < self._world.plan.heal_at and self._world.plan.network.straggling
        if not faulty:
            arrival = max(arrival, link.last_arrival.get(receiver.index, 0))
            link.last_arrival[receiver.index] = arrival
        self._world.later(receiver, arrival - self._world.now, event, lambda: link.epoch == epoch)

    def _latency(self, one: Machine, other: Machine) -> Millis:
        delay = one.latency_ms + other.latency_ms
        delay += self._rng.below(delay + 1)
        network = self._world.plan.network
        if self._world.now < self._world.plan.heal_at and self._rng.chance(network.straggling):
            delay += self._rng.below(network.straggle_ms)
        return delay


def _pair(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)
