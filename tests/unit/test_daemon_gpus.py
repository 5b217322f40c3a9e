"""nexapod.daemon.gpus: who gets which GPU, which are given to nobody and why, and what GPU time means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from daemon_kit import job_spec, profile
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from nvml_fake import readings

from nexapod.config.gpus import GpuSettings
from nexapod.daemon.gpus import (
    BUSY_MEMORY_BYTES,
    BUSY_UTILISATION_PERCENT,
    SAMPLE_GAP_MS_MAX,
    SETTLE_MS,
    GpuLeases,
    GpuMeter,
)
from nexapod.profile.gpus import GpuReading, told
from nexapod.protocol.rules.matching import satisfies
from nexapod.protocol.types import Limits, Requires

[LAPTOP] = readings("laptop")
[A100] = readings("A100, not split")
[H100] = readings("H100")
[SPLIT] = readings("A100, split")
FREE_4090, BUSY_4090 = readings("two RTX 4090")
ALL = (A100, replace(H100, index=1), replace(LAPTOP, index=2), replace(FREE_4090, index=3))
"""Four that are free, the largest first."""


def leases(*gpus: GpuReading, owner: GpuSettings | None = None) -> GpuLeases:
    made = GpuLeases(owner or GpuSettings())
    made.update(gpus, 0)
    return made


def withheld(*gpus: GpuReading, owner: GpuSettings | None = None) -> list[str]:
    return [state.withheld for state in leases(*gpus, owner=owner).states()]


# --- who gets what -------------------------------------------------------------------------------------------------
def test_the_least_that_fits_goes_first() -> None:
    made = leases(*ALL)
    assert made.lease("a", 1) == (LAPTOP.uuid,)
    assert made.lease("b", 1) == (FREE_4090.uuid,)
    assert made.lease("c", 2) == (H100.uuid, A100.uuid)
    assert made.lease("d", 1) is None


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ({"memory_bytes": 7 << 30}, FREE_4090.uuid),
        ({"memory_bytes": 80 << 30}, A100.uuid),
        ({"capability": "8.7"}, FREE_4090.uuid),
        ({"capability": "9"}, H100.uuid),
        ({"model": "a100"}, A100.uuid),
        ({"model": "a100", "capability": "8.0", "memory_bytes": 80 << 30}, A100.uuid),
    ],
)
def test_a_task_gets_what_it_asks_for(wanted: dict[str, object], given: str) -> None:
    assert leases(*ALL).lease("a", 1, **wanted) == (given,)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wanted",
    [{"memory_bytes": 81 << 30}, {"capability": "9.1"}, {"model": "B200"}, {"model": "RTX", "capability": "9"}],
)
def test_a_task_gets_nothing_that_does_not_fit(wanted: dict[str, object]) -> None:
    assert leases(*ALL).lease("a", 1, **wanted) is None  # type: ignore[arg-type]


def test_all_or_nothing() -> None:
    made = leases(*ALL)
    assert made.lease("a", 3, memory_bytes=20 << 30) is not None
    assert made.lease("b", 2) is None
    assert made.held("b") == ()
    assert made.lease("b", 1) == (LAPTOP.uuid,)


def test_what_is_given_back_is_free_again_and_once_only() -> None:
    made = leases(LAPTOP)
    assert made.lease("a", 1) == (LAPTOP.uuid,)
    assert made.lease("b", 1) is None
    assert made.release("a", 5) == (LAPTOP.uuid,)
    assert made.release("a", 5) == made.release("never", 5) == ()
    assert made.lease("b", 1) == (LAPTOP.uuid,)
    assert [state.leased_by for state in made.states()] == ["b"]


def test_no_gpu_is_needed_for_none() -> None:
    made = leases()
    assert made.lease("a", 0) == ()
    assert not made.any_held
    assert made.lease("a", 1) is None


def test_a_gpu_without_memory_of_its_own_fits_who_asks_for_none() -> None:
    [shared] = readings("unified memory")
    assert leases(shared).lease("a", 1, memory_bytes=1) is None
    assert leases(shared).lease("a", 1) == (shared.uuid,)


def test_what_a_former_daemon_gave_is_held_whatever_is_read_of_it() -> None:
    made = leases(FREE_4090, BUSY_4090)
    assert made.hold("old", (BUSY_4090.uuid, "GPU-not-there"))
    assert made.lease("new", 1) == (FREE_4090.uuid,)
    assert not made.hold("other", (FREE_4090.uuid,))
    assert made.held("other") == ()
    assert made.hold("none", ())
    assert made.release("old", 9) == (BUSY_4090.uuid, "GPU-not-there")


def test_a_gpu_that_vanishes_while_leased_stays_leased_and_is_given_to_nobody() -> None:
    made = leases(LAPTOP, A100)
    assert made.lease("a", 1) == (LAPTOP.uuid,)
    made.update([A100], 1)
    assert made.held("a") == (LAPTOP.uuid,)
    assert [state.reading.uuid for state in made.states()] == [A100.uuid]
    made.update([LAPTOP, A100], 2)
    assert made.lease("b", 1) == (A100.uuid,)
    made.update([A100], 3)
    made.release("a", 4)
    assert made.lease("c", 1) is None
    made.update([LAPTOP, A100], 5)
    assert made.lease("c", 1) == (LAPTOP.uuid,)


# --- what is given to nobody ---------------------------------------------------------------------------------------
def test_others_come_first() -> None:
    assert withheld(FREE_4090, BUSY_4090) == ["", "others use it: 21068 MiB of its memory are taken"]
    idle = replace(LAPTOP, memory_used_bytes=BUSY_MEMORY_BYTES - 1, utilisation_percent=BUSY_UTILISATION_PERCENT - 1)
    assert withheld(idle) == [""]
    assert withheld(replace(idle, memory_used_bytes=BUSY_MEMORY_BYTES)) == [
        "others use it: 1024 MiB of its memory are taken"
    ]
    assert withheld(replace(idle, utilisation_percent=BUSY_UTILISATION_PERCENT)) == [
        "others use it: it is busy for 25 % of the time"
    ]
    assert withheld(replace(LAPTOP, memory_used_bytes=None, utilisation_percent=None)) == [""]


def test_what_a_task_of_ours_uses_is_not_used_by_others() -> None:
    made = leases(LAPTOP)
    made.lease("a", 1)
    busy = replace(LAPTOP, memory_used_bytes=5 << 30, utilisation_percent=100, temperature_c=99)
    made.update([busy], 1)
    assert [reading.uuid for reading in made.offered()] == [LAPTOP.uuid]
    made.release("a", 1000)
    trailing = replace(LAPTOP, utilisation_percent=100)
    made.update([trailing], 1000 + SETTLE_MS - 1)
    assert made.lease("b", 1) == (LAPTOP.uuid,)
    made.release("b", 4000)
    made.update([trailing], 4000 + SETTLE_MS)
    assert made.lease("c", 1) is None


def test_memory_that_is_taken_right_after_a_task_is_taken_by_others() -> None:
    made = leases(LAPTOP)
    made.lease("a", 1)
    made.release("a", 0)
    made.update([replace(LAPTOP, memory_used_bytes=5 << 30)], 1)
    assert made.lease("b", 1) is None


@pytest.mark.parametrize("name", [LAPTOP.uuid.lower(), 0])
def test_the_owner_keeps_what_is_disabled(name: str | int) -> None:
    said = "its owner does not lend it ([gpu] in config.toml)"
    assert withheld(LAPTOP, replace(A100, index=1), owner=GpuSettings(disabled=frozenset({name}))) == [said, ""]
    assert withheld(LAPTOP, owner=GpuSettings(enabled=False)) == [said]


def test_disabled_names_that_fit_no_gpu_are_found() -> None:
    made = leases(LAPTOP, owner=GpuSettings(disabled=frozenset({0, 3, LAPTOP.uuid.lower(), A100.uuid})))
    assert made.unknown_names() == [3, A100.uuid]


def test_a_hot_gpu_rests() -> None:
    owner = GpuSettings(temperature_max_c=45)
    assert LAPTOP.temperature_c == 45
    assert withheld(LAPTOP, owner=owner) == [""]
    assert withheld(replace(LAPTOP, temperature_c=46), owner=owner) == [
        "it is too hot: 46 C, where at most 45 are allowed"
    ]
    assert withheld(replace(LAPTOP, temperature_c=None), owner=owner) == [""]
    assert withheld(replace(LAPTOP, temperature_c=99)) == [""]


def test_a_split_gpu_is_given_to_nobody() -> None:
    assert withheld(SPLIT) == ["it is split into MIG instances, and only whole GPUs are given to tasks"]
    assert leases(SPLIT).offered() == []


# --- any sequence --------------------------------------------------------------------------------------------------
UUIDS = [f"GPU-{n}" for n in range(5)]
LABELS = [f"{n:x}" for n in range(6)]
ONE_GPU = st.builds(
    lambda uuid, gib, load, used, hot, split: replace(
        LAPTOP,
        uuid=uuid,
        index=UUIDS.index(uuid),
        memory_bytes=gib << 30,
        utilisation_percent=load,
        memory_used_bytes=used,
        temperature_c=hot,
        mig=split,
    ),
    st.sampled_from(UUIDS),
    st.integers(1, 3),
    st.sampled_from([None, 0, 100]),
    st.sampled_from([None, 0, 2 << 30]),
    st.sampled_from([None, 40, 90]),
    st.sampled_from([None, False, True]),
)


class LeaseMachine(RuleBasedStateMachine):
    """Any sequence of looks, leases and releases, against what a dumb model says is held."""

    def __init__(self) -> None:
        super().__init__()
        self.leases = GpuLeases(GpuSettings(disabled=frozenset({4}), temperature_max_c=80))
        self.seen: dict[str, GpuReading] = {}
        self.model: dict[str, set[str]] = {}
        self.now = 0

    @rule(gpus=st.lists(ONE_GPU, max_size=5, unique_by=lambda reading: reading.uuid), passed=st.integers(0, 3000))
    def look(self, gpus: list[GpuReading], passed: int) -> None:
        self.now += passed
        self.seen = {reading.uuid: reading for reading in gpus}
        self.leases.update(gpus, self.now)

    @rule(label=st.sampled_from(LABELS), count=st.integers(0, 4), gib=st.integers(0, 3))
    def lease(self, label: str, count: int, gib: int) -> None:
        if label in self.model:
            return
        taken = {uuid for uuids in self.model.values() for uuid in uuids}
        fitting = [r for r in self.leases.offered() if r.uuid not in taken and (r.memory_bytes or 0) >= gib << 30]
        got = self.leases.lease(label, count, memory_bytes=gib << 30)
        if got is None:
            assert len(fitting) < count
            return
        assert len(set(got)) == len(got) == count
        assert taken.isdisjoint(got)
        assert set(got) <= {reading.uuid for reading in fitting}
        left = [r.memory_bytes or 0 for r in fitting if r.uuid not in got]
        assert all((self.seen[uuid].memory_bytes or 0) <= size for uuid in got for size in left)
        assert not any(self.seen[uuid].mig or self.seen[uuid].index == 4 for uuid in got)
        if got:
            self.model[label] = set(got)

    @rule(label=st.sampled_from(LABELS), uuids=st.lists(st.sampled_from(UUIDS), max_size=2, unique=True))
    def hold(self, label: str, uuids: list[str]) -> None:
        if label in self.model:
            return
        taken = {uuid for held in self.model.values() for uuid in held}
        assert self.leases.hold(label, uuids) == taken.isdisjoint(uuids)
        if uuids and taken.isdisjoint(uuids):
            self.model[label] = set(uuids)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        label = data.draw(st.sampled_from(sorted(self.model)))
        assert set(self.leases.release(label, self.now)) == self.model.pop(label)

    @invariant()
    def what_is_held_is_what_was_given(self) -> None:
        assert {label: set(self.leases.held(label)) for label in LABELS if self.leases.held(label)} == self.model
        shown = {state.reading.uuid: state.leased_by for state in self.leases.states()}
        holders = {uuid: label for label, uuids in self.model.items() for uuid in uuids}
        assert shown == {uuid: holders.get(uuid, "") for uuid in self.seen}
        assert self.leases.any_held == bool(self.model)


TestAnySequence = LeaseMachine.TestCase
TestAnySequence.settings = hypothesis_settings(max_examples=60, stateful_step_count=25, deadline=None)


# --- GPU time ------------------------------------------------------------------------------------------------------
def load(*percents: int | None) -> list[GpuReading]:
    return [replace(LAPTOP, uuid=UUIDS[n], index=n, utilisation_percent=p) for n, p in enumerate(percents)]


def test_gpu_time_is_utilisation_over_time_of_all_gpus_held() -> None:
    meter = GpuMeter()
    meter.start("a", UUIDS[:2], 10_000)
    for second, percents in enumerate([(100, 0), (50, 50), (0, 100), (25, 0)], start=1):
        meter.sample(load(*percents, 99), 10_000 + 1000 * second)
    assert meter.gpu_ms("a") == 1000 + 500 + 500 + 1000 + 250
    assert meter.stop("a", 14_000) == 3250
    assert meter.gpu_ms("a") == meter.stop("a", 15_000) == 0


def test_recorded_readings_of_a_busy_and_an_idle_card() -> None:
    meter = GpuMeter()
    cards = readings("two RTX 4090")
    meter.start("idle", [cards[0].uuid], 0)
    meter.start("busy", [cards[1].uuid], 500)
    for now in range(1000, 11_000, 1000):
        meter.sample(cards, now)
    assert meter.stop("idle", 10_000) == 300
    assert meter.stop("busy", 10_000) == 9310


def test_the_time_after_the_last_sample_counts_like_it() -> None:
    meter = GpuMeter()
    meter.start("a", UUIDS[:1], 0)
    meter.sample(load(80), 1000)
    assert meter.stop("a", 1500) == 800 + 400


def test_what_nobody_saw_is_not_counted() -> None:
    meter = GpuMeter()
    meter.start("short", UUIDS[:1], 0)
    assert meter.stop("short", 900) == 0
    meter.start("mute", UUIDS[:1], 0)
    meter.sample(load(None), 1000)
    assert meter.stop("mute", 2000) == 0
    meter.start("lost", UUIDS[:2], 0)
    meter.sample(load(100, 100), 1000)
    meter.sample(load(100), 2000)
    assert meter.stop("lost", 2000) == 3000
    meter.start("gap", UUIDS[:1], 0)
    meter.sample(load(100), 3_600_000)
    assert meter.stop("gap", 3_600_000) == SAMPLE_GAP_MS_MAX
    assert meter.stop("none", 1) == 0


def test_a_run_without_gpus_has_no_meter() -> None:
    meter = GpuMeter()
    meter.start("a", (), 0)
    meter.sample(load(100), 1000)
    assert meter.stop("a", 1000) == 0


def test_what_matching_lets_in_the_lease_gives() -> None:
    """A peer must not be bid for what it can never lease."""
    for count in (1, 2, 3):
        for memory in (0, 6 << 30, 24 << 30, 80 << 30):
            for model in ("", "nvidia", "RTX", "a100"):
                for capability in ("", "8.0", "8.6", "8.9", "9.0", "10.0"):
                    made = leases(*ALL)
                    spec = job_spec(
                        limits=Limits(gpus=count, gpu_memory=memory),
                        requires=Requires(gpu_model=model, gpu_capability=capability),
                    )
                    able = satisfies(profile(gpus=tuple(told(r) for r in made.offered())), spec).ok
                    got = made.lease("a", count, memory_bytes=memory, model=model, capability=capability)
                    assert (got is not None) == able
