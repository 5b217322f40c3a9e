"""Tasks as a seat has them, for people (docs/protocol.md, View)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Literal, TypeAlias

from nexapod.protocol.steward.shard.state import ShardState, SoftTask
from nexapod.protocol.wire.messages import TaskView

WORKERS_MAX: Final = 8
NOTES_BYTES_MAX: Final = 64 * 1024
"""Of the notes in one answer: the rest of it fits a frame whatever happens."""
Word: TypeAlias = Literal["open", "running", "committed", "frozen", "accepted", "failed"]


def views(state: ShardState, tasks: Iterable[int]) -> tuple[TaskView, ...]:
    """Tasks of the shard, each once, ascending; notes as far as there is room."""
    found = []
    room = NOTES_BYTES_MAX
    for task in sorted({task for task in tasks if task in state.evidence.tasks}):
        one = view(state, task)
        room -= sum(48 + len(reason.encode()) for _, _, reason in one.notes)
        found.append(one if room >= 0 else replace(one, notes=()))
    return tuple(found)


def view(state: ShardState, task: int) -> TaskView:
    """One task."""
    table = state.leases[task]
    commits = state.evidence.commits(task)
    workers = tuple(sorted({*commits, *(lease.worker for lease in table.leases)}))[:WORKERS_MAX]
    progress = max((lease.progress for lease in table.leases), default=0)
    soft = state.soft.get(task, SoftTask())
    notes = tuple((worker, exit_status, reason) for worker, (exit_status, reason) in sorted(soft.notes.items()))
    return TaskView(task, _state_of(state, task), progress, workers, notes[:WORKERS_MAX])


def _state_of(state: ShardState, task: int) -> Word:
    decision = state.evidence.verdict(task)
    if decision is not None:
        return decision.outcome
    if state.evidence.frozen(task) is not None:
        return "frozen"
    if state.evidence.commits(task):
        return "committed"
    return "running" if state.leases[task].leases else "open"
