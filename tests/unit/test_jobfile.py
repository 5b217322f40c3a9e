"""nexapod.cli.jobfile: a job file becomes a plan, or every problem in it is named with its place."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexapod.api.models import JobBody
from nexapod.cli.hashing import hash_file
from nexapod.cli.jobfile import read_job
from nexapod.cli.splitting import Cut, pieces, split_file
from nexapod.config import ConfigError
from nexapod.protocol.limits import CHUNK_BYTES, INPUTS_MAX, MODULE_BYTES_MAX, PANEL_USUAL, SHARD_TASKS, TASKS_MAX
from nexapod.protocol.primitives import blob_of
from nexapod.protocol.types import JobSpec
from nexapod.protocol.wire import statements

FULL = """
[job]
name = "full"
description = "two\\nlines"
tags = ["a", "b"]
priority = -3
retention = "1d12h"

[run]
executor = "wasm"
module = "m.wasm"
command = ["predict", "--fast"]
env = { MODE = "x" }
checkpoint = "shared"

[inputs]
"data/weights.bin" = "w.bin"

[tasks]
count = 7

[limits]
cpus = 0.5
memory = "512MiB"
output = "1.5MB"
disk = "4MB"
wall = "1h30m"
idle = "10m"
network = "none"

[requires]
arch = "amd64"
memory = "1GiB"
executor = "wasm"

[validate]
mode = "exact"
agree = 3
max_replicas = 6
"""
GPU = f"""
[job]
name = "gpu"

[run]
executor = "docker"
image = "sha256:{"ab" * 32}"

[tasks]
count = 1

[limits]
gpus = 1
gpu_memory = "16GiB"

[requires]
gpu_model = "H200"
gpu_capability = "8.0"
"""
SMALL = '[job]\nname = "x"\n[run]\nexecutor = "wasm"\nmodule = "m.wasm"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m.wasm").write_bytes(b"\0asm")
    (tmp_path / "w.bin").write_bytes(b"weights")
    (tmp_path / "in.fasta").write_bytes(b"\n>a x\nAC\nGT\n\n>b\nTT\n>c\nGG")
    (tmp_path / "in.txt").write_bytes(b"one\r\n\n  \ntwo\nthree")
    return tmp_path


def check_signable(spec: JobSpec, panel: tuple[bytes, ...] = (b"to be chosen",)) -> None:
    """That other peers would take it once the daemon has chosen its panel."""
    statements.check_body(replace(spec, panel=panel))


def read(folder: Path, text: str) -> Any:
    path = folder / "job.toml"
    path.write_text(text)
    return read_job(path)


def problems(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, text)
    return str(caught.value)


def test_every_key_reaches_the_job_and_the_api_takes_it(folder: Path) -> None:
    plan = read(folder, FULL)
    spec = JobBody.model_validate(plan.body).spec("net")
    check_signable(spec)
    assert (spec.name, spec.description, spec.tags, spec.priority) == ("full", "two\nlines", ("a", "b"), -3)
    assert (spec.run.command, spec.run.env) == (("predict", "--fast"), (("MODE", "x"),))
    assert [(f.path, f.blob) for f in spec.inputs] == [("data/weights.bin", blob_of(b"weights"))]
    limits = spec.limits
    assert (limits.cpus_milli, limits.memory, limits.output) == (500, 512 << 20, 1_500_000)
    assert (limits.disk, limits.pids) == (4_000_000, 64)
    assert (limits.wall_ms, limits.idle_ms) == (5_400_000, 600_000)
    assert (spec.run.checkpoint, spec.requires.arch, spec.requires.memory) == ("shared", ("amd64",), 1 << 30)
    assert (spec.validate.agree, spec.validate.max_replicas, spec.retention_ms) == (3, 6, 129_600_000)
    assert {upload.ref for upload in plan.uploads} == set(spec.blobs)
    assert plan.tasks == spec.tasks == 7


def test_a_container_may_ask_for_gpus(folder: Path) -> None:
    spec = JobBody.model_validate(read(folder, GPU).body).spec("net")
    check_signable(spec)
    assert (spec.limits.gpus, spec.limits.gpu_memory) == (1, 16 << 30)
    assert (spec.requires.gpu_model, spec.requires.gpu_capability) == ("H200", "8.0")


def test_a_module_that_no_worker_would_take_is_refused_before_it_is_uploaded(folder: Path) -> None:
    with open(folder / "m.wasm", "r+b") as file:
        file.truncate(MODULE_BYTES_MAX + 1)
    assert "'m.wasm' is larger than 96 MiB" in problems(folder, SMALL + "[tasks]\ncount = 1")


def test_what_is_left_out_has_the_protocols_defaults(folder: Path) -> None:
    from nexapod.protocol.types import Limits, Requires, Validate

    spec = JobBody.model_validate(read(folder, SMALL + "[tasks]\ncount = 1").body).spec("net")
    assert (spec.limits, spec.requires, spec.validate) == (Limits(), Requires(), Validate())


def test_a_docker_run_has_a_folder_to_start_in_and_a_number_of_processes(folder: Path) -> None:
    run = f'[job]\nname = "x"\n[run]\nexecutor = "docker"\nimage = "sha256:{"ab" * 32}"\nworkdir = "/output"\n'
    spec = JobBody.model_validate(read(folder, run + "[limits]\npids = 512\n[tasks]\ncount = 1").body).spec("net")
    check_signable(spec)
    assert (spec.run.workdir, spec.limits.pids) == ("/output", 512)
    assert "is not absolute" in problems(folder, run.replace("/output", "output") + "[tasks]\ncount = 1")


def test_a_script_of_several_lines_may_be_a_command(folder: Path) -> None:
    text = SMALL + 'command = ["-c", """\nset -e\n\techo $X\n"""]\nenv = { X = "a\\nb" }\n[tasks]\ncount = 1'
    spec = JobBody.model_validate(read(folder, text).body).spec("net")
    check_signable(spec)
    assert (spec.run.command, spec.run.env) == (("-c", "set -e\n\techo $X\n"), (("X", "a\nb"),))


def test_disk_is_twice_the_output_where_it_is_not_said(folder: Path) -> None:
    tasks = "[tasks]\ncount = 1\n"
    assert read(folder, SMALL + tasks + '[limits]\noutput = "3GB"').body["limits"]["disk"] == 6_000_000_000
    assert read(folder, SMALL + tasks + '[limits]\noutput = "1TiB"').body["limits"]["disk"] == 1 << 40


def test_a_docker_run_names_an_image(folder: Path) -> None:
    run = f'[job]\nname = "x"\n[run]\nexecutor = "docker"\nimage = "sha256:{"ab" * 32}"\n[tasks]\ncount = 1'
    assert JobBody.model_validate(read(folder, run).body).run.image == f"sha256:{'ab' * 32}"
    assert "names no image" in problems(folder, run.replace("sha256:", "python@"))
    assert "and no module" in problems(folder, run.replace("image =", 'module = "m.wasm"\nimage ='))


def test_the_example_is_a_good_job() -> None:
    path = Path(__file__).parents[2] / "examples" / "secondary-structure" / "job.toml"
    if not (path.parent / "weights.bin").exists():
        with pytest.raises(ConfigError, match=r"inputs\.weights\.bin: 'weights\.bin' does not exist"):
            read_job(path)
    else:
        assert read_job(path).tasks == 22


# --- ways to have tasks --------------------------------------------------------------------------------------------
def test_a_sweep_is_every_combination_the_last_key_fastest(folder: Path) -> None:
    plan = read(folder, SMALL + '[tasks.params]\nalpha = [0.1, 1e-9]\nmode = ["x", true]\nn = [1]')
    (params,) = [u for u in plan.uploads if u.name == "parameters"]
    assert isinstance(params.source, bytes)
    assert json.loads(params.source) == [
        {"alpha": "0.1", "mode": "x", "n": "1"},
        {"alpha": "0.1", "mode": "true", "n": "1"},
        {"alpha": "1e-09", "mode": "x", "n": "1"},
        {"alpha": "1e-09", "mode": "true", "n": "1"},
    ]
    assert plan.tasks == 4
    assert plan.body["params"] == str(params.ref)


def test_a_list_of_tables_is_one_task_each(folder: Path) -> None:
    plan = read(folder, SMALL + '[tasks]\nparams = [{ a = 1, b = "x" }, { a = 2, b = "y" }]')
    assert plan.tasks == 2
    assert "differs from the first" in problems(folder, SMALL + "[tasks]\nparams = [{ a = 1 }, { b = 2 }]")


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("params = { a = [] }", "an empty list"),
        ("params = { a = 3 }", "a list of values, not a whole number"),
        ("params = {}", "from 1 to 64"),
        ("params = 7", "a table of lists"),
        ("params = { 'b c' = [1] }", "letters, digits"),
        ("params = { a = [1], A = [2] }", "in capitals alone"),
        ("params = { a = [[1]] }", "not a list"),
        ("params = { a = [1979-05-27] }", "not a date or time"),
        (f"params = {{ a = [0x{'f' * 5000}] }}", "params.a: a number of 20000 bits is not possible: give it as text"),
        (f"params = {{ a = [{'9' * 5000}] }}", "a number in it has thousands of digits"),
        (f"count = 0x{'f' * 5000}", "a number of 20000 bits is not possible: from 1 to"),
        (f"params = {{ a = {list(range(1001))}, b = {list(range(1000))} }}", "they give 1001000 tasks"),
    ],
)
def test_a_bad_sweep_is_explained(folder: Path, tasks: str, said: str) -> None:
    assert said in problems(folder, SMALL + "[tasks]\n" + tasks)


def test_a_fasta_file_is_cut_at_its_records(folder: Path) -> None:
    plan = read(folder, SMALL + '[tasks]\nsplit = "in.fasta"\nby = "fasta"\nas = "seq/one.fa"\nsize = 2')
    (index,) = [u for u in plan.uploads if u.name == "index of in.fasta"]
    assert isinstance(index.source, bytes)
    data = (folder / "in.fasta").read_bytes()
    assert [data[o : o + n] for o, n in pieces(index.source)] == [b">a x\nAC\nGT\n\n>b\nTT\n", b">c\nGG"]
    assert len(index.source) == 2 * struct.calcsize(">QI")
    assert (plan.tasks, plan.body["split"]["path"]) == (2, "seq/one.fa")


def test_lines_are_cut_at_lines_that_say_something(folder: Path) -> None:
    data = (folder / "in.txt").read_bytes()
    cuts = pieces(split_file(folder / "in.txt", Cut("lines", size=1)).index)
    assert [data[o : o + n] for o, n in cuts] == [b"one\r\n\n  \n", b"two\n", b"three"]


@pytest.mark.parametrize(("content", "said"), [(b"", "it is empty"), (b"\n \n", "no record"), (b"\nACGT", "line 2")])
def test_a_file_that_cannot_be_cut_is_explained(folder: Path, content: bytes, said: str) -> None:
    (folder / "in.fasta").write_bytes(content)
    assert said in problems(folder, SMALL + '[tasks]\nsplit = "in.fasta"\nby = "fasta"')


@given(
    records=st.lists(st.tuples(st.text("abc", min_size=1), st.lists(st.text("ACGT"))), min_size=1, max_size=30),
    size=st.integers(1, 7),
)
def test_pieces_cover_every_record_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, list[str]]], size: int
) -> None:
    path = tmp_path_factory.mktemp("split") / "x.fasta"
    text = "".join(f">{name}\n" + "".join(f"{line}\n" for line in lines) for name, lines in records)
    path.write_text(text)
    cuts = pieces(split_file(path, Cut("fasta", size=size)).index)
    parts = [text[o : o + n] for o, n in cuts]
    assert "".join(parts) == text
    assert [part.count(">") for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert len(parts) == -(-len(records) // size)


def test_too_many_pieces_are_refused_before_they_are_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nexapod.cli.splitting.TASKS_MAX", 2)
    assert "more than 2 tasks" in problems(folder, SMALL + '[tasks]\nsplit = "in.txt"\nby = "lines"')
    assert read(folder, SMALL + '[tasks]\nsplit = "in.txt"\nby = "lines"\nsize = 2').tasks == 2


def test_a_split_says_how_and_its_header_is_kept(folder: Path) -> None:
    (folder / "in.csv").write_bytes(b"id,x\n1,a\n2,b\n3,c\n")
    plan = read(folder, SMALL + '[tasks]\nsplit = "in.csv"\nby = "csv"\npieces = 2')
    spec = JobBody.model_validate(plan.body).spec("net")
    check_signable(spec)
    assert spec.split is not None
    assert (spec.tasks, spec.split.path, spec.split.header, spec.split.bounds) == (2, "record.csv", 5, (5, 17))
    assert {upload.ref for upload in plan.uploads} == set(spec.blobs)
    whole = read(folder, SMALL + '[tasks]\nsplit = "in.csv"\nby = "csv"\nheader = false\nbytes = "1KiB"')
    assert (whole.tasks, whole.body["split"]["header"]) == (1, 0)
    two = read(folder, SMALL + '[tasks]\nsplit = "in.csv"\nby = "lines"\nheader = 2')
    assert (two.tasks, two.body["split"]["header"]) == (2, 9)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("size = 2\npieces = 3", "tasks.pieces: at most one of size, bytes and pieces is possible"),
        ("size = 0", "tasks.size: 0 is not possible"),
        ("pieces = 1000001", "tasks.pieces: 1000001 is not possible"),
        ("bytes = 100", "tasks.bytes: expected text with a unit"),
        ('bytes = "4GiB"', "tasks.bytes: '4GiB' is not possible"),
        ("header = true", "tasks.header: expected a whole number"),
        ('by = "fasta"\nheader = 1', "tasks.header: it belongs to lines and csv"),
        ('by = "csv"\nheader = 1', "tasks.header: expected true or false"),
        ('by = "xml"', "tasks.by: 'xml' is not possible"),
        ('as = "../x"', "cannot be a path below /input"),
    ],
)
def test_a_bad_split_is_explained(folder: Path, keys: str, said: str) -> None:
    by = "" if "by =" in keys else 'by = "lines"\n'
    assert said in problems(folder, SMALL + f'[tasks]\nsplit = "in.txt"\n{by}{keys}')


def test_a_job_of_as_many_tasks_as_possible_fits_its_statement(folder: Path) -> None:
    # The offsets of a terabyte are as long as they get; nothing of the file is read here.
    step = (1 << 40) // TASKS_MAX
    bounds = [shard * SHARD_TASKS * step for shard in range(-(-TASKS_MAX // SHARD_TASKS))] + [1 << 40]
    body = read(folder, FULL).body
    split = {"path": "x", "ref": f"{'ab' * 32}:{1 << 40}", "index": f"{'cd' * 32}:{12 * TASKS_MAX}", "bounds": bounds}
    spec = JobBody.model_validate(body | {"tasks": TASKS_MAX, "split": split}).spec("net")
    check_signable(spec, (bytes(512),) * PANEL_USUAL)


# --- files and folders ---------------------------------------------------------------------------------------------
def test_a_folder_is_the_files_below_it(folder: Path) -> None:
    (folder / "tree/b/c").mkdir(parents=True)
    for name in ("tree/z", "tree/b/c/deep", "tree/b/a", "tree/.hidden"):
        (folder / name).write_text(name)
    plan = read(folder, SMALL + '[inputs]\n"data" = "tree/"\n"w" = "w.bin"\n[tasks]\ncount = 1')
    paths = [entry["path"] for entry in plan.body["inputs"]]
    assert paths == ["data/.hidden", "data/b/a", "data/b/c/deep", "data/z", "w"]
    refs = {entry["path"]: entry["ref"] for entry in plan.body["inputs"]}
    assert refs["data/b/a"] == str(blob_of(b"tree/b/a"))
    assert {str(upload.ref) for upload in plan.uploads} >= set(refs.values())
    plan = read(folder, SMALL + '[inputs]\n"." = "tree"\n[tasks]\ncount = 1')
    assert [entry["path"] for entry in plan.body["inputs"]] == [".hidden", "b/a", "b/c/deep", "z"]


def test_what_a_folder_may_not_hold(folder: Path) -> None:
    tree = folder / "tree"
    tree.mkdir()
    text = SMALL + '[inputs]\n"data" = "tree/"\n[tasks]\ncount = 1'
    assert "the folder 'tree/' holds no file" in problems(folder, text)
    (tree / "link").symlink_to(folder / "w.bin")
    assert "holds a link, 'link': put the file there instead" in problems(folder, text)
    (tree / "link").unlink()
    os.mkfifo(tree / "pipe")
    assert "holds 'pipe', which is no regular file" in problems(folder, text)
    (tree / "pipe").unlink()
    (tree / "a\nb").touch()
    assert "'data/a\\nb' cannot be a path below /input" in problems(folder, text)
    (tree / "a\nb").unlink()
    for number in range(INPUTS_MAX + 1):
        (tree / str(number)).touch()
    assert f"holds more than {INPUTS_MAX} files: pack them into one (tar -cf" in problems(folder, text)
    (tree / "0").unlink()
    assert len(read(folder, text).body["inputs"]) == INPUTS_MAX
    more = text.replace("[tasks]", '"w" = "w.bin"\n[tasks]')
    assert f"inputs: there are more than {INPUTS_MAX} input files" in problems(folder, more)
    assert "'w.bin/' is not a folder" in problems(folder, text.replace("tree/", "w.bin/"))


def test_two_inputs_do_not_hide_each_other(folder: Path) -> None:
    (folder / "tree").mkdir()
    (folder / "tree/x").touch()
    same = SMALL + '[inputs]\n"d/x" = "w.bin"\n"d" = "tree/"\n[tasks]\ncount = 1'
    assert "inputs.d: the input 'd/x' is there twice" in problems(folder, same)
    above = SMALL + '[inputs]\n"d" = "w.bin"\n"d/y" = "w.bin"\n[tasks]\ncount = 1'
    assert "inputs.d/y: the input 'd/y' and 'd' cannot both be: one is a folder" in problems(folder, above)


def test_a_large_file_is_not_read_for_a_job_file_that_is_wrong(folder: Path) -> None:
    read_of: list[str] = []

    @contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        read_of.append(what)
        yield lambda count: None

    text = SMALL + '[inputs]\n"w" = "w.bin"\n[tasks]\nsplit = "in.txt"\nby = "lines"\n'
    (folder / "job.toml").write_text(text + "bogus = 1")
    with pytest.raises(ConfigError):
        read_job(folder / "job.toml", progress)
    assert read_of == ["reading m.wasm"]
    (folder / "job.toml").write_text(text)
    read_job(folder / "job.toml", progress)
    assert read_of[2:] == ["reading w.bin", "reading in.txt"]


# --- what is wrong is said -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("count = 7", "cuont = 7"), "job.toml:20: tasks.cuont: unknown key; did you mean 'count'?"),
        (("count = 7", 'count = 7\nsplit = "w.bin"'), "it has count and split"),
        (("count = 7", "count = 7\nsize = 2"), "tasks.size: it belongs to `split`"),
        (("count = 7", ""), "it has none"),
        (("count = 7", "count = 0"), "tasks.count: 0 is not possible: from 1 to 1000000"),
        (("count = 7", "count = true"), "tasks.count: expected a whole number, not true or false"),
        (("[limits]", "[limts]"), "limts: unknown key; did you mean 'limits'?"),
        (('memory = "512MiB"', "memory = 512"), "limits.memory: expected text with a unit, not a whole number"),
        (('memory = "512MiB"', 'memory = "512XB"'), "'512XB' is not a size"),
        (('memory = "512MiB"', 'memory = "1kB"'), "limits.memory: '1kB' is not possible"),
        (('disk = "4MB"', 'disk = "1MB"'), "limits.disk: it is less than `output`"),
        (('idle = "10m"', 'idle = "2h"'), "limits.idle: it has no effect: the task is ended by `wall` before"),
        (('idle = "10m"', 'idle = "1ms"'), "limits.idle: '1ms' is not possible: from 1s to 30d is allowed"),
        (("[limits]", "[limits]\npids = 3"), "limits.pids: it belongs to docker runs"),
        (("[limits]", "[limits]\ngpus = 1"), "limits.gpus: it belongs to docker runs"),
        (('"shared"', '"global"'), "run.checkpoint: 'global' is not possible"),
        (('checkpoint = "shared"', 'workdir = "/x"'), "run.workdir: it belongs to docker runs"),
        (('wall = "1h30m"', 'wall = "90"'), "'90' is not a duration"),
        (('wall = "1h30m"', 'wall = "31d"'), "limits.wall: '31d' is not possible"),
        (('network = "none"', 'network = "host"'), "limits.network: 'host' is not possible"),
        (("cpus = 0.5", "cpus = nan"), "limits.cpus: nan is not possible"),
        (("agree = 3", "agree = 9"), "validate.agree: 9 results cannot agree among at most 6"),
        (('mode = "exact"', 'mode = "exakt"'), "validate.mode: 'exakt' is not possible: did you mean 'exact'?"),
        (('module = "m.wasm"', 'module = "none.wasm"'), "run.module: 'none.wasm' does not exist"),
        (('module = "m.wasm"', 'module = "."'), "run.module: '.' is a folder, not a file"),
        (('module = "m.wasm"', ""), "run.module: a wasm run names a module"),
        (('"data/weights.bin"', '"../weights.bin"'), "cannot be a path below /input"),
        (('"data/weights.bin"', '"/weights.bin"'), "cannot be a path below /input"),
        (('env = { MODE = "x" }', 'env = { NEXAPOD_X = "x" }'), "set for each task by the mesh"),
        (('env = { MODE = "x" }', 'env = { "A=B" = "x" }'), "not the name of an environment variable"),
        (('"1GiB"\nexecutor = "wasm"', '"1GiB"\nexecutor = "docker"'), "requires.executor: [run] says 'wasm'"),
        (('name = "full"', 'name = ""'), "job.name: it is empty"),
        (('name = "full"', ""), "job.name: it is missing"),
        (('name = "full"', 'name = "a\\u001bb"'), "control characters"),
        (('tags = ["a", "b"]', 'tags = ["a", 1]'), "job.tags: every entry must be text"),
        (("priority = -3", "priority = 11"), "job.priority: 11 is not possible: from -10 to 10"),
        (("[run]", "[run"), "it is not valid TOML"),
        (('module = "m.wasm"', 'module = "w.bin"'), "run.module: 'w.bin' is no WebAssembly module"),
        (("[run]", "[run]\nimage_held = true"), "run.image_held: it belongs to docker runs"),
        (('["predict",', '["pre\\rdict",'), "run.command: control characters"),
    ],
)
def test_each_mistake_is_named(folder: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in FULL
    assert said in problems(folder, FULL.replace(*change))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("gpus = 1", ""), "requires.gpu_model: it has no effect: the tasks are given no GPU"),
        (("gpus = 1", "gpus = 0"), "limits.gpu_memory: it has no effect: the tasks are given no GPU"),
        (('"8.0"', '"8"'), "requires.gpu_capability: '8' is no CUDA compute capability: write it like '8.0'"),
        (('"8.0"', "8.0"), "requires.gpu_capability: expected text, not a number"),
    ],
)
def test_each_mistake_about_gpus_is_named(folder: Path, change: tuple[str, str], said: str) -> None:
    assert change[0] in GPU
    assert said in problems(folder, GPU.replace(*change))


def test_all_mistakes_are_told_at_once_in_the_order_of_their_lines(folder: Path) -> None:
    text = FULL.replace("count = 7", "cuont = 7").replace("priority", "prio").replace("agree = 3", "agree = 0")
    lines = problems(folder, text).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["job.prio", "tasks", "tasks.cuont", "validate.agree"]


def test_a_split_target_may_not_hide_an_input(folder: Path) -> None:
    text = SMALL + '[inputs]\n"r" = "w.bin"\n[tasks]\nsplit = "in.txt"\nby = "lines"\nas = "r"'
    assert "tasks.as: 'r' is also one of the [inputs]" in problems(folder, text)


def test_a_file_that_is_no_text_or_not_there_is_an_error(folder: Path) -> None:
    (folder / "bad.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 0"):
        read_job(folder / "bad.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_job(folder / "none.toml")
    (folder / "deep.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_job(folder / "deep.toml")


@given(st.binary(max_size=300))
def test_any_bytes_give_a_plan_or_its_problems(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "job.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_job(path)


def toml(value: Any) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    return str(value) if isinstance(value, float) else json.dumps(value)


TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\x7f"), max_size=5)


@given(
    value=st.recursive(
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXTS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
        max_leaves=12,
    ),
    key=st.sampled_from(
        [
            "job.tags",
            "job.retention",
            "run.env",
            "run.command",
            "inputs",
            "inputs.x",
            "tasks.params",
            "tasks.count",
            "tasks.split",
            "tasks.header",
            "run.workdir",
            "run.checkpoint",
            "limits",
            "limits.disk",
            "limits.idle",
            "limits.pids",
            "requires.gpu_capability",
            "limits.cpus",
            "limits.memory",
            "requires.arch",
            "validate.agree",
        ]
    ),
)
def test_any_value_at_any_key_gives_a_plan_or_its_problems(
    tmp_path_factory: pytest.TempPathFactory, value: Any, key: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "m.wasm").write_bytes(b"\0asm")
    head = 'job.name = "x"\nrun.executor = "wasm"\nrun.module = "m.wasm"\n'
    tasks = "" if key.startswith("tasks") else "tasks.count = 1\n"
    text = f"{head}{tasks}{key} = {toml(value)}\n"
    try:
        plan = read(folder, text)
    except ConfigError as error:
        told = error.problems
        assert all("it is not valid TOML" not in problem.what for problem in told), text
    else:
        JobBody.model_validate(plan.body)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_a_file_has_the_same_name_as_its_bytes(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(bytes(size))
    assert hash_file(tmp_path / "f") == blob_of(bytes(size))
