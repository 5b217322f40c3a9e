"""What the machines of one node share: who they are, the clock reading of this call, and where effects go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from typing import Any, TypeAlias

from nexapod.protocol import messages, statements
from nexapod.protocol.directory import Directory
from nexapod.protocol.events import Drop, Effect, Fetch, Publish, Save, Send, Topic, Trace
from nexapod.protocol.limits import STEWARDS
from nexapod.protocol.messages import Message
from nexapod.protocol.records import Record
from nexapod.protocol.statements import Body, Signer, Statement
from nexapod.protocol.tickets import shard_key
from nexapod.protocol.types import BlobRef, JobId, Millis, Part, PeerId, StatementId

STATEMENT_RECORD = "statement"
Owner: TypeAlias = tuple[str, JobId, int]
"""Who needs a blob: a role, its job, and which of the role's parts it is (a shard, a task; else 0)."""


class Context:
    """One node's shared state. `now` is set at the start of each `Node.handle`."""

    def __init__(self, signer: Signer, network: str, entropy: Callable[[int], bytes]) -> None:
        self.signer = signer
        self.me = signer.peer
        self.entropy = entropy
        self.directory = Directory(signer.peer, network)
        self.now: Millis = 0
        self.effects: list[Effect] = []
        self.to_self: deque[Message] = deque()
        self._stored: dict[BlobRef, set[Part]] = {}
        self._owners: dict[BlobRef, set[Owner]] = {}

    # --- effects ---------------------------------------------------------------------------------------------------
    def sign(self, body: Body) -> Statement:
        return statements.make(body, self.signer)

    def send(self, peer: PeerId, message: Message) -> None:
        """To any peer, this one included: a node is often steward and worker of the same task."""
        if peer == self.me:
            self.to_self.append(message)
        else:
            self.effects.append(Send(peer, messages.encode(message), self.directory.addrs(peer)))

    def offer(self, peer: PeerId, offered: list[Statement]) -> None:
        for message in messages.offers([statement.envelope for statement in offered]):
            self.send(peer, message)

    def publish(self, topic: Topic, statement: Statement) -> None:
        self.effects.append(Publish(topic, statement.envelope))

    def save(self, statement: Statement) -> None:
        self.effects.append(Save(Record(STATEMENT_RECORD, statement.id, statement.envelope)))

    def save_record(self, record: Record) -> None:
        self.effects.append(Save(record))

    def forget(self, statement: StatementId) -> None:
        self.effects.append(Save(Record(STATEMENT_RECORD, statement, None)))

    def trace(self, name: str, **facts: Any) -> None:
        self.effects.append(Trace(name, facts))

    # --- blobs -----------------------------------------------------------------------------------------------------
    def hold(self, ref: BlobRef, owner: Owner) -> None:
        """Somebody here needs the blob: it is not dropped before everyone who said so has let go."""
        self._owners.setdefault(ref, set()).add(owner)

    def fetch(self, part: Part, owner: Owner, sources: list[PeerId]) -> None:
        """Hold a blob, and bring part of it here (BlobReady or BlobFailed follows). Sources in order of preference."""
        self.hold(part.blob, owner)
        others = tuple(p for p in dict.fromkeys(sources) if p != self.me)
        self.effects.append(Fetch(part, others))

    def store_has(self, part: Part) -> None:
        """It is in the local store."""
        self._stored.setdefault(part.blob, set()).add(part)

    def has(self, part: Part) -> bool:
        """Whether it is known to be in the local store."""
        stored = self._stored.get(part.blob, ())
        return part in stored or Part.whole(part.blob) in stored

    def let_go(self, ref: BlobRef, owner: Owner) -> None:
        owners = self._owners.get(ref)
        if owners is None:
            return
        owners.discard(owner)
        if not owners:
            del self._owners[ref]
            self._stored.pop(ref, None)
            self.effects.append(Drop(ref))

    def let_go_all(self, owner: Owner, but: Container[BlobRef] = ()) -> None:
        for ref in [r for r, owners in self._owners.items() if owner in owners and r not in but]:
            self.let_go(ref, owner)

    def owners(self, ref: BlobRef) -> list[Owner]:
        """Everyone here who needs the blob, in a fixed order."""
        return sorted(self._owners.get(ref, ()))

    def held(self) -> frozenset[BlobRef]:
        """Every blob that something here needs."""
        return frozenset(self._owners)

    # --- who -------------------------------------------------------------------------------------------------------
    def stewards(self, job: JobId, shard: int) -> tuple[PeerId, ...]:
        """The shard's stewards, as this node sees them now."""
        return self.directory.closest(shard_key(job, shard), STEWARDS, self.now)

    def may_judge(self, peer: PeerId, job: JobId, shard: int) -> bool:
        """Whether a verdict of this peer counts here: views of who is closest differ a little, hence 2K."""
        return peer == self.me or peer in self.directory.closest(shard_key(job, shard), 2 * STEWARDS, self.now)
