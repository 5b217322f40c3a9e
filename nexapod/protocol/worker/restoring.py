"""Reads back what a former process of this node had saved of its work."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import File, JobId, Part, StatementId, TaskId
from nexapod.protocol.records import Record
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker import records
from nexapod.protocol.worker.attempt import Committed, Over, Revealed, State
from nexapod.protocol.worker.attempts import Attempt, Attempts, outputs_of


@dataclass(slots=True)
class Saved:
    """Records by what they hold."""

    seqs: list[Record] = field(default_factory=list)
    attempts: list[tuple[TaskId, bytes]] = field(default_factory=list)
    stated: dict[StatementId, Statement] = field(default_factory=dict)
    refused: list[Record] = field(default_factory=list)
    """Statements that cannot be read."""


def sort(found: Iterable[Record], verify: statements.Verify) -> Saved:
    """By kind, in the order of keys."""
    saved = Saved()
    for record in sorted(found, key=lambda record: (record.kind, record.key)):
        assert record.value is not None
        match record.kind:
            case records.SEQ:
                saved.seqs.append(record)
            case records.ATTEMPT:
                saved.attempts.append((records.task_of(record.key), record.value))
            case records.STATEMENT:
                _take_statement(saved, record, record.value, verify)
            case _:
                saved.refused.append(record)
    return saved


def _take_statement(saved: Saved, record: Record, value: bytes, verify: statements.Verify) -> None:
    try:
        statement = statements.decode(value, verify)
    except PeerError:
        saved.refused.append(record)
    else:
        saved.stated[statement.id] = statement


def restore(ctx: Context, attempts: Attempts, saved: Saved, jobs: Collection[JobId]) -> list[Attempt]:
    """Take attempts of these jobs up again, and delete what is left of others. Those that are not over."""
    found = []
    for task, value in saved.attempts:
        if task.job in jobs:
            attempt = attempts.restore(task, _unpack(ctx, value, saved))
            _pin_outputs(ctx, attempt)
            found += [] if isinstance(attempt.state, Over) else [attempt]
        else:
            ctx.save(Record(records.ATTEMPT, records.key_of(task), None))
    for id_ in [id_ for id_ in saved.stated if not attempts.rests_on(id_)]:
        ctx.save(Record(records.STATEMENT, id_, None))
    for record in saved.refused:
        ctx.trace("record_refused", kind=record.kind)
        ctx.save(Record(record.kind, record.key, None))
    return found


def _unpack(ctx: Context, value: bytes, saved: Saved) -> State:
    try:
        return records.unpack(value, saved.stated, ctx.now)
    except (PeerError, KeyError, ValueError, TypeError):
        # Whatever it was, this worker may have committed to it: never again.
        ctx.trace("record_refused", kind=records.ATTEMPT)
        return Over(())


def _pin_outputs(ctx: Context, attempt: Attempt) -> None:
    for file in _files_of(attempt.state):
        ctx.pin(file.blob, outputs_of(attempt.task.job))
        ctx.blob_stored(Part.whole(file.blob))


def _files_of(state: State) -> tuple[File, ...]:
    match state:
        case Committed(result=result) | Revealed(result=result):
            return result.files
        case Over(files):
            return files
        case _:
            return ()
