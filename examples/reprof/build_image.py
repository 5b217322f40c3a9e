#!/usr/bin/env python3
"""Makes the container image of Debian's reprof from Debian's packages: no registry, no engine, no root.

    python build_image.py                      writes reprof.tar, prints the image's content id

Needs a Debian machine: `apt-get` chooses the packages and fetches them (checked against the archive's signatures), and
`dpkg-deb` opens them. Nothing is installed, and the packages' own scripts are not run. Two layers: Perl, and reprof
with its models. Members are sorted, owned by root and dated 1970, so that the same package versions give the same
content id.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
TAG = "nexapod-example/reprof:1"
WANTED = ("perl-base", "reprof")
OWN_LAYER = ("reprof", "librg-reprof-bundle-perl")
NOT_NEEDED = ("dpkg", "tar")
"""What packages depend on to be installed, not to run."""
MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
"""Links into /usr, as on every Debian of today."""
LEFT_OUT = ("usr/share/man/", "usr/share/locale/", "usr/share/lintian/", "usr/share/bug/", "usr/share/gdb/")
FOLDERS = ("dev", "etc", "input", "output", "checkpoint", "proc", "run", "sys", "tmp", *(f"usr/{d}" for d in MERGED))
APT_WAIT_S = 600


class ImageError(Exception):
    """The image could not be made. The message says why and what to do."""


Member = tuple[tarfile.TarInfo, bytes]


def fetch(folder: Path) -> list[Path]:
    """The packages that reprof needs on a machine with nothing on it, as apt chooses them. Raises ImageError."""
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ImageError("apt-get and dpkg-deb are needed: run this on Debian, and give the archive to other machines")
    for part in ("archives/partial", "lists"):
        (folder / part).mkdir(parents=True)
    (folder / "status").touch()
    for readable in (folder, folder / "archives", folder / "archives" / "partial"):
        readable.chmod(0o777)  # when run by root, apt downloads as a user of its own
    options = [
        f"-oDir::State::status={folder}/status",
        f"-oDir::Cache::archives={folder}/archives",
        "-oDebug::NoLocking=1",
        "-oAPT::Install-Recommends=0",
    ]
    command = ["apt-get", "-qq", "-y", "--download-only", *options, "install", *WANTED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=APT_WAIT_S, check=False)
    packages = sorted((folder / "archives").glob("*.deb"))
    if ended.returncode or not packages:
        raise ImageError(
            f"apt-get cannot fetch the packages ({ended.stderr.strip()[-300:]}); try `apt-get update` first"
        )
    return packages


def members(package: Path) -> Iterator[Member]:
    """What a package installs, each at its place on a Debian with /usr merged."""
    data = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for info in tar:
            path = merged(PurePosixPath("/", info.name).relative_to("/"))
            if path and not f"{path}/".startswith(LEFT_OUT) and not is_documentation(path):
                content = tar.extractfile(info).read() if info.isreg() else b""  # type: ignore[union-attr]
                info.name = path
                if info.islnk():
                    info.linkname = merged(PurePosixPath("/", info.linkname).relative_to("/"))
                yield info, content


def merged(path: PurePosixPath) -> str:
    """`lib/x` as `usr/lib/x`."""
    text = str(path)
    return f"usr/{text}" if text.split("/")[0] in MERGED else ("" if text == "." else text)


def is_documentation(path: str) -> bool:
    """Licences stay: they go where the programs go."""
    return path.startswith("usr/share/doc/") and not path.endswith("/copyright")


def layer(found: Iterable[Member]) -> bytes:
    """A layer with nothing of here and now in it."""
    by_path = {info.name: (info, content) for info, content in found}
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(by_path):
            info, content = by_path[name]
            info.mtime, info.uid, info.gid, info.uname, info.gname = 0, 0, 0, "", ""
            info.pax_headers = {}
            tar.addfile(info, io.BytesIO(content))
    return body.getvalue()


def skeleton() -> Iterator[Member]:
    """The folders and links that packages expect."""
    for name in FOLDERS:
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        yield folder, b""
    for name in MERGED:
        link = tarfile.TarInfo(name)
        link.type, link.linkname, link.mode = tarfile.SYMTYPE, f"usr/{name}", 0o777
        yield link, b""


def configuration(layers: list[bytes], arch: str, packages: list[str]) -> bytes:
    """The image's configuration: its sha2-256 is the content id."""
    config = {
        "architecture": arch,
        "config": {
            "Cmd": ["/usr/bin/reprof", "-i", "/input/record.fasta", "-o", "/output/record.reprof"],
            "Env": ["PATH=/usr/bin", "LC_ALL=C"],
            "Labels": {"packages": " ".join(packages)},
            "User": "65534:65534",
            "WorkingDir": "/",
        },
        "created": "1970-01-01T00:00:00Z",
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": text} for text in ("perl", "reprof")],
        "os": "linux",
        "rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers], "type": "layers"},
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode("ascii")


def archive(config: bytes, layers: list[bytes]) -> bytes:
    """What `nexapod image add` and `docker load` read."""
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    paths = [f"{hashlib.sha256(data).hexdigest()}/layer.tar" for data in layers]
    manifest = json.dumps([{"Config": name, "Layers": paths, "RepoTags": [TAG]}]).encode("ascii")
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in [(name, config), *zip(paths, layers, strict=True), ("manifest.json", manifest)]:
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return body.getvalue()


def build() -> tuple[str, bytes]:
    """The content id, and the archive. Raises ImageError."""
    with tempfile.TemporaryDirectory() as scratch:
        packages = [p for p in fetch(Path(scratch) / "apt") if p.name.split("_")[0] not in NOT_NEEDED]
        own = [p for p in packages if p.name.split("_")[0] in OWN_LAYER]
        below = [member for package in packages if package not in own for member in members(package)]
        layers = [layer([*below, *skeleton()]), layer(member for package in own for member in members(package))]
        names = ["=".join(p.name.split("_")[:2]).replace("%3a", ":") for p in packages]
        arch = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout
    config = configuration(layers, arch.strip(), names)
    return f"sha256:{hashlib.sha256(config).hexdigest()}", archive(config, layers)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description="Make the container image of reprof from Debian's packages.")
    parser.add_argument(
        "--output", type=Path, default=HERE / "reprof.tar", help="the archive (default: reprof.tar here)"
    )
    options = parser.parse_args(arguments)
    try:
        image, data = build()
        options.output.write_bytes(data)
    except (ImageError, OSError, subprocess.SubprocessError) as error:
        print(f"build_image.py: {error}", file=sys.stderr)
        return 1
    print(image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
