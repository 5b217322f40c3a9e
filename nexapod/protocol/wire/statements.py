"""The signed statements: the only things that peers believe (docs/protocol.md, Statements).

    envelope = msgpack([major version, kind, body, [[author, signature], ...]])

`body` is the msgpack bytes as signed; each signature is Ed25519 over b"nexapod/3/" + kind + b"\\0" + body. A statement
by one author is named by kind, author and body; a cosigned one by kind and body alone, so that its name does not change
while signatures gather. Decoding is total: any bytes give a Statement or a PeerError. Bytes are signed and hashed,
never a re-serialised object, so what lies in extension slots is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final, Literal, Protocol, TypeAlias
from weakref import WeakValueDictionary

from nexapod.protocol import limits, types
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import Digest, File, JobId, PeerId, StatementId, key_of_peer_id, peer_id_of_key
from nexapod.protocol.wire import bodies, fields
from nexapod.protocol.wire.bodies import Body
from nexapod.protocol.wire.fields import Check, Raw

Kind: TypeAlias = Literal[
    "profile",
    "offer",
    "job",
    "cancel",
    "placed",
    "commit",
    "reveal",
    "checkpoint",
    "settlement",
    "fault",
    "succession",
    "renewal",
    "admission",
    "beacon",
    "freeze",
    "verdict",
    "adoption",
]
Verify: TypeAlias = Callable[[PeerId, bytes, bytes], bool]
"""(author, signed bytes, signature) -> whether it holds. Total."""


class Signer(Protocol):
    """Holds the node's key."""

    @property
    def peer(self) -> PeerId: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Statement:
    """A decoded statement whose signatures hold.

    `signatures` are sorted by the author's key; a statement by one author has exactly one. Equal ids mean equal bodies,
    not equal signatures.
    """

    id: StatementId
    kind: Kind
    body: Any
    raw: bytes
    """The body's bytes as signed."""
    signatures: tuple[tuple[PeerId, bytes], ...]
    origin: Statement | None = field(default=None, compare=False, repr=False)
    """The one that was decoded, of which this is a copy with other signatures: as long as a copy is kept, so is that,
    and whoever sends the statement again is given the same body."""

    @property
    def author(self) -> PeerId:
        """Who signed a statement by one author."""
        assert self.kind not in COSIGNED
        return self.signatures[0][0]

    @property
    def signers(self) -> tuple[PeerId, ...]:
        """Who has signed it so far."""
        return tuple(peer for peer, _ in self.signatures)

    @property
    def envelope(self) -> bytes:
        """The bytes that prove it."""
        signed = [[key_of_peer_id(peer), signature] for peer, signature in self.signatures]
        return fields.pack([limits.PROTOCOL_MAJOR, _CODE_OF[self.kind], self.raw, signed])


_BODIES: Final[tuple[tuple[Kind, type, Callable[..., Any] | None], ...]] = (
    ("profile", types.Profile, None),
    ("offer", types.Offer, None),
    ("job", types.JobSpec, types.checked_job),
    ("cancel", bodies.Cancel, None),
    ("placed", bodies.Placed, None),
    ("commit", bodies.Commit, None),
    ("reveal", bodies.Reveal, None),
    ("checkpoint", bodies.Checkpoint, None),
    ("settlement", bodies.Settlement, None),
    ("fault", bodies.Fault, None),
    ("succession", bodies.Succession, None),
    ("renewal", bodies.Renewal, None),
    ("admission", bodies.Admission, None),
    ("beacon", bodies.Beacon, None),
    ("freeze", bodies.Freeze, None),
    ("verdict", bodies.Verdict, None),
    ("adoption", bodies.Adoption, None),
)
"""By code: the place is what is on the wire."""
KINDS: Final[tuple[Kind, ...]] = tuple(kind for kind, _, _ in _BODIES)
COSIGNED: Final[frozenset[Kind]] = frozenset(
    ("succession", "renewal", "admission", "beacon", "freeze", "verdict", "adoption")
)
SCHEMAS: Final[dict[Kind, Check[Any]]] = {kind: fields.record(cls, make) for kind, cls, make in _BODIES}
CLASSES: Final[dict[Kind, type]] = {kind: cls for kind, cls, _ in _BODIES}
_KIND_OF: Final[dict[type, Kind]] = {cls: kind for kind, cls, _ in _BODIES}
_CODE_OF: Final[dict[Kind, int]] = {kind: code for code, kind in enumerate(KINDS)}


# --- what is hashed and signed -------------------------------------------------------------------------------------
def signed_bytes(kind: Kind, raw: bytes) -> bytes:
    """What a signature of a statement covers."""
    return b"nexapod/%d/" % limits.PROTOCOL_MAJOR + kind.encode("ascii") + b"\0" + raw


def _id(kind: Kind, author: bytes | None, raw: bytes) -> StatementId:
    named = [limits.PROTOCOL_MAJOR, _CODE_OF[kind], author, raw]
    return StatementId(hashlib.sha256(fields.pack(named)).digest())


def output_root(outcome: str, exit_status: int, outputs: Iterable[File]) -> Digest:
    """The digest that `exact` compares: how the task ended and the path, size and hash of each file, by path."""
    listing = [[f.path, f.blob.size, f.blob.digest] for f in sorted(outputs, key=lambda f: f.path)]
    return Digest(hashlib.sha256(b"nexapod/output\0" + fields.pack([outcome, exit_status, listing])).digest())


NO_CHECKPOINT: Final = bytes(32)


def commitment(
    job: JobId, task: int, worker: PeerId, salt: bytes, root: Digest, resumed: StatementId | None = None
) -> Digest:
    """What a commit seals: bound to task, worker and the checkpoint gone on from, so that it is worth nothing to
    another."""
    bound = job + task.to_bytes(4, "big") + key_of_peer_id(worker) + salt + root + (resumed or NO_CHECKPOINT)
    return Digest(hashlib.sha256(b"nexapod/commit\0" + bound).digest())


def value_commitment(value: bytes) -> Digest:
    """What a seat of the gate says of a value before it shows it."""
    return Digest(hashlib.sha256(b"nexapod/value\0" + value).digest())


def dial_back_bytes(reached: PeerId, addr: str, stamp: int) -> bytes:
    """What a peer that dialled another at an address signs, for that one to show in its offer (DialBack)."""
    return b"nexapod/3/dial-back\0" + key_of_peer_id(reached) + stamp.to_bytes(8, "big") + addr.encode()


# --- making --------------------------------------------------------------------------------------------------------
def make(body: Body, signer: Signer) -> Statement:
    """Sign a body. A body out of bounds is our own mistake and asserts."""
    kind = _KIND_OF[type(body)]
    raw = fields.pack(SCHEMAS[kind].encode(body))
    signature = signer.sign(signed_bytes(kind, raw))
    author = None if kind in COSIGNED else key_of_peer_id(signer.peer)
    statement = Statement(_id(kind, author, raw), kind, body, raw, ((signer.peer, signature),))
    assert len(raw) + 256 <= limits.ENVELOPE_BYTES_MAX, f"a {kind} of {len(raw)} bytes"
    return statement


def cosign(statement: Statement, signer: Signer) -> Statement:
    """The same with this node's signature among the others."""
    assert statement.kind in COSIGNED
    if signer.peer in statement.signers:
        return statement
    signature = signer.sign(signed_bytes(statement.kind, statement.raw))
    return _with(statement, (signer.peer, signature))


def merge(one: Statement, other: Statement) -> Statement:
    """One cosigned statement with the signatures of both."""
    assert one.id == other.id
    return _with(one, *(pair for pair in other.signatures if pair[0] not in one.signers))


def keep_signers(statement: Statement, kept: Iterable[PeerId]) -> Statement:
    """Without the signatures of anybody else: what a certificate shows need not carry more than counts."""
    wanted = frozenset(kept)
    return _copy(statement, tuple(pair for pair in statement.signatures if pair[0] in wanted))


def _with(statement: Statement, *added: tuple[PeerId, bytes]) -> Statement:
    if not added:
        return statement
    pairs = sorted((*statement.signatures, *added), key=lambda pair: key_of_peer_id(pair[0]))
    return _copy(statement, tuple(pairs))


def _copy(statement: Statement, signatures: tuple[tuple[PeerId, bytes], ...]) -> Statement:
    origin = statement.origin or statement
    return Statement(statement.id, statement.kind, statement.body, statement.raw, signatures, origin)


BODY_BYTES_MAX: Final = limits.ENVELOPE_BYTES_MAX - 256
"""Of a statement with one author: what its envelope has room for beside version, kind and signature."""


def check_body(body: Body) -> None:
    """Raises PeerError naming the field when a body that we are about to sign would be refused by others."""
    schema = SCHEMAS[_KIND_OF[type(body)]]
    raw = fields.pack(schema.encode(body))
    if len(raw) > BODY_BYTES_MAX:
        raise PeerError("too-large", f"{len(raw)} bytes, at most {BODY_BYTES_MAX} allowed")
    schema.decode(fields.unpack(raw, BODY_BYTES_MAX))


def body_size(body: Body) -> int:
    """Bytes of a body as it would be signed."""
    return len(fields.pack(SCHEMAS[_KIND_OF[type(body)]].encode(body)))


# --- decoding ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Unverified:
    """An envelope whose frame is right: what it says of itself before any signature is checked."""

    kind: Kind
    raw: bytes
    signatures: tuple[tuple[bytes, bytes], ...]
    """(author's key, signature)."""

    @cached_property
    def id(self) -> StatementId:
        return _id(self.kind, None if self.kind in COSIGNED else self.signatures[0][0], self.raw)


def read(envelope: bytes) -> Unverified:
    """The frame of an envelope, so that relevance can be decided before a signature is checked. Raises PeerError."""
    # The same one comes from many peers: small ones are remembered, so that each is read, and its id computed, once.
    return _read(envelope) if len(envelope) > limits.REMEMBERED_BYTES_MAX else _remembered_frame(envelope)


def _read(envelope: bytes) -> Unverified:
    return fields.unpacked(envelope, limits.ENVELOPE_BYTES_MAX, _frame)


_remembered_frame: Final = lru_cache(maxsize=limits.REMEMBERED_MAX)(_read)


def _frame(raw: Raw) -> Unverified:
    if type(raw) is not list or len(raw) != 4:
        raise PeerError("bad-envelope", "not a list of four")
    version, code, body, signed = raw
    if type(version) is not int or version != limits.PROTOCOL_MAJOR:
        raise PeerError("unknown-version", f"we speak version {limits.PROTOCOL_MAJOR}", penalty=1)
    if type(code) is not int or not 0 <= code < len(KINDS):
        raise PeerError("unknown-kind", penalty=1)
    kind = KINDS[code]
    if type(body) is not bytes or type(signed) is not list:
        raise PeerError("bad-envelope", "the body is bytes, the signatures are a list")
    pairs = tuple(_signature(pair) for pair in signed[: limits.SIGNATURES_MAX + 1])
    most = limits.SIGNATURES_MAX if kind in COSIGNED else 1
    keys = [key for key, _ in pairs]
    if not 1 <= len(pairs) <= most or keys != sorted(set(keys)):
        raise PeerError("bad-envelope", f"1 to {most} signatures, each author once, sorted by key")
    return Unverified(kind, body, pairs)


def _signature(pair: Any) -> tuple[bytes, bytes]:
    if type(pair) is not list or len(pair) != 2:
        raise PeerError("bad-envelope", "a signature is a pair")
    key, signature = pair
    if type(key) is not bytes or len(key) != 32 or type(signature) is not bytes or len(signature) != 64:
        raise PeerError("bad-envelope", "a signature is 32 bytes of key and 64 of signature")
    return key, signature


def verified(unverified: Unverified, verify: Verify) -> Statement:
    """Signatures first, then the body. Raises PeerError."""
    kind, raw = unverified.kind, unverified.raw
    data = signed_bytes(kind, raw)
    pairs = tuple((peer_id_of_key(key), signature) for key, signature in unverified.signatures)
    if not all(_holds(peer, data, signature, verify) for peer, signature in pairs):
        raise PeerError("bad-signature", penalty=50)
    known = _alive.get(unverified.id)
    if known is not None:
        return known if known.signatures == pairs else _copy(known, pairs)
    body = fields.unpacked(raw, limits.ENVELOPE_BYTES_MAX, SCHEMAS[kind].decode)
    made = _alive[unverified.id] = Statement(unverified.id, kind, body, raw, pairs)
    return made


_alive: Final[WeakValueDictionary[StatementId, Statement]] = WeakValueDictionary()
"""Those that were decoded and are kept by somebody: the same one comes from many peers, and is decoded once. An id is a
hash of the whole body."""


def decode(envelope: bytes, verify: Verify) -> Statement:
    """Any bytes to a verified Statement, or PeerError."""
    return verified(read(envelope), verify)


def _holds(peer: PeerId, data: bytes, signature: bytes, verify: Verify) -> bool:
    """The same signature comes from many peers: small ones are remembered, so that each is checked once."""
    if len(data) > limits.REMEMBERED_BYTES_MAX:
        return verify(peer, data, signature)
    return _remembered(peer, data, signature, verify)


@lru_cache(maxsize=limits.REMEMBERED_MAX)
def _remembered(peer: PeerId, data: bytes, signature: bytes, verify: Verify) -> bool:
    return verify(peer, data, signature)
