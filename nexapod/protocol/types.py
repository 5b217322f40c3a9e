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

from nexapod.protocol import limits
from nexapod.protocol.limits import CHUNK_BYTES, RETENTION_DEFAULT_MS, SPLIT_ENTRY_BYTES

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
        return self.index // limits.SHARD_TASKS

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


@dataclass(frozen=True, slots=True, order=True)
class Part:
    """Consecutive chunks of a blob: what is fetched and held of one that is too large to be held whole by everybody."""

    blob: BlobRef
    first: int
    count: int

    @classmethod
    def whole(cls, blob: BlobRef) -> Part:
        return cls(blob, 0, blob.chunks)

    @classmethod
    def covering(cls, blob: BlobRef, offset: int, length: int) -> Part:
        """The chunks that hold these bytes: at least one."""
        first = min(offset // CHUNK_BYTES, blob.chunks - 1)
        last = min(max(offset, offset + length - 1) // CHUNK_BYTES, blob.chunks - 1)
        return cls(blob, first, last - first + 1)

    @property
    def is_whole(self) -> bool:
        return self.count == self.blob.chunks

    @property
    def chunks(self) -> range:
        return range(self.first, self.first + self.count)

    @property
    def size(self) -> int:
        """Bytes."""
        return min(self.blob.size, (self.first + self.count) * CHUNK_BYTES) - self.first * CHUNK_BYTES


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
    """What to execute. Exactly one of `module` (wasm) and `image` (docker) is set."""

    executor: ExecutorName
    module: BlobRef | None = None
    image: str | None = None
    """A content id, `sha256:<hex>`; or a registry's reference by digest, `host/name@sha256:<hex>`."""
    image_blobs: tuple[BlobRef, ...] = ()
    """Where a content id's bytes are: its configuration, then its layers as uncompressed tar archives, lowest first.
    Empty: only peers that hold the image can run it."""
    command: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    workdir: str = ""
    """docker: where the command starts; empty means the image's own."""
    checkpoint: Literal["local", "shared"] = "local"
    """`shared`: what lies in /checkpoint is kept by the stewards too, so that another peer can go on from there."""


@dataclass(frozen=True, slots=True)
class Split:
    """A file cut into one piece a task: task i gets the first `header` bytes of `blob`, then its bytes
    [offset_i, offset_i + length_i), at `path`.

    `index` is a blob of count x (u64 offset, u32 length), big-endian.
    """

    path: str
    blob: BlobRef
    index: BlobRef
    bounds: tuple[int, ...]
    """Where the pieces of each shard begin, and at last where those of the last one end: shards + 1 offsets. All pieces
    of shard s lie in [bounds[s], bounds[s + 1])."""
    header: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use. Bytes and milliseconds; `cpus` in thousandths of a core."""

    cpus_milli: int = 1000
    memory: int = 256 << 20
    output: int = 16 << 20
    disk: int = 32 << 20
    """What it may have on the disk at once: /output and /checkpoint together."""
    wall_ms: Millis = 3_600_000
    idle_ms: Millis = 0
    """A task that shows no sign of life for so long is ended: no line, no progress, no change in what it wrote. 0:
    never."""
    pids: int = 64
    """docker: processes and threads at once."""
    gpus: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True, slots=True)
class Requires:
    """What a peer must have beyond the limits. Empty means any."""

    arch: tuple[str, ...] = ()
    memory: int = 0
    gpu_model: str = ""
    """Part of the model's name, in any case."""
    gpu_capability: str = ""
    """The least CUDA compute capability, `major.minor`."""


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
        return -(-self.tasks // limits.SHARD_TASKS)

    def shard_tasks(self, shard: int) -> range:
        """The task indices of a shard."""
        return range(shard * limits.SHARD_TASKS, min(self.tasks, (shard + 1) * limits.SHARD_TASKS))

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Every blob that the job names, without repetition."""
        return tuple(dict.fromkeys(part.blob for part in (*self._common, *self._split_parts(range(self.shards)))))

    def shard_parts(self, shard: int) -> tuple[Part, ...]:
        """What the tasks of a shard need, without repetition: what its stewards hold."""
        return tuple(dict.fromkeys((*self._common, *self._split_parts(range(shard, shard + 1)))))

    @property
    def _common(self) -> list[Part]:
        refs = [file.blob for file in self.inputs]
        refs += [ref for ref in (self.run.module, self.params) if ref is not None]
        refs += self.run.image_blobs
        return [Part.whole(ref) for ref in refs]

    def _split_parts(self, shards: range) -> list[Part]:
        if self.split is None:
            return []
        split, first, end = self.split, self.shard_tasks(shards[0]).start, self.shard_tasks(shards[-1]).stop
        low, high = split.bounds[shards.start], split.bounds[shards.stop]
        parts = [
            Part.covering(split.index, first * SPLIT_ENTRY_BYTES, (end - first) * SPLIT_ENTRY_BYTES),
            Part.covering(split.blob, low, high - low),
        ]
        return parts + ([Part.covering(split.blob, 0, split.header)] if split.header else [])


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
    """Container images that this peer holds: content ids, and references by digest."""
    registries: tuple[str, ...]
    """Hosts of the registries that its owner lets it pull images from."""
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
    gpu_ms: int = 0
    """Time that the granted GPUs were busy, added up."""


RunOutcome: TypeAlias = Literal[
    "ok", "failed", "wall-limit", "idle-limit", "memory-limit", "output-limit", "try-elsewhere"
]
"""How a run ended. `try-elsewhere` (exit 75, or this machine's fault) is no result: the lease is given back."""
EXIT_TRY_ELSEWHERE = 75
"""EX_TEMPFAIL: what a task ends with that asks for another machine. With `try-elsewhere`, any other number is the fault
of this one."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What an executor hands back for one task."""

    outcome: RunOutcome
    exit: int
    files: tuple[File, ...] = ()
    usage: Usage = field(default_factory=Usage)
    log: str = ""
    """The head and the tail of what it printed, escaped, at most LOG_TAIL_MAX bytes."""
    reason: str = ""
    continued: bool = False
    """Whether it went on from the checkpoint that `Run` named."""
