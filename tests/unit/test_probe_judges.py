"""The judgements of the probe on recorded sights: what keeps a promise, what breaks it, and what says neither."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nexapod.executor.contract import Ended
from nexapod.executor.probe.promises import (
    DOCKER,
    LEFTOVERS,
    PROMISES,
    WASM,
    Broken,
    Folders,
    Kept,
    Promise,
    Seen,
    Traces,
    Unknown,
)
from nexapod.protocol.types import Usage

BY_NAME = {
    **{f"docker {promise.name}": promise for promise in DOCKER},
    **{f"wasm {promise.name}": promise for promise in WASM},
    "nothing left": LEFTOVERS,
}
OK = Ended("ok", 0)
STATUS = {"CapEff": "0000000000000000", "CapBnd": "0000000000000000", "NoNewPrivs": "1", "Seccomp": "2"}
NOBODY = {"uid": 65534, "gid": 65534, "status": STATUS, "calls": {"setuid": 1, "mount": 1, "bpf": 38}}
NET = {"tried": 184, "opened": [[1, 1], [2, 1], [16, 3]], "interfaces": [], "routes": [], "engines": []}
OUTSIDE = {"tried": 76, "written": ["/output", "/tmp"], "in_memory": ["/tmp", "/dev/shm"], "devices": [], "defaced": []}
LOOK = {"clocks_ns": [1, 2], "random": [7], "environment": ["NEXAPOD_PROGRESS"]}
LOG = "the first line\n[... 9 bytes left out ...]\nthe last line\n"
FENCED = Traces(processes=("runner 7",), fences=({"NoNewPrivs": "1", "Seccomp": "2"},))
TREE = Traces(("container c",), ("process 1", "process 2"))


def seen(name: str, ended: Ended | None = OK, result: dict[str, Any] | None = None, **more: Any) -> Seen:
    return Seen(BY_NAME[name].limits, ended, result or {}, **more)


KEPT = {
    "start": seen("docker start", Ended("try-elsewhere", 75)),
    "network": seen("docker network", result=NET),
    "wasm network": seen("wasm network", result={"opened": [], "tried": 64}),
    "vsock": seen("docker vsock", result={"opened": [], "device": 0}),
    "write outside": seen("docker write outside", result=OUTSIDE),
    "privilege": seen("docker privilege", result=NOBODY),
    "wasm privilege": seen("wasm privilege", None, during=FENCED),
    "output tricks": seen("docker output tricks", result={"made": ["loop"]}, folders=Folders(refused="a link")),
    "fork bomb": seen("docker fork bomb", result={"children": 254, "errno": 11}),
    "memory bomb": seen("docker memory bomb", Ended("memory-limit", 137)),
    "disk bomb": seen("docker disk bomb", Ended("output-limit", 137), folders=Folders(2, 9 << 20)),
    "file bomb": seen("docker file bomb", Ended("output-limit", 137), folders=Folders(65, 0)),
    "log bomb": seen("docker log bomb", Ended("ok", 0, log=LOG), {"printed": 8 << 20}),
    "wall limit": seen("docker wall limit", Ended("wall-limit", 137, Usage(wall_ms=1010))),
    "kill": seen("docker kill", None, during=TREE),
    "sameness": seen("wasm sameness", result=LOOK, again=LOOK, other=LOOK | {"random": [8]}),
    "nothing left": seen("nothing left"),
}
"""One sight for each promise that keeps it. The others differ from it in one thing."""


def promise_of(key: str) -> Promise:
    return next(p for name, p in BY_NAME.items() if name in (key, f"docker {key}", f"wasm {key}"))


def change(key: str, **fields: Any) -> Seen:
    sight = KEPT[key]
    if "result" in fields:
        fields["result"] = {**sight.result, **fields["result"]}
    return replace(sight, **fields)


def status(**entries: str) -> dict[str, Any]:
    return {"status": STATUS | entries}


BROKEN = [
    ("network", change("network", result={"opened": [[17, 3]]}), "socket AF_PACKET"),
    ("network", change("network", result={"opened": [[99, 1]]}), "socket of family 99"),
    ("network", change("network", result={"opened": [[2, 3]]}), "raw socket AF_INET"),
    ("network", change("network", result={"interfaces": ["eth0"]}), "interface eth0"),
    ("network", change("network", result={"routes": ["IPv6"]}), "a route by IPv6"),
    ("network", change("network", result={"engines": ["/run/docker.sock"]}), "the engine at /run/docker.sock"),
    ("wasm network", change("wasm network", result={"opened": [5]}), "descriptors 5"),
    ("vsock", change("vsock", result={"opened": [1]}), "hypervisor"),
    ("vsock", change("vsock", result={"device": 1}), "hypervisor"),
    ("write outside", change("write outside", result={"written": ["/output", "/etc"]}), "wrote to /etc"),
    ("write outside", change("write outside", result={"in_memory": ["/etc"]}), "wrote to /tmp"),
    ("write outside", change("write outside", result={"written": ["/output", "/etc"], "in_memory": ["/etc"]}), "/etc"),
    ("write outside", change("write outside", result={"devices": ["/dev/sda"]}), "opened /dev/sda"),
    ("write outside", change("write outside", result={"reached": ["../x"]}), "reached ../x"),
    ("write outside", change("write outside", result={"defaced": ["rename"]}), "changed its input (rename)"),
    ("write outside", change("write outside", folders=Folders(strays=("x",))), "left x beside"),
    ("write outside", change("write outside", folders=Folders(input_intact=False)), "not what it was"),
    ("privilege", change("privilege", result={"uid": 0}), "it is root"),
    ("privilege", change("privilege", result={"gid": 0}), "it is root"),
    ("privilege", change("privilege", result=status(CapBnd="00000000a80425fb")), "CapBnd is 00000000a80425fb"),
    ("privilege", change("privilege", result=status(NoNewPrivs="0")), "NoNewPrivs is not set"),
    ("privilege", change("privilege", result=status(Seccomp="0")), "no filter of system calls"),
    ("privilege", change("privilege", result={"calls": {"mount": 0}}), "mount succeeded"),
    ("privilege", change("privilege", result={"calls": {"bpf": 22}}), "bpf reached the kernel (EINVAL)"),
    ("wasm privilege", change("wasm privilege", during=replace(FENCED, fences=({"Seccomp": "2"},))), "gain privileges"),
    ("wasm privilege", change("wasm privilege", during=replace(FENCED, fences=({"NoNewPrivs": "1"},))), "no filter"),
    ("output tricks", change("output tricks", folders=Folders()), "accepted"),
    ("fork bomb", change("fork bomb", result={"errno": 0}), "254 children at once"),
    ("fork bomb", change("fork bomb", result={"children": 300}), "300 children at once, where 256"),
    ("memory bomb", change("memory bomb", ended=OK, result={"grown_mib": 192}), "took 192 MiB"),
    ("memory bomb", change("memory bomb", ended=Ended("failed", 1, reason="x")), "failed, exit status 1: x"),
    ("disk bomb", change("disk bomb", ended=OK), "wrote 9 MiB"),
    ("disk bomb", change("disk bomb", result={"written": 1}), "was not stopped"),
    ("disk bomb", change("disk bomb", ended=Ended("wall-limit", 137)), "wall-limit"),
    ("file bomb", change("file bomb", ended=OK), "65 files undisturbed"),
    ("file bomb", change("file bomb", result={"made": 1}), "was not stopped"),
    ("log bomb", change("log bomb", ended=replace(OK, log=LOG + "x" * 2048)), "2048 are allowed"),
    ("log bomb", change("log bomb", ended=replace(OK, log=LOG + "\x1b")), "a terminal obeys"),
    ("log bomb", change("log bomb", ended=replace(OK, log=LOG.replace("first", ""))), "the beginning"),
    ("log bomb", change("log bomb", ended=replace(OK, log=LOG.replace("last", ""))), "the end"),
    ("wall limit", change("wall limit", ended=OK), "it was not ended (ok, exit status 0)"),
    ("kill", change("kill", after=Traces(processes=("process 2",))), "still there: process 2"),
    ("kill", change("kill", after=Traces(containers=("container c",))), "still there: container c"),
    ("sameness", change("sameness", again=LOOK | {"clocks_ns": [1, 3]}), "differ in clocks_ns"),
    ("sameness", change("sameness", other=LOOK), "same randomness"),
    ("nothing left", change("nothing left", after=Traces(images=("image i",))), "left behind: image i"),
    ("nothing left", change("nothing left", after=Traces(scratch=("a", "b", "c", "d", "e"))), "a, b, c, d and 1 more"),
]  # fmt: skip

ENGINE_FAULT = Ended("try-elsewhere", 137, reason="the container engine refused")
UNKNOWN = [
    ("start", change("start", ended=OK)),
    ("start", change("start", ended=ENGINE_FAULT)),
    ("network", change("network", result={"opened": None})),
    ("network", change("network", result={"opened": [[1]]})),
    ("network", change("network", result={"tried": 0})),
    ("wasm network", change("wasm network", result={"opened": "x"})),
    ("vsock", change("vsock", result={"opened": 0})),
    ("write outside", change("write outside", result={"written": []})),
    ("privilege", change("privilege", result={"status": {}})),
    ("privilege", change("privilege", result={"calls": {}})),
    ("privilege", change("privilege", result={"calls": {"mount": -1}})),
    ("wasm privilege", change("wasm privilege", during=Traces())),
    ("output tricks", change("output tricks", result={"made": []})),
    ("fork bomb", change("fork bomb", result={"children": None})),
    *[(name, change(name, ended=ENGINE_FAULT)) for name in ("memory bomb", "disk bomb", "file bomb", "wall limit")],
    ("log bomb", change("log bomb", result={"printed": 0})),
    ("kill", change("kill", during=Traces())),
    ("sameness", change("sameness", other={})),
]


def test_there_is_a_sight_for_every_promise() -> None:
    for executor, promises in PROMISES.items():
        for promise in promises:
            judges = {promise_of(key).judge for key in KEPT}
            assert promise.judge in judges, f"{executor} {promise.name}"


@pytest.mark.parametrize("key", KEPT)
def test_what_keeps_a_promise(key: str) -> None:
    verdict = promise_of(key).judge(KEPT[key])
    assert isinstance(verdict, Kept), verdict
    assert verdict.happened


@pytest.mark.parametrize(("key", "sight", "said"), BROKEN, ids=lambda value: value if isinstance(value, str) else "")
def test_what_breaks_it(key: str, sight: Seen, said: str) -> None:
    verdict = promise_of(key).judge(sight)
    assert isinstance(verdict, Broken), verdict
    assert said in verdict.happened


@pytest.mark.parametrize(("key", "sight"), UNKNOWN, ids=lambda value: value if isinstance(value, str) else "")
def test_what_says_neither(key: str, sight: Seen) -> None:
    assert isinstance(promise_of(key).judge(sight), Unknown)


@pytest.mark.parametrize("promise", [*DOCKER, *WASM], ids=lambda promise: promise.name)
def test_no_promise_is_kept_by_a_run_of_which_nothing_was_seen(promise: Promise) -> None:
    for ended in (OK, ENGINE_FAULT, Ended("failed", 1), None):
        assert not isinstance(promise.judge(Seen(promise.limits, ended)), Kept)
    assert promise.sentence
    assert promise.remedy


def test_every_judgement_can_come_to_broken() -> None:
    judged = {promise_of(key).judge for key, _, _ in BROKEN}
    assert {p.judge for p in (*DOCKER, *WASM, LEFTOVERS) if p.name != "start"} == judged
