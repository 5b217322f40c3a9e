"""Everything about one job that is not about one shard's tasks, folded from statements.

Stewards, the submitter and the certificate checker use the same fold. What it says depends on which statements were
offered, not on their order, once each has been offered again after those that it answers. Knows no clock, and nobody's
view of who is alive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.facts.admissions import Admissions
from nexapod.protocol.facts.adoptions import NOTHING, Adoptions
from nexapod.protocol.facts.cosigned import Tenures
from nexapod.protocol.facts.faults import Faults
from nexapod.protocol.facts.panels import Panels
from nexapod.protocol.facts.successions import Successions
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId
from nexapod.protocol.rules.lottery import Lottery
from nexapod.protocol.rules.succession import Seats, quorum
from nexapod.protocol.tables import TableReport, fullest
from nexapod.protocol.types import Group, JobSpec
from nexapod.protocol.wire.bodies import Settlement
from nexapod.protocol.wire.statements import Statement, Verify

GATE = 0
"""The shard whose seats admit workers."""


class JobState:
    """One job: its panel, the seats of its shards, the workers that were admitted, and its end."""

    def __init__(self, statement: Statement, verify: Verify) -> None:
        """Of a decoded `job`. Raises PeerError when its panel is not made of offers to its network."""
        if statement.kind != "job":
            raise PeerError("not-a-job", statement.kind)
        self.statement = statement
        self.job = JobId(statement.id)
        self.spec: JobSpec = statement.body
        self.submitter = statement.author
        self.version = 0
        """Rises with everything that counts anew, or no longer, or could be adopted."""
        self.seats_version = 0
        """Rises when seats, the panel, or what seats have adopted may be others than before."""
        delegate = self.spec.delegate
        self.owners: tuple[PeerId, ...] = (self.submitter,) if delegate is None else (self.submitter, delegate)
        """Who may settle it, and change its seats and panel: the submitter, then its delegate."""
        self._panels = Panels(statement.id, self.spec.network, self.spec.panel, self.owners, verify)
        self._successions = Successions(self.job, self.spec.shards, self._panels, self.owners)
        self._adoptions: dict[int, Adoptions] = {}
        self._admissions = Admissions(self.job, self.spec, self.tenures(GATE))
        self._placed: dict[PeerId, Statement] = {}
        self._faults = Faults(self.job, verify, self._panels.ever)
        self._closing: Statement | None = None
        self._workable: bool | None = None
        """None: something was folded in since it was last asked, which is after every event."""

    # --- the end ---------------------------------------------------------------------------------------------------
    @property
    def closing(self) -> Statement | None:
        """Its settlement; else its cancellation."""
        return self._closing

    @property
    def closed(self) -> bool:
        return self._closing is not None

    # --- the panel -------------------------------------------------------------------------------------------------
    @property
    def panel_epoch(self) -> int:
        return self._panels.epoch

    @property
    def panel_id(self) -> StatementId:
        """Of the renewal that made the present panel; of the job, before any."""
        renewals = self._panels.counting()
        return renewals[-1].id if renewals else self.statement.id

    def members(self) -> tuple[PeerId, ...]:
        """The panel now."""
        return self._panels.members

    @property
    def renewal_away_ms(self) -> int:
        """For how long members had to be unseen to leave, when the panel last renewed itself."""
        said = (one.body.away for one in reversed(self._panels.counting()) if one.body.authority == "panel")
        return next(said, limits.MEMBER_GONE_MS)

    def was_member(self, peer: PeerId) -> bool:
        """Whether a peer is a member of the panel, or has been one."""
        return self._panels.ever(peer)

    def addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Where a member can be dialled, by its newest offer in the panel; nothing for others."""
        return self._panels.addrs(peer)

    def placed(self) -> Mapping[PeerId, Statement]:
        """What members have said that they hold the job."""
        return self._placed

    @property
    def workable(self) -> bool:
        """Whether enough members hold it for others to work on it and pass it on."""
        if self._workable is None:
            holders = sum(1 for peer in self._placed if self._panels.ever(peer))
            wanted = min(limits.WITNESSES, len(self._panels.history[0]), len(self.gate().holders))
            self._workable = holders >= wanted
        return self._workable

    # --- seats -----------------------------------------------------------------------------------------------------
    def seats(self, shard: int) -> Seats:
        """Who holds a shard now."""
        return self._successions.seats(shard)

    def seats_at(self, shard: int, epoch: int) -> Seats | None:
        """Who held a shard in an epoch; None: there has been none such."""
        return self._successions.at(shard, epoch)

    @property
    def reseated(self) -> bool:
        """Whether the seats of any shard may be others than those that the job itself names."""
        return self.panel_epoch > 0 or self._successions.any

    def gate(self) -> Seats:
        """Who admits workers now."""
        return self.seats(GATE)

    def rivals(self, succession: Statement) -> list[Statement]:
        """Other successions of its shard to its epoch that are here."""
        return self._successions.rivals(succession)

    def overruled(self, shard: int) -> list[Statement]:
        """Successions by caretakers of a shard whose seats, or panel, were there after all."""
        return self._successions.overruled(shard)

    def caretakers(self) -> list[Statement]:
        """The successions by caretakers that the present seats of any shard rest on: the settlement ratifies them."""
        return [s for s in self._successions.counting() if s.body.authority == "caretaker"]

    def adopted(self, shard: int) -> frozenset[StatementId]:
        """What the present seats of a shard have taken over from earlier epochs."""
        adoptions = self._adoptions.get(shard)
        return NOTHING if adoptions is None else adoptions.now()

    def adopted_last(self, shard: int) -> tuple[int, frozenset[StatementId]]:
        """The last epoch before the present one that adopted anything, and what; (0, nothing) when none did."""
        adoptions = self._adoptions.get(shard)
        return (0, NOTHING) if adoptions is None else adoptions.last()

    def tenures(self, shard: int) -> Tenures:
        """What tells which statements of a shard's seats count."""
        now = partial(self._successions.seats, shard)
        return Tenures(now, partial(self._successions.at, shard), partial(self.adopted, shard), self._panels.ever)

    def counts(self, statement: Statement) -> bool:
        """Whether a cosigned statement counts: what seats sign, with a quorum of the present ones or adopted."""
        match statement.kind:
            case "renewal":
                return self._panels.counts(statement.id)
            case "succession":
                return self._successions.counts(statement)
            case "admission" | "beacon":
                return self._admissions.counts(statement)
            case "adoption" | "freeze" | "verdict":
                shard: int = statement.body.shard
                seats = self.seats(shard)
                signed = statement.body.epoch == seats.epoch and seats.signed_by_quorum(statement.signers)
                return signed or (statement.kind != "adoption" and statement.id in self.adopted(shard))
            case _:
                return True

    # --- workers ---------------------------------------------------------------------------------------------------
    def admissions(self) -> list[tuple[Statement, Statement]]:
        """The rounds of admission that count, (admission, beacon), by epoch and number."""
        return self._admissions.rounds()

    @property
    def lottery(self) -> Lottery:
        """The draw among the workers admitted. Another object when a round has ceased to count: do not keep it."""
        return self._admissions.lottery

    def group(self, worker: PeerId) -> Group | None:
        """The group in which a worker is admitted; None: it is not."""
        return self._admissions.lottery.group(worker)

    def groups_seen(self, worker: PeerId) -> tuple[Group, ...]:
        """The groups in which any epoch's gate has admitted a worker, whether that still counts or not: sorted."""
        return self._admissions.groups_seen(worker)

    def values(self, group: Group) -> tuple[Digest, ...]:
        """The values of all rounds, of any epoch, that admitted a worker of this group."""
        return self._admissions.values(group)

    def adoptable_admissions(self) -> list[StatementId]:
        """Admissions and beacons that the present gate's adoption should name, if its signers find them valid."""
        return self._admissions.adoptable(*self.adopted_last(GATE))

    def faults(self) -> Mapping[PeerId, Statement]:
        """Who is proven to have signed two things of which it may sign one, and the proof."""
        return self._faults.proofs

    def tables(self) -> Iterator[TableReport]:
        """How full its bounded tables are; of what there is for each shard, the fullest."""
        yield from self._panels.tables()
        yield from self._successions.tables()
        yield from self._admissions.tables()
        yield from self._admissions.lottery.tables()
        yield from self._faults.tables()
        yield from fullest(adoptions.tables() for adoptions in self._adoptions.values())

    # --- the fold --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> Added:
        """Fold a statement of the job itself in. Raises PeerError when it cannot be true of this job."""
        if statement.kind == "job":
            return self._same(statement)
        if getattr(statement.body, "job", None) != self.job:
            raise PeerError("other-job", statement.kind)
        self._workable = None
        added = self._add(statement)
        # What the gate's seats of an earlier epoch signed does not count, but there is something to adopt.
        founded = added == "proposal" and self._admissions.is_founded(statement.id)
        self.version += added == "new" or founded
        self.seats_version += added == "new" and statement.kind in ("renewal", "succession", "adoption")
        return added

    def _same(self, statement: Statement) -> Added:
        if statement.id != self.statement.id:
            raise PeerError("other-job", statement.kind)
        return "known"

    def _add(self, statement: Statement) -> Added:
        match statement.kind:
            case "renewal":
                return self._add_renewal(statement)
            case "succession":
                return self._seats_changed(statement, self._successions.add(statement))
            case "adoption":
                return self._add_adoption(statement)
            case "admission" | "beacon":
                return self._admissions.add(statement)
            case "placed":
                return self._add_placed(statement)
            case "fault":
                return self._faults.add(statement, self._is_concerned(statement.body.peer))
            case "cancel" | "settlement":
                return self._add_closing(statement)
            case _:
                raise PeerError("not-of-a-job", statement.kind)

    def _add_renewal(self, statement: Statement) -> Added:
        added = self._panels.add(statement)
        if added == "new" and self._successions.panel_changed():
            self._review()
        return added

    def _seats_changed(self, statement: Statement, added: Added) -> Added:
        if added == "new":
            self._review_shard(statement.body.shard)
        return added

    def _review(self) -> None:
        """Seats of several shards may have changed."""
        for shard in sorted(self._adoptions.keys() | {GATE}):
            self._review_shard(shard)

    def _review_shard(self, shard: int) -> None:
        adoptions = self._adoptions.get(shard)
        if adoptions is not None:
            adoptions.review()
        if shard == GATE:
            self._admissions.review()

    def _add_adoption(self, statement: Statement) -> Added:
        shard: int = statement.body.shard
        if shard >= self.spec.shards:
            raise PeerError("no-such-shard", "the job has no such shard")
        adoptions = self._adoptions.get(shard) or Adoptions(self.tenures(shard))
        added = adoptions.add(statement)
        if added in ("new", "proposal"):
            self._adoptions[shard] = adoptions
        if added == "new" and shard == GATE:
            self._admissions.review()
        return added

    def _add_placed(self, statement: Statement) -> Added:
        if not self._panels.ever(statement.author):
            return "orphan"
        old = self._placed.get(statement.author)
        # A member that says it twice in different words: everywhere the same one stands.
        if old is not None and old.id <= statement.id:
            return "known"
        self._placed[statement.author] = statement
        return "new"

    def _is_concerned(self, peer: PeerId) -> bool:
        return self._panels.ever(peer) or bool(self._admissions.groups_seen(peer))

    def _is_party(self, peer: PeerId) -> bool:
        return self._panels.ever(peer) or self.group(peer) is not None

    def _add_closing(self, statement: Statement) -> Added:
        self._check_closing(statement)
        if self._closing is not None and self._closing_rank(self._closing) <= self._closing_rank(statement):
            return "known"
        self._closing = statement
        return "new"

    def _check_closing(self, statement: Statement) -> None:
        allowed = self.owners if statement.kind == "settlement" else (self.submitter,)
        if statement.author not in allowed:
            raise PeerError("not-the-submitter", f"it may not end this job by a {statement.kind}", penalty=50)
        if isinstance(statement.body, Settlement):
            settlement = statement.body
            if settlement.settled + settlement.failed != self.spec.tasks:
                raise PeerError("bad-settlement", "it does not account for every task")

    def _closing_rank(self, statement: Statement) -> tuple[bool, bool, StatementId]:
        return statement.kind != "settlement", statement.author != self.submitter, statement.id

    # --- what is here ----------------------------------------------------------------------------------------------
    def get(self, id: StatementId) -> Statement | None:
        """A statement that is here, proposals with their signatures so far included."""
        if id == self.statement.id:
            return self.statement
        adoptions = (table.get(id) for table in self._adoptions.values())
        return (
            self._panels.get(id)
            or self._successions.get(id)
            or self._admissions.get(id)
            or next((statement for statement in adoptions if statement is not None), None)
            or self._faults.get(id)
            or next((statement for statement in self._authored() if statement.id == id), None)
        )

    def _authored(self) -> list[Statement]:
        placed = [self._placed[peer] for peer in sorted(self._placed)]
        return [*placed, *([] if self._closing is None else [self._closing])]

    def about(self, shard: int) -> list[Statement]:
        """What all seats of a shard should know of the job, in an order in which `add` takes it: who they are and what
        they have adopted; the gate's also whom it has admitted, and what of that it may adopt."""
        adoptions = self._adoptions.get(shard)
        found = [*self._panels.counting(), *self._successions.chain(shard), *self._successions.overruled(shard)]
        found += [] if adoptions is None else adoptions.counting()
        if shard == GATE:
            adoptable = [self._admissions.get(id) for id in self.adoptable_admissions()]
            rounds = [one for pair in self.admissions() for one in pair]
            known = {one.id: one for one in (*adoptable, *rounds) if one is not None}
            found += sorted(known.values(), key=lambda one: (one.kind, one.id))
            found += [self._faults.proofs[peer] for peer in sorted(self._faults.proofs) if self._is_party(peer)]
        return found

    def statements(self) -> list[Statement]:
        """All that counts, in an order in which `add` takes it; the job first, its end last."""
        placed = [self._placed[peer] for peer in sorted(self._placed)]
        adoptions = [one for shard in sorted(self._adoptions) for one in self._adoptions[shard].counting()]
        rounds = self.admissions()
        return [
            self.statement,
            *self._panels.counting(),
            *placed,
            *self._successions.counting(),
            *self._successions.overruling(),
            *adoptions,
            *(admission for admission, _ in rounds),
            *(beacon for _, beacon in rounds),
            *(self._faults.proofs[peer] for peer in sorted(self._faults.proofs) if self._is_party(peer)),
            *([] if self._closing is None else [self._closing]),
        ]


def panel_quorum(job: JobState) -> int:
    """How many of the present members are a majority."""
    return quorum(len(job.members()))
