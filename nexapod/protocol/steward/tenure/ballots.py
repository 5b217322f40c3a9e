"""What this node has signed of a job's successions and renewals, kept across crashes: of each epoch the one that would
stand (docs/protocol.md, Succession).

Another to the same epoch is signed only if it stands before that one wherever both are known. So whoever signs both
decides nothing, and members that have proposed different ones, so that none can find a majority any more, come to sign
the same.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from nexapod.protocol.context import Context
from nexapod.protocol.primitives import JobId, StatementId
from nexapod.protocol.records import Record

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
        """Nothing was signed for a later epoch, and nothing for this one that would stand before it."""
        last = self._cast.get(office)
        return last is None or last[0] < epoch or (last[0] == epoch and (rank, id) <= last[1:])

    def is_free(self, office: Office, epoch: int, rank: int = 0) -> bool:
        """Nothing at all was signed for this epoch by an authority that is as strong."""
        last = self._cast.get(office)
        return last is None or last[0] < epoch or (last[0] == epoch and rank < last[1])

    def last(self, office: Office) -> tuple[int, StatementId] | None:
        """The last epoch that something was signed for, and what."""
        last = self._cast.get(office)
        return None if last is None else (last[0], last[2])

    def release(self, office: Office) -> None:
        """What was signed last will not come to count: something else may be signed for its epoch."""
        last = self._cast.get(office)
        if last is not None:
            self._cast[office] = (last[0] - 1, *last[1:])

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
