"""What can be stated: the body of each kind of statement, declared once (docs/protocol.md, Statements).

`job`, `profile` and `offer` are in types.py. Some kinds are *cosigned*: several peers sign the same body, so that one
body and a few signatures say what several statements would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from nexapod.protocol import limits, types
from nexapod.protocol.primitives import Digest, ExecutorName, File, JobId, PeerId, StatementId
from nexapod.protocol.types import Group, JobSpec, Offer, Profile, RunOutcome, Usage
from nexapod.protocol.wire.fields import (
    DIGEST,
    FILE,
    NAME,
    PEER,
    SHARD,
    SHORT,
    TASK,
    U16,
    U32,
    Extensions,
    array,
    binary,
    choice,
    integer,
    optional,
    record,
    several,
    text,
)

_EPOCH = integer(0, 2**31 - 1)
_PLACE = integer(0, limits.REPLICAS_MAX * 4 - 1)
_SHARD_ITEMS = limits.SHARD_TASKS
Authority: TypeAlias = Literal["submitter", "panel", "seats", "caretaker"]
AUTHORITIES: Final[tuple[Authority, ...]] = ("submitter", "panel", "seats", "caretaker")
"""By rank: of two successions to one epoch the one with the earlier word counts."""


# --- by one author -------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Cancel:
    """The submitter ends its job."""

    job: Annotated[JobId, DIGEST, "which"]
    reason: Annotated[str, SHORT, "for people"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """A panel member holds the job, and the inputs of every shard that it has a seat of by the job itself."""

    job: Annotated[JobId, DIGEST, "which"]
    commitment: Annotated[Digest, DIGEST, "H of the first value that it will show as a seat of the gate"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class CommitItem:
    """One task of a commit."""

    task: Annotated[int, TASK, ""]
    sealed: Annotated[Digest, DIGEST, "the commitment to its result"]


@dataclass(frozen=True, slots=True)
class Commit:
    """A worker binds itself to results without showing them. No task of it twice."""

    job: Annotated[JobId, DIGEST, "which"]
    shard: Annotated[int, SHARD, "which"]
    items: Annotated[tuple[CommitItem, ...], array(record(CommitItem), 1, _SHARD_ITEMS), "the tasks"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class RevealItem:
    """One task of a reveal: how it ended, and what it left."""

    task: Annotated[int, TASK, ""]
    commit: Annotated[StatementId, DIGEST, "the author's commit that has this task"]
    salt: Annotated[bytes, binary(16), "that of the commitment"]
    outcome: Annotated[RunOutcome, choice(*types.OUTCOMES), "how the task ended"]
    exit: Annotated[int, integer(-(2**31), 2**31 - 1), "its exit status"]
    outputs: Annotated[tuple[File, ...], array(FILE, 0, limits.OUTPUT_FILES_MAX), "by path; none unless ok"]
    resumed: Annotated[StatementId | None, optional(DIGEST), "the checkpoint that it went on from"]
    usage: Annotated[Usage, record(Usage), "what it used"]
    reason: Annotated[str, text(limits.REASON_MAX), "why it ended so, in words; not compared"]
    log: Annotated[str, text(limits.LOG_TAIL_MAX), "head and tail of what it printed; not compared"]


@dataclass(frozen=True, slots=True)
class Reveal:
    """A worker shows the results that it committed to. To the seats of the shard only."""

    job: Annotated[JobId, DIGEST, "which"]
    shard: Annotated[int, SHARD, "which"]
    executor: Annotated[ExecutorName, choice("wasm", "docker"), "what ran them"]
    version: Annotated[str, SHORT, "of the executor"]
    hardware: Annotated[str, SHORT, "<os>-<arch>, and the CPU or GPU model"]
    items: Annotated[tuple[RevealItem, ...], array(record(RevealItem), 1, _SHARD_ITEMS), "the tasks"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a worker has kept so far of a task that it still runs: another may go on from there."""

    job: Annotated[JobId, DIGEST, "which"]
    task: Annotated[int, TASK, "which"]
    seq: Annotated[int, U32, "rises with each of the author's for the task: the largest wins"]
    progress: Annotated[int, integer(0, 1000), "in thousandths"]
    files: Annotated[tuple[File, ...], array(FILE, 1, limits.CHECKPOINT_FILES_MAX), "what lies in /checkpoint"]
    resumed: Annotated[StatementId | None, optional(DIGEST), "the checkpoint that it went on from itself"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Settlement:
    """The submitter, or its delegate, has collected and checked the job. Only this is final."""

    job: Annotated[JobId, DIGEST, "which"]
    settled: Annotated[int, U32, "tasks with an accepted result"]
    failed: Annotated[int, U32, "tasks that have failed"]
    evidence: Annotated[Digest, DIGEST, "what the certificate holds beside it (section 8)"]
    ratified: Annotated[
        tuple[StatementId, ...], array(DIGEST, 0, 256), "successions of caretakers whose work the author accepts"
    ] = ()
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Fault:
    """Proof that a peer signed two things of which it may sign one. Anyone may sign it."""

    job: Annotated[JobId, DIGEST, "which"]
    peer: Annotated[PeerId, PEER, "who did it"]
    first: Annotated[bytes, binary(1, limits.ENVELOPE_BYTES_MAX // 3), "the envelope of one"]
    second: Annotated[bytes, binary(1, limits.ENVELOPE_BYTES_MAX // 3), "and of the other"]
    ext: Extensions = ()


# --- cosigned ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Succession:
    """Who holds the seats of a shard from this epoch on."""

    job: Annotated[JobId, DIGEST, "which"]
    shard: Annotated[int, SHARD, "which"]
    epoch: Annotated[int, integer(1, 2**31 - 1), "one more than the one that it follows"]
    holders: Annotated[tuple[PeerId, ...], array(PEER, 1, limits.SEATS), "members of the panel, each once"]
    authority: Annotated[Authority, choice(*AUTHORITIES), "by whose signatures"]
    previous: Annotated[StatementId, DIGEST, "the succession that it follows; the job's id when there was none"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Renewal:
    """Members that leave a panel, and those that come in their place."""

    job: Annotated[JobId, DIGEST, "which"]
    epoch: Annotated[int, integer(1, 2**31 - 1), "one more than the one that it follows"]
    removed: Annotated[tuple[PeerId, ...], array(PEER, 0, limits.PANEL_MAX), "at most a third, by the panel's word"]
    added: Annotated[
        tuple[bytes, ...], array(binary(1, limits.OFFER_BYTES_MAX), 0, limits.PANEL_MAX), "envelopes of offers"
    ]
    authority: Annotated[Authority, choice(*AUTHORITIES), "submitter or panel"]
    previous: Annotated[StatementId, DIGEST, "the renewal that it follows; the job's id when there was none"]
    away: Annotated[
        int,
        integer(0, limits.MEMBER_GONE_MS),
        "ms for which a member must have been unseen to leave, by the panel's rule; 0 by the submitter's word",
    ] = 0
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Admission:
    """Workers that the gate's seats saw on links of their own, and in which operator groups."""

    job: Annotated[JobId, DIGEST, "which"]
    epoch: Annotated[int, _EPOCH, "of the gate"]
    round: Annotated[int, U32, "rises with each"]
    workers: Annotated[
        tuple[tuple[PeerId, Group], ...],
        array(several(PEER, NAME), 1, limits.ADMISSION_MAX),
        "each with its group; sorted by key",
    ]
    commitments: Annotated[
        tuple[tuple[PeerId, Digest], ...],
        array(several(PEER, DIGEST), 1, limits.SEATS),
        "to the values of its beacon: of each seat that may show one; sorted by key",
    ]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Beacon:
    """The chance of a round, which nobody knew when its admission was signed."""

    job: Annotated[JobId, DIGEST, "which"]
    epoch: Annotated[int, _EPOCH, "of the gate"]
    round: Annotated[int, U32, "that of the admission"]
    admission: Annotated[StatementId, DIGEST, "which"]
    values: Annotated[
        tuple[tuple[PeerId, bytes], ...],
        array(several(PEER, binary(32)), 1, limits.SEATS),
        "what each seat showed; sorted by key",
    ]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class FreezeItem:
    """The commits of one task that are judged, in the order of the draw."""

    task: Annotated[int, TASK, ""]
    round: Annotated[int, integer(1, limits.ROUNDS_MAX), "1, then one more each time"]
    entries: Annotated[
        tuple[tuple[int, int], ...],
        array(several(U16, U16), 1, limits.REPLICAS_MAX * 4),
        "places in `workers` and in `commits`",
    ]


@dataclass(frozen=True, slots=True)
class Freeze:
    """The commits that seats saw on their workers' own links: these are judged, and no others. It asks for reveals."""

    job: Annotated[JobId, DIGEST, "which"]
    shard: Annotated[int, SHARD, "which"]
    epoch: Annotated[int, _EPOCH, "of the shard"]
    workers: Annotated[
        tuple[tuple[PeerId, Group], ...],
        array(several(PEER, NAME), 1, 1024),
        "each with the group in which it counts; sorted by key",
    ]
    commits: Annotated[tuple[StatementId, ...], array(DIGEST, 1, 1024), "sorted"]
    items: Annotated[tuple[FreezeItem, ...], array(record(FreezeItem), 1, _SHARD_ITEMS), "by task"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class VerdictItem:
    """One task's judgement. Places are those of the freeze's entries."""

    task: Annotated[int, TASK, ""]
    freeze: Annotated[int, U16, "place in `freezes`"]
    outcome: Annotated[Literal["accepted", "failed"], choice("accepted", "failed"), ""]
    representative: Annotated[int, _PLACE, "accepted: the first acceptable result in the order of the draw; else 0"]
    pairs: Annotated[
        tuple[tuple[int, int], ...], array(several(_PLACE, _PLACE), 0, 512), "which results agree: i < j, sorted"
    ]
    missing: Annotated[tuple[int, ...], array(_PLACE, 0, limits.REPLICAS_MAX * 4), "results that were withheld"]
    reason: Annotated[str, text(limits.REASON_MAX), "failed: why, in words"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The seats' judgement on some tasks: workers are done with them. Provisional until the settlement."""

    job: Annotated[JobId, DIGEST, "which"]
    shard: Annotated[int, SHARD, "which"]
    epoch: Annotated[int, _EPOCH, "of the shard"]
    freezes: Annotated[tuple[StatementId, ...], array(DIGEST, 1, _SHARD_ITEMS), "what it judges; sorted"]
    items: Annotated[tuple[VerdictItem, ...], array(record(VerdictItem), 1, _SHARD_ITEMS), "by task"]
    ext: Extensions = ()


@dataclass(frozen=True, slots=True)
class Adoption:
    """What the present seats take over from earlier epochs: nothing else of those counts."""

    job: Annotated[JobId, DIGEST, "which"]
    shard: Annotated[int, SHARD, "which"]
    epoch: Annotated[int, integer(1, 2**31 - 1), "the present one"]
    statements: Annotated[tuple[StatementId, ...], array(DIGEST, 1, 1024), "admissions, freezes, verdicts; sorted"]
    ext: Extensions = ()


Body: TypeAlias = (
    Profile
    | Offer
    | JobSpec
    | Cancel
    | Placed
    | Commit
    | Reveal
    | Checkpoint
    | Settlement
    | Fault
    | Succession
    | Renewal
    | Admission
    | Beacon
    | Freeze
    | Verdict
    | Adoption
)
