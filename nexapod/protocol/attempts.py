"""One task that this peer works on, and how it is kept on disk. Values and their packing; worker.py moves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nexapod.protocol import codec, limits
from nexapod.protocol.records import Record
from nexapod.protocol.statements import Statement, Verify, decode
from nexapod.protocol.types import BlobRef, File, JobId, Millis, PeerId, RunResult, StatementId, TaskId, Usage

ATTEMPT_RECORD = "attempt"
State: TypeAlias = Literal["bidding", "granted", "running", "committed", "revealed"]


@dataclass(slots=True)
class Attempt:
    """One task that this peer bid for, and what has become of it."""

    task: TaskId
    state: State
    bid: Statement
    since: Millis
    granted_by: set[PeerId] = field(default_factory=set)
    refused_by: set[PeerId] = field(default_factory=set)
    offered: dict[StatementId, tuple[Statement, set[PeerId]]] = field(default_factory=dict)
    """Checkpoints that stewards gave with their grants, and which of them did."""
    basis: Statement | None = None
    """The checkpoint that it may go on from: a majority of the stewards gave it."""
    shown_by: set[PeerId] = field(default_factory=set)
    acked_by: set[PeerId] = field(default_factory=set)
    """Stewards that have our newest statement."""
    settled_by: dict[PeerId, tuple[str, bytes]] = field(default_factory=dict)
    told: dict[PeerId, Millis] = field(default_factory=dict)
    """When each steward was last given all of our statements."""
    commit: Statement | None = None
    salt: bytes = b""
    result: RunResult | None = None
    reveal: Statement | None = None
    interrupted: bool = False
    """A former process of this node ran it."""
    vacated: bool = False
    """Its program has ended, though what came of it is not known yet: it takes no slot any more."""
    progress: int = 0
    log: str = ""
    """The head and the tail of what the task has printed so far."""
    seq: int = 0
    """Of the newest checkpoint."""
    size: int = 0
    """The most stewards that its shard was seen to have while it was held."""
    checkpoint: Statement | None = None
    retry_at: Millis = 0
    retry_ms: Millis = limits.RETRY_MIN_MS

    @property
    def occupies(self) -> bool:
        """Whether it takes some of the machine now."""
        return self.state == "running" and not self.vacated

    @property
    def pending(self) -> bool:
        """Whether it takes a slot, or is about to take one."""
        return self.state in ("bidding", "granted") or self.occupies

    @property
    def lineage(self) -> tuple[PeerId, ...]:
        """Whose checkpoints `basis` stands for."""
        return lineage_of(self.basis)


def lineage_of(checkpoint: Statement | None) -> tuple[PeerId, ...]:
    """Its author, and those whose checkpoints it rests on."""
    if checkpoint is None:
        return ()
    return tuple(dict.fromkeys((checkpoint.author, *checkpoint.body.continued)))


def record_key(task: TaskId) -> bytes:
    return bytes(task.job) + task.index.to_bytes(4, "big")


def task_of_key(key: bytes) -> TaskId:
    return TaskId(JobId(key[:32]), int.from_bytes(key[32:], "big"))


def record_of(attempt: Attempt) -> Record:
    """What must outlive this process."""
    value = [
        attempt.bid.envelope,
        _envelope(attempt.commit),
        _envelope(attempt.reveal),
        attempt.salt,
        _pack_result(attempt.result) if attempt.result else None,
        _envelope(attempt.basis),
        attempt.seq,
        attempt.size,
    ]
    return Record(ATTEMPT_RECORD, record_key(attempt.task), codec.pack(value))


def done_record(attempt: Attempt) -> Record:
    """What is left of an attempt that had committed, until its job is over: that it was made, and its outputs."""
    files = attempt.result.files if attempt.result is not None else ()
    return Record(
        ATTEMPT_RECORD, record_key(attempt.task), codec.pack([[[f.path, f.blob.digest, f.blob.size] for f in files]])
    )


def restored(record: Record, verify: Verify, now: Millis) -> Attempt | tuple[BlobRef, ...]:
    """An attempt that goes on; or, of one that is done, its outputs."""
    assert record.value is not None
    saved = codec.unpack(record.value, 2 * limits.FRAME_BYTES_MAX)
    if len(saved) == 1:
        return tuple(BlobRef(digest, size) for _, digest, size in saved[0])
    bid, commit, reveal, salt, result, basis, seq, size = saved
    attempt = Attempt(task_of_key(record.key), "granted", decode(bid, verify), now)
    attempt.salt = salt
    attempt.seq = seq
    attempt.size = size
    attempt.retry_at = now
    attempt.interrupted = True
    attempt.basis = decode(basis, verify) if basis is not None else None
    if commit is not None:
        attempt.state = "committed"
        attempt.commit = decode(commit, verify)
        attempt.result = _unpack_result(result)
    if reveal is not None:
        attempt.state = "revealed"
        attempt.reveal = decode(reveal, verify)
    return attempt


def _envelope(statement: Statement | None) -> bytes | None:
    return statement.envelope if statement is not None else None


def _pack_result(result: RunResult) -> list[object]:
    files = [[f.path, f.blob.digest, f.blob.size] for f in result.files]
    used = result.usage
    usage = [used.cpu_ms, used.wall_ms, used.peak_memory, used.gpu_ms]
    return [result.outcome, result.exit, files, usage, result.log, result.continued]


def _unpack_result(raw: list[object]) -> RunResult:
    outcome, exit_status, files, usage, log, continued = raw
    found = tuple(File(path, BlobRef(digest, size)) for path, digest, size in files)  # type: ignore[attr-defined]
    return RunResult(outcome, exit_status, found, Usage(*usage), log, continued=continued)  # type: ignore[arg-type, misc]
