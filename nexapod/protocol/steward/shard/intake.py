"""What a statement is to one seat: new, known, too early, contradicted; and what follows from it (docs/protocol.md,
Commit, freeze, reveal).

A worker's own word counts on its own link only. What members hand on is evidence, never a lease or a reason to act.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.evidence import Contradiction
from nexapod.protocol.primitives import PeerId
from nexapod.protocol.steward.shard.checkpoints import Checkpoints
from nexapod.protocol.steward.shard.collecting import Collecting
from nexapod.protocol.steward.shard.granting import Granting
from nexapod.protocol.steward.shard.state import ShardState
from nexapod.protocol.steward.shard.telling import Telling
from nexapod.protocol.steward.shard.voting import Voting
from nexapod.protocol.wire import messages
from nexapod.protocol.wire.bodies import Fault
from nexapod.protocol.wire.messages import Status
from nexapod.protocol.wire.statements import Statement


class Intake:
    """Of one shard. `touch(tasks)`: something new is known of these."""

    def __init__(
        self,
        state: ShardState,
        granting: Granting,
        voting: Voting,
        telling: Telling,
        collecting: Collecting,
        checkpoints: Checkpoints,
        touch: Callable[[Iterable[int]], None],
    ) -> None:
        self._state = state
        self._granting = granting
        self._voting = voting
        self._telling = telling
        self._collecting = collecting
        self._checkpoints = checkpoints
        self._touch = touch

    def take(self, statement: Statement, sender: PeerId) -> None:
        """`sender` is the link that it came on. Raises PeerError when it cannot be true."""
        match statement.kind:
            case "commit":
                self._on_commit(statement, sender)
            case "reveal":
                self._on_reveal(statement, sender)
            case "freeze" | "verdict":
                self._on_cosigned(statement, sender)
            case "adoption":
                self._on_adoption(statement, sender)
            case "checkpoint":
                self._on_checkpoint(statement, sender)
            case _:
                raise PeerError("not-for-a-seat", statement.kind)

    # --- of workers ------------------------------------------------------------------------------------------------
    def _on_commit(self, statement: Statement, sender: PeerId) -> None:
        state, worker = self._state, statement.author
        if sender != worker:
            if self._keeps_evidence(sender) and state.job.groups_seen(worker):
                self._added(statement, state.evidence.add(statement))
            return
        tasks = [item.task for item in statement.body.items if item.task in state.evidence.tasks]
        leased = [task for task in tasks if state.present(worker) is not None and self._granting.regrow(worker, task)]
        if not leased:
            if any(self._is_frozen(task, worker) for task in tasks):
                # Evidence, whoever brings it: a seat that is the worker, too, hands on what the others have judged.
                self._added(statement, state.evidence.add(statement))
            self._answer(worker, tasks)
            return
        for task in tasks:
            was = state.evidence.commit_of(task, worker)
            if task not in leased and (was is None or not was.direct):
                state.unleased[task, worker] = None
        added = state.evidence.add(statement, direct=True)
        if added == "new":
            for task in leased:
                self._granting.committed(task, worker)
        self._added(statement, added)

    def _is_frozen(self, task: int, worker: PeerId) -> bool:
        """Whether a freeze that counts names a result of this worker."""
        frozen = self._state.evidence.frozen(task)
        return frozen is not None and any(entry.worker == worker for entry in frozen.entries)

    def _keeps_evidence(self, peer: PeerId) -> bool:
        """Members hand evidence on; so does the submitter, to seats that came after those that judged."""
        return self._state.job.was_member(peer) or peer in self._state.job.owners

    def _answer(self, worker: PeerId, tasks: Sequence[int], stage: messages.Stage = "running") -> None:
        """How tasks of a worker stand, where it may be in error."""
        answers = [(task, self._granting.standing(worker, task, stage)) for task in dict.fromkeys(tasks)]
        if answers:
            self._telling.prove(worker, answers)
            self._state.ctx.send(worker, Status(self._state.job.job, self._state.shard, tuple(answers)))

    def _on_reveal(self, statement: Statement, sender: PeerId) -> None:
        state, worker = self._state, statement.author
        if sender != worker and not self._keeps_evidence(sender):
            return
        added = state.evidence.add(statement)
        if added == "orphan" and sender == worker:
            tasks = [item.task for item in statement.body.items if item.task in state.evidence.tasks]
            self._answer(worker, tasks, "revealed")
        if added == "new":
            for item in statement.body.items:
                if item.task in state.evidence.tasks:
                    self._granting.ended(item.task, worker)
                    self._note_failure(statement, item.task)
        self._added(statement, added)

    def _note_failure(self, statement: Statement, task: int) -> None:
        reveal = self._state.evidence.reveal_of(task, statement.author)
        commit = self._state.evidence.commit_of(task, statement.author)
        if reveal is not None and commit is not None and reveal.item.outcome != "ok":
            reason = reveal.item.reason or reveal.item.outcome
            self._state.note(task, statement.author, reveal.item.exit, reason)
            self._collecting.failing(commit.statement, statement)

    def _added(self, statement: Statement, added: object) -> None:
        """What follows from a commit or reveal."""
        if isinstance(added, Contradiction):
            self._prove(added)
        elif added == "new":
            self._state.save(statement)
            self._touch(item.task for item in statement.body.items)

    def _prove(self, found: Contradiction) -> None:
        """A worker has signed two results of one task: all who rely on it are to know."""
        worker = found.first.author
        job = self._state.job
        most = limits.ENVELOPE_BYTES_MAX // 3
        if worker in job.faults() or max(len(found.first.envelope), len(found.second.envelope)) > most:
            return
        proof = self._state.ctx.sign(Fault(job.job, worker, found.first.envelope, found.second.envelope))
        self._state.ctx.trace("fault_proven", job=job.job, worker=worker)
        for peer in dict.fromkeys((self._state.ctx.me, *self._state.others, job.submitter)):
            self._state.ctx.deliver(peer, [proof])

    # --- cosigned --------------------------------------------------------------------------------------------------
    def _on_cosigned(self, statement: Statement, sender: PeerId) -> None:
        counted = self._state.job.counts(statement)
        if not counted and sender != self._state.ctx.me and not self._keeps_evidence(sender):
            return
        known = self._state.evidence.get(statement.id)
        self.fold(statement)
        # What is not kept because something that it names is missing is waited for like that itself.
        merged = self._state.evidence.get(statement.id) or statement
        if self._state.job.counts(merged):
            self._answer_late(known, statement, sender)
            return
        if self._is_mine(merged) and not self._is_mine(statement):
            # Sent again: the answer was lost.
            self._state.ctx.deliver(sender, [merged])
        self._voting.merged(merged)
        self._voting.on_proposal(merged, sender)

    def _answer_late(self, known: Statement | None, statement: Statement, sender: PeerId) -> None:
        """A seat still proposes what counts here already: it has missed the signatures."""
        if known is not None and sender in self._state.others and not self._state.job.counts(statement):
            whole = self._state.evidence.get(statement.id)
            if whole is not None:
                self._state.ctx.deliver(sender, [whole])

    def fold(self, statement: Statement) -> None:
        """Add a freeze, verdict or adoption, save it if this seat has signed it, and do what follows if it counts."""
        if statement.kind == "adoption":
            self._fold_adoption(statement)
            return
        known = self._state.evidence.get(statement.id)
        added = self._state.evidence.add(statement)
        if isinstance(added, Contradiction):
            self._prove(added)
            return
        merged = self._state.evidence.get(statement.id)
        if merged is None:
            # A table had no room for what this seat signs: on record all the same.
            merged = statement if self._is_mine(statement) else None
        if merged is not None and (added == "new" or self._is_own_news(merged, known, added)):
            self._state.save(merged)
        if added == "new":
            assert merged is not None
            self.counts(merged)

    def _is_own_news(self, merged: Statement, known: Statement | None, added: object) -> bool:
        """What this seat has signed it must know of after a restart, whether all that it names is here or not."""
        if not self._is_mine(merged):
            return False
        return added == "proposal" or known is None or not self._is_mine(known)

    def _is_mine(self, statement: Statement) -> bool:
        return self._state.ctx.me in statement.signers

    def counts(self, statement: Statement) -> None:
        """A freeze or verdict counts from now on."""
        self._voting.adopting.note(statement)
        mine = self._voting.counted(statement)
        tasks = [item.task for item in statement.body.items if item.task in self._state.evidence.tasks]
        self._telling.counts(statement, mine=mine)
        if statement.kind == "verdict":
            for task in tasks:
                self._decided(task)
        self._state.ctx.trace(f"{statement.kind}_counted", job=self._state.job.job, tasks=tuple(tasks))
        self._touch(tasks)

    def _decided(self, task: int) -> None:
        if self._state.decided(task):
            self._granting.clear(task)
            self._checkpoints.drop(task)
            self._collecting.decided(task)

    def _on_adoption(self, statement: Statement, sender: PeerId) -> None:
        if sender == self._state.ctx.me or sender in self._state.others:
            self._fold_adoption(statement)
            whole = self._voting.adoption(statement.id)
            if whole is not None and not self._state.seats.signed_by_quorum(whole.signers):
                self._voting.on_proposal(whole, sender)

    def _fold_adoption(self, statement: Statement) -> None:
        """Signatures gather here; when there are enough the statement is the job's."""
        seats = self._state.seats
        if statement.body.epoch != seats.epoch or self._state.job.adopted(self._state.shard).issuperset(
            statement.body.statements
        ):
            return
        whole = self._voting.merge_adoption(statement)
        if seats.signed_by_quorum(whole.signers):
            self._voting.counted(whole)
            workers = self._telling.workers(self._state.evidence.tasks)
            for peer in dict.fromkeys((self._state.ctx.me, *self._state.others, self._state.job.submitter, *workers)):
                self._state.ctx.deliver(peer, [whole])

    # --- checkpoints -----------------------------------------------------------------------------------------------
    def _on_checkpoint(self, statement: Statement, sender: PeerId) -> None:
        """A worker has kept something of a task that it holds; or another seat passes that on."""
        state, task, worker = self._state, statement.body.task, statement.author
        if task not in self._state.evidence.tasks or not state.active or state.decided(task):
            return
        if sender != worker and sender in state.others:
            self._keep_checkpoint(statement)
            self._checkpoints.relayed(statement, sender, max(1, state.seats.witnesses - 1))
        elif sender == worker and state.leases[task].of(worker) is not None:
            self._keep_checkpoint(statement)
            self._checkpoints.add(statement)

    def _keep_checkpoint(self, statement: Statement) -> None:
        """Who resumes it says so in its result: then it is evidence, too."""
        self._state.evidence.add(statement)
        self._touch(())
