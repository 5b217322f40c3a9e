"""The values that the whole mesh speaks of: names, digests, resources, jobs and profiles. Frozen, and nothing else.

Validation of what other peers send lives in statements.py; what a user writes is checked in cli/jobfile.py. Both
build these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NewType, TypeAlias

import base58

from nexapod.protocol.limits import CHUNK_BYTES, RETENTION_DEFAULT_MS, SHARD_TASKS

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58 (`12D3KooW...`): the Ed25519 public key is inside it."""
Digest = NewType("Digest", bytes)
"""A sha2-256: 32 bytes."""
JobId = NewType("JobId", bytes)
"""The statement id of the signed job: 32 bytes, shown as hex."""
StatementId = NewType("StatementId", bytes)
Millis: TypeAlias = int
"""Monotonic milliseconds."""

ExecutorName: TypeAlias = Literal["wasm", "docker"]

_PEER_ID_PREFIX = bytes.fromhex("002408011220")
"""identity multihash of a libp2p Ed25519 public key protobuf: what precedes the 32 bytes of the key."""


@lru_cache(maxsize=65_536)
def peer_id_of_key(public_key: bytes) -> PeerId:
    """The libp2p peer id of a 32-byte Ed25519 public key."""
    assert len(public_key) == 32
    return PeerId(base58.b58encode(_PEER_ID_PREFIX + public_key).decode("ascii"))


@lru_cache(maxsize=65_536)
def key_of_peer_id(peer: PeerId) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises ValueError when it holds none."""
    raw = base58.b58decode(peer)
    if len(raw) != 38 or not raw.startswith(_PEER_ID_PREFIX):
        raise ValueError("not the peer id of an Ed25519 key")
    return raw[6:]


@lru_cache(maxsize=65_536)
def kad_key(peer: PeerId) -> int:
    """Where a peer stands in the XOR key space: sha2-256 of its id's bytes, as libp2p's Kademlia has it."""
    return int.from_bytes(hashlib.sha256(_PEER_ID_PREFIX + key_of_peer_id(peer)).digest(), "big")


@dataclass(frozen=True, slots=True, order=True)
class TaskId:
    """One unit of a job."""

    job: JobId
    index: int

    @property
    def shard(self) -> int:
        return self.index // SHARD_TASKS

    def __str__(self) -> str:
        return f"{self.job.hex()[:12]}/{self.index}"


@dataclass(frozen=True, slots=True, order=True)
class BlobRef:
    """The name of immutable bytes.

    Up to one chunk (1 MiB) `digest` is sha2-256 of the bytes, as `sha256sum` prints it. Beyond, it is sha2-256 of
    b"nexapod/blob\\0" followed by the sha2-256 of each chunk: so every chunk can be checked as it arrives. `size`
    tells which of the two, which is why it is part of the name.
    """

    digest: Digest
    size: int

    @property
    def chunks(self) -> int:
        return max(1, -(-self.size // CHUNK_BYTES))

    def __str__(self) -> str:
        return f"{self.digest.hex()}:{self.size}"

    @classmethod
    def parse(cls, text: str) -> BlobRef:
        """The inverse of str(). Raises ValueError."""
        digest, _, size = text.partition(":")
        raw = bytes.fromhex(digest)
        if len(raw) != 32 or not size.isascii() or not size.isdigit() or len(size) > 15:
            raise ValueError("a blob is named <64 hex digits>:<size>")
        return cls(Digest(raw), int(size))


def blob_root(chunk_digests: list[bytes]) -> Digest:
    """The digest that names a blob of these chunks (see BlobRef)."""
    if len(chunk_digests) == 1:
        return Digest(chunk_digests[0])
    return Digest(hashlib.sha256(b"nexapod/blob\0" + b"".join(chunk_digests)).digest())


def blob_of(data: bytes) -> BlobRef:
    """Name bytes held in memory."""
    size = CHUNK_BYTES
    pieces = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    return BlobRef(blob_root([hashlib.sha256(piece).digest() for piece in pieces]), len(data))


@dataclass(frozen=True, slots=True)
class File:
    """A blob at a relative POSIX path: an input, an output."""

    path: str
    blob: BlobRef


@dataclass(frozen=True, slots=True)
class Run:
    """What to execute. Exactly one of `module` (wasm) and `image` (docker: `sha256:<hex>` content id) is set."""

    executor: ExecutorName
    module: BlobRef | None = None
    image: str | None = None
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Split:
    """A file cut into one piece a task: task i gets bytes [offset_i, offset_i + length_i) of `blob` at `path`.

    `index` is a blob of count x (u64 offset, u32 length), big-endian.
    """

    path: str
    blob: BlobRef
    index: BlobRef


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use. Bytes and milliseconds; `cpus` in thousandths of a core."""

    cpus_milli: int = 1000
    memory: int = 256 << 20
    output: int = 16 << 20
    wall_ms: Millis = 3_600_000
    gpus: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True, slots=True)
class Requires:
    """What a peer must have beyond the limits. Empty means any."""

    arch: tuple[str, ...] = ()
    memory: int = 0
    gpu_model: str = ""


@dataclass(frozen=True, slots=True)
class Validate:
    """How results are compared and how many must agree."""

    mode: Literal["exact"] = "exact"
    agree: int = 2
    max_replicas: int = 5


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The body of a `job` statement: everything that peers need to run and judge it (docs/protocol.md, Job)."""

    network: str
    name: str
    nonce: bytes
    stamp: int
    """Wall-clock milliseconds at the submitter: for people, decides nothing."""
    run: Run
    tasks: int
    description: str = ""
    tags: tuple[str, ...] = ()
    priority: int = 0
    inputs: tuple[File, ...] = ()
    split: Split | None = None
    params: BlobRef | None = None
    """A blob of the UTF-8 JSON list of each task's parameters (a table of strings), one a task."""
    limits: Limits = field(default_factory=Limits)
    requires: Requires = field(default_factory=Requires)
    validate: Validate = field(default_factory=Validate)
    retention_ms: Millis = RETENTION_DEFAULT_MS

    @property
    def shards(self) -> int:
        return -(-self.tasks // SHARD_TASKS)

    def shard_tasks(self, shard: int) -> range:
        """The task indices of a shard."""
        return range(shard * SHARD_TASKS, min(self.tasks, (shard + 1) * SHARD_TASKS))

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Everything a worker needs to have fetched before it can run a task, without repetition."""
        refs = [file.blob for file in self.inputs]
        if self.run.module:
            refs.append(self.run.module)
        if self.split:
            refs += [self.split.blob, self.split.index]
        if self.params:
            refs.append(self.params)
        return tuple(dict.fromkeys(refs))


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML shows it."""

    model: str
    memory: int
    capability: str = ""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Executor:
    """A sandbox that this peer can run tasks in."""

    name: ExecutorName
    version: str


@dataclass(frozen=True, slots=True)
class Profile:
    """The body of a `profile` statement: what a peer is and offers. A hint, never a proof."""

    network: str
    seq: int
    """Rises with every profile of a peer, across restarts: the newest wins."""
    stamp: int
    agent: str
    os: str
    arch: str
    cpu_model: str
    cpus: int
    memory: int
    disk_free: int
    gpus: tuple[Gpu, ...]
    executors: tuple[Executor, ...]
    images: tuple[str, ...]
    """Container images (content ids) that this peer holds: it can run no others."""
    addrs: tuple[str, ...]
    serves: bool
    """Whether it accepts connections from anyone, and so may be a steward."""
    slots: int
    """How many tasks it would run at once now; 0 = it does not work."""

    @property
    def hardware(self) -> str:
        """The coarse class that results may depend on."""
        return f"{self.os}-{self.arch}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What a task used."""

    cpu_ms: int = 0
    wall_ms: int = 0
    peak_memory: int = 0


RunOutcome: TypeAlias = Literal["ok", "failed", "wall-limit", "memory-limit", "output-limit", "try-elsewhere"]
"""How a run ended. `try-elsewhere` (exit 75, or this machine's fault) is no result: the lease is given back."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What an executor hands back for one task."""

    outcome: RunOutcome
    exit: int
    files: tuple[File, ...] = ()
    usage: Usage = field(default_factory=Usage)
    log: str = ""
    """The last lines of its output, escaped, at most LOG_TAIL_MAX bytes."""
    reason: str = ""
