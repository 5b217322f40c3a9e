"""Turns a user's wish into a signed job with a panel of its own (docs/protocol.md, Choice).

What the result will rest on is said in words before anybody works on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nexapod.protocol.context import Context
from nexapod.protocol.errors import LocalError, PeerError
from nexapod.protocol.events import Submit
from nexapod.protocol.notices import JobAccepted
from nexapod.protocol.primitives import JobId
from nexapod.protocol.records import Record
from nexapod.protocol.rules import panel
from nexapod.protocol.submitter import records
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement


def prepare(ctx: Context, event: Submit, candidates: Sequence[panel.Candidate]) -> Statement:
    """The job, signed and saved; JobAccepted says in words what its result will rest on.

    `candidates`: peers whose offers are known here; this node too, if it would be a steward: it is one where fewer than
    three others are known. Raises LocalError, which says what is missing and what to do.
    """
    spec = _checked(ctx, event.spec)
    own = next((one.offer for one in candidates if one.peer == ctx.me), None)
    choice = panel.choose(
        [one for one in candidates if one.peer != ctx.me],
        spec,
        grouping=ctx.grouping,
        me_offer=own,
        draw=ctx.entropy,
        friends=event.friends,
        accept_unknown=event.accept_unknown,
        bytes_max=_room_for_panel(spec),
    )
    whole = replace(spec, panel=tuple(offer.envelope for offer in choice.panel))
    _check_size(whole)
    statement = ctx.sign(whole)
    job = JobId(statement.id)
    ctx.save(Record(records.JOB, job + statement.id, statement.envelope))
    ctx.save(Record(records.RESTS_ON, bytes(job), choice.rests_on.encode()))
    ctx.notify(JobAccepted(job, tuple(offer.author for offer in choice.panel), choice.rests_on))
    return statement


def _checked(ctx: Context, spec: JobSpec) -> JobSpec:
    """The job as this node's network has it: who counts as one operator is not the user's to say."""
    if spec.network != ctx.network:
        raise LocalError(f"the job is for network {spec.network!r}, this node is in {ctx.network!r}: start one there")
    if spec.panel:
        raise LocalError("the job already names a panel: leave it empty, the node chooses it")
    return replace(spec, policy=replace(spec.policy, grouping=ctx.grouping))


def _check_size(spec: JobSpec) -> None:
    try:
        statements.check_body(spec)
    except PeerError as error:
        raise LocalError(f"the job cannot be signed: {error}") from None


def _room_for_panel(spec: JobSpec) -> int:
    """Bytes that the job has left for its stewards' offers. The list of up to 64 begins with as many as 3."""
    return statements.BODY_BYTES_MAX - statements.body_size(spec) - 3
