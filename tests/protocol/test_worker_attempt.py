"""nexapod.protocol.worker.attempt and records: the table of an attempt, and how it is kept."""

from __future__ import annotations

import itertools

import pytest
from kit import OUTPUT, Result, make_kit

from nexapod.protocol.runs import RunResult
from nexapod.protocol.worker import records
from nexapod.protocol.worker.attempt import (
    TABLE,
    Begin,
    Bind,
    Claimed,
    Committed,
    Decide,
    Dropped,
    End,
    Finished,
    Forget,
    GiveBack,
    Grant,
    Granted,
    Keep,
    Move,
    Over,
    Reopen,
    Restart,
    Revealed,
    Running,
    Show,
    State,
    Take,
    Vacate,
    advance,
    may,
)

KIT = make_kit()
ME = KIT.workers[0]
RESULT = RunResult("ok", 0, OUTPUT, log="printed", reason="why", continued=True)
COMMIT = KIT.commit(ME, Result(0))
REVEAL = KIT.reveal(ME, COMMIT, Result(0))
BASIS = KIT.checkpoint(KIT.workers[1], 0)
KEPT = KIT.checkpoint(ME, 0, seq=7)
STATES: list[State] = [
    Claimed(1),
    Granted(1, BASIS),
    Running(1, BASIS, 3),
    Finished(RESULT, b"s" * 16, BASIS),
    Committed(RESULT, b"s" * 16, BASIS, COMMIT),
    Revealed(RESULT, b"s" * 16, BASIS, COMMIT, REVEAL),
    Over(OUTPUT),
    Over(OUTPUT, Committed(RESULT, b"s" * 16, BASIS, COMMIT)),
    Dropped(),
]
MOVES: list[Move] = [
    Grant(KIT.members[0].peer),
    Take(2, BASIS),
    Begin(3),
    Keep(KEPT),
    Vacate(),
    End(RESULT, b"s" * 16),
    Bind(COMMIT),
    Show(REVEAL),
    GiveBack(),
    Decide(),
    Restart(9),
]


def test_what_is_over_is_said_again_only_while_its_commit_is_kept() -> None:
    bound = Committed(RESULT, b"s" * 16, BASIS, COMMIT)
    for state in (bound, Revealed(RESULT, b"s" * 16, BASIS, COMMIT, REVEAL)):
        over = advance(state, Decide())
        assert advance(over, Reopen()) == bound
        assert advance(over, Forget()) == Over(RESULT.files)


@pytest.mark.parametrize(("state", "move"), list(itertools.product(STATES, MOVES)))
def test_every_pair_of_the_table_leads_where_it_says_and_no_other_is_allowed(state: State, move: Move) -> None:
    target = TABLE[type(state)].get(type(move))
    assert may(state, type(move)) == (target is not None)
    if target is None:
        with pytest.raises(AssertionError):
            advance(state, move)
    else:
        assert type(advance(state, move)) is target


def test_nothing_bound_is_ever_dropped_and_nothing_over_moves() -> None:
    bound = (Committed, Revealed, Over)
    for state in bound:
        assert all(target in bound for target in TABLE[state].values())
    assert TABLE[Dropped] == {}


def test_grants_gather_each_seat_once_with_the_checkpoints_they_gave() -> None:
    one, two = KIT.members[0].peer, KIT.members[1].peer
    state: State = Claimed(1)
    for move in (Grant(one, BASIS), Grant(one, BASIS), Grant(two, BASIS), Grant(two)):
        state = advance(state, move)
    assert state == Claimed(1, (one, two), ((BASIS, (one, two)),))


def test_a_result_that_did_not_rest_on_the_checkpoint_does_not_name_it() -> None:
    state = advance(Running(1, BASIS), End(RunResult("ok", 0), b""))
    assert isinstance(state, Finished)
    assert state.basis is None


@pytest.mark.parametrize("state", [s for s in STATES if records.is_saved(s)])
def test_what_is_saved_is_read_again(state: State) -> None:
    kept = {statement.id: statement for statement in records.rests_on(state)}
    back = records.unpack(records.pack(state), kept, 50)
    expected = advance(state, Restart(50)) if isinstance(state, Running) else state
    assert back == expected


def test_what_only_waits_is_not_saved() -> None:
    saved = [type(state) for state in STATES if records.is_saved(state)]
    assert saved == [Running, Committed, Revealed, Over, Over]
    assert records.is_saved(Granted(1, None, interrupted=True))
