"""What a daemon that comes back must know of a container's run and cannot learn from the engine: one small file.

Pauses, since they do not count as the run's time; and of a log that is longer than the engine keeps, its beginning, how
much was printed, and until when. Lies in the run's scratch beside what the task sees, not in it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

import structlog

log = structlog.get_logger()


@dataclass(slots=True)
class Notes:
    """What a daemon that comes back must know of a run and cannot learn from the engine."""

    path: Path
    paused_s: float = 0.0
    paused_since: float | None = None
    printed: tuple[bytes, bytes, int] | None = None
    """Head, tail and total when `heard` was; None: the engine still has the whole log."""
    heard: float = 0.0
    progress: float | None = None

    @classmethod
    def read(cls, path: Path) -> Notes:
        """Empty when there are none. What was torn by a crash counts as none: the run goes on with less known."""
        notes = cls(path)
        try:
            raw = json.loads(path.read_text())
            notes.paused_s, notes.paused_since = float(raw["paused_s"]), raw["paused_since"]
            notes.heard, notes.progress = float(raw["heard"]), raw["progress"]
            if raw["printed"]:
                head, tail, total = raw["printed"]
                notes.printed = (base64.b64decode(head), base64.b64decode(tail), int(total))
        except FileNotFoundError:
            return notes
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("container_notes_unreadable", path=str(path), error=str(error))
            return cls(path)
        return notes

    def write(self) -> None:
        """A disk that is full costs only what a restarted daemon would know."""
        printed = None
        if self.printed:
            head, tail, total = self.printed
            printed = (base64.b64encode(head).decode(), base64.b64encode(tail).decode(), total)
        new = self.path.with_suffix(".new")
        body = {"paused_s": self.paused_s, "paused_since": self.paused_since, "printed": printed}
        try:
            new.write_text(json.dumps(body | {"heard": self.heard, "progress": self.progress}))
            new.replace(self.path)
        except OSError as error:
            log.warning("container_notes_not_written", path=str(self.path), error=str(error))

    def paused_for(self, now: float) -> float:
        """Seconds, by the wall clock, until `now`."""
        return self.paused_s + (max(0.0, now - self.paused_since) if self.paused_since is not None else 0.0)
