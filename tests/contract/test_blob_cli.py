"""`nexapod blob ...` against the real API and the daemon's own blob service, over a unix socket."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from api_fake import served_in_thread
from test_api_cli import Cli
from test_api_cli import logs as logs
from test_blob_contract import Real

from nexapod.protocol.primitives import BlobRef, blob_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command: its status, output and messages."""
    command = Cli(home, capsys, monkeypatch)
    return lambda *args: (command(*args), command.out, command.err)


@pytest.fixture
def backend(home: Path) -> Iterator[Real]:
    real = Real(home)
    with served_in_thread(real, home / "api.sock"):
        yield real


def make_folder(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"alpha")
    (folder / "sub/run").write_bytes(os.urandom(2_000_000))
    (folder / "sub/run").chmod(0o755)
    return folder


def same(one: Path, other: Path) -> bool:
    return {p.relative_to(one): p.read_bytes() for p in one.rglob("*") if p.is_file()} == {
        p.relative_to(other): p.read_bytes() for p in other.rglob("*") if p.is_file()
    }


def test_a_file_goes_in_and_comes_out(backend: Real, cli: Run, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "in").write_bytes(data)
    status, out, _ = cli("blob", "put", tmp_path / "in")
    ref = blob_of(data)
    assert (status, out.strip()) == (0, str(ref))
    assert cli("blob", "get", ref, "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == data
    status, _, err = cli("blob", "get", ref, "-o", tmp_path / "out")
    assert status == 5
    assert "there already" in err
    assert json.loads(cli("blob", "put", tmp_path / "in", "--json")[1])["ref"] == str(ref)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "in", "out"]


def test_a_folder_and_an_archive_of_it_are_one_tree(backend: Real, cli: Run, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "folder")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(folder, ".")
    told = json.loads(cli("blob", "put", folder, "--pin", "--json")[1])
    assert (told["tree"], told["files"], told["bytes"], told["pinned"]) == (True, 2, 2_000_005, True)
    assert cli("blob", "put", tmp_path / "a.tar.gz", "--unpack")[1].strip() == told["ref"]
    assert len(backend.store.pinned()) == 3
    assert cli("blob", "get", told["ref"], "-o", tmp_path / "back")[0] == 0
    assert same(folder, tmp_path / "back")
    assert os.access(tmp_path / "back/sub/run", os.X_OK)
    assert cli("blob", "get", told["ref"], "-o", tmp_path / "back.tar")[0] == 0
    assert cli("blob", "put", tmp_path / "back.tar", "--unpack")[1].strip() == told["ref"]
    assert cli("blob", "get", told["ref"], "--raw", "-o", tmp_path / "raw")[0] == 0
    assert blob_of((tmp_path / "raw").read_bytes()) == BlobRef.parse(told["ref"])
    assert cli("blob", "unpin", told["ref"])[:2] == (0, "unpinned\n")
    assert backend.store.pinned() == frozenset()


def test_what_is_not_here_is_fetched(backend: Real, cli: Run, tmp_path: Path) -> None:
    ref = blob_of(b"far away")
    status, _, err = cli("blob", "get", ref, "-o", tmp_path / "out", "--wait", 1)
    assert status == 4
    assert "no peer to ask" in err
    assert not (tmp_path / "out").exists()
    backend.elsewhere[ref] = b"far away"
    assert cli("blob", "get", ref, "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == b"far away"


def test_a_blob_that_nobody_has_yet_is_waited_for(backend: Real, cli: Run, tmp_path: Path) -> None:
    ref = blob_of(b"comes later")
    tries = 0

    async def from_elsewhere(wanted: BlobRef) -> None:
        nonlocal tries
        tries += 1
        if tries > 1:
            backend.elsewhere[ref] = b"comes later"
        await backend._from_elsewhere(wanted)

    backend._fetch = from_elsewhere
    assert cli("blob", "get", ref, "-o", tmp_path / "out")[0] == 0
    assert (tmp_path / "out").read_bytes() == b"comes later"
    assert tries == 2
    status, _, err = cli("blob", "get", blob_of(b"never"), "-o", tmp_path / "never", "--wait", 0)
    assert status == 4
    assert "no peer to ask" in err
    assert tries == 3


def test_pins_stats_and_lists_are_shown_to_people_and_programs(backend: Real, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    ref = cli("blob", "put", tmp_path / "in")[1].strip()
    assert "while there is room" in cli("blob", "stat", ref)[1]
    assert "pinned" in cli("blob", "pin", ref)[1]
    assert json.loads(cli("blob", "stat", ref, "--json")[1])["pinned"] is True
    [row] = json.loads(cli("blob", "list", "--json")[1])
    assert row["ref"] == ref
    assert ref in cli("blob", "list")[1]
    assert json.loads(cli("blob", "unpin", ref, "--json")[1]) == {"ref": ref, "was_pinned": True}
    assert "was not pinned" in cli("blob", "unpin", ref)[1]
    for command in ("pin", "stat"):
        assert cli("blob", command, blob_of(b"absent"))[0] == 4
        status, _, err = cli("blob", command, "rubbish")
        assert status == 5
        assert "'rubbish' is not the name of a blob: that is 64 hexadecimal digits" in err


def test_damage_is_found_and_the_status_says_so(backend: Real, cli: Run, tmp_path: Path) -> None:
    refs = []
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        refs.append(BlobRef.parse(cli("blob", "put", tmp_path / name)[1].strip()))
    assert cli("blob", "verify", "--all")[:2] == (0, "2 checked, 0 damaged\n")
    backend.damage(refs[1])
    status, out, _ = cli("blob", "verify", *refs)
    assert status == 1
    assert f"damaged: {refs[1]}" in out
    told = json.loads(cli("blob", "verify", "--all", "--json")[1])
    assert (told["checked"], told["damaged"]) == (1, 0)
    status, _, err = cli("blob", "verify")
    assert (status, "--all" in err) == (2, True)


def test_what_cannot_be_put_is_said_and_nothing_is_kept(backend: Real, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/link").symlink_to("/etc/passwd")
    (tmp_path / "no archive").write_text("text")
    for arguments in ([tmp_path / "absent"], [tmp_path / "folder"], [tmp_path / "no archive", "--unpack"]):
        status, _, err = cli("blob", "put", *arguments)
        assert status == 5, err
        assert str(arguments[0]) in err
    assert backend.store.bytes_here == 0


def test_what_is_no_file_or_archive_is_said_and_what_to_do(backend: Real, cli: Run, tmp_path: Path) -> None:
    make_folder(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    for arguments, said in (
        ([tmp_path / "folder", "--unpack"], "leave out --unpack"),
        ([tmp_path / "pipe"], "neither a folder nor a regular file"),
        (["/dev/zero"], "neither a folder nor a regular file"),
        (["/dev/zero", "--unpack"], "neither a folder nor a regular file"),
    ):
        status, _, err = cli("blob", "put", *arguments)
        assert (status, said in err) == (5, True), err


def test_a_place_that_cannot_be_written_is_named_as_it_was(backend: Real, cli: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"data")
    ref = cli("blob", "put", tmp_path / "in")[1].strip()
    status, _, err = cli("blob", "get", ref, "-o", tmp_path / "nowhere/out")
    assert (status, f"{tmp_path}/nowhere: there is no such folder" in err) == (5, True), err
    status, _, err = cli("blob", "get", ref, "-o", "/proc/out")
    assert status in (1, 5)
    assert "/proc/out: " in err
    assert "nexapod-part" not in err


def test_an_archive_that_was_cut_off_is_not_put(backend: Real, cli: Run, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("empty"))
        archive.addfile(tarfile.TarInfo("lost"))
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:700])
    status, out, err = cli("blob", "put", tmp_path / "a.tar", "--unpack")
    assert (status, out) == (5, "")
    assert "the archive is cut off" in err
