"""What this node has signed of a job's successions and renewals, kept across crashes: one for each epoch and authority.

Two different successions to one epoch of a shard by one authority, signed by one peer, are a fault (docs/protocol-3.md,
Succession). One by a stronger authority may follow: it stands before the other wherever both are known, and a small
panel whose first proposal found no quorum would never agree on another.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from nexapod.protocol.records import Record
from nexapod.protocol.types import JobId, StatementId
from nexapod.protocol.v3.context import Context

TENURE_RECORD: Final = "tenure"
Office: TypeAlias = int | Literal["panel"]
"""What an epoch is one of: a shard, or the panel."""
_PANEL: Final = 2**32 - 1


class Ballots:
    """One job's: of each shard, and of the panel, the last epoch that this node has signed for, and what by the
    strongest authority. `rank`: that authority's (rules/succession.py); of renewals always the same."""

    def __init__(self, ctx: Context, job: JobId) -> None:
        self._ctx = ctx
        self._job = job
        self._cast: dict[Office, tuple[int, int, StatementId]] = {}

    def may_sign(self, office: Office, epoch: int, id: StatementId, rank: int = 0) -> bool:
        """Nothing else was signed for this epoch by an authority that is as strong, or for a later epoch."""
        return self.is_free(office, epoch, rank) or self._cast[office] == (epoch, rank, id)

    def is_free(self, office: Office, epoch: int, rank: int = 0) -> bool:
        """Nothing at all was signed for this epoch by an authority that is as strong."""
        last = self._cast.get(office)
        return last is None or last[0] < epoch or (last[0] == epoch and rank < last[1])

    def cast(self, office: Office, epoch: int, id: StatementId, rank: int = 0) -> None:
        """Saved in the call in which the signature is given."""
        if self._cast.get(office) != (epoch, rank, id):
            self._cast[office] = (epoch, rank, id)
            value = epoch.to_bytes(4, "big") + bytes([rank]) + id
            self._ctx.save(Record(TENURE_RECORD, self._key(office), value))

    def restore(self, record: Record) -> None:
        """What a former process of this node had saved."""
        number = int.from_bytes(record.key[32:36], "big")
        value = record.value
        if value is not None and len(value) == 37:
            office: Office = "panel" if number == _PANEL else number
            self._cast[office] = (int.from_bytes(value[:4], "big"), value[4], StatementId(value[5:]))

    def forget(self) -> None:
        """The job is over."""
        for office in self._cast:
            self._ctx.save(Record(TENURE_RECORD, self._key(office), None))
        self._cast.clear()

    def _key(self, office: Office) -> bytes:
        number = _PANEL if office == "panel" else office
        return self._job + number.to_bytes(4, "big")
