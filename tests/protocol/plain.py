"""An ordinary job and an ordinary machine, to vary."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nexapod.protocol.primitives import blob_of
from nexapod.protocol.types import JobSpec, Run
from nexapod.sim.keys import HashSigner

MODULE = blob_of(b"module")
ONE, OTHER = HashSigner(1, "one").peer, HashSigner(1, "other").peer


def job_spec(**changes: Any) -> JobSpec:
    return replace(JobSpec("net", "a job", bytes(16), 0, Run("wasm", module=MODULE), tasks=1), **changes)
