"""The chance of a round of admission: what its value is, and what a seat checks before it signs one
(docs/protocol.md, Beacon and draw).

Each seat bound itself to its value before the admission was signed, so nobody can choose one to fit it; the last to
show may only keep silent, which costs it its place in all further rounds of the epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import TypeVar

from nexapod.protocol.primitives import Digest, PeerId, key_of_peer_id
from nexapod.protocol.wire.bodies import Beacon
from nexapod.protocol.wire.statements import Statement, value_commitment

_Bytes = TypeVar("_Bytes", bytes, Digest)


def value(beacon: Beacon) -> Digest:
    """What the draw of the round's newcomers is made of: 32 bytes."""
    hashed = hashlib.sha256(b"nexapod/beacon\0" + beacon.admission)
    for peer, shown in beacon.values:
        hashed.update(key_of_peer_id(peer) + shown)
    return Digest(hashed.digest())


def fits(shown: bytes, committed: Digest) -> bool:
    """Whether a value is the one that a seat had bound itself to."""
    return value_commitment(shown) == committed


def ordered(values: Mapping[PeerId, _Bytes]) -> tuple[tuple[PeerId, _Bytes], ...]:
    """Values as a beacon, and commitments as an admission, list them: by key."""
    return tuple(sorted(values.items(), key=lambda pair: key_of_peer_id(pair[0])))


def error_of_form(beacon: Beacon, admission: Statement, holders: Collection[PeerId]) -> str | None:
    """Why a beacon cannot be that of this admission by these seats of the gate; None: it can."""
    body = admission.body
    if beacon.admission != admission.id or (beacon.job, beacon.epoch, beacon.round) != (
        body.job,
        body.epoch,
        body.round,
    ):
        return "it is not of the round of its admission"
    keys = [key_of_peer_id(peer) for peer, _ in beacon.values]
    if keys != sorted(set(keys)):
        return "its values are not sorted by key, each seat once"
    if not all(peer in holders for peer, _ in beacon.values):
        return "one of its values is of no seat of the gate"
    committed = dict(body.commitments)
    if not all(peer in committed and fits(shown, committed[peer]) for peer, shown in beacon.values):
        return "a value is not the one that its seat had bound itself to"
    return None


def error_in(
    beacon: Beacon,
    admission: Statement,
    committed: Mapping[PeerId, Digest],
    shown: Mapping[PeerId, bytes],
) -> str | None:
    """Why a seat that was shown these values does not sign this beacon; None: it does.

    `committed`: the admission's, of the seats of the gate whose values are not void. `shown`: values that fit them.
    """
    error = error_of_form(beacon, admission, committed)
    if error is not None:
        return error
    listed = dict(beacon.values)
    if any(peer not in listed for peer in shown if peer in committed):
        return "a value that was shown is left out"
    return None
