"""Modules that try what a task may not: all are contained, each ends as it should, and the next one runs as if nothing
had been."""

from __future__ import annotations

import filecmp
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
from wasm.wasm_kit import LIMITS, Bench, bytes_in, counted_descriptors, wat
from wasmtime import wat2wasm

from nexapod.executor.outputs import OutputRefused, collect
from nexapod.executor.wasm.files import BYTES_SLACK, FILES_SLACK
from nexapod.executor.wasm.runner import TABLE_ELEMENTS_MAX
from nexapod.executor.wasm.runners import Roots
from nexapod.executor.wasm.sandbox import WasmExecutor

HONEST = wat("(drop (call $write (call $create #4 [out]) [honest]))")
PIECE = 64 << 10
SHORT = replace(LIMITS, wall_ms=700)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """After each test: an honest module runs, and nothing is left in processes, descriptors and files."""
    roots = Roots(reads=(tmp_path / "modules",), writes=(tmp_path / "runs",))
    (tmp_path / "outside").write_text("a secret")
    async with trio.open_nursery():
        with counted_descriptors():
            executor = WasmExecutor(scratch=tmp_path / "scratch", cache=tmp_path / "cache", roots=roots)
            bench = Bench(executor, tmp_path)
            yield bench
            run = bench.task(HONEST)
            assert (await bench.run(run)).outcome == "ok"
            assert (run.output / "out").read_text() == "honest"
            await executor.aclose()
    assert [
        child for child in psutil.Process().children() if "nexapod.executor.wasm.runner" in " ".join(child.cmdline())
    ] == []
    assert list((tmp_path / "scratch").iterdir()) == []
    assert all(len(entry.name.split(".")) == 1 for entry in (tmp_path / "cache").iterdir()), "no draft is left"
    assert (tmp_path / "outside").read_text() == "a secret"


# --- reaching out --------------------------------------------------------------------------------------------------
async def test_there_is_no_network(bench: Bench) -> None:
    ended = await bench.do(
        wat("""(i32.store #100 #1024) (i32.store #104 #4)
        (loop $each
          (call $deny (call $sock_accept (local.get $n) #0 #124))
          (call $deny (call $sock_recv (local.get $n) #100 #1 #0 #120 #124))
          (call $deny (call $sock_send (local.get $n) #100 #1 #0 #120))
          (call $deny (call $sock_shutdown (local.get $n) #3))
          (local.set $n (i32.add (local.get $n) #1))
          (br_if $each (i32.lt_u (local.get $n) #200)))
        (call $proc_exit (global.get $allowed))""")
    )
    assert (ended.outcome, ended.exit) == ("ok", 0)


@pytest.mark.parametrize("name", ["sock_open", "sock_connect", "sock_bind", "thread_spawn", "proc_raise"])
async def test_functions_that_other_runtimes_add_do_not_exist(bench: Bench, name: str) -> None:
    ended = await bench.do(
        wat2wasm(
            f'(module (import "wasi_snapshot_preview1" "{name}" (func (param i32 i32 i32) (result i32)))'
            '(memory (export "memory") 1) (func (export "_start")))'
        )
    )
    assert ended.outcome == "failed"
    assert ended.reason.startswith("the module cannot run")


_ESCAPES = (
    "/etc/passwd",
    "../../../outside",
    "../../../../../../../../etc/passwd",
    "sub/../../output/x",
    "./../input/in",
    "a/../../../../outside",
    "up/outside",
    "abs",
    "chain",
    "//etc/passwd",
    "proc",
)


async def test_nothing_outside_of_its_directories_can_be_opened(bench: Bench) -> None:
    """By no path, and by no link that it planted itself or found planted."""
    tries = "".join(
        f"""(call $deny (call $open #{fd} [{path}] #0 (i64.const 2)))
        (call $deny (call $open #{fd} [{path}] #9 (i64.const 0x42)))
        (call $deny (call $open #{fd} [{path}] #2 (i64.const 0x4000)))
        (call $deny (call $path_filestat_get #{fd} #1 [{path}] #512))
        (call $deny (call $path_filestat_set_times #{fd} #1 [{path}] (i64.const 0) (i64.const 0) #5))"""
        for path in _ESCAPES
        for fd in ((3, 4, 5, 6) if "." in path or "/" in path else (4,))
    )
    run = bench.task(
        wat(
            f"""(call $must (call $path_symlink [../../..] #4 [up]))
            (call $must (call $path_symlink [up/outside] #4 [chain]))
            (call $deny (call $path_symlink [/etc/passwd] #4 [absolute]))
            (drop (call $path_symlink [planted/outside] #4 [a]))
            {tries}
            (call $deny (call $open #4 [planted/outside] #0 (i64.const 2)))
            (call $deny (call $open #3 [planted] #0 (i64.const 2)))
            (call $proc_exit (global.get $allowed))"""
        )
    )
    for name, target in (("planted", bench.root), ("abs", "/etc/passwd"), ("proc", "/proc/self/mem")):
        (run.output / name).symlink_to(target)
    (run.input / "planted").symlink_to(bench.root / "outside")
    ended = await bench.run(run)
    assert (ended.outcome, ended.exit) == ("ok", 0)


async def test_nothing_can_be_made_moved_linked_or_removed_across_its_borders(bench: Bench) -> None:
    run = bench.task(
        wat("""(drop (call $create #4 [mine]))
        (call $deny (call $path_create_directory #4 [../evil]))
        (call $deny (call $path_create_directory #4 [/tmp/evil-nexapod]))
        (call $deny (call $path_symlink [x] #4 [../evil]))
        (call $deny (call $path_symlink [x] #3 [evil]))
        (call $deny (call $path_rename #4 [mine] #4 [../evil]))
        (call $deny (call $path_rename #4 [mine] #3 [evil]))
        (call $deny (call $path_rename #4 [../input/in] #4 [stolen]))
        (call $deny (call $path_link #4 #0 [../input/in] #4 [stolen]))
        (call $deny (call $path_link #3 #0 [in] #4 [stolen]))
        (call $deny (call $path_link #4 #0 [mine] #3 [evil]))
        (call $deny (call $path_unlink_file #4 [../input/in]))
        (call $deny (call $path_unlink_file #3 [in]))
        (call $deny (call $path_remove_directory #4 [../input]))
        (call $deny (call $path_remove_directory #3 [sub]))
        (call $deny (call $path_create_directory #3 [evil]))
        (call $deny (call $path_filestat_set_times #3 #0 [in] (i64.const 0) (i64.const 0) #5))
        (call $deny (call $open #3 [in] #8 (i64.const 0x40)))
        (if (i32.eqz (call $open #3 [in] #0 (i64.const 0x400042))) (then
          (call $deny (call $write (i32.load #124) [x]))
          (call $deny (call $fd_filestat_set_size (i32.load #124) (i64.const 0)))
          (call $deny (call $fd_allocate (i32.load #124) (i64.const 0) (i64.const 99)))))
        (call $proc_exit (global.get $allowed))""")
    )
    (run.input / "in").write_text("input")
    (run.input / "sub").mkdir()
    ended = await bench.run(run)
    assert (ended.outcome, ended.exit) == ("ok", 0)
    assert (run.input / "in").read_text() == "input"
    assert sorted(path.name for path in run.input.iterdir()) == ["in", "sub"]
    assert sorted(path.name for path in run.input.parent.iterdir()) == ["checkpoint", "input", "output"]
    assert sorted(path.name for path in run.output.iterdir()) == ["mine"]


@pytest.mark.parametrize(
    "name", ["new\nline", "esc\x1b[2J", "back\\slash", "CON:", " ", "ü" * 120, ".hidden/..", "nul/sub/../sub"]
)
async def test_odd_names_do_no_harm(bench: Bench, name: str) -> None:
    if "[" in name:
        name = name.replace("[", "(")
    run = bench.task(wat(f"(drop (call $open #4 [{name}] #9 (i64.const 0x42)))"))
    assert (await bench.run(run)).outcome == "ok"
    made = list(run.output.rglob("*"))
    assert [path for path in run.input.parent.rglob("*") if path not in made] == [run.input, run.output, run.checkpoint]
    with suppress(OutputRefused):
        for file in collect(run.output, bytes_max=1 << 20):
            assert file.source.resolve().is_relative_to(run.output.resolve())


async def test_links_that_a_module_leaves_are_no_outputs(bench: Bench) -> None:
    run = bench.task(wat("(call $must (call $path_symlink [../../../outside] #4 [out]))"))
    assert (await bench.run(run)).outcome == "ok"
    with pytest.raises(OutputRefused, match="symbolic link"):
        collect(run.output, bytes_max=1 << 20)


# --- using up ------------------------------------------------------------------------------------------------------
async def test_memory(bench: Bench) -> None:
    ended = await bench.do(
        wat("""(loop $more
          (if (i32.eq (memory.grow #16) #-1) (then unreachable))
          (memory.fill (i32.mul (i32.sub (memory.size) #16) #65536) #7 #1048576)
          (br $more))""")
    )
    assert ended.outcome == "memory-limit"
    assert 28 << 20 < ended.usage.peak_memory <= 32 << 20


async def test_a_file_is_read_and_written_in_calls_that_ask_for_all_of_it(bench: Bench) -> None:
    """As a program does that has the room: what a call moves is no burden on the process. The short counts go on."""
    size, limits = 200 << 20, replace(LIMITS, memory=256 << 20, output=256 << 20, disk=512 << 20)
    move = """(loop $l (i32.store #100 (i32.add #65536 (local.get $n)))
        (i32.store #104 (i32.sub (global.get $size) (local.get $n)))
        (call $must (call $%s (local.get $fd) #100 #1 #120))
        (local.set $n (i32.add (local.get $n) (i32.load #120)))
        (br_if $l (i32.and (i32.ne (i32.load #120) #0) (i32.lt_u (local.get $n) (global.get $size)))))"""
    body = f"""(call $must (call $open #3 [in] #0 (i64.const 2))) (local.set $fd (i32.load #124))
        {move % "fd_read"}
        (global.set $size (local.get $n)) (local.set $n #0) (local.set $fd (call $create #4 [out]))
        {move % "fd_write"}"""
    run = bench.task(wat(body, pages=4000, more="(global $size (mut i32) (i32.const 209715300))"), limits=limits)
    _sparse(run.input / "in", size)
    ended = await bench.run(run)
    assert (ended.outcome, ended.exit) == ("ok", 0), ended
    assert filecmp.cmp(run.input / "in", run.output / "out", shallow=False)


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for at in range(0, size, 10 << 20):
            file.seek(at)
            file.write(at.to_bytes(8, "little"))


async def test_tables(bench: Bench) -> None:
    """More than the bound is denied; that is the module's to bear."""
    ended = await bench.do(
        wat(
            f"""(loop $more (br_if $more (i32.ne (table.grow $t (ref.null func) #65536) #-1)))
            (if (i32.gt_u (table.size $t) #{TABLE_ELEMENTS_MAX}) (then unreachable))""",
            more="(table $t 1 funcref)",
        )
    )
    assert (ended.outcome, ended.exit) == ("ok", 0)
    declared = await bench.do(wat("", more="(table 100000000 funcref)"))
    assert declared.outcome in ("failed", "memory-limit")
    many = await bench.do(wat("", more="(table 1000000 funcref)" * 40))
    assert many.outcome in ("failed", "memory-limit")


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("(loop $ever (br $ever))", ""),
        ("(loop $ever (drop (call $random_get #2048 #100)) (br $ever))", ""),
        ("(loop $ever (drop (call $fd_readdir #4 #2048 #100 (i64.const 0) #120)) (br $ever))", ""),
        ("(loop $ever (drop (call $path_filestat_get #4 #0 [.] #512)) (br $ever))", ""),
        ("", "(func $ever (loop $l (br $l))) (start $ever)"),
    ],
    ids=["loop", "randomness", "listing", "stat", "start-function"],
)
async def test_endless_loops_end_at_the_wall_limit(bench: Bench, body: str, more: str) -> None:
    ended = await bench.do(wat(body, more=more), limits=SHORT)
    assert (ended.outcome, ended.reason) == ("wall-limit", "not done after 700 ms")
    assert ended.usage.wall_ms < 10_000


async def test_recursion(bench: Bench) -> None:
    ended = await bench.do(wat("(call $deep)", more="(func $deep (call $deep) (call $deep))"))
    assert (ended.outcome, ended.exit) == ("failed", 134)
    assert "stack exhausted" in ended.reason


_OPEN_MANY = """(loop $each (call $name (local.get $n))
  (drop (call $open #4 #200 #8 #9 (i64.const 0x42)))
  (local.set $n (i32.add (local.get $n) #1)) (br_if $each (i32.lt_u (local.get $n) #%d)))"""
_DISK = {
    "one-file": "(local.set $fd (call $create #4 [big]))"
    "(loop $l (drop (call $write (local.get $fd) #0 #65536)) (br $l))",
    "checkpoint": "(local.set $fd (call $create #5 [big]))"
    "(loop $l (drop (call $write (local.get $fd) #0 #65536)) (br $l))",
    "many-files": "(loop $l (call $name (local.get $n)) (local.set $n (i32.and (i32.add (local.get $n) #1) #15))"
    "(if (i32.eqz (call $open #4 #200 #8 #9 (i64.const 0x40))) (then (loop $m"
    "  (br_if $m (i32.eqz (call $write (i32.load #124) #0 #65536))))))"
    "(br $l))",
    "sparse": "(local.set $fd (call $create #4 [big])) (i32.store #100 #0) (i32.store #104 #1) (loop $l"
    "(drop (call $fd_pwrite (local.get $fd) #100 #1 (i64.mul (i64.extend_i32_u (local.get $n)) (i64.const 4096)) #120))"
    "(local.set $n (i32.add (local.get $n) #1)) (br $l))",
    "far-away": "(local.set $fd (call $create #4 [big])) (i32.store #100 #0) (i32.store #104 #1)"
    "(drop (call $fd_pwrite (local.get $fd) #100 #1 (i64.const 2000000) #120))",
    "set-size": "(drop (call $fd_filestat_set_size (call $create #4 [big]) (i64.const 2000000)))"
    "(loop $l (drop (call $write (i32.load #124) #0 #65536)) (br $l))",
    "instead-of-stdout": "(drop (call $fd_renumber (call $create #4 [big]) #1))"
    "(loop $l (drop (call $write #1 #0 #65536)) (br $l))",
    "in-stdout-s-place": "(drop (call $fd_close #1)) (local.set $fd (call $create #4 [big]))"
    "(loop $l (drop (call $write (local.get $fd) #0 #65536)) (br $l))",
    "no-descriptors-left": _OPEN_MANY % 40 + "(loop $l (br_if $l (i32.eqz (call $open #3 [.] #2 (i64.const 0)))))"
    "(loop $l (local.set $n (i32.add (i32.and (i32.add (local.get $n) #1) #31) #8))"
    "(drop (call $write (local.get $n) #0 #65536)) (br $l))",
}


@pytest.mark.parametrize("how", _DISK)
async def test_a_disk_bomb_is_stopped_at_once(bench: Bench, how: str) -> None:
    """However it writes, no more comes to lie on the disk than its limit and the slack of the count."""
    run = bench.task(wat(_DISK[how]))
    ended = await bench.run(run)
    assert ended.outcome == "output-limit", ended
    limit = run.limits.disk if how == "checkpoint" else run.limits.output
    assert bytes_in(run.output, run.checkpoint) <= limit + BYTES_SLACK + 2 * PIECE


async def test_files_that_are_removed_but_held_open_count(bench: Bench) -> None:
    ended = await bench.do(
        wat("""(loop $l
          (local.set $fd (call $create #5 [big]))
          (call $must (call $path_unlink_file #5 [big]))
          (local.set $n (i32.const 0))
          (loop $m
            (drop (call $write (local.get $fd) #0 #65536))
            (local.set $n (i32.add (local.get $n) #1))
            (br_if $m (i32.lt_u (local.get $n) #8)))
          (br $l))""")
    )
    assert ended.outcome == "output-limit"
    assert "removed and holds open" in ended.reason


async def test_room_that_is_given_back_can_be_used_again(bench: Bench) -> None:
    """An honest module that writes a hundred times its limit, but never has more than it may."""
    ended = await bench.do(
        wat("""(loop $l
          (local.set $fd (call $create #5 [state]))
          (loop $m
            (call $must (call $write (local.get $fd) #0 #65536))
            (br_if $m (i32.rem_u (local.tee $n (i32.add (local.get $n) #1)) #16)))
          (call $must (call $fd_close (local.get $fd)))
          (if (i32.and (local.get $n) #16) (then (call $must (call $path_unlink_file #5 [state]))))
          (br_if $l (i32.lt_u (local.get $n) #3200)))""")
    )
    assert (ended.outcome, ended.reason) == ("ok", "")


_FILES = {
    "files": "(drop (call $open #4 #200 #8 #9 (i64.const 0x42))) (drop (call $fd_close (i32.load #124)))",
    "held-open": "(drop (call $open #4 #200 #8 #9 (i64.const 0x42)))",
    "checkpoint": "(drop (call $open #5 #200 #8 #9 (i64.const 0x42))) (drop (call $fd_close (i32.load #124)))",
    "links": "(drop (call $path_symlink [x] #4 #200 #8))",
    "hard-links": "(drop (call $create #4 [x])) (drop (call $fd_close (i32.load #124)))"
    "(drop (call $path_link #4 #0 [x] #4 #200 #8))",
    "directories": "(drop (call $path_create_directory #4 #200 #8))",
    "progress": "(drop (call $path_symlink [x] #6 #200 #8))",
}


@pytest.mark.parametrize("what", _FILES)
async def test_a_bomb_of_names_is_stopped_at_once(bench: Bench, what: str) -> None:
    run = bench.task(
        wat(f"(loop $l (call $name (local.get $n)) {_FILES[what]} (local.set $n (i32.add (local.get $n) #1)) (br $l))")
    )
    ended = await bench.run(replace(run, limits=replace(LIMITS, wall_ms=10_000)))
    if what == "held-open":  # runs out of descriptors before it runs out of names, and loops
        assert ended.outcome in ("output-limit", "wall-limit")
    else:
        assert ended.outcome == "output-limit", ended
    most = {"checkpoint": 1024, "directories": 256}.get(what, 64)
    assert sum(len(files) + len(folders) for _, folders, files in os.walk(run.input.parent)) <= most + FILES_SLACK + 8


async def test_a_tower_of_directories_is_stopped(bench: Bench) -> None:
    run = bench.task(
        wat("""(local.set $n #4)
        (loop $l
          (call $must (call $path_create_directory (local.get $n) [d]))
          (call $must (call $path_open (local.get $n) #1 [d] #2 (i64.const 2) (i64.const 2) #0 #124))
          (if (i32.ne (local.get $n) #4) (then (drop (call $fd_close (local.get $n)))))
          (local.set $n (i32.load #124))
          (br $l))""")
    )
    ended = await bench.run(run)
    assert ended.outcome == "output-limit", ended


async def test_the_log(bench: Bench) -> None:
    """A third of a gigabyte: counted, the most of it dropped, and told while it comes."""
    ended = await bench.do(
        wat("""(loop $l (drop (call $write #1 [all work and no play])) (drop (call $write #2 #0 #65536))
        (local.set $n (i32.add (local.get $n) #1)) (br_if $l (i32.lt_u (local.get $n) #5000)))"""),
        limits=replace(LIMITS, wall_ms=50_000),
    )
    assert ended.outcome == "ok"
    assert ended.log.startswith("all work and no play")
    assert "bytes left out" in ended.log
    assert bench.reports[-1].printed == 5_000 * (65_536 + 20)
    assert len({report.printed for report in bench.reports}) > 1


async def test_huge_arguments_and_environment(bench: Bench) -> None:
    body = "(call $must (call $args_sizes_get #100 #104)) (call $proc_exit (i32.gt_u (i32.load #104) #2000000))"
    run = bench.task(wat(body), *("x" * 32_768 for _ in range(64)))
    ended = await bench.run(replace(run, env=tuple((f"V{n}", "y" * 32_768) for n in range(64))))
    assert (ended.outcome, ended.exit) == ("failed", 1), "it saw them all"


# --- being odd -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("module", "outcome", "said"),
    [
        (b"", "failed", "not a WebAssembly module"),
        (b"\0asm\x01\0\0\0" + b"\xff" * 1000, "failed", "malformed"),
        (b"\0asm\x0d\0\1\0", "failed", ""),
        (HONEST[:-7], "failed", ""),
        (wat2wasm('(module (func (export "_start")))'), "failed", "must export _start and memory"),
        (wat2wasm('(module (memory (export "memory") 1))'), "failed", "must export _start and memory"),
        (
            wat2wasm('(module (memory (export "memory") 1) (func (export "_start") (param i32)))'),
            "failed",
            "export _st",
        ),
        (wat2wasm('(module (memory (export "memory") 65536) (func (export "_start")))'), "memory-limit", "33554432"),
        (wat2wasm('(module (memory (export "memory") 513) (func (export "_start")))'), "memory-limit", "33554432"),
        (wat2wasm('(module (memory (export "memory") 0) (func (export "_start")))'), "ok", ""),
        (wat2wasm('(module (memory (export "memory") i64 1) (func (export "_start")))'), "failed", "memory64"),
        (wat("", more='(data (i32.const 262144) "x")'), "failed", "out of bounds"),
        (wat("", more='(data (i32.const 300000000) "x")'), "failed", "out of bounds"),
        (wat("", pages=520, more=f'(data (i32.const 65536) "{"x" * (33 << 20)}")'), "memory-limit", "33554432"),
        (wat("", more=f'(data (i32.const 65536) "{"x" * 100_000}")' * 2), "ok", ""),
        (
            wat("", more="(func $soon (drop (call $open #4 [x] #9 (i64.const 0x42)))) (start $soon)"),
            "failed",
            "uninitialized",
        ),
        (wat("", more="(func $die unreachable) (start $die)"), "failed", "unreachable"),
    ],
)
async def test_modules_that_are_no_good_end_with_the_reason(
    bench: Bench, module: bytes, outcome: str, said: str
) -> None:
    ended = await bench.do(module)
    assert ended.outcome == outcome, ended
    assert said in ended.reason


async def test_a_memory_without_pages_is_no_way_in(bench: Bench) -> None:
    ended = await bench.do(
        wat2wasm(
            '(module (import "wasi_snapshot_preview1" "fd_readdir" (func $r (param i32 i32 i32 i64 i32) (result i32)))'
            '(import "wasi_snapshot_preview1" "path_unlink_file" (func $u (param i32 i32 i32) (result i32)))'
            '(import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))'
            '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
            '(memory (export "memory") 0) (func (export "_start")'
            "(call $exit (i32.and (i32.and (i32.ne (i32.const 0) (call $r (i32.const 4) (i32.const 0) (i32.const 9)"
            " (i64.const 0) (i32.const 0))) (i32.ne (i32.const 0) (call $u (i32.const 4) (i32.const 0) (i32.const 9))))"
            "(i32.ne (i32.const 0) (call $w (i32.const 4) (i32.const 0) (i32.const -1) (i32.const 0)))))))"
        )
    )
    assert ended.outcome == "failed"
    assert "out of bounds" in ended.reason
