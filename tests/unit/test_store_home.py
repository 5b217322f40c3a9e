"""The home folder: its layout, its privacy, and its lock."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys

import pytest

from nexapod.store.home import Home, HomeError, HomeInUse, short_socket_path

HOLDER = """
import sys
from pathlib import Path
from nexapod.store.home import Home
with Home(Path(sys.argv[1])).hold():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_everything_lies_inside_and_only_its_owner_may_look(tmp_path):
    home = Home(tmp_path / "a" / "home")
    home.create()
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700
    assert home.blobs.is_dir()
    assert home.tasks.is_dir()
    names = {home.identity.name, home.database.name, home.api_socket.name, home.token.name}
    assert names == {"identity.seed", "nexapod.db", "api.sock", "token"}
    assert home.identity.parent == home.database.parent == home.api_socket.parent == home.root


def test_an_open_folder_is_tightened(tmp_path):
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o755)
    home.create()
    assert stat.S_IMODE(home.root.stat().st_mode) == 0o700


def test_a_file_in_the_way_is_reported(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(HomeError, match="choose another"):
        Home(tmp_path / "home").create()


def test_the_second_start_says_who_holds_it_and_kill_9_frees_it(tmp_path):
    home = Home(tmp_path / "home")
    command = [sys.executable, "-c", HOLDER, str(home.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HomeInUse, match=f"process {holder.pid}") as caught, home.hold():
            pass
        assert caught.value.pid == holder.pid
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert home.lock.exists()
    with home.hold():
        assert home.lock.read_text() == f"{os.getpid()}\n"


def test_it_can_be_held_again_after_release(tmp_path):
    home = Home(tmp_path / "home")
    for _ in range(2):
        with home.hold(), pytest.raises(HomeInUse), home.hold():
            pass


def test_a_socket_path_that_the_kernel_would_refuse_leads_to_the_same_place(tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with short_socket_path(deep / "api.sock") as short, socket.socket(socket.AF_UNIX) as bound:
        assert len(short) < 100
        bound.bind(short)
    assert (deep / "api.sock").is_socket()
    with short_socket_path(tmp_path / "s") as short:
        assert short == str(tmp_path / "s") or len(str(tmp_path)) > 97
