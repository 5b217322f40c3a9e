"""Frozen views of a node, gathered when somebody asks (report.py)."""

from __future__ import annotations

from nexapod.protocol.types import JobId, PeerId
from nexapod.protocol.v3 import limits
from nexapod.protocol.v3.context import Context
from nexapod.protocol.v3.job import JobState
from nexapod.protocol.v3.node.directory import Directory, Entry, Link
from nexapod.protocol.v3.node.hosting import Hosting
from nexapod.protocol.v3.node.jobs import Jobs, Known
from nexapod.protocol.v3.report import JobReport, JobStanding, NodeReport, PeerReport, ShardReport, TaskReport
from nexapod.protocol.v3.steward.stewardship import Stewardship
from nexapod.protocol.v3.wire.messages import TaskView


def node_report(ctx: Context, directory: Directory, jobs: Jobs, hosting: Hosting) -> NodeReport:
    linked = [(peer, entry, link) for peer, entry, link in directory.peers() if link is not None]
    return NodeReport(
        peer=ctx.me,
        network=ctx.network,
        links=tuple(_peer(ctx, directory, peer, entry, link) for peer, entry, link in linked),
        peers_known=len(directory),
        jobs=tuple(job for job, _ in jobs.open()),
        submissions=tuple(sorted(hosting.submissions)),
        stewardships=tuple(sorted(hosting.stewardships)),
        attempts=hosting.worker.report(),
    )


def peer_reports(ctx: Context, directory: Directory) -> tuple[PeerReport, ...]:
    """Everybody that this node knows of."""
    return tuple(_peer(ctx, directory, peer, entry, link) for peer, entry, link in directory.peers())


def _peer(ctx: Context, directory: Directory, peer: PeerId, entry: Entry, link: Link | None) -> PeerReport:
    lost = directory.lost(peer)
    return PeerReport(
        peer=peer,
        linked=link is not None,
        dialled=link is not None and link.dialled,
        addr="" if link is None else link.addr,
        group=directory.group(peer, ctx.grouping),
        seen_up_ms=directory.seen_up_ms(peer, ctx.now),
        gone_ms=None if lost is None else ctx.now - lost,
        introducer=entry.introducer,
        offers=entry.offer is not None,
        profile=directory.profile(peer),
    )


def job_report(ctx: Context, jobs: Jobs, hosting: Hosting, job: JobId) -> JobReport | None:
    known = jobs.get(job) or jobs.archived(job)
    if known is None:
        return None
    state, submission = known.state, hosting.submissions.get(job)
    return JobReport(
        job=job,
        name=state.spec.name,
        submitter=state.submitter,
        tasks=state.spec.tasks,
        standing=_standing(known),
        age_ms=ctx.now - known.since,
        workable=state.workable,
        panel=state.members(),
        placed=tuple(sorted(state.placed())),
        groups=state.lottery.groups(),
        shards=_shards(state, hosting.stewardships.get(job)),
        work=hosting.worker.decide(state).reason,
        submission=None if submission is None else submission.report(),
    )


def _standing(known: Known) -> JobStanding:
    closing = known.state.closing
    if closing is None:
        return "open"
    return "settled" if closing.kind == "settlement" else "cancelled"


def _shards(state: JobState, stewardship: Stewardship | None) -> tuple[ShardReport, ...]:
    if stewardship is None:
        return ()
    found = []
    for shard, steward in stewardship.stewards():
        seats = state.seats(shard)
        found.append(
            ShardReport(
                shard=shard,
                epoch=seats.epoch,
                holders=seats.holders,
                decided=steward.evidence.decided,
                leased=steward.leased,
                open_places=steward.open_places,
            )
        )
    return tuple(found)


def task_report(jobs: Jobs, hosting: Hosting, job: JobId, task: int) -> TaskReport | None:
    """As this node's own seat has it; of a job submitted here, else as its seats have last said."""
    known = jobs.get(job) or jobs.archived(job)
    if known is None or not 0 <= task < known.state.spec.tasks:
        return None
    view = _own_view(hosting, job, task) or _submitters_view(hosting, job, task)
    if view is None:
        return None
    submission = hosting.submissions.get(job)
    outputs = () if submission is None else submission.outputs(task)
    return TaskReport(job, task, view.state, view.progress, view.workers, view.notes, outputs)


def _own_view(hosting: Hosting, job: JobId, task: int) -> TaskView | None:
    stewardship = hosting.stewardships.get(job)
    steward = None if stewardship is None else stewardship.steward(task // limits.SHARD_TASKS)
    views = () if steward is None else steward.views((task,))
    return views[0] if views else None


def _submitters_view(hosting: Hosting, job: JobId, task: int) -> TaskView | None:
    submission = hosting.submissions.get(job)
    return None if submission is None else submission.inquiry.views.get(task)
