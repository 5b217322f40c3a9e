"""The fence around a wasm runner, tried from inside a process that it was put around."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

_PROBE = """
import ctypes, json, os, resource, socket, sys, threading
from nexapod.executor.confine import confine

parent = os.getppid()
fenced = confine("low")
seen = {"fenced": fenced, "nice": os.nice(0), "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
        "nofile": resource.getrlimit(resource.RLIMIT_NOFILE)[1]}
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
        "fenced": True,
        "nice": 10,
        "core": 0,
        "nofile": 128,
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
from nexapod.executor.confine import confine
confine("normal")
os.abort()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the fence is Linux's")
def test_a_fenced_process_can_still_abort() -> None:
    """Rust aborts by signalling its own thread: were that denied, a crash would become a hang."""
    done = subprocess.run([sys.executable, "-c", _ABORT], capture_output=True, timeout=30, check=False)
    assert done.returncode == -6
