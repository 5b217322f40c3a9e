"""How long a file takes to be cut into tasks, against the floor: reading it and its sha2-256, in the same run.

    .venv/bin/python benchmarks/split.py [--megabytes 200] [--repeat 3] [--submit] [--mesh WORKERS] [--json]

Makes one file of each format (FASTA: 500,000 records for 200 MB), cuts each in processes of their own, and says the
best time, its ratio to the floor of the same file, and the largest memory of the process, its code included.
With --submit it also starts a daemon on loopback, submits the FASTA file to it as 10,000 tasks with the real command,
twice, and says how long that took and what the daemon holds before, between and after.
With --mesh it starts so many workers besides, lets them run the 10,000 tasks (each copies its piece), and says what
each received over the network, everything counted, next to what it needed of the file and of others' results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

from nexapod.cli.records import By
from nexapod.cli.splitting import Cut, split_file
from nexapod.protocol.limits import CHUNK_BYTES, SHARD_TASKS

ROOT = Path(__file__).parents[1]
TASKS = 10_000
MESH_S = 3600.0
RECORD_BYTES = 400
"""About so many bytes has a record of each format."""


# --- the files -----------------------------------------------------------------------------------------------------
def _fasta(rng: random.Random) -> Iterator[bytes]:
    letters = "".join(rng.choices("ACDEFGHIKLMNPQRSTVWY", k=100_000)).encode()
    for number in range(10_000):
        at, length = rng.randrange(90_000), rng.randrange(RECORD_BYTES - 150, RECORD_BYTES + 100)
        sequence = letters[at : at + length]
        lines = b"\n".join(sequence[i : i + 60] for i in range(0, length, 60))
        yield b">sequence-%d a protein\n%s\n" % (number, lines)


def _sdf(rng: random.Random) -> Iterator[bytes]:
    for number in range(10_000):
        atoms = b"".join(b"%10.4f%10.4f%10.4f C   0  0\n" % (rng.random(), rng.random(), 0.0) for _ in range(8))
        yield b"molecule-%d\n  made\n\n  8  0\n%sM  END\n> <id>\n%d\n\n$$$$\n" % (number, atoms, number)


def _csv(rng: random.Random) -> Iterator[bytes]:
    for number in range(10_000):
        cells = b",".join(b"%.6f" % rng.random() for _ in range(38))
        yield b'%d,"a name, with ""quotes"" and\na line end",%s\n' % (number, cells)


def _lines(rng: random.Random) -> Iterator[bytes]:
    for _ in range(50_000):
        yield b"C" * rng.randrange(20, 100) + b" compound\n"


MAKERS: dict[By, Callable[[random.Random], Iterator[bytes]]] = {
    "fasta": _fasta,
    "sdf": _sdf,
    "csv": _csv,
    "lines": _lines,
}


def make(by: By, path: Path, size: int) -> None:
    """A file of about so many bytes: some thousand different records, again and again."""
    block = b"".join(MAKERS[by](random.Random(by)))
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.write(block[: block.rfind(b"\n", 0, size % len(block)) + 1] if by == "lines" else b"")


# --- what is measured, each in a process of its own ----------------------------------------------------------------
def floor(path: Path) -> dict[str, Any]:
    began = time.perf_counter()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashlib.sha256(chunk).digest()
    return {"seconds": time.perf_counter() - began}


def cut(path: Path, by: By, how: str) -> dict[str, Any]:
    amount = {"size": 50, "bytes_max": 20_000, "pieces": TASKS}[how]
    began = time.perf_counter()
    split = split_file(path, Cut(by, **{how: amount}))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tasks": split.pieces, "records": split.records}


def peak_mib() -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def _apart(*words: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, "--one", *words], check=True, capture_output=True, text=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def measure(folder: Path, size: int, repeat: int) -> list[dict[str, Any]]:
    found = []
    for by in get_args(By):
        path = folder / f"data.{by}"
        make(by, path, size)
        runs = [("floor",), ("cut", by, "size"), ("cut", by, "bytes_max"), ("cut", by, "pieces")]
        # Turn by turn, so that a busy moment of the machine meets them all.
        rounds = [[_apart(words[0], str(path), *words[1:]) for words in runs] for _ in range(repeat)]
        best = [min(column, key=lambda one: one["seconds"]) for column in zip(*rounds, strict=True)]
        for words, one in zip(runs[1:], best[1:], strict=True):
            ratio = one["seconds"] / best[0]["seconds"]
            facts = {"by": by, "how": words[2], "bytes": path.stat().st_size, "floor_s": best[0]["seconds"]}
            found.append(facts | one | {"ratio": ratio})
        if by != "fasta":
            path.unlink()
    return found


# --- the whole way -------------------------------------------------------------------------------------------------
JOB = """
[job]
name = "split"
[run]
executor = "wasm"
module = "m.wasm"
[tasks]
split = "data.fasta"
by = "fasta"
pieces = 10000
"""


def submit(folder: Path) -> list[dict[str, Any]]:
    sys.path.insert(0, str(ROOT / "tests" / "loopback"))
    from harness import Cluster

    (folder / "m.wasm").write_bytes(b"\0asm\1\0\0\0")
    (folder / "job.toml").write_text(JOB)
    found = []
    with Cluster() as cluster:
        daemon = cluster.add("submitter", "--no-work")
        for _ in range(2):
            held, rss = _held(daemon), daemon.rss()
            began = time.perf_counter()
            daemon.command_line("submit", "--no-wait", "--json", str(folder / "job.toml"))
            seconds = time.perf_counter() - began
            found.append(
                {
                    "seconds": seconds,
                    "held_before": held,
                    "held_after": _held(daemon),
                    "rss_grew_mib": (daemon.rss() - rss) / 2**20,
                }
            )
    return found


def through_mesh(folder: Path, workers: int) -> dict[str, Any]:
    """What each of the workers received while they ran all the tasks of the file once."""
    sys.path.insert(0, str(ROOT / "tests" / "loopback"))
    from harness import Cluster, copying_job

    (folder / "m.wasm").write_bytes(copying_job(1, 0.0).module)
    (folder / "job.toml").write_text(JOB + 'as = "in.txt"\n[validate]\nagree = 1\n')
    with Cluster() as mesh:
        submitter = mesh.add("submitter", "--no-work")
        for number in range(workers):
            mesh.add(f"worker-{number}", "--slots", "1")
        mesh.wait_met()
        began = time.perf_counter()
        job_id = json.loads(submitter.command_line("submit", "--json", str(folder / "job.toml")))["job_id"]
        submitted = time.perf_counter() - began
        mesh.wait_state(submitter, job_id, "settled", MESH_S)
        took = time.perf_counter() - began
        accepted = submitter.job(job_id)["accepted"]
        size = (folder / "data.fasta").stat().st_size
        rows = [_traffic(daemon, size) for daemon in mesh.daemons[1:]]
    return {"bytes": size, "submitted_s": submitted, "took_s": took, "accepted": accepted, "workers": rows}


def _traffic(daemon: Any, size: int) -> dict[str, Any]:
    """What a worker received, next to what its roles had to get: as a worker the pieces of its tasks, as a steward
    those of its shards and the results that it did not find itself, which are as large; chunks are counted once.
    Pieces are taken to be of one size, which they nearly are.
    """
    ran = {event["task"] for event in daemon.events("run")}
    shards = {event["shard"] for event in daemon.events("steward_began")}
    kept = {task for shard in shards for task in range(shard * SHARD_TASKS, min(TASKS, (shard + 1) * SHARD_TASKS))}
    piece = size / TASKS
    chunks = {
        chunk
        for task in ran | kept
        for chunk in range(int(task * piece) // CHUNK_BYTES, int((task + 1) * piece) // CHUNK_BYTES + 1)
    }
    return {
        "worker": daemon.name,
        "tasks": len(ran),
        "pieces_bytes": int(len(ran) * piece),
        "shards": len(shards),
        "chunks_bytes": len(chunks) * CHUNK_BYTES,
        "results_bytes": int(len(kept - ran) * piece),
        "received_bytes": daemon.counts("adapter_events_total").get("bytes_in", 0),
    }


def _held(daemon: Any) -> int:
    line = re.search(r"^nexapod_blob_bytes (\d+)", daemon.ask("GET", "/metrics").decode(), re.MULTILINE)
    assert line
    return int(line[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--submit", action="store_true")
    parser.add_argument("--mesh", type=int, default=0, metavar="WORKERS")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, path, *more = given.one
        one = floor(Path(path)) if what == "floor" else cut(Path(path), *more)
        print(json.dumps(one | {"peak_mib": peak_mib()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), given.megabytes * 10**6, given.repeat)
        submitted = submit(Path(folder)) if given.submit else []
        mesh = through_mesh(Path(folder), given.mesh) if given.mesh else None
    if given.json:
        print(json.dumps({"cut": rows, "submit": submitted, "mesh": mesh}, indent=2))
        return
    print(
        f"{'by':6} {'how':10} {'MB':>5} {'records':>9} {'tasks':>7} {'floor s':>8} {'s':>6} "
        f"{'ratio':>6} {'peak MiB':>9}"
    )
    for row in rows:
        print(
            f"{row['by']:6} {row['how']:10} {row['bytes'] / 1e6:5.0f} {row['records']:9} {row['tasks']:7} "
            f"{row['floor_s']:8.2f} {row['seconds']:6.2f} {row['ratio']:6.2f} {row['peak_mib']:9.0f}"
        )
    for one in submitted:
        print(
            f"nexapod submit: {one['seconds']:.2f} s; the daemon held {one['held_before']} bytes before and "
            f"{one['held_after']} after, and grew by {one['rss_grew_mib']:.0f} MiB"
        )
    if mesh:
        print(
            f"mesh: submitted in {mesh['submitted_s']:.1f} s (replicated included), {mesh['accepted']} tasks accepted "
            f"after {mesh['took_s']:.0f} s; a file of {mesh['bytes'] / 1e6:.0f} MB"
        )
        for one in mesh["workers"]:
            needed = one["chunks_bytes"] + one["results_bytes"]
            print(
                f"  {one['worker']:10} {one['tasks']:5} tasks ({one['pieces_bytes'] / 1e6:.0f} MB), "
                f"{one['shards']} shards kept: needed {needed / 1e6:.0f} MB, "
                f"of which results {one['results_bytes'] / 1e6:.0f}; received "
                f"{one['received_bytes'] / 1e6:.0f} MB, {one['received_bytes'] / needed:.2f} times as much"
            )


if __name__ == "__main__":
    main()
