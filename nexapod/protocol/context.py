"""What the machines of one node share: who they are, the clock reading of this call, and where effects go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable
from typing import Any, Protocol, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.events import Drop, Effect, Fetch, Save, Send, Trace
from nexapod.protocol.notices import Notice
from nexapod.protocol.primitives import BlobRef, JobId, Millis, Part, PeerId
from nexapod.protocol.records import Record
from nexapod.protocol.types import Group, Grouping, Profile
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.bodies import Body
from nexapod.protocol.wire.messages import Message
from nexapod.protocol.wire.statements import Signer, Statement, Verify

Owner: TypeAlias = tuple[str, JobId, int]
"""Who needs a blob: a role, its job, and which of the role's parts it is (a shard, a task; else 0)."""


class Peers(Protocol):
    """What a node knows of others (node/directory.py). Reading changes nothing."""

    def linked(self, peer: PeerId) -> bool:
        """Whether there is a link to it. A peer is linked to itself."""

    def links(self) -> tuple[PeerId, ...]:
        """All peers that there is a link to, in a fixed order; not this one."""

    def some_links(self, count: int, but: PeerId) -> tuple[PeerId, ...]:
        """At most `count` of the links, by chance, and not that to `but`."""

    def group(self, peer: PeerId, grouping: Grouping) -> Group | None:
        """Its operator group by the address of its own link, now; None without a link or an address that counts."""

    def met(self, peer: PeerId) -> Millis | None:
        """When this process first had a link to it."""

    def lost(self, peer: PeerId) -> Millis | None:
        """Since when it has neither a link nor answered a dial or probe; None while it is linked."""

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Where it says it can be dialled."""

    def profile(self, peer: PeerId) -> Profile | None:
        """Its newest profile."""


class Context:
    """One node's shared state. `now` is set at the start of each `Node.handle`."""

    def __init__(
        self,
        signer: Signer,
        verify: Verify,
        network: str,
        grouping: Grouping,
        entropy: Callable[[int], bytes],
        peers: Peers,
    ) -> None:
        self.signer = signer
        self.me = signer.peer
        self.verify = verify
        self.network = network
        self.grouping: Grouping = grouping
        self.entropy = entropy
        self.peers = peers
        self.now: Millis = 0
        self.effects: list[Effect] = []
        self.to_self: deque[Message] = deque()
        self._stored: dict[BlobRef, set[Part]] = {}
        self._owners: dict[BlobRef, dict[JobId, set[Owner]]] = {}
        self._owned: dict[Owner, dict[BlobRef, None]] = {}
        """The same by owner, in the order in which each pinned them."""
        self._stepped: Millis = 0

    def next_step(self) -> Millis:
        """When work that is done a little at a time may go on, or begin: however many machines have such work, all
        together do a step each STEP_MS."""
        self._stepped = max(self.now + 1, self._stepped + limits.STEP_MS)
        return self._stepped

    # --- effects ---------------------------------------------------------------------------------------------------
    def sign(self, body: Body) -> Statement:
        """A statement of this node's: alone its author, or the first to sign it."""
        return statements.make(body, self.signer)

    def cosign(self, statement: Statement) -> Statement:
        """A cosigned statement with this node's signature."""
        return statements.cosign(statement, self.signer)

    def send(self, peer: PeerId, message: Message, addrs: tuple[str, ...] = ()) -> None:
        """To any peer, this one included: a node is often seat and worker of the same task. `addrs`: where a statement
        (an offer in a panel) says that it can be dialled, if the directory does not know."""
        if peer == self.me:
            self.to_self.append(message)
        else:
            known = self.peers.addrs(peer)
            self.effects.append(Send(peer, messages.encode(message), known or addrs))

    def deliver(self, peer: PeerId, delivered: Iterable[Statement], addrs: tuple[str, ...] = ()) -> None:
        """Statements, in this order, in as few messages as fit."""
        for message in messages.deliveries(statement.envelope for statement in delivered):
            self.send(peer, message, addrs)

    def save(self, record: Record) -> None:
        self.effects.append(Save(record))

    def notify(self, notice: Notice) -> None:
        self.effects.append(notice)

    def trace(self, name: str, **facts: Any) -> None:
        """Diagnosis: `<object>_<past participle>`."""
        self.effects.append(Trace(name, facts))

    # --- blobs -----------------------------------------------------------------------------------------------------
    def pin(self, ref: BlobRef, owner: Owner) -> None:
        """Somebody here needs the blob: it is not dropped before everyone who said so has unpinned it."""
        self._owners.setdefault(ref, {}).setdefault(owner[1], set()).add(owner)
        self._owned.setdefault(owner, {})[ref] = None

    def fetch(self, part: Part, owner: Owner, sources: Iterable[PeerId]) -> None:
        """Pin a blob, and bring part of it here (BlobReady or BlobFailed follows). Sources in order of preference."""
        self.pin(part.blob, owner)
        others = tuple(peer for peer in dict.fromkeys(sources) if peer != self.me)
        self.effects.append(Fetch(part, others))

    def blob_stored(self, part: Part) -> None:
        """It is in the local store."""
        self._stored.setdefault(part.blob, set()).add(part)

    def has(self, part: Part) -> bool:
        """Whether it is known to be in the local store."""
        stored = self._stored.get(part.blob, ())
        return part in stored or Part.whole(part.blob) in stored

    def unpin(self, ref: BlobRef, owner: Owner) -> None:
        owners, owned = self._owners.get(ref), self._owned.get(owner)
        if owners is None or owned is None or ref not in owned:
            return
        owners[owner[1]].discard(owner)
        if not owners[owner[1]]:
            del owners[owner[1]]
        del owned[ref]
        if not owned:
            del self._owned[owner]
        if not owners:
            del self._owners[ref]
            self._stored.pop(ref, None)
            self.effects.append(Drop(ref))

    def unpin_owner(self, owner: Owner, but: Container[BlobRef] = ()) -> None:
        """One part of a role needs nothing any more (but these)."""
        for ref in [ref for ref in self._owned.get(owner, ()) if ref not in but]:
            self.unpin(ref, owner)

    def jobs_with(self, ref: BlobRef) -> list[JobId]:
        """The jobs that need the blob, in a fixed order."""
        return sorted(self._owners.get(ref, ()))

    def owners(self, ref: BlobRef, job: JobId) -> list[Owner]:
        """Everyone of a job who needs the blob, in a fixed order."""
        return sorted(self._owners.get(ref, {}).get(job, ()))

    def pinned(self) -> frozenset[BlobRef]:
        """Every blob that something here needs."""
        return frozenset(self._owners)
