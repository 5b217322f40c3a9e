"""What a node has kept, sorted for the machines that start from it.

Nothing in a store stops a node from starting: a record that cannot be read, or that a newer or older version wrote, is
set aside with its reason, and stays in the store until something of the same key is written.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import JobId, PeerId, key_of_peer_id, peer_id_of_key
from nexapod.protocol.records import Record
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.statements import Statement

NODE_RECORD: Final = "node"
"""The node's own: key PROFILE_SEQ or OFFER_SEQ -> u64; BAN + key of a peer -> u32 times banned."""
JOB_RECORD: Final = "job"
"""Key job's id + statement's id -> envelope: all that counts of a job, the job itself included."""
AGE_RECORD: Final = "job-age"
"""Key job's id -> u64 ms for which it has been known here."""
ENDED_RECORD: Final = "job-ended"
"""Key job's id -> u64 order, then the envelope of its closing statement if there was one."""

MACHINES: Final = frozenset(("steward", "gate", "tenure", "submission"))
"""The first words of the kinds that a job's machines write; the worker's is `worker`."""

PROFILE_SEQ: Final = b"profile-seq"
OFFER_SEQ: Final = b"offer-seq"
BAN: Final = b"ban/"

_ORDER: Final = {
    kind: place
    for place, kind in enumerate(
        ("job", "renewal", "succession", "placed", "admission", "beacon", "adoption", "fault", "cancel", "settlement")
    )
}


@dataclass(slots=True)
class Recovered:
    """The records of a former process, by whose they are."""

    seqs: dict[bytes, int] = field(default_factory=dict)
    bans: dict[PeerId, int] = field(default_factory=dict)
    jobs: dict[JobId, list[Statement]] = field(default_factory=dict)
    """The job first, each statement after those that it can answer."""
    ages: dict[JobId, int] = field(default_factory=dict)
    ended: list[tuple[int, JobId, bytes]] = field(default_factory=list)
    of_worker: list[Record] = field(default_factory=list)
    of_jobs: list[Record] = field(default_factory=list)
    """Those of a job's other machines: their keys begin with its id."""
    set_aside: list[tuple[Record, str]] = field(default_factory=list)


def recover(records: Iterable[Record], archived: Container[str] = ()) -> Recovered:
    """Sort what was kept, but for the `archived` kinds, which are read when they are needed. Never raises."""
    found = Recovered()
    kept_kinds = (record for record in records if record.value is not None and record.kind not in archived)
    for record in sorted(kept_kinds, key=lambda r: (r.kind, r.key)):
        if record.value is None:
            continue
        try:
            _take(found, record, record.value)
        except (PeerError, ValueError, IndexError) as error:
            found.set_aside.append((record, str(error)))
    for job in [job for job, kept in found.jobs.items() if not any(s.kind == "job" for s in kept)]:
        found.set_aside += [(Record(JOB_RECORD, job + s.id, None), "its job is missing") for s in found.jobs.pop(job)]
    for kept in found.jobs.values():
        kept.sort(key=_order)
    found.ended.sort()
    return found


def _take(found: Recovered, record: Record, value: bytes) -> None:
    match record.kind:
        case "node":
            _take_own(found, record.key, value)
        case "job":
            statement = statements.decode(value, _saved)
            job = JobId(statement.id) if statement.kind == "job" else JobId(statement.body.job)
            if record.key != job + statement.id:
                raise ValueError("its key is another statement's")
            found.jobs.setdefault(job, []).append(statement)
        case "job-age":
            found.ages[_job(record.key)] = _number(value, 8)
        case "job-ended":
            found.ended.append((_number(value[:8], 8), _job(record.key), value[8:]))
        case _ if machine_of(record) == "worker":
            found.of_worker.append(record)
        case _ if machine_of(record) in MACHINES and len(record.key) >= 32:
            found.of_jobs.append(record)
        case _:
            raise ValueError("unknown to this version")


def machine_of(record: Record) -> str:
    """Whose it is: the first word of its kind, up to a dash or a dot."""
    return record.kind.replace(".", "-").partition("-")[0]


def _take_own(found: Recovered, key: bytes, value: bytes) -> None:
    if key in (PROFILE_SEQ, OFFER_SEQ):
        found.seqs[key] = _number(value, 8)
    elif key.startswith(BAN) and len(key) == len(BAN) + 32:
        found.bans[peer_id_of_key(key.removeprefix(BAN))] = _number(value, 4)
    else:
        raise ValueError("unknown to this version")


def _number(value: bytes, size: int) -> int:
    if len(value) != size:
        raise ValueError(f"not a number of {size} bytes")
    return int.from_bytes(value, "big")


def _job(key: bytes) -> JobId:
    if len(key) != 32:
        raise ValueError("not a job's id")
    return JobId(key)


def ban_record(peer: PeerId, times: int | None) -> Record:
    """A ban that outlives this process; None: forgotten."""
    return Record(NODE_RECORD, BAN + key_of_peer_id(peer), None if times is None else times.to_bytes(4, "big"))


def _order(statement: Statement) -> tuple[int, int, int, bytes]:
    body = statement.body
    place = _ORDER.get(statement.kind, len(_ORDER))
    return place, getattr(body, "epoch", 0), getattr(body, "round", 0), statement.id


def _saved(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Verifies what this node's own store holds: it was checked before it was saved."""
    return True
