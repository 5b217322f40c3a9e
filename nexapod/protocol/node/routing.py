"""Messages and statements to the machine that they concern.

A statement is looked at in the order of what looking costs: its frame, whether it matters here, its signatures (at the
expense of the link that it came on), its body. Whoever speaks of a job that is not here is told so.
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.node.admission import RECONCILE_COST_MILLI, SHARD_COST_MILLI, SIGNATURE_COST_MILLI, Ledger
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs, Known
from nexapod.protocol.node.learning import Learning
from nexapod.protocol.node.lifecycle import Lifecycle
from nexapod.protocol.node.relevance import (
    CLOSING,
    OF_JOBS,
    OF_PEERS,
    OF_TASKS,
    is_contained,
    job_named,
    place_named,
)
from nexapod.protocol.node.sampling import Sampling, author_of
from nexapod.protocol.node.sync import Sync
from nexapod.protocol.primitives import JobId, PeerId, StatementId, peer_id_of_key
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.messages import (
    Alive,
    Announce,
    AskLog,
    Bid,
    Claim,
    Collect,
    Decided,
    Deliver,
    Gone,
    Grant,
    Hello,
    Inspect,
    Lease,
    Message,
    Object,
    Probe,
    Ready,
    Reconcile,
    Refused,
    Release,
    Renew,
    Sample,
    Status,
    TaskLog,
    Value,
    View,
    Want,
)
from nexapod.protocol.wire.statements import Statement, Unverified, keep_signers

ToStewardship: TypeAlias = (
    Bid | Claim | Lease | Release | Renew | Collect | Inspect | Object | Value | Reconcile | Refused
)


class Routing:
    """Raises PeerError out of `on_message` when a peer has broken a rule; node.py holds it against it."""

    def __init__(
        self,
        ctx: Context,
        ledger: Ledger,
        jobs: Jobs,
        hosting: Hosting,
        lifecycle: Lifecycle,
        learning: Learning,
        sampling: Sampling,
        sync: Sync,
    ) -> None:
        self._ctx = ctx
        self._ledger = ledger
        self._jobs = jobs
        self._hosting = hosting
        self._lifecycle = lifecycle
        self._learning = learning
        self._sampling = sampling
        self._sync = sync

    # --- messages --------------------------------------------------------------------------------------------------
    def on_message(self, peer: PeerId, message: Message, size: int) -> None:
        """`size`: bytes of its frame, which bound its answer."""
        match message:
            case Deliver():
                self._on_deliver(peer, message)
            case Hello():
                self._sampling.on_hello(peer, message)
            case Sample():
                self._sampling.on_sample(peer, message, self._ledger.allowance(peer, size, self._ctx.now))
            case Want():
                self._learning.on_want(peer, message, self._ledger.allowance(peer, size, self._ctx.now))
            case Announce():
                self._on_announce(peer, message)
            case Reconcile():
                self._on_reconcile(peer, message, size)
            case Probe():
                reached = message.about is None or self._ctx.peers.linked(message.about)
                self._ctx.send(peer, Alive(message.nonce, reached))
            case Alive():
                self._on_alive(peer, message)
            case Gone():
                self._learning.on_gone(peer, message)
                self._hosting.worker.on_message(peer, message)
            case Refused():
                self._on_refused(peer, message)
            case Ready() | Decided() | View() | TaskLog():
                self._to_submission(peer, message)
            case Grant():
                known = self._jobs.get(message.job)
                if known is not None and peer in known.state.members():
                    known.engaged = True
                if known is not None:
                    self._follow_seats(peer, known, message.shard, message.epoch)
                self._hosting.worker.on_message(peer, message)
            case Status() | AskLog():
                self._hosting.worker.on_message(peer, message)
            case Bid() | Claim() | Lease() | Release() | Renew() | Collect() | Inspect() | Object() | Value():
                self._to_stewardship(peer, message)
            case _:
                assert_never(message)

    def _on_announce(self, peer: PeerId, message: Announce) -> None:
        self._learning.on_announce(peer, message)
        for card in message.cards:
            stewardship = self._hosting.stewardships.get(card.job)
            if stewardship is not None:
                self._hosting.touch(card.job)
                stewardship.card_seen(card)

    def _on_reconcile(self, peer: PeerId, message: Reconcile, size: int) -> None:
        if not self._ledger.spend(peer, RECONCILE_COST_MILLI, self._ctx.now):
            return
        if message.job is None:
            self._sync.on_reconcile(peer, message, self._ledger.allowance(peer, size, self._ctx.now))
        else:
            self._to_stewardship(peer, message)

    def _on_alive(self, peer: PeerId, message: Alive) -> None:
        """A link is shared by the jobs that have to do with its peer: the one that has asked knows its own number."""
        for job in self._hosting.parties.jobs_of(peer):
            stewardship = self._hosting.stewardships.get(job)
            if stewardship is not None:
                self._hosting.touch(job)
                stewardship.on_message(peer, message)

    def _on_refused(self, peer: PeerId, message: Refused) -> None:
        """It concerns the submitter, and those who would choose the peer for a seat."""
        if message.job in self._hosting.stewardships:
            self._to_stewardship(peer, message)
        if message.job in self._hosting.submissions or message.job not in self._hosting.stewardships:
            self._to_submission(peer, message)

    def _to_submission(self, peer: PeerId, message: Refused | Ready | Decided | View | TaskLog) -> None:
        submission = self._hosting.submissions.get(message.job)
        if submission is None or self._jobs.get(message.job) is None:
            self._learning.tell_gone(peer, message.job)
            return
        self._hosting.touch(message.job)
        submission.on_message(peer, message)

    def _to_stewardship(self, peer: PeerId, message: ToStewardship) -> None:
        assert message.job is not None
        stewardship = self._hosting.stewardships.get(message.job)
        known = self._jobs.get(message.job)
        if known is None:
            self._learning.tell_gone(peer, message.job)
        elif stewardship is not None:
            if not isinstance(message, Bid | Value | Refused) and message.shard >= known.state.spec.shards:
                raise PeerError("no-such-shard")
            self._hosting.parties.spoke(peer, message.job)
            self._hosting.touch(message.job)
            stewardship.on_message(peer, message)

    # --- statements ------------------------------------------------------------------------------------------------
    def _on_deliver(self, peer: PeerId, message: Deliver) -> None:
        try:
            for envelope in message.envelopes:
                self._on_envelope(peer, statements.read(envelope))
        finally:
            self._lifecycle.settle_held()

    def _on_envelope(self, peer: PeerId, unverified: Unverified) -> None:
        kind = unverified.kind
        if kind == "job":
            self._on_job(peer, unverified)
        elif kind in OF_JOBS or kind in OF_TASKS:
            self._on_statement(peer, unverified)
        else:
            # Peers speak of themselves in Hello, and of others in Sample.
            assert kind in OF_PEERS
            raise PeerError("misplaced-statement", f"a {kind} in a Deliver", penalty=1)

    def _on_job(self, peer: PeerId, unverified: Unverified) -> None:
        job, author = JobId(unverified.id), author_of(unverified)
        if self._jobs.has_ended(job):
            self._learning.tell_gone(peer, job)
            return
        if self._jobs.get(job) is not None:
            return
        if not self._jobs.room(author) or not self._ledger.new_job(peer, author, self._ctx.now):
            self._ctx.trace("job_refused", job=job, source=peer, workable=False)
            return
        statement = self.check(peer, unverified)
        if statement is None:
            return
        # Every offer of its panel has a signature of its own, and a member looks at every shard.
        cost = SIGNATURE_COST_MILLI * len(statement.body.panel)
        if any(author_of(statements.read(envelope)) == self._ctx.me for envelope in statement.body.panel):
            cost += SHARD_COST_MILLI * statement.body.shards
        if self._ledger.spend(peer, cost, self._ctx.now):
            self._lifecycle.hold(statement, peer)

    def _on_statement(self, peer: PeerId, unverified: Unverified) -> None:
        job = job_named(unverified)
        if job is None:
            raise PeerError("bad-field", "a statement that names no job")
        known = self._jobs.get(job)
        if known is None:
            if self._jobs.has_ended(job):
                if unverified.kind not in CLOSING:
                    self._learning.tell_gone(peer, job)
            elif peer != self._ctx.me:
                self._learning.want(peer, [StatementId(job)])
        elif unverified.kind in OF_JOBS:
            statement = self._read(peer, unverified, known.state.get(unverified.id))
            if statement is not None:
                self._lifecycle.add(known, statement, peer)
        else:
            self._on_task_statement(peer, known, unverified)

    def _on_task_statement(self, peer: PeerId, known: Known, unverified: Unverified) -> None:
        job = known.state.job
        stewardship, submission = self._hosting.stewardships.get(job), self._hosting.submissions.get(job)
        for_worker = unverified.kind in ("freeze", "verdict")
        if stewardship is None and submission is None and not for_worker:
            return
        statement = self._read(peer, unverified, self._kept(known, unverified))
        if statement is None:
            return
        self._hosting.touch(job)
        if stewardship is not None:
            self._hosting.parties.spoke(peer, job)
            stewardship.on_statement(statement, peer)
        if submission is not None:
            submission.on_statement(statement, peer)
        if for_worker:
            self._follow_seats(peer, known, statement.body.shard, statement.body.epoch)
            self._hosting.worker.on_statement(statement, peer)

    def _follow_seats(self, peer: PeerId, known: Known, shard: int, epoch: int) -> None:
        """A peer speaks of an epoch that is not known here, or as a seat of the present one, which it is not by what is
        known here: it is asked for the successions."""
        state = known.state
        if peer == self._ctx.me or shard >= state.spec.shards:
            return
        seats = state.seats(shard)
        other = epoch == seats.epoch and peer in state.members() and peer not in seats.holders
        if epoch > seats.epoch or other:
            self._learning.want(peer, [StatementId(state.job)])

    def _kept(self, known: Known, unverified: Unverified) -> Statement | None:
        """The statement, if a steward or the submission here has checked and kept it."""
        job, place = known.state.job, place_named(unverified)
        shard = place // limits.SHARD_TASKS if unverified.kind == "checkpoint" else place
        if not 0 <= shard < known.state.spec.shards:
            return None
        stewardship, submission = self._hosting.stewardships.get(job), self._hosting.submissions.get(job)
        steward = None if stewardship is None else stewardship.steward(shard)
        found = None if steward is None else steward.evidence.get(unverified.id)
        if found is None and submission is not None:
            return submission.kept(shard, unverified.id)
        return found

    def _read(self, peer: PeerId, unverified: Unverified, kept: Statement | None) -> Statement | None:
        """The checked statement, with the signatures that came. Of one that is kept they cost nothing again; that it
        came on this link, and with how many, still says something of its sender."""
        if kept is not None and is_contained(unverified, kept):
            if len(unverified.signatures) == len(kept.signatures):
                return kept
            return keep_signers(kept, (peer_id_of_key(key) for key, _ in unverified.signatures))
        return self.check(peer, unverified)

    def check(self, peer: PeerId, unverified: Unverified) -> Statement | None:
        """Check signatures and body at the expense of a link. None: it has nothing left. Raises PeerError."""
        cost = SIGNATURE_COST_MILLI * len(unverified.signatures)
        if not self._ledger.spend(peer, cost, self._ctx.now):
            self._ctx.trace("statement_dropped", peer=peer, kind=unverified.kind)
            return None
        return statements.verified(unverified, self._ctx.verify)
