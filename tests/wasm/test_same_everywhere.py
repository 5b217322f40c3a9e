"""Everything that a module can observe, on two machines that differ in all that a module must not see: other folders,
other file systems, other inodes, other times, files made in another order. The bytes must be the same."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from wasm.wasm_kit import LIMITS, Bench, wat

from nexapod.executor.wasm.sandbox import WasmExecutor

NAMES = ("b.txt", "a.txt", "z", "m", "Ünïcode", "a.txt.bak", "0", "k" * 200)

# Appends `size` bytes at an address, and the errno before them, to the file of observations.
_OBSERVER = """
(global $out (mut i32) (i32.const 0))
(func $see (param $errno i32) (param $at i32) (param $size i32)
  (i32.store #96 (local.get $errno))
  (call $must (call $write (global.get $out) #96 #4))
  (call $must (call $write (global.get $out) (local.get $at) (local.get $size)))
  (memory.fill #40000 #0 #20000))
(func $stat (param $dir i32) (param $name i32) (param $size i32)
  (call $see (call $path_filestat_get (local.get $dir) #0 (local.get $name) (local.get $size) #40000) #40000 #64)
  (call $see (call $path_filestat_get (local.get $dir) #1 (local.get $name) (local.get $size) #40000) #40000 #64))
;; a listing by pieces of `buffer` bytes, as the C library reads one
(func $list (param $fd i32) (param $buffer i32) (local $cookie i64) (local $at i32) (local $used i32)
  (loop $more
    (call $must (call $fd_readdir (local.get $fd) #40000 (local.get $buffer) (local.get $cookie) #112))
    (local.set $used (i32.load #112))
    (local.set $at #40000)
    (block $torn (loop $entry
      (br_if $torn (i32.gt_u (i32.add (local.get $at) #24) (i32.add (local.get $used) #40000)))
      (br_if $torn (i32.gt_u (i32.add (i32.add (local.get $at) #24) (i32.load offset=16 (local.get $at)))
        (i32.add (local.get $used) #40000)))
      (local.set $cookie (i64.load (local.get $at)))
      (local.set $at (i32.add (i32.add (local.get $at) #24) (i32.load offset=16 (local.get $at))))
      (br $entry)))
    (call $see #0 #40000 (local.get $used))
    (br_if $more (i32.eq (local.get $used) (local.get $buffer)))))
(func $descriptors (local $n i32)
  (loop $each
    (call $see (call $fd_filestat_get (local.get $n) #40000) #40000 #64)
    (call $see (call $fd_fdstat_get (local.get $n) #40000) #40000 #24)
    (call $see (call $fd_prestat_get (local.get $n) #40000) #40000 #8)
    (br_if $each (i32.lt_u (local.tee $n (i32.add (local.get $n) #1)) #12))))
"""
_OBSERVE = """
(global.set $out (call $create #4 [observed]))
(call $descriptors)
(call $list #3 #4096) (call $list #3 #300) (call $list #4 #4096) (call $list #5 #4096) (call $list #6 #4096)
(call $stat #3 [a.txt]) (call $stat #3 [b.txt]) (call $stat #3 [link]) (call $stat #3 [dangling]) (call $stat #3 [none])
(call $stat #3 [deep]) (call $stat #3 [deep/x]) (call $stat #3 [.]) (call $stat #3 [deep/..])
;; a hard link, a rename, a rename over another, a name that is used again
(call $must (call $fd_close (call $create #4 [one])))
(call $must (call $path_link #4 #0 [one] #4 [two]))
(call $stat #4 [one]) (call $stat #4 [two])
(call $must (call $path_rename #4 [one] #4 [three])) (call $stat #4 [three]) (call $stat #4 [one])
(call $must (call $path_rename #4 [two] #4 [three])) (call $stat #4 [three]) (call $stat #4 [two])
(call $must (call $path_create_directory #4 [d])) (call $stat #4 [d])
(call $must (call $fd_close (call $create #4 [d/in])))  (call $stat #4 [d/in])
(call $must (call $path_rename #4 [d/in] #4 [in])) (call $stat #4 [in])
(call $must (call $path_rename #4 [in] #4 [three])) (call $stat #4 [three])
(call $must (call $path_remove_directory #4 [d])) (call $must (call $path_create_directory #4 [d])) (call $stat #4 [d])
(local.set $n #0)
(loop $again
  (local.set $fd (call $create #4 [t]))
  (call $stat #4 [t])
  (call $must (call $path_unlink_file #4 [t]))
  (call $see (call $fd_filestat_get (local.get $fd) #40000) #40000 #64)
  (if (i32.and (local.get $n) #1) (then (call $must (call $fd_close (local.get $fd)))))
  (local.set $n (i32.add (local.get $n) #1))
  (br_if $again (i32.lt_u (local.get $n) #6)))
(call $see (call $path_filestat_set_times #4 #0 [three] (i64.const 5) (i64.const 6) #5) #0 #0) (call $stat #4 [three])
(call $list #4 #4096)
(call $see (call $path_readlink #3 [link] #40000 #100 #112) #40000 #100)
(call $see (call $path_unlink_file #4 [d]) #0 #0) (call $see (call $path_remove_directory #4 [three]) #0 #0)
(call $see (call $fd_allocate (global.get $out) (i64.const 0) (i64.const 100000)) #0 #0)
(call $see (call $random_get #40000 #100) #40000 #100)
(call $see (call $clock_time_get #0 (i64.const 1) #40000) #40000 #8)
(call $see (call $clock_time_get #1 (i64.const 1) #40000) #40000 #8)
(call $see (call $args_sizes_get #40000 #40008) #40000 #16) (call $see (call $args_get #40000 #40100) #40100 #500)
(call $see (call $environ_sizes_get #40000 #40008) #40000 #16) (call $see (call $environ_get #40000 #40100) #40100 #500)
(call $descriptors)
"""
OBSERVER = wat(_OBSERVE, more=_OBSERVER)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    executor = WasmExecutor(scratch=tmp_path / "scratch", cache=tmp_path / "cache")
    yield Bench(executor, tmp_path)
    await executor.aclose()


def _lay_out(home: Path, names: tuple[str, ...], time_s: int, spoil: int) -> None:
    """The same files, made in this order after `spoil` others, so that inodes, order and times are others."""
    folder = home / "input"
    folder.mkdir(parents=True)
    for index in range(spoil):
        (folder / f"spoil-{index}").touch()
    for name in names:
        (folder / name).write_text(name)
    (folder / "deep").mkdir()
    (folder / "deep" / "x").write_text("x")
    (folder / "link").symlink_to("deep/x")
    (folder / "dangling").symlink_to("nowhere")
    for index in range(spoil):
        (folder / f"spoil-{index}").unlink()
    for path in folder.rglob("*"):
        os.utime(path, (time_s, time_s), follow_symlinks=False)


async def _observe(bench: Bench, home: Path) -> bytes:
    run = bench.task(OBSERVER, "one", "two words", home=home, seed=bytes(range(32)))
    ended = await bench.run(replace(run, env=(("KEY", "value"),), limits=replace(LIMITS, output=4 << 20)))
    assert (ended.outcome, ended.exit) == ("ok", 0), ended
    return (run.output / "observed").read_bytes()


async def test_a_module_sees_the_same_on_every_machine(bench: Bench, tmp_path: Path) -> None:
    _lay_out(tmp_path / "one", NAMES, 1_000_000_000, 0)
    _lay_out(tmp_path / "another" / "place", NAMES[::-1], 1_500_000_000, 300)
    first = await _observe(bench, tmp_path / "one")
    assert len(first) > 5000
    assert first == await _observe(bench, tmp_path / "another" / "place")
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        return
    home = memory / f"nexapod-test-{os.getpid()}"
    try:
        _lay_out(home, NAMES[3:] + NAMES[:3], 1_700_000_000, 5)
        assert first == await _observe(bench, home), "on another file system"
    finally:
        shutil.rmtree(home, ignore_errors=True)


async def test_files_keep_their_identity(bench: Bench, tmp_path: Path) -> None:
    """Hard links are one file, two files are two: programs compare numbers to find loops and copies onto themselves."""
    _lay_out(tmp_path / "home", NAMES, 1, 0)
    run = bench.task(
        wat("""
        (call $must (call $fd_close (call $create #4 [one])))
        (call $must (call $path_link #4 #0 [one] #4 [two]))
        (call $must (call $path_filestat_get #4 #0 [one] #512))
        (call $must (call $path_filestat_get #4 #0 [two] #576))
        (call $must (call $path_filestat_get #3 #0 [a.txt] #640))
        (if (i64.ne (i64.load #520) (i64.load #584)) (then (call $proc_exit #101)))
        (if (i64.eq (i64.load #520) (i64.load #648)) (then (call $proc_exit #102)))
        (if (i64.ne (i64.load #536) (i64.const 2)) (then (call $proc_exit #103)))
        (if (i64.ne (i64.load #672) (i64.const 5)) (then (call $proc_exit #104)))
        (call $must (call $path_rename #4 [one] #4 [three]))
        (call $must (call $path_filestat_get #4 #0 [three] #576))
        (if (i64.ne (i64.load #520) (i64.load #584)) (then (call $proc_exit #105)))"""),
        home=tmp_path / "home",
    )
    ended = await bench.run(run)
    assert (ended.outcome, ended.exit) == ("ok", 0), ended


async def test_a_listing_stays_whole_while_its_files_are_removed(bench: Bench, tmp_path: Path) -> None:
    """`rm -r`, as C programs do it: read a little, remove what was read, read on."""
    body = """
    (loop $l (call $name (local.get $n)) (call $must (call $open #5 #200 #8 #9 (i64.const 0x42)))
      (call $must (call $fd_close (i32.load #124)))
      (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) #1)) #100)))
    (local.set $n #0)
    (block $end (loop $more
      (call $must (call $fd_readdir #5 #40000 #32 (local.get $cookie) #112))
      (br_if $end (i32.lt_u (i32.load #112) #24))
      (local.set $cookie (i64.load #40000))
      (if (i32.eq (i32.load #40016) #8) (then
        (call $must (call $path_unlink_file #5 #40024 #8))
        (local.set $n (i32.add (local.get $n) #1))))
      (br $more)))
    (call $proc_exit (i32.ne (local.get $n) #100))
    """
    module = wat("(call $main)", more=f"(func $main (local $n i32) (local $cookie i64) {body})")
    run = bench.task(module)
    ended = await bench.run(run)
    assert (ended.outcome, ended.exit) == ("ok", 0), ended
    assert list(run.checkpoint.iterdir()) == []
