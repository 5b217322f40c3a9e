"""Notices of the core as those who watch a job are told of them. Pure."""

from __future__ import annotations

from nexapod.api.backend import JobEvent
from nexapod.daemon.job_views import failing_view
from nexapod.protocol.notices import (
    FaultProven,
    JobClosed,
    JobPlaced,
    JobRefused,
    Notice,
    RatificationNeeded,
    ResultStored,
    TaskDecided,
    TaskFailing,
    TaskViewed,
)
from nexapod.protocol.primitives import JobId


def event_of(notice: Notice) -> tuple[JobId, JobEvent] | None:
    """Whose job it is about, and the event; None for what a watcher is not told."""
    event = _event(notice)
    return None if event is None else (notice.job, event)


def _event(notice: Notice) -> JobEvent | None:
    match notice:
        case JobPlaced(holders=holders):
            return "placed", {"peers": list(holders)}
        case JobRefused(reason=reason):
            return "refused", {"reason": reason}
        case TaskViewed(task=task, standing=standing, progress=progress, workers=workers):
            return "task_changed", {
                "index": task,
                "state": standing,
                "progress": progress / 1000,
                "workers": list(workers),
            }
        case TaskFailing():
            return "failing", failing_view(notice)
        case TaskDecided(task=task, outcome=outcome, reason=reason):
            return outcome, {"index": task, "reason": reason}
        case ResultStored(task=task):
            return "stored", {"index": task}
        case RatificationNeeded(shards=shards):
            return "ratification_needed", {"shards": list(shards)}
        case FaultProven(peer=peer):
            return "fault_proven", {"peer": peer}
        case JobClosed(how=how):
            return "closed", {"state": how}
        case _:
            return None
