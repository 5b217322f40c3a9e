"""What a daemon that comes back must know of a container's run and cannot learn from the engine: one small file.

When it began and its pauses, by the clock that neither a sleeping laptop nor a corrected time of day moves (the engine
tells the time of day); and of a log that is longer than the engine keeps, its beginning, how much was printed, and
until when. Lies in the run's scratch beside what the task sees, not in it.
"""

from __future__ import annotations

import base64
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from nexapod.executor.boot import boot_id

log = structlog.get_logger()


@dataclass(slots=True)
class Notes:
    """What a daemon that comes back must know of a run and cannot learn from the engine."""

    path: Path
    began: float | None = None
    """Monotonic. None: not known, or before this machine was started anew."""
    paused_s: float = 0.0
    paused_since: float | None = None
    """Monotonic."""
    printed: tuple[bytes, bytes, int] | None = None
    """Head, tail and total when `heard` was; None: the engine still has the whole log."""
    heard: float = 0.0
    """By the engine's clock, seconds since 1970."""
    progress: float | None = None
    boot: str = field(default_factory=boot_id)

    @classmethod
    def read(cls, path: Path) -> Notes:
        """Empty when there are none. What was torn by a crash counts as none: the run goes on with less known."""
        notes = cls(path)
        try:
            raw = json.loads(path.read_text())
            notes.paused_s = float(raw["paused_s"])
            if notes.boot and raw["boot"] == notes.boot:
                notes.began, notes.paused_since = _seconds(raw["began"]), _seconds(raw["paused_since"])
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
        body = {"boot": self.boot, "began": self.began, "paused_s": self.paused_s, "paused_since": self.paused_since}
        try:
            new.write_text(json.dumps(body | {"printed": printed, "heard": self.heard, "progress": self.progress}))
            new.replace(self.path)
        except OSError as error:
            log.warning("container_notes_not_written", path=str(self.path), error=str(error))

    def paused_for(self) -> float:
        """Seconds until now."""
        return self.paused_s + (time.monotonic() - self.paused_since if self.paused_since is not None else 0.0)

    def ran_for(self, said_s: float, *, over: bool) -> float:
        """Seconds that it has run without its pauses. `said_s`: from its start to its end, or to now, by the time of
        day, which is all that is known of one that began before this machine was started anew."""
        if self.began is not None:
            since_s = time.monotonic() - self.began
            said_s = min(said_s, since_s) if over else since_s
        return max(0.0, said_s - self.paused_for())


def notes_of(scratch: Path) -> Path:
    """Where the notes of a run lie: in its scratch, outside of what the task sees."""
    return scratch / "notes.json"


def _seconds(value: Any) -> float | None:
    return None if value is None else float(value)
