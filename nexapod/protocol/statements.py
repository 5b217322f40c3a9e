"""The signed statements: the only things that peers believe (docs/protocol.md, Statements).

    envelope = msgpack([version, kind, author, body, signature])

`body` is the msgpack bytes as signed; the signature is Ed25519 over b"nexapod/2/" + kind + b"\\0" + body, with the key
inside the author's peer id. The id of a statement is sha2-256 of the envelope without its signature. Decoding is
total: any bytes give a Statement or a PeerError. Bytes are signed and hashed, never a re-serialised object.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, Protocol, TypeAlias

from nexapod.protocol import codec, limits, types
from nexapod.protocol.codec import (
    DIGEST,
    PEER,
    U32,
    U63,
    Check,
    array,
    binary,
    choice,
    integer,
    optional,
    pair,
    path,
    text,
)
from nexapod.protocol.errors import PeerError
from nexapod.protocol.image_names import is_content_id as is_content_id
from nexapod.protocol.image_names import registry_host as registry_host
from nexapod.protocol.types import (
    Digest,
    File,
    JobId,
    JobSpec,
    Millis,
    PeerId,
    Profile,
    StatementId,
    Usage,
    peer_id_of_key,
)

REMEMBERED_MAX: Final = 4096
REMEMBERED_BYTES_MAX: Final = 2048
"""Decoded statements kept, and the largest of them: some tens of megabytes at most."""
Kind: TypeAlias = Literal[
    "profile", "job", "cancel", "bid", "commit", "reveal", "verdict", "settlement", "fault", "checkpoint"
]
Verify: TypeAlias = Callable[[PeerId, bytes, bytes], bool]
"""(author, signed bytes, signature) -> whether it holds. Total."""


class Signer(Protocol):
    """Holds the node's key."""

    @property
    def peer(self) -> PeerId: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Cancel:
    """The submitter ends its job."""

    job: JobId
    reason: str


@dataclass(frozen=True, slots=True)
class Bid:
    """A worker asks for leases of `tasks`, all of one shard."""

    job: JobId
    shard: int
    tasks: tuple[int, ...]
    expected_ms: Millis
    """What the worker expects one of them to take; 0 = it has run none yet."""
    profile: StatementId
    nonce: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A worker binds itself to a result without showing it: `sealed` = sha2-256 of what commitment() says."""

    job: JobId
    task: int
    bid: StatementId
    sealed: Digest


@dataclass(frozen=True, slots=True)
class Reveal:
    """A worker shows the result that it committed to."""

    job: JobId
    task: int
    commit: StatementId
    salt: bytes
    root: Digest
    outcome: types.RunOutcome
    exit: int
    outputs: tuple[File, ...]
    usage: Usage
    executor: types.ExecutorName
    hardware: str
    log: str
    """The head and the tail of what the task printed. Not compared."""
    continued: tuple[PeerId, ...] = ()
    """The workers whose checkpoints it went on from, and theirs: with them it is one vote, not several."""


@dataclass(frozen=True, slots=True)
class Vote:
    """One reveal as a verdict counted it: `group` is the operator group that the steward saw its worker in."""

    reveal: StatementId
    worker: PeerId
    group: str
    agreed: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """A steward's judgement on one task, with the votes that it rests on."""

    job: JobId
    task: int
    outcome: Literal["accepted", "failed"]
    root: Digest
    """The output root accepted; 32 zero bytes when the task failed."""
    votes: tuple[Vote, ...]
    stewards: tuple[PeerId, ...]
    """The task's stewards as this one saw them: a majority of them settles."""
    reason: str

    @property
    def result(self) -> tuple[str, Digest]:
        """What must be equal for two verdicts to be the same judgement."""
        return self.outcome, self.root


@dataclass(frozen=True, slots=True)
class Settlement:
    """The submitter has collected and checked its job: stewards may forget it.

    `evidence` is sha2-256 over the sorted ids of every statement in the job's certificate but this one.
    """

    job: JobId
    settled: int
    failed: int
    evidence: Digest


@dataclass(frozen=True, slots=True)
class Fault:
    """Proof that `peer` made two different commits for one task: their envelopes."""

    job: JobId
    task: int
    peer: PeerId
    first: bytes
    second: bytes


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a worker has kept so far of a task that it still runs: another worker may go on from there."""

    job: JobId
    task: int
    bid: StatementId
    seq: int
    """Rises with each of this worker for this task: the largest wins."""
    progress: int
    """In thousandths."""
    files: tuple[File, ...]
    continued: tuple[PeerId, ...]
    """As in Reveal: whose checkpoints this one rests on."""


Body: TypeAlias = JobSpec | Profile | Cancel | Bid | Commit | Reveal | Verdict | Settlement | Fault | Checkpoint


@dataclass(frozen=True, slots=True)
class Statement:
    """A decoded, verified statement with the bytes that prove it."""

    id: StatementId
    kind: Kind
    author: PeerId
    body: Any
    envelope: bytes


# --- the schema of each body ---------------------------------------------------------------------------------------
_BLOB = codec.blob(limits.BLOB_BYTES_MAX)
_SHORT = text(limits.TEXT_MAX)
_NAME = text(limits.TEXT_MAX, empty=False)
_TASK = integer(0, limits.TASKS_MAX - 1)
_SHARD = integer(0, limits.TASKS_MAX // limits.SHARD_TASKS)
_FILE: Check[File] = codec.record(File, path=path(limits.PATH_MAX), blob=_BLOB)
_IMAGE: Check[str] = text(limits.IMAGE_NAME_MAX, empty=False)
_REGISTRY: Check[str] = text(limits.TEXT_MAX, empty=False)
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")


def _checked_run(**fields: Any) -> types.Run:
    run = types.Run(**fields)
    if (run.executor == "wasm") != (run.module is not None) or (run.executor == "docker") != (run.image is not None):
        raise ValueError("a wasm run names a module, a docker run an image, and neither the other's")
    if run.module is not None and run.module.size > limits.MODULE_BYTES_MAX:
        raise ValueError(f"a module has at most {limits.MODULE_BYTES_MAX} bytes")
    if run.image is not None and not is_content_id(run.image) and registry_host(run.image) is None:
        raise ValueError("an image is a content id (sha256:<64 hex digits>) or host/name@sha256:<64 hex digits>")
    if run.image_blobs and (run.image is None or not _is_configuration(run.image, run.image_blobs[0])):
        raise ValueError("the first of an image's blobs is the configuration that its content id names")
    if run.workdir and (run.executor != "docker" or not run.workdir.startswith("/")):
        raise ValueError("a working directory is an absolute path in a container")
    return run


def _is_configuration(image: str, ref: types.BlobRef) -> bool:
    return ref.chunks == 1 and image == f"sha256:{ref.digest.hex()}"


def _checked_split(**fields: Any) -> types.Split:
    split = types.Split(**fields)
    rising = all(low <= high for low, high in itertools.pairwise(split.bounds))
    if not rising or split.header > split.bounds[0] or split.bounds[-1] > split.blob.size:
        raise ValueError("a split's bounds rise from the end of its header to at most the end of its file")
    return split


def _checked_requires(**fields: Any) -> types.Requires:
    requires = types.Requires(**fields)
    if requires.gpu_capability and not _CAPABILITY.fullmatch(requires.gpu_capability):
        raise ValueError("a compute capability is major.minor")
    return requires


def _checked_validate(**fields: Any) -> types.Validate:
    validate = types.Validate(**fields)
    if validate.agree > validate.max_replicas:
        raise ValueError("agree is more than max_replicas")
    return validate


def _checked_job(**fields: Any) -> JobSpec:
    job = JobSpec(**fields)
    taken = [file.path for file in job.inputs] + ([job.split.path] if job.split else [])
    if len(set(taken)) != len(taken):
        raise ValueError("two inputs have the same path")
    if job.split is not None and len(job.split.bounds) != job.shards + 1:
        raise ValueError("a split's bounds are one more than the job's shards")
    if job.split is not None and job.split.index.size != job.tasks * limits.SPLIT_ENTRY_BYTES:
        raise ValueError("a split's index has one entry for each task")
    return job


def _checked_bid(**fields: Any) -> Bid:
    bid = Bid(**fields)
    if len(set(bid.tasks)) != len(bid.tasks) or any(t // limits.SHARD_TASKS != bid.shard for t in bid.tasks):
        raise ValueError("a bid names different tasks of one shard")
    return bid


def _checked_reveal(**fields: Any) -> Reveal:
    reveal = Reveal(**fields)
    if output_root(reveal.outcome, reveal.exit, reveal.outputs) != reveal.root:
        raise ValueError("the root is not that of the outputs")
    if reveal.outcome == "try-elsewhere":
        raise ValueError("a task to be tried elsewhere has no result")
    return reveal


def _checked_checkpoint(**fields: Any) -> Checkpoint:
    checkpoint = Checkpoint(**fields)
    if len({file.path for file in checkpoint.files}) != len(checkpoint.files):
        raise ValueError("two files of a checkpoint have the same path")
    return checkpoint


_CONTINUED: Check[tuple[PeerId, ...]] = array(PEER, 0, limits.REPLICAS_MAX)
_RUN = codec.record(
    _checked_run,
    executor=choice("wasm", "docker"),
    module=optional(_BLOB),
    image=optional(_IMAGE),
    image_blobs=array(_BLOB, 0, limits.LAYERS_MAX + 1),
    command=array(text(4096), 0, limits.COMMAND_MAX),
    env=array(pair(_NAME, text(4096)), 0, limits.ENV_MAX),
    workdir=_SHORT,
    checkpoint=choice("local", "shared"),
)
_SPLIT = codec.record(
    _checked_split,
    path=path(limits.PATH_MAX),
    blob=_BLOB,
    index=_BLOB,
    bounds=array(integer(0, limits.BLOB_BYTES_MAX), 2, limits.TASKS_MAX // limits.SHARD_TASKS + 2),
    header=integer(0, limits.CHUNK_BYTES),
)
_LIMITS = codec.record(
    types.Limits,
    cpus_milli=integer(1, 1_024_000),
    memory=integer(1 << 20, 1 << 50),
    output=integer(0, 1 << 40),
    disk=integer(0, 1 << 40),
    wall_ms=integer(1, limits.WALL_MAX_MS),
    idle_ms=integer(0, limits.WALL_MAX_MS),
    pids=integer(1, limits.PIDS_MAX),
    gpus=integer(0, limits.GPUS_MAX),
    gpu_memory=integer(0, 1 << 50),
)
_REQUIRES = codec.record(
    _checked_requires, arch=array(_NAME, 0, 8), memory=U63, gpu_model=_SHORT, gpu_capability=_SHORT
)
_VALIDATE = codec.record(
    _checked_validate,
    mode=choice("exact"),
    agree=integer(1, limits.REPLICAS_MAX),
    max_replicas=integer(1, limits.REPLICAS_MAX),
)
_GPU = codec.record(types.Gpu, model=_NAME, memory=U63, capability=_SHORT, driver=_SHORT)
_EXECUTOR = codec.record(types.Executor, name=choice("wasm", "docker"), version=_SHORT)
_USAGE = codec.record(Usage, cpu_ms=U63, wall_ms=U63, peak_memory=U63, gpu_ms=U63)
_VOTE = codec.record(Vote, reveal=DIGEST, worker=PEER, group=_NAME, agreed=codec.BOOL)

SCHEMAS: Final[dict[str, Check[Any]]] = {
    "profile": codec.record(
        Profile,
        network=_NAME,
        seq=U63,
        stamp=U63,
        agent=_SHORT,
        os=_SHORT,
        arch=_SHORT,
        cpu_model=_SHORT,
        cpus=integer(0, 65_536),
        memory=U63,
        disk_free=U63,
        gpus=array(_GPU, 0, limits.GPUS_MAX),
        executors=array(_EXECUTOR, 0, limits.EXECUTORS_MAX),
        images=array(_IMAGE, 0, 64),
        registries=array(_REGISTRY, 0, limits.REGISTRIES_MAX),
        addrs=array(text(limits.TEXT_MAX, empty=False), 0, limits.ADDRS_MAX),
        serves=codec.BOOL,
        slots=integer(0, 65_536),
    ),
    "job": codec.record(
        _checked_job,
        network=_NAME,
        name=_NAME,
        nonce=binary(16),
        stamp=U63,
        run=_RUN,
        tasks=integer(1, limits.TASKS_MAX),
        description=text(limits.DESCRIPTION_MAX),
        tags=array(_NAME, 0, limits.TAGS_MAX),
        priority=integer(-10, 10),
        inputs=array(_FILE, 0, limits.INPUTS_MAX),
        split=optional(_SPLIT),
        params=optional(_BLOB),
        limits=_LIMITS,
        requires=_REQUIRES,
        validate=_VALIDATE,
        retention_ms=integer(limits.RETENTION_MIN_MS, limits.RETENTION_MAX_MS),
    ),
    "cancel": codec.record(Cancel, job=DIGEST, reason=_SHORT),
    "bid": codec.record(
        _checked_bid,
        job=DIGEST,
        shard=_SHARD,
        tasks=array(_TASK, 1, limits.BID_TASKS_MAX),
        expected_ms=integer(0, limits.WALL_MAX_MS),
        profile=DIGEST,
        nonce=U63,
    ),
    "commit": codec.record(Commit, job=DIGEST, task=_TASK, bid=DIGEST, sealed=DIGEST),
    "reveal": codec.record(
        _checked_reveal,
        job=DIGEST,
        task=_TASK,
        commit=DIGEST,
        salt=binary(32),
        root=DIGEST,
        outcome=choice("ok", "failed", "wall-limit", "idle-limit", "memory-limit", "output-limit", "try-elsewhere"),
        exit=integer(-(2**31), 2**31 - 1),
        outputs=array(_FILE, 0, limits.OUTPUT_FILES_MAX),
        usage=_USAGE,
        executor=choice("wasm", "docker"),
        hardware=_SHORT,
        log=text(limits.LOG_TAIL_MAX),
        continued=_CONTINUED,
    ),
    "verdict": codec.record(
        Verdict,
        job=DIGEST,
        task=_TASK,
        outcome=choice("accepted", "failed"),
        root=DIGEST,
        votes=array(_VOTE, 1, limits.REPLICAS_MAX * 2),
        stewards=array(PEER, 1, limits.STEWARDS),
        reason=_SHORT,
    ),
    "settlement": codec.record(Settlement, job=DIGEST, settled=U32, failed=U32, evidence=DIGEST),
    "fault": codec.record(
        Fault,
        job=DIGEST,
        task=_TASK,
        peer=PEER,
        first=binary(1, limits.ENVELOPE_BYTES_MAX // 4),
        second=binary(1, limits.ENVELOPE_BYTES_MAX // 4),
    ),
    "checkpoint": codec.record(
        _checked_checkpoint,
        job=DIGEST,
        task=_TASK,
        bid=DIGEST,
        seq=U32,
        progress=integer(0, 1000),
        files=array(_FILE, 1, limits.CHECKPOINT_FILES_MAX),
        continued=_CONTINUED,
    ),
}
_KIND_OF: Final[dict[type, Kind]] = {
    Profile: "profile",
    JobSpec: "job",
    Cancel: "cancel",
    Bid: "bid",
    Commit: "commit",
    Reveal: "reveal",
    Verdict: "verdict",
    Settlement: "settlement",
    Fault: "fault",
    Checkpoint: "checkpoint",
}


# --- what is hashed and signed -------------------------------------------------------------------------------------
def output_root(outcome: str, exit_status: int, outputs: tuple[File, ...]) -> Digest:
    """The digest that `exact` compares: how the task ended and the path, size and hash of each file, by path."""
    listing = [[f.path, f.blob.size, f.blob.digest] for f in sorted(outputs, key=lambda f: f.path)]
    return Digest(hashlib.sha256(b"nexapod/output\0" + codec.pack([outcome, exit_status, listing])).digest())


def commitment(job: JobId, task: int, worker: PeerId, salt: bytes, root: Digest) -> Digest:
    """What a commit seals: bound to task and worker, so that it is worth nothing to another."""
    return Digest(
        hashlib.sha256(
            b"nexapod/commit\0" + job + task.to_bytes(4, "big") + types.key_of_peer_id(worker) + salt + root
        ).digest()
    )


def _signed(kind: str, body: bytes) -> bytes:
    return b"nexapod/%d/" % limits.PROTOCOL_VERSION + kind.encode("ascii") + b"\0" + body


def _id(kind: str, author: bytes, body: bytes) -> StatementId:
    return StatementId(hashlib.sha256(codec.pack([limits.PROTOCOL_VERSION, kind, author, body])).digest())


def make(body: Body, signer: Signer) -> Statement:
    """Sign a body. The result decodes to an equal body: a body out of bounds is our own mistake and asserts."""
    kind = _KIND_OF[type(body)]
    schema = SCHEMAS[kind]
    raw = codec.pack(schema.encode(body))
    author = types.key_of_peer_id(signer.peer)
    envelope = codec.pack([limits.PROTOCOL_VERSION, kind, author, raw, signer.sign(_signed(kind, raw))])
    assert len(envelope) <= limits.ENVELOPE_BYTES_MAX, f"a {kind} of {len(envelope)} bytes"
    return Statement(_id(kind, author, raw), kind, signer.peer, body, envelope)


def check_body(body: Body) -> None:
    """Raises PeerError naming the field when a body that we are about to sign would be refused by others."""
    schema = SCHEMAS[_KIND_OF[type(body)]]
    raw = codec.pack(schema.encode(body))
    if len(raw) > limits.ENVELOPE_BYTES_MAX - 256:
        raise PeerError("too-large", f"{len(raw)} bytes, at most {limits.ENVELOPE_BYTES_MAX - 256} allowed")
    schema.decode(codec.unpack(raw, limits.ENVELOPE_BYTES_MAX))


def decode(envelope: bytes, verify: Verify) -> Statement:
    """Any bytes to a verified Statement, or PeerError.

    The same statement comes from many peers, and by gossip twice: small ones are remembered, so that a signature is
    checked once. Statements are immutable, and what is not valid is not remembered.
    """
    if len(envelope) <= REMEMBERED_BYTES_MAX:
        return _remembered(envelope, verify)
    return _decode(envelope, verify)


@lru_cache(maxsize=REMEMBERED_MAX)
def _remembered(envelope: bytes, verify: Verify) -> Statement:
    return _decode(envelope, verify)


def _decode(envelope: bytes, verify: Verify) -> Statement:
    raw = codec.unpack(envelope, limits.ENVELOPE_BYTES_MAX)
    if type(raw) is not list or len(raw) != 5:
        raise PeerError("bad-envelope", "not a list of five")
    version, kind, author, body, signature = raw
    if version != limits.PROTOCOL_VERSION or type(version) is not int:
        raise PeerError("unknown-version", f"we speak version {limits.PROTOCOL_VERSION}", penalty=1)
    schema = SCHEMAS.get(kind) if type(kind) is str else None
    if schema is None:
        raise PeerError("unknown-kind", penalty=1)
    if type(author) is not bytes or len(author) != 32 or type(body) is not bytes or type(signature) is not bytes:
        raise PeerError("bad-envelope", "author, body and signature are bytes")
    peer = peer_id_of_key(author)
    if not verify(peer, _signed(kind, body), signature):
        raise PeerError("bad-signature", penalty=50)
    value = schema.decode(codec.unpack(body, limits.ENVELOPE_BYTES_MAX))
    return Statement(_id(kind, author, body), kind, peer, value, envelope)
