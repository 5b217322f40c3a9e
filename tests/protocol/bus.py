"""Several nodes' machines of one job in one process: links, a clock, and the part of a node that folds the job's state.

Every message is encoded, takes LATENCY_MS, and may be dropped by `Bus.lost`. What a host saves is kept, so that it can
be started again from it alone.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kit import NETWORK, JobKit

from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.events import Fetch, Save, Send
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Millis, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.types import Group, Grouping, Profile
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.messages import Alive, Announce, Card, Deliver, Message, Probe
from nexapod.protocol.wire.statements import COSIGNED, Statement, decode
from nexapod.sim.keys import HashSigner, verify

LATENCY_MS = 10
JOB_LEVEL = (
    *("job", "cancel", "placed", "settlement", "fault", "succession", "renewal", "admission", "beacon", "adoption"),
)


@dataclass
class Links:
    """What one host sees of others: the bus's links."""

    bus: Bus
    me: PeerId

    def linked(self, peer: PeerId) -> bool:
        return peer == self.me or self.bus.are_linked(self.me, peer)

    def links(self) -> tuple[PeerId, ...]:
        return tuple(sorted(peer for peer in self.bus.hosts if peer != self.me and self.linked(peer)))

    def group(self, peer: PeerId, grouping: Grouping) -> Group | None:
        return self.bus.groups.get(peer, peer) if self.linked(peer) else None

    def met(self, peer: PeerId) -> Millis | None:
        return self.bus.met.get(peer, 0)

    def lost(self, peer: PeerId) -> Millis | None:
        return None if self.linked(peer) else 0

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        return ()

    def profile(self, peer: PeerId) -> Profile | None:
        return None


@dataclass
class Host:
    """One node. `machine`: anything with on_message, on_statement, job_changed, tick, deadline (or nothing)."""

    bus: Bus
    signer: HashSigner
    ctx: Context
    job: JobState
    machine: Any = None
    alive: bool = True
    mute: bool = False
    """It keeps its links, and says and does nothing."""
    on_message: Callable[[PeerId, Message], bool] | None = None
    """A liar's hook: True when it has dealt with the message."""
    received: list[tuple[PeerId, Message]] = field(default_factory=list)
    records: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    cards: list[Card] = field(default_factory=list)
    """Announcements of its own."""
    penalties: list[str] = field(default_factory=list)
    orphans: list[tuple[Statement, PeerId]] = field(default_factory=list)

    @property
    def peer(self) -> PeerId:
        return self.signer.peer

    def call(self, action: Callable[[], None]) -> None:
        """Run something of the host's, then what it says to itself, then send what it says to others."""
        if not self.alive:
            return
        self.ctx.now = self.bus.now
        self._guard(action)
        while self.ctx.to_self:
            message = self.ctx.to_self.popleft()
            self._guard(lambda message=message: self._handle(self.peer, message))  # type: ignore[misc]
        effects, self.ctx.effects = self.ctx.effects, []
        self._apply(effects)
        self.bus.arm(self)

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except PeerError as error:
            self.penalties.append(error.rule)

    def _apply(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Save):
                self._keep(effect.record)
        for effect in effects:
            if isinstance(effect, Send):
                self.bus.send(self.peer, effect.peer, effect.frame)
            elif isinstance(effect, Fetch):
                self.bus.fetched(self, effect)

    def _keep(self, record: Record) -> None:
        key = (record.kind, record.key)
        if record.value is None:
            self.records.pop(key, None)
        else:
            self.records[key] = record.value

    def receive(self, sender: PeerId, message: Message) -> None:
        self.received.append((sender, message))
        if not self.mute:
            self.call(lambda: self._handle(sender, message))

    def _handle(self, sender: PeerId, message: Message) -> None:
        if self.on_message is not None and self.on_message(sender, message):
            return
        match message:
            case Probe():
                reached = message.about is None or self.ctx.peers.linked(message.about)
                self.ctx.send(sender, Alive(message.nonce, reached))
            case Deliver():
                for envelope in message.envelopes:
                    self._fold(decode(envelope, verify), sender)
            case Announce():
                self.cards += message.cards
                for card in message.cards:
                    self.machine.card_seen(card)
            case _:
                if self.machine is not None:
                    self.machine.on_message(sender, message)

    def _fold(self, statement: Statement, sender: PeerId) -> None:
        if statement.kind not in JOB_LEVEL:
            if self.machine is not None:
                self.machine.on_statement(statement, sender)
            return
        match self.job.add(statement):
            case "new":
                waiting, self.orphans = self.orphans, []
                for orphan, source in waiting:
                    self._fold(orphan, source)
                if self.machine is not None:
                    self.machine.job_changed()
            case "proposal" | "known" if statement.kind in COSIGNED and self.machine is not None:
                self.machine.on_statement(self.job.get(statement.id) or statement, sender)
            case "orphan":
                self.orphans.append((statement, sender))
            case _:
                pass

    def said(self, kind: type) -> list[Any]:
        """What came of this type."""
        return [message for _, message in self.received if isinstance(message, kind)]


class Bus:
    """All hosts of one job."""

    def __init__(self, kit: JobKit, seed: int = 1) -> None:
        self.kit = kit
        self.now: Millis = 1_000
        self.hosts: dict[PeerId, Host] = {}
        self.groups: dict[PeerId, Group] = {}
        self.met: dict[PeerId, Millis] = {}
        self.cut: set[frozenset[PeerId]] = set()
        self.lost: Callable[[PeerId, PeerId, Message], bool] = lambda sender, to, message: False
        self.blobs_here = True
        self._random = random.Random(seed)
        self._queue: list[tuple[Millis, int, Callable[[], None]]] = []
        self._count = 0
        self._armed: dict[PeerId, Millis] = {}
        self.sent = 0

    def host(self, signer: HashSigner, make: Callable[[Context, JobState], Any] | None = None) -> Host:
        """A node of this key; `make` builds its machine. One that is there is replaced, as if started again."""
        old = self.hosts.get(signer.peer)
        grouping = self.kit.spec.policy.grouping
        ctx = Context(signer, verify, NETWORK, grouping, self._random.randbytes, Links(self, signer.peer))
        ctx.now = self.now
        job = JobState(self.kit.job_statement, verify) if old is None else old.job
        host = Host(self, signer, ctx, job, records={} if old is None else old.records)
        self.hosts[signer.peer] = host
        if make is not None:
            host.machine = make(ctx, job)
        host.call(lambda: None)
        return host

    def __getitem__(self, signer: HashSigner) -> Host:
        return self.hosts[signer.peer]

    def are_linked(self, one: PeerId, other: PeerId) -> bool:
        hosts = (self.hosts.get(one), self.hosts.get(other))
        return all(host is not None and host.alive for host in hosts) and frozenset((one, other)) not in self.cut

    def everybody_knows(self, *statements: Statement) -> None:
        """As if these had been delivered everywhere already."""
        for host in self.hosts.values():
            for statement in statements:
                host.job.add(statement)
            if host.machine is not None:
                host.call(host.machine.job_changed)

    # --- messages --------------------------------------------------------------------------------------------------
    def send(self, sender: PeerId, to: PeerId, frame: bytes) -> None:
        message = messages.decode(frame)
        self.sent += 1
        if not self.are_linked(sender, to) or self.hosts[sender].mute or self.lost(sender, to, message):
            return
        self.at(self.now + LATENCY_MS, lambda: self._arrive(sender, to, message))

    def say(self, sender: HashSigner, to: HashSigner, message: Message) -> None:
        """A message of one who has no machine."""
        self.send(sender.peer, to.peer, messages.encode(message))

    def _arrive(self, sender: PeerId, to: PeerId, message: Message) -> None:
        if self.are_linked(sender, to):
            self.hosts[to].receive(sender, message)

    def fetched(self, host: Host, effect: Fetch) -> None:
        if self.blobs_here:
            host.ctx.blob_stored(effect.part)
            self.at(self.now, lambda: host.call(lambda: host.machine.blob_ready(effect.part)))

    # --- links -----------------------------------------------------------------------------------------------------
    def kill(self, *signers: HashSigner) -> None:
        for signer in signers:
            self[signer].alive = False
        for signer in signers:
            self._links_changed(signer.peer, "peer_down")

    def revive(self, *signers: HashSigner) -> None:
        for signer in signers:
            self[signer].alive = True
            self._links_changed(signer.peer, "peer_up")
            host = self[signer]
            for peer in sorted(self.hosts):
                if peer != signer.peer and host.machine is not None and self.are_linked(peer, signer.peer):
                    host.call(lambda host=host, peer=peer: host.machine.peer_up(peer))  # type: ignore[misc]

    def part(self, one: HashSigner, other: HashSigner) -> None:
        """The link between two breaks, for good."""
        self.cut.add(frozenset((one.peer, other.peer)))
        for here, there in ((one, other), (other, one)):
            host = self[here]
            if host.machine is not None:
                host.call(lambda host=host, there=there: host.machine.peer_down(there.peer))  # type: ignore[misc]

    def _links_changed(self, peer: PeerId, what: str) -> None:
        for other in sorted(self.hosts):
            host = self.hosts[other]
            if other != peer and host.alive and host.machine is not None:
                host.call(lambda host=host: getattr(host.machine, what)(peer))  # type: ignore[misc]

    # --- time ------------------------------------------------------------------------------------------------------
    def at(self, when: Millis, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._queue, (when, self._count, action))

    def arm(self, host: Host) -> None:
        """Its machine wants to be called at its deadline."""
        deadline = None if host.machine is None else host.machine.deadline
        if deadline is None:
            self._armed.pop(host.peer, None)
            return
        when = max(deadline, self.now + 1)
        if self._armed.get(host.peer) != when:
            self._armed[host.peer] = when
            self.at(when, lambda: self._ring(host, when))

    def _ring(self, host: Host, when: Millis) -> None:
        if self._armed.get(host.peer) == when and self.hosts.get(host.peer) is host:
            del self._armed[host.peer]
            if host.mute:
                return
            host.call(host.machine.tick)

    def run(self, ms: Millis) -> None:
        """For so long."""
        end = self.now + ms
        while self._queue and self._queue[0][0] <= end:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = end

    def run_until(self, done: Callable[[], bool], ms: Millis) -> None:
        """Until something is so; fails when it is not within `ms`."""
        end = self.now + ms
        while not done():
            assert self._queue, "it has not happened"
            assert self._queue[0][0] <= end, "it has not happened"
            self.now, _, action = heapq.heappop(self._queue)
            action()
