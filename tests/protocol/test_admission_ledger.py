"""The ledger bounds what any one link may cost, and remembers who broke rules."""

from __future__ import annotations

import pytest

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.node.admission import SIGNATURE_COST_MILLI, Bucket, Ledger, ban_ms
from nexapod.protocol.primitives import PeerId
from nexapod.sim.keys import HashSigner

ME = HashSigner(1, "me").peer
OTHER = HashSigner(1, "other").peer
THIRD = HashSigner(1, "third").peer


def peer(number: int) -> PeerId:
    return HashSigner(2, number).peer


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(20, 60_000, 20, now=0)
    assert sum(bucket.spend(1, 0) for _ in range(100)) == 20
    assert sum(bucket.spend(1, 60_000) for _ in range(100)) == 20
    assert sum(bucket.spend(1, 63_000) for _ in range(100)) == 1


def test_what_is_charged_beyond_the_burst_is_owed() -> None:
    bucket = Bucket(10, 1_000, 10, now=0)
    bucket.charge(30, 0)
    assert bucket.left(0) == -20
    assert not bucket.spend(1, 1_900)
    assert bucket.spend(1, 2_200)


def test_a_clock_that_goes_back_earns_nothing() -> None:
    bucket = Bucket(10, 1_000, 10, now=5_000)
    bucket.charge(10, 5_000)
    assert bucket.left(4_000) == 0
    assert bucket.left(5_000) == 0


def test_a_link_that_floods_is_read_at_its_rate_only() -> None:
    ledger, size, read = Ledger(ME), 256 * 1024, 0
    for now in range(10_000):
        read += size * ledger.admit(OTHER, size, now)
    assert read <= limits.LINK_BURST_BYTES + 10 * limits.LINK_BYTES_PER_SECOND + size
    assert ledger.admit(THIRD, size, 10_000), "another link has an account of its own"


def test_small_frames_cost_time_as_well() -> None:
    ledger = Ledger(ME)
    read = sum(ledger.admit(OTHER, 10, 0) for _ in range(100_000))
    assert read <= limits.LINK_COST_BURST * 1_000 // 50 + 1


def test_signatures_are_checked_at_the_expense_of_the_link() -> None:
    ledger = Ledger(ME)
    checked = sum(ledger.spend(OTHER, SIGNATURE_COST_MILLI, 0) for _ in range(100_000))
    assert checked == limits.LINK_COST_BURST * 1_000 // SIGNATURE_COST_MILLI
    assert ledger.spend(ME, 10**9, 0), "this node pays nothing"


def test_a_new_link_of_the_same_peer_finds_its_account_as_it_was() -> None:
    ledger = Ledger(ME)
    ledger.answered(OTHER, 2 * limits.LINK_BURST_BYTES, 0)
    for number in range(limits.ACCOUNTS_MAX - 1):
        ledger.admit(peer(number), 10, 0)
    assert not ledger.admit(OTHER, 10, 1)


def test_a_dry_link_is_news_once() -> None:
    ledger = Ledger(ME)
    ledger.answered(OTHER, limits.LINK_BURST_BYTES, 0)
    assert [ledger.ran_dry(OTHER, 0), ledger.ran_dry(OTHER, 0)] == [True, False]
    assert ledger.admit(OTHER, 10, 10_000)
    assert ledger.ran_dry(OTHER, 10_000)


@pytest.mark.parametrize("question", [1, 100, 10_000])
def test_an_answer_is_bounded_by_its_question(question: int) -> None:
    allowed = Ledger(ME).allowance(OTHER, question, 0)
    assert allowed == max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * question)


def test_an_answer_is_bounded_by_what_the_link_has_left() -> None:
    ledger = Ledger(ME)
    ledger.answered(OTHER, limits.LINK_BURST_BYTES + 1, 0)
    assert ledger.allowance(OTHER, 100, 0) == 0


def test_an_author_has_so_many_new_jobs_a_minute_whatever_the_links() -> None:
    ledger = Ledger(ME)
    taken = sum(ledger.new_job(peer(number), OTHER, 0) for number in range(100))
    assert taken == limits.JOBS_PER_AUTHOR_PER_MINUTE


def test_a_link_has_so_many_new_jobs_a_minute_whatever_the_authors() -> None:
    ledger = Ledger(ME)
    taken = sum(ledger.new_job(OTHER, peer(number), 0) for number in range(500))
    assert taken == limits.JOBS_PER_LINK_PER_MINUTE
    assert ledger.new_job(OTHER, ME, 0), "this node's own user is no stranger"


def test_points_halve_and_too_many_are_a_ban() -> None:
    ledger = Ledger(ME)
    assert ledger.penalise(OTHER, PeerError("rule", penalty=80), 0).ban is None
    late = ledger.penalise(OTHER, PeerError("rule", penalty=50), 2 * limits.PENALTY_DECAY_MS)
    assert (late.points, late.ban) == (70, None)
    sentence = ledger.penalise(OTHER, PeerError("rule", penalty=50), 2 * limits.PENALTY_DECAY_MS)
    assert sentence.ban is not None
    assert ledger.banned(OTHER, sentence.ban.until - 1)
    assert not ledger.banned(OTHER, sentence.ban.until)
    assert not ledger.banned(THIRD, 0)


def test_this_node_is_never_banned() -> None:
    assert Ledger(ME).penalise(ME, PeerError("rule", penalty=10_000), 0).ban is None


def test_each_ban_is_twice_as_long_up_to_a_day() -> None:
    ledger, now, spans = Ledger(ME), 0, []
    for _ in range(12):
        ban = ledger.penalise(OTHER, PeerError("rule", penalty=101), now).ban
        assert ban is not None
        spans.append(ban.until - now)
        now = ban.until
    assert spans[:3] == [limits.BAN_MS, 2 * limits.BAN_MS, 4 * limits.BAN_MS]
    assert spans[-1] == limits.BAN_MAX_MS


def test_a_ban_of_a_former_process_is_served_again() -> None:
    ledger = Ledger(ME)
    ban = ledger.restore_ban(OTHER, 2, 77)
    assert ban.until == 77 + ban_ms(2)
    assert ledger.banned(OTHER, 100)
    assert ledger.served(ban.until + limits.BAN_MAX_MS) == [OTHER]
    assert not ledger.has_bans


def test_the_tables_are_bounded() -> None:
    ledger = Ledger(ME)
    lifted = []
    for number in range(limits.BANS_MAX + 10):
        sentence = ledger.penalise(peer(number), PeerError("rule", penalty=101), number)
        lifted.append(sentence.lifted)
    assert [one for one in lifted if one is not None] == [peer(number) for number in range(10)]
