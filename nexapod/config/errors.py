"""A problem in a file that a person wrote: where it is, what is wrong, what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nexapod.protocol.errors import LocalError

PROBLEMS_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` is 0 where it is not known; `key` is dotted: table.key."""

    source: str
    line: int
    key: str
    what: str

    def __str__(self) -> str:
        place = f"{self.source}:{self.line}" if self.line else self.source
        return f"{place}: {self.key}: {self.what}" if self.key else f"{place}: {self.what}"


class ConfigError(LocalError):
    """What was written cannot be used. Every problem found is listed, each with its place and what is allowed."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        shown = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
        if len(problems) > PROBLEMS_SHOWN:
            shown.append(f"... and {len(problems) - PROBLEMS_SHOWN} more")
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)
