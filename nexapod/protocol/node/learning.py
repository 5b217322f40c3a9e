"""How jobs go from peer to peer: a card is announced, whoever does not know the job wants it, and gets it with what
makes it workable (docs/protocol.md, Announcing).

A card is believed only as a reason to ask. What is passed on is this node's own card of the job that it has checked; of
the card that came, no more than `seq` and `call` are taken over. Each (job, seq) is passed on once, and only so many of
a job a minute, since nobody signs them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.calling import card_of
from nexapod.protocol.context import Context
from nexapod.protocol.job import JobState
from nexapod.protocol.node.admission import Bucket, Ledger
from nexapod.protocol.node.hosting import Hosting
from nexapod.protocol.node.jobs import Jobs, Known
from nexapod.protocol.node.wanting import Wanting
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId
from nexapod.protocol.tables import TableReport
from nexapod.protocol.wire.messages import Announce, Card, Deliver, Gone, Want, deliveries
from nexapod.protocol.wire.statements import Statement

CARDS_PER_MESSAGE: Final = 64
"""As the schema of Announce has it."""
SEQS_REMEMBERED: Final = 32
"""Announcements of one job that are known to have been passed on."""
_TO_STRANGERS: Final = frozenset(("job", "placed", "renewal", "succession"))
"""What makes a job workable, and says who its seats are; the rest is for its panel."""


class Lately:
    """What was done within the last ASK_AGAIN_MS, of a bounded number of things."""

    def __init__(self) -> None:
        self._when: dict[Hashable, Millis] = {}

    def __len__(self) -> int:
        return len(self._when)

    def first(self, name: Hashable, now: Millis) -> bool:
        """Whether it is the first time lately; from now on it is not."""
        done = self._when.get(name)
        if done is not None and now - done < limits.ASK_AGAIN_MS:
            return False
        self._when.pop(name, None)
        self._when[name] = now
        if len(self._when) > limits.ACCOUNTS_MAX:
            del self._when[next(iter(self._when))]
        return True


@dataclass(slots=True)
class Heard:
    """What was announced of one job. `card`: this node's own, once it has the job."""

    relays: Bucket
    card: Card | None = None
    call: int = 0
    seq: int = 0
    seqs: dict[tuple[int, int], None] = field(default_factory=dict)

    def is_new(self, card: Card) -> bool:
        """Whether an announcement was not heard before; from now on it was. Nobody signs its number, so one that
        somebody has used up does not hide another call."""
        if (card.seq, card.call) in self.seqs:
            return False
        self.seqs[card.seq, card.call] = None
        if len(self.seqs) > SEQS_REMEMBERED:
            del self.seqs[next(iter(self.seqs))]
        return True


class Learning:
    """`lookup(peer, id)`: a statement other than a job that this peer may ask for by its id."""

    def __init__(
        self,
        ctx: Context,
        jobs: Jobs,
        ledger: Ledger,
        hosting: Hosting,
        lookup: Callable[[PeerId, StatementId], Statement | None],
    ) -> None:
        self._ctx = ctx
        self._jobs = jobs
        self._ledger = ledger
        self._hosting = hosting
        self._lookup = lookup
        self._lately = Lately()
        self._heard: dict[JobId, Heard] = {}
        self._wanting = Wanting()

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("jobs wanted", len(self._wanting), limits.CARDS_MAX),
            TableReport("jobs heard of", len(self._heard), limits.JOBS_MAX),
            TableReport("things done lately", len(self._lately), limits.ACCOUNTS_MAX),
        )

    # --- announcements ---------------------------------------------------------------------------------------------
    def on_announce(self, peer: PeerId, message: Announce) -> None:
        unknown: list[StatementId] = []
        for card in message.cards:
            known = self._jobs.get(card.job)
            if self._jobs.has_ended(card.job):
                self.tell_gone(peer, card.job)
            elif known is not None and known.state.workable:
                self._announced(known, card, peer)
            elif self._ledger.relay(peer, self._ctx.now) and self._wanting.announced(card, peer, self._ctx.now):
                unknown.append(StatementId(card.job))
        self.want(peer, unknown)

    @property
    def deadline(self) -> Millis | None:
        return self._wanting.deadline

    def tick(self) -> None:
        """Ask others for what did not come."""
        for peer, job in self._wanting.due(self._ctx.now):
            self.want(peer, [StatementId(job)])

    def _announced(self, known: Known, card: Card, peer: PeerId) -> None:
        """A job that is known and workable is announced again."""
        job, now = known.state.job, self._ctx.now
        heard = self._heard_of(job)
        if not heard.is_new(card):
            return
        # The gate and the submission of this node say it to the node itself, and are no strangers. A call that doubles
        # the last one comes a few times only, and must not be lost in what others make up.
        urgent = card.call >= max(1, 2 * heard.call)
        may_pass = (urgent or heard.relays.spend(1, now)) and self._ledger.relay(peer, now)
        if peer != self._ctx.me and not may_pass:
            self._ctx.trace("announcement_dropped", job=job, peer=peer)
            return
        self._pass_on(known.state, card, peer)
        heard.call, heard.seq = max(heard.call, card.call), max(heard.seq, card.seq)
        self._hosting.worker.job_known(known.state, card.call)

    def _pass_on(self, state: JobState, card: Card, source: PeerId) -> None:
        own = replace(self.card(state), call=card.call, seq=card.seq)
        for peer in self._ctx.peers.some_links(limits.CARD_LINKS_MAX, source):
            self._ctx.send(peer, Announce((own,)))

    def workable(self, known: Known) -> None:
        """A job may be worked on from now on: the card that made this node ask for it is passed on."""
        wanted = self._wanting.came(known.state.job)
        if wanted is None:
            self._hosting.worker.job_known(known.state, self._heard_of(known.state.job).call)
        else:
            self._announced(known, wanted.card, wanted.source)

    def job_over(self, job: JobId) -> None:
        self._heard.pop(job, None)
        self._wanting.forget(job)

    def _heard_of(self, job: JobId) -> Heard:
        heard = self._heard.get(job)
        if heard is None:
            rate = limits.JOB_RELAYS_PER_MINUTE
            heard = self._heard[job] = Heard(Bucket(rate, 60_000, 4 * rate, self._ctx.now))
        return heard

    def card(self, state: JobState) -> Card:
        """This node's own card of a job, with what was last heard of `seq` and `call`."""
        heard = self._heard_of(state.job)
        if heard.card is None:
            heard.card = card_of(state, 0, 0)
        return replace(heard.card, gate=state.gate().holders, call=heard.call, seq=heard.seq)

    def announce_to(self, peer: PeerId, jobs: Iterable[JobId]) -> None:
        """Tell one peer of open jobs that it does not know."""
        found = (self._jobs.get(job) for job in jobs)
        cards = (self.card(known.state) for known in found if known is not None and known.state.workable)
        told = tuple(islice(cards, CARDS_PER_MESSAGE))
        if told:
            self._ctx.send(peer, Announce(told))

    # --- asking ----------------------------------------------------------------------------------------------------
    def want(self, peer: PeerId, ids: Iterable[StatementId]) -> None:
        """Ask a peer for jobs, unless this node has asked it lately."""
        asked = [id for id in ids if self._lately.first(("want", peer, id), self._ctx.now)]
        if asked:
            self._ctx.send(peer, Want(tuple(asked[: limits.MESSAGE_STATEMENTS_MAX])))

    # --- answering -------------------------------------------------------------------------------------------------
    def on_want(self, peer: PeerId, message: Want, allowance: int) -> None:
        """Jobs, each once in a while to one peer, as far as the answer may go; at least the first of them."""
        answer: list[bytes] = []
        for id in dict.fromkeys(message.ids):
            found = [statement.envelope for statement in self._wanted(peer, id)]
            allowance -= sum(map(len, found))
            if answer and allowance < 0:
                break
            answer += found
        for delivery in deliveries(answer):
            self._ctx.send(peer, delivery)

    def _wanted(self, peer: PeerId, id: StatementId) -> list[Statement]:
        job = JobId(id)
        known = self._jobs.get(job)
        if known is not None:
            return self._for(peer, known.state) if self._lately.first(("give", peer, job), self._ctx.now) else []
        if self._jobs.has_ended(job):
            self.tell_gone(peer, job)
            return []
        other = self._lookup(peer, id)
        return [] if other is None else [other]

    def _for(self, peer: PeerId, state: JobState) -> list[Statement]:
        counting = state.statements()
        if peer in state.members() or peer in state.owners:
            return counting
        if not state.workable:
            return []
        own = _rounds_of(peer, state)
        return [s for s in counting if s.kind in _TO_STRANGERS or s.id in own or (own and s.kind == "adoption")]

    # --- jobs that are not here ------------------------------------------------------------------------------------
    def tell_gone(self, peer: PeerId, job: JobId) -> None:
        """A peer speaks of a job that has ended, or that is not known here."""
        if peer == self._ctx.me or not self._lately.first(("gone", peer, job), self._ctx.now):
            return
        closing = self._jobs.closing(job)
        if closing:
            self._ctx.send(peer, Deliver((closing,)))
        self._ctx.send(peer, Gone(job, self._jobs.has_ended(job)))

    def on_gone(self, peer: PeerId, message: Gone) -> None:
        """A peer that was spoken to does not know the job, and wants it."""
        known = None if message.known else self._jobs.get(message.job)
        if known is not None and self._lately.first(("give", peer, message.job), self._ctx.now):
            self._ctx.deliver(peer, self._for(peer, known.state))


def _rounds_of(worker: PeerId, state: JobState) -> frozenset[StatementId]:
    """The admissions of a worker, and their beacons: with what seats have adopted they say where it may claim."""
    rounds = state.admissions() if state.groups_seen(worker) else ()
    own = [(admission, beacon) for admission, beacon in rounds if worker in dict(admission.body.workers)]
    return frozenset(statement.id for pair in own for statement in pair)
