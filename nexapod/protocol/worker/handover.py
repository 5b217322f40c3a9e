"""Hands results over to the seats of a shard: commit, then, at a freeze that counts, reveal, each until it is answered
(docs/protocol.md, section 5, Commit, freeze, reveal).

What becomes ready within BATCH_MS of the last statement goes into one; after a pause the first goes at once. A result
is shown to the present seats only, and only while a freeze that counts has its commit among those of enough groups:
also a result that was shown to their predecessors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from nexapod.protocol import limits
from nexapod.protocol.context import Context
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import JobId, Millis, PeerId, StatementId, TaskId
from nexapod.protocol.timers import Timers
from nexapod.protocol.types import Profile
from nexapod.protocol.wire import bodies
from nexapod.protocol.wire.statements import Statement
from nexapod.protocol.worker import results
from nexapod.protocol.worker.attempt import Bind, Bound, Committed, Finished, Revealed, Show
from nexapod.protocol.worker.attempts import Attempt, Attempts, Place
from nexapod.protocol.worker.proposals import Proposals
from nexapod.protocol.worker.prospects import Prospect

PARTNER_FACTOR: Final = 2
"""A commit is not said again before others, this many times slower, have had time for theirs: no seat answers it until
then, and on a link that stays up nothing is lost."""


@dataclass(slots=True)
class Letter:
    """A commit or reveal on its way to the seats."""

    statement: Statement
    answered: set[PeerId] = field(default_factory=set)
    """Seats that have it."""
    told: dict[PeerId, Millis] = field(default_factory=dict)
    """When each seat was last given it."""
    retry_ms: Millis = limits.RETRY_MIN_MS
    retry_at: Millis = 0


@dataclass(slots=True)
class Outbox:
    """One shard's results."""

    prospect: Prospect
    shard: int
    freezes: Proposals
    letters: dict[StatementId, Letter] = field(default_factory=dict)
    named: dict[StatementId, dict[int, tuple[StatementId, int]]] = field(default_factory=dict)
    """What `names` says of freezes that are kept."""
    seats: StatementId | None = None
    """The seats that the letters were last sent to."""
    committed_at: Millis | None = None
    revealed_at: Millis | None = None


def names(freeze: bodies.Freeze, me: PeerId) -> dict[int, tuple[StatementId, int]]:
    """Tasks in which a freeze has a commit of this worker: which commit, and how many groups are frozen with it.

    Raises PeerError."""
    found = {}
    for item in freeze.items:
        if item.task // limits.SHARD_TASKS != freeze.shard:
            continue
        try:
            entries = [(freeze.workers[who], freeze.commits[which]) for who, which in item.entries]
        except IndexError:
            raise PeerError("bad-freeze", "an entry names a place that is not there") from None
        groups = len({group for (_, group), _ in entries})
        for (worker, _), commit in entries:
            if worker == me:
                found[item.task] = (commit, groups)
    return found


class Handover:
    """The outboxes of all shards with results."""

    def __init__(self, ctx: Context, prospects: Mapping[JobId, Prospect], attempts: Attempts) -> None:
        self._ctx = ctx
        self._prospects = prospects
        self._attempts = attempts
        self._boxes: dict[Place, Outbox] = {}
        self._timers = Timers()
        """By place: when there is something to say there."""
        self.profile: Profile | None = None
        """What a reveal says that ran its tasks. Nothing is revealed before it is known."""

    @property
    def deadline(self) -> Millis | None:
        return self._timers.next

    def tick(self) -> None:
        while (place := self._timers.pop_due(self._ctx.now)) is not None:
            box = self._boxes.get(place)  # type: ignore[call-overload]
            if box is not None:
                self._flush(box)

    # --- what happens ----------------------------------------------------------------------------------------------
    def ended(self, attempt: Attempt) -> None:
        """An attempt has a result."""
        assert isinstance(attempt.state, Finished)
        self._flush(self._box(attempt.place))

    def restored(self, attempt: Attempt) -> None:
        """A former process had committed to this."""
        assert isinstance(attempt.state, (Committed, Revealed))
        box = self._box(attempt.place)
        box.seats = box.prospect.state.seats(box.shard).id
        for statement in _stated(attempt.state):
            box.letters.setdefault(statement.id, Letter(statement, retry_at=self._ctx.now))
        self._timers.set(attempt.place, self._ctx.now)

    def reopened(self, attempt: Attempt) -> None:
        """What had decided this may be lost. A seat where it is not says so before the commit is said again."""
        assert isinstance(attempt.state, Committed)
        box = self._box(attempt.place)
        self._note_seats(box)
        letter = Letter(attempt.state.commit, retry_at=self._ctx.now + limits.LEADER_MUTE_MS)
        box.letters.setdefault(attempt.state.commit.id, letter)
        self._schedule(box)

    def on_freeze(self, statement: Statement) -> None:
        """A freeze, with some signatures: it may ask for results of this worker. Raises PeerError."""
        body: bodies.Freeze = statement.body
        box = self._boxes.get((body.job, body.shard))
        if box is None or not self._askable(box, statement):
            return
        seats = box.prospect.state.seats(body.shard)
        if not box.prospect.state.counts(statement) and not set(statement.signers).intersection(seats.holders):
            return
        self._note_signers(box, statement)
        if box.freezes.add(statement) is not None:
            self._flush(box)

    def _note_signers(self, box: Outbox, freeze: Statement) -> None:
        """A seat that has signed a freeze has the commits that it names."""
        for commit in dict.fromkeys(commit for commit, _ in self._names(box, freeze).values()):
            if commit in box.letters:
                box.letters[commit].answered.update(freeze.signers)

    def answered(self, attempt: Attempt, seat: PeerId, *, shown: bool) -> None:
        """A seat has what was stated of an attempt; `shown`: its result too, if it was revealed."""
        box = self._boxes.get(attempt.place)
        if box is None or not isinstance(attempt.state, (Committed, Revealed)):
            return
        stated = _stated(attempt.state)
        for statement in stated if shown else stated[:1]:
            if statement.id in box.letters:
                box.letters[statement.id].answered.add(seat)

    def asked(self, attempts: Iterable[Attempt], seat: PeerId) -> None:
        """A seat lacks what was stated of these attempts, all of one shard: it is given that again, though not more
        often than once in RETRY_MIN_MS, since neither side may let that spin."""
        wanted: dict[StatementId, None] = {}
        box = None
        for attempt in attempts:
            box = self._boxes.get(attempt.place)
            if isinstance(attempt.state, (Committed, Revealed)):
                wanted.update((statement.id, None) for statement in _stated(attempt.state))
        if box is not None:
            letters = [box.letters[id_] for id_ in wanted if id_ in box.letters]
            showable = self._showable(box)
            for letter in letters:
                letter.answered.discard(seat)
            self._give(box, seat, [letter for letter in letters if self._may_send(letter, showable)])

    def job_changed(self, job: JobId) -> None:
        """Seats may have changed, or adopted what their predecessors had signed."""
        for place in [place for place in self._boxes if place[0] == job]:
            self._flush(self._boxes[place])

    def decided(self, place: Place) -> None:
        """Attempts of this shard are over: what nobody needs any more is forgotten."""
        box = self._boxes.get(place)
        if box is None:
            return
        left = [a.state for a in self._attempts.at(place) if isinstance(a.state, (Finished, Committed, Revealed))]
        needed = {s.id for state in left if not isinstance(state, Finished) for s in _stated(state)}
        box.letters = {id_: letter for id_, letter in box.letters.items() if id_ in needed}
        # The box itself stays, for its pace: what finishes next may belong to the same burst.
        box.freezes.keep({freeze.id for freeze in box.freezes if self._askable(box, freeze)})
        self._schedule(box)

    def forget_job(self, job: JobId) -> None:
        for place in [place for place in self._boxes if place[0] == job]:
            del self._boxes[place]
            self._timers.set(place, None)

    def profile_changed(self, profile: Profile) -> None:
        self.profile = profile
        for box in list(self._boxes.values()):
            self._flush(box)

    # --- saying it -------------------------------------------------------------------------------------------------
    def _box(self, place: Place) -> Outbox:
        if place not in self._boxes:
            prospect = self._prospects[place[0]]
            self._boxes[place] = Outbox(prospect, place[1], Proposals(prospect.state))
        return self._boxes[place]

    def _flush(self, box: Outbox) -> None:
        """Say whatever is due."""
        self._note_seats(box)
        now = self._ctx.now
        commits = _is_due(box.committed_at, now) and self._has_finished(box)
        if commits or (_is_due(box.revealed_at, now) and self._has_asked(box)):
            # What is due takes along what would be due soon: the same seats are told.
            self._post(box, [*self._commit(box), *self._reveal(box)])
        self._repeat(box)
        self._schedule(box)

    def _note_seats(self, box: Outbox) -> None:
        """To new seats everything is said at once: nothing that their predecessors answered is known to be there."""
        seats = box.prospect.state.seats(box.shard)
        if box.seats == seats.id:
            return
        box.seats = seats.id
        for letter in box.letters.values():
            letter.answered.intersection_update(seats.holders)
            letter.retry_ms, letter.retry_at = limits.RETRY_MIN_MS, self._ctx.now

    def _has_finished(self, box: Outbox) -> bool:
        place = (box.prospect.job, box.shard)
        return any(attempt.place == place for attempt, _ in self._attempts.in_state(Finished))

    def _has_asked(self, box: Outbox) -> bool:
        return self.profile is not None and bool(self._asked(box))

    def _commit(self, box: Outbox) -> list[Letter]:
        place = (box.prospect.job, box.shard)
        finished = [a for a in self._attempts.at(place) if isinstance(a.state, Finished)]
        if not finished:
            return []
        items = tuple(
            results.commit_item(a.task, self._ctx.me, a.state) for a in finished if isinstance(a.state, Finished)
        )
        commit = self._ctx.sign(bodies.Commit(*place, items))
        for attempt in finished:
            self._attempts.move(attempt, Bind(commit))
        self._ctx.trace("tasks_committed", job=place[0], shard=place[1], tasks=[item.task for item in items])
        box.committed_at = self._ctx.now
        return [self._letter(box, commit, limits.RETRY_MIN_MS + PARTNER_FACTOR * box.prospect.expected_ms)]

    def _reveal(self, box: Outbox) -> list[Letter]:
        place = (box.prospect.job, box.shard)
        asked = {attempt.task.index: attempt for attempt in self._asked(box)}
        if not asked or self.profile is None:
            return []
        letters = []
        items = [results.reveal_item(a.task, a.state) for a in asked.values() if isinstance(a.state, Committed)]
        for body in results.reveals(*place, box.prospect.spec, self.profile, items):
            reveal = self._ctx.sign(body)
            for item in body.items:
                self._attempts.move(asked[item.task], Show(reveal))
            self._ctx.trace("results_revealed", job=place[0], shard=place[1], tasks=[i.task for i in body.items])
            letters.append(self._letter(box, reveal, limits.LEADER_MUTE_MS))
        box.revealed_at = self._ctx.now
        return letters

    def _letter(self, box: Outbox, statement: Statement, retry_ms: Millis) -> Letter:
        retry_ms = min(retry_ms, limits.RENEW_MS)
        letter = box.letters[statement.id] = Letter(statement, retry_ms=retry_ms, retry_at=self._ctx.now + retry_ms)
        return letter

    def _post(self, box: Outbox, letters: list[Letter]) -> None:
        for seat in box.prospect.state.seats(box.shard).holders:
            self._give(box, seat, letters)

    def _give(self, box: Outbox, seat: PeerId, letters: Iterable[Letter]) -> None:
        now = self._ctx.now
        due = [letter for letter in letters if _is_quiet(letter, seat, now)]
        for letter in due:
            letter.told[seat] = now
        self._ctx.deliver(seat, [letter.statement for letter in due], box.prospect.state.addrs(seat))

    def _repeat(self, box: Outbox) -> None:
        """Say again what some seat has not answered, ever more rarely."""
        due = [letter for letter in box.letters.values() if letter.retry_at <= self._ctx.now]
        if not due:
            return
        holders, showable = box.prospect.state.seats(box.shard).holders, self._showable(box)
        sendable = [letter for letter in due if self._may_send(letter, showable)]
        for seat in holders:
            self._give(box, seat, [letter for letter in sendable if seat not in letter.answered])
        for letter in due:
            letter.retry_ms = min(2 * letter.retry_ms, limits.RENEW_MS)
            letter.retry_at = self._ctx.now + letter.retry_ms

    def _schedule(self, box: Outbox) -> None:
        place, now = (box.prospect.job, box.shard), self._ctx.now
        holders = box.prospect.state.seats(box.shard).holders
        times = [
            letter.retry_at for letter in box.letters.values() if any(seat not in letter.answered for seat in holders)
        ]
        if self._has_finished(box):
            times.append(_due_at(box.committed_at, now))
        if not _is_due(box.revealed_at, now) and self._has_asked(box):
            times.append(_due_at(box.revealed_at, now))
        self._timers.set(place, min(times, default=None))

    # --- may it be shown? ------------------------------------------------------------------------------------------
    def _askable(self, box: Outbox, statement: Statement) -> bool:
        """Whether a freeze names a commit of this worker that still matters."""
        named = self._names(box, statement)
        held = ((self._attempts.get(TaskId(box.prospect.job, task)), commit) for task, (commit, _) in named.items())
        return any(attempt is not None and _has_commit(attempt.state, commit) for attempt, commit in held)

    def _names(self, box: Outbox, freeze: Statement) -> dict[int, tuple[StatementId, int]]:
        """Of those freezes that are kept it is worked out once."""
        found = box.named.get(freeze.id)
        if found is None:
            found = names(freeze.body, self._ctx.me)
            kept = {id_: named for id_, named in box.named.items() if id_ in box.freezes}
            box.named = kept | ({freeze.id: found} if freeze.id in box.freezes else {})
        return found

    def _showable(self, box: Outbox) -> frozenset[tuple[int, StatementId]]:
        """(task, commit) that freezes which count now ask for, among commits of enough groups."""
        agree = box.prospect.spec.validate.agree
        return frozenset(
            (task, commit)
            for freeze in box.freezes.counting()
            for task, (commit, groups) in self._names(box, freeze).items()
            if groups >= agree
        )

    def _asked(self, box: Outbox) -> list[Attempt]:
        """Attempts whose results are to be shown now, by task."""
        found = []
        for task, commit in sorted(self._showable(box)):
            attempt = self._attempts.get(TaskId(box.prospect.job, task))
            if attempt is not None and isinstance(attempt.state, Committed) and attempt.state.commit.id == commit:
                found.append(attempt)
        return found

    def _may_send(self, letter: Letter, showable: Collection[tuple[int, StatementId]]) -> bool:
        """A commit always; a reveal when each of its results is asked for now, or decided."""
        body = letter.statement.body
        return letter.statement.kind == "commit" or all(
            (item.task, item.commit) in showable or self._attempts.get(TaskId(body.job, item.task)) is None
            for item in body.items
        )


def _stated(state: Bound) -> tuple[Statement, ...]:
    match state:
        case Committed(commit=commit):
            return (commit,)
        case Revealed(commit=commit, reveal=reveal):
            return (commit, reveal)


def _has_commit(state: object, commit: StatementId) -> bool:
    return isinstance(state, (Committed, Revealed)) and state.commit.id == commit


def _is_quiet(letter: Letter, seat: PeerId, now: Millis) -> bool:
    last = letter.told.get(seat)
    return last is None or last + limits.RETRY_MIN_MS <= now


def _due_at(last: Millis | None, now: Millis) -> Millis:
    return now if last is None else max(now, last + limits.BATCH_MS)


def _is_due(last: Millis | None, now: Millis) -> bool:
    return _due_at(last, now) <= now
