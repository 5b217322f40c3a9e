"""Statements and messages to start from: one of every kind, signed by a few simulated peers."""

from __future__ import annotations

from nexapod.protocol import messages as m
from nexapod.protocol import statements as s
from nexapod.protocol import types as t
from nexapod.sim.keys import HashSigner

SIGNERS = [HashSigner(99, i) for i in range(8)]
SPEC = t.JobSpec(
    "net", "a job", b"n" * 16, 5, t.Run("wasm", module=t.blob_of(b"module")), 6, tags=("x",), params=t.blob_of(b"[]")
)
JOB_STATEMENT = s.make(SPEC, SIGNERS[0])
JOB = t.JobId(JOB_STATEMENT.id)
FILES = (t.File("out/a.txt", t.blob_of(b"a")),)


def bid(who: int, tasks: tuple[int, ...], nonce: int = 1) -> s.Statement:
    return s.make(s.Bid(JOB, 0, tasks, 0, t.StatementId(bytes(32)), nonce), SIGNERS[who])


def commit(who: int, task: int, to: s.Statement, root: t.Digest, salt: bytes) -> s.Statement:
    sealed = s.commitment(JOB, task, SIGNERS[who].peer, salt, root)
    return s.make(s.Commit(JOB, task, to.id, sealed), SIGNERS[who])


def reveal(who: int, task: int, to: s.Statement, files: tuple[t.File, ...], salt: bytes) -> s.Statement:
    root = s.output_root("ok", 0, files)
    body = s.Reveal(JOB, task, to.id, salt, root, "ok", 0, files, t.Usage(1, 2, 3), "wasm", "linux-x86_64", "log\n")
    return s.make(body, SIGNERS[who])


def verdict(who: int, task: int, root: t.Digest, shown: list[s.Statement]) -> s.Statement:
    votes = tuple(s.Vote(r.id, r.author, r.author, True) for r in shown)
    stewards = tuple(x.peer for x in SIGNERS[:3])
    return s.make(s.Verdict(JOB, task, "accepted", root, votes, stewards, ""), SIGNERS[who])


def _every_kind() -> list[s.Statement]:
    profile = t.Profile(
        "net", 3, 4, "agent", "linux", "x86_64", "cpu", 4, 1 << 33, 1 << 40,
        (t.Gpu("H200", 1 << 37),), (t.Executor("wasm", "1"),), (), (), ("/ip4/1.2.3.4/tcp/1",), True, 2,
    )  # fmt: skip
    root = s.output_root("ok", 0, FILES)
    bids = [bid(w, (0, 1, 2)) for w in (1, 2)]
    commits = [commit(w, 0, b, root, bytes([w]) * 32) for w, b in zip((1, 2), bids, strict=True)]
    reveals = [reveal(w, 0, c, FILES, bytes([w]) * 32) for w, c in zip((1, 2), commits, strict=True)]
    return [
        s.make(profile, SIGNERS[0]),
        JOB_STATEMENT,
        s.make(s.Cancel(JOB, "why not"), SIGNERS[0]),
        *bids,
        *commits,
        *reveals,
        verdict(1, 0, root, reveals),
        s.make(s.Settlement(JOB, 6, 0, t.Digest(bytes(32))), SIGNERS[0]),
        s.make(s.Fault(JOB, 0, SIGNERS[1].peer, commits[0].envelope, b"second"), SIGNERS[2]),
        s.make(s.Checkpoint(JOB, 1, bids[0].id, 1, 250, FILES, (SIGNERS[3].peer,)), SIGNERS[1]),
    ]


STATEMENTS = _every_kind()
_PEER = SIGNERS[1].peer
_ID = t.StatementId(JOB)
MESSAGES: list[m.Message] = [
    m.Sync((JOB,), ((_PEER, 4),)),
    m.Want((_ID,), (_PEER,)),
    m.Offer(tuple(x.envelope for x in STATEMENTS[:3])),
    m.Grant(JOB, 0, _ID, (1, 2), (b"x",)),
    m.Release(JOB, 0, (1,), True),
    m.Renew(JOB, 0, (m.Held(1, "running", _ID, 500),)),
    m.Status(JOB, 0, (m.TaskStatus(1, "reveal", (b"x",)),)),
    m.Query(JOB, 0),
    m.View(JOB, 0, (1,), (m.ActiveTask(2, True, 3, (_PEER,)),), (4,), ()),
    m.Redirect(JOB, 0, (_PEER,)),
    m.Summary(JOB, 0, 7, t.Digest(bytes(32))),
    m.Have(JOB, 0, (b"12345678",), True),
    m.Collect(JOB, 0, (1,)),
    m.Placed(JOB, 0),
    m.AskLog(JOB, 1),
    m.TaskLog(JOB, 1, "a line\n"),
]
