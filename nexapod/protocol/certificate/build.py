"""Writes a certificate from what a submitter has folded (docs/protocol.md, 8).

It is written a shard at a time: the parts of the file are the job's own statements, then each shard's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

from nexapod.protocol.certificate.framing import framed
from nexapod.protocol.evidence import ShardEvidence
from nexapod.protocol.job import JobState
from nexapod.protocol.primitives import Digest, StatementId
from nexapod.protocol.rules.succession import Seats
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement


class EvidenceDigest:
    """What a settlement signs: H over the H of the sorted ids of each part, the job's first, then each shard's."""

    def __init__(self) -> None:
        self._whole = hashlib.sha256()

    def add_part(self, ids: Iterable[StatementId]) -> None:
        """The statements of the next part, in any order."""
        self._whole.update(hashlib.sha256(b"".join(sorted(ids))).digest())

    def digest(self) -> Digest:
        return Digest(self._whole.digest())


def build(job: JobState, shards: Iterable[ShardEvidence], settlement: Statement) -> Iterator[bytes]:
    """The bytes of a certificate, in pieces. `shards`: all of them, ascending; each may be made when asked for."""
    return framed(envelopes(job, shards, settlement))


def envelopes(job: JobState, shards: Iterable[ShardEvidence], settlement: Statement) -> Iterator[bytes]:
    for part in _parts(job, shards):
        yield from (_without_surplus(job, statement).envelope for statement in part)
    yield settlement.envelope


def _parts(job: JobState, shards: Iterable[ShardEvidence]) -> Iterator[list[Statement]]:
    yield [statement for statement in job.statements() if statement.kind not in ("cancel", "settlement")]
    for evidence in shards:
        yield evidence.statements_of(evidence.tasks)


def _without_surplus(job: JobState, statement: Statement) -> Statement:
    """A statement of the present seats with the signatures of a quorum and no more: what counts by another's word (an
    adoption's, an earlier epoch's) keeps all."""
    seats = _seats_of(job, statement)
    if seats is None:
        return statement
    signers = [peer for peer in seats.holders if peer in statement.signers][: seats.quorum]
    return statements.keep_signers(statement, signers) if len(signers) == seats.quorum else statement


def _seats_of(job: JobState, statement: Statement) -> Seats | None:
    """The present seats that a statement of theirs is signed by, if it is one of this epoch."""
    match statement.kind:
        case "admission" | "beacon":
            seats = job.gate()
        case "freeze" | "verdict" | "adoption":
            seats = job.seats(statement.body.shard)
        case _:
            return None
    return seats if statement.body.epoch == seats.epoch else None
