"""What a former process of this node had saved of a shard, read back (docs/protocol.md, section 5).

Leases begin anew, as do the times since when something is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.evidence import Added
from nexapod.protocol.records import Record
from nexapod.protocol.steward.shard.checkpoints import Checkpoints
from nexapod.protocol.steward.shard.state import CHECKPOINT_RECORD, EVIDENCE_RECORD, ShardState
from nexapod.protocol.wire import fields, statements
from nexapod.protocol.wire.statements import Statement

RANK = {"freeze": 0, "commit": 1, "checkpoint": 2, "reveal": 3, "verdict": 4}
"""Each statement after those that it answers."""


def restore(state: ShardState, checkpoints: Checkpoints, records: Iterable[Record]) -> list[Statement]:
    """Fold saved records in. The freezes and verdicts among them. A record that is not ours asserts or is damaged on
    disk: what cannot be read is left out, and traced."""
    kept: list[tuple[Statement, bool, list[int]]] = []
    for record in records:
        try:
            _read(state, checkpoints, record, kept)
        except PeerError as error:
            state.ctx.trace("record_refused", kind=record.kind, rule=error.rule)
    kept.sort(key=lambda entry: (RANK[entry[0].kind], entry[0].id))
    for statement, _, unleased in kept:
        if statement.kind == "commit":
            state.unleased |= {(task, statement.author): None for task in unleased}
        if statement.kind == "freeze" and state.ctx.me in statement.signers:
            state.signed.note(statement.body, state.ctx.now)
    # A freeze that only this seat has signed is taken once the commits that it names are here.
    orphans = [entry for entry in kept if _fold(state, entry[0], direct=entry[1]) == "orphan"]
    for statement, direct, _ in orphans:
        _fold(state, statement, direct=direct)
    return [statement for statement, _, _ in kept if statement.kind in statements.COSIGNED]


def _fold(state: ShardState, statement: Statement, *, direct: bool) -> Added | None:
    try:
        return state.evidence.add(statement, direct=direct)
    except PeerError as error:
        state.ctx.trace("record_refused", kind=statement.kind, rule=error.rule)
        return None


def _read(
    state: ShardState, checkpoints: Checkpoints, record: Record, kept: list[tuple[Statement, bool, list[int]]]
) -> None:
    assert record.value is not None
    match record.kind:
        case k if k == EVIDENCE_RECORD:
            raw = fields.unpack(record.value, limits.FRAME_BYTES_MAX)
            if type(raw) is not list or len(raw) != 3:
                raise PeerError("bad-record")
            direct, unleased, envelope = raw
            statement = statements.decode(envelope, state.ctx.verify)
            if statement.kind not in RANK:
                raise PeerError("bad-record", statement.kind)
            kept.append((statement, direct, unleased))
        case k if k == CHECKPOINT_RECORD:
            statement = statements.decode(record.value, state.ctx.verify)
            checkpoints.restore(statement)
            kept.append((statement, False, []))
