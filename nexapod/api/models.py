"""The shapes of the API: what a submitted job may say, and what each answer holds (the OpenAPI schema is made of them).

Answers are not re-checked at run time: tests/contract/test_api_contract.py holds backends to these shapes.
"""

from __future__ import annotations

import os
import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema

from nexapod.protocol import limits, types
from nexapod.protocol.limits import RETENTION_DEFAULT_MS, TASKS_MAX
from nexapod.protocol.primitives import BlobRef, File, PeerId, key_of_peer_id


def _peer(value: object) -> PeerId:
    if not isinstance(value, str) or len(value) > 64:
        raise ValueError("a peer is named by its id: 12D3KooW...")
    key_of_peer_id(PeerId(value))
    return PeerId(value)


def _ref(value: object) -> BlobRef:
    if isinstance(value, BlobRef):
        return value
    if not isinstance(value, str) or len(value) > 80:
        raise ValueError("a blob is named <64 hex digits>:<size>")
    return BlobRef.parse(value)


Ref = Annotated[
    BlobRef,
    PlainValidator(_ref),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}:[0-9]{1,15}$"}),
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# --- what is submitted ---------------------------------------------------------------------------------------------
class RunBody(_Strict):
    executor: Literal["wasm", "docker"]
    module: Ref | None = None
    image: str | None = Field(None, max_length=limits.IMAGE_NAME_MAX)
    image_blobs: list[Ref] = Field(default=[], max_length=limits.LAYERS_MAX + 1)
    command: list[str] = Field(default=[], max_length=limits.COMMAND_MAX)
    env: dict[str, str] = Field(default={}, max_length=limits.ENV_MAX)
    workdir: str = ""
    checkpoint: Literal["local", "shared"] = "local"


class InputBody(_Strict):
    path: str = Field(max_length=limits.PATH_MAX)
    ref: Ref


class SplitBody(_Strict):
    path: str = Field(max_length=limits.PATH_MAX)
    ref: Ref
    index: Ref
    bounds: list[int] = Field(min_length=2, max_length=TASKS_MAX // limits.SHARD_TASKS + 2)
    header: int = 0

    def value(self) -> types.Split:
        return types.Split(self.path, self.ref, self.index, tuple(self.bounds), self.header)


class LimitsBody(_Strict):
    cpus_milli: int = 1000
    memory: int = 256 << 20
    output: int = 16 << 20
    disk: int = 32 << 20
    wall_ms: int = 3_600_000
    idle_ms: int = 0
    pids: int = 64
    gpus: int = 0
    gpu_memory: int = 0


class RequiresBody(_Strict):
    arch: list[str] = Field(default=[], max_length=8)
    memory: int = 0
    gpu_model: str = ""
    gpu_capability: str = ""


class ValidateBody(_Strict):
    mode: Literal["exact"] = "exact"
    agree: int = 2
    max_replicas: int = 5


class JobBody(_Strict):
    """A job to submit; every blob that it names has been uploaded before. The daemon chooses its panel of stewards."""

    name: str
    tasks: int = Field(ge=1, le=TASKS_MAX)
    run: RunBody
    description: str = ""
    tags: list[str] = Field(default=[], max_length=limits.TAGS_MAX)
    priority: int = 0
    inputs: list[InputBody] = Field(default=[], max_length=limits.INPUTS_MAX)
    split: SplitBody | None = None
    params: Ref | None = None
    friends: list[Annotated[str, PlainValidator(_peer), WithJsonSchema({"type": "string"})]] = Field(
        default=[], max_length=limits.PANEL_MAX
    )
    """Peers that must be stewards of it, by id."""
    accept_unknown: bool = False
    """Submit it even where all stewards are known through one peer."""
    limits: LimitsBody = LimitsBody()
    requires: RequiresBody = RequiresBody()
    validation: ValidateBody = Field(ValidateBody(), alias="validate")
    retention_ms: int = RETENTION_DEFAULT_MS

    def spec(self, network: str) -> types.JobSpec:
        """The job as the protocol has it, its panel still empty. Its bounds are for `bounds_error` to check."""
        return types.JobSpec(
            network=network,
            name=self.name,
            nonce=os.urandom(16),
            stamp=int(time.time() * 1000),
            run=types.Run(
                self.run.executor,
                self.run.module,
                self.run.image,
                tuple(self.run.image_blobs),
                tuple(self.run.command),
                tuple(sorted(self.run.env.items())),
                self.run.workdir,
                self.run.checkpoint,
            ),
            tasks=self.tasks,
            description=self.description,
            tags=tuple(self.tags),
            priority=self.priority,
            inputs=tuple(File(i.path, i.ref) for i in self.inputs),
            split=self.split.value() if self.split else None,
            params=self.params,
            limits=types.Limits(**self.limits.model_dump()),
            requires=types.Requires(**self.requires.model_dump() | {"arch": tuple(self.requires.arch)}),
            validate=types.Validate(**self.validation.model_dump()),
            retention_ms=self.retention_ms,
        )


def spec_view(spec: types.JobSpec) -> dict[str, Any]:
    """A signed job in the same shape as it is submitted in, with its network and time."""
    run, split = spec.run, spec.split
    return {
        "network": spec.network,
        "created": spec.stamp,
        "name": spec.name,
        "description": spec.description,
        "tags": list(spec.tags),
        "priority": spec.priority,
        "tasks": spec.tasks,
        "run": {
            "executor": run.executor,
            "module": str(run.module) if run.module else None,
            "image": run.image,
            "image_blobs": [str(ref) for ref in run.image_blobs],
            "command": list(run.command),
            "env": dict(run.env),
            "workdir": run.workdir,
            "checkpoint": run.checkpoint,
        },
        "inputs": [{"path": f.path, "ref": str(f.blob)} for f in spec.inputs],
        "split": _split_view(split) if split else None,
        "params": str(spec.params) if spec.params else None,
        "limits": {name: getattr(spec.limits, name) for name in LimitsBody.model_fields},
        "requires": {
            "arch": list(spec.requires.arch),
            "memory": spec.requires.memory,
            "gpu_model": spec.requires.gpu_model,
            "gpu_capability": spec.requires.gpu_capability,
        },
        "validate": {name: getattr(spec.validate, name) for name in ValidateBody.model_fields},
        "retention_ms": spec.retention_ms,
    }


def _split_view(split: types.Split) -> dict[str, Any]:
    return {
        "path": split.path,
        "ref": str(split.blob),
        "index": str(split.index),
        "bounds": list(split.bounds),
        "header": split.header,
    }


class StopBody(_Strict):
    drain: bool = True


# --- what is answered ----------------------------------------------------------------------------------------------
class _View(BaseModel):
    """Backends may add keys; these are always there."""

    model_config = ConfigDict(extra="allow", strict=True)


class Problem(_View):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    remedy: str


class Status(_View):
    peer_id: str
    version: str
    network: str
    listen: list[str]
    """Multiaddrs that end in /p2p/<id>: what others dial."""
    connected_peers: int
    known_peers: int
    active_jobs: int
    """Open jobs, anybody's."""
    running_tasks: int
    leases: int
    """Tasks that this worker holds a lease of: waiting for a slot, running, or committed and not yet shown."""
    steward_shards: int
    """Shards of jobs that this peer keeps a seat of."""
    slots: int
    state: Literal["starting", "running", "paused", "draining"]
    uptime_s: int
    pause_left_s: float | None = None
    """How long a pause still lasts; null when there is none, or none that ends by itself."""
    dialable: bool | None = None
    """Whether others have got through to it; null: nothing is known of that yet."""
    home: str
    pid: int


class GpuView(_View):
    """A GPU as peers are told of it."""

    model: str
    memory: int
    capability: str = ""
    driver: str = ""


class LocalGpuView(_View):
    """A GPU as this machine's user sees it; null where it does not tell."""

    index: int
    uuid: str
    model: str
    capability: str
    driver: str
    cuda: str
    """The newest CUDA that the driver can run."""
    memory: int | None
    memory_used: int | None
    utilisation_percent: int | None
    temperature_c: int | None
    power_w: float | None
    power_limit_w: float | None
    mig: bool | None
    compute_processes: int | None
    leased_by: str
    """The run that holds it; empty: none."""
    withheld: str
    """Why no task is given it; empty: it is offered."""


class ExecutorView(_View):
    name: str
    version: str


class OfferView(_View):
    """What a peer would do as a steward of others' jobs."""

    addrs: list[str]
    storage: int
    """Bytes of one job's inputs and outputs."""
    shards: int
    """Of one job."""
    until: int
    """Wall-clock milliseconds."""
    reached_by: list[str]
    """Peers that say they have got through to it."""


class ProfileView(_View):
    agent: str
    os: str
    arch: str
    cpu_model: str
    cpus: int
    memory: int
    disk_free: int
    gpus: list[GpuView]
    """Those that tasks may have: what peers are told."""
    local_gpus: list[LocalGpuView] = []
    """All that this machine has."""
    gpu_trouble: str = ""
    """Why there are no GPUs, or fewer than there should be."""
    executors: list[ExecutorView]
    images: list[str]
    reachable: bool
    """Others have dialled it and got through."""
    slots: int
    offer: OfferView | None = None
    """Null: it would be no steward, or (in the profile of another peer) nothing is said of it here."""
    no_offer: str = ""
    """Why this machine would be no steward."""


class Peer(_View):
    """The facts of its profile follow where one is known."""

    peer_id: str
    connected: bool
    dialled: bool
    """This daemon has got through to it."""
    live: bool
    """It is connected, or was within the last half hour."""
    address: str
    group: str | None
    """Its operator group by the rule of this network; null: it counts in none."""
    steward: bool
    """It would be a steward of a job."""
    seen_up_s: int
    """For how long, in all, it was seen up."""
    gone_s: int | None
    """For how long it has been away; null: it is connected, or was never."""
    introducer: str | None
    arch: str = ""
    cpus: int = 0
    memory: int = 0
    slots: int = 0


class BlobView(_View):
    digest: str
    size: int
    ref: str


class BlobStat(_View):
    ref: str
    size: int
    chunks: int
    chunks_here: int
    whole: bool
    pinned: bool
    held: bool
    """A job that this daemon has a part in needs it."""
    used: int
    """Wall-clock milliseconds of its last use."""


class Unpinned(_View):
    ref: str
    was_pinned: bool


class BlobCheck(_View):
    ref: str
    sound: bool
    damaged_chunks: int
    """Set aside: the next fetch brings them."""


class BlobFetch(_View):
    ref: str
    here: bool
    chunks: int
    chunks_here: int


class Submitted(_View):
    job_id: str
    panel: list[str]
    """The stewards that the job names."""
    rests_on: str
    """What its result will rest on, in words."""


JobState = Literal["placing", "running", "settled", "cancelled", "open"]
"""`open`: another peer's, not over."""
TaskState = Literal["open", "running", "committed", "frozen", "accepted", "failed"]


class JobRow(_View):
    """Counts are null where this daemon, not being the submitter's, does not know them."""

    job_id: str
    name: str
    submitter: str
    mine: bool
    state: JobState
    tasks: int
    accepted: int | None
    failed: int | None
    running: int | None
    created: int
    """Wall-clock milliseconds at the submitter."""


class Failing(_View):
    """A result that did not end well: the first news of what may be wrong with a job."""

    index: int
    """The task."""
    peer: str
    exit: int
    reason: str
    outcome: str
    log: str
    """The head and the tail of what it printed; empty until its worker has shown the result."""


class ReplicaView(_View):
    """One worker's result of a task, or its way there. Null: not shown."""

    peer: str
    group: str
    """The operator group in which it counts; empty until it is judged."""
    outcome: str
    """running, committed, or how it ended once that was shown."""
    exit: int | None
    reason: str
    root: str | None
    wall_ms: int | None
    cpu_ms: int | None
    peak_memory: int | None
    gpu_ms: int | None
    hardware: str
    resumed: str | None
    """The checkpoint that it went on from."""
    agrees: bool | None
    """With the accepted result; null: nothing is decided."""
    log: str
    """Of a result that did not end well: the head and the tail of what it printed."""
    files: list[ResultFile]
    """Of a failed task's results that were shown: what each of them wrote."""


class TaskView(_View):
    index: int
    state: TaskState
    progress: float
    workers: list[str]
    """Those that have it now."""
    reason: str
    root: str | None
    replicas: list[ReplicaView]
    notes: list[Note]
    """What a seat says of results that did not end well, before they are shown."""
    judges: list[str]
    """The seats that signed the verdict that counts."""


class Note(_View):
    peer: str
    exit: int
    reason: str


class SeatsView(_View):
    shard: int
    epoch: int
    """How often its seats have changed."""
    holders: list[str]


class ShardCounts(_View):
    total: int
    placed: int
    finished: int
    """All decided, and every accepted output here."""


class Refusal(_View):
    peer: str
    reason: str


class JobView(JobRow):
    description: str
    tags: list[str]
    panel: list[str]
    seats: list[SeatsView]
    """Of the first shards."""
    workable: bool
    """Enough members have signed that they hold it: its tasks may be worked on."""
    groups: int
    """Operator groups that were admitted."""
    works: bool
    """Whether this daemon would work on it now,"""
    work: str
    """and why."""
    rests_on: str
    placed: bool
    """Enough stewards hold the job and its inputs."""
    placed_on: list[str]
    may_leave: bool
    """They go on without this machine."""
    holders: int
    """Of the shard that the fewest seats hold: how many do,"""
    holders_needed: int
    """and how many must."""
    shards: ShardCounts | None
    refused: list[Refusal]
    unanswered: list[str]
    """Members that have said nothing so far."""
    unratified: list[int]
    """Shards that caretakers have held, and whose user has not accepted that."""
    problems: list[str]
    """Why it could not be settled."""
    failing: Failing | None
    task_list: list[TaskView]


class ResultFile(_View):
    path: str
    ref: str
    size: int


class Output(ResultFile):
    here: bool
    """It has come: this daemon can give it."""


class TaskResult(_View):
    index: int
    outcome: Literal["accepted", "failed"]
    reason: str
    files: list[Output]


class Results(_View):
    tasks: list[TaskResult]


class ReplicaLog(_View):
    peer: str
    outcome: str
    """How it ended; before that is shown `running` or `committed`."""
    exit: int | None
    """Null until it is shown."""
    reason: str
    log: str


class Why(_View):
    sentences: list[str]
