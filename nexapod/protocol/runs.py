"""How a run of a task ended, as an executor hands it back to its node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from nexapod.protocol.primitives import File
from nexapod.protocol.types import RunOutcome, Usage

RunEnd: TypeAlias = RunOutcome | Literal["try-elsewhere"]
"""`try-elsewhere` (exit 75, or this machine's fault) is no result: the lease is given back."""
EXIT_TRY_ELSEWHERE: Final = 75
"""EX_TEMPFAIL: what a task ends with that asks for another machine. With `try-elsewhere`, any other number is the fault
of this one."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """What an executor hands back for one task."""

    outcome: RunEnd
    exit: int
    files: tuple[File, ...] = ()
    usage: Usage = field(default_factory=Usage)
    log: str = ""
    """The head and the tail of what it printed, escaped, at most LOG_TAIL_MAX bytes."""
    reason: str = ""
    continued: bool = False
    """Whether it went on from the checkpoint that `Run` named."""
