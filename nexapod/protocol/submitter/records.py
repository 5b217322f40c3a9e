"""The kinds of record that a submission keeps. Every key begins with the job's id."""

from __future__ import annotations

from typing import Final

from nexapod.protocol.primitives import JobId, StatementId

JOB: Final = "job"
"""job, id: the envelope of a statement about a whole job; the node saves the others."""
RESTS_ON: Final = "submission-rests_on"
"""What its result rests on, in words: UTF-8."""
PLACED: Final = "submission-placed"
"""It was placed once: empty."""
EVIDENCE: Final = "submission-evidence"
"""job, u32(shard), id: the envelope of a statement that a decided task rests on."""
SHARD: Final = "submission-shard"
"""job, u32(shard): how a shard ended whose tasks are all decided, and the outputs here (results.py)."""
SETTLED: Final = "submission-settled"
"""job: the sorted ids of the statements about the whole job that the settlement signs; job, u32(shard): those of a
shard's evidence."""
RATIFIED: Final = "submission-ratified"
"""The ids of the caretakers' successions that the user accepts."""
FAILING: Final = "submission-failing"
"""job: the first result that did not end well, as the user was told of it (failing.py)."""
CLEARED: Final = "submission-cleared"
"""job: u32 of how many shards may still have EVIDENCE of a job that is forgotten otherwise."""


def shard_key(job: JobId, shard: int) -> bytes:
    """Of what is kept of one shard: the beginning of all its records' keys."""
    return bytes(job) + shard.to_bytes(4, "big")


def evidence_key(job: JobId, shard: int, statement: StatementId) -> bytes:
    """Of one statement of a shard's evidence."""
    return shard_key(job, shard) + bytes(statement)


def shard_of(key: bytes) -> int:
    """Which shard a key is about."""
    return int.from_bytes(key[32:36], "big")


def ids(packed: bytes) -> frozenset[StatementId]:
    """Ids that were kept one after the other."""
    return frozenset(StatementId(packed[at : at + 32]) for at in range(0, len(packed), 32))
