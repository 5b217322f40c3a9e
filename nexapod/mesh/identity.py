"""Who this peer is: a 32-byte Ed25519 seed on disk, the peer id made from it, signing and verifying.

Uses PyNaCl alone, so that a command line can show the peer id without loading libp2p. Does not know where the file
is kept, nor what is signed.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from nexapod.protocol.errors import LocalError
from nexapod.protocol.primitives import PeerId, key_of_peer_id, peer_id_of_key

SEED_BYTES = 32
_PRIVATE_MODE = 0o600


def load_or_create(path: Path) -> bytes:
    """The 32-byte seed kept in `path`; made there (mode 0600, whole or not at all) when the file is missing.

    Raises LocalError when the file is not exactly 32 bytes, is readable by others, or cannot be read or written.
    """
    try:
        if not path.exists():
            _create(path)
        return _load(path)
    except OSError as error:
        raise LocalError(f"cannot use the identity file {path}: {error.strerror or error}") from error


def _create(path: Path) -> None:
    """Write a new seed beside `path` and link it there: of two daemons that start at once, one seed wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SEED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # another daemon was first: its seed is as good
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        draft.unlink(missing_ok=True)


def _load(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        seed = file.read(SEED_BYTES + 1)
    if mode & 0o077:
        raise LocalError(
            f"the identity file {path} has mode {mode:04o}, so others may read this peer's private key; "
            f"run: chmod 600 {path}"
        )
    if len(seed) != SEED_BYTES:
        raise LocalError(
            f"the identity file {path} does not hold a {SEED_BYTES}-byte seed; restore it from a backup, "
            "or move it away to start as a new peer"
        )
    return seed


def peer_id(seed: bytes) -> PeerId:
    """The libp2p peer id of a 32-byte seed."""
    return peer_id_of_key(bytes(SigningKey(seed).verify_key))


class Signer:
    """Signs with this peer's key."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.peer = peer_id_of_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `data`."""
        return self._key.sign(data).signature


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `data` was made by `peer`'s key. Total: anything malformed is False."""
    try:
        VerifyKey(key_of_peer_id(peer)).verify(data, signature)
    except (CryptoError, ValueError, TypeError):
        return False
    return True
