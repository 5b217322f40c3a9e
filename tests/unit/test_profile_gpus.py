"""GPUs, against readings recorded from NVML and the ways in which it fails."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from nexapod.profile.gpus import gpus
from nexapod.protocol.types import Gpu

H200 = {"name": "NVIDIA H200", "memory": 150_754_820_096, "capability": (9, 0)}
A100 = {"name": b"NVIDIA A100-SXM4-40GB", "memory": 42_949_672_960, "capability": (8, 0)}


class FakeNvml:
    """pynvml as far as it is used. `fail`: the calls that raise, by name, or by (name, index)."""

    class NVMLError(Exception):
        pass

    def __init__(self, cards=(), fail=()):
        self.cards = cards
        self.fail = fail
        self.open = 0

    def _check(self, name, index=None):
        if name in self.fail or (name, index) in self.fail:
            raise self.NVMLError(name)

    def nvmlInit(self):
        self._check("init")
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1
        self._check("shutdown")

    def nvmlSystemGetDriverVersion(self):
        self._check("driver")
        return "570.86.15"

    def nvmlDeviceGetCount(self):
        self._check("count")
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        self._check("handle", index)
        return index

    def nvmlDeviceGetName(self, index):
        self._check("name", index)
        return self.cards[index]["name"]

    def nvmlDeviceGetMemoryInfo(self, index):
        self._check("memory", index)
        return SimpleNamespace(total=self.cards[index]["memory"])

    def nvmlDeviceGetCudaComputeCapability(self, index):
        self._check("capability", index)
        return self.cards[index]["capability"]


READ_H200 = Gpu("NVIDIA H200", 150_754_820_096, "9.0", "570.86.15")
READ_A100 = Gpu("NVIDIA A100-SXM4-40GB", 42_949_672_960, "8.0", "570.86.15")


@pytest.mark.parametrize(
    ("cards", "expected"), [([], []), ([H200], [READ_H200]), ([H200, A100], [READ_H200, READ_A100])]
)
def test_cards_are_read_and_nvml_is_shut_down(cards, expected):
    nvml = FakeNvml(cards)
    assert gpus(nvml) == expected
    assert nvml.open == 0


def test_no_driver_is_no_gpu():
    assert gpus(FakeNvml([H200], fail=["init"])) == []


def test_no_library_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpus() == []


@pytest.mark.parametrize("call", ["handle", "name", "memory", "capability"])
def test_a_card_lost_while_it_is_read_is_left_out(call):
    nvml = FakeNvml([H200, A100], fail=[(call, 0)])
    assert gpus(nvml) == [READ_A100]
    assert nvml.open == 0


@pytest.mark.parametrize("call", ["driver", "count"])
def test_a_driver_that_fails_at_once_is_no_gpu(call):
    nvml = FakeNvml([H200], fail=[call])
    assert gpus(nvml) == []
    assert nvml.open == 0


def test_a_failing_shutdown_keeps_the_readings():
    assert gpus(FakeNvml([H200], fail=["shutdown"])) == [READ_H200]


def test_names_are_printable_and_cards_bounded():
    odd = H200 | {"name": "evil\x1b[31m\nname" + "x" * 1000}
    read = gpus(FakeNvml([odd] * 40))
    assert len(read) == 16
    assert read[0].model.startswith("evil[31mname")
    assert len(read[0].model) == 256
