"""Writes the test vectors: fixed keys, fixed bodies, and the bytes that they must give in every implementation.

    .venv/bin/python tests/vectors/make.py            write the *.json beside this file
    .venv/bin/python tests/vectors/make.py --check    say whether they are what would be written

Everything is derived from names by sha2-256, so that anyone can repeat it. docs/protocol.md says what each field is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import nacl.exceptions
import nacl.signing

from nexapod.protocol import certificate, groups, messages, statements, tickets
from nexapod.protocol.limits import MODULE_BYTES_MAX
from nexapod.protocol.shard import ShardState
from nexapod.protocol.statements import (
    Bid,
    Cancel,
    Checkpoint,
    Commit,
    Fault,
    Reveal,
    Settlement,
    Statement,
    Verdict,
    Vote,
    commitment,
    output_root,
)
from nexapod.protocol.types import (
    BlobRef,
    Digest,
    Executor,
    File,
    Gpu,
    JobId,
    JobSpec,
    Limits,
    PeerId,
    Profile,
    Requires,
    Run,
    Split,
    StatementId,
    TaskId,
    Usage,
    Validate,
    blob_of,
    kad_key,
    key_of_peer_id,
    peer_id_of_key,
)

FOLDER = Path(__file__).parent
NETWORK = "vectors"
MIB = 1 << 20


def derived(name: str, size: int = 32) -> bytes:
    """Bytes that a name stands for."""
    return hashlib.sha256(b"nexapod test vector " + name.encode()).digest()[:size]


class Signer:
    """A real Ed25519 key, from its name."""

    def __init__(self, name: str) -> None:
        self.seed = derived(f"key {name}")
        self._key = nacl.signing.SigningKey(self.seed)
        self.peer: PeerId = peer_id_of_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        return bytes(self._key.sign(data).signature)


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Ed25519 as every peer must check it. Total."""
    try:
        nacl.signing.VerifyKey(key_of_peer_id(peer)).verify(data, signature)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True


KEYS = {name: Signer(name) for name in ("alice", "bob", "carol", "dave", "erin", "frank", "grace")}
SUBMITTER, WORKERS, STEWARDS = "alice", ("bob", "carol", "dave"), ("erin", "frank", "grace")


def to_json(value: Any) -> Any:
    """A body or message for people: records as objects, bytes as hex, blobs as `digest:size`, peers in base58."""
    if isinstance(value, BlobRef):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


# --- what the vectors are about ------------------------------------------------------------------------------------
JOB = JobSpec(
    network=NETWORK,
    name="vectors",
    nonce=derived("nonce", 16),
    stamp=1_767_225_600_000,
    run=Run(
        "wasm",
        module=blob_of(b"\0asm\x01\0\0\0"),
        command=("--fast", "é"),
        env=(("LANG", "C.UTF-8"),),
        checkpoint="shared",
    ),
    tasks=2,
    description="Two tasks,\nthree workers.",
    tags=("test", "vectors"),
    priority=-3,
    inputs=(File("data/input.txt", blob_of(b"input\n")),),
    split=Split("chunk.csv", blob_of(b"id,seq\na,AC\nb,GT\n"), blob_of(bytes(24)), (7, 17), 7),
    params=blob_of(b'[{"x": "1"}, {"x": "2"}]'),
    limits=Limits(1500, 64 << 20, 1 << 20, 3 << 20, 60_000, 20_000, 16, 0, 0),
    requires=Requires(("x86_64", "aarch64"), 128 << 20, "", ""),
    validate=Validate("exact", 2, 3),
    retention_ms=86_400_000,
)
CONFIG = blob_of(b'{"rootfs": {"type": "layers", "diff_ids": []}}')
REGISTRY_JOB = JobSpec(
    network=NETWORK,
    name="an image of a registry",
    nonce=derived("nonce 3", 16),
    stamp=0,
    run=Run("docker", image=f"registry.example.org:5000/lab/tool@sha256:{derived('manifest').hex()}"),
    tasks=1,
)
DOCKER_JOB = JobSpec(
    network=NETWORK,
    name="container",
    nonce=derived("nonce 2", 16),
    stamp=0,
    run=Run("docker", image=f"sha256:{CONFIG.digest.hex()}", image_blobs=(CONFIG, blob_of(b"layer")), workdir="/data"),
    tasks=1_000_000,
    limits=Limits(gpus=2, gpu_memory=8 << 30),
    requires=Requires(gpu_model="A100", gpu_capability="8.0"),
)
PROFILE = Profile(
    network=NETWORK,
    seq=1_767_225_600_001,
    stamp=1_767_225_600_001,
    agent="nexapod/0.1.0",
    os="linux",
    arch="x86_64",
    cpu_model="A processor",
    cpus=8,
    memory=16 << 30,
    disk_free=(1 << 63) - 1,
    gpus=(Gpu("A GPU", 24 << 30, "8.6", "550.54"),),
    executors=(Executor("wasm", "44.0.0"), Executor("docker", "27.0")),
    images=("sha256:" + derived("image").hex(),),
    registries=("registry.example.org:5000",),
    addrs=("/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/tcp/4001"),
    serves=True,
    slots=4,
)


def make(body: Any, author: str) -> Statement:
    return statements.make(body, KEYS[author])


class Story:
    """One small job from its announcement to its settlement: every statement in it belongs to the next."""

    def __init__(self) -> None:
        self.job = make(JOB, SUBMITTER)
        self.id = JobId(self.job.id)
        self.profile = make(PROFILE, "bob")
        # Task 0: bob and carol agree, dave does not. Task 1: nobody agrees with anybody.
        contents = {(0, "bob"): b"42\n", (0, "carol"): b"42\n", (0, "dave"): b"41\n"}
        contents |= {(1, worker): worker.encode() for worker in WORKERS}
        self.bids = {w: make(Bid(self.id, 0, (0, 1), 1200, self.profile.id, 7), w) for w in WORKERS}
        self.commits: dict[tuple[int, str], Statement] = {}
        self.reveals: dict[tuple[int, str], Statement] = {}
        for (task, worker), content in contents.items():
            self._result(task, worker, content)
        kept = (File("state.bin", blob_of(b"half")),)
        body = Checkpoint(self.id, 0, self.bids["bob"].id, 3, 500, kept, (KEYS["frank"].peer,))
        self.checkpoint = make(body, "bob")
        self.verdicts = [self._verdict(task, steward) for task in (0, 1) for steward in STEWARDS[:2]]
        state = ShardState(self.id, JOB, 0)
        for statement in (*self.bids.values(), *self.commits.values(), *self.reveals.values(), *self.verdicts):
            assert state.add(statement) == "new"
        self.evidence = [*state.evidence(0), *state.evidence(1)]
        digest = certificate.evidence_digest([self.job, *self.evidence])
        self.settlement = make(Settlement(self.id, 1, 1, digest), SUBMITTER)
        self.certificate = certificate.build(self.job, self.evidence, self.settlement)

    def _result(self, task: int, worker: str, content: bytes) -> None:
        outputs = (File("b.txt", blob_of(content)), File("a/log.txt", blob_of(b"")))
        root = output_root("ok", 0, outputs)
        salt = derived(f"salt {task} {worker}")
        sealed = commitment(self.id, task, KEYS[worker].peer, salt, root)
        commit = make(Commit(self.id, task, self.bids[worker].id, sealed), worker)
        usage = Usage(1000, 1100, 5 << 20, 0)
        body = Reveal(
            job=self.id,
            task=task,
            commit=commit.id,
            salt=salt,
            root=root,
            outcome="ok",
            exit=0,
            outputs=outputs,
            usage=usage,
            executor="wasm",
            hardware="linux-x86_64",
            log="done\n",
            # Carol went on from what Frank, who is gone, had kept.
            continued=(KEYS["frank"].peer,) if worker == "carol" else (),
        )
        self.commits[task, worker] = commit
        self.reveals[task, worker] = make(body, worker)

    def _verdict(self, task: int, steward: str) -> Statement:
        accepted = self.reveals[0, "bob"].body.root
        votes = [
            Vote(s.id, s.author, s.author, task == 0 and s.body.root == accepted)
            for (t, _), s in self.reveals.items()
            if t == task
        ]
        votes.sort(key=lambda v: (not v.agreed, v.reveal))
        listed = tuple(KEYS[s].peer for s in STEWARDS)
        if task == 0:
            body = Verdict(self.id, 0, "accepted", accepted, tuple(votes), listed, "")
        else:
            reason = "3 replicas; at most 1 agree where 2 must"
            body = Verdict(self.id, 1, "failed", Digest(bytes(32)), tuple(votes), listed, reason)
        return make(body, steward)

    def named(self) -> Iterator[tuple[str, str, Statement]]:
        yield "a profile with every field", "bob", self.profile
        yield "a wasm job with every field", SUBMITTER, self.job
        yield "a container job, the rest by default", SUBMITTER, make(DOCKER_JOB, SUBMITTER)
        yield "a container job whose image is a registry's", SUBMITTER, make(REGISTRY_JOB, SUBMITTER)
        yield "a cancellation", SUBMITTER, make(Cancel(self.id, "a mistake"), SUBMITTER)
        yield "a bid for two tasks", "bob", self.bids["bob"]
        yield "a commit", "bob", self.commits[0, "bob"]
        yield "a reveal", "bob", self.reveals[0, "bob"]
        yield "a reveal of what another worker had begun", "carol", self.reveals[0, "carol"]
        yield "a checkpoint", "bob", self.checkpoint
        yield "a verdict that accepts", "erin", self.verdicts[0]
        yield "a verdict that fails", "erin", self.verdicts[2]
        yield "a settlement", SUBMITTER, self.settlement
        other = make(Commit(self.id, 0, self.bids["dave"].id, Digest(derived("sealed"))), "dave")
        first, second = sorted((self.commits[0, "dave"], other), key=lambda s: s.id)
        fault = Fault(self.id, 0, KEYS["dave"].peer, first.envelope, second.envelope)
        yield "a fault: two commits of one worker", "erin", make(fault, "erin")


# --- the files -----------------------------------------------------------------------------------------------------
def statement_vectors(story: Story) -> list[dict[str, Any]]:
    found = []
    for name, author, statement in story.named():
        raw = msgpack.unpackb(statement.envelope)
        found.append(
            {
                "name": name,
                "kind": statement.kind,
                "seed": KEYS[author].seed.hex(),
                "author": statement.author,
                "body": to_json(statement.body),
                "body_bytes": raw[3].hex(),
                "signature": raw[4].hex(),
                "envelope": statement.envelope.hex(),
                "id": statement.id.hex(),
            }
        )
    return found


def message_vectors(story: Story) -> list[dict[str, Any]]:
    job, bid = story.id, story.bids["bob"].id
    bob, erin, frank = (KEYS[n].peer for n in ("bob", "erin", "frank"))
    commits = tuple(story.commits[0, w].envelope for w in ("carol", "dave"))
    state = ShardState(job, JOB, 0)
    for statement in story.evidence:
        state.add(statement)
    count, digest = state.summary()
    ids = tuple(sorted(s.id[:8] for s in story.evidence))
    said: list[messages.Message] = [
        messages.Sync((job,), ((bob, 5), (erin, (1 << 63) - 1))),
        messages.Want((StatementId(job),), (bob,)),
        messages.Offer((story.bids["bob"].envelope, story.commits[0, "bob"].envelope)),
        messages.Grant(job, 0, bid, (0, 1), (story.checkpoint.envelope,)),
        messages.Release(job, 0, (1,), True),
        messages.Renew(job, 0, (messages.Held(0, "committed", bid, 1000), messages.Held(1, "running", bid, 250))),
        messages.Status(job, 0, (messages.TaskStatus(0, "reveal", commits), messages.TaskStatus(1, "held", ()))),
        messages.Query(job, 3906),
        messages.View(job, 0, (1,), (messages.ActiveTask(0, True, 500, (bob,)),), (2,), ()),
        messages.Redirect(job, 0, (erin, frank)),
        messages.Summary(job, 0, count, digest),
        messages.Have(job, 0, ids, True),
        messages.Collect(job, 0, (0,)),
        messages.Placed(job, 0),
        messages.AskLog(job, 1),
        messages.TaskLog(job, 1, "step 1 of 3\n"),
    ]
    return [
        {"message": type(m).__name__, "code": code, "fields": to_json(m), "frame": messages.encode(m).hex()}
        for code, m in enumerate(said)
    ]


def value_vectors(story: Story) -> dict[str, Any]:
    peers = [signer.peer for signer in KEYS.values()]
    named = {"empty": b"", "one byte": b"a", "1 MiB of zeros": bytes(MIB), "1 MiB and 1 byte of zeros": bytes(MIB + 1)}
    results: list[tuple[str, int, tuple[File, ...]]] = [
        ("ok", 0, ()),
        ("ok", 0, (File("b", blob_of(b"b")), File("a", blob_of(b"a")))),
        ("failed", -1, ()),
        ("wall-limit", 137, (File("é", blob_of(b"")),)),
    ]
    salt, root = derived("salt"), Digest(derived("root"))
    addrs = [
        "",
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/10.1.2.3/tcp/1",
        "/ip4/8.8.4.4/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/2606:4700:1:2::3/tcp/1",
        "/dns4/example.org/tcp/1",
        "/ip4/999.1.1.1/tcp/1",
    ]
    return {
        "peers": [
            {"name": n, "seed": s.seed.hex(), "public_key": key_of_peer_id(s.peer).hex(), "peer": s.peer}
            for n, s in KEYS.items()
        ],
        "kad_keys": [{"peer": p, "key": f"{kad_key(p):064x}"} for p in peers],
        "shard_keys": [
            {"job": story.id.hex(), "shard": n, "key": f"{tickets.shard_key(story.id, n):064x}"} for n in (0, 1, 3906)
        ],
        "stewards": [
            {
                "job": story.id.hex(),
                "shard": n,
                "peers": sorted(peers, key=lambda p: kad_key(p) ^ tickets.shard_key(story.id, n))[:3],
            }
            for n in (0, 1, 3906)
        ],
        "tickets": [
            {"job": story.id.hex(), "task": t, "peer": p, "ticket": str(tickets.ticket(TaskId(story.id, t), p))}
            for t in (0, 999_999)
            for p in peers[:3]
        ],
        "bid_delays": [
            {"ticket": str(u), "eligible": n, "wanted": r, "rank": tickets.rank(u, n), "ms": tickets.bid_delay(u, n, r)}
            for u, n, r in (
                (0, 10, 2),
                (tickets.ONE - 1, 10, 2),
                (tickets.ONE // 2, 10, 2),
                (tickets.ONE // 3, 1000, 3),
            )
        ],
        "seeds": [
            {"job": story.id.hex(), "task": t, "seed": tickets.task_seed(TaskId(story.id, t)).hex()} for t in (0, 1)
        ],
        "blobs": [
            {"name": n, "bytes": {"fill": (data[:1] or b"\0").hex(), "size": len(data)}, "blob": str(blob_of(data))}
            for n, data in named.items()
        ],
        "output_roots": [
            {"outcome": o, "exit": e, "outputs": to_json(f), "root": output_root(o, e, f).hex()} for o, e, f in results
        ],
        "commitments": [
            {
                "job": story.id.hex(),
                "task": t,
                "worker": p,
                "salt": salt.hex(),
                "root": root.hex(),
                "sealed": commitment(story.id, t, p, salt, root).hex(),
            }
            for t in (0, 999_999)
            for p in peers[1:3]
        ],
        "groups": [{"peer": peers[1], "addr": a, "group": groups.group_of(peers[1], a)} for a in addrs],
    }


def certificate_vectors(story: Story) -> list[dict[str, Any]]:
    whole = story.certificate
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    short = certificate.build(story.job, story.evidence[:-1], story.settlement)
    twice = certificate.build(story.job, story.evidence, make(Settlement(story.id, 2, 0, Digest(bytes(32))), SUBMITTER))
    shown = [s for s in story.evidence if s is not story.reveals[1, "dave"]]
    digest = certificate.evidence_digest([story.job, *shown])
    unproven = certificate.build(story.job, shown, make(Settlement(story.id, 1, 1, digest), SUBMITTER))
    cases = [
        ("whole", whole),
        ("one bit flipped", bytes(flipped)),
        ("cut short", whole[:-40]),
        ("a verdict left out", short),
        ("a settlement that counts otherwise", twice),
        ("a failure without one of its results, signed for", unproven),
        ("not a certificate", b"NEXAPOD"),
    ]
    found = []
    for name, data in cases:
        report = certificate.check(data, verify)
        tasks = [
            {"task": t.index, "outcome": t.outcome, "root": t.root.hex(), "judges": t.judges} for t in report.tasks
        ]
        found.append({"name": name, "certificate": data.hex(), "ok": report.ok, "tasks": tasks if report.ok else []})
    return found


def signed(kind: str, body: bytes, author: str = SUBMITTER) -> bytes:
    """A well-formed envelope around any body."""
    signer = KEYS[author]
    signature = signer.sign(b"nexapod/2/" + kind.encode() + b"\0" + body)
    return pack([2, kind, key_of_peer_id(signer.peer), body, signature])


def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def changed(statement: Statement, *steps: int, to: Any) -> bytes:
    """The statement with one field of its body replaced, signed anew by the submitter."""
    body = msgpack.unpackb(msgpack.unpackb(statement.envelope)[3])
    place = body
    for step in steps[:-1]:
        place = place[step]
    place[steps[-1]] = to
    return signed(statement.kind, pack(body))


def refused_vectors(story: Story) -> list[dict[str, Any]]:
    job, bid, commit, reveal = story.job, story.bids["bob"], story.commits[0, "bob"], story.reveals[0, "bob"]
    envelope = commit.envelope
    version, kind, author, body, signature = msgpack.unpackb(envelope)
    nested: Any = b"\x91" * 2000 + b"\xc0"
    file = msgpack.unpackb(msgpack.unpackb(job.envelope)[3])[9][0]
    digest = "sha256:" + "01" * 32
    cases: list[tuple[str, str, bytes]] = [
        ("no bytes", "not-msgpack", b""),
        ("a byte too many", "not-msgpack", envelope + b"\0"),
        ("cut short", "not-msgpack", envelope[:-1]),
        ("nested too deeply", "not-msgpack", nested),
        ("an extension type", "not-msgpack", b"\xd4\x01\x00"),
        ("over 64 KiB", "too-large", bytes(65_537)),
        ("nil", "bad-envelope", b"\xc0"),
        ("a map", "bad-envelope", pack({"version": 1})),
        ("four fields", "bad-envelope", pack([version, kind, author, body])),
        ("version 1", "unknown-version", pack([1, kind, author, body, signature])),
        ("version 3", "unknown-version", pack([3, kind, author, body, signature])),
        ("version true", "unknown-version", pack([True, kind, author, body, signature])),
        ("an unknown kind", "unknown-kind", pack([version, "rumour", author, body, signature])),
        ("a kind that is bytes", "unknown-kind", pack([version, b"commit", author, body, signature])),
        ("an author of 31 bytes", "bad-envelope", pack([version, kind, author[:-1], body, signature])),
        ("a body that is text", "bad-envelope", pack([version, kind, author, "body", signature])),
        ("a signature that is nil", "bad-envelope", pack([version, kind, author, body, None])),
        ("an empty signature", "bad-signature", pack([version, kind, author, body, b""])),
        ("a flipped signature bit", "bad-signature", pack([version, kind, author, body, _flip(signature)])),
        ("a flipped body bit", "bad-signature", pack([version, kind, author, _flip(body), signature])),
        ("another author", "bad-signature", pack([version, kind, derived("key"), body, signature])),
        ("signed as another kind", "bad-signature", pack([version, "bid", author, body, signature])),
        ("a body that is not msgpack", "not-msgpack", signed("commit", b"\xc1")),
        ("a body that is a map", "bad-field", signed("commit", pack({}))),
        ("a field too few", "bad-field", signed("commit", pack(msgpack.unpackb(body)[:-1]))),
        ("a digest of 31 bytes", "bad-field", changed(commit, 3, to=bytes(31))),
        ("a negative task", "bad-field", changed(commit, 1, to=-1)),
        ("a task over the limit", "bad-field", changed(commit, 1, to=1_000_000)),
        ("a task that is true", "bad-field", changed(commit, 1, to=True)),
        ("a task that is a float", "bad-field", changed(commit, 1, to=1.0)),
        ("a bid for a task of another shard", "bad-field", changed(bid, 2, to=[0, 256])),
        ("a bid for one task twice", "bad-field", changed(bid, 2, to=[0, 0])),
        ("a bid for nothing", "bad-field", changed(bid, 2, to=[])),
        ("a bid for 33 tasks", "bad-field", changed(bid, 2, to=list(range(33)))),
        ("a root that is not that of the outputs", "bad-field", changed(reveal, 4, to=bytes(32))),
        ("a reveal of no result", "bad-field", changed(reveal, 5, to="try-elsewhere")),
        ("an absolute path", "bad-path", changed(job, 9, 0, 0, to="/etc/passwd")),
        ("a path that climbs", "bad-path", changed(job, 9, 0, 0, to="a/../../b")),
        ("a path with a backslash", "bad-path", changed(job, 9, 0, 0, to="a\\b")),
        ("a path with a line break", "bad-path", changed(job, 9, 0, 0, to="a\nb")),
        ("a path with an empty part", "bad-path", changed(job, 9, 0, 0, to="a//b")),
        ("an empty path", "bad-field", changed(job, 9, 0, 0, to="")),
        ("two inputs at one path", "bad-field", changed(job, 9, to=[file, file])),
        ("a name with an escape sequence", "bad-field", changed(job, 1, to="\x1b[2J")),
        ("a name that turns the text around", "bad-field", changed(job, 1, to="a\u202eb")),
        ("no name", "bad-field", changed(job, 1, to="")),
        ("a name of 257 bytes", "bad-field", changed(job, 1, to="é" * 128 + "e")),
        ("no tasks", "bad-field", changed(job, 5, to=0)),
        ("more to agree than replicas", "bad-field", changed(job, 14, to=["exact", 3, 2])),
        ("an unknown comparison", "bad-field", changed(job, 14, to=["rounded", 2, 3])),
        ("a wasm run with an image", "bad-field", changed(job, 4, 2, to="sha256:" + "0" * 64)),
        ("a wasm run without a module", "bad-field", changed(job, 4, 1, to=None)),
        ("a module too large", "bad-field", changed(job, 4, 1, 1, to=MODULE_BYTES_MAX + 1)),
        ("an image that is a tag", "bad-field", changed(job, 4, to=_container("python:3.11"))),
        ("a registry's image by tag", "bad-field", changed(job, 4, to=_container("docker.io/library/python:3.11"))),
        ("a registry's image without a host", "bad-field", changed(job, 4, to=_container(f"python@{digest}"))),
        (
            "an image with another's configuration",
            "bad-field",
            changed(job, 4, to=_container(digest, [[bytes(32), 2]])),
        ),
        ("a wasm run with a working directory", "bad-field", changed(job, 4, 6, to="/data")),
        ("a working directory that is relative", "bad-field", changed(job, 4, to=_container(digest, [], "data"))),
        ("a checkpoint for everybody", "bad-field", changed(job, 4, 7, to="public")),
        ("bounds that fall", "bad-field", changed(job, 10, 3, to=[17, 7])),
        ("bounds beyond the file's end", "bad-field", changed(job, 10, 3, to=[7, 10**9])),
        ("bounds of another number of shards", "bad-field", changed(job, 10, 3, to=[7, 8, 9])),
        ("a header that reaches into the pieces", "bad-field", changed(job, 10, 4, to=8)),
        ("an index of another number of tasks", "bad-field", changed(job, 10, 2, 1, to=36)),
        ("a compute capability that is a word", "bad-field", changed(job, 13, 3, to="newest")),
        ("no processes", "bad-field", changed(job, 12, 6, to=0)),
        ("a checkpoint of nothing", "bad-field", changed(story.checkpoint, 5, to=[])),
        ("a checkpoint with one file twice", "bad-field", changed(story.checkpoint, 5, to=[file, file])),
    ]
    found = []
    for name, rule, data in cases:
        shown: Any = data.hex() if any(data) or not data else {"fill": "00", "size": len(data)}
        found.append({"name": name, "rule": rule, "envelope": shown})
    return found


def _container(image: str, blobs: list[Any] | None = None, workdir: str = "") -> list[Any]:
    return ["docker", None, image, blobs or [], [], [], workdir, "local"]


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def build() -> dict[str, str]:
    """The text of every file, by name."""
    story = Story()
    files: dict[str, Any] = {
        "statements.json": statement_vectors(story),
        "messages.json": message_vectors(story),
        "values.json": value_vectors(story),
        "certificates.json": certificate_vectors(story),
        "refused.json": refused_vectors(story),
    }
    return {name: json.dumps(content, indent=1, ensure_ascii=True) + "\n" for name, content in files.items()}


def main(arguments: list[str]) -> int:
    differing = []
    for name, text in build().items():
        path = FOLDER / name
        if arguments == ["--check"]:
            if not path.is_file() or path.read_text() != text:
                differing.append(name)
        else:
            path.write_text(text)
    if differing:
        sys.stderr.write(f"not what the code gives: {', '.join(differing)}\n")
    return 1 if differing else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
