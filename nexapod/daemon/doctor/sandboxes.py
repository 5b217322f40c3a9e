"""Looks at the sandboxes: is there an engine, is it fit, does wasm run; then each promise, tried with the probe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import trio

from nexapod.daemon.doctor.check import Desk, Finding
from nexapod.executor.probe.engine import Engine, EngineAway, EngineFacts
from nexapod.executor.probe.image import GO_ARCHITECTURES
from nexapod.executor.probe.promises import LEFTOVERS, PROMISES, Broken, Kept, Promise, Seen, Traces, Verdict
from nexapod.executor.probe.sandboxes import DockerSandbox, Sandbox, WasmSandbox
from nexapod.executor.probe.trying import try_promise
from nexapod.protocol.primitives import ExecutorName

T = TypeVar("T")
ENGINE_S: Final = 25.0
"""The most that meeting an engine, or loading an image into it, may take."""
GROUP_S: Final = 90.0
"""After so long no further promise of a sandbox is tried; what was not tried counts as failed."""


async def look_at_wasm(desk: Desk, place: Path, *, quick: bool) -> None:
    desk.begin("wasm", "runtime")
    sandbox = await trio.to_thread.run_sync(WasmSandbox, place)
    found = await sandbox.executor.probe()
    if found.ok:
        desk.end(Finding("ok", f"wasmtime {found.version}"))
        await _try_promises(desk, sandbox, "wasm", place, quick=quick)
        return
    desk.end(Finding("failed", found.reason, "Install nexapod again, into an environment of its own."))
    await sandbox.aclose()
    _skip(desk, "wasm", "no module runs here")


async def look_at_docker(desk: Desk, place: Path, *, quick: bool, required: bool) -> None:
    desk.begin("docker", "engine")
    try:
        engine = await _in_time(Engine)
        try:
            await _look_at_engine(desk, engine, place, quick=quick, required=required)
        finally:
            engine.close()
    except EngineAway as away:
        desk.begin("docker", "engine")
        desk.end(finding_away(away, required=required))
        _skip(desk, "docker", "there is no engine to try them on")


async def _look_at_engine(desk: Desk, engine: Engine, place: Path, *, quick: bool, required: bool) -> None:
    facts = await _in_time(engine.facts)
    desk.end(judge_engine(facts))
    if facts.arch not in GO_ARCHITECTURES:
        _skip(desk, "docker", f"the probe is built for {' and '.join(GO_ARCHITECTURES)}, not for {facts.arch}")
        return
    sandbox = await _opened(engine, facts.arch, place)
    desk.begin("docker", "executor")
    found = await sandbox.executor.probe()
    if not found.ok:
        desk.end(Finding("failed" if required else "warning", found.reason, "Container jobs run elsewhere until then."))
        await sandbox.aclose()
        _skip(desk, "docker", "this engine is not used for tasks")
        return
    desk.end(Finding("ok", f"takes container jobs; {len(found.images)} images are there"))
    await _try_promises(desk, sandbox, "docker", place, quick=quick)


async def _try_promises(desk: Desk, sandbox: Sandbox, group: ExecutorName, place: Path, *, quick: bool) -> None:
    """Each promise, one after the other; at the end, when all is cleared away, that nothing is left."""
    end = trio.current_time() + GROUP_S
    left = Traces()
    try:
        for number, promise in enumerate(PROMISES[group]):
            if quick and not promise.quick:
                continue
            desk.begin(group, promise.name)
            if trio.current_time() > end:
                desk.end(Finding("failed", "not tried: those before it took too long", promise.remedy))
                continue
            tried = await try_promise(sandbox, promise, place, number)
            desk.end(finding_of(promise, tried.verdict))
    finally:
        desk.begin(group, LEFTOVERS.name)
        left = await sandbox.aclose()
    desk.end(finding_of(LEFTOVERS, LEFTOVERS.judge(Seen(LEFTOVERS.limits, after=left))))


def finding_of(promise: Promise, verdict: Verdict) -> Finding:
    """A promise that could not be tried is not kept: nothing says so."""
    match verdict:
        case Kept(happened):
            return Finding("ok", happened)
        case Broken(happened):
            return Finding("failed", f"not so: {happened}", promise.remedy)
    return Finding("failed", f"could not be tried: {verdict.happened}", promise.remedy)


def finding_away(away: EngineAway, *, required: bool) -> Finding:
    """What it means that no engine can be used."""
    match away.how:
        case "absent":
            return Finding("failed" if required else "skipped", str(away), away.remedy)
        case "closed":
            return Finding("failed" if required else "warning", str(away), away.remedy)
    return Finding("failed", str(away), away.remedy)


def judge_engine(facts: EngineFacts) -> Finding:
    """Whether an engine can do what the contract needs."""
    kind = "rootless, " if facts.rootless else ""
    name = "Podman" if facts.podman else "Docker"
    said = (
        f"{name} {facts.version} (API {facts.api}, {kind}{facts.storage}, cgroup v{facts.cgroup_version} by"
        f" {facts.cgroup_driver}, {'seccomp' if facts.seccomp else 'no seccomp'})"
    )
    if not facts.seccomp:
        return Finding(
            "failed", said, "Use a kernel and an engine with seccomp: without it no container job runs here."
        )
    if facts.lacks:
        remedy = (
            "Enable these cgroup controllers for the engine (rootless: delegate them to your user, with cgroup v2)."
        )
        return Finding("failed", f"{said}: no {', no '.join(facts.lacks)}", remedy)
    if not facts.init:
        said += ": it has no init, so ended children of a task stay"
        return Finding("warning", said, f"Install {'catatonit' if facts.podman else 'docker-init (tini)'}.")
    if facts.storage == "vfs":
        said += ": it copies the whole image for each task"
        return Finding("warning", said, "Let the engine use overlay2 or fuse-overlayfs.")
    return Finding("ok", said)


def _skip(desk: Desk, group: str, reason: str) -> None:
    desk.begin(group, "promises")
    desk.end(Finding("skipped", f"not tried: {reason}"))


async def _opened(engine: Engine, arch: str, place: Path) -> DockerSandbox:
    opened: list[DockerSandbox] = []
    with trio.move_on_after(ENGINE_S):
        opened.append(await DockerSandbox.open(engine, arch, place))
    return _got(opened)


async def _in_time(function: Callable[[], T]) -> T:
    """Run what blocks in a thread, and give it up after ENGINE_S."""
    got: list[T] = []
    with trio.move_on_after(ENGINE_S):
        got.append(await trio.to_thread.run_sync(function, abandon_on_cancel=True))  # type: ignore[call-arg, unused-ignore]
    return _got(got)


def _got(answers: list[T]) -> T:
    if not answers:
        raise EngineAway("the container engine hangs", "Restart it (`sudo systemctl restart docker`).")
    return answers[0]
