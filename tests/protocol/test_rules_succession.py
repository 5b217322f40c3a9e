"""By whose word seats and panels change (docs/protocol.md, Succession, Renewal)."""

from __future__ import annotations

import pytest

from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import JobId, PeerId, StatementId
from nexapod.protocol.rules.succession import (
    Seats,
    first_seats,
    leaving_max,
    next_holders,
    preferred,
    quorum,
    renewal_standing,
    renewed,
    standing,
    succeeded,
)
from nexapod.protocol.wire import statements
from nexapod.protocol.wire.bodies import Authority, Renewal, Succession
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner

JOB = JobId(b"j" * 32)
SUBMITTER, DELEGATE, STRANGER = (HashSigner(0, name) for name in ("submitter", "delegate", "stranger"))
MEMBERS = [HashSigner(0, "member", i) for i in range(7)]
PANEL = tuple(member.peer for member in MEMBERS)
OWNERS = (SUBMITTER.peer, DELEGATE.peer)
BY_PEER = {signer.peer: signer for signer in (*MEMBERS, SUBMITTER, DELEGATE, STRANGER)}
SEATS = first_seats(JOB, 4, PANEL)
REST = tuple(peer for peer in PANEL if peer not in SEATS.holders)


def signed(body: Succession | Renewal, *peers: PeerId) -> Statement:
    first, *others = peers
    statement = statements.make(body, BY_PEER[first])
    for peer in others:
        statement = statements.cosign(statement, BY_PEER[peer])
    return statement


def succession(
    authority: Authority,
    *peers: PeerId,
    holders: tuple[PeerId, ...] = REST[:3],
    before: Seats = SEATS,
    epoch: int | None = None,
    shard: int = 4,
) -> Statement:
    body = Succession(JOB, shard, before.epoch + 1 if epoch is None else epoch, holders, authority, before.id)
    return signed(body, *peers)


def test_the_first_seats_are_by_the_job() -> None:
    assert (SEATS.shard, SEATS.epoch, SEATS.authority, SEATS.id) == (4, 0, None, StatementId(JOB))
    assert (SEATS.quorum, SEATS.witnesses, len(SEATS.holders)) == (2, 2, 3)
    alone = first_seats(JOB, 0, PANEL[:1])
    assert (alone.quorum, alone.witnesses, alone.holders) == (1, 1, PANEL[:1])
    assert [quorum(n) for n in range(1, 7)] == [1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize(
    ("authority", "signers", "expected"),
    [
        ("submitter", [SUBMITTER.peer], "counts"),
        ("submitter", [DELEGATE.peer], "counts"),
        ("submitter", PANEL, "proposal"),
        ("seats", SEATS.holders[:2], "counts"),
        ("seats", SEATS.holders[:1], "proposal"),
        ("seats", (SEATS.holders[0], *REST), "proposal"),
        ("panel", PANEL[:4], "counts"),
        ("panel", (*PANEL[:3], STRANGER.peer, SUBMITTER.peer), "proposal"),
        ("caretaker", REST[:3], "counts"),
        ("caretaker", REST[:2], "proposal"),
    ],
)
def test_each_authority_has_its_own_signers(authority: Authority, signers: list[PeerId], expected: str) -> None:
    assert standing(succession(authority, *signers), SEATS, [PANEL], OWNERS) == expected


def test_what_counted_by_the_panel_counts_after_its_renewal() -> None:
    later = (*PANEL[4:], *(HashSigner(1, i).peer for i in range(4)))
    assert standing(succession("panel", *PANEL[:4]), SEATS, [PANEL, later], OWNERS) == "counts"


@pytest.mark.parametrize(
    "statement",
    [
        succession("submitter", SUBMITTER.peer, epoch=2),
        succession("submitter", SUBMITTER.peer, shard=5),
        succession("submitter", SUBMITTER.peer, holders=(PANEL[0], PANEL[0])),
        succession("submitter", SUBMITTER.peer, holders=(STRANGER.peer,)),
        succession("submitter", SUBMITTER.peer, before=Seats(4, 0, PANEL[:3], None, StatementId(b"x" * 32))),
    ],
)
def test_no_signature_makes_it_count(statement: Statement) -> None:
    with pytest.raises(PeerError, match="bad-succession"):
        standing(statement, SEATS, [PANEL], OWNERS)


def test_of_several_the_stronger_authority_stands_then_the_smaller_id() -> None:
    ranked = [
        succession("submitter", SUBMITTER.peer),
        succession("panel", *PANEL[:4]),
        succession("seats", *SEATS.holders),
        succession("caretaker", *REST[:3]),
    ]
    for i, one in enumerate(ranked):
        for other in ranked[i + 1 :]:
            assert preferred(one, other) is preferred(other, one) is one
    one, other = (succession("panel", *PANEL[:4], holders=(peer,)) for peer in PANEL[:2])
    assert preferred(one, other).id == min(one.id, other.id)


def test_the_next_epoch_follows_the_one_before() -> None:
    after = succeeded(succession("seats", *SEATS.holders))
    assert (after.epoch, after.holders, after.authority) == (1, REST[:3], "seats")
    chained = succession("seats", *REST[:2], before=after, holders=PANEL[:3])
    assert standing(chained, after, [PANEL], OWNERS) == "counts"
    with pytest.raises(PeerError):
        standing(chained, SEATS, [PANEL], OWNERS)


def test_a_leaving_seat_is_followed_by_the_first_that_answers() -> None:
    a, b, c = SEATS.holders
    order = (*SEATS.holders, *REST)
    assert next_holders(SEATS, order, {b}, {a, c, *REST[1:]}) == (a, c, REST[1])
    assert next_holders(SEATS, order, {b}, {a, c}) == (a, c)
    assert next_holders(SEATS, order, {a, b, c}, ()) == SEATS.holders


def renewal(authority: Authority, *peers: PeerId, removed: tuple[PeerId, ...] = PANEL[:2], epoch: int = 1) -> Statement:
    return signed(Renewal(JOB, epoch, removed, (), authority, StatementId(JOB)), *peers)


def judged(statement: Statement, added: tuple[PeerId, ...] = (STRANGER.peer,)) -> str:
    return renewal_standing(statement, 0, StatementId(JOB), PANEL, added, OWNERS)


def test_a_panel_is_renewed_by_its_majority_or_the_submitter() -> None:
    assert judged(renewal("panel", *PANEL[3:])) == "counts"
    assert judged(renewal("panel", *PANEL[4:])) == "proposal"
    assert judged(renewal("submitter", SUBMITTER.peer, removed=PANEL[:6])) == "counts"
    assert judged(renewal("submitter", *PANEL)) == "proposal"
    assert renewed(PANEL, PANEL[:2], [STRANGER.peer]) == (*PANEL[2:], STRANGER.peer)
    assert [leaving_max(n) for n in (1, 2, 3, 5, 6, 16)] == [1, 1, 1, 1, 2, 5]


def test_no_signature_makes_a_bad_renewal_count() -> None:
    for statement, added in (
        (renewal("panel", *PANEL, removed=PANEL[:3]), ()),
        (renewal("caretaker", *PANEL), ()),
        (renewal("seats", *PANEL), ()),
        (renewal("panel", *PANEL, epoch=2), ()),
        (renewal("panel", *PANEL, removed=(STRANGER.peer,)), ()),
        (renewal("panel", *PANEL, removed=(PANEL[0], PANEL[0])), ()),
        (renewal("panel", *PANEL), (PANEL[5],)),
        (renewal("panel", *PANEL), (STRANGER.peer, STRANGER.peer)),
        (renewal("submitter", SUBMITTER.peer, removed=PANEL), ()),
    ):
        with pytest.raises(PeerError, match="bad-renewal"):
            judged(statement, added)
