"""How tasks of a submission ended: values, and the bytes in which those of a whole shard are kept.

A job of a million tasks has its results in memory in these bytes (about 60 a task with one output), and nothing else of
a shard whose tasks are all decided.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from nexapod.protocol import limits
from nexapod.protocol.errors import PeerError
from nexapod.protocol.primitives import BlobRef, Digest, File
from nexapod.protocol.wire import fields

_PACKED_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Result:
    """What this node has checked of one task. `root` and `outputs` are those of the accepted result."""

    outcome: Literal["accepted", "failed"]
    reason: str
    root: Digest | None
    outputs: tuple[File, ...]

    @property
    def accepted(self) -> bool:
        return self.outcome == "accepted"


def pack(epoch: int, results: Iterable[Result]) -> bytes:
    """A shard's results, by task; `epoch`: of its seats, in which all of them counted."""
    return fields.pack([epoch, [_packed(result) for result in results]])


def _packed(result: Result) -> list[Any]:
    files = [[file.path, file.blob.digest, file.blob.size] for file in result.outputs]
    return [result.accepted, result.reason, result.root, files]


def unpack(packed: bytes) -> tuple[int, list[Result]]:
    """What `pack` was given. Raises PeerError when the bytes are no such thing: a damaged store is no crash."""
    raw: Any = fields.unpack(packed, _PACKED_MAX)
    try:
        epoch, items = raw
        return int(epoch), [_unpacked(item) for item in items]
    except (TypeError, ValueError) as error:
        raise PeerError("bad-record", type(error).__name__) from None


def _unpacked(item: list[Any]) -> Result:
    accepted, reason, root, files = item
    outputs = tuple(File(path, BlobRef(Digest(digest), size)) for path, digest, size in files)
    return Result("accepted" if accepted else "failed", reason, None if root is None else Digest(root), outputs)


assert limits.SHARD_TASKS * (limits.REASON_MAX + limits.OUTPUT_FILES_MAX * (limits.PATH_MAX + 64)) <= _PACKED_MAX
