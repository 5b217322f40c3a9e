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

_PROBE = """
import ctypes, json, os, resource, socket, sys, threading
from nexapod.executor.wasm.confine import confine

parent, nice = os.getppid(), os.nice(0)
fenced = confine("low")
seen = {"fenced": fenced, "nice": os.nice(0) - nice, "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
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
        "own_file": "allowed",
        "thread": "ran",
    }


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
