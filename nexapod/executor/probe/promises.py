"""The promises of a sandbox: each as a sentence, the attempt of the probe that would break it, and a pure judgement.

A judgement takes what was seen of one run and nothing else, so it is tested on recorded sights. It never assumes: a
sight that shows neither that the promise was kept nor that it was broken is Unknown. Does not know how runs are
started and watched (trying.py), nor how a verdict is shown.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from nexapod.executor.contract import PROGRESS_ENV, Ended
from nexapod.protocol.limits import LOG_TAIL_MAX
from nexapod.protocol.primitives import ExecutorName
from nexapod.protocol.runs import RunEnd
from nexapod.protocol.types import Limits


@dataclass(frozen=True, slots=True)
class Kept:
    """The attempt was made, and contained. `happened` says what came of it."""

    happened: str


@dataclass(frozen=True, slots=True)
class Broken:
    happened: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The attempt was not made, or what came of it cannot be seen."""

    happened: str


Verdict: TypeAlias = Kept | Broken | Unknown


@dataclass(frozen=True, slots=True)
class Traces:
    """What there is of runs outside their folders. Names for people; empty when there is nothing."""

    containers: tuple[str, ...] = ()
    processes: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    fences: tuple[Mapping[str, str], ...] = ()
    """wasm: /proc/PID/status of each runner at work."""

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.containers, *self.processes, *self.scratch, *self.images)


@dataclass(frozen=True, slots=True)
class Folders:
    """What lies in and beside the folders of a run that is over."""

    output_files: int = 0
    output_bytes: int = 0
    input_intact: bool = True
    strays: tuple[str, ...] = ()
    """Names beside the folders that the run was given."""
    refused: str = ""
    """Why the output was refused as a result; empty when it was not."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of one attempt."""

    limits: Limits
    ended: Ended | None = None
    """None: the run was cancelled, as the attempt wants it."""
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the probe found; empty when it was stopped before it could say."""
    folders: Folders = Folders()
    during: Traces = Traces()
    """Just before it was cancelled."""
    after: Traces = Traces()
    again: Mapping[str, Any] = field(default_factory=dict)
    """What a second run of the same task found, with the same seed."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """And a third, with another seed."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise, and how to try it."""

    name: str
    sentence: str
    command: tuple[str, ...]
    judge: Callable[[Seen], Verdict]
    remedy: str
    limits: Limits
    how: Literal["run", "cancel", "repeat"] = "run"
    """cancel: it is ended from outside once it is at work. repeat: three runs, of which two have the same seed."""
    quick: bool = False
    """Whether it takes next to no time and leaves the machine in peace."""


# --- judgements ----------------------------------------------------------------------------------------------------
LOCAL_FAMILIES: Final = frozenset({1, 2, 10, 16})
"""AF_UNIX, AF_INET, AF_INET6 and AF_NETLINK (route): they end inside a network namespace that has only loopback."""
OWN_PLACES: Final = frozenset({"/output", "/checkpoint", "/run", "/dev/mqueue"})
"""Where a task may write."""
MEMORY_PLACES: Final = frozenset({"/tmp", "/var/tmp", "/dev/shm"})  # noqa: S108
"""Where it may write if that is memory, which counts as the task's."""
DENIED: Final = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})
_RAW: Final = 3
_SHOWN_MAX: Final = 4


def judge_start(seen: Seen) -> Verdict:
    """Exit status 75 is the task's own wish to be tried elsewhere: unlike 0 or 1 it cannot be met by accident."""
    ended = seen.ended
    if ended is None or (ended.outcome, ended.exit) != ("try-elsewhere", 75):
        return Unknown(_as_it_ended(seen))
    return Kept("a task started, and its exit status was seen")


def judge_network(seen: Seen) -> Verdict:
    opened = _pairs(seen.result.get("opened"))
    if opened is None or not seen.result.get("tried"):
        return Unknown(_as_it_ended(seen))
    ways = [f"socket {_family(family)}" for family, _ in opened if family not in LOCAL_FAMILIES]
    ways += [f"raw socket {_family(family)}" for family, kind in opened if family in (2, 10) and kind == _RAW]
    for what, name in (("interfaces", "interface"), ("routes", "a route by"), ("engines", "the engine at")):
        ways += [f"{name} {found}" for found in _words(seen.result.get(what))]
    if ways:
        return Broken(f"there is a way out: {_list(ways)}")
    return Kept(f"{seen.result['tried']} kinds of socket tried: none leads out; no interface but loopback, no route")


def judge_no_sockets(seen: Seen) -> Verdict:
    opened, tried = seen.result.get("opened"), seen.result.get("tried")
    if not isinstance(opened, list) or not tried:
        return Unknown(_as_it_ended(seen))
    if opened:
        return Broken(f"a connection was accepted on descriptors {_list(opened)}")
    return Kept(f"no descriptor of {tried} is a socket, and there is no call to make one")


def judge_vsock(seen: Seen) -> Verdict:
    opened = seen.result.get("opened")
    if not isinstance(opened, list):
        return Unknown(_as_it_ended(seen))
    if opened or seen.result.get("device"):
        return Broken("a socket to the machine's hypervisor can be opened: it does not heed network namespaces")
    return Kept("AF_VSOCK is refused, and there is no such device")


def judge_outside(seen: Seen) -> Verdict:
    written = _words(seen.result.get("written"))
    if "/output" not in written:
        return Unknown(f"not even its own folder could be written: {_as_it_ended(seen)}")
    granted = OWN_PLACES | (MEMORY_PLACES & {*_words(seen.result.get("in_memory"))})
    crimes = [f"wrote to {place}" for place in sorted({*written} - granted)]
    crimes += [f"opened {place}" for place in _words(seen.result.get("devices"))]
    crimes += [f"reached {place}" for place in _words(seen.result.get("reached"))]
    crimes += [f"changed its input ({how})" for how in _words(seen.result.get("defaced"))]
    crimes += [f"left {name} beside its folders" for name in seen.folders.strays]
    if not seen.folders.input_intact:
        crimes.append("its input is not what it was")
    if crimes:
        return Broken(_list(crimes))
    return Kept(f"{seen.result.get('tried')} ways tried; written: only {', '.join(sorted({*written}))}")


def judge_fork(seen: Seen) -> Verdict:
    children = seen.result.get("children")
    if not isinstance(children, int):
        return Unknown(_as_it_ended(seen))
    if not seen.result.get("errno") or children > seen.limits.pids:
        return Broken(f"{children} children at once, where {seen.limits.pids} processes are allowed")
    return Kept(f"refused after {children} children, of {seen.limits.pids} processes allowed")


def judge_memory(seen: Seen) -> Verdict:
    allowed = _mib(seen.limits.memory)
    grown = seen.result.get("grown_mib")
    return _stopped_by(seen, "memory-limit", f"stopped at {allowed}", f"took {grown} MiB, where {allowed} are allowed")


def judge_disk(seen: Seen) -> Verdict:
    left, allowed = _mib(seen.folders.output_bytes), _mib(seen.limits.output)
    if "written" in seen.result:
        return Broken(f"wrote {left}, where {allowed} are allowed, and was not stopped")
    kept = f"stopped with {left} written, where {allowed} are allowed"
    return _stopped_by(seen, "output-limit", kept, f"wrote {left}, where {allowed} are allowed")


def judge_files(seen: Seen) -> Verdict:
    made = seen.folders.output_files
    if "made" in seen.result:
        return Broken(f"made {made} files, and was not stopped")
    return _stopped_by(seen, "output-limit", f"stopped with {made} files made", f"made {made} files undisturbed")


def judge_log(seen: Seen) -> Verdict:
    printed, ended = seen.result.get("printed"), seen.ended
    if not printed or ended is None:
        return Unknown(_as_it_ended(seen))
    size = len(ended.log.encode())
    if size > LOG_TAIL_MAX:
        return Broken(f"{size} bytes of its log were kept, where {LOG_TAIL_MAX} are allowed")
    if any(not (char.isprintable() or char in "\n\t") for char in ended.log):
        return Broken("its log holds characters that a terminal obeys")
    for line, end in (("the first line", "beginning"), ("the last line", "end")):
        if line not in ended.log:
            return Broken(f"the {end} of what it printed is lost")
    return Kept(f"{_mib(printed)} printed; {size} bytes kept, head and tail, harmless")


def judge_privilege(seen: Seen) -> Verdict:
    status, calls = seen.result.get("status"), seen.result.get("calls")
    if not isinstance(status, dict) or not isinstance(calls, dict) or "Seccomp" not in status or not calls:
        return Unknown(_as_it_ended(seen))
    wrong = ["it is root"] if 0 in (seen.result.get("uid"), seen.result.get("gid")) else []
    wrong += [f"{name} is {value}" for name, value in status.items() if name.startswith("Cap") and int(value, 16)]
    wrong += _unfenced(status)
    wrong += [f"{name} {_came(number)}" for name, number in calls.items() if number not in DENIED and number >= 0]
    if wrong:
        return Broken(_list(wrong))
    if any(number < 0 for number in calls.values()):
        return Unknown("not every call could be tried")
    return Kept(f"no root, no capability, none to gain; {len(calls)} calls that need or give privilege are refused")


def judge_fence(seen: Seen) -> Verdict:
    if not seen.during.fences:
        return Unknown("the process that runs the module was not found")
    wrong = [fault for status in seen.during.fences for fault in _unfenced(status)]
    if wrong:
        return Broken(f"the process that runs the module: {_list(wrong)}")
    return Kept("the process that runs the module can gain no privilege, and has a filter of system calls")


def judge_tricks(seen: Seen) -> Verdict:
    made = _words(seen.result.get("made"))
    if not made:
        return Unknown(f"no trick was possible: {_as_it_ended(seen)}")
    if not seen.folders.refused:
        return Broken(f"outputs were accepted that lead elsewhere or have no plain name ({', '.join(made)})")
    return Kept(f"{', '.join(made)}: refused ({seen.folders.refused})")


def judge_wall(seen: Seen) -> Verdict:
    ended, allowed_ms = seen.ended, seen.limits.wall_ms
    took_ms = ended.usage.wall_ms if ended else 0
    return _stopped_by(seen, "wall-limit", f"ended after {took_ms} ms of {allowed_ms}", "it was not ended")


def judge_kill(seen: Seen) -> Verdict:
    there = (*seen.during.containers, *seen.during.processes)
    if not there:
        return Unknown("it was not seen running, so that it is gone says nothing")
    left = (*seen.after.containers, *seen.after.processes)
    if left:
        return Broken(f"still there: {_list(left)}")
    count = len(seen.during.processes)
    what = f"{count} process{'' if count == 1 else 'es'}" if count else "its container (its processes cannot be seen)"
    return Kept(f"{what}: gone, though no signal was heeded")


def judge_sameness(seen: Seen) -> Verdict:
    if not seen.result.get("clocks_ns") or not seen.result.get("random") or not seen.other:
        return Unknown(_as_it_ended(seen))
    if seen.result != seen.again:
        return Broken(f"two runs of one task differ in {_list(_different(seen.result, seen.again))}")
    if seen.result["random"] == seen.other["random"]:
        return Broken("tasks with different seeds have the same randomness")
    foreign = [name for name in _words(seen.result.get("environment")) if name != PROGRESS_ENV]
    if foreign:
        return Broken(f"it sees variables of this machine: {_list(foreign)}")
    return Kept("two runs see the same clock and randomness, and nothing of this machine; another seed, others")


def judge_leftovers(seen: Seen) -> Verdict:
    if seen.after.all:
        return Broken(f"left behind: {_list(seen.after.all)}")
    return Kept("no container, image, process or file is left of all this")


def _stopped_by(seen: Seen, outcome: RunEnd, kept: str, broken: str) -> Verdict:
    if seen.ended is None or seen.ended.outcome == "try-elsewhere":
        return Unknown(_as_it_ended(seen))
    if seen.ended.outcome == outcome:
        return Kept(kept)
    return Broken(f"{broken} ({_as_it_ended(seen)})")


def _unfenced(status: Mapping[str, str]) -> list[str]:
    wrong = [] if status.get("NoNewPrivs") == "1" else ["it can gain privileges (NoNewPrivs is not set)"]
    return wrong if status.get("Seccomp") == "2" else [*wrong, "it has no filter of system calls"]


def _as_it_ended(seen: Seen) -> str:
    ended = seen.ended
    if ended is None:
        return "the run was cancelled"
    said = ended.reason or ended.log.strip()[-120:]
    return f"{ended.outcome}, exit status {ended.exit}{': ' + said if said else ''}"


def _came(number: int) -> str:
    return "succeeded" if number == 0 else f"reached the kernel ({errno.errorcode.get(number, number)})"


def _family(number: int) -> str:
    names = sorted(name for name in dir(socket) if name.startswith("AF_") and getattr(socket, name) == number)
    return names[0] if names else f"of family {number}"


def _pairs(value: Any) -> list[tuple[int, int]] | None:
    if not isinstance(value, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in value):
        return None
    return [(int(first), int(second)) for first, second in value]


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def _different(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *two} if one.get(key) != two.get(key))


def _list(words: Any) -> str:
    shown = list(dict.fromkeys(str(word) for word in words))
    more = len(shown) - _SHOWN_MAX
    return ", ".join(shown[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


# --- the tables ----------------------------------------------------------------------------------------------------
_SMALL: Final = Limits(memory=64 << 20, output=4 << 20, disk=8 << 20, wall_ms=20_000, pids=256)
_BOMB_MEMORY_MIB: Final = "192"
_DISK_BOMB: Final = ("disk", "128", "10")
"""So many MiB; a bomb that went off waits so many seconds to be found."""
_FILE_BOMB: Final = ("files", "5000", "10")
_BOMB_FORKS: Final = "1024"
_BOMB_LOG_MIB: Final = "8"

_ENGINE: Final = (
    "Update the container engine and its runtime (runc or crun); do not run containers of strangers meanwhile."
)
_REPORT: Final = "This should not be possible: do not run tasks of strangers here, and report it (SECURITY.md)."
_CGROUPS: Final = (
    "The engine does not enforce its limits: check `docker info` for warnings; a rootless engine needs cgroup v2 with"
    " the memory, cpu and pids controllers delegated to your user."
)
_LOGS: Final = "Let the engine keep logs by its json-file driver; if it does, report this (SECURITY.md)."
_WATCH: Final = (
    "The daemon watches what tasks write: check that their folder lies on a local disk that is not overloaded."
)

DOCKER: Final[tuple[Promise, ...]] = (
    Promise("start", "A task starts, and what it ended with is known.", ("exit", "75"), judge_start,
            "Run `docker run --rm hello-world` and mend what it says.", _SMALL, quick=True),
    Promise("network", "A task has no network of any kind.", ("net",), judge_network, _ENGINE, _SMALL, quick=True),
    Promise("vsock", "A task cannot talk to the hypervisor.", ("vsock",), judge_vsock, _ENGINE, _SMALL, quick=True),
    Promise("write outside", "A task writes to its own folders only.", ("write-outside",), judge_outside, _ENGINE,
            _SMALL, quick=True),
    Promise("privilege", "A task is nobody, and stays so.", ("privilege",), judge_privilege, _ENGINE, _SMALL,
            quick=True),
    Promise("output tricks", "A link among the outputs is never followed.", ("tricks",), judge_tricks, _REPORT, _SMALL,
            quick=True),
    Promise("fork bomb", "The number of a task's processes is bounded.", ("fork", _BOMB_FORKS), judge_fork, _CGROUPS,
            _SMALL),
    Promise("memory bomb", "A task's memory is bounded.", ("memory", _BOMB_MEMORY_MIB), judge_memory, _CGROUPS, _SMALL),
    Promise("disk bomb", "What a task writes is bounded.", _DISK_BOMB, judge_disk, _WATCH, _SMALL),
    Promise("file bomb", "The number of a task's files is bounded.", _FILE_BOMB, judge_files, _WATCH,
            _SMALL),
    Promise("log bomb", "A task's log is bounded and harmless; head and tail are kept.", ("log", _BOMB_LOG_MIB),
            judge_log, _LOGS, _SMALL),
    Promise("wall limit", "A task ends when its time is over.", ("spin",), judge_wall,
            "The engine does not kill: restart it.", replace(_SMALL, wall_ms=1_000)),
    Promise("kill", "A task that ignores every signal ends with all its children.", ("stubborn",), judge_kill,
            "The engine does not kill: restart it.", _SMALL, how="cancel"),
)  # fmt: skip

WASM: Final[tuple[Promise, ...]] = (
    Promise("start", "A task starts, and what it ended with is known.", ("exit", "75"), judge_start,
            "Reinstall nexapod: its wasmtime does not run here.", _SMALL, quick=True),
    Promise("network", "A task has no network of any kind.", ("net",), judge_no_sockets, _REPORT, _SMALL, quick=True),
    Promise("write outside", "A task writes to its own folders only.", ("write-outside",), judge_outside, _REPORT,
            _SMALL, quick=True),
    Promise("privilege", "Whoever breaks out of a module finds a process that may do nothing.", ("spin",), judge_fence,
            "Use a kernel with seccomp, on x86_64 or aarch64.", _SMALL, how="cancel", quick=True),
    Promise("output tricks", "A link among the outputs is never followed.", ("tricks",), judge_tricks, _REPORT, _SMALL,
            quick=True),
    Promise("sameness", "Replicas see the same clock and randomness.", ("look",), judge_sameness, _REPORT, _SMALL,
            how="repeat", quick=True),
    Promise("memory bomb", "A task's memory is bounded.", ("memory", _BOMB_MEMORY_MIB), judge_memory, _REPORT, _SMALL),
    Promise("disk bomb", "What a task writes is bounded.", _DISK_BOMB, judge_disk, _WATCH, _SMALL),
    Promise("file bomb", "The number of a task's files is bounded.", _FILE_BOMB, judge_files, _WATCH,
            _SMALL),
    Promise("log bomb", "A task's log is bounded and harmless; head and tail are kept.", ("log", _BOMB_LOG_MIB),
            judge_log, _REPORT, _SMALL),
    Promise("wall limit", "A task ends when its time is over.", ("spin",), judge_wall, _REPORT,
            replace(_SMALL, wall_ms=1_000)),
    Promise("kill", "A task that ignores every signal ends with all its children.", ("stubborn",), judge_kill, _REPORT,
            _SMALL, how="cancel"),
)  # fmt: skip

LEFTOVERS: Final = Promise(
    "nothing left", "Nothing is left of a task that is over.", (), judge_leftovers,
    "Remove what is named; `nexapod start` also removes what an earlier daemon left.", _SMALL, quick=True,
)  # fmt: skip
"""Judged once, after all the others, on what is then there: no run of its own."""

PROMISES: Final[Mapping[ExecutorName, tuple[Promise, ...]]] = {"wasm": WASM, "docker": DOCKER}
