"""A node starts from whatever lies in its store, and goes on where the process before it stood."""

from __future__ import annotations

import pytest

from nexapod.protocol import limits
from nexapod.protocol.errors import LocalError
from nexapod.protocol.events import CancelJob, Penalise, ProfileChanged, Received, Save, Send, Submit, Tick
from nexapod.protocol.node import recovery
from nexapod.protocol.node.node import Node
from nexapod.protocol.notices import JobClosed, JobSettled
from nexapod.protocol.primitives import key_of_peer_id
from nexapod.protocol.records import Record
from nexapod.protocol.wire import messages, statements
from nexapod.protocol.wire.messages import Hello, Probe
from nexapod.sim.keys import HashSigner, verify
from tests.protocol.kit import make_kit
from tests.protocol.mesh import NETWORK, Mesh, job_of, job_spec, profile

ME = HashSigner(9, "me")
ONE = HashSigner(9, "one").peer


def node(records: list[Record], now: int = 5_000) -> Node:
    return Node(ME, verify, NETWORK, "peer", lambda count: bytes(count), records=records, now=now)


def stated(certificate: bytes) -> list[bytes]:
    """The ids of a certificate's statements: which signatures it shows of more than enough may differ."""
    found, at = [], len(b"NEXAPOD-CERTIFICATE-3\n")
    while size := int.from_bytes(certificate[at : at + 4], "big"):
        found.append(statements.read(certificate[at + 4 : at + 4 + size]).id)
        at += 4 + size
    return found


# --- sorting what was kept -----------------------------------------------------------------------------------------
def test_records_that_cannot_be_read_are_set_aside_with_a_reason() -> None:
    kit = make_kit()
    job = kit.job_statement
    orphan = kit.cancel()
    bad = [
        Record("job", b"x" * 64, b"garbage"),
        Record("job", job.id + job.id, b"\x94\x01\xa3job\xc4\x00\x90"),
        Record("job", b"other key", job.envelope),
        Record("job-age", b"short", bytes(8)),
        Record("job-age", bytes(32), b"short"),
        Record("job-ended", bytes(32), b"short"),
        Record("node", b"of a later version", b"?"),
        Record("node", b"ban/short", bytes(4)),
        Record("shard", bytes(36), b"\x00"),
        Record("steward", b"short", b""),
    ]
    found = recovery.recover([*bad, Record("job", kit.job + orphan.id, orphan.envelope)])
    assert len(found.set_aside) == len(bad) + 1
    assert all(reason for _, reason in found.set_aside)
    assert not found.jobs


def test_what_was_kept_comes_back_in_an_order_in_which_it_can_be_folded() -> None:
    kit = make_kit()
    kept = [kit.cancel(), kit.placed(kit.members[1]), *kit.round(), kit.job_statement, kit.placed(kit.members[0])]
    records = [Record("job", kit.job + statement.id, statement.envelope) for statement in kept]
    found = recovery.recover(reversed(records))
    kinds = [statement.kind for statement in found.jobs[kit.job]]
    assert kinds == ["job", "placed", "placed", "admission", "beacon", "cancel"]
    assert not found.set_aside


def test_a_deleted_record_is_none() -> None:
    assert recovery.recover([Record("job", bytes(64), None)]) == recovery.Recovered()


def test_a_store_of_an_older_version_does_not_stop_a_node() -> None:
    old = [Record("statement", bytes(32), b"\x94\x02junk"), Record("seq", b"", bytes(8)), Record("attempt", b"k", b"v")]
    effects = node(old).handle(Tick(), 5_000)
    traces = [effect for effect in effects if type(effect).__name__ == "Trace"]
    assert len(traces) == 3
    assert not [effect for effect in effects if isinstance(effect, Save)]


# --- what outlives a process -------------------------------------------------------------------------------------
def test_a_ban_outlives_a_restart() -> None:
    first, saved = node([]), []
    for _ in range(20):
        effects = first.handle(Received(ONE, b"garbage"), 5_000)
        saved += [effect.record for effect in effects if isinstance(effect, Save)]
    assert [record.key for record in saved] == [recovery.BAN + key_of_peer_id(ONE)]
    second = node(saved, now=7)
    bans = [effect for effect in second.handle(Tick(), 7) if isinstance(effect, Penalise)]
    assert [(ban.peer, ban.ban_ms) for ban in bans] == [(ONE, limits.BAN_MS)]
    assert not second.handle(Received(ONE, messages.encode(Probe(1, None))), 8)
    assert second.handle(Received(ONE, messages.encode(Probe(1, None))), 8 + limits.BAN_MS)


def test_the_number_of_a_profile_rises_across_restarts() -> None:
    first = node([])
    saved = [e.record for e in first.handle(ProfileChanged(profile(stamp=0)), 5_000) if isinstance(e, Save)]
    second = node(saved)
    saved = [e.record for e in second.handle(ProfileChanged(profile(stamp=0)), 5_000) if isinstance(e, Save)]
    assert [int.from_bytes(record.value or b"", "big") for record in saved] == [2]


def test_a_call_that_refuses_the_user_loses_nothing() -> None:
    me = node([])
    with pytest.raises(LocalError):
        me.handle(CancelJob(make_kit().job, "no"), 5_000)
    with pytest.raises(LocalError):
        me.handle(Submit(job_spec()), 5_000)
    assert me.deadline is not None


@pytest.mark.parametrize(("restarted", "after_ms"), [(0, 150), (1, 150), (2, 450), (3, 450), (0, 800), (1, 800)])
def test_a_job_settles_although_a_node_is_killed(restarted: int, after_ms: int) -> None:
    mesh = Mesh(4)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    mesh.run_for(after_ms)
    mesh.restart(restarted)
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)), 300_000)
    for peer in mesh.peers.values():
        assert peer.penalties == []


def test_a_settled_job_is_certified_after_a_restart_as_well() -> None:
    mesh = Mesh(3)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)))
    job = job_of(mesh[0])
    mesh.run_for(1_000)
    before = stated(b"".join(mesh[0].node.certificate(job)))
    mesh.restart(0)
    assert not mesh[0].node.report().jobs
    assert stated(b"".join(mesh[0].node.certificate(job))) == before
    told = mesh[0].node.job_report(job)
    assert told is not None
    assert told.standing == "settled"
    assert not mesh[0].noticed(JobClosed)


def test_nothing_in_a_store_outlives_its_job() -> None:
    mesh = Mesh(4)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    assert mesh.run_until(
        lambda: any(kind.startswith("steward") for peer in mesh.peers.values() for kind, _ in peer.records)
    )
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)))
    mesh.run_for(1_000)
    for number in (1, 2, 3):
        kinds = {kind for kind, _ in mesh[number].records}
        assert kinds <= {"node", "job-ended", "worker-seq"}
    assert not [kind for kind, _ in mesh[0].records if kind.startswith(("steward", "gate", "tenure"))]


# --- sleep -------------------------------------------------------------------------------------------------------
def test_a_machine_that_slept_does_not_find_everything_expired() -> None:
    mesh = Mesh(3, run_ms=20_000)
    mesh.start()
    mesh.run_for(200)
    mesh.give(mesh.names[0], Submit(job_spec(), accept_unknown=True))
    mesh.run_for(5_000)
    assert any(peer.running for peer in mesh.peers.values())
    # The whole network was suspended for an hour.
    mesh.suspend(3_600_000)
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)), 60_000)
    lost = [t.name for peer in mesh.peers.values() for t in peer.traces if t.name in ("lease_expired", "lease_lost")]
    assert lost == []
    assert any(t.name == "clock_gap_skipped" for peer in mesh.peers.values() for t in peer.traces)


def test_hello_is_the_first_thing_said_on_a_link() -> None:
    mesh = Mesh(2)
    mesh.start()
    first = mesh[0].node.handle(Tick(), mesh.now)
    assert not [effect for effect in first if isinstance(effect, Send)]
    assert mesh.sent[Hello.__name__] == 2
