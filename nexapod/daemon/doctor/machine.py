"""Looks at this machine: keys, home folder, disk, clock, processor, GPUs, libraries. Each blocks, and returns one
Finding.

Knows what a daemon needs of a machine; not how the answers are shown.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import stat
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from nexapod.daemon.doctor.check import Finding
from nexapod.executor.watch import DISK_FREE_MIN
from nexapod.mesh import identity
from nexapod.profile.gpus import NO_DRIVER, GpuReader
from nexapod.profile.hardware import hardware
from nexapod.store.home import Home
from nexapod.version import __version__

FREE_COMFORTABLE: Final = 5 << 30
WRITE_BYTES: Final = 32 << 20
COMMITS: Final = 10
COMMIT_SLOW_MS: Final = 100.0
CLOCK_OFF_S: Final = 60.0
NETWORK_FILE_SYSTEMS: Final = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs")
MEMORY_FILE_SYSTEMS: Final = ("tmpfs", "ramfs")
_STA_UNSYNC: Final = 0x40
_TIME_ERROR: Final = 5
_FREE_REMEDY: Final = "Free some space, or choose a home folder on another disk with --home or NEXAPOD_HOME."


def keys(home: Home) -> Finding:
    """The identity file: whose it is, who can read it, and the peer that it makes."""
    path = home.identity
    try:
        status = path.lstat()
    except FileNotFoundError:
        return Finding("ok", f"none yet: `nexapod init` or the first start makes {path}")
    if not stat.S_ISREG(status.st_mode):
        return Finding("failed", f"{path} is no regular file", "Put the file itself there, mode 0600.")
    if status.st_uid != os.geteuid():
        return Finding("failed", f"{path} belongs to user {status.st_uid}", f"sudo chown {os.geteuid()} {path}")
    # It exists, so this only reads; what is wrong with it is raised, with what to do.
    seed = identity.load_or_create(path)
    return Finding("ok", f"{identity.peer_id(seed)}, mode {stat.S_IMODE(status.st_mode):04o}")


def home_folder(home: Home) -> Finding:
    """Whether it is ours, can be written, has room, and lies where a database may lie."""
    place = existing(home.root)
    kind = file_system(place)
    free = psutil.disk_usage(str(place)).free
    said = f"{home.root}, {kind}, {_gib(free)} free"
    if place != home.root:
        said += ", not made yet"
    elif place.stat().st_uid != os.geteuid():
        return Finding("failed", f"{said}: belongs to another user", "Choose a home folder of your own (NEXAPOD_HOME).")
    unwritable = _unwritable(place)
    if unwritable:
        remedy = "Make it writable for this user, or choose another with --home or NEXAPOD_HOME."
        return Finding("failed", f"{said}: cannot be written ({unwritable})", remedy)
    if free < DISK_FREE_MIN:
        return Finding("failed", f"{said}: below {_gib(DISK_FREE_MIN)} every task is stopped", _FREE_REMEDY)
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding("warning", f"{said}: a database on it may be damaged", "Choose a folder on a local disk.")
    if kind in MEMORY_FILE_SYSTEMS:
        return Finding("warning", f"{said}: gone, with this peer's key, when the machine restarts", _FREE_REMEDY)
    if free < FREE_COMFORTABLE:
        return Finding("warning", f"{said}: little room for data and outputs", _FREE_REMEDY)
    return Finding("ok", said)


def disk_speed(place: Path) -> Finding:
    """How fast it takes data, and how long one commit lasts: the database makes one for each step of the protocol."""
    with tempfile.TemporaryFile(dir=place) as file:
        descriptor = file.fileno()
        began = time.monotonic()
        _write_all(descriptor, os.urandom(1 << 20), WRITE_BYTES)
        os.fsync(descriptor)
        rate = WRITE_BYTES / (time.monotonic() - began) / 1e6
        commits = []
        for _ in range(COMMITS):
            began = time.monotonic()
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
            commits.append((time.monotonic() - began) * 1000)
    commit_ms = statistics.median(commits)
    said = f"writes {rate:.0f} MB/s, a commit takes {commit_ms:.1f} ms"
    if commit_ms > COMMIT_SLOW_MS:
        return Finding(
            "warning", f"{said}: every step of the protocol waits for one", "Use a faster disk, or an idle one."
        )
    return Finding("ok", said)


def clock(newest: Iterable[Path], peer_offsets_s: Iterable[float], adjtimex: Adjtimex | None = None) -> Finding:
    """Whether the wall clock can be right. It dates jobs and profiles; deadlines and leases do not depend on it."""
    now = time.time()
    dated = [path.stat().st_mtime for path in newest if path.exists()]
    remedy = "Set the clock, and let a time service keep it (chrony, systemd-timesyncd)."
    if dated and max(dated) - now > CLOCK_OFF_S:
        return Finding("failed", f"it is {max(dated) - now:.0f} s behind a file that was written here", remedy)
    offsets = list(peer_offsets_s)
    if offsets:
        off = statistics.median(offsets)
        said = f"{abs(off):.0f} s {'behind' if off > 0 else 'ahead of'} the clocks of {len(offsets)} peers"
        return Finding("ok" if abs(off) <= CLOCK_OFF_S else "warning", said, "" if abs(off) <= CLOCK_OFF_S else remedy)
    kept = adjtimex or read_adjtimex()
    if kept is not None and kept.synchronised:
        return Finding("ok", f"kept by a time service, within {kept.error_ms:.0f} ms")
    return Finding("warning", "unknown: no time service keeps it, and no peer is there to compare with", remedy)


def processor(home: Home) -> Finding:
    found = hardware(home.root)
    said = f"{found.os} {found.arch}, {found.cpus} cores ({found.cpu_model}), {_gib(found.memory)} of memory"
    if found.os != "linux":
        return Finding("failed", f"{said}: only Linux is supported", "Run it in a Linux machine, real or virtual.")
    if found.memory < 1 << 30:
        return Finding("warning", f"{said}: most tasks want more", "Give this machine or its cgroup more memory.")
    return Finding("ok", said)


def graphics() -> Finding:
    found = GpuReader().look()
    if found.trouble == NO_DRIVER:
        return Finding("ok", "no NVIDIA GPU, or no driver for it: tasks that need one run elsewhere")
    said = ", ".join(f"{r.model}, {_gib(r.memory_bytes or 0)}, driver {r.driver}" for r in found.readings)
    if found.trouble:
        return Finding("failed", said or "no GPU can be used", found.trouble)
    return Finding("ok", said or "no NVIDIA GPU")


def software(requires: Iterable[str] | None = None) -> Finding:
    """Python and the libraries: there, and, where one release is pinned, that one."""
    wanted = list(importlib.metadata.requires("nexapod") or () if requires is None else requires)
    versions, wrong = [f"nexapod {__version__}", f"python {platform.python_version()}"], []
    for requirement in wanted:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?(?:==([^;,\s]+))?", requirement)
        name, pinned = match.groups() if match else (requirement, None)
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        versions.append(f"{name} {found}")
        if pinned and found != pinned:
            wrong.append(f"{name} is {found}, not {pinned}")
    if wrong:
        return Finding("failed", ", ".join(wrong), "Install nexapod again, into an environment of its own.")
    return Finding("ok", ", ".join(versions))


# --- how it is done --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Adjtimex:
    """What the kernel says of its clock."""

    synchronised: bool
    error_ms: float


def read_adjtimex() -> Adjtimex | None:
    """None where there is no such call."""

    class Timex(ctypes.Structure):
        # struct timex of a 64-bit kernel; what follows `status` is not looked at.
        _fields_ = (
            ("modes", ctypes.c_uint),
            ("offset", ctypes.c_long),
            ("freq", ctypes.c_long),
            ("maxerror", ctypes.c_long),
            ("esterror", ctypes.c_long),
            ("status", ctypes.c_int),
            ("rest", ctypes.c_char * 256),
        )

    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except AttributeError:
        return None
    answer = Timex()  # modes = 0: reads, and needs no privilege
    state = call(ctypes.byref(answer))
    if state < 0:
        return None
    return Adjtimex(state != _TIME_ERROR and not answer.status & _STA_UNSYNC, answer.maxerror / 1000)


def peer_offsets_s(peers: Iterable[Mapping[str, Any]], now_s: float) -> list[float]:
    """By how much the clock of each connected peer is ahead of ours: it dates its profile when it sends it."""
    return [
        peer["stamp"] / 1000 + peer["heard_s"] - now_s
        for peer in peers
        if peer.get("stamp") and peer.get("connected") and peer.get("heard_s") is not None
    ]


def existing(path: Path) -> Path:
    """The path, or the nearest parent that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def file_system(path: Path) -> str:
    """The type of the file system that holds a path."""
    real = path.resolve()
    found = "unknown"
    longest = -1
    for mount in psutil.disk_partitions(all=True):
        point = Path(mount.mountpoint)
        if real.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = mount.fstype, len(point.parts)
    return found


def _unwritable(place: Path) -> str:
    """Why no file can be made there; empty when one can."""
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"doctor")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _write_all(descriptor: int, piece: bytes, total: int) -> None:
    left = total
    while left > 0:
        left -= os.write(descriptor, piece)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
