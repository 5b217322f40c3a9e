"""The fence around a wasm runner, tried from inside a process that it was put around."""

from __future__ import annotations

import ctypes
import errno
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nexapod.executor.wasm.confine import _DENIED, _FCNTL, _IOCTL, _PRLIMIT64

_PROBE = """
import ctypes, fcntl, json, os, resource, socket, sys, threading
from nexapod.executor.wasm.confine import confine

pipe, _ = os.pipe()
parent, nice = os.getppid(), os.getpriority(os.PRIO_PROCESS, 0)
fenced = confine("low")
seen = {"fenced": fenced, "nice": os.getpriority(os.PRIO_PROCESS, 0) - nice,
        "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "nofile": list(resource.getrlimit(resource.RLIMIT_NOFILE))}
for line in open("/proc/self/status"):
    name, _, value = line.partition(":")
    if name in ("NoNewPrivs", "Seccomp"):
        seen[name] = value.strip()

def attempt(name, function):
    try:
        function()
        seen[name] = "allowed"
    except OSError as error:
        seen[name] = error.errno

attempt("socket", lambda: socket.socket(socket.AF_INET))
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
attempt("fork", os.fork)
attempt("kill", lambda: os.kill(parent, 0))
attempt("limit", lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE))
attempt("owner", lambda: fcntl.fcntl(pipe, fcntl.F_SETOWN, parent))
attempt("owner_ex", lambda: fcntl.fcntl(pipe, 15, b"\\0" * 8))
attempt("signal_of_pipe", lambda: fcntl.fcntl(pipe, fcntl.F_SETSIG, 9))
attempt("type_on_terminal", lambda: fcntl.ioctl(pipe, 0x5412, b"x"))
attempt("own_limit", lambda: resource.setrlimit(resource.RLIMIT_CPU, resource.getrlimit(resource.RLIMIT_CPU)))
attempt("own_pipe", lambda: fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_NONBLOCK))
attempt("own_file", lambda: open("/dev/null").close())
thread = threading.Thread(target=lambda: seen.update(thread="ran"))
thread.start()
thread.join()
print(json.dumps(seen))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no system call numbers for it")
def test_inside_the_fence_there_are_threads_and_files_but_no_processes_or_sockets() -> None:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, timeout=30, check=True)
    seen = json.loads(done.stdout)
    eperm = 1
    assert seen == {
        "fenced": ["system_calls"],
        "nice": 10,
        "core": 0,
        "nofile": [128, 192],
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "socket": eperm,
        "unix": eperm,
        "exec": eperm,
        "fork": eperm,
        "kill": eperm,
        "limit": eperm,
        "owner": eperm,
        "owner_ex": eperm,
        "signal_of_pipe": eperm,
        "type_on_terminal": eperm,
        "own_limit": "allowed",
        "own_pipe": "allowed",
        "own_file": "allowed",
        "thread": "ran",
    }


_CALLS = """
import ctypes, json
from nexapod.executor.wasm.confine import _DENIED, confine
import platform

confine("normal")
libc = ctypes.CDLL(None, use_errno=True)
seen = {}
for name, number in _DENIED[platform.machine()][1].items():
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    seen[name] = ctypes.get_errno() if result < 0 else 0
print(json.dumps(seen))
"""
_OF_OTHERS = {
    "shmctl", "semctl", "msgctl", "mq_unlink", "sched_setaffinity", "sched_setattr", "setpriority", "ioprio_set",
    "migrate_pages", "move_pages", "inotify_init1", "fchmodat", "fchmodat2", "fchownat", "setxattr", "file_setattr",
}  # fmt: skip
"""What other processes have, share with this one or are counted together with."""


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no system call numbers for it")
def test_what_is_denied_is_not_even_looked_at() -> None:
    """Arguments that are no good are refused with other errors than ours, or with no error."""
    done = subprocess.run([sys.executable, "-c", _CALLS], capture_output=True, timeout=30, check=True)
    seen = json.loads(done.stdout)
    assert set(seen.values()) == {errno.EPERM}
    assert seen.keys() >= _OF_OTHERS


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_no_two_names_have_one_number(machine: str) -> None:
    numbers = list(_DENIED[machine][1].values())
    assert len(set(numbers)) == len(numbers)
    assert not set(numbers) & {_FCNTL[machine], _IOCTL[machine], _PRLIMIT64[machine]}


_SIGNALS = """
import os
from nexapod.executor.wasm.confine import fence_files

parent = os.getppid()
os.kill(parent, 0)
fence_files(["r/usr"])
os.kill(os.getpid(), 0)
try:
    os.kill(parent, 0)
except PermissionError:
    print("denied")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")
def test_landlock_keeps_signals_in_as_well() -> None:
    """Where there is no filter of system calls for the machine, this is all that does."""
    if _landlock_version() < 6:
        pytest.skip("this kernel has no Landlock, or one before Linux 6.12")
    done = subprocess.run([sys.executable, "-c", _SIGNALS], capture_output=True, timeout=30, check=True)
    assert done.stdout == b"denied\n"


_ABORT = """
import os
from nexapod.executor.wasm.confine import confine
confine("normal")
os.abort()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")
def test_a_fenced_process_can_still_abort() -> None:
    """Rust aborts by signalling its own thread: were that denied, a crash would become a hang."""
    done = subprocess.run([sys.executable, "-c", _ABORT], capture_output=True, timeout=30, check=False)
    assert done.returncode == -6


_FILES = """
import ctypes, json, os, sys, threading
from nexapod.executor.wasm.confine import confine

home = sys.argv[1]
fences = confine("normal", ["r" + home + "/modules", "w" + home + "/runs"])
seen = {"fences": fences}

def attempt(name, function):
    try:
        function()
        seen[name] = "allowed"
    except OSError as error:
        seen[name] = error.errno

def put(path):
    with open(home + path, "w") as file:
        file.write("x")

attempt("read_module", lambda: open(home + "/modules/m").read())
attempt("write_module", lambda: put("/modules/m"))
attempt("new_module", lambda: put("/modules/new"))
attempt("write_run", lambda: put("/runs/new"))
attempt("read_run", lambda: open(home + "/runs/new").read())
attempt("make_folder", lambda: os.makedirs(home + "/runs/a/b"))
attempt("rename_across_folders", lambda: os.rename(home + "/runs/new", home + "/runs/a/b/new"))
attempt("truncate_run", lambda: os.truncate(home + "/runs/a/b/new", 0))
attempt("remove", lambda: os.unlink(home + "/runs/a/b/new"))
attempt("read_key", lambda: open(home + "/key").read())
attempt("truncate_key", lambda: os.truncate(home + "/key", 0))
attempt("overwrite_key", lambda: put("/key"))
attempt("remove_key", lambda: os.unlink(home + "/key"))
attempt("take_key_in", lambda: os.rename(home + "/key", home + "/runs/key"))
attempt("link_key_in", lambda: os.link(home + "/key", home + "/runs/key"))
attempt("list_home", lambda: os.listdir(home))
attempt("through_a_link", lambda: open(home + "/runs/link").read())
attempt("passwd", lambda: open("/etc/passwd").read())
attempt("other_process", lambda: open("/proc/1/environ").read())
attempt("daemon_memory", lambda: open(f"/proc/{os.getppid()}/mem", "r+b"))
attempt("pipe", lambda: os.mkfifo(home + "/runs/pipe"))
attempt("import", lambda: __import__("wave"))
thread = threading.Thread(target=lambda: attempt("key_in_a_thread", lambda: open(home + "/key").read()))
thread.start()
thread.join()
print(json.dumps(seen))
"""


def _landlock_version() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(444, None, 0, 1))


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")
def test_inside_the_fence_there_are_no_files_but_those_of_runs(tmp_path: Path) -> None:
    if _landlock_version() < 2:
        pytest.skip("this kernel has no Landlock, or one before Linux 5.19")
    for folder in ("modules", "runs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "modules" / "m").write_text("m")
    (tmp_path / "key").write_text("key")
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "key")
    done = subprocess.run(
        [sys.executable, "-c", _FILES, str(tmp_path)], capture_output=True, timeout=30, check=True, text=True
    )
    seen = json.loads(done.stdout)
    assert "files" in seen.pop("fences")
    granted = {
        "read_module", "write_run", "read_run", "make_folder", "rename_across_folders", "truncate_run", "remove",
        "import",
    }  # fmt: skip
    assert {name for name, answer in seen.items() if answer == "allowed"} == granted
    denied = {errno.EACCES, errno.EXDEV, errno.EPERM}
    assert {answer for name, answer in seen.items() if name not in granted} <= denied
    assert (tmp_path / "key").read_text() == "key"


def test_a_root_that_is_missing_is_an_error(tmp_path: Path) -> None:
    if _landlock_version() < 2:
        pytest.skip("this kernel has no Landlock, or one before Linux 5.19")
    done = subprocess.run(
        [sys.executable, "-c", _FILES, str(tmp_path / "none")], capture_output=True, timeout=30, check=False, text=True
    )
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr
