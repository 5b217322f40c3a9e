"""Which workers the gate has admitted, and by what chance (docs/protocol.md, Round, Beacon and draw)."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from itertools import pairwise

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.facts import Added
from nexapod.protocol.facts.cosigned import CosignedTable, Tenures
from nexapod.protocol.primitives import Digest, JobId, PeerId, StatementId, key_of_peer_id
from nexapod.protocol.rules import beacon as beacons
from nexapod.protocol.rules.groups import BLOCK_PREFIXES
from nexapod.protocol.rules.lottery import Lottery
from nexapod.protocol.tables import TableReport, longest
from nexapod.protocol.types import Group, Grouping, JobSpec
from nexapod.protocol.wire.bodies import Admission, Beacon
from nexapod.protocol.wire.statements import Statement

_Round = tuple[int, int, StatementId]


class Admissions:
    """The rounds of admission of one job.

    A round counts when its admission and its beacon do. An adoption should name both; of an adopted admission whose
    beacon no adoption names, the one counts that a quorum of its epoch's seats signed.
    """

    def __init__(self, job: JobId, spec: JobSpec, tenures: Tenures) -> None:
        self._job = job
        self._spec = spec
        self._tenures = tenures
        self._admissions = CosignedTable(tenures)
        self._beacons = CosignedTable(tenures)
        self._beacons_of: dict[StatementId, list[StatementId]] = {}
        """Of each admission, founded or not."""
        self._values: dict[Group, tuple[Digest, ...]] = {}
        self._groups: dict[PeerId, tuple[Group, ...]] = {}
        self._drawn: dict[StatementId, StatementId] = {}
        """The rounds in the lottery: admission to beacon."""
        self.lottery = Lottery(job, spec)

    # --- what it says ----------------------------------------------------------------------------------------------
    def get(self, id: StatementId) -> Statement | None:
        return self._admissions.get(id) or self._beacons.get(id)

    def is_founded(self, id: StatementId) -> bool:
        """Whether enough of the seats of its epoch have signed it, be that the present one or not."""
        return id in self._admissions.founded or id in self._beacons.founded

    def counts(self, statement: Statement) -> bool:
        if statement.kind == "admission":
            return self._admissions.counts(statement)
        return self._beacons.counts(statement)

    def rounds(self) -> list[tuple[Statement, Statement]]:
        """The rounds that count, by epoch and number, up to WORKERS_MAX workers."""
        counting = sorted(self._admissions.counting(), key=_round)
        found = [(admission, beacon) for admission in counting if (beacon := self._beacon_of(admission)) is not None]
        workers: set[PeerId] = set()
        for place, (admission, _) in enumerate(found):
            workers.update(worker for worker, _ in admission.body.workers)
            if len(workers) > limits.WORKERS_MAX:
                return found[:place]
        return found

    def groups_seen(self, worker: PeerId) -> tuple[Group, ...]:
        """The groups in which a quorum of any epoch's gate has admitted it, each once, sorted."""
        return self._groups.get(worker, ())

    def values(self, group: Group) -> tuple[Digest, ...]:
        """The values of all rounds, of any epoch, that admitted a worker of this group."""
        return self._values.get(group, ())

    def adoptable(self, since: int, adopted: frozenset[StatementId]) -> list[StatementId]:
        """Admissions and their beacons that the present seats may adopt, from epochs since `since`, or adopted then."""
        present = self._tenures.now().epoch
        return sorted(
            statement.id
            for table in (self._admissions, self._beacons)
            for statement in table.founded.values()
            if since <= statement.body.epoch < present or statement.id in adopted
        )

    def _beacon_of(self, admission: Statement) -> Statement | None:
        own = [self._beacons.get(id) for id in sorted(self._beacons_of.get(admission.id, ()))]
        founded = [beacon for beacon in own if beacon is not None and beacon.id in self._beacons.founded]
        counting = [beacon for beacon in founded if self._beacons.counts(beacon)]
        return next(iter(counting or founded), None)

    def tables(self) -> tuple[TableReport, ...]:
        return (
            TableReport("rounds of admission", len(self._admissions.founded), limits.ADMISSIONS_MAX),
            TableReport("beacons of a round", longest(self._founded_beacons()), limits.BEACONS_PER_ROUND_MAX),
            self._admissions.proposals_table("admissions of a signer that do not count"),
            self._beacons.proposals_table("beacons of a signer that do not count"),
        )

    def _founded_beacons(self) -> Iterator[list[StatementId]]:
        for own in self._beacons_of.values():
            yield [id for id in own if id in self._beacons.founded]

    # --- the fold --------------------------------------------------------------------------------------------------
    def add(self, statement: Statement) -> Added:
        if statement.kind == "admission":
            return self._add_admission(statement, statement.body)
        return self._add_beacon(statement, statement.body)

    def _add_admission(self, statement: Statement, body: Admission) -> Added:
        check_admission(body, self._spec.policy.grouping)
        merged = self._admissions.offered(statement)
        if merged is None:
            return "orphan"
        added = self._admissions.keep(merged)
        if added != "known":
            self._bound()
            self._see(merged)
            self._refresh()
        return added

    def _add_beacon(self, statement: Statement, body: Beacon) -> Added:
        admission = self._admissions.get(body.admission)
        seats = self._tenures.at(body.epoch)
        if admission is None or seats is None:
            return "orphan"
        error = beacons.error_of_form(body, admission, seats.holders)
        if error is not None:
            raise PeerError("bad-beacon", error, penalty=30)
        merged = self._beacons.offered(statement)
        if merged is None:
            return "orphan"
        added = self._beacons.keep(merged)
        if added == "known":
            return added
        self._note(body.admission, statement.id)
        self._see(admission)
        self._refresh()
        return added

    def _note(self, admission: StatementId, beacon: StatementId) -> None:
        """A quorum signs one beacon a round; if it signed more, the few with the smallest ids are kept."""
        own = self._beacons_of.setdefault(admission, [])
        if beacon not in own:
            own.append(beacon)
        own[:] = [id for id in own if self._beacons.get(id) is not None]
        founded = sorted(id for id in own if id in self._beacons.founded)
        for id in founded[limits.BEACONS_PER_ROUND_MAX :]:
            self._beacons.drop(id)
            own.remove(id)

    def _bound(self) -> None:
        founded = self._admissions.founded
        for statement in sorted(founded.values(), key=_round)[limits.ADMISSIONS_MAX :]:
            self._admissions.drop(statement.id)
        for id in [id for id in self._beacons_of if self._admissions.get(id) is None]:
            for beacon in self._beacons_of.pop(id):
                self._beacons.drop(beacon)

    def review(self) -> None:
        """The gate's seats, or what they have adopted, have changed."""
        self._admissions.review()
        self._beacons.review()
        self._values.clear()
        self._groups.clear()
        for admission in self._admissions.founded.values():
            self._see(admission)
        self._refresh()

    def _refresh(self) -> None:
        """Bring the lottery up to date: what no longer counts leaves it."""
        rounds = self.rounds()
        now = {admission.id: beacon.id for admission, beacon in rounds}
        if any(now.get(admission) != beacon for admission, beacon in self._drawn.items()):
            self.lottery = Lottery(self._job, self._spec)
            self._drawn = {}
        for admission, beacon in rounds:
            if admission.id not in self._drawn:
                self.lottery.admit(admission, beacon)
        self._drawn = now

    def _see(self, admission: Statement) -> None:
        if admission.id not in self._admissions.founded:
            return
        for id in sorted(self._beacons_of.get(admission.id, ())):
            beacon = self._beacons.founded.get(id)
            if beacon is not None:
                self._see_round(admission.body, beacons.value(beacon.body))

    def _see_round(self, body: Admission, value: Digest) -> None:
        # Of most groups this is all that is ever seen, and there are thousands: they share it.
        alone = (value,)
        for worker, group in body.workers:
            seen = self._values.get(group, ())
            if value not in seen and len(seen) < limits.ROUNDS_MAX:
                self._values[group] = (*seen, value) if seen else alone
            groups = self._groups.get(worker, ())
            if group not in groups:
                self._groups[worker] = tuple(sorted((*groups, group)))


def check_admission(body: Admission, grouping: Grouping) -> None:
    """Raises PeerError when no gate could honestly have said this, whatever it saw."""
    keys = [key_of_peer_id(worker) for worker, _ in body.workers]
    if any(one >= other for one, other in pairwise(keys)):
        raise PeerError("bad-admission", "its workers are not sorted by key, each once")
    committed = [key_of_peer_id(seat) for seat, _ in body.commitments]
    if any(one >= other for one, other in pairwise(committed)):
        raise PeerError("bad-admission", "its commitments are not sorted by key, each seat's once")
    if not all(_is_group(worker, group, grouping) for worker, group in body.workers):
        raise PeerError("bad-admission", "a group is not one by the job's rule", penalty=30)


def _is_group(worker: PeerId, group: Group, grouping: Grouping) -> bool:
    if grouping == "peer":
        return group == worker
    try:
        network = ipaddress.ip_network(group)
    except ValueError:
        return False
    prefix = BLOCK_PREFIXES[0] if network.version == 4 else BLOCK_PREFIXES[1]
    return network.prefixlen == prefix and str(network) == group and not network.is_loopback


def _round(admission: Statement) -> _Round:
    return admission.body.epoch, admission.body.round, admission.id
