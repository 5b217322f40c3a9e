"""What a job and a peer are: each field declared once, with its type, bound, default and meaning.

The wire's schema and the tables of docs/protocol.md follow from these declarations (wire/fields.py). Plain values
(blobs, files, ids) are in primitives.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, TypeAlias

from nexapod.protocol import limits as bounds
from nexapod.protocol.image_names import is_content_id, registry_host
from nexapod.protocol.primitives import BlobRef, ExecutorName, File, Millis, Part, PeerId
from nexapod.protocol.wire.fields import (
    BLOB,
    BOOL,
    FILE,
    NAME,
    PATH,
    PEER,
    SHORT,
    U63,
    Extensions,
    array,
    binary,
    choice,
    integer,
    optional,
    record,
    several,
    text,
)

Group: TypeAlias = str
"""An operator group: a peer id, or a block of addresses in CIDR notation."""
Grouping: TypeAlias = Literal["peer", "network"]
_CAPABILITY = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")


@dataclass(frozen=True, slots=True)
class Run:
    """What to execute. Exactly one of `module` (wasm) and `image` (docker) is set."""

    executor: Annotated[ExecutorName, choice("wasm", "docker"), "the sandbox"]
    module: Annotated[BlobRef | None, optional(BLOB), "wasm: the module"] = None
    image: Annotated[
        str | None, optional(text(bounds.IMAGE_NAME_MAX, empty=False)), "docker: content id, or reference by digest"
    ] = None
    image_blobs: Annotated[
        tuple[BlobRef, ...], array(BLOB, 0, bounds.LAYERS_MAX + 1), "its configuration, then its layers, lowest first"
    ] = ()
    command: Annotated[tuple[str, ...], array(text(4096), 0, bounds.COMMAND_MAX), "words"] = ()
    env: Annotated[
        tuple[tuple[str, str], ...], array(several(NAME, text(4096)), 0, bounds.ENV_MAX), "environment variables"
    ] = ()
    workdir: Annotated[str, SHORT, "docker: where the command starts; empty: the image's own"] = ""
    checkpoint: Annotated[
        Literal["local", "shared"], choice("local", "shared"), "shared: seats keep /checkpoint, others may resume it"
    ] = "local"


@dataclass(frozen=True, slots=True)
class Split:
    """A file cut into one piece a task: its first `header` bytes, then those from its offset on, as `index` says."""

    path: Annotated[str, PATH, "where a task finds its piece"]
    blob: Annotated[BlobRef, BLOB, "the file"]
    index: Annotated[BlobRef, BLOB, "tasks x (u64 offset, u32 length), big-endian"]
    bounds: Annotated[
        tuple[int, ...],
        array(integer(0, bounds.BLOB_BYTES_MAX), 2, bounds.TASKS_MAX // bounds.SHARD_TASKS + 2),
        "where the pieces of each shard begin, and at last where the last one's end",
    ]
    header: Annotated[int, integer(0, bounds.CHUNK_BYTES), "bytes at the file's start that precede every piece"] = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What one task may use. Bytes and milliseconds; `cpus_milli` in thousandths of a core."""

    cpus_milli: Annotated[int, integer(1, 1_024_000), "thousandths of a core"] = 1000
    memory: Annotated[int, integer(1 << 20, 1 << 50), "bytes"] = 256 << 20
    output: Annotated[int, integer(0, bounds.BLOB_BYTES_MAX), "bytes of /output"] = 16 << 20
    disk: Annotated[int, integer(0, bounds.BLOB_BYTES_MAX), "bytes of /output and /checkpoint at once"] = 32 << 20
    wall_ms: Annotated[Millis, integer(1, bounds.WALL_MAX_MS), "ms"] = 3_600_000
    idle_ms: Annotated[Millis, integer(0, bounds.WALL_MAX_MS), "ms without a sign of life; 0: never ended for it"] = 0
    pids: Annotated[int, integer(1, bounds.PIDS_MAX), "docker: processes and threads"] = 64
    gpus: Annotated[int, integer(0, bounds.GPUS_MAX), "GPUs of its own"] = 0
    gpu_memory: Annotated[int, integer(0, 1 << 50), "bytes of each"] = 0


@dataclass(frozen=True, slots=True)
class Requires:
    """What a peer must have beyond the limits. Empty means any."""

    arch: Annotated[tuple[str, ...], array(NAME, 0, 8), "architectures"] = ()
    memory: Annotated[int, U63, "bytes"] = 0
    gpu_model: Annotated[str, SHORT, "part of the model's name, in any case"] = ""
    gpu_capability: Annotated[str, SHORT, "least CUDA compute capability, major.minor"] = ""


@dataclass(frozen=True, slots=True)
class Validate:
    """How results are compared, and how many of them must agree."""

    mode: Annotated[Literal["exact"], choice("exact"), "the rule of comparison"] = "exact"
    agree: Annotated[int, integer(1, bounds.REPLICAS_MAX), "operator groups that must agree"] = 2
    max_replicas: Annotated[int, integer(1, bounds.REPLICAS_MAX), "groups that are tried at most"] = 5


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What the submitter wants its seats to apply: a snapshot, so that nothing is refused weeks later."""

    grouping: Annotated[
        Grouping, choice("peer", "network"), "who counts as one operator: each peer, or each /24 or /48"
    ] = "peer"
    weights: Annotated[
        tuple[tuple[PeerId, int], ...],
        array(several(PEER, integer(0, 1000)), 0, bounds.WEIGHTS_MAX),
        "workers that the submitter knows, and their weight in thousandths",
    ] = ()
    strangers: Annotated[int, integer(0, bounds.REPLICAS_MAX), "groups that must agree when none of them is known"] = 0
    audit_permille: Annotated[int, integer(0, 1000), "tasks that the submitter will have repeated"] = 0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """The body of a `job` statement: everything that peers need to keep, run and judge it."""

    network: Annotated[str, NAME, "the only network in which it is valid"]
    name: Annotated[str, NAME, "for people"]
    nonce: Annotated[bytes, binary(16), "makes two equal jobs two"]
    stamp: Annotated[int, U63, "wall clock of the submitter, ms: for people, decides nothing"]
    run: Annotated[Run, record(Run), "what to execute"]
    tasks: Annotated[int, integer(1, bounds.TASKS_MAX), "how many"]
    panel: Annotated[
        tuple[bytes, ...],
        array(binary(1, bounds.OFFER_BYTES_MAX), 1, bounds.PANEL_MAX),
        "the stewards to be: the envelope of each one's `offer`",
    ] = ()
    description: Annotated[str, text(bounds.DESCRIPTION_MAX), "for people"] = ""
    tags: Annotated[tuple[str, ...], array(NAME, 0, bounds.TAGS_MAX), "for policies"] = ()
    priority: Annotated[int, integer(-10, 10), "among jobs of one submitter; larger first"] = 0
    inputs: Annotated[tuple[File, ...], array(FILE, 0, bounds.INPUTS_MAX), "read-only files of every task"] = ()
    split: Annotated[Split | None, optional(record(Split)), "a file cut into one piece a task"] = None
    params: Annotated[BlobRef | None, optional(BLOB), "UTF-8 JSON: a list with one object of strings a task"] = None
    limits: Annotated[Limits, record(Limits), "what one task may use"] = field(default_factory=Limits)
    requires: Annotated[Requires, record(Requires), "what a peer must have"] = field(default_factory=Requires)
    validate: Annotated[Validate, record(Validate), "when a task is decided"] = field(default_factory=Validate)
    policy: Annotated[TrustPolicy, record(TrustPolicy), "whom the submitter trusts"] = field(
        default_factory=TrustPolicy
    )
    delegate: Annotated[PeerId | None, optional(PEER), "who may settle it in the submitter's place"] = None
    retention_ms: Annotated[
        Millis,
        integer(bounds.RETENTION_MIN_MS, bounds.RETENTION_MAX_MS),
        "how long it is kept when its submitter does not return",
    ] = bounds.RETENTION_DEFAULT_MS
    ext: Extensions = ()

    @property
    def shards(self) -> int:
        return -(-self.tasks // bounds.SHARD_TASKS)

    def shard_tasks(self, shard: int) -> range:
        """The task indices of a shard."""
        return range(shard * bounds.SHARD_TASKS, min(self.tasks, (shard + 1) * bounds.SHARD_TASKS))

    @property
    def blobs(self) -> tuple[BlobRef, ...]:
        """Every blob that the job names, without repetition."""
        split = () if self.split is None else (self.split.index, self.split.blob)
        return tuple(dict.fromkeys((*self._common, *split)))

    @property
    def input_bytes(self) -> int:
        """What all of its blobs come to."""
        return sum(ref.size for ref in self.blobs)

    def shard_parts(self, shard: int) -> tuple[Part, ...]:
        """What the tasks of a shard need, without repetition: what its seats hold."""
        common = [Part.whole(ref) for ref in self._common]
        return tuple(dict.fromkeys((*common, *self._split_parts(shard))))

    @property
    def _common(self) -> list[BlobRef]:
        named = [self.run.module, self.params, *self.run.image_blobs]
        return [file.blob for file in self.inputs] + [ref for ref in named if ref is not None]

    def _split_parts(self, shard: int) -> list[Part]:
        if self.split is None:
            return []
        split, tasks = self.split, self.shard_tasks(shard)
        entry = bounds.SPLIT_ENTRY_BYTES
        low, high = split.bounds[shard], split.bounds[shard + 1]
        parts = [
            Part.covering(split.index, tasks.start * entry, len(tasks) * entry),
            Part.covering(split.blob, low, high - low),
        ]
        return parts + ([Part.covering(split.blob, 0, split.header)] if split.header else [])


def checked_job(**parts: object) -> JobSpec:
    """A job whose fields also fit each other. Raises ValueError."""
    spec = JobSpec(**parts)  # type: ignore[arg-type]
    _check_run(spec.run)
    if spec.split is not None:
        _check_split(spec, spec.split)
    paths = [file.path for file in spec.inputs] + ([spec.split.path] if spec.split else [])
    if len(set(paths)) != len(paths):
        raise ValueError("two inputs have the same path")
    if spec.requires.gpu_capability and not _CAPABILITY.fullmatch(spec.requires.gpu_capability):
        raise ValueError("a compute capability is major.minor")
    if spec.validate.agree > spec.validate.max_replicas:
        raise ValueError("more replicas must agree than are tried")
    if spec.run.executor == "wasm" and spec.limits.gpus:
        raise ValueError("a wasm task has no GPU")
    if len({peer for peer, _ in spec.policy.weights}) != len(spec.policy.weights):
        raise ValueError("a worker is given two weights")
    return spec


def _check_run(run: Run) -> None:
    if (run.executor == "wasm") != (run.module is not None) or (run.executor == "docker") != (run.image is not None):
        raise ValueError("a wasm run names a module, a docker run an image, and neither the other's")
    if run.module is not None and run.module.size > bounds.MODULE_BYTES_MAX:
        raise ValueError(f"a module has at most {bounds.MODULE_BYTES_MAX} bytes")
    if run.image is not None and not is_content_id(run.image) and registry_host(run.image) is None:
        raise ValueError("an image is a content id (sha256:<64 hex digits>) or host/name@sha256:<64 hex digits>")
    if run.image_blobs and run.image != f"sha256:{run.image_blobs[0].digest.hex()}":
        raise ValueError("the first of an image's blobs is the configuration that its content id names")
    if run.workdir and (run.executor != "docker" or not run.workdir.startswith("/")):
        raise ValueError("a working directory is an absolute path in a container")


def _check_split(spec: JobSpec, split: Split) -> None:
    if split.index.size != spec.tasks * bounds.SPLIT_ENTRY_BYTES:
        raise ValueError("the split's index has another number of entries than the job has tasks")
    edges = split.bounds
    if len(edges) != spec.shards + 1 or list(edges) != sorted(edges):
        raise ValueError("the split's bounds are one more than there are shards, and do not fall")
    if edges[0] < split.header or edges[-1] > split.blob.size:
        raise ValueError("the split's bounds lie between its header and its end")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML shows it."""

    model: Annotated[str, NAME, "as NVML names it"]
    memory: Annotated[int, U63, "bytes"]
    capability: Annotated[str, SHORT, "CUDA compute capability"] = ""
    driver: Annotated[str, SHORT, "version"] = ""


@dataclass(frozen=True, slots=True)
class Executor:
    """A sandbox that a peer can run tasks in."""

    name: Annotated[ExecutorName, choice("wasm", "docker"), "which"]
    version: Annotated[str, SHORT, "of the runtime or engine"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The body of a `profile` statement: what a peer is and offers. A hint, never a proof."""

    network: Annotated[str, NAME, "the network that it belongs to"]
    seq: Annotated[int, U63, "rises with every profile of the peer, across restarts: the largest wins"]
    stamp: Annotated[int, U63, "wall clock, ms"]
    agent: Annotated[str, SHORT, "program and version"]
    minor: Annotated[int, integer(0, 255), "the newest minor version of the protocol that it speaks"]
    os: Annotated[str, SHORT, "linux"]
    arch: Annotated[str, SHORT, "x86_64, aarch64"]
    cpu_model: Annotated[str, SHORT, "as the system names it"]
    cpus: Annotated[int, integer(0, 65_536), "cores that tasks may use"]
    memory: Annotated[int, U63, "bytes that tasks may use"]
    disk_free: Annotated[int, U63, "bytes"]
    gpus: Annotated[tuple[Gpu, ...], array(record(Gpu), 0, bounds.GPUS_MAX), "GPUs that tasks may use"]
    executors: Annotated[
        tuple[Executor, ...], array(record(Executor), 0, bounds.EXECUTORS_MAX), "the sandboxes that work here"
    ]
    images: Annotated[
        tuple[str, ...], array(text(bounds.IMAGE_NAME_MAX, empty=False), 0, 64), "container images that it holds"
    ]
    registries: Annotated[
        tuple[str, ...], array(NAME, 0, bounds.REGISTRIES_MAX), "registries that it may pull images from"
    ]
    addrs: Annotated[tuple[str, ...], array(NAME, 0, bounds.ADDRS_MAX), "multiaddrs at which it can be dialled"]
    slots: Annotated[int, integer(0, 65_536), "tasks it would run at once; 0: it does not work"]
    reachable: Annotated[bool, BOOL, "others have dialled it and got through"] = True
    ext: Extensions = ()

    @property
    def hardware(self) -> str:
        """The coarse class that results may depend on."""
        return f"{self.os}-{self.arch}"


@dataclass(frozen=True, slots=True)
class DialBack:
    """A peer's word that it dialled another at an address and got through."""

    peer: Annotated[PeerId, PEER, "who dialled"]
    addr: Annotated[str, NAME, "the multiaddr dialled"]
    stamp: Annotated[int, U63, "its wall clock, ms"]
    signature: Annotated[bytes, binary(64), "its own (section 4, Offers)"]


@dataclass(frozen=True, slots=True)
class Offer:
    """The body of an `offer` statement: a peer's consent to be a steward."""

    network: Annotated[str, NAME, "the network that it belongs to"]
    seq: Annotated[int, U63, "rises with every offer of the peer"]
    addrs: Annotated[tuple[str, ...], array(NAME, 1, 8), "where it can be dialled"]
    storage: Annotated[int, U63, "bytes of one job's inputs and outputs that it would keep"]
    shards: Annotated[int, integer(1, bounds.SHARDS_MAX), "shards of one job that it would keep"]
    until: Annotated[int, U63, "wall clock, ms: not to be used after"]
    reached: Annotated[
        tuple[DialBack, ...], array(record(DialBack), 0, bounds.REACHED_MAX), "those who got through to it"
    ] = ()
    ext: Extensions = ()


RunOutcome: TypeAlias = Literal["ok", "failed", "wall-limit", "idle-limit", "memory-limit", "output-limit"]
OUTCOMES: Final[tuple[RunOutcome, ...]] = ("ok", "failed", "wall-limit", "idle-limit", "memory-limit", "output-limit")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a task used."""

    cpu_ms: Annotated[int, U63, "ms of all cores"] = 0
    wall_ms: Annotated[int, U63, "ms"] = 0
    peak_memory: Annotated[int, U63, "bytes"] = 0
    gpu_ms: Annotated[int, U63, "ms that its GPUs were busy, added up"] = 0
