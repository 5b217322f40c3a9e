"""A mesh in memory whose peers sign with real keys: what it certifies, a command without a daemon can check."""

from __future__ import annotations

import hashlib
import random
from functools import cache

from nexapod.mesh.identity import Signer, verify
from nexapod.protocol.events import Submit
from nexapod.protocol.node.archive import ARCHIVED
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import JobSettled
from nexapod.protocol.records import Record
from tests.protocol.mesh import NETWORK, Mesh, Peer, job_of, job_spec

PEERS = 4


class SignedMesh(Mesh):
    """Of PEERS peers, all linked."""

    def __init__(self) -> None:
        super().__init__(0)
        for number in range(PEERS):
            signer = Signer(hashlib.sha256(b"signed mesh %d" % number).digest())
            kept: dict[tuple[str, bytes], Record] = {}
            self.names.append(signer.peer)
            self.peers[signer.peer] = Peer(signer, self._signing_node(signer, kept), kept)  # type: ignore[arg-type]
        self.start()

    def _signing_node(self, signer: Signer, kept: dict[tuple[str, bytes], Record]) -> Node:
        def archive(kind: str, prefix: bytes) -> list[Record]:
            return [kept[key] for key in sorted(kept) if key[0] == kind and key[1].startswith(prefix)]

        assert not ARCHIVED.intersection(kind for kind, _ in kept)
        entropy = random.Random(signer.peer).randbytes
        return Node(signer, verify, NETWORK, self.grouping, entropy, archive=archive, now=self.now)


@cache
def certified(tasks: int = 2) -> tuple[SignedMesh, bytes]:
    """A mesh whose first peer has submitted a job that is settled, and the certificate of that."""
    mesh = SignedMesh()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(tasks=tasks)))
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)))
    return mesh, b"".join(mesh[0].node.certificate(job_of(mesh[0])))
