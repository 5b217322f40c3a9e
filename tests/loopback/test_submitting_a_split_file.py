"""The real command, a real daemon and a large file: stored once, however many tasks and jobs it is cut into."""

from __future__ import annotations

import re
from pathlib import Path

from harness import Cluster, Daemon

from nexapod.cli.splitting import pieces
from nexapod.protocol.limits import CHUNK_BYTES, SHARD_TASKS

JOB = """
[job]
name = "split"
[run]
executor = "wasm"
module = "m.wasm"
[tasks]
split = "data.csv"
by = "csv"
pieces = 10000
"""


def held(daemon: Daemon) -> tuple[int, int]:
    """Blobs, and their bytes."""
    text = daemon.ask("GET", "/metrics").decode()
    blobs, size = (re.search(rf"^nexapod_{name} (\d+)", text, re.MULTILINE) for name in ("blobs", "blob_bytes"))
    assert blobs
    assert size
    return int(blobs[1]), int(size[1])


def test_a_file_is_stored_once_whatever_is_made_of_it(tmp_path: Path) -> None:
    header = b"number,text\r\n"
    data = header + b"".join(b'%d,"a ""text""\r\n of two lines"\r\n' % n for n in range(200_000))
    assert len(data) > 6 * CHUNK_BYTES
    (tmp_path / "data.csv").write_bytes(data)
    (tmp_path / "m.wasm").write_bytes(b"\0asm\1\0\0\0")
    (tmp_path / "job.toml").write_text(JOB)
    with Cluster('[steward]\nstorage = "32GiB"\n') as alone:  # it keeps all of its job itself
        daemon = alone.add("submitter", "--no-work")
        said = daemon.command_line("submit", "--no-wait", str(tmp_path / "job.toml"))
        assert "10000 tasks submitted" in said
        (job,) = daemon.get("/v1/jobs")
        spec = daemon.get(f"/v1/jobs/{job['job_id']}/spec")
        assert held(daemon) == (3, 8 + len(data) + 12 * 10_000)

        split = spec["split"]
        assert (split["header"], len(split["bounds"])) == (len(header), -(-10_000 // SHARD_TASKS) + 1)
        cuts = pieces(daemon.ask("GET", f"/v1/blobs/{split['index']}"))
        stored = daemon.ask("GET", f"/v1/blobs/{split['ref']}")
        assert b"".join(stored[offset : offset + length] for offset, length in cuts) == data[len(header) :]
        assert {stored[offset : offset + length].count(b" lines") for offset, length in cuts} == {20}

        # Cut otherwise: only the index is new.
        (tmp_path / "job.toml").write_text(JOB.replace("pieces = 10000", "size = 100"))
        daemon.command_line("submit", "--no-wait", str(tmp_path / "job.toml"))
        assert held(daemon) == (4, 8 + len(data) + 12 * 10_000 + 12 * 2_000)
