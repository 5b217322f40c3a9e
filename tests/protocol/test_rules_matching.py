"""Every reason for which a peer does not take a job, and that it says so (rules/matching.py)."""

from __future__ import annotations

from typing import Any

import pytest
from plain import MODULE, ONE, OTHER, job_spec
from worker_bench import a_profile as profile

from nexapod.protocol.rules.matching import Policy, accepts, satisfies
from nexapod.protocol.types import Executor, Gpu, Limits, Requires, Run

IMAGE = "sha256:" + "0" * 64
DOCKER = job_spec(run=Run("docker", image=IMAGE))
GPU = Gpu("NVIDIA A100-SXM4-80GB", 80 << 30, "8.0")
RTX_2080 = Gpu("NVIDIA GeForce RTX 2080 Ti", 11811160064, "7.5")
RTX_3060 = Gpu("NVIDIA GeForce RTX 3060 Laptop GPU", 6 << 30, "8.6")
RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", 32 << 30, "12.0")
TWO_AMPERE = job_spec(limits=Limits(gpus=2, gpu_memory=8 << 30), requires=Requires(gpu_capability="8.0"))


def test_an_ordinary_peer_takes_an_ordinary_job() -> None:
    assert satisfies(profile(), job_spec()).ok
    assert satisfies(profile(), job_spec()).reason == "it satisfies the job"


@pytest.mark.parametrize(
    ("changes", "spec", "reason"),
    [
        ({"network": "other"}, job_spec(), "it belongs to the network net"),
        ({"slots": 0}, job_spec(), "takes no tasks"),
        ({"executors": ()}, job_spec(), "has no wasm executor"),
        ({}, DOCKER, "has no docker executor"),
        ({"executors": (Executor("docker", "1"),)}, DOCKER, "does not hold the container image"),
        ({}, job_spec(requires=Requires(arch=("riscv64", "s390x"))), "its architecture is not riscv64 or s390x"),
        ({"memory": 1 << 20}, job_spec(), "has less than 256 MiB of memory"),
        ({}, job_spec(requires=Requires(memory=1 << 50)), "has less than 1073741824 MiB of memory"),
        ({"cpus": 1}, job_spec(limits=Limits(cpus_milli=1001)), "has fewer than 2 cores"),
        ({}, job_spec(limits=Limits(gpus=1)), "has fewer than 1 fitting GPUs"),
        ({"gpus": (GPU,)}, job_spec(limits=Limits(gpus=2)), "has fewer than 2 fitting GPUs"),
        (
            {"gpus": (GPU,)},
            job_spec(limits=Limits(gpus=1), requires=Requires(gpu_capability="8.6")),
            "has fewer than 1 fitting GPUs",
        ),
        (
            {"gpus": (Gpu("NVIDIA A100-SXM4-80GB", 80 << 30),)},
            job_spec(limits=Limits(gpus=1), requires=Requires(gpu_capability="3.5")),
            "has fewer than 1 fitting GPUs",
        ),
        ({"gpus": (GPU, RTX_2080)}, TWO_AMPERE, "has fewer than 2 fitting GPUs"),
        ({"gpus": (GPU, RTX_3060)}, TWO_AMPERE, "has fewer than 2 fitting GPUs"),
        ({"gpus": (GPU,)}, job_spec(limits=Limits(gpus=1, gpu_memory=81 << 30)), "has fewer than 1 fitting GPUs"),
        (
            {"gpus": (GPU,)},
            job_spec(limits=Limits(gpus=1), requires=Requires(gpu_model="H100")),
            "has fewer than 1 fitting GPUs",
        ),
        ({"disk_free": 32 << 20}, job_spec(), "has less than 32 MiB of free disk"),
    ],
)
def test_a_peer_that_does_not_fit_says_why(changes: dict[str, Any], spec: Any, reason: str) -> None:
    decision = satisfies(profile(**changes), spec)
    assert (decision.ok, decision.reason) == (False, reason)


def test_peers_that_just_fit() -> None:
    assert satisfies(profile(executors=(Executor("docker", "1"),), images=(IMAGE,)), DOCKER).ok
    assert satisfies(profile(), job_spec(requires=Requires(arch=("x86_64",)))).ok
    wanted = job_spec(limits=Limits(gpus=1, gpu_memory=80 << 30), requires=Requires(gpu_model="a100"))
    assert satisfies(profile(gpus=(GPU,)), wanted).ok
    assert satisfies(profile(disk_free=(32 << 20) + MODULE.size), job_spec()).ok


def test_two_gpus_with_memory_and_capability() -> None:
    assert satisfies(profile(gpus=(GPU, GPU)), TWO_AMPERE).ok
    assert satisfies(profile(gpus=(RTX_2080, RTX_3060, RTX_5090, GPU)), TWO_AMPERE).ok


@pytest.mark.parametrize(
    ("has", "wanted", "ok"),
    [
        ("8.0", "8.0", True),
        ("8.0", "8", True),
        ("8.6", "8.0", True),
        ("12.0", "9.0", True),  # by number, not by letter
        ("9.0", "12.0", False),
        ("7.5", "8.0", False),
        ("", "8.0", False),
        ("", "", True),
        ("8.0", "", True),
    ],
)
def test_a_newer_capability_serves_who_wants_an_older_one(has: str, wanted: str, ok: bool) -> None:
    spec = job_spec(limits=Limits(gpus=1), requires=Requires(gpu_capability=wanted))
    assert satisfies(profile(gpus=(Gpu("any", 1 << 30, has),)), spec).ok == ok


def test_who_wants_no_gpu_is_not_asked_for_one() -> None:
    assert satisfies(profile(), job_spec(requires=Requires(gpu_model="H100", gpu_capability="9.0"))).ok


def test_the_owner_decides_for_whom_a_machine_works() -> None:
    assert accepts(Policy(), ONE).ok
    assert accepts(Policy(submitters=frozenset({ONE})), ONE).ok
    refused = accepts(Policy(submitters=frozenset({ONE})), OTHER)
    assert (refused.ok, refused.reason) == (False, "its submitter is not among those that this peer works for")
    idle = accepts(Policy(work=False), ONE)
    assert (idle.ok, idle.reason) == (False, "this peer does not work (started with --no-work)")
