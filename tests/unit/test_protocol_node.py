"""nexapod.protocol.node: whole nodes, on perfect links and a virtual clock, and what one node makes of one event."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import pytest
from protocol_kit import (
    MODULE,
    NETWORK,
    Mesh,
    decode,
    job,
    job_spec,
    make,
    pid,
    profile,
    replica,
    result_of,
    signer,
    verdict,
    verify,
)

from nexapod.protocol import certificate, limits, messages, node, statements
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import (
    CancelJob,
    Drain,
    Effect,
    Gossiped,
    Misbehaved,
    PeerDown,
    PeerUp,
    Penalise,
    ProfileChanged,
    Progressed,
    Publish,
    Received,
    Run,
    Save,
    Send,
    Stop,
    Submit,
    Tick,
    Unreachable,
)
from nexapod.protocol.messages import (
    Collect,
    Have,
    Message,
    Offer,
    Placed,
    Query,
    Redirect,
    Renew,
    Summary,
    Sync,
    View,
    Want,
)
from nexapod.protocol.node import Node
from nexapod.protocol.retention import AGE_SAVE_MS
from nexapod.protocol.statements import Cancel, Fault, Settlement
from nexapod.protocol.types import Digest, JobId, StatementId, TaskId, Validate

TWO = Validate(agree=2, max_replicas=3)
STRANGER = JobId(bytes(32))


def _alone(**more: object) -> Node:
    """A node that knows peers 1 and 2 besides itself, and has no links."""
    found = Node(signer(0), verify, NETWORK, lambda n: b"\x05" * n, **more)  # type: ignore[arg-type]
    found.handle(ProfileChanged(profile()), 0)
    for number in (1, 2):
        found.handle(Gossiped(pid(number), "profile", make(profile(), number).envelope), 0)
    found.handle(Tick(), node.MEMBERSHIP_MS)
    return found


def _said(effects: list[Effect], to: int) -> list[Message]:
    return [messages.decode(e.frame) for e in effects if isinstance(e, Send) and e.peer == pid(to)]


def _hear(one: Node, peer: int, message: Message, now: int = 1000) -> list[Effect]:
    return one.handle(Received(pid(peer), messages.encode(message)), now)


def _rules(effects: list[Effect]) -> list[str]:
    return [e.rule for e in effects if isinstance(e, Penalise)]


def _offer(*found: statements.Statement) -> Offer:
    return Offer(tuple(s.envelope for s in found))


def _submit(mesh: Mesh, number: int = 0, **changes: object) -> JobId:
    mesh.blobs[pid(number)].add(MODULE)
    mesh.do(number, Submit(job_spec(validate=TWO, **changes)))  # type: ignore[arg-type]
    return next(iter(mesh.nodes[pid(number)].submissions))


def _done(mesh: Mesh, number: int, name: JobId) -> bool:
    return mesh.nodes[pid(number)].submissions[name].settlement is not None


# --- whole jobs ----------------------------------------------------------------------------------------------------
def test_a_job_runs_settles_and_ends_with_a_certificate() -> None:
    mesh = Mesh(range(5))
    name = _submit(mesh, tasks=4)
    assert mesh.run(30_000, lambda: _done(mesh, 0, name))
    data = mesh.nodes[pid(0)].submissions[name].certificate()
    assert data is not None
    report = certificate.check(data, verify)
    assert report.problems == ()
    assert [t.outcome for t in report.tasks] == ["accepted"] * 4
    assert mesh.penalties() == []
    mesh.run(5_000)
    assert {n.jobs[name].state for n in mesh.nodes.values()} == {"settled"}
    assert {len(n.worker.attempts) for n in mesh.nodes.values()} == {0}


def test_a_lone_peer_can_run_a_job_that_needs_nobody_else() -> None:
    mesh = Mesh([0])
    mesh.blobs[pid(0)].add(MODULE)
    mesh.do(0, Submit(job_spec(validate=Validate(agree=1, max_replicas=1))))
    [name] = mesh.nodes[pid(0)].submissions
    assert mesh.run(30_000, lambda: _done(mesh, 0, name))


def test_a_wrong_result_is_outvoted() -> None:
    mesh = Mesh(range(6))
    mesh.result = lambda peer, run: result_of(b"wrong" if peer == pid(3) else b"right")
    name = _submit(mesh, tasks=6)
    assert mesh.run(120_000, lambda: _done(mesh, 0, name))
    submission = mesh.nodes[pid(0)].submissions[name]
    [right] = result_of(b"right").files
    assert {submission.outputs(task) for task in range(6)} == {(right,)}


def test_a_worker_that_vanishes_costs_one_lease() -> None:
    mesh = Mesh(range(6))
    mesh.result = lambda peer, run: None
    name = _submit(mesh)
    assert mesh.run(5_000, lambda: sum(map(len, mesh.running.values())) == 2)
    gone = next(n for n in range(6) if mesh.running[pid(n)])
    mesh.down.add(pid(gone))
    mesh.running[pid(gone)].clear()
    for other in range(6):
        if other != gone:
            mesh.do(other, PeerDown(pid(gone)))
    mesh.result = lambda peer, run: result_of(b"late")
    for number in range(6):
        mesh.finish(number, result_of(b"late"))
    home = next(n for n in (0, 1) if n != gone)
    if home != 0:
        mesh.restart(0)
    assert mesh.run(limits.LEASE_TTL_MS + 10_000, lambda: _done(mesh, 0, name))


def test_a_worker_that_restarts_offers_its_commit_again() -> None:
    mesh = Mesh(range(4))
    mesh.result = lambda peer, run: None
    name = _submit(mesh)
    assert mesh.run(5_000, lambda: sum(map(len, mesh.running.values())) == 2)
    first, second = (n for n in range(4) if mesh.running[pid(n)])
    mesh.finish(first, result_of(b"x"))
    task = TaskId(name, 0)
    assert mesh.nodes[pid(first)].worker.attempts[task].state == "committed"
    mesh.restart(first)
    assert mesh.nodes[pid(first)].worker.attempts[task].state == "committed"
    mesh.finish(second, result_of(b"x"))
    assert mesh.run(60_000, lambda: _done(mesh, 0, name))


def test_a_submitter_that_restarts_collects_what_happened_meanwhile() -> None:
    mesh = Mesh(range(6))
    name = _submit(mesh, tasks=3)
    mesh.down.add(pid(0))
    for other in range(1, 6):
        mesh.do(other, PeerDown(pid(0)))
    mesh.run(60_000)
    mesh.restart(0)
    assert mesh.run(60_000, lambda: _done(mesh, 0, name))
    data = mesh.nodes[pid(0)].submissions[name].certificate()
    assert data is not None
    assert certificate.check(data, verify).ok
    mesh.restart(0)
    assert mesh.nodes[pid(0)].jobs[name].state == "settled"


def test_a_cancelled_job_stops_everywhere_and_is_not_cancelled_twice() -> None:
    mesh = Mesh(range(4))
    mesh.result = lambda peer, run: None
    name = _submit(mesh)
    assert mesh.run(5_000, lambda: any(mesh.running.values()))
    mesh.do(0, CancelJob(name, "enough"))
    assert not any(mesh.running.values())
    assert {n.jobs[name].state for n in mesh.nodes.values()} == {"cancelled"}
    assert [e for _, e in mesh.log if isinstance(e, Stop)]
    with pytest.raises(LocalError, match="nothing to cancel"):
        mesh.do(0, CancelJob(name, "again"))
    with pytest.raises(LocalError, match="Only the peer that submitted"):
        mesh.do(1, CancelJob(name, "not mine"))
    mesh.restart(0)
    assert mesh.nodes[pid(0)].jobs[name].state == "cancelled"


def test_a_draining_peer_takes_no_new_tasks() -> None:
    mesh = Mesh(range(3))
    for number in range(3):
        mesh.do(number, Drain())
    _submit(mesh)
    mesh.run(20_000)
    assert not any(mesh.running.values())
    assert mesh.traces("bid") == []


def test_a_late_comer_hears_of_jobs_and_peers() -> None:
    mesh = Mesh(range(3))
    mesh.result = lambda peer, run: None
    name = _submit(mesh)
    late = mesh.add(7)
    assert name in late.jobs
    assert {pid(n) for n in (0, 1, 2, 7)} <= set(late.ctx.directory.known)


def test_a_settled_job_is_told_to_those_who_still_take_it_for_active() -> None:
    mesh = Mesh(range(5))
    late = _alone()
    name = _submit(mesh, 2)
    assert mesh.run(60_000, lambda: _done(mesh, 2, name))
    statement = mesh.nodes[pid(2)].jobs[name].statement
    _hear(late, 1, _offer(statement))
    assert late.jobs[name].state == "active"
    answers = _said(_hear(mesh.nodes[pid(2)], 1, Sync((name,), ()), mesh.now), 1)
    for answer in answers:
        _hear(late, 1, answer)
    assert late.jobs[name].state == "settled"


def test_stewards_forget_a_job_when_its_retention_ends() -> None:
    mesh = Mesh(range(1, 5))
    mesh.result = lambda peer, run: None
    submitted = job(9, validate=TWO, retention_ms=limits.RETENTION_MIN_MS)
    for peer in list(mesh.nodes):
        mesh.blobs[peer].add(MODULE)
        mesh.nodes[peer].handle(Gossiped(pid(9), "job", submitted.envelope), mesh.now)
    mesh.run(limits.RETENTION_MIN_MS + 10_000)
    for peer, found in mesh.nodes.items():
        assert found.jobs == {}
        assert found.stewards == {}
        assert found.worker.prospects == {}
        assert sorted(mesh.records[peer]) == [("forgotten", bytes(submitted.id)), ("seq", b"")]
        assert found.held_blobs() == frozenset()


def test_a_node_that_is_started_anew_every_day_forgets_as_well() -> None:
    day, retention_ms = 8 * 3_600_000, 3 * 24 * 3_600_000
    mesh = Mesh(range(1, 2))
    mesh.result = lambda peer, run: None
    submitted = job(9, validate=TWO, retention_ms=retention_ms)
    mesh.blobs[pid(1)].add(MODULE)
    mesh.do(1, Gossiped(pid(9), "job", submitted.envelope))
    name = JobId(submitted.id)
    days = 0
    while name in mesh.nodes[pid(1)].jobs:
        mesh.run(day)
        mesh.restart(1)
        days += 1
    lost = days * AGE_SAVE_MS  # by each restart, at the most
    assert days * day >= retention_ms
    assert (days - 1) * day < retention_ms + lost
    mesh.do(1, Gossiped(pid(9), "job", submitted.envelope))
    assert name not in mesh.nodes[pid(1)].jobs, "not by those who still tell of it either"


def test_the_forgotten_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_MAX", 2)
    mesh = Mesh(range(1, 2))
    for number in range(3):
        submitted = job(9, name=f"job {number}", retention_ms=limits.RETENTION_MIN_MS)
        mesh.do(1, Gossiped(pid(9), "job", submitted.envelope))
        mesh.run(limits.RETENTION_MIN_MS + 10_000)
    assert [key for kind, key in mesh.records[pid(1)] if kind == "forgotten"] == [bytes(submitted.id)]


# --- events of this machine ----------------------------------------------------------------------------------------
def test_the_users_mistakes_are_said_to_the_user() -> None:
    one = _alone()
    with pytest.raises(LocalError, match="network other"):
        one.handle(Submit(job_spec(network="other")), 0)
    with pytest.raises(LocalError, match="tasks"):
        one.handle(Submit(job_spec(tasks=0)), 0)


def test_submitting_the_same_job_again_is_the_same_job() -> None:
    one = _alone()
    one.handle(Submit(job_spec()), 0)
    one.handle(Submit(job_spec()), 0)
    assert len(one.jobs) == 1


def test_profiles_rise_across_restarts_and_are_repeated_with_jitter() -> None:
    one = _alone()
    first = one.seq
    saved = one.handle(ProfileChanged(profile()), 0)
    records = [e.record for e in saved if isinstance(e, Save)]
    assert one.seq == first + 1
    again = Node(signer(0), verify, NETWORK, lambda n: b"\x05" * n, records=records)
    again.handle(Tick(), 10)
    again.handle(ProfileChanged(profile()), 10)
    assert again.seq == first + 2
    assert again.deadline is not None
    effects = again.handle(Tick(), limits.PROFILE_MS + 10)
    assert [e.topic for e in effects if isinstance(e, Publish)] == ["profile"]


def test_progress_links_and_failures_are_taken_note_of() -> None:
    one = _alone()
    one.handle(Progressed(TaskId(STRANGER, 0), 5), 0)
    one.handle(PeerUp(pid(1), "/ip4/8.8.8.8/tcp/1"), 0)
    assert one.ctx.directory.group(pid(1)) == "8.8.8.0/24"
    one.handle(PeerDown(pid(1)), 0)
    one.handle(Unreachable(pid(2)), 0)
    assert not one.ctx.directory.live(pid(1), 1)
    assert not one.ctx.directory.live(pid(2), 1)


def test_the_clock_of_the_core_never_goes_back() -> None:
    one = _alone()
    one.handle(Tick(), 5_000)
    one.handle(Tick(), 1_000)
    assert one.ctx.now == 5_000


def test_links_are_compared_in_turn() -> None:
    one = _alone()
    for number in (1, 2):
        one.handle(PeerUp(pid(number), ""), 1000)
    asked = set()
    now = 1000
    while now < 3 * limits.PEER_SYNC_MS and one.deadline is not None:
        now = max(now, one.deadline)
        effects = one.handle(Tick(), now)
        asked |= {n for n in (1, 2) if any(isinstance(m, Sync) for m in _said(effects, n))}
    assert asked == {1, 2}


# --- penalties -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        (b"\xc1", "not-msgpack"),
        (msgpack.packb([99, []]), "unknown-message"),
        (messages.encode(Offer((b"x",))), "bad-envelope"),
        (messages.encode(_offer(job(8, network="other"))), "wrong-network"),
    ],
)
def test_bad_frames_are_held_against_their_sender(frame: bytes, rule: str) -> None:
    effects = _alone().handle(Received(pid(1), frame), 1000)
    assert [(e.peer, e.rule, e.ban) for e in effects if isinstance(e, Penalise)] == [(pid(1), rule, False)]


def test_penalties_add_up_to_a_ban_and_fade() -> None:
    one = _alone()
    bans = [
        e.ban for _ in range(3) for e in one.handle(Misbehaved(pid(1), "rude", 50), 1000) if isinstance(e, Penalise)
    ]
    assert bans == [False, False, True]
    assert one.penalties[pid(1)].points == 150
    one.handle(Misbehaved(pid(1), "rude", 1), 1000 + 2 * limits.PENALTY_DECAY_MS)
    assert one.penalties[pid(1)].points == 38
    one.handle(Misbehaved(pid(1), "rude", 1), 10**12)
    assert one.penalties[pid(1)].points == 1


def test_the_table_of_penalties_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROFILES_MAX", 2)
    one = _alone()
    for number in range(5):
        one.handle(Misbehaved(pid(number), "rude", 1), 0)
    assert len(one.penalties) <= 2


def test_more_jobs_a_minute_than_allowed_are_refused() -> None:
    one = _alone()
    rules = []
    for number in range(limits.JOBS_PER_AUTHOR_PER_MINUTE + 2):
        rules += _rules(_hear(one, 1, _offer(job(8, name=f"job {number}")), 1000))
    assert rules == [], "whoever passes them on is not to blame"
    assert len(one.jobs) == limits.JOBS_PER_AUTHOR_PER_MINUTE
    assert _rules(_hear(one, 1, _offer(job(8, name="another minute")), 61_000)) == []


def test_more_jobs_than_can_be_known_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_MAX", 1)
    one = _alone()
    for number in range(2):
        _hear(one, 1, _offer(job(8, name=f"job {number}")))
    assert len(one.jobs) == 1


# --- messages ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "message",
    [
        Query(STRANGER, 0),
        Collect(STRANGER, 0, ()),
        Renew(STRANGER, 0, ()),
        Summary(STRANGER, 0, 0, Digest(bytes(32))),
        Have(STRANGER, 0, (), True),
        _offer(replica(job(8), 1).bid),
    ],
)
def test_a_message_about_an_unknown_job_asks_for_the_job(message: Message) -> None:
    effects = _hear(_alone(), 1, message)
    wanted = JobId(job(8).id) if isinstance(message, Offer) else STRANGER
    assert _said(effects, 1) == [Want((StatementId(wanted),), ())]


def test_a_shard_that_the_job_does_not_have_is_a_mistake() -> None:
    one = _alone()
    of = job(8)
    _hear(one, 1, _offer(of))
    assert _rules(_hear(one, 1, Query(JobId(of.id), 1))) == ["no-such-shard"]


def test_one_that_is_no_steward_says_who_is_and_sends_their_profiles() -> None:
    one = _alone()
    for number in range(3, 30):
        one.handle(Gossiped(pid(number), "profile", make(profile(), number).envelope), 300)
    one.handle(Tick(), 1000)
    number = 0
    while True:
        of = job(8, name=f"job {number}")
        if one.me not in one.ctx.stewards(JobId(of.id), 0):
            break
        number += 1
    _hear(one, 1, _offer(of))
    nearest = one.ctx.stewards(JobId(of.id), 0)
    for message in (Query(JobId(of.id), 0), _offer(replica(of, 1).bid)):
        *offers, redirect = _said(_hear(one, 1, message), 1)
        assert redirect == Redirect(JobId(of.id), 0, nearest)
        shown = {decode(e).author for m in offers if isinstance(m, Offer) for e in m.envelopes}
        assert shown == set(nearest) - {pid(1)}
    assert [e.name for e in _hear(one, 1, redirect) if hasattr(e, "name")] == ["redirected"]


def test_whoever_asks_about_a_job_that_is_over_is_told_so() -> None:
    one = _alone()
    of = job(8)
    end = make(Cancel(JobId(of.id), ""), 8)
    _hear(one, 1, _offer(of, end))
    assert _said(_hear(one, 2, Query(JobId(of.id), 0)), 2) == [_offer(end)]


def test_only_the_submitter_ends_its_job() -> None:
    one = _alone()
    of = job(8)
    _hear(one, 1, _offer(of, make(Cancel(JobId(of.id), ""), 1), make(Cancel(STRANGER, ""), 8)))
    assert one.jobs[JobId(of.id)].state == "active"
    _hear(one, 1, _offer(make(Settlement(JobId(of.id), 1, 0, Digest(bytes(32))), 8)))
    assert one.jobs[JobId(of.id)].state == "settled"


def test_sync_gives_what_the_other_lacks_and_asks_for_what_is_missing_here() -> None:
    one = _alone()
    of = job(8)
    _hear(one, 1, _offer(of))
    effects = _hear(one, 1, Sync((STRANGER,), ((pid(2), 0), (pid(5), 3))))
    offer, want = _said(effects, 1)
    assert isinstance(offer, Offer)
    found = [decode(e) for e in offer.envelopes]
    assert {(s.kind, s.author) for s in found} == {("job", pid(8)), ("profile", pid(0)), ("profile", pid(2))}
    assert want == Want((StatementId(STRANGER),), (pid(5),))
    asked = _said(_hear(one, 1, Want((StatementId(of.id), StatementId(STRANGER)), (pid(2), pid(5)))), 1)
    assert [{decode(e).kind for e in m.envelopes} for m in asked if isinstance(m, Offer)] == [{"job", "profile"}]


def test_what_is_not_for_this_node_is_passed_over() -> None:
    one = _alone()
    for message in (
        Placed(STRANGER, 0),
        messages.Grant(STRANGER, 0, StatementId(STRANGER), (0,)),
        messages.Status(STRANGER, 0, ()),
        messages.View(STRANGER, 0, (), (), (), ()),
        Redirect(STRANGER, 0, ()),
    ):
        assert _rules(_hear(one, 1, message)) == []


# --- gossip --------------------------------------------------------------------------------------------------------
def test_what_may_be_forwarded() -> None:
    one = _alone()
    of = job(8)
    admitted = {
        ("profile", make(profile(seq=2), 1).envelope): True,
        ("profile", make(profile(network="other"), 1).envelope): False,
        ("profile", of.envelope): False,
        ("job", of.envelope): True,
        ("job", job(8, network="other").envelope): False,
        ("job", make(profile(), 1).envelope): False,
        ("job", make(Cancel(JobId(of.id), ""), 8).envelope): True,
        ("job", make(Settlement(JobId(of.id), 0, 0, Digest(bytes(32))), 8).envelope): True,
        ("job", replica(of, 1).bid.envelope): False,
        ("job", verdict(of, 1, [replica(of, 2)]).envelope): False,
        ("job", b"nonsense"): False,
        ("job", bytes(limits.ENVELOPE_BYTES_MAX + 1)): False,
        ("job", of.envelope[:-1] + bytes([of.envelope[-1] ^ 1])): False,
    }
    for (topic, data), expected in admitted.items():
        assert one.admit(topic, data) == expected  # type: ignore[arg-type]
    assert one.jobs == {}


def test_a_statement_on_the_wrong_topic_is_refused() -> None:
    one = _alone()
    assert _rules(one.handle(Gossiped(pid(1), "profile", job(8).envelope), 0)) == ["wrong-topic"]
    assert _rules(one.handle(Gossiped(pid(1), "job", make(profile(), 1).envelope), 0)) == ["wrong-topic"]
    assert _rules(one.handle(Gossiped(pid(1), "job", b"\xc1"), 0)) == ["not-msgpack"]


def test_a_fault_must_prove_itself() -> None:
    one = _alone()
    of = job(8)
    a, again, other = replica(of, 3), replica(of, 3, content=b"changed"), replica(of, 4)
    first, second = a.commit.envelope, again.commit.envelope
    _hear(one, 1, _offer(of, a.bid))

    def fault(one_commit: bytes, other_commit: bytes, task: int = 0) -> statements.Statement:
        return make(Fault(JobId(of.id), task, pid(3), one_commit, other_commit), 7)

    for wrong in (
        fault(first, first),
        fault(first, other.commit.envelope),
        fault(first, a.reveal.envelope),
        fault(first, second, task=1),
    ):
        assert _rules(_hear(_alone(), 1, _offer(wrong))) == ["bad-fault"]
    assert _rules(_hear(one, 1, _offer(fault(first, b"x")))) == ["bad-envelope"]
    assert _rules(_hear(one, 1, _offer(fault(first, second)))) == []
    steward = one.stewards[JobId(of.id), 0]
    assert pid(3) in steward.state.file(0).faults


def test_hearing_a_job_again_puts_off_announcing_it() -> None:
    one = _alone()
    of = job(8)
    _hear(one, 1, _offer(of), 1000)

    def announced(until: int) -> list[bytes]:
        found = []
        while one.deadline is not None and one.deadline <= until:
            found += [e.data for e in one.handle(Tick(), one.deadline) if isinstance(e, Publish) and e.topic == "job"]
        return found

    assert announced(40_000) == []
    one.handle(Gossiped(pid(2), "job", of.envelope), 40_000)
    assert announced(40_000 + limits.ANNOUNCE_MS - 1) == []
    assert announced(40_000 + limits.ANNOUNCE_MS + 20_000) == [of.envelope]


# --- what goes wrong today (see docs/protocol.md, Known weaknesses) --------------------------------------------------
def test_a_submitter_forgets_its_job_when_its_retention_ends() -> None:
    mesh = Mesh(range(3))
    mesh.result = lambda peer, run: None
    name = _submit(mesh, retention_ms=limits.RETENTION_MIN_MS)
    mesh.run(limits.RETENTION_MIN_MS + 10_000)
    assert name not in mesh.nodes[pid(0)].submissions


def test_a_submission_that_does_not_fit_the_table_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOBS_MAX", 0)
    with pytest.raises(LocalError):
        _alone().handle(Submit(job_spec()), 0)


def test_what_may_be_forwarded_is_never_held_against_whoever_published_it_again() -> None:
    one = _alone()
    of = job(8)
    a, again = replica(of, 3), replica(of, 3, content=b"changed")
    proof = Fault(JobId(of.id), 0, pid(3), a.commit.envelope, again.commit.envelope)
    lie = make(replace(proof, second=proof.first), 7)
    assert not one.admit("job", lie.envelope) or not _rules(one.handle(Gossiped(pid(1), "job", lie.envelope), 0))


def test_giving_a_newcomer_all_jobs_of_a_busy_submitter_is_no_offence() -> None:
    many = [job(8, name=f"job {n}") for n in range(limits.JOBS_PER_AUTHOR_PER_MINUTE + 1)]
    assert _rules(_hear(_alone(), 1, _offer(*many))) == []


def test_runs_are_said_with_what_they_need() -> None:
    mesh = Mesh(range(3))
    name = _submit(mesh)
    mesh.run(20_000, lambda: _done(mesh, 0, name))
    runs = [e for _, e in mesh.log if isinstance(e, Run)]
    assert {run.task for run in runs} == {TaskId(name, 0)}
    assert len({run.seed for run in runs}) == 1


def test_a_certificate_still_checks_after_a_restart() -> None:
    mesh = Mesh(range(6))
    name = _submit(mesh, tasks=3)
    mesh.down.add(pid(0))
    for other in range(1, 6):
        mesh.do(other, PeerDown(pid(0)))
    mesh.run(60_000)
    mesh.restart(0)
    assert mesh.run(60_000, lambda: _done(mesh, 0, name))
    before = mesh.nodes[pid(0)].submissions[name].certificate()
    assert before is not None
    assert certificate.check(before, verify).problems == ()
    mesh.restart(0)
    after = mesh.nodes[pid(0)].submissions[name].certificate()
    assert after is not None
    assert certificate.check(after, verify).problems == ()


def _bids_after_a_view_of(liar: int | None) -> bool:
    one, of = _alone(), job(8, validate=TWO)
    _hear(one, 1, _offer(of))
    if liar is not None:
        _hear(one, liar, View(JobId(of.id), 0, (), (), (0,), ()))
    one.handle(Tick(), 11_000)
    return TaskId(JobId(of.id), 0) in one.worker.attempts


def test_a_stranger_cannot_make_a_worker_leave_a_shard() -> None:
    assert _bids_after_a_view_of(None)
    assert not _bids_after_a_view_of(1)
    assert _bids_after_a_view_of(7)
