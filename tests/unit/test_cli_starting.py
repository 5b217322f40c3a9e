"""nexapod.cli.starting: what becomes of a daemon that fails."""

from __future__ import annotations

import errno
import sys
import types
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from nexapod.cli.starting import start
from nexapod.config import Config, Flags


def test_a_daemon_that_the_system_fails_leaves_its_traceback_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(config: Config) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(config.home))

    stand_in = types.ModuleType("nexapod.daemon.app")
    stand_in.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nexapod.daemon.app", stand_in)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with capture_logs() as logged, pytest.raises(OSError, match="No space left"):
        start(Flags(home=tmp_path))
    assert [(entry["event"], entry["exc_info"]) for entry in logged] == [("daemon_failed", True)]
