"""Certificates with one thing wrong, which nobody may take for good: the world has everybody's keys, so each is signed
as well as can be, by the submitter and a quorum of lying seats if need be.

A settlement signs for the ids of all statements. So every tampered file but those that are to be caught by just that is
settled anew, and what refuses it must be the rule that it breaks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nexapod.protocol.certificate.check import check_bytes
from nexapod.protocol.certificate.report import Pins, Report
from nexapod.protocol.primitives import Digest, PeerId, StatementId
from nexapod.protocol.wire import bodies, statements
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify
from nexapod.sim.rng import Rng
from nexapod.sim.truth import right_outcome

if TYPE_CHECKING:
    from nexapod.sim.world import Job, World

MAGIC: Final = b"NEXAPOD-CERTIFICATE-3\n"
TRIED_MAX: Final = 12
"""Of the tampered ones, in one world."""
_JOB_LEVEL: Final = ("job", "placed", "renewal", "succession", "admission", "beacon", "adoption", "fault")
_SHARD_LEVEL: Final = ("freeze", "commit", "checkpoint", "reveal", "verdict")
Part = list[Statement]
Tampered = tuple[str, bytes]
"""What is wrong with it, and its bytes."""


class File:
    """A certificate, as the text says that it is made: the statements in their order, the settlement last."""

    def __init__(self, world: World, job: Job, data: bytes) -> None:
        self._world = world
        self.job = job
        self.statements = [statements.decode(envelope, verify) for envelope in _envelopes(data)]
        self.parts, self.settlement = self.statements[:-1], self.statements[-1]

    def of(self, kind: str) -> Part:
        return [statement for statement in self.parts if statement.kind == kind]

    def without(self, *gone: Statement) -> Part:
        return [statement for statement in self.parts if statement not in gone]

    def with_other(self, one: Statement, other: Statement) -> Part:
        return [other if statement is one else statement for statement in self.parts]

    def settled(self, parts: Sequence[Statement], **changed: Any) -> bytes:
        """With a settlement that signs for these statements, whatever they are."""
        body: bodies.Settlement = self.settlement.body
        body = replace(body, **{"evidence": self.digest(parts), **changed})
        return written([*parts, statements.make(body, self.signer(self.settlement.author))])

    def digest(self, parts: Sequence[Statement]) -> Digest:
        whole = [hashed(s.id for s in parts if s.kind in _JOB_LEVEL)]
        for shard in range(self.job.draft.shards):
            tasks = self.job.draft.shard_tasks(shard)
            own = (s for s in parts if s.kind in _SHARD_LEVEL and _is_of(s, shard, tasks))
            whole.append(hashed(s.id for s in own))
        return Digest(hashlib.sha256(b"".join(whole)).digest())

    def signer(self, peer: PeerId) -> HashSigner:
        return self._world.by_peer[peer].signer

    def signed(self, statement: Statement, body: Any) -> Statement:
        """Another body, signed by all who have signed the statement."""
        first, *others = [self.signer(peer) for peer in statement.signers]
        made = statements.make(body, first)
        for other in others:
            made = statements.cosign(made, other)
        return made

    def outsiders(self) -> list[HashSigner]:
        """Machines that are neither the submitter nor members of the panel."""
        inside = (*self.job.panel, self.settlement.author)
        return [machine.signer for machine in self._world.machines if machine.peer not in inside]


def check(world: World, job: Job, certificate: bytes) -> Iterator[str]:
    """What a check of this certificate, or of what can be made of it, says wrongly."""
    file = File(world, job, certificate)
    yield from _report(world, file, check_bytes(certificate, verify))
    if file.digest(file.parts) != file.settlement.body.evidence or written(file.statements) != certificate:
        yield "it is not written as the text says"
    found = [tampered for family in FAMILIES for tampered in family(file)]
    rng = Rng(world.plan.seed).fork("tampering")
    for what, data in rng.shuffled(found)[:TRIED_MAX]:
        if check_bytes(data, verify).ok:
            yield f"it holds although {what}"
    yield from _pinned(file, certificate)


# --- what it says ----------------------------------------------------------------------------------------------------
def _report(world: World, file: File, report: Report) -> Iterator[str]:
    spec = file.job.draft
    right = [right_outcome(spec, task) for task in range(spec.tasks)]
    if (report.accepted, report.failed) != (right.count("accepted"), right.count("failed")):
        yield f"it counts {report.accepted} and {report.failed} tasks"
    frozen: dict[PeerId, str] = {}
    for verdict in file.of("verdict"):
        for item in verdict.body.items:
            freeze = next(s for s in file.of("freeze") if s.id == verdict.body.freezes[item.freeze])
            entries = next(one.entries for one in freeze.body.items if one.task == item.task)
            frozen.update(freeze.body.workers[worker] for worker, _ in entries)
    if (report.workers, report.groups) != (len(frozen), len(set(frozen.values()))):
        yield f"it counts {report.workers} workers in {report.groups} groups, of {len(frozen)}"
    if report.statements != len(file.statements) or report.submitter != file.settlement.author:
        yield "it tells of other statements, or of another submitter"
    if sum(count for _, count in report.executors) != report.used.results:
        yield "it counts results that ran nowhere"


def _pinned(file: File, certificate: bytes) -> Iterator[str]:
    """Whoever names the submitter, or peers that he knows, is told when it rests on others."""
    submitter = file.settlement.author
    seats = tuple(sorted({signer for verdict in file.of("verdict") for signer in verdict.signers}))
    stranger = file.outsiders()[0].peer if file.outsiders() else None
    cases = (
        (Pins(submitter), True),
        (Pins(submitter, seats, True), True),
        (Pins(stranger), stranger is None),
        (Pins(None, seats, True), False),
        (Pins(submitter, (), True), False),
    )
    for pins, good in cases:
        if check_bytes(certificate, verify, pins).ok != good:
            yield f"it is {'refused' if good else 'fine'} for {pins}"


# --- what is wrong: statements left out, or with a signature too few -------------------------------------------------
def _left_out(file: File) -> Iterator[Tampered]:
    counted = [reveal for reveal in file.of("reveal") if _is_counted(file, reveal)]
    for kind in ("admission", "beacon", "freeze", "verdict", "reveal", "commit"):
        found = file.of(kind)
        if kind == "reveal":
            found = counted
        if kind == "commit":
            opened = {item.commit for reveal in counted for item in reveal.body.items}
            found = [statement for statement in found if statement.id in opened]
        if found:
            yield f"a {kind} is left out", file.settled(file.without(found[-1]))
    yield "nobody has said that it is placed", file.settled(file.without(*file.of("placed")))
    yield "there is no settlement", written(file.parts)
    yield (
        "a statement is left out that the settlement signs for",
        written([*file.without(file.of("reveal")[-1]), file.settlement] if file.of("reveal") else file.parts),
    )


def _is_counted(file: File, reveal: Statement) -> bool:
    """Whether an acceptance rests on it."""
    commits = {item.commit for item in reveal.body.items}
    for verdict in file.of("verdict"):
        for item in verdict.body.items:
            freeze = next(s for s in file.of("freeze") if s.id == verdict.body.freezes[item.freeze])
            entries = next(one.entries for one in freeze.body.items if one.task == item.task)
            counted = {item.representative, *(place for pair in item.pairs for place in pair)}
            named = [freeze.body.commits[entries[place][1]] for place in counted if place < len(entries)]
            if item.outcome == "accepted" and not commits.isdisjoint(named):
                return True
    return False


def _unsigned(file: File) -> Iterator[Tampered]:
    for kind in ("freeze", "verdict", "admission", "beacon"):
        for statement in file.of(kind)[-1:]:
            if len(statement.signers) > 1 and not file.of("adoption"):
                fewer = statements.keep_signers(statement, statement.signers[1:][: len(file.job.panel) // 2])
                fewer = statements.keep_signers(fewer, fewer.signers[:1])
                yield f"a {kind} has too few signatures", file.settled(file.with_other(statement, fewer))


# --- what is wrong: things that lying seats, or workers, have signed --------------------------------------------------
def _misjudged(file: File) -> Iterator[Tampered]:
    for verdict in file.of("verdict")[-1:]:
        for what, change in _LIES:
            if change is _unsupported and file.job.draft.validate.agree == 1:
                # One result is enough: it needs nobody's agreement.
                continue
            body: bodies.Verdict = verdict.body
            changed = tuple(change(item) for item in body.items)
            if changed != body.items:
                other = file.signed(verdict, replace(body, items=changed))
                settled, failed = _counts(file, verdict, other)
                yield what, file.settled(file.with_other(verdict, other), settled=settled, failed=failed)


def _counts(file: File, verdict: Statement, other: Statement) -> tuple[int, int]:
    """As the settlement of a submitter that believes the other verdict would have them."""
    body: bodies.Settlement = file.settlement.body
    more = sum(item.outcome == "failed" for item in other.body.items)
    fewer = sum(item.outcome == "failed" for item in verdict.body.items)
    return body.settled - more + fewer, body.failed + more - fewer


def _turned(item: bodies.VerdictItem) -> bodies.VerdictItem:
    if item.outcome == "failed":
        return replace(item, outcome="accepted", representative=0, pairs=((0, 1),), reason="")
    return replace(item, outcome="failed", representative=0, reason="we say so")


def _unsupported(item: bodies.VerdictItem) -> bodies.VerdictItem:
    return replace(item, pairs=()) if item.pairs and item.outcome == "accepted" else item


def _second(item: bodies.VerdictItem) -> bodies.VerdictItem:
    own = item.representative
    others = [j for i, j in item.pairs if i == own]
    return replace(item, representative=others[0]) if others else item


def _left_alone(item: bodies.VerdictItem) -> bodies.VerdictItem:
    return replace(item, missing=(item.representative,)) if item.outcome == "accepted" else item


_LIES: Final[tuple[tuple[str, Callable[[bodies.VerdictItem], bodies.VerdictItem]], ...]] = (
    ("a verdict says the opposite", _turned),
    ("a verdict accepts what too few agree with", _unsupported),
    ("a verdict does not choose the first", _second),
    ("a verdict counts what it says is missing", _left_alone),
)


def _refrozen(file: File) -> Iterator[Tampered]:
    """The freeze of a verdict is another, and the verdict is of that one."""
    for verdict in file.of("verdict")[-1:]:
        for freeze in (s for s in file.of("freeze") if s.id == verdict.body.freezes[0]):
            body: bodies.Freeze = freeze.body
            order = tuple(replace(item, entries=item.entries[::-1]) for item in body.items)
            groups = tuple((worker, "elsewhere") for worker, _ in body.workers)
            changes = {"is in another groups' name": replace(body, workers=groups)}
            # A group that two epochs' gates have admitted may stand at either of its tickets.
            if any(len(item.entries) > 1 for item in body.items) and not file.of("succession"):
                changes["is not in the order of the draw"] = replace(body, items=order)
            for what, changed in changes.items():
                other = file.signed(freeze, changed)
                freezes = tuple(sorted(other.id if id == freeze.id else id for id in verdict.body.freezes))
                if len(verdict.body.freezes) > 1:
                    continue
                judged = file.signed(verdict, replace(verdict.body, freezes=freezes))
                parts = [judged if s is verdict else other if s is freeze else s for s in file.parts]
                yield f"a freeze {what}", file.settled(parts)


def _falsified(file: File) -> Iterator[Tampered]:
    for reveal in file.of("reveal")[-1:]:
        body: bodies.Reveal = reveal.body
        for what, changed in (("salt", {"salt": bytes(16)}), ("exit", {"exit": 7}), ("commit", {"commit": reveal.id})):
            items = tuple(replace(item, **changed) for item in body.items)
            other = file.signed(reveal, replace(body, items=items))
            yield f"a result's {what} is another", file.settled(file.with_other(reveal, other))
    for admission in file.of("admission")[-1:]:
        others = tuple(pair for pair in admission.body.workers[1:])
        if others:
            other = file.signed(admission, replace(admission.body, workers=others))
            yield "an admission is another", file.settled(file.with_other(admission, other))
    for beacon in file.of("beacon")[-1:]:
        changed = replace(beacon.body, round=beacon.body.round + 1)
        yield "a beacon is of another round", file.settled(file.with_other(beacon, file.signed(beacon, changed)))


def _settlements(file: File) -> Iterator[Tampered]:
    body: bodies.Settlement = file.settlement.body
    author = file.signer(file.settlement.author)
    for what, changed in (
        ("it counts one more accepted task", replace(body, settled=body.settled + 1)),
        ("it counts one more failed task", replace(body, failed=body.failed + 1)),
        ("it signs for other evidence", replace(body, evidence=Digest(bytes(32)))),
    ):
        yield what, written([*file.parts, statements.make(changed, author)])
    if body.ratified:
        changed = replace(body, ratified=())
        yield "caretakers' work is not ratified", written([*file.parts, statements.make(changed, author)])
    for signer in file.outsiders()[:1]:
        yield "a stranger has settled it", written([*file.parts, statements.make(body, signer)])
    yield "the settlement stands twice", written([*file.statements, file.settlement])
    yield "the settlement is not the last", written([file.settlement, *file.parts])


def _strangers(file: File) -> Iterator[Tampered]:
    """Statements that have no place there."""
    job, *parts = file.parts
    commit = file.of("commit")[-1]
    foreign = file.signed(commit, replace(commit.body, job=type(commit.body.job)(bytes(32))))
    yield "a statement is of another job", file.settled([*file.parts, foreign])
    yield "a statement stands twice", file.settled([*file.parts, commit])
    cancel = statements.make(bodies.Cancel(commit.body.job, "no"), file.signer(job.author))
    yield "it is cancelled in it", file.settled([*file.parts, cancel])
    yield "the job is not the first", file.settled([*parts, job])
    placed = file.of("placed")[-1]
    yield "what is about the job follows a shard", file.settled([*file.without(placed), placed])
    for signer in file.outsiders()[:1]:
        body = replace(file.of("admission")[-1].body, round=1 << 20)
        extra = statements.make(body, signer)
        yield "it holds what does not count", file.settled(_before_shards(file, extra))
        fake = statements.make(bodies.Placed(commit.body.job, Digest(bytes(32))), signer)
        yield "a stranger says that it is placed", file.settled(_before_shards(file, fake))
    lonely = statements.make(replace(file.of("admission")[-1].body, epoch=0, round=1 << 20), file.signer(placed.author))
    if len(file.job.panel) > 1:
        yield "it holds what too few have signed", file.settled(_before_shards(file, lonely))
        freeze = file.of("freeze")[-1]
        again = tuple(replace(item, round=item.round + 1) for item in freeze.body.items)
        seat = file.signer(freeze.signers[0])
        unsigned = statements.make(replace(freeze.body, items=again), seat)
        yield "a freeze that too few have signed is among the evidence", file.settled([*file.parts, unsigned])


def _before_shards(file: File, extra: Statement) -> Part:
    level = [statement for statement in file.parts if statement.kind in _JOB_LEVEL]
    return [*level, extra, *file.parts[len(level) :]]


# --- what is wrong: the file -----------------------------------------------------------------------------------------
def _damaged(file: File) -> Iterator[Tampered]:
    data = written(file.statements)
    yield "it has no first line", data[1:]
    yield "its checksum differs", data[:-1] + bytes([data[-1] ^ 1])
    yield "it is cut short", data[:-1]
    yield "it goes on", data + b"x"
    yield "a length is too large", MAGIC + b"\xff\xff\xff\xff" + data[len(MAGIC) + 4 :]
    yield "it is empty", b""
    forged = data.replace(file.settlement.raw[-8:], bytes(8))
    yield "a signature does not hold", forged[:-32] + hashlib.sha256(forged[:-32]).digest()


FAMILIES: Final = (_left_out, _unsigned, _misjudged, _refrozen, _falsified, _settlements, _strangers, _damaged)


def hashed(ids: Iterable[StatementId]) -> bytes:
    return hashlib.sha256(b"".join(sorted(set(ids)))).digest()


def written(parts: Iterable[Statement]) -> bytes:
    framed = b"".join(len(s.envelope).to_bytes(4, "big") + s.envelope for s in parts)
    whole = MAGIC + framed + bytes(4)
    return whole + hashlib.sha256(whole).digest()


def _envelopes(data: bytes) -> Iterator[bytes]:
    at = len(MAGIC)
    while length := int.from_bytes(data[at : at + 4], "big"):
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def _is_of(statement: Statement, shard: int, tasks: range) -> bool:
    if statement.kind == "checkpoint":
        return statement.body.task in tasks
    return bool(statement.body.shard == shard)
