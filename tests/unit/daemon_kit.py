"""What the tests of the daemon share: peers with a keyed hash for a signature, and values of protocol 3, sensible
where a test does not say otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nexapod.protocol.node.node import Node
from nexapod.protocol.primitives import PeerId, blob_of
from nexapod.protocol.types import Executor, JobSpec, Offer, Profile, Run
from nexapod.sim.keys import HashSigner, verify

__all__ = ["NETWORK", "job_spec", "new_node", "offer", "pid", "profile", "signer", "verify"]

NETWORK = "test"
FAR = 1 << 50


def signer(number: int) -> HashSigner:
    return HashSigner(1, "daemon", number)


def pid(number: int) -> PeerId:
    return signer(number).peer


def profile(**changes: Any) -> Profile:
    """A machine that works: one slot, wasm, no GPU."""
    made = Profile(
        network=NETWORK,
        seq=0,
        stamp=1,
        agent="test",
        minor=0,
        os="linux",
        arch="x86_64",
        cpu_model="",
        cpus=8,
        memory=1 << 36,
        disk_free=1 << 40,
        gpus=(),
        executors=(Executor("wasm", "1"),),
        images=(),
        registries=(),
        addrs=("/ip4/10.0.0.1/tcp/4001",),
        slots=1,
    )
    return replace(made, **changes)


def offer(**changes: Any) -> Offer:
    return replace(Offer(NETWORK, 0, ("/ip4/10.0.0.1/tcp/4001",), 1 << 40, 1_000, FAR), **changes)


def job_spec(**changes: Any) -> JobSpec:
    """One task of wasm."""
    made = JobSpec(NETWORK, "a job", b"n" * 16, 1, Run("wasm", module=blob_of(b"module")), 1)
    return replace(made, **changes)


def new_node(number: int = 0, **named: Any) -> Node:
    """A node of this network; its randomness is none."""
    return Node(signer(number), verify, NETWORK, "peer", lambda n: b"\x05" * n, **named)
