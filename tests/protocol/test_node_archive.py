"""What a node reads back from disk, and what it leaves there once nobody asks any more."""

from __future__ import annotations

from dataclasses import replace

from nexapod.protocol import limits
from nexapod.protocol.events import Submit
from nexapod.protocol.node.archive import Archive
from nexapod.protocol.node.clearing import Clearing
from nexapod.protocol.notices import JobSettled
from nexapod.protocol.records import Record
from nexapod.protocol.submitter import records
from tests.protocol.kit import make_kit
from tests.protocol.mesh import Mesh, job_of, job_spec
from tests.protocol.submitter_bench import make_context

RETENTION_MS = limits.RETENTION_MIN_MS


def settled_mesh(tasks: int) -> Mesh:
    mesh = Mesh(3, run_ms=20)
    mesh.start(slots=64)
    mesh.run_for(200)
    spec = replace(job_spec(tasks=tasks), retention_ms=RETENTION_MS)
    mesh.give(mesh.names[0], Submit(spec, accept_unknown=True))
    assert mesh.run_until(lambda: bool(mesh[0].noticed(JobSettled)), 60_000)
    mesh.run_for(500)
    return mesh


def submission_kinds(mesh: Mesh) -> set[str]:
    return {kind for kind, _ in mesh[0].records if kind.startswith("submission")}


def test_what_a_call_saves_is_read_back_within_it() -> None:
    kit = make_kit()
    ctx, _ = make_context(kit.submitter, 1_000)
    disk = [Record("k", b"a1", b"old"), Record("k", b"a2", b"kept")]
    archive = Archive(ctx, lambda kind, prefix: [r for r in disk if r.kind == kind and r.key.startswith(prefix)])
    ctx.save(Record("k", b"a1", None))
    ctx.save(Record("k", b"a3", b"new"))
    ctx.save(Record("k", b"b1", b"other prefix"))
    assert [record.key for record in archive.records("k", b"a")] == [b"a2", b"a3"]


def test_evidence_is_read_back_after_a_restart_and_deleted_when_its_time_is_up() -> None:
    mesh = settled_mesh(tasks=6)
    job = job_of(mesh[0])
    before = b"".join(mesh[0].node.certificate(job))
    mesh.restart(0)
    assert b"".join(mesh[0].node.certificate(job)) == before
    assert records.EVIDENCE in submission_kinds(mesh)
    mesh.run_for(2 * RETENTION_MS)
    assert submission_kinds(mesh) == set()
    assert mesh[0].node.job_report(job) is None


def test_clearing_goes_on_after_a_crash() -> None:
    kit = make_kit()
    disk = {(records.EVIDENCE, records.evidence_key(kit.job, shard, kit.job)): b"e" for shard in range(3)}

    def read(kind: str, prefix: bytes) -> list[Record]:
        return [Record(k, key, v) for (k, key), v in disk.items() if k == kind and key.startswith(prefix)]

    def commit() -> None:
        for effect in ctx.effects:
            key = (effect.record.kind, effect.record.key)
            if effect.record.value is None:
                disk.pop(key, None)
            else:
                disk[key] = effect.record.value
        ctx.effects.clear()

    ctx, _ = make_context(kit.submitter, 1_000)
    first = Clearing(ctx, Archive(ctx, read))
    first.begin(kit.job, 3)
    first.tick()
    commit()
    assert len(disk) == 3  # two shards, and what says that they are to go
    again = Clearing(ctx, Archive(ctx, read))
    for record in read(records.CLEARED, b""):
        again.restore(record)
    while again.deadline is not None:
        ctx.now = max(ctx.now, again.deadline)
        again.tick()
        commit()
    assert disk == {}
