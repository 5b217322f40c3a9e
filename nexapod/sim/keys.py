"""Signatures for simulations: a keyed hash, some hundred times cheaper than Ed25519.

The key is the public key inside the peer id, so anybody could forge one. Nobody here does: liars sign with their own
keys only, as they must in the real network.
"""

from __future__ import annotations

import hashlib

from nexapod.protocol.types import PeerId, key_of_peer_id, peer_id_of_key


class HashSigner:
    """A peer's identity in a simulation."""

    def __init__(self, world: int, index: int) -> None:
        self._key = hashlib.sha256(b"nexapod/sim/%d/%d" % (world, index)).digest()
        self._peer = peer_id_of_key(self._key)

    @property
    def peer(self) -> PeerId:
        return self._peer

    def sign(self, data: bytes) -> bytes:
        return hashlib.blake2b(data, key=self._key, digest_size=16).digest()


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether a HashSigner of this peer made the signature."""
    return hashlib.blake2b(data, key=key_of_peer_id(peer), digest_size=16).digest() == signature
