"""What a worker states of a task that has ended: made fit to be stated first, so that no peer can refuse it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from nexapod.protocol import limits, types
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import JobId, PeerId, StatementId, TaskId
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import JobSpec, Profile, Usage
from nexapod.protocol.wire import bodies, statements, text
from nexapod.protocol.wire.bodies import CommitItem, Reveal, RevealItem
from nexapod.protocol.worker.attempt import Committed, Finished

REVEAL_BYTES_MAX: Final = limits.ENVELOPE_BYTES_MAX - 256
EXIT_FAILED: Final = 1
_EXIT_MAX: Final = 2**31 - 1
_COUNT_MAX: Final = 2**63 - 1


def presentable(task: TaskId, result: RunResult) -> RunResult:
    """The result as it can be stated. One whose outputs cannot be has failed, and says why."""
    cleaned = replace(
        result,
        exit=max(-_EXIT_MAX, min(result.exit, _EXIT_MAX)),
        files=tuple(sorted(result.files, key=lambda file: file.path)) if result.outcome == "ok" else (),
        log=text.clean(result.log, limits.LOG_TAIL_MAX),
        reason=text.clean(result.reason, limits.REASON_MAX),
        usage=_countable(result.usage),
    )
    why = _refusal(task, cleaned)
    return failure(result, f"its outputs cannot be stated: {why}") if why else cleaned


def failure(result: RunResult, reason: str) -> RunResult:
    """A result that says that the task could not be carried out: such ones agree with each other."""
    return replace(
        result,
        outcome="failed",
        exit=EXIT_FAILED,
        files=(),
        log=text.clean(result.log, limits.LOG_TAIL_MAX),
        reason=text.clean(reason, limits.REASON_MAX),
        usage=_countable(result.usage),
        continued=False,
    )


def _refusal(task: TaskId, result: RunResult) -> str:
    paths = [file.path for file in result.files]
    if len(set(paths)) != len(paths):
        return "a path is there twice"
    item = _item(task, StatementId(bytes(32)), bytes(16), result, StatementId(bytes(32)))
    body = Reveal(task.job, task.shard, "wasm", "v" * limits.TEXT_MAX, "h" * limits.TEXT_MAX, (item,))
    try:
        statements.check_body(body)
    except PeerError as error:
        return error.detail
    return ""


def commit_item(task: TaskId, worker: PeerId, state: Finished) -> CommitItem:
    """What binds a worker to a result."""
    result = state.result
    root = statements.output_root(result.outcome, result.exit, result.files)
    resumed = state.basis.id if state.basis is not None else None
    return CommitItem(task.index, statements.commitment(task.job, task.index, worker, state.salt, root, resumed))


def reveal_item(task: TaskId, state: Committed) -> RevealItem:
    """What shows it."""
    resumed = state.basis.id if state.basis is not None else None
    return _item(task, state.commit.id, state.salt, state.result, resumed)


def _item(
    task: TaskId,
    commit: StatementId,
    salt: bytes,
    result: RunResult,
    resumed: StatementId | None,
) -> RevealItem:
    assert result.outcome != "try-elsewhere"
    used = result.usage
    return RevealItem(
        task=task.index,
        commit=commit,
        salt=salt,
        outcome=result.outcome,
        exit=result.exit,
        outputs=result.files,
        resumed=resumed,
        usage=types.Usage(used.cpu_ms, used.wall_ms, used.peak_memory, used.gpu_ms),
        reason=result.reason,
        log=result.log,
    )


def _countable(used: Usage) -> Usage:
    counts = (used.cpu_ms, used.wall_ms, used.peak_memory, used.gpu_ms)
    return Usage(*(max(0, min(count, _COUNT_MAX)) for count in counts))


def reveals(
    job: JobId, shard: int, spec: JobSpec, profile: Profile, items: Iterable[RevealItem]
) -> list[bodies.Reveal]:
    """The items in as few bodies as fit an envelope each, in their order."""
    empty = _reveal(job, shard, spec, profile, ())
    room = REVEAL_BYTES_MAX - _size(empty)
    batches: list[list[RevealItem]] = []
    left = 0
    for item in items:
        size = _size(replace(empty, items=(item,))) - _size(empty)
        if not batches or size > left:
            batches.append([])
            left = room
        batches[-1].append(item)
        left -= size
    return [replace(empty, items=tuple(batch)) for batch in batches]


def _size(body: Reveal) -> int:
    return statements.body_size(body) + 4


def _reveal(job: JobId, shard: int, spec: JobSpec, profile: Profile, items: tuple[RevealItem, ...]) -> Reveal:
    name = spec.run.executor
    version = next((executor.version for executor in profile.executors if executor.name == name), "")
    gpu = profile.gpus[0].model if spec.limits.gpus and profile.gpus else ""
    hardware = text.clean(f"{profile.hardware} {gpu or profile.cpu_model}".strip(), limits.TEXT_MAX)
    return Reveal(job, shard, name, version, hardware, items)
