"""What this node has bound itself to at the gate of one job, kept across crashes (docs/protocol.md, Round).

Its next value is saved before the commitment to it is spoken of, the admission and the beacon that it signs before they
are signed, and the value that it shows together with the one that follows. So a seat that comes back neither shows two
values in a round nor signs two admissions or beacons of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nexapod.protocol.context import Context
from nexapod.protocol.primitives import Digest, JobId, StatementId
from nexapod.protocol.records import Record
from nexapod.protocol.wire import fields
from nexapod.protocol.wire.statements import value_commitment

GATE_RECORD = "gate"
_BYTES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Shown:
    """The value that this seat has shown last, and for which admission."""

    epoch: int
    round: int
    admission: StatementId
    value: bytes


class Pledges:
    """One job's. Every change is saved in the call that makes it."""

    def __init__(self, ctx: Context, job: JobId) -> None:
        self.shown: Shown | None = None
        self.seq = 0
        """The largest announcement made or heard of."""
        self._ctx = ctx
        self._job = job
        self._next: bytes | None = None
        self._admission: tuple[int, int, StatementId] | None = None
        self._beacon: tuple[StatementId, StatementId] | None = None

    @property
    def commitment(self) -> Digest:
        """To the value that comes next."""
        if self._next is None:
            self._next = self._ctx.entropy(32)
            self._save()
        return value_commitment(self._next)

    def signed_round(self, epoch: int) -> int:
        """The last round of an epoch whose admission was signed here; 0: none."""
        return self._admission[1] if self._admission is not None and self._admission[0] == epoch else 0

    def may_sign_admission(self, epoch: int, number: int, id: StatementId) -> bool:
        """One a round, and rounds only rise; the same one again and again."""
        last = self._admission
        return last is None or last == (epoch, number, id) or last[:2] < (epoch, number)

    def sign_admission(self, epoch: int, number: int, id: StatementId) -> None:
        if self._admission != (epoch, number, id):
            self._admission = (epoch, number, id)
            self._save()

    def may_sign_beacon(self, admission: StatementId, id: StatementId) -> bool:
        """One for an admission."""
        return self._beacon is None or self._beacon[0] != admission or self._beacon[1] == id

    def has_signed_beacon(self, admission: StatementId) -> bool:
        return self._beacon is not None and self._beacon[0] == admission

    def sign_beacon(self, admission: StatementId, id: StatementId) -> None:
        if self._beacon != (admission, id):
            self._beacon = (admission, id)
            self._save()

    def show(self, epoch: int, number: int, admission: StatementId, committed: Digest) -> Shown | None:
        """This seat's value for an admission that a quorum has signed; None when it owes none.

        It owes none when it has shown one for another admission of the round, or if the admission does not name the
        commitment to the value that comes next.
        """
        last = self.shown
        if last is not None and last.admission == admission:
            return last
        if last is not None and (last.epoch, last.round) >= (epoch, number):
            return None
        if committed != self.commitment:
            return None
        assert self._next is not None
        self.shown = Shown(epoch, number, admission, self._next)
        self._next = self._ctx.entropy(32)
        self._save()
        return self.shown

    def next_seq(self) -> int:
        """Of the next announcement."""
        self.seq = min(self.seq + 1, 2**32 - 1)
        self._save()
        return self.seq

    # --- on disk -----------------------------------------------------------------------------------------------------
    def _save(self) -> None:
        shown = self.shown
        value = [
            self._next,
            None if shown is None else [shown.epoch, shown.round, shown.admission, shown.value],
            None if self._admission is None else list(self._admission),
            None if self._beacon is None else list(self._beacon),
            self.seq,
        ]
        self._ctx.save(Record(GATE_RECORD, self._job, fields.pack(value)))

    def restore(self, value: bytes) -> None:
        """What a former process of this node had saved."""
        raw: Any = fields.unpack(value, _BYTES_MAX)
        self._next, shown, admission, beacon, self.seq = raw
        self.shown = None if shown is None else Shown(*shown)
        self._admission = None if admission is None else (admission[0], admission[1], admission[2])
        self._beacon = None if beacon is None else (beacon[0], beacon[1])

    def forget(self) -> None:
        """The job is over."""
        self._ctx.save(Record(GATE_RECORD, self._job, None))
