"""How attempts and what they have stated are kept on disk.

An attempt's record names the statements that it rests on by id; each statement is a record of its own, since up to 256
tasks share a commit or a reveal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from nexapod.protocol import limits
from nexapod.protocol.primitives import BlobRef, File, JobId, Millis, StatementId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import Usage
from nexapod.protocol.wire import fields
from nexapod.protocol.wire.fields import Raw
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker.attempt import (
    Claimed,
    Committed,
    Dropped,
    Finished,
    Granted,
    Over,
    Restart,
    Revealed,
    Running,
    State,
    advance,
)

ATTEMPT: Final = "worker-attempt"
STATEMENT: Final = "worker-statement"
SEQ: Final = "worker-seq"
KINDS: Final = (ATTEMPT, STATEMENT, SEQ)

Statements: TypeAlias = Mapping[StatementId, Statement]


def key_of(task: TaskId) -> bytes:
    return bytes(task.job) + task.index.to_bytes(4, "big")


def task_of(key: bytes) -> TaskId:
    return TaskId(JobId(key[:32]), int.from_bytes(key[32:], "big"))


def rests_on(state: State) -> tuple[Statement, ...]:
    """The statements that a saved state is not whole without."""
    match state:
        case Granted(basis=basis) | Running(basis=basis):
            named: tuple[Statement | None, ...] = (basis,)
        case Committed(basis=basis, commit=commit):
            named = (basis, commit)
        case Revealed(basis=basis, commit=commit, reveal=reveal):
            named = (basis, commit, reveal)
        case Over(bound=Committed() as bound):
            named = (bound.basis, bound.commit)
        case _:
            named = ()
    return tuple(statement for statement in named if statement is not None)


def is_saved(state: State) -> bool:
    """Whether this state outlives the process: what was only granted is granted again."""
    match state:
        case Granted(interrupted=interrupted):
            return interrupted
        case Running() | Committed() | Revealed() | Over():
            return True
        case Claimed() | Finished() | Dropped():
            return False


def pack(state: State) -> bytes:
    """A saved state as bytes."""
    match state:
        case Granted(basis=basis, seq=seq) | Running(basis=basis, seq=seq):
            value: Raw = ["running", seq, _id(basis)]
        case Committed(result, salt, basis, commit):
            value = ["committed", _pack_result(result), salt, _id(basis), commit.id]
        case Revealed(result, salt, basis, commit, reveal):
            value = ["revealed", _pack_result(result), salt, _id(basis), commit.id, reveal.id]
        case Over(bound=Committed(result, salt, basis, commit)):
            value = ["decided", _pack_result(result), salt, _id(basis), commit.id]
        case Over(files):
            value = ["over", _pack_files(files)]
        case _:
            raise AssertionError(f"{type(state).__name__} is not saved")
    return fields.pack(value)


def unpack(value: bytes, kept: Statements, now: Millis) -> State:
    """The state of an attempt that a former process of this node saved, in this one."""
    tag, *parts = fields.unpack(value, limits.FRAME_BYTES_MAX)
    match tag:
        case "running":
            seq, basis = parts
            return advance(Running(now, _named(basis, kept), seq), Restart(now))
        case "committed":
            result, salt, basis, commit = parts
            return Committed(_unpack_result(result), salt, _named(basis, kept), kept[commit])
        case "revealed":
            result, salt, basis, commit, reveal = parts
            return Revealed(_unpack_result(result), salt, _named(basis, kept), kept[commit], kept[reveal])
        case "decided":
            result, salt, basis, commit = parts
            bound = Committed(_unpack_result(result), salt, _named(basis, kept), kept[commit])
            return Over(bound.result.files, bound)
        case _:
            return Over(_unpack_files(parts[0]))


def statement_record(statement: Statement) -> Record:
    return Record(STATEMENT, statement.id, statement.envelope)


def _id(statement: Statement | None) -> bytes | None:
    return statement.id if statement is not None else None


def _named(id_: StatementId | None, kept: Statements) -> Statement | None:
    return kept[id_] if id_ is not None else None


def _pack_files(files: tuple[File, ...]) -> Raw:
    return [[file.path, file.blob.digest, file.blob.size] for file in files]


def _unpack_files(raw: Raw) -> tuple[File, ...]:
    return tuple(File(path, BlobRef(digest, size)) for path, digest, size in raw)


def _pack_result(result: RunResult) -> Raw:
    used = result.usage
    usage = [used.cpu_ms, used.wall_ms, used.peak_memory, used.gpu_ms]
    files = _pack_files(result.files)
    return [result.outcome, result.exit, files, usage, result.log, result.reason, result.continued]


def _unpack_result(raw: Raw) -> RunResult:
    outcome, exit_status, files, usage, log, reason, continued = raw
    return RunResult(outcome, exit_status, _unpack_files(files), Usage(*usage), log, reason, continued)
