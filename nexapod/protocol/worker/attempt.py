"""One task at this worker: the states of an attempt, as data, and the only table of what moves it.

    Claimed     some seats have granted it, fewer than a quorum
    Granted     a quorum has: it waits for its inputs and for a slot
    Running     the driver runs it
    Finished    it has a result, which goes into the next commit
    Committed   bound to the result, and to it alone, for as long as the job is open
    Revealed    the seats have been shown the result
    Over        it was committed and needs no more work: never to be tried again, though said again if what decided it
                is lost
    Dropped     it was never committed: it may be tried again

Whether the inputs are here is no state: they are the job's, and all its attempts wait for the same ones (inputs.py).
Nothing here sends or saves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from nexapod.protocol.primitives import File, Millis, PeerId
from nexapod.protocol.runs import RunResult
from nexapod.protocol.wire.statements import Statement


# --- states --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Claimed:
    since: Millis
    granted_by: tuple[PeerId, ...] = ()
    offered: tuple[tuple[Statement, tuple[PeerId, ...]], ...] = ()
    """Checkpoints that came with the grants, and which seats gave each."""


@dataclass(frozen=True, slots=True)
class Granted:
    since: Millis
    basis: Statement | None
    """The checkpoint that it may be resumed from: a quorum of the seats handed it out."""
    interrupted: bool = False
    """A former process of this node ran it."""
    seq: int = 0
    """Of the newest checkpoint that this worker signed for it."""


@dataclass(frozen=True, slots=True)
class Running:
    since: Millis
    basis: Statement | None
    seq: int = 0
    checkpoint: Statement | None = None
    """The newest one that this worker signed for it."""
    vacated: bool = False
    """Its program has ended, though not what came of it: it takes no slot."""


@dataclass(frozen=True, slots=True)
class Finished:
    result: RunResult
    salt: bytes
    basis: Statement | None
    """The checkpoint that the result rests on; None when it was computed from the start."""


@dataclass(frozen=True, slots=True)
class Committed:
    result: RunResult
    salt: bytes
    basis: Statement | None
    commit: Statement


@dataclass(frozen=True, slots=True)
class Revealed:
    result: RunResult
    salt: bytes
    basis: Statement | None
    commit: Statement
    reveal: Statement


@dataclass(frozen=True, slots=True)
class Over:
    files: tuple[File, ...]
    """The outputs: kept until the job is over, since all the seats that judged them may vanish."""
    bound: Committed | None = None
    """What it was bound to, of the last few."""


@dataclass(frozen=True, slots=True)
class Dropped:
    pass


State: TypeAlias = Claimed | Granted | Running | Finished | Committed | Revealed | Over | Dropped
Bound: TypeAlias = Committed | Revealed
"""States in which the worker has bound itself to a result."""


# --- moves ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Grant:
    """A seat granted it, perhaps with a checkpoint."""

    seat: PeerId
    checkpoint: Statement | None = None


@dataclass(frozen=True, slots=True)
class Take:
    """A quorum of the seats granted it."""

    at: Millis
    basis: Statement | None


@dataclass(frozen=True, slots=True)
class Begin:
    """Its inputs are here and it has a slot."""

    at: Millis


@dataclass(frozen=True, slots=True)
class Keep:
    """It has left something to resume from."""

    checkpoint: Statement


@dataclass(frozen=True, slots=True)
class Vacate:
    """Its program has ended."""


@dataclass(frozen=True, slots=True)
class End:
    """It has a result."""

    result: RunResult
    salt: bytes


@dataclass(frozen=True, slots=True)
class Bind:
    """A commit has it."""

    commit: Statement


@dataclass(frozen=True, slots=True)
class Show:
    """A reveal has it."""

    reveal: Statement


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Its lease is given back, or was never whole."""


@dataclass(frozen=True, slots=True)
class Decide:
    """A counting verdict has it, or its seats have no use for more of this worker's work."""


@dataclass(frozen=True, slots=True)
class Reopen:
    """What decided it may not count any more: the seats have changed."""


@dataclass(frozen=True, slots=True)
class Forget:
    """It will not be said again."""


@dataclass(frozen=True, slots=True)
class Restart:
    """The process that ran it has ended."""

    at: Millis


Move: TypeAlias = (
    Grant | Take | Begin | Keep | Vacate | End | Bind | Show | GiveBack | Decide | Reopen | Forget | Restart
)

TABLE: Final[Mapping[type[State], Mapping[type[Move], type[State]]]] = {
    Claimed: {Grant: Claimed, Take: Granted, GiveBack: Dropped, Decide: Dropped},
    Granted: {Begin: Running, GiveBack: Dropped, Decide: Dropped},
    Running: {
        Keep: Running,
        Vacate: Running,
        End: Finished,
        GiveBack: Dropped,
        Decide: Dropped,
        # A sandbox of the former process may still be there: the driver finds it when the task begins again.
        Restart: Granted,
    },
    # Not bound yet, so it may be forgotten; but there is nothing to give back any more.
    Finished: {Bind: Committed, Decide: Dropped},
    # Once bound, never again: another commit of this worker to the task would contradict this one.
    Committed: {Show: Revealed, Decide: Over},
    Revealed: {Decide: Over},
    Over: {Reopen: Committed, Forget: Over},
    Dropped: {},
}
"""What each move makes of each state. A pair that is not here is a bug of this program."""


def may(state: State, move: type[Move]) -> bool:
    """Whether the table has this move from this state."""
    return move in TABLE[type(state)]


def advance(state: State, move: Move) -> State:
    """The state after a move."""
    target = TABLE[type(state)].get(type(move))
    assert target is not None, f"{type(move).__name__} in {type(state).__name__}"
    after = _after(state, move)
    assert type(after) is target
    return after


def _after(state: State, move: Move) -> State:
    match state, move:
        case Claimed(), Grant(seat, checkpoint):
            return _granted_by(state, seat, checkpoint)
        case Claimed(), Take(at, basis):
            return Granted(at, basis)
        case Granted(), Begin(at):
            return Running(at, state.basis, state.seq)
        case Running(), Keep(checkpoint):
            return replace(state, checkpoint=checkpoint, seq=checkpoint.body.seq)
        case Running(), Vacate():
            return replace(state, vacated=True)
        case Running(), End(result, salt):
            return Finished(result, salt, state.basis if result.continued else None)
        case Running(), Restart(at):
            return Granted(at, state.basis, interrupted=True, seq=state.seq)
        case Finished(), Bind(commit):
            return Committed(state.result, state.salt, state.basis, commit)
        case Committed(), Show(reveal):
            return Revealed(state.result, state.salt, state.basis, state.commit, reveal)
        case ((Committed() | Revealed()), Decide()):
            return Over(state.result.files, Committed(state.result, state.salt, state.basis, state.commit))
        case Over(bound=Committed() as bound), Reopen():
            return bound
        case Over(files), Forget():
            return Over(files)
        case _:
            return Dropped()


def _granted_by(state: Claimed, seat: PeerId, checkpoint: Statement | None) -> Claimed:
    granted_by = state.granted_by if seat in state.granted_by else (*state.granted_by, seat)
    if checkpoint is None:
        return replace(state, granted_by=granted_by)
    given = {known.id: (known, seats) for known, seats in state.offered}
    known, seats = given.get(checkpoint.id, (checkpoint, ()))
    given[checkpoint.id] = (known, seats if seat in seats else (*seats, seat))
    return replace(state, granted_by=granted_by, offered=tuple(given.values()))
