"""Collecting what a task left: plain files within limits, and nothing else, whatever the task tries."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from user_kit import as_an_ordinary_user

from nexapod.executor.outputs import DEPTH_MAX, DIRECTORIES_MAX, Left, OutputRefused, collect, measure
from nexapod.protocol.limits import OUTPUT_FILES_MAX, PATH_MAX


def refusal(directory: Path, bytes_max: int = 1000) -> tuple[str, str]:
    with pytest.raises(OutputRefused) as refused:
        collect(directory, bytes_max=bytes_max)
    return refused.value.outcome, refused.value.reason


def test_files_are_named_relative_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "deep.csv").write_bytes(b"12345")
    (tmp_path / "a.txt").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    found = collect(tmp_path, bytes_max=5)
    assert [(file.path, file.size) for file in found] == [("a.txt", 0), ("b/deep.csv", 5)]
    assert found[1].source.read_bytes() == b"12345"


def swapped_folder(directory: Path, elsewhere: Path) -> None:
    (directory / "d").rename(directory / "kept")
    (directory / "d").symlink_to(elsewhere)


def swapped_file(directory: Path, elsewhere: Path) -> None:
    (directory / "d" / "f").unlink()
    (directory / "d" / "f").symlink_to(elsewhere / "f")


def piped(directory: Path, elsewhere: Path) -> None:
    (directory / "d" / "f").unlink()
    os.mkfifo(directory / "d" / "f")


def gone(directory: Path, elsewhere: Path) -> None:
    (directory / "d" / "f").unlink()


def replaced(directory: Path, elsewhere: Path) -> None:
    (directory / "d" / "f").unlink()
    (directory / "d" / "f").mkdir()


@pytest.mark.parametrize("change", [swapped_folder, swapped_file, piped, gone, replaced])
def test_a_task_that_goes_on_cannot_have_another_file_opened(
    tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "f").write_bytes(b"secret")
    directory = tmp_path / "output"
    (directory / "d").mkdir(parents=True)
    (directory / "d" / "f").write_bytes(b"plain.")
    [found] = collect(directory, bytes_max=6)
    fd = found.open()
    assert os.read(fd, 9) == b"plain."
    os.close(fd)
    open_before = len(os.listdir("/proc/self/fd"))
    change(directory, elsewhere)
    with pytest.raises(OSError, match=r"."):
        found.open()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_file_that_was_written_anew_is_another(tmp_path: Path) -> None:
    """Also when a program gives it back its size and the time that it can set."""
    (tmp_path / "f").write_bytes(b"one")
    before = collect(tmp_path, bytes_max=3)
    assert collect(tmp_path, bytes_max=3) == before
    info = (tmp_path / "f").stat()
    time.sleep(0.02)  # a pause: longer than a tick of the clock that dates files
    (tmp_path / "f").write_bytes(b"two")
    os.utime(tmp_path / "f", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert collect(tmp_path, bytes_max=3) != before


def test_an_empty_directory_is_no_output(tmp_path: Path) -> None:
    assert collect(tmp_path, bytes_max=0) == []


def test_one_byte_too_much_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 500)
    (tmp_path / "b").write_bytes(b"x" * 501)
    assert len(collect(tmp_path, bytes_max=1001)) == 2
    assert refusal(tmp_path) == ("output-limit", "more than 1000 bytes of output")
    with pytest.raises(OutputRefused, match="more than 1000 bytes"):
        measure(tmp_path, bytes_max=1000)


def test_a_sparse_file_counts_as_long_as_it_says(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    assert refusal(tmp_path)[0] == "output-limit"


def test_one_file_too_many_is_refused(tmp_path: Path) -> None:
    for index in range(OUTPUT_FILES_MAX):
        (tmp_path / str(index)).touch()
    assert len(collect(tmp_path, bytes_max=0)) == OUTPUT_FILES_MAX
    (tmp_path / "more").touch()
    assert refusal(tmp_path) == ("output-limit", f"more than {OUTPUT_FILES_MAX} output files")


def test_links_are_refused_and_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"x" * 5000)
    for target in (secret / "key", secret, Path("/nowhere"), Path("link")):
        output = tmp_path / f"output-{target.name}"
        output.mkdir()
        (output / "link").symlink_to(target)
        assert refusal(output) == ("failed", "output link is a symbolic link")
        measure(output, bytes_max=1000)  # while running, a link costs nothing


def test_pipes_and_sockets_are_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path) == ("failed", "output pipe is no regular file")
    os.unlink(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(tmp_path)
        try:
            listener.bind("s")
        finally:
            os.chdir(here)
    assert refusal(tmp_path) == ("failed", "output s is no regular file")


@pytest.mark.parametrize("name", [b"new\nline", b"tab\t", b"back\\slash", b"\xff\xfe", b"\x1b[2J", "‮txt".encode()])
def test_names_that_the_protocol_cannot_spell_are_refused(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).touch()
    outcome, reason = refusal(tmp_path)
    assert outcome == "failed"
    assert "\x1b" not in reason
    assert "\n" not in reason


def test_a_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 200) / ("b" * (PATH_MAX - 200))
    deep.parent.mkdir()
    deep.touch()
    assert refusal(tmp_path)[0] == "failed"


def test_depth_and_directories_are_bounded(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    (deep / "/".join(["d"] * DEPTH_MAX)).mkdir(parents=True)
    assert collect(deep, bytes_max=0) == []
    (deep / "/".join(["d"] * (DEPTH_MAX + 1))).mkdir()
    assert refusal(deep)[0] == "output-limit"
    wide = tmp_path / "wide"
    for index in range(DIRECTORIES_MAX):
        (wide / str(index)).mkdir(parents=True)
    assert refusal(wide)[0] == "output-limit"


def test_what_is_there_is_measured(tmp_path: Path) -> None:
    assert measure(tmp_path, bytes_max=0) == Left()
    (tmp_path / "deep").mkdir()
    for name, size, mtime_ns in (("a", 3, 5_000), ("deep/b", 4, 9_000), ("c", 0, 7_000)):
        (tmp_path / name).write_bytes(b"x" * size)
        os.utime(tmp_path / name, ns=(0, mtime_ns))
    assert measure(tmp_path, bytes_max=7) == Left(size=7, files=3, newest_ns=9_000)


def test_a_missing_output_directory_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        collect(tmp_path / "none", bytes_max=0)


@given(st.binary(min_size=1, max_size=60).filter(lambda name: b"/" not in name and b"\0" not in name))
def test_any_name_is_collected_or_refused(name: bytes) -> None:
    if name in (b".", b".."):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / os.fsdecode(name)
        path.touch()
        try:
            found = [file.source for file in collect(Path(folder), bytes_max=0)]
        except OutputRefused as refused:
            found = [Path(refused.outcome)]
        assert found in ([path], [Path("failed")])


def test_a_directory_that_the_task_has_closed_to_us_is_its_own_failure(tmp_path: Path) -> None:
    """As an ordinary user; root reads it all the same."""

    def look() -> None:
        Path("output").mkdir(mode=0)
        with pytest.raises(OutputRefused, match="cannot be read") as refused:
            measure(Path("output"), bytes_max=1)
        assert refused.value.outcome == "failed"

    as_an_ordinary_user(tmp_path, look)
