"""nexapod.protocol.matching: every reason for which a peer does not take a job, and that it says so."""

from __future__ import annotations

from typing import Any

import pytest
from protocol_kit import MODULE, job_spec, pid, profile

from nexapod.protocol.matching import Policy, accepts, satisfies
from nexapod.protocol.types import Executor, Gpu, Limits, Requires, Run, blob_of

IMAGE = "sha256:" + "0" * 64
DOCKER = job_spec(run=Run("docker", image=IMAGE))
GPU = Gpu("NVIDIA A100-SXM4-80GB", 80 << 30)


def test_an_ordinary_peer_takes_an_ordinary_job() -> None:
    assert satisfies(profile(), job_spec()).ok
    assert satisfies(profile(), job_spec()).reason == "it satisfies the job"


@pytest.mark.parametrize(
    ("changes", "spec", "reason"),
    [
        ({"network": "other"}, job_spec(), "it belongs to the network test"),
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
    assert blob_of(b"module") == MODULE


def test_the_owner_decides_for_whom_a_machine_works() -> None:
    assert accepts(Policy(), pid(1)).ok
    assert accepts(Policy(submitters=frozenset({pid(1)})), pid(1)).ok
    refused = accepts(Policy(submitters=frozenset({pid(1)})), pid(2))
    assert (refused.ok, refused.reason) == (False, "its submitter is not among those that this peer works for")
    idle = accepts(Policy(work=False), pid(1))
    assert (idle.ok, idle.reason) == (False, "this peer does not work (started with --no-work)")
