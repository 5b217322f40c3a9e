"""Frozen views of a node, gathered when somebody asks (report.py)."""

from __future__ import annotations

from typing import Final

from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.node import task_reporting
from nexapod.protocol.node.directory import Directory, Entry, Link
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs, Known
from nexapod.protocol.primitives import JobId, PeerId
from nexapod.protocol.report import (
    JobReport,
    JobStanding,
    NodeReport,
    PeerReport,
    SeatsReport,
    ShardReport,
    TaskReport,
)
from nexapod.protocol.steward.stewardship import Stewardship
from nexapod.protocol.tables import TableReport

SEATS_TOLD: Final = 4
"""Shards of a job whose seats its report names."""


def node_report(
    ctx: Context, directory: Directory, jobs: Jobs, hosting: Hosting, tables: tuple[TableReport, ...]
) -> NodeReport:
    return NodeReport(
        peer=ctx.me,
        network=ctx.network,
        links=link_reports(ctx, directory),
        peers_known=len(directory),
        jobs=tuple(job for job, _ in jobs.open()),
        submissions=tuple(sorted(hosting.submissions)),
        stewardships=tuple(sorted(hosting.stewardships)),
        attempts=hosting.worker.report(),
        profile=hosting.worker.profile,
        draining=hosting.worker.draining,
        paused=hosting.worker.paused,
        steward_shards=sum(len(stewardship.stewards()) for stewardship in hosting.stewardships.values()),
        tables=tables,
    )


def peer_reports(ctx: Context, directory: Directory) -> tuple[PeerReport, ...]:
    """Everybody that this node knows of."""
    return tuple(_peer(ctx, directory, peer, entry, link) for peer, entry, link in directory.peers())


def link_reports(ctx: Context, directory: Directory) -> tuple[PeerReport, ...]:
    """Those that there is a link to."""
    return tuple(_peer(ctx, directory, peer, entry, link) for peer, entry, link in directory.linked_peers())


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
        lately=directory.lately(peer, entry, ctx.now),
        profile=directory.profile(peer),
    )


def job_report(ctx: Context, jobs: Jobs, hosting: Hosting, job: JobId) -> JobReport | None:
    known = jobs.get(job) or jobs.archived(job)
    if known is None:
        return None
    state, submission = known.state, hosting.submissions.get(job)
    decision = hosting.worker.decide(state)
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
        work=decision.reason,
        submission=None if submission is None else submission.report(),
        spec=state.spec,
        works=decision.ok,
        seats=tuple(_seats(state, shard) for shard in range(min(SEATS_TOLD, state.spec.shards))),
    )


def _seats(state: JobState, shard: int) -> SeatsReport:
    seats = state.seats(shard)
    return SeatsReport(shard, seats.epoch, seats.holders)


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


def task_reports(jobs: Jobs, hosting: Hosting, job: JobId, tasks: range) -> tuple[TaskReport, ...]:
    """Those of `tasks` that this node can speak of, ascending."""
    known = jobs.get(job) or jobs.archived(job)
    if known is None:
        return ()
    wanted = range(max(0, tasks.start), min(tasks.stop, known.state.spec.tasks))
    return tuple(task_reporting.task_reports(hosting, job, wanted))
