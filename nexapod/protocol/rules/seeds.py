"""The seed that a task is given: the same for every replica (docs/protocol.md, 5)."""

from __future__ import annotations

import hashlib

from nexapod.protocol.primitives import Digest, TaskId


def task_seed(task: TaskId) -> Digest:
    """H("nexapod/seed", job, task)."""
    return Digest(hashlib.sha256(b"nexapod/seed\0" + task.job + task.index.to_bytes(4, "big")).digest())
