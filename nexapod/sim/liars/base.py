"""The base of all liars: a peer as honest as its node, with places where others differ.

A liar wraps a real node and changes what goes in or comes out. It signs with its own keys only. What it knows of others
(its gang, all peers' ids and addresses) it is given, so that an attack does not depend on luck.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nexapod.protocol.events import Effect, Event, Send
from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import BlobRef, Millis, PeerId, StatementId, TaskId
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import messages
from nexapod.sim.keys import HashSigner
from nexapod.sim.rng import Rng
from nexapod.sim.truth import checkpoint_blob


@dataclass(slots=True)
class Gang:
    """What liars that collude share."""

    number: int
    members: list[HashSigner] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def label(self) -> bytes:
        """What their common wrong results are made of."""
        return b"gang %d" % self.number


@dataclass(frozen=True, slots=True)
class Target:
    """Another peer, as a liar knows it."""

    peer: PeerId
    addr: str


class Liar:
    """As honest as its node."""

    def __init__(self, signer: HashSigner, rng: Rng, others: tuple[Target, ...], gang: Gang) -> None:
        self.signer = signer
        self.me = signer.peer
        self.rng = rng
        self.gang = gang
        self.others = tuple(target for target in others if target.peer != self.me)
        self._addrs = {target.peer: target.addr for target in others}
        self.attacks = 0
        """How often it has done what an honest peer would not: a liar that never does tests nothing."""
        self.wrong: dict[StatementId, str] = {}
        """What it has said that nobody honest may ever sign, and why."""

    slots: int | None = None
    """Slots that its profile claims; None: what the plan says."""

    def hears(self, node: Node, event: Event, now: Millis) -> list[Effect]:
        """Sees an event before its node does. What it returns is done."""
        return []

    def swallows(self, node: Node, event: Event) -> bool:
        """Whether its node is not to know of an event."""
        return False

    def speaks(self, node: Node, effects: list[Effect]) -> list[Effect]:
        """What is done instead of what its node wants done."""
        return effects

    def runs(self, task: TaskId, spec: JobSpec, honest: RunResult) -> tuple[RunResult, Millis] | None:
        """The result claimed and after how long; None = never."""
        return honest, honest.usage.wall_ms

    def keeps(self, task: TaskId) -> BlobRef:
        """What it keeps half-way."""
        return checkpoint_blob(task)

    def attacked(self, effects: list[Effect]) -> list[Effect]:
        """Count what is sent beside or instead of what the node wants."""
        self.attacks += len(effects)
        return effects

    def send(self, peer: PeerId, message: messages.Message) -> Send:
        return Send(peer, messages.encode(message), (self._addrs[peer],) if peer in self._addrs else ())
