"""examples/reprof: tables are read strictly and scored right, the job is a good one, layers are reproducible."""

from __future__ import annotations

import importlib.util
import io
import sys
import tarfile
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

from nexapod.cli.jobfile import read_job

EXAMPLE = Path(__file__).parents[2] / "examples" / "reprof"
HEADER = "##General\n# No\t: Residue number\nNo\tAA\tPHEL\tRI_S\n"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reprof_example_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


score, build = load("score"), load("build_image")


def test_a_table_is_scored_against_the_chain_that_it_is_of() -> None:
    chains = [score.Chain("one", "DIR", "LHE"), score.Chain("two", "DI", "HH")]
    tables = {"a": HEADER + "1\tD\tL\t9\n2\tI\tH\t9\n3\tR\tL\t9\n", "b": HEADER + "1\tD\tL\t9\n2\tI\tL\t9\n"}
    scores = score.score_tables(tables, chains)
    assert [(item.name, item.residues, item.right) for item in scores] == [("one", 3, 2), ("two", 2, 0)]
    assert score.overall_q3(scores) == 2 / 5


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("", "header is missing"),
        ("1\tD\tL\t9\n", "header is missing"),
        (HEADER + "2\tD\tL\t9\n", "residue 1: not a row"),
        (HEADER + "1\tD\tX\t9\n", "residue 1: not a row"),
        (HEADER + "1\tD\tL\n", "residue 1: not a row"),
        (HEADER + "1\tW\tL\t9\n", "none of the chains"),
    ],
)
def test_what_is_no_table_of_a_known_chain_is_refused(table: str, said: str) -> None:
    with pytest.raises(score.TableError, match=said):
        score.score_tables({"t": table}, [score.Chain("one", "D", "L")])


def test_the_chains_are_those_of_the_other_example() -> None:
    assert len(score.load_chains()) == 22


def test_the_job_is_a_good_one(tmp_path: Path) -> None:
    (tmp_path / "reprof").mkdir()
    (tmp_path / "reprof" / "reprof.tar").write_bytes(b"made by build_image.py")
    (tmp_path / "reprof" / "job.toml").write_text((EXAMPLE / "job.toml").read_text())
    (tmp_path / "secondary-structure").symlink_to(EXAMPLE.parent / "secondary-structure")
    plan = read_job(tmp_path / "reprof" / "job.toml")
    assert (plan.tasks, plan.archive) == (22, tmp_path / "reprof" / "reprof.tar")


def test_a_layer_has_nothing_of_here_and_now_in_it() -> None:
    def members(mtime: int, order: int) -> list[tuple[tarfile.TarInfo, bytes]]:
        found = []
        for name in ("usr/bin/b", "usr/bin/a")[::order]:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid, info.uname = 1, mtime, mtime, "me"
            found.append((info, b"x"))
        return found

    assert build.layer(members(1, 1)) == build.layer(members(2, -1))
    with tarfile.open(fileobj=io.BytesIO(build.layer(members(1, 1)))) as tar:
        assert [(m.name, m.mtime, m.uid, m.uname) for m in tar] == [("usr/bin/a", 0, 0, ""), ("usr/bin/b", 0, 0, "")]


def test_paths_are_those_of_a_debian_with_merged_usr() -> None:
    assert build.merged(PurePosixPath("lib/x86_64-linux-gnu/libc.so.6")) == "usr/lib/x86_64-linux-gnu/libc.so.6"
    assert build.merged(PurePosixPath("usr/bin/perl")) == "usr/bin/perl"
    assert build.merged(PurePosixPath("library")) == "library"
    assert build.merged(PurePosixPath(".")) == ""
    assert build.is_documentation("usr/share/doc/reprof/README")
    assert not build.is_documentation("usr/share/doc/reprof/copyright")
