"""`nexapod results`: every accepted output into a folder, checked byte by byte, and continued where it was.

    DIR/<task>/<path>      an output file; <task> is the record's name where the job splits a FASTA file, else the index
    DIR/<job>.cert         the certificate, once the job is settled: `nexapod verify` checks it and the files
    DIR/nexapod.json       which folder is which task's

A worker chose the names of the files: none leads out of its task's folder, through a link or otherwise.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nexapod.cli.client import Client
from nexapod.cli.console import byte_progress, note, print_json, say
from nexapod.cli.errors import FAILED, OK, BadResult, CliError, DiskTrouble, UnsafePath
from nexapod.cli.safe import is_plain_name, is_plain_path, safe
from nexapod.cli.splitting import pieces
from nexapod.protocol.limits import CHUNK_BYTES
from nexapod.protocol.primitives import BlobRef, blob_root

MANIFEST: Final = "nexapod.json"
PART: Final = ".nexapod-part"
_INDEXED = re.compile(r"[0-9]+(-|\Z)")
READ_BYTES: Final = 1 << 20
HEAD_BYTES: Final = 256
NAMED_SPLIT_MAX: Final = 256 << 20
"""A split file larger than this is not fetched for its records' names: tasks are folders by index."""


class BlobHash:
    """Names bytes as they pass (see types.BlobRef)."""

    def __init__(self) -> None:
        self.size = 0
        self._chunk = hashlib.sha256()
        self._digests: list[bytes] = []

    def add(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            room = CHUNK_BYTES - self.size % CHUNK_BYTES
            self._chunk.update(view[:room])
            self.size += len(view[:room])
            if self.size % CHUNK_BYTES == 0:
                self._digests.append(self._chunk.digest())
                self._chunk = hashlib.sha256()
            view = view[room:]

    @property
    def ref(self) -> BlobRef:
        digests = list(self._digests)
        if self.size % CHUNK_BYTES or not digests:
            digests.append(self._chunk.digest())
        return BlobRef(blob_root(digests), self.size)


def hash_of(path: Path) -> BlobHash:
    """The hash of a file on disk. Raises OSError."""
    found = BlobHash()
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            found.add(data)
    return found


@dataclass
class Tally:
    """What came of it."""

    accepted: int = 0
    failed: int = 0
    written: int = 0
    kept: int = 0
    """Files that were here before, with the right bytes."""
    awaited: int = 0
    """Files that have not come to the daemon yet."""
    problems: list[str] = field(default_factory=list)


def collect(client: Client, job: str, folder: Path, *, as_json: bool) -> int:
    """Returns the exit status: 1 when the job is not settled, has failed tasks, or a file could not be kept."""
    view = client.get(f"/v1/jobs/{job}?count=0")
    job_id = str(view["job_id"])
    names = task_names(client, job_id, int(view["tasks"]))
    tally = Tally()
    folders: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = f"/v1/jobs/{job_id}/results"
        for result in client.pages(path, lambda answer: list(answer["tasks"]), int(view["tasks"])):
            index = int(result["index"])
            folders[str(index)] = names.get(index, str(index))
            _take(client, result, folder / folders[str(index)], tally, quiet=as_json)
        _write_atomically(folder / MANIFEST, [_manifest(job_id, folders)])
        certificate = _certificate(client, view, folder)
    except OSError as error:
        raise DiskTrouble(f"{safe(error.filename or folder)}: {error.strerror}") from None
    _report(view, folder, tally, certificate, as_json=as_json)
    good = view["state"] == "settled" and not tally.failed and not tally.problems
    return OK if good else FAILED


def _manifest(job_id: str, folders: dict[str, str]) -> bytes:
    return (json.dumps({"job_id": job_id, "tasks": folders}, indent=1) + "\n").encode("ascii")


def _certificate(client: Client, view: dict[str, Any], folder: Path) -> Path | None:
    if view["state"] != "settled":
        return None
    path = folder / f"{view['job_id'][:12]}.cert"
    _write_atomically(path, client.stream(f"/v1/jobs/{view['job_id']}/certificate"))
    return path


def _take(client: Client, result: dict[str, Any], folder: Path, tally: Tally, *, quiet: bool) -> None:
    if result["outcome"] != "accepted":
        tally.failed += 1
        return
    tally.accepted += 1
    for file in result["files"]:
        if not file["here"]:
            tally.awaited += 1
            continue
        try:
            if fetch(client, BlobRef.parse(str(file["ref"])), folder, str(file["path"]), quiet=quiet):
                tally.written += 1
            else:
                tally.kept += 1
        except (UnsafePath, BadResult) as error:
            tally.problems.append(error.facts)
        except ValueError:
            tally.problems.append(f"task {result['index']}: the daemon's name for a file's bytes is not one")


def fetch(client: Client, ref: BlobRef, folder: Path, path: str, *, quiet: bool) -> bool:
    """One output file into its task's folder. False when it was there. Raises UnsafePath, BadResult, OSError."""
    target = _target(folder, path)
    if _is_here(target, ref):
        return False
    part = target.with_name(target.name + PART)
    found = hash_of(part) if part.is_file() and not part.is_symlink() else BlobHash()
    if found.size > ref.size:
        found = BlobHash()
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (0 if found.size else os.O_TRUNC)
    with os.fdopen(os.open(part, flags, 0o644), "wb") as file:
        file.seek(found.size)
        with byte_progress(path, ref.size - found.size, quiet=quiet) as told:
            for data in client.download(ref, found.size):
                found.add(data)
                file.write(data)
                told(len(data))
        file.flush()
        os.fsync(file.fileno())
    if found.ref != ref:
        if found.size >= ref.size:
            part.unlink()
        raise BadResult(f"{safe(path)}: {found.size} of {ref.size} bytes came, and they are not the accepted ones")
    os.replace(part, target)
    return True


def _target(folder: Path, path: str) -> Path:
    """Where an output file goes, its folders made. Raises UnsafePath, OSError."""
    if not is_plain_path(path):
        raise UnsafePath(f"an output file has an unsafe name: {safe(path)}")
    folder.mkdir(exist_ok=True)
    inside = folder
    for part in Path(path).parts[:-1]:
        inside /= part
        if inside.is_symlink():
            raise UnsafePath(f"{safe(inside)} is a link: nothing is written through it")
        inside.mkdir(exist_ok=True)
    target = folder / path
    if folder.is_symlink() or target.is_symlink() or target.is_dir():
        raise UnsafePath(f"{safe(target)} is a link or a folder: nothing is written there")
    return target


def _is_here(target: Path, ref: BlobRef) -> bool:
    return target.is_file() and target.stat().st_size == ref.size and hash_of(target).ref == ref


def _write_atomically(path: Path, pieces: Iterable[bytes]) -> None:
    part = path.with_name(path.name + PART)
    with part.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _report(view: dict[str, Any], folder: Path, tally: Tally, certificate: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "job_id": view["job_id"],
                "state": view["state"],
                "folder": str(folder),
                "accepted": tally.accepted,
                "failed": tally.failed,
                "files_written": tally.written,
                "files_kept": tally.kept,
                "files_awaited": tally.awaited,
                "certificate": str(certificate) if certificate else None,
                "problems": tally.problems,
            }
        )
        return
    kept = f", {tally.kept} were here already" if tally.kept else ""
    say(f"{tally.accepted} of {view['tasks']} tasks accepted, {tally.failed} failed")
    say(f"{tally.written} {'file' if tally.written == 1 else 'files'} written to {safe(folder)}{kept}")
    if tally.awaited:
        note(f"{tally.awaited} accepted {'file is' if tally.awaited == 1 else 'files are'} still on the way here")
    if tally.failed or (view["failing"] is not None and not tally.accepted):
        note(f"what went wrong: nexapod why {safe(view['job_id'][:12])}")
    for problem in tally.problems:
        note(f"not kept: {safe(problem)}")
    if certificate:
        say(f"certificate: {safe(certificate)}")
        say(f"whoever has this folder checks it: nexapod verify {safe(folder)} --submitter {safe(view['submitter'])}")
    elif view["state"] == "cancelled":
        note("the job was cancelled: what is not accepted by now will not be")
    else:
        note(f"the job is {safe(view['state'])}: run this again later, it continues")


# --- names of tasks ------------------------------------------------------------------------------------------------
def task_names(client: Client, job: str, tasks: int) -> dict[int, str]:
    """A folder name for each task of a job that splits a FASTA file; empty for any other, or when it is not here."""
    split = client.get(f"/v1/jobs/{job}/spec")["split"]
    if split is None:
        return {}
    try:
        data, index = BlobRef.parse(str(split["ref"])), BlobRef.parse(str(split["index"]))
        if data.size > NAMED_SPLIT_MAX or not client.has_blob(data) or not client.has_blob(index):
            return {}
        cuts = pieces(b"".join(client.download(index, 0)))[:tasks]
        heads = heads_of(client.download(data, 0), cuts)
    except (ValueError, CliError) as error:
        note(f"tasks are named by their index: {safe(error)}")
        return {}
    return names_of(heads)


def heads_of(stream: Iterable[bytes], cuts: list[tuple[int, int]]) -> list[bytes]:
    """How each piece begins, taken from a file as it passes. Raises ValueError when they are in no order."""
    heads: list[bytes] = []
    held, at = b"", 0
    for data in stream:
        held += data
        while len(heads) < len(cuts):
            offset, length = cuts[len(heads)]
            if offset < at:
                raise ValueError("the pieces of the file are in no order")
            end = offset + min(length, HEAD_BYTES)
            if end > at + len(held):
                break
            heads.append(held[offset - at : end - at])
        # What no later piece begins in is let go.
        passed = min(len(held), max(0, cuts[len(heads)][0] - at)) if len(heads) < len(cuts) else len(held)
        held, at = held[passed:], at + passed
    return heads


def names_of(heads: list[bytes]) -> dict[int, str]:
    """Names from the FASTA headers of pieces; the same for the same file. Empty unless each piece begins with one."""
    if not all(head.startswith(b">") for head in heads):
        return {}
    return dict(enumerate(_unique(_first_word(head) for head in heads)))


def _first_word(head: bytes) -> str:
    words = head[1:].split(b"\n", 1)[0].split()
    return words[0].decode("utf-8", "replace") if words else ""


def _unique(words: Iterator[str]) -> Iterator[str]:
    """Folder names, no two alike on any file system.

    Records that share a name get their index before it. So does a name that begins as such a one, or is a number, as
    that could be another task's; and what cannot be a folder's name is left out for the index alone.
    """
    listed = list(words)
    count = Counter(word.lower() for word in listed)
    for index, word in enumerate(listed):
        if is_plain_name(word) and count[word.lower()] == 1 and not _INDEXED.match(word):
            yield word
        elif word and is_plain_name(f"{index}-{word}"):
            yield f"{index}-{word}"
        else:
            yield str(index)
