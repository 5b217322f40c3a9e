"""Keys for simulations: a keyed hash in place of Ed25519, so that thousands of statements a second can be signed.

Signatures are as long as real ones. Nobody in a simulation can forge another's, since a liar is only ever given its own
keys; what is tested is what peers do with statements, not whether a curve holds.
"""

from __future__ import annotations

import hashlib

from nexapod.protocol.primitives import PeerId, key_of_peer_id, peer_id_of_key


class HashSigner:
    """The key of one simulated peer."""

    def __init__(self, seed: int, *name: int | str) -> None:
        label = "/".join(["nexapod-sim-key", str(seed), *map(str, name)])
        self._key = hashlib.sha256(label.encode()).digest()
        self.peer = peer_id_of_key(self._key)

    def sign(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=64).digest()


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `peer` signed this."""
    return hashlib.blake2b(data, key=key_of_peer_id(peer), digest_size=64).digest() == signature
