"""What the demo makes sure of before it starts a daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nexapod.cli.demo_mesh import NoNewFolder, Options, _environment, run_demo
from nexapod.config import Flags, load


def test_the_users_configuration_is_not_the_demos(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "nexapod" / "config.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text('work = false\n[api]\ntcp = "127.0.0.1:8747"\n')
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "mine"), "NEXAPOD_CONFIG": str(mine)}
    assert not load(Flags(), environ).work
    config = load(Flags(), _environment(environ, tmp_path / "demo"))
    assert config.work
    assert config.api_tcp is None
    assert "PATH" not in _environment(environ, tmp_path)
    assert _environment(os.environ, tmp_path)["PATH"] == os.environ["PATH"]


def test_results_go_into_a_new_folder_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path, tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("long" * 100)):
        with pytest.raises(NoNewFolder):
            run_demo(Options(keep=folder), lambda text: None, lambda view: None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
