"""Who is proven to have signed two things of which it may sign one (docs/protocol.md, Round, Commit)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.primitives import JobId, PeerId, StatementId
from nexapod.protocol.tables import TableReport
from nexapod.protocol.types import Group
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Commit, Fault, Freeze
from nexapod.protocol.wire.statements import Statement, Verify


class Faults:
    """One proof a peer. Only of peers that this job has to do with: anybody may prove anything of keys of its own."""

    def __init__(self, job: JobId, verify: Verify, is_member: Callable[[PeerId], bool]) -> None:
        self._job = job
        self._verify = verify
        self._is_member = is_member
        self._proofs: dict[PeerId, Statement] = {}

    @property
    def proofs(self) -> Mapping[PeerId, Statement]:
        return self._proofs

    def tables(self) -> tuple[TableReport, ...]:
        return (TableReport("faults", len(self._proofs), limits.FAULTS_MAX),)

    def get(self, id: StatementId) -> Statement | None:
        return next((proof for proof in self._proofs.values() if proof.id == id), None)

    def add(self, statement: Statement, concerned: bool) -> Added:
        """`concerned`: whether the peer is, or was, a member of the panel or an admitted worker."""
        fault: Fault = statement.body
        old = self._proofs.get(fault.peer)
        if old is not None and old.id <= statement.id:
            return "known"
        if not concerned:
            return "orphan"
        if not self._proves(fault):
            raise PeerError("bad-fault", "it proves nothing against this peer", penalty=30)
        self._proofs[fault.peer] = statement
        return "new" if self._bound(fault.peer) and old is None else "known"

    def _bound(self, added: PeerId) -> bool:
        """Members first, then by peer id: whether the one that was added stays."""
        if len(self._proofs) <= limits.FAULTS_MAX:
            return True
        last = max(self._proofs, key=lambda peer: (not self._is_member(peer), peer))
        del self._proofs[last]
        return last != added

    def _proves(self, fault: Fault) -> bool:
        first, second = (statements.decode(envelope, self._verify) for envelope in (fault.first, fault.second))
        jobs = [getattr(statement.body, "job", None) for statement in (first, second)]
        return jobs == [self._job, self._job] and fault.peer in contradictors(first, second)


def contradictors(one: Statement, other: Statement) -> tuple[PeerId, ...]:
    """Who has signed both of two statements of which a peer may sign one; nobody, when they may stand together."""
    if one.kind != other.kind or one.id == other.id:
        return ()
    match one.kind:
        case "commit":
            exclude = _commits_exclude(one.body, other.body)
        case "freeze":
            exclude = _freezes_exclude(one.body, other.body)
        case "admission":
            exclude = (one.body.epoch, one.body.round) == (other.body.epoch, other.body.round)
        case _:
            return ()
    return tuple(peer for peer in one.signers if peer in other.signers) if exclude else ()


def _commits_exclude(one: Commit, other: Commit) -> bool:
    sealed = {item.task: item.sealed for item in one.items}
    return one.job == other.job and any(sealed.get(item.task, item.sealed) != item.sealed for item in other.items)


def _freezes_exclude(one: Freeze, other: Freeze) -> bool:
    if (one.job, one.shard, one.epoch) != (other.job, other.shard, other.epoch):
        return False
    entries = {(item.task, item.round): resolved(one, item.entries) for item in one.items}
    named = {(item.task, item.round): resolved(other, item.entries) for item in other.items}
    return any(entries.get(key, of_other) != of_other for key, of_other in named.items())


def resolved(
    freeze: Freeze, entries: tuple[tuple[int, int], ...]
) -> tuple[tuple[PeerId, Group, StatementId], ...] | None:
    """A freeze's entries as (worker, group, commit); None: a place lies outside its lists."""
    if any(worker >= len(freeze.workers) or commit >= len(freeze.commits) for worker, commit in entries):
        return None
    return tuple((*freeze.workers[worker], freeze.commits[commit]) for worker, commit in entries)
