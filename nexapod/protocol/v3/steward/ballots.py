"""What this node has signed of a job's successions and renewals, kept across crashes: one for each epoch.

Two different successions to one epoch of a shard, signed by one peer, are a fault (docs/protocol-3.md, Succession).
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
    """One job's: of each shard, and of the panel, the last epoch that this node has signed for, and what."""

    def __init__(self, ctx: Context, job: JobId) -> None:
        self._ctx = ctx
        self._job = job
        self._cast: dict[Office, tuple[int, StatementId]] = {}

    def may_sign(self, office: Office, epoch: int, id: StatementId) -> bool:
        """Nothing else was signed for this epoch, or for a later one."""
        last = self._cast.get(office)
        return last is None or last[0] < epoch or last == (epoch, id)

    def is_free(self, office: Office, epoch: int) -> bool:
        """Nothing at all was signed for this epoch."""
        last = self._cast.get(office)
        return last is None or last[0] < epoch

    def cast(self, office: Office, epoch: int, id: StatementId) -> None:
        """Saved in the call in which the signature is given."""
        if self._cast.get(office) != (epoch, id):
            self._cast[office] = (epoch, id)
            self._ctx.save(Record(TENURE_RECORD, self._key(office), epoch.to_bytes(4, "big") + id))

    def restore(self, record: Record) -> None:
        """What a former process of this node had saved."""
        number = int.from_bytes(record.key[32:36], "big")
        value = record.value
        if value is not None and len(value) == 36:
            office: Office = "panel" if number == _PANEL else number
            self._cast[office] = (int.from_bytes(value[:4], "big"), StatementId(value[4:]))

    def forget(self) -> None:
        """The job is over."""
        for office in self._cast:
            self._ctx.save(Record(TENURE_RECORD, self._key(office), None))
        self._cast.clear()

    def _key(self, office: Office) -> bytes:
        number = _PANEL if office == "panel" else office
        return self._job + number.to_bytes(4, "big")
