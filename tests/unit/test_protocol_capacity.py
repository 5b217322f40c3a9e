"""nexapod.protocol.capacity: what fits beside what."""

from __future__ import annotations

import pytest
from protocol_kit import job_spec, profile

from nexapod.protocol.capacity import PLENTY, room_for
from nexapod.protocol.types import Gpu, JobSpec, Limits, Requires

GIB = 1 << 30
MACHINE = profile(cpus=4, memory=8 * GIB, slots=4, gpus=(Gpu("A100", 40 * GIB, "8.0"), Gpu("T4", 16 * GIB, "7.5")))


def spec(cpus: int = 1, memory: int = GIB, gpus: int = 0, **requires: str) -> JobSpec:
    limits = Limits(cpus_milli=cpus * 1000, memory=memory, gpus=gpus)
    return job_spec(limits=limits, requires=Requires(**requires))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "taken", "room"),
    [
        (spec(), [], 4),
        (spec(cpus=2), [], 2),
        (spec(), [spec(), spec(cpus=2)], 1),
        (spec(memory=3 * GIB), [], 2),
        (spec(memory=3 * GIB), [spec(memory=6 * GIB)], 0),
        (spec(gpus=1), [], 2),
        (spec(gpus=1), [spec(gpus=1)], 1),
        (spec(gpus=1, gpu_capability="8.0"), [], 1),
        (spec(gpus=1, gpu_capability="8.0"), [spec(gpus=1)], 0),
        (spec(gpus=2), [spec(gpus=1)], 0),
        (spec(cpus=9), [], 1),
        (spec(cpus=9), [spec()], 0),
    ],
)
def test_tasks_that_run_together_never_need_more_than_there_is(
    wanted: JobSpec, taken: list[JobSpec], room: int
) -> None:
    assert room_for(MACHINE, wanted, taken) == room


def test_an_owner_who_gives_more_slots_than_cores_shares_them_out_more_thinly() -> None:
    assert room_for(profile(cpus=2, memory=64 * GIB, slots=6), spec(), []) == 6


def test_what_needs_nothing_is_bound_by_slots_alone() -> None:
    free = job_spec(limits=Limits(cpus_milli=0, memory=0))
    assert room_for(MACHINE, free, []) == PLENTY
