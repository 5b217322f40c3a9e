"""How a node learns of jobs, passes them on, keeps and forgets them, and what strangers may make it do."""

from __future__ import annotations

from dataclasses import replace

from nexapod.protocol import limits
from nexapod.protocol.events import Effect, PeerUp, Penalise, Received, Send, Submit, Tick
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import JobClosed, JobLearned
from nexapod.protocol.primitives import JobId, PeerId, StatementId
from nexapod.protocol.wire import messages, reconcile, statements
from nexapod.protocol.wire.messages import (
    Alive,
    Announce,
    Card,
    Claim,
    Deliver,
    Gone,
    Grant,
    Message,
    Probe,
    Reconcile,
    Sample,
    Want,
)
from nexapod.protocol.wire.statements import Statement
from nexapod.sim.keys import HashSigner, verify
from tests.protocol.kit import JobKit, make_kit
from tests.protocol.mesh import NETWORK, Mesh, job_spec

ONE, TWO, THREE = (HashSigner(9, name).peer for name in ("one", "two", "three"))


class Lone:
    """One node, and what it says to peers that are no nodes."""

    def __init__(self, *links: PeerId) -> None:
        self.now = 1_000
        self.node = Node(HashSigner(9, "me"), verify, NETWORK, "peer", lambda count: bytes(count), now=self.now)
        self.effects: list[Effect] = []
        for place, peer in enumerate(links):
            self.take(PeerUp(peer, f"/ip4/10.0.{place}.1/tcp/1", dialled=False))
        self.effects.clear()

    def take(self, event: object) -> None:
        self.effects += self.node.handle(event, self.now)  # type: ignore[arg-type]

    def hear(self, peer: PeerId, *said: Message) -> list[Effect]:
        """What the node does because of these."""
        before = len(self.effects)
        for message in said:
            self.take(Received(peer, messages.encode(message)))
        return self.effects[before:]

    def deliver(self, peer: PeerId, *delivered: Statement) -> list[Effect]:
        return self.hear(peer, *messages.deliveries(statement.envelope for statement in delivered))


def said(effects: list[Effect], peer: PeerId) -> list[Message]:
    return [messages.decode(effect.frame) for effect in effects if isinstance(effect, Send) and effect.peer == peer]


def announcement(kit: JobKit, *, seq: int = 1, call: int = 5) -> Announce:
    size = len(kit.job_statement.envelope)
    gate = tuple(seat.peer for seat in kit.seats())
    return Announce((Card(kit.job, kit.submitter.peer, size, "wasm", 1, 0, gate, call, seq),))


def workable(kit: JobKit) -> list[Statement]:
    return [kit.job_statement, *(kit.placed(member) for member in kit.members[:2])]


# --- learning ----------------------------------------------------------------------------------------------------
def test_a_card_is_asked_about_and_passed_on_once_the_job_is_checked() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO, THREE)
    asked = lone.hear(ONE, announcement(kit))
    assert said(asked, ONE) == [Want((StatementId(kit.job),))]
    assert not said(asked, TWO)
    learned = lone.deliver(ONE, *workable(kit))
    assert [type(effect) for effect in learned if isinstance(effect, JobLearned)] == [JobLearned]
    assert not said(learned, ONE)
    for other in (TWO, THREE):
        (told,) = said(learned, other)
        assert isinstance(told, Announce)
        assert [(card.job, card.seq, card.call) for card in told.cards] == [(kit.job, 1, 5)]


def test_each_announcement_is_passed_on_once_whoever_brings_it() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO, THREE)
    lone.hear(ONE, announcement(kit))
    lone.deliver(ONE, *workable(kit))
    assert not said(lone.hear(TWO, announcement(kit)), THREE)
    again = lone.hear(TWO, announcement(kit, seq=2, call=10))
    assert len(said(again, ONE)) == len(said(again, THREE)) == 1
    assert not said(again, TWO)


def test_what_a_card_says_of_the_job_is_not_passed_on_but_this_nodes_own() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO)
    lie = Card(kit.job, ONE, 1, "docker", 1 << 60, 8, (ONE,), 7, 1)
    lone.hear(ONE, Announce((lie,)))
    (told,) = said(lone.deliver(ONE, *workable(kit)), TWO)
    assert isinstance(told, Announce)
    (card,) = told.cards
    assert (card.submitter, card.executor, card.gate) == (kit.submitter.peer, "wasm", announcement(kit).cards[0].gate)


def test_an_invented_sequence_of_announcements_is_passed_on_at_a_rate() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO)
    lone.hear(ONE, announcement(kit))
    lone.deliver(ONE, *workable(kit))
    flood = lone.hear(ONE, *(announcement(kit, seq=seq) for seq in range(2, 1_000)))
    assert len(said(flood, TWO)) <= 4 * limits.JOB_RELAYS_PER_MINUTE


def test_a_job_that_nobody_may_work_on_is_not_kept() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO)
    effects = lone.deliver(ONE, kit.job_statement, kit.placed(kit.members[0]))
    assert not [effect for effect in effects if isinstance(effect, JobLearned)]
    assert not said(effects, TWO)
    assert lone.node.report().jobs == ()


def test_a_job_of_another_network_is_not_kept() -> None:
    kit, lone = make_kit(), Lone(ONE)
    other = Node(HashSigner(9, "other"), verify, "elsewhere", "peer", lambda count: bytes(count), now=1_000)
    effects = other.handle(Received(ONE, messages.encode(Deliver((kit.job_statement.envelope,)))), 1_000)
    assert [effect.rule for effect in effects if isinstance(effect, Penalise)] == ["wrong-network"]
    assert lone.node.report().jobs == ()


def test_an_author_has_so_many_open_jobs_here() -> None:
    lone = Lone(ONE)
    kits = [make_kit(seed=1) for _ in range(limits.JOBS_PER_AUTHOR_PER_MINUTE + 5)]
    for number, kit in enumerate(kits):
        kit.job_statement = statements.make(replace(kit.spec, nonce=b"%16d" % number), kit.submitter)
        lone.deliver(ONE, *workable(kit))
    assert len(lone.node.report().jobs) == limits.JOBS_PER_AUTHOR_PER_MINUTE


# --- giving ------------------------------------------------------------------------------------------------------
def test_whoever_wants_a_job_gets_what_makes_it_workable_once_in_a_while() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO)
    lone.deliver(ONE, *workable(kit))
    want = Want((StatementId(kit.job),))
    (given,) = said(lone.hear(TWO, want), TWO)
    assert isinstance(given, Deliver)
    kinds = [statements.decode(envelope, verify).kind for envelope in given.envelopes]
    assert kinds == ["job", "placed", "placed"]
    assert not said(lone.hear(TWO, *([want] * 100)), TWO)
    lone.now += limits.ASK_AGAIN_MS
    assert said(lone.hear(TWO, want), TWO)


def test_many_that_are_wanted_at_once_are_given_as_far_as_the_answer_may_go() -> None:
    lone, kits = Lone(ONE, TWO), [make_kit(seed=seed, members=20) for seed in range(15)]
    for kit in kits:
        lone.deliver(ONE, *workable(kit))
    want = Want(tuple(StatementId(kit.job) for kit in kits))
    effects = lone.hear(TWO, want)
    size = sum(len(effect.frame) for effect in effects if isinstance(effect, Send))
    largest = max(len(kit.job_statement.envelope) for kit in kits)
    allowed = max(limits.ANSWER_FREE_BYTES, limits.ANSWER_FACTOR_MAX * len(messages.encode(want)))
    assert 0 < size < allowed + largest + 1_000


def test_whoever_speaks_of_an_epoch_that_is_unknown_here_is_asked_how_it_came_about() -> None:
    kit = make_kit(members=5)
    lone, seats = Lone(ONE, *(member.peer for member in kit.members)), [seat.peer for seat in kit.seats()]
    lone.deliver(ONE, *workable(kit))
    signers, spare = kit.seats()[:2], [member for member in kit.members if member.peer not in seats]
    first = kit.succession([*signers, spare[0]], signers)
    second = kit.succession([*signers, spare[1]], signers, epoch=2, previous=first.id)

    def asked(effects: list[Effect], peer: PeerId) -> bool:
        return Want((StatementId(kit.job),)) in said(effects, peer)

    assert asked(lone.hear(seats[0], Grant(kit.job, 0, 2, (0,), ())), seats[0])
    assert not asked(lone.hear(seats[1], Grant(kit.job, 0, 0, (0,), ())), seats[1])
    assert asked(lone.deliver(seats[1], second), seats[1])
    lone.deliver(seats[1], first)
    newest = spare[1].peer
    assert not asked(lone.hear(newest, Grant(kit.job, 0, 2, (0,), ())), newest)
    assert asked(lone.hear(seats[2], Grant(kit.job, 0, 2, (0,), ())), seats[2]), "it is no seat, by what is known here"


def test_an_admitted_worker_that_asks_is_given_its_admission_and_what_was_adopted() -> None:
    kit = make_kit(members=4)
    mine, others = kit.round(kit.workers[:1]), kit.round(kit.workers[1:], round=2)
    seats = kit.seats()
    spare = next(member for member in kit.members if member not in seats)
    succession = kit.succession([*seats[:2], spare], seats[:2])
    adoption = kit.adoption([*mine, *others], seats[:2])
    worker, stranger = kit.workers[0].peer, ONE
    lone = Lone(seats[0].peer, worker, stranger)
    lone.deliver(seats[0].peer, *workable(kit), *mine, *others, succession, adoption)
    for peer, more in ((worker, {adoption.id, *(one.id for one in mine)}), (stranger, set())):
        answer = said(lone.hear(peer, Want((StatementId(kit.job),))), peer)
        given = {statements.read(e).id for message in answer if isinstance(message, Deliver) for e in message.envelopes}
        assert given == {one.id for one in workable(kit)} | {succession.id} | more


def test_two_that_compare_find_out_which_jobs_each_lacks() -> None:
    kit, lone = make_kit(), Lone(ONE)
    lone.deliver(ONE, *workable(kit))
    theirs = [StatementId(bytes(32)), StatementId(b"\xff" * 32)]
    answers = said(lone.hear(ONE, Reconcile(None, 0, b"", reconcile.opening(theirs))), ONE)
    assert [card.job for answer in answers if isinstance(answer, Announce) for card in answer.cards] == [kit.job]
    assert [answer.ids for answer in answers if isinstance(answer, Want)] == [tuple(theirs)]
    assert not said(lone.hear(ONE, Reconcile(None, 0, b"", reconcile.opening([StatementId(kit.job)]))), ONE)


# --- ending ------------------------------------------------------------------------------------------------------
def test_a_closing_floods_once_and_is_what_later_questions_get() -> None:
    kit, lone = make_kit(), Lone(ONE, TWO, THREE)
    lone.deliver(ONE, *workable(kit))
    cancel = kit.cancel()
    effects = lone.deliver(TWO, cancel)
    assert [effect.how for effect in effects if isinstance(effect, JobClosed)] == ["cancelled"]
    for peer, expected in ((ONE, 1), (TWO, 0), (THREE, 1)):
        assert len(said(effects, peer)) == expected
    assert not said(lone.deliver(THREE, cancel), ONE)
    closing, gone = said(lone.hear(ONE, announcement(kit)), ONE)
    assert closing == Deliver((cancel.envelope,))
    assert gone == Gone(kit.job, known=True)
    assert not [e for e in lone.deliver(ONE, *workable(kit)) if isinstance(e, JobLearned)], "it is over for good"


def test_nobody_but_its_submitter_ends_a_job() -> None:
    kit, lone = make_kit(), Lone(ONE)
    lone.deliver(ONE, *workable(kit))
    effects = lone.deliver(ONE, kit.cancel(signer=kit.workers[0]))
    assert [effect.rule for effect in effects if isinstance(effect, Penalise)] == ["not-the-submitter"]
    assert lone.node.report().jobs == (kit.job,)


def test_a_job_is_forgotten_when_its_retention_ends() -> None:
    kit, lone = make_kit(), Lone(ONE)
    kit.job_statement = statements.make(replace(kit.spec, retention_ms=limits.RETENTION_MIN_MS), kit.submitter)
    lone.deliver(ONE, *workable(kit))
    end = lone.now + limits.RETENTION_MIN_MS
    while lone.now < end:
        deadline = lone.node.deadline
        assert deadline is not None
        lone.now = deadline
        lone.take(Tick())
    assert [effect.how for effect in lone.effects if isinstance(effect, JobClosed)] == ["expired"]
    assert not [effect for effect in lone.deliver(ONE, *workable(kit)) if isinstance(effect, JobLearned)]


# --- strangers ---------------------------------------------------------------------------------------------------
def test_a_peer_that_speaks_of_an_unknown_job_is_told_so_once_in_a_while() -> None:
    kit, lone = make_kit(), Lone(ONE)
    claim = Claim(kit.job, 0, 1, 1, (), (), 0)
    assert said(lone.hear(ONE, *([claim] * 50)), ONE) == [Gone(kit.job, known=False)]


def test_statements_of_unknown_jobs_cost_no_signature_check() -> None:
    checked = 0

    def counting(peer: PeerId, data: bytes, signature: bytes) -> bool:
        nonlocal checked
        checked += 1
        return verify(peer, data, signature)

    kit = make_kit()
    node = Node(HashSigner(9, "me"), counting, NETWORK, "peer", lambda count: bytes(count), now=0)
    frame = messages.encode(Deliver(tuple(kit.cancel(str(n)).envelope for n in range(200))))
    effects = node.handle(Received(ONE, frame), 0)
    assert checked == 0
    assert said(effects, ONE) == [Want((StatementId(kit.job),))]


def test_garbage_is_a_penalty_and_then_a_ban() -> None:
    lone = Lone(ONE)
    for _ in range(20):
        lone.take(Received(ONE, b"\x93garbage"))
    bans = [effect.ban_ms for effect in lone.effects if isinstance(effect, Penalise) and effect.ban_ms]
    assert bans == [limits.BAN_MS]
    before = len(lone.effects)
    lone.hear(ONE, Probe(1, None))
    assert len(lone.effects) == before


def test_a_probe_is_answered() -> None:
    lone = Lone(ONE, TWO)
    assert said(lone.hear(ONE, Probe(1, None), Probe(2, TWO), Probe(3, THREE)), ONE) == [
        Alive(1, reached=True),
        Alive(2, reached=True),
        Alive(3, reached=False),
    ]


def test_a_sample_that_nobody_asked_for_is_not_read() -> None:
    lone, kit = Lone(ONE), make_kit()
    effects = lone.hear(ONE, Sample((kit.job_statement.envelope,), answer=False))
    assert not effects
    asked = lone.hear(ONE, Sample((kit.job_statement.envelope,), answer=True))
    assert [effect.rule for effect in asked if isinstance(effect, Penalise)] == ["bad-sample"]


def test_a_flood_of_frames_is_dropped_and_told_once() -> None:
    lone = Lone(ONE)
    effects = lone.hear(ONE, *([Reconcile(None, 0, b"", ())] * limits.LINK_COST_BURST))
    names = [effect.name for effect in effects if type(effect).__name__ == "Trace"]  # type: ignore[union-attr]
    assert names.count("frames_dropped") == 1


# --- several nodes ------------------------------------------------------------------------------------------------
def test_a_node_that_comes_late_learns_the_open_jobs() -> None:
    mesh = Mesh(5, run_ms=600_000)
    mesh.start()
    late = mesh.names[4]
    for other in mesh.names[:4]:
        mesh.cut(late, other)
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    mesh.run_for(3_000)
    assert not mesh[4].noticed(JobLearned)
    mesh.link(late, mesh.names[1])
    mesh.run_for(1_000)
    assert mesh[4].noticed(JobLearned)


def test_reports_say_how_things_stand() -> None:
    mesh = Mesh(4, run_ms=5_000)
    mesh.start()
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    mesh.run_for(3_000)
    node = mesh[0].node
    (job,) = node.report().jobs
    told = node.job_report(JobId(job))
    assert told is not None
    assert (told.standing, told.tasks, told.workable, told.groups) == ("open", 4, True, 4)
    assert len(node.report().links) == 3
    assert node.job_report(JobId(bytes(32))) is None
    assert node.task_report(job, 9) is None
    seated = next(peer for peer in mesh.peers.values() if peer.node.report().stewardships)
    task = seated.node.task_report(job, 0)
    assert task is not None
    assert task.standing in ("running", "open")
