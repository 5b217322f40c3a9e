"""Each promise of the wasm sandbox, tried by the probe; and that each can be broken, by a runtime that grants more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from nexapod.executor.contract import Ended
from nexapod.executor.probe import image
from nexapod.executor.probe.promises import LEFTOVERS, WASM, Broken, Folders, Kept, Promise, Seen, Traces, Unknown
from nexapod.executor.probe.sandboxes import WasmSandbox
from nexapod.executor.probe.trying import try_promise

BY_NAME = {promise.name: promise for promise in WASM}


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[WasmSandbox]:
    opened = WasmSandbox(tmp_path)
    yield opened
    assert await opened.aclose() == Traces()


@pytest.mark.parametrize("promise", WASM, ids=lambda promise: promise.name)
async def test_the_sandbox_keeps(promise: Promise, sandbox: WasmSandbox, tmp_path: Path) -> None:
    tried = await try_promise(sandbox, promise, tmp_path, 1)
    assert isinstance(tried.verdict, Kept), tried.verdict
    assert await sandbox.traces() == Traces()
    assert not (tmp_path / "1").exists()


def run_freely(folder: Path, *words: str, grant: dict[str, str]) -> dict[str, Any]:
    """The probe in a plain wasmtime: this machine's clock, randomness and environment, memory without a bound."""
    engine = wasmtime.Engine()
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    wasi = wasmtime.WasiConfig()
    wasi.argv = ["task", *words]
    wasi.inherit_env()
    for host, guest in grant.items():
        wasi.preopen_dir(host, guest, True)
    store = wasmtime.Store(engine)
    store.set_wasi(wasi)
    instance = linker.instantiate(store, wasmtime.Module(engine, image.module()))
    try:
        start = instance.exports(store)["_start"]
        assert isinstance(start, wasmtime.Func)
        start(store)
    except wasmtime.ExitTrap:
        pass
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.fixture
def output(tmp_path: Path) -> Path:
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
    (tmp_path / "input" / "in.txt").write_text("what goes in\n")
    return tmp_path / "output"


def test_a_clock_and_randomness_of_this_machine_are_found_out(output: Path) -> None:
    sights = [run_freely(output, "look", grant={str(output): "/output"}) for _ in range(3)]
    verdict = BY_NAME["sameness"].judge(Seen(BY_NAME["sameness"].limits, None, *_thrice(sights)))
    assert verdict == Broken("two runs of one task differ in clocks_ns, random")


def _thrice(sights: list[dict[str, Any]]) -> tuple[Any, ...]:
    first, again, other = sights
    return first, Folders(), Traces(), Traces(), again, other


def test_an_environment_that_is_handed_on_is_found_out(output: Path) -> None:
    look = run_freely(output, "look", grant={str(output): "/output"})
    seen = Seen(BY_NAME["sameness"].limits, result=look, again=look, other=look | {"random": []})
    verdict = BY_NAME["sameness"].judge(seen)
    assert isinstance(verdict, Broken)
    assert "variables of this machine" in verdict.happened


def test_a_folder_too_many_is_found_out(output: Path) -> None:
    (output.parent / "etc").mkdir()
    promise = BY_NAME["write outside"]
    result = run_freely(output, *promise.command, grant={str(output): "/output", str(output.parent): "/"})
    verdict = promise.judge(Seen(promise.limits, Ended("ok", 0), result))
    assert isinstance(verdict, Broken)
    assert "wrote to /, wrote to /etc" in verdict.happened


def test_an_input_that_can_be_written_is_found_out(output: Path) -> None:
    promise = BY_NAME["write outside"]
    grant = {str(output): "/output", str(output.parent / "input"): "/input"}
    result = run_freely(output, *promise.command, grant=grant)
    verdict = promise.judge(Seen(promise.limits, Ended("ok", 0), result, Folders(input_intact=False)))
    assert isinstance(verdict, Broken)
    assert "wrote to /input" in verdict.happened
    assert "changed its input (open)" in verdict.happened
    assert sorted(path.name for path in (output.parent / "input").iterdir()) == [], "the probe really did it"


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("memory bomb", ("memory", "100"), "took 100 MiB, where 64 MiB are allowed"),
        ("disk bomb", ("disk", "8", "0"), "and was not stopped"),
        ("file bomb", ("files", "300", "0"), "and was not stopped"),
    ],
)
def test_bombs_that_nobody_stops_are_found_out(name: str, words: tuple[str, ...], said: str, output: Path) -> None:
    result = run_freely(output, *words, grant={str(output): "/output"})
    verdict = BY_NAME[name].judge(Seen(BY_NAME[name].limits, Ended("ok", 0), result))
    assert isinstance(verdict, Broken)
    assert said in verdict.happened


async def test_what_is_left_on_the_disk_is_seen(tmp_path: Path) -> None:
    sandbox = WasmSandbox(tmp_path)
    (tmp_path / "scratch-wasm" / "forgotten").mkdir()
    left = await sandbox.aclose()
    assert LEFTOVERS.judge(Seen(LEFTOVERS.limits, after=left)) == Broken("left behind: scratch-wasm/forgotten")


async def test_a_probe_that_does_not_run_is_unknown_and_not_kept(sandbox: WasmSandbox, tmp_path: Path) -> None:
    (tmp_path / "probe.wasm").write_bytes(b"no module")
    for name in ("network", "write outside", "privilege", "kill", "memory bomb"):
        tried = await try_promise(sandbox, BY_NAME[name], tmp_path, 1)
        assert not isinstance(tried.verdict, Kept), name
        if name != "memory bomb":
            assert isinstance(tried.verdict, Unknown), tried.verdict
