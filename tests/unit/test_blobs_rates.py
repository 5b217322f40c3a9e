"""nexapod.blobs.rates: caps hold over any stretch of time, for all and for each peer; where none is, nobody waits."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from nexapod.blobs.rates import PEERS_MAX, PIECE_BYTES_MIN, Caps, Rates
from nexapod.protocol.primitives import PeerId

ANN, BOB = PeerId("ann"), PeerId("bob")
RATE = 100_000


async def seconds_for(rates: Rates, moves: list[tuple[PeerId, int]], *, down: bool = False) -> float:
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for peer, size in moves:
            nursery.start_soon(rates.down if down else rates.up, peer, size)
    return trio.current_time() - began


async def test_no_cap_never_waits(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates()
    assert await seconds_for(rates, [(ANN, 1 << 40)]) == 0
    assert await seconds_for(rates, [(ANN, 1 << 40)], down=True) == 0
    assert rates.piece_bytes(240_000) == 240_000


@pytest.mark.parametrize("down", [False, True])
async def test_a_cap_for_all_is_shared_by_all(autojump_clock: trio.testing.MockClock, down: bool) -> None:
    rates = Rates(Caps(down_max=RATE) if down else Caps(up_max=RATE))
    moves = [(peer, RATE // 10) for _ in range(50) for peer in (ANN, BOB)]
    # Ten seconds' worth, of which one may come at once.
    assert await seconds_for(rates, moves, down=down) == pytest.approx(9, abs=0.01)
    assert await seconds_for(rates, moves, down=not down) == 0


async def test_a_cap_for_each_peer_leaves_the_others_alone(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(peer_up_max=RATE))
    assert await seconds_for(rates, [(ANN, RATE)] * 5) == pytest.approx(4, abs=0.01)
    assert await seconds_for(rates, [(BOB, RATE)]) == 0
    assert await seconds_for(rates, [(ANN, RATE)] * 3 + [(BOB, RATE)] * 3) == pytest.approx(3, abs=0.01)


async def test_the_stricter_of_two_caps_holds(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(up_max=10 * RATE, peer_up_max=RATE))
    assert await seconds_for(rates, [(ANN, RATE)] * 5) == pytest.approx(4, abs=0.01)


async def test_a_pause_saves_up_one_second_and_no_more(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(up_max=RATE))
    await seconds_for(rates, [(ANN, RATE)] * 3)
    await trio.sleep(1000)  # a pause: what is saved up in it is what is tested
    assert await seconds_for(rates, [(ANN, RATE)]) == pytest.approx(0, abs=0.01)
    assert await seconds_for(rates, [(ANN, RATE)]) == pytest.approx(1, abs=0.01)


async def test_a_piece_larger_than_a_second_s_worth_moves_too(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(up_max=RATE))
    assert await seconds_for(rates, [(ANN, 10 * RATE)]) == pytest.approx(9, abs=0.01)


async def test_pieces_are_small_where_the_cap_is_low() -> None:
    assert Rates(Caps(up_max=RATE, peer_up_max=2 * RATE)).piece_bytes(240_000) == RATE
    assert Rates(Caps(peer_up_max=1)).piece_bytes(240_000) == PIECE_BYTES_MIN
    assert Rates(Caps(down_max=1)).piece_bytes(240_000) == 240_000


async def test_peers_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(peer_up_max=RATE))
    for number in range(PEERS_MAX + 100):
        await rates.up(PeerId(str(number)), 1)
    assert len(rates._up._peers) == PEERS_MAX


@pytest.mark.parametrize("caps", [Caps(down_max=RATE), Caps(peer_down_max=RATE)])
async def test_what_was_asked_for_and_does_not_come_is_the_next_one_s(
    autojump_clock: trio.testing.MockClock, caps: Caps
) -> None:
    rates = Rates(caps)
    await seconds_for(rates, [(ANN, 4 * RATE)], down=True)
    for _ in range(10):
        rates.not_down(ANN, 4 * RATE)
    assert await seconds_for(rates, [(ANN, 4 * RATE)], down=True) == 0
    assert await seconds_for(rates, [(ANN, 4 * RATE)], down=True) == pytest.approx(4, abs=0.01)


async def test_what_comes_back_goes_to_who_waits(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(down_max=RATE))
    await seconds_for(rates, [(ANN, 4 * RATE)], down=True)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rates.down, BOB, 4 * RATE)
        await trio.sleep(1)  # a pause: of the virtual clock
        rates.not_down(ANN, 4 * RATE)
    assert trio.current_time() - began == pytest.approx(1, abs=0.01)


async def test_who_is_cancelled_while_it_waits_has_taken_nothing(autojump_clock: trio.testing.MockClock) -> None:
    rates = Rates(Caps(down_max=RATE, peer_down_max=2 * RATE))
    with trio.move_on_after(1):
        await seconds_for(rates, [(ANN, 100 * RATE)] * 3 + [(ANN, RATE), (BOB, 100 * RATE)], down=True)
    assert await seconds_for(rates, [(ANN, RATE), (BOB, RATE)], down=True) < 2
