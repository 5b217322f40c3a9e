"""What is true in a simulated world: the right result of every task, and some wrong ones."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Literal

from nexapod.protocol.primitives import BlobRef, File, Millis, TaskId, blob_of
from nexapod.protocol.runs import RunResult
from nexapod.protocol.types import JobSpec, Usage


def fails(spec: JobSpec, task: int) -> bool:
    """Whether a task of this job ends with an error on every machine: the job says so in its environment."""
    return ("FAILS", str(task)) in spec.run.env


def differs(spec: JobSpec, task: int) -> bool:
    """Whether every machine gets another result of a task."""
    return ("DIFFERS", str(task)) in spec.run.env


def right_outcome(spec: JobSpec, task: int) -> Literal["accepted", "failed"]:
    """What must become of it. With `agree` 1 even a result that nobody can repeat is accepted."""
    if fails(spec, task):
        return "failed"
    return "failed" if differs(spec, task) and spec.validate.agree > 1 else "accepted"


def honest_output(task: TaskId) -> BlobRef:
    return blob_of(b"result of " + task.job + task.index.to_bytes(4, "big"))


def honest_result(task: TaskId, spec: JobSpec, wall_ms: Millis, machine: str) -> RunResult:
    """What an honest machine gets, whatever its speed."""
    usage = Usage(wall_ms, wall_ms, 1 << 20)
    if fails(spec, task.index):
        return RunResult("failed", 1, (), usage, log="no such luck", reason="the program ended with 1")
    if differs(spec, task.index):
        return RunResult("ok", 0, (File("out", blob_of(f"{machine} {task}".encode())),), usage)
    return RunResult("ok", 0, (File("out", honest_output(task)),), usage)


def checkpoint_blob(task: TaskId) -> BlobRef:
    """What an honest machine keeps half-way."""
    return blob_of(b"half of " + task.job + task.index.to_bytes(4, "big"))


def poison(task: TaskId, liar: bytes) -> BlobRef:
    """What a liar keeps instead."""
    return blob_of(b"poison of " + liar + task.job + task.index.to_bytes(4, "big"))


def continued_result(task: TaskId, spec: JobSpec, kept: BlobRef, wall_ms: Millis, machine: str) -> RunResult:
    """What comes of going on from a checkpoint: from a poisoned one a wrong result, the same for all who do."""
    if kept == checkpoint_blob(task):
        return replace(honest_result(task, spec, wall_ms, machine), continued=True)
    return replace(wrong_result(task, kept.digest, wall_ms), continued=True)


def wrong_result(task: TaskId, liar: bytes, wall_ms: Millis) -> RunResult:
    """What this liar claims: `liar` is part of it, so that only those who collude agree."""
    junk = blob_of(b"lie of " + liar + task.job + task.index.to_bytes(4, "big"))
    return RunResult("ok", 0, (File("out", junk),), Usage(wall_ms, wall_ms, 1 << 20))


def is_right(spec: JobSpec, task: TaskId, outputs: tuple[File, ...]) -> bool:
    """Whether accepted outputs are what an honest machine computes."""
    if differs(spec, task.index):
        return spec.validate.agree == 1
    return not fails(spec, task.index) and outputs == (File("out", honest_output(task)),)


def short(data: bytes) -> str:
    """A few characters to tell things apart in a trace."""
    return hashlib.blake2b(data, digest_size=4).hexdigest()
