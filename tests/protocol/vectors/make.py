"""Writes the test vectors of protocol 3: fixed keys, fixed bodies, and the bytes they give in every implementation.

    .venv/bin/python tests/protocol/vectors/make.py            write the *.json beside this file
    .venv/bin/python tests/protocol/vectors/make.py --check    say whether they are what would be written

Everything is derived from names by sha2-256, so that anyone can repeat it. docs/protocol.md says what each field is.
Refused statements are signed too, so that what refuses them is what their name says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import nacl.exceptions
import nacl.signing

from nexapod.protocol import types
from nexapod.protocol.primitives import BlobRef, Digest, File, JobId, PeerId, StatementId, blob_of, key_of_peer_id
from nexapod.protocol.primitives import peer_id_of_key as peer_of
from nexapod.protocol.rules import beacon as beacons
from nexapod.protocol.rules import lottery, seats
from nexapod.protocol.rules.groups import group_of
from nexapod.protocol.wire import bodies, messages, statements
from nexapod.protocol.wire import text as text_table
from nexapod.protocol.wire.statements import Statement

FOLDER = Path(__file__).parent
NETWORK = "vectors"
MIB = 1 << 20
EXT = ((0, b""), (7, b"of a newer minor version"), (255, b"\0\xff"))


def derived(name: str, size: int = 32) -> bytes:
    """Bytes that a name stands for."""
    return hashlib.sha256(b"nexapod test vector " + name.encode()).digest()[:size]


class Signer:
    """A real Ed25519 key, from its name."""

    def __init__(self, name: str) -> None:
        self.seed = derived(f"key {name}")
        self._key = nacl.signing.SigningKey(self.seed)
        self.key = bytes(self._key.verify_key)
        self.peer: PeerId = peer_of(self.key)

    def sign(self, data: bytes) -> bytes:
        return bytes(self._key.sign(data).signature)


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Ed25519 as every peer must check it. Total."""
    try:
        nacl.signing.VerifyKey(key_of_peer_id(peer)).verify(data, signature)
    except (nacl.exceptions.BadSignatureError, ValueError):
        return False
    return True


KEYS = {name: Signer(name) for name in ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi")}
SUBMITTER, WORKERS, PANEL = "alice", ("bob", "carol", "dave"), ("erin", "frank", "grace", "heidi")


def peer(name: str) -> PeerId:
    return KEYS[name].peer


def by_key(*names: str) -> list[str]:
    return sorted(names, key=lambda name: KEYS[name].key)


def make(body: Any, *signers: str) -> Statement:
    statement = statements.make(body, KEYS[signers[0]])
    for name in signers[1:]:
        statement = statements.cosign(statement, KEYS[name])
    return statement


def to_json(value: Any) -> Any:
    """A body or message for people: records as objects, bytes as hex, blobs as `digest:size`, peers in base58."""
    if isinstance(value, BlobRef):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


# --- what the vectors are about ------------------------------------------------------------------------------------
def offer(name: str) -> Statement:
    """The offer of one member, which one other reached."""
    addr = f"/ip4/192.0.2.{1 + PANEL.index(name)}/tcp/4001"
    stamp = 1_767_225_600_000
    word = KEYS["bob"].sign(statements.dial_back_bytes(peer(name), addr, stamp))
    reached = types.DialBack(peer("bob"), addr, stamp, word)
    return make(types.Offer(NETWORK, 3, (addr,), 1 << 40, 64, 1_798_761_600_000, (reached,)), name)


def job(**changed: Any) -> types.JobSpec:
    """A wasm job with a value in every field."""
    spec = types.JobSpec(
        network=NETWORK,
        name="vectors",
        nonce=derived("nonce", 16),
        stamp=1_767_225_600_000,
        run=types.Run(
            "wasm",
            module=blob_of(b"\0asm\x01\0\0\0"),
            command=("--fast", "é", "\N{MELTING FACE}", "\U0001fae8"),
            env=(("LANG", "C.UTF-8"),),
            checkpoint="shared",
        ),
        tasks=2,
        panel=tuple(offer(name).envelope for name in PANEL[:3]),
        description="Two tasks,\nthree\tworkers.",
        tags=("test", "vectors"),
        priority=-3,
        inputs=(File("data/input.txt", blob_of(b"input\n")),),
        split=types.Split("chunk.csv", blob_of(b"id,seq\na,AC\nb,GT\n"), blob_of(bytes(24)), (7, 17), 7),
        params=blob_of(b'[{"x": "1"}, {"x": "2"}]'),
        limits=types.Limits(1500, 64 << 20, 1 << 20, 3 << 20, 60_000, 20_000, 16, 0, 0),
        requires=types.Requires(("x86_64", "aarch64"), 128 << 20, "", ""),
        validate=types.Validate("exact", 2, 3),
        policy=types.TrustPolicy("network", ((peer("bob"), 1000),), 3, 50),
        delegate=peer("heidi"),
        retention_ms=86_400_000,
        ext=EXT,
    )
    return dataclasses.replace(spec, **changed)


CONFIG = blob_of(b'{"rootfs": {"type": "layers", "diff_ids": []}}')
DOCKER_JOB = types.JobSpec(
    network=NETWORK,
    name="container",
    nonce=derived("nonce 2", 16),
    stamp=0,
    run=types.Run("docker", image=f"sha256:{CONFIG.digest.hex()}", image_blobs=(CONFIG,), workdir="/data"),
    tasks=1_000_000,
    panel=(offer("erin").envelope,),
    limits=types.Limits(gpus=2, gpu_memory=8 << 30),
    requires=types.Requires(gpu_model="A100", gpu_capability="8.0"),
)
REGISTRY_JOB = types.JobSpec(
    network=NETWORK,
    name="an image of a registry",
    nonce=derived("nonce 3", 16),
    stamp=0,
    run=types.Run("docker", image=f"registry.example.org:5000/lab/tool@sha256:{derived('manifest').hex()}"),
    tasks=1,
    panel=(offer("erin").envelope,),
)
PROFILE = types.Profile(
    network=NETWORK,
    seq=1_767_225_600_001,
    stamp=1_767_225_600_001,
    agent="nexapod/0.1.0",
    minor=0,
    os="linux",
    arch="x86_64",
    cpu_model="A processor",
    cpus=8,
    memory=16 << 30,
    disk_free=(1 << 63) - 1,
    gpus=(types.Gpu("A GPU", 24 << 30, "8.6", "550.54"),),
    executors=(types.Executor("wasm", "44.0.0"), types.Executor("docker", "27.0")),
    images=("sha256:" + derived("image").hex(),),
    registries=("registry.example.org:5000",),
    addrs=("/ip4/192.0.2.1/tcp/4001", "/ip6/2001:db8::1/tcp/4001"),
    slots=4,
    reachable=False,
)


class Story:
    """One small job from its announcement to its settlement: what each statement says fits the others."""

    def __init__(self) -> None:
        self.job = make(job(), SUBMITTER)
        self.id = JobId(self.job.id)
        seats = ("erin", "frank")
        self.values = {name: derived(f"value {name}") for name in seats}
        self.placed = make(bodies.Placed(self.id, statements.value_commitment(self.values["erin"])), "erin")
        admitted = tuple((peer(name), f"198.51.{WORKERS.index(name)}.0/24") for name in by_key(*WORKERS))
        committed = tuple((peer(name), statements.value_commitment(self.values[name])) for name in by_key(*seats))
        self.admission = make(bodies.Admission(self.id, 0, 1, admitted, committed), *seats)
        shown = tuple((peer(name), self.values[name]) for name in by_key(*seats))
        self.beacon = make(bodies.Beacon(self.id, 0, 1, self.admission.id, shown), *seats)
        kept = (File("state.bin", blob_of(b"half")),)
        self.checkpoint = make(bodies.Checkpoint(self.id, 1, 3, 500, kept, None), "dave")
        self.roots: dict[str, Digest] = {}
        self.commits = {name: self._commit(name) for name in ("bob", "carol")}
        self.reveals = {name: self._reveal(name) for name in ("bob", "carol")}
        workers = by_key("bob", "carol")
        listed = sorted(commit.id for commit in self.commits.values())
        entries = tuple((place, listed.index(self.commits[name].id)) for place, name in enumerate(workers))
        items = tuple(bodies.FreezeItem(task, 1, entries[:: 1 - 2 * task]) for task in (0, 1))
        groups = tuple((peer(name), f"198.51.{WORKERS.index(name)}.0/24") for name in workers)
        self.freeze = make(bodies.Freeze(self.id, 0, 0, groups, tuple(listed), items), *seats)
        judged = (
            bodies.VerdictItem(0, 0, "accepted", 0, ((0, 1),), (), ""),
            bodies.VerdictItem(1, 0, "failed", 0, (), (1,), "2 results; none agree where 2 must"),
        )
        self.verdict = make(bodies.Verdict(self.id, 0, 0, (self.freeze.id,), judged), *seats)
        self.succession = self._succession("grace", "seats", self.id)

    def _outputs(self, name: str, task: int) -> tuple[File, ...]:
        content = b"42\n" if task == 0 else name.encode()
        return (File("a/log.txt", blob_of(b"")), File("b.txt", blob_of(content)))

    def _sealed(self, name: str, task: int) -> Digest:
        root = statements.output_root("ok", 0, self._outputs(name, task))
        resumed = self.checkpoint.id if (name, task) == ("carol", 1) else None
        return statements.commitment(self.id, task, peer(name), derived(f"salt {name} {task}", 16), root, resumed)

    def _commit(self, name: str) -> Statement:
        items = tuple(bodies.CommitItem(task, self._sealed(name, task)) for task in (0, 1))
        return make(bodies.Commit(self.id, 0, items), name)

    def _reveal(self, name: str) -> Statement:
        items = tuple(self._reveal_item(name, task) for task in (0, 1))
        return make(bodies.Reveal(self.id, 0, "wasm", "44.0.0", "linux-x86_64, A processor", items), name)

    def _reveal_item(self, name: str, task: int) -> bodies.RevealItem:
        return bodies.RevealItem(
            task,
            self.commits[name].id,
            derived(f"salt {name} {task}", 16),
            "ok",
            0,
            self._outputs(name, task),
            self.checkpoint.id if (name, task) == ("carol", 1) else None,
            types.Usage(1000, 1100, 5 << 20, 0),
            "",
            "done\n",
        )

    def _succession(self, newcomer: str, authority: bodies.Authority, previous: bytes) -> Statement:
        holders = (peer("erin"), peer("frank"), peer(newcomer))
        return make(bodies.Succession(self.id, 0, 1, holders, authority, StatementId(previous)), "erin", "frank")

    def named(self) -> Iterator[tuple[str, Statement]]:
        yield "a profile with every field", make(PROFILE, "bob")
        yield "an offer with every field", offer("erin")
        yield "a wasm job with every field, and extensions", self.job
        yield "a container job, the rest by default", make(DOCKER_JOB, SUBMITTER)
        yield "a container job whose image is a registry's", make(REGISTRY_JOB, SUBMITTER)
        yield "a cancellation", make(bodies.Cancel(self.id, "a mistake"), SUBMITTER)
        yield "a member holds the job", self.placed
        yield "a commit of two tasks", self.commits["bob"]
        yield "a reveal of two tasks", self.reveals["bob"]
        yield "a reveal of what another worker had begun", self.reveals["carol"]
        commit = self.commits["bob"].id
        failed = bodies.RevealItem(0, commit, bytes(16), "failed", -1, (), None, types.Usage(), "why", "")
        yield "a reveal of a failure", make(bodies.Reveal(self.id, 0, "docker", "27.0", "", (failed,)), "bob")
        yield "a checkpoint", self.checkpoint
        yield "a settlement", make(bodies.Settlement(self.id, 1, 1, Digest(derived("evidence")), ()), SUBMITTER)
        ratified = (self.succession.id,)
        settlement = bodies.Settlement(self.id, 1, 1, Digest(derived("evidence")), ratified)
        yield "a settlement by the delegate that ratifies caretakers' work", make(settlement, "heidi")
        yield "a fault: two successions to one epoch", make(self._fault(), "erin")
        yield "a succession by the seats before it", self.succession
        renewal = bodies.Renewal(self.id, 1, (peer("grace"),), (offer("heidi").envelope,), "submitter", self.job.id)
        yield "a renewal", make(renewal, SUBMITTER)
        yield "an admission of three workers", self.admission
        yield "a beacon of two seats", self.beacon
        yield "a freeze of two tasks", self.freeze
        yield "a freeze, still a proposal of one seat", make(self.freeze.body, "erin")
        yield "a verdict that accepts one task and fails one", self.verdict
        taken = tuple(sorted((self.freeze.id, self.verdict.id, self.admission.id)))
        yield "an adoption", make(bodies.Adoption(self.id, 0, 1, taken), "erin", "grace")
        yield (
            "a commit with an extension of a newer minor version",
            make(dataclasses.replace(self.commits["bob"].body, ext=EXT), "bob"),
        )

    def _fault(self) -> bodies.Fault:
        other = self._succession("heidi", "panel", self.id)
        first, second = sorted((self.succession, other), key=lambda statement: statement.id)
        return bodies.Fault(self.id, peer("frank"), first.envelope, second.envelope)


# --- the files -----------------------------------------------------------------------------------------------------
def statement_vectors(story: Story) -> list[dict[str, Any]]:
    seeds = {signer.peer: signer.seed.hex() for signer in KEYS.values()}
    return [
        {
            "name": name,
            "kind": statement.kind,
            "signers": list(statement.signers),
            "seeds": [seeds[signer] for signer in statement.signers],
            "signatures": [signature.hex() for _, signature in statement.signatures],
            "body": to_json(statement.body),
            "body_bytes": statement.raw.hex(),
            "envelope": statement.envelope.hex(),
            "id": statement.id.hex(),
        }
        for name, statement in story.named()
    ]


def said(story: Story) -> list[messages.Message]:
    """One message of each class."""
    job_id, bob, erin, grace = story.id, peer("bob"), peer("erin"), peer("grace")
    commits = tuple(commit.envelope for commit in story.commits.values())
    card = messages.Card(job_id, peer(SUBMITTER), 1500, "wasm", 64 << 20, 0, (erin, peer("frank")), 4096, 2)
    ranges = (
        messages.Range(b"\x80", 300, Digest(derived("range")), None),
        messages.Range(b"", 1, Digest(derived("range 2")), (story.freeze.id,)),
    )
    view = messages.TaskView(0, "committed", 1000, (bob,), ((bob, -1, "no such file"),))
    value = story.values["erin"]
    bound = statements.value_commitment(derived("next value"))
    return [
        messages.Hello(0, make(PROFILE, "bob").envelope, None, EXT),
        messages.Deliver(commits),
        messages.Want((StatementId(job_id), story.freeze.id)),
        messages.Announce((card,)),
        messages.Reconcile(job_id, 0, b"\x10", ranges),
        messages.Sample((offer("erin").envelope,), True),
        messages.Probe((1 << 63) - 1, erin),
        messages.Alive(0, False),
        messages.Gone(job_id, True),
        messages.Refused(job_id, "no room"),
        messages.Ready(job_id, 3906),
        messages.Collect(job_id, 0, 7),
        messages.Decided(job_id, 0, 8, 200, 56),
        messages.Inspect(job_id, 0, (0, 1)),
        messages.View(job_id, 0, (view,)),
        messages.AskLog(job_id, 999_999),
        messages.TaskLog(job_id, 1, "step 1 of 3\n"),
        messages.Bid(job_id),
        messages.Claim(job_id, 0, 5, 2, (1,), (0,), 1100),
        messages.Lease(job_id, 0, 1, (messages.LeaseItem(1, bob, story.checkpoint.id),)),
        messages.Grant(job_id, 0, 1, (0, 1), (story.checkpoint.envelope,)),
        messages.Release(job_id, 0, (1,), True, "no GPU"),
        messages.Renew(job_id, 0, (messages.Held(0, "committed", 1000), messages.Held(1, "running", 250))),
        messages.Status(job_id, 0, ((0, "frozen"), (1, "lost"))),
        messages.Object(job_id, 0, story.freeze.id, (1,), (grace,)),
        messages.Value(job_id, 0, 1, erin, value, bound),
    ]


def message_vectors(story: Story) -> list[dict[str, Any]]:
    return [
        {"message": type(m).__name__, "code": code, "fields": to_json(m), "frame": messages.encode(m).hex()}
        for code, m in enumerate(said(story))
    ]


def value_vectors(story: Story) -> dict[str, Any]:
    results: list[tuple[str, int, tuple[File, ...]]] = [
        ("ok", 0, ()),
        ("ok", 0, (File("b", blob_of(b"b")), File("a", blob_of(b"a")), File("Z", blob_of(b"z")))),
        ("failed", -1, ()),
        ("wall-limit", 137, (File("é", blob_of(b"")), File("z", blob_of(bytes(MIB + 1))))),
    ]
    texts = ["", "a\tb\n", "é", "\U0001fae8", "\u0378", "a\rb", "\x00", "\x7f", "\u202e", "\ufeff", "\U000e0041"]
    salt, root = derived("salt", 16), Digest(derived("root"))
    sealed = [(task, name, kept) for task in (0, 999_999) for name in WORKERS[:2] for kept in (None, derived("kept"))]
    return {
        "peers": [
            {"name": n, "seed": s.seed.hex(), "public_key": s.key.hex(), "peer": s.peer} for n, s in KEYS.items()
        ],
        "texts": [{"text": text, "allowed": text_table.allowed(text)} for text in texts],
        "output_roots": [
            {"outcome": o, "exit": e, "outputs": to_json(f), "root": statements.output_root(o, e, f).hex()}
            for o, e, f in results
        ],
        "commitments": [
            {
                "job": story.id.hex(),
                "task": task,
                "worker": KEYS[name].key.hex(),
                "salt": salt.hex(),
                "root": root.hex(),
                "resumed": kept and kept.hex(),
                "sealed": statements.commitment(
                    story.id, task, peer(name), salt, root, None if kept is None else StatementId(kept)
                ).hex(),
            }
            for task, name, kept in sealed
        ],
        "seats": [
            {
                "job": story.id.hex(),
                "shard": shard,
                "panel": [KEYS[name].key.hex() for name in PANEL],
                "order": [key_of_peer_id(p).hex() for p in seats.order(story.id, shard, [peer(n) for n in PANEL])],
            }
            for shard in (0, 1, 3906)
        ],
        "beacons": [
            {
                "admission": story.admission.id.hex(),
                "values": [[key_of_peer_id(p).hex(), value.hex()] for p, value in story.beacon.body.values],
                "value": beacons.value(story.beacon.body).hex(),
            }
        ],
        "draws": draws(story),
        "turns": [
            {"job": story.id.hex(), "worker": KEYS[name].key.hex(), "turn": lottery.turn(story.id, peer(name))}
            for name in WORKERS
        ],
        "groups": [
            {"grouping": grouping, "peer": peer("bob"), "addr": addr, "group": group_of(peer("bob"), addr, grouping)}
            for addr in ADDRS
            for grouping in GROUPINGS
        ],
        "bound_values": [
            {"value": value.hex(), "bound": statements.value_commitment(value).hex()} for value in story.values.values()
        ],
    }


def draws(story: Story) -> list[dict[str, Any]]:
    """Where the groups of a round stand among those of a shard, and their tickets for its first tasks."""
    value = beacons.value(story.beacon.body)
    return [
        {
            "value": value.hex(),
            "job": story.id.hex(),
            "shard": shard,
            "group": group,
            "roster_hash": f"{lottery.roster_hash(value, story.id, shard, group):016x}",
            "tickets": [
                lottery.ticket_at(lottery.tickets(value, story.id, shard, group, 3), place).hex() for place in range(3)
            ],
        }
        for shard in (0, 3906)
        for _, group in story.admission.body.workers
    ]


GROUPINGS: tuple[types.Grouping, ...] = ("peer", "network")
ADDRS = (
    "",
    "/ip4/127.0.0.1/tcp/1",
    "/ip4/10.1.2.3/tcp/1",
    "/ip4/8.8.4.4/tcp/1",
    "/ip6/::1/tcp/1",
    "/ip6/::ffff:8.8.4.4/tcp/1",
    "/ip6/2606:4700:1:2::3/tcp/1",
    "/dns4/example.org/tcp/1",
    "/ip4/999.1.1.1/tcp/1",
    "/ip4/0.0.0.0/tcp/1",
    "/ip6/ff02::1/tcp/1",
    f"/ip4/8.8.4.4/tcp/1/p2p/{peer('carol')}/p2p-circuit",
    "/ip6zone/eth0/ip6/fe80::1/tcp/1",
)


# --- what is refused -----------------------------------------------------------------------------------------------
def pack(value: Any) -> bytes:
    return bytes(msgpack.packb(value, use_bin_type=True))


def signed(kind: str, raw: bytes, *names: str) -> list[Any]:
    """The parts of an envelope of any body."""
    data = b"nexapod/3/" + kind.encode() + b"\0" + raw
    code = statements.KINDS.index(kind)  # type: ignore[arg-type]
    return [3, code, raw, [[KEYS[name].key, KEYS[name].sign(data)] for name in by_key(*names)]]


def changed(statement: Statement, change: Callable[[list[Any]], None], *names: str) -> bytes:
    """An envelope of the statement's body with a change, signed as it must be."""
    raw = msgpack.unpackb(statement.raw, strict_map_key=False)
    change(raw)
    return pack(signed(statement.kind, pack(raw), *(names or ("bob",))))


def put(*path: int, value: Any) -> Callable[[list[Any]], None]:
    """Puts a value at a place of a body."""

    def change(raw: list[Any]) -> None:
        for place in path[:-1]:
            raw = raw[place]
        raw[path[-1]] = value

    return change


def refused_statements(story: Story) -> Iterator[tuple[str, str, bytes]]:
    commit, freeze = story.commits["bob"], story.freeze
    parts = signed("commit", commit.raw, "bob")
    version, code, raw, signatures = parts
    [[key, signature]] = signatures
    two = signed("freeze", freeze.raw, "erin", "frank")[3]
    yield "nothing", "not-msgpack", b""
    yield "a statement and one byte more", "not-msgpack", commit.envelope + b"\0"
    yield "cut short", "not-msgpack", commit.envelope[:-1]
    yield "an extension type of msgpack", "not-msgpack", b"\xd4\x05\x00"
    yield "an empty extension type of msgpack", "not-msgpack", b"\xc7\x00\x05"
    yield "a timestamp of msgpack", "not-msgpack", b"\xd6\xff\0\0\0\0"
    yield "nine arrays inside one another", "not-msgpack", b"\x91" * 8 + b"\x90"
    yield "eight arrays inside one another", "bad-envelope", b"\x91" * 7 + b"\x90"
    yield "a map with an array inside", "not-msgpack", b"\x81\x00\x90"
    yield "a map with nine entries", "not-msgpack", b"\x89" + b"".join(bytes([n, 0xC0]) for n in range(9))
    yield "str that is not UTF-8", "not-msgpack", b"\xa1\xff"
    yield "str with a surrogate", "not-msgpack", b"\xa3\xed\xa0\x80"
    yield "larger than an envelope", "too-large", bytes(65537)
    yield "a map", "bad-envelope", pack({0: b""})
    yield "an array of three", "bad-envelope", pack(parts[:3])
    yield "version 2", "unknown-version", pack([2, *parts[1:]])
    yield "a version that is no integer", "unknown-version", pack([3.0, *parts[1:]])
    yield "a kind that does not exist", "unknown-kind", pack([version, 17, raw, signatures])
    yield "a kind by its word", "unknown-kind", pack([version, "commit", raw, signatures])
    yield "a kind that is true", "unknown-kind", pack([version, True, raw, signatures])
    yield "a body that is no bin", "bad-envelope", pack([version, code, "", signatures])
    yield "no signature", "bad-envelope", pack([version, code, raw, []])
    yield "two signatures of a statement by one author", "bad-envelope", pack([version, code, raw, two])
    yield "signatures out of order", "bad-envelope", pack([3, 14, freeze.raw, two[::-1]])
    yield "an author twice", "bad-envelope", pack([3, 14, freeze.raw, [two[0], two[0]]])
    yield "a key of 31 bytes", "bad-envelope", pack([version, code, raw, [[key[1:], signature]]])
    yield "a signature of 63 bytes", "bad-envelope", pack([version, code, raw, [[key, signature[1:]]]])
    yield "another's signature", "bad-signature", pack([version, code, raw, [[KEYS["carol"].key, signature]]])
    yield (
        "one of two signatures does not hold",
        "bad-signature",
        pack([3, 14, freeze.raw, [two[0], [two[1][0], two[0][1]]]]),
    )
    yield "signed as another kind", "bad-signature", pack([version, 6, raw, signatures])
    older = KEYS["bob"].sign(b"nexapod/2/commit\0" + raw)
    yield "signed for version 2", "bad-signature", pack([version, code, raw, [[key, older]]])
    yield "a bad signature over a bad body", "bad-signature", pack([version, code, b"\xc1", signatures])
    yield "a body that is not msgpack", "not-msgpack", pack(signed("commit", b"\xc1", "bob"))
    yield "a body that is no array", "bad-field", pack(signed("commit", b"\xc0", "bob"))
    yield "a field too few", "bad-field", changed(commit, lambda raw: raw.pop())
    yield "a field too many", "bad-field", changed(commit, lambda raw: raw.append(None))
    yield "no extension slot but nil", "bad-field", changed(commit, put(3, value=None))
    yield "an extension's key out of range", "bad-field", changed(commit, put(3, value={256: b""}))
    yield "an extension's key is a word", "bad-field", changed(commit, put(3, value={"a": b""}))
    yield "extensions out of order", "bad-field", changed(commit, put(3, value={2: b"", 1: b""}))
    duplicate = commit.raw[:-1] + b"\x82\x01\xc4\0\x01\xc4\0"
    yield "an extension twice", "bad-field", pack(signed("commit", duplicate, "bob"))
    yield "an extension that is text", "bad-field", changed(commit, put(3, value={1: ""}))
    yield "extensions of 1025 bytes", "bad-field", changed(commit, put(3, value={1: bytes(1000), 2: bytes(25)}))
    yield "a digest of 31 bytes", "bad-field", changed(commit, put(0, value=bytes(31)))
    yield "a shard out of range", "bad-field", changed(commit, put(1, value=3907))
    yield "a shard that is a float", "bad-field", changed(commit, put(1, value=0.0))
    yield "a shard that is a boolean", "bad-field", changed(commit, put(1, value=False))
    yield "a shard that is a map", "bad-field", changed(commit, put(1, value={}))
    yield "no items", "bad-field", changed(commit, put(2, value=[]))
    reveal = story.reveals["bob"]
    yield "an unknown outcome", "bad-field", changed(reveal, put(5, 0, 3, value=6))
    yield "text with a direction", "bad-field", changed(reveal, put(5, 0, 8, value="\u202eabc"))
    yield "text that is too long in bytes", "bad-field", changed(reveal, put(5, 0, 8, value="é" * 257))
    yield "a path upwards", "bad-path", changed(reveal, put(5, 0, 5, 0, 0, value="a/../b"))
    yield "an absolute path", "bad-path", changed(reveal, put(5, 0, 5, 0, 0, value="/a"))
    yield "a path with a line feed", "bad-path", changed(reveal, put(5, 0, 5, 0, 0, value="a\nb"))
    yield "a path with a forbidden character", "bad-field", changed(reveal, put(5, 0, 5, 0, 0, value="a\0b"))
    yield "an empty path", "bad-field", changed(reveal, put(5, 0, 5, 0, 0, value=""))
    yield from refused_jobs(story)


def refused_jobs(story: Story) -> Iterator[tuple[str, str, bytes]]:
    """Jobs whose fields do not fit each other."""
    run, split = story.job.body.run, story.job.body.split
    replaced = dataclasses.replace
    blob = blob_of(b"other")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("neither a module nor an image", {"run": replaced(run, module=None)}),
        ("a module and an image", {"run": replaced(run, image=DOCKER_JOB.run.image)}),
        ("a module that is too large", {"run": replaced(run, module=BlobRef(blob.digest, 100663297))}),
        ("a working directory for wasm", {"run": replaced(run, workdir="/data")}),
        ("an image by a tag", {"run": types.Run("docker", image="registry.example.org/tool:latest")}),
        ("an image with another configuration", {"run": replaced(DOCKER_JOB.run, image_blobs=(blob,))}),
        ("a GPU for wasm", {"limits": types.Limits(gpus=1)}),
        ("two inputs at one path", {"inputs": (File("chunk.csv", blob),)}),
        ("more must agree than are tried", {"validate": types.Validate("exact", 3, 2)}),
        ("two weights for one worker", {"policy": types.TrustPolicy("peer", ((peer("bob"), 1), (peer("bob"), 2)))}),
        ("a capability that is none", {"requires": types.Requires(gpu_capability="new")}),
        ("a split with too few entries", {"tasks": 3}),
        ("a split that falls", {"split": replaced(split, bounds=(17, 7))}),
        ("a split beyond its file", {"split": replaced(split, bounds=(7, 18))}),
        ("a split inside its header", {"split": replaced(split, bounds=(6, 17))}),
        ("no panel", {"panel": ()}),
    ]
    for name, fields in cases:
        yield f"a job: {name}", "bad-field", make(job(**fields), SUBMITTER).envelope


def refused_messages(story: Story) -> Iterator[tuple[str, str, bytes]]:
    yield "nothing", "not-msgpack", b""
    yield "larger than a frame", "too-large", bytes(262145)
    yield "a message that is no array", "bad-message", pack(17)
    yield "a message of three", "bad-message", pack([17, [story.id, {}], 0])
    yield "an unknown message", "unknown-message", pack([26, []])
    yield "a message by its word", "unknown-message", pack(["Bid", [story.id, {}]])
    yield "a field too few", "bad-field", pack([17, [story.id]])
    yield "an unknown word", "bad-field", pack([23, [story.id, 0, [[0, 6]], {}]])
    yield "257 statements", "bad-field", pack([1, [[b"\0"] * 257, {}]])
    yield "an empty envelope", "bad-field", pack([1, [[b""], {}]])


def refused_vectors(story: Story) -> list[dict[str, Any]]:
    found = [("statement", *case) for case in refused_statements(story)]
    found += [("message", *case) for case in refused_messages(story)]
    return [{"what": what, "name": name, "rule": rule, **_bytes(data)} for what, name, rule, data in found]


def _bytes(data: bytes) -> dict[str, Any]:
    """Bytes as hex; of a length that only their length matters, how many zeros they are."""
    return {"bytes": data.hex()} if any(data) or not data else {"zeros": len(data)}


def build() -> dict[str, str]:
    """What each file holds."""
    story = Story()
    made = {
        "statements.json": statement_vectors(story),
        "messages.json": message_vectors(story),
        "refused.json": refused_vectors(story),
        "values.json": value_vectors(story),
    }
    return {name: json.dumps(value, indent=1, ensure_ascii=True) + "\n" for name, value in made.items()}


def main(arguments: list[str]) -> int:
    """Write the files, or say that they are not current."""
    stale = 0
    for name, text in build().items():
        path = FOLDER / name
        if "--check" in arguments:
            stale |= not path.exists() or path.read_text() != text
        else:
            path.write_text(text)
    return int(stale)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
