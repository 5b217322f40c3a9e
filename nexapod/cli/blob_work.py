"""What `nexapod blob ...` does: moves files, folders and archives to the daemon and back, and shows what it holds."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import IO, Any, Final

from nexapod.blobs import trees
from nexapod.blobs.errors import BlobError
from nexapod.cli.client import Client
from nexapod.cli.collecting import BlobHash
from nexapod.cli.console import byte_progress, facts, note, print_json, say, table
from nexapod.cli.errors import FAILED, OK, BadResult, DiskTrouble, FileChanged, NothingThere, Refused
from nexapod.cli.quantities import show_duration, show_size
from nexapod.cli.safe import safe
from nexapod.protocol.primitives import BlobRef

VERIFY_S: Final = 3600.0
LIST_PAGE: Final = 1_000
FETCH_WAIT_S: Final = 20
"""The daemon looks for a blob for so long at a time."""
LOOK_AGAIN_S: Final = 1.0


class NotPut(Refused):
    """Correct what is named above and try again. Nothing was kept of it but files that went before, which will go."""


class NotWritten(Refused):
    """Choose another place with -o."""


class NobodyHasIt(NothingThere):
    """A peer that has it must be online. `nexapod peers` lists those that are known; try again later."""


def put(client: Client, path: Path, *, unpack: bool, pin: bool, as_json: bool) -> None:
    """Store a file, or a tree of a folder or an archive."""
    entries: list[trees.Entry] = []
    with _told(path):
        folder = _is_folder(path)
        if folder and unpack:
            raise NotPut(f"{safe(path)} is a folder, not an archive: leave out --unpack")
        if folder or unpack:

            def put_file(source: IO[bytes], size: int) -> BlobRef:
                return client.upload(source, size, lambda count: None)

            entries = (trees.from_archive if unpack else trees.from_folder)(path, put_file)
            manifest = trees.encode(entries)
            ref = client.upload(io.BytesIO(manifest), len(manifest), lambda count: None)
        else:
            ref = _put_file(client, path, quiet=as_json)
    if pin:
        for each in [*(entry.blob for entry in entries), ref]:
            client.post(f"/v1/blobs/{each}/pin")
    if as_json:
        size = sum(entry.blob.size for entry in entries) if entries else ref.size
        print_json({"ref": str(ref), "tree": folder or unpack, "files": len(entries), "bytes": size, "pinned": pin})
    else:
        say(str(ref))


def _is_folder(path: Path) -> bool:
    """Raises NotPut for what is neither a folder nor a file: a pipe or a device has no size. Raises OSError."""
    mode = path.stat().st_mode
    if not (S_ISDIR(mode) or S_ISREG(mode)):
        raise NotPut(f"{safe(path)} is neither a folder nor a regular file: write what comes from it into a file first")
    return S_ISDIR(mode)


def _put_file(client: Client, path: Path, *, quiet: bool) -> BlobRef:
    with path.open("rb") as source:
        size = os.fstat(source.fileno()).st_size
        with byte_progress(path.name, size, quiet=quiet) as told:
            ref = client.upload(source, size, told)
        if ref.size != size or source.read(1):
            raise FileChanged(f"{safe(path)} changed while it was being read")
        return ref


def get(client: Client, name: str, output: Path, *, raw: bool, wait_s: int, as_json: bool) -> None:
    """Write a blob, or the files of a tree; fetched from the mesh where it is not here."""
    ref = _ref(name)
    if os.path.lexists(output):
        raise NotWritten(f"{safe(output)}: something is there already")
    if not os.path.isdir(output.parent):
        raise NotWritten(f"{safe(output.parent)}: there is no such folder")
    _bring(client, ref, wait_s)
    start = next(client.download(ref, 0), b"") if ref.size <= trees.MANIFEST_BYTES_MAX and not raw else b""
    entries: list[trees.Entry] | None = None
    with _told(output, below=False):
        if trees.is_tree(start):
            entries = trees.decode(b"".join(_checked(client, ref)))
            for entry in entries:
                _bring(client, entry.blob, wait_s)
            write = trees.to_tar if output.suffix == ".tar" else trees.to_folder
            write(entries, lambda blob: _checked(client, blob), output)
        else:
            _write_file(client, ref, output, quiet=as_json)
    if as_json:
        files = len(entries) if entries is not None else 1
        print_json({"ref": str(ref), "tree": entries is not None, "files": files, "output": str(output)})
    else:
        note(f"{safe(output)}: {'one file' if entries is None else f'{len(entries)} files'}")


def _write_file(client: Client, ref: BlobRef, output: Path, *, quiet: bool) -> None:
    part = output.with_name(f".{output.name[:100]}.nexapod-part")
    try:
        with part.open("wb") as file, byte_progress(output.name, ref.size, quiet=quiet) as told:
            for piece in _checked(client, ref):
                file.write(piece)
                told(len(piece))
        os.link(part, output)
    except FileExistsError:
        raise NotWritten(f"{safe(output)}: something is there already") from None
    finally:
        part.unlink(missing_ok=True)


def _checked(client: Client, ref: BlobRef) -> Iterator[bytes]:
    """The bytes of a blob; wrong ones end in an error, at the latest behind the last of them."""
    found = BlobHash()
    for piece in client.download(ref, 0):
        found.add(piece)
        yield piece
    if found.ref != ref:
        raise BadResult(f"the daemon sent other bytes than those of {ref}", "`nexapod blob verify` checks its copy.")


def _bring(client: Client, ref: BlobRef, wait_s: int) -> None:
    """Wait until a blob is here, for as long as something of it arrives: a peer that has it may come, or come back."""
    here, since = 0, time.monotonic()
    while not client.has_blob(ref):
        refusal = _look_for(client, ref, wait_s)
        if (found := _chunks_here(client, ref)) > here:
            here, since = found, time.monotonic()
            continue
        left_s = since + wait_s - time.monotonic()
        if left_s <= 0:
            raise NobodyHasIt(
                refusal or f"nothing more of {ref} arrived: {here} of {ref.chunks} chunks are here, and stay"
            )
        if refusal:
            time.sleep(min(LOOK_AGAIN_S, left_s))


def _look_for(client: Client, ref: BlobRef, wait_s: int) -> str:
    """Have the mesh asked once; why nobody gave it, or nothing when it came or was still on its way."""
    try:
        client.post(f"/v1/blobs/{ref}/fetch?wait_s={min(wait_s, FETCH_WAIT_S)}")
    except NothingThere as error:
        return error.facts
    return ""


def _chunks_here(client: Client, ref: BlobRef) -> int:
    try:
        return int(client.get(f"/v1/blobs/{ref}/stat")["chunks_here"])
    except NothingThere:
        return 0


def pin(client: Client, name: str, *, as_json: bool) -> None:
    """Pin a blob; of a tree its files first, so that a pinned tree is whole."""
    ref = _ref(name)
    for each in _with_files(client, ref):
        found = client.post(f"/v1/blobs/{each}/pin")
    _show(found, as_json=as_json)


def unpin(client: Client, name: str, *, as_json: bool) -> None:
    """Unpin a blob; of a tree its files too."""
    ref = _ref(name)
    found: dict[str, Any] = {}
    for each in _with_files(client, ref):
        found = client.post(f"/v1/blobs/{each}/unpin")
    if as_json:
        print_json(found)
    else:
        say("unpinned" if found["was_pinned"] else "it was not pinned")


def _with_files(client: Client, ref: BlobRef) -> list[BlobRef]:
    """The blobs of a tree's files, then the blob itself."""
    if ref.size > trees.MANIFEST_BYTES_MAX or not client.has_blob(ref):
        return [ref]
    if not trees.is_tree(next(client.download(ref, 0), b"")):
        return [ref]
    with _told(Path(str(ref))):
        entries = trees.decode(b"".join(_checked(client, ref)))
    return [*dict.fromkeys(entry.blob for entry in entries), ref]


def stat(client: Client, name: str, *, as_json: bool) -> None:
    """Show one blob."""
    _show(client.get(f"/v1/blobs/{_ref(name)}/stat"), as_json=as_json)


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    facts(
        [
            ("blob", found["ref"]),
            ("size", show_size(int(found["size"]))),
            ("chunks here", f"{found['chunks_here']} of {found['chunks']}"),
            ("kept", _why_kept(found)),
            ("last used", f"{_ago(found)} ago"),
        ]
    )


def verify(client: Client, names: list[str], *, every: bool, as_json: bool) -> int:
    """Check blobs. Returns the exit status: 1 when one was damaged."""
    refs = [_ref(name) for name in names]
    if every:
        refs = [BlobRef.parse(str(row["ref"])) for row in _all(client) if row["whole"]]
    found = []
    for ref in refs:
        found.append(client.post(f"/v1/blobs/{ref}/verify", timeout_s=VERIFY_S))
        if not as_json and not found[-1]["sound"]:
            say(f"damaged: {ref} ({found[-1]['damaged_chunks']} of {ref.chunks} chunks, set aside)")
    damaged = sum(1 for each in found if not each["sound"])
    if as_json:
        print_json({"checked": len(found), "damaged": damaged, "blobs": found})
    else:
        say(f"{len(found)} checked, {damaged} damaged")
    return FAILED if damaged else OK


def show_list(client: Client, *, as_json: bool) -> None:
    """List all blobs that are here."""
    rows = list(_all(client))
    if as_json:
        print_json(rows)
        return
    shown = [
        (row["ref"], show_size(int(row["size"])), f"{row['chunks_here']}/{row['chunks']}", _why_kept(row), _ago(row))
        for row in rows
    ]
    table(("blob", "size", "chunks", "kept", "used ago"), shown, right=(1, 2))


def _all(client: Client) -> Iterator[dict[str, Any]]:
    first = 0
    while page := client.get(f"/v1/blobs?first={first}&count={LIST_PAGE}"):
        yield from page
        first += len(page)


def _why_kept(row: dict[str, Any]) -> str:
    reasons = [word for word, true in (("pinned", row["pinned"]), ("needed by a job", row["held"])) if true]
    return ", ".join(reasons) or "while there is room"


def _ago(row: dict[str, Any]) -> str:
    return show_duration(max(0, int(time.time() * 1000) - int(row["used"])))


def _ref(name: str) -> BlobRef:
    try:
        return BlobRef.parse(name)
    except ValueError:
        what = "is not the name of a blob: that is 64 hexadecimal digits, ':' and its size in bytes"
        raise Refused(f"{safe(name)!r} {what}", "`nexapod blob list` shows those that are here.") from None


@contextmanager
def _told(path: Path, *, below: bool = True) -> Iterator[None]:
    """Failures of files and trees, in a person's words. `below`: name the very file, where that is the user's."""
    try:
        yield
    except trees.TreeRefused as error:
        raise NotPut(safe(error)) from None
    except BlobError as error:
        raise DiskTrouble(safe(error)) from None
    except OSError as error:
        place = safe((below and error.filename) or path)
        if isinstance(error, FileNotFoundError):
            raise NotPut(f"{place}: no such file or folder") from None
        raise DiskTrouble(f"{place}: {error.strerror or safe(error)}") from None
