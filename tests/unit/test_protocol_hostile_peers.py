"""Whatever well-formed, well-signed nonsense a peer sends, in whatever state a node is: `handle` does not raise.

Frames that are no frames are tests/properties' business; here each is right by itself, and wrong for this job, task,
shard, sender or moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from protocol_kit import (
    MODULE,
    NETWORK,
    ZERO,
    Mesh,
    job_spec,
    make,
    pid,
    profile,
    replica,
    same_result,
    signer,
    verdict,
    verify,
)

from nexapod.protocol import messages as m
from nexapod.protocol.events import Gossiped, PeerUp, ProfileChanged, Received, Submit
from nexapod.protocol.node import Node
from nexapod.protocol.records import Record
from nexapod.protocol.statements import Cancel, Checkpoint, Commit, Fault, Settlement, Statement
from nexapod.protocol.types import Digest, File, JobId, Run, StatementId, Validate, blob_of

TASKS = 25
PEERS = (0, 1, 2, 5)
"""Two of them are stewards and workers beside node 0, one is a stranger."""
NUMBERS = (0, 1, TASKS - 1, TASKS, 255, 256, 300, 999_999)
SHARDS = (0, 0, 0, 1, 3_906)


def _mesh() -> tuple[Mesh, Statement]:
    """Node 0 submitted a job, keeps it, and works on it: of one of its tasks it has committed, others run."""
    mesh = Mesh(range(3))
    mesh.blobs[pid(0)].add(MODULE)
    mesh.result = lambda peer, run: same_result(run) if peer == pid(0) else None
    spec = job_spec(
        tasks=TASKS, run=Run("wasm", module=MODULE, checkpoint="shared"), validate=Validate(agree=2, max_replicas=3)
    )
    mesh.do(0, Submit(spec))
    node = mesh.nodes[pid(0)]
    assert mesh.run(60_000, lambda: any(a.state == "committed" for a in node.worker.attempts.values()))
    [submission] = node.submissions.values()
    return mesh, submission.statement


def _submitting(mesh: Mesh) -> Node:
    return mesh.nodes[pid(0)]


def _serving(mesh: Mesh) -> Node:
    """A steward and worker of another's job."""
    return mesh.nodes[pid(1)]


def _just_started(mesh: Mesh) -> Node:
    """From disk, with its hardware still unknown, though others are there already."""
    saved = [Record(kind, key, value) for (kind, key), value in sorted(mesh.records[pid(0)].items())]
    node = Node(signer(0), verify, NETWORK, lambda n: b"\x06" * n, records=saved, now=mesh.now)
    for number in (1, 2):
        node.handle(PeerUp(pid(number), "/ip4/127.0.0.1/tcp/1"), mesh.now)
        node.handle(Gossiped(pid(number), "profile", make(profile(), number).envelope), mesh.now)
    return node


class Nonsense:
    """One message after another, each of which the codec accepts."""

    def __init__(self, of: Statement, rng: Random) -> None:
        self.of, self.rng, self.job = of, rng, JobId(of.id)
        self.ids = [StatementId(ZERO), StatementId(of.id)]
        self.said: list[Statement] = []

    def number(self) -> int:
        return self.rng.choice(NUMBERS)

    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted({self.number() for _ in range(self.rng.randrange(4))}))

    def statement(self) -> Statement:
        rng, who = self.rng, self.rng.choice(PEERS)
        of = make(replace(self.of.body, tasks=1_000_000), 0) if rng.random() < 0.1 else self.of
        task, content = self.number(), rng.choice((b"result", b"other", None))
        made = replica(of, who, task, content, nonce=rng.randrange(3), outcome=rng.choice(("ok", "ok", "failed")))
        name, bid = JobId(of.id), rng.choice(self.ids)
        kinds: list[Callable[[], Statement]] = [
            lambda: made.bid,
            lambda: made.commit,
            lambda: made.reveal,
            lambda: make(Commit(name, task, bid, Digest(ZERO)), who),
            lambda: verdict(of, who, [made], task=task),
            lambda: verdict(of, who, [made, replica(of, 2, task)], task=task, stewards=(who,)),
            lambda: verdict(of, who, [], others=[made] * 3, task=task, outcome="failed"),
            lambda: make(Cancel(name, "so"), who),
            lambda: make(Settlement(name, task, 0, Digest(ZERO)), who),
            lambda: make(Fault(name, task, pid(who), made.commit.envelope, made.bid.envelope), who),
            lambda: make(
                Fault(name, task, pid(who), made.commit.envelope, replica(of, who, task, b"!").commit.envelope), who
            ),
            lambda: make(
                Checkpoint(name, task, bid, rng.randrange(3), 500, (File("a", blob_of(b"a")),), (pid(who),)), who
            ),
        ]
        found = rng.choice(kinds)()
        self.ids.append(found.id)
        self.said.append(found)
        return found

    def envelopes(self) -> tuple[bytes, ...]:
        known = self.rng.sample(self.said, min(len(self.said), 2))
        return tuple(s.envelope for s in [*known, self.statement()])

    def message(self) -> m.Message:
        rng, name, shard = self.rng, self.job, self.rng.choice(SHARDS)
        ids: Any = rng.choice(self.ids)
        kinds: list[Callable[[], m.Message]] = [
            lambda: m.Sync((name,), ((pid(5), 1 << 40),)),
            lambda: m.Want((ids,), (pid(5),)),
            *[lambda: m.Offer(self.envelopes())] * 8,
            lambda: m.Grant(name, shard, ids, self.numbers(), self.envelopes()),
            lambda: m.Release(name, shard, self.numbers(), rng.random() < 0.5),
            lambda: m.Renew(name, shard, tuple(m.Held(t, rng.choice(_STAGES), ids, 1000) for t in self.numbers())),
            *[
                lambda: m.Status(
                    name,
                    shard,
                    tuple(m.TaskStatus(t, rng.choice(_STANDINGS), self.envelopes()) for t in self.numbers()),
                )
            ]
            * 3,
            lambda: m.Query(name, shard),
            lambda: m.View(name, shard, self.numbers(), (), self.numbers(), self.numbers()),
            lambda: m.Redirect(name, shard, (pid(5),)),
            lambda: m.Summary(name, shard, 3, Digest(ZERO)),
            lambda: m.Have(name, shard, (ids[:8],), rng.random() < 0.5),
            lambda: m.Collect(name, shard, self.numbers()),
            lambda: m.Placed(name, shard),
            lambda: m.AskLog(name, self.number()),
            lambda: m.TaskLog(name, self.number(), "line"),
        ]
        return rng.choice(kinds)()


_STAGES: Any = ("running", "committed", "revealed")
_STANDINGS: Any = ("lost", "unknown", "held", "reveal", "reveal", "settled", "closed")


@pytest.mark.parametrize("state", [_submitting, _serving, _just_started])
@pytest.mark.parametrize("seed", range(20))
def test_no_nonsense_makes_a_node_raise(state: Callable[[Mesh], Node], seed: int) -> None:
    mesh, of = _mesh()
    node, rng, now = state(mesh), Random(seed), mesh.now
    nonsense = Nonsense(of, rng)
    for _ in range(150):
        now += rng.choice((0, 10, 1_000, 20_000))
        sender = rng.choice([number for number in PEERS if pid(number) != node.me])
        node.handle(Received(pid(sender), m.encode(nonsense.message())), now)


def test_a_commit_to_a_task_that_the_job_does_not_have_is_held_against_its_sender() -> None:
    mesh, of = _mesh()
    node = _serving(mesh)
    stray = replica(of, 5, TASKS)
    node.handle(Received(pid(5), m.encode(m.Offer((stray.commit.envelope,)))), mesh.now)
    assert node.penalties[pid(5)].points > 0


def test_a_worker_that_has_just_started_shows_its_result_once_it_knows_its_hardware() -> None:
    mesh, of = _mesh()
    node = _just_started(mesh)
    [attempt] = [a for a in node.worker.attempts.values() if a.state == "committed"][:1]
    other = replica(of, 1, attempt.task.index).commit.envelope
    show = m.Status(JobId(of.id), 0, (m.TaskStatus(attempt.task.index, "reveal", (other,)),))
    for steward in (1, 2):
        node.handle(Received(pid(steward), m.encode(show)), mesh.now)
    assert attempt.state == "committed"
    node.handle(ProfileChanged(profile()), mesh.now)
    for steward in (1, 2):
        node.handle(Received(pid(steward), m.encode(show)), mesh.now)
    assert attempt.state == "revealed"
